//! The writable part of containers.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::{
    sys::stat::{Mode, fchmod},
    unistd::{Gid, Uid, fchown},
};

use portreeve_sys::tree;

use crate::{
    digest::Digest,
    image::{Image, ImageId},
    store::{
        Inner, SnapshotError, StoreError,
        catalog::{RootMeta, State},
        layout::{Layout, entries, name_of},
    },
};

/// Where a container's root filesystem is: the parts of one overlay mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Read-only layers, topmost first; an image without layers has one empty directory.
    pub lower: Vec<PathBuf>,
    /// The writable directory; its own mode and owner are those of the image's root directory.
    pub upper: PathBuf,
    /// Overlayfs' own directory, on the same filesystem.
    pub work: PathBuf,
    /// A directory in which nothing is.
    pub empty: PathBuf,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { operation, path, source }
}

fn directory_of(layout: &Layout, id: &str) -> Result<PathBuf, SnapshotError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(SnapshotError::Name { id: id.chars().take(300).collect() });
    }
    Ok(layout.snapshots().join(id))
}

impl Inner {
    pub(crate) fn snapshot(&self, id: &str, image: &Image, shown: &[Image]) -> Result<Snapshot, SnapshotError> {
        let layout = &self.catalog.layout;
        let path = directory_of(layout, id)?;
        // Held until the links below tell the collector that the images are in use.
        let state = self.catalog.read();
        let find = |image: &Image| {
            state.images.get(&image.id).ok_or_else(|| SnapshotError::ImageGone { image: image.id.clone() })
        };
        let entry = find(image)?;
        for image in shown {
            find(image)?;
        }
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(SnapshotError::Exists { id: id.to_owned() });
            }
            other => other.map_err(failed("creating", &path))?,
        }
        let made = fill(&path, image, entry.record.root, shown);
        if made.is_err() {
            // What could not be made is no snapshot; the first error is the one that matters.
            let _incomplete = tree::remove(&path);
        }
        made?;
        for image in std::iter::once(image).chain(shown) {
            self.note_use(&image.id);
        }
        let empty = path.join("empty");
        let mut lower = self.catalog.image(entry).layers;
        if lower.is_empty() {
            lower.push(empty.clone());
        }
        Ok(Snapshot { lower, upper: path.join("upper"), work: path.join("work"), empty })
    }

    pub(crate) fn remove_snapshot(&self, id: &str) -> Result<(), SnapshotError> {
        let layout = &self.catalog.layout;
        let path = directory_of(layout, id)?;
        for image in images_under(&path) {
            self.note_use(&image);
        }
        // Out of sight first: half a snapshot is never seen.
        let Some(trash) = layout.discard(&path).map_err(|e| match e {
            StoreError::Io { operation, path, source } => SnapshotError::Io { operation, path, source },
            other => SnapshotError::Io { operation: "removing", path, source: io::Error::other(other) },
        })?
        else {
            return Ok(());
        };
        tree::remove(trash.path()).map_err(failed("removing", trash.path()))
    }

    pub(crate) fn snapshots(&self) -> Result<BTreeSet<String>, SnapshotError> {
        let directory = self.catalog.layout.snapshots();
        let found = entries(&directory).map_err(|e| match e {
            StoreError::Io { operation, path, source } => SnapshotError::Io { operation, path, source },
            other => SnapshotError::Io { operation: "reading", path: directory, source: io::Error::other(other) },
        })?;
        Ok(found.iter().filter_map(|p| name_of(p)).map(str::to_owned).collect())
    }
}

fn fill(path: &Path, image: &Image, root: RootMeta, shown: &[Image]) -> Result<(), SnapshotError> {
    let make = |name: &str, mode: u32| {
        let path = path.join(name);
        DirBuilder::new().mode(mode).create(&path).map_err(failed("creating", &path))?;
        Ok(path)
    };
    for (number, image) in std::iter::once(image).chain(shown).enumerate() {
        let link = link(path, number);
        std::os::unix::fs::symlink(image.id.digest().hex(), &link).map_err(failed("creating", &link))?;
    }
    make("work", 0o700)?;
    make("empty", 0o755)?;
    // In an overlay the topmost directory decides, so the upper one stands for the image's root.
    let upper = make("upper", 0o700)?;
    let set = File::open(&upper).and_then(|upper| {
        fchown(&upper, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid)))?;
        Ok(fchmod(&upper, Mode::from_bits_truncate(root.mode))?)
    });
    set.map_err(failed("creating", &upper))
}

/// Names an image of a snapshot: the one that the container stands on, then those that it shows as volumes.
fn link(snapshot: &Path, number: usize) -> PathBuf {
    match number {
        0 => snapshot.join("image"),
        shown => snapshot.join(format!("shown.{shown}")),
    }
}

fn images_under(snapshot: &Path) -> impl Iterator<Item = ImageId> {
    (0..).map_while(|number| {
        let image = fs::read_link(link(snapshot, number)).ok()?;
        Some(ImageId::new(Digest::from_hex(image.to_str()?).ok()?))
    })
}

/// Whether a container stands on an image that is not in `state`: its record was lost, and so it is not known which layers
/// the container needs.
pub(crate) fn stands_on_lost(layout: &Layout, state: &State) -> bool {
    // Who cannot tell has to be careful.
    users(layout).map_or(true, |users| users.iter().any(|(_, image)| !state.images.contains_key(image)))
}

/// Which container needs which image, as its root or as a volume. What cannot be read counts for nothing: it is no
/// snapshot.
pub(crate) fn users(layout: &Layout) -> Result<Vec<(String, ImageId)>, StoreError> {
    let mut found = Vec::new();
    for path in entries(&layout.snapshots())? {
        if let Some(container) = name_of(&path) {
            found.extend(images_under(&path).map(|image| (container.to_owned(), image)));
        }
    }
    Ok(found)
}
