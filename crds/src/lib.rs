//! What a fleet's desired state and its report are in Kubernetes' API, and the rules by which a change goes round.
//!
//! ```text
//!              NodeWorkload.spec                 NodeWorkload.status            NodeAgent.status
//!  users ----> what runs on which nodes   +----> target, grants, counts   +---- what runs on one node
//!                        |                |                |              |             ^
//!                        |           judge(..): one agent  |              |             | each agent, of itself
//!                        |           at a time, checked by |              |             |
//!                        |           resourceVersion <-----|--------------+             |
//!                        +---------------------------------+--> decide(..) ------------ +
//! ```
//!
//! [`judge`] grants slots, [`decide`] uses them. Both are pure functions of what the API server says and of the time.
//!
//! **Invariant:** this crate does no I/O and knows no clock.
//!
//! **Invariant:** a node takes down what it runs of a workload, to run another revision of it, only under a grant of its
//! own that it has not called done; and nobody else ends a grant but an operator who calls the node abandoned. Whatever
//! is lost, late, stale or said twice, no more nodes are down for an update than grants are out.

mod agent;
mod content;
mod render;
mod rollout;
mod schema;
mod workload;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use agent::{
    Address, MAX_RECENT_ERRORS, NodeAgent, NodeAgentSpec, NodeAgentStatus, Phase, RecentError, WorkloadReport,
};
pub use content::{Content, Revision};
pub use render::render;
pub use rollout::{AgentView, Decision, Held, Judgement, decide, grant_of, judge, matches, settled};
pub use workload::{
    FailurePolicy, Grant, MAX_LISTED_NODES, NodeState, NodeWorkload, NodeWorkloadSpec, NodeWorkloadStatus, PodTemplate,
    Rollout, Stable, Target, TemplateMetadata,
};

/// The API group of all kinds here.
pub const GROUP: &str = "portreeve.dev";

/// What keeps a deleted workload in the API until its nodes have let go of it.
pub const FINALIZER: &str = "portreeve.dev/nodes";

/// The label of a pod that says which workload it is of.
pub const WORKLOAD_LABEL: &str = "portreeve.dev/workload";

/// The definitions of all kinds.
#[must_use]
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [NodeAgent::crd(), NodeWorkload::crd()]
}

/// The files of `helm/crds`, by name, in YAML.
#[must_use]
pub fn files() -> Vec<(String, String)> {
    let file = |definition: CustomResourceDefinition| {
        let name = format!("{}.yaml", definition.metadata.name.clone().unwrap_or_default());
        let value = serde_json::to_value(definition).unwrap_or_default();
        let note = "# Written by `cargo run -p portreeve-crds --bin crdgen -- helm/crds` from crds/src.\n";
        (name, format!("{note}{}", portreeve_manifests::to_yaml(&value)))
    };
    definitions().into_iter().map(file).collect()
}
