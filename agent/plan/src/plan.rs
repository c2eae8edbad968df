//! Every decision about one pod.

mod clear;
mod draft;
mod leave;
mod round;
mod run;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::desired::{DesiredPod, Intent};
use crate::difference::{Cost, Difference, container_differences};
use crate::env::env_use;
use crate::observed::{ContainerRecord, ContainerState, ObservedPod, Past, SandboxRecord, VolumeRecord};
use crate::resources::Resources;
use crate::sandbox::{carry, recreate_differences};
use crate::step::Plan;
use crate::volumes;
use crate::world::{Policy, World, is_running};
use draft::Draft;

pub(crate) use leave::{DRAINED_REASON, terminal};
pub(crate) use upkeep::resources_differ;

/// What to do next with one pod.
///
/// Total and deterministic. Everything that carries another uid than the pod's is ignored.
pub fn plan(desired: &DesiredPod, observed: &ObservedPod, now: Timestamp) -> Plan {
    let world = World::new(desired, observed, now);
    let mut draft = Draft::new(now);
    let mut differences = Vec::new();
    let mut removed = false;
    let mut rests = false;
    match (&desired.intent, terminal(&world)) {
        (Intent::Remove { since, grace }, _) => {
            leave::remove(&world, &mut draft, *since, *grace);
            removed = leave::is_gone(&world);
        }
        (Intent::Rest { since, grace }, finished) => {
            leave::rest(&world, &mut draft, (*since, *grace), finished);
            rests = leave::is_at_rest(&world);
        }
        (Intent::Run, Some(finished)) => leave::finish(&world, &mut draft, &finished),
        (Intent::Run, None) => {
            differences = outstanding(&world);
            run::run(&world, &mut draft);
        }
    }
    draft.hold_back_failed(&world);
    Plan {
        uid: desired.uid.clone(),
        key: desired.key(),
        steps: draft.steps,
        waits: draft.waits,
        then: draft.then,
        differences,
        wake_at: draft.wake_at,
        removed,
        rests,
    }
}

/// The differences that are not in effect yet.
fn outstanding(world: &World<'_>) -> Vec<Difference> {
    let mut found = world.ready_home().map_or_else(Vec::new, |home| recreate_differences(world, home));
    for slot in &world.slots {
        let Some(view) = world.latest(slot.name()).filter(|view| is_running(view)) else { continue };
        let Some(record) = &view.record else { continue };
        let in_place = resources_differ(slot, view).is_some();
        found.extend(container_differences(&record.container, slot.container).into_iter().filter(|difference| {
            match difference.cost {
                Cost::Restart { .. } => true,
                Cost::InPlace => in_place,
                _ => false,
            }
        }));
    }
    found
}

/// What to store with the sandbox that `CreateSandbox` makes. `observed` is what the plan was made
/// from: what the containers of older sandboxes had come to is carried over from it.
pub fn sandbox_record(desired: &DesiredPod, observed: &ObservedPod, backoff: Option<Duration>) -> SandboxRecord {
    // No rule that is asked here looks at the time.
    let world = World::new(desired, observed, Timestamp::MIN);
    SandboxRecord {
        spec: desired.spec().clone(),
        backoff_seconds: backoff.map(|backoff| backoff.as_secs()),
        carried: carry(&world),
    }
}

/// What to keep on disk of a pod, so that no reboot makes it run twice; `None` for a pod that always
/// restarts, and while nothing of it was started. Keep it before a container is started, too, with
/// an observation in which that container runs.
pub fn past(desired: &DesiredPod, observed: &ObservedPod) -> Option<Arc<Past>> {
    // No rule that is asked here looks at the time.
    let world = World::new(desired, observed, Timestamp::MIN);
    if world.policy == Policy::Always {
        return None;
    }
    if world.home().is_none() {
        return observed.history.past.clone();
    }
    let mut carried = carry(&world);
    carried.retain(|name, _| world.latest(name).is_none_or(|view| view.state != ContainerState::Created));
    let (generation, restart_requested_at) = (desired.generation, desired.restart_requested_at);
    (!carried.is_empty()).then(|| Arc::new(Past { generation, restart_requested_at, carried }))
}

/// What to store with the container that `CreateContainer` makes; `None` if the pod has no
/// container of this name.
pub fn container_record(desired: &DesiredPod, container: &str, backoff: Option<Duration>) -> Option<ContainerRecord> {
    let spec = desired.spec();
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let container = all.find(|candidate| candidate.name == container)?;
    Some(ContainerRecord {
        container: container.clone(),
        backoff_seconds: backoff.map(|backoff| backoff.as_secs()),
        env: env_use(desired, container).prints,
        resources: Resources::of(container),
    })
}

/// What to store with each volume that `MountVolumes` or `RefreshVolumes` makes, by name.
pub fn volume_records(desired: &DesiredPod) -> BTreeMap<String, VolumeRecord> {
    volumes::wanted(desired).into_iter().map(|(name, wanted)| (name, wanted.record)).collect()
}
