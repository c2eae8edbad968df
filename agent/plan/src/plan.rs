//! Every decision about one pod.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::desired::DesiredPod;
use crate::observed::{ContainerRecord, ObservedPod, SandboxRecord, VolumeRecord};
use crate::step::Plan;

/// What to do next with one pod.
///
/// Total and deterministic. Everything that carries another uid than the pod's is ignored.
pub fn plan(desired: &DesiredPod, observed: &ObservedPod, now: Timestamp) -> Plan {
    let _ = (observed, now);
    Plan {
        uid: desired.uid.clone(),
        key: desired.key(),
        steps: Vec::new(),
        waits: Vec::new(),
        differences: Vec::new(),
        wake_at: None,
        removed: false,
    }
}

/// What to store with the sandbox that `CreateSandbox` makes. `observed` is what the plan was made
/// from: what the containers of older sandboxes had come to is carried over from it.
pub fn sandbox_record(
    desired: &DesiredPod,
    observed: &ObservedPod,
    backoff: Option<Duration>,
) -> SandboxRecord {
    let _ = observed;
    SandboxRecord {
        spec: desired.spec().clone(),
        backoff_seconds: backoff.map(|backoff| backoff.as_secs()),
        carried: BTreeMap::new(),
    }
}

/// What to store with the container that `CreateContainer` makes; `None` if the pod has no
/// container of this name.
pub fn container_record(
    desired: &DesiredPod,
    container: &str,
    backoff: Option<Duration>,
) -> Option<ContainerRecord> {
    let _ = (desired, container, backoff);
    None
}

/// What to store with each volume that `MountVolumes` or `RefreshVolumes` makes, by name.
pub fn volume_records(desired: &DesiredPod) -> BTreeMap<String, VolumeRecord> {
    let _ = desired;
    BTreeMap::new()
}
