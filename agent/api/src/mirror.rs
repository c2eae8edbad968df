//! Lists that are kept elsewhere, made watchable.
//!
//! ```text
//!   signal --> read what is there --> differs from what was known? --> ring of changes --> watchers
//! ```
//! Nothing is read while nobody looks: a list reads, and a watch reads whenever the signal says that
//! something is another. What happens while nobody looks shows as one change at the next look.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, stream};
use portreeve_node::{Change, History, Listed, NamespacedName, Versions, Watch, WatchError};

use crate::backend::{BackendError, Signal};

/// The changes of a list as they happen, in batches; an error is the last item.
pub(crate) type Changes<T> = stream::BoxStream<'static, Result<Vec<Change<T>>, WatchError>>;

/// The changes that a watch of one of the node's own lists sees.
pub(crate) fn changes<T: Clone + PartialEq + Send + Sync + 'static>(watch: Watch<T>) -> Changes<T> {
    stream::unfold(watch, |mut watch| async move { watch.next().await.map(|batch| (batch, watch)) }).boxed()
}

/// What is there now; it is told what was there at the last look.
type Read<T> = Box<dyn Fn(&[Arc<T>]) -> Result<Vec<T>, BackendError> + Send + Sync>;

/// One list.
pub(crate) struct Mirror<T> {
    history: Arc<History<T>>,
    name: fn(&T) -> NamespacedName,
    read: Read<T>,
    /// One look at a time: what is written down later was read later.
    looking: Mutex<()>,
}

impl<T> fmt::Debug for Mirror<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Mirror<T> {
    /// A list of what `read` tells, that remembers so many changes; `stamp` writes a version into an object.
    ///
    /// The versions are those of the lists that it stands beside: whoever has seen a change in one of them misses
    /// nothing that came later here.
    pub(crate) fn new(
        versions: Versions,
        remembered: usize,
        name: fn(&T) -> NamespacedName,
        stamp: fn(&mut T, u64),
        read: impl Fn(&[Arc<T>]) -> Result<Vec<T>, BackendError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let history = Arc::new(History::new(versions, remembered, stamp));
        Arc::new(Mirror { history, name, read: Box::new(read), looking: Mutex::default() })
    }

    fn look(&self) -> Result<(), BackendError> {
        let _one_at_a_time = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.history.list().items;
        let there = (self.read)(&known)?;
        let names: BTreeSet<NamespacedName> = there.iter().map(self.name).collect();
        for gone in known.iter().map(|object| (self.name)(object)).filter(|name| !names.contains(name)) {
            self.history.remove(&gone);
        }
        for object in there {
            self.history.put((self.name)(&object), object);
        }
        Ok(())
    }

    /// Everything that is there now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn list(&self) -> Result<Listed<T>, BackendError> {
        self.look()?;
        Ok(self.history.list())
    }

    /// Follows the list from a version on.
    ///
    /// # Errors
    /// [`WatchError::TooOld`]: list again.
    pub(crate) fn watch(self: &Arc<Self>, since: u64, signal: Signal) -> Result<Changes<T>, WatchError> {
        let watch = self.history.watch(Some(since))?;
        // The first look shows what came between the list and the signal's beginning.
        let signal = stream::iter([()]).chain(signal);
        let state = (Arc::clone(self), watch, signal.boxed());
        let changes = stream::unfold(state, |(mirror, mut watch, mut signal)| async move {
            loop {
                tokio::select! {
                    // cancel-safe: says its doc
                    batch = watch.next() => return batch.map(|batch| (batch, (mirror, watch, signal))),
                    // cancel-safe: a signal that is not taken stays
                    told = signal.next() => {
                        told?;
                        // What cannot be read ends the watch; the next list says why.
                        mirror.look().ok()?;
                    }
                }
            }
        });
        Ok(changes.boxed())
    }
}

#[cfg(test)]
mod tests {
    use portreeve_node::ChangeKind;
    use tokio::sync::watch;

    use super::*;

    type Thing = (u64, &'static str, u32);

    #[tokio::test]
    async fn what_changes_elsewhere_is_told_without_asking_and_only_once() {
        let (truth, signals) = watch::channel(vec![("a", 1), ("b", 1)]);
        let read = truth.subscribe();
        let mirror = Mirror::<Thing>::new(
            Versions::starting_at(1),
            8,
            |thing| NamespacedName::new("", thing.1),
            |thing, version| thing.0 = version,
            move |_| Ok(read.borrow().iter().map(|(name, value)| (0, *name, *value)).collect()),
        );
        let before = mirror.list().unwrap();
        assert_eq!(mirror.list().unwrap().resource_version, before.resource_version, "looking changes nothing");
        let signal =
            stream::unfold(signals, |mut signals| async move { signals.changed().await.ok().map(|()| ((), signals)) });
        let mut changes = mirror.watch(before.resource_version, signal.boxed()).unwrap();
        truth.send_replace(vec![("b", 2), ("c", 1)]);
        let batch = changes.next().await.unwrap().unwrap();
        let seen: Vec<_> = batch.iter().map(|change| (change.kind, change.object.1)).collect();
        assert_eq!(seen, [(ChangeKind::Deleted, "a"), (ChangeKind::Modified, "b"), (ChangeKind::Added, "c")]);
        drop(truth);
        assert!(changes.next().await.is_none(), "the end of the truth is the end of the watch");
    }
}
