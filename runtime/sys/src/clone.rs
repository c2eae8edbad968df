//! clone3: a process with new namespaces, a pidfd and a place in a cgroup, in one call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::Pid;

use crate::raw::check;

/// New mount namespace.
pub const NEW_MOUNT: u64 = 0x0002_0000;
/// New cgroup namespace.
pub const NEW_CGROUP: u64 = 0x0200_0000;
/// New UTS (host name) namespace.
pub const NEW_UTS: u64 = 0x0400_0000;
/// New IPC namespace.
pub const NEW_IPC: u64 = 0x0800_0000;
/// New user namespace.
pub const NEW_USER: u64 = 0x1000_0000;
/// New PID namespace.
pub const NEW_PID: u64 = 0x2000_0000;
/// New network namespace.
pub const NEW_NET: u64 = 0x4000_0000;
/// New time namespace (the child itself enters it; clone3 only).
pub const NEW_TIME: u64 = 0x0000_0080;

const CLONE_PIDFD: u64 = 0x0000_1000;
const CLONE_PARENT: u64 = 0x0000_8000;
const CLONE_FILES: u64 = 0x0000_0400;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How the child differs from an ordinary fork.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clone3<'a> {
    /// `NEW_*` flags.
    pub namespaces: u64,
    /// Directory of the cgroup v2 that the child is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Make the child a sibling: its parent is the caller's parent.
    pub sibling: bool,
    /// Share the table of descriptors with the child until one of them executes a program.
    pub share_files: bool,
}

/// A child made by [`clone3`].
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's PID namespace.
    pub pid: Pid,
    /// The same as a descriptor.
    pub pidfd: OwnedFd,
}

/// `struct clone_args` up to `cgroup` (Linux 5.7, `CLONE_ARGS_SIZE_VER2`).
#[repr(C, align(8))]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a child that runs `body` on a copy of this process's memory and then exits with the code it returns.
///
/// A panic in `body` ends the child with code 255; no destructor of the caller's frames ever runs in it, and signal
/// handlers are reset to the default. See clone(2).
///
/// # Panics
/// Never in the caller.
///
/// # Errors
/// The kernel's answer: `EPERM` without the capability, `ENOSPC` at a limit of namespaces, `EBUSY` or `EOPNOTSUPP`
/// when the cgroup takes no processes.
///
/// # Correctness
/// Only for a caller with a single thread: with more, a lock that another thread holds (the allocator's, for example)
/// stays locked in the child forever. [`thread_count`] tells.
pub fn clone3(how: &Clone3<'_>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut flags = how.namespaces | CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
    let mut arguments = Arguments { pidfd: std::ptr::from_mut(&mut pidfd) as u64, ..Arguments::default() };
    if let Some(cgroup) = how.cgroup {
        flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    if how.share_files {
        flags |= CLONE_FILES;
    }
    if how.sibling {
        // The exit signal is then the one of the caller, and giving another is EINVAL.
        flags |= CLONE_PARENT;
    } else {
        arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    }
    arguments.flags = flags;
    // SAFETY: `arguments` is a valid clone_args of the size given and outlives the call; without CLONE_VM the child
    // works on a copy of memory, so it is an ordinary fork for Rust; `pidfd` is a valid place for a descriptor.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<Arguments>()) })?;
    if pid == 0 {
        let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(255);
        // SAFETY: `_exit` has no preconditions; it keeps the caller's destructors and atexit functions from running.
        unsafe { libc::_exit(code) };
    }
    // SAFETY: the kernel has stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("clone3 gave no process id"))?;
    Ok(Child { pid, pidfd })
}

/// Number of threads of this process, from /proc.
///
/// # Errors
/// When /proc is not mounted.
pub fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}
