//! Seccomp: loading filters, what the kernel knows of them, and answering the calls that they put off.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::raw::check;

/// Apply to every thread of the process.
pub const TSYNC: u32 = 1;
/// Log every action but allow.
pub const LOG: u32 = 1 << 1;
/// Leave out the speculation mitigation.
pub const SPEC_ALLOW: u32 = 1 << 2;
/// Answer a descriptor that receives notifications.
pub const NEW_LISTENER: u32 = 1 << 3;
/// Answer `ESRCH` instead of a thread's id when [`TSYNC`] fails: what lets it go with [`NEW_LISTENER`].
pub const TSYNC_ESRCH: u32 = 1 << 4;
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

/// Whether the kernel knows these flags (`SECCOMP_FILTER_FLAG_*`) in this combination; nothing is loaded.
///
/// It looks at the flags before it reads the program: seccomp(2), `EINVAL` and `EFAULT`.
#[must_use]
pub fn flags_known(flags: u32) -> bool {
    const SET_MODE_FILTER: libc::c_uint = 1;
    // SAFETY: the kernel refuses the null pointer to the program with EFAULT before it does anything.
    let answer =
        check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, std::ptr::null::<Program>()) });
    answer.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
}

/// A call that waits for [`answer`], `struct seccomp_notif`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Notification {
    /// What [`answer`] is told.
    pub id: u64,
    /// Thread that makes the call, in the PID namespace of whoever receives this; 0 when it is not visible there.
    pub pid: u32,
    flags: u32,
    /// Number of the call.
    pub call: i32,
    /// `AUDIT_ARCH_*` of the call.
    pub architecture: u32,
    instruction: u64,
    /// The call's arguments.
    pub arguments: [u64; 6],
}

/// How a notified call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With this value, without having been made.
    Value(i64),
    /// With this errno, without having been made.
    Errno(i32),
    /// As if there were no filter. Not a decision about security: the caller can change what its pointers lead to.
    Continue,
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Waits for the next call that a filter loaded with [`NEW_LISTENER`] puts off. See seccomp_unotify(2).
///
/// # Errors
/// `ENOENT` when the caller was killed while it was received.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
    let mut notification = Notification::default();
    // SAFETY: the request reads and writes one seccomp_notif, which `notification` is, zeroed as it has to be.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), NOTIF_RECV, &raw mut notification) })?;
    Ok(notification)
}

/// Ends the call that [`receive`] has told of.
///
/// # Errors
/// `ENOENT` when its caller is gone or was interrupted.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
    const FLAG_CONTINUE: u32 = 1;
    let (value, error, flags) = match answer {
        Answer::Value(value) => (value, 0, 0),
        Answer::Errno(errno) => (0, -errno, 0),
        Answer::Continue => (0, 0, FLAG_CONTINUE),
    };
    let response = Response { id, value, error, flags };
    // SAFETY: the request reads one seccomp_notif_resp, which `response` is.
    check(unsafe { libc::syscall(libc::SYS_ioctl, listener.as_raw_fd(), NOTIF_SEND, &raw const response) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_known_by_their_combination() {
        assert!(flags_known(0) && flags_known(LOG | SPEC_ALLOW));
        assert!(flags_known(TSYNC | NEW_LISTENER | TSYNC_ESRCH));
        assert!(!flags_known(1 << 31));
        assert!(!flags_known(WAIT_KILLABLE_RECV), "it is for listeners only");
    }
}
