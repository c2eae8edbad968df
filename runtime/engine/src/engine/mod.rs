//! The engine: the table of what exists, and the verbs that change it.

use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use tokio::net::TcpStream;
use tokio::sync::broadcast;

use crate::{
    AttachRequest, AttachSession, ContainerConfig, ContainerId, ContainerStats, ContainerStatus,
    EngineConfig, EngineError, EngineEvent, ExecOutput, ExecRequest, ExecSession, SandboxConfig,
    SandboxId, SandboxStats, SandboxStatus, TerminalSize,
};

/// Sandboxes and containers of one node. Cheap to share; all verbs may be called at once from many tasks, those on one
/// sandbox or container take turns.
#[derive(Debug)]
pub struct Engine {}

/// Gives a terminal a new size.
#[derive(Debug, Clone)]
pub struct Resizer {}
#[derive(Debug, Clone)]
pub(crate) struct ExecKill {}
impl ExecKill {
    pub(crate) async fn kill(&self) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
}
impl Resizer {
    /// Sets columns and rows.
    ///
    /// # Errors
    /// [`EngineError::Resize`] when the kernel refuses.
    pub async fn resize(&self, _size: TerminalSize) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
}

#[allow(clippy::unused_async, reason = "signatures first")]
impl Engine {
    /// Opens the stores, finds every shim and container again and cleans what has no owner.
    ///
    /// # Errors
    /// [`EngineError::NewerState`] when a newer program wrote the state: nothing was touched then.
    /// Others when directories, network or images cannot be used.
    pub async fn open(_config: EngineConfig) -> Result<Arc<Self>, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// The images.
    pub fn images(&self) -> &portreeve_image::Store {
        unreachable!()
    }
    /// The network.
    pub fn network(&self) -> &Arc<portreeve_network::Network> {
        unreachable!()
    }
    /// What it was opened with.
    pub fn config(&self) -> &EngineConfig {
        unreachable!()
    }
    /// Everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        unreachable!()
    }
    /// Makes a sandbox and returns when containers can be created in it.
    ///
    /// # Errors
    /// Nothing is left over then.
    pub async fn run_sandbox(&self, _config: SandboxConfig) -> Result<SandboxId, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Kills what runs in a sandbox and releases its network; its containers' records stay. Absent is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Teardown`]: what could be stopped is; call again.
    pub async fn stop_sandbox(&self, _id: &SandboxId) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Stops a sandbox and removes it with its containers; logs stay. Absent is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Teardown`]: what could be removed is; call again.
    pub async fn remove_sandbox(&self, _id: &SandboxId) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// All sandboxes, oldest first.
    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        unreachable!()
    }
    /// One sandbox.
    pub fn sandbox(&self, _id: &SandboxId) -> Option<SandboxStatus> {
        unreachable!()
    }
    /// Sets the pod-level limits.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when the kernel refuses a value.
    pub async fn update_sandbox_resources(
        &self,
        _id: &SandboxId,
        _resources: &LinuxResources,
    ) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Replaces a sandbox's labels and annotations; nothing that runs notices.
    ///
    /// # Errors
    /// [`EngineError::UnknownSandbox`], or [`EngineError::File`] when it could not be recorded.
    pub async fn annotate_sandbox(
        &self,
        _id: &SandboxId,
        _labels: std::collections::BTreeMap<String, String>,
        _annotations: std::collections::BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Sets a container up, up to but not including its program.
    ///
    /// # Errors
    /// Nothing is left over then.
    pub async fn create_container(
        &self,
        _sandbox: &SandboxId,
        _config: ContainerConfig,
    ) -> Result<ContainerId, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Runs a created container's program. Starting the running is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Start`] when the program cannot be run: the container is then `Exited` with reason `StartError`.
    pub async fn start_container(&self, _id: &ContainerId) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Sends the stop signal, waits for at most `grace`, then kills everything in the container's cgroup. Returns when
    /// its first process is gone. Stop of the stopped, of the created and of the absent is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Shim`] when it could not be signalled or killed.
    pub async fn stop_container(
        &self,
        _id: &ContainerId,
        _grace: Duration,
    ) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Kills a container if it still runs and removes everything of it but its log. Absent is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Teardown`]: what could be removed is; call again.
    pub async fn remove_container(&self, _id: &ContainerId) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// [`EngineError::WrongState`] when it does not run.
    pub async fn signal_container(
        &self,
        _id: &ContainerId,
        _signal: i32,
    ) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Changes the limits of a container, at once.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when the kernel refuses a value.
    pub async fn update_resources(
        &self,
        _id: &ContainerId,
        _resources: &LinuxResources,
    ) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// All containers, oldest first.
    pub fn containers(&self) -> Vec<ContainerStatus> {
        unreachable!()
    }
    /// One container.
    pub fn container(&self, _id: &ContainerId) -> Option<ContainerStatus> {
        unreachable!()
    }
    /// Waits until a container is no longer created or running, and returns what it is then; `None` when it is gone.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_container(&self, _id: &ContainerId) -> Option<ContainerStatus> {
        None
    }
    /// Opens a container's log file anew (after somebody renamed it).
    ///
    /// # Errors
    /// [`EngineError::Shim`] when it cannot be opened.
    pub async fn reopen_log(&self, _id: &ContainerId) -> Result<(), EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Runs a command in a running container.
    ///
    /// # Errors
    /// [`EngineError::Exec`] when its program cannot be run.
    pub async fn exec(
        &self,
        _id: &ContainerId,
        _request: ExecRequest,
    ) -> Result<ExecSession, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Runs a command in a running container and collects its output, at most `output_limit` bytes of each stream (and
    /// never more than 16 MiB). `timeout` zero: none.
    ///
    /// # Errors
    /// [`EngineError::ExecTimeout`]: it and what hangs on it were killed.
    pub async fn exec_sync(
        &self,
        _id: &ContainerId,
        _command: Vec<String>,
        _timeout: Duration,
        _output_limit: usize,
    ) -> Result<ExecOutput, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Connects to a running container's own streams.
    ///
    /// # Errors
    /// [`EngineError::WrongState`] when it does not run.
    pub async fn attach(
        &self,
        _id: &ContainerId,
        _request: AttachRequest,
    ) -> Result<AttachSession, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Connects to a port of the pod's own loopback address.
    ///
    /// # Errors
    /// [`EngineError::Forward`] when nobody listens.
    pub async fn forward(&self, _id: &SandboxId, _port: u16) -> Result<TcpStream, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// What a container uses.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when its cgroup is gone.
    pub async fn stats(&self, _id: &ContainerId) -> Result<ContainerStats, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// What a pod uses.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when its cgroup is gone.
    pub async fn sandbox_stats(&self, _id: &SandboxId) -> Result<SandboxStats, EngineError> {
        Err(EngineError::ShimLost)
    }
    /// Lets go of every shim; containers go on.
    pub async fn shutdown(&self) {}
}
