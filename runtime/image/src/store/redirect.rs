//! Directories that a layer only implies, where a lower layer has a symbolic link.
//!
//! A layer may hold `lib/x` without an entry for `lib`, on top of one where `lib` is a link to
//! `usr/lib`. Whoever unpacks both into one tree puts `usr/lib/x`; unpacked alone, the layer has a
//! directory `lib`, which would hide the link and all that is behind it. What is right depends on the
//! layers below, which differ from image to image, so the layer itself stays as it is, and the image
//! gets one more directory to go just above it:
//!
//! ```text
//!  finish-<image id>/<diff id>/lib -> usr/lib     the lower layer's own link (a hard link to it)
//!  finish-<image id>/<diff id>/usr/lib/x          a hard link into the layer
//!  layers/<diff id>/fs/lib/x                      hidden by the first line
//! ```
//!
//! When one layer has the same file both ways, as `lib/x` and as `usr/lib/x`, the order of its archive
//! is not known any more; the first one stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    rc::Rc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, openat},
    sys::stat::{Mode, SFlag, fchmod, fstatat, mkdirat},
    unistd::linkat,
};
use rustix::fs::Dir;

use crate::{
    layer::{DIRECTORY, is_opaque, is_whiteout, open_beneath, remove, set_opaque},
    store::{
        layers::PlaceError,
        meta::copy,
        view::{Entry, Stack, View, ends, failed, is_inside, join, name_of, parent_of},
    },
};

/// Puts what the topmost layer of `stack` has below lower layers' links where those lead: into a
/// directory that `make` makes, which is then the topmost one. `false` when there is no such thing.
pub(crate) fn redirect(
    stack: &mut Stack,
    make: &mut dyn FnMut() -> Result<OwnedFd, PlaceError>,
) -> Result<bool, PlaceError> {
    let Some((View { root, implied }, [_, ..])) = stack.views().split_last() else { return Ok(false) };
    let (layer, implied, number) = (root.clone(), implied.clone(), stack.views().len() - 1);
    let mut work = Redirect {
        stack,
        layer,
        implied: implied.clone(),
        made: None,
        moved: BTreeMap::new(),
        stated: Vec::new(),
        covered: BTreeSet::new(),
    };
    // Below such a directory lower layers have nothing.
    let mut alone: Option<&[u8]> = None;
    // In order, so that a directory comes before what is in it.
    for path in implied.iter().filter(|p| !p.is_empty()) {
        if alone.is_some_and(|a| is_inside(path, a)) {
            continue;
        }
        let place = work.place(path);
        let (to, below) = match work.stack.resolve(&place)? {
            Some(found) => (found.path, found.parts.iter().any(|p| p.view < number)),
            // A link that leads nowhere, or a file: the directory stands in its place.
            None => (place.clone(), true),
        };
        if to == *path {
            alone = (!below).then_some(path);
            continue;
        }
        if work.made.is_none() {
            let made = Rc::new(make()?);
            work.made = Some(made.clone());
            work.stack.push(View { root: made, implied: Rc::new(BTreeSet::from([Vec::new()])) });
        }
        if place == *path {
            work.show_link(path)?;
        }
        work.stack.spend(path.len() + to.len())?;
        work.moved.insert(path.clone(), to.clone());
        work.take(path, &to, false)?;
    }
    work.finish()
}

struct Redirect<'a> {
    stack: &'a mut Stack,
    layer: Rc<OwnedFd>,
    implied: Rc<BTreeSet<Vec<u8>>>,
    made: Option<Rc<OwnedFd>>,
    /// From the layer's implied directories to where their things belong.
    moved: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The same for directories that the layer says itself; what it says of them is copied at the end.
    stated: Vec<(Vec<u8>, Vec<u8>)>,
    /// Opaque directories, which hide what the layer itself has there; it was linked into them.
    covered: BTreeSet<Vec<u8>>,
}

impl Redirect<'_> {
    /// Where a directory of the layer is now.
    fn place(&self, path: &[u8]) -> Vec<u8> {
        let mut parent = path;
        while !parent.is_empty() && !self.moved.is_empty() {
            parent = parent_of(parent);
            if let (Some(to), Some(rest)) = (self.moved.get(parent), path.get(parent.len() + 1..)) {
                return join(to, rest);
            }
        }
        path.to_vec()
    }

    fn made(&self) -> Result<Rc<OwnedFd>, PlaceError> {
        self.made.clone().ok_or_else(|| failed(b"")(Errno::ENOENT))
    }

    /// Shows the lower layer's link again where the layer has a directory over it.
    fn show_link(&mut self, path: &[u8]) -> Result<(), PlaceError> {
        let parent = self.stack.directory(parent_of(path))?;
        if let Entry::Link(_, from) = self.stack.entry(&parent, path)? {
            let to = self.directory(parent_of(path))?;
            link(&from, name_of(path), &to, name_of(path)).map_err(failed(path))?;
        }
        Ok(())
    }

    /// Links all that the layer has in `from` into `to`. Directories that are only implied have their own
    /// turn, but not where the layer's `whole` directory is wanted.
    fn take(&mut self, from: &[u8], to: &[u8], whole: bool) -> Result<(), PlaceError> {
        let mut left = vec![(from.to_vec(), to.to_vec())];
        while let Some((from, to)) = left.pop() {
            let source = open_beneath(self.layer.as_fd(), &from, DIRECTORY).map_err(failed(&from))?;
            let target = self.directory(&to)?;
            if is_opaque(source.as_fd()) {
                set_opaque(target.as_fd()).map_err(failed(&to))?;
                if !whole {
                    self.cover(&to)?;
                }
            }
            for entry in Dir::read_from(&source).map_err(failed(&from))? {
                let entry = entry.map_err(failed(&from))?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                self.stack.spend(1)?;
                let (from, to) = (join(&from, name), join(&to, name));
                let stat = fstatat(&source, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW);
                if stat.map_err(failed(&from))?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() {
                    let implied = self.implied.contains(&from);
                    if implied && (!whole || self.moved.contains_key(&from)) {
                        continue;
                    }
                    self.directory(&to)?;
                    self.stack.spend(from.len() + to.len())?;
                    if !implied {
                        self.stack.state(&to);
                        self.stated.push((from.clone(), to.clone()));
                    }
                    left.push((from, to));
                } else if whole || !is_whiteout(source.as_fd(), name) || !self.has_own(&to)? {
                    link(&source, name, &target, name).map_err(failed(&to))?;
                }
            }
        }
        Ok(())
    }

    /// An opaque directory hides lower layers, but nothing of this one.
    fn cover(&mut self, path: &[u8]) -> Result<(), PlaceError> {
        if !self.covered.insert(path.to_vec()) {
            return Ok(());
        }
        match open_beneath(self.layer.as_fd(), path, DIRECTORY) {
            Ok(_) => self.take(path, path, true),
            Err(e) if is_gone(&e) => Ok(()),
            Err(e) => Err(failed(path)(e)),
        }
    }

    /// Whether the layer itself has something at `path`, which a whiteout must not hide: a whiteout concerns
    /// lower layers only.
    fn has_own(&mut self, path: &[u8]) -> Result<bool, PlaceError> {
        let parent = match open_beneath(self.layer.as_fd(), parent_of(path), DIRECTORY) {
            Ok(parent) => parent,
            Err(e) if is_gone(&e) => return Ok(false),
            Err(e) => return Err(failed(path)(e)),
        };
        let name = name_of(path);
        let stat = match fstatat(&parent, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(false),
            Err(e) => return Err(failed(path)(e)),
        };
        if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() {
            let target = self.directory(path)?;
            set_opaque(target.as_fd()).map_err(failed(path))?;
            self.cover(path)?;
            // Nothing is left of what lower layers say of it.
            if self.implied.contains(path) {
                self.stack.state(path);
            }
            return Ok(true);
        }
        Ok(!is_whiteout(parent.as_fd(), name))
    }

    /// Opens a directory of what is made here; what is missing of it is only implied. `path` has no links.
    fn directory(&mut self, path: &[u8]) -> Result<OwnedFd, PlaceError> {
        let mut fd = self.made()?.try_clone().map_err(failed(path))?;
        for end in ends(path) {
            let path = path.get(..end).unwrap_or_default();
            let name = OsStr::from_bytes(name_of(path));
            self.stack.spend(1)?;
            let found = openat(&fd, name, DIRECTORY, Mode::empty());
            fd = match found {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                    let over_whiteout = is_whiteout(fd.as_fd(), name_of(path));
                    if found.err() != Some(Errno::ENOENT) {
                        remove(fd.as_fd(), name_of(path)).map_err(failed(path))?;
                    }
                    let mode = Mode::from_bits_truncate(0o755);
                    mkdirat(&fd, name, mode).map_err(failed(path))?;
                    fd = openat(&fd, name, DIRECTORY, Mode::empty()).map_err(failed(path))?;
                    // The umask took its part.
                    fchmod(&fd, mode).map_err(failed(path))?;
                    if over_whiteout {
                        set_opaque(fd.as_fd()).map_err(failed(path))?;
                    } else {
                        self.stack.imply(path)?;
                    }
                    fd
                }
                Err(e) => return Err(failed(path)(e)),
            };
        }
        Ok(fd)
    }

    fn finish(self) -> Result<bool, PlaceError> {
        let Some(made) = &self.made else { return Ok(false) };
        // From below, so that making things does not change times that were set.
        for (from, to) in self.stated.iter().rev() {
            let model = open_beneath(self.layer.as_fd(), from, DIRECTORY).map_err(failed(from))?;
            match open_beneath(made.as_fd(), to, DIRECTORY) {
                Ok(copied) => copy(&model, &copied).map_err(failed(to))?,
                // Something else of the layer has taken its place.
                Err(e) if is_gone(&e) => {}
                Err(e) => return Err(failed(to)(e)),
            }
        }
        Ok(true)
    }
}

/// Gives a file a second name. One that is there already stays, unless it is a whiteout.
fn link(from: &OwnedFd, name: &[u8], to: &OwnedFd, new: &[u8]) -> std::io::Result<()> {
    let (name, new_name) = (OsStr::from_bytes(name), OsStr::from_bytes(new));
    // Without AT_SYMLINK_FOLLOW a link to a symbolic link is a second name of that link.
    let made = linkat(from, name, to, new_name, AtFlags::empty());
    if made == Err(Errno::EEXIST) {
        if !is_whiteout(to.as_fd(), new) {
            return Ok(());
        }
        remove(to.as_fd(), new)?;
        return Ok(linkat(from, name, to, new_name, AtFlags::empty())?);
    }
    Ok(made?)
}

/// There is nothing, or something else than a directory.
fn is_gone(error: &std::io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP];
    gone.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
