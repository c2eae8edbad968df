//! This node's NodeAgent: made, its labels read, its status written when it changes.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use portreeve_crds::{Address, MAX_RECENT_ERRORS, NodeAgent, NodeAgentStatus, RecentError, WorkloadReport};
use portreeve_node::Node;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::FleetConfig;
use crate::connection::is_unauthorized;
use crate::keeper::Said;
use crate::lease::MANAGER;
use crate::watching::{Trouble, trouble};

/// No two writes follow faster: what changes within it is one write.
const PAUSE: Duration = Duration::from_millis(500);
/// Errors that repeat change their counts: for them alone it is written no more often than this.
const ERRORS_EVERY: Duration = Duration::from_secs(60);
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps the NodeAgent until the credentials are refused.
pub(crate) async fn run(
    config: &FleetConfig,
    client: Client,
    node: Node,
    said: mpsc::Sender<Said>,
    reports: watch::Receiver<Vec<WorkloadReport>>,
    labels: watch::Sender<Option<BTreeMap<String, String>>>,
) {
    let api: Api<NodeAgent> = Api::all(client.clone());
    loop {
        match introduce(&api, config, &node).await {
            Ok(()) => break,
            Err(error) if is_unauthorized(&error) => return,
            Err(error) => {
                let trouble = format!("this node's NodeAgent cannot be made: {error}");
                // Nobody listens only at the end.
                let _ = said.send(Said::Trouble(Some(trouble))).await;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    tokio::select! {
        // Both end when the credentials are refused.
        () = read_labels(client, config, &labels) => {}
        () = write_status(&api, config, &node, reports) => {}
    }
}

/// Makes the NodeAgent, with the labels that this agent was configured with. Labels of others stay.
async fn introduce(api: &Api<NodeAgent>, config: &FleetConfig, node: &Node) -> kube::Result<()> {
    let agent = json!({
        "apiVersion": "portreeve.dev/v1alpha1",
        "kind": "NodeAgent",
        "metadata": { "name": config.node_name, "labels": node.config().node_labels() },
        "spec": {},
    });
    api.patch(&config.node_name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&agent)).await?;
    Ok(())
}

async fn read_labels(client: Client, config: &FleetConfig, labels: &watch::Sender<Option<BTreeMap<String, String>>>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={}", config.node_name));
    let api: Api<PartialObjectMeta<NodeAgent>> = Api::all(client);
    let mut events = pin!(watcher(api, only).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(agent) | Event::InitApply(agent)) => {
                let now = Some(agent.labels().clone());
                labels.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
            }
            // Somebody removed it: the next status makes it again; what it was for stays.
            Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
            Err(error) => match trouble(&error) {
                Trouble::Unauthorized => return,
                Trouble::Passing => {}
                Trouble::Lasting(why) => warn!(error = %why, "the labels of this node's NodeAgent cannot be read"),
            },
        }
    }
}

async fn write_status(
    api: &Api<NodeAgent>,
    config: &FleetConfig,
    node: &Node,
    mut reports: watch::Receiver<Vec<WorkloadReport>>,
) {
    let mut sources = node.sources_changed();
    let mut drained = node.drained_changed();
    let mut room = node.room_changed();
    let mut written: Option<NodeAgentStatus> = None;
    let mut errors = tokio::time::interval(ERRORS_EVERY);
    errors.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let status = status(node, reports.borrow_and_update().clone(), written.as_ref());
        drop((sources.borrow_and_update(), drained.borrow_and_update(), room.borrow_and_update()));
        if written.as_ref() != Some(&status) {
            match write(api, config, &status).await {
                Ok(()) => written = Some(status),
                Err(error) if is_unauthorized(&error) => return,
                Err(kube::Error::Api(gone)) if gone.code == 404 => {
                    // Its failure is told when the status fails again.
                    let _ = introduce(api, config, node).await;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => {
                    warn!(error = %error, "the status of this node's NodeAgent cannot be written");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        tokio::select! {
            // cancel-safe: the values stay in their channels.
            changed = reports.changed() => if changed.is_err() { std::future::pending::<()>().await },
            _ = sources.changed() => {}
            _ = drained.changed() => {}
            _ = room.changed() => {}
            // cancel-safe: a tick is not lost.
            _ = errors.tick() => {}
        }
    }
}

async fn write(api: &Api<NodeAgent>, config: &FleetConfig, status: &NodeAgentStatus) -> kube::Result<()> {
    let agent = json!({
        "apiVersion": "portreeve.dev/v1alpha1",
        "kind": "NodeAgent",
        "metadata": { "name": config.node_name },
        "status": status,
    });
    api.patch_status(&config.node_name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&agent)).await?;
    Ok(())
}

fn status(node: &Node, workloads: Vec<WorkloadReport>, before: Option<&NodeAgentStatus>) -> NodeAgentStatus {
    let object = node.node_object();
    let facts = object.status.unwrap_or_default();
    let addresses = facts.addresses.into_iter().flatten();
    NodeAgentStatus {
        version: node.config().version.clone(),
        addresses: addresses.map(|it| Address { kind: it.type_, address: it.address }).collect(),
        capacity: facts.capacity.unwrap_or_default(),
        allocatable: facts.allocatable.unwrap_or_default(),
        conditions: facts.conditions.into_iter().flatten().map(|it| condition(it, before)).collect(),
        recent_errors: recent_errors(node),
        workloads,
    }
}

fn condition(said: NodeCondition, before: Option<&NodeAgentStatus>) -> Condition {
    let before = before.and_then(|before| before.conditions.iter().find(|it| it.type_ == said.type_));
    let unchanged = before.filter(|before| before.status == said.status);
    Condition {
        last_transition_time: unchanged.map_or_else(
            || said.last_transition_time.clone().unwrap_or(Time(Timestamp::now())),
            |before| before.last_transition_time.clone(),
        ),
        type_: said.type_,
        status: said.status,
        reason: said.reason.unwrap_or_else(|| "Unknown".to_owned()),
        message: said.message.unwrap_or_default().chars().take(1024).collect(),
        observed_generation: None,
    }
}

/// The newest warnings, newest first.
fn recent_errors(node: &Node) -> Vec<RecentError> {
    let events = node.events();
    let mut warnings: Vec<RecentError> = events
        .items
        .iter()
        .filter(|event| event.type_.as_deref() == Some("Warning"))
        .filter_map(|event| {
            let object = &event.involved_object;
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            Some(RecentError {
                time: event.last_timestamp.clone()?,
                object: format!("{} {}/{}", part(&object.kind), part(&object.namespace), part(&object.name)),
                message: part(&event.message).chars().take(256).collect(),
            })
        })
        .collect();
    warnings.sort_by_key(|error| std::cmp::Reverse(error.time.0));
    warnings.truncate(MAX_RECENT_ERRORS);
    warnings
}
