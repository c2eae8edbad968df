//! Where the root of a pod with users of its own finds its containers' files, when another runtime mounts them by path.
//!
//! That root is nobody on the node, and the directory of all sandboxes is closed to everybody. So this shim gets a mount
//! namespace of its own, in which only its sandbox is at that place, and may be entered:
//!
//! ```text
//!   the node's             this shim's, a slave of it
//!   <run> 0700             <run> 0711, an empty file system
//!     sandboxes/ 0700        sandboxes/ 0711
//!       <this> 0711            <this> 0711, a bind of it
//!       <another>
//! ```
//!
//! What is mounted here is nowhere else, and goes with the shim.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use portreeve_sys::clone::NEW_MOUNT;
use portreeve_sys::mount::{self, Change, NO_DEV, NO_SUID, Propagation};
use portreeve_sys::namespace;
use rustix::fs::{CWD, Mode, OFlags};

/// May be entered, and not listed.
const ENTERED: u32 = 0o711;

/// Makes the sandbox with this directory reachable, in a mount namespace of the calling process.
pub(super) fn show(sandbox: &Path) -> io::Result<()> {
    let sandboxes = sandbox.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let run = sandboxes.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(closed) = run.ancestors().skip(1).find(|above| !entered(above)) {
        let message =
            format!("others cannot enter {}: choose a run directory elsewhere, or chmod o+x", closed.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    namespace::unshare(NEW_MOUNT)?;
    let slave = Change { propagation: Some(Propagation::Slave), recursive: true, ..Change::default() };
    mount::set_attributes(open(Path::new("/"))?.as_fd(), &slave)?;
    let tree = mount::clone_tree(CWD, sandbox, true, true)?;
    let cover = mount::new_filesystem("tmpfs")?;
    for (key, value) in [("source", "portreeve"), ("mode", "0711"), ("nr_inodes", "8")] {
        mount::set_string(cover.as_fd(), key, value)?;
    }
    let cover = mount::create(cover.as_fd(), NO_DEV | NO_SUID)?;
    mount::attach(cover.as_fd(), open(run)?.as_fd())?;
    DirBuilder::new().mode(ENTERED).recursive(true).create(sandbox)?;
    mount::attach(tree.as_fd(), open(sandbox)?.as_fd())
}

fn entered(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|found| found.mode() & 0o001 != 0)
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, directory, flags, Mode::empty())?)
}
