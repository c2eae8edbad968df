//! Covering what a container must not see or must not write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use portreeve_sys::mount::{self, Change, READ_ONLY};
use rustix::fs::FileType;

use super::resolve;
use crate::error::{SetupError, Step};
use crate::plan::mounts::clean;

/// Covers each path: a file by the null device, a directory by one empty read-only tmpfs that all of them share.
///
/// `null` is a descriptor that was checked when it was opened; no path of the container is asked for it
/// (CVE-2025-31133).
pub(super) fn cover(root: BorrowedFd<'_>, paths: &[String], null: BorrowedFd<'_>) -> Result<(), SetupError> {
    let mut empty: Option<OwnedFd> = None;
    let mut null_attached = false;
    for path in paths {
        let path = clean(Path::new(path));
        let Some(target) = existing(root, &path)? else { continue };
        let stat = rustix::fs::fstat(&target).step("looking at the path to mask", &path)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match &empty {
                None => {
                    let tmpfs = empty_directory().step("making an empty file system to mask", &path)?;
                    mount::attach(tmpfs.as_fd(), target.as_fd()).step("masking", &path)?;
                    empty = Some(tmpfs);
                }
                Some(tmpfs) => copy(tmpfs.as_fd(), target.as_fd()).step("masking", &path)?,
            }
        } else if null_attached {
            copy(null, target.as_fd()).step("masking", &path)?;
        } else {
            // The first is attached itself: older kernels copy attached mounts only.
            mount::attach(null, target.as_fd()).step("masking", &path)?;
            null_attached = true;
        }
    }
    Ok(())
}

/// Makes each path, with every mount below it, read-only.
pub(super) fn read_only(root: BorrowedFd<'_>, paths: &[String]) -> Result<(), SetupError> {
    for path in paths {
        let path = clean(Path::new(path));
        let Some(target) = existing(root, &path)? else { continue };
        let tree = mount::clone_tree_of(target.as_fd(), true).step("copying the mount of", &path)?;
        let change = Change { set: READ_ONLY, recursive: true, ..Change::default() };
        mount::set_attributes(tree.as_fd(), &change).step("making read-only", &path)?;
        mount::attach(tree.as_fd(), target.as_fd()).step("making read-only", &path)?;
    }
    Ok(())
}

/// What does not exist needs no mask.
fn existing(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, SetupError> {
    match resolve::find(root, path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error).step("opening the path to mask", path),
    }
}

fn empty_directory() -> io::Result<OwnedFd> {
    let context = mount::new_filesystem("tmpfs")?;
    for (key, value) in [("source", "tmpfs"), ("mode", "0555"), ("nr_blocks", "1"), ("nr_inodes", "1")] {
        mount::set_string(context.as_fd(), key, value)?;
    }
    mount::create(context.as_fd(), READ_ONLY | mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC)
}

fn copy(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let copy = mount::clone_tree_of(mount, false)?;
    mount::attach(copy.as_fd(), target)
}
