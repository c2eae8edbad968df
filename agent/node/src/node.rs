//! The facade: everything a door may ask of a node.
//!
//! A [`Node`] is a cheap clone. Lists are answered from memory, changes travel through manifests
//! (files stay the truth), and nothing here decides what a pod needs: that is the planner's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use portreeve_engine::{ContainerId, Engine, SandboxId};

use crate::config::NodeConfig;
use crate::error::{NodeError, StartError};
use crate::history::{History, Listed, NamespacedName, Versions, Watch, WatchError};
use crate::report::{
    ApplyReport, Deleted, ManifestFile, ObjectName, PlanReport, PlanRequest, PodUsage, PullReport,
    SourceReport,
};

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
    registry: prometheus::Registry,
    pods: Arc<History<Pod>>,
    config_maps: Arc<History<ConfigMap>>,
    secrets: Arc<History<Secret>>,
    events: Arc<History<Event>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.inner.config.node_name).finish_non_exhaustive()
    }
}

#[allow(clippy::unused_async, reason = "signatures first")]
impl Node {
    /// Starts the loops over `engine`: recovers what runs, reads the manifests, reconciles.
    ///
    /// # Errors
    /// [`StartError`], with nothing changed, if state on disk cannot be used.
    pub async fn start(config: NodeConfig, engine: Arc<Engine>) -> Result<Self, StartError> {
        let versions = Versions::from_clock();
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                engine: Some(engine),
                registry: prometheus::Registry::new(),
                pods: Arc::new(History::new(versions.clone(), 4096, |pod: &mut Pod, version| {
                    pod.metadata.resource_version = Some(version.to_string());
                })),
                config_maps: Arc::new(History::new(versions.clone(), 256, |map: &mut ConfigMap, version| {
                    map.metadata.resource_version = Some(version.to_string());
                })),
                secrets: Arc::new(History::new(versions.clone(), 256, |secret: &mut Secret, version| {
                    secret.metadata.resource_version = Some(version.to_string());
                })),
                events: Arc::new(History::new(versions, 2048, |event: &mut Event, version| {
                    event.metadata.resource_version = Some(version.to_string());
                })),
            }),
        })
    }

    /// Stops the loops and leaves every container running. The lists stay readable.
    pub async fn shutdown(&self) {}

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
        Ok(())
    }

    /// All pods with their full status.
    pub fn pods(&self) -> Listed<Pod> {
        self.inner.pods.list()
    }

    /// One pod.
    pub fn pod(&self, name: &NamespacedName) -> Option<Arc<Pod>> {
        self.inner.pods.get(name)
    }

    /// Watches the pods from after a resource version, or from now on.
    ///
    /// # Errors
    /// [`WatchError::TooOld`]: list again.
    pub fn watch_pods(&self, since: Option<u64>) -> Result<Watch<Pod>, WatchError> {
        self.inner.pods.watch(since)
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
        self.inner.events.list()
    }

    /// Watches the events.
    ///
    /// # Errors
    /// [`WatchError::TooOld`]: list again.
    pub fn watch_events(&self, since: Option<u64>) -> Result<Watch<Event>, WatchError> {
        self.inner.events.watch(since)
    }

    /// This machine as a Kubernetes node.
    pub fn node_object(&self) -> k8s_openapi::api::core::v1::Node {
        k8s_openapi::api::core::v1::Node::default()
    }

    /// What each source says about itself.
    pub fn sources(&self) -> Vec<SourceReport> {
        Vec::new()
    }

    /// Pulls that run or wait for their next attempt.
    pub fn pulls(&self) -> Vec<PullReport> {
        Vec::new()
    }

    /// What the pods use right now.
    pub async fn usage(&self) -> Vec<PodUsage> {
        Vec::new()
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
        let _ = (container, previous);
        Err(NodeError::PodNotFound { name: pod.clone() })
    }

    /// The live sandbox of a pod, for port-forward.
    ///
    /// # Errors
    /// [`NodeError::PodNotFound`], or [`NodeError::ContainerState`] if it has none now.
    pub fn sandbox(&self, pod: &NamespacedName) -> Result<SandboxId, NodeError> {
        Err(NodeError::PodNotFound { name: pod.clone() })
    }

    /// What would be done if the given files were laid over the manifests, or what comes next.
    ///
    /// # Errors
    /// [`NodeError::Stopped`] during shutdown; problems of the files are in the report.
    pub async fn plan(&self, request: PlanRequest) -> Result<PlanReport, NodeError> {
        let _ = request;
        Err(NodeError::Stopped)
    }

    /// Validates, then writes one file per object below `<manifests>/applied`.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] or [`NodeError::OwnedElsewhere`], with nothing written;
    /// [`NodeError::Write`] if the kernel refuses.
    pub async fn apply(&self, files: Vec<ManifestFile>) -> Result<ApplyReport, NodeError> {
        let _ = files;
        Err(NodeError::Stopped)
    }

    /// Removes the files of applied objects.
    ///
    /// # Errors
    /// [`NodeError::ObjectNotFound`] or [`NodeError::OwnedElsewhere`], with nothing removed.
    pub async fn delete(&self, objects: Vec<ObjectName>) -> Result<Vec<Deleted>, NodeError> {
        let _ = objects;
        Err(NodeError::Stopped)
    }

    /// The objects that the given manifests name, for `delete -f`.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] if a document does not say what it names.
    pub fn objects_in(&self, files: &[ManifestFile]) -> Result<Vec<ObjectName>, NodeError> {
        let _ = files;
        Err(NodeError::Stopped)
    }

    /// Makes a pod anew: its containers are stopped gracefully and started again.
    ///
    /// # Errors
    /// [`NodeError::PodNotFound`].
    pub async fn restart_pod(&self, pod: &NamespacedName) -> Result<(), NodeError> {
        Err(NodeError::PodNotFound { name: pod.clone() })
    }

    /// Stops every pod gracefully, within `grace` if given, and starts none until the agent
    /// starts again; returns the pods that were stopped, when they are.
    ///
    /// # Errors
    /// [`NodeError::Stopped`] during shutdown.
    pub async fn drain(&self, grace: Option<Duration>) -> Result<Vec<NamespacedName>, NodeError> {
        let _ = grace;
        Err(NodeError::Stopped)
    }

    /// Whether the node was drained.
    pub fn is_drained(&self) -> bool {
        false
    }

    /// The metrics in Prometheus' text format, with what containers use read now.
    pub async fn metrics_text(&self) -> String {
        String::new()
    }

    /// The registry, to which a door may add its own metrics.
    pub fn registry(&self) -> &prometheus::Registry {
        &self.inner.registry
    }
}
