//! Noticing that somebody takes the state away from under an engine that runs, without looking again and again.
//!
//! The kernel reports when a directory itself is moved or removed, wherever to. So the directories of the sandboxes and
//! of the network, and each one above them, are watched: a report says only that it is worth looking whether the paths
//! still lead there. The two, because pods that run keep the first from being removed with all that is in it.

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

/// Says in `lost` which of these directories is not where it was, as long as it is not.
pub(super) async fn guard(directories: Vec<PathBuf>, lost: watch::Sender<Option<String>>) {
    if let Err(error) = watch(&directories, &lost).await {
        tracing::warn!(?directories, %error, "directories not watched for their removal");
    }
}

/// Returns when one of them is gone for good.
async fn watch(directories: &[PathBuf], lost: &watch::Sender<Option<String>>) -> io::Result<()> {
    let reports: OwnedFd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let mut watched = Vec::new();
    for directory in directories {
        let place = directory.canonicalize()?;
        // As many as the path has parts. The root cannot be moved.
        for part in place.ancestors().filter(|path| path.parent().is_some()) {
            inotify::add_watch(&reports, part, WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR)?;
        }
        watched.push((directory, identity(&place)?));
    }
    // Its replacement is unsafe for kinds of descriptors that lie about themselves; an `OwnedFd` does not.
    #[expect(deprecated, reason = "the successor needs unsafe code")]
    let reports = AsyncFd::with_interest(reports, Interest::READABLE)?;
    loop {
        let removed = drain(reports.get_ref())?;
        let away = watched.iter().find(|(directory, same)| identity(directory).ok() != Some(*same));
        match away {
            Some((directory, _)) => tell(Some(directory), lost),
            // A number is another directory's once nothing holds the inode; until it is removed, its watch does.
            None if removed => tell(directories.first().map(PathBuf::as_path), lost),
            None => tell(None, lost),
        }
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

fn tell(away: Option<&Path>, lost: &watch::Sender<Option<String>>) {
    let told = lost.borrow().is_some();
    match away {
        None if told => {
            tracing::info!("directories of the state are back");
            lost.send_replace(None);
        }
        Some(directory) if !told => {
            let path = directory.display();
            tracing::error!(
                directory = %path,
                "directory of the state was moved or removed while pods run, put it back, or restart the agent: \
                 it makes all pods anew"
            );
            lost.send_replace(Some(format!(
                "{path}, a directory of the state, was moved or removed while pods run: put it back, \
                 or restart the agent, which makes all pods anew"
            )));
        }
        _ => {}
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
            let directories = vec![base.path().join("run/sandboxes"), base.path().join("run/network")];
            directories.iter().for_each(|directory| fs::create_dir_all(directory).unwrap());
            let (sender, lost) = watch::channel(None);
            let guard = tokio::spawn(guard(directories, sender));
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
            assert!(said.is_none_or(|said| said.contains("run/sandboxes") || said.contains("run/network")));
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
    async fn sandboxes_that_cannot_be_removed_do_not_hide_that_the_rest_was() {
        let mut ground = Ground::new().await;
        fs::remove_dir(ground.path("run/network")).unwrap();
        ground.until_lost(true).await;
        assert!(ground.lost.borrow().as_ref().unwrap().contains("run/network"));
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
        guard(vec![PathBuf::from("/nonexistent/sandboxes")], sender).await;
        assert!(lost.borrow().is_none());
    }
}
