//! What the double keeps: objects by kind, one revision for all of them, and the changes that watches replay.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::Kind;
use crate::cluster::status::Refusal;

/// Changes of a kind that are kept for watches that begin in the past.
const HISTORY: usize = 10_000;

/// Lists whose next pages may still be asked for.
const PAGED: usize = 32;

/// Namespace and name.
pub(super) type Key = (String, String);

/// The objects of a kind.
pub(super) type Objects = BTreeMap<Key, Arc<Value>>;

/// Everything at one moment, by resource.
pub(in crate::cluster) type Frozen = BTreeMap<String, Objects>;

/// One change: what was there before, and what is there after or was last.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Arc<Value>,
    pub(super) deleted: bool,
}

/// What becomes of an object.
pub(super) enum Decision {
    /// It stays; this is the answer.
    Leave(Value),
    /// It becomes this.
    Put(Value),
    /// It goes; this is how it was last.
    Remove(Value),
}

#[derive(Debug, Default)]
struct Table {
    objects: Objects,
    history: VecDeque<Change>,
    /// The last revision whose change is not kept.
    forgotten: u64,
}

#[derive(Debug)]
struct Contents {
    revision: u64,
    tables: BTreeMap<String, Table>,
    pages: VecDeque<(u64, String, Objects)>,
}

/// The double's memory.
#[derive(Debug)]
pub(in crate::cluster) struct Store {
    contents: Mutex<Contents>,
    latest: watch::Sender<u64>,
}

impl Store {
    pub(super) fn new() -> Self {
        // Far from those of the API server behind: nobody may compare the two.
        let revision = 1_000_000;
        let contents = Contents { revision, tables: BTreeMap::new(), pages: VecDeque::new() };
        Self { contents: Mutex::new(contents), latest: watch::Sender::new(revision) }
    }

    /// What a panic of another left is whole: nothing is changed before all of a change is known.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of each new revision.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    pub(super) fn revision(&self) -> u64 {
        self.contents().revision
    }

    pub(super) fn get(&self, kind: &Kind, key: &Key) -> Option<Arc<Value>> {
        self.contents().tables.get(&kind.resource())?.objects.get(key).cloned()
    }

    /// All objects of a kind, and the revision at which they are so.
    pub(super) fn all(&self, kind: &Kind) -> (u64, Objects) {
        let contents = self.contents();
        let objects = contents.tables.get(&kind.resource()).map(|table| table.objects.clone());
        (contents.revision, objects.unwrap_or_default())
    }

    /// Everything as it is now.
    pub(in crate::cluster) fn freeze(&self) -> (u64, Frozen) {
        let contents = self.contents();
        let tables = contents.tables.iter().map(|(name, table)| (name.clone(), table.objects.clone()));
        (contents.revision, tables.collect())
    }

    /// Keeps a list until its next page is asked for.
    pub(super) fn keep_page(&self, revision: u64, kind: &Kind, objects: &Objects) {
        let mut contents = self.contents();
        if !contents.pages.iter().any(|(at, name, _)| (*at, name) == (revision, &kind.resource())) {
            contents.pages.push_back((revision, kind.resource(), objects.clone()));
            if contents.pages.len() > PAGED {
                contents.pages.pop_front();
            }
        }
    }

    /// The list that was given out at a revision, if it is still kept.
    pub(super) fn page(&self, revision: u64, kind: &Kind) -> Option<Objects> {
        let contents = self.contents();
        let found = contents.pages.iter().find(|(at, name, _)| (*at, name) == (revision, &kind.resource()));
        found.map(|(.., objects)| objects.clone())
    }

    /// Changes of a kind after a revision, and the revision up to which these are all; nothing where some are forgotten.
    pub(super) fn changes(&self, kind: &Kind, after: u64) -> Option<(u64, Vec<Change>)> {
        let contents = self.contents();
        let Some(table) = contents.tables.get(&kind.resource()) else { return Some((contents.revision, Vec::new())) };
        let newer = table.history.iter().filter(|change| change.revision > after).cloned();
        (after >= table.forgotten).then(|| (contents.revision, newer.collect()))
    }

    /// Forgets all changes so far, and the lists of which pages were given out.
    pub(in crate::cluster) fn compact(&self) {
        let mut contents = self.contents();
        contents.pages.clear();
        let revision = contents.revision;
        for table in contents.tables.values_mut() {
            table.history.clear();
            table.forgotten = revision;
        }
    }

    /// Lets `decide` say what becomes of an object, with no other write between, and answers with what it became.
    pub(super) fn change(
        &self,
        kind: &Kind,
        key: &Key,
        decide: impl FnOnce(Option<&Value>) -> Result<Decision, Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let mut contents = self.contents();
        let revision = contents.revision + 1;
        let table = contents.tables.entry(kind.resource()).or_default();
        let before = table.objects.get(key).cloned();
        let (mut object, deleted) = match decide(before.as_deref())? {
            Decision::Leave(object) => return Ok(Arc::new(object)),
            Decision::Put(object) => (object, false),
            Decision::Remove(object) => (object, true),
        };
        object["metadata"]["resourceVersion"] = revision.to_string().into();
        let after = Arc::new(object);
        if deleted {
            table.objects.remove(key);
        } else {
            table.objects.insert(key.clone(), Arc::clone(&after));
        }
        table.history.push_back(Change { revision, before, after: Arc::clone(&after), deleted });
        if table.history.len() > HISTORY
            && let Some(change) = table.history.pop_front()
        {
            table.forgotten = change.revision;
        }
        contents.revision = revision;
        self.latest.send_replace(revision);
        Ok(after)
    }
}
