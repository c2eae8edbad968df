//! Loads images out of an archive: an OCI layout, or what `docker save` writes.
//!
//! A stream can be read once and its parts come in any order, so it is first laid out as files in
//! staging; layers are then unpacked from there with the same checks as pulled ones.
//! Source: OCI image-spec `image-layout.md`; Docker image spec v1.2 §Combined Image JSON.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::PathBuf,
    rc::Rc,
    sync::{Arc, atomic::AtomicU64},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::Deserialize;
use sha2::Digest as _;

use crate::{
    configuration::{ImageConfig, parse_config},
    digest::Digest,
    image::{Image, ImageId},
    layer::{Archive, Decompressor, Expected, Kind, LayerError, Limits, check},
    manifest::{self, Descriptor, Document, IndexEntry, MAX_CONFIG, MAX_MANIFEST, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST},
    reference::ImageRef,
    slots::ARCHIVES,
    store::{
        Inner, KeepBlobs, LoadError, NewImage, StoreError,
        layers::{PlaceError, place_blocking, read_layer},
        layout::{Staging, create_private},
    },
    text::shown,
};

/// Files in one image archive.
const MAX_FILES: u64 = 100_000;
/// Bytes of their names.
const MAX_NAMES: usize = 64 << 20;
/// Bytes of all configurations, manifests and indexes of the images in one archive.
const MAX_DOCUMENTS: usize = 256 << 20;
/// Images in one archive.
const MAX_IMAGES: usize = 1000;

/// The archive's files, laid out in staging.
struct Spool {
    /// Removed with everything in it when the load is over.
    _directory: Staging,
    items: BTreeMap<Vec<u8>, Item>,
}

enum Item {
    File { path: PathBuf, size: u64 },
    Link(Vec<u8>),
}

/// Counts what was taken of an archive, for what may become of it.
struct Tally<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Tally<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + length as u64);
        Ok(length)
    }
}

/// One image of the archive, before its layers are unpacked.
struct Plan {
    names: BTreeSet<ImageRef>,
    config_bytes: Vec<u8>,
    config: ImageConfig,
    manifest: (Digest, Vec<u8>),
    /// Index documents that lead to it.
    documents: Vec<(Digest, Vec<u8>)>,
    layers: Vec<(Expected, PathBuf)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(crate) async fn load(
    inner: &Arc<Inner>,
    tar: impl Read + Send + 'static,
    pinned: bool,
) -> Result<Vec<Image>, LoadError> {
    let at_work = Arc::new(inner.catalog.lease(&[]));
    let spooling = inner.clone();
    let planned = blocking(move || {
        let spool = spool(&spooling, tar)?;
        let plans = plan(&spooling, &spool)?;
        Ok((spool, plans))
    });
    let (_spool, plans) = planned.await.map_err(|e| told(inner, e))?;
    // Of all images, so that a layer that was placed for one of them is there for the next.
    let diff_ids: Vec<Digest> = plans.iter().flat_map(|plan| &plan.config.diff_ids).cloned().collect();
    let lease = Arc::new(inner.catalog.lease(&diff_ids));
    let (mut images, mut placed) = (Vec::new(), BTreeSet::new());
    for plan in plans {
        let spare: Arc<AtomicU64> = Arc::new(inner.config.limits.ratio_floor_bytes.into());
        let new = plan.layers.iter().filter(|(expected, _)| placed.insert(expected.clone()));
        let placing = new.map(|(e, path)| layer(inner, e, path, &spare));
        let mut work: FuturesUnordered<_> = placing.collect();
        // All are waited for, so that a failed one leaves none behind that still writes.
        let mut failure = None;
        while let Some(placed) = work.next().await {
            failure = failure.or(placed.err());
        }
        drop(work);
        if let Some(error) = failure {
            return Err(told(inner, error));
        }
        // As long as it is written, also when nobody waits for it any more.
        let (committing, leases) = (inner.clone(), (at_work.clone(), lease.clone()));
        let done = blocking(move || {
            let _leases = leases;
            commit(&committing, plan, pinned)
        });
        images.push(done.await.map_err(|e| told(inner, e))?);
    }
    Ok(images)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    let stopped = |_| LoadError::Archive(LayerError::Read(Arc::new(io::ErrorKind::Interrupted.into())));
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

/// The error for a person: a full disk is one error, wherever it was met, and the archive's own words
/// are harmless.
fn told(inner: &Inner, error: LoadError) -> LoadError {
    let disk_full = match &error {
        LoadError::Archive(e) | LoadError::Layer { source: e, .. } => e.is_disk_full(),
        LoadError::Store(e) => e.is_disk_full(),
        _ => false,
    };
    match error {
        _ if disk_full => LoadError::DiskFull { path: inner.config.root.clone() },
        LoadError::Invalid { what, problem } => LoadError::Invalid { what: shown(&what), problem: shown(&problem) },
        LoadError::Platform { wanted, offered } => LoadError::Platform { wanted, offered: shown(&offered) },
        other => other,
    }
}

async fn layer(
    inner: &Arc<Inner>,
    expected: &Expected,
    path: &std::path::Path,
    spare: &Arc<AtomicU64>,
) -> Result<(), LoadError> {
    let lock = inner.layer_locks.of(ARCHIVES, &expected.diff_id);
    let _only_one = lock.lock().await;
    let is_here = read_layer(&inner.catalog.layout, &expected.diff_id).is_some();
    let _slot = inner.downloads.take(ARCHIVES).await;
    let (inner, expected, path, spare) = (inner.clone(), expected.clone(), path.to_owned(), spare.clone());
    blocking(move || {
        let layout = &inner.catalog.layout;
        // A file that two images of the archive share was kept with the first of them.
        let kept = expected.blob.as_ref().map(|digest| layout.blob(digest)).filter(|_| !path.exists());
        let path = kept.unwrap_or(path);
        let failed = |source| LoadError::Store(StoreError::Io { operation: "reading", path: path.clone(), source });
        let input = BufReader::with_capacity(1 << 18, File::open(&path).map_err(failed)?);
        let limits = &inner.config.limits;
        let placed = match (is_here, &expected.blob) {
            (false, _) => place_blocking(layout, input, &expected, limits, &spare, &inner.boot).map(drop),
            // It is not unpacked again, but it is kept as it came: then it must be that layer.
            _ if inner.config.keep_blobs != KeepBlobs::Never => {
                check(input, &expected, limits, &spare).map_err(PlaceError::Layer)
            }
            (true, Some(digest)) => {
                let (actual, _) = describe_file(&path)?;
                let wrong = LayerError::Blob { expected: digest.clone(), actual: actual.clone() };
                if actual == *digest { Ok(()) } else { Err(PlaceError::Layer(wrong)) }
            }
            (true, None) => Ok(()),
        };
        placed.map_err(|e| place_error(expected.blob.as_ref().unwrap_or(&expected.diff_id), e))
    })
    .await
}

/// `content` is the layer's blob, or the configuration of an image whose layers are all in place.
fn place_error(content: &Digest, error: PlaceError) -> LoadError {
    match error {
        PlaceError::Store(e) => LoadError::Store(e),
        PlaceError::Layer(source) => LoadError::Layer { layer: content.to_string(), source },
        PlaceError::Image(_) => LoadError::Invalid { what: format!("image {content}"), problem: error.to_string() },
    }
}

fn spool(inner: &Inner, tar: impl Read) -> Result<Spool, LoadError> {
    let directory = inner.catalog.layout.stage("load").map_err(LoadError::Store)?;
    let limits = Limits { entries: MAX_FILES, ..inner.config.limits.clone() };
    let taken = Rc::new(Cell::new(0));
    let tar = Tally { inner: tar, taken: taken.clone() };
    let input = Decompressor::new(BufReader::with_capacity(1 << 18, tar)).map_err(LoadError::Archive)?;
    let mut archive = Archive::new(BufReader::with_capacity(1 << 18, input), &limits);
    let mut items = BTreeMap::new();
    let (mut total, mut names) = (0_u64, 0_usize);
    while let Some(member) = archive.next().map_err(LoadError::Archive)? {
        let Some(name) = inside(b"", &member.path) else { continue };
        let item = match member.kind {
            Kind::File if member.sparse.is_none() => {
                let path = directory.path().join(archive.entries().to_string());
                write_out(&mut archive, &path, |bytes| {
                    total += bytes;
                    let by_ratio = taken.get().saturating_mul(limits.ratio).max(limits.ratio_floor_bytes);
                    let limit = limits.unpacked_bytes.min(by_ratio);
                    if total > limit { Err(LayerError::Limit { what: "bytes of content", limit }) } else { Ok(()) }
                })?;
                Item::File { path, size: member.size }
            }
            Kind::Symlink => {
                let parent = name.iter().rposition(|b| *b == b'/').and_then(|s| name.get(..s));
                match inside(parent.unwrap_or_default(), &member.link) {
                    Some(target) => Item::Link(target),
                    None => continue,
                }
            }
            Kind::HardLink => match inside(b"", &member.link) {
                Some(target) => Item::Link(target),
                None => continue,
            },
            _ => continue,
        };
        names += name.len() + if let Item::Link(target) = &item { target.len() } else { 0 };
        if names > MAX_NAMES {
            let limit = MAX_NAMES as u64;
            return Err(LoadError::Archive(LayerError::Limit { what: "bytes of file names", limit }));
        }
        // `tar -r` and `tar -u` put the newer one behind the older one; the last one counts.
        if let Some(Item::File { path, .. }) = items.insert(name, item) {
            let failed =
                |source| LoadError::Store(StoreError::Io { operation: "removing", path: path.clone(), source });
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(Spool { _directory: directory, items })
}

/// `allow` is asked before bytes are written.
fn write_out<R: io::BufRead>(
    archive: &mut Archive<R>,
    path: &std::path::Path,
    mut allow: impl FnMut(u64) -> Result<(), LayerError>,
) -> Result<(), LoadError> {
    let failed = |source| LoadError::Store(StoreError::Io { operation: "writing", path: path.to_owned(), source });
    let mut file = create_private(path).map_err(failed)?;
    loop {
        let chunk = archive.chunk().map_err(LoadError::Archive)?;
        if chunk.is_empty() {
            return Ok(());
        }
        let length = chunk.len();
        allow(length as u64).map_err(LoadError::Archive)?;
        file.write_all(chunk).map_err(failed)?;
        archive.consume(length);
    }
}

/// `path` seen from directory `from`, both inside the archive; `None` when it leads out.
fn inside(from: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = from.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join(&b'/'))
}

impl Spool {
    /// The file that a name means, through links.
    fn file(&self, name: &str) -> Option<(&PathBuf, u64)> {
        let mut name = inside(b"", name.as_bytes())?;
        for _ in 0..8 {
            match self.items.get(&name)? {
                Item::File { path, size } => return Some((path, *size)),
                Item::Link(target) => name = target.clone(),
            }
        }
        None
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let Some((path, size)) = self.file(name) else { return Ok(None) };
        if size > limit {
            let problem = format!("has {size} bytes, more than {limit}");
            return Err(LoadError::Invalid { what: name.to_owned(), problem });
        }
        let failed = |source| StoreError::Io { operation: "reading", path: path.clone(), source };
        fs::read(path).map(Some).map_err(failed).map_err(LoadError::Store)
    }

    fn blob_name(digest: &Digest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }

    fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, LoadError> {
        let name = Self::blob_name(digest);
        let invalid = |problem: String| LoadError::Invalid { what: name.clone(), problem };
        let bytes = self.read(&name, limit)?.ok_or_else(|| invalid("is missing".to_owned()))?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(invalid(format!("has digest {actual} instead")));
        }
        Ok(bytes)
    }
}

fn plan(inner: &Inner, spool: &Spool) -> Result<Vec<Plan>, LoadError> {
    let docker = match spool.read("manifest.json", MAX_MANIFEST)? {
        Some(text) => serde_json::from_slice::<Vec<DockerEntry>>(&text)
            .map_err(|e| LoadError::Invalid { what: "manifest.json".to_owned(), problem: e.to_string() })?,
        None => Vec::new(),
    };
    check_images(docker.len(), "manifest.json")?;
    let mut offered = BTreeSet::new();
    let plans = match spool.read("index.json", MAX_MANIFEST)? {
        Some(index) => plan_layout(inner, spool, &index, &docker, &mut offered)?,
        None if docker.is_empty() => return Err(LoadError::NotAnImage),
        None => plan_docker(inner, spool, &docker, &mut offered)?,
    };
    if plans.is_empty() {
        let offered = offered.into_iter().collect::<Vec<_>>().join(", ");
        return Err(LoadError::Platform { wanted: inner.config.platform.to_string(), offered });
    }
    Ok(plans)
}

fn plan_layout(
    inner: &Inner,
    spool: &Spool,
    index: &[u8],
    docker: &[DockerEntry],
    offered: &mut BTreeSet<String>,
) -> Result<Vec<Plan>, LoadError> {
    let invalid = |problem| LoadError::Invalid { what: "index.json".to_owned(), problem };
    let Document::Index(entries) = manifest::parse(index, None).map_err(invalid)? else {
        return Err(invalid("is a manifest, not an index".to_owned()));
    };
    check_images(entries.len(), "index.json")?;
    let mut plans: Vec<Plan> = Vec::new();
    for entry in &entries {
        let Some(mut plan) = plan_entry(inner, spool, entry, offered)? else { continue };
        // Docker writes both forms, and the full names only here.
        let config_name = Spool::blob_name(&Digest::of(&plan.config_bytes));
        for twin in docker.iter().filter(|d| d.config == config_name) {
            plan.names.extend(docker_names(twin)?);
        }
        match plans.iter_mut().find(|p| p.manifest.0 == plan.manifest.0) {
            Some(same) => same.names.extend(plan.names),
            None => plans.push(plan),
        }
        check_documents(&plans, "index.json")?;
    }
    Ok(plans)
}

fn plan_entry(
    inner: &Inner,
    spool: &Spool,
    entry: &IndexEntry,
    offered: &mut BTreeSet<String>,
) -> Result<Option<Plan>, LoadError> {
    let names = layout_names(entry)?;
    let mut digest = entry.descriptor.digest.clone();
    let mut documents = Vec::new();
    for _ in 0..3 {
        let bytes = spool.blob(&digest, MAX_MANIFEST)?;
        let what = || Spool::blob_name(&digest);
        let media_type = (documents.is_empty()).then_some(entry.descriptor.media_type.as_str());
        let document =
            manifest::parse(&bytes, media_type).map_err(|problem| LoadError::Invalid { what: what(), problem })?;
        match document {
            Document::Index(entries) => {
                let chosen = match manifest::choose(&entries, &inner.config.platform) {
                    Ok(chosen) => chosen.descriptor.digest.clone(),
                    Err(other) => {
                        offered.insert(other);
                        return Ok(None);
                    }
                };
                documents.push((digest, bytes));
                digest = chosen;
            }
            Document::Manifest(manifest) => {
                let config_bytes = spool.blob(&manifest.config.digest, MAX_CONFIG)?;
                let Some(config) = config_for_here(inner, &manifest.config.digest, &config_bytes, offered)? else {
                    return Ok(None);
                };
                let layers = layout_layers(spool, &manifest.layers, &config.diff_ids, &what())?;
                let manifest = (digest, bytes);
                return Ok(Some(Plan { names, config_bytes, config, manifest, documents, layers }));
            }
        }
    }
    Err(LoadError::Invalid { what: "index.json".to_owned(), problem: "leads through too many indexes".to_owned() })
}

fn layout_layers(
    spool: &Spool,
    blobs: &[Descriptor],
    diff_ids: &[Digest],
    what: &str,
) -> Result<Vec<(Expected, PathBuf)>, LoadError> {
    check_count(blobs.len(), diff_ids.len(), what)?;
    let mut layers = Vec::new();
    for (blob, diff_id) in blobs.iter().zip(diff_ids) {
        let name = Spool::blob_name(&blob.digest);
        let Some((path, _)) = spool.file(&name) else {
            return Err(LoadError::Invalid { what: name, problem: "is missing".to_owned() });
        };
        let expected = Expected { blob: Some(blob.digest.clone()), length: blob.size, diff_id: diff_id.clone() };
        layers.push((expected, path.clone()));
    }
    Ok(layers)
}

fn check_count(layers: usize, diff_ids: usize, what: &str) -> Result<(), LoadError> {
    if layers == diff_ids {
        return Ok(());
    }
    let problem = format!("has {layers} layers, its configuration {diff_ids} diff ids");
    Err(LoadError::Invalid { what: what.to_owned(), problem })
}

fn config_for_here(
    inner: &Inner,
    digest: &Digest,
    bytes: &[u8],
    offered: &mut BTreeSet<String>,
) -> Result<Option<ImageConfig>, LoadError> {
    let config = parse_config(bytes)
        .map_err(|problem| LoadError::Invalid { what: format!("configuration {digest}"), problem })?;
    if let Err(other) = config.check_platform(&inner.config.platform) {
        offered.insert(other);
        return Ok(None);
    }
    Ok(Some(config))
}

/// Names that tools put into a layout's index. A lone tag names nothing.
fn layout_names(entry: &IndexEntry) -> Result<BTreeSet<ImageRef>, LoadError> {
    let annotation = |key: &str| entry.annotations.as_ref().and_then(|a| a.get(key));
    let full = annotation("io.containerd.image.name");
    let short = annotation("org.opencontainers.image.ref.name").filter(|n| n.contains(['/', ':']));
    full.or(short).map(|name| parse_name(name)).into_iter().collect()
}

fn parse_name(name: &str) -> Result<ImageRef, LoadError> {
    name.parse().map_err(|e: crate::ReferenceError| LoadError::Invalid {
        what: "image name".to_owned(),
        problem: e.to_string(),
    })
}

fn docker_names(entry: &DockerEntry) -> Result<BTreeSet<ImageRef>, LoadError> {
    entry.repo_tags.iter().flatten().map(|t| parse_name(t)).collect()
}

fn plan_docker(
    inner: &Inner,
    spool: &Spool,
    docker: &[DockerEntry],
    offered: &mut BTreeSet<String>,
) -> Result<Vec<Plan>, LoadError> {
    let mut plans = Vec::new();
    // Images of one archive share layers; each file is read once.
    let mut described: BTreeMap<&PathBuf, (Digest, String)> = BTreeMap::new();
    for entry in docker {
        let missing = |what: &String| LoadError::Invalid { what: what.clone(), problem: "is missing".to_owned() };
        let config_bytes = spool.read(&entry.config, MAX_CONFIG)?.ok_or_else(|| missing(&entry.config))?;
        let config_digest = Digest::of(&config_bytes);
        let Some(config) = config_for_here(inner, &config_digest, &config_bytes, offered)? else { continue };
        check_count(entry.layers.len(), config.diff_ids.len(), "manifest.json")?;
        let mut layers = Vec::new();
        let mut blobs = Vec::new();
        for (name, diff_id) in entry.layers.iter().zip(&config.diff_ids) {
            let (path, size) = spool.file(name).ok_or_else(|| missing(name))?;
            let (blob, media_type) = match described.get(path) {
                Some(known) => known.clone(),
                None => described.entry(path).or_insert(describe_file(path)?).clone(),
            };
            blobs.push(Descriptor::new(media_type, blob.clone(), size));
            layers.push((Expected { blob: Some(blob), length: size, diff_id: diff_id.clone() }, path.clone()));
        }
        // This form has no manifest; one of our own gives the image its digest.
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor::new(OCI_CONFIG, config_digest, config_bytes.len() as u64),
            "layers": blobs,
        });
        let bytes = manifest.to_string().into_bytes();
        let manifest = (Digest::of(&bytes), bytes);
        let names = docker_names(entry)?;
        plans.push(Plan { names, config_bytes, config, manifest, documents: Vec::new(), layers });
        check_documents(&plans, "manifest.json")?;
    }
    Ok(plans)
}

fn check_images(count: usize, what: &str) -> Result<(), LoadError> {
    if count <= MAX_IMAGES {
        return Ok(());
    }
    let problem = format!("lists {count} images, more than {MAX_IMAGES}");
    Err(LoadError::Invalid { what: what.to_owned(), problem })
}

/// Plans stay in memory until their images are committed.
fn check_documents(plans: &[Plan], what: &str) -> Result<(), LoadError> {
    let documents = plans.iter().flat_map(|p| p.documents.iter().chain([&p.manifest]));
    let bytes: usize = plans.iter().map(|p| p.config_bytes.len()).chain(documents.map(|(_, d)| d.len())).sum();
    if bytes <= MAX_DOCUMENTS {
        return Ok(());
    }
    let problem = format!("leads to more than {MAX_DOCUMENTS} bytes of manifests and configurations");
    Err(LoadError::Invalid { what: what.to_owned(), problem })
}

/// Digest and media type of a layer file.
fn describe_file(path: &std::path::Path) -> Result<(Digest, String), LoadError> {
    let failed = |source| LoadError::Store(StoreError::Io { operation: "reading", path: path.to_owned(), source });
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut start = Vec::new();
    loop {
        let length = file.read(&mut buffer).map_err(failed)?;
        let part = buffer.get(..length).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        if start.is_empty() {
            start = part.iter().copied().take(4).collect();
        }
        hasher.update(part);
    }
    let suffix = match start.as_slice() {
        [0x1f, 0x8b, ..] => "+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
        _ => "",
    };
    Ok((Digest::from_bytes(&hasher.finalize()), format!("{OCI_LAYER}{suffix}")))
}

fn commit(inner: &Inner, plan: Plan, pinned: bool) -> Result<Image, LoadError> {
    let layout = &inner.catalog.layout;
    let id = Digest::of(&plan.config_bytes);
    let store = LoadError::Store;
    layout.write_blob(&id, &plan.config_bytes, false).map_err(store)?;
    let mut blobs = BTreeSet::new();
    for (digest, bytes) in plan.documents.iter().chain([&plan.manifest]) {
        layout.write_blob(digest, bytes, false).map_err(store)?;
        blobs.insert(digest.clone());
    }
    if inner.config.keep_blobs != KeepBlobs::Never {
        for (expected, path) in &plan.layers {
            let Some(digest) = &expected.blob else { continue };
            let target = layout.blob(digest);
            // A file that two images of the archive share is there since the first of them.
            match fs::rename(path, &target) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && target.exists() => {}
                other => other
                    .map_err(|source| store(StoreError::Io { operation: "keeping", path: target.clone(), source }))?,
            }
            blobs.insert(digest.clone());
        }
    }
    let top = plan.documents.first().map_or(&plan.manifest.0, |(digest, _)| digest);
    let new = NewImage {
        id: ImageId::new(id.clone()),
        manifest: plan.manifest.0.clone(),
        repo_digests: plan.names.iter().map(|n| n.with_digest(top.clone())).collect(),
        references: plan.names.iter().filter(|n| n.digest().is_none()).cloned().collect(),
        blobs,
        until_synced: BTreeSet::new(),
        config: plan.config,
        pinned,
    };
    let mut image = inner.commit_blocking(new).map_err(|e| place_error(&id, e))?;
    image.references.retain(|name| plan.names.contains(name));
    Ok(image)
}
