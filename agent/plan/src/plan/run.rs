//! How a pod comes to run, and keeps running.
//!
//! Order: kill what must not run, release lost sandboxes, pull, replace what an edit changed, mount,
//! make the sandbox, remove what is superseded, start containers in order, then what can wait.

use std::collections::BTreeSet;

use crate::difference::Cost;
use crate::fate::{Fate, Replace, Start, fate, hold, pod_grace, start_after};
use crate::observed::{ContainerState, SandboxView};
use crate::plan::clear::{kill_unwanted, remove_superseded, stop_others};
use crate::plan::draft::{Draft, kill_all};
use crate::plan::round::{Go, Round, pull};
use crate::plan::upkeep::{mount, refresh, unmount_changed, update_resources};
use crate::ready::Obstacle;
use crate::sandbox::{self, Replacement, SandboxFate, sandbox_fate};
use crate::step::{Action, KillCause, WaitKind};
use crate::world::{Slot, World, is_running};

/// Writes the steps that bring the pod closer to running as desired.
pub(super) fn run(world: &World<'_>, draft: &mut Draft) {
    if let Some(deadline) = world.deadline() {
        draft.wake(deadline);
    }
    match sandbox_fate(world) {
        SandboxFate::Ended { reason } => {
            let grace = std::time::Duration::ZERO;
            kill_all(world, draft, KillCause::SandboxLost, grace, (&reason, &Cost::Remove));
        }
        SandboxFate::Keep { home, held } => {
            let is_held = held.is_some();
            if let Some((because, obstacle)) = held {
                draft.wait(None, held_back(&because, obstacle));
            }
            keep(world, draft, home, is_held);
        }
        SandboxFate::Create(replacement) => create(world, draft, &replacement),
    }
}

/// The obstacle of an edit that is not carried out yet.
fn held_back(because: &str, obstacle: Obstacle) -> Obstacle {
    let message = format!("kept as it was although {because}: {}", obstacle.message);
    Obstacle { message, ..obstacle }
}

/// The sandbox stays.
fn keep(world: &World<'_>, draft: &mut Draft, home: &SandboxView, is_held: bool) {
    let fates: Vec<_> = world.slots.iter().map(|slot| (*slot, fate(world, slot))).collect();
    for slot in &world.slots {
        if let Some(hold) = hold(world, slot) {
            draft.wait(Some(slot.name()), held_back(&hold.because, hold.obstacle));
        }
    }
    kill_unwanted(world, draft, home);
    for (_, fate) in &fates {
        if let Fate::Replace(replace) = fate
            && replace.then.is_none()
        {
            kill_one(draft, replace);
        }
    }
    stop_others(world, draft, Some(home));
    let mut round = Round::default();
    round.fill(world, draft, fates, world.initialized());
    block_on_volumes(world, draft, &mut round);
    pull(draft, std::mem::take(&mut round.pulls));
    let replaced: Vec<&Replace<'_>> = round
        .go
        .iter()
        .filter_map(|go| match go {
            Go::Make { kill: Some(replace), .. } => Some(&**replace),
            _ => None,
        })
        .collect();
    for replace in &replaced {
        kill_one(draft, replace);
    }
    let dying: BTreeSet<&str> = replaced.iter().map(|replace| replace.view.name.as_str()).collect();
    // The volumes of an edit that is held back are made with the sandbox that needs them.
    if !is_held || round.makes() {
        mount(world, draft, |name, _| !world.observed.volumes.contains_key(name));
    }
    remove_superseded(world, draft, Some(home), &dying);
    round.tell_later(draft, None);
    start(world, draft, Some(home), std::mem::take(&mut round.go));
    update_resources(world, draft, &dying);
    pull(draft, round.early);
    refresh(world, draft);
}

/// Another sandbox is needed.
fn create(world: &World<'_>, draft: &mut Draft, replacement: &Replacement) {
    let because = (replacement.reason.as_str(), &replacement.cost);
    if replacement.lost() {
        // Nothing can be saved in it, so it goes before anything that may fail.
        let grace = std::time::Duration::ZERO;
        if !kill_all(world, draft, KillCause::SandboxLost, grace, because) {
            return;
        }
        stop_others(world, draft, None);
        if world.containers.iter().any(|view| is_running(view)) {
            return; // How they end decides how long their successors wait.
        }
    }
    let fates = world
        .slots
        .iter()
        .map(|slot| {
            let carried = sandbox::one(world, slot);
            (*slot, start_after(world, slot, carried, replacement.lost()))
        })
        .collect();
    let mut round = Round::default();
    round.fill(world, draft, fates, false);
    block_on_volumes(world, draft, &mut round);
    pull(draft, std::mem::take(&mut round.pulls));
    if let Some(blocked) = &world.desired.blocked {
        draft.wait(None, Obstacle::fault(&blocked.reason, &blocked.message));
        return;
    }
    if !round.makes() {
        round.tell_later(draft, None);
        return;
    }
    if let Some(at) = replacement.at.filter(|at| *at > world.now) {
        let (reason, message) = ("SandboxBackOff".to_owned(), replacement.reason.clone());
        draft.wait(None, Obstacle { reason, kind: WaitKind::BackOff, message, until: Some(at) });
        return;
    }
    if !replacement.lost() {
        let cause = replacement.cause.unwrap_or(KillCause::Unwanted);
        if !kill_all(world, draft, cause, pod_grace(world), because) {
            round.tell_later(draft, Some("what runs has stopped"));
            return;
        }
        stop_others(world, draft, None);
    }
    round.tell_later(draft, None);
    unmount_changed(world, draft);
    mount(world, draft, |name, wanted| {
        let mounted = world.observed.volumes.get(name);
        mounted.is_none_or(|mounted| mounted.definition != wanted.record.definition)
    });
    let action = Action::CreateSandbox { attempt: world.next_sandbox_attempt(), backoff: replacement.backoff };
    draft.push(action, replacement.reason.clone(), replacement.cost.clone());
    remove_superseded(world, draft, None, &BTreeSet::new());
    start(world, draft, None, round.go);
    pull(draft, round.early);
    refresh(world, draft);
}

fn kill_one(draft: &mut Draft, replace: &Replace<'_>) {
    let because = (replace.reason.clone(), replace.cost());
    draft.kill(replace.view, replace.grace, replace.pre_stop, replace.cause, because);
}

fn start(world: &World<'_>, draft: &mut Draft, home: Option<&SandboxView>, go: Vec<Go<'_>>) {
    for go in go {
        match go {
            Go::Hook { slot, view } => hook(draft, &slot, view.attempt),
            Go::Make { slot, start, kill } => {
                let newest = home.and_then(|_| world.latest(slot.name()));
                let created = newest.filter(|view| view.state == ContainerState::Created);
                if let Some(unusable) = created.filter(|_| start.created.is_none()) {
                    let reason = "it was created for something else, or could not be started";
                    draft.remove(unusable, reason, Cost::Live);
                }
                make(world, draft, &slot, &start, kill.as_deref());
            }
        }
    }
}

fn make(world: &World<'_>, draft: &mut Draft, slot: &Slot<'_>, start: &Start<'_>, kill: Option<&Replace<'_>>) {
    let cost = kill.map_or(Cost::Live, Replace::cost);
    let container = slot.name().to_owned();
    let reason = start.reason.clone();
    let mut attempt = world.next_attempt(slot.name());
    if let Some(created) = start.created {
        attempt = created.attempt;
    } else {
        let (container, backoff) = (container.clone(), start.backoff);
        let action = Action::CreateContainer { container, attempt, backoff };
        draft.push(action, reason.clone(), cost.clone());
    }
    draft.push(Action::StartContainer { container, attempt }, reason, cost);
    if slot.has_post_start() {
        hook(draft, slot, attempt);
    }
}

fn hook(draft: &mut Draft, slot: &Slot<'_>, attempt: u32) {
    let container = slot.name().to_owned();
    let reason = format!("container {container} has a postStart hook");
    draft.push(Action::RunPostStart { container, attempt }, reason, Cost::Live);
}

/// While a volume cannot be made, no container is.
fn block_on_volumes(world: &World<'_>, draft: &mut Draft, round: &mut Round<'_>) {
    if let Some(obstacle) = sandbox::missing_volumes(world)
        && round.makes()
    {
        draft.wait(None, obstacle);
        round.give_up();
    }
}
