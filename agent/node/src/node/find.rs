//! Finding what a door means: a container, its log, a sandbox.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use portreeve_engine::{ContainerId, ContainerState, SandboxId, SandboxState};
use portreeve_plan::PodUid;

use super::Node;
use crate::error::NodeError;
use crate::history::NamespacedName;

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

impl Node {
    fn known(&self, name: &NamespacedName) -> Result<(Arc<Pod>, PodUid), NodeError> {
        let not_found = || NodeError::PodNotFound { name: name.clone() };
        let pod = self.pod(name).ok_or_else(not_found)?;
        let uid = pod.metadata.uid.clone().ok_or_else(not_found)?;
        Ok((pod, PodUid(uid)))
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
        let (object, uid) = self.known(pod)?;
        let name = choose(&object, pod, container)?;
        let shared = &self.inner.shared;
        let ids = shared.index.of(&uid).containers;
        let mut attempts: Vec<_> = ids
            .iter()
            .filter_map(|id| shared.runtime.container(id))
            .filter(|status| status.metadata.name == name)
            .collect();
        attempts.sort_by_key(|status| (status.metadata.attempt, status.created_at));
        if previous {
            attempts.pop();
        }
        let status = attempts.pop().ok_or_else(|| NodeError::ContainerState {
            pod: pod.name.clone(),
            container: name.clone(),
            state: if previous {
                "without a previous instance".to_owned()
            } else {
                state_without_record(&object, &name)
            },
        })?;
        Ok(ContainerHandle {
            pod: pod.clone(),
            container: name.clone(),
            log_path: status.log_path.clone().unwrap_or_else(|| {
                let logs = shared.place.log_directory(&pod.namespace, &pod.name, &uid.0);
                logs.join(crate::translate::log_path(&name, status.metadata.attempt))
            }),
            running: status.state == ContainerState::Running,
            tty: status.tty,
            stdin: status.stdin,
            id: status.id,
            sandbox: status.sandbox,
        })
    }

    /// The log file of a container, also of one whose pod has ended and was taken down.
    ///
    /// # Errors
    /// As [`Node::container`].
    pub fn log_path(
        &self,
        pod: &NamespacedName,
        container: Option<&str>,
        previous: bool,
    ) -> Result<PathBuf, NodeError> {
        let missing = match self.container(pod, container, previous) {
            Ok(handle) => return Ok(handle.log_path),
            Err(error @ NodeError::ContainerState { .. }) => error,
            Err(error) => return Err(error),
        };
        let (object, uid) = self.known(pod)?;
        let name = choose(&object, pod, container)?;
        let place = &self.inner.shared.place;
        let folder = place.log_directory(&pod.namespace, &pod.name, &uid.0).join(&name);
        let mut attempts: Vec<u32> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
            .collect();
        attempts.sort_unstable();
        let running = self.container(pod, container, false).is_ok();
        if previous && !running {
            attempts.pop();
        } else if previous {
            let newest = attempts.pop();
            attempts.retain(|attempt| Some(*attempt) != newest);
        }
        attempts.pop().map(|attempt| folder.join(format!("{attempt}.log"))).ok_or(missing)
    }

    /// The live sandbox of a pod, for port-forward.
    ///
    /// # Errors
    /// [`NodeError::PodNotFound`], or [`NodeError::ContainerState`] if it has none now.
    pub fn sandbox(&self, pod: &NamespacedName) -> Result<SandboxId, NodeError> {
        let (_, uid) = self.known(pod)?;
        let shared = &self.inner.shared;
        let ids = shared.index.of(&uid).sandboxes;
        ids.iter()
            .filter_map(|id| shared.runtime.sandbox(id))
            .filter(|sandbox| sandbox.state == SandboxState::Ready)
            .max_by_key(|sandbox| sandbox.metadata.attempt)
            .map(|sandbox| sandbox.id)
            .ok_or_else(|| NodeError::ContainerState {
                pod: pod.name.clone(),
                container: "sandbox".to_owned(),
                state: "not running".to_owned(),
            })
    }
}

/// The container that a door means.
fn choose(object: &Pod, pod: &NamespacedName, container: Option<&str>) -> Result<String, NodeError> {
    let Some(spec) = &object.spec else {
        return Err(NodeError::PodNotFound { name: pod.clone() });
    };
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let preferred = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("kubectl.kubernetes.io/default-container"))
        .map(String::as_str);
    match container.filter(|name| !name.is_empty()).or(preferred) {
        Some(name) if all().any(|container| container.name == name) => Ok(name.to_owned()),
        Some(name) => Err(NodeError::ContainerNotFound { pod: pod.name.clone(), container: name.to_owned() }),
        None => match spec.containers.as_slice() {
            [only] => Ok(only.name.clone()),
            _ => Err(NodeError::ContainerRequired {
                pod: pod.name.clone(),
                choices: all().map(|container| container.name.clone()).collect(),
            }),
        },
    }
}

/// What a container is of which the runtime has no record: not made yet, or gone with them, as at a reboot.
fn state_without_record(object: &Pod, container: &str) -> String {
    let statuses = object.status.iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let state = statuses.filter(|status| status.name == container).find_map(|status| status.state.as_ref());
    if state.is_some_and(|state| state.terminated.is_some()) {
        return "not running".to_owned();
    }
    let reason = state.and_then(|state| state.waiting.as_ref()?.reason.clone());
    format!("waiting to start: {}", reason.unwrap_or_else(|| "ContainerCreating".to_owned()))
}
