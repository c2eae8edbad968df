//! Making, starting, stopping and removing containers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use oci_spec::runtime::LinuxResources;
use portreeve_oci::cgroup::Cgroup;
use serde_json::Value;

use super::ending::remove_tree;
use super::sandbox::PATIENCE;
use super::table::{Container, ContainerFacts, Sandbox};
use super::{Core, blocking, cgroup_error, prepare};
use crate::client::Client;
use crate::container::{ContainerConfig, ContainerState};
use crate::error::all;
use crate::handler::Runtime;
use crate::protocol::{Answer, Call, ExitRecord};
use crate::record::{self, ContainerPhase};
use crate::{ContainerId, EngineError, EngineEvent, Exit, SandboxId};

/// How long the processes of a killed cgroup may take to go.
const KILLED: Duration = Duration::from_secs(10);
/// The field of a specification that makes such a group.
const RDT: &[u8] = b"\"intelRdt\"";

impl Core {
    pub(super) async fn create_container(
        self: Arc<Self>,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, EngineError> {
        let sandbox = self.find_sandbox(sandbox)?;
        let _turn = sandbox.turn.read().await;
        let client = sandbox.ready()?;
        let id = ContainerId::random().map_err(EngineError::file("reading", Path::new("/dev/urandom")))?;
        let directory = sandbox.directory.join("containers").join(id.as_str());
        match self.make_container(&sandbox, &client, &id, &directory, config).await {
            Ok(facts) => {
                let container = Arc::new(Container::new(directory, facts));
                let order = self.order();
                self.table_mut().containers.insert(id.clone(), container);
                self.tell(&order, EngineEvent::ContainerCreated { sandbox: sandbox.id.clone(), id: id.clone() });
                Ok(id)
            }
            Err(error) => {
                let cgroup = container_cgroup(sandbox.facts().record.containers_cgroup(), &id);
                if let Err(leftover) = self.clear_container(Some(&client), &id, &directory, &cgroup).await {
                    tracing::debug!(container_id = %id, error = %crate::error::chain(&leftover), "half-made container not cleared");
                }
                Err(error)
            }
        }
    }

    async fn make_container(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        client: &Client,
        id: &ContainerId,
        directory: &Path,
        config: ContainerConfig,
    ) -> Result<ContainerFacts, EngineError> {
        let (core, place, name, home) = (Arc::clone(self), Arc::clone(sandbox), id.clone(), directory.to_owned());
        let mut record = blocking(move || prepare::prepare(&core, &place, &name, &home, config)).await?;
        let call = record.call.clone().ok_or_else(|| EngineError::Shim("nothing was prepared".to_owned()))?;
        let pid = match client.ask(Call::Create(call)).await? {
            (Answer::Created { pid, warnings }, _) => {
                for warning in warnings {
                    tracing::debug!(container_id = %id, warning, "container created without something");
                }
                pid
            }
            _ => return Err(EngineError::Shim("the shim gave no answer to a creation".to_owned())),
        };
        record.phase = ContainerPhase::Made;
        record::write(&directory.join("container.json"), &record)?;
        Ok(ContainerFacts { record, pid: Some(pid), started_at: None, exit: None, removed: false })
    }

    pub(super) async fn start_container(self: Arc<Self>, id: &ContainerId) -> Result<(), EngineError> {
        let container = self.find_container(id)?;
        let _turn = container.turn.lock().await;
        match container.state() {
            ContainerState::Running => return Ok(()),
            ContainerState::Created => {}
            state => return Err(EngineError::WrongState { id: id.clone(), state, wanted: "created" }),
        }
        let client = self.find_sandbox(&container.sandbox)?.ready()?;
        match client.ask(Call::Start { container: id.to_string() }).await {
            Ok((Answer::Started { started_at }, _)) => {
                self.container_started(&container, started_at);
                Ok(())
            }
            Ok(_) => Err(EngineError::Shim("the shim gave no answer to a start".to_owned())),
            Err(EngineError::Exec { message, code }) => {
                // The exit has been recorded and announced before this answer.
                Err(EngineError::Start { message, code })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), EngineError> {
        let Ok(container) = self.find_container(id) else { return Ok(()) };
        if container.state() != ContainerState::Running {
            return Ok(());
        }
        let signal = container.facts().record.stop_signal;
        if !grace.is_zero() {
            match self.kill(&container, signal, false).await {
                Ok(()) if tokio::time::timeout(grace, container.ended()).await.is_ok() => return Ok(()),
                Ok(()) => {}
                // A security module may keep signals away, and what never heard of its end will not prepare for it.
                Err(error) => {
                    let error = crate::error::chain(&error);
                    tracing::warn!(container_id = %id, error, "killed at once: the signal to stop did not reach it");
                }
            }
        }
        self.kill_and_wait(&container).await
    }

    async fn kill_and_wait(&self, container: &Container) -> Result<(), EngineError> {
        self.kill(container, nix::libc::SIGKILL, true).await?;
        match tokio::time::timeout(KILLED, container.ended()).await {
            Ok(()) => Ok(()),
            Err(_) => {
                Err(EngineError::Shim(format!("container {} did not end {KILLED:?} after it was killed", container.id)))
            }
        }
    }

    /// Through the shim, which is the parent. A shim that is gone or going takes the container with it.
    async fn kill(&self, container: &Container, signal: i32, all: bool) -> Result<(), EngineError> {
        let Ok(client) = self.find_sandbox(&container.sandbox).and_then(|sandbox| sandbox.ready()) else {
            return Ok(());
        };
        match client.ask(Call::Kill { container: container.id.to_string(), signal, all }).await {
            Ok(_) | Err(EngineError::ShimLost | EngineError::ShimSilent { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn signal_container(&self, id: &ContainerId, signal: i32) -> Result<(), EngineError> {
        let container = self.find_container(id)?;
        match container.state() {
            ContainerState::Running => self.kill(&container, signal, false).await,
            state => Err(EngineError::WrongState { id: id.clone(), state, wanted: "running" }),
        }
    }

    pub(super) async fn remove_container(self: Arc<Self>, id: &ContainerId) -> Result<(), EngineError> {
        let Ok(container) = self.find_container(id) else { return Ok(()) };
        let sandbox = self.find_sandbox(&container.sandbox)?;
        let _turn = sandbox.turn.read().await;
        self.remove_one(&container).await
    }

    /// Removes a container; whoever calls holds its sandbox.
    pub(super) async fn remove_one(self: &Arc<Self>, container: &Container) -> Result<(), EngineError> {
        let _turn = container.turn.lock().await;
        if container.facts().removed {
            return Ok(());
        }
        if container.state() == ContainerState::Running {
            self.kill_and_wait(container).await?;
        }
        let client = self.find_sandbox(&container.sandbox).ok().and_then(|sandbox| sandbox.facts().client.clone());
        let cgroup = container.facts().record.cgroup.clone();
        self.clear_container(client.as_deref(), &container.id, &container.directory, &cgroup).await?;
        let order = self.order();
        self.table_mut().containers.remove(&container.id);
        container.change(|facts| facts.removed = true);
        let (sandbox, id) = (container.sandbox.clone(), container.id.clone());
        self.tell(&order, EngineEvent::ContainerRemoved { sandbox, id });
        Ok(())
    }

    /// Removes all that a container can have left; every part may be absent.
    pub(super) async fn clear_container(
        self: &Arc<Self>,
        client: Option<&Client>,
        id: &ContainerId,
        directory: &Path,
        cgroup: &str,
    ) -> Result<(), EngineError> {
        let name = id.to_string();
        if let Some(client) = client {
            let deleted = client.ask(Call::Delete { container: name.clone() }).await;
            if let Err(EngineError::Shim(_)) = deleted {
                // It runs: a creation was answered by nobody, or an exit is on its way.
                let _killed =
                    client.ask(Call::Kill { container: name.clone(), signal: nix::libc::SIGKILL, all: true }).await;
                let _deleted =
                    tokio::time::timeout(PATIENCE, client.ask(Call::Delete { container: name.clone() })).await;
            }
        }
        let (core, directory, path) = (Arc::clone(self), directory.to_owned(), cgroup.to_owned());
        blocking(move || {
            let mut errors = Vec::new();
            forget(&directory, &name);
            if let Ok(cgroup) = Cgroup::at(&path) {
                let removed = remove_cgroup(&cgroup).map_err(cgroup_error("removing", &path));
                errors.extend(removed.err());
            }
            let removed = remove_share(&directory, &name).map_err(cgroup_error("removing what is beside", &path));
            errors.extend(removed.err());
            if let Err(error) = core.images.remove_snapshot(&name) {
                let action = "removing a container's root file system".to_owned();
                errors.push(EngineError::Images { action, source: error.into() });
            }
            if errors.is_empty() {
                errors.extend(remove_tree(&directory).err());
            }
            all(errors)
        })
        .await
    }

    /// A container's end, as its shim tells it.
    pub(super) fn container_ended(&self, id: &str, record: ExitRecord) {
        let Some(container) = id.parse().ok().and_then(|id| self.find_container(&id).ok()) else { return };
        if let Some(started_at) = record.started_at {
            self.container_started(&container, started_at);
        }
        let (order, exit) = (self.order(), record.exit);
        let first = container.change(|facts| {
            let first = facts.exit.is_none();
            if first {
                facts.exit = Some(record);
            }
            first
        });
        if first {
            let (sandbox, id) = (container.sandbox.clone(), container.id.clone());
            self.tell(&order, EngineEvent::ContainerExited { sandbox, id, exit });
        }
    }

    /// A container's start: as the answer of its shim tells it, or its end, which may be heard of before.
    fn container_started(&self, container: &Container, started_at: Timestamp) {
        let order = self.order();
        let first = container.change(|facts| {
            let first = facts.started_at.is_none();
            facts.started_at.get_or_insert(started_at);
            first
        });
        if first {
            let (sandbox, id) = (container.sandbox.clone(), container.id.clone());
            self.tell(&order, EngineEvent::ContainerStarted { sandbox, id });
        }
    }

    /// After a shim is gone: its containers are killed by their cgroups, and their ends are recorded.
    pub(super) async fn bury(&self, sandbox: &Sandbox) -> Result<(), EngineError> {
        let mut errors = Vec::new();
        for container in self.containers_of(&sandbox.id) {
            let (cgroup, known, started_at) = {
                let facts = container.facts();
                (facts.record.cgroup.clone(), facts.exit.is_some(), facts.started_at)
            };
            if known {
                continue;
            }
            let (directory, id) = (container.directory.clone(), container.id.to_string());
            let buried = blocking(move || {
                kill_abandoned(&directory, &id, &cgroup)?;
                recorded_exit(&directory, started_at)
            });
            match buried.await {
                Ok(record) => self.container_ended(container.id.as_str(), record),
                Err(error) => errors.push(error),
            }
        }
        all(errors)
    }

    pub(super) async fn update_resources(
        self: Arc<Self>,
        id: &ContainerId,
        resources: LinuxResources,
    ) -> Result<(), EngineError> {
        let container = self.find_container(id)?;
        let _turn = container.turn.lock().await;
        match container.state() {
            ContainerState::Created | ContainerState::Running => {}
            state => return Err(EngineError::WrongState { id: id.clone(), state, wanted: "created or running" }),
        }
        let path = container.facts().record.cgroup.clone();
        let limits = resources.clone();
        blocking(move || {
            let cgroup = Cgroup::at(&path).map_err(cgroup_error("finding", &path))?;
            limit_cgroup(&cgroup, limits)
        })
        .await?;
        let record = container.change(|facts| {
            merge(&mut facts.record.config.resources, &resources);
            facts.record.clone()
        });
        record::write(&container.directory.join("container.json"), &record)
    }

    pub(super) async fn reopen_log(&self, id: &ContainerId) -> Result<(), EngineError> {
        let container = self.find_container(id)?;
        let client = self.find_sandbox(&container.sandbox)?.ready()?;
        client.ask(Call::ReopenLog { container: id.to_string() }).await.map(drop)
    }
}

/// Whether limits of huge pages can be set on this machine.
#[must_use]
pub fn limits_huge_pages() -> bool {
    portreeve_oci::cgroup::controllers().is_ok_and(|all| all.iter().any(|name| name == "hugetlb"))
}

/// The cgroup of a container below its pod's.
pub(super) fn container_cgroup(parent: &str, id: &ContainerId) -> String {
    format!("{}/{id}", parent.trim_end_matches('/'))
}

/// Kills everything in a cgroup and waits until it is empty; absent is fine. Blocking.
pub(super) fn kill_cgroup(path: &str) -> Result<(), EngineError> {
    let cgroup = Cgroup::at(path).map_err(cgroup_error("naming", path))?;
    if !cgroup.exists() {
        return Ok(());
    }
    cgroup.kill_all().map_err(cgroup_error("killing", path))?;
    cgroup.wait_empty(KILLED).map_err(cgroup_error("emptying", path))
}

/// Kills what runs of a container whose shim is gone. Blocking.
pub(super) fn kill_abandoned(directory: &Path, id: &str, cgroup: &str) -> Result<(), EngineError> {
    // What would go on making it comes first.
    if let Some(runtime) = Runtime::of_bundle(directory) {
        runtime.kill_strays(directory);
    }
    kill_cgroup(cgroup)?;
    forget(directory, id);
    Ok(())
}

/// Has another runtime forget a container, when it was made by one; what its shim did already is not done again. What
/// stays is in the container's directory and its cgroup, which go as well. Blocking.
fn forget(directory: &Path, id: &str) {
    let forgotten = Runtime::of_bundle(directory).map_or(Ok(()), |runtime| runtime.forget(id, directory));
    if let Err(left) = forgotten {
        tracing::warn!(container_id = id, left, "another runtime has not forgotten a container");
    }
}

/// Puts limits in force on a cgroup in which something may run: memory below what is in use is refused, not taken away.
/// Blocking.
pub(super) fn limit_cgroup(cgroup: &Cgroup, mut resources: LinuxResources) -> Result<(), EngineError> {
    if let Some(memory) = resources.memory_mut() {
        memory.set_check_before_update(Some(true));
    }
    for warning in cgroup.apply(&resources).map_err(cgroup_error("limiting", cgroup.path()))? {
        tracing::debug!(cgroup = cgroup.path(), %warning, "a limit was left out");
    }
    Ok(())
}

/// Removes a cgroup with whatever still is in it.
fn remove_cgroup(cgroup: &Cgroup) -> Result<(), portreeve_oci::cgroup::CgroupError> {
    if !cgroup.exists() {
        return Ok(());
    }
    if cgroup.populated()? {
        cgroup.kill_all()?;
        cgroup.wait_empty(KILLED)?;
    }
    cgroup.remove()
}

/// Removes the group in which a container had a share of the processor's cache, or was counted, alone.
fn remove_share(directory: &Path, id: &str) -> Result<(), portreeve_oci::cgroup::CgroupError> {
    // Few have one, and what cannot be read made none.
    let Ok(bytes) = std::fs::read(directory.join("config.json")) else { return Ok(()) };
    if !bytes.windows(RDT.len()).any(|window| window == RDT) {
        return Ok(());
    }
    serde_json::from_slice(&bytes).map_or(Ok(()), |spec| portreeve_oci::rdt::remove_of(&spec, id))
}

/// What the shim recorded, or, when it died before it could, a record that says so.
pub(super) fn recorded_exit(directory: &Path, started_at: Option<Timestamp>) -> Result<ExitRecord, EngineError> {
    let path = directory.join("exit.json");
    let message = match record::read::<ExitRecord>(&path) {
        Ok(Some(record)) => return Ok(record),
        Ok(None) => "killed because its sandbox's shim had died".to_owned(),
        Err(damage @ EngineError::DamagedState { .. }) => {
            format!("how it ended is not known: {}", crate::error::chain(&damage))
        }
        Err(error) => return Err(error),
    };
    let exit = Exit { code: 128 + nix::libc::SIGKILL, signal: Some(nix::libc::SIGKILL), oom_killed: false };
    let record = ExitRecord {
        version: record::VERSION,
        exit,
        started_at,
        finished_at: Timestamp::now(),
        reason: String::new(),
        message,
    };
    record::write(&path, &record)?;
    Ok(record)
}

/// Lays what is given over what was: a field that is not named stays.
pub(super) fn merge(old: &mut LinuxResources, new: &LinuxResources) {
    fn over(old: &mut Value, new: Value) {
        match (old, new) {
            (Value::Object(old), Value::Object(new)) => {
                for (name, value) in new {
                    match old.get_mut(&name) {
                        Some(slot) => over(slot, value),
                        None => {
                            old.insert(name, value);
                        }
                    }
                }
            }
            (old, new) => *old = new,
        }
    }
    if let (Ok(mut before), Ok(after)) = (serde_json::to_value(&*old), serde_json::to_value(new)) {
        over(&mut before, after);
        if let Ok(merged) = serde_json::from_value(before) {
            *old = merged;
        }
    }
}
