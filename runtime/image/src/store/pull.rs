//! A pull: from a reference to an image that is complete.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream::FuturesUnordered};
use portreeve_sys::chain;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    configuration::{ImageConfig, parse_config},
    credential::Credential,
    digest::Digest,
    hosts::Endpoint,
    image::{Image, ImageId},
    layer::{Expected, LayerError},
    manifest::{self, Descriptor, Document, MAX_CONFIG, Manifest, is_foreign},
    progress::{LayerProgress, Phase, Progress},
    reference::ImageRef,
    registry::{Fetched, RegistryError, Session, describe},
    store::{
        Inner, KeepBlobs, PullError, StoreError, When,
        again::{copy_verified, is_there},
        catalog::{Lease, Record},
        chunks::{Chunks, Kept},
        layers::{PlaceError, place_blocking, read_layer},
        sources::Sources,
        sync,
    },
    text::shown,
    trust::Signatures,
};

/// An index may point at an index; nobody does so more than once.
const MAX_INDEXES: usize = 3;
/// What a transfer must have brought before it was cut off to count as one that gets on, in bytes.
const WORTHWHILE: u64 = 64 << 10;
/// How often a cut transfer that does not get on is taken up again where it broke off.
const MAX_RESUMPTIONS: u32 = 4;
/// The same, at a host that another one can stand in for.
const MIRROR_RESUMPTIONS: u32 = 1;

/// How many times an image's blobs must fit on what is free of the disk to be kept until its layers are synced.
const ROOM_UNTIL_SYNCED: u64 = 10;

/// One pull at work.
pub(crate) struct Pull {
    pub(crate) inner: Arc<Inner>,
    pub(crate) reference: ImageRef,
    pub(crate) when: When,
    pub(crate) progress: watch::Sender<Progress>,
    /// A layer has failed: the others need not go on.
    pub(crate) broken_off: CancellationToken,
    /// What the layers may still unpack to beyond the ratio.
    pub(crate) spare: Arc<AtomicU64>,
    /// Blobs of its layers stay until these are on the disk for good.
    pub(crate) until_synced: AtomicBool,
}

/// Why a host does not send a blob.
enum Failure {
    Refused(RegistryError),
    CutOff(io::Error),
}

/// What a reference turned out to be.
pub(crate) struct Resolved {
    pub(crate) session: Arc<Session>,
    /// The digest that the registry's tag means: an index or a manifest.
    pub(crate) top: Digest,
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: Manifest,
    /// Raw documents, as they came.
    pub(crate) documents: Vec<(Digest, Vec<u8>)>,
    /// Those for which the policy lets it be used.
    pub(crate) signatures: Signatures,
}

impl Inner {
    /// Whether blobs of layers stay until what is unpacked of them is on the disk for good: only where all of them leave
    /// room for the rest.
    fn may_keep_until_synced(&self, layers: &[Descriptor]) -> bool {
        let all = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        self.config.keep_blobs == KeepBlobs::Loaded
            && self.filesystem().is_ok_and(|disk| disk.available_bytes / ROOM_UNTIL_SYNCED >= all)
    }

    /// Makes room: what is kept of layers for a power cut alone goes, unless another image waits for it.
    fn give_up_unsynced(&self, layers: &[Descriptor]) {
        let state = self.catalog.read();
        let needed = state.until_synced();
        let given_up = layers.iter().map(|layer| &layer.digest).filter(|digest| !needed.contains(digest));
        sync::remove(&self.catalog.layout, given_up);
    }

    pub(crate) async fn bytes_to_fetch(
        self: &Arc<Self>,
        reference: &ImageRef,
        auth: &[Credential],
    ) -> Result<u64, PullError> {
        let pull = Pull::at_once(self, reference.clone());
        let (resolved, _) = pull.resolve(auth).await?;
        let (_, config) = pull.config(&resolved).await?;
        let is_here = |diff_id: &Digest| read_layer(&self.catalog.layout, diff_id).is_some();
        let layers: BTreeMap<&Digest, u64> =
            config.diff_ids.iter().zip(&resolved.manifest.layers).map(|(id, layer)| (id, layer.size)).collect();
        Ok(layers.into_iter().filter(|(id, _)| !is_here(id)).map(|(_, size)| size).sum())
    }
}

impl Pull {
    /// For a person who asks, whatever time of day it is; nobody watches it.
    pub(crate) fn at_once(inner: &Arc<Inner>, reference: ImageRef) -> Self {
        Self {
            inner: inner.clone(),
            reference,
            when: When::Now,
            progress: watch::Sender::default(),
            broken_off: CancellationToken::new(),
            spare: Arc::default(),
            until_synced: AtomicBool::new(false),
        }
    }

    pub(crate) async fn run(self, auth: &[Credential]) -> Result<Image, PullError> {
        let mut image = self.complete(auth).await?;
        // Whoever has just asked for it may be about to use it.
        self.inner.note_use(&image.id);
        self.progress.send_modify(|p| p.phase = Phase::Done);
        // The image may have other names as well; what was asked for is what the caller wants to read.
        let (asked, name) = (&self.reference, self.reference.name() + "@");
        image.references.sort_by_key(|r| (r != asked, r.name() != asked.name()));
        image.repo_digests.sort_by_key(|r| !r.starts_with(&name));
        Ok(image)
    }

    async fn complete(&self, auth: &[Credential]) -> Result<Image, PullError> {
        // They last as long as what is written to the disk for this pull, also when nobody waits for it any more.
        let at_work = Arc::new(self.inner.catalog.lease(&[]));
        let (resolved, sources) = self.resolve_trusted(auth).await?;
        if let Some(image) = self.already_here(&resolved, &at_work).await? {
            return Ok(image);
        }
        let (config_bytes, config) = self.config(&resolved).await?;
        let layers = &resolved.manifest.layers;
        if config.diff_ids.len() != layers.len() {
            let problem = format!("has {} diff ids, the manifest has {} layers", config.diff_ids.len(), layers.len());
            return Err(self.invalid("configuration", problem));
        }
        config.check_platform(&self.inner.config.platform).map_err(|offered| self.platform(offered))?;
        let layers_lease = self.inner.catalog.lease(&config.diff_ids);
        self.wait_for_window(&config.diff_ids)?;
        self.until_synced.store(self.inner.may_keep_until_synced(layers), Ordering::Relaxed);
        self.begin_layers(layers);
        let name = resolved.manifest_digest.as_str();
        let mut work: FuturesUnordered<_> = layers
            .iter()
            .zip(&config.diff_ids)
            .enumerate()
            .map(|(number, (blob, diff_id))| self.layer(&sources, name, number, blob, diff_id))
            .collect();
        // After the first failure the others are broken off, and waited for: they clean up after themselves.
        let mut failure = None;
        while let Some(placed) = work.next().await {
            if let Err(error) = placed {
                self.broken_off.cancel();
                failure = failure.or(Some(error));
            }
        }
        drop(work);
        if let Some(error) = failure {
            if matches!(error, PullError::DiskFull { .. }) {
                self.inner.give_up_unsynced(layers);
            }
            return Err(error);
        }
        self.commit(resolved, config_bytes, config, (at_work, layers_lease)).await
    }

    /// Refuses to fetch layers while they are not to be fetched.
    fn wait_for_window(&self, layers: &[Digest]) -> Result<(), PullError> {
        let Some(window) = self.inner.config.download_window.filter(|_| self.when == When::InTheWindow) else {
            return Ok(());
        };
        let Some(wait) = window.opens_in(&jiff::Zoned::now()) else { return Ok(()) };
        if layers.iter().all(|layer| read_layer(&self.inner.catalog.layout, layer).is_some()) {
            return Ok(());
        }
        Err(PullError::OutsideWindow { image: self.reference.to_string(), window, wait })
    }

    /// What a name means at one host.
    pub(crate) async fn resolve_with(
        &self,
        endpoint: &Endpoint,
        login: Option<&Credential>,
        name: &str,
    ) -> Result<Resolved, PullError> {
        let session = Session::open(&self.inner.registries, endpoint, login).await;
        let session = session.map_err(|e| self.registry_error(&endpoint.registry, "access", e, describe(login)))?;
        let session = Arc::new(session);
        let mut documents = Vec::new();
        let (mut digest, mut document) = self.document(&session, name, &mut documents).await?;
        let top = digest.clone();
        for _ in 0..MAX_INDEXES {
            match document {
                Document::Manifest(manifest) => {
                    let signatures = Signatures::default();
                    return Ok(Resolved { session, top, manifest_digest: digest, manifest, documents, signatures });
                }
                Document::Index(entries) => {
                    let entry = manifest::choose(&entries, &self.inner.config.platform);
                    let entry = entry.map_err(|offered| self.platform(offered))?;
                    let chosen = entry.descriptor.digest.clone();
                    (digest, document) = self.document(&session, chosen.as_str(), &mut documents).await?;
                }
            }
        }
        Err(self.invalid("index", format!("leads through more than {MAX_INDEXES} indexes")))
    }

    async fn document(
        &self,
        session: &Session,
        name: &str,
        documents: &mut Vec<(Digest, Vec<u8>)>,
    ) -> Result<(Digest, Document), PullError> {
        let fetched = session.manifest(name).await;
        let Fetched { bytes, content_type, claimed } =
            fetched.map_err(|e| self.session_error(session, "the manifest", e))?;
        let actual = Digest::of(&bytes);
        // By digest it must be that; by tag, what the registry itself says.
        for expected in name.parse::<Digest>().ok().iter().chain(&claimed) {
            if *expected != actual {
                return Err(self.mismatch("manifest", expected, &actual));
            }
        }
        let document =
            manifest::parse(&bytes, content_type.as_deref()).map_err(|problem| self.invalid("manifest", problem))?;
        documents.push((actual.clone(), bytes));
        Ok((actual, document))
    }

    /// The very same manifest was pulled before: only its names may be new.
    async fn already_here(&self, resolved: &Resolved, at_work: &Arc<Lease>) -> Result<Option<Image>, PullError> {
        let record = {
            let state = self.inner.catalog.read();
            let same = |r: &&Record| r.manifest == resolved.manifest_digest;
            state.images.values().map(|e| &e.record).find(same).cloned()
        };
        let Some(record) = record else { return Ok(None) };
        let (inner, id) = (self.inner.clone(), record.id);
        let (tag, pinned_to) = self.names(&resolved.top);
        let (documents, kept, at_work) = (resolved.documents.clone(), resolved.signatures.clone(), at_work.clone());
        let done = self.blocking(move || {
            let _at_work = at_work;
            for (digest, bytes) in &documents {
                inner.catalog.layout.write_blob(digest, bytes, true)?;
            }
            let named = inner.add_names(&id, tag, Some(pinned_to), documents.into_iter().map(|(d, _)| d))?;
            inner.keep_signatures(&id, &kept)?;
            Ok(named)
        });
        done.await?.map_err(|e| self.place_error(None, PlaceError::Store(e)))
    }

    /// The tag and the pinned name that this pull gives its image.
    fn names(&self, top: &Digest) -> (Option<ImageRef>, ImageRef) {
        // With a digest the tag is only a remark, which need not be true.
        let tag = self.reference.digest().is_none().then(|| self.reference.clone());
        (tag, self.reference.with_digest(top.clone()))
    }

    pub(crate) async fn config(&self, resolved: &Resolved) -> Result<(Vec<u8>, ImageConfig), PullError> {
        let blob = &resolved.manifest.config;
        let (path, size) = (self.inner.catalog.layout.blob(&blob.digest), blob.size);
        // A manifest may call anything its configuration, also a kept layer of another image: the size that it gives
        // was checked, and nothing longer is read.
        let kept = self.blocking(move || {
            let there = std::fs::metadata(&path).is_ok_and(|file| file.len() == size);
            there.then(|| std::fs::read(&path).ok()).flatten()
        });
        let bytes = match kept.await?.filter(|b| Digest::of(b) == blob.digest) {
            Some(bytes) => bytes,
            None => self.small_blob(&resolved.session, blob).await?,
        };
        let actual = Digest::of(&bytes);
        if actual != blob.digest {
            return Err(self.mismatch("configuration", &blob.digest, &actual));
        }
        let config = parse_config(&bytes).map_err(|problem| self.invalid("configuration", problem))?;
        Ok((bytes, config))
    }

    async fn small_blob(&self, session: &Session, blob: &Descriptor) -> Result<Vec<u8>, PullError> {
        let limit = blob.size.min(MAX_CONFIG);
        let what = "the configuration";
        let (mut stream, _) = session.blob(blob, 0).await.map_err(|e| self.session_error(session, what, e))?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| self.session_error(session, what, e))?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(self.invalid("configuration", format!("has more than the {limit} bytes promised")));
            }
        }
        if bytes.len() as u64 != blob.size {
            let problem = format!("has {} bytes where {} are promised", bytes.len(), blob.size);
            return Err(self.invalid("configuration", problem));
        }
        Ok(bytes)
    }

    fn begin_layers(&self, layers: &[Descriptor]) {
        self.progress.send_modify(|progress| {
            progress.phase = Phase::Fetching;
            progress.layers = layers.iter().map(LayerProgress::waiting).collect();
        });
    }

    pub(crate) fn show(&self, number: usize, change: impl FnOnce(&mut LayerProgress)) {
        self.progress.send_modify(|p| {
            if let Some(layer) = p.layers.get_mut(number) {
                change(layer);
            }
        });
    }

    /// Has one layer in place when it returns. A lock is never waited for with a download slot in hand.
    async fn layer(
        &self,
        sources: &Sources,
        manifest: &str,
        number: usize,
        blob: &Descriptor,
        diff_id: &Digest,
    ) -> Result<(), PullError> {
        let registry = self.reference.registry();
        let lock = self.inner.layer_locks.of(registry, diff_id);
        let _only_one = lock.lock().await;
        let layout = &self.inner.catalog.layout;
        let in_place = read_layer(layout, diff_id).is_some();
        // An earlier pull may have been broken off, or have kept none.
        let lacks_blob =
            self.inner.config.keep_blobs == KeepBlobs::Always && !is_there(&layout.blob(&blob.digest), blob);
        if in_place && !lacks_blob {
            self.show(number, |l| (l.done, l.present) = (true, true));
            return Ok(());
        }
        let _slot = self.inner.downloads.take(registry).await;
        if self.broken_off.is_cancelled() {
            return Err(PullError::Interrupted { image: self.reference.to_string() });
        }
        self.progress.send_if_modified(|p| {
            let first = p.began.is_none();
            p.began.get_or_insert_with(Instant::now);
            first
        });
        if in_place {
            self.keep(sources, manifest, number, blob).await?;
            self.show(number, |l| l.done = true);
            return Ok(());
        }
        let expected = Expected { blob: Some(blob.digest.clone()), length: blob.size, diff_id: diff_id.clone() };
        if self.place_unsynced(expected.clone()).await? {
            self.show(number, |l| (l.done, l.present) = (true, true));
            return Ok(());
        }
        if self.place_in_parts(sources, manifest, number, blob, diff_id).await? {
            self.show(number, |l| l.done = true);
            return Ok(());
        }
        let (inner, spare, blob_digest) = (self.inner.clone(), self.spare.clone(), blob.digest.clone());
        let until_synced = self.until_synced.load(Ordering::Relaxed);
        let take = move |chunks: Chunks| {
            let (layout, limits) = (&inner.catalog.layout, &inner.config.limits);
            let keeps = inner.config.keep_blobs == KeepBlobs::Always;
            if !keeps && !until_synced {
                return place_blocking(layout, chunks, &expected, limits, &spare, &inner.boot);
            }
            let mut kept = Kept::new(layout, chunks)?;
            let placed = place_blocking(layout, &mut kept, &expected, limits, &spare, &inner.boot)?;
            // Its digest was verified with the layer's.
            if keeps {
                kept.commit(&layout.blob(&blob_digest))?;
            } else if let Err(error) = kept.commit(&layout.unsynced_blob(&blob_digest)) {
                tracing::debug!(digest = %blob_digest, error = %chain(&error), "a layer is not kept until it is synced");
            }
            Ok(placed)
        };
        self.bring(sources, manifest, number, blob, take).await?;
        self.show(number, |l| l.done = true);
        Ok(())
    }

    /// Brings a blob that is to be kept of a layer that is in place.
    async fn keep(&self, sources: &Sources, manifest: &str, number: usize, blob: &Descriptor) -> Result<(), PullError> {
        let (inner, digest, size) = (self.inner.clone(), blob.digest.clone(), blob.size);
        let take = move |chunks: Chunks| {
            let layout = &inner.catalog.layout;
            let staging = layout.stage("blob")?;
            let (path, target) = (staging.path().join("blob"), layout.blob(&digest));
            copy_verified(chunks, &path, &digest, size)?;
            let kept = std::fs::rename(&path, &target);
            Ok(kept.map_err(|source| StoreError::Io { operation: "keeping", path: target, source })?)
        };
        self.bring(sources, manifest, number, blob, take).await
    }

    /// Unpacks a layer whose blob an earlier pull has left, before the machine went down. Whether there was a whole one.
    async fn place_unsynced(&self, expected: Expected) -> Result<bool, PullError> {
        let Some(digest) = expected.blob.clone() else { return Ok(false) };
        let path = self.inner.catalog.layout.unsynced_blob(&digest);
        if !std::fs::metadata(&path).is_ok_and(|file| file.len() == expected.length) {
            return Ok(false);
        }
        let (inner, spare, from) = (self.inner.clone(), self.spare.clone(), path.clone());
        let placed = self.blocking(move || -> Result<(), PlaceError> {
            let failed = |source| LayerError::Read(Arc::new(source));
            let input = BufReader::with_capacity(1 << 18, File::open(&from).map_err(failed)?);
            let layout = &inner.catalog.layout;
            place_blocking(layout, input, &expected, &inner.config.limits, &spare, &inner.boot)?;
            if let (KeepBlobs::Always, Some(digest)) = (inner.config.keep_blobs, &expected.blob) {
                let target = layout.blob(digest);
                let kept = std::fs::rename(&from, &target);
                kept.map_err(|source| StoreError::Io { operation: "keeping", path: target, source })?;
            }
            Ok(())
        });
        let Err(error) = placed.await? else { return Ok(true) };
        if !error.is_of_its_bytes() && !matches!(error, PlaceError::Layer(LayerError::Read(_))) {
            return Err(self.place_error(Some(&digest), error));
        }
        tracing::debug!(%digest, error = %chain(&error), "what was left of a layer is not whole, and is fetched");
        // One that cannot be removed is replaced by what is fetched.
        let _replaced = std::fs::remove_file(&path);
        Ok(false)
    }

    /// Has a blob taken by who needs it; when what a host sent is not what was promised, all of it again from the next.
    pub(crate) async fn bring<T: Send + 'static>(
        &self,
        sources: &Sources,
        manifest: &str,
        number: usize,
        blob: &Descriptor,
        take: impl Fn(Chunks) -> Result<T, PlaceError> + Clone + Send + 'static,
    ) -> Result<T, PullError> {
        let mut place = 0;
        loop {
            let begun_at = place;
            let (sink, chunks) = Chunks::channel();
            let take = take.clone();
            let taken = self.blocking(move || take(chunks));
            let fetched = self.fetch(sources, &mut place, manifest, number, blob, sink);
            let (fetched, taken) = tokio::join!(fetched, taken);
            match (fetched, taken?) {
                // What the registry said comes before what its absence caused.
                (Err(e), Err(_)) => return Err(e),
                (Ok(()), Err(e)) => {
                    let sent_wrong = e.is_of_its_bytes() && !self.broken_off.is_cancelled();
                    let error = self.place_error(Some(&blob.digest), e);
                    // Parts of several hosts say nothing of the last one: it gets its turn from the beginning.
                    let mixed = place != begun_at;
                    if !sent_wrong || !mixed && !sources.has_after(place).await {
                        return Err(error);
                    }
                    if !mixed && let Some(host) = sources.host(self, place, manifest).await {
                        self.note_tried(host.registry(), &error);
                    }
                    place += usize::from(!mixed);
                    self.show(number, |l| l.fetched_bytes = 0);
                }
                (_, Ok(taken)) => return Ok(taken),
            }
        }
    }

    /// Sends a blob's bytes to whoever unpacks them; takes up again where a transfer broke off, at the next host
    /// when one does not get on. `place` is the first host to ask, and then the last that was.
    async fn fetch(
        &self,
        sources: &Sources,
        place: &mut usize,
        manifest: &str,
        number: usize,
        blob: &Descriptor,
        sink: mpsc::Sender<Result<Bytes, LayerError>>,
    ) -> Result<(), PullError> {
        let mut offset = 0;
        let mut failed = None;
        while let Some(session) = sources.host(self, *place, manifest).await {
            let patience = if sources.has_after(*place).await { MIRROR_RESUMPTIONS } else { MAX_RESUMPTIONS };
            let Err(failure) = self.fetch_from(&session, patience, number, blob, &mut offset, &sink).await else {
                return Ok(());
            };
            let failure = self.fetch_error(&session, blob, failure);
            if sources.has_after(*place).await {
                self.note_tried(session.registry(), &failure);
            }
            failed = Some(failure);
            *place += 1;
        }
        Err(failed.unwrap_or_else(|| PullError::Interrupted { image: self.reference.to_string() }))
    }

    /// As [`Pull::fetch`], at one host alone.
    pub(crate) async fn fetch_at(
        &self,
        session: &Arc<Session>,
        number: usize,
        blob: &Descriptor,
        sink: mpsc::Sender<Result<Bytes, LayerError>>,
    ) -> Result<(), PullError> {
        let fetched = self.fetch_from(session, MAX_RESUMPTIONS, number, blob, &mut 0, &sink).await;
        fetched.map_err(|failure| self.fetch_error(session, blob, failure))
    }

    fn fetch_error(&self, session: &Session, blob: &Descriptor, failure: Failure) -> PullError {
        match failure {
            Failure::Refused(error) => {
                let what = match is_foreign(&blob.media_type) {
                    true => "a layer that registries may not pass on (non-distributable): its maker has it",
                    false => "a layer",
                };
                self.session_error(session, what, error)
            }
            // Whoever unpacks learns it in the place where the bytes are missing, if nobody else has them.
            Failure::CutOff(error) => {
                let source = LayerError::Read(Arc::new(error));
                PullError::Layer { image: self.reference.to_string(), digest: blob.digest.clone(), source }
            }
        }
    }

    /// As [`Pull::fetch`], at one host; `offset` is where the bytes end that were sent.
    async fn fetch_from(
        &self,
        session: &Arc<Session>,
        patience: u32,
        number: usize,
        blob: &Descriptor,
        offset: &mut u64,
        sink: &mpsc::Sender<Result<Bytes, LayerError>>,
    ) -> Result<(), Failure> {
        let (first, mut resumptions) = (*offset, 0);
        while *offset < blob.size {
            let begun_at = *offset;
            let midway = resumptions > 0 || begun_at > first;
            let error = match session.layer(blob, *offset).await {
                Ok((mut stream, from_beginning)) => {
                    let mut skip = if from_beginning { *offset } else { 0 };
                    loop {
                        let next = tokio::select! {
                            // cancel-safe: the stream is not used again.
                            () = self.broken_off.cancelled() => return Ok(()),
                            next = stream.next() => next,
                        };
                        match next {
                            Some(Ok(mut chunk)) => {
                                let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
                                chunk.advance(skipped);
                                skip -= skipped as u64;
                                let length = chunk.len() as u64;
                                if length > 0 && sink.send(Ok(chunk)).await.is_err() {
                                    // The unpacker has given up, and says why itself.
                                    return Ok(());
                                }
                                *offset += length;
                                self.show(number, |l| l.fetched_bytes = *offset);
                            }
                            Some(Err(e)) => break io::Error::other(e),
                            None => break io::ErrorKind::UnexpectedEof.into(),
                        }
                    }
                }
                Err(e) => {
                    let passes = if midway { e.is_transient_midway() } else { e.is_transient() };
                    if !passes || resumptions >= patience {
                        return Err(Failure::Refused(e));
                    }
                    io::Error::other(e)
                }
            };
            if *offset >= blob.size {
                break;
            }
            resumptions = if *offset - begun_at >= WORTHWHILE { 0 } else { resumptions + 1 };
            if resumptions > patience {
                return Err(Failure::CutOff(error));
            }
            tracing::debug!(digest = %blob.digest, offset, %error, "layer transfer was cut off");
            tokio::time::sleep(std::time::Duration::from_millis(200) * 2_u32.pow(resumptions)).await;
        }
        Ok(())
    }

    async fn commit(
        &self,
        resolved: Resolved,
        config_bytes: Vec<u8>,
        config: ImageConfig,
        leases: (Arc<Lease>, Lease),
    ) -> Result<Image, PullError> {
        let (tag, pinned_to) = self.names(&resolved.top);
        let inner = self.inner.clone();
        let config_digest = resolved.manifest.config.digest.clone();
        let done = self.blocking(move || {
            let _leases = leases;
            inner.catalog.layout.write_blob(&config_digest, &config_bytes, false)?;
            for (digest, bytes) in &resolved.documents {
                inner.catalog.layout.write_blob(digest, bytes, false)?;
            }
            let documents = resolved.documents.into_iter().map(|(d, _)| d);
            // Those that this pull has kept, and those that another image has.
            let is_kept = |layer: &Descriptor| {
                let blob = std::fs::metadata(inner.catalog.layout.blob(&layer.digest));
                blob.is_ok_and(|blob| blob.len() == layer.size)
            };
            let (kept, passing): (Vec<_>, Vec<_>) = resolved.manifest.layers.into_iter().partition(is_kept);
            let digests = |layers: Vec<Descriptor>| layers.into_iter().map(|layer| layer.digest);
            let until_synced =
                digests(passing).filter(|digest| inner.catalog.layout.unsynced_blob(digest).exists()).collect();
            let new = super::NewImage {
                id: ImageId::new(config_digest),
                manifest: resolved.manifest_digest,
                references: tag.into_iter().collect(),
                repo_digests: [pinned_to].into(),
                blobs: documents.chain(digests(kept)).collect(),
                until_synced,
                config,
                pinned: false,
            };
            let image = inner.commit_blocking(new)?;
            inner.keep_signatures(&image.id, &resolved.signatures)?;
            Ok(image)
        });
        done.await?.map_err(|e| self.place_error(None, e))
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PullError> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| PullError::Interrupted { image: self.reference.to_string() })
    }

    pub(crate) fn invalid(&self, what: &'static str, problem: String) -> PullError {
        PullError::Invalid { image: self.reference.to_string(), what, problem: shown(&problem) }
    }

    fn platform(&self, offered: String) -> PullError {
        let wanted = self.inner.config.platform.to_string();
        PullError::Platform { image: self.reference.to_string(), wanted, offered: shown(&offered) }
    }

    pub(crate) fn mismatch(&self, what: &str, expected: &Digest, actual: &Digest) -> PullError {
        PullError::DigestMismatch {
            image: self.reference.to_string(),
            what: what.to_owned(),
            expected: expected.clone(),
            actual: actual.clone(),
        }
    }

    pub(crate) fn session_error(&self, session: &Session, what: &str, source: RegistryError) -> PullError {
        self.registry_error(session.registry(), what, source, session.login())
    }

    pub(crate) fn registry_error(&self, registry: &str, what: &str, source: RegistryError, login: String) -> PullError {
        let (image, registry) = (self.reference.to_string(), registry.to_owned());
        match &source {
            RegistryError::Connect { .. } | RegistryError::Setup { .. } => {
                PullError::CannotConnect { registry, cause: source.cause(), source }
            }
            RegistryError::Status { status: 404, .. } if what == "the manifest" => PullError::NotFound { image },
            RegistryError::Status { status: 401 | 403, .. } => PullError::Unauthorized { image, detail: login },
            _ => PullError::Registry { registry, what: what.to_owned(), source },
        }
    }

    pub(crate) fn place_error(&self, layer: Option<&Digest>, error: PlaceError) -> PullError {
        let image = self.reference.to_string();
        if error.is_disk_full() {
            return PullError::DiskFull { image, path: self.inner.config.root.clone() };
        }
        match (error, layer) {
            (PlaceError::Layer(LayerError::Blob { expected, actual }), _) => {
                PullError::DigestMismatch { image, what: "layer blob".to_owned(), expected, actual }
            }
            (PlaceError::Layer(LayerError::DiffId { expected, actual }), _) => {
                PullError::DigestMismatch { image, what: "unpacked layer".to_owned(), expected, actual }
            }
            (PlaceError::Layer(source), Some(digest)) => PullError::Layer { image, digest: digest.clone(), source },
            (PlaceError::Layer(source), None) => {
                PullError::Invalid { image, what: "layer", problem: source.to_string() }
            }
            (PlaceError::Image(problem), _) => PullError::Invalid { image, what: "layers", problem },
            (PlaceError::Store(source), _) => PullError::Store { image, source: Arc::new(source) },
        }
    }
}
