//! What to do: steps as data, and the plan that holds them.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::desired::{Finished, PodKey, PodUid};
use crate::difference::{Cost, Difference};
use crate::observed::{ContainerId, ImageName, SandboxId};
use crate::resources::Resources;

/// What to do next with one pod, why, and when to ask again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The pod.
    pub uid: PodUid,
    /// Its name.
    pub key: PodKey,
    /// In this order; stop at the first that fails.
    pub steps: Vec<Step>,
    /// What the plan is waiting for.
    pub waits: Vec<Wait>,
    /// What a later plan starts, when these steps have had their effect.
    pub then: Vec<Following>,
    /// How what runs differs from what is wanted.
    pub differences: Vec<Difference>,
    /// The first moment at which time alone could change this plan or the status.
    pub wake_at: Option<Timestamp>,
    /// The pod was to be removed and nothing of it is left: forget it.
    pub removed: bool,
    /// The pod was to rest, and nothing of it runs or is held any more.
    pub rests: bool,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps, cut into runs that may be executed at the same time: neighbouring pulls, and
    /// neighbouring kills. Every other step is alone.
    pub fn batches(&self) -> impl Iterator<Item = &[Step]> {
        self.steps.chunk_by(|one, next| {
            matches!(
                (&one.action, &next.action),
                (Action::PullImage { .. }, Action::PullImage { .. })
                    | (Action::KillContainer { .. }, Action::KillContainer { .. })
            )
        })
    }

    /// The highest cost of its steps.
    pub fn cost(&self) -> Option<&Cost> {
        self.steps.iter().map(|step| &step.cost).max()
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What.
    pub action: Action,
    /// Why, as a sentence for people without its full stop.
    pub reason: String,
    /// What it costs the pod.
    pub cost: Cost,
}

/// Something the plan waits for: a back-off, a missing ConfigMap, an init container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// The container that waits; `None` for the whole pod.
    pub container: Option<String>,
    /// One CamelCase word: `CrashLoopBackOff`, `ImagePullBackOff`, `CreateContainerConfigError`.
    pub reason: String,
    /// What it means for whoever looks after the pod.
    pub kind: WaitKind,
    /// A sentence.
    pub message: String,
    /// When it is tried again; `None` when only a change of the world ends the wait.
    pub until: Option<Timestamp>,
}

/// What a wait means for whoever looks after the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitKind {
    /// Nothing is wrong: it takes its time.
    Progress,
    /// It failed more than once, and a pause is kept before the next try.
    BackOff,
    /// Something is wrong, and somebody may have to mend it.
    Fault,
    /// What a volume is made of is missing.
    Volume,
    /// A step failed, which was told when it did, and is tried again.
    Retry,
}

/// Containers that are started by a later plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Following {
    /// Their names, in the order of the pod.
    pub containers: Vec<String>,
    /// What must have happened before, as the end of a sentence that begins with `when`.
    pub when: String,
}

/// The verbs of the planner. Each is idempotent for the executor: what is done already is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Action {
    /// Write the end of the pod to the ledger (with its status), before anything is taken away.
    RecordFinished {
        /// What to write.
        finished: Box<Finished>,
    },
    /// Ask the registry for an image, even if it is here.
    PullImage {
        /// Which.
        image: ImageName,
        /// The containers that need it.
        containers: Vec<String>,
    },
    /// Make these volumes available; their records come from [`crate::volume_records`].
    MountVolumes {
        /// By name.
        volumes: BTreeSet<String>,
    },
    /// Write the present content into these volumes, atomically, under running containers.
    RefreshVolumes {
        /// By name.
        volumes: BTreeSet<String>,
    },
    /// Take these volumes away, with what an emptyDir holds.
    UnmountVolumes {
        /// By name.
        volumes: BTreeSet<String>,
    },
    /// Make a sandbox; its record comes from [`crate::sandbox_record`].
    CreateSandbox {
        /// Counts the sandboxes of the pod.
        attempt: u32,
        /// Back-off that was kept before it; `None` if it does not replace a lost one.
        #[serde(with = "seconds_option", rename = "backoffSeconds")]
        backoff: Option<Duration>,
    },
    /// Make a container in the newest ready sandbox; its record comes from
    /// [`crate::container_record`].
    CreateContainer {
        /// Its name.
        container: String,
        /// Its attempt.
        attempt: u32,
        /// Back-off that was kept before it; `None` if it is no restart.
        #[serde(with = "seconds_option", rename = "backoffSeconds")]
        backoff: Option<Duration>,
    },
    /// Start it.
    StartContainer {
        /// Its name.
        container: String,
        /// Its attempt.
        attempt: u32,
    },
    /// Run its postStart hook to the end. A failure is observed as `HookState::Failed`.
    RunPostStart {
        /// Its name.
        container: String,
        /// Its attempt.
        attempt: u32,
    },
    /// Stop it: preStop if asked, then the stop signal, then after the grace period SIGKILL.
    /// Record [`crate::observed::Stopping`] first. Done when the container has exited; what may be
    /// done until then says [`Action::beside_stops`].
    KillContainer {
        /// Which.
        id: ContainerId,
        /// Its name.
        container: String,
        /// Time for preStop and stop signal together.
        #[serde(with = "seconds", rename = "graceSeconds")]
        grace: Duration,
        /// Whether to run the preStop hook.
        pre_stop: bool,
        /// Why.
        cause: KillCause,
    },
    /// Forget a container that does not run: its record, its snapshot.
    RemoveContainer {
        /// Which.
        id: ContainerId,
        /// Its name.
        container: String,
    },
    /// Change the limits of a running container.
    UpdateResources {
        /// Which.
        id: ContainerId,
        /// Its name.
        container: String,
        /// The limits to enforce.
        resources: Resources,
    },
    /// Release what a sandbox holds (network, namespaces); kills what is left in it.
    StopSandbox {
        /// Which.
        id: SandboxId,
    },
    /// Forget a stopped sandbox.
    RemoveSandbox {
        /// Which.
        id: SandboxId,
    },
}

impl Action {
    /// Whether this can be done while the containers of these names are still being stopped.
    ///
    /// Stopping more of them always can. What else concerns such a container comes after its end,
    /// and so does whatever concerns all of them: the sandbox, its volumes, the pod's end.
    pub fn beside_stops(&self, stopping: &BTreeSet<String>) -> Beside {
        match self {
            _ if stopping.is_empty() => Beside::Now,
            Action::KillContainer { .. }
            | Action::PullImage { .. }
            | Action::MountVolumes { .. }
            | Action::RefreshVolumes { .. } => Beside::Now,
            Action::CreateContainer { container, .. }
            | Action::StartContainer { container, .. }
            | Action::RunPostStart { container, .. }
            | Action::RemoveContainer { container, .. }
            | Action::UpdateResources { container, .. } => {
                if stopping.contains(container) {
                    Beside::Skip
                } else {
                    Beside::Now
                }
            }
            Action::RecordFinished { .. }
            | Action::UnmountVolumes { .. }
            | Action::CreateSandbox { .. }
            | Action::StopSandbox { .. }
            | Action::RemoveSandbox { .. } => Beside::Wait,
        }
    }
}

/// What to do with a step while containers are being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Do it.
    Now,
    /// Leave it to a later plan, and go on with the steps after it.
    Skip,
    /// Leave it and every step after it to a later plan.
    Wait,
}

/// Why a container is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KillCause {
    /// The pod is removed.
    PodRemoved,
    /// The pod has ended, or its deadline passed.
    PodFinished,
    /// The node is drained.
    NodeDrained,
    /// Nothing in the pod's spec asks for it, or another one of the same name runs.
    Unwanted,
    /// Its sandbox is lost.
    SandboxLost,
    /// An edit needs a new sandbox.
    PodChanged,
    /// An edit needs a new container.
    ContainerChanged,
    /// A value its environment uses changed, and the pod asks for a restart then.
    ConfigChanged,
    /// `restart pod`.
    RestartRequested,
    /// The liveness probe failed.
    LivenessFailed,
    /// The startup probe failed.
    StartupFailed,
    /// The postStart hook failed.
    PostStartFailed,
}

/// A duration as seconds with a fraction.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(from)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}

/// The same, or null.
mod seconds_option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option)] // the signature is serde's
    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        value.map(|value| value.as_secs_f64()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(from)?
            .map(|seconds| Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom))
            .transpose()
    }
}

impl fmt::Display for Plan {
    /// A heading, then a line per step with its cost and reason, then what follows, then what is waited for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.removed {
            return writeln!(f, "Pod {}: nothing is left of it", self.key);
        }
        if self.steps.is_empty() && self.waits.is_empty() {
            return writeln!(f, "Pod {}: nothing to do", self.key);
        }
        writeln!(f, "Pod {}:", self.key)?;
        for difference in &self.differences {
            writeln!(f, "  ~ {difference}")?;
        }
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        for following in &self.then {
            writeln!(f, "  {following}")?;
        }
        for wait in &self.waits {
            writeln!(f, "  {wait}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.containers.len() == 1 { "container" } else { "containers" };
        write!(f, "then {word} {}, when {}", self.containers.join(", "), self.when)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]: {}", self.action, self.cost, self.reason)
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wait")?;
        if let Some(container) = &self.container {
            write!(f, " container {container}")?;
        }
        write!(f, " ({}): {}", self.reason, self.message)?;
        match self.until {
            Some(until) => write!(f, "; next try at {until:.0}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |volumes: &BTreeSet<String>| volumes.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match self {
            Action::RecordFinished { finished } => {
                write!(f, "record pod as {}", finished.terminal.phase())
            }
            Action::PullImage { image, .. } => write!(f, "pull image {image}"),
            Action::MountVolumes { volumes } => write!(f, "mount volumes {}", names(volumes)),
            Action::RefreshVolumes { volumes } => write!(f, "refresh volumes {}", names(volumes)),
            Action::UnmountVolumes { volumes } => write!(f, "unmount volumes {}", names(volumes)),
            Action::CreateSandbox { .. } => f.write_str("create sandbox"),
            Action::CreateContainer { container, attempt, .. } => {
                write!(f, "create container {container} (attempt {attempt})")
            }
            Action::StartContainer { container, .. } => write!(f, "start container {container}"),
            Action::RunPostStart { container, .. } => {
                write!(f, "run postStart hook of container {container}")
            }
            Action::KillContainer { container, grace, .. } => {
                write!(f, "stop container {container} within {} s", grace.as_secs())
            }
            Action::RemoveContainer { container, id } => {
                write!(f, "remove container {container} ({})", short(&id.0))
            }
            Action::UpdateResources { container, resources, .. } => {
                write!(f, "set resources of container {container} to {resources}")
            }
            Action::StopSandbox { id } => write!(f, "stop sandbox {}", short(&id.0)),
            Action::RemoveSandbox { id } => write!(f, "remove sandbox {}", short(&id.0)),
        }
    }
}

/// The first characters of an id, as people quote it.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

impl fmt::Display for KillCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KillCause::PodRemoved => "the pod is removed",
            KillCause::PodFinished => "the pod has ended",
            KillCause::NodeDrained => "the node is drained",
            KillCause::Unwanted => "nothing asks for it",
            KillCause::SandboxLost => "its sandbox is lost",
            KillCause::PodChanged => "the pod changed",
            KillCause::ContainerChanged => "its definition changed",
            KillCause::ConfigChanged => "a value of its environment changed",
            KillCause::RestartRequested => "a restart was requested",
            KillCause::LivenessFailed => "its liveness probe failed",
            KillCause::StartupFailed => "its startup probe failed",
            KillCause::PostStartFailed => "its postStart hook failed",
        })
    }
}
