//! Numbers and shares of nodes.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How many of `nodes` may be down: at least one. A share is rounded up, as that of a DaemonSet.
pub(super) fn at_most(limit: &IntOrString, nodes: usize) -> usize {
    let number = match limit {
        IntOrString::Int(number) => usize::try_from(*number).unwrap_or(0),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|digits| digits.parse::<usize>().ok());
            // What is no share was written past the definition: as if it were not there.
            percent.map_or(1, |percent| (nodes * percent.min(100)).div_ceil(100))
        }
    };
    number.max(1)
}

pub(super) fn count(nodes: usize) -> i32 {
    i32::try_from(nodes).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_up_and_never_none() {
        let share = |text: &str, nodes| at_most(&IntOrString::String(text.to_owned()), nodes);
        assert_eq!((share("10%", 5), share("10%", 15), share("100%", 7), share("10%", 0)), (1, 2, 7, 1));
        assert_eq!((share("many", 9), share("900%", 3)), (1, 3));
        assert_eq!((at_most(&IntOrString::Int(3), 1), at_most(&IntOrString::Int(-2), 9)), (3, 1));
    }
}
