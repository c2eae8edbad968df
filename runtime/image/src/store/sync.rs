//! Makes committed images durable, outside the path to container start.
//!
//! Until the kernel has put a commit on the disk its record carries the boot id; after a power loss
//! (another boot id) such an image is dropped and pulled again. One `syncfs` serves all commits that
//! wait, and no file is synced singly.

use std::{
    fs::File,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use crate::{image::ImageId, store::catalog::Catalog};

/// The thread that syncs; it ends, having synced what it was given, when this is dropped.
#[derive(Debug)]
pub(crate) struct Syncer {
    queue: Option<mpsc::Sender<ImageId>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub(crate) fn start(catalog: Arc<Catalog>) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("image-sync".to_owned())
            .stack_size(128 << 10)
            .spawn(move || run(&catalog, &waiting))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// An image was committed.
    pub(crate) fn committed(&self, image: ImageId) {
        if let Some(queue) = &self.queue {
            // The thread ends only with us.
            let _always_there = queue.send(image);
        }
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

fn run(catalog: &Catalog, waiting: &mpsc::Receiver<ImageId>) {
    while let Ok(first) = waiting.recv() {
        let mut images = vec![first];
        images.extend(waiting.try_iter());
        let synced = File::open(catalog.layout.root()).and_then(|root| Ok(nix::unistd::syncfs(&root)?));
        if let Err(error) = synced {
            tracing::debug!(%error, "image store could not be synced");
            continue;
        }
        let marked = catalog.change(|state| {
            for image in &images {
                if let Some(entry) = state.images.get_mut(image) {
                    entry.record.unsynced_boot = None;
                }
            }
            Ok(())
        });
        if let Err(error) = marked {
            tracing::debug!(%error, "synced images could not be marked");
        }
    }
}
