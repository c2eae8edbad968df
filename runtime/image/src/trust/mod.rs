//! Which images may be used: what an administrator has written, and who has signed them.
//!
//! ```text
//!  policy.json --> the most specific scope of the reference --> its requirements, which must all hold
//!                                                                   |
//!        insecureAcceptAnything  reject  digestOnly   nothing else is looked at
//!        sigstoreSigned                               payload + signature, by one of the keys:
//!                                                     names a digest that the reference means here,
//!                                                     names what `signedIdentity` accepts
//! ```
//!
//! The file has the syntax of containers-policy.json(5), and `digestOnly` besides. It is read anew for each decision.
//! What cannot be read or is not known refuses every image: nothing is accepted by mistake.
//! Source: containers-policy.json(5); cosign `specs/SIGNATURE_SPEC.md`.

mod document;
mod fetch;
mod identity;
mod key;
mod payload;
mod policy;
mod rule;
mod scope;
mod signature;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub(crate) use fetch::{Way, fetch};
pub(crate) use policy::Policy;
pub use policy::{PolicyError, PolicySurvey};
pub use rule::Refusal;
pub(crate) use rule::{Rule, Subject};
pub(crate) use signature::Signatures;

/// Reads a policy and all that it names, and tells what it says in short.
///
/// # Errors
/// What is wrong in it, or with a key that it names.
pub fn survey_policy(path: &Path) -> Result<PolicySurvey, PolicyError> {
    Policy::read(path)?.survey()
}

/// A small file's content.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > limit {
        return Err(io::Error::other(format!("it is no file of at most {limit} bytes")));
    }
    fs::read(path)
}

/// A path that a policy names.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("is {text:?}; give an absolute path")) }
}

#[cfg(test)]
mod tests;
