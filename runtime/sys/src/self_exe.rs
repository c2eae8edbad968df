//! Protecting executables from the containers that they enter.
//!
//! A process shows its executable as `/proc/PID/exe`, a link that opens the file itself wherever the process is: who is
//! in a container with a clone of the runtime, or executes `/proc/self/exe` there, holds the host's file in his hands
//! (CVE-2019-5736). A mode or an environment variable keeps nobody away from it: where it is executed from does.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;

use crate::fd;
use crate::mount::{Change, NO_SUID, READ_ONLY, clone_tree, set_attributes};

const LINK: &str = "/proc/self/exe";

/// Whether nobody can write the running executable by way of this process: it lies on a mount that is read-only, or in
/// memory that is sealed.
///
/// # Errors
/// `ENOENT` without procfs.
pub fn is_out_of_reach() -> io::Result<bool> {
    if rustix::fs::statvfs(LINK)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    // Only files in memory have seals; others say EINVAL.
    let seals = rustix::fs::fcntl_get_seals(File::open(LINK)?);
    Ok(seals.is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

/// Whether the file of the running executable is root's alone to change, and this process is not root: then a container
/// that it makes, whose users are this one and those lent to him, cannot change it either.
///
/// # Errors
/// `ENOENT` without procfs.
pub fn is_roots_alone() -> io::Result<bool> {
    let file = rustix::fs::stat(LINK)?;
    Ok(!rustix::process::geteuid().is_root() && file.st_uid == 0 && file.st_mode & 0o022 == 0)
}

/// The running executable, as [`read_only`] has it.
///
/// # Errors
/// As [`read_only`]; `ENOENT` or `ESTALE` also when an upgrade has put another file at its path.
pub fn read_only_executable() -> io::Result<OwnedFd> {
    read_only(Path::new(LINK))
}

/// The program at `path`, to be executed from a read-only, detached mount of its directory.
///
/// A process executed from it shows, as its `/proc/PID/exe`, a file that cannot be opened for writing through that
/// link, whatever the capabilities of the opener. The mount lives as long as the descriptor or a process executed from
/// it.
///
/// It is the directory that is mounted, and not the file: who holds the root of a detached mount may change its
/// attributes from any mount namespace that he administers, one of his own making too, and `/proc/PID/exe` would be
/// such a root: mount_setattr(2).
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOSYS` before Linux 5.12, `EINVAL` when it lies in another mount namespace,
/// `ENOENT` or `ESTALE` when it is not in the directory that it was in (a mount of one file among others).
pub fn read_only(path: &Path) -> io::Result<OwnedFd> {
    let wanted = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let place = rustix::fs::readlink(format!("/proc/self/fd/{}", wanted.as_raw_fd()), Vec::new())?;
    let place = Path::new(OsStr::from_bytes(place.as_bytes()));
    let (Some(directory), Some(name)) = (place.parent(), place.file_name()) else { return Err(Errno::NOENT.into()) };
    let tree = clone_tree(CWD, directory, false, true)?;
    set_attributes(tree.as_fd(), &Change { set: READ_ONLY | NO_SUID, ..Change::default() })?;
    let program = rustix::fs::openat(&tree, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let (wanted, found) = (rustix::fs::fstat(&wanted)?, rustix::fs::fstat(&program)?);
    if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino) {
        return Err(Errno::STALE.into());
    }
    Ok(program)
}

/// A copy of the program at `path` in memory that can never be changed: where [`read_only`] cannot be had. It costs as
/// much memory as the file is long, for as long as a process executes it.
///
/// # Errors
/// `EACCES` when the file cannot be read, `ENOMEM`.
pub fn sealed_copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Where the machine makes files in memory without the right to execute them, that is asked for: Linux 6.3.
    let memory = match rustix::fs::memfd_create(c"portreeve", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(c"portreeve", flags)?,
        made => made?,
    };
    let mut copy = File::from(memory);
    io::copy(&mut File::open(path)?, &mut copy)?;
    let copy = OwnedFd::from(copy);
    fd::seal(&copy)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::clone::NEW_MOUNT;
    use crate::namespace;

    #[test]
    fn cve_2019_5736_the_read_only_mount_stays_so_for_who_administers_another_namespace() {
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let executable = read_only_executable().expect("a read-only mount");
        let attack = || {
            // Of this thread alone.
            namespace::unshare(NEW_MOUNT).expect("a mount namespace");
            let path = format!("/proc/thread-self/fd/{}", executable.as_raw_fd());
            // As who opens `/proc/PID/exe` of a process that was executed from it.
            let caught = File::open(path).expect("everybody may read it");
            set_attributes(caught.as_fd(), &Change { clear: READ_ONLY, ..Change::default() })
        };
        let refused = std::thread::scope(|scope| scope.spawn(attack).join().expect("the thread")).expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{refused}");
        let place = rustix::fs::fstatvfs(&executable).expect("its mount");
        assert!(place.f_flag.contains(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID));
    }

    #[test]
    fn a_program_is_found_by_a_link_and_not_where_another_file_is_mounted() {
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let (program, link, other) =
            (folder.path().join("a program"), folder.path().join("link"), folder.path().join("b"));
        std::fs::write(&program, "text").expect("write");
        std::fs::write(&other, "other").expect("write");
        std::os::unix::fs::symlink(&program, &link).expect("symlink");
        let found = read_only(&link).expect("the program");
        let read = |fd: &OwnedFd| std::fs::read_to_string(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("read");
        assert_eq!(read(&found), "text");
        let write = File::options().write(true).open(format!("/proc/self/fd/{}", found.as_raw_fd()));
        assert_eq!(write.expect_err("read-only").kind(), io::ErrorKind::ReadOnlyFilesystem);
        let covered = || {
            namespace::unshare(NEW_MOUNT).expect("a mount namespace");
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("/");
            let private =
                Change { propagation: Some(crate::mount::Propagation::Private), recursive: true, ..Change::default() };
            set_attributes(root.as_fd(), &private).expect("private");
            let tree = clone_tree(CWD, &other, false, true).expect("the other file");
            let target =
                rustix::fs::open(&program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("the program");
            crate::mount::attach(tree.as_fd(), target.as_fd()).expect("attach");
            read_only(&program)
        };
        let refused =
            std::thread::scope(|scope| scope.spawn(covered).join().expect("the thread")).expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(libc::ESTALE), "{refused}");
    }

    #[test]
    fn a_sealed_copy_is_the_program_and_cannot_be_written() {
        let mut copy = File::from(sealed_copy(Path::new(LINK)).expect("a copy"));
        assert_eq!(copy.write(b"overwritten").expect_err("sealed").kind(), io::ErrorKind::PermissionDenied);
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let mut text = Vec::new();
        File::open(&path).expect("a reader").read_to_end(&mut text).expect("read");
        assert!(text == std::fs::read(LINK).expect("the program"));
        assert!(rustix::fs::fcntl_get_seals(&copy).expect("seals").contains(SealFlags::WRITE | SealFlags::SEAL));
    }
}
