//! One repository, one login.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use oci_client::{
    RegistryOperation,
    client::{AsLayerDescriptor, LayerDescriptor},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
    token_cache::{RegistryToken, RegistryTokenType},
};
use reqwest::{
    StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use crate::{
    credential::Credential,
    digest::Digest,
    manifest::{self, Descriptor, MAX_MANIFEST},
    reference::ImageRef,
    registry::{
        Clients, Registries, RegistryError,
        challenge::{self, Challenge},
    },
};

const MAX_TOKEN: u64 = 1 << 20;
/// What of a registry's complaint is worth repeating.
const MAX_COMPLAINT: usize = 300;

/// Access to one repository with one login.
#[derive(Debug)]
pub(crate) struct Session {
    clients: Clients,
    base: String,
    reference: ImageRef,
    /// The same for `oci-client`.
    target: oci_client::Reference,
    credential: Option<Credential>,
    access: std::sync::Mutex<Access>,
}

#[derive(Debug, Clone)]
enum Access {
    Open,
    Basic { username: String, password: String },
    Bearer(String),
}

/// A manifest or index as the registry sent it.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
    /// By the registry's header, when it has a usable one.
    pub(crate) claimed: Option<Digest>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

struct Blob<'a>(&'a Digest);

impl AsLayerDescriptor for Blob<'_> {
    fn as_layer_descriptor(&self) -> LayerDescriptor<'_> {
        LayerDescriptor { digest: self.0.as_str(), urls: &None }
    }
}

impl Session {
    /// Logs in, or finds that it is not necessary.
    pub(crate) async fn open(
        registries: &Registries,
        reference: &ImageRef,
        credential: Option<&Credential>,
    ) -> Result<Self, RegistryError> {
        let host = reference.api_host().to_owned();
        let clients = registries.clients(&host, credential)?;
        let scheme = if registries.is_plain(&host) { "http" } else { "https" };
        let repository = reference.repository().to_owned();
        let session = Self {
            clients,
            base: format!("{scheme}://{host}"),
            reference: reference.clone(),
            // The tag is never used: manifests are fetched here.
            target: oci_client::Reference::with_tag(host, repository, "latest".to_owned()),
            credential: credential.cloned(),
            access: std::sync::Mutex::new(Access::Open),
        };
        session.log_in().await?;
        Ok(session)
    }

    async fn log_in(&self) -> Result<(), RegistryError> {
        let access = self.negotiate().await?;
        let (auth, token) = match &access {
            Access::Open => (RegistryAuth::Anonymous, None),
            Access::Basic { username, password } => (
                RegistryAuth::Basic(username.clone(), password.clone()),
                Some(RegistryTokenType::Basic(username.clone(), password.clone())),
            ),
            Access::Bearer(token) => {
                let inner = RegistryToken::Token { token: token.clone() };
                (RegistryAuth::Bearer(token.clone()), Some(RegistryTokenType::Bearer(inner)))
            }
        };
        // Without a stored login the blob client asks for none, which saves it a request per blob.
        if let (Some(token), Some(blobs)) = (token, &self.clients.blobs) {
            blobs.store_auth_if_needed(self.target.resolve_registry(), &auth).await;
            blobs.tokens.insert(&self.target, RegistryOperation::Pull, token).await;
        }
        *self.access.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = access;
        Ok(())
    }

    async fn negotiate(&self) -> Result<Access, RegistryError> {
        if let Some(token) = self.credential.as_ref().and_then(|c| c.registry_token.as_ref()) {
            return Ok(Access::Bearer(token.reveal().to_owned()));
        }
        let url = format!("{}/v2/", self.base);
        let answer = self.clients.http.get(&url).send().await;
        let answer = answer.map_err(|e| RegistryError::from_request(&url, e))?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => {}
            status if status.is_server_error() => return Err(complaint(url, answer).await),
            // Even a 404 here says nothing about the repository.
            _ => return Ok(Access::Open),
        }
        match challenge_of(answer.headers()) {
            Some(Challenge::Bearer { realm, service }) => self.token(&realm, service.as_deref()).await,
            Some(Challenge::Basic) => {
                let Some(login) = &self.credential else {
                    return Err(complaint(url, answer).await);
                };
                let request = self.clients.http.get(&url);
                let request = request.basic_auth(&login.username, Some(login.password.reveal()));
                let answer = request.send().await.map_err(|e| RegistryError::from_request(&url, e))?;
                if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Err(complaint(url, answer).await);
                }
                let (username, password) = (login.username.clone(), login.password.reveal().to_owned());
                Ok(Access::Basic { username, password })
            }
            None => Err(RegistryError::Protocol {
                url,
                problem: "it wants a login but names no way that is known (Basic, Bearer)".to_owned(),
            }),
        }
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<Access, RegistryError> {
        let protocol = |problem: &str| RegistryError::Protocol {
            url: self.base.clone(),
            problem: format!("{problem}: {:?}", realm.chars().take(MAX_COMPLAINT).collect::<String>()),
        };
        let mut url = Url::parse(realm).map_err(|_| protocol("its token realm is no URL"))?;
        let allowed = match url.scheme() {
            "https" => true,
            // Never in the clear when the registry itself is not.
            "http" => self.base.starts_with("http://"),
            _ => false,
        };
        if !allowed {
            return Err(protocol("its token realm is not safe to send a login to"));
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:pull", self.reference.repository()));
        }
        let shown = realm.to_owned();
        let mut request = self.clients.http.get(url);
        if let Some(login) = &self.credential {
            request = request.basic_auth(&login.username, Some(login.password.reveal()));
        }
        let answer = request.send().await.map_err(|e| RegistryError::from_request(&shown, e))?;
        if !answer.status().is_success() {
            return Err(complaint(shown, answer).await);
        }
        let body = bounded(&shown, answer, MAX_TOKEN).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|e| RegistryError::Protocol {
            url: shown.clone(),
            problem: format!("its token is no JSON: {e}"),
        })?;
        match token.token.or(token.access_token).filter(|t| !t.is_empty()) {
            Some(token) => Ok(Access::Bearer(token)),
            None => Err(RegistryError::Protocol { url: shown, problem: "it has no token".to_owned() }),
        }
    }

    /// The manifest or index that a tag or digest means.
    pub(crate) async fn manifest(&self, name: &str) -> Result<Fetched, RegistryError> {
        match self.try_manifest(name).await {
            Err(e) if self.may_have_expired(&e) => {
                self.log_in().await?;
                self.try_manifest(name).await
            }
            other => other,
        }
    }

    async fn try_manifest(&self, name: &str) -> Result<Fetched, RegistryError> {
        let url = format!("{}/v2/{}/manifests/{name}", self.base, self.reference.repository());
        let mut request = self.clients.http.get(&url).header(ACCEPT, manifest::ACCEPT);
        request = self.authorize(request);
        let answer = request.send().await.map_err(|e| RegistryError::from_request(&url, e))?;
        if answer.status() != StatusCode::OK {
            return Err(complaint(url, answer).await);
        }
        let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
        let content_type = header(CONTENT_TYPE.as_str());
        let claimed = header("docker-content-digest").and_then(|d| d.parse().ok());
        let bytes = bounded(&url, answer, MAX_MANIFEST).await?;
        Ok(Fetched { bytes, content_type, claimed })
    }

    /// A blob's bytes from `offset` on; the flag says that they are from the beginning all the same.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<(BoxStream<'static, std::io::Result<bytes::Bytes>>, bool), RegistryError> {
        match self.try_blob(blob, offset).await {
            Err(e) if self.may_have_expired(&e) => {
                self.log_in().await?;
                self.try_blob(blob, offset).await
            }
            other => other,
        }
    }

    async fn try_blob(
        &self,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<(BoxStream<'static, std::io::Result<bytes::Bytes>>, bool), RegistryError> {
        let Some(client) = &self.clients.blobs else { return self.plain_blob(blob, offset).await };
        // A range is asked for from the first byte on: such a stream is not hashed by the client,
        // and we hash every byte ourselves, also over several ranges.
        let answer = client.pull_blob_stream_partial(&self.target, Blob(&blob.digest), offset, None).await;
        match answer {
            Ok(oci_client::client::BlobResponse::Full(stream)) => Ok((stream.stream, true)),
            Ok(oci_client::client::BlobResponse::Partial(stream)) => Ok((stream.stream, false)),
            Err(e) => Err(self.sort(&blob.digest, e)),
        }
    }

    fn authorize(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let access = self.access.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match access {
            Access::Open => request,
            Access::Basic { username, password } => request.basic_auth(username, Some(password)),
            Access::Bearer(token) => request.bearer_auth(token),
        }
    }

    /// The same as `try_blob`, on our own client.
    async fn plain_blob(
        &self,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<(BoxStream<'static, std::io::Result<bytes::Bytes>>, bool), RegistryError> {
        let url = format!("{}/v2/{}/blobs/{}", self.base, self.reference.repository(), blob.digest);
        let request = self.authorize(self.clients.http.get(&url));
        let request = request.header(reqwest::header::RANGE, format!("bytes={offset}-"));
        let answer = request.send().await.map_err(|e| RegistryError::from_request(&url, e))?;
        let from_beginning = match answer.status() {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => false,
            _ => return Err(complaint(url, answer).await),
        };
        let stream = futures_util::stream::unfold(answer, |mut answer| async {
            let chunk = answer.chunk().await.map_err(std::io::Error::other).transpose()?;
            Some((chunk, answer))
        });
        Ok((Box::pin(stream), from_beginning))
    }

    fn sort(&self, digest: &Digest, error: OciDistributionError) -> RegistryError {
        let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.reference.repository());
        let status = |status: u16, message: String| RegistryError::Status {
            url: url.clone(),
            status,
            message: message.chars().take(MAX_COMPLAINT).collect(),
        };
        match error {
            OciDistributionError::RequestError(e) => RegistryError::from_request(&url, e),
            OciDistributionError::UnauthorizedError { .. } => status(401, "unauthorized".to_owned()),
            OciDistributionError::ServerError { code, message, .. } => status(code, message),
            OciDistributionError::RegistryError { envelope, .. } => {
                let code = match envelope.errors.first().map(|e| &e.code) {
                    Some(OciErrorCode::Unauthorized) => 401,
                    Some(OciErrorCode::Denied) => 403,
                    Some(OciErrorCode::Toomanyrequests) => 429,
                    _ => 404,
                };
                status(code, envelope.to_string())
            }
            other => RegistryError::Transfer { url, source: Arc::new(other) },
        }
    }

    fn may_have_expired(&self, error: &RegistryError) -> bool {
        let access = self.access.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        error.status() == Some(401) && matches!(*access, Access::Bearer(_))
    }

    /// A few words on the login that was used.
    pub(crate) fn login(&self) -> String {
        describe(self.credential.as_ref())
    }
}

/// A few words on a login.
pub(crate) fn describe(credential: Option<&Credential>) -> String {
    match credential {
        None => "no login was given for it".to_owned(),
        Some(c) if c.username.is_empty() => "the token given for it was not accepted".to_owned(),
        Some(c) => format!("the login of user {:?} was not accepted", c.username),
    }
}

fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    challenge::best(headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()))
}

async fn bounded(url: &str, mut answer: reqwest::Response, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let too_long = || RegistryError::TooLong { url: url.to_owned(), limit };
    if answer.content_length().is_some_and(|l| l > limit) {
        return Err(too_long());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| RegistryError::from_request(url, e))? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What the registry said, for a person, without what a terminal would act on.
async fn complaint(url: String, answer: reqwest::Response) -> RegistryError {
    let status = answer.status();
    let body = bounded(&url, answer, 64 << 10).await.unwrap_or_default();
    let told = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|v| Some(v.get("errors")?.get(0)?.get("message")?.as_str()?.to_owned()));
    let text = told.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_COMPLAINT).collect();
    let message = if text.trim().is_empty() {
        status.canonical_reason().unwrap_or("no reason given").to_lowercase()
    } else {
        text
    };
    RegistryError::Status { url, status: status.as_u16(), message }
}
