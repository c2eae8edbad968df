//! What containers have written to their own layers: found by looking at every file, which may take long.
//!
//! ```text
//!   asked, nothing fresh --> one walk per container, a task of its own that outlives who asked
//!                            |- done within PATIENCE --> its figure
//!                            `- not yet              --> the last one, with its time; without one, none
//! ```

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portreeve_engine::{ContainerId, ContainerState, ContainerStatus};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Cri, v1, view};

/// How long one call waits for all walks together.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// For how long a figure is told again, at least.
const FRESH: Duration = Duration::from_secs(30);
/// And for how many times as long as it took to find: walking takes a tenth of a disk's time at most.
const REST: u32 = 10;
/// For how long a figure is kept that nobody asks for.
const KEPT: Duration = Duration::from_secs(600);
/// How many walks there are at once.
const WALKS: usize = 4;
/// What lies deeper is not counted.
const MAX_DEPTH: usize = 100;

/// The sizes that were found last, by container, and the walks that go on.
#[derive(Debug, Clone)]
pub(super) struct Layers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    known: Mutex<BTreeMap<ContainerId, Layer>>,
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct Layer {
    found: watch::Sender<Option<Found>>,
    walking: bool,
}

/// What a walk has found.
#[derive(Debug, Clone, Copy)]
struct Found {
    size: Size,
    at: Timestamp,
    /// Until then nobody walks again.
    fresh_until: Instant,
}

/// What a tree takes on its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    bytes: u64,
    inodes: u64,
}

impl Cri {
    /// What a container has written to its own layer, as it was found last; a walk that is under way is waited for `until`
    /// then. Nothing when there is no figure yet.
    pub(super) async fn written(
        &self,
        container: &ContainerStatus,
        until: tokio::time::Instant,
    ) -> Option<v1::FilesystemUsage> {
        let part = self.engine.images().writable_part(container.id.as_str());
        let (engine, complaints, stop) = (Arc::clone(&self.engine), self.complaints.clone(), self.stop.clone());
        let id = container.id.clone();
        let walk = move || match size_of(&part, &stop) {
            Ok(size) => Some(size),
            Err(error) => {
                let here = engine.container(&id).is_some_and(|one| one.state == ContainerState::Running);
                if here && !stop.is_cancelled() {
                    complaints.unread(id.as_str(), "writable layer", &error.to_string());
                }
                None
            }
        };
        let found = self.layers.ask(&self.tasks, &container.id, walk, until).await?;
        Some(v1::FilesystemUsage {
            timestamp: view::nanoseconds(found.at),
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: self.engine.config().images.root.display().to_string(),
            }),
            used_bytes: Some(v1::UInt64Value { value: found.size.bytes }),
            inodes_used: Some(v1::UInt64Value { value: found.size.inodes }),
        })
    }
}

impl Default for Layers {
    fn default() -> Self {
        Self(Arc::new(Shared { known: Mutex::default(), turns: Semaphore::new(WALKS) }))
    }
}

impl Layers {
    async fn ask(
        &self,
        tasks: &TaskTracker,
        id: &ContainerId,
        walk: impl FnOnce() -> Option<Size> + Send + 'static,
        until: tokio::time::Instant,
    ) -> Option<Found> {
        let mut found = {
            let mut known = self.known();
            // Of containers that are gone nothing is kept.
            let kept = |found: &Option<Found>| found.is_some_and(|found| found.fresh_until.elapsed() < KEPT);
            known.retain(|other, layer| other == id || layer.walking || kept(&layer.found.borrow()));
            let layer = known.entry(id.clone()).or_default();
            let found = layer.found.subscribe();
            if let Some(found) = fresh(&found) {
                return Some(found);
            }
            if !layer.walking {
                layer.walking = true;
                tasks.spawn(self.clone().walk(id.clone(), walk));
            }
            found
        };
        // Whoever ended it, and however: what is known then is the answer.
        let _ended_or_late = tokio::time::timeout_at(until, found.changed()).await;
        *found.borrow()
    }

    async fn walk(self, id: ContainerId, walk: impl FnOnce() -> Option<Size> + Send + 'static) {
        // The semaphore is never closed.
        let turn = self.0.turns.acquire().await;
        let begun = Instant::now();
        let walked = tokio::task::spawn_blocking(walk).await;
        drop(turn);
        let size = walked.unwrap_or_else(|error| {
            tracing::warn!(container_id = %id, %error, "a walk over a container's layer ended early");
            None
        });
        let mut known = self.known();
        let Some(layer) = known.get_mut(&id) else { return };
        layer.walking = false;
        layer.found.send_modify(|found| {
            if let Some(size) = size {
                let fresh_until = Instant::now() + FRESH.max(begun.elapsed() * REST);
                *found = Some(Found { size, at: Timestamp::now(), fresh_until });
            }
        });
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Layer>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fresh(found: &watch::Receiver<Option<Found>>) -> Option<Found> {
    (*found.borrow()).filter(|found| Instant::now() < found.fresh_until)
}

/// What a tree takes, its root not counted, unless that is to `stop`. Whoever owns it may change it meanwhile: no link is
/// followed.
fn size_of(root: &Path, stop: &CancellationToken) -> io::Result<Size> {
    let mut size = Size::default();
    let directory = rustix::fs::open(root, FLAGS, Mode::empty())?;
    add(&directory, 0, &mut size, stop)?;
    Ok(size)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What has just gone, or is something else now, is not counted; what cannot be read makes a sum that is none.
fn add(directory: &OwnedFd, depth: usize, size: &mut Size, stop: &CancellationToken) -> io::Result<()> {
    if stop.is_cancelled() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    for entry in Dir::read_from(directory)? {
        let entry = match entry {
            // A directory that was removed while it was read.
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        size.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        size.inodes += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && depth < MAX_DEPTH {
            match rustix::fs::openat(directory.as_fd(), name, FLAGS, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                below => add(&below?, depth + 1, size, stop)?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn id(digit: char) -> ContainerId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn soon() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_walk_goes_on_without_who_asked_and_is_the_only_one() {
        let (layers, tasks, walks) = (Layers::default(), TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let walk = || {
            let (walks, gate) = (Arc::clone(&walks), Arc::clone(&gate));
            move || {
                walks.fetch_add(1, Ordering::SeqCst);
                gate.lock().unwrap().recv().ok().map(|()| Size { bytes: 7, inodes: 1 })
            }
        };
        // Nobody has the patience to wait for it, and one gives up altogether.
        let now = tokio::time::Instant::now();
        assert!(layers.ask(&tasks, &id('a'), walk(), now).await.is_none());
        let patience = Duration::from_millis(10);
        assert!(tokio::time::timeout(patience, layers.ask(&tasks, &id('a'), walk(), soon())).await.is_err());
        go.send(()).unwrap();
        let found = layers.ask(&tasks, &id('a'), walk(), soon()).await.unwrap();
        assert_eq!((found.size.bytes, walks.load(Ordering::SeqCst)), (7, 1));
        // It is told again, with the time at which it was found, while it is fresh ...
        let again = layers.ask(&tasks, &id('a'), walk(), soon()).await.unwrap();
        assert_eq!((again.at, walks.load(Ordering::SeqCst)), (found.at, 1));
        // ... and afterwards while there is no other.
        layers.known().get(&id('a')).unwrap().found.send_modify(|found| {
            found.as_mut().unwrap().fresh_until = Instant::now();
        });
        let stale = layers.ask(&tasks, &id('a'), walk(), tokio::time::Instant::now()).await.unwrap();
        assert_eq!(stale.at, found.at);
        go.send(()).unwrap();
        tasks.close();
        tasks.wait().await;
        let fresh = layers.ask(&tasks, &id('a'), walk(), soon()).await.unwrap();
        assert!(fresh.at > found.at);
        assert_eq!(walks.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_walk_that_failed_is_not_waited_for_and_begins_again() {
        let (layers, tasks) = (Layers::default(), TaskTracker::new());
        assert!(layers.ask(&tasks, &id('a'), || None, soon()).await.is_none());
        let found = layers.ask(&tasks, &id('a'), || Some(Size::default()), soon()).await;
        assert_eq!(found.unwrap().size, Size::default());
    }

    #[test]
    fn a_tree_is_counted_and_no_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let (tree, other) = (home.path().join("tree"), home.path().join("other"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(tree.join("a/b/file"), vec![7; 100_000]).unwrap();
        std::fs::write(other.join("large"), vec![7; 1_000_000]).unwrap();
        std::os::unix::fs::symlink(&other, tree.join("link")).unwrap();
        let stop = CancellationToken::new();
        let size = size_of(&tree, &stop).unwrap();
        assert_eq!(size.inodes, 4);
        assert!(size.bytes >= 100_000 && size.bytes < 200_000, "{size:?}");
        assert!(size_of(&tree.join("link"), &stop).is_err() && size_of(&home.path().join("absent"), &stop).is_err());
        stop.cancel();
        assert_eq!(size_of(&tree, &stop).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
