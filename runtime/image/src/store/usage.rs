//! What the store takes on its disk, and how much of that could go.

use std::{collections::BTreeSet, fs};

use crate::{
    digest::Digest,
    image::ImageId,
    store::{Inner, StoreError, layers::read_layer, snapshot},
};

/// What the store uses, and what its filesystem has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: u64,
    /// Those of them that are kept whatever a collection takes: in use, or pinned.
    pub images_needed: u64,
    /// Unpacked layers.
    pub layers: u64,
    /// Bytes of all unpacked layers.
    pub layer_bytes: u64,
    /// Bytes of the layers that no needed image has.
    pub reclaimable_bytes: u64,
    /// Blobs: manifests, configurations, and the layers that are kept as they came.
    pub blobs: u64,
    /// Bytes of all blobs.
    pub blob_bytes: u64,
    /// Size of the filesystem in bytes.
    pub capacity_bytes: u64,
    /// Bytes that are free on it for us.
    pub available_bytes: u64,
    /// Inodes of the filesystem.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

impl Inner {
    /// Reads one small file per layer.
    pub(crate) fn usage(&self, in_use: &BTreeSet<ImageId>) -> Result<Usage, StoreError> {
        let layout = &self.catalog.layout;
        let failed = |operation| move |source| StoreError::Io { operation, path: layout.root().to_owned(), source };
        let stat =
            nix::sys::statvfs::statvfs(layout.root()).map_err(|e| failed("asking the filesystem of")(e.into()))?;
        let under: BTreeSet<ImageId> = snapshot::users(layout)?.into_iter().map(|(_, image)| image).collect();
        let (mut layers, mut needed_layers) = (BTreeSet::new(), BTreeSet::<Digest>::new());
        let (mut images, mut images_needed) = (0, 0);
        for (id, entry) in &self.catalog.read().images {
            images += 1;
            layers.extend(entry.record.layers.iter().cloned());
            if entry.record.pinned || in_use.contains(id) || under.contains(id) {
                images_needed += 1;
                needed_layers.extend(entry.record.layers.iter().cloned());
            }
        }
        let mut usage = Usage {
            images,
            images_needed,
            layers: layers.len() as u64,
            capacity_bytes: stat.blocks() * stat.fragment_size(),
            available_bytes: stat.blocks_available() * stat.fragment_size(),
            inodes: stat.files(),
            inodes_free: stat.files_available(),
            ..Usage::default()
        };
        for layer in &layers {
            let bytes = read_layer(layout, layer).map_or(0, |layer| layer.size_bytes);
            usage.layer_bytes += bytes;
            usage.reclaimable_bytes += if needed_layers.contains(layer) { 0 } else { bytes };
        }
        for blob in fs::read_dir(layout.blobs()).map_err(failed("listing the blobs of"))? {
            // One that was collected meanwhile is none.
            if let Ok(metadata) = blob.and_then(|blob| blob.metadata()) {
                usage.blobs += 1;
                usage.blob_bytes += metadata.len();
            }
        }
        Ok(usage)
    }
}
