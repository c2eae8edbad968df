//! How two versions of a pod differ, and what each difference costs.
//!
//! | class | fields |
//! |---|---|
//! | live | labels, annotations, probes, hooks, grace period, restart policy, pull policy, deadline, container ports without a host port, whatever only steers a cluster |
//! | in-place | cpu, memory, pids of a container, while the QoS class stays |
//! | restart | image, command, args, env, workingDir, volumeMounts, securityContext, tty and stdin, stop signal; a container added or removed |
//! | recreate | pod securityContext, namespaces, volumes, host name and DNS, host ports, init containers, a change of QoS class; any field not named here |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod, PodSpec};
use portreeve_manifests::qos_class;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::PIDS_RESOURCE;

/// What a change costs a running pod, cheapest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "kebab-case")]
pub enum Cost {
    /// Nothing that runs is disturbed: a file or a label changes, or something missing is made.
    Live,
    /// A cgroup value of a running container changes.
    InPlace,
    /// One container is restarted.
    Restart {
        /// Which.
        container: String,
    },
    /// The pod is stopped and made again, under the same uid.
    Recreate,
    /// The pod goes.
    Remove,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cost::Live => f.write_str("live"),
            Cost::InPlace => f.write_str("in-place"),
            Cost::Restart { container } => write!(f, "restart {container}"),
            Cost::Recreate => f.write_str("recreate"),
            Cost::Remove => f.write_str("remove"),
        }
    }
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Path of the field, such as `spec.containers[web].image`.
    pub field: String,
    /// What the change costs.
    pub cost: Cost,
    /// Value in what is applied, as JSON; `None` if the field is not there.
    pub from: Option<String>,
    /// Value in what is desired, as JSON; `None` if the field is not there.
    pub to: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        write!(f, "{} [{}]: {} -> {}", self.field, self.cost, shown(&self.from), shown(&self.to))
    }
}

/// The fields in which two versions of a pod differ, with the cost class of each.
pub fn differences(applied: &Pod, desired: &Pod) -> Vec<Difference> {
    let mut found = Vec::new();
    let (old, new) = (&applied.metadata, &desired.metadata);
    strings("metadata.labels", old.labels.as_ref(), new.labels.as_ref(), &mut found);
    strings("metadata.annotations", old.annotations.as_ref(), new.annotations.as_ref(), &mut found);
    let empty = PodSpec::default();
    found.extend(spec_differences(applied.spec.as_ref().unwrap_or(&empty), desired.spec.as_ref().unwrap_or(&empty)));
    found
}

/// The differences of two specs.
pub(crate) fn spec_differences(applied: &PodSpec, desired: &PodSpec) -> Vec<Difference> {
    let mut found = Vec::new();
    if applied == desired {
        return found;
    }
    let (old, new) = (object(applied), object(desired));
    for key in keys(&old, &new).filter(|key| *key != "containers" && *key != "initContainers") {
        let cost = pod_field(key);
        walk(&format!("spec.{key}"), old.get(key), new.get(key), &|_| cost.clone(), &mut found);
    }
    init_containers(applied, desired, &mut found);
    containers(applied, desired, &mut found);
    order(applied, desired, &mut found);
    let (old, new) = (qos_class(applied), qos_class(desired));
    if old != new {
        found.push(Difference {
            field: "status.qosClass".to_owned(),
            cost: Cost::Recreate,
            from: Some(old.to_string()),
            to: Some(new.to_string()),
        });
    }
    found
}

/// The differences of two versions of one container.
pub(crate) fn container_differences(applied: &Container, desired: &Container) -> Vec<Difference> {
    let mut found = Vec::new();
    if applied == desired {
        return found;
    }
    let path = format!("spec.containers[{}]", desired.name);
    let restart = || Cost::Restart { container: desired.name.clone() };
    let (old, new) = (object(applied), object(desired));
    for key in keys(&old, &new) {
        let field = format!("{path}.{key}");
        let cost = |below: &str| match key {
            "livenessProbe"
            | "readinessProbe"
            | "startupProbe"
            | "imagePullPolicy"
            | "restartPolicy"
            | "restartPolicyRules"
            | "resizePolicy"
            | "terminationMessagePolicy" => Cost::Live,
            "lifecycle" if !below.contains("stopSignal") => Cost::Live,
            "ports" if host_ports(applied) == host_ports(desired) => Cost::Live,
            "ports" => Cost::Recreate,
            "resources" => resource_field(below, desired),
            _ => restart(),
        };
        walk(&field, old.get(key), new.get(key), &cost, &mut found);
    }
    found
}

/// What a change of a field of the spec costs.
fn pod_field(field: &str) -> Cost {
    match field {
        "activeDeadlineSeconds"
        | "affinity"
        | "automountServiceAccountToken"
        | "enableServiceLinks"
        | "imagePullSecrets"
        | "nodeName"
        | "nodeSelector"
        | "preemptionPolicy"
        | "priority"
        | "priorityClassName"
        | "readinessGates"
        | "restartPolicy"
        | "schedulerName"
        | "schedulingGates"
        | "schedulingGroup"
        | "serviceAccount"
        | "serviceAccountName"
        | "terminationGracePeriodSeconds"
        | "tolerations"
        | "topologySpreadConstraints" => Cost::Live,
        _ => Cost::Recreate,
    }
}

/// What a change below a container's `resources` costs.
fn resource_field(path: &str, desired: &Container) -> Cost {
    let restart = || Cost::Restart { container: desired.name.clone() };
    let resource = path.rsplit_once("resources.").map_or("", |(_, rest)| rest);
    let resource = resource.split_once('.').map_or("", |(_, name)| name);
    let asks_for_restart = desired
        .resize_policy
        .iter()
        .flatten()
        .any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer");
    match resource {
        "ephemeral-storage" => Cost::Live,
        "cpu" | "memory" if asks_for_restart => restart(),
        "cpu" | "memory" | PIDS_RESOURCE => Cost::InPlace,
        _ => restart(),
    }
}

fn init_containers(applied: &PodSpec, desired: &PodSpec, found: &mut Vec<Difference>) {
    let cost = |path: &str| {
        let field = path.rsplit_once("].").map_or(path, |(_, field)| field);
        let live = ["livenessProbe", "readinessProbe", "startupProbe", "imagePullPolicy"];
        if live.iter().any(|live| field.starts_with(live)) { Cost::Live } else { Cost::Recreate }
    };
    let (old, new) = (object(applied), object(desired));
    let key = "initContainers";
    walk("spec.initContainers", old.get(key), new.get(key), &cost, found);
}

fn containers(applied: &PodSpec, desired: &PodSpec, found: &mut Vec<Difference>) {
    let by_name = |spec: &'_ PodSpec| -> BTreeMap<String, Container> {
        spec.containers.iter().map(|container| (container.name.clone(), container.clone())).collect()
    };
    let (old, new) = (by_name(applied), by_name(desired));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (from, to) = match (old.get(name), new.get(name)) {
            (Some(from), Some(to)) => {
                found.extend(container_differences(from, to));
                continue;
            }
            pair => pair,
        };
        let field = format!("spec.containers[{name}]");
        let image = |container: Option<&Container>| container.and_then(|c| c.image.clone());
        let ports = from.or(to).map(host_ports).unwrap_or_default();
        found.push(Difference {
            field,
            // Host ports belong to the sandbox, so one that comes or goes with a container does too.
            cost: if ports.is_empty() { Cost::Restart { container: name.clone() } } else { Cost::Recreate },
            from: image(from),
            to: image(to),
        });
    }
}

/// Containers start in the order of the spec; those that run need not be started.
fn order(applied: &PodSpec, desired: &PodSpec, found: &mut Vec<Difference>) {
    let names = |spec: &PodSpec, other: &PodSpec| -> Vec<String> {
        let in_both = |name: &String| other.containers.iter().any(|container| container.name == *name);
        spec.containers.iter().map(|container| container.name.clone()).filter(in_both).collect()
    };
    let (old, new) = (names(applied, desired), names(desired, applied));
    if old != new {
        let shown = |names: Vec<String>| Some(names.join(", "));
        let field = "spec.containers (order)".to_owned();
        found.push(Difference { field, cost: Cost::Live, from: shown(old), to: shown(new) });
    }
}

/// The ports a container takes of the host: protocol, address, host port, container port.
fn host_ports(container: &Container) -> BTreeSet<(String, String, i32, i32)> {
    let row = |port: &ContainerPort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let host_port = port.host_port.filter(|port| *port != 0)?;
        Some((protocol, port.host_ip.clone().unwrap_or_default(), host_port, port.container_port))
    };
    container.ports.iter().flatten().filter_map(row).collect()
}

fn strings(
    path: &str,
    old: Option<&BTreeMap<String, String>>,
    new: Option<&BTreeMap<String, String>>,
    found: &mut Vec<Difference>,
) {
    let value = |map: Option<&BTreeMap<String, String>>| map.map(|map| Value::Object(object(map)));
    walk(path, value(old).as_ref(), value(new).as_ref(), &|_| Cost::Live, found);
}

/// Goes down to the first level at which `old` and `new` differ in a way worth a line.
fn walk(
    path: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    cost: &dyn Fn(&str) -> Cost,
    found: &mut Vec<Difference>,
) {
    if old == new {
        return;
    }
    let start = found.len();
    if let Some((old, new)) = both(old, new, Value::as_object, Map::new) {
        for key in keys(&old, &new) {
            walk(&format!("{path}.{key}"), old.get(key), new.get(key), cost, found);
        }
    } else if let Some((old, new)) = both(old, new, Value::as_array, Vec::new) {
        let (old, new) = (named(&old), named(&new));
        if let (Some(old), Some(new)) = (old, new) {
            for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
                let path = format!("{path}[{key}]");
                match (old.get(key), new.get(key)) {
                    (Some(old), Some(new)) => walk(&path, Some(old), Some(new), cost, found),
                    (old, new) => found.push(leaf(path, old, new, cost)),
                }
            }
        }
    }
    if found.len() == start {
        // A value, a list without names, or a list whose order alone changed.
        found.push(leaf(path.to_owned(), old, new, cost));
    }
}

fn leaf(field: String, old: Option<&Value>, new: Option<&Value>, cost: &dyn Fn(&str) -> Cost) -> Difference {
    let shown = |value: Option<&Value>| value.map(Value::to_string);
    Difference { cost: cost(&field), field, from: shown(old), to: shown(new) }
}

/// Both as containers of one kind, where one that is absent counts as empty.
fn both<T: Clone>(
    old: Option<&Value>,
    new: Option<&Value>,
    as_kind: impl Fn(&Value) -> Option<&T>,
    empty: impl Fn() -> T,
) -> Option<(T, T)> {
    let side = |value: Option<&Value>| match value {
        None => Some(empty()),
        Some(value) => as_kind(value).cloned(),
    };
    Some((side(old)?, side(new)?))
}

/// A list as a map by the names of its elements, if each has one and no two the same.
fn named(list: &[Value]) -> Option<BTreeMap<String, Value>> {
    let name = |value: &Value| {
        let key = if value.get("mountPath").is_some() { "mountPath" } else { "name" };
        value.get(key).and_then(Value::as_str).map(str::to_owned)
    };
    let map: BTreeMap<String, Value> = list.iter().filter_map(|value| Some((name(value)?, value.clone()))).collect();
    (map.len() == list.len()).then_some(map)
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn keys<'a>(old: &'a Map<String, Value>, new: &'a Map<String, Value>) -> impl Iterator<Item = &'a str> {
    let keys: BTreeSet<&str> = old.keys().chain(new.keys()).map(String::as_str).collect();
    keys.into_iter()
}
