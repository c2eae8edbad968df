//! What the store takes on its disk, and how much of that could go.

use std::{collections::BTreeSet, fs, io};

use crate::{
    digest::Digest,
    image::ImageId,
    store::{InUse, Inner, StoreError, layers::read_layer, snapshot},
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
    /// The filesystem of all that.
    pub filesystem: Filesystem,
}

/// What a filesystem has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes that are free on it for us.
    pub available_bytes: u64,
    /// Its inodes; 0 where it makes them as they are needed.
    pub inodes: u64,
    /// Those that are free.
    pub inodes_free: u64,
}

impl Filesystem {
    /// How full it is, of bytes or of inodes, whichever is more, in whole percent, rounded up.
    #[must_use]
    pub fn used_percent(&self) -> u64 {
        let used = |all: u64, free: u64| {
            let free = u128::from(free.min(all)) * 100;
            100 - u64::try_from(free.checked_div(u128::from(all)).unwrap_or(100)).unwrap_or(100)
        };
        used(self.capacity_bytes, self.available_bytes).max(used(self.inodes, self.inodes_free))
    }
}

impl Inner {
    /// Asks the filesystem of the store.
    pub(crate) fn filesystem(&self) -> Result<Filesystem, StoreError> {
        let root = self.catalog.layout.root();
        let failed = |error: nix::errno::Errno| StoreError::Io {
            operation: "asking the filesystem of",
            path: root.to_owned(),
            source: error.into(),
        };
        let stat = nix::sys::statvfs::statvfs(root).map_err(failed)?;
        Ok(Filesystem {
            capacity_bytes: stat.blocks() * stat.fragment_size(),
            available_bytes: stat.blocks_available() * stat.fragment_size(),
            inodes: stat.files(),
            inodes_free: stat.files_available(),
        })
    }

    /// Reads one small file per layer.
    pub(crate) fn usage(&self, in_use: InUse<'_>) -> Result<Usage, StoreError> {
        let layout = &self.catalog.layout;
        let failed =
            |source| StoreError::Io { operation: "listing the blobs of", path: layout.root().to_owned(), source };
        let under: BTreeSet<ImageId> = snapshot::users(layout)?.into_iter().map(|(_, image)| image).collect();
        let (mut layers, mut needed_layers) = (BTreeSet::new(), BTreeSet::<Digest>::new());
        let (mut images, mut images_needed) = (0, 0);
        let state = self.catalog.read();
        let in_use = state.in_use(in_use);
        for (id, entry) in &state.images {
            images += 1;
            layers.extend(entry.record.layers.iter().cloned());
            if entry.record.pinned || in_use.contains(id) || under.contains(id) {
                images_needed += 1;
                needed_layers.extend(entry.record.layers.iter().cloned());
            }
        }
        drop(state);
        let mut usage = Usage {
            images,
            images_needed,
            layers: layers.len() as u64,
            filesystem: self.filesystem()?,
            ..Usage::default()
        };
        for layer in &layers {
            let bytes = read_layer(layout, layer).map_or(0, |layer| layer.size_bytes);
            usage.layer_bytes += bytes;
            usage.reclaimable_bytes += if needed_layers.contains(layer) { 0 } else { bytes };
        }
        // Somebody may have removed the directory of what is not synced: the next pull makes it again.
        let unsynced = match fs::read_dir(layout.unsynced()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(failed)?),
        };
        for blob in fs::read_dir(layout.blobs()).map_err(failed)?.chain(unsynced.into_iter().flatten()) {
            // One that was collected meanwhile is none.
            if let Ok(metadata) = blob.and_then(|blob| blob.metadata()) {
                usage.blobs += 1;
                usage.blob_bytes += metadata.len();
            }
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_full_it_is_counts_bytes_and_inodes() {
        for (capacity, available, inodes, inodes_free, percent) in [
            (1000, 1000, 0, 0, 0),
            (1000, 151, 0, 0, 85),
            (1000, 150, 10, 10, 85),
            (1000, 200, 10, 10, 80),
            (1000, 199, 10, 10, 81),
            (1000, 0, 0, 0, 100),
            (1000, 900, 100, 10, 90),
            (0, 0, 0, 0, 0),
            (u64::MAX, 1, 0, 0, 100),
        ] {
            let filesystem = Filesystem { capacity_bytes: capacity, available_bytes: available, inodes, inodes_free };
            assert_eq!(filesystem.used_percent(), percent, "{filesystem:?}");
        }
    }
}
