//! Entering and making namespaces in the calling thread.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use crate::raw::check_int;

/// Enters the namespace behind `fd` (a file of /proc/PID/ns); `kind` is a `clone::NEW_*` flag or 0 for any.
///
/// # Errors
/// `EPERM` without capability over it, `EINVAL` for another kind or in a process with several threads.
pub fn enter(fd: BorrowedFd<'_>, kind: u64) -> io::Result<()> {
    let kind = i32::try_from(kind).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: setns takes two numbers. What it changes (mount, user, ... of this thread) no Rust invariant rests on.
    check_int(unsafe { libc::setns(fd.as_raw_fd(), kind) })?;
    Ok(())
}

/// Has what `command` executes live in these namespaces, each with its `clone::NEW_*` flag, while the caller stays where it
/// is. What it is told here holds for each time that it is executed.
///
/// An execution then fails with the errors of [`enter`].
pub fn enter_on_execution(command: &mut Command, namespaces: Arc<[(u64, OwnedFd)]>) {
    let enter_all = move || namespaces.iter().try_for_each(|(kind, fd)| enter(fd.as_fd(), *kind));
    // SAFETY: it runs in the child between fork and exec. There it makes system calls alone: it takes no lock and allocates
    // nothing, an error being a number; the descriptors are the child's copies, which close at its exec.
    unsafe { command.pre_exec(enter_all) };
}

/// Type of the namespace behind `fd`, a `clone::NEW_*` flag; `None` when it is another file. See ioctl_nsfs(2).
///
/// # Errors
/// Those of ioctl(2), but `ENOTTY`.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    /// `_IO(NSIO, 0x3)`.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: this request takes no argument; other files than namespaces do not know it and answer ENOTTY.
    match check_int(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) }) {
        Ok(kind) => Ok(u64::try_from(kind).ok()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Moves the calling thread into new namespaces; `kinds` are `clone::NEW_*` flags.
///
/// # Errors
/// `EPERM`, `ENOSPC` at a limit of namespaces, `EINVAL` for a user namespace in a process with several threads.
pub fn unshare(kinds: u64) -> io::Result<()> {
    let kinds = i32::try_from(kinds).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: unshare takes one number; CLONE_FILES and CLONE_VM are not among the flags offered here.
    check_int(unsafe { libc::unshare(kinds) })?;
    Ok(())
}

/// Host name of this UTS namespace.
///
/// # Errors
/// `EPERM`, `EINVAL` when longer than 64 bytes.
pub fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`, which outlives the call.
    check_int(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

/// NIS domain name of this UTS namespace.
///
/// # Errors
/// As [`set_host_name`].
pub fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length describe `name`, which outlives the call.
    check_int(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}
