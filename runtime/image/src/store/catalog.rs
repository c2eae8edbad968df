//! Which images there are: in memory for questions, in `index.json` for the next start.
//!
//! **Invariant:** a record is in the index only while every layer it names is in place; layers go
//! only under the catalog's write lock, after every record, lease and snapshot was asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    configuration::ImageConfig,
    digest::Digest,
    image::{Image, ImageId},
    manifest::{self, Descriptor, Document, OCI_INDEX},
    reference::ImageRef,
    store::{
        InUse, StoreError,
        gc::{Swept, sweep},
        layout::Layout,
    },
};

/// The format that this program writes; it refuses newer ones.
pub(crate) const VERSION: u64 = 1;

/// `index.json`: an OCI image index of the images that are here as their registry has them, and beside that all that
/// this program knows. Source: OCI image-spec `image-layout.md`, `image-index.md`, which lets others pass over the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct IndexFile {
    #[serde(default, rename = "schemaVersion")]
    schema_version: u64,
    #[serde(default, rename = "mediaType")]
    media_type: String,
    #[serde(default)]
    manifests: Vec<serde_json::Value>,
    pub(crate) version: u64,
    pub(crate) images: Vec<Record>,
    /// Files of the preload directory that were loaded, and what they looked like then.
    #[serde(default)]
    pub(crate) preloaded: BTreeMap<PathBuf, Preload>,
}

/// What identifies a file of the preload directory, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Preload {
    pub(crate) size: u64,
    pub(crate) modified_ns: i128,
    pub(crate) inode: u64,
    pub(crate) images: BTreeSet<ImageId>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: ImageId,
    pub(crate) manifest: Digest,
    /// Tags.
    pub(crate) references: BTreeSet<ImageRef>,
    /// `name@digest`.
    pub(crate) repo_digests: BTreeSet<ImageRef>,
    /// Diff ids, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// Blobs that are kept for it besides its configuration: manifests, indexes, layers.
    pub(crate) blobs: BTreeSet<Digest>,
    pub(crate) size_bytes: u64,
    /// Its manifest as an index names it, when its configuration and every layer of it are here, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept_whole: Option<Descriptor>,
    /// There is a `finish-<id>/fs` directory to go on top of the layers.
    pub(crate) finish: bool,
    /// Layers that have a `finish-<id>/<diff id>` directory to go on top of them; see `redirect`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) redirected: BTreeSet<Digest>,
    /// Digest of the record of that directory; older versions wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) finish_record: Option<Digest>,
    /// The lowest layer that shows, when that is not the lowest one: its root is opaque.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<Digest>,
    pub(crate) root: RootMeta,
    pub(crate) pinned: bool,
    pub(crate) added_at: jiff::Timestamp,
    /// The boot in which it was written, until the kernel has put all of it on the disk.
    pub(crate) unsynced_boot: Option<String>,
    /// Blobs of its layers that are kept until then, where the disk had room for them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) until_synced: BTreeSet<Digest>,
    /// The blob with the signatures that came with it; see `trust`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signatures: Option<Digest>,
}

/// Mode and owner of the image's root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootMeta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A record with its configuration at hand.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) config: ImageConfig,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<ImageId, Entry>,
    pub(crate) preloaded: BTreeMap<PathBuf, Preload>,
    /// Layers that a pull has, or is about to have, in place without a record yet.
    pub(crate) leases: BTreeMap<Digest, usize>,
    /// Pulls and loads at work.
    pub(crate) working: usize,
}

/// What a change of the state that cannot be written down goes back to.
type Before = (BTreeMap<ImageId, Entry>, BTreeMap<PathBuf, Preload>);

/// The images of this store.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) layout: Layout,
    state: RwLock<State>,
    /// Writers come one after the other, while readers go on with what is in memory.
    writer: Mutex<()>,
    /// Told after every change of the images.
    changed: watch::Sender<()>,
}

impl Catalog {
    pub(crate) fn new(layout: Layout, state: State) -> Self {
        Self { layout, state: RwLock::new(state), writer: Mutex::new(()), changed: watch::Sender::new(()) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then the index. When the index cannot be written nothing has changed.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let _one_at_a_time = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (result, before, file) = self.try_out(change)?;
        self.put_down(&file, before).map(|()| result)
    }

    /// Changes the state, then the index, and takes away what nothing needs then. What is taken away is in no index, so
    /// that a power cut leaves no image without its layers. When the index cannot be written nothing has changed, except
    /// on a full disk: room has to be made before it, and images whose layers made it are gone.
    pub(crate) fn change_and_sweep<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, StoreError>,
    ) -> Result<(T, Swept), StoreError> {
        let _one_at_a_time = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (result, before, file) = self.try_out(change)?;
        let mut swept = Swept::default();
        if let Err(error) = self.write_index(&file) {
            if error.is_disk_full() {
                swept = sweep(&self.layout, &self.write());
                swept.delete();
            }
            self.put_down(&file, before)?;
        } else {
            self.tell(&before);
        }
        swept += sweep(&self.layout, &self.write());
        Ok((result, swept))
    }

    /// The state is changed; what is undone when it cannot be written down, and what is to be written.
    fn try_out<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, StoreError>,
    ) -> Result<(T, Before, IndexFile), StoreError> {
        let mut state = self.write();
        let before = (state.images.clone(), state.preloaded.clone());
        let result = change(&mut state)?;
        Ok((result, before, state.to_file()))
    }

    fn put_down(&self, file: &IndexFile, before: Before) -> Result<(), StoreError> {
        let written = self.write_index(file);
        if written.is_ok() {
            self.tell(&before);
        } else {
            let mut state = self.write();
            (state.images, state.preloaded) = before;
            // What made room on a full disk does not come back: an image without it is none.
            state.images.retain(|_, entry| entry.record.is_in_place(&self.layout));
            drop(state);
            // What was visible for a moment is not any more.
            self.changed.send_replace(());
        }
        written
    }

    /// Wakes those who look, when something is another than before: whoever removes images when they change would
    /// otherwise wake itself for ever.
    fn tell(&self, (images, _): &Before) {
        let before = images.values().map(|entry| &entry.record);
        let changed = !before.eq(self.read().images.values().map(|entry| &entry.record));
        if changed {
            self.changed.send_replace(());
        }
    }

    /// Wakes after every change of the images.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn write_index(&self, file: &IndexFile) -> Result<(), StoreError> {
        let path = self.layout.index();
        let text =
            serde_json::to_vec_pretty(file).map_err(|source| StoreError::Index { path: path.clone(), source })?;
        self.layout.write(&path, &text, true)
    }

    /// Keeps layers, and all blobs, from being collected until the lease is dropped.
    pub(crate) fn lease(self: &Arc<Self>, layers: &[Digest]) -> Lease {
        let mut state = self.write();
        state.working += 1;
        for layer in layers {
            *state.leases.entry(layer.clone()).or_insert(0) += 1;
        }
        Lease { catalog: self.clone(), layers: layers.to_vec() }
    }

    pub(crate) fn image(&self, entry: &Entry) -> Image {
        let Entry { record, config } = entry;
        let mut layers = Vec::with_capacity(record.layers.len() + record.redirected.len() + 1);
        if record.finish {
            layers.push(self.layout.finish(record.id.digest()).join("fs"));
        }
        for layer in distinct(&record.layers) {
            if record.redirected.contains(layer) {
                layers.push(self.layout.redirected(record.id.digest(), layer));
            }
            layers.push(self.layout.layer(layer).join("fs"));
            if record.base.as_ref() == Some(layer) {
                break;
            }
        }
        Image {
            id: record.id.clone(),
            references: record.references.iter().cloned().collect(),
            repo_digests: record.repo_digests.iter().map(ToString::to_string).collect(),
            size_bytes: record.size_bytes,
            config: config.parsed.clone(),
            layers,
            created: config.created,
            added_at: record.added_at,
            pinned: record.pinned,
        }
    }
}

impl State {
    fn to_file(&self) -> IndexFile {
        let records = self.images.values().map(|entry| &entry.record);
        IndexFile {
            schema_version: 2,
            media_type: OCI_INDEX.to_owned(),
            manifests: records.flat_map(Record::as_manifests).collect(),
            version: VERSION,
            images: self.images.values().map(|e| e.record.clone()).collect(),
            preloaded: self.preloaded.clone(),
        }
    }

    /// The image that a reference means: its digest if it has one, else its tag.
    pub(crate) fn find(&self, reference: &ImageRef) -> Option<&Entry> {
        self.images.values().find(|entry| match reference.digest() {
            None => entry.record.references.contains(reference),
            Some(digest) => {
                entry.record.repo_digests.contains(&reference.with_digest(digest.clone()))
                    || entry.record.manifest == *digest && entry.record.names().any(|r| r.name() == reference.name())
            }
        })
    }

    /// Adds an image, or what is new about one that is here; its tags leave the images they were on.
    pub(crate) fn insert(&mut self, mut entry: Entry) {
        for other in self.images.values_mut().filter(|o| o.record.id != entry.record.id) {
            other.record.references.retain(|r| !entry.record.references.contains(r));
        }
        if let Some(present) = self.images.get(&entry.record.id) {
            let old = &present.record;
            entry.record.references.extend(old.references.iter().cloned());
            entry.record.repo_digests.extend(old.repo_digests.iter().cloned());
            entry.record.blobs.extend(old.blobs.iter().cloned());
            entry.record.until_synced.extend(old.until_synced.iter().cloned());
            entry.record.pinned |= old.pinned;
            entry.record.added_at = old.added_at;
            entry.record.signatures = entry.record.signatures.or_else(|| old.signatures.clone());
        }
        self.images.insert(entry.record.id.clone(), entry);
    }

    /// The images that somebody needs who is asked now.
    pub(crate) fn in_use(&self, asked: InUse<'_>) -> BTreeSet<ImageId> {
        asked(&|reference| self.find(reference).map(|entry| entry.record.id.clone()))
    }

    /// Layers that a record or a lease needs.
    pub(crate) fn needed_layers(&self) -> BTreeSet<Digest> {
        let recorded = self.images.values().flat_map(|e| e.record.layers.iter());
        recorded.chain(self.leases.keys()).cloned().collect()
    }

    /// Blobs that are kept for a record until that is on the disk for good.
    pub(crate) fn until_synced(&self) -> BTreeSet<&Digest> {
        self.images.values().flat_map(|e| &e.record.until_synced).collect()
    }

    /// Blobs that a record needs.
    pub(crate) fn needed_blobs(&self) -> BTreeSet<Digest> {
        self.images
            .values()
            .flat_map(|e| {
                e.record.blobs.iter().chain([e.record.id.digest(), &e.record.manifest]).chain(&e.record.signatures)
            })
            .cloned()
            .collect()
    }
}

impl IndexFile {
    /// That of a store in which nothing is yet.
    pub(crate) fn empty() -> Self {
        Self { version: VERSION, ..State::default().to_file() }
    }
}

impl Record {
    /// What an index has of it: a line for each tag, or one without a name.
    fn as_manifests(&self) -> Vec<serde_json::Value> {
        let Some(manifest) = &self.kept_whole else { return Vec::new() };
        if self.references.is_empty() {
            return vec![json!(manifest)];
        }
        let Descriptor { media_type, digest, size, .. } = manifest;
        let named = self.references.iter().map(|name| {
            json!({ "mediaType": media_type, "digest": digest, "size": size, "annotations": {
                "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name,
            } })
        });
        named.collect()
    }

    /// Says whether it is here as its registry has it.
    pub(crate) fn note_kept(&mut self, layout: &Layout) {
        let is_kept = |blob: &Descriptor| {
            (self.blobs.contains(&blob.digest) || blob.digest == *self.id.digest())
                && std::fs::metadata(layout.blob(&blob.digest)).is_ok_and(|file| file.len() == blob.size)
        };
        let bytes = std::fs::read(layout.blob(&self.manifest)).unwrap_or_default();
        self.kept_whole = match manifest::parse(&bytes, None) {
            Ok(Document::Manifest(parsed)) if parsed.layers.iter().chain([&parsed.config]).all(is_kept) => {
                let (digest, size) = (self.manifest.clone(), bytes.len() as u64);
                Some(Descriptor::new(manifest::media_type_of(&bytes), digest, size))
            }
            _ => None,
        };
    }
    /// Its layers, and what lies on top of them, are where they should be.
    fn is_in_place(&self, layout: &Layout) -> bool {
        let finished = !self.is_finished() || layout.finish(self.id.digest()).is_dir();
        finished && self.layers.iter().all(|layer| layout.layer(layer).is_dir())
    }

    /// It has a `finish-<id>` directory.
    pub(crate) fn is_finished(&self) -> bool {
        self.finish || !self.redirected.is_empty()
    }

    /// Everything it is called.
    pub(crate) fn names(&self) -> impl Iterator<Item = &ImageRef> {
        self.references.iter().chain(&self.repo_digests)
    }
}

/// An image's layers topmost first, each once: overlayfs takes no directory twice, and the topmost of
/// equal layers shadows, and hides, all that the lower ones do. `layers` are lowest first.
pub(crate) fn distinct(layers: &[Digest]) -> impl Iterator<Item = &Digest> {
    let mut seen = BTreeSet::new();
    layers.iter().rev().filter(move |l| seen.insert(*l))
}

/// Keeps layers from being collected while a pull has no record for them yet.
#[derive(Debug)]
pub(crate) struct Lease {
    catalog: Arc<Catalog>,
    layers: Vec<Digest>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.catalog.write();
        state.working -= 1;
        for layer in &self.layers {
            if let Some(count) = state.leases.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(layer);
                }
            }
        }
    }
}
