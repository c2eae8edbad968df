//! The engine: the table of what exists, and the verbs that change it.
//!
//! Verbs that change something run to their end even when whoever called them goes away: they are tasks of the engine.

mod accounts;
mod amend;
mod checkpoint;
mod container;
mod drift;
mod ending;
mod erase;
mod exec;
mod files;
mod ground;
mod live;
mod oom;
mod plugins;
mod ports;
mod prepare;
mod quiet;
mod recover;
mod sandbox;
mod spawn;
mod sysctls;
mod table;
mod terminal;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::Timestamp;
use oci_spec::runtime::LinuxResources;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, watch};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use container::limits_huge_pages;
pub(crate) use exec::ExecKill;
pub use prepare::stop_signal;
pub use terminal::Resizer;

use crate::{
    AttachRequest, AttachSession, ContainerConfig, ContainerId, ContainerStats, ContainerStatus, EngineConfig,
    EngineError, EngineEvent, ExecOutput, ExecRequest, ExecSession, PodEvent, SandboxConfig, SandboxCount, SandboxId,
    SandboxStats, SandboxStatus,
};
use accounts::AccountCache;
use drift::Upkeep;
use spawn::Executable;
use table::{Container, Sandbox, Table};

/// A listener that falls so far behind misses events.
const EVENTS: usize = 1024;

/// Sandboxes and containers of one node. Cheap to share; all verbs may be called at once from many tasks, those on one
/// sandbox or container take turns.
#[derive(Debug)]
pub struct Engine {
    core: Arc<Core>,
    upkeep: Upkeep,
    _quiet: AbortOnDropHandle<()>,
    ground: AbortOnDropHandle<()>,
    lost: watch::Receiver<Option<String>>,
}

/// What the engine's tasks share.
#[derive(Debug)]
struct Core {
    config: EngineConfig,
    executable: Executable,
    images: portreeve_image::Store,
    network: Arc<portreeve_network::Network>,
    plugins: portreeve_network::cni::Cni,
    standing: plugins::Standing,
    table: RwLock<Table>,
    events: broadcast::Sender<EngineEvent>,
    /// The same with what the pods were then, for those who want that.
    pod_events: broadcast::Sender<Arc<PodEvent>>,
    /// Held from a change of the table until it is told: no event overtakes another, and none shows what came after it.
    /// Taken before the table and the facts of anything.
    order: Mutex<()>,
    /// The parents of pods that are being made, and of how many each: a cgroup in which one begins is not removed. Held
    /// while one is removed.
    making: tokio::sync::Mutex<BTreeMap<String, usize>>,
    tasks: TaskTracker,
    accounts: AccountCache,
    /// Capabilities that this process can hand on.
    capabilities: u64,
    /// Loads the profile of containers that name none.
    apparmor: crate::apparmor::Loader,
    /// Labels pods, and holds their levels.
    selinux: crate::selinux::Selinux,
}

impl Engine {
    /// Opens the stores, finds every shim and container again and cleans what has no owner.
    ///
    /// # Errors
    /// [`EngineError::NewerState`] when a newer program wrote the state: nothing was touched then.
    /// Others when directories, network or images cannot be used.
    pub async fn open(config: EngineConfig) -> Result<Arc<Self>, EngineError> {
        let core = recover::open(config).await?;
        let unfinished = Arc::clone(&core);
        blocking(move || unfinished.clear_checkpoints()).await?;
        // Plugins take their time, and nobody has to wait for what is gone.
        let network = Arc::clone(&core);
        core.tasks.spawn(async move {
            Arc::clone(&network).collect_by_plugins().await;
            network.check_by_plugins().await;
        });
        let upkeep = Upkeep::start(&core)?;
        let quiet = AbortOnDropHandle::new(tokio::spawn(quiet::give_back(core.events.subscribe())));
        let (sender, lost) = watch::channel(None);
        let state = vec![core.sandboxes_directory(), core.config.network.state_dir.clone()];
        let ground = AbortOnDropHandle::new(tokio::spawn(ground::guard(state, sender)));
        Ok(Arc::new(Self { core, upkeep, _quiet: quiet, ground, lost }))
    }

    /// The images.
    pub fn images(&self) -> &portreeve_image::Store {
        &self.core.images
    }

    /// The network.
    pub fn network(&self) -> &Arc<portreeve_network::Network> {
        &self.core.network
    }

    /// What it was opened with.
    pub fn config(&self) -> &EngineConfig {
        &self.core.config
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.core.events.subscribe()
    }

    /// Everything that happens from now on, in its order, each with the pod as it was then. A listener that falls more
    /// than 1024 events behind is told how many it has missed.
    pub fn subscribe_with_pods(&self) -> broadcast::Receiver<Arc<PodEvent>> {
        self.core.pod_events.subscribe()
    }

    /// Whether a kubelet's pods can have a network now. Where plugins say so themselves, it is what they said last: they are
    /// asked again, for the next answer, when that is some seconds old. Of a network that has never been asked, the answer
    /// is waited for, at most [`portreeve_network::cni::STATUS_LIMIT`].
    ///
    /// # Errors
    /// Why not.
    pub async fn kubelet_network(&self) -> Result<(), Arc<EngineError>> {
        self.core.kubelet_network().await
    }

    /// Why what is on disk of the sandboxes or the network is not where it should be, as long as it is not: a sentence
    /// that says what to do.
    pub fn lost_ground(&self) -> watch::Receiver<Option<String>> {
        self.lost.clone()
    }

    /// Makes a sandbox and returns when containers can be created in it.
    ///
    /// # Errors
    /// Nothing is left over then.
    pub async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, EngineError> {
        self.finish(|core| async move { core.run_sandbox(config).await }).await
    }

    /// Kills what runs in a sandbox and releases its network; its containers' records stay. Absent is `Ok`.
    ///
    /// Then it is `NotReady` with reason `stopped`, also one that was lost before.
    ///
    /// # Errors
    /// [`EngineError::Teardown`]: what could be stopped is; call again.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let id = id.clone();
        self.finish(|core| async move { core.stop_sandbox(&id).await }).await
    }

    /// Stops a sandbox and removes it with its containers; logs stay. Absent is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Teardown`]: what could be removed is; call again.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let id = id.clone();
        self.finish(|core| async move { core.remove_sandbox(&id).await }).await
    }

    /// All sandboxes, oldest first.
    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.sandboxes_where(|_| true)
    }

    /// Those that were asked to be what is wanted, in the order in which they were made. No other is looked at longer.
    pub fn sandboxes_where(&self, wanted: impl Fn(&SandboxConfig) -> bool) -> Vec<SandboxStatus> {
        let table = self.core.table();
        let found = table.sandboxes.values().filter(|one| wanted(&one.facts().record.config));
        let mut all: Vec<_> = found.map(|one| one.status()).collect();
        all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        all
    }

    /// One sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> Option<SandboxStatus> {
        self.core.table().sandboxes.get(id).map(|one| one.status())
    }

    /// Sets the pod-level limits.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when the kernel refuses a value.
    pub async fn update_sandbox_resources(
        &self,
        id: &SandboxId,
        resources: &LinuxResources,
    ) -> Result<(), EngineError> {
        let (id, resources) = (id.clone(), resources.clone());
        self.finish(|core| async move { core.update_sandbox_resources(&id, resources).await }).await
    }

    /// Sets what a cgroup above pods enforces, and makes it if it is absent; it must be below the engine's root.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for any other cgroup, [`EngineError::Cgroup`] with nothing half done.
    pub async fn update_cgroup_resources(&self, path: &str, resources: &LinuxResources) -> Result<(), EngineError> {
        let (path, resources) = (path.to_owned(), resources.clone());
        self.finish(|core| async move { core.update_cgroup_resources(path, resources).await }).await
    }

    /// Replaces a sandbox's labels and annotations; nothing that runs notices.
    ///
    /// # Errors
    /// [`EngineError::UnknownSandbox`], or [`EngineError::File`] when it could not be recorded.
    pub async fn annotate_sandbox(
        &self,
        id: &SandboxId,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        let id = id.clone();
        self.finish(|core| async move { core.annotate_sandbox(&id, labels, annotations).await }).await
    }

    /// Sets a container up, up to but not including its program.
    ///
    /// # Errors
    /// Nothing is left over then.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, EngineError> {
        let sandbox = sandbox.clone();
        self.finish(|core| async move { core.create_container(&sandbox, config).await }).await
    }

    /// Runs a created container's program. Starting the running is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Start`] when the program cannot be run: the container is then `Exited` with reason `StartError`.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        let id = id.clone();
        self.finish(|core| async move { core.start_container(&id).await }).await
    }

    /// Sends the stop signal, waits for at most `grace`, then kills everything in the container's cgroup. Returns when
    /// its first process is gone. Stop of the stopped, of the created and of the absent is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Shim`] when it could not be signalled or killed.
    ///
    /// # Cancel safety
    /// A stop that is dropped has sent its signal and kills nobody any more.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), EngineError> {
        self.core.stop_container(id, grace).await
    }

    /// Kills a container if it still runs and removes everything of it but its log. Absent is `Ok`.
    ///
    /// # Errors
    /// [`EngineError::Teardown`]: what could be removed is; call again.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        let id = id.clone();
        self.finish(|core| async move { core.remove_container(&id).await }).await
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// [`EngineError::WrongState`] when it does not run.
    pub async fn signal_container(&self, id: &ContainerId, signal: i32) -> Result<(), EngineError> {
        self.core.signal_container(id, signal).await
    }

    /// Changes the limits of a container, at once; what `resources` does not name stays.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when the kernel refuses a value.
    pub async fn update_resources(&self, id: &ContainerId, resources: &LinuxResources) -> Result<(), EngineError> {
        let (id, resources) = (id.clone(), resources.clone());
        self.finish(|core| async move { core.update_resources(&id, resources).await }).await
    }

    /// Changes how soon a container's processes are killed when memory runs out: of all that it has now, and of those that
    /// come into it later. Where the agent may not lower a process' value, that process keeps what it has.
    ///
    /// Source: proc_pid_oom_score_adj(5); CRI `LinuxContainerResources.oom_score_adj`.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] beyond ±1000, [`EngineError::WrongState`] when it has ended.
    pub async fn update_oom_score_adj(&self, id: &ContainerId, score: i32) -> Result<(), EngineError> {
        let id = id.clone();
        self.finish(|core| async move { core.update_oom_score_adj(&id, score).await }).await
    }

    /// All containers, oldest first.
    pub fn containers(&self) -> Vec<ContainerStatus> {
        self.containers_where(|_, _| true)
    }

    /// Those whose sandbox, by its id and what it was asked to be, is wanted, in the order in which they were made. No
    /// other is looked at longer.
    pub fn containers_where(&self, wanted: impl Fn(&SandboxId, &SandboxConfig) -> bool) -> Vec<ContainerStatus> {
        let table = self.core.table();
        // A container never is in the table without its sandbox.
        let of = |one: &Container| table.sandboxes.get(&one.sandbox);
        let found = table
            .containers
            .values()
            .filter(|one| of(one).is_some_and(|sandbox| wanted(&sandbox.id, &sandbox.facts().record.config)));
        let mut all: Vec<_> = found.map(|one| Core::status_of(&table, one)).collect();
        all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        all
    }

    /// One container.
    pub fn container(&self, id: &ContainerId) -> Option<ContainerStatus> {
        let table = self.core.table();
        table.containers.get(id).map(|one| Core::status_of(&table, one))
    }

    /// Writes a running container's processes, files and log to an archive, mode 0600, at an absolute path. It goes on.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`], as without CRIU; [`EngineError::WrongState`]; [`EngineError::Invalid`] for a path that
    /// is none.
    ///
    /// # Cancel safety
    /// What was begun goes on to its end.
    pub async fn checkpoint_container(&self, id: &ContainerId, location: PathBuf) -> Result<(), EngineError> {
        Arc::clone(&self.core).checkpoint_container(id, location).await
    }

    /// Waits until a container has ended, and returns what it is then; `None` when it is gone.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_container(&self, id: &ContainerId) -> Option<ContainerStatus> {
        let container = self.core.table().containers.get(id).cloned()?;
        container.ended().await;
        self.container(id)
    }

    /// Opens a container's log file anew (after somebody renamed it).
    ///
    /// # Errors
    /// [`EngineError::Shim`] when it cannot be opened.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.core.reopen_log(id).await
    }

    /// Runs a command in a running container.
    ///
    /// # Errors
    /// [`EngineError::Exec`] when its program cannot be run.
    pub async fn exec(&self, id: &ContainerId, request: ExecRequest) -> Result<ExecSession, EngineError> {
        self.core.exec(id, request).await
    }

    /// Runs a command in a running container and collects its output, at most `output_limit` bytes of each stream (and
    /// never more than 16 MiB). `timeout` zero: none.
    ///
    /// # Errors
    /// [`EngineError::ExecTimeout`]: it and what hangs on it were killed.
    ///
    /// # Cancel safety
    /// When it is dropped, the command is killed.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
        output_limit: usize,
    ) -> Result<ExecOutput, EngineError> {
        self.core.exec_sync(id, command, timeout, output_limit).await
    }

    /// Connects to a running container's own streams.
    ///
    /// # Errors
    /// [`EngineError::WrongState`] when it does not run.
    pub async fn attach(&self, id: &ContainerId, request: AttachRequest) -> Result<AttachSession, EngineError> {
        self.core.attach(id, request).await
    }

    /// Connects to a port of the pod's own loopback address.
    ///
    /// # Errors
    /// [`EngineError::Forward`] when nobody listens.
    pub async fn forward(&self, id: &SandboxId, port: u16) -> Result<TcpStream, EngineError> {
        self.core.forward(id, port).await
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when its cgroup is gone.
    pub async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, EngineError> {
        self.core.stats(id).await
    }

    /// What a pod uses.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when its cgroup is gone.
    pub async fn sandbox_stats(&self, id: &SandboxId) -> Result<SandboxStats, EngineError> {
        self.core.sandbox_stats(id).await
    }

    /// Everything that is counted of a pod, for metrics. Reads some fifty files for each cgroup, and what each process of
    /// its containers has open.
    ///
    /// # Errors
    /// [`EngineError::Cgroup`] when its cgroup is gone.
    pub async fn count_sandbox(&self, id: &SandboxId) -> Result<SandboxCount, EngineError> {
        self.core.count_sandbox(id).await
    }

    /// Stops and removes every sandbox, whoever owns it, and takes away bridge, rules and cgroups: nothing of this
    /// engine is left in the kernel. What is on disk stays.
    ///
    /// # Errors
    /// What could not be removed; the rest is, and calling again goes on.
    pub async fn erase(&self) -> Result<(), EngineError> {
        self.ground.abort();
        self.upkeep.end().await;
        self.finish(|core| async move { core.erase().await }).await
    }

    /// Finishes what is under way and lets go of every shim; containers go on.
    pub async fn shutdown(&self) {
        self.ground.abort();
        self.upkeep.end().await;
        self.core.tasks.close();
        self.core.tasks.wait().await;
        let sandboxes: Vec<_> = self.core.table().sandboxes.values().cloned().collect();
        for sandbox in sandboxes {
            sandbox.facts().client = None;
        }
    }

    /// Runs a verb as a task of the engine and waits for it.
    async fn finish<T, F>(&self, verb: impl FnOnce(Arc<Core>) -> F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        match self.core.tasks.spawn(verb(Arc::clone(&self.core))).await {
            Ok(answer) => answer,
            Err(error) => Err(EngineError::Shim(format!("a verb of the engine ended early: {error}"))),
        }
    }
}

impl Core {
    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to change what exists and to tell of it, until it is dropped. Nothing that waits or blocks is done by
    /// who has it.
    fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a change that has just been made; `_order` was held over it.
    fn tell(&self, _order: &MutexGuard<'_, ()>, event: EngineEvent) {
        let pod = self.pod(event.sandbox());
        self.tell_of(pod, event);
    }

    fn tell_of(&self, pod: Option<(SandboxStatus, Vec<ContainerStatus>)>, event: EngineEvent) {
        if let Some((sandbox, containers)) = pod {
            let told = PodEvent { event: event.clone(), at: Timestamp::now(), sandbox, containers };
            let _nobody_listens = self.pod_events.send(Arc::new(told));
        }
        let _nobody_listens = self.events.send(event);
    }

    /// A sandbox and its containers as they are, while somebody wants to hear of pods; nothing otherwise.
    fn pod(&self, id: &SandboxId) -> Option<(SandboxStatus, Vec<ContainerStatus>)> {
        if self.pod_events.receiver_count() == 0 {
            return None;
        }
        let table = self.table();
        let sandbox = table.sandboxes.get(id)?.status();
        let of_it = table.containers.values().filter(|one| one.sandbox == *id);
        let mut containers: Vec<_> = of_it.map(|one| Self::status_of(&table, one)).collect();
        containers.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Some((sandbox, containers))
    }

    fn find_sandbox(&self, id: &SandboxId) -> Result<Arc<Sandbox>, EngineError> {
        let found = self.table().sandboxes.get(id).cloned();
        found.ok_or_else(|| EngineError::UnknownSandbox(id.clone()))
    }

    fn find_container(&self, id: &ContainerId) -> Result<Arc<Container>, EngineError> {
        let found = self.table().containers.get(id).cloned();
        found.ok_or_else(|| EngineError::UnknownContainer(id.clone()))
    }

    fn status_of(table: &Table, container: &Container) -> ContainerStatus {
        let directory =
            table.sandboxes.get(&container.sandbox).map(|one| one.facts().record.config.log_directory.clone());
        container.status(directory.as_deref())
    }

    /// The containers of a sandbox.
    fn containers_of(&self, id: &SandboxId) -> Vec<Arc<Container>> {
        self.table().containers.values().filter(|one| one.sandbox == *id).cloned().collect()
    }

    fn sandboxes_directory(&self) -> PathBuf {
        self.config.run.join("sandboxes")
    }

    /// Where the files lie that a sandbox's containers see. They may write to them, as much as they like: not in the run
    /// directory, which is memory of the whole machine.
    fn files_directory(&self, id: &SandboxId) -> PathBuf {
        self.all_files_directory().join(id.as_str())
    }

    fn all_files_directory(&self) -> PathBuf {
        self.config.root.join("sandboxes")
    }
}

/// Runs something that blocks, away from the executor.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(EngineError::Shim(format!("blocking work ended early: {error}"))),
    }
}

fn cgroup_error(action: &'static str, path: &str) -> impl FnOnce(portreeve_oci::cgroup::CgroupError) -> EngineError {
    let path = path.to_owned();
    move |source| EngineError::Cgroup { action, path, source: Box::new(source) }
}
