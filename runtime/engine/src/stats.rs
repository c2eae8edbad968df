//! What containers and pods use.

use jiff::Timestamp;

use crate::{ContainerId, SandboxId};

/// What a container uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStats {
    /// Which.
    pub id: ContainerId,
    /// When it was read.
    pub at: Timestamp,
    /// CPU time used since the start, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory with caches, bytes.
    pub memory_bytes: u64,
    /// Memory without inactive file cache, bytes; what eviction looks at.
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// What a pod uses as a whole, and each of its running containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStats {
    /// Which.
    pub id: SandboxId,
    /// When it was read.
    pub at: Timestamp,
    /// CPU time used since the start, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory with caches, bytes.
    pub memory_bytes: u64,
    /// Memory without inactive file cache, bytes.
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// The containers.
    pub containers: Vec<ContainerStats>,
}
