//! Flags of mounts that a container with users of its own cannot take back.
//!
//! Such a container's mount namespace belongs to its user namespace, so that a process in it with CAP_SYS_ADMIN could make
//! a read-only bind mount writable again. The kernel locks read-only, nosuid, nodev, noexec and atime flags of mounts that
//! it copies into a mount namespace of another user namespace (mount_namespaces(7), "Restrictions on mount namespaces"),
//! and a copy of such a copy keeps the locks. So a child of ours attaches the trees in a mount namespace that nobody else
//! sees, goes into new namespaces of mounts and of users, where they are locked, and puts detached copies of what is there
//! in the places of ours.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use portreeve_sys::clone::{Clone3, NEW_MOUNT, NEW_USER, clone3};
use portreeve_sys::mount::{self, Propagation};
use portreeve_sys::namespace::unshare;
use portreeve_sys::process::{Exit, wait};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::{DupFlags, Errno};

use crate::prepare::set_propagation;

/// Replaces detached trees by copies whose flags are locked. A tree that is shared becomes a slave.
///
/// # Errors
/// Those of making namespaces; the trees may be some of the old and some of the new then.
pub(crate) fn lock(trees: &mut [&mut OwnedFd]) -> io::Result<()> {
    if trees.is_empty() {
        return Ok(());
    }
    // What the child puts under a number of its table is there in ours.
    let how = Clone3 { namespaces: NEW_MOUNT, share_files: true, ..Clone3::default() };
    let child = clone3(&how, || match replace(trees) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().filter(|number| (1..255).contains(number)).unwrap_or(255),
    })?;
    match wait(child.pidfd.as_fd())? {
        Exit::Code(0) => Ok(()),
        Exit::Code(number) if number < 255 => Err(io::Error::from_raw_os_error(number)),
        other => Err(io::Error::other(format!("the process that locks mounts ended with {other:?}"))),
    }
}

/// In the child, which has a mount namespace of its own.
fn replace(trees: &mut [&mut OwnedFd]) -> io::Result<()> {
    // Anywhere but on the root: whose root is covered counts as one in a chroot, and gets no user namespace.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let covered = rustix::fs::open("/proc", flags, Mode::empty())?;
    set_propagation(covered.as_fd(), Some((Propagation::Private, false)))?;
    let stage = mount::create(mount::new_filesystem("tmpfs")?.as_fd(), 0)?;
    mount::attach(stage.as_fd(), covered.as_fd())?;
    let names: Vec<PathBuf> = (0..trees.len()).map(|number| PathBuf::from(number.to_string())).collect();
    for (tree, name) in trees.iter().zip(&names) {
        let place = place(stage.as_fd(), name, tree.as_fd())?;
        mount::attach(tree.as_fd(), place.as_fd())?;
    }
    // It goes along into the new namespace, where descriptors stay behind.
    rustix::process::fchdir(&stage)?;
    unshare(NEW_USER | NEW_MOUNT)?;
    for (tree, name) in trees.iter_mut().zip(&names) {
        let locked = mount::clone_tree(CWD, name, true, true)?;
        rustix::io::dup3(&locked, tree, DupFlags::CLOEXEC)?;
    }
    Ok(())
}

/// A directory or file on which the tree can be attached.
fn place(stage: BorrowedFd<'_>, name: &PathBuf, tree: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    if FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode) == FileType::Directory {
        rustix::fs::mkdirat(stage, name, Mode::RWXU)?;
    } else {
        rustix::fs::openat(stage, name, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR)?;
    }
    rustix::fs::openat(stage, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
