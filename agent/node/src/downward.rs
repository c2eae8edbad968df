//! The downward API: what a pod may learn about itself, as text.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use portreeve_manifests::quantity;

use crate::volumes::Facts;

/// Why a field has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DownwardError {
    /// There is no such field.
    #[error("field {0:?} is not known")]
    Field(String),
    /// There is no such container.
    #[error("container {0:?} is not in the pod")]
    Container(String),
    /// There is no such resource.
    #[error("resource {0:?} is not known")]
    Resource(String),
}

/// The value of a `fieldRef`; `ips` are the pod's own addresses.
pub(crate) fn field(facts: Facts<'_>, ips: &[String], path: &str) -> Result<String, DownwardError> {
    let metadata = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => metadata.labels.as_ref(),
            "metadata.annotations" => metadata.annotations.as_ref(),
            _ => return Err(DownwardError::Field(path.to_owned())),
        };
        return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        "metadata.uid" => facts.uid.to_owned(),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => facts.node.name.clone(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" => facts.node.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.node.host_ips.join(","),
        "status.podIP" => ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => ips.join(","),
        _ => return Err(DownwardError::Field(path.to_owned())),
    })
}

/// `metadata.labels['key']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map in the kubelet's format: `key="value"` with Go's quoting, one per line.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other if other.is_control() => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(other)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
pub(crate) fn resource(
    facts: Facts<'_>,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
) -> Result<String, DownwardError> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own.ok_or_else(|| DownwardError::Container(String::new()))?,
        Some(name) => facts
            .pod
            .spec
            .as_ref()
            .into_iter()
            .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
            .find(|container| container.name == name)
            .ok_or_else(|| DownwardError::Container(name.to_owned()))?,
    };
    let (list, name) =
        selector.resource.split_once('.').ok_or_else(|| DownwardError::Resource(selector.resource.clone()))?;
    let resources = container.resources.as_ref();
    // A limit of zero is none: what the node has takes its place.
    // Source: kubernetes `pkg/api/v1/resource/helpers.go` MergeContainerResourceLimits.
    let says = |quantity: &&Quantity| quantity::cpu_millis(quantity).ok() != Some(0);
    let limits = resources.and_then(|r| r.limits.as_ref()).and_then(|map| map.get(name)).filter(says);
    let given: Option<&Quantity> = match list {
        "limits" => limits,
        "requests" => resources.and_then(|r| r.requests.as_ref()).and_then(|map| map.get(name)).or(limits),
        _ => return Err(DownwardError::Resource(selector.resource.clone())),
    };
    let divisor = selector.divisor.as_ref().filter(|divisor| divisor.0 != "0");
    let in_units = |value: u64, unit: u64| value.div_ceil(unit.max(1)).to_string();
    match name {
        "cpu" => {
            let millis = given.and_then(|given| quantity::cpu_millis(given).ok()).unwrap_or(if list == "limits" {
                facts.node.cpu_millis
            } else {
                0
            });
            let unit = divisor.and_then(|unit| quantity::cpu_millis(unit).ok()).unwrap_or(1000);
            Ok(in_units(millis, unit))
        }
        "memory" | "ephemeral-storage" => {
            let absent = match (list, name) {
                ("limits", "memory") => facts.node.memory_bytes,
                ("limits", _) => facts.node.storage_bytes,
                _ => 0,
            };
            let bytes = given.and_then(|given| quantity::bytes(given).ok()).unwrap_or(absent);
            let unit = divisor.and_then(|unit| quantity::bytes(unit).ok()).unwrap_or(1);
            Ok(in_units(bytes, unit))
        }
        other if other.starts_with("hugepages-") => {
            let bytes = given.and_then(|given| quantity::bytes(given).ok()).unwrap_or(0);
            let unit = divisor.and_then(|unit| quantity::bytes(unit).ok()).unwrap_or(1);
            Ok(in_units(bytes, unit))
        }
        other => Err(DownwardError::Resource(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use portreeve_plan::Configs;
    use serde_json::json;

    use super::*;
    use crate::volumes::NodeFacts;

    #[test]
    fn a_limit_that_is_not_given_is_what_the_node_has() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "free"},
            {"name": "zero", "resources": {"limits": {"cpu": "0", "memory": "0", "ephemeral-storage": "0"}}},
            {"name": "tight", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi", "ephemeral-storage": "1Gi"}}},
        ]}}))
        .unwrap();
        let node =
            NodeFacts { cpu_millis: 4000, memory_bytes: 8 << 30, storage_bytes: 100 << 30, ..NodeFacts::default() };
        let configs = Configs::default();
        let facts = Facts { pod: &pod, uid: "u", configs: &configs, node: &node };
        let value = |container: &str, resource: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                container_name: Some(container.to_owned()),
                resource: resource.to_owned(),
                divisor: Some(Quantity(divisor.to_owned())),
            };
            super::resource(facts, None, &selector).unwrap()
        };
        for container in ["free", "zero"] {
            assert_eq!(value(container, "limits.cpu", "1"), "4");
            assert_eq!(value(container, "limits.memory", "1Gi"), "8");
            assert_eq!(value(container, "limits.ephemeral-storage", "1Gi"), "100");
            assert_eq!(value(container, "requests.ephemeral-storage", "1Gi"), "0");
        }
        assert_eq!(value("tight", "limits.cpu", "1m"), "1500");
        assert_eq!(value("tight", "limits.memory", "1Mi"), "64");
        assert_eq!(value("tight", "limits.ephemeral-storage", "1Mi"), "1024");
    }
}
