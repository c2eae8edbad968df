//! How a pod leaves: removed by its user, or ended by itself.

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::{after, between};
use crate::desired::{Finished, Terminal};
use crate::difference::Cost;
use crate::fate::{Fate, fate, pod_grace};
use crate::observed::SandboxState;
use crate::plan::draft::{Draft, kill_all};
use crate::sandbox::{SandboxFate, recreate_differences, sandbox_fate, was_drained};
use crate::step::{Action, KillCause};
use crate::world::{Policy, Role, World, is_running};

/// Why a drained pod is stopped.
const DRAINED: &str = "the node is drained";
/// `status.reason` of a drained pod.
pub(crate) const DRAINED_REASON: &str = "Drained";
/// The least time a container gets to stop, as with the kubelet.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Takes the whole pod away.
pub(super) fn remove(world: &World<'_>, draft: &mut Draft, since: Timestamp, grace: Option<Duration>) {
    let reason = "the pod is removed";
    let left = left(world, since, grace);
    if !kill_all(world, draft, KillCause::PodRemoved, left, (reason, &Cost::Remove)) {
        return;
    }
    release(world, draft, reason, &Cost::Remove);
    for view in &world.containers {
        draft.remove(view, reason, Cost::Remove);
    }
    for sandbox in &world.sandboxes {
        draft.push(Action::RemoveSandbox { id: sandbox.id.clone() }, reason, Cost::Remove);
    }
}

/// What is left of a grace period that counts from `since`.
fn left(world: &World<'_>, since: Timestamp, grace: Option<Duration>) -> Duration {
    let grace = grace.unwrap_or_else(|| pod_grace(world));
    between(world.now, after(since, grace)).max(LEAST_GRACE.min(grace))
}

/// Whether nothing of the pod is left.
pub(super) fn is_gone(world: &World<'_>) -> bool {
    world.containers.is_empty() && world.sandboxes.is_empty() && world.observed.volumes.is_empty()
}

/// Stops the pod and keeps the records of its containers, for logs and status. A pod that has come
/// to its end thereby is recorded as ended.
///
/// Source: kubernetes `nodeshutdown/nodeshutdown_manager.go`, killPods.
pub(super) fn rest(
    world: &World<'_>,
    draft: &mut Draft,
    (since, grace): (Timestamp, Option<Duration>),
    finished: Option<Finished>,
) {
    let left = left(world, since, grace);
    if world.containers.iter().any(|view| is_running(view)) {
        kill_all(world, draft, KillCause::NodeDrained, left, (DRAINED, &Cost::Live));
        // How they end decides whether the pod has ended.
        return;
    }
    if let Some(finished) = finished.filter(|_| world.desired.finished.is_none()) {
        let finished = Box::new(finished);
        draft.push(Action::RecordFinished { finished }, DRAINED, Cost::Live);
    }
    release(world, draft, DRAINED, &Cost::Live);
}

/// Whether nothing of the pod runs or is held; records may be left.
pub(super) fn is_at_rest(world: &World<'_>) -> bool {
    let stopped = world.sandboxes.iter().all(|sandbox| sandbox.state == SandboxState::Stopped);
    stopped && !world.containers.iter().any(|view| is_running(view)) && world.observed.volumes.is_empty()
}

/// Ends a pod that is through: what runs is killed, the end is recorded, and then its sandbox and
/// volumes go. The records of its containers stay for logs and status; what it does not name any more has none: a later
/// container of that name is another.
pub(super) fn finish(world: &World<'_>, draft: &mut Draft, finished: &Finished) {
    let reason = match &finished.message {
        Some(message) => message.clone(),
        None => format!("the pod has {}", finished.terminal.phase().to_lowercase()),
    };
    let left = pod_grace(world);
    if !kill_all(world, draft, KillCause::PodFinished, left, (&reason, &Cost::Remove)) {
        return;
    }
    if world.desired.finished.is_none() {
        let finished = Box::new(finished.clone());
        draft.push(Action::RecordFinished { finished }, reason.clone(), Cost::Live);
    }
    for view in world.containers.iter().filter(|view| !world.slots.iter().any(|slot| slot.name() == view.name)) {
        draft.remove(view, format!("the pod has no container {}", view.name), Cost::Live);
    }
    release(world, draft, &reason, &Cost::Remove);
}

fn release(world: &World<'_>, draft: &mut Draft, reason: &str, cost: &Cost) {
    for sandbox in world.sandboxes.iter().filter(|s| s.state != SandboxState::Stopped) {
        draft.push(Action::StopSandbox { id: sandbox.id.clone() }, reason, cost.clone());
    }
    if !world.observed.volumes.is_empty() {
        let volumes = world.observed.volumes.keys().cloned().collect();
        draft.push(Action::UnmountVolumes { volumes }, reason, cost.clone());
    }
}

/// The end of the pod, if it has come.
pub(crate) fn terminal(world: &World<'_>) -> Option<Finished> {
    if let Some(finished) = &world.desired.finished {
        return Some(finished.clone());
    }
    let end = |terminal, reason: Option<&str>, message: Option<String>| {
        let reason = reason.map(str::to_owned);
        Some(Finished { terminal, reason, message, at: world.now, status: None })
    };
    // An edit that makes another pod of it begins anew what had ended.
    let edited = world.home().is_some_and(|home| !recreate_differences(world, home).is_empty());
    let mains = || world.slots.iter().filter(|slot| slot.role == Role::Main);
    let began = world.home().is_some() || world.past().is_some();
    if world.policy != Policy::Always && began && !edited {
        let exits: Vec<i32> = mains()
            .filter_map(|slot| match fate(world, slot) {
                Fate::Done(exit) => Some(exit.code),
                _ => None,
            })
            .collect();
        if exits.len() == mains().count() {
            let succeeded = exits.iter().all(|code| *code == 0);
            if succeeded {
                return end(Terminal::Succeeded, None, None);
            }
            let drained = was_drained(world).then_some("the node was drained while the pod ran");
            return end(Terminal::Failed, drained.map(|_| DRAINED_REASON), drained.map(str::to_owned));
        }
    }
    if world.policy == Policy::Never && !world.initialized() && !edited {
        for slot in world.slots.iter().filter(|slot| slot.role == Role::Init) {
            if let Fate::Done(exit) = fate(world, slot)
                && exit.code != 0
            {
                let name = slot.name();
                let message = format!("init container {name} ended with exit code {}", exit.code);
                return end(Terminal::Failed, None, Some(message));
            }
        }
    }
    if world.deadline().is_some_and(|deadline| world.now >= deadline) {
        // Source: kubernetes active_deadline.go.
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        return end(Terminal::Failed, Some("DeadlineExceeded"), Some(message));
    }
    if let SandboxFate::Ended { reason } = sandbox_fate(world)
        && !world.containers.iter().any(|view| is_running(view))
    {
        return end(Terminal::Failed, Some("SandboxLost"), Some(reason));
    }
    None
}
