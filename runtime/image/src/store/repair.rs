//! Makes damaged parts of the store whole again, from where their images came.
//!
//! **Invariant:** what is damaged stays until what replaces it is complete and verified, and a directory that a
//! container stands on is never exchanged under it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::BufReader,
    sync::Arc,
};

use crate::{
    credential::Credential,
    digest::Digest,
    image::ImageId,
    layer::Expected,
    store::{
        Inner, PullError, SaveError, StoreError,
        catalog::{Record, State},
        layers::{PlaceError, stage_blocking},
        layout::Staging,
        meta::finish_blocking,
        pull::Pull,
        save::Documents,
        snapshot,
        verify::{Check, Part},
    },
};

/// Why a damaged part cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Containers would lose what they run on.
    #[error("container {container} stands on it: remove its pod, and repair then")]
    InUse {
        /// One such container.
        container: String,
    },
    /// No image that needs it is here any more.
    #[error("its image was removed")]
    Gone,
    /// Its bytes could not be had again.
    #[error("getting it again")]
    Content(#[from] SaveError),
    /// A document could not be had again; without a cause it is not known where the image came from.
    #[error("getting document {digest} again")]
    Document {
        /// Which.
        digest: Digest,
        /// Why.
        source: Option<Box<PullError>>,
    },
    /// What was got does not unpack to what was here.
    #[error("unpacking it again")]
    Unpack(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store's own directory refuses.
    #[error("replacing it")]
    Store(#[from] StoreError),
    /// The program ends.
    #[error("the repair was interrupted")]
    Interrupted,
}

impl Inner {
    /// Gets a damaged part again, and puts it in its place.
    pub(crate) async fn repair(self: &Arc<Self>, check: &Check, auth: &[Credential]) -> Result<(), RepairError> {
        let _at_work = self.catalog.lease(&[]);
        let records: Vec<Record> = {
            let state = self.catalog.read();
            check.images.iter().filter_map(|id| state.images.get(id)).map(|entry| entry.record.clone()).collect()
        };
        let mut refused = RepairError::Gone;
        for record in &records {
            let repaired = match &check.part {
                Part::Blob(digest) => self.repair_blob(record, digest, auth).await,
                Part::Layer(diff_id) => self.repair_layer(record, diff_id, auth).await,
                Part::Top(image) => self.repair_top(record, image).await,
            };
            match repaired {
                Err(error) => refused = error,
                done => return done,
            }
        }
        Err(refused)
    }

    async fn repair_blob(
        self: &Arc<Self>,
        record: &Record,
        digest: &Digest,
        auth: &[Credential],
    ) -> Result<(), RepairError> {
        let target = self.catalog.layout.blob(digest);
        if record.signatures.as_ref() == Some(digest) {
            // They are asked for when the policy wants some again, and count as none until then.
            return Ok(self.forget_signatures(&record.id)?);
        }
        if let Ok(documents) = self.documents(&record.id)
            && let Some(layer) = documents.parsed.layers.iter().find(|layer| layer.digest == *digest)
        {
            let fetched = self.fetch_again(&record.id, &documents, vec![layer.clone()], auth).await?;
            let again = fetched.first().ok_or(RepairError::Gone)?;
            let staging = self.catalog.layout.stage("repair")?;
            let path = staging.path().join("blob");
            // Others may hold what was fetched.
            let replaced = fs::hard_link(again.path(), &path)
                .and_then(|()| File::open(&path)?.sync_all())
                .and_then(|()| fs::rename(&path, &target));
            return Ok(replaced.map_err(|source| StoreError::Io { operation: "replacing", path: target, source })?);
        }
        let bytes = self.document_again(record, digest, auth).await?;
        let inner = self.clone();
        let written = tokio::task::spawn_blocking(move || inner.catalog.layout.write(&target, &bytes, true)).await;
        Ok(written.map_err(|_| RepairError::Interrupted)??)
    }

    /// Asks the repositories that an image came from for one of its documents.
    async fn document_again(
        self: &Arc<Self>,
        record: &Record,
        digest: &Digest,
        auth: &[Credential],
    ) -> Result<Vec<u8>, RepairError> {
        let mut refused = None;
        for source in &record.repo_digests {
            // By the digest that the repository is known to have: an index leads to the manifest.
            let pull = Pull::at_once(self, source.clone());
            match pull.document_by_digest(digest, auth).await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {}
                Err(error) => refused = refused.or(Some(Box::new(error))),
            }
        }
        Err(RepairError::Document { digest: digest.clone(), source: refused })
    }

    async fn repair_layer(
        self: &Arc<Self>,
        record: &Record,
        diff_id: &Digest,
        auth: &[Credential],
    ) -> Result<(), RepairError> {
        // Asked again when it is exchanged; nothing need be fetched in vain.
        let sharing = sharing(&self.catalog.read(), &Part::Layer(diff_id.clone()));
        self.refuse_in_use(&sharing)?;
        let documents = self.documents(&record.id)?;
        let blob = layer_blob(record, &documents, diff_id).ok_or(RepairError::Gone)?.clone();
        let (files, fetched) = self.files_of(&record.id, &documents, &[&blob], auth).await?;
        let path = files.get(&blob.digest).cloned().ok_or(RepairError::Gone)?;
        let expected = Expected { blob: Some(blob.digest.clone()), length: blob.size, diff_id: diff_id.clone() };
        let inner = self.clone();
        self.blocking_repair(move || {
            let _fetched = fetched;
            let failed = |source| StoreError::Io { operation: "reading", path: path.clone(), source };
            let input = BufReader::with_capacity(1 << 18, File::open(&path).map_err(failed)?);
            let (layout, limits) = (&inner.catalog.layout, &inner.config.limits);
            let spare = limits.ratio_floor_bytes.into();
            let (staging, _) =
                stage_blocking(layout, input, &expected, limits, &spare, &inner.boot).map_err(unpack_error)?;
            inner.exchange(staging, &Part::Layer(expected.diff_id.clone()), |_| {})
        })
        .await
    }

    async fn repair_top(self: &Arc<Self>, record: &Record, image: &ImageId) -> Result<(), RepairError> {
        self.refuse_in_use(&BTreeSet::from([image.clone()]))?;
        let (inner, image, layers) = (self.clone(), image.clone(), record.layers.clone());
        self.blocking_repair(move || {
            let finish = finish_blocking(&inner.catalog.layout, &layers).map_err(unpack_error)?;
            let Some(staging) = finish.staging else {
                return Err(RepairError::Unpack("its layers need nothing on top of them any more".into()));
            };
            inner.exchange(staging, &Part::Top(image.clone()), move |state| {
                if let Some(entry) = state.images.get_mut(&image) {
                    entry.record.finish = finish.top;
                    entry.record.redirected = finish.redirected;
                    entry.record.finish_record = finish.record;
                }
            })
        })
        .await
    }

    async fn blocking_repair(
        &self,
        work: impl FnOnce() -> Result<(), RepairError> + Send + 'static,
    ) -> Result<(), RepairError> {
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(RepairError::Interrupted))
    }

    fn refuse_in_use(&self, images: &BTreeSet<ImageId>) -> Result<(), RepairError> {
        let users = snapshot::users(&self.catalog.layout)?;
        match users.into_iter().find(|(_, image)| images.contains(image)) {
            Some((container, _)) => Err(RepairError::InUse { container }),
            None => Ok(()),
        }
    }

    /// Puts a complete directory in the place of a damaged one, when no container stands on that.
    fn exchange(&self, staging: Staging, part: &Part, note: impl FnOnce(&mut State)) -> Result<(), RepairError> {
        let target = match part {
            Part::Layer(diff_id) => self.catalog.layout.layer(diff_id),
            Part::Top(image) => self.catalog.layout.finish(image.digest()),
            Part::Blob(digest) => self.catalog.layout.blob(digest),
        };
        // On the disk before it is seen: records that count as written need not be marked again.
        let failed = |source| StoreError::Io { operation: "syncing", path: staging.path().to_owned(), source };
        let directory = File::open(staging.path()).map_err(failed)?;
        nix::unistd::syncfs(&directory).map_err(|error| failed(error.into()))?;
        // No snapshot is made while the state is held.
        let exchanged = self.catalog.change(|state| {
            if let Err(refused) = self.refuse_in_use(&sharing(state, part)) {
                return Ok(Err(refused));
            }
            let before = staging.replace(&target)?;
            note(state);
            Ok(Ok(before))
        })?;
        // What was damaged is deleted outside of the lock.
        drop(exchanged?);
        Ok(())
    }
}

/// Every image that stands on a part, also those that nobody asked to be checked.
fn sharing(state: &State, part: &Part) -> BTreeSet<ImageId> {
    let records = state.images.values().map(|entry| &entry.record);
    let shares = |record: &&Record| match part {
        Part::Layer(diff_id) => record.layers.contains(diff_id),
        Part::Top(image) => record.id == *image,
        Part::Blob(_) => false,
    };
    records.filter(shares).map(|record| record.id.clone()).collect()
}

impl Pull {
    /// A document of the image that the reference's digest means; `None` when it has no such one.
    async fn document_by_digest(&self, digest: &Digest, auth: &[Credential]) -> Result<Option<Vec<u8>>, PullError> {
        let (resolved, _) = self.resolve(auth).await?;
        if let Some((_, bytes)) = resolved.documents.iter().find(|(known, _)| known == digest) {
            return Ok(Some(bytes.clone()));
        }
        if resolved.manifest.config.digest != *digest {
            return Ok(None);
        }
        // Its digest is verified there, of what is here too.
        let (bytes, _) = self.config(&resolved).await?;
        Ok(Some(bytes))
    }
}

fn layer_blob<'a>(
    record: &Record,
    documents: &'a Documents,
    diff_id: &Digest,
) -> Option<&'a crate::manifest::Descriptor> {
    let number = record.layers.iter().position(|layer| layer == diff_id)?;
    documents.parsed.layers.get(number)
}

fn unpack_error(error: PlaceError) -> RepairError {
    RepairError::Unpack(Box::new(error))
}
