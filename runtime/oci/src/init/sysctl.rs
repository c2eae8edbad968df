//! Kernel parameters, written through a procfs of our own.
//!
//! The container's /proc can be covered or exchanged (CVE-2025-52881); a private detached one cannot be reached by
//! anyone else, and the path below it is resolved without links and without leaving it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use portreeve_sys::mount;
use portreeve_sys::path::{Limits, beneath};
use rustix::fs::OFlags;

use crate::error::{SetupError, Step};
use crate::plan::sysctl::Sysctl;

/// A procfs that nobody else can see.
pub(super) fn private_procfs() -> io::Result<OwnedFd> {
    let context = mount::new_filesystem("proc")?;
    mount::create(context.as_fd(), mount::NO_SUID | mount::NO_DEV | mount::NO_EXEC)
}

/// Writes each parameter.
pub(super) fn write(sysctls: &[Sysctl]) -> Result<(), SetupError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let procfs = private_procfs().step("mounting a private procfs", "")?;
    for sysctl in sysctls {
        let limits = Limits { no_symlinks: true, no_crossing: true };
        let file = beneath(procfs.as_fd(), &Path::new("sys").join(&sysctl.file), OFlags::WRONLY, limits)
            .step("opening the kernel parameter", sysctl.name.as_str())?;
        rustix::io::write(&file, sysctl.value.as_bytes()).step("writing the kernel parameter", sysctl.name.as_str())?;
    }
    Ok(())
}
