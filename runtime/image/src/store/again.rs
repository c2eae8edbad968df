//! Blobs of images that are here, as their registry has them: those that are kept, and the others fetched once more.
//!
//! Archives, pushes and repairs need them. What is fetched is private to them, shared by those that want it at once, and
//! goes with the last of these.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, BufRead as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures_util::future::join_all;
use sha2::Digest as _;

use crate::{
    credential::Credential,
    digest::Digest,
    image::ImageId,
    layer::LayerError,
    manifest::Descriptor,
    progress::{LayerProgress, Phase},
    reference::ImageRef,
    store::{
        Inner, PullError, SaveError, StoreError,
        chunks::Chunks,
        layers::PlaceError,
        layout::{Staging, create_private},
        pull::Pull,
        save::Documents,
        sources::Sources,
        sync,
        verify::{self, Finding},
    },
};

/// A blob that the store does not keep, in a directory of its own.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) digest: Digest,
    directory: Staging,
}

impl Again {
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("blob")
    }
}

/// Those that somebody holds now.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashMap<Digest, Weak<Again>>>);

impl Held {
    fn get(&self, digest: &Digest) -> Option<Arc<Again>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).and_then(Weak::upgrade)
    }

    fn add(&self, again: Again) -> Arc<Again> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, again| again.strong_count() > 0);
        let again = Arc::new(again);
        held.insert(again.digest.clone(), Arc::downgrade(&again));
        again
    }
}

/// What was got of an image's blobs at one place, and why the others were not; without a digest, none of them.
struct Copied {
    got: Vec<Arc<Again>>,
    refused: Vec<(Option<Digest>, PullError)>,
}

impl Inner {
    /// Files with blobs of an image as they came; those that are not kept are fetched again, and go when what is returned
    /// beside them is dropped.
    pub(crate) async fn files_of(
        self: &Arc<Self>,
        image: &ImageId,
        documents: &Documents,
        blobs: &[&Descriptor],
        auth: &[Credential],
    ) -> Result<(BTreeMap<Digest, PathBuf>, Vec<Arc<Again>>), SaveError> {
        let (mut files, mut missing) = (BTreeMap::new(), BTreeMap::new());
        for blob in blobs {
            let path = self.catalog.layout.blob(&blob.digest);
            if is_there(&path, blob) {
                files.insert(blob.digest.clone(), path);
            } else {
                missing.insert(&blob.digest, *blob);
            }
        }
        let missing: Vec<Descriptor> = missing.into_values().cloned().collect();
        let fetched = self.fetch_again(image, documents, missing, auth).await?;
        files.extend(fetched.iter().map(|again| (again.digest.clone(), again.path())));
        Ok((files, fetched))
    }

    /// Asks those repositories for blobs that the image came from; what one lacks the next is asked for.
    pub(crate) async fn fetch_again(
        self: &Arc<Self>,
        image: &ImageId,
        documents: &Documents,
        mut missing: Vec<Descriptor>,
        auth: &[Credential],
    ) -> Result<Vec<Arc<Again>>, SaveError> {
        let (mut fetched, mut refused) = (Vec::new(), Vec::new());
        for blob in std::mem::take(&mut missing) {
            match self.held_or_unsynced(&blob).await {
                Some(here) => fetched.push(here),
                None => missing.push(blob),
            }
        }
        let repositories: BTreeMap<String, &ImageRef> = documents.sources.iter().map(|r| (r.name(), r)).collect();
        for source in repositories.into_values() {
            if missing.is_empty() {
                break;
            }
            let pull = Pull::at_once(self, source.with_digest(documents.manifest.clone()));
            let copied = pull.copy_blobs(&missing, auth).await;
            missing.retain(|blob| copied.got.iter().all(|again| again.digest != blob.digest));
            fetched.extend(copied.got);
            refused.extend(copied.refused);
        }
        let Some(first) = missing.first() else { return Ok(fetched) };
        // Who refuses the image has none of them; what another has given is not what is missing.
        let is_missing = |(layer, _): &(Option<Digest>, PullError)| {
            layer.as_ref().is_none_or(|layer| missing.iter().any(|blob| blob.digest == *layer))
        };
        let (layer, source) = match refused.into_iter().find(is_missing) {
            Some((layer, source)) => (layer, Some(Box::new(source))),
            None => (None, None),
        };
        Err(SaveError::Layer { image: image.clone(), layer: layer.unwrap_or_else(|| first.digest.clone()), source })
    }

    /// A blob that somebody has fetched again and still holds, or that waits to go until its layer is on the disk for good.
    async fn held_or_unsynced(self: &Arc<Self>, blob: &Descriptor) -> Option<Arc<Again>> {
        if let Some(held) = self.held.get(&blob.digest) {
            return Some(held);
        }
        let (inner, blob) = (self.clone(), blob.clone());
        let linked = tokio::task::spawn_blocking(move || {
            let path = inner.catalog.layout.unsynced_blob(&blob.digest);
            let directory = is_there(&path, &blob).then(|| inner.catalog.layout.stage("again").ok()).flatten()?;
            let again = Again { digest: blob.digest, directory };
            // It may go at any moment: then it is fetched.
            fs::hard_link(&path, again.path()).ok()?;
            // One of a boot before may have only its length on the disk.
            if !matches!(verify::blob(&again.path(), &again.digest), Finding::Whole(_)) {
                sync::remove(&inner.catalog.layout, [&again.digest]);
                return None;
            }
            Some(inner.held.add(again))
        });
        linked.await.ok().flatten()
    }
}

/// One of another length is not the one.
pub(crate) fn is_there(path: &Path, blob: &Descriptor) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == blob.size)
}

impl Pull {
    /// Brings blobs as they are.
    async fn copy_blobs(&self, blobs: &[Descriptor], auth: &[Credential]) -> Copied {
        let (resolved, sources) = match self.resolve(auth).await {
            Ok(found) => found,
            Err(error) => return Copied { got: Vec::new(), refused: vec![(None, error)] },
        };
        let name = resolved.manifest_digest.to_string();
        self.progress.send_modify(|progress| {
            progress.phase = Phase::Fetching;
            progress.layers = blobs.iter().map(LayerProgress::waiting).collect();
        });
        let copying = blobs.iter().enumerate().map(|(number, blob)| {
            let copied = self.copy_blob(&sources, &name, number, blob);
            async move { copied.await.map_err(|error| (Some(blob.digest.clone()), error)) }
        });
        // How many of them are fetched at once is for the slots to say.
        let copies = join_all(copying).await;
        let (mut got, mut refused) = (Vec::new(), Vec::new());
        for copied in copies {
            match copied {
                Ok(again) => got.push(again),
                Err(error) => refused.push(error),
            }
        }
        Copied { got, refused }
    }

    async fn copy_blob(
        &self,
        sources: &Sources,
        manifest: &str,
        number: usize,
        blob: &Descriptor,
    ) -> Result<Arc<Again>, PullError> {
        let registry = self.reference.registry();
        let lock = self.inner.layer_locks.of(registry, &blob.digest);
        let _only_one = lock.lock().await;
        if let Some(again) = self.inner.held.get(&blob.digest) {
            return Ok(again);
        }
        let _slot = self.inner.downloads.take(registry).await;
        let directory = self.inner.catalog.layout.stage("again");
        let directory = directory.map_err(|e| self.place_error(None, PlaceError::Store(e)))?;
        let again = Again { digest: blob.digest.clone(), directory };
        let (path, digest, size) = (again.path(), blob.digest.clone(), blob.size);
        let take = move |chunks: Chunks| copy_verified(chunks, &path, &digest, size);
        self.bring(sources, manifest, number, blob, take).await?;
        self.show(number, |layer| layer.done = true);
        Ok(self.inner.held.add(again))
    }
}

/// Writes a blob into a new file, and verifies it.
pub(crate) fn copy_verified(chunks: Chunks, path: &Path, expected: &Digest, size: u64) -> Result<(), PlaceError> {
    let failed = |source| StoreError::Io { operation: "writing", path: path.to_owned(), source };
    // An earlier try may have left one.
    let _absent = fs::remove_file(path);
    let mut file = create_private(path).map_err(failed)?;
    let mut hasher = sha2::Sha256::new();
    let (mut chunks, mut length) = (chunks, 0_u64);
    loop {
        let piece = chunks.fill_buf().map_err(|e: io::Error| LayerError::Read(Arc::new(e)))?;
        if piece.is_empty() {
            break;
        }
        let taken = piece.len();
        length += taken as u64;
        if length > size {
            return Err(LayerError::Length { expected: size, actual: length }.into());
        }
        hasher.update(piece);
        file.write_all(piece).map_err(failed)?;
        chunks.consume(taken);
    }
    let actual = Digest::from_bytes(&hasher.finalize());
    if actual != *expected {
        return Err(LayerError::Blob { expected: expected.clone(), actual }.into());
    }
    Ok(())
}
