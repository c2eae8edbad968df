//! Making a container: everything up to, and then including, its program's execve.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxMemory, LinuxResources, Spec};
use portreeve_sys::clone::{NEW_CGROUP, NEW_USER};

use crate::cgroup::{Cgroup, container_device_rules};
use crate::error::{CreateError, SetupError, StartError, Step, Warning};
use crate::init::{self, Container, Joining, Process};
use crate::plan::{PlanError, identity, mounts, namespaces};
use crate::prepare::{self, Prepared};
use crate::seccomp::Filter;
use crate::spawn::{self, SpawnError, Spawned};
use crate::stdio::Stdio;
use crate::{Pid, userns};

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootFs {
    /// An overlay that is mounted in the container's own mount namespace only.
    Overlay {
        /// Read-only layers, topmost first.
        lower: Vec<PathBuf>,
        /// Writable layer.
        upper: PathBuf,
        /// Overlay's work directory, on the file system of `upper`.
        work: PathBuf,
    },
    /// A directory, used as it is; a symbolic link is refused.
    Directory(PathBuf),
}

/// A container to make.
#[derive(Debug)]
#[non_exhaustive]
pub struct Create<'a> {
    /// Name of the container: in errors and for its session keyring.
    pub id: &'a str,
    /// What the container is; `root.path` is not read, see `rootfs`.
    pub spec: &'a Spec,
    /// Its root file system.
    pub rootfs: RootFs,
    /// The cgroup it runs in; created when missing, and `linux.resources` is written to it.
    pub cgroup: &'a Cgroup,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Descriptors that the program gets as 3, 4, and so on.
    pub extra_fds: Vec<OwnedFd>,
    /// Keep the caller's session keyring instead of giving the container a new one.
    pub keep_keyring: bool,
}

impl<'a> Create<'a> {
    /// A container with no further descriptors and a session keyring of its own.
    #[must_use]
    pub fn new(id: &'a str, spec: &'a Spec, rootfs: RootFs, cgroup: &'a Cgroup, stdio: Stdio) -> Self {
        Self { id, spec, rootfs, cgroup, stdio, extra_fds: Vec::new(), keep_keyring: false }
    }
}

/// A container whose process is set up and waits for [`Created::start`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Created {
    /// The container's first process, a direct child of the caller.
    pub pid: Pid,
    /// The same process as a descriptor: readable when it has ended, `waitid(P_PIDFD)` tells how.
    pub pidfd: OwnedFd,
    /// Master side of the terminal, for [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// What this machine refused and the container can live without.
    pub warnings: Vec<Warning>,
    socket: OwnedFd,
}

impl Created {
    /// Lets the container's process execute its program; returns when it has.
    ///
    /// Take `pidfd` and `terminal` out before, or use [`Created::split`].
    ///
    /// # Errors
    /// [`StartError`] says why the program could not be executed; the process ends then with
    /// [`StartError::exit_code`] and is still to be reaped by the caller.
    pub fn start(self) -> Result<(), StartError> {
        spawn::start(self.socket.as_fd())
    }

    /// The process and its terminal, apart from the right to start it, so that the one can be kept and the other used.
    #[must_use]
    pub fn split(self) -> (Running, Starter) {
        (
            Running { pid: self.pid, pidfd: self.pidfd, terminal: self.terminal, warnings: self.warnings },
            Starter { socket: self.socket },
        )
    }
}

/// A container's process, without the right to start it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Running {
    /// The container's first process, a direct child of the caller.
    pub pid: Pid,
    /// The same process as a descriptor.
    pub pidfd: OwnedFd,
    /// Master side of the terminal, for [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// What this machine refused and the container can live without.
    pub warnings: Vec<Warning>,
}

/// The right to start a created container; dropping it ends the waiting process.
#[derive(Debug)]
pub struct Starter {
    socket: OwnedFd,
}

impl Starter {
    /// As [`Created::start`].
    ///
    /// # Errors
    /// As [`Created::start`].
    pub fn start(self) -> Result<(), StartError> {
        spawn::start(self.socket.as_fd())
    }
}

/// Makes a container and returns when its process has done everything but execute its program.
///
/// The caller must be single-threaded; it becomes the parent of the container's process. Dropping the answer
/// without starting ends that process.
///
/// # Errors
/// [`CreateError`] names the step that failed; the process, if there was one, has been killed and reaped.
pub fn create(request: Create<'_>) -> Result<Created, CreateError> {
    let Create { id, spec, rootfs, cgroup, stdio, extra_fds, keep_keyring } = request;
    let process = spec.process().as_ref().ok_or_else(|| PlanError::new("process", "is missing"))?;
    let identity = identity::plan(process, spec)?;
    let namespaces = namespaces::plan(spec)?;
    let ops = mounts::plan(spec)?;
    let linux = spec.linux().as_ref();
    let filter = linux.and_then(|linux| linux.seccomp().as_ref()).map(Filter::compile).transpose()?;
    let devices = prepare::devices(linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default())?;

    cgroup.create()?;
    let given = linux.and_then(|linux| linux.resources().as_ref());
    let mut resources: LinuxResources = given.cloned().unwrap_or_default();
    resources.set_devices(Some(container_device_rules(given)));
    cgroup.apply(&resources)?;
    let join = cgroup.prepare_join()?;

    let mut namespaces = namespaces;
    let mut joins = open_joins(&namespaces)?;
    let uids = linux.and_then(|linux| linux.uid_mappings().as_deref()).unwrap_or_default();
    let gids = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
    if namespaces.new & NEW_USER != 0 {
        // Id-mapped mounts need the namespace before the container's process is there; it joins it then.
        let fd = userns::with_maps(uids, gids).step("making a user namespace", "")?;
        namespaces.new &= !NEW_USER;
        namespaces.join.push((NEW_USER, PathBuf::new()));
        joins.push((NEW_USER, fd));
    }
    let user_namespace = joins.iter().find(|(kind, _)| *kind == NEW_USER).map(|(_, fd)| fd.as_fd());
    let owner = match user_namespace {
        Some(_) if uids.is_empty() || gids.is_empty() => {
            return Err(PlanError::new(
                "linux.uidMappings",
                "a user namespace needs its maps said, also when it is joined",
            )
            .into());
        }
        Some(_) => {
            let no_root = || PlanError::new("linux.uidMappings", "does not map the container's root (0)");
            (userns::host_root(uids).ok_or_else(no_root)?, userns::host_root(gids).ok_or_else(no_root)?)
        }
        None => (0, 0),
    };
    let prepared = Prepared {
        root: prepare::root(&rootfs, user_namespace, owner)?,
        sources: prepare::sources(&ops, cgroup, user_namespace)?,
        null: prepare::null_device()?,
        nodes: devices
            .iter()
            .map(|device| user_namespace.map(|_| prepare::node(&device.path)).transpose())
            .collect::<Result<_, SetupError>>()?,
    };
    let stdio = complete(stdio)?;
    let keyring = if keep_keyring { None } else { CString::new(format!("_ses.{id}")).ok() };
    let sockets = spawn::sockets(extra_fds.len())?;
    let between = namespaces.needs_intermediate();
    let run = |socket: std::os::fd::BorrowedFd<'_>, joining: Joining| {
        let process = Process {
            identity: &identity,
            seccomp: filter.as_ref(),
            stdio: &stdio,
            extra_fds: &extra_fds,
            socket,
            keyring: keyring.as_deref(),
        };
        let container = Container {
            spec,
            namespaces: &namespaces,
            joins: if between { &[] } else { &joins },
            mounts: &ops,
            devices: &devices,
            prepared: &prepared,
            cgroup: &join,
            joining,
            user_namespace: user_namespace.is_some(),
        };
        init::container(&container, &process)
    };
    let new = namespaces.new & !NEW_CGROUP;
    let limit = resources.memory().as_ref().and_then(LinuxMemory::limit);
    let failed = |error| create_error(error, cgroup, limit);
    let mut spawned = if between {
        spawn::between(sockets, new, &join, || spawn::enter(&joins), run)
    } else {
        spawn::direct(sockets, new, &join, run)
    }
    .map_err(failed)?;
    let mut warnings = Vec::new();
    if let Some(score) = identity.oom_score_adj {
        set_oom_score(&spawned, score, &mut warnings)?;
    }
    let heard = spawn::listen(&mut spawned).map_err(failed)?;
    let Spawned { child, socket, .. } = spawned;
    Ok(Created { pid: child.pid, pidfd: child.pidfd, terminal: heard.terminal, warnings, socket })
}

fn create_error(error: SpawnError, cgroup: &Cgroup, limit_bytes: Option<i64>) -> CreateError {
    match error {
        // Nothing but this process has been in the cgroup.
        _ if cgroup.oom_kills().is_ok_and(|kills| kills > 0) => CreateError::OutOfMemory { limit_bytes },
        SpawnError::Setup(error) => error.into(),
        SpawnError::Died(how) => CreateError::Died(how),
    }
}

fn open_joins(namespaces: &namespaces::Namespaces) -> Result<Vec<(u64, OwnedFd)>, SetupError> {
    let open = |(kind, path): &(u64, PathBuf)| {
        let file = std::fs::File::open(path).step("opening the namespace", path)?;
        Ok((*kind, OwnedFd::from(file)))
    };
    namespaces.join.iter().map(open).collect()
}

/// A missing stdin reads as the host's /dev/null.
pub(crate) fn complete(stdio: Stdio) -> Result<Stdio, SetupError> {
    match stdio {
        Stdio::Pipes { stdin: None, stdout, stderr } => {
            let null = std::fs::File::open("/dev/null").step("opening", "/dev/null")?;
            Ok(Stdio::Pipes { stdin: Some(null.into()), stdout, stderr })
        }
        other => Ok(other),
    }
}

/// Sets how readily the kernel kills the process when memory runs out. Lowering the value needs CAP_SYS_RESOURCE: where
/// that is refused the container runs with what it inherits, and a warning says so.
///
/// Done by the maker: the process itself is undumpable, so that its own files of /proc are not its own.
pub(crate) fn set_oom_score(spawned: &Spawned, score: i32, warnings: &mut Vec<Warning>) -> Result<(), SetupError> {
    let path = format!("/proc/{}/oom_score_adj", spawned.child.pid.as_raw_nonzero());
    match std::fs::write(&path, score.to_string()) {
        Ok(()) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(errno) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                warnings.push(Warning { operation: format!("setting oom_score_adj to {score}"), errno });
                Ok(())
            }
            // It has ended already: what it said on the way tells more.
            _ if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            _ => {
                spawn::abandon(spawned);
                Err(error).step("setting oom_score_adj", path)
            }
        },
    }
}
