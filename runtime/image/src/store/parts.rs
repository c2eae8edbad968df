//! A layer that is put in place from parts of its blob and from files of other layers.
//!
//! **Invariant:** whatever goes wrong here, the layer is pulled whole; only a full disk fails the pull, as it would then.

use std::{
    future::ready,
    io::{self, BufReader},
    ops::Range,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use portreeve_sys::chain;
use tokio::sync::mpsc;

use crate::{
    digest::Digest,
    layer::{Expected, LayerError},
    manifest::Descriptor,
    partial::{Chunked, FOOTER, Offer, PartialError, Prepared, Stargz, check_worth, tar_split},
    progress::LayerProgress,
    record,
    registry::{Body, Pieces, RegistryError, Session},
    store::{
        KeepBlobs, PullError,
        chunks::Chunks,
        layers::{PlaceError, place_blocking},
        layout::{Layout, entries, name_of},
        pull::Pull,
        sources::Sources,
    },
    text::shown,
};

/// How often a part is asked for again from where it broke off.
const MAX_RESUMPTIONS: u32 = 3;
/// What is waited before the first of them, then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(300);
/// Parts that are nearer to each other than so many bytes come with one request.
const NEAR: u64 = 64 << 10;

/// Why a layer is pulled whole.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Partial(#[from] PartialError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Pull(#[from] PullError),
}

impl Pull {
    /// Has a layer in place without all of its blob; `false` when that cannot be, or is not wanted.
    pub(crate) async fn place_in_parts(
        &self,
        sources: &Sources,
        manifest: &str,
        number: usize,
        blob: &Descriptor,
        diff_id: &Digest,
    ) -> Result<bool, PullError> {
        let config = &self.inner.config;
        if !config.partial_pulls || config.keep_blobs == KeepBlobs::Always {
            return Ok(false);
        }
        let Some(offer) = Offer::of(blob) else { return Ok(false) };
        let placed = match (offer, sources.host(self, 0, manifest).await) {
            (Err(error), _) => Err(error.into()),
            (_, None) => return Ok(false),
            (Ok(offer), Some(session)) => self.try_in_parts(&session, number, blob, diff_id, offer).await,
        };
        let problem = match placed {
            Ok(()) => return Ok(true),
            Err(_) if self.broken_off.is_cancelled() => {
                return Err(PullError::Interrupted { image: self.reference.to_string() });
            }
            Err(Failure::Place(error)) if error.is_disk_full() => {
                return Err(self.place_error(Some(&blob.digest), error));
            }
            Err(failure) => shown(&chain(&failure)),
        };
        tracing::debug!(image = %self.reference, digest = %blob.digest, problem, "layer is pulled whole");
        self.show(number, |l| *l = LayerProgress { whole: Some(problem), ..LayerProgress::waiting(blob) });
        Ok(false)
    }

    async fn try_in_parts(
        &self,
        session: &Session,
        number: usize,
        blob: &Descriptor,
        diff_id: &Digest,
        offer: Offer,
    ) -> Result<(), Failure> {
        let inner = self.inner.clone();
        let layers = self.blocking(move || recorded(&inner.catalog.layout)).await??;
        if layers.is_empty() {
            return Err(PartialError::NothingHere.into());
        }
        let prepared = self.prepare(session, number, blob, offer, layers).await?;
        let most = blob.size.saturating_mul(self.inner.config.limits.ratio);
        if prepared.content_bytes() > most {
            return Err(
                PartialError::Limit { what: "the table of contents", limit: most, unit: "bytes of files" }.into()
            );
        }
        let requests = prepared.plan.requests.clone();
        let (total, reused) = (prepared.plan.fetched_bytes, prepared.reused_bytes);
        self.show(number, |l| (l.total_bytes, l.reused_bytes) = (l.fetched_bytes + total, reused));
        // So that they stay; what is taken from them is verified in any case.
        let lease = self.inner.catalog.lease(&prepared.layers());
        let (inner, expected) =
            (self.inner.clone(), Expected { blob: None, length: blob.size, diff_id: diff_id.clone() });
        let (sink, chunks) = Chunks::channel();
        let placed = self.blocking(move || -> Result<(), Failure> {
            let _lease = lease;
            let archive = BufReader::with_capacity(1 << 16, prepared.rebuild(chunks)?);
            // What the layers of an image share is for those that are pulled whole.
            let spare = AtomicU64::new(0);
            let (layout, limits) = (&inner.catalog.layout, &inner.config.limits);
            place_blocking(layout, archive, &expected, limits, &spare, &inner.boot)?;
            Ok(())
        });
        let fetched = self.fetch_parts(session, number, blob, requests, sink);
        match tokio::join!(fetched, placed) {
            (_, Ok(Ok(()))) => Ok(()),
            // What the registry said comes before what its absence caused.
            (Err(error), _) => Err(error.into()),
            (Ok(()), placed) => placed?,
        }
    }

    /// Reads the layer's table of contents, and finds what is here of it.
    async fn prepare(
        &self,
        session: &Session,
        number: usize,
        blob: &Descriptor,
        offer: Offer,
        layers: Vec<(Digest, PathBuf)>,
    ) -> Result<Prepared, Failure> {
        let (cost, prepared) = match offer {
            Offer::Chunked { table, digest, tar_split: split, tar_split_digest } => {
                let split_at = split.as_ref().map(|part| part.at.clone());
                let cost = table.at.end - table.at.start + split_at.as_ref().map_or(0, |at| at.end - at.start);
                // The table alone may cost too much.
                check_worth(blob.size, cost)?;
                let (packed, packed_split) =
                    self.two_parts(session, number, blob, &table.at, split_at.as_ref()).await?;
                let prepared = self.blocking(move || {
                    let layer = Chunked::read(&packed, &table, &digest, split.as_ref(), tar_split_digest)?;
                    drop(packed);
                    let headers = match (split, packed_split, &layer.tar_split) {
                        (Some(part), Some(packed), Some(digest)) => Some((tar_split(packed, digest)?, part.unpacked)),
                        _ => None,
                    };
                    Prepared::chunked(layer, headers, layers)
                });
                (cost, prepared.await??)
            }
            Offer::Stargz { digest } => {
                let footer = blob.size.saturating_sub(FOOTER)..blob.size;
                let footer = self.part(session, number, blob, footer).await?;
                let tail = Stargz::tail(&footer, blob.size)?;
                let cost = FOOTER + tail.end - tail.start;
                check_worth(blob.size, cost)?;
                let packed = self.part(session, number, blob, tail.clone()).await?;
                let prepare = move || Prepared::stargz(Stargz::read(packed, tail.start, &digest)?, layers);
                (cost, self.blocking(prepare).await??)
            }
        };
        check_worth(blob.size, prepared.plan.fetched_bytes.saturating_add(cost))?;
        Ok(prepared)
    }

    /// Two parts of a blob, by one request when they are near each other.
    async fn two_parts(
        &self,
        session: &Session,
        number: usize,
        blob: &Descriptor,
        first: &Range<u64>,
        second: Option<&Range<u64>>,
    ) -> Result<(Bytes, Option<Bytes>), Failure> {
        let Some(second) = second else { return Ok((self.part(session, number, blob, first.clone()).await?, None)) };
        let both = first.start.min(second.start)..first.end.max(second.end);
        let length = |range: &Range<u64>| range.end - range.start;
        if length(&both) > length(first) + length(second) + NEAR {
            let (first, second) = (first.clone(), second.clone());
            let first = self.part(session, number, blob, first).await?;
            return Ok((first, Some(self.part(session, number, blob, second).await?)));
        }
        let bytes = self.part(session, number, blob, both.clone()).await?;
        let place = |range: &Range<u64>| {
            let at = |place: u64| usize::try_from(place - both.start).expect("parts of a table fit in memory");
            at(range.start)..at(range.end)
        };
        Ok((bytes.slice(place(first)), Some(bytes.slice(place(second)))))
    }

    /// One part of a blob, which is small.
    async fn part(
        &self,
        session: &Session,
        number: usize,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Bytes, Failure> {
        let (sink, mut pieces) = mpsc::channel(1);
        let fetching = self.fetch_parts(session, number, blob, vec![range.clone()], sink);
        let collecting = async {
            let mut bytes = BytesMut::new();
            while let Some(Ok(piece)) = pieces.recv().await {
                bytes.extend_from_slice(&piece);
            }
            bytes.freeze()
        };
        let (fetched, bytes) = tokio::join!(fetching, collecting);
        fetched?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(PullError::Interrupted { image: self.reference.to_string() }.into());
        }
        Ok(bytes)
    }

    /// Sends parts of a blob, one behind the other, to whoever reads them.
    async fn fetch_parts(
        &self,
        session: &Session,
        number: usize,
        blob: &Descriptor,
        requests: Vec<Range<u64>>,
        sink: mpsc::Sender<Result<Bytes, LayerError>>,
    ) -> Result<(), RegistryError> {
        let ask = |range: Range<u64>| async move { (part_of(session, blob, &range).await, range) };
        let mut answers = stream::iter(requests).map(ask).buffered(self.inner.config.connections_per_layer.max(1));
        let mut begun = false;
        loop {
            let next = tokio::select! {
                // cancel-safe: the answers are not used again.
                () = self.broken_off.cancelled() => return Ok(()),
                next = answers.next() => next,
            };
            let Some((answer, mut left)) = next else { return Ok(()) };
            let mut pieces = match answer {
                // It was asked for beside others of which something came.
                Err(error) if !(begun && error.is_transient_midway()) => return Err(error),
                answer => pieces_of(answer),
            };
            let mut resumptions = 0;
            while !left.is_empty() {
                let next = tokio::select! {
                    // cancel-safe: the pieces are not used again.
                    () = self.broken_off.cancelled() => return Ok(()),
                    next = pieces.next() => next,
                };
                let error = match next {
                    Some(Ok(mut piece)) => {
                        piece.truncate(usize::try_from(left.end - left.start).unwrap_or(usize::MAX));
                        let length = piece.len() as u64;
                        left.start += length;
                        begun = true;
                        self.show(number, |l| l.fetched_bytes += length);
                        if sink.send(Ok(piece)).await.is_err() {
                            // Whoever reads them has all, or has given up and says why himself.
                            return Ok(());
                        }
                        continue;
                    }
                    Some(Err(error)) => error,
                    None => RegistryError::Transfer {
                        url: session.url("blobs", blob.digest.as_str()),
                        source: Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    },
                };
                if resumptions >= MAX_RESUMPTIONS || !error.is_transient_midway() {
                    return Err(error);
                }
                tracing::debug!(digest = %blob.digest, ?left, error = %chain(&error), "a part of a layer was cut off");
                tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(resumptions)).await;
                resumptions += 1;
                pieces = pieces_of(part_of(session, blob, &left).await);
            }
        }
    }
}

/// Asks for a part of a blob, which is not empty. What comes in its place is found out by its digest.
async fn part_of(session: &Session, blob: &Descriptor, range: &Range<u64>) -> Result<Body, RegistryError> {
    let (body, from_beginning) = session.range(blob, range.start, Some(range.end - range.start)).await?;
    if from_beginning {
        let problem = "it is the whole blob where a part was asked for".to_owned();
        return Err(RegistryError::Protocol { url: session.url("blobs", blob.digest.as_str()), problem });
    }
    Ok(body)
}

/// What came of a request, which may be nothing but why.
fn pieces_of(answer: Result<Body, RegistryError>) -> Pieces {
    match answer {
        Ok(body) => body.pieces(),
        Err(error) => stream::once(ready(Err(error))).boxed(),
    }
}

/// The layers that are here with a record of their files.
fn recorded(layout: &Layout) -> Result<Vec<(Digest, PathBuf)>, PlaceError> {
    let directories = entries(&layout.layers())?;
    let layers = directories.into_iter().filter_map(|directory| {
        let layer = Digest::from_hex(name_of(&directory)?).ok()?;
        directory.join(record::FILE).exists().then_some((layer, directory))
    });
    Ok(layers.collect())
}
