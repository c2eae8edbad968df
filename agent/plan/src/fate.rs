//! What should become of one container: the rules of restart, edit and probe.
//!
//! ```text
//!              +-- edit, request, probe, hook --> Replace --(killed)--+
//!   Start --> Keep                                                    |
//!     ^        +-- exits --> ended() -- policy says no --> Done       |
//!     +------- policy, edit or request says again <----------------- -+
//! ```

use std::time::Duration;

use jiff::Timestamp;

use crate::RESTART_ON_CHANGE;
use crate::backoff::{after, between, crash_backoff};
use crate::difference::{Cost, Difference, container_differences};
use crate::env::{env_use, stale_keys};
use crate::observed::{Carried, ContainerView, Exit, HookState, Stopping, Verdict};
use crate::ready::{Obstacle, Readiness, readiness};
use crate::sandbox::inherited;
use crate::step::KillCause;
use crate::world::{Policy, Role, Slot, World, exit_of, is_running};

/// What should become of one container.
#[derive(Debug, Clone)]
pub(crate) enum Fate<'a> {
    /// It should be started.
    Start(Start<'a>),
    /// It runs, and should.
    Keep(&'a ContainerView),
    /// It runs, and must be killed.
    Replace(Replace<'a>),
    /// It has ended for good.
    Done(Exit),
}

/// A start that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Start<'a> {
    /// Not before this moment.
    pub(crate) at: Option<Timestamp>,
    /// The back-off that is kept before it; `None` if it is no restart.
    pub(crate) backoff: Option<Duration>,
    pub(crate) reason: String,
    /// A container that was created for it already.
    pub(crate) created: Option<&'a ContainerView>,
    /// A pull since then is recent enough.
    pub(crate) since: Timestamp,
}

/// A kill that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Replace<'a> {
    pub(crate) view: &'a ContainerView,
    pub(crate) cause: KillCause,
    pub(crate) reason: String,
    pub(crate) grace: Duration,
    pub(crate) pre_stop: bool,
    /// The start that follows at once; `None` if how it ends decides.
    pub(crate) then: Option<Start<'a>>,
}

impl Replace<'_> {
    pub(crate) fn cost(&self) -> Cost {
        Cost::Restart { container: self.view.name.clone() }
    }
}

/// Why a container that should be replaced is kept for now.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) because: String,
    pub(crate) obstacle: Obstacle,
}

/// What should become of the container of `slot` in the newest sandbox.
pub(crate) fn fate<'a>(world: &World<'a>, slot: &Slot<'a>) -> Fate<'a> {
    match world.latest(slot.name()) {
        None => absent(world, slot),
        Some(view) => match exit_of(view) {
            Some(exit) => ended(world, slot, view, exit),
            None if is_running(view) => running(world, slot, view),
            None => created(world, slot, view),
        },
    }
}

/// The fields for which a container must be restarted.
pub(crate) fn restart_differences(slot: &Slot<'_>, view: &ContainerView) -> Vec<Difference> {
    let Some(record) = &view.record else { return Vec::new() };
    let mut differences = container_differences(&record.container, slot.container);
    differences.retain(|difference| matches!(difference.cost, Cost::Restart { .. }));
    differences
}

/// The keys of its environment whose values are not those the container was started with.
pub(crate) fn stale(world: &World<'_>, slot: &Slot<'_>, view: &ContainerView) -> Vec<String> {
    let Some(record) = &view.record else { return Vec::new() };
    stale_keys(&record.env, &env_use(world.desired, slot.container).prints)
}

/// The replacement that is asked for but that cannot succeed now.
pub(crate) fn hold(world: &World<'_>, slot: &Slot<'_>) -> Option<Hold> {
    let view = world.latest(slot.name()).filter(|view| is_running(view))?;
    let asked = asked_to_replace(world, slot, view)?;
    match readiness(world, slot.container, asked.since) {
        Readiness::Blocked(obstacle) => Some(Hold { because: asked.reason, obstacle }),
        Readiness::Ready | Readiness::Pull { .. } => None,
    }
}

fn absent<'a>(world: &World<'a>, slot: &Slot<'a>) -> Fate<'a> {
    let lost =
        world.home().and_then(|home| home.record.as_ref()).is_some_and(|record| record.backoff_seconds.is_some());
    start_after(world, slot, inherited(world, slot), lost)
}

/// What should become of a container in a sandbox in which it has not been yet.
pub(crate) fn start_after<'a>(world: &World<'a>, slot: &Slot<'a>, carried: Option<Carried>, lost: bool) -> Fate<'a> {
    let name = slot.name();
    let fresh = |reason: String| {
        let since = world.desired.changed_at;
        Fate::Start(Start { at: None, backoff: None, reason, created: None, since })
    };
    let Some(carried) = carried else {
        return fresh(format!("container {name} has not run yet"));
    };
    match carried.exit {
        // It had ended before its sandbox went, and that was all of it.
        Some(exit) if carried.completed && !restarts(world, slot, &exit) => Fate::Done(exit),
        Some(exit) if lost => {
            let used = carried.backoff_seconds.map(Duration::from_secs);
            restart(world, slot, &exit, used, "its sandbox was replaced")
        }
        _ => fresh(format!("container {name} is made again in the new sandbox")),
    }
}

fn created<'a>(world: &World<'a>, slot: &Slot<'a>, view: &'a ContainerView) -> Fate<'a> {
    let usable = view.record.is_some() && restart_differences(slot, view).is_empty();
    // A start that failed leaves a container that cannot be started again.
    let failed = crate::observed::Attempted::Container(view.name.clone());
    let usable = usable && !world.observed.failures.contains_key(&failed);
    Fate::Start(Start {
        at: None,
        backoff: view.record.as_ref().and_then(|record| record.backoff()),
        reason: format!("container {} is created and not started", view.name),
        created: usable.then_some(view),
        since: Timestamp::MIN,
    })
}

fn ended<'a>(world: &World<'a>, slot: &Slot<'a>, view: &'a ContainerView, exit: Exit) -> Fate<'a> {
    let name = slot.name();
    if slot.role == Role::Init && exit.code == 0 {
        return Fate::Done(exit);
    }
    let again =
        |reason: String, since: Timestamp| Fate::Start(Start { at: None, backoff: None, reason, created: None, since });
    if let Some(reason) = killed_to_run_again(world, slot, view, &exit) {
        return again(reason, world.desired.changed_at);
    }
    // What has ended is not what is wanted now.
    if let Some(change) = restart_differences(slot, view).first() {
        return again(format!("{change}"), world.desired.changed_at);
    }
    if let Some(requested) = world.desired.restart_requested_at
        && view.created_at < requested
    {
        return again(format!("a restart of container {name} was requested"), requested);
    }
    if !restarts(world, slot, &exit) {
        return Fate::Done(exit);
    }
    let used = view.record.as_ref().and_then(|record| record.backoff());
    let how = format!("it ended with exit code {}", exit.code);
    restart(world, slot, &exit, used, &how)
}

/// Whether a container that ended so runs again by its pod's restart policy.
fn restarts(world: &World<'_>, slot: &Slot<'_>, exit: &Exit) -> bool {
    match (slot.role, world.policy) {
        (Role::Sidecar, _) | (_, Policy::Always) => true,
        (_, Policy::OnFailure) => exit.code != 0,
        (_, Policy::Never) => false,
    }
}

/// Whether a container was stopped only to be started again, whatever its restart policy says: the
/// kill's record says so, or it ended after what asked for the kill.
fn killed_to_run_again(world: &World<'_>, slot: &Slot<'_>, view: &ContainerView, exit: &Exit) -> Option<String> {
    let name = slot.name();
    let desired = world.desired;
    let cause = view.stopping.as_ref().map(|stopping| stopping.cause);
    let asked = |cause: KillCause| {
        matches!(
            cause,
            KillCause::ContainerChanged
                | KillCause::PodChanged
                | KillCause::ConfigChanged
                | KillCause::RestartRequested
        )
    };
    // A program that heeds SIGTERM ends well: that is no success of its own.
    let drained = cause == Some(KillCause::NodeDrained) && world.policy == Policy::OnFailure;
    if let Some(cause) = cause.filter(|cause| drained || asked(*cause)) {
        return Some(format!("container {name} was stopped because {cause}"));
    }
    if view.record.is_none() && exit.finished_at >= desired.changed_at {
        return Some(format!("container {name} ended after an edit, and its record cannot be read"));
    }
    let since_config = desired.configs.changed_at.is_some_and(|at| exit.finished_at >= at);
    if since_config && restarts_on_change(world) && !stale(world, slot, view).is_empty() {
        return Some(format!("container {name} ended after a change of its configuration"));
    }
    None
}

fn restart<'a>(world: &World<'a>, slot: &Slot<'a>, exit: &Exit, used: Option<Duration>, how: &str) -> Fate<'a> {
    let ran = exit.started_at.map_or(Duration::ZERO, |start| between(start, exit.finished_at));
    let backoff = crash_backoff(used, ran);
    let policy = match (slot.role, world.policy) {
        (Role::Sidecar, _) | (_, Policy::Always) => "Always",
        (_, Policy::OnFailure) => "OnFailure",
        (_, Policy::Never) => "Never",
    };
    let mut reason = format!("container {} restarts: {how} (restartPolicy {policy})", slot.name());
    if !backoff.is_zero() {
        reason = format!("{reason}, after a back-off of {} s", backoff.as_secs());
    }
    Fate::Start(Start {
        at: Some(after(exit.finished_at, backoff)),
        backoff: Some(backoff),
        reason,
        created: None,
        since: exit.finished_at,
    })
}

fn running<'a>(world: &World<'a>, slot: &Slot<'a>, view: &'a ContainerView) -> Fate<'a> {
    let name = slot.name();
    let grace = pod_grace(world);
    let replace = |cause, reason, grace, then| {
        let pre_stop = slot.has_pre_stop();
        Fate::Replace(Replace { view, cause, reason, grace, pre_stop, then })
    };
    if let Some(Stopping { deadline, pre_stop_ran, cause }) = &view.stopping {
        return Fate::Replace(Replace {
            view,
            cause: *cause,
            reason: format!("container {name} is being stopped because {cause}"),
            grace: between(world.now, *deadline),
            pre_stop: slot.has_pre_stop() && !pre_stop_ran,
            then: None,
        });
    }
    if view.record.is_none() {
        let reason = format!("the record of container {name} cannot be read");
        return replace(KillCause::Unwanted, reason, grace, None);
    }
    if let Some(asked) = asked_to_replace(world, slot, view)
        && hold(world, slot).is_none()
    {
        let Asked { cause, reason, since } = asked;
        let then = Start { at: None, backoff: None, reason: reason.clone(), created: None, since };
        return replace(cause, reason, grace, Some(then));
    }
    match unhealthy(world, slot, view) {
        Some((cause, reason, own_grace)) => replace(cause, reason, own_grace.unwrap_or(grace), None),
        None => Fate::Keep(view),
    }
}

/// A replacement that somebody asks for, as opposed to one that health demands.
struct Asked {
    cause: KillCause,
    reason: String,
    since: Timestamp,
}

fn asked_to_replace(world: &World<'_>, slot: &Slot<'_>, view: &ContainerView) -> Option<Asked> {
    if slot.role == Role::Init {
        return None; // An edit of an init container recreates the pod.
    }
    let since = world.desired.changed_at;
    if let Some(change) = restart_differences(slot, view).first() {
        return Some(Asked { cause: KillCause::ContainerChanged, reason: change.to_string(), since });
    }
    let keys = stale(world, slot, view);
    if !keys.is_empty() && restarts_on_change(world) {
        let reason = format!("its environment uses {}, which changed", keys.join(", "));
        return Some(Asked { cause: KillCause::ConfigChanged, reason, since });
    }
    let requested = world.desired.restart_requested_at.filter(|at| view.created_at < *at)?;
    let reason = format!("a restart of container {} was requested", slot.name());
    Some(Asked { cause: KillCause::RestartRequested, reason, since: requested })
}

fn restarts_on_change(world: &World<'_>) -> bool {
    let annotations = world.desired.pod.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(RESTART_ON_CHANGE)).is_some_and(|value| value == "true")
}

/// The probe or hook for which a running container must be killed, with the probe's own grace.
fn unhealthy(
    world: &World<'_>,
    slot: &Slot<'_>,
    view: &ContainerView,
) -> Option<(KillCause, String, Option<Duration>)> {
    let name = slot.name();
    if slot.role == Role::Init {
        return None;
    }
    if let HookState::Failed { message } = &view.post_start
        && slot.has_post_start()
    {
        let reason = format!("postStart hook of container {name} failed: {message}");
        return Some((KillCause::PostStartFailed, reason, None));
    }
    let verdicts = world.probes(view);
    let container = slot.container;
    let own = |probe: &k8s_openapi::api::core::v1::Probe| {
        let seconds = probe.termination_grace_period_seconds?;
        Some(Duration::from_secs(u64::try_from(seconds).ok()?))
    };
    if let Some(probe) = &container.startup_probe {
        match &verdicts.startup {
            Verdict::Unknown => return None,
            Verdict::Success => {}
            Verdict::Failure { message } => {
                let reason = format!("container {name} failed its startup probe: {message}");
                return Some((KillCause::StartupFailed, reason, own(probe)));
            }
        }
    }
    let probe = container.liveness_probe.as_ref()?;
    let Verdict::Failure { message } = &verdicts.liveness else { return None };
    let reason = format!("container {name} failed its liveness probe: {message}");
    Some((KillCause::LivenessFailed, reason, own(probe)))
}

/// The pod's grace period.
pub(crate) fn pod_grace(world: &World<'_>) -> Duration {
    let seconds = world.desired.spec().termination_grace_period_seconds.unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
