//! A further process in a running container.

use std::os::fd::{BorrowedFd, OwnedFd};

use oci_spec::runtime::{Process, Spec};

use crate::cgroup::Cgroup;
use crate::error::{ExecError, Warning};
use crate::stdio::Stdio;
use crate::Pid;

/// A running container, as much of it as [`exec()`] needs.
#[derive(Debug, Clone, Copy)]
pub struct ContainerRef<'a> {
    /// The container's first process.
    pub pidfd: BorrowedFd<'a>,
    /// What the container was made from: its namespaces and seccomp profile count here.
    pub spec: &'a Spec,
    /// The cgroup that the new process joins.
    pub cgroup: &'a Cgroup,
}

/// A process that runs in a container.
#[derive(Debug)]
#[non_exhaustive]
pub struct Execed {
    /// The process, a direct child of the caller.
    pub pid: Pid,
    /// The same process as a descriptor.
    pub pidfd: OwnedFd,
    /// Master side of the terminal, for [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// What this machine refused and the process can live without.
    pub warnings: Vec<Warning>,
}

/// Starts `process` in the namespaces and the cgroup of a running container; returns when it has been executed.
///
/// The caller must be single-threaded; it becomes the parent of the process.
///
/// # Errors
/// [`ExecError`] names the step that failed; nothing runs then and nothing is left to reap.
pub fn exec(_container: &ContainerRef<'_>, _process: &Process, _stdio: Stdio) -> Result<Execed, ExecError> {
    Err(ExecError::Died(String::new()))
}
