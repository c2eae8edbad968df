//! From the ledger to the workers: who is needed, and what each is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use portreeve_manifests::{Kind, Object, ObjectKey, QosClass, qos_class, references};
use portreeve_plan::{
    Blocked, Candidate, Config, Configs, DesiredPod, Intent, ObservedPod, PodKey, PodUid, SandboxRecord, admit,
};

use super::{Running, Sent, Supervisor, Weights};
use crate::desired::{Ledger, Record};
use crate::translate;
use crate::worker::{Shared, Worker};

impl Supervisor {
    /// Makes the workers those that are needed, and tells each what is wanted now.
    pub(super) fn dispatch(&mut self) {
        let blocked = self.admission();
        let mut wanted: Vec<DesiredPod> = Vec::new();
        let leaving: BTreeSet<ObjectKey> =
            self.ledger.removals.values().map(|removal| removal.record.object.key()).collect();
        for (key, record, pod) in self.ledger.pods() {
            // The name is free when the pod that had it before is gone.
            if leaving.contains(key) {
                continue;
            }
            let pod_key = PodKey { namespace: key.namespace.clone(), name: key.name.clone() };
            let mut desired = desired(record, pod);
            desired.blocked = blocked.get(&pod_key).cloned();
            wanted.push(desired);
        }
        for removal in self.ledger.removals.values() {
            if let Object::Pod(pod) = &*removal.record.object {
                let mut desired = desired(&removal.record, pod);
                desired.intent = Intent::Remove { since: removal.since, grace: None };
                wanted.push(desired);
            }
        }
        wanted.extend(self.orphans());
        self.lay_drain_over(&mut wanted);
        self.weigh(&wanted);
        for desired in wanted {
            self.tell(desired);
        }
        self.finish_drain();
    }

    /// Hands the shares of the processor that the QoS levels should have to whoever sets them.
    fn weigh(&self, wanted: &[DesiredPod]) {
        let holding = self.shared.index.uids();
        let active = wanted.iter().filter(|desired| match desired.intent {
            Intent::Run => desired.finished.is_none(),
            Intent::Rest { .. } => holding.contains(&desired.uid) && !self.is_at_rest(&desired.uid),
            Intent::Remove { .. } => holding.contains(&desired.uid),
        });
        let specs: Vec<_> = active.filter_map(|desired| desired.pod.spec.as_ref()).collect();
        let level = |class: QosClass| {
            let pods = specs.iter().copied().filter(|spec| qos_class(spec) == class);
            Some((self.shared.place.level(class), translate::level_resources(class, pods)?))
        };
        let weights: Weights = [QosClass::Burstable, QosClass::BestEffort].into_iter().filter_map(level).collect();
        self.weights.send_if_modified(|told| {
            let other = *told != weights;
            *told = weights;
            other
        });
    }

    fn admission(&self) -> BTreeMap<PodKey, Blocked> {
        let holding = self.shared.index.uids();
        let mut owned: Vec<Applicant<'_>> = Vec::new();
        for removal in self.ledger.removals.values() {
            let uid = PodUid(removal.record.uid.clone());
            if let Object::Pod(pod) = &*removal.record.object
                && holding.contains(&uid)
            {
                let key = removal.record.object.key();
                // Not under its own key: that of the pod which comes after it may be the same.
                let key = PodKey { namespace: key.namespace, name: format!("{} (being removed)", key.name) };
                owned.push((uid, key, pod, removal.record.admitted_at, true));
            }
        }
        for (key, record, pod) in self.ledger.pods() {
            let uid = PodUid(record.uid.clone());
            let holds = holding.contains(&uid);
            if record.finished.is_some() && !holds {
                continue;
            }
            let key = PodKey { namespace: key.namespace.clone(), name: key.name.clone() };
            owned.push((uid, key, pod, record.admitted_at, holds));
        }
        blocked(&owned)
    }

    /// What the engine runs for us and nobody asks for.
    fn orphans(&self) -> Vec<DesiredPod> {
        if !self.merged_once {
            return Vec::new();
        }
        let uids = self.shared.index.uids();
        let unknown: Vec<PodUid> = uids.into_iter().filter(|uid| !self.is_somebodys(&uid.0)).collect();
        unknown
            .into_iter()
            .filter_map(|uid| {
                let belongings = self.shared.index.of(&uid);
                let id = belongings.sandboxes.iter().next()?;
                let sandbox = self.shared.runtime.sandbox(id)?;
                let record = sandbox.annotations.get(translate::RECORD);
                let record: Option<SandboxRecord> = record.and_then(|text| serde_json::from_str(text).ok());
                let pod = Pod {
                    metadata: ObjectMeta {
                        name: Some(sandbox.metadata.name.clone()),
                        namespace: Some(sandbox.metadata.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: record.map(|record| record.spec),
                    ..Pod::default()
                };
                let since = self.workers.get(&uid).map_or_else(
                    || self.shared.clock.now(),
                    |running| match running.sent.intent {
                        Intent::Remove { since, .. } => since,
                        Intent::Run | Intent::Rest { .. } => self.shared.clock.now(),
                    },
                );
                let mut desired = DesiredPod::new(uid, Arc::new(pod), sandbox.created_at);
                desired.intent = Intent::Remove { since, grace: None };
                Some(desired)
            })
            .collect()
    }

    fn tell(&mut self, mut desired: DesiredPod) {
        let namespace = desired.key().namespace;
        let signature: Vec<(Kind, String, Option<String>)> = references(&desired.pod)
            .into_iter()
            .map(|(kind, name, _)| {
                let hash = self.ledger.object(kind, &namespace, &name).map(|record| record.hash.clone());
                (kind, name, hash)
            })
            .collect();
        let record = self.ledger.objects.values().find(|record| record.uid == desired.uid.0);
        let sent = Sent {
            hash: record.map(|record| record.hash.clone()).unwrap_or_default(),
            generation: desired.generation,
            intent: desired.intent.clone(),
            restart: desired.restart_requested_at,
            finished: desired.finished.is_some(),
            blocked: desired.blocked.clone(),
            configs: signature,
        };
        let uid = desired.uid.clone();
        if let Some(running) = self.workers.get_mut(&uid) {
            if running.sent == sent {
                return;
            }
            desired.configs = if running.sent.configs == sent.configs {
                Arc::clone(&running.configs)
            } else {
                configs(&self.ledger, &namespace, &sent.configs, Some(self.shared.clock.now()))
            };
            running.configs = Arc::clone(&desired.configs);
            running.sent = sent;
            let desired = Arc::new(desired);
            self.views.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, Arc::clone(&desired));
            running.handle.mailbox.send_replace(desired);
            return;
        }
        let configs = configs(&self.ledger, &namespace, &sent.configs, None);
        desired.configs = Arc::clone(&configs);
        let desired = Arc::new(desired);
        self.views.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone(), Arc::clone(&desired));
        let (worker, handle) = Worker::new(&self.shared, desired, self.stop.child_token());
        self.tasks.spawn(worker.run());
        self.workers.insert(uid, Running { handle, sent, configs });
    }
}

/// The wish for one pod of the ledger.
fn desired(record: &Record, pod: &Arc<Pod>) -> DesiredPod {
    let mut desired = DesiredPod::new(PodUid(record.uid.clone()), Arc::clone(pod), record.admitted_at);
    desired.generation = record.generation;
    desired.changed_at = record.changed_at;
    desired.restart_requested_at = record.restart_requested_at;
    desired.finished = record.finished.as_ref().map(|finished| (**finished).clone());
    desired
}

/// The ConfigMaps and Secrets that a pod names.
pub(crate) fn configs(
    ledger: &Ledger,
    namespace: &str,
    names: &[(Kind, String, Option<String>)],
    changed: Option<Timestamp>,
) -> Arc<Configs> {
    let mut configs = Configs::default();
    let mut last = changed;
    for (kind, name, _) in names {
        let Some(record) = ledger.object(*kind, namespace, name) else {
            continue;
        };
        last = last.max(Some(record.changed_at));
        match &*record.object {
            Object::ConfigMap(map) => {
                let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
                let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
                let config = Config::new(text.collect()).with_binary(binary.collect());
                configs.config_maps.insert(name.clone(), config);
            }
            Object::Secret(secret) => {
                let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
                configs.secrets.insert(name.clone(), Config::new(data.collect()));
            }
            Object::Pod(_) => {}
        }
    }
    configs.changed_at = last;
    Arc::new(configs)
}

/// What a pod that does not run yet looks like to the planner.
pub(crate) fn unobserved(shared: &Shared, pod: &Pod) -> ObservedPod {
    use portreeve_plan::{ImageView, NeededImage, needed_images};
    let mut observed = ObservedPod { host_ips: shared.node.host_ips.clone(), ..ObservedPod::default() };
    if let Some(spec) = &pod.spec {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        for NeededImage { name, .. } in containers.flat_map(|container| needed_images(spec, container)) {
            let view = match shared.runtime.lookup_image(&name.0) {
                Ok(Some(facts)) => match facts.refused {
                    Some(message) => ImageView::Refused { message, pulled_at: None, failure: None },
                    None => ImageView::Present { id: facts.id, user: facts.user, pulled_at: None, failure: None },
                },
                Ok(None) => ImageView::Absent,
                Err(message) => ImageView::Invalid { message },
            };
            observed.images.insert(name, view);
        }
    }
    observed
}

/// A pod as admission sees it: since when it is there, and whether it holds what it asks for.
pub(crate) type Applicant<'a> = (PodUid, PodKey, &'a Pod, Timestamp, bool);

/// Which of these pods must wait for others, and why.
pub(crate) fn blocked(pods: &[Applicant<'_>]) -> BTreeMap<PodKey, Blocked> {
    let candidates = pods.iter().map(|(uid, key, pod, admitted_at, holds)| Candidate {
        uid,
        key,
        pod,
        admitted_at: *admitted_at,
        holds: *holds,
    });
    admit(&candidates.collect::<Vec<_>>())
}
