//! What cannot be read is told, but not each time that a kubelet asks for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// For so long the same is not told again.
const AGAIN: Duration = Duration::from_secs(600);

/// What was told of lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Complaints(Arc<Mutex<BTreeMap<(String, &'static str), Instant>>>);

impl Complaints {
    /// Tells that `what` of the sandbox or container `id` could not be read, and so is left out of an answer.
    pub(super) fn unread(&self, id: &str, what: &'static str, error: &str) {
        if self.is_news(id, what) {
            warn!(id, what, error, "left out of an answer, because it could not be read");
        }
    }

    fn is_news(&self, id: &str, what: &'static str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, since| since.elapsed() < AGAIN);
        match told.entry((id.to_owned(), what)) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Instant::now());
                true
            }
            std::collections::btree_map::Entry::Occupied(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_in_a_while() {
        let complaints = Complaints::default();
        let news = [("a", "network"), ("a", "network"), ("a", "cgroup"), ("b", "network"), ("b", "network")];
        assert_eq!(news.map(|(id, what)| complaints.is_news(id, what)), [true, false, true, true, false]);
    }
}
