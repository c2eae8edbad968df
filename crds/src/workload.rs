//! `NodeWorkload`: what runs on which nodes, and how a change of it goes round.

#![expect(unreachable_pub, reason = "what KubeSchema derives declares the structure once more, within a function")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::schema;

/// At most so many nodes are named in a status; of the others there are counts.
pub const MAX_LISTED_NODES: usize = 20;

/// What runs on each of a set of nodes.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "portreeve.dev",
    version = "v1alpha1",
    kind = "NodeWorkload",
    plural = "nodeworkloads",
    namespaced,
    shortname = "nw",
    category = "portreeve",
    status = "NodeWorkloadStatus",
    derive = "PartialEq",
    doc = "What runs on each of a set of nodes, and how a change of it goes round.",
    validation = Rule::new("size(self.metadata.name) <= 60").message("the name is a part of its pods' names and a label of theirs: at most 60 characters"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredNodes", description = "Nodes that it is for."),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.updatedNodes", description = "Nodes that run the revision that is aimed at."),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyNodes", description = "Nodes where it is ready."),
    printcolumn(name = "Unavailable", type_ = "integer", json_path = ".status.unavailableNodes", description = "Nodes where it is not ready."),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.target.revision", description = "The revision that is aimed at."),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type=='Progressing')].reason", description = "How far it is."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[x_kube(validation = Rule::new("has(self.template) != has(self.manifests)").message("either a template or manifests").field_path(".template"))]
#[x_kube(validation = Rule::new("has(self.template) || !has(self.replicasPerNode) || self.replicasPerNode == 1").message("manifests run once on each node").field_path(".replicasPerNode"))]
pub struct NodeWorkloadSpec {
    /// The labels that a node's NodeAgent must have; none: every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The nodes that may have it, by name; none: every node that has the labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub node_names: Vec<String>,
    /// The pod that runs on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
    /// How many such pods run on each node; they are called NAME-0, NAME-1 and so on.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 100))]
    pub replicas_per_node: i32,
    /// What runs on each node instead of a template: objects of any kind that a manifest directory takes. Without a
    /// namespace they are in that of the workload, and they may be in no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::embedded")]
    pub manifests: Option<Vec<Map<String, Value>>>,
    /// How a change goes from node to node.
    #[serde(default)]
    pub rollout: Rollout,
    /// Nodes that are gone for good, in the operator's word: they hold up neither a rollout nor a deletion. A node that
    /// is named here and yet lives may be down besides those that maxUnavailable allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub abandoned_nodes: Vec<String>,
    /// A deletion waits so many seconds for nodes that say nothing.
    #[serde(default = "one_hour")]
    #[schemars(range(min = 0))]
    pub deletion_timeout_seconds: i64,
}

impl Default for NodeWorkloadSpec {
    /// For every node, and nothing yet: what the server fills in.
    fn default() -> Self {
        Self {
            node_selector: BTreeMap::new(),
            node_names: Vec::new(),
            template: None,
            replicas_per_node: one(),
            manifests: None,
            rollout: Rollout::default(),
            abandoned_nodes: Vec::new(),
            deletion_timeout_seconds: one_hour(),
        }
    }
}

/// A pod without a name.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Its labels and annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TemplateMetadata>,
    /// Its specification, as in a Pod (core/v1). What is wrong with it, the nodes say.
    #[schemars(schema_with = "schema::kept")]
    pub spec: Map<String, Value>,
}

/// What a template says of its pods besides their specification.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct TemplateMetadata {
    /// Labels of each pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of each pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How a change goes from node to node.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// So many nodes at most are taken down at once: a number, or a percentage of the nodes, rounded up.
    #[serde(default = "one_node")]
    #[schemars(schema_with = "schema::number_or_percent")]
    pub max_unavailable: IntOrString,
    /// No further node begins.
    #[serde(default)]
    pub paused: bool,
    /// A node is available when its pods were ready for so many seconds.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_ready_seconds: i64,
    /// The rollout has failed when nothing progressed for so many seconds.
    #[serde(default = "ten_minutes")]
    #[schemars(range(min = 1))]
    pub progress_deadline_seconds: i64,
    /// What happens when it has failed.
    #[serde(default)]
    pub on_failure: FailurePolicy,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_unavailable: one_node(),
            paused: false,
            min_ready_seconds: 0,
            progress_deadline_seconds: ten_minutes(),
            on_failure: FailurePolicy::Stop,
        }
    }
}

/// What happens when a rollout has failed.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailurePolicy {
    /// No further node begins, until something progresses or the specification changes.
    #[default]
    Stop,
    /// Every node goes back to what last ran everywhere.
    Revert,
}

/// How far it is.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NodeWorkloadStatus {
    /// The generation of the specification that this was said of.
    #[serde(default)]
    pub observed_generation: i64,
    /// Nodes that it is for.
    #[serde(default)]
    pub desired_nodes: i32,
    /// Of these, those that run the revision that is aimed at.
    #[serde(default)]
    pub updated_nodes: i32,
    /// Of these, those where all pods were ready for minReadySeconds.
    #[serde(default)]
    pub ready_nodes: i32,
    /// Of these, those where they were not, or that say nothing.
    #[serde(default)]
    pub unavailable_nodes: i32,
    /// The revision that every node shall run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// What last ran everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<Stable>,
    /// The nodes that may be down now for an update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "grants")]
    pub grants: Vec<Grant>,
    /// The number of the last grant.
    #[serde(default)]
    pub granted: i64,
    /// The most nodes that were ready with the revision that is aimed at, since it is.
    #[serde(default)]
    pub most_ready_nodes: i32,
    /// When something last progressed: a node became ready that was not counted before, or gave its grant back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressed_at: Option<Time>,
    /// The first nodes that are not yet, or no longer, as they should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "nodes")]
    pub nodes: Vec<NodeState>,
    /// How many more are not.
    #[serde(default)]
    pub nodes_not_listed: i32,
    /// Available, Progressing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// The revision that every node shall run.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its name, made from its content.
    pub revision: String,
    /// The revision of the specification, when that has failed and another is aimed at instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverted_from: Option<String>,
}

/// What last ran everywhere.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Stable {
    /// Its revision.
    pub revision: String,
    /// The template, manifests and number that are this revision.
    #[schemars(schema_with = "schema::kept")]
    pub content: Map<String, Value>,
}

/// A node's leave to take down what it runs.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    /// The node.
    pub node: String,
    /// Higher than that of every grant before.
    pub number: i64,
    /// When it was given.
    pub since: Time,
}

/// One node of a workload.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// The node.
    pub name: String,
    /// The revision that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Waiting, Updating, Unready, Failed or Silent.
    pub phase: String,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

fn one() -> i32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(number: &i32) -> bool {
    *number == 1
}

fn one_node() -> IntOrString {
    IntOrString::Int(1)
}

fn ten_minutes() -> i64 {
    600
}

fn one_hour() -> i64 {
    3600
}

fn grants(generator: &mut SchemaGenerator) -> Schema {
    schema::by_key::<Grant>(generator, &["node"])
}

fn nodes(generator: &mut SchemaGenerator) -> Schema {
    schema::by_key::<NodeState>(generator, &["name"])
}

fn conditions(generator: &mut SchemaGenerator) -> Schema {
    schema::by_key::<Condition>(generator, &["type"])
}
