//! Who may download now.
//!
//! **Invariant:** no registry waits for another. Each has one slot of its own; the others are shared by
//! all. A registry that answers slowly can take all the shared ones, and then every other registry still
//! goes on, one layer at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Stands for archives that are loaded; no registry has an empty name.
pub(crate) const ARCHIVES: &str = "";

/// Places for a bounded number of downloads, given out so that no registry waits for another.
#[derive(Debug)]
pub struct RegistrySlots {
    shared: Arc<Semaphore>,
    own: Mutex<BTreeMap<String, Weak<Own>>>,
    per_registry: usize,
}

/// What one registry has.
#[derive(Debug)]
struct Own {
    /// Its own slot.
    slot: Arc<Semaphore>,
    /// So many as it may have in all.
    all: Arc<Semaphore>,
}

impl RegistrySlots {
    /// One registry alone gets `count` slots, and at least one; each further registry at work adds one.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self::bounded(count, None)
    }

    /// The same, where no registry gets more than `per_registry` slots, if that is given, and at least one.
    #[must_use]
    pub fn bounded(count: usize, per_registry: Option<usize>) -> Self {
        let shared = Arc::new(Semaphore::new(count.saturating_sub(1)));
        let per_registry = per_registry.unwrap_or(Semaphore::MAX_PERMITS).clamp(1, Semaphore::MAX_PERMITS);
        Self { shared, own: Mutex::default(), per_registry }
    }

    /// Waits for a slot of `registry` (host and port), which lasts as long as what is returned.
    ///
    /// # Cancel safety
    /// Whoever waits no longer has no place in a queue.
    pub async fn take(&self, registry: &str) -> RegistrySlot {
        let of_registry = self.own_of(registry);
        // First, so that who waits for it holds nothing that another registry could use.
        let bound = of_registry.all.clone().acquire_owned().await;
        let (own, shared) = (of_registry.slot.clone().acquire_owned(), self.shared.clone().acquire_owned());
        let permit = tokio::select! {
            biased;
            // cancel-safe: both give their place in the queue back.
            permit = own => permit,
            permit = shared => permit,
        };
        let [_permit, _bound] = [permit, bound].map(|permit| permit.expect("nobody closes these semaphores"));
        RegistrySlot { _permit, _bound, _own: of_registry }
    }

    fn own_of(&self, registry: &str) -> Arc<Own> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = own.get(registry).and_then(Weak::upgrade) {
            return slot;
        }
        // Slots keep it: what is gone has neither holders nor waiters.
        own.retain(|_, slot| slot.strong_count() > 0);
        let all = Arc::new(Semaphore::new(self.per_registry));
        let slot = Arc::new(Own { slot: Arc::new(Semaphore::new(1)), all });
        own.insert(registry.to_owned(), Arc::downgrade(&slot));
        slot
    }
}

/// A slot that is taken; dropping it gives it back.
#[derive(Debug)]
pub struct RegistrySlot {
    _permit: OwnedSemaphorePermit,
    _bound: OwnedSemaphorePermit,
    _own: Arc<Own>,
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_registry_with_a_bound_leaves_the_rest_to_others() {
        let slots = RegistrySlots::bounded(6, Some(2));
        let held: Vec<_> = (0..2).map(|_| slots.take("slow").now_or_never().unwrap()).collect();
        assert!(slots.take("slow").now_or_never().is_none());
        let others: Vec<_> = (0..2).map(|_| slots.take("other").now_or_never().unwrap()).collect();
        assert!(slots.take("other").now_or_never().is_none());
        drop((held, others));
        assert!(RegistrySlots::bounded(6, Some(0)).take("a").now_or_never().is_some(), "at least one");
    }

    #[test]
    fn a_registry_that_holds_all_it_can_leaves_one_to_every_other() {
        for count in [0, 1, 3] {
            let slots = RegistrySlots::new(count);
            let mut held: Vec<_> = (0..count.max(1)).filter_map(|_| slots.take("slow").now_or_never()).collect();
            assert_eq!(held.len(), count.max(1));
            assert!(slots.take("slow").now_or_never().is_none());
            for other in ["a", "b", ARCHIVES] {
                held.extend(slots.take(other).now_or_never());
                assert!(slots.take(other).now_or_never().is_none(), "{other}");
            }
            assert_eq!(held.len(), count.max(1) + 3);
            drop(held);
            assert_eq!(
                (0..9).filter_map(|_| slots.take("slow").now_or_never().map(std::mem::forget)).count(),
                1.max(count)
            );
        }
    }
}
