//! Loading seccomp filters.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::raw::check;

/// Apply to every thread of the process.
pub const TSYNC: u32 = 1;
/// Log every action but allow.
pub const LOG: u32 = 1 << 1;
/// Leave out the speculation mitigation.
pub const SPEC_ALLOW: u32 = 1 << 2;
/// Answer a descriptor that receives notifications.
pub const NEW_LISTENER: u32 = 1 << 3;
/// Only fatal signals interrupt a notified call.
pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// One classic BPF instruction, `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when true.
    pub jump_true: u8,
    /// Instructions to skip when false.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

#[repr(C)]
struct Program {
    length: u16,
    filter: *const Instruction,
}

/// Installs a filter for the calling thread; a descriptor comes back for [`NEW_LISTENER`].
///
/// # Errors
/// `EACCES` without no_new_privs and CAP_SYS_ADMIN, `EINVAL` for a bad program or flag.
pub fn load(program: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    const SET_MODE_FILTER: libc::c_uint = 1;
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: `program` describes a slice of instructions; the kernel verifies and copies it before the call returns.
    let answer = check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) })?;
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = i32::try_from(answer).map_err(|_| io::Error::other("seccomp gave no descriptor"))?;
    // SAFETY: with NEW_LISTENER the answer is a new descriptor, close-on-exec, which nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether the kernel knows this action (`SECCOMP_RET_*`).
#[must_use]
pub fn action_available(action: u32) -> bool {
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    // SAFETY: the kernel reads one u32 from the pointer.
    unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}
