//! The last steps: descriptors, filter, environment, execve.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use portreeve_sys::path::{Limits, in_root};
use portreeve_sys::{exec, fd, process};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Failure, Process, console};
use crate::error::{SetupError, Step};
use crate::handshake;
use crate::plan::identity::Identity;
use crate::spawn::first_free;

/// The container's /etc/passwd is read to this length.
const PASSWD_LIMIT: usize = 1 << 20;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Leaves 0 to 2, the further descriptors of the program from 3 on, the socket, the gate and `root` open; nothing else.
/// The last ones are closed by execve, which nothing has to be asked for then: a filter may forbid that as well.
/// Nothing is made from here on, so that the umask is the program's as well: a filter may forbid to set it later.
pub(super) fn keep_only(process: &Process<'_>, root: BorrowedFd<'_>, identity: &Identity) -> Result<(), SetupError> {
    console::give_streams(identity.uid);
    rustix::process::umask(Mode::from_raw_mode(identity.umask.unwrap_or(0o022) & 0o777));
    let first = first_free(process.extra_fds.len());
    let mut copies = Vec::new();
    for extra in process.extra_fds {
        copies.push(fd::duplicate_above(extra.as_fd(), first).step("copying a further descriptor", "")?);
    }
    for (number, copy) in (3..).zip(&copies) {
        process::place_fd(copy, number).step("placing a further descriptor", "")?;
    }
    drop(copies);
    let mut kept = vec![process.socket.as_raw_fd(), root.as_raw_fd()];
    kept.extend(process.gate.iter().flat_map(|gate| gate.numbers()));
    kept.sort_unstable();
    let mut from = first;
    for number in kept {
        fd::close_range(from, number - 1).step("closing descriptors", "")?;
        from = number + 1;
    }
    fd::close_range(from, i32::MAX).step("closing descriptors", "")?;
    let first = u32::try_from(first).unwrap_or(3);
    fd::close_on_exec_from(first).step("having descriptors closed by execve", "")
}

/// Loads the filter, and hands its listener over before it makes any other call.
pub(super) fn load_filter(process: &Process<'_>) -> Result<(), SetupError> {
    let Some(filter) = process.seccomp else { return Ok(()) };
    let Some(listener) = filter.load().step("loading the seccomp filter", "")? else { return Ok(()) };
    handshake::listener(process.socket, listener.as_fd()).step("handing the seccomp listener over", "")
}

/// The environment, with HOME from the container's /etc/passwd when the configuration does not say it.
pub(super) fn environment(root: BorrowedFd<'_>, identity: &Identity) -> Vec<CString> {
    let mut environment = identity.environment.clone();
    if !environment.iter().any(|variable| variable.as_bytes().starts_with(b"HOME=")) {
        let home = home_of(root, identity.uid).unwrap_or_else(|| b"/".to_vec());
        if let Ok(variable) = CString::new([b"HOME=".as_slice(), &home].concat()) {
            environment.push(variable);
        }
    }
    environment
}

fn home_of(root: BorrowedFd<'_>, uid: u32) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = in_root(root, Path::new("/etc/passwd"), flags, Limits::default()).ok()?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    let limit = u64::try_from(PASSWD_LIMIT).unwrap_or(0);
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::from(file), limit), &mut text).ok()?;
    let wanted = uid.to_string();
    let home = text.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':').skip(2);
        (fields.next()? == wanted.as_bytes()).then(|| fields.nth(2)).flatten()
    })?;
    home.starts_with(b"/").then(|| home.to_vec())
}

/// Executes the program; returns only when that failed, after having said so to whoever started it.
pub(super) fn execute(process: &Process<'_>, environment: &[CString], starter: BorrowedFd<'_>) -> Failure {
    let identity = process.identity;
    let Some(program) = identity.arguments.first() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the configuration has no process");
        return SetupError { operation: "executing the program".into(), path: "".into(), source }.into();
    };
    let executed = try_each(program, environment, |path| {
        let error = exec::execve(path, &identity.arguments, environment);
        Err(error.raw_os_error().map_or(Errno::NOEXEC, Errno::from_raw_os_error))
    });
    executed.map_or_else(|refusal| say(&refusal, program, starter), |()| Failure::Said(1))
}

/// Looks the program up as [`execute`] will; one that is not there, or that may not be executed, is said to the maker.
pub(super) fn find(process: &Process<'_>, environment: &[CString]) -> Result<(), Failure> {
    // A container without a process can be made; it is its start that fails.
    let Some(program) = process.identity.arguments.first() else { return Ok(()) };
    let found = try_each(program, environment, |path| {
        let stat = rustix::fs::stat(path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::ACCESS);
        }
        rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
    });
    found.map_err(|refusal| say(&refusal, program, process.socket))
}

/// Why no file of the program's name will do.
struct Refusal {
    /// The worst answer.
    errno: Errno,
    /// Whether one of them was there.
    there: bool,
    /// Where it was looked for.
    searched: String,
}

/// Tries each file that the program's name may stand for, as execvp(3) does.
fn try_each(
    program: &CString,
    environment: &[CString],
    attempt: impl Fn(&CString) -> Result<(), Errno>,
) -> Result<(), Refusal> {
    let search = search_path(environment);
    let has_slash = program.as_bytes().contains(&b'/');
    let mut worst = Errno::NOENT;
    let mut there = false;
    for directory in if has_slash { "" } else { search.as_str() }.split(':') {
        let path = if has_slash {
            program.clone()
        } else {
            let directory = if directory.is_empty() { "." } else { directory };
            let joined = [directory.as_bytes(), b"/", program.as_bytes()].concat();
            let Ok(path) = CString::new(joined) else { continue };
            path
        };
        let Err(errno) = attempt(&path) else { return Ok(()) };
        if matches!(errno, Errno::NOENT | Errno::NOTDIR) && !exists(&path) {
            continue;
        }
        worst = errno;
        there = true;
        if errno != Errno::ACCESS {
            break;
        }
    }
    Err(Refusal { errno: worst, there, searched: if has_slash { "not searched".to_owned() } else { search } })
}

/// Says to whoever waits for the program why it is not executed.
fn say(refusal: &Refusal, program: &CString, listener: BorrowedFd<'_>) -> Failure {
    let absent = refusal.errno == Errno::NOENT;
    let _ = if absent && refusal.there {
        handshake::no_interpreter(listener, program.as_bytes())
    } else {
        let errno = refusal.errno.raw_os_error();
        handshake::not_executed(listener, program.as_bytes(), refusal.searched.as_bytes(), errno)
    };
    Failure::Said(if absent { 127 } else { 126 })
}

/// Whether there is a file: then ENOENT is about its interpreter or loader.
fn exists(path: &CString) -> bool {
    rustix::fs::access(path, Access::EXISTS).is_ok()
}

fn search_path(environment: &[CString]) -> String {
    let given = environment.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    given.map_or_else(
        || DEFAULT_PATH.to_owned(),
        |path| std::ffi::OsStr::from_bytes(path).to_string_lossy().into_owned(),
    )
}
