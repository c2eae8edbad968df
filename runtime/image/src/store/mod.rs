//! The content store of one node.
//!
//! ```text
//!  <root>/                      0700, like every directory in it
//!    oci-layout                 images that are kept whole form an OCI layout, which other tools read
//!    index.json                 what images there are; versioned, replaced by rename
//!    lock                       held while the store is open
//!    blobs/sha256/<hex>         manifests and configurations as they came (and layer blobs that are kept),
//!                                and signatures of images, a document for each image that has some
//!    unsynced/<hex>             blobs of layers until these are on the disk for good
//!    layers/<diff id hex>/
//!      fs/                      the unpacked layer: a lower directory of overlays
//!      layer.json               its size, and what it only implies
//!      files.mtree              what was unpacked, with a digest of each file; see `record`
//!    layers/finish-<image id hex>/     only for images that leave entries of directories out
//!      fs/                      directories that must lie on top of all its layers
//!      <diff id hex>/           what must lie on top of that layer: its things, where lower layers' links lead
//!      files.mtree              what is in these
//!    aside/                     layers that no image has any more, while a container may stand on them
//!    snapshots/<container id>/
//!      upper/ work/ image       the writable part of one container; `image` is a link naming what it stands on
//!      shown.1 shown.2 ..       links naming the images that it shows as volumes
//!    staging/                   whatever is not finished; emptied when the store is opened
//! ```

mod again;
mod artifact;
mod catalog;
mod chunks;
mod config;
mod details;
mod error;
mod gc;
mod layers;
mod layout;
mod lists;
mod load;
mod meta;
mod open;
mod parts;
mod preload;
mod pull;
mod push;
mod redirect;
mod repair;
mod restore;
mod save;
mod snapshot;
mod sources;
mod sync;
mod trust;
mod usage;
mod verify;
mod view;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::Read,
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use nix::fcntl::Flock;
use tokio::sync::Semaphore;

use crate::{
    configuration::ImageConfig,
    credential::Credential,
    digest::Digest,
    flight::Flights,
    image::{Image, ImageId},
    progress::{Progress, ProgressSink},
    reference::ImageRef,
    registry::{Referrer, Registries},
    slots::RegistrySlots,
    trust::Refusal,
};

use catalog::{Catalog, Entry, Record};
use layers::{LayerLocks, PlaceError, read_layer};
use sync::Syncer;

pub use config::{Config, KeepBlobs};
pub use details::{Details, LayerDetails};
pub use error::{LoadError, PullError, Retry, SnapshotError, StoreError};
pub use gc::{Freed, Removed, Unneeded};
pub use preload::Preloaded;
pub use push::PushError;
pub use repair::RepairError;
pub use save::{Chosen, SaveError, Saving};
pub use snapshot::Snapshot;
pub use usage::{Filesystem, Usage};
pub use verify::{Check, Finding, Part};

/// The images of this machine. Clones share one store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

type PullKey = (ImageRef, Vec<Credential>, When);

/// When layers are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum When {
    InTheWindow,
    Now,
}

#[derive(Debug)]
struct Inner {
    /// First, so that it ends before the lock is given back.
    syncer: Syncer,
    catalog: Arc<Catalog>,
    registries: Arc<Registries>,
    downloads: RegistrySlots,
    layer_locks: LayerLocks,
    saves: Arc<Semaphore>,
    /// Blobs that were fetched again for who holds them.
    held: again::Held,
    /// The same for what is fetched for who asks alone.
    artifacts: Arc<Semaphore>,
    flights: Flights<PullKey, Progress, Result<Image, PullError>>,
    /// When containers of images began or ended, as far as this process saw it.
    used: Mutex<HashMap<ImageId, Timestamp>>,
    /// Since when this process would have seen it.
    opened: Timestamp,
    boot: String,
    config: Config,
    _lock: Flock<File>,
}

/// Says which images somebody needs, of whom the store knows nothing: asked at the moment at which others go, with what
/// tells the image that a reference means then.
pub type InUse<'a> = &'a dyn Fn(&dyn Fn(&ImageRef) -> Option<ImageId>) -> BTreeSet<ImageId>;

/// A complete image that is about to get its record.
struct NewImage {
    id: ImageId,
    manifest: Digest,
    references: BTreeSet<ImageRef>,
    repo_digests: BTreeSet<ImageRef>,
    blobs: BTreeSet<Digest>,
    until_synced: BTreeSet<Digest>,
    config: ImageConfig,
    pinned: bool,
}

impl Store {
    /// Opens the store below `config.root`, making it when it is not there. Unfinished work of a
    /// crashed predecessor is removed; records whose content is not whole are dropped.
    ///
    /// # Errors
    /// When another process has it open, when it was written by a newer version (nothing is changed
    /// then), or when the directories cannot be made.
    pub fn open(config: Config) -> Result<Self, StoreError> {
        Ok(Self { inner: Arc::new(open::open(config)?) })
    }

    /// Fetches an image that is complete when this returns. The same image asked for twice at once
    /// (with the same credentials) is fetched once; so is a layer that several images of one registry share.
    /// A registry that is slow holds up no other.
    /// `auth` are the logins that may be tried, the best match first; without a match it asks anonymously.
    ///
    /// # Errors
    /// See [`PullError`]; [`PullError::retry`] says whether asking again may help.
    ///
    /// # Cancel safety
    /// Dropping the future ends the pull when nobody else waits for it; nothing half-done stays visible.
    pub async fn pull(
        &self,
        reference: &ImageRef,
        auth: &[Credential],
        progress: Option<ProgressSink>,
    ) -> Result<Image, PullError> {
        self.pull_when(reference, auth, progress, When::InTheWindow).await
    }

    /// As [`Store::pull`], whatever time of day it is: for a person who asks.
    ///
    /// # Errors
    /// See [`PullError`].
    ///
    /// # Cancel safety
    /// As [`Store::pull`].
    pub async fn pull_now(
        &self,
        reference: &ImageRef,
        auth: &[Credential],
        progress: Option<ProgressSink>,
    ) -> Result<Image, PullError> {
        self.pull_when(reference, auth, progress, When::Now).await
    }

    async fn pull_when(
        &self,
        reference: &ImageRef,
        auth: &[Credential],
        progress: Option<ProgressSink>,
        when: When,
    ) -> Result<Image, PullError> {
        let key = (reference.clone(), auth.to_vec(), when);
        let flight = self.inner.flights.join(&key, |progress| {
            let pull = pull::Pull {
                inner: self.inner.clone(),
                reference: reference.clone(),
                when,
                progress,
                broken_off: tokio_util::sync::CancellationToken::new(),
                spare: Arc::new(self.inner.config.limits.ratio_floor_bytes.into()),
                until_synced: false.into(),
            };
            let auth = auth.to_vec();
            async move { pull.run(&auth).await }
        });
        let outcome = flight.wait(progress.as_ref()).await;
        outcome.unwrap_or_else(|| Err(PullError::Interrupted { image: reference.to_string() }))
    }

    /// Every tag of a repository, as its registry tells them; the tag or digest of the reference does not matter.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn tags(&self, repository: &ImageRef, auth: &[Credential]) -> Result<Vec<String>, PullError> {
        self.inner.tags(repository, auth).await
    }

    /// The digest that a reference means in its registry, and what refers to that there.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn referrers(
        &self,
        reference: &ImageRef,
        auth: &[Credential],
    ) -> Result<(Digest, Vec<Referrer>), PullError> {
        self.inner.referrers(reference, auth).await
    }

    /// Bytes of layers that a pull would fetch now: asks the registry for documents alone.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn bytes_to_fetch(&self, reference: &ImageRef, auth: &[Credential]) -> Result<u64, PullError> {
        self.inner.bytes_to_fetch(reference, auth).await
    }

    /// The image that a tag or digest means on this machine.
    #[must_use]
    pub fn lookup(&self, reference: &ImageRef) -> Option<Image> {
        let state = self.inner.catalog.read();
        state.find(reference).map(|entry| self.inner.catalog.image(entry))
    }

    /// The image with this id.
    #[must_use]
    pub fn image(&self, id: &ImageId) -> Option<Image> {
        let state = self.inner.catalog.read();
        state.images.get(id).map(|entry| self.inner.catalog.image(entry))
    }

    /// Whether the trust policy lets containers be made of an image that is here, under this name. Asks no registry:
    /// signatures came with the image. Blocks on the disk, for a policy file and the keys that it names.
    ///
    /// # Errors
    /// What does not hold, or why the policy cannot be used: then nothing may be.
    pub fn check_trust(&self, reference: &ImageRef, image: &Image) -> Result<(), Refusal> {
        self.inner.check_trust(reference, image)
    }

    /// What a person or a kubelet may call an image: an id (with or without `sha256:`, or a unique
    /// beginning of it, at least 4 digits), or a reference.
    #[must_use]
    pub fn resolve(&self, text: &str) -> Option<Image> {
        // A whole id means that image and no other, whatever somebody has called another one.
        if let Ok(digest) = text.parse::<Digest>() {
            return self.image(&ImageId::new(digest));
        }
        let by_name = || self.lookup(&text.parse().ok()?);
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = hex.len() >= 4 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex {
            return by_name();
        }
        // A short name may look like the beginning of an id; the name wins.
        by_name().or_else(|| {
            let state = self.inner.catalog.read();
            let mut fitting = state.images.values().filter(|e| e.record.id.digest().hex().starts_with(hex));
            match (fitting.next(), fitting.next()) {
                (Some(entry), None) => Some(self.inner.catalog.image(entry)),
                _ => None,
            }
        })
    }

    /// Every image, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        let state = self.inner.catalog.read();
        state.images.values().map(|entry| self.inner.catalog.image(entry)).collect()
    }

    /// Bytes of blobs that came from registries since the store was opened: of layers, also for archives, failed
    /// transfers and what is fetched twice too.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.inner.registries.fetched_bytes()
    }

    /// Wakes after every change of what [`Store::list`] answers.
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.inner.catalog.changes()
    }

    /// Takes a tag or a digest off its image; the image goes when nothing names it any more, and with
    /// it the layers that no other image has. An absent reference is no error. Blocks on the disk.
    ///
    /// # Errors
    /// When the image is in use by a snapshot and this is its last name, or the disk refuses.
    pub fn remove(&self, reference: &ImageRef) -> Result<Removed, StoreError> {
        self.inner.remove(reference)
    }

    /// Removes an image with all its names. An absent image is no error. Blocks on the disk.
    ///
    /// # Errors
    /// When it is in use by a snapshot, or the disk refuses.
    pub fn remove_image(&self, id: &ImageId) -> Result<Removed, StoreError> {
        self.inner.remove_image(id)
    }

    /// Reads an OCI layout or a docker-archive out of a tar stream (also compressed) into the store. What it returns has
    /// of an image's names those that the archive gave it.
    ///
    /// # Errors
    /// When the archive is neither, is damaged, or does not fit the disk.
    pub async fn load(&self, tar: impl Read + Send + 'static) -> Result<Vec<Image>, LoadError> {
        load::load(&self.inner, tar, false).await
    }

    /// Prepares an archive of images, an OCI layout and docker-archive in one. Layers that are kept only unpacked are
    /// fetched again from where their image came, for the archive alone.
    ///
    /// # Errors
    /// When an image is not here, or nobody has a layer of it any more.
    pub async fn save(&self, images: &[Chosen], auth: &[Credential]) -> Result<Saving, SaveError> {
        self.inner.save(images, auth).await
    }

    /// Fetches the files of an artifact, each by its title; nothing of it is stored.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn artifact(&self, reference: &ImageRef, auth: &[Credential]) -> Result<Saving, PullError> {
        self.inner.artifact(reference, auth).await
    }

    /// Sends an image to the registry of `name`, under its tag, and tells the digest that it has there. What the
    /// repository has already is not sent, what another one of the registry has is taken from there, and layers
    /// that are kept only unpacked are fetched again when the registry lacks them.
    ///
    /// # Errors
    /// See [`PushError`].
    pub async fn push(
        &self,
        image: &ImageId,
        name: &ImageRef,
        auth: &[Credential],
        progress: Option<ProgressSink>,
    ) -> Result<Digest, PushError> {
        self.inner.push(image, name, auth, progress).await
    }

    /// Loads every tar of the preload directory that is new or has changed, and pins its images.
    pub async fn preload(&self) -> Vec<Preloaded> {
        preload::preload(&self.inner).await
    }

    /// Makes the writable directories of a container on top of an image. Nothing is mounted. Until it is removed,
    /// neither `image` nor any of `shown`, which the container shows as volumes, can be.
    ///
    /// # Errors
    /// When the id is not a plain name, has a snapshot already, or one of the images is gone.
    pub fn snapshot(&self, container_id: &str, image: &Image, shown: &[Image]) -> Result<Snapshot, SnapshotError> {
        self.inner.snapshot(container_id, image, shown)
    }

    /// Removes the writable directories of a container; an absent snapshot is no error.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove_snapshot(&self, container_id: &str) -> Result<(), SnapshotError> {
        self.inner.remove_snapshot(container_id)
    }

    /// The ids of all snapshots.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn snapshots(&self) -> Result<BTreeSet<String>, SnapshotError> {
        self.inner.snapshots()
    }

    /// The writable directories of all snapshots; none when they cannot be listed.
    #[must_use]
    pub fn writable_parts(&self) -> Vec<PathBuf> {
        self.snapshots().unwrap_or_default().iter().map(|id| self.writable_part(id)).collect()
    }

    /// The writable directory of a snapshot, whether it is there or not.
    #[must_use]
    pub fn writable_part(&self, id: &str) -> PathBuf {
        self.inner.catalog.layout.snapshots().join(id).join("upper")
    }

    /// Checks all that is here of images: documents and kept blobs by their digests, unpacked layers by what was
    /// recorded when they were made, every entry and every byte. Tells of each part once, until it is told to stop.
    /// Blocks on the disk for as long as reading all of it takes.
    pub fn verify(&self, images: &BTreeSet<ImageId>, mut tell: impl FnMut(Check) -> ControlFlow<()>) {
        self.inner.verify(images, &mut tell);
    }

    /// Gets a part that [`Store::verify`] found damaged again, from where its images came, and puts it in its place.
    ///
    /// # Errors
    /// When a container stands on it, or nobody has it any more; what is here is then as it was.
    pub async fn repair(&self, check: &Check, auth: &[Credential]) -> Result<(), RepairError> {
        self.inner.repair(check, auth).await
    }

    /// Gives an image one more tag, which leaves the image it was on; `None` when the image is not here.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// When the name has a digest, which says what it means and cannot be given, or the disk refuses.
    pub fn tag(&self, id: &ImageId, name: &ImageRef) -> Result<Option<Image>, StoreError> {
        if name.digest().is_some() {
            return Err(StoreError::NoTag { name: name.to_string() });
        }
        self.inner.add_names(id, Some(name.clone()), None, [])
    }

    /// All that is known of an image, with its configuration as it came; `None` when it is not here. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// When its documents cannot be read.
    pub fn details(&self, id: &ImageId) -> Result<Option<Details>, StoreError> {
        self.inner.details(id)
    }

    /// Removes the images of `which` that are neither in `in_use`, nor pinned, nor under a snapshot, nor being
    /// pulled, and every layer that no image has. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk refuses; what could not be recorded as gone may be gone.
    pub fn gc(&self, which: Unneeded, in_use: InUse<'_>) -> Result<Freed, StoreError> {
        self.inner.gc(which, in_use)
    }

    /// Removes images that were not used for the longest time, one by one until the store's filesystem `has_room`: of
    /// those that [`Store::gc`] would remove only such as came, and were last used, at least `min_age` ago; what was used
    /// before the store was opened is not known, so that this counts as a use of all. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk refuses; what was removed before is gone.
    pub fn collect(
        &self,
        has_room: impl FnMut(&Filesystem) -> bool,
        min_age: Duration,
        in_use: InUse<'_>,
    ) -> Result<Freed, StoreError> {
        self.inner.collect(has_room, min_age, in_use)
    }

    /// How full the store's filesystem is.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn filesystem(&self) -> Result<Filesystem, StoreError> {
        self.inner.filesystem()
    }

    /// What the store uses, and what its filesystem has left. Reads one small file per layer. `in_use` are
    /// images that are needed besides those under snapshots and the pinned ones.
    ///
    /// # Errors
    /// When the filesystem cannot be asked.
    pub fn usage(&self, in_use: InUse<'_>) -> Result<Usage, StoreError> {
        self.inner.usage(in_use)
    }
}

impl Inner {
    /// Gives a complete image its record. Its layers are in place and leased.
    fn commit_blocking(&self, new: NewImage) -> Result<Image, PlaceError> {
        let layout = &self.catalog.layout;
        let layers = &new.config.diff_ids;
        let sizes = catalog::distinct(layers).filter_map(|l| read_layer(layout, l)).map(|l| l.size_bytes);
        let size_bytes = sizes.sum();
        let finish = meta::finish_blocking(layout, layers)?;
        let mut record = Record {
            id: new.id.clone(),
            manifest: new.manifest,
            references: new.references,
            repo_digests: new.repo_digests,
            layers: layers.clone(),
            blobs: new.blobs,
            size_bytes,
            kept_whole: None,
            finish: finish.top,
            redirected: finish.redirected,
            finish_record: finish.record,
            base: finish.base,
            root: finish.root,
            pinned: new.pinned,
            added_at: jiff::Timestamp::now(),
            unsynced_boot: Some(self.boot.clone()),
            until_synced: new.until_synced,
            signatures: None,
        };
        // From before the record is there until after it is: no sync that began earlier counts for it.
        let commit = self.syncer.commit(new.id.clone());
        let image = self.catalog.change(|state| {
            match (state.images.get(&new.id), finish.staging) {
                // Containers may stand on what an earlier commit made of the same layers.
                (Some(present), _) => {
                    record.finish = present.record.finish;
                    record.redirected = present.record.redirected.clone();
                    record.finish_record = present.record.finish_record.clone();
                }
                (None, Some(staging)) => {
                    let target = layout.finish(new.id.digest());
                    drop(layout.discard(&target)?);
                    staging.commit(&target)?;
                }
                (None, None) => {}
            }
            state.insert(Entry { record, config: new.config });
            if let Some(entry) = state.images.get_mut(&new.id) {
                entry.record.note_kept(layout);
            }
            let entry = state.images.get(&new.id);
            Ok(entry.map(|e| self.catalog.image(e)))
        })?;
        drop(commit);
        image.ok_or_else(|| {
            let source = std::io::ErrorKind::NotFound.into();
            PlaceError::Store(StoreError::Io { operation: "recording", path: layout.index(), source })
        })
    }

    /// Gives an image that is here another name; `None` when it is not here any more.
    fn add_names(
        &self,
        id: &ImageId,
        tag: Option<ImageRef>,
        pinned_to: Option<ImageRef>,
        documents: impl IntoIterator<Item = Digest>,
    ) -> Result<Option<Image>, StoreError> {
        {
            let state = self.catalog.read();
            let Some(entry) = state.images.get(id) else { return Ok(None) };
            let named = tag.iter().all(|t| entry.record.references.contains(t));
            if named && pinned_to.iter().all(|p| entry.record.repo_digests.contains(p)) {
                return Ok(Some(self.catalog.image(entry)));
            }
        }
        self.catalog.change(|state| {
            let Some(entry) = state.images.get(id) else { return Ok(None) };
            let mut entry = entry.clone();
            entry.record.references.extend(tag);
            entry.record.repo_digests.extend(pinned_to);
            entry.record.blobs.extend(documents);
            let image = self.catalog.image(&entry);
            state.insert(entry);
            Ok(Some(image))
        })
    }
}
