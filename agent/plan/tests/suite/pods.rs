//! Pods to test with, in YAML as a user writes it; the few defaults that matter are applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use portreeve_plan::{Config, Configs, DesiredPod, PodUid};
use serde_json::{Value, json};

/// The moment at which the tests begin.
pub(crate) fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("it is a timestamp")
}

/// `seconds` after the beginning.
pub(crate) fn at(seconds: i64) -> Timestamp {
    start() + jiff::SignedDuration::from_secs(seconds)
}

/// A pod from its spec.
pub(crate) fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": spec,
    }))
    .expect("the spec is one of a pod")
}

/// The same, wanted.
pub(crate) fn wanted(spec: Value) -> DesiredPod {
    DesiredPod::new(PodUid("uid-1".to_owned()), Arc::new(pod(spec)), start())
}

/// One container `web` of image `web:1`.
pub(crate) fn simple() -> Value {
    json!({"containers": [{"name": "web", "image": "web:1"}]})
}

/// A ConfigMap `settings` with one key `LEVEL`.
pub(crate) fn settings(level: &str, changed_at: Timestamp) -> Arc<Configs> {
    let data = BTreeMap::from([("LEVEL".to_owned(), level.as_bytes().to_vec())]);
    Arc::new(Configs {
        config_maps: BTreeMap::from([("settings".to_owned(), Config::new(data))]),
        secrets: BTreeMap::new(),
        changed_at: Some(changed_at),
    })
}

/// The environment variable that uses it.
pub(crate) fn level() -> Value {
    json!([{"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "LEVEL"}}}])
}

/// Replaces the value at `pointer` in a spec.
pub(crate) fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
    let parent = spec.pointer_mut(parent).expect("the parent is there");
    match parent {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value,
        _ => parent[key] = value,
    }
    spec
}
