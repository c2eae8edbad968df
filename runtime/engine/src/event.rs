//! What an engine tells of itself, at once and to everyone who listens.

use jiff::Timestamp;

use crate::{ContainerId, ContainerStatus, Exit, SandboxId, SandboxStatus};

/// Something that happened. A slow listener may miss some: the lists are the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// A sandbox became ready.
    SandboxReady(SandboxId),
    /// A sandbox was stopped as asked. Not told of one that was lost before: a sandbox ends once.
    SandboxStopped(SandboxId),
    /// A sandbox's shim died; its containers have been killed.
    SandboxLost {
        /// Which.
        id: SandboxId,
        /// Why, for a person.
        reason: String,
    },
    /// A sandbox is gone.
    SandboxRemoved(SandboxId),
    /// A container is set up.
    ContainerCreated {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Which.
        id: ContainerId,
    },
    /// A container's program runs.
    ContainerStarted {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Which.
        id: ContainerId,
    },
    /// A container ended.
    ContainerExited {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Which.
        id: ContainerId,
        /// How.
        exit: Exit,
    },
    /// A container is gone.
    ContainerRemoved {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Which.
        id: ContainerId,
    },
}

impl EngineEvent {
    /// The sandbox that it happened to, or in.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxId {
        match self {
            Self::SandboxReady(id)
            | Self::SandboxStopped(id)
            | Self::SandboxLost { id, .. }
            | Self::SandboxRemoved(id)
            | Self::ContainerCreated { sandbox: id, .. }
            | Self::ContainerStarted { sandbox: id, .. }
            | Self::ContainerExited { sandbox: id, .. }
            | Self::ContainerRemoved { sandbox: id, .. } => id,
        }
    }
}

/// Something that happened, and the pod as it was then: whoever reads it later need not ask what has become of it since.
#[derive(Debug, Clone)]
pub struct PodEvent {
    /// What.
    pub event: EngineEvent,
    /// When.
    pub at: Timestamp,
    /// The sandbox after it; of a sandbox that is gone, what it was last.
    pub sandbox: SandboxStatus,
    /// The containers of the sandbox after it, oldest first: without one that is gone.
    pub containers: Vec<ContainerStatus>,
}
