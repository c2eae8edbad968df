//! Who may download now.
//!
//! **Invariant:** a registry that answers slowly holds up no other. Each has one slot of its own; the others are shared
//! by all. A slow one can take all the shared ones, and then every other registry still goes on, one layer at a time.
//! In all it is never more than twice what one registry may have: only so many slow ones at once can hold up another.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Stands for archives that are loaded; no registry has an empty name.
pub(crate) const ARCHIVES: &str = "";

/// Places for a bounded number of downloads, given out so that no registry waits for one that is slow.
#[derive(Debug)]
pub struct RegistrySlots {
    shared: Arc<Semaphore>,
    own: Mutex<BTreeMap<String, Weak<Own>>>,
    per_registry: usize,
    /// The bound on what is given out in all, shared or not.
    all: Arc<Semaphore>,
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
    /// One registry alone gets `count` slots, and at least one; each further registry at work adds one, up to twice as
    /// many in all.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self::bounded(count, None)
    }

    /// The same, where no registry gets more than `per_registry` slots, if that is given, and at least one.
    #[must_use]
    pub fn bounded(count: usize, per_registry: Option<usize>) -> Self {
        let count = count.clamp(1, Semaphore::MAX_PERMITS / 2);
        let per_registry = per_registry.unwrap_or(Semaphore::MAX_PERMITS).clamp(1, Semaphore::MAX_PERMITS);
        let (shared, all) = (Arc::new(Semaphore::new(count - 1)), Arc::new(Semaphore::new(2 * count)));
        Self { shared, own: Mutex::default(), per_registry, all }
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
        // Last: who waits for it holds only what its registry would have in any case.
        let in_all = self.all.clone().acquire_owned().await;
        let permits = [permit, bound, in_all].map(|permit| permit.expect("nobody closes these semaphores"));
        RegistrySlot { _permits: permits, _own: of_registry }
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
    _permits: [OwnedSemaphorePermit; 3],
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
            let alone = count.max(1);
            let mut held: Vec<_> = (0..alone).filter_map(|_| slots.take("slow").now_or_never()).collect();
            assert_eq!(held.len(), alone);
            assert!(slots.take("slow").now_or_never().is_none());
            for other in ["a", "b", ARCHIVES].iter().take(alone) {
                held.extend(slots.take(other).now_or_never());
                assert!(slots.take(other).now_or_never().is_none(), "{other}");
            }
            assert_eq!(held.len(), 2 * alone);
            drop(held);
            let again = (0..9).filter_map(|_| slots.take("slow").now_or_never().map(std::mem::forget)).count();
            assert_eq!(again, alone);
        }
    }

    #[tokio::test]
    async fn any_number_of_registries_get_no_more_than_twice_what_one_may_have() {
        let slots = Arc::new(RegistrySlots::new(2));
        let mut held: Vec<_> = (0..9).filter_map(|number| slots.take(&format!("r{number}")).now_or_never()).collect();
        assert_eq!(held.len(), 4);
        let waiting = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take("last").await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.pop();
        drop(waiting.await.unwrap());
    }
}
