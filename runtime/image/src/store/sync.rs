//! Makes committed images durable, outside the path to container start.
//!
//! Until the kernel has put a commit on the disk its record carries the boot id; after a power loss
//! (another boot id) such an image is unpacked again when its blobs are there and whole, and dropped and pulled again
//! otherwise. So blobs of pulled layers stay until then, and go with the mark. One `syncfs` serves all commits that
//! wait, and no file of a layer is synced singly. The index alone is, at each change: it must never be lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    digest::Digest,
    image::ImageId,
    store::{
        catalog::{Catalog, State},
        layout::{Layout, entries, name_of},
    },
};

/// When an index that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// Blobs of a pull that ended before its record are kept so long for the next one.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);
/// Stands for the boot of what the disk has refused: no machine boots with it, so the next start makes it anew.
const LOST: &str = "the disk has not taken it";

/// The thread that syncs; it ends, having synced what it was given, when this is dropped.
#[derive(Debug)]
pub(crate) struct Syncer {
    queue: Option<mpsc::Sender<ImageId>>,
    waiting: Arc<Waiting>,
    thread: Option<JoinHandle<()>>,
}

/// How many commits of each image are at work, or wait for a sync that begins after them.
#[derive(Debug, Default)]
struct Waiting(Mutex<BTreeMap<ImageId, usize>>);

impl Waiting {
    fn begun(&self, image: &ImageId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(image.clone()).or_default() += 1;
    }

    fn has(&self, image: &ImageId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(image)
    }

    /// One of them is on the disk; whether it was the last.
    fn done(&self, image: &ImageId) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = all.get_mut(image).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            all.remove(image);
        }
        left == 0
    }
}

/// A commit, from before its record is made; dropped when it is there, or will not be.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    syncer: &'a Syncer,
    image: ImageId,
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        if let Some(queue) = &self.syncer.queue {
            // The thread ends only with the syncer.
            let _always_there = queue.send(self.image.clone());
        }
    }
}

impl Syncer {
    pub(crate) fn start(catalog: Arc<Catalog>) -> std::io::Result<Self> {
        let (queue, committed) = mpsc::channel();
        let waiting = Arc::new(Waiting::default());
        let counts = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("image-sync".to_owned())
            .stack_size(128 << 10)
            .spawn(move || run(&catalog, &committed, &counts))?;
        Ok(Self { queue: Some(queue), waiting, thread: Some(thread) })
    }

    /// An image is being committed: until this is dropped and a sync has begun after that, it does not count as synced.
    pub(crate) fn commit(&self, image: ImageId) -> Commit<'_> {
        self.waiting.begun(&image);
        Commit { syncer: self, image }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the runtime already.
            let _reported = thread.join();
        }
    }
}

fn run(catalog: &Catalog, committed: &mpsc::Receiver<ImageId>, waiting: &Waiting) {
    let mut unmarked = BTreeSet::new();
    loop {
        let next = match unmarked.is_empty() {
            true => committed.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => committed.recv_timeout(RETRY),
        };
        let images: Vec<ImageId> = match next {
            Ok(first) => [first].into_iter().chain(committed.try_iter()).collect(),
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let synced = File::open(catalog.layout.root()).and_then(|root| Ok(nix::unistd::syncfs(&root)?));
        let whole: BTreeSet<ImageId> = images.into_iter().filter(|image| waiting.done(image)).chain(unmarked).collect();
        let mark = match &synced {
            Ok(()) => None,
            Err(error) => {
                // The kernel tells it once; what the disk did not take is not written again by another call.
                tracing::warn!(%error, images = whole.len(), "images could not be put on the disk for good");
                Some(LOST.to_owned())
            }
        };
        let marked = catalog.change(|state| {
            let mut served = BTreeSet::new();
            for image in &whole {
                // One that was removed, and is being committed again, waits for its own sync.
                if !waiting.has(image)
                    && let Some(entry) = state.images.get_mut(image)
                    // What the disk has not taken once, it has not taken later.
                    && entry.record.unsynced_boot.as_deref() != Some(LOST)
                {
                    entry.record.unsynced_boot.clone_from(&mark);
                    if mark.is_none() {
                        served.append(&mut entry.record.until_synced);
                    }
                }
            }
            let needed = state.until_synced();
            served.retain(|blob| !needed.contains(blob));
            Ok(served)
        });
        unmarked = BTreeSet::new();
        match marked {
            Ok(blobs) => {
                remove(&catalog.layout, &blobs);
                remove_forgotten(&catalog.layout, &catalog.read());
            }
            Err(error) => {
                tracing::warn!(%error, "images could not be marked as on the disk for good, it is tried again");
                unmarked = whole;
            }
        }
    }
}

/// Removes blobs whose layers are on the disk for good. A pull that has just noted one of them as its own loses what a
/// power cut might have needed, and nothing else.
pub(crate) fn remove<'a>(layout: &Layout, blobs: impl IntoIterator<Item = &'a Digest>) {
    for blob in blobs {
        remove_file(&layout.unsynced_blob(blob));
    }
}

/// Removes those of pulls that nobody came back to.
pub(crate) fn remove_forgotten(layout: &Layout, state: &State) {
    let needed = state.until_synced();
    for path in entries(&layout.unsynced()).unwrap_or_default() {
        let is_needed =
            name_of(&path).and_then(|name| Digest::from_hex(name).ok()).is_some_and(|d| needed.contains(&d));
        let age = fs::metadata(&path).and_then(|file| file.modified()).map(|time| time.elapsed().unwrap_or_default());
        if !is_needed && age.is_ok_and(|age| age > FORGOTTEN) {
            remove_file(&path);
        }
    }
}

fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "what nothing needs any more could not be removed");
        }
        _ => {}
    }
}
