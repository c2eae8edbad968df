//! The planner: what a pod should be, what it is, and what to do about it.
//!
//! ```text
//!   DesiredPod --+                          +--> Plan { steps, waits, wake_at, .. }   plan()
//!                +--> the same small view --+
//!   ObservedPod -+    (a slot per container) +--> PodStatus                           status()
//!   now ---------+
//! ```
//!
//! **Invariant:** nothing here does I/O, reads a clock, awaits, logs or draws random numbers; the
//! same inputs give the same plan on any machine (`tests/purity.rs` reads the sources and says so).
//!
//! - [`plan()`] is total: what cannot be done becomes a [`Wait`] in the plan and a reason in the
//!   status. [`Plan::wake_at`] is the first moment at which time alone could change the answer.
//! - Steps are in order, each is safe to stop after, and each is idempotent. The executor stops at
//!   the first failure, records it as a [`Failure`] and asks again; back-off is decided here.
//! - Consecutive steps of one [`Plan::batches`] batch may run at the same time (pulls, kills).
//! - What the node must remember about a thing it makes is a *record* made here
//!   ([`SandboxRecord`], [`ContainerRecord`], [`VolumeRecord`]); the node stores it with the thing
//!   and hands it back when it observes. So an agent that was killed loses nothing.
//!
//! Modelled on the kubelet's `computePodActions` (kuberuntime_manager.go) and `getPhase`
//! (kubelet_pods.go), with these deliberate differences:
//!
//! - An edit replaces a running container only when its successor could start: image present,
//!   configuration complete. Until then the last good container runs on and the plan says why.
//! - A terminal pod is written to the ledger ([`Action::RecordFinished`]) before anything of it is
//!   taken away, so that no crash makes it run twice.
//! - A restart changes only what the edit's cost class allows; see [`difference`].

pub mod admission;
mod backoff;
pub mod config;
pub mod desired;
pub mod difference;
mod env;
mod fate;
mod fingerprint;
mod images;
pub mod observed;
pub mod plan;
mod ready;
pub mod resources;
mod sandbox;
pub mod status;
pub mod step;
mod volumes;
mod world;

pub use admission::{Candidate, admit};
pub use backoff::{crash_backoff, next_try, retry_at};
pub use config::{Config, Configs};
pub use desired::{Blocked, DesiredPod, Finished, Intent, PodKey, PodUid, Terminal};
pub use difference::{Cost, Difference, differences};
pub use fingerprint::Fingerprint;
pub use images::{NeededImage, needed_images};
pub use observed::{
    Attempted, Carried, ContainerId, ContainerRecord, ContainerState, ContainerView, Exit, Failure, History, HookState,
    ImageName, ImageView, ObservedPod, Past, ProbeVerdicts, SandboxId, SandboxRecord, SandboxState, SandboxView,
    Stopping, Verdict, VolumeRecord,
};
pub use plan::{container_record, past, plan, sandbox_record, volume_records};
pub use ready::UNTRUSTED;
pub use resources::{Resources, ResourcesView};
pub use status::{PENDING_CHANGE, STALE, remember, status};
pub use step::{Action, Beside, Following, KillCause, Plan, Step, Wait, WaitKind};

/// Annotation of a pod: `"true"` restarts a container when a ConfigMap or Secret key that its
/// environment uses changes. Without it such a container runs on and is reported as stale.
pub const RESTART_ON_CHANGE: &str = "portreeve.dev/restart-on-change";

/// Name of the limit in `resources.limits` that caps the number of processes of a container.
pub const PIDS_RESOURCE: &str = "portreeve.dev/pids";
