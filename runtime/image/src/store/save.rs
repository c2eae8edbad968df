//! Images as archives that other tools read: an OCI layout that is a docker-archive, too.
//!
//! Layers are in it as their registry has them. Of an image that was pulled those blobs are not here any more: they
//! are fetched again, from where the image came, and only for the archive; see `again`.
//! Source: OCI image-spec `image-layout.md`, `annotations.md`; Docker image spec v1.2 §Combined Image JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::PathBuf,
    sync::Arc,
};

use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    credential::Credential,
    digest::{Digest, Hashed},
    image::ImageId,
    manifest::{self, Descriptor, Document, Manifest},
    reference::ImageRef,
    store::{Inner, PullError, StoreError, again::Again, catalog::Lease, layout::Staging},
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
    /// What was fetched for it goes with it.
    _fetched: (Vec<Arc<Again>>, Option<Staging>),
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
        Self {
            directories: Vec::new(),
            parts: parts.collect(),
            _fetched: (Vec::new(), Some(fetched)),
            _lease: lease,
            _turn: turn,
        }
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
            let (files, again) = self.files_of(image, &documents, &wanted, auth).await?;
            fetched.extend(again);
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
        Ok(Saving { directories, parts, _fetched: (fetched, None), _lease: lease, _turn: turn })
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
