//! All that the store knows of one image, for a person who asks.

use std::fs;

use crate::{
    digest::Digest,
    image::{Image, ImageId},
    manifest::{self, Document},
    store::{Inner, StoreError, layers::read_layer},
};

/// All that the store knows of one image.
#[derive(Debug, Clone)]
pub struct Details {
    /// What a container needs of it.
    pub image: Image,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its configuration as it came: a JSON document with labels and history, too.
    pub configuration: Vec<u8>,
    /// Its layers, lowest first.
    pub layers: Vec<LayerDetails>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDetails {
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of its files, on disk.
    pub size_bytes: u64,
    /// Digest of what a registry has.
    pub blob: Digest,
    /// Bytes of what a registry has.
    pub blob_bytes: u64,
    /// What a registry has is here as well.
    pub kept: bool,
}

impl Inner {
    /// `None` for an image that is not here. Blocks on the disk.
    pub(crate) fn details(&self, id: &ImageId) -> Result<Option<Details>, StoreError> {
        let layout = &self.catalog.layout;
        // Under the lock of readers, so that no collector takes the documents away meanwhile.
        let state = self.catalog.read();
        let Some(entry) = state.images.get(id) else { return Ok(None) };
        let read = |digest: &Digest| {
            let path = layout.blob(digest);
            fs::read(&path).map_err(|source| StoreError::Io { operation: "reading", path, source })
        };
        let configuration = read(id.digest())?;
        let document = read(&entry.record.manifest)?;
        let blobs = match manifest::parse(&document, None) {
            Ok(Document::Manifest(manifest)) if manifest.layers.len() == entry.record.layers.len() => manifest.layers,
            _ => {
                let source = std::io::Error::other("it is damaged; remove the image and pull it again");
                let path = layout.blob(&entry.record.manifest);
                return Err(StoreError::Io { operation: "reading", path, source });
            }
        };
        let layers = entry.record.layers.iter().zip(blobs).map(|(diff_id, blob)| LayerDetails {
            diff_id: diff_id.clone(),
            size_bytes: read_layer(layout, diff_id).map_or(0, |layer| layer.size_bytes),
            kept: entry.record.blobs.contains(&blob.digest),
            blob: blob.digest,
            blob_bytes: blob.size,
        });
        Ok(Some(Details {
            image: self.catalog.image(entry),
            manifest: entry.record.manifest.clone(),
            configuration,
            layers: layers.collect(),
        }))
    }
}
