//! The last steps: descriptors, filter, environment, execve.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use portreeve_sys::path::{Limits, in_root};
use portreeve_sys::{exec, fd, process};
use rustix::fs::{Mode, OFlags};

use super::{Failure, Process, console};
use crate::error::{SetupError, Step};
use crate::handshake;
use crate::plan::identity::Identity;
use crate::seccomp::Filter;

/// The container's /etc/passwd is read to this length.
const PASSWD_LIMIT: usize = 1 << 20;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Leaves 0 to 2, the further descriptors of the program from 3 on, the socket and `root` open; nothing else.
pub(super) fn keep_only(process: &Process<'_>, root: BorrowedFd<'_>, identity: &Identity) -> Result<(), SetupError> {
    console::give_streams(identity.uid);
    let first = first_free(process);
    let mut copies = Vec::new();
    for extra in process.extra_fds {
        copies.push(fd::duplicate_above(extra.as_fd(), first).step("copying a further descriptor", "")?);
    }
    for (number, copy) in (3..).zip(&copies) {
        process::place_fd(copy, number).step("placing a further descriptor", "")?;
    }
    drop(copies);
    let mut kept = [process.socket.as_raw_fd(), root.as_raw_fd()];
    kept.sort_unstable();
    let mut from = first;
    for number in kept {
        fd::close_range(from, number - 1).step("closing descriptors", "")?;
        from = number + 1;
    }
    fd::close_range(from, i32::MAX).step("closing descriptors", "")
}

/// The lowest number that is not the program's.
pub(super) fn first_free(process: &Process<'_>) -> i32 {
    i32::try_from(process.extra_fds.len()).unwrap_or(0).saturating_add(3)
}

pub(super) fn load_filter(filter: Option<&Filter>) -> Result<(), SetupError> {
    let Some(filter) = filter else { return Ok(()) };
    filter.load().step("loading the seccomp filter", "")
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
    if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode) != rustix::fs::FileType::RegularFile
    {
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

/// Executes the program; returns only when that failed, after having said so.
pub(super) fn execute(process: &Process<'_>, environment: &[CString]) -> Failure {
    let identity = process.identity;
    rustix::process::umask(Mode::from_raw_mode(identity.umask.unwrap_or(0o022) & 0o777));
    let first = u32::try_from(first_free(process)).unwrap_or(3);
    if let Err(error) = fd::close_on_exec_from(first).step("closing descriptors at execve", "") {
        return error.into();
    }
    let Some(program) = identity.arguments.first() else { return Failure::Said(1) };
    let search = search_path(environment);
    let mut worst = rustix::io::Errno::NOENT.raw_os_error();
    let mut there = false;
    let has_slash = program.as_bytes().contains(&b'/');
    for directory in if has_slash { "" } else { search.as_str() }.split(':') {
        let path = if has_slash {
            program.clone()
        } else {
            let directory = if directory.is_empty() { "." } else { directory };
            let joined = [directory.as_bytes(), b"/", program.as_bytes()].concat();
            let Ok(path) = CString::new(joined) else { continue };
            path
        };
        let errno = exec::execve(&path, &identity.arguments, environment).raw_os_error().unwrap_or(worst);
        let absent =
            errno == rustix::io::Errno::NOENT.raw_os_error() || errno == rustix::io::Errno::NOTDIR.raw_os_error();
        if absent && !exists(&path) {
            continue;
        }
        worst = errno;
        there = true;
        if errno != rustix::io::Errno::ACCESS.raw_os_error() {
            break;
        }
    }
    let searched = if has_slash { "not searched" } else { search.as_str() };
    let absent = worst == rustix::io::Errno::NOENT.raw_os_error();
    let _ = if absent && there {
        handshake::no_interpreter(process.socket, program.as_bytes())
    } else {
        handshake::not_executed(process.socket, program.as_bytes(), searched.as_bytes(), worst)
    };
    Failure::Said(if absent { 127 } else { 126 })
}

/// Whether there is a file: then ENOENT is about its interpreter or loader.
fn exists(path: &CString) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXISTS).is_ok()
}

fn search_path(environment: &[CString]) -> String {
    let given = environment.iter().rev().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
    given.map_or_else(
        || DEFAULT_PATH.to_owned(),
        |path| std::ffi::OsStr::from_bytes(path).to_string_lossy().into_owned(),
    )
}
