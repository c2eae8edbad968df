//! What a workload says, and the name of each version of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::workload::{NodeWorkloadSpec, PodTemplate};

/// The part of a specification that runs: an edit of it goes from node to node, any other counts at once.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// The pod of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
    /// How many of them.
    pub replicas_per_node: i32,
    /// What runs instead of a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<Map<String, Value>>>,
}

/// The name of a content: the first 16 hexadecimal digits of the SHA-256 of its JSON with sorted keys.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(transparent)]
pub struct Revision(pub String);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Content {
    /// What the specification says now.
    #[must_use]
    pub fn of(spec: &NodeWorkloadSpec) -> Self {
        Self {
            template: spec.template.clone(),
            replicas_per_node: spec.replicas_per_node,
            manifests: spec.manifests.clone(),
        }
    }

    /// The content as a status holds it.
    #[must_use]
    pub fn to_map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            // It has no keys but texts, and no numbers but integers.
            _ => Map::new(),
        }
    }

    /// The content that a status holds, if it is one.
    #[must_use]
    pub fn from_map(map: &Map<String, Value>) -> Option<Self> {
        serde_json::from_value(Value::Object(map.clone())).ok()
    }

    /// Its name.
    #[must_use]
    pub fn revision(&self) -> Revision {
        let mut digest = hex::encode(Sha256::digest(sorted(Value::Object(self.to_map())).to_string()));
        digest.truncate(16);
        Revision(digest)
    }
}

/// The same value with sorted keys, whatever map type `serde_json` was built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        scalar => scalar,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> NodeWorkloadSpec {
        serde_json::from_value(value).expect("a specification")
    }

    #[test]
    fn a_revision_is_of_what_runs_and_of_nothing_else() {
        let one = spec(json!({ "template": { "spec": { "a": 1, "b": { "c": 1, "d": 2 } } } }));
        let other_order = spec(json!({
            "rollout": { "paused": true }, "nodeNames": ["n"],
            "template": { "spec": { "b": { "d": 2, "c": 1 }, "a": 1 } },
        }));
        assert_eq!(Content::of(&one).revision(), Content::of(&other_order).revision());
        for edit in [
            json!({ "template": { "spec": { "a": 2, "b": { "c": 1, "d": 2 } } } }),
            json!({ "template": { "spec": { "a": 1, "b": { "c": 1, "d": 2 } } }, "replicasPerNode": 2 }),
            json!({ "template": { "metadata": { "labels": { "l": "1" } }, "spec": { "a": 1, "b": { "c": 1, "d": 2 } } } }),
            json!({ "manifests": [] }),
        ] {
            assert_ne!(Content::of(&one).revision(), Content::of(&spec(edit)).revision());
        }
    }

    #[test]
    fn a_status_keeps_a_content_whole() {
        let content = Content::of(&spec(json!({
            "template": { "metadata": { "annotations": { "n": "v" } }, "spec": { "containers": [{ "name": "c" }] } },
            "replicasPerNode": 3,
        })));
        assert_eq!(Content::from_map(&content.to_map()), Some(content));
    }
}
