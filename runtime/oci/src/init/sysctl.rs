//! Kernel parameters, written through a procfs of our own.
//!
//! The container's /proc can be covered or exchanged (CVE-2025-52881); a private detached one cannot be reached by
//! anyone else, and the path below it is resolved without links and without leaving it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use portreeve_sys::mount;
use portreeve_sys::path::{Limits, beneath};
use rustix::fs::OFlags;

use crate::error::{SetupError, Step};
use crate::plan::sysctl::Sysctl;

/// A procfs that nobody else can see.
pub(crate) fn private_procfs() -> io::Result<OwnedFd> {
    let context = mount::new_filesystem("proc")?;
    mount::create(context.as_fd(), mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC)
}

/// The same for a process that may not be allowed to make one, and then takes its maker's.
pub(super) fn procfs(makers: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    match (private_procfs(), makers) {
        (Err(error), Some(makers)) if error.kind() == io::ErrorKind::PermissionDenied => makers.try_clone_to_owned(),
        (made, _) => made,
    }
}

/// Writes each parameter.
pub(super) fn write(sysctls: &[Sysctl], makers: Option<BorrowedFd<'_>>) -> Result<(), SetupError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let procfs = procfs(makers).step("mounting a private procfs", "")?;
    for sysctl in sysctls {
        let limits = Limits { no_symlinks: true, no_crossing: true };
        let file = beneath(procfs.as_fd(), &Path::new("sys").join(&sysctl.file), OFlags::WRONLY, limits)
            .step("opening the kernel parameter", sysctl.name.as_str())?;
        rustix::io::write(&file, sysctl.value.as_bytes()).step("writing the kernel parameter", sysctl.name.as_str())?;
    }
    Ok(())
}
