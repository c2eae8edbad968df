//! A plan while it is written.

use std::time::Duration;

use jiff::Timestamp;

use crate::backoff::step_retry_at;
use crate::difference::Cost;
use crate::observed::{Attempted, ContainerView};
use crate::ready::Obstacle;
use crate::step::{Action, Following, KillCause, Step, Wait, WaitKind};
use crate::world::{Role, World, is_running};

#[derive(Debug)]
pub(super) struct Draft {
    now: Timestamp,
    pub(super) steps: Vec<Step>,
    pub(super) waits: Vec<Wait>,
    pub(super) then: Vec<Following>,
    pub(super) wake_at: Option<Timestamp>,
}

impl Draft {
    pub(super) fn new(now: Timestamp) -> Draft {
        Draft { now, steps: Vec::new(), waits: Vec::new(), then: Vec::new(), wake_at: None }
    }

    pub(super) fn push(&mut self, action: Action, reason: impl Into<String>, cost: Cost) {
        self.steps.push(Step { action, reason: reason.into(), cost });
    }

    /// Notes a moment at which the answer may change.
    pub(super) fn wake(&mut self, at: Timestamp) {
        if at > self.now {
            self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
        }
    }

    pub(super) fn wait(&mut self, container: Option<&str>, obstacle: Obstacle) {
        if let Some(until) = obstacle.until {
            self.wake(until);
        }
        let wait = Wait {
            container: container.map(str::to_owned),
            reason: obstacle.reason,
            kind: obstacle.kind,
            message: obstacle.message,
            until: obstacle.until,
        };
        if !self.waits.contains(&wait) {
            self.waits.push(wait);
        }
    }

    /// Notes that a later plan starts this container.
    pub(super) fn follow(&mut self, container: &str, when: &str) {
        let container = container.to_owned();
        match self.then.iter_mut().find(|following| following.when == when) {
            Some(following) => following.containers.push(container),
            None => self.then.push(Following { containers: vec![container], when: when.to_owned() }),
        }
    }

    pub(super) fn kill(
        &mut self,
        view: &ContainerView,
        grace: Duration,
        pre_stop: bool,
        cause: KillCause,
        (reason, cost): (String, Cost),
    ) {
        let action =
            Action::KillContainer { id: view.id.clone(), container: view.name.clone(), grace, pre_stop, cause };
        self.push(action, reason, cost);
    }

    pub(super) fn remove(&mut self, view: &ContainerView, reason: impl Into<String>, cost: Cost) {
        let (id, container) = (view.id.clone(), view.name.clone());
        self.push(Action::RemoveContainer { id, container }, reason, cost);
    }

    /// Cuts the plan before the first step whose kind failed and may not be tried again yet.
    pub(super) fn hold_back_failed(&mut self, world: &World<'_>) {
        let failing = |step: &Step| {
            let attempted = attempted(&step.action)?;
            let failure = world.failure(&attempted)?;
            (step_retry_at(failure) > self.now).then_some(failure)
        };
        let first = self.steps.iter().enumerate().find_map(|(at, step)| Some((at, failing(step)?)));
        let Some((at, failure)) = first else { return };
        self.steps.truncate(at);
        self.wait(None, Obstacle::failed(failure, WaitKind::Retry, step_retry_at(failure)));
    }
}

/// The kind of step that holds back the whole plan after a failure.
fn attempted(action: &Action) -> Option<Attempted> {
    match action {
        Action::MountVolumes { .. } | Action::RefreshVolumes { .. } | Action::UnmountVolumes { .. } => {
            Some(Attempted::Volumes)
        }
        Action::CreateSandbox { .. } => Some(Attempted::Sandbox),
        Action::KillContainer { .. }
        | Action::RemoveContainer { .. }
        | Action::StopSandbox { .. }
        | Action::RemoveSandbox { .. }
        | Action::RecordFinished { .. } => Some(Attempted::Removal),
        // Failed pulls and containers hold back their own container only.
        Action::PullImage { .. }
        | Action::CreateContainer { .. }
        | Action::StartContainer { .. }
        | Action::RunPostStart { .. }
        | Action::UpdateResources { .. } => None,
    }
}

/// Kills every running container of the pod: first all that are no sidecars, together; once these
/// are gone the sidecars, the last one first. Says whether nothing runs after these steps.
pub(super) fn kill_all(
    world: &World<'_>,
    draft: &mut Draft,
    cause: KillCause,
    grace: Duration,
    (reason, cost): (&str, &Cost),
) -> bool {
    let role = |view: &ContainerView| {
        let at = world.slots.iter().position(|slot| slot.name() == view.name)?;
        let slot = world.slots.get(at)?;
        (slot.role == Role::Sidecar).then_some(at)
    };
    let gone = world.ready_home().is_none();
    let mut kill = |view: &ContainerView| {
        let slot = world.slots.iter().find(|slot| slot.name() == view.name);
        let (mut pre_stop, mut grace) = (slot.is_some_and(|slot| slot.has_pre_stop()), grace);
        if let Some(stopping) = &view.stopping {
            pre_stop &= !stopping.pre_stop_ran;
            grace = grace.min(crate::backoff::between(world.now, stopping.deadline));
        }
        let because = (reason.to_owned(), cost.clone());
        draft.kill(view, grace, pre_stop && !gone, cause, because);
    };
    let running = || world.containers.iter().copied().filter(|view| is_running(view));
    let mut sidecars: Vec<_> = running().filter_map(|view| Some((role(view)?, view))).collect();
    let mut others = false;
    for view in running().filter(|view| role(view).is_none()) {
        kill(view);
        others = true;
    }
    sidecars.sort_by_key(|(at, view)| (*at, view.attempt));
    if others {
        return sidecars.is_empty();
    }
    if let Some((_, last)) = sidecars.last() {
        kill(last);
    }
    sidecars.len() <= 1
}
