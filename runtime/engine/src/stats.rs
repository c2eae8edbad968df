//! What containers and pods use.

use jiff::Timestamp;
use portreeve_oci::cgroup::{Pressures, Stats};

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
}
