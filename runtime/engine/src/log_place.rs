//! Where a container's log is: below the directory that its owner names for the pod.
//!
//! Who may write where the node's logs are, as a pod does that collects them, can put a symbolic link in place of a
//! directory or file of a neighbour. So from the pod's own directory on no link is followed, whenever a log is opened,
//! made anew or renamed. Those above it are the machine's own: `/var/log` may well be one.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use portreeve_sys::path::{Limits, beneath};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::protocol::LogCall;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a pod's directory of logs.
///
/// # Errors
/// `ENOTDIR` when it is a symbolic link, and open(2)'s.
pub(crate) fn home(path: &Path) -> io::Result<OwnedFd> {
    // A slash at its end would follow a link.
    let path: PathBuf = path.components().collect();
    Ok(rustix::fs::openat(CWD, &path, DIRECTORY, Mode::empty())?)
}

/// Makes the directories (0750) between the pod's own and a log; those that exist are fine.
///
/// # Errors
/// `ENOTDIR` when something else is in place of one, and mkdir(2)'s.
pub(crate) fn make(call: &LogCall) -> io::Result<()> {
    let (directory, log) = split(call);
    let mut at = home(directory)?;
    for name in log.parent().into_iter().flat_map(Path::components) {
        match rustix::fs::mkdirat(&at, name.as_os_str(), Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => at = rustix::fs::openat(&at, name.as_os_str(), DIRECTORY, Mode::empty())?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The directory that a log is in, and its name there.
///
/// # Errors
/// `ELOOP` for a link on the way, `ENOTDIR` for one in place of the pod's own directory, and open(2)'s.
pub(crate) fn open(call: &LogCall) -> io::Result<(OwnedFd, &OsStr)> {
    let (directory, log) = split(call);
    let name = log.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let home = home(directory)?;
    let directory = match log.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => {
            let limits = Limits { no_symlinks: true, ..Limits::default() };
            beneath(home.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY, limits)?
        }
        None => home,
    };
    Ok((directory, name))
}

/// Opens a log itself, never through a link and without waiting for a pipe; `access` says for what.
///
/// # Errors
/// As [`open`], and `ELOOP` for a link in its place.
pub(crate) fn file(call: &LogCall, access: OFlags) -> io::Result<File> {
    let (directory, name) = open(call)?;
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o640))?.into())
}

/// The pod's directory, and the way from there.
fn split(call: &LogCall) -> (&Path, &Path) {
    match call.path.strip_prefix(&call.directory) {
        Ok(log) if !call.directory.as_os_str().is_empty() => (&call.directory, log),
        // An older agent names none.
        _ => (call.path.parent().unwrap_or(Path::new("/")), Path::new(call.path.file_name().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn call(directory: &Path, log: &str) -> LogCall {
        LogCall { directory: directory.to_owned(), path: directory.join(log), max_bytes: 1, max_files: 1 }
    }

    #[test]
    fn no_link_is_followed_from_the_pods_own_directory_on() {
        let place = tempfile::tempdir().unwrap();
        let (outside, real) = (place.path().join("outside"), place.path().join("real/pod"));
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(&real).unwrap();
        symlink(place.path().join("real"), place.path().join("log")).unwrap();
        let pod = place.path().join("log/pod/");
        make(&call(&pod, "main/deep/0.log")).unwrap();
        assert_eq!(open(&call(&pod, "main/deep/0.log")).unwrap().1, "0.log");
        assert!(real.join("main/deep").is_dir(), "a link above is the machine's own");

        symlink(&outside, real.join("linked")).unwrap();
        let linked = call(&pod, "linked/deep/0.log");
        assert_eq!(make(&linked).unwrap_err().raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
        assert_eq!(open(&linked).unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        symlink(&real, place.path().join("pod")).unwrap();
        for way in ["pod", "pod/"] {
            let linked = call(&place.path().join(way), "0.log");
            assert!(make(&linked).is_err() && open(&linked).is_err(), "{way}");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_log_of_an_older_agent_is_where_its_path_says() {
        let place = tempfile::tempdir().unwrap();
        let older = LogCall { directory: PathBuf::new(), ..call(place.path(), "0.log") };
        make(&older).unwrap();
        assert_eq!(open(&older).unwrap().1, "0.log");
    }
}
