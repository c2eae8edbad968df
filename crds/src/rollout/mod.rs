//! How a change goes from node to node.
//!
//! One agent at a time [judges](fn@judge) a workload: it reads what all agents report, gives free slots to nodes that run
//! another revision than is aimed at, and writes that into the workload's status, checked by resourceVersion, so that
//! of two who judge at once one begins again. A node that runs nothing of the workload yet needs no slot.
//!
//! A slot is a [`Grant`](crate::Grant) with a number. The node [adopts](decide) the target under it, and when that is
//! available says so together with the number: "I take nothing down any more under this". It keeps the number on its
//! own disk before it says so, so that a stale read cannot give it back what it has returned. That word alone frees
//! the slot. A node that has fallen silent keeps it, and the rollout stops at its deadline.

mod judge;
mod node;
mod numbers;

pub use judge::{AgentView, Judgement, judge};
pub use node::{Decision, Held, decide, grant_of, settled};

use std::collections::BTreeMap;

use crate::content::Content;
use crate::workload::{NodeWorkload, NodeWorkloadSpec};

/// Whether the workload is for a node of this name whose NodeAgent has these labels.
#[must_use]
pub fn matches(spec: &NodeWorkloadSpec, node: &str, labels: &BTreeMap<String, String>) -> bool {
    (spec.node_names.is_empty() || spec.node_names.iter().any(|name| name == node))
        && spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What every node shall run, and its revision: what the status aims at, as far as the workload still says what that
/// is, else what the specification says.
fn target(workload: &NodeWorkload) -> (String, Content) {
    let said = Content::of(&workload.spec);
    let revision = said.revision().0;
    let status = workload.status.as_ref();
    let aimed_at = status.and_then(|status| status.target.as_ref());
    let stable = status.and_then(|status| status.stable.as_ref());
    match (aimed_at, stable) {
        // Only for as long as the specification is the one that failed.
        (Some(aimed_at), Some(stable))
            if aimed_at.revision == stable.revision && aimed_at.reverted_from.as_ref() == Some(&revision) =>
        {
            match Content::from_map(&stable.content) {
                Some(content) => (stable.revision.clone(), content),
                None => (revision, said),
            }
        }
        _ => (revision, said),
    }
}
