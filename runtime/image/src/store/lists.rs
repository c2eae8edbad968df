//! What a registry has, asked for a person: nothing of it is stored.

use std::sync::Arc;

use crate::{
    credential::Credential,
    digest::Digest,
    reference::ImageRef,
    registry::{Referrer, Session, describe},
    store::{Inner, PullError, pull::Pull},
};

impl Inner {
    pub(crate) async fn tags(
        self: &Arc<Self>,
        repository: &ImageRef,
        auth: &[Credential],
    ) -> Result<Vec<String>, PullError> {
        let (pull, session) = self.asking(repository, auth).await?;
        session.tags().await.map_err(|e| pull.session_error(&session, "its tags", e))
    }

    pub(crate) async fn referrers(
        self: &Arc<Self>,
        reference: &ImageRef,
        auth: &[Credential],
    ) -> Result<(Digest, Vec<Referrer>), PullError> {
        let (pull, session) = self.asking(reference, auth).await?;
        let name = pull.asked_for();
        let digest = match name.parse() {
            Ok(digest) => digest,
            Err(_) => {
                let manifest = session.manifest(&name).await;
                Digest::of(&manifest.map_err(|e| pull.session_error(&session, "the manifest", e))?.bytes)
            }
        };
        let found = session.referrers(&digest, None).await;
        Ok((digest, found.map_err(|e| pull.session_error(&session, "what refers to it", e))?))
    }

    /// The first host that lets itself be asked, with the first login that it accepts.
    pub(crate) async fn asking(
        self: &Arc<Self>,
        reference: &ImageRef,
        auth: &[Credential],
    ) -> Result<(Pull, Session), PullError> {
        let pull = Pull::at_once(self, reference.clone());
        let mut refused = None;
        for endpoint in pull.endpoints().await? {
            let mut logins: Vec<_> = endpoint.best_login(reference.registry(), auth).into_iter().map(Some).collect();
            if logins.is_empty() {
                logins.push(None);
            }
            for login in logins {
                match Session::open(&self.registries, &endpoint, login).await {
                    Ok(session) => return Ok((pull, session)),
                    Err(error) => {
                        let error = pull.registry_error(&endpoint.registry, "access", error, describe(login));
                        refused = refused.or(Some(error));
                    }
                }
            }
        }
        Err(refused.unwrap_or_else(|| PullError::NotFound { image: reference.to_string() }))
    }
}
