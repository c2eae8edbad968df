//! What a registry, or the way to it, did wrong.

use std::{error::Error, sync::Arc, time::Duration};

use portreeve_network::ResolveError;

use crate::text::shown;

/// What a registry, or the way to it, did wrong. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The client itself cannot be made.
    #[error("setting up the connection to {registry}")]
    Setup {
        /// Host and port.
        registry: String,
        /// Why.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// There is no connection.
    #[error("connecting to {url}")]
    Connect {
        /// Where to.
        url: String,
        /// Why.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The connection broke or stood still in the middle.
    #[error("transfer from {url} was cut off")]
    Transfer {
        /// Where to.
        url: String,
        /// Why.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// Bytes came, but so few that the transfer would not end.
    #[error("transfer from {url} was too slow: it sent less than {bytes} bytes in {window:?}")]
    TooSlow {
        /// Where to.
        url: String,
        /// What would have been enough.
        bytes: u64,
        /// The time for that.
        window: Duration,
    },
    /// A mirror did not answer while others wait for their turn.
    #[error("{host} did not say within {limit:?} what it has")]
    Silent {
        /// Host and port.
        host: String,
        /// What it had.
        limit: Duration,
    },
    /// An answer with a status that does not help.
    #[error("{url} answered {status}: {message}")]
    Status {
        /// Where to.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said, shortened.
        message: Box<str>,
        /// For how many seconds it asks to be left alone (`Retry-After`).
        retry_after: Option<u32>,
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

impl RegistryError {
    /// Sorts what the HTTP client reports.
    pub(crate) fn from_request(url: &str, error: reqwest::Error) -> Self {
        let url = url.to_owned();
        let (connect, source) = (error.is_connect(), Arc::new(error.without_url()));
        if connect { Self::Connect { url, source } } else { Self::Transfer { url, source } }
    }

    /// The status, when the registry did answer.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// For how long the registry asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => retry_after.map(|seconds| Duration::from_secs(seconds.into())),
            _ => None,
        }
    }

    /// Worth trying again at once, within the same pull.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Transfer { .. } | Self::TooSlow { .. } => true,
            // One that asked for more patience than a request has is asked again another day.
            Self::Status { retry_after: Some(_), .. } => false,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// The same in the middle of a transfer: a registry that has just been there and lets nobody in starts anew, as a rule.
    pub(crate) fn is_transient_midway(&self) -> bool {
        self.is_transient() || matches!(self, Self::Connect { .. })
    }

    /// The deepest cause of a failed connection in a few words.
    pub(crate) fn cause(&self) -> String {
        let mut error: &dyn Error = self;
        while let Some(source) = error.source() {
            if source.is::<ResolveError>() {
                // It says more than what it was made from.
                let file = source.source().map(|file| format!(": {file}")).unwrap_or_default();
                return shown(&format!("{source}{file}"));
            }
            if let Some(io) = source.downcast_ref::<std::io::Error>() {
                match io.kind() {
                    std::io::ErrorKind::ConnectionRefused => {
                        return "connection refused, nothing listens there".to_owned();
                    }
                    std::io::ErrorKind::TimedOut => return "timed out".to_owned(),
                    _ => {}
                }
            }
            error = source;
        }
        shown(&error.to_string())
    }
}
