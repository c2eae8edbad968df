//! Layers on top of each other, looked at as the one tree that they make.
//!
//! Nothing is mounted for it. Every name is looked up singly, in each layer's own directory, and never
//! through a symbolic link: links are read, and followed here as if the image were the whole machine.
//!
//! A directory that a layer only implies says nothing about what is there: a lower layer's directory
//! gives it mode and owner, and a lower layer's link stays a link.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
    rc::Rc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, openat, readlinkat},
    sys::stat::{Mode, SFlag, fstatat},
};

use crate::{
    layer::{DIRECTORY, is_opaque},
    store::{StoreError, layers::PlaceError},
};

/// Names that may be looked up, entries linked, and bytes of names remembered, for one image. Tools
/// that leave directories out need some thousands; a hostile image is refused within a minute.
const MAX_STEPS: u64 = 1 << 25;
/// Links on the way to one directory. Source: Linux `MAXSYMLINKS`.
const MAX_LINKS: usize = 40;
/// Source: Linux `PATH_MAX`, less the final NUL.
const MAX_PATH: usize = 4095;

/// One layer.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) root: Rc<OwnedFd>,
    /// Directories that it has things in but says nothing about; the empty name is its root.
    pub(crate) implied: Rc<BTreeSet<Vec<u8>>>,
}

/// One layer's share of a directory.
pub(crate) struct Part {
    /// Its number, the lowest layer's is 0.
    pub(crate) view: usize,
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) implied: bool,
    /// The nearest higher layer that is opaque there. Then what is in it is not in the image, but where that
    /// layer only implies a directory this one may still say what it is.
    hidden_by: Option<usize>,
}

/// A directory of the image: those of the layers, topmost first.
pub(crate) type Merged = Vec<Part>;

pub(crate) enum Entry {
    Absent,
    Directory(Merged),
    /// A symbolic link, and the directory that it is in.
    Link(Vec<u8>, Rc<OwnedFd>),
    Other,
}

/// Where a path leads.
pub(crate) struct Resolved {
    /// Without links; what is missing at its end is to be made.
    pub(crate) path: Vec<u8>,
    /// The directory, if it is there.
    pub(crate) parts: Merged,
}

/// The layers of an image, and what looking at them may still cost.
pub(crate) struct Stack {
    views: Vec<View>,
    left: u64,
}

impl Stack {
    pub(crate) fn new() -> Self {
        Self::bounded(MAX_STEPS)
    }

    /// With a bound of its own.
    pub(crate) fn bounded(steps: u64) -> Self {
        Self { views: Vec::new(), left: steps }
    }

    /// Puts a layer on top.
    pub(crate) fn push(&mut self, view: View) {
        self.views.push(view);
    }

    /// Forgets the layers.
    pub(crate) fn clear(&mut self) {
        self.views.clear();
    }

    /// Layers, lowest first.
    pub(crate) fn views(&self) -> &[View] {
        &self.views
    }

    /// The topmost layer got a directory that it only implies.
    pub(crate) fn imply(&mut self, path: &[u8]) -> Result<(), PlaceError> {
        self.spend(path.len())?;
        if let Some(top) = self.views.last_mut() {
            Rc::make_mut(&mut top.implied).insert(path.to_vec());
        }
        Ok(())
    }

    /// The topmost layer says itself what this directory is.
    pub(crate) fn state(&mut self, path: &[u8]) {
        if let Some(top) = self.views.last_mut() {
            Rc::make_mut(&mut top.implied).remove(path);
        }
    }

    pub(crate) fn spend(&mut self, steps: usize) -> Result<(), PlaceError> {
        let left = self.left.checked_sub(steps as u64);
        self.left = left.ok_or_else(|| {
            PlaceError::Image(format!(
                "have so many directories without an entry that placing them takes more than {MAX_STEPS} steps; \
                 build the image again with entries for its directories"
            ))
        })?;
        Ok(())
    }

    /// What is not spent yet.
    #[cfg(test)]
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    pub(crate) fn root(&self) -> Merged {
        let part = |(view, v): (usize, &View)| Part {
            view,
            fd: v.root.clone(),
            implied: v.implied.contains(&b""[..]),
            hidden_by: None,
        };
        self.views.iter().enumerate().rev().map(part).collect()
    }

    /// What the image has at `path`, whose parent is the directory `here`.
    pub(crate) fn entry(&mut self, here: &[Part], path: &[u8]) -> Result<Entry, PlaceError> {
        let name = OsStr::from_bytes(name_of(path));
        let mut found = Merged::new();
        let mut opaque_at = None;
        for part in here {
            self.spend(1)?;
            if part.hidden_by.is_some_and(|by| found.iter().all(|p| p.view != by)) {
                continue;
            }
            match openat(&*part.fd, name, DIRECTORY, Mode::empty()) {
                Ok(fd) => {
                    let opaque = is_opaque(fd.as_fd());
                    let implied = self.views.get(part.view).is_some_and(|v| v.implied.contains(path));
                    let hidden_by = part.hidden_by.into_iter().chain(opaque_at).min();
                    found.push(Part { view: part.view, fd: Rc::new(fd), implied, hidden_by });
                    match (opaque, implied) {
                        (true, true) => opaque_at = Some(part.view),
                        (true, false) => break,
                        (false, _) => {}
                    }
                }
                Err(Errno::ENOENT) => {}
                Err(_) if part.hidden_by.is_some() => break,
                Err(e) => {
                    let stat = fstatat(&*part.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|_| failed(path)(e))?;
                    let kind = stat.st_mode & SFlag::S_IFMT.bits();
                    if kind == SFlag::S_IFLNK.bits() && found.iter().all(|p| p.implied) {
                        let target = readlinkat(&*part.fd, name).map_err(failed(path))?;
                        return Ok(Entry::Link(target.into_vec(), part.fd.clone()));
                    }
                    let whiteout = kind == SFlag::S_IFCHR.bits() && stat.st_rdev == 0;
                    if found.is_empty() && !whiteout {
                        return Ok(Entry::Other);
                    }
                    // It hides whatever is below it, and is hidden by the directories above it.
                    break;
                }
            }
        }
        Ok(if found.is_empty() { Entry::Absent } else { Entry::Directory(found) })
    }

    /// The directory at a path that has no links in it; nothing when there is no such.
    pub(crate) fn directory(&mut self, path: &[u8]) -> Result<Merged, PlaceError> {
        let mut here = self.root();
        for end in ends(path) {
            match self.entry(&here, path.get(..end).unwrap_or_default())? {
                Entry::Directory(parts) => here = parts,
                _ => return Ok(Merged::new()),
            }
        }
        Ok(here)
    }

    /// Follows `path`, its last part too, inside the image. Missing parts count as directories that are
    /// still to be made. `None` when it leads to something else than a directory, or nowhere.
    pub(crate) fn resolve(&mut self, path: &[u8]) -> Result<Option<Resolved>, PlaceError> {
        let mut at = Resolved { path: Vec::new(), parts: self.root() };
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
                    at.path.truncate(parent_of(&at.path).len());
                    at.parts = self.directory(&at.path)?;
                    continue;
                }
                _ => {}
            }
            let parent = at.path.len();
            at.path = join(&at.path, &name);
            if at.path.len() > MAX_PATH {
                return Ok(None);
            }
            match self.entry(&at.parts, &at.path)? {
                Entry::Directory(parts) => at.parts = parts,
                Entry::Absent => at.parts.clear(),
                Entry::Other => return Ok(None),
                Entry::Link(target, _) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    self.spend(target.len())?;
                    at.path.truncate(parent);
                    if target.starts_with(b"/") {
                        at = Resolved { path: Vec::new(), parts: self.root() };
                    }
                    follow(&mut left, &target);
                }
            }
        }
        Ok(Some(at))
    }
}

/// The share that says what the directory is, and whether a higher one that only implies it is in the way.
pub(crate) fn deciding(parts: &Merged) -> Option<(&OwnedFd, bool)> {
    let position = parts.iter().position(|p| !p.implied)?;
    parts.get(position).map(|p| (&*p.fd, position > 0))
}

/// Where each part of `path` ends.
pub(crate) fn ends(path: &[u8]) -> impl Iterator<Item = usize> {
    let inner = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    inner.chain((!path.is_empty()).then_some(path.len()))
}

pub(crate) fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or_default()
}

pub(crate) fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').and_then(|slash| path.get(..slash)).unwrap_or_default()
}

pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    [directory, slash, name].concat()
}

pub(crate) fn is_inside(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Puts an image's path to what the file system said.
pub(crate) fn failed<E: Into<io::Error>>(path: &[u8]) -> impl FnOnce(E) -> PlaceError {
    let path = Path::new("/").join(OsStr::from_bytes(path));
    move |e| PlaceError::Store(StoreError::Io { operation: "merging the layers at", path, source: e.into() })
}
