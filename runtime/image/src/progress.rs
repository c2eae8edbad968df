//! How far a pull is.

use tokio::{sync::watch, time::Instant};

use crate::{digest::Digest, manifest::Descriptor};

/// Where the progress of a pull is shown; make one with `watch::channel(Progress::default())`.
pub type ProgressSink = watch::Sender<Progress>;

/// What a pull does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Asks the registry what the reference means.
    #[default]
    Resolving,
    /// Layers are downloaded and unpacked.
    Fetching,
    /// All is there.
    Done,
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// The digest of the blob in the registry.
    pub digest: Digest,
    /// Bytes to fetch: as the manifest says, or what a partial pull needs of them.
    pub total_bytes: u64,
    /// Bytes fetched so far.
    pub fetched_bytes: u64,
    /// Unpacked, verified and in place; at once true for what was here before.
    pub done: bool,
    /// It was here before, nothing is fetched.
    pub present: bool,
    /// Of a push: it may not be passed on, and is not sent.
    pub foreign: bool,
    /// Bytes of its files that are taken from other layers instead of being fetched.
    pub reused_bytes: u64,
    /// Why all of it is fetched, when it is made for partial pulls and these are on.
    pub whole: Option<String>,
}

impl LayerProgress {
    /// Of a blob of which nothing has come yet.
    pub(crate) fn waiting(blob: &Descriptor) -> Self {
        Self {
            digest: blob.digest.clone(),
            total_bytes: blob.size,
            fetched_bytes: 0,
            done: false,
            present: false,
            foreign: false,
            reused_bytes: 0,
            whole: None,
        }
    }
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// What happens now.
    pub phase: Phase,
    /// Every layer, lowest first; empty while resolving.
    pub layers: Vec<LayerProgress>,
    /// When the first layer was asked for, after any wait for its turn; `None` while nothing is fetched.
    pub began: Option<Instant>,
    /// The host that has the image.
    pub host: Option<String>,
    /// Hosts that were asked in vain, in order, and what was wrong there.
    pub tried: Vec<Tried>,
}

/// A host that was asked in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Host and port.
    pub host: String,
    /// What was wrong.
    pub problem: String,
}

impl Progress {
    /// Bytes fetched so far over all layers.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.fetched_bytes).sum()
    }

    /// Bytes to fetch over all layers that were not here before.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.layers.iter().filter(|l| !l.present).map(|l| l.total_bytes).sum()
    }

    /// Bytes fetched in each second since the first layer was asked for; the same for everyone who looks now.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        let Some(began) = self.began else { return 0 };
        let millis = began.elapsed().as_millis().max(1);
        u64::try_from(u128::from(self.fetched_bytes()) * 1000 / millis).unwrap_or(u64::MAX)
    }
}
