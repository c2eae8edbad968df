//! The content store of one node.
//!
//! ```text
//!  <root>/                      0700, like every directory in it
//!    index.json                 what images there are; versioned, replaced by rename
//!    lock                       held while the store is open
//!    blobs/sha256/<hex>         manifests and configurations as they came (and layer blobs that are kept)
//!    layers/<diff id hex>/
//!      fs/                      the unpacked layer: a lower directory of overlays
//!      layer.json               its size, and what it says about directories it does not contain
//!    snapshots/<container id>/
//!      upper/ work/ image       the writable part of one container; `image` is a link naming what it stands on
//!    staging/                   whatever is not finished; emptied when the store is opened
//! ```

mod config;
mod error;

use std::{collections::BTreeSet, io::Read, path::PathBuf, sync::Arc};

use crate::{
    credential::Credential,
    digest::Digest,
    image::{Image, ImageId},
    progress::ProgressSink,
    reference::ImageRef,
};

pub use config::{Config, KeepBlobs};
pub use error::{LoadError, PullError, Retry, SnapshotError, StoreError};

/// The images of this machine. Clones share one store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {}

/// Where a container's root filesystem is: the parts of one overlay mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable directory; its own mode and owner are those of the image's root directory.
    pub upper: PathBuf,
    /// Overlayfs' own directory, on the same filesystem.
    pub work: PathBuf,
}

/// What [`Store::remove`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// References that no longer exist.
    pub untagged: Vec<ImageRef>,
    /// The image itself, when it went.
    pub deleted: Option<ImageId>,
    /// Bytes that are free again.
    pub freed_bytes: u64,
}

/// What [`Store::gc`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// Images that were removed.
    pub images: Vec<ImageId>,
    /// Unpacked layers that were removed, also those of interrupted pulls.
    pub layers: usize,
    /// Bytes that are free again.
    pub bytes: u64,
}

/// One file of the preload directory.
#[derive(Debug)]
pub struct Preloaded {
    /// The tar file.
    pub file: PathBuf,
    /// Its images, pinned; or why there are none.
    pub result: Result<Vec<Image>, LoadError>,
}

/// What the store uses, and what its filesystem has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all unpacked layers.
    pub layer_bytes: u64,
    /// Size of the filesystem in bytes.
    pub capacity_bytes: u64,
    /// Bytes that are free on it for us.
    pub available_bytes: u64,
    /// Inodes of the filesystem.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

impl Store {
    /// Opens the store below `config.root`, making it when it is not there. Unfinished work of a
    /// crashed predecessor is removed; records whose content is not whole are dropped.
    ///
    /// # Errors
    /// When another process has it open, when it was written by a newer version (nothing is changed
    /// then), or when the directories cannot be made.
    pub fn open(_config: Config) -> Result<Self, StoreError> {
        Ok(Self {
            inner: Arc::new(Inner {}),
        })
    }

    /// Fetches an image that is complete when this returns. The same image asked for twice at once
    /// (with the same credentials) is fetched once; a layer that several images share is fetched once.
    /// `auth` are the logins that may be tried, the best match first; without a match it asks anonymously.
    ///
    /// # Errors
    /// See [`PullError`]; [`PullError::retry`] says whether asking again may help.
    ///
    /// # Cancel safety
    /// Dropping the future ends the pull when nobody else waits for it; nothing half-done stays visible.
    pub async fn pull(
        &self,
        reference: &ImageRef,
        _auth: &[Credential],
        _progress: Option<ProgressSink>,
    ) -> Result<Image, PullError> {
        Err(PullError::NotFound {
            image: reference.to_string(),
        })
    }

    /// The image that a tag or digest means on this machine.
    #[must_use]
    pub fn lookup(&self, _reference: &ImageRef) -> Option<Image> {
        let _ = &self.inner;
        None
    }

    /// The image with this id.
    #[must_use]
    pub fn image(&self, _id: &ImageId) -> Option<Image> {
        None
    }

    /// What a person or a kubelet may call an image: an id (with or without `sha256:`, or a unique
    /// beginning of it, at least 4 digits), or a reference.
    #[must_use]
    pub fn resolve(&self, _text: &str) -> Option<Image> {
        None
    }

    /// Every image, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        Vec::new()
    }

    /// Takes a tag or a digest off its image; the image goes when nothing names it any more, and with
    /// it the layers that no other image has. An absent reference is no error.
    ///
    /// # Errors
    /// When the image is in use by a snapshot and this is its last name, or the disk refuses.
    pub fn remove(&self, _reference: &ImageRef) -> Result<Removed, StoreError> {
        Ok(Removed::default())
    }

    /// Removes an image with all its names. An absent image is no error.
    ///
    /// # Errors
    /// When it is in use by a snapshot, or the disk refuses.
    pub fn remove_image(&self, _id: &ImageId) -> Result<Removed, StoreError> {
        Ok(Removed::default())
    }

    /// Reads an OCI layout or a docker-archive out of a tar stream (also compressed) into the store.
    ///
    /// # Errors
    /// When the archive is neither, is damaged, or does not fit the disk.
    pub async fn load(&self, _tar: impl Read + Send + 'static) -> Result<Vec<Image>, LoadError> {
        Ok(Vec::new())
    }

    /// Loads every tar of the preload directory that is new or has changed, and pins its images.
    pub async fn preload(&self) -> Vec<Preloaded> {
        Vec::new()
    }

    /// Makes the writable directories of a container on top of an image. Nothing is mounted.
    ///
    /// # Errors
    /// When the id is not a plain name, has a snapshot already, or the image is gone.
    pub fn snapshot(&self, _container_id: &str, image: &Image) -> Result<Snapshot, SnapshotError> {
        Err(SnapshotError::ImageGone {
            image: image.id.clone(),
        })
    }

    /// Removes the writable directories of a container; an absent snapshot is no error.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove_snapshot(&self, _container_id: &str) -> Result<(), SnapshotError> {
        Ok(())
    }

    /// The ids of all snapshots.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn snapshots(&self) -> Result<BTreeSet<String>, SnapshotError> {
        Ok(BTreeSet::new())
    }

    /// Removes every image that is neither in `in_use`, nor pinned, nor under a snapshot, nor being
    /// pulled, and every layer that no image has.
    pub fn gc(&self, _in_use: &BTreeSet<ImageId>) -> Freed {
        Freed::default()
    }

    /// What the store uses, and what its filesystem has left.
    ///
    /// # Errors
    /// When the filesystem cannot be asked.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        Ok(Usage::default())
    }
}

#[allow(dead_code)]
fn unused(_: Digest) {}
