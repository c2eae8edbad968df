//! What a worker tells of its pod: events.

use std::collections::BTreeSet;

use jiff::Timestamp;
use portreeve_plan::{DesiredPod, ObservedPod, Plan, SandboxState, WaitKind};

use super::Worker;
use crate::events::{EventKind, Subject};

impl Worker {
    pub(super) fn event(
        &self,
        desired: &DesiredPod,
        container: Option<&str>,
        kind: EventKind,
        reason: &str,
        message: &str,
    ) {
        self.shared.events.record(&self.subject(desired, container), kind, reason, message);
    }

    /// A warning about what is tried again at `until`.
    pub(super) fn back_off(
        &self,
        desired: &DesiredPod,
        container: Option<&str>,
        reason: &str,
        message: &str,
        until: Timestamp,
    ) {
        let subject = self.subject(desired, container);
        self.shared.events.record_until(&subject, EventKind::Warning, reason, message, until);
    }

    fn subject(&self, desired: &DesiredPod, container: Option<&str>) -> Subject {
        let key = desired.key();
        let subject = Subject::pod(&key.namespace, &key.name, &self.uid.0);
        let Some(container) = container else {
            return subject;
        };
        let mut inits = desired.pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        subject.container(container, inits.any(|init| init.name == container))
    }

    /// An event for each sandbox that went away by itself.
    pub(super) fn tell_losses(&mut self, desired: &DesiredPod, observed: &ObservedPod) {
        let mut lost = BTreeSet::new();
        for sandbox in &observed.sandboxes {
            if let SandboxState::Lost { reason, .. } = &sandbox.state {
                if !self.lost.contains(&sandbox.id) {
                    let message = format!("the sandbox is lost, and all its containers with it: {reason}");
                    self.event(desired, None, EventKind::Warning, "SandboxLost", &message);
                }
                lost.insert(sandbox.id.clone());
            }
        }
        self.lost = lost;
    }

    /// Events for what the plan waits for, once for each try.
    pub(super) fn tell_waits(&mut self, desired: &DesiredPod, plan: &Plan) {
        let mut told = BTreeSet::new();
        for wait in &plan.waits {
            let because = || format!("{}: {}", wait.reason, wait.message);
            let (reason, message) = match wait.kind {
                WaitKind::Progress | WaitKind::Retry => continue,
                WaitKind::BackOff => ("BackOff", because()),
                WaitKind::Fault => ("Failed", because()),
                WaitKind::Volume => ("FailedMount", wait.message.clone()),
            };
            let what = (wait.container.clone(), wait.reason.clone(), wait.until, wait.message.clone());
            if !self.told.contains(&what) {
                let container = wait.container.as_deref();
                match wait.until {
                    Some(until) => self.back_off(desired, container, reason, &message, until),
                    None => self.event(desired, container, EventKind::Warning, reason, &message),
                }
            }
            told.insert(what);
        }
        self.told = told;
    }
}
