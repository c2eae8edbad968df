//! Processes by descriptor: signals, waiting, attributes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};

pub use rustix::process::Pid;

use crate::raw::{check, check_int};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A descriptor for a process that is known to be alive or not reaped yet.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal, by number, to a process.
///
/// # Errors
/// `ESRCH` when it has ended, `EINVAL` for a number that is no signal.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: all arguments are plain numbers; a null siginfo is allowed (pidfd_send_signal(2)).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) })?;
    Ok(())
}

/// Waits for a child to end and reaps it.
///
/// # Errors
/// `ECHILD` when the process is not a child of the caller.
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    loop {
        match waitid(pidfd, WaitIdOptions::EXITED) {
            Ok(Some(exit)) => return Ok(exit),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reaps a child if it has ended; `None` while it runs.
///
/// # Errors
/// As [`wait`].
pub fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    waitid(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

/// Tells how a child ended without reaping it; `None` while it runs.
///
/// # Errors
/// As [`wait`].
pub fn peek_exit(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    waitid(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)
}

fn waitid(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> io::Result<Option<Exit>> {
    let Some(status) = rustix::process::waitid(WaitId::PidFd(pidfd), options)? else { return Ok(None) };
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Exit::Code(code)),
        (None, Some(signal)) => Some(Exit::Signal(signal)),
        (None, None) => None,
    })
}

/// Whether the process behind a pidfd has ended (reaped or not); waits at most `timeout_ms`, `-1` means for ever.
///
/// # Errors
/// Of poll(2).
pub fn has_ended(pidfd: BorrowedFd<'_>, timeout_ms: i32) -> io::Result<bool> {
    let mut set = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `set` is one valid pollfd.
    let ready = check_int(unsafe { libc::poll(&raw mut set, 1, timeout_ms) })?;
    Ok(ready > 0)
}

/// Process id behind a pidfd, as this PID namespace sees it; `None` when it has been reaped.
///
/// # Errors
/// When /proc cannot be read.
pub fn pidfd_pid(pidfd: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number =
        text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|value| value.trim().parse::<i32>().ok());
    Ok(number.filter(|number| *number > 0).and_then(Pid::from_raw))
}

/// Whether other processes may look into this one (ptrace, /proc/PID/exe, core dumps).
///
/// # Errors
/// None in practice.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(dumpable)?)
}

/// Gives up gaining privileges by execve, for ever.
///
/// # Errors
/// None in practice.
pub fn set_no_new_privileges() -> io::Result<()> {
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

/// Makes orphaned descendants children of this process.
///
/// # Errors
/// None in practice.
pub fn set_child_subreaper(subreaper: bool) -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(subreaper)?)
}

/// Sends this process a signal when its parent thread ends; `None` ends that.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn set_parent_death_signal(signal: Option<i32>) -> io::Result<()> {
    let signal =
        libc::c_ulong::try_from(signal.unwrap_or(0)).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: PR_SET_PDEATHSIG takes one number.
    check_int(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })?;
    Ok(())
}

/// Keeps permitted capabilities when the user id changes away from 0.
///
/// # Errors
/// `EPERM` when the secure bits forbid it.
pub fn set_keep_capabilities(keep: bool) -> io::Result<()> {
    Ok(rustix::thread::set_keep_capabilities(keep)?)
}

/// Name of this process, at most 15 bytes.
///
/// # Errors
/// None in practice.
pub fn set_name(name: &std::ffi::CStr) -> io::Result<()> {
    Ok(rustix::thread::set_name(name)?)
}

/// Sets all three group ids of this process, which must have one thread.
///
/// # Errors
/// `EPERM`, or `EINVAL` for an id without a mapping in this user namespace.
pub fn set_group_id(id: u32) -> io::Result<()> {
    // SAFETY: setresgid takes three numbers. The raw call changes this thread alone, which is the whole process.
    check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) })?;
    Ok(())
}

/// Sets all three user ids of this process, which must have one thread.
///
/// # Errors
/// As [`set_group_id`], and `EAGAIN` at the limit of processes.
pub fn set_user_id(id: u32) -> io::Result<()> {
    // SAFETY: setresuid takes three numbers. The raw call changes this thread alone, which is the whole process.
    check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) })?;
    Ok(())
}

/// Sets the supplementary groups of this process, which must have one thread.
///
/// # Errors
/// `EPERM` in a user namespace that denies setgroups, `EINVAL` for too many or an unmapped id.
pub fn set_groups(ids: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the count describe `ids`, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_setgroups, ids.len(), ids.as_ptr()) })?;
    Ok(())
}

/// Sets a resource limit of this process, by the kernel's number of it.
///
/// # Errors
/// `EPERM` when the hard limit would grow without CAP_SYS_RESOURCE, `EINVAL` when soft exceeds hard.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit64 that outlives the call; the old value is not asked for.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null_mut::<libc::rlimit64>())
    })?;
    Ok(())
}

/// Empties the signal mask and gives every signal its default action.
///
/// # Errors
/// None in practice.
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP || signal == 32 || signal == 33 {
            continue; // 32 and 33 belong to the C library
        }
        // SAFETY: SIG_DFL is a valid disposition for every other signal.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let empty = nix::sys::signal::SigSet::empty();
    nix::sys::signal::sigprocmask(nix::sys::signal::SigmaskHow::SIG_SETMASK, Some(&empty), None)?;
    Ok(())
}

/// Lets this process wait for its children, whatever its caller did with SIGCHLD: ignored, as `trap '' CHLD` leaves it
/// over execve(2), children vanish without a signal and without a status, wait(2).
pub fn heed_children() {
    // SAFETY: SIG_DFL is a valid disposition for SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Execution domain of this process, personality(2).
///
/// # Errors
/// `EINVAL` for an unknown domain.
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: personality takes one number.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) })?;
    Ok(())
}

/// I/O priority of this process: class 1 real-time, 2 best effort, 3 idle; level 0 (highest) to 7.
///
/// # Errors
/// `EPERM` for the real-time class without privilege.
pub fn set_io_priority(class: u8, level: u8) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    let value = (libc::c_int::from(class) << 13) | libc::c_int::from(level);
    // SAFETY: ioprio_set takes three numbers; who 0 is the caller.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) })?;
    Ok(())
}

/// `struct sched_attr` of Linux 5.3 (`SCHED_ATTR_SIZE_VER1`): the flags about utilisation are valid with it only.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Scheduling {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value of the ordinary policies.
    pub nice: i32,
    /// Priority of the real-time policies.
    pub priority: u32,
    /// Deadline policy: nanoseconds of CPU per period.
    pub runtime: u64,
    /// Deadline policy: relative deadline, nanoseconds.
    pub deadline: u64,
    /// Deadline policy: period, nanoseconds.
    pub period: u64,
    /// With `SCHED_FLAG_UTIL_CLAMP_MIN`: the least utilisation that the scheduler assumes, of 1024.
    pub least_utilisation: u32,
    /// With `SCHED_FLAG_UTIL_CLAMP_MAX`: the greatest.
    pub greatest_utilisation: u32,
}

/// Scheduling policy of this process.
///
/// # Errors
/// `EPERM` without CAP_SYS_NICE, `EINVAL` for parameters that do not fit the policy, `EOPNOTSUPP` for a flag about
/// utilisation where the kernel does not clamp it, `EBUSY` when no deadline can be met any more.
pub fn set_scheduling(attributes: &Scheduling) -> io::Result<()> {
    const SIZE: u32 = 56;
    const { assert!(size_of::<Scheduling>() == SIZE as usize) };
    let attributes = Scheduling { size: SIZE, ..*attributes };
    // SAFETY: `attributes` is a valid sched_attr of the size it names; pid 0 is the caller.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    Ok(())
}

/// Real user id of this process.
#[must_use]
pub fn user_id() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Makes `fd` the descriptor `number`, replacing what was there, and inheritable by execve.
///
/// # Errors
/// `EBADF` when the number is beyond the limit of open files.
pub fn place_fd(fd: impl AsFd, number: i32) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    if raw == number {
        // SAFETY: F_SETFD takes a number; the descriptor is borrowed and stays open.
        check_int(unsafe { libc::fcntl(raw, libc::F_SETFD, 0) })?;
        return Ok(());
    }
    // SAFETY: dup2 works on two numbers. It may replace a descriptor that someone owns: callers do this in a process
    // that executes a program next, with numbers they have kept free.
    check_int(unsafe { libc::dup2(raw, number) })?;
    Ok(())
}
