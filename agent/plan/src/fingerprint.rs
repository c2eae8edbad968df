//! Fingerprints tell a changed value from an unchanged one; they are no protection.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 128-bit FNV-1a of some bytes, in hex. Stored beside what was made from these bytes, in places
/// that only root reads; two different values of one user colliding by chance is not expected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Fingerprint {
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let hash = bytes.as_ref().iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
        Fingerprint(format!("{hash:032x}"))
    }

    /// The fingerprint of a value's JSON; k8s types and ordered maps print the same each time.
    pub(crate) fn of_json(value: &impl Serialize) -> Fingerprint {
        Fingerprint::of(serde_json::to_vec(value).unwrap_or_default())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
