//! Effects, in the order of the plan; the first failure ends the round.
//!
//! What happened is reported and noted; whether and when to try again is the planner's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use portreeve_engine::{ContainerId, EngineError, Mount, MountSource, SandboxConfig, SandboxId, UserNamespace};
use portreeve_plan::{
    Action, Attempted, Beside, ContainerState, DesiredPod, Finished, ImageName, Intent, ObservedPod, Plan,
    SandboxState, Step, container_record, sandbox_record, status, volume_records,
};
use tokio::sync::oneshot;
use tracing::debug;

use super::observe::all_containers;
use super::{Outcome, PullState, Worker, WorkerNews, create_reason, next_failure};
use crate::disk;
use crate::error::chain;
use crate::events::EventKind;
use crate::probes::{Handler, Target, run};
use crate::pulls;
use crate::runtime::{ImageFacts, PullFailure};
use crate::translate::{self, Parts};
use crate::volumes::Facts;

/// A step that failed: what it was about, the planner's reason, the event's reason, the error.
struct StepFailure {
    what: Attempted,
    reason: &'static str,
    event: &'static str,
    container: Option<String>,
    message: String,
}

enum StepResult {
    Done,
    Interrupted,
    Failed(StepFailure),
}

impl Worker {
    /// Does the steps of `plan`, as far as containers that are being stopped allow, until one fails
    /// or something more urgent comes.
    pub(super) async fn execute(&mut self, desired: &Arc<DesiredPod>, observed: &ObservedPod, plan: &Plan) -> Outcome {
        let mut did = false;
        for batch in plan.batches() {
            if self.stop.is_cancelled() {
                return Outcome::Interrupted;
            }
            let Some(action) = batch.first().map(|step| &step.action) else {
                continue;
            };
            match action.beside_stops(&self.kills.names()) {
                Beside::Now => {}
                Beside::Skip => continue,
                Beside::Wait => break,
            }
            let began = Instant::now();
            let result = match action {
                Action::KillContainer { .. } => {
                    did |= self.begin_kills(desired, observed, batch);
                    continue;
                }
                Action::PullImage { .. } => self.pull(desired, batch).await,
                action => self.act(desired, observed, action).await,
            };
            did = true;
            let failed = matches!(result, StepResult::Failed(_));
            for step in batch {
                let name = step_name(&step.action);
                self.shared.metrics.step(name, began.elapsed(), failed);
                debug!(step = %step.action, reason = %step.reason, failed, elapsed = ?began.elapsed(), "step executed");
            }
            match result {
                StepResult::Done => {
                    for step in batch {
                        self.succeeded(&step.action);
                    }
                    if batch.iter().any(|step| matches!(step.action, Action::StopSandbox { .. })) {
                        // What was ready is not any more, long before its successor is.
                        let observed = self.observe(desired);
                        self.publish(desired, &observed, self.shared.clock.now());
                    }
                }
                StepResult::Interrupted => return Outcome::Interrupted,
                StepResult::Failed(failure) => {
                    self.event(
                        desired,
                        failure.container.as_deref(),
                        EventKind::Warning,
                        failure.event,
                        &failure.message,
                    );
                    self.fail(desired, failure.what, failure.reason, failure.message);
                    return Outcome::Failed;
                }
            }
        }
        if did { Outcome::Done } else { Outcome::Waiting }
    }

    /// A success ends the back-off of its kind.
    fn succeeded(&mut self, action: &Action) {
        match action {
            Action::CreateSandbox { .. } => self.failures.remove(&Attempted::Sandbox),
            Action::MountVolumes { .. } | Action::RefreshVolumes { .. } | Action::UnmountVolumes { .. } => {
                self.failures.remove(&Attempted::Volumes)
            }
            // Only a container that was started has got over what kept it from starting.
            Action::StartContainer { container, .. } => self.failures.remove(&Attempted::Container(container.clone())),
            Action::UpdateResources { container, .. } => self.failures.remove(&Attempted::Resources(container.clone())),
            Action::RemoveContainer { .. }
            | Action::StopSandbox { .. }
            | Action::RemoveSandbox { .. }
            | Action::RecordFinished { .. } => self.failures.remove(&Attempted::Removal),
            Action::PullImage { .. }
            | Action::CreateContainer { .. }
            | Action::RunPostStart { .. }
            // See `take_kill`.
            | Action::KillContainer { .. } => None,
        };
    }

    async fn act(&mut self, desired: &Arc<DesiredPod>, observed: &ObservedPod, action: &Action) -> StepResult {
        let result = match action {
            Action::RecordFinished { finished } => self.record_finished(desired, observed, finished).await,
            Action::MountVolumes { volumes } => self.mount(desired, volumes, "FailedMount").await,
            Action::RefreshVolumes { volumes } => self.mount(desired, volumes, "FailedMount").await,
            Action::UnmountVolumes { volumes } => self.unmount(volumes).await,
            Action::CreateSandbox { attempt, backoff } => {
                self.create_sandbox(desired, observed, *attempt, *backoff).await
            }
            Action::CreateContainer { container, attempt, backoff } => {
                self.create_container(desired, container, *attempt, *backoff).await
            }
            Action::StartContainer { container, attempt } => self.start_container(desired, container, *attempt).await,
            Action::RunPostStart { container, attempt } => {
                return self.post_start(desired, observed, container, *attempt).await;
            }
            Action::RemoveContainer { id, .. } => self.remove_container(id).await,
            Action::UpdateResources { id, container, resources } => match id.0.parse::<ContainerId>() {
                Ok(id) => self.update_resources(desired, observed, &id, container, *resources).await,
                Err(_) => Ok(()),
            },
            Action::StopSandbox { id } => self.stop_sandbox(id).await,
            Action::RemoveSandbox { id } => self.remove_sandbox(id).await,
            // Batches of their own.
            Action::PullImage { .. } | Action::KillContainer { .. } => Ok(()),
        };
        match result {
            Ok(()) => StepResult::Done,
            Err(failure) => StepResult::Failed(failure),
        }
    }

    fn facts<'a>(&'a self, desired: &'a DesiredPod) -> Facts<'a> {
        Facts { pod: &desired.pod, uid: &self.uid.0, configs: &desired.configs, node: &self.shared.node }
    }

    async fn record_finished(
        &mut self,
        desired: &Arc<DesiredPod>,
        observed: &ObservedPod,
        finished: &Finished,
    ) -> Result<(), StepFailure> {
        let why = finished.reason.clone().zip(finished.message.clone());
        let mut finished = finished.clone();
        let mut ended = (**desired).clone();
        ended.finished = Some(finished.clone());
        finished.status = Some(Box::new(status(&ended, observed, self.shared.clock.now())));
        let (done, answer) = oneshot::channel();
        let news = WorkerNews::Finished { desired: Arc::clone(desired), finished: Box::new(finished), done };
        let failed = |message: String| removal_failure("FailedRecord", message);
        self.shared.outbox.send(news).map_err(|_| failed("the node is shutting down".to_owned()))?;
        let answer = tokio::select! {
            // cancel-safe: whoever stops waits for no answer.
            answer = answer => answer,
            // cancel-safe: a state.
            () = self.stop.cancelled() => return Err(failed("the node is shutting down".to_owned())),
        };
        match answer {
            Ok(Ok(())) => {
                if let Some((reason, message)) = why {
                    self.event(desired, None, EventKind::Warning, &reason, &message);
                }
                Ok(())
            }
            Ok(Err(message)) => Err(failed(message)),
            Err(_) => Err(failed("the node is shutting down".to_owned())),
        }
    }

    async fn mount(
        &mut self,
        desired: &Arc<DesiredPod>,
        names: &BTreeSet<String>,
        event: &'static str,
    ) -> Result<(), StepFailure> {
        let records = volume_records(desired);
        let (volumes, node) = (self.shared.volumes.clone(), self.shared.node.clone());
        let (pod, uid, names) = (Arc::clone(desired), self.uid.0.clone(), names.clone());
        let mounted = blocking(move || {
            let facts = Facts { pod: &pod.pod, uid: &uid, configs: &pod.configs, node: &node };
            let mut mounted = Vec::new();
            for name in names {
                match volumes.mount_blocking(facts, &name) {
                    Ok(()) => mounted.push(name),
                    Err(error) => return (mounted, Some(chain(&error))),
                }
            }
            (mounted, None)
        })
        .await;
        let (mounted, error) = mounted.unwrap_or_else(|error| (Vec::new(), Some(error)));
        let mut book = self.book();
        for name in mounted {
            if let Some(record) = records.get(&name) {
                book.notes.volumes.insert(name, record.clone());
            }
        }
        drop(book);
        self.save();
        match error {
            None => Ok(()),
            Some(message) => {
                Err(StepFailure { what: Attempted::Volumes, reason: "FailedMount", event, container: None, message })
            }
        }
    }

    async fn unmount(&mut self, names: &BTreeSet<String>) -> Result<(), StepFailure> {
        let (volumes, uid, all) = (self.shared.volumes.clone(), self.uid.0.clone(), names.clone());
        let unmounted = blocking(move || {
            all.iter().try_for_each(|name| volumes.unmount_blocking(&uid, name)).map_err(|error| chain(&error))
        })
        .await;
        match unmounted.and_then(|unmounted| unmounted) {
            Ok(()) => {
                let mut book = self.book();
                for name in names {
                    book.notes.volumes.remove(name);
                }
                drop(book);
                self.save();
                Ok(())
            }
            Err(message) => Err(StepFailure {
                what: Attempted::Volumes,
                reason: "FailedUnmount",
                event: "FailedUnMount",
                container: None,
                message,
            }),
        }
    }

    async fn create_sandbox(
        &mut self,
        desired: &Arc<DesiredPod>,
        observed: &ObservedPod,
        attempt: u32,
        backoff: Option<Duration>,
    ) -> Result<(), StepFailure> {
        let record = sandbox_record(desired, observed, backoff);
        let failure = |message: String| StepFailure {
            what: Attempted::Sandbox,
            reason: "FailedCreatePodSandBox",
            event: "FailedCreatePodSandBox",
            container: None,
            message: format!("failed to create pod sandbox: {message}"),
        };
        let own_users = desired.pod.spec.as_ref().is_some_and(|spec| spec.host_users == Some(false));
        let shared = Arc::clone(&self.shared);
        // The ids are taken when the sandbox is listed: until then nobody else may choose.
        let ids = if own_users { Some(shared.ids.lock().await) } else { None };
        let base = if own_users {
            let base = translate::free_id_base(&self.used_ids());
            Some(base.ok_or_else(|| failure("no range of user ids is free".to_owned()))?)
        } else {
            None
        };
        let config: SandboxConfig = translate::sandbox(self.facts(desired), &record, attempt, &shared.place, base)
            .map_err(|error| failure(chain(&error)))?;
        let hostname = config.hostname.clone();
        let id = shared.runtime.run_sandbox(config).await.map_err(|error| failure(chain(&error)))?;
        drop(ids);
        shared.index.add_sandbox(&self.uid, &id);
        let _ = shared.outbox.send(WorkerNews::Holds);
        self.write_hosts(desired, &id, &hostname).map_err(|error| failure(format!("writing its hosts file: {error}")))
    }

    fn used_ids(&self) -> Vec<u32> {
        let sandboxes = self.shared.runtime.sandboxes();
        let maps = sandboxes.iter().filter_map(|sandbox| match &sandbox.namespaces.user {
            UserNamespace::Pod { uid_maps, .. } => uid_maps.first().map(|row| row.host),
            UserNamespace::Node => None,
        });
        maps.collect()
    }

    fn hosts_path(&self) -> PathBuf {
        self.shared.volumes.disk_of(&self.uid.0).join("etc-hosts")
    }

    fn write_hosts(&self, desired: &DesiredPod, id: &SandboxId, hostname: &str) -> io::Result<()> {
        let Some(spec) = &desired.pod.spec else {
            return Ok(());
        };
        let ips = self.shared.runtime.sandbox(id).map(|status| status.ips).unwrap_or_default();
        let text = if spec.host_network == Some(true) {
            translate::node_hosts_file(spec, &fs::read_to_string("/etc/hosts").unwrap_or_default())
        } else {
            translate::hosts_file(spec, hostname, &ips)
        };
        let path = self.hosts_path();
        if let Some(parent) = path.parent() {
            disk::ensure_directory(parent, 0o700)?;
        }
        disk::replace_volatile(&path, text.as_bytes(), 0o644)
    }

    async fn create_container(
        &mut self,
        desired: &Arc<DesiredPod>,
        name: &str,
        attempt: u32,
        backoff: Option<Duration>,
    ) -> Result<(), StepFailure> {
        let failure = |reason: &'static str, message: String| StepFailure {
            what: Attempted::Container(name.to_owned()),
            reason,
            event: "Failed",
            container: Some(name.to_owned()),
            message,
        };
        let config_error = |message: String| failure("CreateContainerConfigError", message);
        let shared = Arc::clone(&self.shared);
        let record = container_record(desired, name, backoff)
            .ok_or_else(|| config_error(format!("the pod has no container {name:?}")))?;
        let sandbox =
            self.ready_sandbox().ok_or_else(|| failure("CreateContainerError", "the pod has no sandbox".to_owned()))?;
        let image = record.container.image.clone().unwrap_or_default();
        let facts: ImageFacts = match shared.runtime.lookup_image(&image) {
            Ok(Some(facts)) => facts,
            Ok(None) => return Err(failure("CreateContainerError", format!("image {image:?} is not present"))),
            Err(message) => return Err(failure("InvalidImageName", message)),
        };
        let ips: Vec<String> = if desired.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            shared.node.host_ips.clone()
        } else {
            sandbox.ips.iter().map(ToString::to_string).collect()
        };
        let mounts = self.mounts(desired, &record.container, &ips, attempt).await.map_err(config_error)?;
        let parts = Parts { record: &record, attempt, image_id: facts.id, ips: &ips, mounts };
        let config = translate::container(self.facts(desired), &record.container, parts)
            .map_err(|error| config_error(chain(&error)))?;
        match shared.runtime.create_container(&sandbox.id, config).await {
            Ok(id) => {
                shared.index.add_container(&self.uid, &id);
                if attempt > 0 {
                    shared.metrics.restarts.inc();
                }
                self.event(desired, Some(name), EventKind::Normal, "Created", &format!("Created container {name}"));
                Ok(())
            }
            Err(error) => Err(failure(create_reason(&error), chain(&error))),
        }
    }

    fn ready_sandbox(&self) -> Option<portreeve_engine::SandboxStatus> {
        let belongings = self.shared.index.of(&self.uid);
        belongings
            .sandboxes
            .iter()
            .filter_map(|id| self.shared.runtime.sandbox(id))
            .filter(|sandbox| sandbox.state == portreeve_engine::SandboxState::Ready)
            .max_by_key(|sandbox| sandbox.metadata.attempt)
    }

    /// The mounts of a container, with everything they show in place.
    async fn mounts(
        &self,
        desired: &Arc<DesiredPod>,
        container: &Container,
        ips: &[String],
        attempt: u32,
    ) -> Result<Vec<Mount>, String> {
        let spec: &PodSpec = desired.pod.spec.as_ref().ok_or("the pod has no spec")?;
        let envs = translate::environment(self.facts(desired), ips, container).map_err(|error| chain(&error))?;
        let plans = translate::mount_plans(spec, container, &envs).map_err(|error| error.to_string())?;
        let mut mounts = Vec::with_capacity(plans.len() + 2);
        for plan in &plans {
            let source = match &plan.sub_path {
                None => self.shared.volumes.source(&self.uid.0, plan.volume),
                Some(sub_path) => {
                    let (volumes, uid) = (self.shared.volumes.clone(), self.uid.0.clone());
                    let (volume, sub_path, slot) = (plan.volume.clone(), sub_path.clone(), plan.slot.clone());
                    blocking(move || {
                        volumes.subpath_blocking(&uid, &volume, &sub_path, &slot).map_err(|error| chain(&error))
                    })
                    .await??
                }
            };
            mounts.push(plan.mount(source));
        }
        let taken = |path: &str| mounts.iter().any(|mount| mount.container_path.as_os_str() == path);
        let simple = |container_path: &str, source: PathBuf| Mount {
            container_path: PathBuf::from(container_path),
            source: MountSource::HostPath(source),
            readonly: false,
            recursive_readonly: false,
            propagation: portreeve_engine::Propagation::Private,
        };
        let mut more = Vec::new();
        let hosts = self.hosts_path();
        if !taken("/etc/hosts") && hosts.exists() {
            more.push(simple("/etc/hosts", hosts));
        }
        let message_path = container.termination_message_path.as_deref().filter(|path| path.starts_with('/'));
        if let Some(path) = message_path.filter(|path| !taken(path)) {
            let log = self.termination_log(&container.name, attempt);
            make_termination_log(&log).map_err(|error| format!("making {}: {error}", log.display()))?;
            more.push(simple(path, log));
        }
        mounts.extend(more);
        Ok(mounts)
    }

    async fn start_container(
        &mut self,
        desired: &Arc<DesiredPod>,
        name: &str,
        attempt: u32,
    ) -> Result<(), StepFailure> {
        let failure = |message: String| StepFailure {
            what: Attempted::Container(name.to_owned()),
            reason: "RunContainerError",
            event: "Failed",
            container: Some(name.to_owned()),
            message,
        };
        let id = self
            .engine_container(name, attempt)
            .ok_or_else(|| failure(format!("container {name} (attempt {attempt}) is gone")))?;
        let mut began = self.observe(desired);
        for view in began.containers.iter_mut().filter(|view| view.id.0 == id.as_str()) {
            view.state = ContainerState::Running { started_at: self.shared.clock.now() };
        }
        self.keep_past(desired, &began)
            .await
            .map_err(|error| failure(format!("noting that it is started: {error}")))?;
        match self.shared.runtime.start_container(&id).await {
            Ok(()) => {
                self.event(desired, Some(name), EventKind::Normal, "Started", &format!("Started container {name}"));
                Ok(())
            }
            // The container has ended with `StartError`: its own back-off counts, not a step's.
            Err(EngineError::Start { message, .. }) => {
                let message = format!("failed to start container {name}: {message}");
                self.event(desired, Some(name), EventKind::Warning, "Failed", &message);
                Ok(())
            }
            Err(error) => Err(failure(chain(&error))),
        }
    }

    async fn post_start(
        &mut self,
        desired: &Arc<DesiredPod>,
        observed: &ObservedPod,
        name: &str,
        attempt: u32,
    ) -> StepResult {
        let Some(id) = self.engine_container(name, attempt) else {
            return StepResult::Done;
        };
        let container = desired.pod.spec.iter().flat_map(all_containers).find(|container| container.name == name);
        let hook = container
            .and_then(|container| container.lifecycle.as_ref()?.post_start.as_ref())
            .and_then(Handler::of_hook);
        let result = match (container, hook) {
            (Some(container), Some(handler)) => {
                let target = self.target(&id, container, observed);
                let mut mailbox = self.mailbox.clone();
                let removed = async {
                    while mailbox.changed().await.is_ok() {
                        if matches!(mailbox.borrow_and_update().intent, Intent::Remove { .. }) {
                            return;
                        }
                    }
                    std::future::pending().await
                };
                let runtime = Arc::clone(&self.shared.runtime);
                let gone = async {
                    loop {
                        self.wake.notified().await;
                        let state = runtime.container(&id).map(|status| status.state);
                        if state != Some(portreeve_engine::ContainerState::Running) {
                            return;
                        }
                    }
                };
                tokio::select! {
                    // cancel-safe: a hook that is given up is given up.
                    result = run(&handler, &target, Duration::ZERO) => result.map_err(|miss| miss.to_string()),
                    // cancel-safe: only looks.
                    () = removed => return StepResult::Interrupted,
                    // cancel-safe: only looks.
                    () = gone => return StepResult::Interrupted,
                    // cancel-safe: a state.
                    () = self.stop.cancelled() => return StepResult::Interrupted,
                }
            }
            _ => Ok(()),
        };
        if let Err(message) = &result {
            let message = format!("PostStartHook failed: {message}");
            self.event(desired, Some(name), EventKind::Warning, "FailedPostStartHook", &message);
        }
        self.book().notes.of_mut(&id).set_post_start(result);
        self.save();
        StepResult::Done
    }

    /// Where a hook of a container is run.
    pub(super) fn target(&self, id: &ContainerId, container: &Container, observed: &ObservedPod) -> Target {
        let ready = observed.sandboxes.iter().rev().find(|sandbox| sandbox.state == SandboxState::Ready);
        let engine = self.ready_sandbox().and_then(|sandbox| sandbox.ips.first().map(ToString::to_string));
        let host = engine
            .or_else(|| ready.and_then(|sandbox| sandbox.ips.first().cloned()))
            .or_else(|| self.shared.node.host_ips.first().cloned());
        Target {
            runtime: Arc::clone(&self.shared.runtime),
            id: id.clone(),
            container: Arc::new(container.clone()),
            host,
        }
    }

    async fn remove_container(&mut self, id: &portreeve_plan::ContainerId) -> Result<(), StepFailure> {
        let Ok(id) = id.0.parse::<ContainerId>() else {
            return Ok(());
        };
        // Its attempt is in the notes already: they are made from each observation.
        self.save();
        self.shared
            .runtime
            .remove_container(&id)
            .await
            .map_err(|error| removal_failure("FailedRemoveContainer", chain(&error)))?;
        self.shared.index.remove_container(&self.uid, &id);
        self.book().notes.containers.remove(id.as_str());
        Ok(())
    }

    async fn update_resources(
        &mut self,
        desired: &DesiredPod,
        observed: &ObservedPod,
        id: &ContainerId,
        name: &str,
        resources: portreeve_plan::Resources,
    ) -> Result<(), StepFailure> {
        let failure = |error: EngineError| StepFailure {
            what: Attempted::Resources(name.to_owned()),
            reason: "ResizeError",
            event: "FailedResize",
            container: Some(name.to_owned()),
            message: chain(&error),
        };
        let runtime = Arc::clone(&self.shared.runtime);
        runtime.update_resources(id, &translate::enforced(&resources)).await.map_err(failure)?;
        self.book().notes.of_mut(id).resources = Some(resources);
        self.save();
        let sandbox = observed.sandboxes.iter().rev().find(|sandbox| sandbox.state == SandboxState::Ready);
        if let (Some(sandbox), Some(spec)) = (sandbox, &desired.pod.spec)
            && let Ok(sandbox) = sandbox.id.0.parse::<SandboxId>()
        {
            runtime.update_sandbox_resources(&sandbox, &translate::pod_resources(spec)).await.map_err(failure)?;
        }
        let message = format!("resources of container {name} are now {resources}");
        self.event(desired, Some(name), EventKind::Normal, "Resized", &message);
        Ok(())
    }

    async fn stop_sandbox(&mut self, id: &portreeve_plan::SandboxId) -> Result<(), StepFailure> {
        let Ok(id) = id.0.parse::<SandboxId>() else {
            return Ok(());
        };
        let stopped = self.shared.runtime.stop_sandbox(&id).await;
        stopped.map_err(|error| removal_failure("FailedKillPod", chain(&error)))
    }

    async fn remove_sandbox(&mut self, id: &portreeve_plan::SandboxId) -> Result<(), StepFailure> {
        let Ok(id) = id.0.parse::<SandboxId>() else {
            return Ok(());
        };
        self.save();
        let removed = self.shared.runtime.remove_sandbox(&id).await;
        removed.map_err(|error| removal_failure("FailedKillPod", chain(&error)))?;
        self.shared.index.remove_sandbox(&self.uid, &id);
        let _ = self.shared.outbox.send(WorkerNews::Holds);
        Ok(())
    }

    /// Waits for pulls, and gives way to anything else that comes; they go on meanwhile.
    async fn pull(&mut self, desired: &Arc<DesiredPod>, batch: &[Step]) -> StepResult {
        let mut waiting = BTreeSet::new();
        for step in batch {
            if let Action::PullImage { image, containers } = &step.action {
                self.begin_pull(desired, image, containers);
                waiting.insert(image.clone());
            }
        }
        let mut failed = false;
        while !waiting.is_empty() {
            tokio::select! {
                // cancel-safe: a finished task stays in the set until it is joined.
                done = self.pull_tasks.join_next() => match done {
                    None => return StepResult::Interrupted,
                    Some(Ok(done)) => {
                        waiting.remove(&done.0);
                        failed |= done.2.is_err();
                        self.note_pull(done);
                    }
                    // A pull that panicked: asked for again by the next plan.
                    Some(Err(_)) => { self.pulls.retain(|_, state| matches!(state, PullState::Failed(_))); return StepResult::Interrupted; }
                },
                // cancel-safe: the value stays in the channel.
                _ = self.mailbox.changed() => { self.mailbox.mark_changed(); self.keep_or_drop_pulls(); return StepResult::Interrupted; }
                // cancel-safe: a notification stays stored.
                () = self.wake.notified() => return StepResult::Interrupted,
                // cancel-safe: see there.
                Some(done) = self.kills.next() => {
                    self.take_kill(done);
                    return StepResult::Interrupted;
                }
                // cancel-safe: a report stays in the channel until it is received.
                report = self.probe_inbox.recv() => if let Some(report) = report {
                    self.take_report(&report);
                    return StepResult::Interrupted;
                },
                // cancel-safe: a state.
                () = self.stop.cancelled() => return StepResult::Interrupted,
            }
        }
        // A failed pull is the image's failure, not the plan's: the next plan sees it.
        if failed { StepResult::Interrupted } else { StepResult::Done }
    }

    fn begin_pull(&mut self, desired: &Arc<DesiredPod>, image: &ImageName, containers: &[String]) {
        let after = match self.pulls.get(image) {
            Some(PullState::Running { .. }) => return,
            Some(PullState::Failed(failure)) => Some(failure.clone()),
            None => None,
        };
        let (credentials, problems) = pulls::credentials(&desired.pod, &desired.configs);
        for problem in &problems {
            let message = format!("unable to use an image pull secret: {problem}");
            self.event(desired, None, EventKind::Warning, "FailedToRetrieveImagePullSecret", &message);
        }
        for container in containers {
            self.event(desired, Some(container), EventKind::Normal, "Pulling", &format!("Pulling image {:?}", image.0));
        }
        let pulls = Arc::clone(&self.shared.pulls);
        let runtime = Arc::clone(&self.shared.runtime);
        let (uid, name) = (self.uid.0.clone(), image.clone());
        self.pull_tasks.spawn(async move {
            let began = tokio::time::Instant::now();
            let result = pulls.pull(runtime, uid, name.0.clone(), credentials).await.map_err(|mut failure| {
                for problem in &problems {
                    failure.message.push_str(&format!("; imagePullSecrets: {problem}"));
                }
                failure
            });
            (name, began.elapsed(), result)
        });
        self.pulls.insert(image.clone(), PullState::Running { after });
    }

    /// An edit may want other images, or name other credentials: pulls begin anew.
    fn keep_or_drop_pulls(&mut self) {
        self.pull_tasks.abort_all();
        self.pulls.retain(|_, state| matches!(state, PullState::Failed(_)));
        while self.pull_tasks.try_join_next().is_some() {}
    }

    pub(super) fn take_pulls(&mut self, _desired: &DesiredPod) {
        while let Some(done) = self.pull_tasks.try_join_next() {
            if let Ok(done) = done {
                self.note_pull(done);
            }
        }
    }

    /// Notes how a pull ended.
    pub(super) fn note_pull(&mut self, done: (ImageName, Duration, Result<ImageFacts, PullFailure>)) {
        let (image, took, result) = done;
        let desired = Arc::clone(&self.mailbox.borrow());
        let label = if result.is_ok() { "success" } else { "failure" };
        self.shared.metrics.pulls.with_label_values(&[label]).observe(took.as_secs_f64());
        let before = match self.pulls.remove(&image) {
            Some(PullState::Running { after }) => after,
            Some(PullState::Failed(failure)) => Some(failure),
            // Given up meanwhile.
            None => return,
        };
        let users: Vec<String> = desired
            .pod
            .spec
            .iter()
            .flat_map(all_containers)
            .filter(|container| container.image.as_deref() == Some(image.0.as_str()))
            .map(|container| container.name.clone())
            .collect();
        match result {
            Ok(facts) => {
                let now = self.shared.clock.now();
                self.book().notes.pulled_at.insert(image.0.clone(), now);
                let message = format!(
                    "Successfully pulled image {:?} in {} ms, {} bytes",
                    image.0,
                    took.as_millis(),
                    facts.size_bytes
                );
                for user in &users {
                    self.event(&desired, Some(user), EventKind::Normal, "Pulled", &message);
                }
            }
            Err(error) => {
                let now = self.shared.clock.now();
                let failure = next_failure(before.as_ref(), &desired, now, &error.reason, error.message.clone());
                let next = pulls::next_try(&failure);
                self.shared.pulls.failed(&self.uid.0, &image.0, &failure);
                let message = format!("Failed to pull image {:?}: {}; next try at {next:.0}", image.0, error.message);
                for user in &users {
                    self.event(&desired, Some(user), EventKind::Warning, "Failed", &message);
                }
                self.pulls.insert(image, PullState::Failed(failure));
            }
        }
    }
}

fn removal_failure(event: &'static str, message: String) -> StepFailure {
    StepFailure { what: Attempted::Removal, reason: event, event, container: None, message }
}

fn make_termination_log(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        disk::ensure_directory(parent, 0o700)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Whatever user the container runs as writes it.
    fs::File::create_new(path)?.set_permissions(fs::Permissions::from_mode(0o666))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

fn step_name(action: &Action) -> &'static str {
    match action {
        Action::RecordFinished { .. } => "RecordFinished",
        Action::PullImage { .. } => "PullImage",
        Action::MountVolumes { .. } => "MountVolumes",
        Action::RefreshVolumes { .. } => "RefreshVolumes",
        Action::UnmountVolumes { .. } => "UnmountVolumes",
        Action::CreateSandbox { .. } => "CreateSandbox",
        Action::CreateContainer { .. } => "CreateContainer",
        Action::StartContainer { .. } => "StartContainer",
        Action::RunPostStart { .. } => "RunPostStart",
        Action::KillContainer { .. } => "KillContainer",
        Action::RemoveContainer { .. } => "RemoveContainer",
        Action::UpdateResources { .. } => "UpdateResources",
        Action::StopSandbox { .. } => "StopSandbox",
        Action::RemoveSandbox { .. } => "RemoveSandbox",
    }
}
