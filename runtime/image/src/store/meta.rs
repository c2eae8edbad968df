//! Directories that layers have things in but say nothing about.
//!
//! A layer may hold `tmp/x` without an entry for `tmp`. Unpacked alone, it gets a `tmp` with mode
//! 0755, and in an overlay the topmost directory decides: the image would lose the 1777 that a lower
//! layer gave it. Tools that unpack all layers into one tree do not have this problem. So when an
//! image is complete, the directories concerned are made once more, as they should be, in a layer on
//! top of all (`finish-<image id>`); most images need none.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, futimens, mkdirat},
    unistd::{Gid, Uid, fchown},
};

use crate::{
    digest::Digest,
    layer::is_opaque,
    store::{
        StoreError,
        catalog::{RootMeta, distinct},
        layers::read_layer,
        layout::{Layout, Staging},
    },
};

/// A layer's directory and what it only implies.
struct View {
    root: OwnedFd,
    implied: BTreeSet<Vec<u8>>,
}

enum Found {
    /// The layer says nothing here.
    Nothing,
    /// It hides what lower layers have here.
    Hidden,
    /// It has a directory here; the flag says that lower layers do not show through.
    Directory(OwnedFd, bool),
}

/// What an image needs besides its layers.
pub(crate) struct Finish {
    pub(crate) root: RootMeta,
    /// To be committed as the image's `finish` directory.
    pub(crate) staging: Option<Staging>,
}

/// Works out the image's root directory, and makes what must lie on top of its layers (lowest first).
pub(crate) fn finish_blocking(layout: &Layout, layers: &[Digest]) -> Result<Finish, StoreError> {
    let mut views = Vec::new();
    for diff_id in distinct(layers) {
        let path = layout.layer(diff_id).join("fs");
        let failed = |source| StoreError::Io { operation: "opening", path: path.clone(), source };
        let root = File::open(&path).map_err(failed)?.into();
        let implied = read_layer(layout, diff_id).map(|l| l.implied).unwrap_or_default();
        views.push(View { root, implied: implied.iter().filter_map(|h| hex::decode(h).ok()).collect() });
    }
    let failed = |source| StoreError::Io { operation: "reading", path: layout.layers(), source };
    let root = match deciding(&views, &[]).map_err(failed)?.0 {
        Some(fd) => {
            let stat = fstat(&fd).map_err(|e| failed(e.into()))?;
            RootMeta { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }
        }
        None => RootMeta { mode: 0o755, uid: 0, gid: 0 },
    };
    let implied: BTreeSet<&Vec<u8>> = views.iter().flat_map(|v| &v.implied).filter(|p| !p.is_empty()).collect();
    let mut wrong = BTreeMap::new();
    for path in implied {
        if let (Some(fd), true) = deciding(&views, path).map_err(failed)?
            && !is_default(&fd).map_err(failed)?
        {
            wrong.insert(path.clone(), fd);
        }
    }
    if wrong.is_empty() {
        return Ok(Finish { root, staging: None });
    }
    let staging = layout.stage("finish")?;
    let made = make_all(&staging.path().join("fs"), &views, &wrong);
    made.map_err(|source| StoreError::Io { operation: "completing", path: staging.path().to_owned(), source })?;
    Ok(Finish { root, staging: Some(staging) })
}

/// The directory whose mode and owner should count at `path`, and whether a higher layer that only
/// implies it stands in the way. `views` are topmost first.
fn deciding(views: &[View], path: &[u8]) -> io::Result<(Option<OwnedFd>, bool)> {
    let mut in_the_way = false;
    for view in views {
        match find(view.root.as_fd(), path)? {
            Found::Nothing => {}
            Found::Hidden => return Ok((None, false)),
            Found::Directory(fd, _) if !view.implied.contains(path) => return Ok((Some(fd), in_the_way)),
            Found::Directory(_, true) => return Ok((None, false)),
            Found::Directory(_, false) => in_the_way = true,
        }
    }
    Ok((None, false))
}

fn find(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<Found> {
    let mut directory = root.try_clone_to_owned()?;
    let mut opaque = false;
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
        let name = OsStr::from_bytes(name);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&directory, name, flags, Mode::empty()) {
            Ok(fd) => directory = fd,
            Err(Errno::ENOENT) if opaque => return Ok(Found::Hidden),
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            // Anything that is no directory hides the directories below it, a whiteout above all.
            Err(e) => {
                fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|_| io::Error::from(e))?;
                return Ok(Found::Hidden);
            }
        }
        opaque |= is_opaque(directory.as_fd());
    }
    Ok(Found::Directory(directory, opaque))
}

/// Whether it is what an implied directory is anyway.
fn is_default(fd: &OwnedFd) -> io::Result<bool> {
    let stat = fstat(fd)?;
    Ok(stat.st_mode & 0o7777 == 0o755 && stat.st_uid == 0 && stat.st_gid == 0 && xattrs(fd)?.is_empty())
}

fn make_all(target: &Path, views: &[View], wrong: &BTreeMap<Vec<u8>, OwnedFd>) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(target)?;
    let root: OwnedFd = File::open(target)?.into();
    // In order, parents come before what is in them; a parent on top counts too, so it must be right.
    let mut all: BTreeSet<&[u8]> = BTreeSet::new();
    for path in wrong.keys() {
        all.extend(path.iter().enumerate().filter(|(_, b)| **b == b'/').filter_map(|(i, _)| path.get(..i)));
        all.insert(path);
    }
    for path in &all {
        let Found::Directory(parent, _) = find(root.as_fd(), parent_of(path))? else { continue };
        let name = OsStr::from_bytes(path.rsplit(|b| *b == b'/').next().unwrap_or_default());
        mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
    }
    // Then from below, so that making things does not change times that were set.
    for path in all.iter().rev() {
        let Found::Directory(made, _) = find(root.as_fd(), path)? else { continue };
        match deciding(views, path)?.0 {
            Some(model) => copy(&model, &made)?,
            None => fchmod(&made, Mode::from_bits_truncate(0o755))?,
        }
    }
    Ok(())
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').and_then(|slash| path.get(..slash)).unwrap_or_default()
}

fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat: FileStat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    for name in xattrs(from)? {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(from, OsStr::from_bytes(&name), &mut value[..])?;
        value.truncate(length);
        rustix::fs::fsetxattr(to, OsStr::from_bytes(&name), &value, rustix::fs::XattrFlags::empty())?;
    }
    let time = nix::sys::time::TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    futimens(to, &time, &time)?;
    Ok(())
}

/// Names of its extended attributes, without overlayfs' own.
fn xattrs(fd: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(fd, &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    list.truncate(length);
    let ours = |n: &&[u8]| !n.is_empty() && !n.starts_with(b"trusted.overlay.") && !n.starts_with(b"security.selinux");
    Ok(list.split(|b| *b == 0).filter(ours).map(<[u8]>::to_vec).collect())
}
