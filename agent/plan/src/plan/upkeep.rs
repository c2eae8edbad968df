//! What is kept as it should be beside containers: volumes and limits.

use std::collections::BTreeSet;

use crate::difference::{Cost, container_differences};
use crate::fate::{Fate, fate};
use crate::observed::{Attempted, ContainerView};
use crate::plan::draft::Draft;
use crate::ready::Obstacle;
use crate::resources::{Resources, ResourcesView};
use crate::step::{Action, WaitKind};
use crate::volumes::{self, WantedVolume};
use crate::world::{Slot, World, is_running};

/// Mounts the volumes of which `absent` says so, as far as they can be made.
pub(super) fn mount(world: &World<'_>, draft: &mut Draft, absent: impl Fn(&String, &WantedVolume) -> bool) {
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
pub(super) fn unmount_changed(world: &World<'_>, draft: &mut Draft) {
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
pub(super) fn refresh(world: &World<'_>, draft: &mut Draft) {
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

pub(super) fn update_resources(world: &World<'_>, draft: &mut Draft, dying: &BTreeSet<&str>) {
    for slot in world.slots.iter().filter(|slot| !dying.contains(slot.name())) {
        let Some(view) = world.latest(slot.name()) else { continue };
        let Some(mut reason) = resources_differ(slot, view) else { continue };
        if let ResourcesView::InEffect(found) = &view.resources
            && let Some(limit) = Resources::of(slot.container).memory_limit_bytes
            && found.memory_limit_bytes.is_none_or(|before| limit < before)
        {
            reason.push_str("; refused if more memory than that is in use");
        }
        if !matches!(fate(world, slot), Fate::Keep(_)) {
            continue;
        }
        if let Some(failure) = world.failure(&Attempted::Resources(slot.name().to_owned())) {
            let retry = crate::backoff::step_retry_at(failure);
            if retry > world.now {
                draft.wait(Some(slot.name()), Obstacle::failed(failure, WaitKind::Fault, retry));
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
            // The record is of the start: it names the fields unless the limits changed since.
            let record = view.record.as_ref().filter(|record| record.resources == *found);
            let named = record.map(|record| container_differences(&record.container, slot.container));
            let named = named.unwrap_or_default();
            let mut named = named.iter().filter(|difference| difference.cost == Cost::InPlace);
            Some(named.next().map_or_else(|| format!("{found} is in effect, {wanted} is wanted"), ToString::to_string))
        }
        ResourcesView::Drifted { found } => Some(format!("somebody changed the cgroup: {found}")),
    }
}
