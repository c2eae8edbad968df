//! What is, of one pod: from the engine, the notes and the pulls; never from what was done.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use portreeve_engine::{
    ContainerState as EngineState, ContainerStatus, SandboxState as EngineSandboxState, SandboxStatus,
};
use portreeve_plan::{
    ContainerId, ContainerRecord, ContainerState, ContainerView, DesiredPod, Exit, History, ImageName, ImageView,
    Intent, NeededImage, ObservedPod, ResourcesView, SandboxId, SandboxRecord, SandboxState, SandboxView, Verdict,
    needed_images,
};
use tracing::warn;

use super::log_end::log_end;
use super::{PullState, Worker};
use crate::notes::Notes;
use crate::probes::Probed;
use crate::translate;

/// Longest termination message, in bytes.
const MAX_MESSAGE: u64 = 4096;

/// Records that were parsed once.
#[derive(Debug, Default)]
pub(super) struct Records {
    sandboxes: BTreeMap<SandboxId, Option<Arc<SandboxRecord>>>,
    containers: BTreeMap<ContainerId, Option<Arc<ContainerRecord>>>,
}

impl Records {
    fn sandbox(&mut self, id: &SandboxId, status: &SandboxStatus) -> Option<Arc<SandboxRecord>> {
        let parse = || parse(status.annotations.get(translate::RECORD), &id.0);
        self.sandboxes.entry(id.clone()).or_insert_with(parse).clone()
    }

    fn container(&mut self, id: &ContainerId, status: &ContainerStatus) -> Option<Arc<ContainerRecord>> {
        let parse = || parse(status.annotations.get(translate::RECORD), &id.0);
        self.containers.entry(id.clone()).or_insert_with(parse).clone()
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: Option<&String>, id: &str) -> Option<Arc<T>> {
    match serde_json::from_str(text?) {
        Ok(record) => Some(Arc::new(record)),
        Err(error) => {
            warn!(id, error = %error, "record was unreadable");
            None
        }
    }
}

impl Worker {
    /// Looks at everything that belongs to the pod.
    pub(super) fn observe(&mut self, desired: &DesiredPod) -> ObservedPod {
        let shared = Arc::clone(&self.shared);
        let belongings = shared.index.of(&self.uid);
        let mut observed = ObservedPod { host_ips: shared.node.host_ips.clone(), ..ObservedPod::default() };
        for id in &belongings.sandboxes {
            match shared.runtime.sandbox(id) {
                Some(status) => observed.sandboxes.push(self.sandbox_view(&status)),
                None => shared.index.remove_sandbox(&self.uid, id),
            }
        }
        let notes = self.book().notes.clone();
        for id in &belongings.containers {
            match shared.runtime.container(id) {
                Some(status) => {
                    let view = self.container_view(desired, &status, &notes);
                    if matches!(view.state, ContainerState::Running { .. }) {
                        observed.probes.insert(view.id.clone(), notes.of(id).verdicts());
                    }
                    observed.containers.push(view);
                }
                None => shared.index.remove_container(&self.uid, id),
            }
        }
        observed.sandboxes.sort_by_key(|sandbox| (sandbox.attempt, sandbox.created_at));
        observed.containers.sort_by(|a, b| (&a.name, a.attempt, a.created_at).cmp(&(&b.name, b.attempt, b.created_at)));
        observed.images = self.images(desired, &notes);
        observed.failures = self.failures.clone();
        observed.volumes = notes.volumes;
        observed.history = History { previous: notes.status, attempts: notes.attempts, past: self.past.past() };
        observed
    }

    fn sandbox_view(&mut self, status: &SandboxStatus) -> SandboxView {
        let id = SandboxId(status.id.as_str().to_owned());
        SandboxView {
            uid: self.uid.clone(),
            attempt: status.metadata.attempt,
            created_at: status.created_at,
            state: match &status.state {
                EngineSandboxState::Ready => SandboxState::Ready,
                EngineSandboxState::NotReady { reason } if reason == "stopped" => SandboxState::Stopped,
                EngineSandboxState::NotReady { reason } => SandboxState::Lost { reason: reason.clone(), at: None },
            },
            ips: status.ips.iter().map(ToString::to_string).collect(),
            record: self.records.sandbox(&id, status),
            id,
        }
    }

    fn container_view(&mut self, desired: &DesiredPod, status: &ContainerStatus, notes: &Notes) -> ContainerView {
        let id = ContainerId(status.id.as_str().to_owned());
        let record = self.records.container(&id, status);
        // The policy is live, as probes are; of a container that the spec has no more its last one counts.
        let wanted = desired.pod.spec.iter().flat_map(all_containers).find(|it| it.name == status.metadata.name);
        let log_counts = wanted
            .or(record.as_ref().map(|record| &record.container))
            .is_some_and(|it| it.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"));
        let own = notes.of(&status.id);
        let resources = own.resources.or_else(|| record.as_ref().map(|record| record.resources)).unwrap_or_default();
        ContainerView {
            uid: self.uid.clone(),
            sandbox: SandboxId(status.sandbox.as_str().to_owned()),
            name: status.metadata.name.clone(),
            attempt: status.metadata.attempt,
            created_at: status.created_at,
            state: self.container_state(status, log_counts),
            image: status.image.clone(),
            image_id: status.image_id.clone(),
            record,
            resources: ResourcesView::InEffect(resources),
            post_start: own.post_start(),
            stopping: own.stopping(),
            id,
        }
    }

    fn container_state(&self, status: &ContainerStatus, log_counts: bool) -> ContainerState {
        match status.state {
            EngineState::Created => ContainerState::Created,
            EngineState::Running => {
                ContainerState::Running { started_at: status.started_at.unwrap_or(status.created_at) }
            }
            EngineState::Unknown => ContainerState::Unknown,
            EngineState::Exited => {
                let exit = status.exit.unwrap_or_default();
                let message = Some(status.message.clone())
                    .filter(|message| !message.is_empty())
                    .or_else(|| self.termination_message(&status.metadata.name, status.metadata.attempt))
                    .or_else(|| {
                        status.log_path.as_ref().filter(|_| log_counts && exit.code != 0).map(|log| said_last(log))
                    })
                    .filter(|message| !message.is_empty());
                ContainerState::Exited(Exit {
                    code: exit.code,
                    signal: exit.signal,
                    reason: Some(status.reason.clone()).filter(|reason| !reason.is_empty()),
                    message,
                    started_at: status.started_at,
                    finished_at: status.finished_at.unwrap_or(status.created_at),
                })
            }
        }
    }

    /// Where a container's termination message is written.
    pub(super) fn termination_log(&self, container: &str, attempt: u32) -> PathBuf {
        self.shared.volumes.disk_of(&self.uid.0).join("containers").join(container).join(attempt.to_string())
    }

    fn termination_message(&self, container: &str, attempt: u32) -> Option<String> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.termination_log(container, attempt);
        // Written by the container: never follow or wait for what it may have become.
        let file = std::fs::File::options()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
            .ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_MESSAGE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty())
    }

    fn images(&self, desired: &DesiredPod, notes: &Notes) -> BTreeMap<ImageName, ImageView> {
        let mut images = BTreeMap::new();
        let Some(spec) = &desired.pod.spec else {
            return images;
        };
        for NeededImage { name, .. } in all_containers(spec).flat_map(|container| needed_images(spec, container)) {
            if images.contains_key(&name) {
                continue;
            }
            let pull = self.pulls.get(&name);
            let view = match (self.shared.runtime.lookup_image(&name.0), pull) {
                (Err(message), _) => ImageView::Invalid { message },
                (Ok(_), Some(PullState::Running { after, progress, .. })) => {
                    ImageView::Pulling { after: after.clone(), progress: progress.words() }
                }
                (Ok(Some(facts)), pull) => {
                    let pulled_at = notes.pulled_at.get(&name.0).copied();
                    let failure = match pull {
                        Some(PullState::Failed(failure)) => Some(failure.clone()),
                        _ => None,
                    };
                    match facts.refused {
                        Some(message) => ImageView::Refused { message, pulled_at, failure },
                        None => ImageView::Present { id: facts.id, user: facts.user, pulled_at, failure },
                    }
                }
                (Ok(None), Some(PullState::Failed(failure))) => ImageView::Failed(failure.clone()),
                (Ok(None), None) => ImageView::Absent,
            };
            images.insert(name, view);
        }
        images
    }

    /// Runs the probes that are needed for what runs now.
    pub(super) fn ensure_probes(&mut self, desired: &DesiredPod, observed: &ObservedPod) {
        let leaving = desired.intent != Intent::Run;
        let nothing = portreeve_plan::ProbeVerdicts::default();
        let mut probed: Vec<(portreeve_engine::ContainerId, &Container, Timestamp, &_, bool)> = Vec::new();
        for view in &observed.containers {
            let ContainerState::Running { started_at } = view.state else {
                continue;
            };
            // Probes are live: those of the present spec count, not those the container began with.
            let wanted = desired.pod.spec.iter().flat_map(all_containers).find(|container| container.name == view.name);
            let (Some(container), Ok(id)) = (wanted, view.id.0.parse()) else {
                continue;
            };
            let verdicts = observed.probes.get(&view.id).unwrap_or(&nothing);
            probed.push((id, container, started_at, verdicts, leaving || view.stopping.is_some()));
        }
        let host = observed
            .sandboxes
            .iter()
            .rev()
            .find(|sandbox| sandbox.state == SandboxState::Ready)
            .and_then(|sandbox| sandbox.ips.first())
            .or_else(|| self.shared.node.host_ips.first());
        let containers: Vec<Probed<'_>> = probed
            .iter()
            .map(|(id, container, started_at, verdicts, stopping)| Probed {
                id,
                container,
                started_at: *started_at,
                verdicts,
                stopping: *stopping,
            })
            .collect();
        self.probes.ensure(&containers, host.map(String::as_str));
        self.drop_verdicts_of_removed_probes(&containers);
    }

    /// A probe that an edit took away has no say any more.
    fn drop_verdicts_of_removed_probes(&mut self, containers: &[Probed<'_>]) {
        for probed in containers {
            let mut book = self.book();
            let notes = book.notes.of_mut(probed.id);
            let mut verdicts = notes.verdicts();
            let container = probed.container;
            if container.startup_probe.is_none() {
                verdicts.startup = Verdict::Unknown;
            }
            if container.liveness_probe.is_none() {
                verdicts.liveness = Verdict::Unknown;
            }
            if container.readiness_probe.is_none() {
                verdicts.readiness = Verdict::Unknown;
            }
            notes.set_verdicts(&verdicts);
        }
    }
}

fn said_last(log: &Path) -> String {
    log_end(log).unwrap_or_else(|error| format!("reading the end of the log {}: {error}", log.display()))
}

/// Init containers and containers of a pod.
pub(super) fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// The containers of a pod that need an image, with each thing that they need it for.
pub(super) fn needing<'a>(
    desired: &'a DesiredPod,
    image: &'a str,
) -> impl Iterator<Item = (&'a Container, NeededImage<'a>)> {
    let spec = desired.pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| all_containers(spec).map(move |container| (spec, container)));
    all.flat_map(move |(spec, container)| {
        let needed = needed_images(spec, container).filter(move |needed| needed.name.0 == image);
        needed.map(move |needed| (container, needed))
    })
}
