//! Sending blobs and manifests to a registry.
//!
//! Source: OCI distribution-spec v1.1, §Push.

use std::{
    future::Future,
    io::SeekFrom,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    time::timeout,
};
use tokio_util::io::ReaderStream;

use crate::{
    digest::Digest,
    hosts::Access,
    manifest::Descriptor,
    registry::{
        Needs, RegistryError, Session,
        follow::{self, Sent},
        patience::Patience,
    },
};

/// Blobs up to this size are sent in one request.
const SMALL: u64 = 1 << 20;
/// Bytes that are read of a file at a time.
const PIECE: usize = 256 << 10;
/// How often an upload that broke off is taken up again without getting on.
const MAX_RESUMPTIONS: u32 = 4;
/// What an upload must have brought more than ever before to count as one that gets on, in bytes.
const WORTHWHILE: u64 = 64 << 10;
/// How long a registry may take to put a blob together of which it has all bytes.
const ASSEMBLY: Duration = Duration::from_secs(600);
/// How often it is looked at whether an upload gets on.
const WATCH: Duration = Duration::from_millis(500);

/// An upload that a registry has begun.
struct Upload {
    location: Url,
    /// Who has sent us there.
    sent: Sent,
}

impl Session {
    /// Whether the repository has a blob already.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let url = self.url("blobs", digest.as_str());
        let answer = self.ask(&url, || self.request(Method::HEAD, &url)).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.complaint(url, answer).await),
        }
    }

    /// Has the registry take a blob from another of its repositories; `false` when it does not.
    pub(crate) async fn mount(&self, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let url = self.url("blobs", "uploads/");
        let query = [("mount", digest.as_str()), ("from", from)];
        let answer = self.ask(&url, || self.request(Method::POST, &url).query(&query)).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(true),
            // It began an upload instead, which nobody goes on with; registries forget those.
            StatusCode::ACCEPTED => Ok(false),
            // Nor does one help that does not let us read there.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.complaint(url, answer).await),
        }
    }

    /// Sends a blob, taking up again where a transfer broke off; `sent` hears how far it is.
    pub(crate) async fn upload(&self, blob: &Descriptor, file: &Path, sent: impl Fn(u64)) -> Result<(), RegistryError> {
        let mut upload = self.begin().await?;
        let mut body = Vec::new();
        if blob.size > SMALL {
            self.send_rest(&mut upload, blob, file, &sent).await?;
        } else {
            body = tokio::fs::read(file).await.map_err(|e| broken(&shown_url(&upload.location), e))?;
        }
        let http = self.client_at(&upload)?;
        let mut last = upload.location;
        last.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let url = shown_url(&last);
        let request = || {
            let request = self.at(&http, Method::PUT, &last).header(CONTENT_TYPE, "application/octet-stream");
            request.header(CONTENT_LENGTH, body.len()).body(body.clone())
        };
        let answer = timeout(ASSEMBLY, self.ask(&url, request)).await;
        let answer = answer.map_err(|_| silent(&url))??;
        if answer.status() != StatusCode::CREATED {
            return Err(self.complaint(url, answer).await);
        }
        sent(blob.size);
        Ok(())
    }

    async fn begin(&self) -> Result<Upload, RegistryError> {
        let url = self.url("blobs", "uploads/");
        let answer = self.ask(&url, || self.request(Method::POST, &url).header(CONTENT_LENGTH, 0)).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.complaint(url, answer).await);
        }
        let base = Url::parse(&url).map_err(|e| broken(&url, std::io::Error::other(e)))?;
        self.goes_on(&base, &answer)
    }

    async fn send_rest(
        &self,
        upload: &mut Upload,
        blob: &Descriptor,
        file: &Path,
        sent: &impl Fn(u64),
    ) -> Result<(), RegistryError> {
        let (mut best, mut resumptions, mut patience) = (0, 0, Patience::default());
        let mut taken_up = false;
        let mut sending = self.send_from(upload, blob, file, 0, sent).await;
        while let Err(error) = sending {
            if resumptions >= MAX_RESUMPTIONS {
                return Err(error);
            }
            let pause = match error.retry_after() {
                Some(pause) => patience.take(pause),
                None => {
                    let passes = if taken_up { error.is_transient_midway() } else { error.is_transient() };
                    passes.then(|| Duration::from_millis(200) * 2_u32.pow(resumptions))
                }
            };
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(digest = %blob.digest, ?pause, %error, "upload was cut off");
            tokio::time::sleep(pause).await;
            (taken_up, resumptions) = (true, resumptions + 1);
            sending = match self.take_up(upload).await {
                Ok(offset) => {
                    let offset = offset.min(blob.size);
                    sent(offset);
                    // What was had before and forgotten is no progress, nor are a few bytes.
                    if offset >= best + WORTHWHILE {
                        (resumptions, patience) = (0, Patience::default());
                    }
                    best = best.max(offset);
                    if offset == blob.size {
                        return Ok(());
                    }
                    self.send_from(upload, blob, file, offset, sent).await
                }
                Err(error) => Err(error),
            };
        }
        Ok(())
    }

    /// Finds out where an upload goes on that was cut off, or begins it anew.
    async fn take_up(&self, upload: &mut Upload) -> Result<u64, RegistryError> {
        match self.has_come(upload).await {
            // Many registries forget what broke off in the middle of a request.
            Err(e) if e.status().is_some_and(|status| (400..500).contains(&status)) => {
                *upload = self.begin().await?;
                Ok(0)
            }
            other => other,
        }
    }

    async fn send_from(
        &self,
        upload: &mut Upload,
        blob: &Descriptor,
        path: &Path,
        offset: u64,
        sent: &impl Fn(u64),
    ) -> Result<(), RegistryError> {
        let url = shown_url(&upload.location);
        let mut file = File::open(path).await.map_err(|e| broken(&url, e))?;
        file.seek(SeekFrom::Start(offset)).await.map_err(|e| broken(&url, e))?;
        let rest = blob.size - offset;
        let taken = Arc::new(AtomicU64::new(0));
        let counted = taken.clone();
        let pieces = ReaderStream::with_capacity(file.take(rest), PIECE).inspect_ok(move |piece| {
            counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
        });
        let http = self.client_at(upload)?;
        let request = self.at(&http, Method::PATCH, &upload.location).header(CONTENT_TYPE, "application/octet-stream");
        let mut request = request.header(CONTENT_LENGTH, rest);
        if offset > 0 {
            request = request.header(CONTENT_RANGE, format!("{offset}-{}", blob.size - 1));
        }
        let sending = request.body(reqwest::Body::wrap_stream(pieces)).send();
        let state = || {
            let taken = taken.load(Ordering::Relaxed);
            sent(offset + taken);
            (taken, taken >= rest)
        };
        let answer = self.watched(&url, sending, state).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                *upload = self.goes_on(&upload.location, &answer)?;
                Ok(())
            }
            StatusCode::UNAUTHORIZED => {
                self.log_in().await?;
                // Taken up again with the new token.
                Err(broken(&url, std::io::Error::other("the login had expired")))
            }
            _ => Err(self.complaint(url, answer).await),
        }
    }

    /// Waits for an answer as long as bytes are taken; `state` tells how many were, and whether those are all.
    async fn watched(
        &self,
        url: &str,
        sending: impl Future<Output = Result<Response, reqwest::Error>>,
        state: impl Fn() -> (u64, bool),
    ) -> Result<Response, RegistryError> {
        let mut sending = std::pin::pin!(sending);
        let mut seen = state();
        let mut last = Instant::now();
        loop {
            let limit = if seen.1 { ASSEMBLY } else { self.registries.terms.stall_timeout };
            // cancel-safe: the request goes on where it was.
            if let Ok(answer) = timeout(WATCH.min(limit), sending.as_mut()).await {
                return answer.map_err(|e| RegistryError::from_request(url, e));
            }
            let now = state();
            if now != seen {
                (seen, last) = (now, Instant::now());
            } else if last.elapsed() >= limit {
                return Err(silent(url));
            }
        }
    }

    /// How much of an upload the registry has.
    async fn has_come(&self, upload: &mut Upload) -> Result<u64, RegistryError> {
        let location = upload.location.clone();
        let (url, http) = (shown_url(&location), self.client_at(upload)?);
        let asked =
            timeout(self.registries.terms.stall_timeout, self.ask(&url, || self.at(&http, Method::GET, &location)));
        let answer = asked.await.map_err(|_| silent(&url))??;
        if answer.status() != StatusCode::NO_CONTENT {
            return Err(self.complaint(url, answer).await);
        }
        if answer.headers().contains_key(LOCATION) {
            *upload = self.goes_on(&location, &answer)?;
        }
        let range = answer.headers().get(RANGE).and_then(|range| range.to_str().ok());
        let last = range.and_then(|range| range.trim_start_matches("bytes=").split_once('-')?.1.parse::<u64>().ok());
        // Nothing yet is `0-0` with some, and no header with others.
        Ok(last.filter(|last| *last > 0).map_or(0, |last| last.saturating_add(1)))
    }

    /// Sends a manifest under a tag or digest; the digest that the registry gives it, when it says so.
    pub(crate) async fn put_manifest(
        &self,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Option<Digest>, RegistryError> {
        let url = self.url("manifests", name);
        let request = || self.request(Method::PUT, &url).header(CONTENT_TYPE, media_type).body(bytes.to_vec());
        let answer = self.ask(&url, request).await?;
        if !answer.status().is_success() {
            return Err(self.complaint(url, answer).await);
        }
        let digest = answer.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        Ok(digest.and_then(|digest| digest.parse().ok()))
    }

    /// Sends a request, once more with a new login when that has expired.
    pub(crate) async fn ask(
        &self,
        url: &str,
        make: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let answer = self.send_answering(url, &make).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !self.has_token() {
            return Ok(answer);
        }
        self.log_in().await?;
        self.send(url, make()).await
    }

    pub(crate) fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        self.authorize(self.to(method, url))
    }

    /// The client for where an upload goes on: only the registry itself sees what is meant for it alone.
    fn client_at(&self, upload: &Upload) -> Result<reqwest::Client, RegistryError> {
        let location = &upload.location;
        if self.is_own(location) {
            return self.registries.client(&self.endpoint.host, &self.endpoint.needs(true));
        }
        let usual = Needs::new(&Access::usual(location.scheme() == "http"), None, true);
        let needs = Needs { sent: upload.sent, ..usual };
        self.registries.client(location.host_str().unwrap_or_default(), &needs)
    }

    /// A request to there, with our login and headers only at the registry itself.
    fn at(&self, http: &reqwest::Client, method: Method, location: &Url) -> reqwest::RequestBuilder {
        if self.is_own(location) {
            self.authorize(self.by(http, method, location.as_str()))
        } else {
            http.request(method, location.as_str())
        }
    }

    /// Where an upload goes on, which may be another host, by the rules for redirects.
    fn goes_on(&self, base: &Url, answer: &Response) -> Result<Upload, RegistryError> {
        let bad = |problem: &str| RegistryError::Protocol { url: shown_url(base), problem: problem.to_owned() };
        let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| bad("it does not say where the upload goes on"))?;
        let location = base.join(location).map_err(|_| bad("where the upload goes on is no URL"))?;
        match (base.scheme(), location.scheme()) {
            (_, "https") | ("http", "http") => {}
            _ => return Err(bad("the upload would go on in the clear")),
        }
        let from = follow::sender(answer);
        if !self.is_own(&location) {
            follow::check(from, &location).map_err(bad)?;
        }
        Ok(Upload { location, sent: Sent::by(from) })
    }
}

/// Without its query, which may hold what lets anybody write there.
fn shown_url(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

fn silent(url: &str) -> RegistryError {
    broken(url, std::io::ErrorKind::TimedOut.into())
}

fn broken(url: &str, source: std::io::Error) -> RegistryError {
    RegistryError::Transfer { url: url.to_owned(), source: Arc::new(source) }
}
