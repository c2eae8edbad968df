//! Steps on one container.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use portreeve_engine::{ContainerId, EngineError, Mount, MountSource, SandboxId};
use portreeve_plan::{
    Attempted, ContainerState, DesiredPod, Intent, NeededImage, ObservedPod, SandboxState, UNTRUSTED, container_record,
    needed_images,
};

use super::super::observe::all_containers;
use super::super::{Worker, create_reason};
use super::{StepFailure, StepResult, blocking, removal_failure};
use crate::events::EventKind;
use crate::probes::{Handler, Target, run};
use crate::runtime::ImageFacts;
use crate::translate::Parts;
use crate::{disk, translate};
use portreeve_engine::chain;

impl Worker {
    pub(super) async fn create_container(
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
        let mut own = String::new();
        let mut shown = BTreeMap::new();
        let spec = desired.pod.spec.as_ref().ok_or_else(|| config_error("the pod has no spec".to_owned()))?;
        for NeededImage { name: image, volume, .. } in needed_images(spec, &record.container) {
            let facts: ImageFacts = match shared.runtime.lookup_image(&image.0) {
                Ok(Some(facts)) => facts,
                Ok(None) => return Err(failure("CreateContainerError", format!("image {:?} is not present", image.0))),
                Err(message) => return Err(failure("InvalidImageName", message)),
            };
            // It may have changed since the plan was made.
            if let Some(message) = facts.refused {
                return Err(failure(UNTRUSTED, message));
            }
            match volume {
                None => own = facts.id,
                Some(volume) => {
                    shown.insert(volume.to_owned(), facts.id);
                }
            }
        }
        let ips: Vec<String> = if desired.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            shared.node.host_ips.clone()
        } else {
            sandbox.ips.iter().map(ToString::to_string).collect()
        };
        let mounts = self.mounts(desired, &record.container, (&ips, &shown), attempt).await.map_err(config_error)?;
        let parts = Parts { record: &record, attempt, image_id: own, ips: &ips, mounts };
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

    /// The mounts of a container, with everything they show in place. `shown` are the ids of the images of volumes.
    pub(super) async fn mounts(
        &self,
        desired: &Arc<DesiredPod>,
        container: &Container,
        (ips, shown): (&[String], &BTreeMap<String, String>),
        attempt: u32,
    ) -> Result<Vec<Mount>, String> {
        let spec: &PodSpec = desired.pod.spec.as_ref().ok_or("the pod has no spec")?;
        let envs = translate::environment(self.facts(desired), ips, container).map_err(|error| chain(&error))?;
        let plans = translate::mount_plans(spec, container, &envs).map_err(|error| error.to_string())?;
        let mut mounts = Vec::with_capacity(plans.len() + 2);
        for plan in &plans {
            let volume = &plan.volume.name;
            let source = match (&plan.sub_path, &plan.volume.image) {
                (sub_path, Some(_)) => MountSource::Image {
                    id: shown
                        .get(volume)
                        .cloned()
                        .ok_or_else(|| format!("volume {volume:?}: its image was not looked up"))?,
                    sub_path: sub_path.as_ref().map(PathBuf::from),
                },
                (None, None) => MountSource::HostPath(self.shared.volumes.source(&self.uid.0, plan.volume)),
                (Some(sub_path), None) => {
                    let (volumes, uid) = (self.shared.volumes.clone(), self.uid.0.clone());
                    let (volume, sub_path, slot) = (plan.volume.clone(), sub_path.clone(), plan.slot.clone());
                    let bound = blocking(move || {
                        volumes.subpath_blocking(&uid, &volume, &sub_path, &slot).map_err(|error| chain(&error))
                    });
                    MountSource::HostPath(bound.await??)
                }
            };
            mounts.push(plan.mount(source));
        }
        let taken = |path: &str| mounts.iter().any(|mount| mount.container_path.as_os_str() == path);
        let simple = |container_path: &str, source: PathBuf| Mount {
            options: Vec::new(),
            ids: None,
            relabel: false,
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

    pub(super) async fn start_container(
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

    pub(super) async fn post_start(
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
                        if mailbox.borrow_and_update().intent != Intent::Run {
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
    pub(in crate::worker) fn target(&self, id: &ContainerId, container: &Container, observed: &ObservedPod) -> Target {
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

    pub(super) async fn remove_container(&mut self, id: &portreeve_plan::ContainerId) -> Result<(), StepFailure> {
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

    pub(super) async fn update_resources(
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
