//! Why a layer is pulled whole.

use std::io;

use crate::digest::Digest;

/// Why a layer cannot be rebuilt from parts, or need not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartialError {
    #[error("annotation {name} has {value:?}, which is not understood")]
    Annotation { name: &'static str, value: String },
    #[error("{what} has digest {actual}, {by} says {expected}")]
    Digest { what: &'static str, by: &'static str, expected: Digest, actual: Digest },
    #[error("{what} has more than {limit} {unit}")]
    Limit { what: &'static str, limit: u64, unit: &'static str },
    #[error("{what} {problem}")]
    Malformed { what: &'static str, problem: String },
    #[error("reading {what}")]
    Read {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("reading {path:?} of layer {layer}")]
    Local {
        layer: Digest,
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} of layer {layer} is not what it was unpacked as")]
    Changed { layer: Digest, path: String },
    #[error("no file of it is here")]
    NothingHere,
    #[error("it would save {saved} of {size} bytes")]
    NotWorthwhile { saved: u64, size: u64 },
}
