//! A further process in a running container.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use oci_spec::runtime::{ContainerState, Process as ProcessSpec, Spec, State};
use portreeve_sys::clone::{NEW_MOUNT, NEW_USER};
use portreeve_sys::mount::change_root;
use portreeve_sys::namespace;
use portreeve_sys::process::pidfd_pid;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::Pid;
use crate::cgroup::{Below, Cgroup};
use crate::create::{self, complete, filter, hears, scored};
use crate::error::{ExecError, SetupError, Step, Warning};
use crate::init::{self, Joining, Process};
use crate::plan::{identity, namespaces, order};
use crate::prepare;
use crate::rdt;
use crate::seccomp::Filter;
use crate::spawn::{self, Place, SpawnError, Spawned};
use crate::stdio::Stdio;

/// A running container, as much of it as [`exec()`] needs.
#[derive(Debug, Clone, Copy)]
pub struct ContainerRef<'a> {
    /// The container's first process.
    pub pidfd: BorrowedFd<'a>,
    /// What the container was made from: its namespaces and seccomp profile count here.
    pub spec: &'a Spec,
    /// The cgroup that the new process joins; without one it stays in the caller's.
    pub cgroup: Option<&'a Cgroup>,
}

/// A process to run in a container.
#[derive(Debug)]
#[non_exhaustive]
pub struct Exec<'a> {
    /// Where.
    pub container: ContainerRef<'a>,
    /// What.
    pub process: &'a ProcessSpec,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Descriptors that the program gets as 3, 4, and so on.
    pub extra_fds: Vec<OwnedFd>,
    /// Keep the caller's session keyring instead of giving the process a new one.
    pub keep_keyring: bool,
    /// Cgroups below the container's, for those hierarchies that they name; else it joins the container's own.
    pub below: &'a [Below],
    /// The container's state, of which the program that takes the listener of a seccomp filter is told; without it as
    /// much as the configuration says.
    pub state: Option<State>,
    /// How long it may be silent until its program has been executed; `None`: without bound.
    pub patience: Option<Duration>,
}

impl<'a> Exec<'a> {
    /// A process with no further descriptors and a session keyring of its own.
    #[must_use]
    pub fn new(container: ContainerRef<'a>, process: &'a ProcessSpec, stdio: Stdio) -> Self {
        Self {
            container,
            process,
            stdio,
            extra_fds: Vec::new(),
            keep_keyring: false,
            below: &[],
            state: None,
            patience: None,
        }
    }
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

/// Starts a process in the namespaces and the cgroup of a running container; returns when it has been executed.
///
/// The caller must be single-threaded, in the namespaces that the container inherited from its maker; it becomes the
/// parent of the process.
///
/// # Errors
/// [`ExecError`] names the step that failed; nothing runs then and nothing is left to reap.
pub fn exec(request: Exec<'_>) -> Result<Execed, ExecError> {
    let Exec { container, process, stdio, extra_fds, keep_keyring, below, state, patience } = request;
    let identity = identity::plan(process, container.spec)?;
    let namespaces = namespaces::plan(container.spec)?;
    let linux = container.spec.linux().as_ref();
    let filter = linux.and_then(|linux| linux.seccomp().as_ref()).map(filter).transpose()?;
    let join = container.cgroup.map(|cgroup| cgroup.prepare_join_below(below, container.pidfd)).transpose()?;
    let join = rdt::join_of(join, container.spec, container.pidfd)?;
    let stdio = complete(stdio)?;
    let keyring = if keep_keyring { None } else { CString::new("_ses.exec").ok() };
    let user_namespace = namespaces.has(NEW_USER);
    let procfs = prepare::procfs(&namespaces, &identity, false);
    let steps = order::process(&identity, order::End { filter: hears(filter.as_ref()), ..order::End::default() });
    // A mount namespace has a root of its own; without one the container's is where its first process is.
    let root = if namespaces.has(NEW_MOUNT) { None } else { Some(root_of(container.pidfd)?) };
    // All at once, by the process itself: no path, and no namespace of a stranger that took its id over.
    let enter = || {
        if namespaces.all() != 0 {
            let entered = namespace::enter(container.pidfd, namespaces.all());
            let hint = entered.as_ref().err().map_or("", not_yet);
            entered.step(&format!("joining the container's namespaces{hint}"), "")?;
        }
        root.as_ref().map_or(Ok(()), |root| change_root(root.as_fd()).step("entering the container's root", ""))
    };
    let run = |socket: BorrowedFd<'_>, _: Joining| {
        let process = Process {
            steps: &steps,
            identity: &identity,
            seccomp: filter.as_ref(),
            stdio: &stdio,
            extra_fds: &extra_fds,
            socket,
            gate: None,
            keyring: keyring.as_deref(),
            hooks: None,
            hooks_until: None,
            procfs: procfs.as_ref().map(AsFd::as_fd),
        };
        init::further(&process, user_namespace)
    };
    let sockets = spawn::sockets(extra_fds.len(), patience)?;
    // By a process in between: whoever is in the container's PID namespace sees no newborn before that is in the other
    // namespaces too. Its root, its mounts and its network would be the host's, for who may trace it, and in part for all.
    let clone = || {
        spawn::between(sockets, patience, 0, Place { cgroup: join.as_ref(), birth: true }, enter, run)
            .map_err(exec_error)
    };
    let mut warnings = prepare::beyond(&identity.capabilities, user_namespace)?;
    let born = || born_on(identity.affinity.initial.as_ref(), clone);
    let mut spawned = scored(identity.oom_score_adj, &mut warnings, born)?;
    let told = filter.as_ref().and_then(Filter::listener);
    let told = told.map(|to| (to, state.unwrap_or_else(|| create::state(container.spec, ContainerState::Running))));
    let heard = spawn::listen(&mut spawned, told, |_| Ok(())).map_err(exec_error)?;
    if let Err(error) = spawn::start(spawned.socket.as_fd()) {
        spawn::abandon(&spawned);
        return Err(error.into());
    }
    let Spawned { child, .. } = spawned;
    Ok(Execed { pid: child.pid, pidfd: child.pidfd, terminal: heard.terminal, warnings })
}

/// What the kernel means by EPERM for a user who is not root: a process that has not executed its program is undumpable,
/// and so nobody's but root's.
fn not_yet(error: &std::io::Error) -> &'static str {
    let denied = error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error());
    let user = !rustix::process::geteuid().is_root();
    if denied && user { " (one that was not started yet is closed to everybody but root)" } else { "" }
}

/// Clones on the processors of `set`, where the newborn is before it joins the container's cgroup; the caller is where
/// it was then. Source: runtime-spec, config.md, `execCPUAffinity`.
fn born_on(set: Option<&CpuSet>, clone: impl FnOnce() -> Result<Spawned, ExecError>) -> Result<Spawned, ExecError> {
    let Some(set) = set else { return clone() };
    let own = sched_getaffinity(None).step("reading the processors of the runtime", "")?;
    let what = "setting process.execCPUAffinity.initial (one of them has to be online, and in the runtime's cpuset)";
    sched_setaffinity(None, set).step(what, "")?;
    let spawned = clone();
    if let Err(error) = sched_setaffinity(None, &own).step("returning to the processors of the runtime", "") {
        spawned.iter().for_each(|spawned| _ = spawn::abandon(spawned));
        return Err(error.into());
    }
    spawned
}

/// The root directory of a process.
pub(crate) fn root_of(pidfd: BorrowedFd<'_>) -> Result<OwnedFd, SetupError> {
    let looking = "looking at the container's first process";
    let pid = || pidfd_pid(pidfd).step(looking, "")?.ok_or(rustix::io::Errno::SRCH).step(looking, "");
    let path = format!("/proc/{}/root", pid()?.as_raw_nonzero());
    let root = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.step("opening the container's root", path)?;
    // Its number had not gone to another process by then.
    pid().map(|_| root)
}

fn exec_error(error: SpawnError) -> ExecError {
    match error {
        SpawnError::Setup(error) => error.into(),
        SpawnError::Listener(error) => error.into(),
        SpawnError::Start(error) => error.into(),
        SpawnError::Died(how) => ExecError::Died(how),
    }
}
