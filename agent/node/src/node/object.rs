//! This machine as a Kubernetes node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::Node;
use crate::config::architecture;

impl Node {
    /// This machine as a Kubernetes node.
    pub fn node_object(&self) -> k8s_openapi::api::core::v1::Node {
        let facts = &self.inner.shared.node;
        let ready = self.ready();
        let now = jiff::Timestamp::now();
        let room = self.inner.room.borrow().clone();
        let drained = self.is_drained();
        let cpu = facts.cpu_millis / 1000;
        let quantities = BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_string())),
            ("memory".to_owned(), Quantity(format!("{}Ki", facts.memory_bytes / 1024))),
            ("pods".to_owned(), Quantity("250".to_owned())),
        ]);
        let mut addresses: Vec<NodeAddress> = facts
            .host_ips
            .iter()
            .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.clone() })
            .collect();
        addresses.push(NodeAddress { type_: "Hostname".to_owned(), address: facts.name.clone() });
        let trimmed = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        k8s_openapi::api::core::v1::Node {
            metadata: ObjectMeta {
                name: Some(facts.name.clone()),
                labels: Some(self.inner.config.node_labels()),
                creation_timestamp: Some(Time(self.inner.started_at)),
                resource_version: Some("1".to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec { unschedulable: drained.then_some(true), ..NodeSpec::default() }),
            status: Some(NodeStatus {
                addresses: Some(addresses),
                allocatable: Some(quantities.clone()),
                capacity: Some(quantities),
                conditions: Some(vec![
                    NodeCondition {
                        type_: "Ready".to_owned(),
                        status: if ready.is_ok() { "True" } else { "False" }.to_owned(),
                        reason: Some(if ready.is_ok() { "AgentReady" } else { "AgentNotReady" }.to_owned()),
                        message: Some(ready.err().map_or_else(
                            || "the agent reconciles its manifests".to_owned(),
                            |reasons| reasons.join("; "),
                        )),
                        last_heartbeat_time: Some(Time(now)),
                        last_transition_time: Some(Time(self.inner.started_at)),
                    },
                    NodeCondition {
                        type_: "DiskPressure".to_owned(),
                        status: if room.problem.is_some() { "True" } else { "False" }.to_owned(),
                        reason: Some(
                            if room.problem.is_some() { "AgentHasDiskPressure" } else { "AgentHasNoDiskPressure" }
                                .to_owned(),
                        ),
                        message: Some(room.problem.unwrap_or_else(|| "the disk of the images has room".to_owned())),
                        last_heartbeat_time: Some(Time(now)),
                        last_transition_time: Some(Time(room.since)),
                    },
                ]),
                node_info: Some(NodeSystemInfo {
                    architecture: architecture().to_owned(),
                    boot_id: trimmed("/proc/sys/kernel/random/boot_id"),
                    container_runtime_version: format!("portreeve://{}", self.inner.config.version),
                    kernel_version: trimmed("/proc/sys/kernel/osrelease"),
                    kubelet_version: format!("portreeve-{}", self.inner.config.version),
                    machine_id: trimmed("/etc/machine-id"),
                    operating_system: "linux".to_owned(),
                    os_image: os_name(),
                    ..NodeSystemInfo::default()
                }),
                ..NodeStatus::default()
            }),
        }
    }
}

fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map(|name| name.trim_matches('"').to_owned()).unwrap_or_default()
}
