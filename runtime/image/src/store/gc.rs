//! What goes, and what must not.
//!
//! An image stays while it is pinned, named by the caller as in use, or under a snapshot; a layer
//! while a record or a lease (a pull at work) needs it.

use std::{collections::BTreeSet, fs::File, ops::AddAssign, path::Path, sync::PoisonError, time::Duration};

use jiff::Timestamp;

use crate::{
    digest::Digest,
    image::ImageId,
    reference::ImageRef,
    store::{
        Filesystem, InUse, Inner, StoreError,
        catalog::{Record, State},
        layers::read_layer_at,
        layout::{Layout, Staging, entries, name_of},
        snapshot,
    },
};

/// What [`Store::remove`](crate::Store::remove) did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that no longer exist: tags, and `name@digest`.
    pub untagged: Vec<ImageRef>,
    /// The image itself, when it went.
    pub deleted: Option<ImageId>,
    /// Bytes of layers and blobs that are free again.
    pub freed_bytes: u64,
}

/// Which images [`Store::gc`](crate::Store::gc) looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unneeded {
    /// All that nobody needs.
    All,
    /// Those of them that have lost their last tag: what a newer image of the same name leaves behind.
    Untagged,
}

/// What [`Store::gc`](crate::Store::gc) did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freed {
    /// Images that were removed.
    pub images: Vec<ImageId>,
    /// Unpacked layers that were removed, also those of interrupted pulls.
    pub layers: usize,
    /// Bytes of layers and blobs that are free again.
    pub bytes: u64,
}

/// Things moved out of sight; they are deleted when this is dropped, outside any lock.
#[derive(Default)]
pub(crate) struct Swept {
    layers: usize,
    bytes: u64,
    trash: Vec<Staging>,
}

impl Swept {
    /// Deletes now what was moved out of sight.
    pub(crate) fn delete(&mut self) {
        self.trash.clear();
    }
}

impl AddAssign for Swept {
    fn add_assign(&mut self, other: Self) {
        self.layers += other.layers;
        self.bytes += other.bytes;
        self.trash.extend(other.trash);
    }
}

impl Inner {
    pub(crate) fn remove(&self, reference: &ImageRef) -> Result<Removed, StoreError> {
        let found = self.catalog.read().find(reference).map(|e| e.record.id.clone());
        let Some(id) = found else { return Ok(Removed::default()) };
        self.take_names(&id, |names| {
            let mut gone = Vec::new();
            if reference.digest().is_none() {
                gone.push(reference.clone());
            }
            // The digests of a repository go with its last tag.
            let same_name = |r: &&ImageRef| r.name() == reference.name();
            let last_tag = !names.references.iter().filter(same_name).any(|r| r != reference);
            if reference.digest().is_some() || last_tag {
                gone.extend(names.repo_digests.iter().filter(same_name).cloned());
            }
            gone
        })
    }

    pub(crate) fn remove_image(&self, id: &ImageId) -> Result<Removed, StoreError> {
        self.take_names(id, |names| names.names().cloned().collect())
    }

    fn take_names(&self, id: &ImageId, choose: impl FnOnce(&Record) -> Vec<ImageRef>) -> Result<Removed, StoreError> {
        if !self.catalog.read().images.contains_key(id) {
            return Ok(Removed::default());
        }
        let layout = &self.catalog.layout;
        let (mut removed, swept) = self.catalog.change_and_sweep(|state| {
            let Some(entry) = state.images.get_mut(id) else { return Ok(Removed::default()) };
            let untagged = choose(&entry.record);
            if entry.record.names().all(|n| untagged.contains(n)) {
                if let Some((container, _)) = snapshot::users(layout)?.into_iter().find(|(_, i)| i == id) {
                    return Err(StoreError::InUse { image: id.clone(), container });
                }
                state.images.remove(id);
                return Ok(Removed { untagged, deleted: Some(id.clone()), freed_bytes: 0 });
            }
            entry.record.references.retain(|r| !untagged.contains(r));
            entry.record.repo_digests.retain(|r| !untagged.contains(r));
            Ok(Removed { untagged, ..Removed::default() })
        })?;
        removed.freed_bytes = swept.bytes;
        Ok(removed)
    }

    pub(crate) fn collect(
        &self,
        mut has_room: impl FnMut(&Filesystem) -> bool,
        min_age: Duration,
        in_use: InUse<'_>,
    ) -> Result<Freed, StoreError> {
        let layout = &self.catalog.layout;
        let now = Timestamp::now();
        {
            let state = self.catalog.read();
            self.used.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| state.images.contains_key(id));
        }
        let mut freed = Freed::default();
        // What an image gives back is known when it is gone: files share blocks, have holes, and take inodes.
        while !has_room(&self.filesystem()?) {
            let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // Also what interrupted pulls have left.
            let (oldest, mut swept) = self.catalog.change_and_sweep(|state| {
                let users = snapshot::users(layout)?;
                let wanted = state.in_use(in_use);
                let needed = |id: &ImageId| wanted.contains(id) || users.iter().any(|(_, image)| image == id);
                let last_used =
                    |record: &Record| used.get(&record.id).copied().unwrap_or(record.added_at).max(record.added_at);
                // As with a kubelet: what was used just before this process began is not known to it.
                let old = |record: &Record| {
                    let since = last_used(record).max(self.opened);
                    Duration::try_from(now.duration_since(since)).is_ok_and(|age| age >= min_age)
                };
                let records = state.images.values().map(|entry| &entry.record);
                let may_go = records.filter(|record| !record.pinned && !needed(&record.id) && old(record));
                let oldest = may_go.min_by_key(|record| last_used(record)).map(|record| record.id.clone());
                if let Some(oldest) = &oldest {
                    state.images.remove(oldest);
                }
                Ok(oldest)
            })?;
            swept.delete();
            settle(layout);
            freed.layers += swept.layers;
            freed.bytes += swept.bytes;
            let Some(oldest) = oldest else { break };
            freed.images.push(oldest);
        }
        Ok(freed)
    }

    /// A container of the image begins or ends.
    pub(crate) fn note_use(&self, image: &ImageId) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(image.clone(), Timestamp::now());
    }

    pub(crate) fn gc(&self, which: Unneeded, in_use: InUse<'_>) -> Result<Freed, StoreError> {
        let layout = &self.catalog.layout;
        let (images, swept) = self.catalog.change_and_sweep(|state| {
            let mut needed = state.in_use(in_use);
            needed.extend(snapshot::users(layout)?.into_iter().map(|(_, image)| image));
            let goes = |record: &Record| {
                let looked_at = which == Unneeded::All || record.references.is_empty();
                looked_at && !record.pinned && !needed.contains(&record.id)
            };
            let images: Vec<ImageId> =
                state.images.values().filter(|e| goes(&e.record)).map(|e| e.record.id.clone()).collect();
            state.images.retain(|id, _| !images.contains(id));
            Ok(images)
        })?;
        Ok(Freed { images, layers: swept.layers, bytes: swept.bytes })
    }
}

/// Waits until the filesystem counts as free what was deleted: btrfs and XFS do so some time after. One that cannot
/// be synced is asked all the same.
fn settle(layout: &Layout) {
    if let Err(error) = File::open(layout.root()).and_then(|root| Ok(nix::unistd::syncfs(&root)?)) {
        tracing::debug!(%error, "what was removed may not count as free yet");
    }
}

/// Moves everything that nothing needs out of sight. What cannot be moved now is met again next time. While a container
/// stands on an image that was lost, every layer stays: it is not known which are its own.
pub(crate) fn sweep(layout: &Layout, state: &State) -> Swept {
    let mut swept = Swept::default();
    if !snapshot::stands_on_lost(layout, state) {
        let layers: BTreeSet<String> = state.needed_layers().iter().map(|d| d.hex().to_owned()).collect();
        let finishes: BTreeSet<String> =
            state.images.keys().map(|id| format!("finish-{}", id.digest().hex())).collect();
        swept += sweep_layers(layout, &layout.layers(), |name| layers.contains(name) || finishes.contains(name));
        swept += sweep_layers(layout, &layout.aside(), |_| false);
    }
    // A pull writes its blobs just before its record; they stay while one is at work.
    if state.working == 0 {
        let needed = state.needed_blobs();
        swept += sweep_files(layout, &layout.blobs(), |digest| needed.contains(digest));
        let until_synced = state.until_synced();
        swept += sweep_files(layout, &layout.unsynced(), |digest| until_synced.contains(digest));
    }
    swept
}

fn sweep_layers(layout: &Layout, directory: &Path, is_needed: impl Fn(&str) -> bool) -> Swept {
    let mut swept = Swept::default();
    for path in entries(directory).unwrap_or_default() {
        let Some(name) = name_of(&path).filter(|name| !is_needed(name)) else { continue };
        let bytes = read_layer_at(&path).map_or(0, |l| l.size_bytes);
        if let Ok(Some(trash)) = layout.discard(&path) {
            swept.layers += usize::from(!name.starts_with("finish-"));
            swept.bytes += bytes;
            swept.trash.push(trash);
        }
    }
    swept
}

/// Moves blobs that nothing needs out of sight, while nothing is at work.
fn sweep_files(layout: &Layout, directory: &Path, is_needed: impl Fn(&Digest) -> bool) -> Swept {
    let mut swept = Swept::default();
    for path in entries(directory).unwrap_or_default() {
        let known = name_of(&path).and_then(|n| Digest::from_hex(n).ok());
        let bytes = std::fs::metadata(&path).map_or(0, |blob| blob.len());
        if !known.is_some_and(|digest| is_needed(&digest))
            && let Ok(Some(trash)) = layout.discard(&path)
        {
            swept.bytes += bytes;
            swept.trash.push(trash);
        }
    }
    swept
}
