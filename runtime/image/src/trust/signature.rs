//! Signatures of one image, as a registry has them and as the store keeps them.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    trust::{key::Key, payload},
};

/// Signatures of one image that are looked at and kept.
pub(super) const MAX_SIGNATURES: usize = 64;
/// Largest payload, in bytes; honest ones have some 300.
pub(super) const MAX_PAYLOAD: u64 = 16 << 10;
/// Longest signature as text; the longest that is verified has 1368 characters.
const MAX_SIGNATURE: usize = 2 << 10;
const VERSION: u64 = 1;

/// Signatures of one image, each once; those found first come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Signatures(Vec<Signature>);

/// What was signed, and the signature: base64, as it is in a manifest's annotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Signature {
    payload: String,
    signature: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u64,
    signatures: Vec<Signature>,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flaw {
    /// It is of none of the keys, or of other bytes.
    Key,
    /// A key's owner has signed something that is no payload.
    Payload(String),
    /// It is for another manifest.
    Digest(Digest),
    /// It is for another name.
    Name(String),
}

impl Signatures {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Signature> {
        self.0.iter()
    }

    /// Adds one, unless it is here, is longer than any honest one, or there are too many.
    pub(super) fn add(&mut self, payload: Vec<u8>, signature: &str) {
        let fits = payload.len() as u64 <= MAX_PAYLOAD && signature.len() <= MAX_SIGNATURE;
        // What is no text is no JSON either.
        if let (true, Ok(payload)) = (fits, String::from_utf8(payload)) {
            self.add_one(Signature { payload, signature: signature.trim().to_owned() });
        }
    }

    fn add_one(&mut self, signature: Signature) {
        if self.0.len() < MAX_SIGNATURES && !self.0.contains(&signature) {
            self.0.push(signature);
        }
    }

    /// These and then those, as far as there is room.
    pub(crate) fn and(mut self, others: Self) -> Self {
        others.0.into_iter().for_each(|signature| self.add_one(signature));
        self
    }

    /// Those that are for one of these manifests, by their own word.
    pub(crate) fn of(&self, digests: &BTreeSet<Digest>) -> Self {
        let is_of = |one: &&Signature| {
            payload::parse(one.payload.as_bytes()).is_ok_and(|payload| digests.contains(&payload.digest))
        };
        Self(self.0.iter().filter(is_of).cloned().collect())
    }

    /// The document that the store keeps.
    pub(crate) fn to_document(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Kept { version: VERSION, signatures: self.0.clone() })
    }

    /// Reads what [`Signatures::to_document`] made.
    pub(crate) fn from_document(document: &[u8]) -> Result<Self, String> {
        let kept: Kept = serde_json::from_slice(document).map_err(|error| error.to_string())?;
        match kept.version {
            VERSION => Ok(Self(kept.signatures)),
            other => Err(format!("it has the unknown version {other}")),
        }
    }
}

impl Signature {
    /// `Ok` when one of `keys` has signed that one of `digests` is something whose name `names` accepts.
    pub(super) fn check(
        &self,
        keys: &[Key],
        digests: &BTreeSet<Digest>,
        names: impl Fn(&str) -> bool,
    ) -> Result<(), Flaw> {
        let signature = STANDARD.decode(&self.signature).map_err(|_| Flaw::Key)?;
        // Before the payload is read: until then it is anybody's.
        if !keys.iter().any(|key| key.has_signed(self.payload.as_bytes(), &signature)) {
            return Err(Flaw::Key);
        }
        let payload = payload::parse(self.payload.as_bytes()).map_err(Flaw::Payload)?;
        if !digests.contains(&payload.digest) {
            return Err(Flaw::Digest(payload.digest));
        }
        if !names(&payload.reference) {
            return Err(Flaw::Name(payload.reference));
        }
        Ok(())
    }
}
