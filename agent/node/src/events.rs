//! Events: what happened to which object, in Kubernetes' own shape, counted and kept.
//!
//! The ring is bounded. Repetitions of one (object, reason, message) are one event with a count; what
//! is told of the next try is no part of the comparison, and the newest is kept.
//! Every change is appended to a journal of JSON lines by a task of its own, which compacts the
//! journal when it has grown to a multiple of the ring: no rewriting for each event, and a killed
//! agent loses nothing that the task had taken up.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::history::{History, NamespacedName, REMEMBERED, Versions};

/// Version of the journal.
const VERSION: u32 = 1;
/// Longest message that is kept, in bytes; Kubernetes' own bound.
const MAX_MESSAGE: usize = 1024;
/// What comes between a message and the time of the next try.
const NEXT_TRY: &str = "; next try at ";

/// Why the events cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The journal cannot be read or written.
    #[error("opening {path}")]
    Open {
        /// The journal.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A newer agent wrote the journal.
    #[error("{path} has version {found}, this agent knows {VERSION}: use the newer agent")]
    Newer {
        /// The journal.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// How an event is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Information.
    Normal,
    /// Something is wrong or waits.
    Warning,
}

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// `Pod`, `Node`, `Source`, ...
    pub kind: String,
    /// Namespace; that of the event as well.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid, empty if it has none.
    pub uid: String,
    /// Part of the object, e.g. `spec.containers{web}`.
    pub field_path: Option<String>,
}

impl Subject {
    /// A pod.
    pub fn pod(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            kind: "Pod".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            field_path: None,
        }
    }

    /// One container of this pod.
    pub fn container(mut self, name: &str, init: bool) -> Self {
        let list = if init { "initContainers" } else { "containers" };
        self.field_path = Some(format!("spec.{list}{{{name}}}"));
        self
    }

    /// The node itself.
    pub fn node(name: &str) -> Self {
        Self {
            kind: "Node".to_owned(),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: String::new(),
            field_path: None,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Hash, Clone)]
struct Same {
    subject: Subject,
    kind: EventKind,
    reason: String,
    message: String,
}

#[derive(Debug, Default)]
struct Ring {
    order: VecDeque<(NamespacedName, Option<Same>)>,
    known: HashMap<Same, NamespacedName>,
    unwritten: Vec<Arc<Event>>,
    serial: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
}

/// The events of a node.
#[derive(Debug)]
pub struct Events {
    list: Arc<History<Event>>,
    ring: Mutex<Ring>,
    capacity: usize,
    node_name: String,
    journal: PathBuf,
    wake: Notify,
}

impl Events {
    /// Opens the events at `journal`, keeping the newest `capacity`.
    ///
    /// # Errors
    /// [`EventsError`]; a journal of a newer agent is left alone.
    pub fn open(journal: &Path, capacity: usize, node_name: &str, versions: Versions) -> Result<Self, EventsError> {
        let list = Arc::new(History::new(versions, REMEMBERED, stamp));
        let events = Self {
            list,
            ring: Mutex::new(Ring::default()),
            capacity,
            node_name: node_name.to_owned(),
            journal: journal.to_owned(),
            wake: Notify::new(),
        };
        events.load()?;
        Ok(events)
    }

    /// The watchable list.
    pub fn list(&self) -> &Arc<History<Event>> {
        &self.list
    }

    /// Records that something happened now that is tried again at `until`, to the second.
    pub fn record_until(&self, subject: &Subject, kind: EventKind, reason: &str, message: &str, until: Timestamp) {
        self.put_newest(subject, kind, reason, message, &format!("{NEXT_TRY}{until:.0}"));
    }

    /// Records that something happened now.
    pub fn record(&self, subject: &Subject, kind: EventKind, reason: &str, message: &str) {
        self.put_newest(subject, kind, reason, message, "");
    }

    fn put_newest(&self, subject: &Subject, kind: EventKind, reason: &str, message: &str, next_try: &str) {
        let now = Time(Timestamp::now());
        let what = truncated(message, MAX_MESSAGE - next_try.len());
        let message = format!("{what}{next_try}");
        let same = Same { subject: subject.clone(), kind, reason: reason.to_owned(), message: what.to_owned() };
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = ring.known.get(&same).cloned()
            && let Some(event) = self.list.get(&key)
        {
            let mut event = (*event).clone();
            event.count = Some(event.count.unwrap_or(1).saturating_add(1));
            event.last_timestamp = Some(now);
            event.message = Some(message);
            self.put(&mut ring, key, event);
            return;
        }
        ring.serial = ring.serial.wrapping_add(1);
        let unique = u64::try_from(now.0.as_microsecond()).unwrap_or(0).wrapping_mul(16) ^ (ring.serial & 0xfff);
        let key = NamespacedName::new(&*subject.namespace, format!("{}.{unique:x}", subject.name));
        let event = Event {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                creation_timestamp: Some(now.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(subject.kind.clone()),
                namespace: Some(subject.namespace.clone()),
                name: Some(subject.name.clone()),
                uid: Some(subject.uid.clone()).filter(|uid| !uid.is_empty()),
                field_path: subject.field_path.clone(),
                ..ObjectReference::default()
            },
            reason: Some(same.reason.clone()),
            message: Some(message),
            type_: Some(kind.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some("portreeve".to_owned()), host: Some(self.node_name.clone()) }),
            reporting_component: Some("portreeve".to_owned()),
            reporting_instance: Some(self.node_name.clone()),
            ..Event::default()
        };
        ring.known.insert(same.clone(), key.clone());
        ring.order.push_back((key.clone(), Some(same)));
        self.put(&mut ring, key, event);
        self.forget_oldest(&mut ring);
    }

    fn put(&self, ring: &mut Ring, key: NamespacedName, event: Event) {
        if let Some(event) = self.list.put(key, event) {
            ring.unwritten.push(event);
            self.wake.notify_one();
        }
    }

    fn forget_oldest(&self, ring: &mut Ring) {
        while ring.order.len() > self.capacity {
            if let Some((key, same)) = ring.order.pop_front() {
                self.list.remove(&key);
                if let Some(same) = same {
                    ring.known.remove(&same);
                }
            }
        }
    }

    fn load(&self) -> Result<(), EventsError> {
        let open = |source| EventsError::Open { path: self.journal.clone(), source };
        let file = match File::open(&self.journal) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(open(error)),
        };
        let mut newest: HashMap<NamespacedName, Event> = HashMap::new();
        let mut order: Vec<NamespacedName> = Vec::new();
        let mut first = true;
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(open)?;
            if std::mem::take(&mut first) {
                match serde_json::from_slice::<Header>(&line) {
                    Ok(header) if header.version > VERSION => {
                        return Err(EventsError::Newer { path: self.journal.clone(), found: header.version });
                    }
                    Ok(_) => {}
                    Err(error) => {
                        warn!(path = %self.journal.display(), error = %error, "event journal was unreadable and starts anew");
                        return Ok(());
                    }
                }
                continue;
            }
            // The last line of a killed writer may be half of one.
            let Ok(event) = serde_json::from_slice::<Event>(&line) else {
                continue;
            };
            let (Some(namespace), Some(name)) = (event.metadata.namespace.clone(), event.metadata.name.clone()) else {
                continue;
            };
            let key = NamespacedName { namespace, name };
            if newest.insert(key.clone(), event).is_none() {
                order.push(key);
            }
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = order.len().saturating_sub(self.capacity);
        for key in order.into_iter().skip(skip) {
            if let Some(event) = newest.remove(&key) {
                let same = same_of(&event);
                if let Some(same) = &same {
                    ring.known.insert(same.clone(), key.clone());
                }
                ring.order.push_back((key.clone(), same));
                self.list.put(key, event);
            }
        }
        Ok(())
    }

    /// Writes what is recorded until `stop`, and what is left then.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut journal = None;
        let mut told = None;
        loop {
            let stopped = tokio::select! {
                // cancel-safe: a notification stays stored.
                () = self.wake.notified() => false,
                // cancel-safe: cancellation is a state.
                () = stop.cancelled() => true,
            };
            let events = Arc::clone(&self);
            let written =
                tokio::task::spawn_blocking(move || events.write_blocking(&mut journal, stopped).map(|()| journal))
                    .await;
            journal = match written {
                Ok(Ok(journal)) => {
                    told = None;
                    journal
                }
                Ok(Err(error)) => {
                    // Each event tries again, and all that are kept are written then.
                    if told.replace(error.kind()) != Some(error.kind()) {
                        warn!(path = %self.journal.display(), error = %error, "events were not written");
                    }
                    None
                }
                Err(_) => None,
            };
            if stopped {
                return;
            }
        }
    }

    fn write_blocking(&self, journal: &mut Option<Journal>, sync: bool) -> io::Result<()> {
        let unwritten = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut ring.unwritten)
        };
        let full = journal.as_ref().is_none_or(|j| j.lines > self.capacity.saturating_mul(4));
        if full {
            *journal = Some(self.compact_blocking()?);
        } else if let Some(journal) = journal {
            let mut text = Vec::new();
            for event in &unwritten {
                append_line(&mut text, &**event)?;
            }
            journal.file.write_all(&text)?;
            journal.lines += unwritten.len();
        }
        if sync && let Some(journal) = journal {
            journal.file.sync_data()?;
        }
        Ok(())
    }

    /// Writes the whole ring into a new journal.
    fn compact_blocking(&self) -> io::Result<Journal> {
        let keys: Vec<_> = {
            let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.order.iter().map(|(key, _)| key.clone()).collect()
        };
        let mut text = Vec::new();
        append_line(&mut text, &Header { version: VERSION })?;
        for key in &keys {
            if let Some(event) = self.list.get(key) {
                append_line(&mut text, &*event)?;
            }
        }
        let temporary = self.journal.with_extension("new");
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(&temporary, &self.journal)?;
        Ok(Journal { file, lines: keys.len() })
    }
}

struct Journal {
    file: File,
    lines: usize,
}

fn append_line(text: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *text, value)?;
    text.push(b'\n');
    Ok(())
}

fn stamp(event: &mut Event, version: u64) {
    event.metadata.resource_version = Some(version.to_string());
}

fn same_of(event: &Event) -> Option<Same> {
    let object = &event.involved_object;
    Some(Same {
        subject: Subject {
            kind: object.kind.clone()?,
            namespace: object.namespace.clone()?,
            name: object.name.clone()?,
            uid: object.uid.clone().unwrap_or_default(),
            field_path: object.field_path.clone(),
        },
        kind: match event.type_.as_deref() {
            Some("Warning") => EventKind::Warning,
            _ => EventKind::Normal,
        },
        reason: event.reason.clone()?,
        message: event.message.as_deref().map(timeless)?.to_owned(),
    })
}

/// A message without the time of the next try.
fn timeless(message: &str) -> &str {
    match message.rsplit_once(NEXT_TRY) {
        Some((what, at)) if at.parse::<Timestamp>().is_ok() => what,
        _ => message,
    }
}

fn truncated(message: &str, limit: usize) -> &str {
    let mut end = message.len().min(limit);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Arc<Events> {
        Arc::new(Events::open(path, 3, "node", Versions::starting_at(1)).unwrap())
    }

    fn counts(events: &Events) -> Vec<(String, i32)> {
        let mut all: Vec<_> = events.list().list().items;
        all.sort_by_key(|event| event.first_timestamp.clone());
        all.iter().map(|e| (e.message.clone().unwrap(), e.count.unwrap())).collect()
    }

    #[tokio::test]
    async fn events_are_counted_bounded_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let events = open(&path);
        let stop = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&events).run(stop.clone()));
        let pod = Subject::pod("default", "web", "u1");
        for message in ["a", "b", "b", "c", "d", "d", "d"] {
            events.record(&pod, EventKind::Warning, "BackOff", message);
            tokio::task::yield_now().await;
        }
        let expected = [("b".to_owned(), 2), ("c".to_owned(), 1), ("d".to_owned(), 3)];
        assert_eq!(counts(&events), expected);
        stop.cancel();
        task.await.unwrap();

        let again = open(&path);
        assert_eq!(counts(&again), expected);
        again.record(&pod, EventKind::Warning, "BackOff", "d");
        assert_eq!(counts(&again).last().unwrap().1, 4, "repetitions are counted over restarts");
    }

    #[tokio::test]
    async fn repeated_back_offs_are_one_event_that_says_when_the_next_try_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let events = open(&path);
        let stop = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&events).run(stop.clone()));
        let pod = Subject::pod("default", "web", "u1").container("c", false);
        let (long, at) = ("é".repeat(MAX_MESSAGE), |second| Timestamp::from_second(second).unwrap());
        let warn = |events: &Events, message: &str, second| {
            events.record_until(&pod, EventKind::Warning, "BackOff", message, at(second));
        };
        for second in [10, 30] {
            warn(&events, "no such image", second);
            warn(&events, &long, second);
        }
        let told = counts(&events);
        assert_eq!(told[0], ("no such image; next try at 1970-01-01T00:00:30Z".to_owned(), 2));
        assert!(told[1].0.len() <= MAX_MESSAGE && told[1].0.ends_with("é; next try at 1970-01-01T00:00:30Z"));
        assert_eq!(told[1].1, 2);
        assert!(events.list().list().items.iter().all(|event| event.type_.as_deref() == Some("Warning")));
        stop.cancel();
        task.await.unwrap();

        let again = open(&path);
        warn(&again, "no such image", 70);
        warn(&again, &long, 70);
        assert_eq!(counts(&again)[0], ("no such image; next try at 1970-01-01T00:01:10Z".to_owned(), 3));
        assert_eq!(counts(&again).len(), 2, "they are the same after a restart, too");
        again.record(&pod, EventKind::Warning, "BackOff", "no such image; next try at the office");
        assert_eq!(counts(&again).len(), 3, "only a time is left out");
    }

    #[tokio::test]
    async fn the_ring_and_its_journal_stay_within_their_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let events = open(&path);
        for number in 0..1000 {
            events.record(&Subject::node("n"), EventKind::Normal, "Told", &format!("{number:03}"));
        }
        let kept = [("997".to_owned(), 1), ("998".to_owned(), 1), ("999".to_owned(), 1)];
        assert_eq!(counts(&events), kept);
        let mut journal = None;
        let mut lines = 0;
        for number in 0..100 {
            events.record(&Subject::node("n"), EventKind::Normal, "Told", &format!("again {}", number % 7));
            events.write_blocking(&mut journal, false).unwrap();
            lines = lines.max(fs::read_to_string(&path).unwrap().lines().count());
        }
        let ring = events.ring.lock().unwrap();
        assert_eq!((ring.order.len(), ring.known.len(), ring.unwritten.len()), (3, 3, 0));
        assert!((4..=15).contains(&lines), "a header, and at most some four times the ring: {lines}");
    }

    #[test]
    fn a_journal_of_a_newer_agent_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        fs::write(&path, "{\"version\":99}\nwhatever\n").unwrap();
        let error = Events::open(&path, 3, "node", Versions::starting_at(1)).unwrap_err();
        assert!(matches!(error, EventsError::Newer { found: 99, .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"version\":99}\nwhatever\n");
    }

    #[test]
    fn half_a_line_at_the_end_of_the_journal_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        fs::write(&path, "{\"version\":1}\n{\"metadata\":{\"na").unwrap();
        assert!(open(&path).list().list().items.is_empty());
    }
}
