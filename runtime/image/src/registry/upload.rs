//! Sending blobs and manifests to a registry.
//!
//! Source: OCI distribution-spec v1.1, §Push.

use std::{io::SeekFrom, path::Path, time::Duration};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};
use tokio_util::io::ReaderStream;

use crate::{
    digest::Digest,
    manifest::Descriptor,
    registry::{RegistryError, Session, patience},
};

/// Blobs up to this size are sent in one request.
const SMALL: u64 = 1 << 20;
/// Bytes that are read of a file at a time.
const PIECE: usize = 256 << 10;
/// How often an upload that broke off is taken up again without getting on.
const MAX_RESUMPTIONS: u32 = 4;

/// An upload that a registry has begun.
struct Upload {
    location: Url,
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
            body = tokio::fs::read(file).await.map_err(|e| broken(upload.location.as_str(), e))?;
        }
        let mut last = upload.location.clone();
        last.query_pairs_mut().append_pair("digest", blob.digest.as_str());
        let request = || {
            let request = self.at(Method::PUT, &last).header(CONTENT_TYPE, "application/octet-stream");
            request.header(CONTENT_LENGTH, body.len()).body(body.clone())
        };
        let shown = last.to_string();
        let answer = self.ask(&shown, request).await?;
        if answer.status() != StatusCode::CREATED {
            return Err(self.complaint(shown, answer).await);
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
        Ok(Upload { location: self.location(&url, answer.headers())? })
    }

    async fn send_rest(
        &self,
        upload: &mut Upload,
        blob: &Descriptor,
        file: &Path,
        sent: &impl Fn(u64),
    ) -> Result<(), RegistryError> {
        let (mut offset, mut resumptions) = (0, 0);
        while offset < blob.size {
            let begun_at = offset;
            match self.send_from(upload, blob, file, offset).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_transient() && resumptions < MAX_RESUMPTIONS => {
                    tracing::debug!(digest = %blob.digest, offset, %error, "upload was cut off");
                    tokio::time::sleep(Duration::from_millis(200) * 2_u32.pow(resumptions)).await;
                    offset = match self.has_come(upload).await {
                        Ok(come) => come.min(blob.size),
                        // Many registries forget what broke off in the middle of a request.
                        Err(e) if e.status().is_some_and(|status| (400..500).contains(&status)) => {
                            *upload = self.begin().await?;
                            0
                        }
                        Err(e) => return Err(e),
                    };
                    sent(offset);
                    resumptions = if offset > begun_at { 0 } else { resumptions + 1 };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn send_from(
        &self,
        upload: &mut Upload,
        blob: &Descriptor,
        path: &Path,
        offset: u64,
    ) -> Result<(), RegistryError> {
        let url = upload.location.to_string();
        let mut file = File::open(path).await.map_err(|e| broken(&url, e))?;
        file.seek(SeekFrom::Start(offset)).await.map_err(|e| broken(&url, e))?;
        let rest = blob.size - offset;
        let body = reqwest::Body::wrap_stream(ReaderStream::with_capacity(file.take(rest), PIECE));
        let mut request = self.at(Method::PATCH, &upload.location).header(CONTENT_TYPE, "application/octet-stream");
        request = request.header(CONTENT_LENGTH, rest);
        if offset > 0 {
            request = request.header(CONTENT_RANGE, format!("{offset}-{}", blob.size - 1));
        }
        let answer = request.body(body).send().await.map_err(|e| RegistryError::from_request(&url, e))?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {
                upload.location = self.location(&url, answer.headers())?;
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

    /// How much of an upload the registry has.
    async fn has_come(&self, upload: &mut Upload) -> Result<u64, RegistryError> {
        let url = upload.location.to_string();
        let location = upload.location.clone();
        let answer = self.ask(&url, || self.at(Method::GET, &location)).await?;
        if answer.status() != StatusCode::NO_CONTENT {
            return Err(self.complaint(url, answer).await);
        }
        if answer.headers().contains_key(LOCATION) {
            upload.location = self.location(&url, answer.headers())?;
        }
        let range = answer.headers().get(RANGE).and_then(|range| range.to_str().ok());
        let last = range.and_then(|range| range.trim_start_matches("bytes=").split_once('-')?.1.parse::<u64>().ok());
        // Nothing yet is `0-0` with some, and no header with others.
        Ok(last.filter(|last| *last > 0).map_or(0, |last| last + 1))
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
    async fn ask(&self, url: &str, make: impl Fn() -> reqwest::RequestBuilder) -> Result<Response, RegistryError> {
        let answer = patience::send(url, make()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !self.has_token() {
            return Ok(answer);
        }
        self.log_in().await?;
        patience::send(url, make()).await
    }

    fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        self.authorize(self.to(method, url))
    }

    /// A request to where an upload goes on: with our login only at the registry itself.
    fn at(&self, method: Method, location: &Url) -> reqwest::RequestBuilder {
        let request = self.to(method, location.as_str());
        if self.is_own(location) { self.authorize(request) } else { request }
    }

    /// Where an upload goes on, which may be another host, but not in the clear when the registry is not.
    fn location(&self, url: &str, headers: &HeaderMap) -> Result<Url, RegistryError> {
        let bad = |problem: &str| RegistryError::Protocol { url: url.to_owned(), problem: problem.to_owned() };
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| bad("it does not say where the upload goes on"))?;
        let base = Url::parse(url).map_err(|_| bad("its address is no URL"))?;
        let location = base.join(location).map_err(|_| bad("where the upload goes on is no URL"))?;
        match (base.scheme(), location.scheme()) {
            (_, "https") | ("http", "http") => Ok(location),
            _ => Err(bad("the upload would go on in the clear")),
        }
    }
}

fn broken(url: &str, source: std::io::Error) -> RegistryError {
    RegistryError::Transfer { url: url.to_owned(), source: std::sync::Arc::new(source) }
}
