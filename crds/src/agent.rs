//! `NodeAgent`: one per agent, made by it, and what it says of itself.

#![expect(clippy::duplicated_attributes, reason = "each printer column has a type and a path")]
#![expect(unreachable_pub, reason = "what KubeSchema derives declares the structure once more, within a function")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::schema;

/// So many errors are kept, the newest.
pub const MAX_RECENT_ERRORS: usize = 10;

/// An agent; what it is, its status says.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "portreeve.dev",
    version = "v1alpha1",
    kind = "NodeAgent",
    plural = "nodeagents",
    shortname = "na",
    category = "portreeve",
    status = "NodeAgentStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "An agent on a node, made by the agent itself. Whether it lives says the Lease of its name.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status",
        description = "Whether it runs pods."
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[?(@.type=='InternalIP')].address"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NodeAgentSpec {}

/// What an agent says of itself.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NodeAgentStatus {
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Where its node is reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "addresses")]
    pub addresses: Vec<Address>,
    /// What its node has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, Quantity>,
    /// What of it is there for pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub allocatable: BTreeMap<String, Quantity>,
    /// Ready, DiskPressure, MemoryPressure, PIDPressure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// What last went wrong, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_RECENT_ERRORS))]
    pub recent_errors: Vec<RecentError>,
    /// What it runs of each workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "workloads")]
    pub workloads: Vec<WorkloadReport>,
}

/// Where a node is reached.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Hostname or InternalIP.
    #[serde(rename = "type")]
    pub kind: String,
    /// The name or address.
    pub address: String,
}

/// Something that went wrong.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RecentError {
    /// When.
    pub time: Time,
    /// With what: kind, namespace and name.
    pub object: String,
    /// What and why.
    pub message: String,
}

/// What a node runs of a workload.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadReport {
    /// The workload's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: another of the same name is another workload.
    pub uid: String,
    /// What it is made to run; nothing when it has let go of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Whether all pods of that revision were ready for minReadySeconds.
    #[serde(default)]
    pub available: bool,
    /// The same for people.
    #[serde(default)]
    pub phase: Phase,
    /// Why it is not available, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The node takes nothing down any more under grants up to this number.
    #[serde(default)]
    pub grant: i64,
}

/// How a workload is on a node.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Its pods come up.
    #[default]
    Starting,
    /// All of them are ready.
    Available,
    /// They were ready and are not now.
    Unready,
    /// One of them fails and fails, or its manifest is refused.
    Failed,
    /// They go.
    Removing,
    /// They are gone.
    Removed,
}

impl Phase {
    /// The word that a status has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Available => "Available",
            Self::Unready => "Unready",
            Self::Failed => "Failed",
            Self::Removing => "Removing",
            Self::Removed => "Removed",
        }
    }
}

fn addresses(generator: &mut SchemaGenerator) -> Schema {
    schema::by_key::<Address>(generator, &["type", "address"])
}

fn conditions(generator: &mut SchemaGenerator) -> Schema {
    schema::by_key::<Condition>(generator, &["type"])
}

fn workloads(generator: &mut SchemaGenerator) -> Schema {
    schema::by_key::<WorkloadReport>(generator, &["namespace", "name"])
}
