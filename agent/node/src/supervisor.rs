//! The task that owns the desired state: merges sources, keeps the ledger, gives each pod its
//! worker and each worker its wish.
//!
//! ```text
//!   sources --sets--> merge --> ledger --(writer task)--> disk
//!                                 |
//!   doors --requests------------> | --> dispatch --> workers (mailbox: latest wins)
//!   workers --news--------------> |
//!   engine --events, relist-----> +--> wake
//! ```
//!
//! **Invariant:** what the engine has and the ledger does not know is removed only after every
//! source was read in full.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use oci_spec::runtime::LinuxResources;
use portreeve_engine::{EngineEvent, Owner};
use portreeve_manifests::{Kind, Object, ObjectKey, QosClass, qos_class, references};
use portreeve_plan::{
    Blocked, Candidate, Config, Configs, DesiredPod, Finished, Intent, ObservedPod, PodKey, PodUid, SandboxRecord,
    admit,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::NodeConfig;
use crate::desired::{Ledger, NOT_FOR_THIS_NODE, News, Record, merge};
use crate::error::chain;
use crate::events::{EventKind, Subject};
use crate::history::{History, NamespacedName};
use crate::report::{SourceReport, SourceState};
use crate::source::SourceSet;
use crate::translate;
use crate::volumes::NodeFacts;
use crate::worker::{Shared, Worker, WorkerHandle, WorkerNews};

/// A request of a door.
#[derive(Debug)]
pub(crate) enum Request {
    /// Restart a pod's containers; false if there is no such pod.
    Restart { pod: NamespacedName, done: oneshot::Sender<bool> },
    /// Stop every pod; answered when all are stopped.
    Drain { grace: Option<Duration>, done: oneshot::Sender<Vec<NamespacedName>> },
}

/// What the facade reads without asking.
#[derive(Debug, Clone)]
pub(crate) struct Outlook {
    pub(crate) ledger: watch::Receiver<Arc<Ledger>>,
    pub(crate) reports: watch::Receiver<Arc<Vec<SourceReport>>>,
    pub(crate) drained: watch::Receiver<bool>,
    pub(crate) views: Views,
}

/// What each worker was told last.
pub(crate) type Views = Arc<Mutex<BTreeMap<PodUid, Arc<DesiredPod>>>>;

/// What the cgroups of the QoS levels should enforce, by their paths.
type Weights = BTreeMap<String, LinuxResources>;

/// What the worker of a pod was sent, to send only what is new.
#[derive(Debug, PartialEq, Clone)]
struct Sent {
    hash: String,
    generation: i64,
    intent: Intent,
    restart: Option<Timestamp>,
    finished: bool,
    blocked: Option<Blocked>,
    configs: Vec<(Kind, String, Option<String>)>,
}

struct Running {
    handle: WorkerHandle,
    sent: Sent,
    configs: Arc<Configs>,
}

/// See the module.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    config: NodeConfig,
    ledger: Ledger,
    sets: watch::Receiver<SourceSet>,
    requests: mpsc::Receiver<Request>,
    news: mpsc::UnboundedReceiver<WorkerNews>,
    engine: broadcast::Receiver<EngineEvent>,
    workers: BTreeMap<PodUid, Running>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// Uids of what ran before the ledger knew it.
    adoptable: BTreeMap<PodKey, String>,
    merged_once: bool,
    drain: Option<Drain>,
    drained: watch::Sender<bool>,
    ledger_out: watch::Sender<Arc<Ledger>>,
    reports: watch::Sender<Arc<Vec<SourceReport>>>,
    views: Views,
    writes: watch::Sender<(u64, Arc<Ledger>)>,
    written: watch::Receiver<(u64, Option<String>)>,
    waiting: Vec<(u64, oneshot::Sender<Result<(), String>>)>,
    weights: watch::Sender<Weights>,
    told: BTreeSet<String>,
    config_maps: Arc<History<ConfigMap>>,
    secrets: Arc<History<Secret>>,
}

struct Drain {
    since: Timestamp,
    grace: Option<Duration>,
    stopped: BTreeSet<PodUid>,
    names: Vec<NamespacedName>,
    waiting: Vec<oneshot::Sender<Vec<NamespacedName>>>,
}

/// Everything a supervisor is made of.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: NodeConfig,
    pub(crate) ledger: Ledger,
    pub(crate) ledger_path: PathBuf,
    pub(crate) sets: watch::Receiver<SourceSet>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) news: mpsc::UnboundedReceiver<WorkerNews>,
    pub(crate) config_maps: Arc<History<ConfigMap>>,
    pub(crate) secrets: Arc<History<Secret>>,
    pub(crate) stop: CancellationToken,
}

impl Supervisor {
    /// A supervisor, and what others may look at.
    pub(crate) fn new(parts: Parts) -> (Self, Outlook) {
        let (ledger_out, ledger) = watch::channel(Arc::new(parts.ledger.clone()));
        let (reports_out, reports) = watch::channel(Arc::new(Vec::new()));
        let (drained_out, drained) = watch::channel(false);
        let (writes, to_write) = watch::channel((0, Arc::new(parts.ledger.clone())));
        let (written_out, written) = watch::channel((0, None));
        let views = Views::default();
        let outlook = Outlook { ledger, reports, drained, views: Arc::clone(&views) };
        let mut tasks = JoinSet::new();
        let metrics = parts.shared.metrics.clone();
        tasks.spawn(write_ledger(parts.ledger_path, to_write, written_out, metrics, parts.stop.clone()));
        let (weights, to_set) = watch::channel(Weights::new());
        tasks.spawn(set_weights(Arc::clone(&parts.shared), to_set, parts.stop.clone()));
        let supervisor = Self {
            engine: parts.shared.runtime.subscribe(),
            shared: parts.shared,
            config: parts.config,
            ledger: parts.ledger,
            sets: parts.sets,
            requests: parts.requests,
            news: parts.news,
            workers: BTreeMap::new(),
            tasks,
            stop: parts.stop,
            adoptable: BTreeMap::new(),
            merged_once: false,
            drain: None,
            drained: drained_out,
            ledger_out,
            reports: reports_out,
            views,
            writes,
            written,
            waiting: Vec::new(),
            weights,
            told: BTreeSet::new(),
            config_maps: parts.config_maps,
            secrets: parts.secrets,
        };
        (supervisor, outlook)
    }

    /// Works until the node stops; containers are left as they are.
    pub(crate) async fn run(mut self) {
        self.relist();
        self.remember_what_runs();
        self.show_configs();
        // What the ledger knows runs on at once, whatever the sources say later.
        self.dispatch();
        let mut relist = tokio::time::interval(self.config.relist);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        relist.tick().await;
        self.merge();
        loop {
            tokio::select! {
                // cancel-safe: a state.
                () = self.stop.cancelled() => break,
                // cancel-safe: the value stays in the channel.
                changed = self.sets.changed() => match changed {
                    Ok(()) => self.merge(),
                    Err(_) => break,
                },
                // cancel-safe: a message stays in the channel until it is received.
                Some(news) = self.news.recv() => self.take_news(news),
                // cancel-safe: as above.
                Some(request) = self.requests.recv() => self.take_request(request),
                // cancel-safe: as above; what a slow receiver missed is listed.
                event = self.engine.recv() => match event {
                    Ok(event) => self.take_event(&event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.relist(),
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                // cancel-safe: the value stays in the channel.
                Ok(()) = self.written.changed() => self.take_written(),
                // cancel-safe: a tick is not lost.
                _ = relist.tick() => self.relist(),
            }
            while self.tasks.try_join_next().is_some() {}
        }
        self.stop.cancel();
        // Nobody is answered any more.
        self.news.close();
        while self.news.try_recv().is_ok() {}
        self.waiting.clear();
        // Workers leave at once; the ledger's writer when the last state is on disk.
        while self.tasks.join_next().await.is_some() {}
    }

    /// The sandboxes that run for names the ledger does not know: an agent was killed between
    /// their start and the ledger's write, and they keep their uid.
    fn remember_what_runs(&mut self) {
        for sandbox in self.shared.runtime.sandboxes() {
            if sandbox.owner != Owner::Node || sandbox.state != portreeve_engine::SandboxState::Ready {
                continue;
            }
            let uid = sandbox.metadata.uid;
            let known = self.ledger.removals.contains_key(&PodUid(uid.clone()))
                || self.ledger.objects.values().any(|record| record.uid == uid);
            if !known {
                let key = PodKey { namespace: sandbox.metadata.namespace, name: sandbox.metadata.name };
                self.adoptable.insert(key, uid);
            }
        }
    }

    fn merge(&mut self) {
        let set = self.sets.borrow_and_update().clone();
        if !set.complete && set.unreadable.is_none() {
            return;
        }
        let now = self.shared.clock.now();
        let adoptable = &mut self.adoptable;
        let mut new_uid = |key: &ObjectKey| {
            let pod = PodKey { namespace: key.namespace.clone(), name: key.name.clone() };
            let adopted = (key.kind == Kind::Pod).then(|| adoptable.remove(&pod)).flatten();
            adopted.unwrap_or_else(|| uuid::Uuid::new_v4().hyphenated().to_string())
        };
        let node = &self.shared.node;
        let placement = |object: &Object| match object {
            Object::Pod(pod) => elsewhere(pod, node),
            _ => None,
        };
        let complete = set.complete;
        let merged = merge(&self.ledger, std::slice::from_ref(&set), now, &mut new_uid, &placement);
        self.tell_problems(&merged.reports);
        self.tell_displaced(&merged.news, &merged.reports);
        self.shared.metrics.sources(&merged.reports);
        self.reports.send_replace(Arc::new(merged.reports));
        let first = complete && !self.merged_once;
        self.merged_once |= complete;
        for news in &merged.news {
            match news {
                News::Admitted(key) => info!(object = %key, "object admitted"),
                News::Changed(key) => info!(object = %key, "object changed"),
                News::Removed(key) => info!(object = %key, "object removed"),
            }
        }
        if merged.ledger != self.ledger {
            self.ledger = merged.ledger;
            self.persist();
        }
        if !merged.news.is_empty() {
            self.show_configs();
        }
        self.dispatch();
        if first {
            self.clean_directories();
        }
    }

    /// Removes what is left on disk of pods that nobody knows any more.
    fn clean_directories(&mut self) {
        let known = |uid: &str| {
            self.workers.contains_key(&PodUid(uid.to_owned()))
                || self.ledger.removals.contains_key(&PodUid(uid.to_owned()))
                || self.ledger.objects.values().any(|record| record.uid == uid)
        };
        let volumes = self.shared.volumes.clone();
        let unknown: Vec<String> = volumes.uids().into_iter().filter(|uid| !known(uid)).collect();
        if unknown.is_empty() {
            return;
        }
        self.tasks.spawn(async move {
            let cleaned = tokio::task::spawn_blocking(move || {
                for uid in unknown {
                    match volumes.remove_pod_blocking(&uid) {
                        Ok(()) => info!(pod_uid = %uid, "directories of an unknown pod removed"),
                        Err(error) => {
                            warn!(pod_uid = %uid, error = %chain(&error), "directories of an unknown pod were not removed");
                        }
                    }
                }
            });
            // A panic there was logged; nothing depends on it.
            let _ = cleaned.await;
        });
    }

    /// Hands the ledger to the writer; the number says which write it is.
    fn persist(&mut self) -> u64 {
        let ledger = Arc::new(self.ledger.clone());
        self.ledger_out.send_replace(Arc::clone(&ledger));
        let mut number = 0;
        self.writes.send_modify(|write| {
            write.0 += 1;
            write.1 = ledger;
            number = write.0;
        });
        number
    }

    fn take_written(&mut self) {
        let (number, error) = self.written.borrow_and_update().clone();
        let (done, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(of, _)| *of <= number);
        self.waiting = waiting;
        let done: Vec<_> = done;
        for (_, answer) in done {
            // Whoever asked may be gone.
            let _ = answer.send(error.clone().map_or(Ok(()), Err));
        }
    }

    fn take_news(&mut self, news: WorkerNews) {
        match news {
            WorkerNews::Finished { desired, finished, done } => self.take_finished(&desired, *finished, done),
            WorkerNews::Removed { uid } => {
                self.workers.remove(&uid);
                self.views.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
                if self.ledger.removals.remove(&uid).is_some() {
                    self.persist();
                    if self.reports.borrow().iter().any(refuses_uids) {
                        // Its uid is free, and somebody may have been refused for it.
                        self.merge();
                    }
                } else if let Some(drain) = &mut self.drain {
                    drain.stopped.insert(uid);
                }
                self.dispatch();
            }
            WorkerNews::Holds => self.dispatch(),
        }
    }

    fn take_finished(&mut self, ended: &DesiredPod, finished: Finished, done: oneshot::Sender<Result<(), String>>) {
        let record = self.ledger.objects.values_mut().find(|record| record.uid == ended.uid.0);
        let since = |record: &Record| {
            record.generation != ended.generation || record.restart_requested_at != ended.restart_requested_at
        };
        match record {
            // Edited or restarted meanwhile: what has ended is not what is wanted now.
            Some(record) if since(record) => {
                let _ = done.send(Ok(()));
            }
            Some(record) => {
                record.finished = Some(Box::new(finished));
                let number = self.persist();
                self.waiting.push((number, done));
                self.dispatch();
            }
            // It is being removed: how it ended need not be kept.
            None => {
                let _ = done.send(Ok(()));
            }
        }
    }

    fn take_request(&mut self, request: Request) {
        match request {
            Request::Restart { pod, done } => {
                let key = ObjectKey { kind: Kind::Pod, namespace: pod.namespace, name: pod.name };
                let now = self.shared.clock.now();
                let found = self.ledger.objects.get_mut(&key);
                let known = found.is_some();
                if let Some(record) = found {
                    record.restart_requested_at = Some(now);
                    record.finished = None;
                    self.persist();
                    self.dispatch();
                }
                let _ = done.send(known);
            }
            Request::Drain { grace, done } => {
                let since = self.shared.clock.now();
                let names = self.shared.pods.list().items;
                let names = names.iter().filter_map(|pod| {
                    Some(NamespacedName::new(pod.metadata.namespace.clone()?, pod.metadata.name.clone()?))
                });
                let names: Vec<_> = names.collect();
                let drain = self.drain.get_or_insert_with(|| Drain {
                    since,
                    grace,
                    stopped: BTreeSet::new(),
                    names,
                    waiting: Vec::new(),
                });
                drain.grace = match (drain.grace, grace) {
                    (Some(one), Some(two)) => Some(one.min(two)),
                    (one, two) => one.or(two),
                };
                drain.waiting.push(done);
                info!("node is drained");
                self.dispatch();
            }
        }
    }

    fn take_event(&mut self, event: &EngineEvent) {
        // What a worker did itself it knows; only what happens by itself wakes it.
        let sandbox = match event {
            EngineEvent::ContainerExited { sandbox, .. } => sandbox,
            EngineEvent::SandboxLost { id, .. } => id,
            _ => return,
        };
        if let Some(uid) = self.shared.index.owner(sandbox)
            && let Some(running) = self.workers.get(&uid)
        {
            running.handle.wake.notify_one();
        }
    }

    /// The safety net: lists the engine and wakes whoever's belongings differ.
    fn relist(&mut self) {
        let changed = self.shared.index.relist(&self.shared.runtime.sandboxes(), &self.shared.runtime.containers());
        for uid in &changed {
            if let Some(running) = self.workers.get(uid) {
                running.handle.wake.notify_one();
            }
        }
        if !changed.is_empty() && self.merged_once {
            self.dispatch();
        }
    }

    /// Makes the workers those that are needed, and tells each what is wanted now.
    fn dispatch(&mut self) {
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
        if let Some(drain) = &self.drain {
            wanted.retain(|desired| !drain.stopped.contains(&desired.uid));
            for desired in &mut wanted {
                match &mut desired.intent {
                    Intent::Remove { grace, .. } => *grace = drain.grace.or(*grace),
                    intent @ Intent::Run => {
                        *intent = Intent::Remove { since: drain.since, grace: drain.grace };
                    }
                }
            }
        }
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

    fn finish_drain(&mut self) {
        let Some(drain) = &mut self.drain else {
            return;
        };
        if self.workers.is_empty() {
            self.drained.send_replace(true);
            for answer in drain.waiting.drain(..) {
                let _ = answer.send(drain.names.clone());
            }
            for (key, record, pod) in self.ledger.pods() {
                let mut pod = (**pod).clone();
                pod.metadata.uid = Some(record.uid.clone());
                pod.metadata.creation_timestamp = Some(Time(record.admitted_at));
                pod.status = Some(PodStatus {
                    phase: Some("Pending".to_owned()),
                    reason: Some("Drained".to_owned()),
                    message: Some("the node is drained; the pod starts when the agent starts again".to_owned()),
                    ..PodStatus::default()
                });
                self.shared.pods.put(NamespacedName::new(key.namespace.clone(), key.name.clone()), pod);
            }
        }
    }

    fn admission(&self) -> BTreeMap<PodKey, Blocked> {
        let holding = self.shared.index.uids();
        let mut owned: Vec<(PodUid, PodKey, &Pod, Timestamp, bool)> = Vec::new();
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
        let candidates: Vec<Candidate<'_>> = owned
            .iter()
            .map(|(uid, key, pod, admitted_at, holds)| Candidate {
                uid,
                key,
                pod,
                admitted_at: *admitted_at,
                holds: *holds,
            })
            .collect();
        admit(&candidates)
    }

    /// What the engine runs for us and nobody asks for.
    fn orphans(&self) -> Vec<DesiredPod> {
        if !self.merged_once {
            return Vec::new();
        }
        let known = |uid: &PodUid| {
            self.ledger.removals.contains_key(uid) || self.ledger.objects.values().any(|record| record.uid == uid.0)
        };
        let uids = self.shared.index.uids();
        let unknown: Vec<PodUid> = uids.into_iter().filter(|uid| !known(uid)).collect();
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
                        Intent::Run => self.shared.clock.now(),
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

    /// ConfigMaps and Secrets as the doors list them.
    fn show_configs(&self) {
        let mut maps = BTreeSet::new();
        let mut secrets = BTreeSet::new();
        for (key, record) in &self.ledger.objects {
            let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
            let fill = |metadata: &mut ObjectMeta| {
                metadata.uid = Some(record.uid.clone());
                metadata.creation_timestamp = Some(Time(record.admitted_at));
            };
            match &*record.object {
                Object::Pod(_) => {}
                Object::ConfigMap(map) => {
                    let mut map = (**map).clone();
                    fill(&mut map.metadata);
                    self.config_maps.put(name.clone(), map);
                    maps.insert(name);
                }
                Object::Secret(secret) => {
                    let mut secret = (**secret).clone();
                    fill(&mut secret.metadata);
                    self.secrets.put(name.clone(), secret);
                    secrets.insert(name);
                }
            }
        }
        retain(&self.config_maps, &maps, |map| &map.metadata);
        retain(&self.secrets, &secrets, |secret| &secret.metadata);
    }

    /// Events for pods that are removed because their manifest asks for another node now.
    fn tell_displaced(&self, news: &[News], reports: &[SourceReport]) {
        let removed = news.iter().filter_map(|news| match news {
            News::Removed(key) => Some((key, self.ledger.objects.get(key)?)),
            News::Admitted(_) | News::Changed(_) => None,
        });
        for (key, record) in removed {
            let name = key.to_string();
            let mut problems = reports.iter().flat_map(|report| &report.files).flat_map(|file| &file.problems);
            let why = problems.find(|problem| {
                problem.reason == NOT_FOR_THIS_NODE && problem.object.as_deref() == Some(name.as_str())
            });
            if let Some(problem) = why {
                let subject = Subject::pod(&key.namespace, &key.name, &record.uid);
                self.shared.events.record(&subject, EventKind::Warning, NOT_FOR_THIS_NODE, &problem.message);
            }
        }
    }

    /// Events for what is wrong with the sources, once for each.
    fn tell_problems(&mut self, reports: &[SourceReport]) {
        let mut told = BTreeSet::new();
        for report in reports {
            let subject = Subject {
                kind: "Source".to_owned(),
                namespace: "default".to_owned(),
                name: "manifests".to_owned(),
                uid: String::new(),
                field_path: Some(report.path.display().to_string()),
            };
            let mut tell = |reason: &str, message: String| {
                if !self.told.contains(&message) {
                    warn!(source = %report.name, problem = %message, "source has a problem, what runs goes on");
                    self.shared.events.record(&subject, EventKind::Warning, reason, &message);
                }
                told.insert(message);
            };
            if report.state == SourceState::Unreadable {
                let reason = report.reason.clone().unwrap_or_default();
                tell("SourceUnreadable", format!("{} cannot be read: {reason}", report.path.display()));
            }
            for problem in report.files.iter().flat_map(|file| &file.problems) {
                if problem.is_error() {
                    let reason = if problem.reason == "Conflict" { "Conflict" } else { "InvalidManifest" };
                    tell(reason, problem.to_string());
                }
            }
        }
        self.told = told;
    }
}

fn retain<T: Clone + PartialEq>(list: &History<T>, keep: &BTreeSet<NamespacedName>, metadata: fn(&T) -> &ObjectMeta) {
    for item in list.list().items {
        let metadata = metadata(&item);
        if let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) {
            let key = NamespacedName::new(namespace.clone(), name.clone());
            if !keep.contains(&key) {
                list.remove(&key);
            }
        }
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

/// Why a pod belongs to another node, if it does.
pub(crate) fn elsewhere(pod: &Pod, node: &NodeFacts) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty() && *name != node.name) {
        return Some(format!("the pod does not run here: spec.nodeName is {name:?}, this node is {:?}", node.name));
    }
    let mut asked = spec.node_selector.iter().flatten();
    let (key, value) = asked.find(|(key, value)| node.labels.get(*key) != Some(*value))?;
    Some(format!("the pod does not run here: spec.nodeSelector asks for {key}={value}, which this node has not"))
}

/// Whether an object is kept out because of its uid.
fn refuses_uids(report: &SourceReport) -> bool {
    report.files.iter().flat_map(|file| &file.problems).any(|problem| problem.field == "metadata.uid")
}

/// What a pod that does not run yet looks like to the planner.
pub(crate) fn unobserved(shared: &Shared, pod: &Pod) -> ObservedPod {
    use portreeve_plan::{ImageName, ImageView};
    let mut observed = ObservedPod { host_ips: shared.node.host_ips.clone(), ..ObservedPod::default() };
    if let Some(spec) = &pod.spec {
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let image = container.image.clone().unwrap_or_default();
            let view = match shared.runtime.lookup_image(&image) {
                Ok(Some(facts)) => {
                    ImageView::Present { id: facts.id, user: facts.user, pulled_at: None, failure: None }
                }
                Ok(None) => ImageView::Absent,
                Err(message) => ImageView::Invalid { message },
            };
            observed.images.insert(ImageName(image), view);
        }
    }
    observed
}

/// Sets what the QoS levels should enforce, the latest only.
async fn set_weights(shared: Arc<Shared>, mut wanted: watch::Receiver<Weights>, stop: CancellationToken) {
    let mut set = Weights::new();
    let mut failed = false;
    loop {
        tokio::select! {
            // cancel-safe: the value stays in the channel.
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            // cancel-safe: a timer.
            () = tokio::time::sleep(Duration::from_secs(5)), if failed => {}
            // cancel-safe: a state.
            () = stop.cancelled() => return,
        }
        let wanted = wanted.borrow_and_update().clone();
        failed = false;
        for (path, resources) in wanted {
            if set.get(&path) == Some(&resources) {
                continue;
            }
            match shared.runtime.update_cgroup_resources(&path, &resources).await {
                Ok(()) => drop(set.insert(path, resources)),
                Err(error) => {
                    failed = true;
                    warn!(cgroup = %path, error = %chain(&error), "weight of a QoS level was not set, trying again in 5 s");
                }
            }
        }
    }
}

async fn write_ledger(
    path: PathBuf,
    mut to_write: watch::Receiver<(u64, Arc<Ledger>)>,
    written: watch::Sender<(u64, Option<String>)>,
    metrics: crate::metrics::Metrics,
    stop: CancellationToken,
) {
    let mut failed = false;
    loop {
        let stopped = tokio::select! {
            // cancel-safe: the value stays in the channel.
            changed = to_write.changed() => changed.is_err(),
            // cancel-safe: a timer.
            () = tokio::time::sleep(Duration::from_secs(5)), if failed => false,
            // cancel-safe: a state.
            () = stop.cancelled() => true,
        };
        let (number, ledger) = to_write.borrow_and_update().clone();
        if written.borrow().0 >= number && !failed {
            if stopped {
                return;
            }
            continue;
        }
        let target = path.clone();
        let result = tokio::task::spawn_blocking(move || ledger.write_blocking(&target)).await;
        let problem = match result {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(chain(&problem)),
            Err(problem) => Some(problem.to_string()),
        };
        failed = problem.is_some();
        metrics.ledger_writes.with_label_values(&[if failed { "failure" } else { "success" }]).inc();
        if let Some(problem) = &problem {
            error!(error = %problem, "ledger was not written, trying again in 5 s");
        }
        written.send_replace((number, problem));
        if stopped {
            return;
        }
    }
}
