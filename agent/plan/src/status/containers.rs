//! The statuses of the containers of one pod.

use k8s_openapi::api::core::v1::{
    ContainerState as State, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::desired::Intent;
use crate::fate::{Fate, Start, fate};
use crate::observed::{ContainerId, ContainerState, ContainerView, Exit, SandboxState, Verdict};
use crate::plan::DRAINED_REASON;
use crate::ready::{Readiness, readiness};
use crate::resources::{Resources, ResourcesView};
use crate::sandbox::{missing_volumes, one};
use crate::world::{Role, Slot, World, exit_of, is_running};

/// The status of the container of `slot`.
pub(super) fn container_status(world: &World<'_>, slot: &Slot<'_>, ended: bool) -> ContainerStatus {
    let newest = world.latest(slot.name()).or_else(|| world.instances(slot.name()).last());
    let state = state(world, slot, newest, ended);
    let carried = one(world, slot);
    let waiting = state.waiting.is_some();
    let current = newest.filter(|_| !waiting || newest.is_some_and(|view| exit_of(view).is_none()));
    let before = world
        .instances(slot.name())
        .filter(|view| current.is_none_or(|current| current.id != view.id))
        .filter_map(|view| Some(terminated(exit_of(view)?, Some(&view.id))))
        .last();
    // What went with an earlier sandbox, unless it is what `state` shows.
    let earlier = world
        .carried(slot.name())
        .filter(|carried| {
            let shown = state.terminated.as_ref().and_then(|shown| shown.container_id.as_ref());
            shown.is_none() || shown != carried.id.as_ref().map(id).as_ref()
        })
        .and_then(|carried| Some(terminated(carried.exit?, carried.id.as_ref())));
    let last = before.or(earlier);
    let started = newest.is_some_and(|view| world.started(slot, view));
    let attempt = newest.map(|view| view.attempt).or(carried.map(|carried| carried.attempt));
    let spec_image = slot.container.image.clone().unwrap_or_default();
    let resources = newest.and_then(|view| resources(slot, view));
    ContainerStatus {
        name: slot.container.name.clone(),
        image: newest.map_or(spec_image, |view| view.image.clone()),
        image_id: newest.map(|view| view.image_id.clone()).unwrap_or_default(),
        container_id: newest.map(|view| id(&view.id)),
        ready: ready(world, slot, newest, &state),
        started: Some(match slot.role {
            Role::Init => newest.is_some_and(is_running),
            Role::Sidecar | Role::Main => started,
        }),
        restart_count: attempt.and_then(|attempt| i32::try_from(attempt).ok()).unwrap_or(0),
        last_state: last.map(|terminated| State { terminated: Some(terminated), ..State::default() }),
        allocated_resources: resources.as_ref().and_then(|resources| resources.requests.clone()),
        resources,
        state: Some(state),
        ..ContainerStatus::default()
    }
}

/// An id in the API's words.
fn id(id: &ContainerId) -> String {
    format!("portreeve://{id}")
}

fn state(world: &World<'_>, slot: &Slot<'_>, newest: Option<&ContainerView>, ended: bool) -> State {
    if let Some(ContainerState::Running { started_at }) = newest.map(|view| &view.state) {
        let running = ContainerStateRunning { started_at: Some(Time(*started_at)) };
        return State { running: Some(running), ..State::default() };
    }
    let exit = newest.and_then(|view| Some((exit_of(view)?, Some(&view.id))));
    let over =
        |exit: Exit, id: Option<&ContainerId>| State { terminated: Some(terminated(exit, id)), ..State::default() };
    if ended
        && newest.is_none()
        && let Some(carried) = one(world, slot)
    {
        return match carried.exit {
            Some(exit) => over(exit, carried.id.as_ref()),
            None => State { terminated: Some(unknown(carried.id.as_ref())), ..State::default() },
        };
    }
    let fate = fate(world, slot);
    match (fate, exit) {
        (_, Some((exit, id))) if ended => over(exit, id),
        (Fate::Done(_), Some((exit, id))) => over(exit, id),
        (Fate::Done(exit), None) => {
            let id = world.carried(slot.name()).and_then(|carried| carried.id);
            over(exit, id.as_ref())
        }
        (Fate::Start(start), exit) => match (waiting(world, slot, &start, newest), exit) {
            // Init containers are not asked again once they are through.
            (_, Some((exit, id))) if slot.role == Role::Init && world.initialized() => over(exit, id),
            (Some((reason, message)), _) => wait(&reason, message),
            (None, Some((exit, id))) => over(exit, id),
            (None, None) => wait(&creating(world, slot), None),
        },
        (_, Some((exit, id))) => over(exit, id),
        (_, None) => wait(&creating(world, slot), None),
    }
}

fn wait(reason: &str, message: Option<String>) -> State {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    State { waiting: Some(waiting), ..State::default() }
}

/// The reason of a container that is about to be made, or would be were the node not drained.
fn creating(world: &World<'_>, slot: &Slot<'_>) -> String {
    if matches!(world.desired.intent, Intent::Rest { .. }) {
        return DRAINED_REASON.to_owned();
    }
    let init = world.slots.iter().any(|slot| slot.role != Role::Main);
    let behind = slot.role == Role::Main && init && !world.initialized();
    if behind { "PodInitializing" } else { "ContainerCreating" }.to_owned()
}

/// Why a container that should be started is not.
fn waiting(
    world: &World<'_>,
    slot: &Slot<'_>,
    start: &Start<'_>,
    newest: Option<&ContainerView>,
) -> Option<(String, Option<String>)> {
    if let Some(at) = start.at.filter(|at| *at > world.now) {
        let (key, uid) = (world.desired.key(), &world.desired.uid);
        let message = format!(
            "back-off {}s restarting failed container={} pod={}_{}({uid}), next try at {at:.0}",
            start.backoff.unwrap_or_default().as_secs(),
            slot.name(),
            key.name,
            key.namespace,
        );
        return Some(("CrashLoopBackOff".to_owned(), Some(message)));
    }
    let behind = creating(world, slot);
    if behind == "PodInitializing" {
        return Some((behind, None));
    }
    if slot.role != Role::Main && !world.initialized() && !is_next(world, slot) {
        return Some(("PodInitializing".to_owned(), None));
    }
    if let Some(obstacle) = missing_volumes(world) {
        return Some((behind, Some(obstacle.message)));
    }
    if start.created.is_none()
        && let Readiness::Blocked(obstacle) = readiness(world, slot.container, start.since)
    {
        let until = obstacle.until.map(|until| format!("; next try at {until:.0}"));
        let message = format!("{}{}", obstacle.message, until.unwrap_or_default());
        return Some((obstacle.reason, Some(message)));
    }
    if newest.is_some_and(|view| view.state == ContainerState::Created) {
        return Some((behind, None));
    }
    for attempted in [crate::observed::Attempted::Sandbox, crate::observed::Attempted::Volumes] {
        if let Some(failure) = world.failure(&attempted) {
            return Some((behind, Some(format!("{}: {}", failure.reason, failure.message))));
        }
    }
    None
}

/// Whether an init container is the one whose turn it is.
fn is_next(world: &World<'_>, slot: &Slot<'_>) -> bool {
    let mut before = world.slots.iter().take_while(|other| other.name() != slot.name());
    before.all(|other| init_passed(world, other))
}

/// Whether the containers after an init container may start.
pub(super) fn init_passed(world: &World<'_>, slot: &Slot<'_>) -> bool {
    match (slot.role, fate(world, slot)) {
        (Role::Init, Fate::Done(exit)) => exit.code == 0,
        (Role::Sidecar, Fate::Keep(view) | Fate::Replace(crate::fate::Replace { view, .. })) => {
            world.started(slot, view)
        }
        (Role::Init | Role::Sidecar, _) => false,
        (Role::Main, _) => true,
    }
}

fn ready(world: &World<'_>, slot: &Slot<'_>, newest: Option<&ContainerView>, state: &State) -> bool {
    if slot.role == Role::Init {
        return state.terminated.as_ref().is_some_and(|terminated| terminated.exit_code == 0);
    }
    let Some(view) = newest.filter(|_| state.running.is_some()) else { return false };
    let in_sandbox = world.home().is_some_and(|home| home.id == view.sandbox && home.state == SandboxState::Ready);
    let probe = slot.container.readiness_probe.is_none() || world.probes(view).readiness == Verdict::Success;
    in_sandbox && world.started(slot, view) && probe
}

/// The end of a container of which no trace is left.
///
/// Source: kubernetes `kubelet_pods.go` convertToAPIContainerStatuses.
fn unknown(container: Option<&ContainerId>) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: container.map(id),
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        ..ContainerStateTerminated::default()
    }
}

fn terminated(exit: Exit, container: Option<&ContainerId>) -> ContainerStateTerminated {
    let reason = if exit.code == 0 { "Completed" } else { "Error" };
    ContainerStateTerminated {
        container_id: container.map(id),
        exit_code: exit.code,
        signal: exit.signal,
        reason: Some(exit.reason.unwrap_or_else(|| reason.to_owned())),
        message: exit.message,
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
    }
}

/// The limits in effect, in the words of the spec where they are the same.
fn resources(slot: &Slot<'_>, view: &ContainerView) -> Option<ResourceRequirements> {
    let wanted = Resources::of(slot.container);
    match &view.resources {
        ResourcesView::InEffect(found) if *found != wanted => Some(found.to_requirements()),
        _ => slot.container.resources.clone(),
    }
}
