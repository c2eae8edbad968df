//! Content digests: `sha256:` and 64 lower-case hexadecimal digits, nothing else.

use std::{
    borrow::Borrow,
    fmt,
    io::{self, Read},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

const PREFIX: &str = "sha256:";

/// The sha256 digest of some content, always well-formed, so that it may be part of a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Passes on what it reads, and knows its digest.
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: sha2::Sha256,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hasher: sha2::Sha256::new() }
    }

    /// Reads what is left: the digest of all, and the bytes that were left.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        let (mut buffer, mut left) = (vec![0; 1 << 18], 0);
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok((Digest::from_bytes(&self.hasher.finalize()), left)),
                length => left += length as u64,
            }
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is not one that this store keeps content by.
    #[error("digest {text:?} does not start with \"sha256:\", the only supported algorithm")]
    Algorithm {
        /// What was given.
        text: String,
    },
    /// The part after the colon is not 64 lower-case hexadecimal digits.
    #[error("digest {text:?} does not have 64 lower-case hexadecimal digits")]
    Hex {
        /// What was given.
        text: String,
    },
}

impl Digest {
    /// The digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self::from_bytes(&sha2::Sha256::digest(content))
    }

    /// The digest whose 32 raw bytes a hasher gave.
    pub(crate) fn from_bytes(raw: &[u8]) -> Self {
        Self(format!("{PREFIX}{}", hex::encode(raw)))
    }

    /// The 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.strip_prefix(PREFIX).unwrap_or_default()
    }

    /// `sha256:` and the digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest with these digits, as a blob's file name has them.
    ///
    /// # Errors
    /// [`DigestError::Hex`] when these are not 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Result<Self, DigestError> {
        format!("{PREFIX}{hex}").parse()
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // What an error repeats is cut, a hostile registry does not fill a log.
        let shown = || text.chars().take(100).collect();
        let Some(hex) = text.strip_prefix(PREFIX) else {
            return Err(DigestError::Algorithm { text: shown() });
        };
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != 64 || !hex.bytes().all(lower_hex) {
            return Err(DigestError::Hex { text: shown() });
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl Borrow<str> for Digest {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_digits_after_sha256_are_a_digest() {
        let good = format!("sha256:{}", "0af9".repeat(16));
        assert_eq!(good.parse::<Digest>().unwrap().as_str(), good);
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            &format!("sha256:{}", "0AF9".repeat(16)),
            &format!("sha256:{}", "0af".repeat(16)),
            &format!("sha512:{}", "0af9".repeat(32)),
            &"0af9".repeat(16),
            &format!("sha256:{}/", "0af9".repeat(16)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
