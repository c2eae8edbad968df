//! What a pod sandbox is asked to be, and what it is.
//!
//! ```text
//!   run_sandbox --> Ready --stop_sandbox--> NotReady{stopped} --remove_sandbox--> (gone)
//!                     \                        ^ stop_sandbox                ^
//!                      \--shim dies--> NotReady{shim died} --remove_sandbox--/
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use oci_spec::runtime::LinuxResources;
use portreeve_network::cni::Published;
use serde::{Deserialize, Serialize};

use crate::container::SelinuxOptions;
use crate::{Handler, Owner, SandboxId};

/// What a sandbox is called by its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxMetadata {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's uid.
    pub uid: String,
    /// How many sandboxes this pod had before this one.
    pub attempt: u32,
}

/// What a sandbox is asked to be. Shaped like CRI's `PodSandboxConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The owner's name for it.
    pub metadata: SandboxMetadata,
    /// Who decides about it.
    pub owner: Owner,
    /// The hostname inside; ignored with the node's network, whose hostname is the node's.
    pub hostname: String,
    /// An absolute directory for the containers' logs; made (0750) when absent. Empty: no logs are kept.
    pub log_directory: PathBuf,
    /// Becomes the containers' `/etc/resolv.conf`; empty: the node's own file is copied.
    #[serde(default)]
    pub dns: DnsConfig,
    /// Published ports; ignored with the node's network. The built-in network has addresses of IPv4 alone: :: means all of
    /// these there, and another address of IPv6 is refused.
    #[serde(default)]
    pub port_mappings: Vec<Published>,
    /// What its network may carry; for networks of plugins.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// Labels, kept as they are.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Opaque strings, kept as they are.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The pod's cgroup, a path from the cgroup root: `/portreeve/burstable/pod<uid>`. Containers are its children; or,
    /// where it is a slice and [`EngineConfig::systemd_cgroups`](crate::EngineConfig::systemd_cgroups) is set, children of
    /// a scope in it.
    pub cgroup_parent: String,
    /// What the pod shares with the node and its containers with one another.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Whether it was asked for with privileged containers in mind; who asks for one decides what that means.
    #[serde(default)]
    pub privileged: bool,
    /// Parts of the label of its processes and files; says nothing to a node without SELinux.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    /// Namespaced kernel parameters, set in the pod's network and ipc namespaces.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Limits of the pod's cgroup as a whole.
    #[serde(default)]
    pub resources: LinuxResources,
    /// What makes its containers; `None`: our own runtime.
    #[serde(default)]
    pub handler: Option<Handler>,
}

/// A pod's resolver, as CRI has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// What a pod's network may carry, in bits per second; `None` for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Into the pod.
    pub ingress_bits: Option<u64>,
    /// Out of it.
    pub egress_bits: Option<u64>,
}

/// Which namespaces a pod has of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Network (and with it the hostname).
    pub network: NetworkNamespace,
    /// Processes.
    pub pid: PidNamespace,
    /// System V ipc, POSIX queues and `/dev/shm`.
    pub ipc: IpcNamespace,
    /// Users.
    pub user: UserNamespace,
}

/// Whose network a pod is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkNamespace {
    /// One of the pod's own.
    #[default]
    Pod,
    /// The node's.
    Node,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidNamespace {
    /// Only its own.
    #[default]
    Container,
    /// Those of all containers of the pod.
    Pod,
    /// All of the node.
    Node,
}

/// Whose ipc a pod is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpcNamespace {
    /// One of the pod's own.
    #[default]
    Pod,
    /// The node's.
    Node,
}

/// Whose users a pod has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UserNamespace {
    /// The node's.
    #[default]
    Node,
    /// One of the pod's own (`hostUsers: false`).
    Pod {
        /// Rows of `/proc/pid/uid_map`.
        uid_maps: Vec<IdMapping>,
        /// Rows of `/proc/pid/gid_map`.
        gid_maps: Vec<IdMapping>,
    },
}

/// A row of an id map: `length` ids from `container` on are the node's from `host` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// What a sandbox is.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// The owner's name for it.
    pub metadata: SandboxMetadata,
    /// Who decides about it.
    pub owner: Owner,
    /// Labels as given.
    pub labels: BTreeMap<String, String>,
    /// Annotations as given.
    pub annotations: BTreeMap<String, String>,
    /// Whether containers can run in it.
    pub state: SandboxState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// What makes its containers, as given.
    pub handler: Option<Handler>,
    /// Its addresses; empty with the node's network or when stopped.
    pub ips: Vec<IpAddr>,
    /// What stood in the way of its network when it was made, for a person; an engine opened later does not know. It knows
    /// what plugins missed of the network that they had made, when it had it looked at.
    pub warnings: Vec<String>,
    /// Its shim, while that lives.
    pub shim_pid: Option<u32>,
    /// The namespaces as given.
    pub namespaces: Namespaces,
    /// Whether privileged containers were in mind, as given.
    pub privileged: bool,
    /// The pod's cgroup.
    pub cgroup_parent: String,
    /// Where its containers' logs lie.
    pub log_directory: PathBuf,
}

/// Whether containers can run in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxState {
    /// They can.
    Ready,
    /// They cannot any more, and why.
    NotReady {
        /// Such as `stopped` or `shim died`.
        reason: String,
    },
}
