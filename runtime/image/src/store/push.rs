//! A push: an image's blobs to where they are missing, and then its manifest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;

use crate::{
    credential::Credential,
    digest::Digest,
    hosts::{Endpoint, Hosts, HostsError},
    image::ImageId,
    manifest::{Descriptor, Manifest, is_foreign},
    progress::{LayerProgress, Phase, Progress, ProgressSink},
    reference::ImageRef,
    registry::{RegistryError, Session, describe},
    store::{Inner, SaveError, save::Documents},
};

/// Blobs that are sent at once.
const AT_ONCE: usize = 4;
/// Repositories of the registry that are asked for one blob.
const MAX_MOUNTS: usize = 3;

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Its blobs are not at hand.
    #[error(transparent)]
    Content(#[from] SaveError),
    /// A digest says what it means: a push gives a tag.
    #[error("{name} has a digest: an image is pushed under a tag")]
    NoTag {
        /// The name.
        name: String,
    },
    /// The registry refuses without, or with these, credentials.
    #[error("registry refuses to take {name}: {detail}")]
    Unauthorized {
        /// The name.
        name: String,
        /// Which login was tried.
        detail: String,
    },
    /// The configuration of the registry's hosts does not let it be asked.
    #[error("finding the hosts of registry {registry}")]
    Hosts {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: HostsError,
    },
    /// The registry cannot be reached, or answered something that does not help.
    #[error("sending {what} to registry {registry}")]
    Registry {
        /// Host and port.
        registry: String,
        /// What was sent.
        what: String,
        /// What came instead.
        #[source]
        source: RegistryError,
    },
    /// What the registry has is not what was sent.
    #[error("registry {registry} says that {name} has digest {actual} instead of {expected}")]
    Changed {
        /// Host and port.
        registry: String,
        /// The name.
        name: String,
        /// Of what was sent.
        expected: Digest,
        /// By the registry.
        actual: Digest,
    },
}

/// One push at work.
struct Push<'a> {
    inner: &'a Arc<Inner>,
    name: &'a ImageRef,
    progress: watch::Sender<Progress>,
    /// Repositories of the same registry that the image came from.
    others: Vec<String>,
}

impl Inner {
    /// Sends an image under a name and tells its digest there.
    pub(crate) async fn push(
        self: &Arc<Self>,
        image: &ImageId,
        name: &ImageRef,
        auth: &[Credential],
        progress: Option<ProgressSink>,
    ) -> Result<Digest, PushError> {
        if name.digest().is_some() {
            return Err(PushError::NoTag { name: name.to_string() });
        }
        let _at_work = self.catalog.lease(&[]);
        let documents = self.documents(image)?;
        let same_registry = documents.sources.iter().filter(|source| source.registry() == name.registry());
        let others: BTreeSet<&str> = same_registry.map(|source| source.repository()).collect();
        let others = others.into_iter().filter(|other| *other != name.repository()).take(MAX_MOUNTS);
        let push = Push {
            inner: self,
            name,
            progress: progress.unwrap_or_else(|| watch::Sender::new(Progress::default())),
            others: others.map(str::to_owned).collect(),
        };
        let session = push.open(auth).await?;
        let digest = push.send(&session, image, &documents, auth).await?;
        let (inner, image, pinned) = (self.clone(), image.clone(), name.with_digest(digest.clone()));
        let noted = tokio::task::spawn_blocking(move || inner.add_names(&image, None, Some(pinned), []));
        if let Ok(Err(error)) = noted.await {
            // It is where it should be; that it is known to be there is a help for later alone.
            tracing::warn!(%error, %name, "what was pushed could not be noted");
        }
        Ok(digest)
    }
}

impl Push<'_> {
    /// Opens the first host that takes it, with the first login that it accepts.
    async fn open(&self, auth: &[Credential]) -> Result<Session, PushError> {
        let config = &self.inner.config;
        let hosts = Hosts { certs_d: config.certs_d.clone(), registries_conf: config.registries_conf.clone() };
        let (name, registries) = (self.name.clone(), self.inner.registries.clone());
        let found = tokio::task::spawn_blocking(move || hosts.for_push(&name, &registries)).await;
        let found = found.unwrap_or_else(|_| Ok(vec![Endpoint::own(self.name, &self.inner.registries)]));
        let ways = found.map_err(|source| PushError::Hosts { registry: self.name.registry().to_owned(), source })?;
        let mut refusal = None;
        for endpoint in &ways {
            let mut logins: Vec<_> = endpoint.best_login(self.name.registry(), auth).into_iter().map(Some).collect();
            if logins.is_empty() {
                logins.push(None);
            }
            for login in logins {
                match Session::open_to_push(&self.inner.registries, endpoint, login, &self.others).await {
                    Ok(session) => return Ok(session),
                    Err(e) => {
                        let refused = self.refused(&endpoint.registry, "a login", e, describe(login));
                        refusal = refusal.or(Some(refused));
                    }
                }
            }
        }
        Err(refusal.unwrap_or_else(|| PushError::NoTag { name: self.name.to_string() }))
    }

    async fn send(
        &self,
        session: &Session,
        image: &ImageId,
        documents: &Documents,
        auth: &[Credential],
    ) -> Result<Digest, PushError> {
        let Manifest { config, layers } = &documents.parsed;
        let blobs: BTreeMap<Digest, Descriptor> =
            layers.iter().chain([config]).map(|blob| (blob.digest.clone(), blob.clone())).collect();
        let blobs: Vec<(usize, Descriptor)> = blobs.into_values().enumerate().collect();
        self.progress.send_modify(|progress| {
            progress.phase = Phase::Fetching;
            progress.layers = blobs.iter().map(|(_, blob)| LayerProgress::waiting(blob)).collect();
        });
        let asking = blobs.into_iter().map(|(number, blob)| async move {
            let there = self.is_there(session, &blob).await?;
            if !there && is_foreign(&blob.media_type) {
                tracing::info!(image = %self.name, digest = %blob.digest, "a layer that may not be passed on is not sent");
                self.show(number, |layer| (layer.done, layer.foreign) = (true, true));
                return Ok(None);
            }
            if there {
                self.show(number, |layer| (layer.done, layer.present) = (true, true));
            }
            Ok::<_, PushError>((!there).then_some((number, blob)))
        });
        let missing: Vec<_> = stream::iter(asking).buffer_unordered(AT_ONCE).try_collect().await?;
        let missing: Vec<(usize, Descriptor)> = missing.into_iter().flatten().collect();
        let wanted: Vec<&Descriptor> = missing.iter().map(|(_, blob)| blob).collect();
        // Only what the registry lacks has to be here as it came.
        let (files, _fetched) = self.inner.files_of(image, documents, &wanted, auth).await?;
        let files = &files;
        let sending = missing.into_iter().map(|(number, blob)| async move {
            let Some(file) = files.get(&blob.digest) else { return Ok(()) };
            let sent = |bytes| self.show(number, |layer| layer.fetched_bytes = bytes);
            let done = session.upload(&blob, file, sent).await;
            done.map_err(|e| self.session_refused(session, "a layer", e))?;
            self.show(number, |layer| layer.done = true);
            Ok::<(), PushError>(())
        });
        stream::iter(sending).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        let tag = self.name.tag().unwrap_or("latest");
        let told = session.put_manifest(tag, &documents.media_type, &documents.bytes).await;
        let told = told.map_err(|e| self.session_refused(session, "the manifest", e))?;
        match told {
            Some(actual) if actual != documents.manifest => Err(PushError::Changed {
                registry: session.registry().to_owned(),
                name: self.name.to_string(),
                expected: documents.manifest.clone(),
                actual,
            }),
            _ => {
                self.progress.send_modify(|p| p.phase = Phase::Done);
                Ok(documents.manifest.clone())
            }
        }
    }

    /// Whether the repository has a blob, or can be given it from another one of its registry.
    async fn is_there(&self, session: &Session, blob: &Descriptor) -> Result<bool, PushError> {
        let failed = |e| self.session_refused(session, "a layer", e);
        if session.has_blob(&blob.digest).await.map_err(failed)? {
            return Ok(true);
        }
        for other in &self.others {
            if session.mount(&blob.digest, other).await.map_err(failed)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn show(&self, number: usize, change: impl FnOnce(&mut LayerProgress)) {
        self.progress.send_modify(|p| {
            if let Some(layer) = p.layers.get_mut(number) {
                change(layer);
            }
        });
    }

    fn session_refused(&self, session: &Session, what: &str, source: RegistryError) -> PushError {
        self.refused(session.registry(), what, source, session.login())
    }

    fn refused(&self, registry: &str, what: &str, source: RegistryError, detail: String) -> PushError {
        match source.status() {
            Some(401 | 403) => PushError::Unauthorized { name: self.name.to_string(), detail },
            _ => PushError::Registry { registry: registry.to_owned(), what: what.to_owned(), source },
        }
    }
}
