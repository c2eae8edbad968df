//! What to tell about a pod: the whole `PodStatus`, as a kubelet would write it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use crate::desired::DesiredPod;
use crate::observed::{History, ObservedPod};

/// The status of a pod. Transition times come from `observed.history.previous`.
pub fn status(desired: &DesiredPod, observed: &ObservedPod, now: Timestamp) -> PodStatus {
    let _ = (desired, observed, now);
    PodStatus::default()
}

/// The history to hand back with the next observation, given the status just computed. Whoever
/// persists it keeps restart counts and transition times over a reboot.
pub fn remember(observed: &ObservedPod, status: PodStatus) -> History {
    let mut history = observed.history.clone();
    for container in &observed.containers {
        let next = history.attempts.entry(container.name.clone()).or_default();
        *next = (*next).max(container.attempt.saturating_add(1));
    }
    history.previous = Some(std::sync::Arc::new(status));
    history
}
