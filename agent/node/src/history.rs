//! A versioned, watchable list: what the doors' List and Watch are made of.
//!
//! Every change takes the next resource version from one counter that all lists share. The last
//! changes stay in a bounded ring, from which any number of watchers read at their own pace; one
//! that falls behind the ring is told so (HTTP 410 at the door) and lists again.
//!
//! Versions start at the microsecond of the start, so that they also grow over restarts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Changes that each list of a node remembers, whole objects all of them: a healthy watcher is
/// behind by a handful, and any other lists again.
pub(crate) const REMEMBERED: usize = 256;

/// Namespace and name of an object in a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl NamespacedName {
    /// The name `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The counter from which all lists take their resource versions.
#[derive(Debug, Clone)]
pub struct Versions(Arc<AtomicU64>);

impl Versions {
    /// Starts counting after `first`.
    pub fn starting_at(first: u64) -> Self {
        Self(Arc::new(AtomicU64::new(first.max(1))))
    }

    /// Starts counting at the present microsecond.
    pub fn from_clock() -> Self {
        Self::starting_at(u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(1))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// The newest version given out.
    pub fn latest(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How an object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It appeared.
    Added,
    /// It is another than before.
    Modified,
    /// It is gone; the object is its last state.
    Deleted,
}

/// One change of a list.
#[derive(Debug)]
pub struct Change<T> {
    /// How it changed.
    pub kind: ChangeKind,
    /// Version of the change; also in the object's own metadata.
    pub resource_version: u64,
    /// The object after the change.
    pub object: Arc<T>,
    /// The object before the change, for selectors that it has left or entered.
    pub previous: Option<Arc<T>>,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        Self {
            kind: self.kind,
            resource_version: self.resource_version,
            object: Arc::clone(&self.object),
            previous: self.previous.clone(),
        }
    }
}

/// A list at one moment.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    /// Version of the list: a watch from here misses nothing.
    pub resource_version: u64,
    /// The objects in order of namespace and name.
    pub items: Vec<Arc<T>>,
}

/// Why a watch cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Changes after this version are no longer known: list again (HTTP 410, `Expired`).
    #[error("too old resource version: {asked} ({oldest})")]
    TooOld {
        /// Version that was asked for.
        asked: u64,
        /// Oldest version from which a watch can start.
        oldest: u64,
    },
}

struct Inner<T> {
    /// Each with its version.
    items: BTreeMap<NamespacedName, (u64, Arc<T>)>,
    ring: VecDeque<Change<T>>,
    /// Changes up to and including this version have left the ring.
    forgotten: u64,
    version: u64,
}

/// A watchable list of objects.
pub struct History<T> {
    inner: Mutex<Inner<T>>,
    versions: Versions,
    capacity: usize,
    stamp: fn(&mut T, u64),
    changed: watch::Sender<u64>,
}

impl<T> std::fmt::Debug for History<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq> History<T> {
    /// An empty list that remembers `capacity` changes; `stamp` writes a version into an object.
    pub fn new(versions: Versions, capacity: usize, stamp: fn(&mut T, u64)) -> Self {
        let version = versions.latest();
        Self {
            inner: Mutex::new(Inner { items: BTreeMap::new(), ring: VecDeque::new(), forgotten: version, version }),
            versions,
            capacity,
            stamp,
            changed: watch::Sender::new(version),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `object` in; nothing happens if it equals what is there, versions aside.
    pub fn put(&self, key: NamespacedName, mut object: T) -> Option<Arc<T>> {
        let mut inner = self.lock();
        if let Some((version, previous)) = inner.items.get(&key) {
            (self.stamp)(&mut object, *version);
            if **previous == object {
                return None;
            }
        }
        let version = self.versions.next();
        (self.stamp)(&mut object, version);
        let object = Arc::new(object);
        let previous = inner.items.insert(key, (version, Arc::clone(&object))).map(|(_, previous)| previous);
        let kind = if previous.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        self.record(&mut inner, kind, version, Arc::clone(&object), previous);
        Some(object)
    }

    /// Takes an object out; the watchers get its last state.
    pub fn remove(&self, key: &NamespacedName) {
        let mut inner = self.lock();
        let Some((_, previous)) = inner.items.remove(key) else {
            return;
        };
        let version = self.versions.next();
        let mut last = (*previous).clone();
        (self.stamp)(&mut last, version);
        self.record(&mut inner, ChangeKind::Deleted, version, Arc::new(last), Some(previous));
    }

    fn record(
        &self,
        inner: &mut Inner<T>,
        kind: ChangeKind,
        resource_version: u64,
        object: Arc<T>,
        previous: Option<Arc<T>>,
    ) {
        inner.ring.push_back(Change { kind, resource_version, object, previous });
        inner.version = resource_version;
        while inner.ring.len() > self.capacity {
            if let Some(gone) = inner.ring.pop_front() {
                inner.forgotten = gone.resource_version;
            }
        }
        self.changed.send_replace(resource_version);
    }

    /// The object under this name.
    pub fn get(&self, key: &NamespacedName) -> Option<Arc<T>> {
        self.lock().items.get(key).map(|(_, object)| Arc::clone(object))
    }

    /// Everything, and the version from which a watch goes on.
    pub fn list(&self) -> Listed<T> {
        let inner = self.lock();
        Listed {
            resource_version: inner.version,
            items: inner.items.values().map(|(_, object)| Arc::clone(object)).collect(),
        }
    }

    /// Watches from after `since`; `None` means from now on.
    ///
    /// # Errors
    /// [`WatchError::TooOld`] if changes after `since` are forgotten, or `since` is from the future.
    pub fn watch(self: &Arc<Self>, since: Option<u64>) -> Result<Watch<T>, WatchError> {
        let changed = self.changed.subscribe();
        let inner = self.lock();
        let seen = since.unwrap_or(inner.version);
        if seen < inner.forgotten || seen > self.versions.latest() {
            return Err(WatchError::TooOld { asked: seen, oldest: inner.forgotten });
        }
        drop(inner);
        Ok(Watch { history: Arc::clone(self), seen, changed })
    }
}

/// One watcher of a [`History`].
pub struct Watch<T> {
    history: Arc<History<T>>,
    seen: u64,
    changed: watch::Receiver<u64>,
}

impl<T> std::fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq> Watch<T> {
    /// Waits for changes and returns all that are new, in order; `None` once the node has ended.
    ///
    /// # Errors
    /// [`WatchError::TooOld`] if this watcher was slower than the ring is long.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Vec<Change<T>>, WatchError>> {
        loop {
            self.changed.borrow_and_update();
            let ready = self.take();
            match ready {
                Ok(changes) if changes.is_empty() => {}
                other => return Some(other),
            }
            self.changed.changed().await.ok()?;
        }
    }

    fn take(&mut self) -> Result<Vec<Change<T>>, WatchError> {
        let inner = self.history.lock();
        if self.seen < inner.forgotten {
            return Err(WatchError::TooOld { asked: self.seen, oldest: inner.forgotten });
        }
        let first = inner.ring.partition_point(|change| change.resource_version <= self.seen);
        let changes: Vec<_> = inner.ring.range(first..).cloned().collect();
        if let Some(last) = changes.last() {
            self.seen = last.resource_version;
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Thing(u64, &'static str);

    fn things(capacity: usize) -> Arc<History<Thing>> {
        Arc::new(History::new(Versions::starting_at(10), capacity, |t, v| t.0 = v))
    }

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("default", name)
    }

    #[tokio::test]
    async fn a_watch_from_a_list_sees_each_change_once_and_in_order() {
        let list = things(100);
        list.put(name("a"), Thing(0, "one"));
        let at = list.list().resource_version;
        let mut watch = list.watch(Some(at)).unwrap();
        list.put(name("a"), Thing(0, "two"));
        list.put(name("a"), Thing(0, "two"));
        list.remove(&name("a"));
        let seen = watch.next().await.unwrap().unwrap();
        let kinds: Vec<_> = seen.iter().map(|c| (c.kind, c.object.1)).collect();
        assert_eq!(kinds, [(ChangeKind::Modified, "two"), (ChangeKind::Deleted, "two")]);
        assert!(seen[0].resource_version > at);
        assert_eq!(seen[0].object.0, seen[0].resource_version);
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_the_ring_is_told_so() {
        let list = things(2);
        let mut watch = list.watch(None).unwrap();
        let start = list.list().resource_version;
        for text in ["one", "two", "three", "four"] {
            list.put(name("a"), Thing(0, text));
        }
        assert!(matches!(watch.next().await, Some(Err(WatchError::TooOld { .. }))));
        assert!(matches!(list.watch(Some(start)), Err(WatchError::TooOld { .. })));
        assert!(list.watch(Some(list.list().resource_version)).is_ok());
    }

    #[test]
    fn a_version_of_the_future_is_refused() {
        assert!(things(2).watch(Some(999_999)).is_err());
    }
}
