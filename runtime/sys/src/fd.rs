//! Descriptors: ranges, sealed memory, duplicates.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};

use crate::raw::{check, check_int};

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// `ENOSYS` or `EINVAL` on kernels older than 5.11; then nothing is marked.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag, so no owner loses its descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOEXEC) })?;
    Ok(())
}

/// Closes every descriptor from `first` to `last`, both included; an empty range is nothing.
///
/// For a process that is about to execute a program and whose owners of descriptors never run again: values that
/// own one of them must not be dropped afterwards.
///
/// # Errors
/// `ENOSYS` on kernels older than 5.9.
pub fn close_range(first: i32, last: i32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: close_range takes three numbers. That owners lose their descriptors is the caller's, documented, matter.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Takes over a descriptor by its number: one that another process has put into a table shared with this one.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn take(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks.
    check_int(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, and its maker, which did not close it, has ended: nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A file in memory whose content can never change again.
///
/// # Errors
/// `ENOSYS` without memfd, `ENOMEM`.
pub fn sealed_memory(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    seal(&fd)?;
    Ok(fd)
}

/// Makes a memory file immutable: no write, no growth, no shrinking, no further change of the seals.
///
/// # Errors
/// `EBUSY` while it is mapped writable.
pub fn seal(fd: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(fd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?)
}

/// A duplicate with a number of at least `minimum`, close-on-exec.
///
/// # Errors
/// `EMFILE`, `EINVAL` beyond the limit of open files.
pub fn duplicate_above(fd: BorrowedFd<'_>, minimum: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number and answers with a new descriptor.
    let new = check_int(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, minimum) })?;
    // SAFETY: the descriptor is new, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Takes over a descriptor that this process got at birth by its number (a listener on 0, for example).
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn adopt(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks.
    check_int(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: F_DUPFD_CLOEXEC answers with a new descriptor for the same file.
    let new = check_int(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the descriptor is new, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}
