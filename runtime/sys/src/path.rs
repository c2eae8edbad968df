//! Opening paths that someone else controls: never outside the root, never through a magic link.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// What a resolution may pass through, beyond [`in_root`]'s own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Refuse every symbolic link.
    pub no_symlinks: bool,
    /// Refuse to cross into another mount.
    pub no_crossing: bool,
}

/// Opens `path` as if `root` were the root directory: `..` and absolute links stay below it, magic links fail.
///
/// # Errors
/// `ELOOP` for a refused link, `EXDEV` for a refused mount, `EAGAIN` after many races with renames, and open(2)'s.
pub fn in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags, limits: Limits) -> io::Result<OwnedFd> {
    open(root, path, flags, ResolveFlags::IN_ROOT, limits)
}

/// Opens `path` below `directory`: any attempt to leave it, even for a moment, fails with `EXDEV`.
///
/// # Errors
/// As [`in_root`].
pub fn beneath(directory: BorrowedFd<'_>, path: &Path, flags: OFlags, limits: Limits) -> io::Result<OwnedFd> {
    open(directory, path, flags, ResolveFlags::BENEATH, limits)
}

fn open(base: BorrowedFd<'_>, path: &Path, flags: OFlags, scope: ResolveFlags, limits: Limits) -> io::Result<OwnedFd> {
    let mut resolve = scope | ResolveFlags::NO_MAGICLINKS;
    if limits.no_symlinks {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    if limits.no_crossing {
        resolve |= ResolveFlags::NO_XDEV;
    }
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o644) } else { Mode::empty() };
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(base, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // A rename elsewhere in the tree raced with the check of `..`; openat2(2) says to try again.
            Err(rustix::io::Errno::AGAIN) if tries < 128 => tries += 1,
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_to_the_root_stays_in_the_root() {
        let outside = tempfile::tempdir().expect("tempdir");
        let root = outside.path().join("root");
        std::fs::create_dir(&root).expect("mkdir");
        std::fs::write(outside.path().join("secret"), "host").expect("write");
        symlink("../../../../../../../secret", root.join("up")).expect("symlink");
        symlink("/proc/self/fd", root.join("magic")).expect("symlink");
        let fd = std::fs::File::open(&root).expect("open");
        let error = in_root(fd.as_fd(), Path::new("up"), OFlags::RDONLY, Limits::default()).expect_err("in root");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = beneath(fd.as_fd(), Path::new("up"), OFlags::RDONLY, Limits::default()).expect_err("beneath");
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
    }

    #[test]
    fn a_magic_link_is_refused() {
        let proc = std::fs::File::open("/proc").expect("open");
        let error =
            in_root(proc.as_fd(), Path::new("self/fd/0"), OFlags::RDONLY, Limits::default()).expect_err("magic");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
