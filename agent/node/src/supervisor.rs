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

mod dispatch;
mod drain;
mod merging;
mod showing;
mod writers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use oci_spec::runtime::LinuxResources;
use portreeve_engine::EngineEvent;
use portreeve_manifests::{Kind, ObjectKey};
use portreeve_plan::{Blocked, Configs, DesiredPod, Finished, ImageView, Intent, ObservedPod, PodKey, PodUid};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use dispatch::{Applicant, blocked, configs, unobserved};
use drain::Drain;
pub(crate) use merging::elsewhere;
use merging::refuses_uids;
pub(crate) use writers::unwritten;
use writers::{Written, set_weights, write_ledger};

use crate::config::NodeConfig;
use crate::desired::{Ledger, Record};
use crate::error::NodeError;
use crate::history::{History, NamespacedName};
use crate::report::SourceReport;
use crate::source::SourceSet;
use crate::worker::{Shared, WorkerHandle, WorkerNews, has_come};

/// A request of a door.
#[derive(Debug)]
pub(crate) enum Request {
    /// Restart a pod's containers.
    Restart { pod: NamespacedName, done: oneshot::Sender<Result<(), NodeError>> },
    /// Stop every pod; answered with what ran, when all are stopped.
    Drain { grace: Option<Duration>, done: oneshot::Sender<Vec<NamespacedName>> },
}

/// What the facade reads without asking.
#[derive(Debug, Clone)]
pub(crate) struct Outlook {
    pub(crate) ledger: watch::Receiver<Arc<Ledger>>,
    pub(crate) reports: watch::Receiver<Arc<Vec<SourceReport>>>,
    pub(crate) drained: watch::Receiver<bool>,
    pub(crate) written: watch::Receiver<Written>,
    /// Whether every pod that should run has its worker.
    pub(crate) begun: watch::Receiver<bool>,
    pub(crate) views: Views,
}

/// At the start the ledger alone counts when a source has said nothing for so long.
const FIRST_WORD: Duration = Duration::from_secs(5);

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
    sets: Vec<watch::Receiver<SourceSet>>,
    requests: mpsc::Receiver<Request>,
    news: mpsc::UnboundedReceiver<WorkerNews>,
    engine: broadcast::Receiver<EngineEvent>,
    lost_ground: watch::Receiver<Option<String>>,
    images: watch::Receiver<()>,
    workers: BTreeMap<PodUid, Running>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// Uids of what ran before the ledger knew it.
    adoptable: BTreeMap<PodKey, String>,
    merged_once: bool,
    drain: Option<Drain>,
    drained: watch::Sender<bool>,
    begun: watch::Sender<bool>,
    ledger_out: watch::Sender<Arc<Ledger>>,
    reports: watch::Sender<Arc<Vec<SourceReport>>>,
    views: Views,
    writes: watch::Sender<(u64, Arc<Ledger>)>,
    written: watch::Receiver<Written>,
    waiting: Vec<(u64, oneshot::Sender<Result<(), String>>)>,
    weights: watch::Sender<Weights>,
    told: BTreeSet<String>,
    config_maps: Arc<History<ConfigMap>>,
    secrets: Arc<History<Secret>>,
}

/// Everything a supervisor is made of.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: NodeConfig,
    pub(crate) ledger: Ledger,
    pub(crate) ledger_path: PathBuf,
    pub(crate) sets: Vec<watch::Receiver<SourceSet>>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) news: mpsc::UnboundedReceiver<WorkerNews>,
    pub(crate) config_maps: Arc<History<ConfigMap>>,
    pub(crate) secrets: Arc<History<Secret>>,
    pub(crate) stop: CancellationToken,
}

/// Waits until a source says something new; an error if one has ended.
async fn changed(sets: &mut [watch::Receiver<SourceSet>]) -> Result<(), watch::error::RecvError> {
    select_all(sets.iter_mut().map(|sets| Box::pin(sets.changed()))).await.0
}

impl Supervisor {
    /// A supervisor, and what others may look at.
    pub(crate) fn new(parts: Parts) -> (Self, Outlook) {
        let (ledger_out, ledger) = watch::channel(Arc::new(parts.ledger.clone()));
        let (reports_out, reports) = watch::channel(Arc::new(Vec::new()));
        let (drained_out, drained) = watch::channel(false);
        let (begun_out, begun) = watch::channel(false);
        let (writes, to_write) = watch::channel((0, Arc::new(parts.ledger.clone())));
        let (written_out, written) = watch::channel(Written::default());
        let views = Views::default();
        let outlook = Outlook { ledger, reports, drained, written: written.clone(), begun, views: Arc::clone(&views) };
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&parts.shared);
        tasks.spawn(write_ledger(parts.ledger_path, shared, to_write, written_out, parts.stop.clone()));
        let (weights, to_set) = watch::channel(Weights::new());
        tasks.spawn(set_weights(Arc::clone(&parts.shared), to_set, parts.stop.clone()));
        let supervisor = Self {
            engine: parts.shared.runtime.subscribe(),
            lost_ground: parts.shared.runtime.lost_ground(),
            images: parts.shared.runtime.image_changes(),
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
            begun: begun_out,
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
        self.hear_first().await;
        if !self.merge() {
            self.dispatch();
        }
        self.begun.send_replace(true);
        let mut relist = tokio::time::interval(self.config.relist);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        relist.tick().await;
        loop {
            tokio::select! {
                // cancel-safe: a state.
                () = self.stop.cancelled() => break,
                // cancel-safe: the values stay in their channels.
                changed = changed(&mut self.sets) => match changed {
                    Ok(()) => drop(self.merge()),
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
                // cancel-safe: as above.
                Ok(()) = self.lost_ground.changed() => self.tell_ground(),
                // cancel-safe: as above.
                Ok(()) = self.images.changed() => self.take_images(),
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

    /// Waits for the first word of each source, good or bad, but not for long: what it says may be newer than the
    /// ledger, which a killed agent or a full disk kept from being written, and nothing is to go back and forth.
    async fn hear_first(&mut self) {
        let words = self.sets.iter_mut().map(|sets| async { drop(sets.wait_for(SourceSet::says_something).await) });
        tokio::select! {
            // cancel-safe: only looks. A closed channel is seen by the loop.
            _ = tokio::time::timeout(FIRST_WORD, join_all(words)) => {}
            // cancel-safe: a state.
            () = self.stop.cancelled() => {}
        }
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
        let Written { number, problem } = self.written.borrow_and_update().clone();
        let (done, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(of, _)| *of <= number);
        self.waiting = waiting;
        let done: Vec<_> = done;
        for (_, answer) in done {
            // Whoever asked may be gone.
            let _ = answer.send(problem.clone().map_or(Ok(()), Err));
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
                }
                self.dispatch();
            }
            WorkerNews::Rests { uid } => self.take_rest(uid),
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
                let _ = done.send(self.restart(&pod));
            }
            Request::Drain { grace, done } => self.begin_drain(grace, done),
        }
    }

    fn restart(&mut self, pod: &NamespacedName) -> Result<(), NodeError> {
        let key = ObjectKey { kind: Kind::Pod, namespace: pod.namespace.clone(), name: pod.name.clone() };
        let now = self.shared.clock.now();
        let not_found = || NodeError::PodNotFound { name: pod.clone() };
        let record = self.ledger.objects.get_mut(&key).ok_or_else(not_found)?;
        if self.drain.is_some() {
            return Err(NodeError::Drained { name: pod.clone() });
        }
        record.restart_requested_at = Some(now);
        record.finished = None;
        self.persist();
        self.dispatch();
        Ok(())
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

    /// Wakes whoever waits for an image that is here now, loaded by a user or pulled for another pod.
    fn take_images(&self) {
        let waiting: Vec<(PodUid, Arc<ObservedPod>)> = {
            let observed = self.shared.observed.lock().unwrap_or_else(PoisonError::into_inner);
            let waits = observed.iter().filter(|(_, pod)| pod.images.values().any(ImageView::is_wanting));
            waits.map(|(uid, pod)| (uid.clone(), Arc::clone(pod))).collect()
        };
        for (uid, pod) in waiting {
            if let Some(running) = self.workers.get(&uid).filter(|_| has_come(&*self.shared.runtime, &pod)) {
                running.handle.wake.notify_one();
            }
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
}
