//! A runtime that only pretends: for simulations of a whole node under paused time.
//!
//! It keeps sandboxes and containers in memory, which survive the "agent" (a [`crate::Node`] that
//! is aborted), fails when its script says so, can kill the agent before or after any effect, and
//! writes down whenever something was done that must never be done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use oci_spec::runtime::LinuxResources;
use portreeve_engine::image::{Credential, ProgressSink};
use portreeve_engine::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, EngineError, EngineEvent, ExecOutput, Exit,
    NetworkNamespace, SandboxConfig, SandboxId, SandboxState, SandboxStats, SandboxStatus,
};
use tokio::sync::{Notify, broadcast};

use crate::clock::Clock;
use crate::runtime::{ImageFacts, PullFailure, Runtime};

/// A small deterministic generator of random numbers.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The dice of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound.max(1)
    }

    /// True in `percent` of all cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a container's program does, by the container's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Runs until it is stopped, and then leaves after this time.
    Serve {
        /// From the stop signal to its end.
        leaves_after: Duration,
    },
    /// Ends by itself.
    Exit {
        /// When.
        after: Duration,
        /// How.
        code: i32,
    },
}

/// What a [`FakeRuntime`] does beside what it is asked.
#[derive(Debug, Clone)]
pub struct Script {
    /// Percent of the verbs that fail.
    pub failures: u64,
    /// Longest time of a verb.
    pub latency: Duration,
    /// The agent is killed at this verb.
    pub kill_at: Option<u64>,
    /// What programs do, by image; others serve and leave at once.
    pub programs: BTreeMap<String, Program>,
    /// Images that are here.
    pub present: BTreeSet<String>,
    /// Images that can be pulled.
    pub in_registry: BTreeSet<String>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            failures: 0,
            latency: Duration::from_millis(20),
            kill_at: None,
            programs: BTreeMap::new(),
            present: BTreeSet::new(),
            in_registry: BTreeSet::new(),
        }
    }
}

struct World {
    script: Script,
    dice: Dice,
    sandboxes: BTreeMap<SandboxId, SandboxStatus>,
    containers: BTreeMap<ContainerId, ContainerStatus>,
    serial: u64,
    verbs: u64,
    /// Counts the agents; what an earlier one still asks is never answered.
    agent: u64,
    dead: bool,
    /// `cpu.shares` of the cgroups above pods.
    shares: BTreeMap<String, u64>,
    log: Vec<String>,
    violations: Vec<String>,
}

/// See the module.
pub struct FakeRuntime {
    world: Mutex<World>,
    clock: Clock,
    events: broadcast::Sender<EngineEvent>,
    killed: Notify,
    me: Weak<FakeRuntime>,
}

impl std::fmt::Debug for FakeRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeRuntime").finish_non_exhaustive()
    }
}

impl FakeRuntime {
    /// An empty world.
    pub fn new(seed: u64, script: Script, clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            world: Mutex::new(World {
                script,
                dice: Dice::new(seed),
                sandboxes: BTreeMap::new(),
                containers: BTreeMap::new(),
                serial: 0,
                verbs: 0,
                agent: 0,
                dead: false,
                shares: BTreeMap::new(),
                log: Vec::new(),
                violations: Vec::new(),
            }),
            clock,
            events: broadcast::channel(256).0,
            killed: Notify::new(),
            me: me.clone(),
        })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the script kills the agent.
    pub async fn agent_killed(&self) {
        self.killed.notified().await;
    }

    /// A new agent may ask; the script goes on with this next kill.
    pub fn next_agent(&self, kill_in: Option<u64>) {
        let mut world = self.world();
        world.agent += 1;
        world.dead = false;
        world.script.kill_at = kill_in.map(|verbs| world.verbs + verbs);
    }

    /// From now on nothing fails any more.
    pub fn heal(&self) {
        let mut world = self.world();
        world.script.failures = 0;
        world.script.kill_at = None;
    }

    /// Puts an image into the registry.
    pub fn publish(&self, image: &str) {
        self.world().script.in_registry.insert(image.to_owned());
    }

    /// How many verbs were asked for.
    pub fn verbs(&self) -> u64 {
        self.world().verbs
    }

    /// What was done, in order.
    pub fn log(&self) -> Vec<String> {
        self.world().log.clone()
    }

    /// `cpu.shares` of the cgroups above pods, by their paths.
    pub fn shares(&self) -> BTreeMap<String, u64> {
        self.world().shares.clone()
    }

    /// What was done that must never be done.
    pub fn violations(&self) -> Vec<String> {
        self.world().violations.clone()
    }

    /// A sandbox's shim dies, as if killed.
    pub fn lose_sandbox(&self, id: &SandboxId) {
        let now = self.clock.now();
        let mut world = self.world();
        if let Some(sandbox) = world.sandboxes.get_mut(id) {
            sandbox.state = SandboxState::NotReady { reason: "shim died".to_owned() };
            sandbox.ips.clear();
        }
        for container in world.containers.values_mut().filter(|container| container.sandbox == *id) {
            if container.state == ContainerState::Running {
                end(container, Exit { code: 137, signal: Some(9), oom_killed: false }, now);
            }
        }
        drop(world);
        self.tell(EngineEvent::SandboxLost { id: id.clone(), reason: "shim died".to_owned() });
    }

    /// The machine goes down: nothing runs any more, and no record of it is left.
    pub fn reboot(&self) {
        let mut world = self.world();
        world.sandboxes.clear();
        world.containers.clear();
    }

    /// A container ends.
    pub fn end_container(&self, id: &ContainerId, code: i32) {
        let now = self.clock.now();
        let mut world = self.world();
        let Some(container) = world.containers.get_mut(id).filter(|c| c.state == ContainerState::Running) else {
            return;
        };
        let exit = Exit { code, signal: (code > 128).then_some(code - 128), oom_killed: false };
        end(container, exit, now);
        let sandbox = container.sandbox.clone();
        drop(world);
        self.tell(EngineEvent::ContainerExited { sandbox, id: id.clone(), exit });
    }

    fn tell(&self, event: EngineEvent) {
        // Nobody may listen.
        let _ = self.events.send(event);
    }

    /// One verb: takes its time, may fail, may be the agent's last.
    async fn verb<T>(
        &self,
        name: String,
        effect: impl FnOnce(&mut World) -> Result<T, EngineError> + Send,
    ) -> Result<T, EngineError> {
        let (agent, latency) = {
            let mut world = self.world();
            let most = u64::try_from(world.script.latency.as_millis()).unwrap_or(0);
            (world.agent, Duration::from_millis(world.dice.below(most + 1)))
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let answer = {
            let mut world = self.world();
            if world.dead || world.agent != agent {
                None
            } else {
                world.verbs += 1;
                let last = world.script.kill_at == Some(world.verbs);
                let before = last && world.dice.chance(50);
                let percent = world.script.failures;
                let fails = world.dice.chance(percent);
                let answer = if before {
                    None
                } else if fails {
                    world.log.push(format!("{name}: failed as scripted"));
                    Some(Err(EngineError::Shim(format!("scripted failure of {name}"))))
                } else {
                    let result = effect(&mut world);
                    world.log.push(name);
                    Some(result)
                };
                if last {
                    world.log.push("agent killed".to_owned());
                    world.dead = true;
                    self.killed.notify_one();
                    None
                } else {
                    answer
                }
            }
        };
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

fn end(container: &mut ContainerStatus, exit: Exit, now: jiff::Timestamp) {
    container.state = ContainerState::Exited;
    container.finished_at = Some(now);
    container.exit = Some(exit);
    container.pid = None;
    container.reason = if exit.code == 0 { "Completed" } else { "Error" }.to_owned();
}

impl World {
    fn id(&mut self) -> String {
        self.serial += 1;
        format!("{:064x}", self.serial)
    }
}

fn invalid(message: String) -> EngineError {
    EngineError::Invalid { field: "fake".to_owned(), message }
}

impl Runtime for FakeRuntime {
    fn run_sandbox(&self, config: SandboxConfig) -> BoxFuture<'_, Result<SandboxId, EngineError>> {
        let now = self.clock.now();
        Box::pin(self.verb(format!("run sandbox {}", config.metadata.name), move |world| {
            let twin = world.sandboxes.values().any(|other| {
                other.state == SandboxState::Ready
                    && other.metadata.namespace == config.metadata.namespace
                    && other.metadata.name == config.metadata.name
            });
            if twin {
                let name = format!("{}/{}", config.metadata.namespace, config.metadata.name);
                world.violations.push(format!("second sandbox of {name}"));
            }
            let id: SandboxId = world.id().parse().map_err(|_| invalid("id".to_owned()))?;
            let last = u8::try_from(world.serial % 250 + 2).unwrap_or(2);
            let in_pod = config.namespaces.network == NetworkNamespace::Pod;
            let ips = if in_pod { vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))] } else { Vec::new() };
            let status = SandboxStatus {
                id: id.clone(),
                metadata: config.metadata,
                owner: config.owner,
                labels: config.labels,
                annotations: config.annotations,
                state: SandboxState::Ready,
                created_at: now,
                ips,
                warnings: Vec::new(),
                shim_pid: Some(1),
                namespaces: config.namespaces,
                cgroup_parent: config.cgroup_parent,
                log_directory: config.log_directory,
                directory: std::path::PathBuf::from("/nowhere"),
            };
            world.sandboxes.insert(id.clone(), status);
            Ok(id)
        }))
    }

    fn stop_sandbox<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), EngineError>> {
        let now = self.clock.now();
        Box::pin(self.verb("stop sandbox".to_owned(), move |world| {
            for container in world.containers.values_mut().filter(|container| container.sandbox == *id) {
                if container.state == ContainerState::Running {
                    end(container, Exit { code: 137, signal: Some(9), oom_killed: false }, now);
                }
            }
            if let Some(sandbox) = world.sandboxes.get_mut(id) {
                // As the engine promises, also one that was lost.
                sandbox.state = SandboxState::NotReady { reason: "stopped".to_owned() };
                sandbox.ips.clear();
            }
            Ok(())
        }))
    }

    fn remove_sandbox<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.verb("remove sandbox".to_owned(), move |world| {
            world.containers.retain(|_, container| container.sandbox != *id);
            world.sandboxes.remove(id);
            Ok(())
        }))
    }

    fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.world().sandboxes.values().cloned().collect()
    }

    fn sandbox(&self, id: &SandboxId) -> Option<SandboxStatus> {
        self.world().sandboxes.get(id).cloned()
    }

    fn annotate_sandbox<'a>(
        &'a self,
        id: &'a SandboxId,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.verb("annotate sandbox".to_owned(), move |world| {
            let sandbox = world.sandboxes.get_mut(id).ok_or_else(|| EngineError::UnknownSandbox(id.clone()))?;
            sandbox.labels = labels;
            sandbox.annotations = annotations;
            Ok(())
        }))
    }

    fn create_container<'a>(
        &'a self,
        sandbox: &'a SandboxId,
        config: ContainerConfig,
    ) -> BoxFuture<'a, Result<ContainerId, EngineError>> {
        let now = self.clock.now();
        let name = format!("create container {} {}", config.metadata.name, config.metadata.attempt);
        Box::pin(self.verb(name, move |world| {
            match world.sandboxes.get(sandbox).map(|sandbox| sandbox.state == SandboxState::Ready) {
                Some(true) => {}
                _ => return Err(EngineError::UnknownSandbox(sandbox.clone())),
            }
            if !world.script.present.contains(&config.image) {
                return Err(EngineError::ImageMissing { reference: config.image });
            }
            let twin =
                world.containers.values().any(|other| other.sandbox == *sandbox && other.metadata == config.metadata);
            if twin {
                let metadata = &config.metadata;
                world.violations.push(format!("attempt {} of {} made twice", metadata.attempt, metadata.name));
            }
            let id: ContainerId = world.id().parse().map_err(|_| invalid("id".to_owned()))?;
            let status = ContainerStatus {
                id: id.clone(),
                sandbox: sandbox.clone(),
                metadata: config.metadata,
                state: ContainerState::Created,
                created_at: now,
                started_at: None,
                finished_at: None,
                exit: None,
                reason: String::new(),
                message: String::new(),
                image: config.image,
                image_id: config.image_id.unwrap_or_default(),
                labels: config.labels,
                annotations: config.annotations,
                log_path: None,
                resources: config.resources,
                cgroup: String::new(),
                pid: None,
                user: (0, 0),
                stdin: config.stdin,
                tty: config.tty,
                mounts: config.mounts,
            };
            world.containers.insert(id.clone(), status);
            Ok(id)
        }))
    }

    fn start_container<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), EngineError>> {
        let now = self.clock.now();
        let me = self.me.clone();
        Box::pin(self.verb("start container".to_owned(), move |world| {
            let Some(container) = world.containers.get_mut(id) else {
                return Err(EngineError::UnknownContainer(id.clone()));
            };
            match container.state {
                ContainerState::Running => return Ok(()),
                ContainerState::Created => {}
                state => {
                    return Err(EngineError::WrongState { id: id.clone(), state, wanted: "created" });
                }
            }
            container.state = ContainerState::Running;
            container.started_at = Some(now);
            container.pid = Some(1);
            let (sandbox, name, image) =
                (container.sandbox.clone(), container.metadata.name.clone(), container.image.clone());
            let running = world
                .containers
                .values()
                .filter(|other| {
                    other.sandbox == sandbox && other.metadata.name == name && other.state == ContainerState::Running
                })
                .count();
            if running > 1 {
                world.violations.push(format!("{name} runs twice"));
            }
            if let Some(Program::Exit { after, code }) = world.script.programs.get(&image).copied() {
                let id = id.clone();
                // The world's own time goes on without an agent.
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    if let Some(me) = me.upgrade() {
                        me.end_container(&id, code);
                    }
                });
            }
            Ok(())
        }))
    }

    fn stop_container<'a>(&'a self, id: &'a ContainerId, grace: Duration) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(async move {
            let leaves = self
                .verb("stop container".to_owned(), |world| {
                    let running =
                        world.containers.get(id).filter(|container| container.state == ContainerState::Running);
                    Ok(running.map(|container| match world.script.programs.get(&container.image) {
                        Some(Program::Serve { leaves_after }) => *leaves_after,
                        _ => Duration::ZERO,
                    }))
                })
                .await?;
            let Some(leaves) = leaves else {
                return Ok(());
            };
            tokio::time::sleep(leaves.min(grace)).await;
            let code = if leaves > grace { 137 } else { 143 };
            self.end_container(id, code);
            Ok(())
        })
    }

    fn remove_container<'a>(&'a self, id: &'a ContainerId) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.verb("remove container".to_owned(), move |world| {
            if world.containers.get(id).is_some_and(|container| container.state == ContainerState::Running) {
                world.violations.push("a running container was removed".to_owned());
            }
            world.containers.remove(id);
            Ok(())
        }))
    }

    fn update_resources<'a>(
        &'a self,
        id: &'a ContainerId,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.verb("update resources".to_owned(), move |world| {
            let container = world.containers.get_mut(id).ok_or_else(|| EngineError::UnknownContainer(id.clone()))?;
            container.resources = resources.clone();
            Ok(())
        }))
    }

    fn update_sandbox_resources<'a>(
        &'a self,
        _id: &'a SandboxId,
        _resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        Box::pin(self.verb("update sandbox resources".to_owned(), |_| Ok(())))
    }

    fn update_cgroup_resources<'a>(
        &'a self,
        path: &'a str,
        resources: &'a LinuxResources,
    ) -> BoxFuture<'a, Result<(), EngineError>> {
        // No verb of a pod: it is neither counted nor fails.
        if let Some(shares) = resources.cpu().as_ref().and_then(oci_spec::runtime::LinuxCpu::shares) {
            self.world().shares.insert(path.to_owned(), shares);
        }
        Box::pin(async { Ok(()) })
    }

    fn containers(&self) -> Vec<ContainerStatus> {
        self.world().containers.values().cloned().collect()
    }

    fn container(&self, id: &ContainerId) -> Option<ContainerStatus> {
        self.world().containers.get(id).cloned()
    }

    fn exec_sync<'a>(
        &'a self,
        id: &'a ContainerId,
        command: Vec<String>,
        _timeout: Duration,
        _output_limit: usize,
    ) -> BoxFuture<'a, Result<ExecOutput, EngineError>> {
        Box::pin(self.verb(format!("exec {}", command.join(" ")), move |world| {
            let Some(container) = world.containers.get(id) else {
                return Err(EngineError::UnknownContainer(id.clone()));
            };
            if container.state != ContainerState::Running {
                return Err(EngineError::WrongState { id: id.clone(), state: container.state, wanted: "running" });
            }
            let exit_code = i32::from(command.first().is_some_and(|program| program == "false"));
            Ok(ExecOutput { exit_code, ..ExecOutput::default() })
        }))
    }

    fn sandbox_stats<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<SandboxStats, EngineError>> {
        Box::pin(async move { Err(EngineError::UnknownSandbox(id.clone())) })
    }

    fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.events.subscribe()
    }

    fn lookup_image(&self, reference: &str) -> Result<Option<ImageFacts>, String> {
        let present = self.world().script.present.contains(reference);
        Ok(present.then(|| ImageFacts {
            id: format!("sha256:{reference}"),
            user: None,
            reference: reference.to_owned(),
            size_bytes: 1,
        }))
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        _credentials: Vec<Credential>,
        _progress: Option<ProgressSink>,
    ) -> BoxFuture<'a, Result<ImageFacts, PullFailure>> {
        Box::pin(async move {
            let pulled = self
                .verb(format!("pull {reference}"), |world| {
                    if world.script.in_registry.contains(reference) {
                        world.script.present.insert(reference.to_owned());
                        Ok(())
                    } else {
                        Err(EngineError::ImageMissing { reference: reference.to_owned() })
                    }
                })
                .await;
            match pulled {
                Ok(()) => Ok(ImageFacts {
                    id: format!("sha256:{reference}"),
                    user: None,
                    reference: reference.to_owned(),
                    size_bytes: 1,
                }),
                Err(error) => Err(PullFailure { reason: "ErrImagePull".to_owned(), message: error.to_string() }),
            }
        })
    }
}
