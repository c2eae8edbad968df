//! OCI runtime: namespaces, cgroups, root file system, seccomp, capabilities.
//!
//! One way to make a container, used by the shim and by the runtime command line alike:
//!
//! ```text
//!   caller (single-threaded)                     container's first process
//!   ------------------------                     -------------------------
//!   plan the mounts, open every source by fd
//!   create the cgroup, write its limits
//!   clone3(all new namespaces) ----------------> join the cgroup (v1: write 0 to each `tasks`)
//!                              <-- socket -----  mounts by descriptor, pivot_root, masks, user,
//!                                                capabilities, seccomp
//!   `create` returns           <---- ready ----- waits
//!   `Created::start`           ----- go -------> execve; an error comes back over the socket
//! ```
//!
//! The shim lives as long as its containers and starts them itself. The command line ends after each word: its
//! containers are kept by [`lifecycle`] in a directory each, and wait for their start at a socket there ([`Gate`]).
//!
//! **Invariant:** the caller of [`create()`] and [`exec()`] is single-threaded: the container's first process is a
//! clone of it that runs this crate's code before it executes anything.
//! **Invariant:** nothing is mounted in the caller's mount namespace, so nothing is left there when the caller dies.
//! **Invariant:** a path inside a container is resolved by `openat2(RESOLVE_IN_ROOT)` and then used as a descriptor.

pub mod attach;
pub mod cgroup;
pub mod config;
pub mod features;
pub mod kernel;
pub mod lifecycle;
mod locks;
pub mod plan;
pub mod rdt;
pub mod seccomp;

mod create;
mod criu;
mod error;
mod exec;
mod gate;
mod handshake;
mod hooks;
mod init;
mod netdev;
mod prepare;
mod spawn;
mod stdio;
mod userns;

pub use crate::create::{Create, Created, Gate, Pivot, RootFs, Running, Starter, check, create};
pub use crate::criu::{CgroupMode, CriuError, CriuOptions};
pub use crate::error::{CreateError, ExecError, SetupError, StartError, Warning};
pub use crate::exec::{ContainerRef, Exec, Execed, exec};
pub use crate::hooks::{HookError, LaterHooks, Outside};
pub use crate::stdio::{Stdio, WindowSize};
pub use portreeve_sys::process::Pid;
