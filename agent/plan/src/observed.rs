//! What is: one pod as the node last saw it.
//!
//! Everything is rebuilt from the engine and from records on disk; the planner keeps no memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodSpec, PodStatus};
use serde::{Deserialize, Serialize};

use crate::desired::PodUid;
use crate::fingerprint::Fingerprint;
use crate::resources::{Resources, ResourcesView};
use crate::step::KillCause;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The engine's id of a sandbox.
    SandboxId
);
id!(
    /// The engine's id of a container.
    ContainerId
);
id!(
    /// An image as a manifest names it (`nginx:1.27`); the node normalises it when it looks it up.
    ImageName
);

/// One pod as it is.
#[derive(Debug, Clone, Default)]
pub struct ObservedPod {
    /// Every sandbox of this pod that is known, whatever its state.
    pub sandboxes: Vec<SandboxView>,
    /// Every container of this pod that is known, of every attempt.
    pub containers: Vec<ContainerView>,
    /// The images the pod names; one that is not listed is absent.
    pub images: BTreeMap<ImageName, ImageView>,
    /// The volumes that are mounted, with the record they were mounted or refreshed by.
    pub volumes: BTreeMap<String, VolumeRecord>,
    /// What the probes say of running containers.
    pub probes: BTreeMap<ContainerId, ProbeVerdicts>,
    /// Steps that failed and have not succeeded since. The node removes an entry on success.
    pub failures: BTreeMap<Attempted, Failure>,
    /// Addresses of the node, the main one first.
    pub host_ips: Vec<String>,
    /// What outlives the records above.
    pub history: History,
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxView {
    /// Its id.
    pub id: SandboxId,
    /// The pod it was made for.
    pub uid: PodUid,
    /// Counts the sandboxes of the pod, from 0.
    pub attempt: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether containers can live in it.
    pub state: SandboxState,
    /// Addresses inside it; empty with the host's network.
    pub ips: Vec<String>,
    /// What [`crate::sandbox_record`] said when it was made; `None` if it cannot be read, which
    /// makes the planner replace the sandbox.
    pub record: Option<Arc<SandboxRecord>>,
}

/// Whether containers can live in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxState {
    /// All of it is there.
    Ready,
    /// Part of it went away: the shim died, the cgroup or the network namespace is gone.
    Lost {
        /// A sentence without its full stop, such as "the shim died".
        reason: String,
        /// When, as far as known.
        at: Option<Timestamp>,
    },
    /// It was stopped; only its record is left.
    Stopped,
}

/// One container, of one attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// The pod it was made for.
    pub uid: PodUid,
    /// The sandbox it lives in.
    pub sandbox: SandboxId,
    /// Its name in the pod's spec.
    pub name: String,
    /// Counts the containers of this name, from 0; shown as `restartCount`.
    pub attempt: u32,
    /// When it was created.
    pub created_at: Timestamp,
    /// What it is doing.
    pub state: ContainerState,
    /// The image reference it was made from, normalised.
    pub image: String,
    /// The id of that image.
    pub image_id: String,
    /// What [`crate::container_record`] said when it was made; `None` if it cannot be read, which
    /// makes the planner replace the container.
    pub record: Option<Arc<ContainerRecord>>,
    /// What its cgroup enforces.
    pub resources: ResourcesView,
    /// How far its postStart hook is; ignored when it has none.
    pub post_start: HookState,
    /// A graceful stop that has begun; kept after the exit, where it says who ended it.
    pub stopping: Option<Stopping>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Exited(Exit),
    /// Gone without a trace of how it ended.
    Unknown,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// The process's exit code, 128 + n for signal n.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// `OOMKilled`, `Completed`, `Error`, `StartError`, ...
    pub reason: Option<String>,
    /// The termination message.
    pub message: Option<String>,
    /// When it started, if it ever did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// A graceful stop that has begun; the record outlives the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    /// When the container is killed at the latest.
    pub deadline: Timestamp,
    /// Whether the preStop hook has run.
    pub pre_stop_ran: bool,
    /// Why.
    pub cause: KillCause,
}

/// How far a hook is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HookState {
    /// It has not run, or not to its end.
    #[default]
    Pending,
    /// It succeeded.
    Done,
    /// It failed.
    Failed {
        /// What it said.
        message: String,
    },
}

/// What the node knows of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageView {
    /// It is not on the node.
    Absent,
    /// It is being pulled for this pod.
    Pulling {
        /// What the try before said.
        after: Option<Failure>,
        /// How far it is, in a few words; empty while that is not known.
        progress: String,
    },
    /// It is on the node.
    Present {
        /// Digest of its configuration.
        id: String,
        /// The user of its configuration.
        user: Option<String>,
        /// When the registry was last asked for this reference, by a pull that succeeded.
        pulled_at: Option<Timestamp>,
        /// The last pull for this pod failed although the image is here (`Always`).
        failure: Option<Failure>,
    },
    /// It is on the node, but must not be used as it is: its trust policy is not satisfied.
    Refused {
        /// By which rule, and why.
        message: String,
        /// As of an image that is present.
        pulled_at: Option<Timestamp>,
        /// The last pull for this pod failed.
        failure: Option<Failure>,
    },
    /// The last pull failed and the image is not here.
    Failed(Failure),
    /// The reference does not parse.
    Invalid {
        /// Why not.
        message: String,
    },
}

impl ImageView {
    /// No container can be made of it, and nothing is under way that will change that.
    pub fn is_wanting(&self) -> bool {
        match self {
            ImageView::Absent | ImageView::Refused { .. } | ImageView::Failed(_) => true,
            ImageView::Pulling { .. } | ImageView::Present { .. } | ImageView::Invalid { .. } => false,
        }
    }
}

/// A failure that was observed; back-off counts from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// How many times in a row, from 1.
    pub attempts: u32,
    /// [`crate::DesiredPod::generation`] at that time: an edit of the pod tries again at once.
    pub generation: i64,
    /// One CamelCase word (`ErrImagePull`, `CreateContainerError`, `RunContainerError`).
    pub reason: String,
    /// The error, whole.
    pub message: String,
    /// Whoever refused asks to be left alone until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
}

/// What a [`Failure`] was about: the kind of the step that failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attempted {
    /// `CreateSandbox`.
    Sandbox,
    /// `MountVolumes`, `RefreshVolumes`, `UnmountVolumes`.
    Volumes,
    /// `CreateContainer` or `StartContainer` of this name.
    Container(String),
    /// `UpdateResources` of this container name.
    Resources(String),
    /// `KillContainer`, `RemoveContainer`, `StopSandbox`, `RemoveSandbox`, `RecordFinished`.
    Removal,
}

/// What the probes of one container say. A threshold has been counted before it gets here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeVerdicts {
    /// The startup probe.
    pub startup: Verdict,
    /// The liveness probe.
    pub liveness: Verdict,
    /// The readiness probe.
    pub readiness: Verdict,
}

/// What one probe says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet: not started, for the startup and readiness probe; alive, for liveness.
    #[default]
    Unknown,
    /// Success.
    Success,
    /// Failed as often as the failure threshold says.
    Failure {
        /// What the last try said.
        message: String,
    },
}

/// What a sandbox was made from; the node stores it as JSON with the sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    /// The spec at that time.
    pub spec: PodSpec,
    /// Back-off before this sandbox, in seconds; `None` if it did not replace a lost one.
    pub backoff_seconds: Option<u64>,
    /// What the containers of the sandboxes before had come to.
    #[serde(default)]
    pub carried: BTreeMap<String, Carried>,
}

/// What is remembered of a container whose record went with its sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Carried {
    /// The attempt it had.
    pub attempt: u32,
    /// Back-off before that attempt, in seconds.
    pub backoff_seconds: Option<u64>,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
    /// It had ended for good before its sandbox went: its restart policy asked for no more.
    #[serde(default)]
    pub completed: bool,
    /// Its id.
    pub id: Option<ContainerId>,
}

/// What a container was made from; the node stores it as JSON with the container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// The container of the spec at that time.
    pub container: Container,
    /// Back-off before this attempt, in seconds; `None` for a start that is no restart.
    pub backoff_seconds: Option<u64>,
    /// Fingerprints of the ConfigMap and Secret keys its environment uses, by
    /// `ConfigMap name/key` or `Secret name/key`.
    #[serde(default)]
    pub env: BTreeMap<String, Fingerprint>,
    /// The limits it was created with.
    pub resources: Resources,
}

impl ContainerRecord {
    /// Back-off before this attempt.
    pub fn backoff(&self) -> Option<Duration> {
        self.backoff_seconds.map(Duration::from_secs)
    }
}

/// What a mounted volume was made from; the node stores it beside the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRecord {
    /// Of the volume in the spec; another one means another volume.
    pub definition: Fingerprint,
    /// Of the content it shows (ConfigMap and Secret keys, labels, annotations); `None` for
    /// volumes whose content is not ours. Another one means `RefreshVolumes`.
    pub content: Option<Fingerprint>,
}

/// What outlives records and, if the node persists it, reboots. See [`crate::remember`].
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The status before this one: transition times and start time come from it.
    pub previous: Option<Arc<PodStatus>>,
    /// By container name, the least attempt that no container of this pod has had.
    pub attempts: BTreeMap<String, u32>,
    /// What the node kept on disk of a pod that does not always restart. It counts only while no
    /// sandbox is known.
    pub past: Option<Arc<Past>>,
}

/// What a pod had come to, for the case that every record of it goes, as at a reboot. See
/// [`crate::past`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Past {
    /// [`crate::DesiredPod::generation`] at that time: an edited pod begins anew.
    pub generation: i64,
    /// [`crate::DesiredPod::restart_requested_at`] at that time: so does one that is asked for.
    pub restart_requested_at: Option<Timestamp>,
    /// What each container that was ever started had come to, by name; empty when that is no longer known.
    pub carried: BTreeMap<String, Carried>,
}

impl Past {
    /// Whether only this is known: that the pod has run. It has ended then, unless it always restarts, because a second
    /// run may do harm, and one too few is mended by an edit or a request.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.carried.is_empty()
    }
}
