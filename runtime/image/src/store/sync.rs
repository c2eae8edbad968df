//! Makes committed images durable, outside the path to container start.
//!
//! Until the kernel has put a commit on the disk its record carries the boot id; after a power loss
//! (another boot id) such an image is unpacked again when its blobs are kept and whole, and dropped and pulled again
//! otherwise. One `syncfs` serves all commits that
//! wait, and no file of a layer is synced singly. The index alone is, at each change: it must never be lost.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use crate::{image::ImageId, store::catalog::Catalog};

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
    while let Ok(first) = committed.recv() {
        let mut images = vec![first];
        images.extend(committed.try_iter());
        let synced = File::open(catalog.layout.root()).and_then(|root| Ok(nix::unistd::syncfs(&root)?));
        let whole: Vec<ImageId> = images.into_iter().filter(|image| waiting.done(image)).collect();
        if let Err(error) = synced {
            // What the disk did not take is not written again by another call: these stay unsynced, and are pulled
            // again after the next boot.
            tracing::warn!(%error, images = whole.len(), "images could not be put on the disk for good");
            continue;
        }
        let marked = catalog.change(|state| {
            for image in &whole {
                // One that was removed, and is being committed again, waits for its own sync.
                if !waiting.has(image)
                    && let Some(entry) = state.images.get_mut(image)
                {
                    entry.record.unsynced_boot = None;
                }
            }
            Ok(())
        });
        if let Err(error) = marked {
            tracing::warn!(%error, "images that are on the disk for good could not be marked so");
        }
    }
}
