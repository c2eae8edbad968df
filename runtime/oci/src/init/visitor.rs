//! A container's root file system as CRIU wants it: a mount at a path, for a process that restores into it.
//!
//! Done in a mount namespace that was made for one process and ends with it, so that nothing is left on the host.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use portreeve_sys::mount::{self, Change, NO_DEV, NO_EXEC, NO_SUID, Propagation, READ_ONLY};
use rustix::fs::{Mode, OFlags};

use super::{mounts, open_root};
use crate::error::{SetupError, Step};
use crate::plan::mounts::MountOp;
use crate::prepare::{Source, null_device, set_propagation};

const NAME: &str = "rootfs";
const NULL: &str = "null";

/// The path at which [`attach_root`] attaches.
pub(crate) fn place_of_root(cover: &Path) -> PathBuf {
    cover.join(NAME)
}

/// The path at which [`attach_root`] attaches what masked files are covered by.
pub(crate) fn place_of_null(cover: &Path) -> PathBuf {
    cover.join(NULL)
}

/// Covers the directory `cover` by a tmpfs and attaches `root` in it, and beside it the null device, read-only: CRIU makes
/// its masks of that, and the mode and the owner of the host's own are not the container's to change.
///
/// It lies in a file system of its own, so that nothing that is mounted meanwhile comes to lie above it: CRIU makes it the
/// root by pivot_root(2).
pub(crate) fn attach_root(cover: &Path, root: BorrowedFd<'_>) -> Result<(), SetupError> {
    set_propagation(open_root()?.as_fd(), Some((Propagation::Private, true)))
        .step("setting the propagation of", "/")?;
    let context = mount::new_filesystem("tmpfs").step("opening file system tmpfs for", cover)?;
    mount::set_string(context.as_fd(), "mode", "0700").step("setting an option of tmpfs for", cover)?;
    let tmpfs = mount::create(context.as_fd(), NO_SUID | NO_DEV | NO_EXEC).step("mounting tmpfs on", cover)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::open(cover, flags, Mode::empty()).step("opening", cover)?;
    mount::attach(tmpfs.as_fd(), target.as_fd()).step("mounting tmpfs on", cover)?;
    let path = place_of_root(cover);
    rustix::fs::mkdirat(&tmpfs, NAME, Mode::RWXU).step("making", &path)?;
    let target = rustix::fs::openat(&tmpfs, NAME, flags, Mode::empty()).step("opening", &path)?;
    mount::attach(root, target.as_fd()).step("attaching the root file system to", path)?;

    let path = place_of_null(cover);
    let null = null_device()?;
    let read_only = Change { set: READ_ONLY | NO_SUID | NO_EXEC, ..Change::default() };
    mount::set_attributes(null.as_fd(), &read_only).step("making the null device read-only for", &path)?;
    let file = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    let target = rustix::fs::openat(&tmpfs, NULL, file, Mode::RUSR).step("making", &path)?;
    mount::attach(null.as_fd(), target.as_fd()).step("attaching the null device to", path)
}

/// Makes the mount points that a root file system lacks, by mounting everything as at a creation.
pub(crate) fn make_mount_points(
    cover: &Path,
    root: BorrowedFd<'_>,
    ops: &[MountOp],
    sources: &[Source],
) -> Result<(), SetupError> {
    attach_root(cover, root)?;
    let mut made = mounts::make(ops)?;
    mounts::attach(root, ops, sources, &mut made)
}
