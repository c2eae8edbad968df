//! An image as the store knows it.

use std::{fmt, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::{digest::Digest, reference::ImageRef};

/// The identity of an image: the digest of its configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    /// The id of the image whose configuration has this digest.
    #[must_use]
    pub fn new(config: Digest) -> Self {
        Self(config)
    }

    /// The digest of the configuration.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An image that is complete on this machine: every layer is unpacked and was verified.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of the configuration.
    pub id: ImageId,
    /// Tags that point at it now, in order; after a pull those of the name that was asked for come first.
    pub references: Vec<ImageRef>,
    /// `registry/repository@sha256:...`, in the same order: the digests that it was pulled by.
    pub repo_digests: Vec<String>,
    /// Bytes of its unpacked layers on disk; layers shared with other images count in each.
    pub size_bytes: u64,
    /// What to run in it, and how: platform, user, variables, entrypoint, command, volumes, working
    /// directory and stop signal. Labels, history and the rest are only in the blob.
    pub config: Arc<ImageConfiguration>,
    /// The `fs` directories of its layers, topmost first: the lower directories of an overlay.
    pub layers: Vec<PathBuf>,
    /// When it was built, by its own word.
    pub created: Option<Timestamp>,
    /// When it came into the store.
    pub added_at: Timestamp,
    /// A pinned image (a preloaded one) is never garbage.
    pub pinned: bool,
}
