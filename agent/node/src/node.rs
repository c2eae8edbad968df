//! The facade: everything a door may ask of a node.
//!
//! A [`Node`] is a cheap clone. Lists are answered from memory, changes travel through manifests
//! (files stay the truth), and nothing here decides what a pod needs: that is the planner's.

mod find;
mod manifests;
mod object;

pub use find::ContainerHandle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use portreeve_engine::image::{ImageId, ImageRef};
use portreeve_engine::{Engine, SandboxState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::collect::{Collector, Room, wanted_images};
use crate::config::NodeConfig;
use crate::desired::Ledger;
use crate::error::{NodeError, StartError};
use crate::events::Events;
use crate::history::{History, Listed, NamespacedName, REMEMBERED, Versions, Watch, WatchError};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::pulls::Pulls;
use crate::report::{PodUsage, PullReport, SourceReport, SourceState, StorageReport, Usage};
use crate::runtime::{EngineRuntime, Runtime};
use crate::source::{DirectorySource, Source, SourceSet};
use crate::supervisor::{Outlook, Parts, Request, Supervisor, unwritten};
use crate::translate::Place;
use crate::volumes::{self, Volumes};
use crate::worker::Shared;
use crate::{disk, machine, notes};
use portreeve_engine::chain;

/// A running node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    engine: Option<Arc<Engine>>,
    shared: Arc<Shared>,
    outlook: Outlook,
    requests: mpsc::Sender<Request>,
    config_maps: Arc<History<ConfigMap>>,
    secrets: Arc<History<Secret>>,
    versions: Versions,
    stop: CancellationToken,
    events_stop: CancellationToken,
    started_at: jiff::Timestamp,
    /// Whether the disk of the images has room.
    room: watch::Sender<Room>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    source: Mutex<Option<Source>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.inner.config.node_name).finish_non_exhaustive()
    }
}

impl Node {
    /// Starts the loops over `engine`: recovers what runs, reads the manifests and what `others` say, reconciles.
    ///
    /// # Errors
    /// [`StartError`], with nothing changed, if state on disk cannot be used.
    pub async fn start(
        config: NodeConfig,
        engine: Arc<Engine>,
        others: Vec<watch::Receiver<SourceSet>>,
    ) -> Result<Self, StartError> {
        let euid = nix::unistd::geteuid();
        if !euid.is_root() {
            return Err(StartError::NotRoot { euid: euid.as_raw() });
        }
        let runtime: Arc<dyn Runtime> = Arc::new(EngineRuntime(Arc::clone(&engine)));
        prepare(&config)?;
        let ledger = read_state(&config)?;
        // Before any pod asks a registry for what lies here.
        for loaded in engine.images().preload().await {
            match loaded.result {
                Ok(images) => info!(file = %loaded.file.display(), images = images.len(), "images preloaded"),
                Err(error) => {
                    warn!(file = %loaded.file.display(), error = %chain(&error), "images were not preloaded");
                }
            }
        }
        let source = if config.manifests_watched {
            let ground = ledger.ground(&SourceSet::starting(&config.manifests_dir).name);
            Source::Directory(DirectorySource::start(&config.manifests_dir, ground, config.source_resync)?)
        } else {
            Source::silent(&config.manifests_dir)
        };
        let sets = std::iter::once(source.sets()).chain(others).collect();
        let node = Self::assemble(config, runtime, Some(engine), ledger, sets, Clock::system())?;
        *node.inner.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
        // A door that opens now tells of every pod. A supervisor that ended has logged why.
        let _ = node.inner.outlook.begun.clone().wait_for(|begun| *begun).await;
        // Not before every pod is known: what they name stays.
        node.begin_collecting();
        Ok(node)
    }

    fn begin_collecting(&self) {
        let inner = &self.inner;
        let Some(engine) = &inner.engine else { return };
        let collector = Collector {
            shared: Arc::clone(&inner.shared),
            engine: Arc::clone(engine),
            ledger: inner.outlook.ledger.clone(),
            bounds: inner.config.image_collection,
            room: inner.room.clone(),
            stop: inner.stop.clone(),
        };
        inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(tokio::spawn(collector.run()));
    }

    /// Starts the loops over any runtime and source: what simulations do.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_with(
        config: NodeConfig,
        runtime: Arc<dyn Runtime>,
        sets: watch::Receiver<SourceSet>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        prepare(&config)?;
        let ledger = read_state(&config)?;
        Self::assemble(config, runtime, None, ledger, vec![sets], clock)
    }

    fn assemble(
        config: NodeConfig,
        runtime: Arc<dyn Runtime>,
        engine: Option<Arc<Engine>>,
        ledger: Ledger,
        sets: Vec<watch::Receiver<SourceSet>>,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let versions = Versions::from_clock();
        let events = Arc::new(Events::open(
            &config.root.join("events.jsonl"),
            config.max_events,
            &config.node_name,
            versions.clone(),
        )?);
        let (outbox, news) = mpsc::unbounded_channel();
        let metrics = Metrics::new(&config.version)?;
        let pulls = Pulls::new(config.max_concurrent_pulls, clock.clone());
        let shared = Arc::new(Shared {
            place: Place {
                cgroup_root: config.cgroup_root.clone(),
                logs: config.root.join("logs"),
                resolv_conf: config.resolv_conf.clone(),
            },
            volumes: Volumes::open(&config.root, &config.run)?,
            events: Arc::clone(&events),
            metrics,
            node: machine::facts(&config),
            pulls: Arc::new(pulls),
            index: Index::default(),
            pods: Arc::new(History::new(versions.clone(), REMEMBERED, |pod: &mut Pod, version| {
                pod.metadata.resource_version = Some(version.to_string());
            })),
            observed: Mutex::default(),
            ids: tokio::sync::Mutex::new(()),
            started_at: clock.now(),
            clock: clock.clone(),
            runtime,
            outbox,
        });
        let config_maps = Arc::new(History::new(versions.clone(), REMEMBERED, |map: &mut ConfigMap, version| {
            map.metadata.resource_version = Some(version.to_string());
        }));
        let secrets = Arc::new(History::new(versions.clone(), REMEMBERED, |secret: &mut Secret, version| {
            secret.metadata.resource_version = Some(version.to_string());
        }));
        let (requests, inbox) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let events_stop = CancellationToken::new();
        let (supervisor, outlook) = Supervisor::new(Parts {
            shared: Arc::clone(&shared),
            config: config.clone(),
            ledger,
            ledger_path: config.root.join("ledger.json"),
            sets,
            requests: inbox,
            news,
            config_maps: Arc::clone(&config_maps),
            secrets: Arc::clone(&secrets),
            stop: stop.clone(),
        });
        let tasks = vec![tokio::spawn(supervisor.run()), tokio::spawn(events.run(events_stop.clone()))];
        let inner = Inner {
            config,
            engine,
            shared,
            outlook,
            requests,
            config_maps,
            secrets,
            versions,
            stop,
            events_stop,
            room: watch::Sender::new(Room { problem: None, since: clock.now() }),
            started_at: clock.now(),
            tasks: Mutex::new(tasks),
            source: Mutex::new(None),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stops the loops and leaves every container running. The lists stay readable.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let mut tasks = tasks.into_iter();
        if let Some(supervisor) = tasks.next() {
            // A panic there was logged by the runtime; the shutdown goes on.
            let _ = supervisor.await;
        }
        self.inner.events_stop.cancel();
        for task in tasks {
            let _ = task.await;
        }
        let source = self.inner.source.lock().unwrap_or_else(PoisonError::into_inner).take();
        let volumes = self.inner.shared.volumes.clone();
        let closed = tokio::task::spawn_blocking(move || {
            drop(source);
            volumes.close_blocking();
        });
        // A panic there was logged; there is nothing left to do.
        let _ = closed.await;
    }

    /// Removes what is left of the pods' volumes, whoever's they are, after [`Node::shutdown`] and once nothing uses them.
    ///
    /// # Errors
    /// The first that could not be removed; the others are.
    pub async fn erase(&self) -> Result<(), NodeError> {
        let volumes = self.inner.shared.volumes.clone();
        let erased = tokio::task::spawn_blocking(move || {
            let removals = volumes.uids().into_iter().map(|uid| volumes.remove_pod_blocking(&uid));
            let first = removals.filter_map(Result::err).collect::<Vec<_>>().into_iter().next();
            volumes.close_blocking();
            first.map_or(Ok(()), Err)
        });
        match erased.await {
            Ok(erased) => Ok(erased?),
            Err(_) => Err(NodeError::Stopped),
        }
    }

    /// Ends everything at once, as a killed agent would: for simulations.
    pub fn abort(&self) {
        for task in self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    /// The counter from which every list here takes its versions, for lists beside them.
    pub fn versions(&self) -> Versions {
        self.inner.versions.clone()
    }

    /// The settings of this node.
    pub fn config(&self) -> &NodeConfig {
        &self.inner.config
    }

    /// The engine below, for exec, attach, port-forward, images and statistics.
    ///
    /// `None` only where a test runs the node on a fake.
    pub fn engine(&self) -> Option<&Arc<Engine>> {
        self.inner.engine.as_ref()
    }

    /// Whether the node does its work (`/readyz`).
    ///
    /// # Errors
    /// One line per reason why it does not.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.inner.stop.is_cancelled() {
            reasons.push("shutting down".to_owned());
        }
        let reports = self.inner.outlook.reports.borrow().clone();
        if reports.is_empty() {
            reasons.push("the manifests were not read yet".to_owned());
        }
        let lacking =
            |report: &&SourceReport| self.inner.config.manifests_watched && report.state != SourceState::Ready;
        for report in reports.iter().filter(lacking) {
            let reason = report.reason.clone().unwrap_or_else(|| "not read yet".to_owned());
            reasons.push(format!("{}: {reason}", report.path.display()));
        }
        reasons.extend(self.inner.outlook.written.borrow().problem.as_deref().map(unwritten));
        reasons.extend(self.inner.shared.runtime.lost_ground().borrow().clone());
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    /// All pods with their full status.
    pub fn pods(&self) -> Listed<Pod> {
        self.inner.shared.pods.list()
    }

    /// One pod.
    pub fn pod(&self, name: &NamespacedName) -> Option<Arc<Pod>> {
        self.inner.shared.pods.get(name)
    }

    /// Watches the pods from after a resource version, or from now on.
    ///
    /// # Errors
    /// [`WatchError::TooOld`]: list again.
    pub fn watch_pods(&self, since: Option<u64>) -> Result<Watch<Pod>, WatchError> {
        self.inner.shared.pods.watch(since)
    }

    /// All ConfigMaps.
    pub fn config_maps(&self) -> Listed<ConfigMap> {
        self.inner.config_maps.list()
    }

    /// Watches the ConfigMaps.
    ///
    /// # Errors
    /// [`WatchError::TooOld`]: list again.
    pub fn watch_config_maps(&self, since: Option<u64>) -> Result<Watch<ConfigMap>, WatchError> {
        self.inner.config_maps.watch(since)
    }

    /// All Secrets, with their content: for root's own socket only.
    pub fn secrets(&self) -> Listed<Secret> {
        self.inner.secrets.list()
    }

    /// Watches the Secrets.
    ///
    /// # Errors
    /// [`WatchError::TooOld`]: list again.
    pub fn watch_secrets(&self, since: Option<u64>) -> Result<Watch<Secret>, WatchError> {
        self.inner.secrets.watch(since)
    }

    /// All kept events.
    pub fn events(&self) -> Listed<Event> {
        self.inner.shared.events.list().list()
    }

    /// Watches the events.
    ///
    /// # Errors
    /// [`WatchError::TooOld`]: list again.
    pub fn watch_events(&self, since: Option<u64>) -> Result<Watch<Event>, WatchError> {
        self.inner.shared.events.list().watch(since)
    }

    /// What each source says about itself.
    pub fn sources(&self) -> Vec<SourceReport> {
        let reports = self.inner.outlook.reports.borrow().clone();
        if !reports.is_empty() {
            return (*reports).clone();
        }
        let starting = SourceSet::starting(&self.inner.config.manifests_dir);
        vec![SourceReport {
            name: starting.name,
            kind: "directory".to_owned(),
            path: starting.path,
            state: SourceState::Starting,
            reason: None,
            last_read: None,
            objects: 0,
            errors: 0,
            warnings: 0,
            held_back: 0,
            files: Vec::new(),
        }]
    }

    /// Wakes whenever a source has something else to say about itself.
    pub fn sources_changed(&self) -> watch::Receiver<Arc<Vec<SourceReport>>> {
        self.inner.outlook.reports.clone()
    }

    /// Wakes whenever what is desired changes, or a pod that is not desired any more is gone.
    pub fn desired_changed(&self) -> watch::Receiver<impl Send + Sync + 'static + use<>> {
        self.inner.outlook.ledger.clone()
    }

    /// Wakes when the node is drained.
    pub fn drained_changed(&self) -> watch::Receiver<bool> {
        self.inner.outlook.drained.clone()
    }

    /// Wakes when the disk of the images fills up, or has room again.
    pub fn room_changed(&self) -> watch::Receiver<impl Send + Sync + 'static + use<>> {
        self.inner.room.subscribe()
    }

    /// The images that the pods of this node name now, by what `find` says that references mean.
    pub fn wanted_images(&self, find: &dyn Fn(&ImageRef) -> Option<ImageId>) -> BTreeSet<ImageId> {
        wanted_images(&self.pods().items, &self.inner.outlook.ledger.borrow().clone(), find)
    }

    /// Pulls that run or wait for their next attempt, and those that went well some minutes ago.
    pub fn pulls(&self) -> Vec<PullReport> {
        self.inner.shared.pulls.reports()
    }

    /// What the pods use right now.
    pub async fn usage(&self) -> Vec<PodUsage> {
        let shared = &self.inner.shared;
        let mut all = Vec::new();
        for uid in shared.index.uids() {
            for id in shared.index.of(&uid).sandboxes {
                let Some(sandbox) = shared.runtime.sandbox(&id).filter(|s| s.state == SandboxState::Ready) else {
                    continue;
                };
                // Gone meanwhile: nothing is used any more.
                let Ok(stats) = shared.runtime.sandbox_stats(&id).await else {
                    continue;
                };
                let containers = stats.containers.iter().filter_map(|stats| {
                    let name = shared.runtime.container(&stats.id)?.metadata.name;
                    let counted = stats.usage.counted;
                    let usage = Usage {
                        cpu_ns: counted.cpu_usage_ns,
                        memory_working_set_bytes: counted.memory_working_set_bytes,
                    };
                    Some((name, usage))
                });
                all.push(PodUsage {
                    namespace: sandbox.metadata.namespace,
                    name: sandbox.metadata.name,
                    at: stats.usage.at,
                    containers: containers.collect(),
                });
            }
        }
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all
    }

    /// What the pods have on the disk now. Every directory of theirs is read.
    pub async fn storage(&self) -> StorageReport {
        let snapshots = self.engine().map(|engine| engine.images().writable_parts()).unwrap_or_default();
        let root = self.inner.config.root.clone();
        let counted = tokio::task::spawn_blocking(move || crate::storage::count_blocking(&snapshots, &root));
        counted.await.unwrap_or_default()
    }

    /// Makes a pod anew: its containers are stopped gracefully and started again.
    ///
    /// # Errors
    /// [`NodeError::PodNotFound`], or [`NodeError::Drained`] once a drain was asked for.
    pub async fn restart_pod(&self, pod: &NamespacedName) -> Result<(), NodeError> {
        let (done, answer) = oneshot::channel();
        let request = Request::Restart { pod: pod.clone(), done };
        self.inner.requests.send(request).await.map_err(|_| NodeError::Stopped)?;
        answer.await.unwrap_or(Err(NodeError::Stopped))
    }

    /// Stops every pod gracefully, within `grace` if given, and starts none until the agent
    /// starts again; returns the pods that ran, when they are stopped.
    ///
    /// # Errors
    /// [`NodeError::Stopped`] during shutdown.
    pub async fn drain(&self, grace: Option<Duration>) -> Result<Vec<NamespacedName>, NodeError> {
        let (done, answer) = oneshot::channel();
        self.inner.requests.send(Request::Drain { grace, done }).await.map_err(|_| NodeError::Stopped)?;
        answer.await.map_err(|_| NodeError::Stopped)
    }

    /// Whether the node was drained.
    pub fn is_drained(&self) -> bool {
        *self.inner.outlook.drained.borrow()
    }

    /// The metrics in Prometheus' text format, with what containers use read now.
    pub async fn metrics_text(&self) -> String {
        let metrics = &self.inner.shared.metrics;
        let mut phases: BTreeMap<String, i64> =
            ["Pending", "Running", "Succeeded", "Failed", "Unknown"].map(|phase| (phase.to_owned(), 0)).into();
        for pod in self.pods().items {
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
            *phases.entry(phase.unwrap_or_else(|| "Unknown".to_owned())).or_default() += 1;
        }
        for (phase, count) in phases {
            metrics.pods.with_label_values(&[phase.as_str()]).set(count);
        }
        metrics.pulls(&self.pulls(), self.inner.shared.runtime.fetched_bytes());
        let mut text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap_or_default();
        text.push_str(&crate::metrics::usage_text(&self.usage().await));
        text
    }

    /// The registry, to which a door may add its own metrics.
    pub fn registry(&self) -> &prometheus::Registry {
        &self.inner.shared.metrics.registry
    }
}

fn prepare(config: &NodeConfig) -> Result<(), StartError> {
    // Whose the run directory is decides who opens the socket in it.
    for path in [config.root.clone(), config.root.join("logs")] {
        disk::ensure_directory(&path, 0o700).map_err(|source| StartError::Directory { path, source })?;
    }
    Ok(())
}

/// The ledger, once nothing of what is on disk is of a newer agent.
fn read_state(config: &NodeConfig) -> Result<Ledger, StartError> {
    let ledger = Ledger::read(&config.root.join("ledger.json"))?;
    notes::refuse_newer(&config.root.join(volumes::PODS), &config.run.join(volumes::PODS))?;
    Ok(ledger)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| NodeError::Runtime(error.to_string()))?
}
