//! Public keys, and whether a signature was made with one.
//!
//! Verified is what cosign makes: ECDSA over SHA-256, Ed25519, and RSA PKCS#1 v1.5 over SHA-256, always over the
//! payload's raw bytes.

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
    pem::{self, PemObject},
};
use webpki::{RawPublicKeyEntity, ring};

use crate::trust::read_bounded;

/// Largest file or text with a key, in bytes.
const MAX_KEY: u64 = 64 << 10;
const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 4] =
    [ring::ECDSA_P256_SHA256, ring::ECDSA_P384_SHA256, ring::ED25519, ring::RSA_PKCS1_2048_8192_SHA256];
/// Bytes of a key with 2048 and one with 8192 bits, with the smallest and the largest exponent in use.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 292..=1063;

/// A public key.
#[derive(Clone)]
pub(super) struct Key {
    der: SubjectPublicKeyInfoDer<'static>,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
}

/// Where a policy has a key.
#[derive(Debug, Clone)]
pub(super) enum KeySource {
    /// In a file, read anew for each decision.
    File(PathBuf),
    /// In itself.
    Here(Key),
}

impl KeySource {
    pub(super) fn load(&self) -> Result<Key, String> {
        match self {
            Self::File(path) => Key::read(path).map_err(|problem| format!("public key {}: {problem}", path.display())),
            Self::Here(key) => Ok(key.clone()),
        }
    }
}

impl Key {
    fn read(path: &Path) -> Result<Self, String> {
        let text = read_bounded(path, MAX_KEY).map_err(|error| error.to_string())?;
        Self::from_pem(&text)
    }

    /// The one public key in a PEM text.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, String> {
        let keys: Result<Vec<SubjectPublicKeyInfoDer<'static>>, pem::Error> =
            SubjectPublicKeyInfoDer::pem_slice_iter(text).collect();
        let keys = keys.map_err(|error| format!("it is no PEM text: {error:?}"))?;
        let der = match <[_; 1]>::try_from(keys) {
            Ok([der]) => der,
            Err(keys) if keys.is_empty() => return Err("there is no PUBLIC KEY in PEM form in it".to_owned()),
            Err(keys) => return Err(format!("there are {} keys in it; give each its own file", keys.len())),
        };
        let unknown = || "it is no key of ECDSA (P-256, P-384), Ed25519 or RSA (2048 to 8192 bits)".to_owned();
        let algorithm = algorithm_of(&der).ok_or_else(unknown)?;
        let is_rsa = algorithm.public_key_alg_id() == ring::RSA_PKCS1_2048_8192_SHA256.public_key_alg_id();
        // Others have one length, and one that is wrong verifies nothing.
        if is_rsa && !RSA_BYTES.contains(&der.as_ref().len()) {
            return Err(unknown());
        }
        Ok(Self { der, algorithm })
    }

    /// Whether this key's owner has signed these bytes.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        verify(&self.der, self.algorithm, message, signature).is_ok()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// The algorithm that the key is for: with it an empty signature is wrong, with others the key is.
fn algorithm_of(der: &SubjectPublicKeyInfoDer<'_>) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let is_wrong = |error| matches!(error, Err(webpki::Error::InvalidSignatureForPublicKey));
    ALGORITHMS.into_iter().find(|algorithm| is_wrong(verify(der, *algorithm, b"", b"")))
}

fn verify(
    der: &SubjectPublicKeyInfoDer<'_>,
    algorithm: &dyn SignatureVerificationAlgorithm,
    message: &[u8],
    signature: &[u8],
) -> Result<(), webpki::Error> {
    RawPublicKeyEntity::try_from(der)?.verify_signature(algorithm, message, signature)
}
