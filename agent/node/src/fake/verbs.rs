//! The verbs: what each does to the pretended world.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::future::BoxFuture;
use oci_spec::runtime::LinuxResources;
use portreeve_engine::image::{Credential, ProgressSink};
use portreeve_engine::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, EngineError, EngineEvent, ExecOutput, Exit,
    MountSource, NetworkNamespace, SandboxConfig, SandboxId, SandboxState, SandboxStats, SandboxStatus,
};
use tokio::sync::{broadcast, watch};

use super::{FakeRuntime, Program, end};
use crate::runtime::{ImageFacts, PullFailure, Runtime};

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
                handler: config.handler,
                ips,
                warnings: Vec::new(),
                shim_pid: Some(1),
                namespaces: config.namespaces,
                privileged: config.privileged,
                cgroup_parent: config.cgroup_parent,
                log_directory: config.log_directory,
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
            if world.script.refused.contains_key(&config.image) {
                world.violations.push(format!("{} made of a refused image", config.metadata.name));
            }
            for mount in &config.mounts {
                let MountSource::Image { id, .. } = &mount.source else { continue };
                let reference = id.strip_prefix("sha256:").unwrap_or(id);
                if !world.script.present.contains(reference) {
                    return Err(EngineError::ImageMissing { reference: id.clone() });
                }
                if world.script.refused.contains_key(reference) {
                    world.violations.push(format!("{} shows a refused image", config.metadata.name));
                }
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
                oom_score_adj: config.oom_score_adj.unwrap_or(0),
                cgroup: String::new(),
                pid: None,
                user: (0, 0),
                groups: vec![0],
                stop_signal: 15,
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

    fn lost_ground(&self) -> watch::Receiver<Option<String>> {
        self.lost_ground.subscribe()
    }

    fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.events.subscribe()
    }

    fn lookup_image(&self, reference: &str) -> Result<Option<ImageFacts>, String> {
        let world = self.world();
        let refused = world.script.refused.get(reference).cloned();
        Ok(world.script.present.contains(reference).then(|| ImageFacts {
            id: format!("sha256:{reference}"),
            user: None,
            reference: reference.to_owned(),
            size_bytes: 1,
            way: None,
            refused,
        }))
    }

    fn fetched_bytes(&self) -> u64 {
        0
    }

    fn image_changes(&self) -> watch::Receiver<()> {
        self.images.subscribe()
    }

    fn bytes_to_fetch<'a>(
        &'a self,
        reference: &'a str,
        _credentials: Vec<Credential>,
    ) -> BoxFuture<'a, Result<u64, PullFailure>> {
        let known = self.world().script.in_registry.contains(reference);
        let unknown = PullFailure {
            reason: "ErrImagePull".to_owned(),
            message: "no such image".to_owned(),
            retry_after: None,
            by_setting: false,
        };
        Box::pin(async move { known.then_some(1_000_000).ok_or(unknown) })
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: Vec<Credential>,
        _progress: Option<ProgressSink>,
    ) -> BoxFuture<'a, Result<ImageFacts, PullFailure>> {
        Box::pin(async move {
            let takes = {
                let mut world = self.world();
                world.pulls_begun.push((reference.to_owned(), credentials.len()));
                world.script.pull_takes
            };
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            let pulled = self
                .verb(format!("pull {reference}"), |world| {
                    if world.script.in_registry.contains(reference) {
                        world.script.refused.remove(reference);
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
                    way: None,
                    refused: None,
                }),
                Err(error) => {
                    let script = &self.world().script;
                    Err(PullFailure {
                        reason: "ErrImagePull".to_owned(),
                        message: error.to_string(),
                        retry_after: script.registry_pause,
                        by_setting: script.outside_window,
                    })
                }
            }
        })
    }
}

fn invalid(message: String) -> EngineError {
    EngineError::Invalid { field: "fake".to_owned(), message }
}
