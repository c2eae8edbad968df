//! Why a layer cannot be unpacked.

use std::{io, sync::Arc};

use crate::digest::Digest;

/// Why a layer cannot be unpacked. Cheap to clone, since several callers may wait for one layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LayerError {
    /// The compressed bytes could not be read to their end.
    #[error("reading the layer's bytes")]
    Read(#[source] Arc<io::Error>),
    /// The bytes do not decompress.
    #[error("decompressing the layer")]
    Decompress(#[source] Arc<io::Error>),
    /// The archive is not well-formed.
    #[error("layer archive, entry {entry}: {problem}")]
    Malformed {
        /// Number of the entry, the first is 1.
        entry: u64,
        /// What is wrong.
        problem: String,
    },
    /// An entry wants to be where no entry may be.
    #[error("layer archive, entry {path:?} is refused: {problem}")]
    Refused {
        /// The name in the archive, bytes that are not UTF-8 replaced.
        path: String,
        /// Why.
        problem: &'static str,
    },
    /// A bound was exceeded.
    #[error("layer has more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A file could not be made.
    #[error("unpacking {path:?}: {operation}")]
    Write {
        /// The name in the archive, bytes that are not UTF-8 replaced.
        path: String,
        /// The system call.
        operation: &'static str,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The blob's bytes are not what the manifest promised.
    #[error("layer blob has digest {actual}, the manifest says {expected}")]
    Blob {
        /// By the manifest.
        expected: Digest,
        /// Of the bytes that came.
        actual: Digest,
    },
    /// The blob's length is not what the manifest promised.
    #[error("layer blob has {actual} bytes or more, the manifest says {expected}")]
    Length {
        /// By the manifest.
        expected: u64,
        /// How many came.
        actual: u64,
    },
    /// The decompressed bytes are not what the configuration promised.
    #[error("unpacked layer has diff id {actual}, the image configuration says {expected}")]
    DiffId {
        /// By the configuration.
        expected: Digest,
        /// Of the bytes that came.
        actual: Digest,
    },
}

impl LayerError {
    /// The disk, or the quota on it, is full; not so when attributes do not fit one file.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let Self::Write { source, .. } = self else {
            return false;
        };
        is_disk_full(source)
    }
}

/// The disk, its inodes, or the quota on it are used up.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
