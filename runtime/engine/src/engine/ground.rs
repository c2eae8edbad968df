//! Noticing that somebody takes the state away from under an engine that runs, without looking again and again.
//!
//! The kernel reports when a directory itself is moved or removed, wherever to. So the directory of all sandboxes and
//! each one above it are watched: a report says only that it is worth looking whether the path still leads there.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Says in `lost` why the directory of all sandboxes is not where it was, as long as it is not.
pub(super) async fn guard(directory: PathBuf, lost: watch::Sender<Option<String>>) {
    if let Err(error) = watch(&directory, &lost).await {
        tracing::warn!(directory = %directory.display(), %error, "directory not watched for its removal");
    }
}

/// Returns when the directory is gone for good.
async fn watch(directory: &Path, lost: &watch::Sender<Option<String>>) -> io::Result<()> {
    let reports: OwnedFd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let place = directory.canonicalize()?;
    let same = identity(&place)?;
    // As many as the path has parts. The root cannot be moved.
    for watched in place.ancestors().filter(|path| path.parent().is_some()) {
        inotify::add_watch(&reports, watched, WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR)?;
    }
    // Its replacement is unsafe for kinds of descriptors that lie about themselves; an `OwnedFd` does not.
    #[expect(deprecated, reason = "the successor needs unsafe code")]
    let reports = AsyncFd::with_interest(reports, Interest::READABLE)?;
    loop {
        // A number is another directory's once nothing holds the inode; until it is removed, its watch does.
        let removed = drain(reports.get_ref())?;
        let there = !removed && identity(directory).is_ok_and(|found| found == same);
        tell(directory, there, lost);
        if removed {
            return Ok(());
        }
        reports.readable().await?.clear_ready();
    }
}

/// Reads every report; whether one is of a removal. What is below a removed directory was removed before.
fn drain(reports: &OwnedFd) -> io::Result<bool> {
    let mut removed = false;
    let mut room = [MaybeUninit::uninit(); 1024];
    let mut reader = inotify::Reader::new(reports, &mut room);
    loop {
        match reader.next() {
            Ok(report) => removed |= report.events().intersects(ReadFlags::DELETE_SELF | ReadFlags::UNMOUNT),
            Err(Errno::AGAIN) => return Ok(removed),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn identity(directory: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(directory).map(|found| (found.dev(), found.ino()))
}

fn tell(directory: &Path, there: bool, lost: &watch::Sender<Option<String>>) {
    let told = lost.borrow().is_some();
    let path = directory.display();
    if there && told {
        tracing::info!(directory = %path, "directory of the sandboxes is back");
        lost.send_replace(None);
    } else if !there && !told {
        tracing::error!(
            directory = %path,
            "directory of the sandboxes was moved or removed while they run, put it back, or restart the agent: \
             it makes all pods anew"
        );
        lost.send_replace(Some(format!(
            "{path}, the directory of the sandboxes, was moved or removed while they run: put it back, \
             or restart the agent, which makes all pods anew"
        )));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// A directory in another one, and what its guard says.
    struct Ground {
        base: tempfile::TempDir,
        lost: watch::Receiver<Option<String>>,
        guard: tokio::task::JoinHandle<()>,
    }

    impl Ground {
        async fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            let directory = base.path().join("run/sandboxes");
            fs::create_dir_all(&directory).unwrap();
            let (sender, lost) = watch::channel(None);
            let guard = tokio::spawn(guard(directory, sender));
            // On this one thread the guard watches before anybody else does anything.
            tokio::task::yield_now().await;
            Self { base, lost, guard }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.base.path().join(name)
        }

        async fn until_lost(&mut self, wanted: bool) {
            let lost = self.lost.wait_for(|lost| lost.is_some() == wanted);
            let said = tokio::time::timeout(Duration::from_secs(10), lost).await.unwrap().unwrap().clone();
            assert!(said.is_none_or(|said| said.contains("run/sandboxes")));
        }

        async fn is_quiet(&mut self) {
            let changed = tokio::time::timeout(Duration::from_millis(50), self.lost.changed()).await;
            assert!(changed.is_err(), "{:?}", self.lost.borrow());
        }
    }

    #[tokio::test]
    async fn a_removed_directory_is_noticed_and_what_happens_in_it_is_not() {
        let mut ground = Ground::new().await;
        let pod = ground.path("run/sandboxes/pod");
        fs::create_dir(&pod).unwrap();
        fs::remove_dir(&pod).unwrap();
        ground.is_quiet().await;
        fs::remove_dir_all(ground.path("run")).unwrap();
        ground.until_lost(true).await;
        tokio::time::timeout(Duration::from_secs(10), ground.guard).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_moved_parent_is_noticed_and_so_is_its_return() {
        let mut ground = Ground::new().await;
        let (run, aside) = (ground.path("run"), ground.path("aside"));
        for _ in 0..2 {
            fs::rename(&run, &aside).unwrap();
            ground.until_lost(true).await;
            // Another directory of that name is not the one.
            fs::create_dir_all(run.join("sandboxes")).unwrap();
            ground.is_quiet().await;
            fs::remove_dir_all(&run).unwrap();
            fs::rename(&aside, &run).unwrap();
            ground.until_lost(false).await;
        }
        fs::rename(run.join("sandboxes"), &aside).unwrap();
        ground.until_lost(true).await;
        ground.guard.abort();
    }

    #[tokio::test]
    async fn what_cannot_be_watched_is_no_loss() {
        let (sender, lost) = watch::channel(None);
        guard(PathBuf::from("/nonexistent/sandboxes"), sender).await;
        assert!(lost.borrow().is_none());
    }
}
