//! Where an entry goes: names from an archive, resolved inside one directory and nowhere else.
//!
//! **Invariant:** every path is resolved by the kernel with `RESOLVE_IN_ROOT` relative to the layer's
//! own descriptor, or name by name without following links; after that only descriptors and single names
//! are used.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat},
};

use portreeve_sys::tree;

use crate::layer::{
    LayerError,
    xattr::{is_opaque, set_opaque},
};

/// Descriptors of parent directories that are kept open.
const KEPT_PARENTS: usize = 128;

/// Links on the way to one directory. Source: Linux `MAXSYMLINKS`.
const MAX_LINKS: usize = 40;

/// How a directory is opened by its name alone.
pub(crate) const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// What a name that is remembered costs besides its own bytes.
pub(crate) const NAME_COST: usize = 64;

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
    /// Directories that had to be made because the archive has something in them but not them, by inode:
    /// a link may be another way to one. Not those in which nothing of lower layers is left.
    implied: HashMap<u64, Vec<u8>>,
    /// The archive has no entry for the root.
    implied_root: bool,
    /// Of all names that were ever in `implied`, and of links that led to them.
    implied_bytes: usize,
}

impl<'a> Root<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, parents: HashMap::new(), implied: HashMap::new(), implied_root: true, implied_bytes: 0 }
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
        match open_in_root(self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(e) if [Errno::ENOENT, Errno::ENOTDIR].iter().any(|n| e.raw_os_error() == Some(*n as i32)) => {}
            other => return other.map_err(|e| ("opening its directory", e)),
        }
        // The kernel does not make what is missing, so each name is looked up by itself. A link of this very
        // layer may lead to where only lower layers have something.
        let mut here = Here { path: Vec::new(), fd: self.reopen(&[])?, hidden: Vec::new() };
        here.hidden.push(is_opaque(here.fd.as_fd()));
        let mut left: Vec<Vec<u8>> = Vec::new();
        let follow = |left: &mut Vec<Vec<u8>>, path: &[u8]| {
            left.extend(path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
        };
        follow(&mut left, path);
        let mut links = 0;
        while let Some(name) = left.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here.path.truncate(here.path.iter().rposition(|b| *b == b'/').unwrap_or(0));
                    here.hidden.truncate(here.hidden.len().saturating_sub(1).max(1));
                    here.fd = self.reopen(&here.path)?;
                    continue;
                }
                _ => {}
            }
            let name_os = OsStr::from_bytes(&name);
            match openat(&here.fd, name_os, DIRECTORY, Mode::empty()) {
                Ok(fd) => here.enter(&name, fd),
                Err(Errno::ENOENT) => self.make(&mut here, &name)?,
                Err(e) => match readlinkat(&here.fd, name_os) {
                    Ok(target) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(("opening its directory", Errno::ELOOP.into()));
                        }
                        let target = target.as_bytes();
                        self.implied_bytes += target.len() + NAME_COST;
                        if target.starts_with(b"/") {
                            here.path.clear();
                            here.hidden.truncate(1);
                            here.fd = self.reopen(&[])?;
                        }
                        follow(&mut left, target);
                    }
                    // A whiteout of this very layer may stand where the directory must be.
                    Err(_) if is_whiteout(here.fd.as_fd(), &name) => self.make(&mut here, &name)?,
                    Err(_) => return Err(("opening its directory", e.into())),
                },
            }
        }
        Ok(here.fd)
    }

    /// Opens a directory of the layer anew.
    fn reopen(&self, path: &[u8]) -> Result<OwnedFd, (&'static str, io::Error)> {
        open_beneath(self.root, path, DIRECTORY).map_err(|e| ("opening its directory", e))
    }

    /// Makes a directory that the archive only implies, also in place of a whiteout.
    fn make(&mut self, here: &mut Here, name: &[u8]) -> Result<(), (&'static str, io::Error)> {
        let over_whiteout = is_whiteout(here.fd.as_fd(), name);
        if over_whiteout {
            unlink(here.fd.as_fd(), name).map_err(|e| ("replacing a whiteout", e))?;
        }
        let hidden = over_whiteout || here.hidden.last().is_some_and(|h| *h);
        let mode = Mode::from_bits_truncate(0o755);
        mkdirat(&here.fd, OsStr::from_bytes(name), mode).map_err(|e| ("making its directory", e.into()))?;
        let fd = openat(&here.fd, OsStr::from_bytes(name), DIRECTORY, Mode::empty())
            .map_err(|e| ("opening its directory", e.into()))?;
        // The umask took its part.
        fchmod(&fd, mode).map_err(|e| ("setting the mode of its directory", e.into()))?;
        if over_whiteout {
            set_opaque(fd.as_fd()).map_err(|e| ("marking it opaque", e))?;
        }
        let inode = fstat(&fd).map_err(|e| ("asking for its directory", e.into()))?.st_ino;
        here.enter(name, fd);
        self.implied_bytes += here.path.len() + NAME_COST;
        // What lower layers have there does not count: then it is what it was made as.
        if !hidden {
            self.implied.insert(inode, here.path.clone());
        }
        Ok(())
    }

    /// Opens an existing parent of a hard link's target, making nothing.
    pub(crate) fn existing(&self, path: &[u8]) -> io::Result<OwnedFd> {
        open_in_root(self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// How much was remembered of directories that only were implied.
    pub(crate) fn implied_bytes(&self) -> usize {
        self.implied_bytes
    }

    /// The archive has an entry of its own for the root.
    pub(crate) fn explicit_root(&mut self) {
        self.implied_root = false;
    }

    /// The archive has an entry of its own for this directory.
    pub(crate) fn explicit(&mut self, directory: &OwnedFd) -> nix::Result<()> {
        if !self.implied.is_empty() {
            self.implied.remove(&fstat(directory)?.st_ino);
        }
        Ok(())
    }

    /// Something was removed that descriptors may still mean.
    pub(crate) fn forget(&mut self) {
        self.parents.clear();
    }

    /// Directories that exist only because something is in them.
    pub(crate) fn into_implied(self) -> Vec<Vec<u8>> {
        // A later entry may have replaced it.
        let is_there = |(inode, path): &(u64, Vec<u8>)| {
            let fd = open_beneath(self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY);
            fd.is_ok_and(|fd| fstat(&fd).is_ok_and(|s| s.st_ino == *inode))
        };
        let mut found: Vec<Vec<u8>> = self.implied_root.then(Vec::new).into_iter().collect();
        found.extend(self.implied.into_iter().filter(is_there).map(|(_, path)| path));
        found.sort();
        found
    }
}

/// A directory on the way to one that is to be made.
struct Here {
    /// From the layer's root, without links.
    path: Vec<u8>,
    fd: OwnedFd,
    /// For the root and each part of `path`: whether nothing that lower layers have in it shows.
    hidden: Vec<bool>,
}

impl Here {
    fn enter(&mut self, name: &[u8], fd: OwnedFd) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        let hidden = self.hidden.last().is_some_and(|h| *h) || is_opaque(fd.as_fd());
        self.hidden.push(hidden);
        self.fd = fd;
    }
}

/// Opens `path`, which must have neither links nor `..` in it, below `root`.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    Ok(openat2(root, OsStr::from_bytes(path), how)?)
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
        Err(e) if e.raw_os_error() == Some(Errno::EISDIR as i32) => tree::remove_at(parent, &CString::new(name)?),
        other => other,
    }
}

/// A name as messages show it.
pub(crate) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name.get(..300).unwrap_or(name)).into_owned()
}
