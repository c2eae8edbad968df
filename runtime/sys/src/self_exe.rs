//! Protecting the running executable from the containers it enters.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;

use crate::mount::{Change, NO_SUID, READ_ONLY, clone_tree, set_attributes};

/// The running executable on a read-only, detached mount of its own.
///
/// A process executed from it shows, as its `/proc/PID/exe`, a file that cannot be opened for writing through that
/// link, whatever the capabilities of the opener (CVE-2019-5736). The mount lives as long as the descriptor or a
/// process executed from it.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOSYS` before Linux 5.12.
pub fn read_only_executable() -> io::Result<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe")?;
    // Through the magic link when the file has been replaced by an upgrade: the link still names the running inode.
    let tree =
        clone_tree(CWD, &path, false, false).or_else(|_| clone_tree(CWD, Path::new("/proc/self/exe"), false, false))?;
    set_attributes(tree.as_fd(), &Change { set: READ_ONLY | NO_SUID, ..Change::default() })?;
    Ok(tree)
}
