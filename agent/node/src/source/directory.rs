//! The thread that watches a directory of manifests.
//!
//! Reports of the kernel are hints only: what counts is what a scan finds. A slow listing stays
//! as the safety net for what is not reported: something mounted over the directory, the directory
//! being a link that leads elsewhere now, a change of a file outside that a link leads to.
//!
//! However often something is reported, and however long the directory cannot be read, listing it
//! takes a small part of one core: after each listing comes a pause in proportion to it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::names::is_manifest_name;
use super::{Ground, Hints, Scanner, SourceSet};

/// While the directory cannot be read, it is tried again this often.
const RETRY: Duration = Duration::from_secs(2);
/// After a listing none follows for so many times its duration.
const PAUSE: u32 = 50;

/// Why a directory cannot become a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The thread cannot start.
    #[error("starting the thread that watches {path}")]
    Thread {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

enum Message {
    Event(notify::Result<notify::Event>),
    Stop,
}

/// A watched directory; dropping it stops the thread.
#[derive(Debug)]
pub struct DirectorySource {
    stop: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    sets: watch::Receiver<SourceSet>,
}

impl DirectorySource {
    /// Starts to watch `directory`, which need not exist; `ground` is what the ledger remembers.
    ///
    /// # Errors
    /// [`SourceError::Thread`] if no thread can be had.
    pub fn start(directory: &Path, ground: Option<Ground>, resync: Duration) -> Result<Self, SourceError> {
        let (stop, inbox) = mpsc::channel();
        let (sender, sets) = watch::channel(SourceSet::starting(directory));
        let mut watched = Watched {
            directory: directory.to_owned(),
            scanner: Scanner::new(directory, ground),
            watch: None,
            unwatched: None,
            outbox: stop.clone(),
            inbox,
            sets: sender,
            resync,
        };
        let thread = std::thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || watched.run())
            .map_err(|source| SourceError::Thread { path: directory.to_owned(), source })?;
        Ok(Self { stop, thread: Some(thread), sets })
    }

    /// The sets, newest first and only.
    pub fn sets(&self) -> watch::Receiver<SourceSet> {
        self.sets.clone()
    }
}

impl Drop for DirectorySource {
    fn drop(&mut self) {
        // The thread has ended already if nobody listens.
        let _ = self.stop.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A watch, and what it was made for.
struct Watch {
    watcher: RecommendedWatcher,
    ground: Option<Ground>,
    /// The directory without links, as it stands in the reports.
    root: PathBuf,
}

struct Watched {
    directory: PathBuf,
    scanner: Scanner,
    watch: Option<Watch>,
    /// Why there is no watch, as it was logged last.
    unwatched: Option<String>,
    outbox: Sender<Message>,
    inbox: Receiver<Message>,
    sets: watch::Sender<SourceSet>,
    resync: Duration,
}

impl Watched {
    fn run(&mut self) {
        let mut hints = Hints { rescan: true, ..Hints::default() };
        let mut listed_at = Instant::now();
        loop {
            let lists = self.scanner.lists(&hints);
            if hints.rescan {
                self.ensure_watch();
                self.settle_watch();
            }
            self.scanner.scan(&hints, Instant::now());
            self.ensure_watch();
            self.publish();
            if lists {
                listed_at = Instant::now();
            }

            let every = if self.scanner.misses_something() || self.watch.is_none() { RETRY } else { self.resync };
            let rested = listed_at + (self.scanner.listing_took() * PAUSE).min(self.resync);
            let due = (listed_at + every.min(self.resync)).max(rested);
            let next = due.min(self.scanner.deadline().unwrap_or(due));
            hints = Hints::default();
            if !self.collect(next, &mut hints) {
                return;
            }
            hints.rescan |= Instant::now() >= due;
            while self.scanner.lists(&hints) && Instant::now() < rested {
                let mut more = Hints::default();
                if !self.collect(rested, &mut more) {
                    return;
                }
                hints.add(more);
            }
        }
    }

    /// Takes up what is reported, waiting until `until` for the first report that says something; false at the end.
    ///
    /// Our own reading is reported as well: what would answer it with more reading would never rest.
    fn collect(&mut self, until: Instant, hints: &mut Hints) -> bool {
        while hints.is_empty() {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => {
                    if !self.note(message, hints) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while let Ok(message) = self.inbox.try_recv() {
            if !self.note(message, hints) {
                return false;
            }
        }
        true
    }

    fn note(&mut self, message: Message, hints: &mut Hints) -> bool {
        match message {
            Message::Stop => return false,
            Message::Event(Ok(event)) => note_event(&self.in_our_words(event), hints),
            Message::Event(Err(error)) => {
                debug!(error = %error, "a watch of the manifests failed");
                // It may lack a folder: a new one is made, or the reason why there can be none is told.
                self.watch = None;
                hints.rescan = true;
            }
        }
        true
    }

    /// The report with the paths that the scanner knows: the watch is on the directory without links.
    fn in_our_words(&self, mut event: notify::Event) -> notify::Event {
        if let Some(watch) = &self.watch {
            for path in &mut event.paths {
                if let Ok(below) = path.strip_prefix(&watch.root) {
                    *path = self.directory.join(below);
                }
            }
        }
        event
    }

    /// Watches the directory that is there now.
    fn ensure_watch(&mut self) {
        let ground = self.scanner.ground();
        if let Some(watch) = &self.watch {
            // Kept until an unreadable directory is back: it costs nothing and may report it.
            if self.scanner.unreadable().is_some() || (ground.is_some() && watch.ground == ground) {
                return;
            }
        }
        match self.watch_now(ground.clone()) {
            Ok(watch) => {
                let first = self.watch.is_none();
                self.watch = Some(watch);
                self.unwatched = None;
                if !first || ground.is_some() {
                    // What happened between the listing and the watch is seen by another listing.
                    self.scanner.scan(&Hints { rescan: true, ..Hints::default() }, Instant::now());
                    if let Some(watch) = &mut self.watch {
                        watch.ground = self.scanner.ground();
                    }
                }
            }
            Err(error) => {
                self.watch = None;
                let message = error.to_string();
                if self.directory.exists() && self.unwatched.as_ref() != Some(&message) {
                    warn!(path = %self.directory.display(), error = %message,
                        "manifests cannot be watched, they are listed every 2 s");
                    self.unwatched = Some(message);
                }
            }
        }
    }

    /// Waits until the folders that were reported are watched.
    ///
    /// A new folder is reported before its own watch is there: a file that comes after our listing and before that
    /// watch would be seen by nobody. The watcher takes this call after it has dealt with what it reported.
    fn settle_watch(&mut self) {
        if let Some(watch) = &mut self.watch
            && let Err(error) = watch.watcher.configure(notify::Config::default())
        {
            debug!(error = %error, "the watch of the manifests has ended");
            self.watch = None;
        }
    }

    fn watch_now(&self, ground: Option<Ground>) -> notify::Result<Watch> {
        // Whatever a link may lead to below the directory is watched at its own place.
        let root = self.directory.canonicalize()?;
        let outbox = self.outbox.clone();
        let mut watcher = RecommendedWatcher::new(
            move |event| {
                // Nobody listens any more: the thread is about to end.
                let _ = outbox.send(Message::Event(event));
            },
            notify::Config::default().with_follow_symlinks(false),
        )?;
        watcher.watch(&root, RecursiveMode::Recursive)?;
        Ok(Watch { watcher, ground, root })
    }

    fn publish(&self) {
        let set = self.scanner.set();
        self.sets.send_if_modified(|published| {
            let same = SourceSet { read_at: published.read_at, ..set.clone() } == *published;
            *published = set;
            !same
        });
    }
}

/// Sorts one report of the kernel into the hints.
fn note_event(event: &notify::Event, hints: &mut Hints) {
    if event.need_rescan() || event.paths.is_empty() {
        hints.rescan = true;
        return;
    }
    for path in &event.paths {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                if is_manifest_name(path) {
                    hints.closed.insert(path.clone());
                }
            }
            EventKind::Access(_) => {}
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) if is_manifest_name(path) => {
                hints.closed.insert(path.clone());
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) if is_manifest_name(path) => {
                hints.touched.insert(path.clone());
            }
            // Both ends, each of which was or will be reported by itself as well.
            EventKind::Modify(ModifyKind::Name(RenameMode::Both))
                if event.paths.iter().all(|path| is_manifest_name(path)) => {}
            EventKind::Modify(ModifyKind::Name(_)) => {
                // A folder came or went, or `..data` was swapped.
                hints.rescan = true;
                hints.swapped = true;
            }
            EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => {
                hints.rescan = true;
            }
            EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) if is_manifest_name(path) => {
                hints.touched.insert(path.clone());
            }
            EventKind::Modify(ModifyKind::Data(_)) => {}
            EventKind::Create(CreateKind::File) | EventKind::Remove(RemoveKind::File) if hidden => {}
            _ => hints.rescan = true,
        }
    }
}
