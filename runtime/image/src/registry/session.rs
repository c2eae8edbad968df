//! One repository, one login.

use std::sync::{Arc, Mutex, PoisonError};

use oci_client::{errors::OciEnvelope, secrets::RegistryAuth};
use reqwest::{
    Method, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, RANGE, WWW_AUTHENTICATE},
};
use serde::Deserialize;

use crate::{
    credential::{Credential, Secret},
    digest::Digest,
    hosts::Endpoint,
    manifest::{self, Descriptor, MAX_MANIFEST},
    registry::{
        Needs, Registries, RegistryError,
        body::{Body, Pieces},
        challenge::{self, Challenge},
        follow::{self, Sent},
        patience, realm,
    },
    text::shown,
};

/// What token servers know us as.
const CLIENT: &str = "portreeve";
const MAX_TOKEN: u64 = 1 << 20;
/// What of a refusal is read.
const MAX_COMPLAINT: usize = 64 << 10;

/// Access to one repository at one host with one login.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) registries: Arc<Registries>,
    http: reqwest::Client,
    pub(crate) endpoint: Endpoint,
    credential: Option<Credential>,
    /// What a token has to allow: the repository's own scope first.
    scopes: Vec<String>,
    access: Mutex<RegistryAuth>,
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

impl Endpoint {
    pub(super) fn needs(&self, uploads: bool) -> Needs {
        Needs::new(&self.access, self.connect_timeout, uploads)
    }
}

impl Session {
    /// Logs in to pull, or finds that it is not necessary.
    pub(crate) async fn open(
        registries: &Arc<Registries>,
        endpoint: &Endpoint,
        credential: Option<&Credential>,
    ) -> Result<Self, RegistryError> {
        let scopes = vec![format!("repository:{}:pull", endpoint.repository)];
        Self::open_for(registries, endpoint, credential, scopes).await
    }

    /// The same to push, where blobs may be taken from `others`, repositories of the same registry.
    pub(crate) async fn open_to_push(
        registries: &Arc<Registries>,
        endpoint: &Endpoint,
        credential: Option<&Credential>,
        others: &[String],
    ) -> Result<Self, RegistryError> {
        let mut scopes = vec![format!("repository:{}:pull,push", endpoint.repository)];
        scopes.extend(others.iter().map(|other| format!("repository:{other}:pull")));
        Self::open_for(registries, endpoint, credential, scopes).await
    }

    async fn open_for(
        registries: &Arc<Registries>,
        endpoint: &Endpoint,
        credential: Option<&Credential>,
        scopes: Vec<String>,
    ) -> Result<Self, RegistryError> {
        let session = Self {
            registries: registries.clone(),
            http: registries.client(&endpoint.host, &endpoint.needs(false))?,
            endpoint: endpoint.clone(),
            credential: credential.cloned(),
            scopes,
            access: Mutex::new(RegistryAuth::Anonymous),
        };
        session.log_in().await?;
        Ok(session)
    }

    pub(crate) async fn log_in(&self) -> Result<(), RegistryError> {
        let access = self.negotiate().await?;
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
        Ok(())
    }

    async fn negotiate(&self) -> Result<RegistryAuth, RegistryError> {
        if let Some(token) = self.credential.as_ref().and_then(|c| c.registry_token.as_ref()) {
            return Ok(RegistryAuth::Bearer(token.reveal().to_owned()));
        }
        let url = format!("{}/", self.endpoint.api);
        let answer = self.send(&url, self.get(&url)).await?;
        match answer.status() {
            StatusCode::UNAUTHORIZED => {}
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(self.complaint(url, answer).await);
            }
            // Even a 404 here says nothing about the repository.
            _ => return Ok(RegistryAuth::Anonymous),
        }
        match challenge_of(answer.headers()) {
            Some(Challenge::Bearer { realm, service }) => self.token(&answer, &realm, service.as_deref()).await,
            Some(Challenge::Basic) => {
                let Some((username, password)) = self.basic_login() else {
                    return Err(self.complaint(url, answer).await);
                };
                let request = self.get(&url).basic_auth(username, Some(password));
                let answer = self.send(&url, request).await?;
                if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Err(self.complaint(url, answer).await);
                }
                Ok(RegistryAuth::Basic(username.to_owned(), password.to_owned()))
            }
            None => Err(RegistryError::Protocol {
                url,
                problem: "it wants a login but names no way that is known (Basic, Bearer)".to_owned(),
            }),
        }
    }

    /// A registry may let anybody in at its door and not in every room: a refusal that comes later is answered once, when
    /// there is no login yet. The answer, if it is to be taken as it is; none when the request is worth another try.
    async fn answer_refusal(&self, answer: reqwest::Response) -> Result<Option<reqwest::Response>, RegistryError> {
        let anonymous = matches!(*self.access.lock().unwrap_or_else(PoisonError::into_inner), RegistryAuth::Anonymous);
        // Where it redirects to is no matter of its login.
        let asks = answer.status() == StatusCode::UNAUTHORIZED && self.is_own(answer.url());
        let challenge = challenge_of(answer.headers()).filter(|_| asks && anonymous);
        let access = match (challenge, self.basic_login()) {
            (Some(Challenge::Bearer { realm, service }), _) => self.token(&answer, &realm, service.as_deref()).await?,
            // Whether it is accepted is seen by the next answer.
            (Some(Challenge::Basic), Some((username, password))) => {
                RegistryAuth::Basic(username.to_owned(), password.to_owned())
            }
            (Some(Challenge::Basic), None) | (None, _) => return Ok(Some(answer)),
        };
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
        Ok(None)
    }

    /// What may be sent as name and password.
    fn basic_login(&self) -> Option<(&str, &str)> {
        self.credential.as_ref().and_then(Credential::basic_login)
    }

    /// Asks for a token where an answer of the registry says.
    async fn token(
        &self,
        answer: &reqwest::Response,
        realm: &str,
        service: Option<&str>,
    ) -> Result<RegistryAuth, RegistryError> {
        let asked = shown(realm);
        let Endpoint { api, host, access, .. } = &self.endpoint;
        let (url, access) = realm::check(realm, host, access, &self.registries).map_err(|problem| {
            RegistryError::Protocol { url: api.clone(), problem: format!("{problem}: {asked:?}") }
        })?;
        let needs = Needs { sent: Sent::by(follow::sender(answer)), ..Needs::new(&access, None, false) };
        let client = self.registries.client(&asked, &needs)?;
        let answer = match self.credential.as_ref().and_then(|login| login.identity_token.as_ref()) {
            Some(token) => {
                let request = self.exchange(&client, url, service, token);
                // Not where it redirects to: what must not get there is in the body.
                patience::send(&asked, request).await?
            }
            None => {
                let request = self.ask_for_token(&client, url, service);
                follow::send(&self.registries, &needs, &asked, request).await?
            }
        };
        if !answer.status().is_success() {
            return Err(self.complaint(asked, answer).await);
        }
        let body = self.body(&asked, answer).read(MAX_TOKEN).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|e| RegistryError::Protocol {
            url: asked.clone(),
            problem: shown(&format!("its token is no JSON: {e}")),
        })?;
        match token.token.or(token.access_token).filter(|t| !t.is_empty()) {
            Some(token) => Ok(RegistryAuth::Bearer(token)),
            None => Err(RegistryError::Protocol { url: asked, problem: "it has no token".to_owned() }),
        }
    }

    /// Source: distribution `docs/spec/auth/token.md`.
    fn ask_for_token(&self, client: &reqwest::Client, mut url: Url, service: Option<&str>) -> reqwest::RequestBuilder {
        let pairs = service.map(|service| ("service", service)).into_iter();
        let pairs = pairs.chain(self.scopes.iter().map(|scope| ("scope", scope.as_str())));
        url.query_pairs_mut().extend_pairs(pairs);
        let request = client.get(url);
        match self.basic_login() {
            Some((username, password)) => request.basic_auth(username, Some(password)),
            None => request,
        }
    }

    /// Source: distribution `docs/spec/auth/oauth.md`.
    fn exchange(
        &self,
        client: &reqwest::Client,
        url: Url,
        service: Option<&str>,
        identity: &Secret,
    ) -> reqwest::RequestBuilder {
        let scopes = self.scopes.join(" ");
        let mut form = url.clone();
        form.set_query(None);
        form.query_pairs_mut()
            .extend_pairs([("grant_type", "refresh_token"), ("refresh_token", identity.reveal())])
            .extend_pairs(service.map(|service| ("service", service)))
            .extend_pairs([("scope", scopes.as_str()), ("client_id", CLIENT)]);
        let body = form.query().unwrap_or_default().to_owned();
        client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    }

    /// The manifest or index that a tag or digest means.
    pub(crate) async fn manifest(&self, name: &str) -> Result<Fetched, RegistryError> {
        let url = self.url("manifests", name);
        let answer = self.ask(&url, || self.request(Method::GET, &url).header(ACCEPT, manifest::ACCEPT)).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.complaint(url, answer).await);
        }
        let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
        let content_type = header(CONTENT_TYPE.as_str());
        let claimed = header("docker-content-digest").and_then(|d| d.parse().ok());
        let bytes = self.body(&url, answer).read(MAX_MANIFEST).await?;
        Ok(Fetched { bytes, content_type, claimed })
    }

    /// A blob's bytes from `offset` on; the flag says that they are from the beginning all the same.
    pub(crate) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<(Pieces, bool), RegistryError> {
        let (body, from_beginning) = self.range(blob, offset, None).await?;
        Ok((body.pieces(), from_beginning))
    }

    /// So many of a blob's bytes from `offset` on, or all that follow; and whether they come from the beginning all
    /// the same.
    pub(crate) async fn range(
        &self,
        blob: &Descriptor,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(Body, bool), RegistryError> {
        match self.try_range(blob, offset, length).await {
            Err(e) if self.may_have_expired(&e) => {
                self.log_in().await?;
                self.try_range(blob, offset, length).await
            }
            other => other,
        }
    }

    async fn try_range(
        &self,
        blob: &Descriptor,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(Body, bool), RegistryError> {
        let url = self.url("blobs", blob.digest.as_str());
        let last = length.map(|length| offset.saturating_add(length).saturating_sub(1).to_string());
        let range = format!("bytes={offset}-{}", last.unwrap_or_default());
        let request = || self.authorize(self.get(&url)).header(RANGE, &range);
        let answer = self.send_answering(&url, request).await?;
        let from_beginning = match answer.status() {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => false,
            _ => return Err(self.complaint(url, answer).await),
        };
        Ok((self.body(&url, answer).throttled(&self.registries.throttle), from_beginning))
    }

    pub(crate) fn url(&self, kind: &str, name: &str) -> String {
        let Endpoint { api, repository, .. } = &self.endpoint;
        format!("{api}/{repository}/{kind}/{name}")
    }

    /// Sends a request, and again where it is redirected to.
    pub(crate) async fn send(
        &self,
        url: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, RegistryError> {
        follow::send(&self.registries, &self.endpoint.needs(false), url, request).await
    }

    /// The same, once more when it is refused for want of a login.
    pub(crate) async fn send_answering(
        &self,
        url: &str,
        make: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, RegistryError> {
        let answer = self.send(url, make()).await?;
        match self.answer_refusal(answer).await? {
            Some(answer) => Ok(answer),
            None => self.send(url, make()).await,
        }
    }

    /// A request to the host, with what it is to be told.
    fn get(&self, url: &str) -> reqwest::RequestBuilder {
        self.to(Method::GET, url)
    }

    pub(crate) fn to(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        self.by(&self.http, method, url)
    }

    /// The same by another client.
    pub(crate) fn by(&self, http: &reqwest::Client, method: Method, url: &str) -> reqwest::RequestBuilder {
        let mut request = http.request(method, url).headers(self.endpoint.headers.clone());
        if let Some(registry) = &self.endpoint.mirrors {
            request = request.query(&[("ns", registry)]);
        }
        request
    }

    /// The registry, for a person.
    pub(crate) fn registry(&self) -> &str {
        &self.endpoint.registry
    }

    pub(crate) fn authorize(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let access = self.access.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match access {
            RegistryAuth::Anonymous => request,
            RegistryAuth::Basic(username, password) => request.basic_auth(username, Some(password)),
            RegistryAuth::Bearer(token) => request.bearer_auth(token),
        }
    }

    pub(crate) fn body(&self, url: &str, answer: reqwest::Response) -> Body {
        Body::new(url.to_owned(), answer, self.registries.terms.stall_timeout)
    }

    /// A refusal, with what the registry said for a person.
    pub(crate) async fn complaint(&self, url: String, answer: reqwest::Response) -> RegistryError {
        let (status, retry_after) = (answer.status(), patience::asked_for(&answer));
        let retry_after = retry_after.and_then(|pause| pause.as_secs().try_into().ok());
        let body = self.body(&url, answer).beginning(MAX_COMPLAINT).await;
        let told = serde_json::from_slice::<OciEnvelope>(&body).ok();
        let told = told.and_then(|envelope| envelope.errors.into_iter().map(|e| e.message).find(|m| !m.is_empty()));
        let message = shown(told.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()).trim());
        let message = match message.as_str() {
            "" => status.canonical_reason().unwrap_or("no reason given").to_lowercase(),
            _ => message,
        };
        RegistryError::Status { url, status: status.as_u16(), message: message.into(), retry_after }
    }

    fn may_have_expired(&self, error: &RegistryError) -> bool {
        error.status() == Some(401) && self.has_token()
    }

    /// It speaks with a token, which may expire.
    pub(crate) fn has_token(&self) -> bool {
        matches!(*self.access.lock().unwrap_or_else(PoisonError::into_inner), RegistryAuth::Bearer(_))
    }

    /// Whether an address is the registry's own.
    pub(crate) fn is_own(&self, url: &reqwest::Url) -> bool {
        let own = reqwest::Url::parse(&self.endpoint.api);
        own.is_ok_and(|own| own.origin() == url.origin())
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
        Some(c) if c.basic_login().is_none() => "the identity token given for it was not accepted".to_owned(),
        Some(c) if c.username.is_empty() => "the token given for it was not accepted".to_owned(),
        Some(c) => format!("the login of user {:?} was not accepted", c.username),
    }
}

fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    challenge::best(headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok()))
}
