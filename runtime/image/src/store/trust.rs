//! The trust policy at a pull, and at the start of a container.
//!
//! Signatures come with the image and stay with it, in a blob of their own, so that a start asks nobody. Before a
//! layer is fetched they must suffice.

use std::{collections::BTreeSet, fs};

use crate::{
    credential::Credential,
    digest::Digest,
    image::{Image, ImageId},
    reference::ImageRef,
    store::{
        Inner, PullError, StoreError,
        catalog::Record,
        pull::{Pull, Resolved},
        sources::Sources,
    },
    trust::{Policy, Refusal, Rule, Signatures, Subject, Way, fetch},
};

impl Pull {
    /// Asks each host until one has the image, and until the policy is satisfied with it.
    pub(crate) async fn resolve_trusted(&self, auth: &[Credential]) -> Result<(Resolved, Sources), PullError> {
        let rule = self.rule().await?;
        let (mut resolved, sources) = self.resolve(auth).await?;
        if let Some(rule) = rule.filter(Rule::wants_signatures) {
            resolved.signatures = self.judge(&rule, &resolved, &sources).await?;
        }
        Ok((resolved, sources))
    }

    /// What the policy says of the reference, when there is one; what it forbids already is an error.
    async fn rule(&self) -> Result<Option<Rule>, PullError> {
        if self.inner.config.trust_policy.is_none() {
            return Ok(None);
        }
        let (inner, reference) = (self.inner.clone(), self.reference.clone());
        let rule = self.blocking(move || inner.rule(&reference)).await?.map_err(PullError::Untrusted)?;
        if let Some(rule) = &rule {
            rule.check_reference().map_err(PullError::Untrusted)?;
        }
        Ok(rule)
    }

    /// The signatures for which the policy lets the image be used. Hosts are asked in order, until one has what
    /// suffices.
    async fn judge(&self, rule: &Rule, resolved: &Resolved, sources: &Sources) -> Result<Signatures, PullError> {
        // As at a start: what the name means, and the manifest that was chosen of it.
        let digests = BTreeSet::from([resolved.top.clone(), resolved.manifest_digest.clone()]);
        let (inner, manifest) = (self.inner.clone(), resolved.manifest_digest.clone());
        let known = self.blocking(move || inner.signatures_of_manifest(&manifest)).await?;
        let mut refusal = match rule.check(&Subject { digests: &digests, signatures: &known }) {
            Ok(()) => return Ok(known),
            Err(refusal) => refusal,
        };
        let what = format!("the signatures that {} asks for", refusal.rule);
        let mut failure = None;
        let mut place = 0;
        while let Some(session) = sources.host(self, place, resolved.manifest_digest.as_str()).await {
            let mut found = Signatures::default();
            for way in [Way::Tag, Way::Referrers] {
                for digest in &digests {
                    if let Err(error) = fetch(&session, digest, way, &mut found).await {
                        let error = self.registry_error(session.registry(), &what, error, session.login());
                        failure = failure.or(Some(error));
                    }
                }
                let all = found.clone().and(known.clone());
                match rule.check(&Subject { digests: &digests, signatures: &all }) {
                    Ok(()) => return Ok(all),
                    Err(refused) if !found.is_empty() => refusal = refused,
                    Err(_) => {}
                }
            }
            place += 1;
        }
        // What could not be asked for may be there.
        Err(failure.unwrap_or(PullError::Untrusted(refusal)))
    }
}

impl Inner {
    /// What the policy says of a reference; `None` without a policy. Blocks on the disk.
    fn rule(&self, reference: &ImageRef) -> Result<Option<Rule>, Refusal> {
        let Some(path) = &self.config.trust_policy else { return Ok(None) };
        let policy = Policy::read(path).map_err(|error| error.refusal(reference))?;
        policy.rule(reference).map(Some)
    }

    /// Blocks on the disk.
    pub(crate) fn check_trust(&self, reference: &ImageRef, image: &Image) -> Result<(), Refusal> {
        let Some(rule) = self.rule(reference)? else { return Ok(()) };
        rule.check_reference()?;
        if !rule.wants_signatures() {
            return Ok(());
        }
        let record = self.catalog.read().images.get(&image.id).map(|entry| entry.record.clone());
        let (digests, signatures) = match record {
            Some(record) => (digests_of(&record), self.signatures(&record)),
            None => (BTreeSet::new(), Signatures::default()),
        };
        rule.check(&Subject { digests: &digests, signatures: &signatures })
    }

    /// Keeps signatures with an image that is here, as far as they are its own. Blocks on the disk.
    pub(crate) fn keep_signatures(&self, id: &ImageId, found: &Signatures) -> Result<(), StoreError> {
        let record = self.catalog.read().images.get(id).map(|entry| entry.record.clone());
        let Some(record) = record.filter(|_| !found.is_empty()) else { return Ok(()) };
        let known = self.signatures(&record);
        let kept = found.of(&digests_of(&record)).and(known.clone());
        if kept == known {
            return Ok(());
        }
        let layout = &self.catalog.layout;
        let document = kept.to_document().map_err(|source| StoreError::Index { path: layout.index(), source })?;
        let digest = Digest::of(&document);
        // Its record counts as written from now on.
        layout.write(&layout.blob(&digest), &document, true)?;
        self.catalog.change(|state| {
            if let Some(entry) = state.images.get_mut(id) {
                entry.record.signatures = Some(digest);
            }
            Ok(())
        })
    }

    /// Takes its signatures off an image, so that they are asked for when they are wanted.
    pub(crate) fn forget_signatures(&self, id: &ImageId) -> Result<(), StoreError> {
        self.catalog.change(|state| {
            if let Some(entry) = state.images.get_mut(id) {
                entry.record.signatures = None;
            }
            Ok(())
        })
    }

    fn signatures_of_manifest(&self, manifest: &Digest) -> Signatures {
        let state = self.catalog.read();
        let record = state.images.values().map(|entry| &entry.record).find(|record| record.manifest == *manifest);
        let record = record.cloned();
        drop(state);
        record.map_or_else(Signatures::default, |record| self.signatures(&record))
    }

    /// The signatures that are kept with an image. Those that cannot be read are none: they are asked for again.
    fn signatures(&self, record: &Record) -> Signatures {
        let Some(digest) = &record.signatures else { return Signatures::default() };
        let read = fs::read(self.catalog.layout.blob(digest)).map_err(|error| error.to_string());
        let whole = read.and_then(|bytes| match Digest::of(&bytes) == *digest {
            true => Signatures::from_document(&bytes),
            false => Err("its digest is another".to_owned()),
        });
        whole.unwrap_or_else(|problem| {
            tracing::warn!(image = %record.id, problem, "signatures of an image could not be read, they count as none");
            Signatures::default()
        })
    }
}

/// All that a signature of an image may be for: its manifest, and what it was pulled by, which names its manifest by
/// digest.
fn digests_of(record: &Record) -> BTreeSet<Digest> {
    let pinned = record.repo_digests.iter().filter_map(ImageRef::digest);
    pinned.chain([&record.manifest]).cloned().collect()
}
