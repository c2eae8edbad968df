//! The effects that a node has, as a trait: the real engine, or a fake that a test scripts.
//!
//! One method per verb of the engine, with the engine's own types; nothing is decided here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use oci_spec::runtime::LinuxResources;
use portreeve_engine::image::{Credential, ImageRef, ProgressSink, PullError};
use portreeve_engine::{
    ContainerConfig, ContainerId, ContainerStatus, Engine, EngineError, EngineEvent, ExecOutput, SandboxConfig,
    SandboxId, SandboxStats, SandboxStatus,
};
use portreeve_plan::UNTRUSTED;
use tokio::sync::{broadcast, watch};

/// An image as the planner and the translation need it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageFacts {
    /// Digest of its configuration.
    pub id: String,
    /// The user of its configuration.
    pub user: Option<String>,
    /// The reference as the store knows it.
    pub reference: String,
    /// Bytes of its layers.
    pub size_bytes: u64,
    /// After a pull: where it came from, when that was not the first host that was asked.
    pub way: Option<String>,
    /// Why no container may be made of it: the trust policy's rule and what it lacks.
    pub refused: Option<String>,
}

/// Why a pull failed, in the kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PullFailure {
    /// `ErrImagePull`, `InvalidImageName`, `SignatureValidationFailed`.
    pub reason: String,
    /// The error, whole.
    pub message: String,
    /// How long the registry asks to be left alone.
    pub retry_after: Option<Duration>,
    /// A setting of this agent is why, which the next one may not have.
    pub by_setting: bool,
}

/// What the loops need of what is below them.
pub trait Runtime: Send + Sync + 'static {
    /// See [`Engine::run_sandbox`].
    fn run_sandbox(&self, config: SandboxConfig) -> BoxFuture<'_, Result<SandboxId, EngineError>>;
    /// See [`Engine::stop_sandbox`].
    fn stop_sandbox<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), EngineError>>;
    /// See [`Engine::remove_sandbox`].
    fn remove_sandbox<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), EngineError>>;
    /// All sandboxes of the node.
    fn sandboxes(&self) -> Vec<SandboxStatus>;
    /// One sandbox.
    fn sandbox(&self, id: &SandboxId) -> Option<SandboxStatus>;
    /// See [`Engine::annotate_sandbox`].
    fn annotate_sandbox<'a>(
        &'a self,
        id: &'a SandboxId,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), EngineError>>;
    /// See [`Engine::create_container`].
    fn create_container<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        config: ContainerConfig,
    ) -> BoxFuture<'a, Result<ContainerId, EngineError>>;
    /// See [`Engine::start_container`].
    fn start_container<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), EngineError>>;
    /// See [`Engine::stop_container`].
    fn stop_container<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<(), EngineError>>;
    /// See [`Engine::remove_container`].
    fn remove_container<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), EngineError>>;
    /// See [`Engine::update_resources`].
    fn update_resources<'a>(
        &'a self,
        id: &'a ContainerId,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>>;
    /// See [`Engine::update_sandbox_resources`].
    fn update_sandbox_resources<'a>(
        &'a self,
        id: &'a SandboxId,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>>;
    /// See [`Engine::update_cgroup_resources`].
    fn update_cgroup_resources<'a>(
        &'a self,
        path: &'a str,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>>;
    /// All containers of the node.
    fn containers(&self) -> Vec<ContainerStatus>;
    /// One container.
    fn container(&self, id: &ContainerId) -> Option<ContainerStatus>;
    /// See [`Engine::exec_sync`].
    fn exec_sync<'a>(
        &'a self,
        id: &'a ContainerId,
        command: Vec<String>,
        timeout: Duration,
        output_limit: usize,
    ) -> BoxFuture<'a, Result<ExecOutput, EngineError>>;
    /// See [`Engine::sandbox_stats`].
    fn sandbox_stats<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<SandboxStats, EngineError>>;
    /// See [`Engine::lost_ground`].
    fn lost_ground(&self) -> watch::Receiver<Option<String>>;
    /// Everything that happens from now on.
    fn subscribe(&self) -> broadcast::Receiver<EngineEvent>;
    /// The image, if it is here, and whether it may be used; an error if the reference does not parse.
    ///
    /// # Errors
    /// Why the reference is none.
    fn lookup_image(&self, reference: &str) -> Result<Option<ImageFacts>, String>;
    /// Wakes after every change of what images are here.
    fn image_changes(&self) -> watch::Receiver<()>;
    /// See [`portreeve_engine::image::Store::fetched_bytes`].
    fn fetched_bytes(&self) -> u64;
    /// Pulls an image.
    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<Credential>,
        progress: Option<ProgressSink>,
    ) -> BoxFuture<'a, Result<ImageFacts, PullFailure>>;
    /// Bytes of layers that a pull of an image would fetch now.
    fn bytes_to_fetch<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<Credential>,
    ) -> BoxFuture<'a, Result<u64, PullFailure>>;
}

/// The real thing.
pub(crate) struct EngineRuntime(pub(crate) Arc<Engine>);

impl std::fmt::Debug for EngineRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EngineRuntime")
    }
}

fn facts(image: &portreeve_engine::image::Image, reference: &ImageRef) -> ImageFacts {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone());
    ImageFacts {
        id: image.id.to_string(),
        user: user.filter(|user| !user.is_empty()),
        reference: reference.to_string(),
        size_bytes: image.size_bytes,
        way: None,
        refused: None,
    }
}

/// A failed pull in the kubelet's words.
fn pull_reason(error: &PullError) -> &'static str {
    match error {
        PullError::Untrusted(_) => UNTRUSTED,
        _ => "ErrImagePull",
    }
}

impl Runtime for EngineRuntime {
    fn run_sandbox(&self, config: SandboxConfig) -> BoxFuture<'_, Result<SandboxId, EngineError>> {
        Box::pin(self.0.run_sandbox(config))
    }

    fn stop_sandbox<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.stop_sandbox(id))
    }

    fn remove_sandbox<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.remove_sandbox(id))
    }

    fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.0.sandboxes()
    }

    fn sandbox(&self, id: &SandboxId) -> Option<SandboxStatus> {
        self.0.sandbox(id)
    }

    fn annotate_sandbox<'a>(
        &'a self,
        id: &'a SandboxId,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.annotate_sandbox(id, labels, annotations))
    }

    fn create_container<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        config: ContainerConfig,
    ) -> BoxFuture<'a, Result<ContainerId, EngineError>> {
        Box::pin(self.0.create_container(sandbox, config))
    }

    fn start_container<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.start_container(id))
    }

    fn stop_container<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.stop_container(id, grace))
    }

    fn remove_container<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.remove_container(id))
    }

    fn update_resources<'a>(
        &'a self,
        id: &'a ContainerId,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.update_resources(id, resources))
    }

    fn update_sandbox_resources<'a>(
        &'a self,
        id: &'a SandboxId,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.update_sandbox_resources(id, resources))
    }

    fn update_cgroup_resources<'a>(
        &'a self,
        path: &'a str,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.0.update_cgroup_resources(path, resources))
    }

    fn containers(&self) -> Vec<ContainerStatus> {
        self.0.containers()
    }

    fn container(&self, id: &ContainerId) -> Option<ContainerStatus> {
        self.0.container(id)
    }

    fn exec_sync<'a>(
        &'a self,
        id: &'a ContainerId,
        command: Vec<String>,
        timeout: Duration,
        output_limit: usize,
    ) -> BoxFuture<'a, Result<ExecOutput, EngineError>> {
        Box::pin(self.0.exec_sync(id, command, timeout, output_limit))
    }

    fn sandbox_stats<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<SandboxStats, EngineError>> {
        Box::pin(self.0.sandbox_stats(id))
    }

    fn lost_ground(&self) -> watch::Receiver<Option<String>> {
        self.0.lost_ground()
    }

    fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.0.subscribe()
    }

    fn lookup_image(&self, reference: &str) -> Result<Option<ImageFacts>, String> {
        let parsed: ImageRef = reference.parse().map_err(|error| portreeve_engine::chain(&error))?;
        let Some(image) = self.0.images().lookup(&parsed) else { return Ok(None) };
        let refused = self.0.images().check_trust(&parsed, &image).err().map(|refusal| refusal.to_string());
        Ok(Some(ImageFacts { refused, ..facts(&image, &parsed) }))
    }

    fn image_changes(&self) -> watch::Receiver<()> {
        self.0.images().changes()
    }

    fn fetched_bytes(&self) -> u64 {
        self.0.images().fetched_bytes()
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<Credential>,
        progress: Option<ProgressSink>,
    ) -> BoxFuture<'a, Result<ImageFacts, PullFailure>> {
        Box::pin(async move {
            let parsed = parse(reference)?;
            let pulled = self.0.images().pull(&parsed, &credentials, progress).await;
            pulled.map(|image| facts(&image, &parsed)).map_err(|error| failure(&error))
        })
    }

    fn bytes_to_fetch<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<Credential>,
    ) -> BoxFuture<'a, Result<u64, PullFailure>> {
        Box::pin(async move {
            let bytes = self.0.images().bytes_to_fetch(&parse(reference)?, &credentials).await;
            bytes.map_err(|error| failure(&error))
        })
    }
}

fn parse(reference: &str) -> Result<ImageRef, PullFailure> {
    reference.parse::<ImageRef>().map_err(|error| PullFailure {
        reason: "InvalidImageName".to_owned(),
        message: portreeve_engine::chain(&error),
        retry_after: None,
        by_setting: false,
    })
}

fn failure(error: &PullError) -> PullFailure {
    PullFailure {
        reason: pull_reason(error).to_owned(),
        message: format!("{}; {}", portreeve_engine::chain(error), error.advice()),
        retry_after: error.retry_after(),
        by_setting: matches!(error, PullError::OutsideWindow { .. }),
    }
}
