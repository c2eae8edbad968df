//! What should become of the pod's sandbox.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::{after, between, crash_backoff};
use crate::difference::{Cost, Difference, container_differences, spec_differences};
use crate::fate::{Fate, fate};
use crate::observed::{Carried, SandboxState, SandboxView};
use crate::ready::{Obstacle, Readiness, readiness};
use crate::step::{KillCause, WaitKind};
use crate::volumes;
use crate::world::{Policy, Role, Slot, World, exit_of, is_running};

/// What should become of the newest sandbox.
#[derive(Debug)]
pub(crate) enum SandboxFate<'a> {
    /// It is what the pod needs, or what it must do with for now.
    Keep {
        home: &'a SandboxView,
        /// An edit asks for another one, which could not start.
        held: Option<(String, Obstacle)>,
    },
    /// Another one is needed.
    Create(Replacement),
    /// It is gone, and a pod that never restarts ends with it.
    Ended { reason: String },
}

/// A sandbox that is needed.
#[derive(Debug)]
pub(crate) struct Replacement {
    pub(crate) reason: String,
    pub(crate) cost: Cost,
    /// Why containers of the one before are killed; `None` if there is none before.
    pub(crate) cause: Option<KillCause>,
    /// Back-off before it, if it replaces a lost one.
    pub(crate) backoff: Option<Duration>,
    /// Not before this moment.
    pub(crate) at: Option<Timestamp>,
}

impl Replacement {
    pub(crate) fn lost(&self) -> bool {
        self.cause == Some(KillCause::SandboxLost)
    }
}

/// The fields for which the sandbox must be made again.
pub(crate) fn recreate_differences(world: &World<'_>, home: &SandboxView) -> Vec<Difference> {
    let Some(record) = &home.record else { return Vec::new() };
    let mut differences = spec_differences(&record.spec, world.desired.spec());
    differences.retain(|difference| difference.cost == Cost::Recreate);
    differences
}

pub(crate) fn sandbox_fate<'a>(world: &World<'a>) -> SandboxFate<'a> {
    let Some(home) = world.home() else {
        let ended = |reason: &str| SandboxFate::Ended { reason: reason.to_owned() };
        match world.past() {
            Some(past) if past.is_unknown() && world.policy != Policy::Always => {
                return ended("it had run already, and what it had come to cannot be read");
            }
            // Source: kubernetes `kuberuntime_manager.go` computePodActions: no second sandbox for a
            // pod that does not restart and has had containers.
            Some(_) if world.policy == Policy::Never => {
                return ended("it had run already when every record of it went, as at a reboot");
            }
            _ => {}
        }
        return SandboxFate::Create(Replacement {
            reason: "the pod has no sandbox".to_owned(),
            cost: Cost::Live,
            cause: None,
            backoff: None,
            at: None,
        });
    };
    let changes = recreate_differences(world, home);
    let (reason, lost_at) = match (&home.state, &home.record) {
        (SandboxState::Lost { reason, at }, _) => (reason.clone(), *at),
        (_, None) => ("its record cannot be read".to_owned(), None),
        (SandboxState::Ready, Some(_)) if changes.is_empty() => {
            return SandboxFate::Keep { home, held: None };
        }
        (SandboxState::Ready, Some(_)) => return edited(world, home, &changes),
        (SandboxState::Stopped, Some(_)) if !changes.is_empty() => {
            return edited(world, home, &changes);
        }
        // An edit brought back a pod that had ended.
        (SandboxState::Stopped, Some(_)) if wanted_again(world, home) => {
            return SandboxFate::Create(Replacement {
                reason: "the sandbox was stopped".to_owned(),
                cost: Cost::Recreate,
                cause: None,
                backoff: None,
                at: None,
            });
        }
        (SandboxState::Stopped, Some(_)) if was_drained(world) => {
            return SandboxFate::Create(Replacement {
                reason: "the node was drained".to_owned(),
                cost: Cost::Recreate,
                cause: None,
                backoff: None,
                at: None,
            });
        }
        (SandboxState::Stopped, Some(_)) => ("the sandbox was stopped".to_owned(), None),
    };
    let mut mains = world.slots.iter().filter(|slot| slot.role == Role::Main);
    if changes.is_empty() && world.policy == Policy::Never && mains.any(|slot| world.latest(slot.name()).is_some()) {
        return SandboxFate::Ended { reason };
    }
    let lost_at = lost_at.unwrap_or_else(|| last_sign(world, home));
    let used = home.record.as_ref().and_then(|record| record.backoff_seconds);
    let backoff = crash_backoff(used.map(Duration::from_secs), between(home.created_at, lost_at));
    SandboxFate::Create(Replacement {
        reason: format!("sandbox {} is lost: {reason}", home.attempt),
        cost: Cost::Recreate,
        cause: Some(KillCause::SandboxLost),
        backoff: Some(backoff),
        at: Some(after(lost_at, backoff)),
    })
}

/// Whether the pod goes on in another sandbox although we stopped this one and its spec would still
/// do. A pod that never restarts is recorded as ended before its sandbox is stopped: that it is to
/// run is news. Others go on after a loss too; what was asked for since then is not held back by it.
fn wanted_again(world: &World<'_>, home: &SandboxView) -> bool {
    let asked = world.desired.restart_requested_at.max(Some(world.desired.changed_at));
    world.policy == Policy::Never || asked > Some(last_sign(world, home))
}

/// Whether a drain stopped what ran in the newest sandbox: no loss, and nothing to back off from.
pub(crate) fn was_drained(world: &World<'_>) -> bool {
    let cause = |slot: &Slot<'_>| Some(world.latest(slot.name())?.stopping.as_ref()?.cause);
    world.slots.iter().any(|slot| cause(slot) == Some(KillCause::NodeDrained))
}

/// The last moment of which a sandbox left a trace.
fn last_sign(world: &World<'_>, home: &SandboxView) -> Timestamp {
    let containers = world.containers.iter().filter(|view| view.sandbox == home.id);
    let exits = containers.filter_map(|view| exit_of(view)).map(|exit| exit.finished_at);
    exits.max().map_or(home.created_at, |at| at.max(home.created_at))
}

fn edited<'a>(world: &World<'a>, home: &'a SandboxView, changes: &[Difference]) -> SandboxFate<'a> {
    let reason = changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if home.state == SandboxState::Ready
        && let Some(obstacle) = obstacle(world, home)
    {
        return SandboxFate::Keep { home, held: Some((reason, obstacle)) };
    }
    SandboxFate::Create(Replacement {
        reason,
        cost: Cost::Recreate,
        cause: Some(KillCause::PodChanged),
        backoff: None,
        at: None,
    })
}

/// Why the successor of a sandbox in which something runs could not start.
fn obstacle(world: &World<'_>, home: &SandboxView) -> Option<Obstacle> {
    let runs = |slot: &Slot<'_>| world.instances(slot.name()).any(|view| view.sandbox == home.id && is_running(view));
    if !world.slots.iter().any(runs) {
        return None;
    }
    if let Some(blocked) = &world.desired.blocked {
        return Some(Obstacle::fault(&blocked.reason, &blocked.message));
    }
    if let Some(missing) = missing_volumes(world) {
        return Some(missing);
    }
    let successors = world.slots.iter().filter(|slot| slot.role == Role::Init || runs(slot));
    successors
        .filter_map(|slot| match readiness(world, slot.container, world.desired.changed_at) {
            Readiness::Blocked(obstacle) => Some(obstacle),
            Readiness::Ready | Readiness::Pull { .. } => None,
        })
        .next()
}

/// What keeps a volume that is not mounted from being mounted.
pub(crate) fn missing_volumes(world: &World<'_>) -> Option<Obstacle> {
    let mut messages = Vec::new();
    for (name, wanted) in volumes::wanted(world.desired) {
        let mounted = world.observed.volumes.get(&name);
        if mounted.is_none_or(|mounted| mounted.definition != wanted.record.definition) && !wanted.missing.is_empty() {
            messages.push(format!("volume {name}: {}", wanted.missing.join(", ")));
        }
    }
    (!messages.is_empty()).then(|| Obstacle {
        reason: "FailedMount".to_owned(),
        kind: WaitKind::Volume,
        message: messages.join("; "),
        until: None,
    })
}

/// What each container has come to, for the record of the sandbox that follows.
pub(crate) fn carry(world: &World<'_>) -> BTreeMap<String, Carried> {
    let carried = world.slots.iter().filter_map(|slot| Some((slot.name().to_owned(), one(world, slot)?)));
    carried.collect()
}

/// What one container has come to. A container that is through stays so in the next sandbox, but
/// not in one that is made because the pod was edited: that pod begins anew.
pub(crate) fn one(world: &World<'_>, slot: &Slot<'_>) -> Option<Carried> {
    let edited = world.home().is_some_and(|home| !recreate_differences(world, home).is_empty());
    let latest = world.latest(slot.name());
    let Some(view) = latest.or_else(|| {
        world.home().is_none_or(|home| home.record.is_none()).then(|| world.instances(slot.name()).last())?
    }) else {
        let inherited = inherited(world, slot)?;
        return Some(Carried { completed: inherited.completed && !edited, ..inherited });
    };
    let through = || slot.role == Role::Main && latest.is_some() && matches!(fate(world, slot), Fate::Done(_));
    Some(Carried {
        attempt: view.attempt,
        backoff_seconds: view.record.as_ref().and_then(|record| record.backoff_seconds),
        exit: exit_of(view),
        completed: !edited && through(),
        id: Some(view.id.clone()),
    })
}

/// What a container that was never in the newest sandbox had come to before it. It counts as
/// completed only as long as the manifest says of it what it said when that sandbox was made, and
/// nobody asks for it.
pub(crate) fn inherited(world: &World<'_>, slot: &Slot<'_>) -> Option<Carried> {
    let Some(home) = world.home() else {
        return world.past()?.carried.get(slot.name()).cloned();
    };
    let record = home.record.as_ref()?;
    let carried = record.carried.get(slot.name())?.clone();
    let former = record.spec.containers.iter().find(|former| former.name == slot.name());
    let same = former.is_some_and(|former| {
        let differences = container_differences(former, slot.container);
        !differences.iter().any(|difference| matches!(difference.cost, Cost::Restart { .. }))
    });
    let asked = world.desired.restart_requested_at.is_some_and(|at| home.created_at < at);
    Some(Carried { completed: carried.completed && same && !asked, ..carried })
}
