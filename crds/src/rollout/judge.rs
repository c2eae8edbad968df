//! What a workload's status should say.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::numbers::{at_most, count};
use super::{matches, target};
use crate::agent::WorkloadReport;
use crate::content::Content;
use crate::workload::{
    FailurePolicy, Grant, MAX_LISTED_NODES, NodeState, NodeWorkload, NodeWorkloadStatus, Stable, Target,
};

/// What is known of an agent.
#[derive(Debug, Clone)]
pub struct AgentView<'a> {
    /// Its node.
    pub name: &'a str,
    /// The labels of its NodeAgent.
    pub labels: &'a BTreeMap<String, String>,
    /// Whether it renewed its Lease lately.
    pub alive: bool,
    /// What it last said of this workload.
    pub report: Option<&'a WorkloadReport>,
}

/// The answer of [`judge`].
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// What the status should say.
    pub status: NodeWorkloadStatus,
    /// No node has anything of a workload that is being deleted: its finalizer may go.
    pub released: bool,
    /// When to judge again although nothing was heard.
    pub again_at: Option<Timestamp>,
}

/// One agent, seen from one workload.
struct Node<'a> {
    name: &'a str,
    alive: bool,
    report: Option<&'a WorkloadReport>,
    wanted: bool,
    abandoned: bool,
    updated: bool,
    available: bool,
}

/// Judges `workload` by what all `agents` report.
///
/// The same arguments give the same answer; a status that is as it should be comes back as it was.
#[must_use]
pub fn judge(workload: &NodeWorkload, agents: &[AgentView<'_>], now: Timestamp) -> Judgement {
    let before = workload.status.clone().unwrap_or_default();
    if workload.metadata.deletion_timestamp.is_some() {
        return deleted(workload, before, agents, now);
    }
    let mut status = before;
    aim(workload, &mut status, now);
    let aimed_at = status.target.as_ref().map(|target| target.revision.clone()).unwrap_or_default();
    let nodes = look(workload, agents, &aimed_at);

    free(workload, &mut status, agents, now);
    status.observed_generation = workload.metadata.generation.unwrap_or_default();
    tally(&mut status, &nodes, now);
    let everywhere = status.grants.is_empty()
        && nodes.iter().filter(|node| node.counts()).all(|node| !node.alive || (node.updated && node.available));
    if everywhere && nodes.iter().any(|node| node.counts() && node.alive) {
        settle(workload, &mut status, &aimed_at);
    }

    let paused = workload.spec.rollout.paused;
    if !paused && is_paused(&status) {
        // No time has passed for what was not to progress.
        status.progressed_at = Some(Time(now));
    }
    // Once it ran everywhere, what a node does is no longer the rollout's success or failure.
    let complete = everywhere || status.stable.as_ref().is_some_and(|stable| stable.revision == aimed_at);
    let limit = Duration::from_secs(workload.spec.rollout.progress_deadline_seconds.max(1).unsigned_abs());
    let deadline = status.progressed_at.as_ref().and_then(|at| at.0.checked_add(limit).ok());
    let deadline = deadline.filter(|_| !complete && !paused);
    let late = deadline.is_some_and(|deadline| deadline <= now);
    let mut again_at = deadline.filter(|deadline| *deadline > now);
    if late && reverts(workload, &status, &nodes) {
        // What is aimed at now is judged anew, and at once.
        let failed = std::mem::take(&mut status.target).map(|target| target.revision);
        let stable = status.stable.as_ref().map(|stable| stable.revision.clone()).unwrap_or_default();
        aim_at(&mut status, Target { revision: stable, reverted_from: failed }, now);
        again_at = Some(now);
    } else if !late && !paused {
        grant(workload, &mut status, &nodes, now);
    }
    list(&mut status, &nodes);
    conditions(workload, &mut status, Outcome { complete, late }, now);
    Judgement { status, released: false, again_at }
}

/// How a rollout stands.
#[derive(Clone, Copy)]
struct Outcome {
    /// Its revision runs everywhere, or did.
    complete: bool,
    /// Its deadline has passed.
    late: bool,
}

fn is_paused(status: &NodeWorkloadStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == "Progressing" && condition.reason == "Paused")
}

impl Node<'_> {
    /// Whether the workload is for it.
    fn counts(&self) -> bool {
        self.wanted && !self.abandoned
    }

    /// Whether it runs something that an update takes down.
    fn is_behind(&self) -> bool {
        !self.updated && self.report.is_some_and(|report| report.revision.is_some())
    }
}

/// Says what is aimed at.
fn aim(workload: &NodeWorkload, status: &mut NodeWorkloadStatus, now: Timestamp) {
    let (revision, _) = target(workload);
    if status.target.as_ref().is_some_and(|target| target.revision == revision) {
        return;
    }
    aim_at(status, Target { revision, reverted_from: None }, now);
}

fn aim_at(status: &mut NodeWorkloadStatus, target: Target, now: Timestamp) {
    status.target = Some(target);
    status.progressed_at = Some(Time(now));
    status.most_ready_nodes = 0;
}

fn look<'a>(workload: &NodeWorkload, agents: &[AgentView<'a>], aimed_at: &str) -> Vec<Node<'a>> {
    let uid = workload.metadata.uid.as_deref().unwrap_or_default();
    let look = |agent: &AgentView<'a>| {
        let report = agent.report.filter(|report| report.uid == uid);
        Node {
            name: agent.name,
            alive: agent.alive,
            report,
            wanted: matches(&workload.spec, agent.name, agent.labels),
            abandoned: workload.spec.abandoned_nodes.iter().any(|name| name == agent.name),
            updated: report.is_some_and(|report| report.revision.as_deref() == Some(aimed_at)),
            available: agent.alive && report.is_some_and(|report| report.available),
        }
    };
    let mut nodes: Vec<Node<'a>> = agents.iter().map(look).collect();
    nodes.sort_by_key(|node| node.name);
    nodes
}

/// Takes back the slots of which their nodes say that they are done, and those of abandoned nodes.
fn free(workload: &NodeWorkload, status: &mut NodeWorkloadStatus, agents: &[AgentView<'_>], now: Timestamp) {
    let uid = workload.metadata.uid.as_deref().unwrap_or_default();
    let before = status.grants.len();
    status.grants.retain(|grant| {
        let report = agents.iter().find(|agent| agent.name == grant.node).and_then(|agent| agent.report);
        let done = report.is_some_and(|report| report.uid == uid && report.grant >= grant.number);
        !done && !workload.spec.abandoned_nodes.contains(&grant.node)
    });
    if status.grants.len() < before {
        status.progressed_at = Some(Time(now));
    }
}

fn tally(status: &mut NodeWorkloadStatus, nodes: &[Node<'_>], now: Timestamp) {
    let counted = || nodes.iter().filter(|node| node.counts());
    status.desired_nodes = count(counted().count());
    status.updated_nodes = count(counted().filter(|node| node.updated).count());
    status.ready_nodes = count(counted().filter(|node| node.available).count());
    status.unavailable_nodes = status.desired_nodes - status.ready_nodes;
    let ready = count(counted().filter(|node| node.updated && node.available).count());
    // A node that comes and goes makes no progress.
    if ready > status.most_ready_nodes {
        status.most_ready_nodes = ready;
        status.progressed_at = Some(Time(now));
    }
}

/// Remembers what runs everywhere, to go back to.
fn settle(workload: &NodeWorkload, status: &mut NodeWorkloadStatus, aimed_at: &str) {
    let said = Content::of(&workload.spec);
    if status.stable.as_ref().is_none_or(|stable| stable.revision != aimed_at) && said.revision().0 == aimed_at {
        status.stable = Some(Stable { revision: aimed_at.to_owned(), content: said.to_map() });
    }
}

/// Whether the rollout has failed for good, and there is something to go back to. That nodes are silent is no reason:
/// what they lack, no other revision has.
fn reverts(workload: &NodeWorkload, status: &NodeWorkloadStatus, nodes: &[Node<'_>]) -> bool {
    let Some(target) = &status.target else { return false };
    let failing = |node: &&Node<'_>| node.counts() && node.alive && node.updated && !node.available;
    workload.spec.rollout.on_failure == FailurePolicy::Revert
        && target.reverted_from.is_none()
        && status.stable.as_ref().is_some_and(|stable| stable.revision != target.revision)
        && nodes.iter().any(|node| failing(&node))
}

/// Gives free slots: first to nodes that are down anyway.
fn grant(workload: &NodeWorkload, status: &mut NodeWorkloadStatus, nodes: &[Node<'_>], now: Timestamp) {
    let holds =
        |status: &NodeWorkloadStatus, node: &Node<'_>| status.grants.iter().any(|grant| grant.node == node.name);
    let limit = at_most(&workload.spec.rollout.max_unavailable, nodes.iter().filter(|node| node.counts()).count());
    let waits = |node: &&Node<'_>| node.counts() && node.alive && node.is_behind();
    let (down, up): (Vec<&Node<'_>>, Vec<&Node<'_>>) =
        nodes.iter().filter(waits).filter(|node| !holds(status, node)).partition(|node| !node.available);
    let give = |status: &mut NodeWorkloadStatus, node: &Node<'_>| {
        status.granted += 1;
        status.grants.push(Grant { node: node.name.to_owned(), number: status.granted, since: Time(now) });
    };
    for node in down {
        if status.grants.len() < limit {
            give(status, node);
        }
    }
    // A node that is down for a reason of its own is one less that may be taken down.
    let down_alone =
        nodes.iter().filter(|node| node.counts() && node.alive && !node.available && !holds(status, node)).count();
    for node in up {
        if status.grants.len() + down_alone < limit {
            give(status, node);
        }
    }
}

/// Names the first nodes that are not as they should be: those that fail, then those that are silent, then the others.
fn list(status: &mut NodeWorkloadStatus, nodes: &[Node<'_>]) {
    let mut states: Vec<(u8, NodeState)> = nodes
        .iter()
        .filter(|node| node.counts() && !(node.updated && node.available))
        .map(|node| {
            let report = node.report;
            let said = report.map_or("", |report| report.message.as_str());
            let (order, phase, message) = match report {
                _ if !node.alive => (1, "Silent", "it does not renew its Lease"),
                None => (2, "Waiting", "it has not taken the workload on yet"),
                Some(_) if !node.updated && said.is_empty() => (3, "Waiting", "it runs another revision"),
                Some(report) => (u8::from(report.phase.as_str() != "Failed") * 2, report.phase.as_str(), said),
            };
            let revision = report.and_then(|report| report.revision.clone());
            let (phase, message) = (phase.to_owned(), message.chars().take(256).collect());
            (order, NodeState { name: node.name.to_owned(), revision, phase, message })
        })
        .collect();
    states.sort_by(|(one, state), (other, next)| (one, &state.name).cmp(&(other, &next.name)));
    status.nodes_not_listed = count(states.len().saturating_sub(MAX_LISTED_NODES));
    states.truncate(MAX_LISTED_NODES);
    status.nodes = states.into_iter().map(|(_, state)| state).collect();
}

fn conditions(workload: &NodeWorkload, status: &mut NodeWorkloadStatus, outcome: Outcome, now: Timestamp) {
    let ready = format!("{} of {} nodes are ready", status.ready_nodes, status.desired_nodes);
    let available = if status.unavailable_nodes == 0 { ("True", "AllNodesReady") } else { ("False", "NodesNotReady") };
    say(workload, status, "Available", available, &ready, now);

    let reverted = status.target.as_ref().and_then(|target| target.reverted_from.clone());
    let updated = format!("{} of {} nodes run it", status.updated_nodes, status.desired_nodes);
    let (word, message) = match reverted {
        Some(failed) => {
            (("False", "Reverted"), format!("revision {failed} did not become ready in time; going back: {updated}"))
        }
        None if workload.spec.rollout.paused && !outcome.complete => {
            (("Unknown", "Paused"), format!("paused: {updated}"))
        }
        None if outcome.late => (
            ("False", "ProgressDeadlineExceeded"),
            format!(
                "nothing progressed for {} s: {updated}; {}",
                workload.spec.rollout.progress_deadline_seconds,
                holders(status)
            ),
        ),
        None if outcome.complete => (("True", "RolloutComplete"), updated),
        None => (("True", "RollingOut"), updated),
    };
    say(workload, status, "Progressing", word, &message, now);
}

/// Who holds up a rollout, and what an operator can do.
fn holders(status: &NodeWorkloadStatus) -> String {
    let names: Vec<&str> = status.grants.iter().take(5).map(|grant| grant.node.as_str()).collect();
    if names.is_empty() {
        return "nodes that are not ready keep others from being taken down".to_owned();
    }
    format!("waiting for {}; a node that is gone for good is named in spec.abandonedNodes", names.join(", "))
}

fn say(
    workload: &NodeWorkload,
    status: &mut NodeWorkloadStatus,
    kind: &str,
    (word, reason): (&str, &str),
    message: &str,
    now: Timestamp,
) {
    let before = status.conditions.iter().find(|condition| condition.type_ == kind);
    let since =
        before.filter(|before| before.status == word).map_or(Time(now), |before| before.last_transition_time.clone());
    let condition = Condition {
        type_: kind.to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: workload.metadata.generation,
    };
    match status.conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(place) => *place = condition,
        None => status.conditions.push(condition),
    }
}

/// Waits until no node has anything of it; for those that are silent not longer than asked for.
fn deleted(
    workload: &NodeWorkload,
    mut status: NodeWorkloadStatus,
    agents: &[AgentView<'_>],
    now: Timestamp,
) -> Judgement {
    let nodes = look(workload, agents, "");
    let timeout = SignedDuration::from_secs(workload.spec.deletion_timeout_seconds.max(0));
    let since = workload.metadata.deletion_timestamp.as_ref().map_or(now, |at| at.0);
    let until = since.checked_add(timeout).unwrap_or(Timestamp::MAX);
    let remaining: Vec<&Node<'_>> = nodes
        .iter()
        .filter(|node| !node.abandoned && node.report.is_some_and(|report| report.revision.is_some()))
        .filter(|node| node.alive || now < until)
        .collect();
    let released = remaining.is_empty();
    let again_at = remaining.iter().any(|node| !node.alive).then_some(until);
    status.observed_generation = workload.metadata.generation.unwrap_or_default();
    status.nodes_not_listed = count(remaining.len().saturating_sub(MAX_LISTED_NODES));
    let state = |node: &&Node<'_>| NodeState {
        name: node.name.to_owned(),
        revision: node.report.and_then(|report| report.revision.clone()),
        phase: if node.alive { "Removing" } else { "Silent" }.to_owned(),
        message: node.report.map(|report| report.message.chars().take(256).collect()).unwrap_or_default(),
    };
    status.nodes = remaining.iter().take(MAX_LISTED_NODES).map(state).collect();
    let message = format!("{} nodes have not removed it yet", remaining.len());
    say(workload, &mut status, "Progressing", ("True", "Deleting"), &message, now);
    Judgement { status, released, again_at }
}
