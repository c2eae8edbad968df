//! Directories that layers have things in but say nothing about: their mode, owner and attributes.
//!
//! A layer may hold `tmp/x` without an entry for `tmp`. Unpacked alone, it gets a `tmp` with mode
//! 0755, and in an overlay the topmost directory decides: the image would lose the 1777 that a lower
//! layer gave it. Tools that unpack all layers into one tree do not have this problem. So when an
//! image is complete, the directories concerned are made once more, as they should be, in a layer on
//! top of all (`finish-<image id>`); most images need none. Where the lower layer has a link instead of
//! a directory see `redirect`.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{DirBuilder, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::Path,
    rc::Rc,
};

use nix::{
    sys::stat::{FileStat, Mode, fchmod, fstat, futimens, mkdirat},
    unistd::{Gid, Uid, fchown},
};

use crate::{
    digest::Digest,
    layer::{DIRECTORY, is_opaque, open_beneath},
    manifest::MAX_LAYERS,
    record,
    store::{
        StoreError,
        catalog::{RootMeta, distinct},
        layers::{PlaceError, read_layer},
        layout::{Layout, Staging},
        redirect::redirect,
        view::{Stack, View, deciding, ends, failed, name_of, parent_of},
    },
};

/// What an image needs besides its layers.
pub(crate) struct Finish {
    pub(crate) root: RootMeta,
    /// To be committed as the image's `finish` directory.
    pub(crate) staging: Option<Staging>,
    /// Digest of the record of what is in it.
    pub(crate) record: Option<Digest>,
    /// It has something for the top.
    pub(crate) top: bool,
    /// Layers that it has something for to go on top of them.
    pub(crate) redirected: BTreeSet<Digest>,
    /// The lowest layer that shows, when that is not the lowest one.
    pub(crate) base: Option<Digest>,
}

/// Works out the image's root directory, and makes what must lie on its layers (lowest first).
pub(crate) fn finish_blocking(layout: &Layout, layers: &[Digest]) -> Result<Finish, PlaceError> {
    finish(layout, layers, &mut Stack::new())
}

fn finish(layout: &Layout, layers: &[Digest], stack: &mut Stack) -> Result<Finish, PlaceError> {
    let mut staging = None;
    let mut redirected = BTreeSet::new();
    let mut base = None;
    let mut order: Vec<&Digest> = distinct(layers).collect();
    order.reverse();
    for diff_id in order {
        let path = layout.layer(diff_id).join("fs");
        let root = open(&path)?;
        if is_opaque(root.as_fd()) {
            // An overlay does not ask whether a layer's root is opaque: what is below it is left out instead.
            stack.clear();
            base = Some(diff_id.clone());
        }
        let implied = read_layer(layout, diff_id).map(|l| l.implied).unwrap_or_default();
        let implied = implied.iter().filter_map(|h| hex::decode(h).ok()).collect();
        stack.push(View { root: Rc::new(root), implied: Rc::new(implied) });
        let mut make = || {
            let path = stage(layout, &mut staging)?.join(diff_id.hex());
            make_directory(&path)?;
            Ok(open(&path)?)
        };
        if redirect(stack, &mut make)? {
            redirected.insert(diff_id.clone());
        }
    }
    if stack.views().len() > MAX_LAYERS {
        return Err(PlaceError::Image(format!(
            "would be more than {MAX_LAYERS} with those that follow links of lower layers"
        )));
    }
    let root = match deciding(&stack.root()) {
        Some((fd, _)) => {
            let stat = fstat(fd).map_err(failed(b""))?;
            RootMeta { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid }
        }
        None => RootMeta { mode: 0o755, uid: 0, gid: 0 },
    };
    let implied: Vec<_> = stack.views().iter().map(|v| v.implied.clone()).collect();
    let implied: BTreeSet<&Vec<u8>> = implied.iter().flat_map(|i| i.iter()).filter(|p| !p.is_empty()).collect();
    let mut wrong = BTreeSet::new();
    for path in implied {
        if let Some((fd, true)) = deciding(&stack.directory(path)?)
            && !is_default(fd).map_err(failed(path))?
        {
            wrong.insert(path.clone());
        }
    }
    let top = !wrong.is_empty();
    if top {
        make_all(&stage(layout, &mut staging)?.join("fs"), stack, &wrong)?;
    }
    let record = staging.as_ref().map(record_of).transpose()?;
    Ok(Finish { root, staging, record, top, redirected, base })
}

fn record_of(staging: &Staging) -> Result<Digest, StoreError> {
    let path = staging.path().join(record::FILE);
    let directory = open(staging.path())?;
    let tree = record::Root { directory: directory.as_fd(), has_record: true };
    let written = record::write(tree, record::Contents::unknown(), &path);
    written.map_err(|source| StoreError::Io { operation: "recording what is in", path, source })
}

/// The directory in staging, made when it is first needed.
fn stage<'a>(layout: &Layout, staging: &'a mut Option<Staging>) -> Result<&'a Path, StoreError> {
    let made = match staging.take() {
        Some(made) => made,
        None => layout.stage("finish")?,
    };
    Ok(staging.insert(made).path())
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { operation: "creating", path: path.to_owned(), source };
    DirBuilder::new().mode(0o755).create(path).map_err(failed)
}

fn open(path: &Path) -> Result<OwnedFd, StoreError> {
    let failed = |source| StoreError::Io { operation: "opening", path: path.to_owned(), source };
    Ok(File::open(path).map_err(failed)?.into())
}

fn make_all(target: &Path, stack: &mut Stack, wrong: &BTreeSet<Vec<u8>>) -> Result<(), PlaceError> {
    make_directory(target)?;
    let root = open(target)?;
    // In order, parents come before what is in them; a parent on top counts too, so it must be right.
    let all: BTreeSet<&[u8]> = wrong.iter().flat_map(|p| ends(p).filter_map(|end| p.get(..end))).collect();
    for path in &all {
        let parent = open_beneath(root.as_fd(), parent_of(path), DIRECTORY).map_err(failed(path))?;
        let mode = Mode::from_bits_truncate(0o755);
        mkdirat(&parent, OsStr::from_bytes(name_of(path)), mode).map_err(failed(path))?;
    }
    // Then from below, so that making things does not change times that were set.
    for path in all.iter().rev() {
        let made = open_beneath(root.as_fd(), path, DIRECTORY).map_err(failed(path))?;
        match deciding(&stack.directory(path)?) {
            Some((model, _)) => copy(model, &made).map_err(failed(path))?,
            None => fchmod(&made, Mode::from_bits_truncate(0o755)).map_err(failed(path))?,
        }
    }
    Ok(())
}

/// Whether it is what an implied directory is anyway.
fn is_default(fd: &OwnedFd) -> io::Result<bool> {
    let stat = fstat(fd)?;
    Ok(stat.st_mode & 0o7777 == 0o755 && stat.st_uid == 0 && stat.st_gid == 0 && xattrs(fd)?.is_empty())
}

/// Copies all that a directory says of itself.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::{
        layer::{Expected, Limits},
        store::layers::place_blocking,
    };

    /// A layer of empty files, and of directories where a name ends with a slash.
    fn layer(layout: &Layout, names: &[&str]) -> Digest {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            let (name, target) = name.split_once("->").unwrap_or((name, ""));
            let kind = match (name.ends_with('/'), target) {
                (true, _) => tar::EntryType::Directory,
                (false, "") => tar::EntryType::Regular,
                (false, _) => tar::EntryType::Symlink,
            };
            header.set_entry_type(kind);
            header.set_mode(0o750);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(0);
            header.set_path(name).unwrap();
            if !target.is_empty() {
                header.set_link_name(target).unwrap();
            }
            header.set_cksum();
            builder.append(&header, &[][..]).unwrap();
        }
        let tar = builder.into_inner().unwrap();
        let expected = Expected { blob: None, length: tar.len() as u64, diff_id: Digest::of(&tar) };
        place_blocking(layout, &tar[..], &expected, &Limits::default(), &u64::MAX.into(), "boot").unwrap();
        expected.diff_id
    }

    fn store() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        layout.create().unwrap();
        (dir, layout)
    }

    #[test]
    fn an_image_that_has_all_its_directories_costs_nothing_more() {
        let (_dir, layout) = store();
        let base = layer(&layout, &["usr/", "usr/lib/", "usr/lib/x", "lib->usr/lib", "etc/", "etc/passwd"]);
        // Most tools leave the root out, and no other directory.
        let layers: Vec<Digest> = (0..20)
            .map(|n| layer(&layout, &["etc/", &format!("etc/{n}"), "usr/", "usr/lib/", &format!("usr/lib/{n}")]))
            .collect();
        let mut stack = Stack::new();
        let before = stack.left();
        let done = finish(&layout, &[vec![base.clone()], layers].concat(), &mut stack).unwrap();
        assert_eq!(stack.left(), before);
        assert!(done.staging.is_none() && !done.top && done.redirected.is_empty());
        // The lowest layer has nothing to ask for what it leaves out.
        let alone = layer(&layout, &["a/b/c/d/e"]);
        let done = finish(&layout, &[alone], &mut Stack::bounded(20)).unwrap();
        assert!(done.staging.is_none());
        // A few names for each directory that is left out, in those layers alone that have its parent.
        let upper = layer(&layout, &["lib/y", "etc/z"]);
        let mut stack = Stack::new();
        let done = finish(&layout, &[base, upper.clone()], &mut stack).unwrap();
        assert_eq!(done.redirected, BTreeSet::from([upper]));
        assert!(before - stack.left() < 100, "{}", before - stack.left());
    }

    #[test]
    fn layers_that_take_too_many_steps_are_refused() {
        let (_dir, layout) = store();
        let base = layer(&layout, &["a->b"]);
        let names: Vec<String> = (0..200).map(|n| format!("a/{n}")).collect();
        let upper = layer(&layout, &names.iter().map(String::as_str).collect::<Vec<_>>());
        let layers = [base, upper];
        let refused = finish(&layout, &layers, &mut Stack::bounded(100));
        assert!(matches!(&refused, Err(e @ PlaceError::Image(_)) if e.to_string().contains("steps")));
        drop(refused);
        assert_eq!(std::fs::read_dir(layout.staging()).unwrap().count(), 0);
        finish(&layout, &layers, &mut Stack::new()).unwrap();
    }

    #[test]
    fn more_layers_than_an_overlay_takes_are_refused() {
        let (_dir, layout) = store();
        let mut layers = vec![layer(&layout, &["a->b"])];
        layers.extend((0..MAX_LAYERS - 2).map(|n| layer(&layout, &[&format!("{n}")])));
        layers.push(layer(&layout, &["a/x"]));
        let refused = finish(&layout, &layers, &mut Stack::new());
        assert!(matches!(&refused, Err(e @ PlaceError::Image(_)) if e.to_string().contains("499")));
        layers.remove(1);
        assert_eq!(finish(&layout, &layers, &mut Stack::new()).unwrap().redirected.len(), 1);
    }
}
