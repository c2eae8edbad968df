//! Near names: what someone may have meant.

/// The candidate that is nearest to `word`, when one is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing is slow, and one of so many is near by chance.
    const MOST: usize = 100;
    let candidates: Vec<&str> = candidates.take(MOST + 1).collect();
    if candidates.len() > MOST {
        return None;
    }
    let lower = word.to_ascii_lowercase();
    // Any two words of one or two letters are alike.
    let most = (word.chars().count() / 3).min(3);
    candidates
        .into_iter()
        .filter(|candidate| !candidate.is_empty())
        .map(|candidate| (distance(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters were added, left out, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().max(b.len()) > 64 {
        return usize::MAX;
    }
    // Rows of the usual table; two before the one that is being filled are enough.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&last, j) + usize::from(x != y)).min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_of_the_finger_is_understood() {
        let fields = ["image", "imagePullPolicy", "name", "ports", "volumeMounts"];
        let near = |word| nearest(word, fields.iter().copied());
        assert_eq!(near("imge"), Some("image"));
        assert_eq!(near("iamge"), Some("image"));
        assert_eq!(near("Image"), Some("image"));
        assert_eq!(near("port"), Some("ports"));
        assert_eq!(near("imagepullpolicy"), Some("imagePullPolicy"));
        assert_eq!(near("healthcheck"), None);
    }
}
