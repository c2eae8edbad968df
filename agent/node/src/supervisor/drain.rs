//! A drain: every pod rests, until another agent starts.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use portreeve_engine::SandboxState;
use portreeve_plan::{DesiredPod, Intent, PodUid};
use tokio::sync::oneshot;
use tracing::info;

use super::Supervisor;
use crate::history::NamespacedName;

/// A drain that was asked for.
pub(super) struct Drain {
    since: Timestamp,
    grace: Option<Duration>,
    at_rest: BTreeSet<PodUid>,
    /// What ran when it was asked for.
    names: Vec<NamespacedName>,
    waiting: Vec<oneshot::Sender<Vec<NamespacedName>>>,
}

impl Supervisor {
    /// Drains the node; a second request may shorten the grace period.
    pub(super) fn begin_drain(&mut self, grace: Option<Duration>, done: oneshot::Sender<Vec<NamespacedName>>) {
        let since = self.shared.clock.now();
        let names = if self.drain.is_none() { self.running_pods() } else { Vec::new() };
        let begin = || Drain { since, grace, at_rest: BTreeSet::new(), names, waiting: Vec::new() };
        let drain = self.drain.get_or_insert_with(begin);
        drain.grace = match (drain.grace, grace) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        drain.waiting.push(done);
        info!("node is drained");
        self.dispatch();
    }

    /// The pods that have something to stop.
    fn running_pods(&self) -> Vec<NamespacedName> {
        let ready = |uid: &PodUid| {
            let sandboxes = self.shared.index.of(uid).sandboxes;
            let mut states = sandboxes.iter().filter_map(|id| Some(self.shared.runtime.sandbox(id)?.state));
            states.any(|state| state == SandboxState::Ready)
        };
        let pods = self.shared.pods.list().items;
        let running = pods.iter().filter_map(|pod| {
            let metadata = &pod.metadata;
            ready(&PodUid(metadata.uid.clone()?))
                .then_some(NamespacedName::new(metadata.namespace.clone()?, metadata.name.clone()?))
        });
        running.collect()
    }

    /// What is to run rests instead, and what is to go may have less time.
    pub(super) fn lay_drain_over(&self, wanted: &mut [DesiredPod]) {
        let Some(drain) = &self.drain else {
            return;
        };
        for desired in wanted {
            match &mut desired.intent {
                Intent::Remove { grace, .. } => *grace = drain.grace.or(*grace),
                intent @ (Intent::Run | Intent::Rest { .. }) => {
                    *intent = Intent::Rest { since: drain.since, grace: drain.grace };
                }
            }
        }
    }

    /// Whether a drain has stopped the pod.
    pub(super) fn is_at_rest(&self, uid: &PodUid) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.at_rest.contains(uid))
    }

    /// A pod was stopped.
    pub(super) fn take_rest(&mut self, uid: PodUid) {
        if let Some(drain) = &mut self.drain
            && drain.at_rest.insert(uid)
        {
            self.dispatch();
        }
    }

    /// Answers when every pod rests or is gone.
    pub(super) fn finish_drain(&mut self) {
        let Some(drain) = &mut self.drain else {
            return;
        };
        if self.workers.keys().all(|uid| drain.at_rest.contains(uid)) {
            self.drained.send_replace(true);
            for answer in drain.waiting.drain(..) {
                // Whoever asked may be gone.
                let _ = answer.send(drain.names.clone());
            }
        }
    }
}
