//! What can go wrong in the store, and what to do about it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    digest::Digest, hosts::HostsError, image::ImageId, layer::LayerError, registry::RegistryError, trust::Refusal,
    window::DownloadWindow,
};

/// Whether asking again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The cause may pass by itself: a network, a registry, a full disk.
    Later,
    /// Only when somebody changes something: a name, a credential, the image itself. It is still worth
    /// asking again from time to time, since the change may be made elsewhere.
    AfterChange,
}

/// Why a pull failed. Cheap to clone, since several callers may wait for one pull.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The registry does not have it.
    #[error("image {image} does not exist in its registry, or needs a login to be seen")]
    NotFound {
        /// The reference.
        image: String,
    },
    /// The registry refuses without, or with these, credentials.
    #[error("registry refuses access to {image}: {detail}")]
    Unauthorized {
        /// The reference.
        image: String,
        /// Which login was tried.
        detail: String,
    },
    /// The registry cannot be reached.
    #[error("connecting to registry {registry}: {cause}")]
    CannotConnect {
        /// Host and port.
        registry: String,
        /// In a few words: refused, timed out, no such host, certificate.
        cause: String,
        /// The whole story.
        #[source]
        source: RegistryError,
    },
    /// The registry answered something that does not help.
    #[error("asking registry {registry} for {what}")]
    Registry {
        /// Host and port.
        registry: String,
        /// What was asked for.
        what: String,
        /// What came instead.
        #[source]
        source: RegistryError,
    },
    /// None of the hosts has it that the registry's configuration names.
    #[error("no host has image {image}: {tried}")]
    Nowhere {
        /// The reference.
        image: String,
        /// Each host in order, and why it has not.
        tried: String,
        /// What the last one said, the registry itself.
        last: Box<PullError>,
    },
    /// The configuration of the registry's hosts does not let it be asked.
    #[error("finding the hosts of registry {registry}")]
    Hosts {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: HostsError,
    },
    /// The trust policy does not let it be used.
    #[error(transparent)]
    Untrusted(Refusal),
    /// The image is not for this machine.
    #[error("image {image} has nothing for {wanted}, only for {offered}")]
    Platform {
        /// The reference.
        image: String,
        /// This machine.
        wanted: String,
        /// What the index lists.
        offered: String,
    },
    /// Content is not what its digest says.
    #[error("{what} of {image} has digest {actual} instead of {expected}: it was damaged or changed")]
    DigestMismatch {
        /// The reference.
        image: String,
        /// Manifest, configuration or layer.
        what: String,
        /// By the document that refers to it.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// Manifest or configuration make no sense.
    #[error("{what} of image {image}: {problem}")]
    Invalid {
        /// The reference.
        image: String,
        /// Manifest, index or configuration.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A layer cannot be unpacked.
    #[error("layer {digest} of image {image}")]
    Layer {
        /// The reference.
        image: String,
        /// The layer's blob.
        digest: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// No space left.
    #[error("disk of {path} is full while pulling {image}")]
    DiskFull {
        /// The reference.
        image: String,
        /// The store.
        path: PathBuf,
    },
    /// The store's own directory refuses.
    #[error("storing image {image}")]
    Store {
        /// The reference.
        image: String,
        /// Why.
        #[source]
        source: Arc<StoreError>,
    },
    /// Layers are not to be fetched at this time of day.
    #[error("layers of {image} are fetched from {window} alone, in {}", in_words(*wait))]
    OutsideWindow {
        /// The reference.
        image: String,
        /// When they are.
        window: DownloadWindow,
        /// Until it opens.
        wait: Duration,
    },
    /// The pull was given up, because the program ends.
    #[error("pull of {image} was interrupted")]
    Interrupted {
        /// The reference.
        image: String,
    },
}

/// Why an archive cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be opened.
    #[error("opening {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The outer archive is damaged.
    #[error("reading the image archive; wanted is a tar as `docker save` and `podman save` write it")]
    Archive(#[source] LayerError),
    /// There is neither an `index.json` nor a `manifest.json` in it.
    #[error(
        "archive is neither an OCI layout (index.json) nor a docker-archive (manifest.json, as `docker save` writes it)"
    )]
    NotAnImage,
    /// A document in it makes no sense.
    #[error("{what} in the image archive: {problem}")]
    Invalid {
        /// Which document.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// It has nothing for this machine.
    #[error("image archive has nothing for {wanted}, only for {offered}")]
    Platform {
        /// This machine.
        wanted: String,
        /// What it has.
        offered: String,
    },
    /// A layer cannot be unpacked.
    #[error("layer {layer} in the image archive")]
    Layer {
        /// Digest or file name.
        layer: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// No space left.
    #[error("disk of {path} is full while loading an image")]
    DiskFull {
        /// The store.
        path: PathBuf,
    },
    /// The store's own directory refuses.
    #[error("storing a loaded image")]
    Store(#[source] StoreError),
}

/// Why the store itself cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A directory or file of the store refuses.
    #[error("{operation} {path}")]
    Io {
        /// What was tried: "creating", "reading", ...
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("image store {root} is in use by another process")]
    Locked {
        /// The store.
        root: PathBuf,
    },
    /// A newer program wrote it; nothing was changed.
    #[error(
        "image store {root} was written by a newer version (format {found}, this one knows {known}); \
         use that version, or another --root"
    )]
    Newer {
        /// The store.
        root: PathBuf,
        /// Format on disk.
        found: u64,
        /// Newest format known here.
        known: u64,
    },
    /// The index is not readable; nothing was changed.
    #[error("image index {path} is damaged; move it away to start with an empty one")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A certificate file cannot be used.
    #[error("certificate authority file {path}: {problem}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The registry client cannot be made.
    #[error("setting up the registry client")]
    Client(#[source] RegistryError),
    /// A name with a digest says itself which image it means.
    #[error("{name} has a digest: an image is tagged with a name and a tag")]
    NoTag {
        /// The name.
        name: String,
    },
    /// The image is under a container.
    #[error("image {image} is in use by container {container}")]
    InUse {
        /// The image.
        image: ImageId,
        /// One container that stands on it.
        container: String,
    },
}

/// Why a snapshot cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The id must be usable as one file name.
    #[error("container id {id:?} is not a plain name (letters, digits, '_', '.', '-')")]
    Name {
        /// What was given.
        id: String,
    },
    /// There is one already.
    #[error("container {id} has a snapshot already")]
    Exists {
        /// The container.
        id: String,
    },
    /// The image was removed meanwhile.
    #[error("image {image} is no longer in the store")]
    ImageGone {
        /// The image.
        image: ImageId,
    },
    /// The disk refuses.
    #[error("{operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Hours and minutes, which begin when they are told.
fn in_words(wait: Duration) -> String {
    let minutes = wait.as_secs().div_ceil(60);
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

impl StoreError {
    /// The disk, or the quota on it, is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if crate::layer::is_disk_full(source))
    }
}

impl PullError {
    /// Whether asking again may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            // An answer that breaks the protocol or its bounds does so the next time, too.
            Self::Registry { source: RegistryError::TooLong { .. } | RegistryError::Protocol { .. }, .. } => {
                Retry::AfterChange
            }
            Self::CannotConnect { .. }
            | Self::Registry { .. }
            | Self::DiskFull { .. }
            | Self::Store { .. }
            | Self::OutsideWindow { .. }
            | Self::Interrupted { .. } => Retry::Later,
            // Bytes damaged on their way come right the next time; those damaged in the registry do not.
            Self::DigestMismatch { .. } => Retry::Later,
            Self::Layer { source: LayerError::Read(_), .. } => Retry::Later,
            // A mirror may be back before the registry is.
            Self::Nowhere { .. } => Retry::Later,
            Self::NotFound { .. }
            | Self::Hosts { .. }
            | Self::Unauthorized { .. }
            | Self::Untrusted(_)
            | Self::Platform { .. }
            | Self::Invalid { .. }
            | Self::Layer { .. } => Retry::AfterChange,
        }
    }

    /// How long the registry asks to be left alone before it is asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Nowhere { last, .. } => last.retry_after(),
            Self::OutsideWindow { wait, .. } => Some(*wait),
            Self::Registry { source: RegistryError::Status { retry_after, .. }, .. } => {
                retry_after.map(|seconds| Duration::from_secs(seconds.into()))
            }
            _ => None,
        }
    }

    /// What a person can do about it, in one sentence.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "check the name and tag, or push the image, or give a login for a private one",
            Self::Unauthorized { .. } => {
                "give a valid login in imagePullSecrets, and check that it may read this repository"
            }
            Self::CannotConnect { .. } => {
                "check the registry's address, that it runs, and for plain HTTP that it is listed as insecure"
            }
            Self::Registry { source: RegistryError::Status { status: 429, .. }, .. } => {
                "wait: the registry limits how much is pulled, often less for those who log in"
            }
            Self::Registry { .. } => "look at the registry's own log",
            Self::Nowhere { last, .. } => last.advice(),
            Self::Hosts { .. } => "mend that file; it is read anew for each pull",
            Self::Untrusted(_) => "sign the image as that rule wants, or change the policy; it is read anew each time",
            Self::Platform { .. } => "build or choose an image for this machine's architecture",
            Self::DigestMismatch { .. } => "push the image again; the registry's copy or the way to it is damaged",
            Self::Invalid { .. } => "build the image again with a current tool",
            Self::Layer { source: LayerError::Read(_), .. } => "check the network to the registry",
            Self::Layer { .. } => "build the image again; this layer cannot be unpacked",
            Self::DiskFull { .. } => "free space on the image store's disk, or move it with --root",
            Self::Store { .. } => "look at the image store's directory and its disk",
            Self::OutsideWindow { .. } => "wait, or fetch it now with `portreeve image pull --now`",
            Self::Interrupted { .. } => "ask again",
        }
    }
}
