//! Kubernetes types to engine types: the one place that knows both.
//!
//! Everything here is a pure function of the pod and what it is given; preparing sources (volumes,
//! subPaths, files) is done before and passed in.

mod dns;
mod env;
mod hosts;
mod mounts;
mod resources;
mod security;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use portreeve_engine::network::Protocol;
use portreeve_engine::network::cni::Published;
use portreeve_engine::{
    Bandwidth, ContainerConfig, ContainerMetadata, IdMapping, IpcNamespace, Mount, Namespaces, NetworkNamespace, Owner,
    PidNamespace, SandboxConfig, SandboxMetadata, UserNamespace,
};
use portreeve_manifests::{QosClass, qos_class};
use portreeve_plan::{ContainerRecord, Resources, SandboxRecord};

use crate::volumes::Facts;

pub(crate) use env::{EnvError, environment, expand};
pub(crate) use hosts::{hosts_file, node_hosts_file};
pub(crate) use mounts::mount_plans;
pub(crate) use resources::{enforced, level_resources, pod_resources};

/// Label: the pod's name.
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: the planner's record of a sandbox or container, as JSON.
pub(crate) const RECORD: &str = "portreeve.dev/record";

/// Longest name of a file, in bytes (`NAME_MAX`).
const MAX_FILE_NAME: usize = 255;

/// How many ids a pod with users of its own gets.
const IDS_PER_POD: u32 = 65_536;

/// Why a container cannot be described to the engine: `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TranslateError {
    /// A variable has no value.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// A record cannot be written.
    #[error("writing the record of {what}")]
    Record {
        /// Of what.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A number is out of range.
    #[error("{field}: {value} is out of range")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// A port is to be published on what is no IPv4 address.
    #[error("hostIP: {0:?} is no IPv4 address; use one, such as 127.0.0.1")]
    HostAddress(String),
    /// The pod has no specification.
    #[error("the pod has no spec")]
    NoSpec,
}

/// What of the node goes into a sandbox or container.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Root of our cgroups.
    pub(crate) cgroup_root: String,
    /// Directory of all logs.
    pub(crate) logs: PathBuf,
    /// The node's resolver settings.
    pub(crate) resolv_conf: PathBuf,
}

impl Place {
    /// Directory of a pod's logs; of a name that is too long for one its beginning.
    pub(crate) fn log_directory(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        // The uid alone keeps the directories of two pods apart.
        let room = MAX_FILE_NAME.saturating_sub(namespace.len() + uid.len() + 2);
        self.logs.join(format!("{namespace}_{}_{uid}", name.get(..room).unwrap_or(name)))
    }

    /// Every pod's directory of logs, with the pod's uid.
    pub(crate) fn log_directories(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let entries = std::fs::read_dir(&self.logs).into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let uid = name.rsplit_once('_')?.1;
            // Whatever else somebody put there is not a pod's.
            uuid::Uuid::parse_str(uid).ok()?;
            Some((uid.to_owned(), entry.path()))
        })
    }

    /// The pod's cgroup.
    pub(crate) fn cgroup(&self, spec: &PodSpec, uid: &str) -> String {
        format!("{}/pod{uid}", self.level(qos_class(spec)))
    }

    /// The cgroup of all pods of a QoS class.
    pub(crate) fn level(&self, class: QosClass) -> String {
        let root = self.cgroup_root.trim_end_matches('/');
        match class {
            QosClass::Guaranteed => root.to_owned(),
            QosClass::Burstable => format!("{root}/burstable"),
            QosClass::BestEffort => format!("{root}/besteffort"),
        }
    }
}

fn labels(facts: Facts<'_>) -> BTreeMap<String, String> {
    let (namespace, name) = names(facts);
    BTreeMap::from([
        (POD_NAME.to_owned(), name),
        (POD_NAMESPACE.to_owned(), namespace),
        (POD_UID.to_owned(), facts.uid.to_owned()),
    ])
}

fn names(facts: Facts<'_>) -> (String, String) {
    let metadata = &facts.pod.metadata;
    (metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()), metadata.name.clone().unwrap_or_default())
}

/// Describes the sandbox of a pod. `id_base` is the first host id for a pod with its own users.
pub(crate) fn sandbox(
    facts: Facts<'_>,
    record: &SandboxRecord,
    attempt: u32,
    place: &Place,
    id_base: Option<u32>,
) -> Result<SandboxConfig, TranslateError> {
    let spec = facts.pod.spec.as_ref().ok_or(TranslateError::NoSpec)?;
    let (namespace, name) = names(facts);
    let record = serde_json::to_string(record)
        .map_err(|source| TranslateError::Record { what: format!("sandbox of {name}"), source })?;
    let on_host = |flag: Option<bool>| flag == Some(true);
    let user = match id_base {
        Some(host) => {
            let rows = vec![IdMapping { container: 0, host, length: IDS_PER_POD }];
            UserNamespace::Pod { uid_maps: rows.clone(), gid_maps: rows }
        }
        None => UserNamespace::Node,
    };
    Ok(SandboxConfig {
        hostname: hostname(spec, &name),
        log_directory: place.log_directory(&namespace, &name, facts.uid),
        metadata: SandboxMetadata { name, namespace, uid: facts.uid.to_owned(), attempt },
        owner: Owner::Node,
        dns: dns::dns(spec, &place.resolv_conf),
        port_mappings: ports(spec)?,
        bandwidth: Bandwidth::default(),
        labels: labels(facts),
        annotations: BTreeMap::from([(RECORD.to_owned(), record)]),
        cgroup_parent: place.cgroup(spec, facts.uid),
        namespaces: Namespaces {
            network: if on_host(spec.host_network) { NetworkNamespace::Node } else { NetworkNamespace::Pod },
            pid: match (on_host(spec.host_pid), on_host(spec.share_process_namespace)) {
                (true, _) => PidNamespace::Node,
                (false, true) => PidNamespace::Pod,
                (false, false) => PidNamespace::Container,
            },
            ipc: if on_host(spec.host_ipc) { IpcNamespace::Node } else { IpcNamespace::Pod },
            user,
        },
        // Only other owners tell their own containers apart by it.
        privileged: false,
        selinux: None,
        sysctls: spec
            .security_context
            .iter()
            .flat_map(|context| context.sysctls.iter().flatten())
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        resources: pod_resources(spec),
        // runtimeClassName is refused before.
        handler: None,
    })
}

fn hostname(spec: &PodSpec, name: &str) -> String {
    let given = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty()).unwrap_or(name);
    // Source: kubernetes pkg/kubelet/util/util.go, GetNodenameForKernel and truncatePodHostname.
    let cut: String = given.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn ports(spec: &PodSpec) -> Result<Vec<Published>, TranslateError> {
    if spec.host_network == Some(true) {
        return Ok(Vec::new());
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| port.host_port.is_some_and(|host| host != 0))
        .map(|port| {
            let number = |field, value: i32| {
                u16::try_from(value).map_err(|_| TranslateError::Range { field, value: i64::from(value) })
            };
            Ok(Published {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                host_ip: host_address(port.host_ip.as_deref().unwrap_or_default())?.map(IpAddr::V4),
                host_port: number("hostPort", port.host_port.unwrap_or(0))?,
                container_port: number("containerPort", port.container_port)?,
            })
        })
        .collect()
}

/// The one address that a port is published on; none for all of them.
fn host_address(text: &str) -> Result<Option<Ipv4Addr>, TranslateError> {
    if text.is_empty() {
        return Ok(None);
    }
    let address: Ipv4Addr = text.parse().map_err(|_| TranslateError::HostAddress(text.to_owned()))?;
    Ok(Some(address).filter(|address| !address.is_unspecified()))
}

/// What a container is made of beside its own definition.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    /// The planner's record.
    pub(crate) record: &'a ContainerRecord,
    /// Its attempt.
    pub(crate) attempt: u32,
    /// Digest of the image's configuration.
    pub(crate) image_id: String,
    /// Addresses of the pod.
    pub(crate) ips: &'a [String],
    /// Mounts, with sources that exist.
    pub(crate) mounts: Vec<Mount>,
}

/// Describes a container.
pub(crate) fn container(
    facts: Facts<'_>,
    definition: &Container,
    parts: Parts<'_>,
) -> Result<ContainerConfig, TranslateError> {
    let spec = facts.pod.spec.as_ref().ok_or(TranslateError::NoSpec)?;
    let record = serde_json::to_string(parts.record)
        .map_err(|source| TranslateError::Record { what: format!("container {}", definition.name), source })?;
    let envs = environment(facts, parts.ips, definition)?;
    let lookup = |name: &str| envs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand(text, &lookup)).collect()
    };
    let mut labels = labels(facts);
    labels.insert(CONTAINER_NAME.to_owned(), definition.name.clone());
    let wanted = Resources::of(definition);
    Ok(ContainerConfig {
        metadata: ContainerMetadata { name: definition.name.clone(), attempt: parts.attempt },
        image: definition.image.clone().unwrap_or_default(),
        image_id: Some(parts.image_id),
        command: expanded(&definition.command),
        args: expanded(&definition.args),
        working_dir: definition.working_dir.clone().filter(|path| !path.is_empty()),
        mounts: parts.mounts,
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels,
        annotations: BTreeMap::from([(RECORD.to_owned(), record)]),
        log_path: Some(log_path(&definition.name, parts.attempt)),
        stdin: definition.stdin == Some(true),
        stdin_once: definition.stdin_once == Some(true),
        tty: definition.tty == Some(true),
        resources: enforced(&wanted),
        security: security::security(spec, definition)?,
        oom_score_adj: Some(resources::oom_score_adj(spec, &wanted, facts.node.memory_bytes)),
        stop_signal: definition.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        envs,
        processes_of: None,
        own_processes: false,
    })
}

/// A container's log, relative to its pod's directory.
pub(crate) fn log_path(container: &str, attempt: u32) -> PathBuf {
    PathBuf::from(container).join(format!("{attempt}.log"))
}

/// The first host id of a new pod with its own users, beside those in use.
pub(crate) fn free_id_base(used: &[u32]) -> Option<u32> {
    (1..u32::from(u16::MAX)).map(|row| row * IDS_PER_POD).find(|base| !used.contains(base))
}

#[cfg(test)]
mod tests;
