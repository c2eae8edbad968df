//! Where an entry goes: names from an archive, resolved inside one directory and nowhere else.
//!
//! **Invariant:** every path is resolved by the kernel with `RESOLVE_IN_ROOT` relative to the layer's
//! own descriptor; after that only descriptors and single names are used.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{Mode, SFlag, fstatat, mkdirat},
};

use crate::layer::LayerError;

/// Descriptors of parent directories that are kept open.
const KEPT_PARENTS: usize = 128;

/// A name from an archive, made relative to the layer's root: no leading slash, no `.`, no `..`, no
/// NUL; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(Vec<u8>);

impl Place {
    /// Cleans a name. Absolute names are taken as relative to the root, as every tar does.
    pub(crate) fn new(name: &[u8], limit: usize) -> Result<Self, LayerError> {
        let refused = |problem| LayerError::Refused { path: shown(name), problem };
        if name.len() > limit {
            return Err(refused("its name is too long"));
        }
        if name.contains(&0) {
            return Err(refused("its name has a NUL byte"));
        }
        let mut clean = Vec::with_capacity(name.len());
        for component in name.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(refused("its name has a '..'")),
                _ if component.len() > 255 => {
                    return Err(refused("a part of its name is too long"));
                }
                _ => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(component);
                }
            }
        }
        Ok(Self(clean))
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Directory and last name; the root has neither.
    pub(crate) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => Some((self.0.get(..slash)?, self.0.get(slash + 1..)?)),
            None => Some((&[], &self.0)),
        }
    }
}

/// A layer's directory while it is filled.
#[derive(Debug)]
pub(crate) struct Root<'a> {
    root: BorrowedFd<'a>,
    parents: HashMap<Vec<u8>, OwnedFd>,
    /// Directories that had to be made because the archive has something in them but not them.
    implied: BTreeSet<Vec<u8>>,
}

impl<'a> Root<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, parents: HashMap::new(), implied: BTreeSet::from([Vec::new()]) }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'a> {
        self.root
    }

    /// The descriptor of directory `path` for use as a parent; what is missing on the way is made.
    pub(crate) fn parent(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, (&'static str, io::Error)> {
        if path.is_empty() {
            return Ok(self.root);
        }
        if !self.parents.contains_key(path) {
            let fd = self.open_or_make(path)?;
            if self.parents.len() >= KEPT_PARENTS {
                self.parents.clear();
            }
            self.parents.insert(path.to_vec(), fd);
        }
        match self.parents.get(path) {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(("opening its directory", io::ErrorKind::NotFound.into())),
        }
    }

    fn open_or_make(&mut self, path: &[u8]) -> Result<OwnedFd, (&'static str, io::Error)> {
        // Parts that exist already, found from the end.
        let mut ends: Vec<usize> = Vec::new();
        let mut end = path.len();
        let mut fd = loop {
            match open_in_root(self.root, path.get(..end).unwrap_or_default(), OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Ok(fd) => break fd,
                // A whiteout of this very layer may stand where the directory must be.
                Err(e)
                    if matches!(e.raw_os_error(), Some(libc_enoent) if libc_enoent == Errno::ENOENT as i32)
                        || e.raw_os_error() == Some(Errno::ENOTDIR as i32) =>
                {
                    ends.push(end);
                    end = path.get(..end).and_then(|p| p.iter().rposition(|b| *b == b'/')).unwrap_or(0);
                    if end == 0 {
                        break self.root.try_clone_to_owned().map_err(|e| ("opening the layer", e))?;
                    }
                }
                Err(e) => return Err(("opening its directory", e)),
            }
        };
        while let Some(end) = ends.pop() {
            let part = path.get(..end).unwrap_or_default();
            let name = part.rsplit(|b| *b == b'/').next().unwrap_or_default();
            let over_whiteout = is_whiteout(fd.as_fd(), name);
            if over_whiteout {
                unlink(fd.as_fd(), name).map_err(|e| ("replacing a whiteout", e))?;
            }
            mkdirat(&fd, OsStr::from_bytes(name), Mode::from_bits_truncate(0o755))
                .map_err(|e| ("making its directory", e.into()))?;
            // Single names only, so no symbolic link can be meant here.
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            fd = nix::fcntl::openat(&fd, OsStr::from_bytes(name), flags, Mode::empty())
                .map_err(|e| ("opening its directory", e.into()))?;
            // The umask took its part.
            nix::sys::stat::fchmod(&fd, Mode::from_bits_truncate(0o755))
                .map_err(|e| ("setting the mode of its directory", e.into()))?;
            if over_whiteout {
                crate::layer::xattr::set_opaque(fd.as_fd()).map_err(|e| ("marking it opaque", e))?;
            }
            self.implied.insert(part.to_vec());
        }
        Ok(fd)
    }

    /// Opens an existing parent of a hard link's target, making nothing.
    pub(crate) fn existing(&self, path: &[u8]) -> io::Result<OwnedFd> {
        open_in_root(self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// The archive has an entry of its own for this directory.
    pub(crate) fn explicit(&mut self, path: &[u8]) {
        self.implied.remove(path);
    }

    /// Something was removed that descriptors or notes may still mean.
    pub(crate) fn forget(&mut self, path: &[u8]) {
        self.parents.clear();
        let inside = |p: &Vec<u8>| p == path || p.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        self.implied.retain(|p| !inside(p));
    }

    /// Directories that exist only because something is in them; without those behind symbolic links.
    pub(crate) fn into_implied(self) -> Vec<Vec<u8>> {
        let plain = |p: &Vec<u8>| {
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
            p.is_empty() || openat2(self.root, OsStr::from_bytes(p), how).is_ok()
        };
        self.implied.iter().filter(|p| plain(p)).cloned().collect()
    }
}

/// Opens `path` as if `root` were `/`.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    // EAGAIN: a rename somewhere made the kernel unsure about a `..` inside a symbolic link.
    for _ in 0..64 {
        match openat2(root, OsStr::from_bytes(path), how) {
            Err(Errno::EAGAIN) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    Err(io::Error::from(Errno::EAGAIN))
}

/// Whether `name` is an overlayfs whiteout.
pub(crate) fn is_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    let stat = fstatat(parent, OsStr::from_bytes(name), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
    stat.is_ok_and(|s| s.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && s.st_rdev == 0)
}

pub(crate) fn unlink(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let flag = nix::unistd::UnlinkatFlags::NoRemoveDir;
    nix::unistd::unlinkat(parent, OsStr::from_bytes(name), flag).map_err(io::Error::from)
}

/// Removes whatever `name` is, a whole tree too; symbolic links are not followed.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match unlink(parent, name) {
        Err(e) if e.raw_os_error() == Some(Errno::EISDIR as i32) => {
            // The link names our own descriptor, and the standard library walks by descriptors from there.
            let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
            std::fs::remove_dir_all(path.join(OsStr::from_bytes(name)))
        }
        other => other,
    }
}

/// A name as messages show it.
pub(crate) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name.get(..300).unwrap_or(name)).into_owned()
}
