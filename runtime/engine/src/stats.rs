//! What containers and pods use.

use std::collections::BTreeMap;

use jiff::Timestamp;
use portreeve_oci::cgroup::{Figures, Pressures, Stats};

use crate::{ContainerId, SandboxId};

/// What a cgroup has used until a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// When it was read.
    pub at: Timestamp,
    /// What the kernel counts.
    pub counted: Stats,
    /// How long its processes waited for what others had.
    pub waited: Pressures,
}

/// What a container uses.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStats {
    /// Which.
    pub id: ContainerId,
    /// What.
    pub usage: Usage,
}

/// What a pod uses as a whole, and each of its running containers.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxStats {
    /// Which.
    pub id: SandboxId,
    /// What.
    pub usage: Usage,
    /// The containers.
    pub containers: Vec<ContainerStats>,
    /// Those of which it could not be read, and why.
    pub unread: BTreeMap<ContainerId, String>,
}

/// Everything that is counted of a cgroup, for metrics: more files are read for it than for [`Usage`].
#[derive(Debug, Clone, PartialEq)]
pub struct Count {
    /// What stats have.
    pub usage: Usage,
    /// All that the kernel counts, by device and size of page where it does so.
    pub figures: Figures,
}

/// Everything that is counted of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerCount {
    /// Which.
    pub id: ContainerId,
    /// What.
    pub count: Count,
    /// What its processes are and hold.
    pub processes: Processes,
}

/// Everything that is counted of a pod as a whole, and of each of its running containers.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxCount {
    /// Which.
    pub id: SandboxId,
    /// What.
    pub count: Count,
    /// The containers.
    pub containers: Vec<ContainerCount>,
    /// Those of which it could not be read, and why.
    pub unread: BTreeMap<ContainerId, String>,
}

/// What the processes of a container are and hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Processes {
    /// How many there are.
    pub count: u64,
    /// What they have open; `None` where the kernel does not let the agent see it.
    pub descriptors: Option<Descriptors>,
    /// The soft limit on files that the first of them may have open; `None` without one.
    pub files_limit: Option<u64>,
}

/// Open descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptors {
    /// All.
    pub all: u64,
    /// Of them, sockets.
    pub sockets: u64,
}
