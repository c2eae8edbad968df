//! What an engine tells of itself, at once and to everyone who listens.

use crate::{ContainerId, Exit, SandboxId};

/// Something that happened. A slow listener may miss some: the lists are the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// A sandbox became ready.
    SandboxReady(SandboxId),
    /// A sandbox was stopped as asked.
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
