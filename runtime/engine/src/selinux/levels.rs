//! Levels that pods have, each with two categories that no other pod's level has together.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::EngineError;

/// Categories of the usual policies, from `c0` on. Source: mcs(8), policies' `MCS_CATS`.
const CATEGORIES: u32 = 1024;
/// Pairs of two different ones.
const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// The levels that are held, and by how many: what pods ask for themselves may be the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Levels(Arc<Mutex<BTreeMap<String, usize>>>);

/// A level that no new pod gets, as long as this exists.
#[derive(Debug)]
pub(crate) struct Held {
    level: String,
    levels: Levels,
}

impl Levels {
    /// One that nobody holds, at random: what a former pod's files are labelled with is not to be met again soon.
    ///
    /// # Errors
    /// [`EngineError::File`] without random numbers, [`EngineError::Invalid`] when all are held.
    pub(super) fn draw(&self) -> Result<Held, EngineError> {
        const SOURCE: &str = "/dev/urandom";
        let mut bytes = [0; 4];
        let read = File::open(SOURCE).and_then(|mut source| source.read_exact(&mut bytes));
        read.map_err(EngineError::file("reading", Path::new(SOURCE)))?;
        self.draw_from(u32::from_ne_bytes(bytes)).ok_or_else(|| {
            let message = format!("all {PAIRS} pairs of categories are held by pods: ask for a level");
            EngineError::invalid(super::FIELD, message)
        })
    }

    /// The first one from a number on that nobody holds.
    fn draw_from(&self, number: u32) -> Option<Held> {
        let mut held = self.lock();
        let level = (0..PAIRS).map(|step| pair((number % PAIRS + step) % PAIRS)).find_map(|(first, second)| {
            let level = format!("s0:c{first},c{second}");
            (!held.contains_key(&key(&level))).then_some(level)
        })?;
        held.insert(key(&level), 1);
        Some(Held { level, levels: self.clone() })
    }

    /// Holds one that was asked for, whoever holds it too.
    pub(super) fn hold(&self, level: String) -> Held {
        *self.lock().entry(key(&level)).or_default() += 1;
        Held { level, levels: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    pub(super) fn level(&self) -> &str {
        &self.level
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.levels.lock();
        let key = key(&self.level);
        match held.get_mut(&key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(held.remove(&key)),
        }
    }
}

/// Pairs in their order: c0 with each after it, c1 with each after that, and so on.
fn pair(number: u32) -> (u32, u32) {
    let (mut first, mut rest) = (0, number);
    while rest >= CATEGORIES - 1 - first {
        rest -= CATEGORIES - 1 - first;
        first += 1;
    }
    (first, first + 1 + rest)
}

/// The same text for levels with the same categories, in whatever order somebody wrote them.
fn key(level: &str) -> String {
    let Some((sensitivity, categories)) = level.split_once(':') else { return level.to_owned() };
    let mut categories: Vec<&str> = categories.split(',').collect();
    categories.sort_unstable();
    format!("{sensitivity}:{}", categories.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_pair_of_its_own_with_the_lesser_category_first() {
        assert_eq!((pair(0), pair(1022), pair(1023), pair(PAIRS - 1)), ((0, 1), (0, 1023), (1, 2), (1022, 1023)));
        let all: std::collections::BTreeSet<_> = (0..PAIRS).map(pair).collect();
        assert_eq!(all.len(), PAIRS as usize);
        assert!(all.iter().all(|(first, second)| first < second && *second < CATEGORIES));
    }

    #[test]
    fn a_level_is_drawn_once_until_it_is_let_go() {
        let levels = Levels::default();
        let _asked = levels.hold("s0:c2,c0".to_owned());
        let first = levels.draw_from(PAIRS).unwrap();
        let second = levels.draw_from(0).unwrap();
        // c0,c2 is somebody's, who wrote it the other way round.
        assert_eq!((first.level(), second.level()), ("s0:c0,c1", "s0:c0,c3"));
        drop(first);
        assert_eq!(levels.draw_from(0).unwrap().level(), "s0:c0,c1");
    }

    #[test]
    fn a_level_that_two_pods_ask_for_is_held_until_both_are_gone() {
        let levels = Levels::default();
        let (one, other) = (levels.hold("s0:c0,c1".to_owned()), levels.hold("s0:c0,c1".to_owned()));
        drop(one);
        assert_eq!(levels.draw_from(0).unwrap().level(), "s0:c0,c2");
        drop(other);
        assert_eq!(levels.draw_from(0).unwrap().level(), "s0:c0,c1");
        assert!(levels.lock().is_empty(), "a level that is not bound to anything is let go at once");
    }
}
