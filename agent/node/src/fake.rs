//! A runtime that only pretends: for simulations of a whole node under paused time.
//!
//! It keeps sandboxes and containers in memory, which survive the "agent" (a [`crate::Node`] that
//! is aborted), fails when its script says so, can kill the agent before or after any effect, and
//! writes down whenever something was done that must never be done.

mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use portreeve_engine::{
    ContainerId, ContainerState, ContainerStatus, EngineError, EngineEvent, Exit, SandboxId, SandboxState,
    SandboxStatus,
};
use tokio::sync::{Notify, broadcast, watch};

use crate::clock::Clock;

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
    /// Images that the trust policy refuses until they are pulled, and why.
    pub refused: BTreeMap<String, String>,
    /// How long the registry asks to be left alone after a pull that failed.
    pub registry_pause: Option<Duration>,
    /// A pull fails because the agent is set to fetch at another time.
    pub outside_window: bool,
    /// How long a pull takes beside the time of a verb.
    pub pull_takes: Duration,
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
            refused: BTreeMap::new(),
            registry_pause: None,
            outside_window: false,
            pull_takes: Duration::ZERO,
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
    /// Each pull that was begun, and its logins.
    pulls_begun: Vec<(String, usize)>,
    violations: Vec<String>,
}

/// See the module.
pub struct FakeRuntime {
    world: Mutex<World>,
    clock: Clock,
    events: broadcast::Sender<EngineEvent>,
    lost_ground: watch::Sender<Option<String>>,
    images: watch::Sender<()>,
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
                pulls_begun: Vec::new(),
                violations: Vec::new(),
            }),
            clock,
            events: broadcast::channel(256).0,
            lost_ground: watch::channel(None).0,
            images: watch::channel(()).0,
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

    /// The trust policy changes: an image is refused until it is pulled.
    pub fn refuse(&self, image: &str, why: &str) {
        self.world().script.refused.insert(image.to_owned(), why.to_owned());
    }

    /// Whom the registry refuses, it asks not to come back before that.
    pub fn make_registry_busy(&self, pause: Duration) {
        self.world().script.registry_pause = Some(pause);
    }

    /// From now on pulls take so long.
    pub fn slow_pulls(&self, takes: Duration) {
        self.world().script.pull_takes = takes;
    }

    /// Each pull that was begun, whether it ended or not: the image, and the number of logins.
    pub fn pulls_begun(&self) -> Vec<(String, usize)> {
        self.world().pulls_begun.clone()
    }

    /// Whether the agent is set to fetch at another time.
    pub fn close_window(&self, closed: bool) {
        self.world().script.outside_window = closed;
    }

    /// An image comes by another way than a pull.
    pub fn load(&self, image: &str) {
        self.world().script.present.insert(image.to_owned());
        self.images.send_replace(());
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

    /// What is on disk of the sandboxes is moved away, or is back.
    pub fn lose_ground(&self, why: Option<&str>) {
        self.lost_ground.send_replace(why.map(str::to_owned));
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
