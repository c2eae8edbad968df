//! What one node does about a workload.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{matches, target};
use crate::content::Content;
use crate::workload::{Grant, NodeWorkload};

/// What a node has taken on of a workload, as it keeps it on its own disk.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The workload's uid.
    pub uid: String,
    /// What it runs, if it runs something of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// It takes nothing down any more under grants up to this number.
    pub grant: i64,
}

/// What a node does.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It has nothing of the workload and takes nothing.
    Ignore,
    /// It goes on with what it has.
    Keep,
    /// It runs this from now on.
    Adopt(Content),
    /// It removes what it has.
    Drop,
}

/// What the node called `node`, whose NodeAgent has `labels`, does about `workload`, of which it holds `held`.
///
/// With a `held` of another uid than the workload's, that one has to be removed first: it is another workload.
#[must_use]
pub fn decide(workload: &NodeWorkload, node: &str, labels: &BTreeMap<String, String>, held: Option<&Held>) -> Decision {
    let own = workload.metadata.uid.as_deref().unwrap_or_default();
    let running = held.and_then(|held| held.content.as_ref());
    if held.is_some_and(|held| held.uid != own && held.content.is_some()) {
        return Decision::Drop;
    }
    let wanted = workload.metadata.deletion_timestamp.is_none() && matches(&workload.spec, node, labels);
    let Some(running) = running else {
        return if wanted { Decision::Adopt(target(workload).1) } else { Decision::Ignore };
    };
    if !wanted {
        return Decision::Drop;
    }
    let (revision, content) = target(workload);
    if running.revision().0 == revision {
        return Decision::Keep;
    }
    let done = held.map_or(0, |held| held.grant);
    let granted = grant_of(workload, node).is_some_and(|grant| grant.number > done);
    // What is aimed at must be what the grant was given for: a status of before the last edit aims at something else.
    let aimed_at = workload.status.as_ref().and_then(|status| status.target.as_ref());
    let judged = aimed_at.is_some_and(|aimed_at| aimed_at.revision == revision);
    if granted && judged { Decision::Adopt(content) } else { Decision::Keep }
}

/// The slot that `node` has.
#[must_use]
pub fn grant_of<'a>(workload: &'a NodeWorkload, node: &str) -> Option<&'a Grant> {
    workload.status.as_ref()?.grants.iter().find(|grant| grant.node == node)
}

/// Up to which number the node may call its grants done: what it holds is what is aimed at and `available`, or it holds
/// nothing of the workload any more.
///
/// The caller keeps the number on disk, in [`Held::grant`], before it reports it.
#[must_use]
pub fn settled(workload: &NodeWorkload, node: &str, held: &Held, available: bool) -> i64 {
    let arrived = match &held.content {
        Some(content) => available && content.revision().0 == target(workload).0,
        None => true,
    };
    match grant_of(workload, node) {
        Some(grant) if arrived => grant.number.max(held.grant),
        _ => held.grant,
    }
}
