//! What a container is asked to be, and what it is.
//!
//! ```text
//!   create_container --> Created --start_container--> Running --exits, is stopped--> Exited --remove_container--> (gone)
//!                           \---- its program cannot be run: StartError ---------------^
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::cdi::DeviceName;
use crate::sandbox::IdMapping;
use crate::{ContainerId, SandboxId};

/// What a container is called by its owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// The name within its pod.
    pub name: String,
    /// How many containers of this name ran before in this pod.
    pub attempt: u32,
}

/// What a container is asked to be. Shaped like CRI's `ContainerConfig`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The owner's name for it.
    pub metadata: ContainerMetadata,
    /// The image reference as the user wrote it; reported back as it is.
    pub image: String,
    /// The image's id (`sha256:...`) when the caller resolved it; otherwise `image` is looked up.
    #[serde(default)]
    pub image_id: Option<String>,
    /// Replaces the image's ENTRYPOINT (and then its CMD is not used); empty: the image's.
    #[serde(default)]
    pub command: Vec<String>,
    /// Replaces the image's CMD; empty: the image's.
    #[serde(default)]
    pub args: Vec<String>,
    /// Replaces the image's working directory.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Added to the image's environment; the last of one name wins.
    #[serde(default)]
    pub envs: Vec<(String, String)>,
    /// In order; one of the engine's own mounts is replaced by a mount with the same container path.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Device nodes of the node.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Devices by the names that specifications on the node have for them; looked up when it is created.
    #[serde(default)]
    pub cdi_devices: Vec<DeviceName>,
    /// Labels, kept as they are.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Opaque strings, kept as they are.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory, without `..`; `None`: no log is kept.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// Whether attached input reaches it.
    #[serde(default)]
    pub stdin: bool,
    /// Close its input when the first attached client has gone.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Limits of its cgroup.
    #[serde(default)]
    pub resources: LinuxResources,
    /// What it may do.
    #[serde(default)]
    pub security: SecurityContext,
    /// Written to `/proc/self/oom_score_adj`; a refusal by the kernel is tolerated.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// `SIGQUIT`, `QUIT` or a number; `None`: the image's STOPSIGNAL, or SIGTERM.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// A running container of the same sandbox whose processes it sees, and with whose end it ends; `None`: as its
    /// sandbox says.
    #[serde(default)]
    pub processes_of: Option<ContainerId>,
    /// Whether it sees its own processes alone, also where its sandbox shares them; says nothing beside `processes_of`.
    #[serde(default)]
    pub own_processes: bool,
}

/// A mount into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, inside.
    pub container_path: PathBuf,
    /// What appears there.
    pub source: MountSource,
    /// Not writable through this mount.
    #[serde(default)]
    pub readonly: bool,
    /// Neither through mounts below it; needs `readonly`.
    #[serde(default)]
    pub recursive_readonly: bool,
    /// Whether later mounts travel.
    #[serde(default)]
    pub propagation: Propagation,
    /// Further ones of mount(8) for a path of the node, such as `noexec`.
    #[serde(default)]
    pub options: Vec<String>,
    /// Whose files appear as whose, for a path of the node; `None`: as its pod's users have it.
    #[serde(default)]
    pub ids: Option<MountIds>,
    /// Gives a path of the node, with all that is in it, the label of the container's files, for good. Says nothing to a
    /// node without SELinux.
    #[serde(default)]
    pub relabel: bool,
}

/// Ids of what a mount shows: `container` ids of a row are those that its files have, and appear as the node's `host` ids.
/// Source: runtime-spec, `mounts[].uidMappings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIds {
    /// Of users; at least one row.
    pub users: Vec<IdMapping>,
    /// Of groups; at least one row.
    pub groups: Vec<IdMapping>,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountSource {
    /// A file or directory of the node; must exist.
    HostPath(PathBuf),
    /// The root of an image in the store, read-only; nothing in it can be executed. The image stays as long as the
    /// container.
    Image {
        /// Its id, or a name that it has.
        id: String,
        /// A directory within the image, never followed out of it.
        #[serde(default)]
        sub_path: Option<PathBuf>,
    },
    /// Memory of its own, gone with the container.
    Tmpfs {
        /// Its bound.
        size_bytes: u64,
    },
}

/// Whether mounts made later on one side appear on the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// No (`None`).
    #[default]
    Private,
    /// From the node to the container.
    HostToContainer,
    /// Both ways; only for privileged containers.
    Bidirectional,
}

/// A device node of the node, given to a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path on the node.
    pub host_path: PathBuf,
    /// Its path inside.
    pub container_path: PathBuf,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// What a container's processes are and may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityContext {
    /// Its user id.
    #[serde(default)]
    pub run_as_user: Option<u32>,
    /// Its group id; needs a user.
    #[serde(default)]
    pub run_as_group: Option<u32>,
    /// Its user by name, looked up in the image's `/etc/passwd`; not together with `run_as_user`.
    #[serde(default)]
    pub run_as_username: Option<String>,
    /// Refuse to create it when its user comes out as 0.
    #[serde(default)]
    pub run_as_non_root: bool,
    /// Further groups.
    #[serde(default)]
    pub supplemental_groups: Vec<u32>,
    /// Whether the image's `/etc/group` adds more.
    #[serde(default)]
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Mount its root file system read-only.
    #[serde(default)]
    pub readonly_rootfs: bool,
    /// Set-user-id programs give it nothing.
    #[serde(default)]
    pub no_new_privs: bool,
    /// All capabilities and devices, no seccomp, no masks.
    #[serde(default)]
    pub privileged: bool,
    /// `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`.
    #[serde(default)]
    pub add_capabilities: Vec<String>,
    /// As above.
    #[serde(default)]
    pub drop_capabilities: Vec<String>,
    /// Added, and kept when a program without privileges of its own is executed by a user who is not root. Source:
    /// capabilities(7), ambient.
    #[serde(default)]
    pub ambient_capabilities: Vec<String>,
    /// `None`: the default ones; `procMount: Unmasked` is an empty list.
    #[serde(default)]
    pub masked_paths: Option<Vec<String>>,
    /// `None`: the default ones.
    #[serde(default)]
    pub readonly_paths: Option<Vec<String>>,
    /// Its system call filter.
    #[serde(default)]
    pub seccomp: SeccompProfile,
    /// Its AppArmor profile.
    #[serde(default)]
    pub apparmor: AppArmorProfile,
    /// Parts of its SELinux label, over those of its sandbox; says nothing to a node without SELinux.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
}

/// Whether the image's `/etc/group` adds groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SupplementalGroupsPolicy {
    /// Yes.
    #[default]
    Merge,
    /// Only those of the configuration.
    Strict,
}

/// A container's system call filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeccompProfile {
    /// The engine's own.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile of the node, an OCI `LinuxSeccomp` as JSON.
    Localhost(PathBuf),
}

/// A container's AppArmor profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppArmorProfile {
    /// The engine's own where the node has AppArmor, but for a privileged container, which has none.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One of the node, by the name under which it is loaded.
    Localhost(String),
}

/// Parts of an SELinux context; an empty one is what the node's policy has for containers, or the sandbox for its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxOptions {
    /// Such as `system_u`; of processes and files.
    pub user: String,
    /// Such as `system_r`; of processes.
    pub role: String,
    /// Such as `container_t`; of processes.
    pub kind: String,
    /// Such as `s0:c1,c2`; of processes and files. When a sandbox has none, it gets two categories that are its own.
    pub level: String,
}

/// What a container is.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// The owner's name for it.
    pub metadata: ContainerMetadata,
    /// Where it is in its life.
    pub state: ContainerState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When its program was started.
    pub started_at: Option<Timestamp>,
    /// When its first process ended.
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`; empty while it lives.
    pub reason: String,
    /// More about `reason`, for a person.
    pub message: String,
    /// The image reference as given.
    pub image: String,
    /// The image's id, `sha256:...`.
    pub image_id: String,
    /// Labels as given.
    pub labels: BTreeMap<String, String>,
    /// Annotations as given.
    pub annotations: BTreeMap<String, String>,
    /// The whole path of its log.
    pub log_path: Option<PathBuf>,
    /// Limits as last set.
    pub resources: LinuxResources,
    /// How soon it is killed when memory runs out, as last set.
    pub oom_score_adj: i32,
    /// Its cgroup, a path from the cgroup root.
    pub cgroup: String,
    /// Its first process, while it lives.
    pub pid: Option<u32>,
    /// Its user and group, as resolved.
    pub user: (u32, u32),
    /// All groups of its first process, as resolved; of a container that an older program made, none.
    pub groups: Vec<u32>,
    /// The signal that stops it, as resolved.
    pub stop_signal: i32,
    /// Whether attached input reaches it.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Mounts as given.
    pub mounts: Vec<Mount>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Set up, its program not started.
    Created,
    /// Its program runs.
    Running,
    /// It ended.
    Exited,
    /// Its shim cannot be asked.
    Unknown,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code; 128 + n after signal n.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// The kernel killed in its cgroup for lack of memory.
    #[serde(default)]
    pub oom_killed: bool,
}
