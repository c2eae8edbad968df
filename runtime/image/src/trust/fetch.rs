//! Signatures as registries have them: beside the image, in its repository.
//!
//! ```text
//!  tag sha256-<hex>.sig                  what cosign and skopeo write            --> manifest
//!  /v2/<name>/referrers/<digest>         with OCI 1.1 registries   --> index --> manifest
//!  tag sha256-<hex>                      the same index, with others
//!
//!  manifest: each layer is a payload, its annotation the signature
//! ```
//! Source: cosign `specs/SIGNATURE_SPEC.md`; OCI distribution-spec v1.1, "Listing Referrers".

use std::collections::BTreeMap;

use futures_util::StreamExt;
use serde::Deserialize;

use crate::{
    digest::Digest,
    manifest::Descriptor,
    registry::{RegistryError, Session},
    trust::{
        Signatures,
        signature::{MAX_PAYLOAD, MAX_SIGNATURES},
    },
};

/// Manifests with signatures that are read of one list of referrers.
const MAX_MANIFESTS: usize = 16;
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// How a repository says which signatures a manifest has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    /// By a tag made of the manifest's digest.
    Tag,
    /// By a list of what refers to the manifest.
    Referrers,
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Adds the signatures that a repository has for `digest`; those that were found before something failed, too.
///
/// # Errors
/// The first failure. That the repository has none is no failure.
pub(crate) async fn fetch(
    session: &Session,
    digest: &Digest,
    way: Way,
    found: &mut Signatures,
) -> Result<(), RegistryError> {
    let names = match way {
        Way::Tag => vec![format!("sha256-{}.sig", digest.hex())],
        Way::Referrers => referrers(session, digest).await?,
    };
    let mut outcome = Ok(());
    for name in names {
        outcome = outcome.and(signatures_of(session, &name, found).await);
    }
    outcome
}

/// Digests of the manifests with signatures that refer to `digest`.
async fn referrers(session: &Session, digest: &Digest) -> Result<Vec<String>, RegistryError> {
    let found = present(session.referrers(digest, Some(ARTIFACT)).await)?.unwrap_or_default();
    let signatures = found.into_iter().filter(|referrer| referrer.artifact_type == ARTIFACT);
    Ok(signatures.map(|referrer| referrer.digest.to_string()).take(MAX_MANIFESTS).collect())
}

/// Adds the signatures of one manifest, whatever becomes of others beside them.
async fn signatures_of(session: &Session, name: &str, found: &mut Signatures) -> Result<(), RegistryError> {
    let Some(document) = present(session.manifest(name).await)? else { return Ok(()) };
    let manifest: Manifest = parse(&session.url("manifests", name), &document.bytes)?;
    let mut payloads: BTreeMap<Digest, Option<Vec<u8>>> = BTreeMap::new();
    let mut outcome = Ok(());
    // New ones are put at the end.
    for layer in manifest.layers.iter().rev().filter(|layer| layer.media_type == PAYLOAD).take(MAX_SIGNATURES) {
        let signature = layer.annotations.as_ref().and_then(|all| all.get(SIGNATURE));
        let (Some(signature), Ok(digest)) = (signature, layer.digest.parse::<Digest>()) else { continue };
        if layer.size > MAX_PAYLOAD {
            tracing::debug!(name, size = layer.size, "signature has a payload longer than any honest one");
            continue;
        }
        // Several signatures of the same have one payload.
        if !payloads.contains_key(&digest) {
            let (payload, fetched) = match payload(session, &digest, layer.size).await {
                Ok(payload) => (Some(payload), Ok(())),
                Err(error) => (None, Err(error)),
            };
            outcome = outcome.and(fetched);
            payloads.insert(digest.clone(), payload);
        }
        if let Some(Some(payload)) = payloads.get(&digest) {
            found.add(payload.clone(), signature);
        }
    }
    outcome
}

async fn payload(session: &Session, digest: &Digest, size: u64) -> Result<Vec<u8>, RegistryError> {
    let blob = Descriptor::new(PAYLOAD, digest.clone(), size);
    let wrong = |problem: &str| RegistryError::Protocol {
        url: session.url("blobs", digest.as_str()),
        problem: format!("the payload of a signature {problem}"),
    };
    let (mut pieces, _) = session.blob(&blob, 0).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() as u64 > size {
            return Err(wrong("is longer than its manifest says"));
        }
    }
    if Digest::of(&bytes) != *digest {
        return Err(wrong("does not have the digest that its manifest says"));
    }
    Ok(bytes)
}

/// `None` when the registry has no such thing, or does not know what it was asked. That this repository may be read is
/// known by then, so that a refusal, too, is a way to say that.
fn present<T>(answer: Result<T, RegistryError>) -> Result<Option<T>, RegistryError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if matches!(error.status(), Some(400 | 401 | 403..=406 | 410 | 415 | 501)) => {
            tracing::debug!(%error, "registry has no signatures there");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn parse<'a, T: Deserialize<'a>>(url: &str, document: &'a [u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(document).map_err(|error| RegistryError::Protocol {
        url: url.to_owned(),
        problem: crate::text::shown(&format!("it is no manifest of signatures: {error}")),
    })
}
