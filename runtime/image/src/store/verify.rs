//! Whether what is here still is what was fetched and unpacked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    ops::ControlFlow,
    os::fd::AsFd,
    path::Path,
};

use crate::{
    digest::{Digest, Hashed},
    image::ImageId,
    record::{self, Damage},
    store::{
        Inner,
        catalog::{Record, distinct},
        layers::{LayerFile, read_layer},
        layout::Layout,
    },
};

/// What can be checked by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A document, or a layer as its registry has it.
    Blob(Digest),
    /// An unpacked layer, by its diff id.
    Layer(Digest),
    /// Directories that an image has on top of its layers.
    Top(ImageId),
}

/// How a part was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// As it should be; so many bytes of content were read for that.
    Whole(u64),
    /// Not as it should be.
    Damaged(Damage),
    /// An older version unpacked it, and wrote no digests.
    Unrecorded,
}

/// A part that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub part: Part,
    /// Whose.
    pub images: BTreeSet<ImageId>,
    /// How it was found.
    pub finding: Finding,
}

impl Inner {
    /// Checks each part of these images once, and tells of each, until it is told to stop. Reads everything.
    pub(crate) fn verify(&self, images: &BTreeSet<ImageId>, tell: &mut dyn FnMut(Check) -> ControlFlow<()>) {
        let records: Vec<Record> = {
            let state = self.catalog.read();
            images.iter().filter_map(|id| state.images.get(id)).map(|entry| entry.record.clone()).collect()
        };
        let mut parts: BTreeMap<Part, Vec<&Record>> = BTreeMap::new();
        for record in &records {
            let blobs = record.blobs.iter().chain([record.id.digest(), &record.manifest]).chain(&record.signatures);
            let blobs = blobs.cloned().map(Part::Blob);
            let layers = distinct(&record.layers).cloned().map(Part::Layer);
            let top = record.is_finished().then(|| Part::Top(record.id.clone()));
            for part in blobs.chain(layers).chain(top).collect::<BTreeSet<_>>() {
                parts.entry(part).or_default().push(record);
            }
        }
        for (part, records) in parts {
            let finding = self.finding(&part, &records);
            let images: BTreeSet<ImageId> = {
                let state = self.catalog.read();
                records.iter().map(|r| &r.id).filter(|id| state.images.contains_key(*id)).cloned().collect()
            };
            // What belongs to a removed image may be gone.
            if !images.is_empty() && tell(Check { part, images, finding }).is_break() {
                break;
            }
        }
    }

    fn finding(&self, part: &Part, records: &[&Record]) -> Finding {
        let layout = &self.catalog.layout;
        match part {
            Part::Blob(digest) => blob(&layout.blob(digest), digest),
            Part::Layer(diff_id) => match read_layer(layout, diff_id) {
                None => damaged("layer.json", "is missing or damaged"),
                Some(LayerFile { record: None, .. }) => Finding::Unrecorded,
                Some(LayerFile { record: Some(digest), size_bytes, .. }) => {
                    let layer = layout.layer(diff_id);
                    tree(&layer.join("fs"), &layer.join(record::FILE), &digest, size_bytes)
                }
            },
            Part::Top(image) => match records.first().and_then(|record| record.finish_record.as_ref()) {
                None => Finding::Unrecorded,
                Some(digest) => top(layout, image, digest),
            },
        }
    }
}

fn top(layout: &Layout, image: &ImageId, digest: &Digest) -> Finding {
    tree(&layout.finish(image.digest()), &layout.finish_record(image.digest()), digest, 0)
}

fn tree(directory: &Path, record: &Path, digest: &Digest, bytes: u64) -> Finding {
    let compared = (|| {
        let root = File::open(directory)?;
        let has_record = record.parent() == Some(directory);
        record::verify(record::Root { directory: root.as_fd(), has_record }, File::open(record)?, digest)
    })();
    match compared {
        Ok(Damage { count: 0, .. }) => Finding::Whole(bytes),
        Ok(damage) => Finding::Damaged(damage),
        Err(error) => damaged("", error.to_string()),
    }
}

/// Whether the file has what its digest says.
pub(super) fn blob(path: &Path, digest: &Digest) -> Finding {
    let read = File::open(path).and_then(|file| Hashed::new(file).finish());
    match read {
        Ok((actual, length)) if actual == *digest => Finding::Whole(length),
        Ok((actual, length)) => damaged("", format!("has {length} bytes with digest {actual}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => damaged("", "is missing"),
        Err(error) => damaged("", format!("cannot be read: {error}")),
    }
}

fn damaged(path: &str, problem: impl Into<String>) -> Finding {
    let mut damage = Damage::default();
    damage.add(path.as_bytes(), problem);
    Finding::Damaged(damage)
}
