//! What must go before anything comes: strangers, old sandboxes, superseded records.

use std::collections::BTreeSet;

use crate::difference::Cost;
use crate::fate::pod_grace;
use crate::observed::{ContainerState, ContainerView, SandboxState, SandboxView};
use crate::plan::draft::Draft;
use crate::step::{Action, KillCause};
use crate::world::{World, is_running};

/// Kills what runs and is not the one container of its name in the sandbox.
pub(super) fn kill_unwanted(world: &World<'_>, draft: &mut Draft, home: &SandboxView) {
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
pub(super) fn stop_others(world: &World<'_>, draft: &mut Draft, home: Option<&SandboxView>) {
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
pub(super) fn remove_superseded(
    world: &World<'_>,
    draft: &mut Draft,
    home: Option<&SandboxView>,
    dying: &BTreeSet<&str>,
) {
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
