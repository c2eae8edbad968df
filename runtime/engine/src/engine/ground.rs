//! Noticing that somebody removes the state from under an engine that runs, without looking again and again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Says once what it means when the directory of all sandboxes is removed or moved.
pub(super) async fn guard(directory: PathBuf) {
    match removal(&directory).await {
        Ok(()) => tracing::error!(
            directory = %directory.display(),
            "directory of the sandboxes was removed while they run, restart the agent: it makes all pods anew"
        ),
        Err(error) => tracing::warn!(directory = %directory.display(), %error, "directory not watched for its removal"),
    }
}

/// Waits until a directory is removed or moved.
async fn removal(directory: &Path) -> io::Result<()> {
    let watch: OwnedFd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, directory, WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR)?;
    // Its replacement is unsafe for kinds of descriptors that lie about themselves; an `OwnedFd` does not.
    #[expect(deprecated, reason = "the successor needs unsafe code")]
    let watch = AsyncFd::with_interest(watch, Interest::READABLE)?;
    watch.readable().await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_removed_directory_is_noticed_and_what_happens_in_it_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("sandboxes");
        fs::create_dir(&directory).unwrap();
        let mut removal = Box::pin(removal(&directory));
        let changes = async {
            fs::create_dir(directory.join("pod")).unwrap();
            fs::remove_dir(directory.join("pod")).unwrap();
        };
        let quiet = tokio::time::timeout(Duration::from_millis(50), async { tokio::join!(&mut removal, changes) });
        assert!(quiet.await.is_err());
        fs::remove_dir_all(&directory).unwrap();
        tokio::time::timeout(Duration::from_secs(10), removal).await.unwrap().unwrap();
        assert!(super::removal(&directory).await.is_err());
    }
}
