//! What a registry, or the way to it, did wrong.

use std::{error::Error, sync::Arc};

/// What a registry, or the way to it, did wrong. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The request did not get through.
    #[error("request to {url} failed")]
    Request {
        /// Where to.
        url: String,
        /// Why.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// An answer with a status that does not help.
    #[error("{url} answered {status}: {message}")]
    Status {
        /// Where to.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said, shortened.
        message: String,
    },
    /// More bytes than any honest answer has.
    #[error("answer of {url} has more than {limit} bytes")]
    TooLong {
        /// Where to.
        url: String,
        /// The bound.
        limit: u64,
    },
    /// An answer that does not follow the protocol.
    #[error("answer of {url}: {problem}")]
    Protocol {
        /// Where to.
        url: String,
        /// What is wrong.
        problem: String,
    },
}
