//! Limits of a container in plain numbers, as wanted and as enforced.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use portreeve_manifests::quantity;
use serde::{Deserialize, Serialize};

use crate::PIDS_RESOURCE;

/// What a container may use. `None` is no request or no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// `requests.cpu` in thousandths of a core.
    pub cpu_request_millis: Option<u64>,
    /// `limits.cpu` in thousandths of a core.
    pub cpu_limit_millis: Option<u64>,
    /// `requests.memory` in bytes.
    pub memory_request_bytes: Option<u64>,
    /// `limits.memory` in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// `limits.portreeve.dev/pids`.
    pub pids_limit: Option<u64>,
}

/// What a container's cgroup enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourcesView {
    /// The cgroup holds what these translate to.
    InEffect(Resources),
    /// Somebody changed the cgroup; the planner sets it again.
    Drifted {
        /// What was found, for the step's reason.
        found: String,
    },
}

impl Resources {
    /// What the spec of `container` asks for. Quantities were validated with the manifest; one
    /// that is out of range counts as absent.
    pub fn of(container: &Container) -> Resources {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let get = |map: Option<&BTreeMap<String, Quantity>>, name: &str| map.and_then(|map| map.get(name)).cloned();
        let cpu = |quantity: Option<Quantity>| quantity.and_then(|q| quantity::cpu_millis(&q).ok());
        let bytes = |quantity: Option<Quantity>| quantity.and_then(|q| quantity::bytes(&q).ok());
        Resources {
            cpu_request_millis: cpu(get(requests, "cpu")),
            cpu_limit_millis: cpu(get(limits, "cpu")),
            memory_request_bytes: bytes(get(requests, "memory")),
            memory_limit_bytes: bytes(get(limits, "memory")),
            pids_limit: bytes(get(limits, PIDS_RESOURCE)),
        }
    }

    /// Back to the words of the API, for `containerStatuses[].resources`.
    pub fn to_requirements(self) -> ResourceRequirements {
        let cpu = |millis: Option<u64>| ("cpu", millis.map(|millis| format!("{millis}m")));
        let memory = |bytes: Option<u64>| ("memory", bytes.map(|bytes| bytes.to_string()));
        let pids = (PIDS_RESOURCE, self.pids_limit.map(|pids| pids.to_string()));
        let map = |entries: Vec<(&str, Option<String>)>| {
            let map: BTreeMap<String, Quantity> =
                entries.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Quantity(value?)))).collect();
            (!map.is_empty()).then_some(map)
        };
        ResourceRequirements {
            claims: None,
            limits: map(vec![cpu(self.cpu_limit_millis), memory(self.memory_limit_bytes), pids]),
            requests: map(vec![cpu(self.cpu_request_millis), memory(self.memory_request_bytes)]),
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut part = |name: &str, value: Option<String>| {
            parts.extend(value.map(|value| format!("{name} {value}")));
        };
        part("cpu request", self.cpu_request_millis.map(|millis| format!("{millis}m")));
        part("cpu limit", self.cpu_limit_millis.map(|millis| format!("{millis}m")));
        part("memory request", self.memory_request_bytes.map(binary));
        part("memory limit", self.memory_limit_bytes.map(binary));
        part("pids limit", self.pids_limit.map(|pids| pids.to_string()));
        if parts.is_empty() {
            return f.write_str("no limits");
        }
        f.write_str(&parts.join(", "))
    }
}

/// Bytes in the largest binary unit that divides them.
fn binary(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    UNITS
        .iter()
        .find(|(size, _)| bytes != 0 && bytes.is_multiple_of(*size))
        .map_or_else(|| bytes.to_string(), |(size, unit)| format!("{}{unit}", bytes / size))
}
