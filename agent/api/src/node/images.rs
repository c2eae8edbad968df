//! What the doors ask of the image store.

use std::io::{self, BufWriter, Read, Write};
use std::time::Duration;

use bytes::{Buf, Bytes};
use portreeve_engine::chain;
use portreeve_engine::image::{
    self, Credential, ImageRef, LayerError, LoadError, ProgressSink, PullError, PushError, Referrer, SaveError, Saving,
    Store, StoreError, Unneeded,
};
use serde_json::value::RawValue;
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tracing::warn;

use super::NodeBackend;
use crate::backend::BackendError;
use crate::v1alpha1::{
    API_VERSION, DiskReport, FilesystemReport, Image, ImageDetails, ImageLayer, ImageStatus, ImageStorage, Meta,
    PruneReport, ReferrerList, ReferrerView, Stored, TagList,
};

/// Pieces of a tar that wait for whom it is sent to.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 256 << 10;
/// How long a client may take none of them.
const CLIENT_PATIENCE: Duration = Duration::from_secs(300);

impl NodeBackend {
    pub(super) async fn pull_image(
        &self,
        reference: &str,
        auth: Vec<Credential>,
        now: bool,
        progress: ProgressSink,
    ) -> Result<Image, BackendError> {
        let reference = parse_reference(reference)?;
        let store = self.engine()?.images();
        let pulled = match now {
            true => store.pull_now(&reference, &auth, Some(progress)).await,
            false => store.pull(&reference, &auth, Some(progress)).await,
        };
        // The name that was asked for comes first.
        let pulled = pulled.map_err(|error| refused(&error))?;
        Ok(view(&pulled, name_of(&pulled)))
    }

    pub(super) async fn push_image(
        &self,
        reference: &str,
        name: &str,
        auth: Vec<Credential>,
        progress: ProgressSink,
    ) -> Result<Image, BackendError> {
        let found = self.find(reference)?;
        let to = parse_reference(name)?;
        let store = self.engine()?.images();
        let digest = store.push(&found.id, &to, &auth, Some(progress)).await.map_err(|error| match &error {
            PushError::NoTag { .. } => BackendError::BadRequest(chain(&error)),
            PushError::Content(SaveError::Absent { .. }) => absent(reference),
            _ => BackendError::Unavailable(chain(&error)),
        })?;
        let mut pushed = view(&store.image(&found.id).unwrap_or(found), to.familiar());
        // The one that was pushed comes first.
        let digest = to.with_digest(digest).to_string();
        pushed.status.repo_digests.retain(|other| *other != digest);
        pushed.status.repo_digests.insert(0, digest);
        Ok(pushed)
    }

    pub(super) async fn tags_of(&self, repository: &str, auth: Vec<Credential>) -> Result<TagList, BackendError> {
        let repository = parse_reference(repository)?;
        let tags = self.engine()?.images().tags(&repository, &auth).await.map_err(|error| refused(&error))?;
        Ok(TagList { repository: repository.name(), tags })
    }

    pub(super) async fn referrers_of(
        &self,
        reference: &str,
        auth: Vec<Credential>,
    ) -> Result<ReferrerList, BackendError> {
        let reference = parse_reference(reference)?;
        let asked = self.engine()?.images().referrers(&reference, &auth).await;
        let (digest, found) = asked.map_err(|error| refused(&error))?;
        let view = |referrer: Referrer| ReferrerView {
            digest: referrer.digest.to_string(),
            artifact_type: referrer.artifact_type,
            media_type: referrer.media_type,
            size: referrer.size,
            annotations: referrer.annotations,
        };
        Ok(ReferrerList { digest: digest.to_string(), referrers: found.into_iter().map(view).collect() })
    }

    pub(super) async fn load_images(&self, tar: mpsc::Receiver<io::Result<Bytes>>) -> Result<Vec<Image>, BackendError> {
        let tar = TarReader { pieces: tar, current: Bytes::new() };
        let loaded = self.engine()?.images().load(tar).await;
        let loaded = loaded.map_err(not_loaded)?;
        Ok(loaded.iter().flat_map(each_name).collect())
    }

    pub(super) async fn save_images(
        &self,
        references: Vec<String>,
        auth: Vec<Credential>,
    ) -> Result<mpsc::Receiver<io::Result<Bytes>>, BackendError> {
        let mut chosen = Vec::new();
        for reference in &references {
            let found = self.find(reference)?;
            // By its id an image is saved without a name, as docker does.
            let name = reference.parse::<ImageRef>().ok().filter(|name| found.references.contains(name));
            chosen.push((found.id, name));
        }
        let saving = self.engine()?.images().save(&chosen, &auth).await;
        let saving = saving.map_err(|error| match &error {
            SaveError::Absent { .. } => BackendError::NotFound(chain(&error)),
            SaveError::Layer { .. } => BackendError::Unavailable(chain(&error)),
            SaveError::Store(_) => internal(error),
        })?;
        Ok(streamed(saving))
    }

    pub(super) async fn artifact_of(
        &self,
        reference: &str,
        auth: Vec<Credential>,
    ) -> Result<mpsc::Receiver<io::Result<Bytes>>, BackendError> {
        let reference = parse_reference(reference)?;
        let fetched = self.engine()?.images().artifact(&reference, &auth).await;
        Ok(streamed(fetched.map_err(|error| refused(&error))?))
    }

    pub(super) async fn take_image_away(&self, reference: &str) -> Result<Vec<String>, BackendError> {
        let found = self.find(reference)?;
        // A name takes that name away; an id takes the image with all its names.
        let named = |name: &ImageRef| self.engine().is_ok_and(|engine| engine.images().lookup(name).is_some());
        let by_name = reference.parse::<ImageRef>().ok().filter(named);
        let removed = self.with_store(move |store| match by_name {
            Some(name) => store.remove(&name),
            None => store.remove_image(&found.id),
        });
        let removed = removed.await?.map_err(|error| BackendError::Conflict(self.told(&error)))?;
        let mut lines: Vec<String> =
            removed.untagged.iter().map(|name| format!("Untagged: {}", name.familiar())).collect();
        lines.extend(removed.deleted.map(|id| format!("Deleted: {id}")));
        Ok(lines)
    }

    pub(super) async fn details_of_image(&self, reference: &str) -> Result<ImageDetails, BackendError> {
        let found = self.find(reference)?;
        let details = self.with_store(move |store| store.details(&found.id)).await?.map_err(internal)?;
        let details = details.ok_or_else(|| absent(reference))?;
        let configuration = String::from_utf8(details.configuration).map_err(internal)?;
        let layers = details.layers.iter().map(|layer| ImageLayer {
            diff_id: layer.diff_id.to_string(),
            size_bytes: layer.size_bytes,
            blob: layer.blob.to_string(),
            blob_bytes: layer.blob_bytes,
            kept: layer.kept,
        });
        Ok(ImageDetails {
            image: view(&details.image, name_of(&details.image)),
            manifest: details.manifest.to_string(),
            layers: layers.collect(),
            configuration: RawValue::from_string(configuration).map_err(internal)?,
        })
    }

    pub(super) async fn name_image(&self, reference: &str, name: &str) -> Result<Image, BackendError> {
        let found = self.find(reference)?;
        let name = parse_reference(name)?;
        let given = name.clone();
        let tagged = self.with_store(move |store| store.tag(&found.id, &given)).await?;
        let tagged = tagged.map_err(|error| match error {
            StoreError::NoTag { .. } => BackendError::BadRequest(chain(&error)),
            _ => internal(error),
        })?;
        let tagged = tagged.ok_or_else(|| absent(reference))?;
        Ok(view(&tagged, name.familiar()))
    }

    pub(super) async fn take_unneeded_away(&self, all: bool) -> Result<PruneReport, BackendError> {
        let which = if all { Unneeded::All } else { Unneeded::Untagged };
        let node = self.node.clone();
        let freed = self.with_store(move |store| store.gc(which, &|find| node.wanted_images(find)));
        let freed = freed.await?.map_err(internal)?;
        Ok(PruneReport {
            images: freed.images.iter().map(ToString::to_string).collect(),
            layers: freed.layers as u64,
            freed_bytes: freed.bytes,
        })
    }

    pub(super) async fn measure_disk(&self) -> Result<DiskReport, BackendError> {
        let node = self.node.clone();
        let usage = self.with_store(move |store| store.usage(&|find| node.wanted_images(find)));
        let usage = usage.await?.map_err(internal)?;
        Ok(DiskReport {
            images: ImageStorage {
                count: usage.images,
                needed: usage.images_needed,
                bytes: usage.layer_bytes,
                reclaimable_bytes: usage.reclaimable_bytes,
                blobs: Stored { count: usage.blobs, bytes: usage.blob_bytes },
            },
            pods: self.node.storage().await,
            filesystem: FilesystemReport {
                capacity_bytes: usage.filesystem.capacity_bytes,
                available_bytes: usage.filesystem.available_bytes,
                inodes: usage.filesystem.inodes,
                inodes_free: usage.filesystem.inodes_free,
            },
        })
    }

    pub(super) fn find(&self, reference: &str) -> Result<image::Image, BackendError> {
        self.engine()?.images().resolve(reference).ok_or_else(|| absent(reference))
    }

    /// Does what blocks on the disk.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        let store = self.engine()?.images().clone();
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(internal)
    }

    /// Why an image stays, in the words of who runs pods.
    fn told(&self, error: &StoreError) -> String {
        let StoreError::InUse { image, container } = error else { return chain(error) };
        match self.pod_of(container) {
            Some((_, who)) => {
                // As the root of the container or as a volume: the container's own image may be another.
                let found = self.engine().ok().and_then(|engine| engine.images().image(image));
                let name = found.and_then(|image| image.references.first().map(ToString::to_string));
                let name = name.map_or_else(|| image.to_string(), |name| format!("{name} ({image})"));
                format!("image {name} is in use by {who}: remove that pod's manifest first")
            }
            None => chain(error),
        }
    }

    /// The image that a container was made of, and the container and its pod in words.
    pub(super) fn pod_of(&self, container: &str) -> Option<(String, String)> {
        let engine = self.node.engine()?;
        let status = engine.container(&container.parse().ok()?)?;
        let pod = engine.sandbox(&status.sandbox)?.metadata;
        let who = format!("container {} of pod {}/{}", status.metadata.name, pod.namespace, pod.name);
        Some((status.image.to_string(), who))
    }
}

/// An archive in pieces, as fast as they are taken.
fn streamed(saving: Saving) -> mpsc::Receiver<io::Result<Bytes>> {
    let (pieces, tar) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let out = BufWriter::with_capacity(PIECE_BYTES, TarWriter(pieces.clone()));
        if let Err(error) = saving.write_to(out) {
            if error.kind() == io::ErrorKind::InvalidData {
                warn!(%error, "an archive was broken off");
            }
            // Whoever has left, or does not read, needs no reason.
            let _left = pieces.try_send(Err(error));
        }
    });
    tar
}

fn refused(error: &PullError) -> BackendError {
    BackendError::Unavailable(format!("{}; {}", chain(error), error.advice()))
}

/// Only what is wrong with the archive is the client's to mend.
fn not_loaded(error: LoadError) -> BackendError {
    match &error {
        // As with a pull.
        LoadError::DiskFull { .. } => BackendError::Unavailable(chain(&error)),
        LoadError::Store(_) | LoadError::Open { .. } | LoadError::Layer { source: LayerError::Write { .. }, .. } => {
            internal(error)
        }
        _ => BackendError::Invalid { message: chain(&error), causes: Vec::new() },
    }
}

fn absent(reference: &str) -> BackendError {
    BackendError::NotFound(format!("image \"{reference}\" not found"))
}

fn internal(error: impl std::error::Error) -> BackendError {
    BackendError::Internal(chain(&error))
}

fn parse_reference(text: &str) -> Result<ImageRef, BackendError> {
    text.parse::<ImageRef>().map_err(|error| BackendError::BadRequest(format!("image {text:?}: {}", chain(&error))))
}

/// The first name of an image, or its id.
pub(super) fn name_of(stored: &image::Image) -> String {
    stored.references.first().map_or_else(|| stored.id.to_string(), ImageRef::familiar)
}

/// An image under each of its names.
pub(super) fn each_name(stored: &image::Image) -> Vec<Image> {
    match stored.references.as_slice() {
        [] => vec![view(stored, stored.id.to_string())],
        names => names.iter().map(|name| view(stored, name.familiar())).collect(),
    }
}

fn view(stored: &image::Image, name: String) -> Image {
    Image {
        api_version: API_VERSION.to_owned(),
        kind: "Image".to_owned(),
        // Many images do not say when they were built.
        metadata: Meta { name, creation_timestamp: Some(stored.created.unwrap_or(stored.added_at)), ..Meta::default() },
        status: ImageStatus {
            id: stored.id.to_string(),
            references: stored.references.iter().map(ToString::to_string).collect(),
            repo_digests: stored.repo_digests.clone(),
            size_bytes: stored.size_bytes,
            pinned: stored.pinned,
        },
    }
}

/// A download as a blocking writer.
struct TarWriter(mpsc::Sender<io::Result<Bytes>>);

impl Write for TarWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sending = self.0.send_timeout(Ok(Bytes::copy_from_slice(bytes)), CLIENT_PATIENCE);
        match tokio::runtime::Handle::current().block_on(sending) {
            Ok(()) => Ok(bytes.len()),
            // It holds what is to be saved, and a thread.
            Err(SendTimeoutError::Timeout(_)) => Err(io::ErrorKind::TimedOut.into()),
            Err(SendTimeoutError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An upload as a blocking reader; read on a thread that may block.
struct TarReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for TarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_load_that_fails_here_is_no_fault_of_the_archive() {
        let full = LoadError::DiskFull { path: "/store".into() };
        assert!(matches!(not_loaded(full), BackendError::Unavailable(_)));
        let broken = || io::Error::from_raw_os_error(5);
        let store = StoreError::Io { operation: "writing", path: "/store/index".into(), source: broken() };
        let write = LayerError::Write { path: "a".to_owned(), operation: "write", source: Arc::new(broken()) };
        let layer = |source| LoadError::Layer { layer: "0/layer.tar".to_owned(), source };
        for error in [LoadError::Store(store), layer(write)] {
            assert!(matches!(not_loaded(error), BackendError::Internal(text) if text.contains("os error 5")));
        }
        let limit = LayerError::Limit { what: "entries", limit: 1 };
        for error in [LoadError::NotAnImage, layer(limit)] {
            assert!(matches!(not_loaded(error), BackendError::Invalid { .. }));
        }
    }

    #[test]
    fn an_image_is_listed_under_each_of_its_names_with_the_age_that_is_known() {
        let added_at = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut stored = image::Image {
            id: image::ImageId::new(image::Digest::of(b"configuration")),
            references: ["web:1", "registry.example/web:2"].map(|name| name.parse().unwrap()).to_vec(),
            repo_digests: Vec::new(),
            size_bytes: 1,
            config: Arc::default(),
            layers: Vec::new(),
            created: None,
            added_at,
            pinned: false,
        };
        let named: Vec<_> = each_name(&stored).into_iter().map(|image| image.metadata).collect();
        assert_eq!(
            named.iter().map(|meta| meta.name.as_str()).collect::<Vec<_>>(),
            ["web:1", "registry.example/web:2"]
        );
        assert!(named.iter().all(|meta| meta.creation_timestamp == Some(added_at)), "{named:?}");
        stored.references.clear();
        assert_eq!(each_name(&stored)[0].metadata.name, stored.id.to_string());
    }
}
