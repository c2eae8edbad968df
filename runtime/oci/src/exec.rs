//! A further process in a running container.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{Process as ProcessSpec, Spec};
use portreeve_sys::clone::NEW_USER;
use portreeve_sys::namespace;

use crate::Pid;
use crate::cgroup::Cgroup;
use crate::create::{complete, set_oom_score};
use crate::error::{ExecError, Step, Warning};
use crate::init::{self, Joining, Process};
use crate::plan::{identity, namespaces};
use crate::seccomp::Filter;
use crate::spawn::{self, SpawnError, Spawned};
use crate::stdio::Stdio;

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
/// The caller must be single-threaded, in the namespaces that the container inherited from its maker; it becomes the
/// parent of the process.
///
/// # Errors
/// [`ExecError`] names the step that failed; nothing runs then and nothing is left to reap.
pub fn exec(container: &ContainerRef<'_>, process: &ProcessSpec, stdio: Stdio) -> Result<Execed, ExecError> {
    let identity = identity::plan(process, container.spec)?;
    let namespaces = namespaces::plan(container.spec)?;
    let linux = container.spec.linux().as_ref();
    let filter = linux.and_then(|linux| linux.seccomp().as_ref()).map(Filter::compile).transpose()?;
    let join = container.cgroup.prepare_join()?;
    let stdio = complete(stdio)?;
    let keyring = CString::new("_ses.exec").ok();
    let user_namespace = namespaces.has(NEW_USER);
    let run = |socket: BorrowedFd<'_>, _: Joining| {
        let process = Process {
            identity: &identity,
            seccomp: filter.as_ref(),
            stdio: &stdio,
            extra_fds: &[],
            socket,
            keyring: keyring.as_deref(),
        };
        init::further(&process, user_namespace)
    };
    // All at once, by the process itself: no path, and no namespace of a stranger that took its id over.
    let enter = || namespace::enter(container.pidfd, namespaces.all()).step("joining the container's namespaces", "");
    let mut spawned = spawn::between(spawn::sockets(0)?, 0, &join, enter, run).map_err(exec_error)?;
    let mut warnings = Vec::new();
    if let Some(score) = identity.oom_score_adj {
        set_oom_score(&spawned, score, &mut warnings)?;
    }
    let heard = spawn::listen(&mut spawned).map_err(exec_error)?;
    if let Err(error) = spawn::start(spawned.socket.as_fd()) {
        spawn::abandon(&spawned);
        return Err(error.into());
    }
    let Spawned { child, .. } = spawned;
    Ok(Execed { pid: child.pid, pidfd: child.pidfd, terminal: heard.terminal, warnings })
}

fn exec_error(error: SpawnError) -> ExecError {
    match error {
        SpawnError::Setup(error) => error.into(),
        SpawnError::Died(how) => ExecError::Died(how),
    }
}
