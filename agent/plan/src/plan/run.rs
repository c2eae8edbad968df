//! How a pod comes to run, and keeps running.
//!
//! Order: kill what must not run, release lost sandboxes, pull, replace what an edit changed, mount,
//! make the sandbox, remove what is superseded, start containers in order, then what can wait.

use std::collections::{BTreeMap, BTreeSet};

use crate::difference::{Cost, container_differences};
use crate::fate::{Fate, Replace, Start, fate, hold, pod_grace, start_after};
use crate::observed::{Attempted, ContainerState, ContainerView, HookState, ImageName, SandboxState, SandboxView};
use crate::plan::draft::{Draft, kill_all};
use crate::ready::{Obstacle, Readiness, readiness};
use crate::resources::{Resources, ResourcesView};
use crate::sandbox::{self, Replacement, SandboxFate, sandbox_fate};
use crate::step::{Action, KillCause};
use crate::volumes::{self, WantedVolume};
use crate::world::{Role, Slot, World, is_running};

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

/// Something to do with one container, in order.
enum Go<'a> {
    Make { slot: Slot<'a>, start: Box<Start<'a>>, kill: Option<Box<Replace<'a>>> },
    Hook { slot: Slot<'a>, view: &'a ContainerView },
}

/// What can be started now, what must be pulled for it, and what may be pulled beside it.
#[derive(Default)]
struct Round<'a> {
    go: Vec<Go<'a>>,
    pulls: BTreeMap<ImageName, (Vec<String>, String)>,
    early: BTreeMap<ImageName, (Vec<String>, String)>,
}

impl<'a> Round<'a> {
    fn want(
        pulls: &mut BTreeMap<ImageName, (Vec<String>, String)>,
        (image, reason): (ImageName, String),
        container: &str,
    ) {
        let entry = pulls.entry(image).or_insert_with(|| (Vec::new(), reason));
        entry.0.push(container.to_owned());
    }

    /// Takes the start of a container into the round, if nothing is in its way.
    fn try_start(
        &mut self,
        world: &World<'a>,
        draft: &mut Draft,
        slot: Slot<'a>,
        start: Start<'a>,
        kill: Option<Replace<'a>>,
    ) -> bool {
        if let Some(at) = start.at.filter(|at| *at > world.now) {
            let seconds = start.backoff.unwrap_or_default().as_secs();
            let name = slot.name();
            draft.wait(
                Some(name),
                Obstacle {
                    reason: "CrashLoopBackOff".to_owned(),
                    message: format!("back-off {seconds} s before restarting container {name}"),
                    until: Some(at),
                },
            );
            return false;
        }
        if start.created.is_none() {
            match readiness(world, slot.container, start.since) {
                Readiness::Ready => {}
                Readiness::Pull { image, reason, look_first } => {
                    Self::want(&mut self.pulls, (image, reason), slot.name());
                    if look_first {
                        return false;
                    }
                }
                Readiness::Blocked(obstacle) => {
                    draft.wait(Some(slot.name()), obstacle);
                    return false;
                }
            }
        }
        self.go.push(Go::Make { slot, start: Box::new(start), kill: kill.map(Box::new) });
        true
    }

    /// Goes through the containers in their order: init containers one after the other, then the
    /// others together.
    fn fill(&mut self, world: &World<'a>, draft: &mut Draft, fates: Vec<(Slot<'a>, Fate<'a>)>, initialized: bool) {
        let mut open = true;
        for (slot, fate) in fates {
            let gates = slot.role != Role::Main && !initialized;
            if (slot.role == Role::Init && initialized) || (!open && slot.role != Role::Main) {
                continue;
            }
            if !open {
                self.pull_early(world, &slot, &fate);
                continue;
            }
            let passed = match fate {
                Fate::Done(exit) => slot.role != Role::Init || exit.code == 0,
                Fate::Keep(view) => {
                    if slot.has_post_start() && view.post_start == HookState::Pending {
                        self.go.push(Go::Hook { slot, view });
                    }
                    let startup = slot.container.startup_probe.is_none();
                    slot.role == Role::Sidecar && (startup || world.started(&slot, view))
                }
                Fate::Start(start) => {
                    let made = self.try_start(world, draft, slot, start, None);
                    let startup = slot.container.startup_probe.is_none();
                    made && slot.role == Role::Sidecar && startup
                }
                Fate::Replace(mut replace) => match replace.then.take() {
                    Some(then) => {
                        self.try_start(world, draft, slot, then, Some(replace));
                        false
                    }
                    None => false,
                },
            };
            open = passed || !gates;
        }
    }

    /// While init containers run, the images of those that follow are pulled.
    fn pull_early(&mut self, world: &World<'a>, slot: &Slot<'a>, fate: &Fate<'a>) {
        let Fate::Start(start) = fate else { return };
        if start.at.is_some_and(|at| at > world.now) {
            return;
        }
        let ready = readiness(world, slot.container, start.since);
        if let Readiness::Pull { image, reason, .. } = ready
            && !self.pulls.contains_key(&image)
        {
            Self::want(&mut self.early, (image, reason), slot.name());
        }
    }

    fn makes(&self) -> bool {
        self.go.iter().any(|go| matches!(go, Go::Make { .. }))
    }
}

fn pull(draft: &mut Draft, pulls: BTreeMap<ImageName, (Vec<String>, String)>) {
    for (image, (containers, reason)) in pulls {
        draft.push(Action::PullImage { image, containers }, reason, Cost::Live);
    }
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
        let (reason, message) = (blocked.reason.clone(), blocked.message.clone());
        draft.wait(None, Obstacle { reason, message, until: None });
        return;
    }
    if !round.makes() {
        return;
    }
    if let Some(at) = replacement.at.filter(|at| *at > world.now) {
        draft.wait(
            None,
            Obstacle { reason: "SandboxBackOff".to_owned(), message: replacement.reason.clone(), until: Some(at) },
        );
        return;
    }
    if !replacement.lost() {
        let cause = replacement.cause.unwrap_or(KillCause::Unwanted);
        if !kill_all(world, draft, cause, pod_grace(world), because) {
            return;
        }
        stop_others(world, draft, None);
    }
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

/// Kills what runs and is not the one container of its name in the sandbox.
fn kill_unwanted(world: &World<'_>, draft: &mut Draft, home: &SandboxView) {
    for view in world.containers.iter().filter(|view| is_running(view)) {
        let known = world.slots.iter().any(|slot| slot.name() == view.name);
        let reason = if view.sandbox != home.id {
            format!("container {} runs outside the pod's sandbox", view.name)
        } else if !known {
            format!("the pod has no container {}", view.name)
        } else if world.latest(&view.name).is_some_and(|latest| latest.id != view.id) {
            format!("another container {} was started after it", view.name)
        } else {
            continue;
        };
        let cost = Cost::Restart { container: view.name.clone() };
        draft.kill(view, pod_grace(world), false, KillCause::Unwanted, (reason, cost));
    }
}

/// Stops every sandbox but `home`.
fn stop_others(world: &World<'_>, draft: &mut Draft, home: Option<&SandboxView>) {
    for sandbox in &world.sandboxes {
        if home.is_some_and(|home| home.id == sandbox.id) || sandbox.state == SandboxState::Stopped {
            continue;
        }
        let reason = match &sandbox.state {
            SandboxState::Lost { reason, .. } => format!("sandbox is lost: {reason}"),
            _ => "the pod gets another sandbox".to_owned(),
        };
        draft.push(Action::StopSandbox { id: sandbox.id.clone() }, reason, Cost::Recreate);
    }
}

/// Removes the records that have a successor: everything outside `home`, and in it all but the
/// newest container of each name and the last one that ended before it.
fn remove_superseded(world: &World<'_>, draft: &mut Draft, home: Option<&SandboxView>, dying: &BTreeSet<&str>) {
    for view in &world.containers {
        let live = Cost::Live;
        let Some(home) = home.filter(|home| home.id == view.sandbox) else {
            draft.remove(view, "its sandbox is replaced", live);
            continue;
        };
        if !world.slots.iter().any(|slot| slot.name() == view.name) {
            draft.remove(view, format!("the pod has no container {}", view.name), live);
            continue;
        }
        let here: Vec<&ContainerView> = world.instances(&view.name).filter(|other| other.sandbox == home.id).collect();
        let later = here.iter().skip_while(|other| other.id != view.id).skip(1);
        let superseded = match view.state {
            // The newest may still be started; `start` removes it if it cannot.
            ContainerState::Created => later.count() > 0,
            // If it is not the newest it was killed above, and is the record that is kept.
            ContainerState::Running { .. } => false,
            ContainerState::Exited(_) | ContainerState::Unknown => {
                let mut later = later;
                let dies = dying.contains(view.name.as_str());
                later.any(|other| match other.state {
                    ContainerState::Created => false,
                    ContainerState::Running { .. } => dies || here.last().is_some_and(|newest| newest.id != other.id),
                    _ => true,
                })
            }
        };
        if superseded {
            draft.remove(view, format!("a later container {} has ended", view.name), live);
        }
    }
    for sandbox in &world.sandboxes {
        if home.is_none_or(|home| home.id != sandbox.id) {
            let id = sandbox.id.clone();
            draft.push(Action::RemoveSandbox { id }, "the pod has another sandbox", Cost::Live);
        }
    }
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
        round.go.clear();
    }
}

/// Mounts the volumes of which `absent` says so, as far as they can be made.
fn mount(world: &World<'_>, draft: &mut Draft, absent: impl Fn(&String, &WantedVolume) -> bool) {
    let volumes: BTreeSet<String> = volumes::wanted(world.desired)
        .into_iter()
        .filter(|(name, wanted)| wanted.missing.is_empty() && absent(name, wanted))
        .map(|(name, _)| name)
        .collect();
    if !volumes.is_empty() {
        draft.push(Action::MountVolumes { volumes }, "the pod names them", Cost::Live);
    }
}

/// Between two sandboxes: takes away volumes that are not wanted, or not as they are.
fn unmount_changed(world: &World<'_>, draft: &mut Draft) {
    let wanted = volumes::wanted(world.desired);
    let mounted = world.observed.volumes.iter();
    let volumes: BTreeSet<String> = mounted
        .filter(|(name, mounted)| wanted.get(*name).is_none_or(|wanted| wanted.record.definition != mounted.definition))
        .map(|(name, _)| name.clone())
        .collect();
    if !volumes.is_empty() {
        let reason = "the pod does not name them like this any more";
        draft.push(Action::UnmountVolumes { volumes }, reason, Cost::Recreate);
    }
}

/// Writes changed content into mounted volumes.
fn refresh(world: &World<'_>, draft: &mut Draft) {
    let volumes: BTreeSet<String> = volumes::wanted(world.desired)
        .into_iter()
        .filter(|(name, wanted)| {
            world.observed.volumes.get(name).is_some_and(|mounted| {
                mounted.definition == wanted.record.definition
                    && mounted.content != wanted.record.content
                    && wanted.missing.is_empty()
            })
        })
        .map(|(name, _)| name)
        .collect();
    if !volumes.is_empty() {
        let action = Action::RefreshVolumes { volumes };
        draft.push(action, "their configuration changed", Cost::Live);
    }
}

fn update_resources(world: &World<'_>, draft: &mut Draft, dying: &BTreeSet<&str>) {
    for slot in world.slots.iter().filter(|slot| !dying.contains(slot.name())) {
        let Some(view) = world.latest(slot.name()) else { continue };
        let Some(reason) = resources_differ(slot, view) else { continue };
        if !matches!(fate(world, slot), Fate::Keep(_)) {
            continue;
        }
        if let Some(failure) = world.failure(&Attempted::Resources(slot.name().to_owned())) {
            let retry = crate::backoff::step_retry_at(failure);
            if retry > world.now {
                let (reason, message) = (failure.reason.clone(), failure.message.clone());
                let until = Some(retry);
                draft.wait(Some(slot.name()), Obstacle { reason, message, until });
                continue;
            }
        }
        let action = Action::UpdateResources {
            id: view.id.clone(),
            container: slot.name().to_owned(),
            resources: Resources::of(slot.container),
        };
        draft.push(action, reason, Cost::InPlace);
    }
}

/// Why the limits of a running container must be set again.
pub(crate) fn resources_differ(slot: &Slot<'_>, view: &ContainerView) -> Option<String> {
    if !is_running(view) {
        return None;
    }
    let wanted = Resources::of(slot.container);
    match &view.resources {
        ResourcesView::InEffect(found) if *found == wanted => None,
        ResourcesView::InEffect(found) => {
            let record = view.record.as_ref();
            let named = record.map(|record| container_differences(&record.container, slot.container));
            let named = named.unwrap_or_default();
            let mut named = named.iter().filter(|difference| difference.cost == Cost::InPlace);
            Some(named.next().map_or_else(|| format!("{found} is in effect, {wanted} is wanted"), ToString::to_string))
        }
        ResourcesView::Drifted { found } => Some(format!("somebody changed the cgroup: {found}")),
    }
}
