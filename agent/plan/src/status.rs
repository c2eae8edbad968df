//! What to tell about a pod: the whole `PodStatus`, as a kubelet would write it.
//!
//! Beside the kubelet's conditions there are two of our own, present only while they are true:
//! [`STALE`] names containers whose environment uses values that have changed since they were
//! started, [`PENDING_CHANGE`] names edits that are not carried out yet because what they ask for
//! could not start.

mod containers;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portreeve_manifests::qos_class;

use crate::desired::{DesiredPod, Finished, Intent, Terminal};
use crate::fate::{hold, stale};
use crate::observed::{Attempted, History, ObservedPod};
use crate::plan::{DRAINED_REASON, resources_differ, terminal};
use crate::sandbox::{SandboxFate, sandbox_fate, was_drained};
use crate::world::{Role, World, is_running};
use containers::{container_status, init_passed};

/// Type of the condition that names containers with an outdated environment.
pub const STALE: &str = "portreeve.dev/Stale";
/// Type of the condition that names edits that wait for something.
pub const PENDING_CHANGE: &str = "portreeve.dev/PendingChange";

/// The status of a pod. Transition times come from `observed.history.previous`.
pub fn status(desired: &DesiredPod, observed: &ObservedPod, now: Timestamp) -> PodStatus {
    let world = World::new(desired, observed, now);
    let runs = world.containers.iter().any(|view| is_running(view));
    let finished = match desired.intent {
        Intent::Run => terminal(&world),
        Intent::Rest { .. } if !runs => terminal(&world),
        Intent::Rest { .. } | Intent::Remove { .. } => desired.finished.clone(),
    };
    if let Some(Finished { status: Some(last), .. }) = &finished
        && world.containers.is_empty()
    {
        // The records are gone (a reboot): what the ledger kept is all there is.
        return PodStatus { observed_generation: Some(desired.generation), ..(**last).clone() };
    }
    let through = finished.is_some() || desired.intent != Intent::Run;
    let of = |init: bool| -> Vec<ContainerStatus> {
        let slots = world.slots.iter().filter(|slot| (slot.role != Role::Main) == init);
        slots.map(|slot| container_status(&world, slot, through)).collect()
    };
    let (init, main) = (of(true), of(false));
    let drained = matches!(desired.intent, Intent::Rest { .. });
    // Source: kubernetes `nodeshutdown_manager.go` killPods: what ran and has not succeeded has failed.
    let stopped = drained && finished.is_none() && !runs && world.home().is_some();
    let (phase, reason, message) = match (&finished, &desired.blocked) {
        (Some(end), _) => (end.terminal.phase(), end.reason.clone(), end.message.clone()),
        (None, _) if drained => {
            let message = "the node is drained; the pod starts when the agent starts again".to_owned();
            let phase = if stopped { Terminal::Failed.phase() } else { phase(&world, &main) };
            (phase, Some(DRAINED_REASON.to_owned()), Some(message))
        }
        (None, Some(blocked)) if world.ready_home().is_none() => {
            ("Pending", Some(blocked.reason.clone()), Some(blocked.message.clone()))
        }
        (None, _) => (phase(&world, &main), None, None),
    };
    let terminal = finished.as_ref().map(|end| end.terminal).or(stopped.then_some(Terminal::Failed));
    let conditions = conditions(&world, terminal, &init, &main);
    let mut ips = ips(&world);
    if ips.is_empty() && world.ready_home().is_none() {
        // Source: kubernetes `pleg/generic.go` getPodIPs: the last ones, until there are others.
        let previous = world.observed.history.previous.as_ref();
        let last = previous.and_then(|status| status.pod_ips.as_ref());
        ips.extend(last.into_iter().flatten().map(|last| last.ip.clone()));
    }
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        reason,
        message,
        host_ip: observed.host_ips.first().cloned(),
        host_ips: some(observed.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: some(ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: Some(Time(world.start_time())),
        init_container_statuses: some(init),
        container_statuses: Some(main),
        qos_class: Some(qos_class(desired.spec()).to_string()),
        observed_generation: Some(desired.generation),
        ..PodStatus::default()
    }
}

/// The history to hand back with the next observation, given the status just computed. Whoever
/// persists it keeps restart counts and transition times over a reboot.
pub fn remember(observed: &ObservedPod, status: PodStatus) -> History {
    let mut history = observed.history.clone();
    let seen = observed.containers.iter().map(|view| (&view.name, view.attempt));
    let records = observed.sandboxes.iter().filter_map(|sandbox| sandbox.record.as_ref());
    let carried = records.flat_map(|record| &record.carried).map(|(name, c)| (name, c.attempt));
    for (name, attempt) in seen.chain(carried) {
        let next = history.attempts.entry(name.clone()).or_default();
        *next = (*next).max(attempt.saturating_add(1));
    }
    history.previous = Some(Arc::new(status));
    history
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn ips(world: &World<'_>) -> Vec<String> {
    if world.desired.spec().host_network == Some(true) {
        return world.home().map_or_else(Vec::new, |_| world.observed.host_ips.clone());
    }
    world.home().map_or_else(Vec::new, |home| home.ips.clone())
}

/// Source: kubernetes `kubelet_pods.go` getPhase.
fn phase(world: &World<'_>, main: &[ContainerStatus]) -> &'static str {
    let inits = || world.slots.iter().filter(|slot| slot.role != Role::Main);
    if !world.initialized() && !inits().all(|slot| init_passed(world, slot)) {
        return "Pending";
    }
    let never_ran = |status: &ContainerStatus| {
        let waits = status.state.as_ref().is_none_or(|state| state.waiting.is_some());
        let last = status.last_state.as_ref();
        waits && last.is_none_or(|last| last.terminated.is_none())
    };
    if main.is_empty() || main.iter().any(never_ran) {
        return "Pending";
    }
    // If every container has ended for good, `terminal` has said so before.
    "Running"
}

fn conditions(
    world: &World<'_>,
    terminal: Option<Terminal>,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let blocked = world.desired.blocked.as_ref().filter(|_| world.ready_home().is_none());
    let sandbox = world.ready_home().is_some();
    let mut list = vec![
        condition("PodReadyToStartContainers", sandbox, None, None),
        initialized(world, terminal, init),
        ready(world, "Ready", terminal, main),
        ready(world, "ContainersReady", terminal, main),
        match blocked {
            None => condition("PodScheduled", true, None, None),
            Some(blocked) => condition("PodScheduled", false, Some(&blocked.reason), Some(blocked.message.clone())),
        },
    ];
    if was_drained(world) && terminal == Some(Terminal::Failed) {
        let message = "the node was drained".to_owned();
        list.push(condition("DisruptionTarget", true, Some("TerminationByKubelet"), Some(message)));
    }
    if terminal.is_none() {
        list.extend(stale_condition(world));
        list.extend(pending_change(world));
        list.extend(resize(world));
    }
    let previous = world.observed.history.previous.as_ref();
    let previous = previous.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    for condition in &mut list {
        let before = previous.iter().find(|before| before.type_ == condition.type_);
        let unchanged = before.filter(|before| before.status == condition.status);
        condition.last_transition_time =
            unchanged.and_then(|before| before.last_transition_time.clone()).or(Some(Time(world.now)));
        condition.observed_generation = Some(world.desired.generation);
    }
    list
}

fn condition(type_: &str, holds: bool, reason: Option<&str>, message: Option<String>) -> PodCondition {
    PodCondition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.map(str::to_owned),
        message,
        ..PodCondition::default()
    }
}

fn initialized(world: &World<'_>, terminal: Option<Terminal>, init: &[ContainerStatus]) -> PodCondition {
    if terminal == Some(Terminal::Succeeded) {
        return condition("Initialized", true, Some("PodCompleted"), None);
    }
    if world.initialized() {
        return condition("Initialized", true, None, None);
    }
    let slots = world.slots.iter().filter(|slot| slot.role != Role::Main);
    let incomplete: Vec<&str> = slots.filter(|slot| !init_passed(world, slot)).map(|slot| slot.name()).collect();
    if incomplete.is_empty() || init.is_empty() {
        return condition("Initialized", true, None, None);
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    condition("Initialized", false, Some("ContainersNotInitialized"), Some(message))
}

fn ready(world: &World<'_>, type_: &str, terminal: Option<Terminal>, main: &[ContainerStatus]) -> PodCondition {
    match terminal {
        Some(Terminal::Succeeded) => return condition(type_, false, Some("PodCompleted"), None),
        Some(Terminal::Failed) => return condition(type_, false, Some("PodFailed"), None),
        None => {}
    }
    let unready: Vec<&str> = main.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    if unready.is_empty() && !main.is_empty() && world.ready_home().is_some() {
        return condition(type_, true, None, None);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    condition(type_, false, Some("ContainersNotReady"), Some(message))
}

fn stale_condition(world: &World<'_>) -> Option<PodCondition> {
    let stale: Vec<String> = world
        .slots
        .iter()
        .filter_map(|slot| {
            let view = world.latest(slot.name()).filter(|view| is_running(view))?;
            let keys = stale(world, slot, view);
            let name = slot.name();
            (!keys.is_empty()).then(|| format!("container {name} uses older {}", keys.join(", ")))
        })
        .collect();
    let message = format!("{}; restart the pod to take it", stale.join("; "));
    let condition = condition(STALE, true, Some("ConfigurationChanged"), Some(message));
    (!stale.is_empty()).then_some(condition)
}

fn pending_change(world: &World<'_>) -> Option<PodCondition> {
    let mut held = Vec::new();
    if let SandboxFate::Keep { held: Some((because, obstacle)), .. } = sandbox_fate(world) {
        held.push((obstacle.reason.clone(), format!("{because}: {}", obstacle.message)));
    }
    for hold in world.slots.iter().filter_map(|slot| hold(world, slot)) {
        let message = format!("{}: {}", hold.because, hold.obstacle.message);
        held.push((hold.obstacle.reason, message));
    }
    let (reason, _) = held.first()?.clone();
    let messages: Vec<String> = held.into_iter().map(|(_, message)| message).collect();
    Some(condition(PENDING_CHANGE, true, Some(&reason), Some(messages.join("; "))))
}

/// The kubelet's condition for a resize that was tried and refused.
fn resize(world: &World<'_>) -> Option<PodCondition> {
    let refused: Vec<String> = world
        .slots
        .iter()
        .filter_map(|slot| {
            let view = world.latest(slot.name())?;
            resources_differ(slot, view)?;
            let failure = world.failure(&Attempted::Resources(slot.name().to_owned()))?;
            Some(format!("container {}: {}", slot.name(), failure.message))
        })
        .collect();
    let condition = condition("PodResizeInProgress", true, Some("Error"), Some(refused.join("; ")));
    (!refused.is_empty()).then_some(condition)
}
