//! The hosts that one pull may take its image from: mirrors in order, and the registry last.

use std::{collections::VecDeque, sync::Arc};

use portreeve_sys::chain;
use tokio::{sync::Mutex, time::timeout};

use crate::{
    credential::Credential,
    hosts::{Endpoint, Hosts},
    progress::Tried,
    registry::{RegistryError, Session},
    store::{
        PullError,
        pull::{Pull, Resolved},
    },
    text::shown,
};

/// Hosts that are told of; files may name any number.
const MOST_TOLD: usize = 10;

/// The host that resolved the reference, and those that layers may come from when it fails.
pub(crate) struct Sources {
    auth: Vec<Credential>,
    hosts: Mutex<Known>,
}

struct Known {
    /// Those that have shown that they have the image.
    open: Vec<Arc<Session>>,
    /// Those that were not asked yet.
    further: VecDeque<Endpoint>,
}

impl Sources {
    /// The host at this place of those that have the image; `None` when there is no further one. `name` is the
    /// manifest's digest.
    pub(crate) async fn host(&self, pull: &Pull, place: usize, name: &str) -> Option<Arc<Session>> {
        let mut known = self.hosts.lock().await;
        loop {
            if let Some(session) = known.open.get(place) {
                return Some(session.clone());
            }
            let endpoint = known.further.pop_front()?;
            match pull.resolve_in_time(&endpoint, &self.auth, name, known.further.is_empty()).await {
                Ok(resolved) => known.open.push(resolved.session),
                Err(error) => pull.note_tried(&endpoint.registry, &error),
            }
        }
    }

    /// Whether another host could follow the one at this place.
    pub(crate) async fn has_after(&self, place: usize) -> bool {
        let known = self.hosts.lock().await;
        known.open.len() > place + 1 || !known.further.is_empty()
    }
}

impl Pull {
    /// Asks each host, with each login that fits, until one has the image.
    pub(crate) async fn resolve(&self, auth: &[Credential]) -> Result<(Resolved, Sources), PullError> {
        let mut further: VecDeque<Endpoint> = self.endpoints().await?.into();
        let name = self.asked_for();
        let mut refused: Option<PullError> = None;
        while let Some(endpoint) = further.pop_front() {
            let error = match self.resolve_in_time(&endpoint, auth, &name, further.is_empty()).await {
                Ok(resolved) => {
                    self.progress.send_modify(|p| p.host = Some(endpoint.registry.clone()));
                    if refused.is_some() {
                        tracing::info!(image = %self.reference, host = endpoint.registry, "image is pulled from");
                    }
                    let hosts = Mutex::new(Known { open: vec![resolved.session.clone()], further });
                    return Ok((resolved, Sources { auth: auth.to_vec(), hosts }));
                }
                Err(error) => error,
            };
            if further.is_empty() && refused.is_none() {
                return Err(error);
            }
            self.note_tried(&endpoint.registry, &error);
            refused = Some(error);
        }
        Err(PullError::Nowhere {
            image: self.reference.to_string(),
            tried: self.tried(),
            last: Box::new(refused.unwrap_or_else(|| PullError::NotFound { image: self.reference.to_string() })),
        })
    }

    pub(crate) async fn endpoints(&self) -> Result<Vec<Endpoint>, PullError> {
        let config = &self.inner.config;
        let hosts = Hosts { certs_d: config.certs_d.clone(), registries_conf: config.registries_conf.clone() };
        let (reference, registries) = (self.reference.clone(), self.inner.registries.clone());
        let found = self.blocking(move || hosts.endpoints(&reference, &registries)).await?;
        found.map_err(|source| PullError::Hosts { registry: self.reference.registry().to_owned(), source })
    }

    /// What the reference is called in its repository.
    pub(crate) fn asked_for(&self) -> String {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Asks one host; one that is not the last for no longer than a mirror may take.
    async fn resolve_in_time(
        &self,
        endpoint: &Endpoint,
        auth: &[Credential],
        name: &str,
        last: bool,
    ) -> Result<Resolved, PullError> {
        let asking = self.resolve_at(endpoint, auth, name);
        if last {
            return asking.await;
        }
        let limit = self.inner.config.mirror_timeout;
        timeout(limit, asking).await.unwrap_or_else(|_| {
            let source = RegistryError::Silent { host: endpoint.host.clone(), limit };
            Err(self.registry_error(&endpoint.registry, "the manifest", source, String::new()))
        })
    }

    /// Asks one host, with each login that fits until one is accepted.
    async fn resolve_at(&self, endpoint: &Endpoint, auth: &[Credential], name: &str) -> Result<Resolved, PullError> {
        let fitting = endpoint.best_login(self.reference.registry(), auth).into_iter();
        let mut logins: Vec<Option<&Credential>> = fitting.map(Some).collect();
        if logins.is_empty() {
            logins.push(None);
        }
        let mut refusal = None;
        for login in logins {
            match self.resolve_with(endpoint, login, name).await {
                Err(e @ PullError::Unauthorized { .. }) => refusal = refusal.or(Some(e)),
                other => return other,
            }
        }
        Err(refusal.unwrap_or_else(|| PullError::NotFound { image: self.reference.to_string() }))
    }

    pub(crate) fn note_tried(&self, host: &str, error: &PullError) {
        let problem = shown(&chain(error));
        tracing::info!(image = %self.reference, host, problem, "a host of this image was asked in vain");
        self.progress.send_if_modified(|p| {
            // Each host once: that it lacks one layer says enough.
            let new = p.tried.len() < MOST_TOLD && p.tried.iter().all(|tried| tried.host != host);
            if new {
                p.tried.push(Tried { host: host.to_owned(), problem });
            }
            new
        });
    }

    fn tried(&self) -> String {
        let tried: Vec<String> =
            self.progress.borrow().tried.iter().map(|t| format!("{}: {}", t.host, t.problem)).collect();
        tried.join("; ")
    }
}
