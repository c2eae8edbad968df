//! `tmpcopyup`: what is in the directory that a tmpfs will cover, copied into it before.
//!
//! By descriptors and without following links: the directory may be a volume that others write meanwhile. Owners, modes,
//! times and extended attributes are kept; a file with several names becomes several files.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// Directories within one another; each keeps two descriptors open.
const DEEPEST: usize = 100;
/// Entries in all: a tmpfs has its own limit in bytes, which empty files do not meet.
const MOST: usize = 200_000;

/// Copies the content of `from` into `to`.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    directory(from, to, &mut 0, 0)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, entries: &mut usize, depth: usize) -> io::Result<()> {
    let too_much = |what: String| Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    if depth > DEEPEST {
        return too_much(format!("its directories are nested deeper than {DEEPEST}"));
    }
    let source = open(from, c".", OFlags::DIRECTORY)?;
    for entry in Dir::read_from(&source)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *entries += 1;
        if *entries > MOST {
            return too_much(format!("it has more than {MOST} files"));
        }
        match one(source.as_fd(), to, name, entries, depth) {
            // Removed meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            other => other?,
        }
    }
    Ok(())
}

fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, entries: &mut usize, depth: usize) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            let source = open(from, name, OFlags::DIRECTORY)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let target = open(to, name, OFlags::DIRECTORY)?;
            directory(source.as_fd(), target.as_fd(), entries, depth + 1)?;
            attributes(source.as_fd(), target.as_fd())?;
            finish(to, name, &stat)
        }
        FileType::RegularFile => {
            let mut source = File::from(open(from, name, OFlags::empty())?);
            if !source.metadata()?.is_file() {
                return Err(Errno::NOENT.into()); // exchanged meanwhile
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut target = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut source, &mut target)?;
            attributes(source.as_fd(), target.as_fd())?;
            finish(to, name, &stat)
        }
        FileType::Symlink => {
            let text = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(text, to, name)?;
            finish(to, name, &stat)
        }
        _ => {
            rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
            finish(to, name, &stat)
        }
    }
}

/// Owner, mode and times, in this order: the first takes set-user-ID bits away, and everything changes times.
fn finish(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (user, group) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // Nobody else can reach the file system that is copied into: its names are still what they were.
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let time =
        |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Bytes of all names, and of one value, that the kernel allows: xattr(7).
const XATTR_MOST: usize = 64 << 10;

/// Extended attributes, those that tmpfs takes.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0_u8; XATTR_MOST];
    let length = match rustix::fs::flistxattr(from, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    names.truncate(length);
    let mut value = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        value.resize(XATTR_MOST, 0);
        let length = match rustix::fs::fgetxattr(from, name, value.as_mut_slice()) {
            Err(Errno::NODATA | Errno::ACCESS | Errno::PERM) => continue,
            length => length?,
        };
        value.truncate(length);
        match rustix::fs::fsetxattr(to, name, &value, XattrFlags::empty()) {
            // What only another kind of file system, or another user, can have.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => {}
            set => set?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    fn path_fd(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("open")
    }

    #[test]
    fn everything_is_copied_and_no_link_followed() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).expect("mkdir");
        std::fs::create_dir(&to).expect("mkdir");
        std::fs::write(from.join("a/file"), "text").expect("write");
        std::fs::set_permissions(from.join("a/file"), PermissionsExt::from_mode(0o4711)).expect("chmod");
        std::fs::set_permissions(from.join("a"), PermissionsExt::from_mode(0o1705)).expect("chmod");
        symlink("/etc", from.join("a/b/link")).expect("symlink");
        rustix::fs::mknodat(rustix::fs::CWD, from.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)
            .expect("mkfifo");
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        File::options().write(true).open(from.join("a/file")).and_then(|file| file.set_modified(old)).expect("time");
        let named = rustix::fs::setxattr(from.join("a/file"), "user.name", b"value", XattrFlags::empty()).is_ok();
        copy(path_fd(&from).as_fd(), path_fd(&to).as_fd()).expect("copy");
        let stat = |name: &str| std::fs::symlink_metadata(to.join(name)).expect(name);
        assert_eq!(std::fs::read_to_string(to.join("a/file")).expect("read"), "text");
        assert_eq!((stat("a/file").mode() & 0o7777, stat("a").mode() & 0o7777), (0o4711, 0o1705));
        assert_eq!(stat("a/file").modified().expect("time"), old);
        assert_eq!(std::fs::read_link(to.join("a/b/link")).expect("link"), std::path::Path::new("/etc"));
        assert_eq!(stat("pipe").mode() & 0o777, 0o640);
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(to.join("a/file"), "user.name", &mut value).unwrap_or(0);
        assert_eq!(length, if named { 5 } else { 0 });
    }

    #[test]
    fn a_directory_that_is_too_deep_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::create_dir(&to).expect("mkdir");
        std::fs::create_dir_all(from.join("d/".repeat(DEEPEST + 2))).expect("mkdir");
        let error = copy(path_fd(&from).as_fd(), path_fd(&to).as_fd()).expect_err("too deep");
        assert!(error.to_string().contains("nested deeper than 100"), "{error}");
    }
}
