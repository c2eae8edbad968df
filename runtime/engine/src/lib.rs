//! Sandboxes and containers in CRI-shaped types, and the shim that keeps them.
//!
//! ```text
//!   node, api/cri            Engine (tokio, in the agent)                    one shim per sandbox (no tokio)
//!   ------------->  verbs    table of sandboxes and containers   shim.sock   poll loop, parent of the containers
//!                   events   images, network, cgroups         <----------->  logs, exit codes, exec, attach
//!                                  |                                            |
//!                                  v                                            v
//!                   <run>/sandboxes/<sid>/{sandbox.json, containers/<cid>/container.json, exit.json}
//! ```
//!
//! **Invariant:** an intent is on disk before its effect. Whatever instruction the agent is killed at, the next
//! [`Engine::open`] finds every shim and container again, finishes or undoes what was half made, and removes what
//! nobody owns. Nothing is started twice.
//!
//! **Invariant:** every verb is idempotent: stop of the stopped and remove of the absent are `Ok`.
//!
//! **Invariant:** the agent never forks a container. The shim, single-threaded, clones it through `portreeve-oci`, or
//! calls the program of another runtime, whose container then is its child.

pub mod cdi;
pub mod shim;
pub mod spec;

mod apparmor;
mod client;
mod config;
mod container;
mod engine;
mod error;
mod event;
mod handler;
mod id;
mod log_place;
mod protocol;
mod record;
mod rootfs;
mod sandbox;
mod selinux;
mod session;
mod stats;

pub use apparmor::{AppArmor, survey_apparmor};
pub use config::{EngineConfig, KubeletNetwork, LogRotation};
pub use container::{
    AppArmorProfile, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, Device, Exit, Mount,
    MountIds, MountSource, Propagation, SeccompProfile, SecurityContext, SelinuxOptions, SupplementalGroupsPolicy,
};
pub use engine::{Engine, Resizer, limits_huge_pages, stop_signal};
pub use error::{EngineError, Retry, chain, shortened};
pub use event::{EngineEvent, PodEvent};
pub use handler::{Handler, HandlerError, HandlerFeatures, features as handler_features};
pub use id::{ContainerId, IdError, Owner, SandboxId};
pub use portreeve_oci::cgroup::{Figures, Pressure, Pressures, Stalls, Stats, figures};
pub use portreeve_sys::tree::remove as remove_tree;
pub use sandbox::{
    Bandwidth, DnsConfig, IdMapping, IpcNamespace, Namespaces, NetworkNamespace, PidNamespace, SandboxConfig,
    SandboxMetadata, SandboxState, SandboxStatus, UserNamespace,
};
pub use selinux::survey_selinux;
pub use session::{AttachRequest, AttachSession, ExecOutput, ExecRequest, ExecSession, Input, Output, TerminalSize};
pub use stats::{ContainerCount, ContainerStats, Count, Descriptors, Processes, SandboxCount, SandboxStats, Usage};

/// The images crate, whose types appear in this API.
pub use portreeve_image as image;
/// The network crate, whose types appear in this API.
pub use portreeve_network as network;
