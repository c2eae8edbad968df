//! What was asked through a door, for measurements.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What was asked of one resource by one verb.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Count {
    /// Requests that came, whatever became of them.
    pub requests: usize,
    /// Bytes of their bodies.
    pub received: usize,
    /// Bytes of the answers' bodies that were sent so far; those of a watch are counted as they go.
    pub sent: usize,
    /// From a request to its whole answer, one for each answer that was sent; watches have none.
    pub latencies: Vec<Duration>,
}

/// Counts by verb and resource, such as `("watch", "leases.coordination.k8s.io")` or `("apply", "nodes/status")`; what is no
/// resource goes by its path.
pub type Counts = BTreeMap<(String, String), Count>;

/// Counts that go on.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

impl Tally {
    /// Adds to the count of a verb and a resource.
    pub(super) fn add(&self, verb: &str, resource: &str, add: impl FnOnce(&mut Count)) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        add(counts.entry((verb.to_owned(), resource.to_owned())).or_default());
    }

    /// All so far.
    pub(super) fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins anew, and gives what was counted.
    pub(super) fn take(&self) -> Counts {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
