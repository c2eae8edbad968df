//! The facade: everything a door may ask of a node.
//!
//! A [`Node`] is a cheap clone. Lists are answered from memory, changes travel through manifests
//! (files stay the truth), and nothing here decides what a pod needs: that is the planner's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMap, Event, NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo, Pod, Secret,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use portreeve_engine::{ContainerId, ContainerState, Engine, SandboxId, SandboxState};
use portreeve_plan::PodUid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::{NodeConfig, architecture};
use crate::desired::Ledger;
use crate::error::{NodeError, StartError, chain};
use crate::events::Events;
use crate::history::{History, Listed, NamespacedName, REMEMBERED, Versions, Watch, WatchError};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::pulls::Pulls;
use crate::report::{
    ApplyReport, Deleted, ManifestFile, ObjectName, PlanReport, PlanRequest, PodUsage, PullReport, SourceReport,
    SourceState, Usage,
};
use crate::runtime::{EngineRuntime, Runtime};
use crate::source::{DirectorySource, SourceSet};
use crate::supervisor::{Outlook, Parts, Request, Supervisor};
use crate::translate::Place;
use crate::volumes::Volumes;
use crate::worker::Shared;
use crate::{apply, disk, machine, preview};

/// How long `apply` waits until its objects are seen in the directory.
const APPLY_SEEN_WITHIN: Duration = Duration::from_secs(3);

/// A container as the doors need it: for logs, exec, attach and copies.
#[derive(Debug, Clone)]
pub struct ContainerHandle {
    /// The pod's name.
    pub pod: NamespacedName,
    /// The container's name.
    pub container: String,
    /// The engine's id.
    pub id: ContainerId,
    /// The engine's id of its sandbox.
    pub sandbox: SandboxId,
    /// Its log file in CRI format; rotated files lie beside it.
    pub log_path: PathBuf,
    /// Whether its process runs.
    pub running: bool,
    /// Whether it was made with a terminal.
    pub tty: bool,
    /// Whether it was made with an input.
    pub stdin: bool,
}

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
    stop: CancellationToken,
    events_stop: CancellationToken,
    started_at: jiff::Timestamp,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    source: Mutex<Option<DirectorySource>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.inner.config.node_name).finish_non_exhaustive()
    }
}

impl Node {
    /// Starts the loops over `engine`: recovers what runs, reads the manifests, reconciles.
    ///
    /// # Errors
    /// [`StartError`], with nothing changed, if state on disk cannot be used.
    pub async fn start(config: NodeConfig, engine: Arc<Engine>) -> Result<Self, StartError> {
        let euid = nix::unistd::geteuid();
        if !euid.is_root() {
            return Err(StartError::NotRoot { euid: euid.as_raw() });
        }
        let runtime: Arc<dyn Runtime> = Arc::new(EngineRuntime(Arc::clone(&engine)));
        prepare(&config)?;
        let ledger = Ledger::read(&config.root.join("ledger.json"))?;
        // Before any pod asks a registry for what lies here.
        for loaded in engine.images().preload().await {
            match loaded.result {
                Ok(images) => info!(file = %loaded.file.display(), images = images.len(), "images preloaded"),
                Err(error) => {
                    warn!(file = %loaded.file.display(), error = %chain(&error), "images were not preloaded");
                }
            }
        }
        let name = SourceSet::starting(&config.manifests_dir).name;
        let identity = ledger.identities.get(&name).copied();
        let source = DirectorySource::start(&config.manifests_dir, identity, config.source_resync)?;
        let sets = source.sets();
        let node = Self::assemble(config, runtime, Some(engine), ledger, sets, Clock::system())?;
        *node.inner.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
        Ok(node)
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
        let ledger = Ledger::read(&config.root.join("ledger.json"))?;
        Self::assemble(config, runtime, None, ledger, sets, clock)
    }

    fn assemble(
        config: NodeConfig,
        runtime: Arc<dyn Runtime>,
        engine: Option<Arc<Engine>>,
        ledger: Ledger,
        sets: watch::Receiver<SourceSet>,
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
        let shared = Arc::new(Shared {
            place: Place {
                cgroup_root: config.cgroup_root.clone(),
                logs: config.root.join("logs"),
                resolv_conf: config.resolv_conf.clone(),
            },
            volumes: Volumes::open(&config.root, &config.run)?,
            events: Arc::clone(&events),
            metrics: Metrics::new(&config.version)?,
            node: machine::facts(&config),
            pulls: Arc::new(Pulls::new(config.max_concurrent_pulls)),
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
        let secrets = Arc::new(History::new(versions, REMEMBERED, |secret: &mut Secret, version| {
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
            stop,
            events_stop,
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
        for report in reports.iter().filter(|report| report.state != SourceState::Ready) {
            let reason = report.reason.clone().unwrap_or_else(|| "not read yet".to_owned());
            reasons.push(format!("{}: {reason}", report.path.display()));
        }
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

    /// This machine as a Kubernetes node.
    pub fn node_object(&self) -> k8s_openapi::api::core::v1::Node {
        let facts = &self.inner.shared.node;
        let ready = self.ready();
        let now = jiff::Timestamp::now();
        let drained = self.is_drained();
        let cpu = facts.cpu_millis / 1000;
        let quantities = BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Ki", facts.memory_bytes / 1024))),
            ("pods".to_owned(), Quantity("250".to_owned())),
        ]);
        let mut addresses: Vec<NodeAddress> = facts
            .host_ips
            .iter()
            .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.clone() })
            .collect();
        addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: facts.name.clone() });
        let trimmed = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        k8s_openapi::api::core::v1::Node {
            metadata: ObjectMeta {
                name: Some(facts.name.clone()),
                labels: Some(self.inner.config.node_labels()),
                creation_timestamp: Some(Time(self.inner.started_at)),
                resource_version: Some("1".to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec { unschedulable: drained.then_some(true), ..NodeSpec::default() }),
            status: Some(NodeStatus {
                addresses: Some(addresses),
                allocatable: Some(quantities.clone()),
                capacity: Some(quantities),
                conditions: Some(vec![NodeCondition {
                    type_: "Ready".to_owned(),
                    status: if ready.is_ok() { "True" } else { "False" }.to_owned(),
                    reason: Some(if ready.is_ok() { "AgentReady" } else { "AgentNotReady" }.to_owned()),
                    message: Some(
                        ready.err().map_or_else(
                            || "the agent reconciles its manifests".to_owned(),
                            |reasons| reasons.join("; "),
                        ),
                    ),
                    last_heartbeat_time: Some(Time(now)),
                    last_transition_time: Some(Time(self.inner.started_at)),
                }]),
                node_info: Some(NodeSystemInfo {
                    architecture: architecture().to_owned(),
                    boot_id: trimmed("/proc/sys/kernel/random/boot_id"),
                    container_runtime_version: format!("portreeve://{}", self.inner.config.version),
                    kernel_version: trimmed("/proc/sys/kernel/osrelease"),
                    kubelet_version: format!("portreeve-{}", self.inner.config.version),
                    machine_id: trimmed("/etc/machine-id"),
                    operating_system: "linux".to_owned(),
                    os_image: os_name(),
                    ..NodeSystemInfo::default()
                }),
                ..NodeStatus::default()
            }),
        }
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

    /// Pulls that run or wait for their next attempt.
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
                    let usage =
                        Usage { cpu_ns: stats.cpu_usage_ns, memory_working_set_bytes: stats.memory_working_set_bytes };
                    Some((name, usage))
                });
                all.push(PodUsage {
                    namespace: sandbox.metadata.namespace,
                    name: sandbox.metadata.name,
                    at: stats.at,
                    containers: containers.collect(),
                });
            }
        }
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all
    }

    fn known(&self, name: &NamespacedName) -> Result<(Arc<Pod>, PodUid), NodeError> {
        let not_found = || NodeError::PodNotFound { name: name.clone() };
        let pod = self.pod(name).ok_or_else(not_found)?;
        let uid = pod.metadata.uid.clone().ok_or_else(not_found)?;
        Ok((pod, PodUid(uid)))
    }

    /// Finds a container for logs, exec or attach; without a name it must be the only one (or the
    /// one that `kubectl.kubernetes.io/default-container` names). `previous` is the one before.
    ///
    /// # Errors
    /// [`NodeError::PodNotFound`], [`NodeError::ContainerNotFound`],
    /// [`NodeError::ContainerRequired`], or [`NodeError::ContainerState`] if there is none yet.
    pub fn container(
        &self,
        pod: &NamespacedName,
        container: Option<&str>,
        previous: bool,
    ) -> Result<ContainerHandle, NodeError> {
        let (object, uid) = self.known(pod)?;
        let name = choose(&object, pod, container)?;
        let shared = &self.inner.shared;
        let ids = shared.index.of(&uid).containers;
        let mut attempts: Vec<_> = ids
            .iter()
            .filter_map(|id| shared.runtime.container(id))
            .filter(|status| status.metadata.name == name)
            .collect();
        attempts.sort_by_key(|status| (status.metadata.attempt, status.created_at));
        if previous {
            attempts.pop();
        }
        let status = attempts.pop().ok_or_else(|| NodeError::ContainerState {
            pod: pod.name.clone(),
            container: name.clone(),
            state: if previous {
                "without a previous instance".to_owned()
            } else {
                format!("waiting to start: {}", waiting_reason(&object, &name))
            },
        })?;
        Ok(ContainerHandle {
            pod: pod.clone(),
            container: name.clone(),
            log_path: status.log_path.clone().unwrap_or_else(|| {
                let logs = shared.place.log_directory(&pod.namespace, &pod.name, &uid.0);
                logs.join(crate::translate::log_path(&name, status.metadata.attempt))
            }),
            running: status.state == ContainerState::Running,
            tty: status.tty,
            stdin: status.stdin,
            id: status.id,
            sandbox: status.sandbox,
        })
    }

    /// The log file of a container, also of one whose pod has ended and was taken down.
    ///
    /// # Errors
    /// As [`Node::container`].
    pub fn log_path(
        &self,
        pod: &NamespacedName,
        container: Option<&str>,
        previous: bool,
    ) -> Result<PathBuf, NodeError> {
        let missing = match self.container(pod, container, previous) {
            Ok(handle) => return Ok(handle.log_path),
            Err(error @ NodeError::ContainerState { .. }) => error,
            Err(error) => return Err(error),
        };
        let (object, uid) = self.known(pod)?;
        let name = choose(&object, pod, container)?;
        let place = &self.inner.shared.place;
        let folder = place.log_directory(&pod.namespace, &pod.name, &uid.0).join(&name);
        let mut attempts: Vec<u32> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect();
        attempts.sort_unstable();
        let running = self.container(pod, container, false).is_ok();
        if previous && !running {
            attempts.pop();
        } else if previous {
            let newest = attempts.pop();
            attempts.retain(|attempt| Some(*attempt) != newest);
        }
        attempts.pop().map(|attempt| folder.join(format!("{attempt}.log"))).ok_or(missing)
    }

    /// The live sandbox of a pod, for port-forward.
    ///
    /// # Errors
    /// [`NodeError::PodNotFound`], or [`NodeError::ContainerState`] if it has none now.
    pub fn sandbox(&self, pod: &NamespacedName) -> Result<SandboxId, NodeError> {
        let (_, uid) = self.known(pod)?;
        let shared = &self.inner.shared;
        let ids = shared.index.of(&uid).sandboxes;
        ids.iter()
            .filter_map(|id| shared.runtime.sandbox(id))
            .filter(|sandbox| sandbox.state == SandboxState::Ready)
            .max_by_key(|sandbox| sandbox.metadata.attempt)
            .map(|sandbox| sandbox.id)
            .ok_or_else(|| NodeError::ContainerState {
                pod: pod.name.clone(),
                container: "sandbox".to_owned(),
                state: "not running".to_owned(),
            })
    }

    fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.inner.outlook.ledger.borrow())
    }

    /// What would be done if the given files were laid over the manifests, or what comes next.
    ///
    /// # Errors
    /// [`NodeError::Stopped`] during shutdown; problems of the files are in the report.
    pub async fn plan(&self, request: PlanRequest) -> Result<PlanReport, NodeError> {
        if self.inner.stop.is_cancelled() {
            return Err(NodeError::Stopped);
        }
        let (shared, ledger) = (Arc::clone(&self.inner.shared), self.ledger());
        let views = Arc::clone(&self.inner.outlook.views);
        blocking(move || Ok(preview::preview(&shared, &ledger, &views, &request))).await
    }

    /// Validates, then writes one file per object below `<manifests>/applied`, and waits until the
    /// directory's watcher has seen them.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] or [`NodeError::OwnedElsewhere`], with nothing written;
    /// [`NodeError::Write`] if the kernel refuses.
    pub async fn apply(&self, files: Vec<ManifestFile>) -> Result<ApplyReport, NodeError> {
        let (manifests, ledger) = (self.inner.config.manifests_dir.clone(), self.ledger());
        let shared = Arc::clone(&self.inner.shared);
        let applied = blocking(move || apply::apply_blocking(&manifests, &ledger, &files, &shared.node));
        let (report, expected) = applied.await?;
        let mut ledger = self.inner.outlook.ledger.clone();
        let seen = ledger.wait_for(|ledger| {
            expected.iter().all(|(key, hash)| ledger.objects.get(key).is_some_and(|record| record.hash == *hash))
        });
        // The files are what counts.
        let _ = tokio::time::timeout(APPLY_SEEN_WITHIN, seen).await;
        Ok(report)
    }

    /// Removes the files of applied objects.
    ///
    /// # Errors
    /// [`NodeError::ObjectNotFound`] or [`NodeError::OwnedElsewhere`], with nothing removed.
    pub async fn delete(&self, objects: Vec<ObjectName>) -> Result<Vec<Deleted>, NodeError> {
        let (manifests, ledger) = (self.inner.config.manifests_dir.clone(), self.ledger());
        let deleted = blocking(move || apply::delete_blocking(&manifests, &ledger, &objects)).await?;
        let files: Vec<PathBuf> = deleted.iter().map(|deleted| deleted.file.clone()).collect();
        let mut ledger = self.inner.outlook.ledger.clone();
        let seen = ledger.wait_for(|ledger| ledger.objects.values().all(|record| !files.contains(&record.file)));
        let _ = tokio::time::timeout(APPLY_SEEN_WITHIN, seen).await;
        Ok(deleted)
    }

    /// The objects that the given manifests name, for `delete -f`.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] if a document does not say what it names.
    pub fn objects_in(&self, files: &[ManifestFile]) -> Result<Vec<ObjectName>, NodeError> {
        apply::named(files)
    }

    /// Makes a pod anew: its containers are stopped gracefully and started again.
    ///
    /// # Errors
    /// [`NodeError::PodNotFound`].
    pub async fn restart_pod(&self, pod: &NamespacedName) -> Result<(), NodeError> {
        let (done, answer) = oneshot::channel();
        let request = Request::Restart { pod: pod.clone(), done };
        self.inner.requests.send(request).await.map_err(|_| NodeError::Stopped)?;
        match answer.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(NodeError::PodNotFound { name: pod.clone() }),
            Err(_) => Err(NodeError::Stopped),
        }
    }

    /// Stops every pod gracefully, within `grace` if given, and starts none until the agent
    /// starts again; returns the pods that were stopped, when they are.
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
    for path in [&config.root, &config.run] {
        disk::ensure_directory(path, 0o700).map_err(|source| StartError::Directory { path: path.clone(), source })?;
    }
    let logs = config.root.join("logs");
    disk::ensure_directory(&logs, 0o700).map_err(|source| StartError::Directory { path: logs, source })?;
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| NodeError::Runtime(error.to_string()))?
}

/// The container that a door means.
fn choose(object: &Pod, pod: &NamespacedName, container: Option<&str>) -> Result<String, NodeError> {
    let Some(spec) = &object.spec else {
        return Err(NodeError::PodNotFound { name: pod.clone() });
    };
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let preferred = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("kubectl.kubernetes.io/default-container"))
        .map(String::as_str);
    match container.filter(|name| !name.is_empty()).or(preferred) {
        Some(name) if all().any(|container| container.name == name) => Ok(name.to_owned()),
        Some(name) => Err(NodeError::ContainerNotFound { pod: pod.name.clone(), container: name.to_owned() }),
        None => match spec.containers.as_slice() {
            [only] => Ok(only.name.clone()),
            _ => Err(NodeError::ContainerRequired {
                pod: pod.name.clone(),
                choices: all().map(|container| container.name.clone()).collect(),
            }),
        },
    }
}

fn waiting_reason(object: &Pod, container: &str) -> String {
    let statuses = object.status.iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    statuses
        .filter(|status| status.name == container)
        .find_map(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .unwrap_or_else(|| "ContainerCreating".to_owned())
}

fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map(|name| name.trim_matches('"').to_owned()).unwrap_or_default()
}
