//! Unpacked layers: made in staging, visible only when both digests were right.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, DirBuilder, File},
    io::BufRead,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    layer::{Expected, LayerError, Limits, unpack},
    record,
    store::{
        StoreError,
        layout::{Layout, Staging},
    },
};

/// `layer.json`, beside the layer's `fs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerFile {
    pub(crate) version: u64,
    pub(crate) size_bytes: u64,
    pub(crate) entries: u64,
    /// Directories that the layer has things in but says nothing about, as hexadecimal bytes.
    pub(crate) implied: BTreeSet<String>,
    /// The boot in which it was unpacked.
    pub(crate) boot: String,
    /// Digest of the record of its files, which lies beside them; older versions wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<Digest>,
}

/// Why a layer is not in place, or layers not together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layers make no image together.
    #[error("layers {0}")]
    Image(String),
}

impl PlaceError {
    /// The bytes that came are not what was promised, whatever this machine does with them.
    pub(crate) fn is_of_its_bytes(&self) -> bool {
        !matches!(self, Self::Layer(LayerError::Read(_) | LayerError::Write { .. }) | Self::Store(_) | Self::Image(_))
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Layer(e) => e.is_disk_full(),
            Self::Store(e) => e.is_disk_full(),
            Self::Image(_) => false,
        }
    }
}

/// Reads `layer.json`; `None` when the layer is not in place.
pub(crate) fn read_layer(layout: &Layout, diff_id: &Digest) -> Option<LayerFile> {
    read_layer_at(&layout.layer(diff_id))
}

pub(crate) fn read_layer_at(directory: &Path) -> Option<LayerFile> {
    let text = fs::read(directory.join("layer.json")).ok()?;
    serde_json::from_slice(&text).ok().filter(|l: &LayerFile| l.version == 1)
}

/// Unpacks a layer and puts it in place. Must not run on the executor.
pub(crate) fn place_blocking(
    layout: &Layout,
    input: impl BufRead,
    expected: &Expected,
    limits: &Limits,
    spare: &AtomicU64,
    boot: &str,
) -> Result<LayerFile, PlaceError> {
    let (staging, file) = stage_blocking(layout, input, expected, limits, spare, boot)?;
    staging.commit(&layout.layer(&expected.diff_id))?;
    Ok(file)
}

/// Unpacks a layer, with its record, where nobody sees it yet. Must not run on the executor.
pub(crate) fn stage_blocking(
    layout: &Layout,
    input: impl BufRead,
    expected: &Expected,
    limits: &Limits,
    spare: &AtomicU64,
    boot: &str,
) -> Result<(Staging, LayerFile), PlaceError> {
    let staging = layout.stage("layer")?;
    let fs_path = staging.path().join("fs");
    let failed = |source| StoreError::Io { operation: "creating", path: fs_path.clone(), source };
    DirBuilder::new().mode(0o755).create(&fs_path).map_err(failed)?;
    let root = File::open(&fs_path).map_err(failed)?;
    // The umask took its part; without an entry of its own the root is what a mkdir makes.
    nix::sys::stat::fchmod(&root, nix::sys::stat::Mode::from_bits_truncate(0o755)).map_err(|e| failed(e.into()))?;
    let applied = unpack(input, expected, root.as_fd(), limits, spare)?;
    let path = staging.path().join(record::FILE);
    let tree = record::Root { directory: root.as_fd(), has_record: false };
    let record = record::write(tree, applied.contents, &path);
    let record = record.map_err(|source| StoreError::Io { operation: "recording what is in", path, source })?;
    let file = LayerFile {
        version: 1,
        size_bytes: applied.bytes,
        entries: applied.entries,
        implied: applied.implied.iter().map(hex::encode).collect(),
        boot: boot.to_owned(),
        record: Some(record),
    };
    let path = staging.path().join("layer.json");
    let text = serde_json::to_vec(&file).map_err(|source| StoreError::Index { path: path.clone(), source })?;
    fs::write(&path, text).map_err(|source| StoreError::Io { operation: "writing", path, source })?;
    Ok((staging, file))
}

/// One lock per layer and source, so that a layer that several images share is fetched by one of them.
///
/// The same layer in two registries is fetched from both: a diff id is public, and whoever serves it
/// slowly must not hold up those who have it elsewhere. Both are verified, the first in place stays.
#[derive(Debug, Default)]
pub(crate) struct LayerLocks {
    locks: Mutex<HashMap<(String, Digest), Weak<LayerLock>>>,
}

type LayerLock = tokio::sync::Mutex<()>;

impl LayerLocks {
    /// `source` is a registry, or [`ARCHIVES`](crate::slots::ARCHIVES).
    pub(crate) fn of(&self, source: &str, diff_id: &Digest) -> Arc<LayerLock> {
        let key = (source.to_owned(), diff_id.clone());
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(LayerLock::new(()));
        locks.insert(key, Arc::downgrade(&lock));
        lock
    }
}
