//! Images as archives that other tools read: an OCI layout that is a docker-archive, too.
//!
//! Layers are in it as their registry has them. Of an image that was pulled those blobs are not here any more: they
//! are fetched again, from where the image came, and only for the archive.
//! Source: OCI image-spec `image-layout.md`, `annotations.md`; Docker image spec v1.2 §Combined Image JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::PathBuf,
    sync::Arc,
};

use serde_json::json;
use sha2::Digest as _;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    credential::Credential,
    digest::{Digest, Hashed},
    image::ImageId,
    layer::LayerError,
    manifest::{self, Descriptor, Document, Manifest},
    progress::{LayerProgress, Phase},
    reference::ImageRef,
    store::{
        Inner, PullError, StoreError,
        catalog::Lease,
        chunks::Chunks,
        layers::PlaceError,
        layout::{Staging, create_private},
        pull::Pull,
    },
};

/// Archives that are made at once: what is fetched for one lies on the disk until it is written. The next one waits.
pub(crate) const SAVES_AT_ONCE: usize = 2;

/// Modification time of all that is in an archive: the same images make the same bytes.
const EPOCH: u64 = 0;

/// Why an image cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It is not here.
    #[error("image {image} is not in the store")]
    Absent {
        /// The image.
        image: ImageId,
    },
    /// A layer is not here in its registry's form, and nobody has it.
    #[error("getting layer {layer} of image {image} again, which is kept only unpacked")]
    Layer {
        /// The image.
        image: ImageId,
        /// The layer's blob.
        layer: Digest,
        /// Why; `None` when it is not known where the image came from.
        source: Option<Box<PullError>>,
    },
    /// The store's own directory refuses.
    #[error("reading the image store")]
    Store(#[from] StoreError),
}

/// One image to save, and the name that it gets in the archive; without one it is called by nothing.
pub type Chosen = (ImageId, Option<ImageRef>);

/// An archive of which everything is here.
#[derive(Debug)]
pub struct Saving {
    directories: Vec<String>,
    parts: Vec<(String, Content)>,
    _fetched: Vec<Staging>,
    _lease: Lease,
    _turn: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    File { path: PathBuf, size: u64, digest: Digest },
}

impl Saving {
    /// An archive of files that were fetched into a directory for it.
    pub(crate) fn of_files(
        files: Vec<(String, PathBuf, Descriptor)>,
        fetched: Staging,
        lease: Lease,
        turn: OwnedSemaphorePermit,
    ) -> Self {
        let parts = files
            .into_iter()
            .map(|(name, path, blob)| (name, Content::File { path, size: blob.size, digest: blob.digest }));
        Self { directories: Vec::new(), parts: parts.collect(), _fetched: vec![fetched], _lease: lease, _turn: turn }
    }

    /// Writes the tar. Blocks on the disk, and on whom it writes to.
    ///
    /// # Errors
    /// Those of the reader and the writer.
    pub fn write_to(self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let header = |kind, mode, size| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(EPOCH);
            header.set_size(size);
            header
        };
        for directory in &self.directories {
            tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), directory, io::empty())?;
        }
        for (name, content) in &self.parts {
            match content {
                Content::Bytes(bytes) => {
                    let mut header = header(tar::EntryType::Regular, 0o644, bytes.len() as u64);
                    tar.append_data(&mut header, name, bytes.as_slice())?;
                }
                Content::File { path, size, digest: expected } => {
                    let mut file = Hashed::new(File::open(path)?.take(*size));
                    let reader = BufReader::with_capacity(1 << 18, &mut file);
                    tar.append_data(&mut header(tar::EntryType::Regular, 0o644, *size), name, reader)?;
                    if file.finish()?.0 != *expected {
                        let problem = format!("{} is damaged: remove the image and get it again", path.display());
                        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
                    }
                }
            }
        }
        tar.into_inner()?.flush()
    }
}

/// One image's documents.
pub(crate) struct Documents {
    pub(crate) manifest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) parsed: Manifest,
    /// What it is called, and so where it may have come from.
    pub(crate) sources: Vec<ImageRef>,
}

impl Inner {
    /// Has everything here that an archive of these images needs.
    pub(crate) async fn save(self: &Arc<Self>, chosen: &[Chosen], auth: &[Credential]) -> Result<Saving, SaveError> {
        let turn = self.saves.clone().acquire_owned().await.expect("nobody closes this semaphore");
        let lease = self.catalog.lease(&[]);
        let mut names: BTreeMap<&ImageId, BTreeSet<&ImageRef>> = BTreeMap::new();
        for (image, name) in chosen {
            names.entry(image).or_default().extend(name);
        }
        let mut blobs = BTreeMap::new();
        let (mut manifests, mut docker, mut fetched) = (Vec::new(), Vec::new(), Vec::new());
        for (image, names) in &names {
            let documents = self.documents(image)?;
            let Manifest { config, layers } = &documents.parsed;
            let wanted: Vec<&Descriptor> =
                layers.iter().chain([config]).filter(|blob| !blobs.contains_key(&blob.digest)).collect();
            let sizes: BTreeMap<&Digest, u64> = wanted.iter().map(|blob| (&blob.digest, blob.size)).collect();
            let (files, staging) = self.files_of(image, &documents, &wanted, auth).await?;
            fetched.extend(staging);
            for (digest, path) in files {
                let size = sizes.get(&digest).copied().unwrap_or_default();
                blobs.insert(digest.clone(), Content::File { path, size, digest });
            }
            let size = documents.bytes.len() as u64;
            let descriptor = Descriptor::new(&documents.media_type, documents.manifest.clone(), size);
            manifests.extend(index_entries(&descriptor, names));
            docker.push(json!({
                "Config": blob_name(&config.digest),
                "RepoTags": names.iter().map(|name| name.familiar()).collect::<Vec<_>>(),
                "Layers": layers.iter().map(|l| blob_name(&l.digest)).collect::<Vec<_>>(),
            }));
            blobs.insert(documents.manifest, Content::Bytes(documents.bytes));
        }
        let mut parts: Vec<(String, Content)> =
            blobs.into_iter().map(|(d, content)| (blob_name(&d), content)).collect();
        let text = |value: serde_json::Value| Content::Bytes(value.to_string().into_bytes());
        let index = json!({ "schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": manifests });
        parts.push(("index.json".to_owned(), text(index)));
        parts.push(("manifest.json".to_owned(), text(json!(docker))));
        parts.push(("oci-layout".to_owned(), text(json!({ "imageLayoutVersion": "1.0.0" }))));
        let directories = ["blobs/", "blobs/sha256/"].map(str::to_owned).into();
        Ok(Saving { directories, parts, _fetched: fetched, _lease: lease, _turn: turn })
    }

    pub(crate) fn documents(&self, image: &ImageId) -> Result<Documents, SaveError> {
        let record = self.catalog.read().images.get(image).map(|entry| entry.record.clone());
        let record = record.ok_or_else(|| SaveError::Absent { image: image.clone() })?;
        let path = self.catalog.layout.blob(&record.manifest);
        let failed = |source| StoreError::Io { operation: "reading", path: path.clone(), source };
        let bytes = fs::read(&path).map_err(failed)?;
        let whole = Digest::of(&bytes) == record.manifest;
        let Ok(Document::Manifest(parsed)) = manifest::parse(if whole { &bytes } else { b"" }, None) else {
            return Err(failed(io::Error::other("it is damaged; remove the image and pull it again")).into());
        };
        let media_type = manifest::media_type_of(&bytes);
        let sources = record.repo_digests.iter().chain(&record.references).cloned().collect();
        Ok(Documents { manifest: record.manifest, media_type, bytes, parsed, sources })
    }

    /// Files with blobs of an image as they came; those that are not kept are fetched again, into a directory that
    /// goes when it is dropped.
    pub(crate) async fn files_of(
        self: &Arc<Self>,
        image: &ImageId,
        documents: &Documents,
        blobs: &[&Descriptor],
        auth: &[Credential],
    ) -> Result<(BTreeMap<Digest, PathBuf>, Option<Staging>), SaveError> {
        let layout = &self.catalog.layout;
        let (mut files, mut missing) = (BTreeMap::new(), BTreeMap::new());
        for blob in blobs {
            let path = layout.blob(&blob.digest);
            // One of another length is not the one.
            if fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() == blob.size) {
                files.insert(blob.digest.clone(), path);
            } else {
                missing.insert(&blob.digest, *blob);
            }
        }
        if missing.is_empty() {
            return Ok((files, None));
        }
        let missing: Vec<Descriptor> = missing.into_values().cloned().collect();
        let staging = layout.stage("save")?;
        self.fetch_again(image, documents, &missing, &staging, auth).await?;
        for blob in missing {
            let path = staging.path().join(blob.digest.hex());
            files.insert(blob.digest, path);
        }
        Ok((files, Some(staging)))
    }

    /// Asks those repositories for blobs that the image came from, until one has them all.
    pub(crate) async fn fetch_again(
        self: &Arc<Self>,
        image: &ImageId,
        documents: &Documents,
        missing: &[Descriptor],
        staging: &Staging,
        auth: &[Credential],
    ) -> Result<(), SaveError> {
        let repositories: BTreeMap<String, &ImageRef> = documents.sources.iter().map(|r| (r.name(), r)).collect();
        let mut refused = None;
        for source in repositories.into_values() {
            let pull = Pull::at_once(self, source.with_digest(documents.manifest.clone()));
            match pull.copy_blobs(missing, staging, auth).await {
                Ok(()) => return Ok(()),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let (layer, source) = refused.map_or((None, None), |(layer, source)| (layer, Some(Box::new(source))));
        // Who refuses the image has none of them.
        let first = || missing.first().map_or_else(|| documents.manifest.clone(), |blob| blob.digest.clone());
        Err(SaveError::Layer { image: image.clone(), layer: layer.unwrap_or_else(first), source })
    }
}

impl Pull {
    /// Brings blobs as they are into a directory, each under its digest's digits. With an error it tells which of them
    /// cannot be had, when it is one of them.
    async fn copy_blobs(
        &self,
        blobs: &[Descriptor],
        to: &Staging,
        auth: &[Credential],
    ) -> Result<(), (Option<Digest>, PullError)> {
        let (resolved, sources) = self.resolve(auth).await.map_err(|error| (None, error))?;
        let name = resolved.manifest_digest.to_string();
        self.progress.send_modify(|progress| {
            progress.phase = Phase::Fetching;
            progress.layers = blobs.iter().map(LayerProgress::waiting).collect();
        });
        for (number, blob) in blobs.iter().enumerate() {
            let _slot = self.inner.downloads.take(self.reference.registry()).await;
            let (path, digest, size) = (to.path().join(blob.digest.hex()), blob.digest.clone(), blob.size);
            let take = move |chunks: Chunks| copy_verified(chunks, &path, &digest, size);
            let brought = self.bring(&sources, &name, number, blob, take).await;
            brought.map_err(|error| (Some(blob.digest.clone()), error))?;
            self.progress.send_modify(|p| {
                if let Some(layer) = p.layers.get_mut(number) {
                    layer.done = true;
                }
            });
        }
        Ok(())
    }
}

pub(crate) fn copy_verified(
    chunks: Chunks,
    path: &std::path::Path,
    expected: &Digest,
    size: u64,
) -> Result<(), PlaceError> {
    let failed = |source| StoreError::Io { operation: "writing", path: path.to_owned(), source };
    // An earlier try may have left one.
    let _absent = fs::remove_file(path);
    let mut file = create_private(path).map_err(failed)?;
    let mut hasher = sha2::Sha256::new();
    let (mut chunks, mut length) = (chunks, 0_u64);
    loop {
        let piece = io::BufRead::fill_buf(&mut chunks).map_err(|e| LayerError::Read(Arc::new(e)))?;
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
        io::BufRead::consume(&mut chunks, taken);
    }
    let actual = Digest::from_bytes(&hasher.finalize());
    if actual != *expected {
        return Err(LayerError::Blob { expected: expected.clone(), actual }.into());
    }
    Ok(())
}

/// One line for each name, as containerd and Docker write them; one without annotations for no name.
fn index_entries(descriptor: &Descriptor, names: &BTreeSet<&ImageRef>) -> Vec<serde_json::Value> {
    let Descriptor { media_type, digest, size, .. } = descriptor;
    if names.is_empty() {
        return vec![json!(descriptor)];
    }
    let named = names.iter().map(|name| {
        json!({ "mediaType": media_type, "digest": digest, "size": size, "annotations": {
            "io.containerd.image.name": name.to_string(),
            "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
        } })
    });
    named.collect()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
