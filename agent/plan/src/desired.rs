//! What should run: one pod as the node's ledger wants it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use serde::{Deserialize, Serialize};

use crate::config::Configs;

/// The uid of a pod: one life of a namespace/name, through every edit and reboot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub String);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Namespace and name of a pod; prints as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodKey {
    /// Namespace, never empty.
    pub namespace: String,
    /// Name, never empty.
    pub name: String,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One pod as it should be.
#[derive(Debug, Clone)]
pub struct DesiredPod {
    /// The pod's uid; everything observed that carries another uid is left alone.
    pub uid: PodUid,
    /// The pod, defaulted and validated. For a pod to remove: its last known version.
    pub pod: Arc<Pod>,
    /// Counts the edits of the pod, from 1; becomes `status.observedGeneration`.
    pub generation: i64,
    /// When the ledger first knew this uid; becomes `status.startTime`.
    pub admitted_at: Timestamp,
    /// When the pod's manifest last changed (`admitted_at` until the first edit).
    pub changed_at: Timestamp,
    /// The ConfigMaps and Secrets it names.
    pub configs: Arc<Configs>,
    /// Run it, or take it away.
    pub intent: Intent,
    /// The last `restart pod` request; containers created before it are restarted once.
    pub restart_requested_at: Option<Timestamp>,
    /// From the ledger: the pod has ended and must not run again.
    pub finished: Option<Finished>,
    /// Why this node does not start the pod now (a host port is taken, ...). The node decides it,
    /// see [`crate::admit`]. What runs already is left alone.
    pub blocked: Option<Blocked>,
}

impl DesiredPod {
    /// A pod to run, admitted at `now`, with nothing special about it.
    pub fn new(uid: PodUid, pod: Arc<Pod>, now: Timestamp) -> DesiredPod {
        DesiredPod {
            uid,
            pod,
            generation: 1,
            admitted_at: now,
            changed_at: now,
            configs: Arc::default(),
            intent: Intent::Run,
            restart_requested_at: None,
            finished: None,
            blocked: None,
        }
    }

    /// Namespace and name.
    pub fn key(&self) -> PodKey {
        PodKey {
            namespace: self.pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            name: self.pod.metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The spec; the empty one if the manifest has none.
    pub(crate) fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }
}

/// What is wanted of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// It should run.
    Run,
    /// It should rest, gracefully stopped, because the node is drained: what its containers came to
    /// stays, as do their logs, and it goes on when it should run again.
    Rest {
        /// When the drain was asked for; the grace period counts from here.
        since: Timestamp,
        /// As with [`Intent::Remove`].
        grace: Option<Duration>,
    },
    /// It should go, gracefully.
    Remove {
        /// When the removal was asked for; the grace period counts from here.
        since: Timestamp,
        /// Grace period that replaces the pod's own; a later request may only shorten it.
        grace: Option<Duration>,
    },
}

/// Why the node does not start a pod; shown as `status.reason` and `status.message`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// One CamelCase word, such as `HostPortConflict`.
    pub reason: String,
    /// A sentence that names what is in the way.
    pub message: String,
}

/// How a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    /// Every container ended with exit code 0.
    Succeeded,
    /// At least one did not, or the pod was ended.
    Failed,
}

impl Terminal {
    /// The word of `status.phase`.
    pub fn phase(self) -> &'static str {
        match self {
            Terminal::Succeeded => "Succeeded",
            Terminal::Failed => "Failed",
        }
    }
}

/// The end of a pod, as the ledger keeps it beyond reboots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Succeeded or failed.
    pub terminal: Terminal,
    /// `status.reason`, such as `DeadlineExceeded`.
    pub reason: Option<String>,
    /// `status.message`.
    pub message: Option<String>,
    /// When the planner saw the end.
    pub at: Timestamp,
    /// The status at the end: what `get` and `describe` show once the containers' records are
    /// gone. The node fills it with [`crate::status()`] when it writes the ledger.
    pub status: Option<Box<PodStatus>>,
}
