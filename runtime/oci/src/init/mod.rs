//! The container's own process, from its first instruction to execve. Runs in a clone of a single-threaded process.
//!
//! It performs the steps of [`crate::plan::order`], which says why they come in that order.

mod console;
mod copy_up;
mod devices;
mod limits;
mod masks;
mod mounts;
mod privileges;
mod program;
mod resolve;
mod sysctl;
mod visitor;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use oci_spec::runtime::Spec;
use portreeve_sys::capability::{self, Sets};
use portreeve_sys::clone::NEW_CGROUP;
use portreeve_sys::mount::{self, Change, Propagation, READ_ONLY};
use portreeve_sys::self_exe::ReadOnlyPlace;
use portreeve_sys::{keyring, namespace, process};
use rustix::fs::{CWD, Mode, OFlags};

use crate::cgroup::Join;
use crate::create::Pivot;
use crate::error::{SetupError, Step};
use crate::gate::{Inherited, StartedBy};
use crate::handshake;
use crate::hooks::{HookError, Hooks, Point, Terms};
use crate::netdev;
use crate::plan::identity::Identity;
use crate::plan::mounts::MountOp;
use crate::plan::order::{self, InitStep, ProcessStep};
use crate::plan::sysctl::Sysctl;
use crate::prepare::{Device, Prepared, Wanted};
use crate::seccomp::Filter;
use crate::spawn::{self, first_free};
use crate::stdio::Stdio;

pub(crate) use sysctl::private_procfs;
pub(crate) use visitor::{attach_root, make_mount_points, place_of_null, place_of_root};

/// What the program of any process in a container needs.
#[derive(Debug)]
pub(crate) struct Process<'a> {
    pub(crate) steps: &'a [ProcessStep],
    pub(crate) identity: &'a Identity,
    pub(crate) seccomp: Option<&'a Filter>,
    pub(crate) stdio: &'a Stdio,
    pub(crate) extra_fds: &'a [OwnedFd],
    pub(crate) socket: BorrowedFd<'a>,
    /// Where it waits for the start, unless at the socket.
    pub(crate) gate: Option<&'a Inherited>,
    /// Name of a new session keyring, unless the caller's is kept.
    pub(crate) keyring: Option<&'a std::ffi::CStr>,
    /// Of a container, for its first process.
    pub(crate) hooks: Option<&'a Hooks>,
    /// When those of the creation have to have ended.
    pub(crate) hooks_until: Option<Instant>,
    /// A procfs of its maker's, where it may not make one itself.
    pub(crate) procfs: Option<BorrowedFd<'a>>,
}

/// What a container's first process needs beyond that.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    pub(crate) steps: &'a [InitStep],
    pub(crate) spec: &'a Spec,
    /// Open files of the namespaces to join, unless a process in between has joined them.
    pub(crate) joins: &'a [(u64, OwnedFd)],
    pub(crate) mounts: &'a [MountOp],
    pub(crate) sysctls: &'a [Sysctl],
    pub(crate) devices: &'a [Device],
    /// `None`: the process opens everything itself, by `wanted`.
    pub(crate) prepared: Option<&'a Prepared>,
    pub(crate) wanted: &'a Wanted<'a>,
    /// Where the host has the root file system, for hooks that look for it there.
    pub(crate) place: Option<&'a Path>,
    /// Where its executable is out of the container's reach, unless it is there already.
    pub(crate) executable: Option<&'a ReadOnlyPlace>,
    pub(crate) cgroup: Option<&'a Join>,
    /// What of the cgroup is left to join.
    pub(crate) joining: Joining,
}

/// What of its cgroup a process has still to join by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joining {
    /// A parent has, and it was inherited.
    Nothing,
    /// It was born in the unified one.
    VersionOne,
    /// Everything.
    All,
}

/// Runs a container's first process; the answer is its exit code, for when its program could not be executed.
pub(crate) fn container(container: &Container<'_>, process: &Process<'_>) -> i32 {
    report(process.socket, set_up(container, process))
}

/// Runs a further process of a container, in whose namespaces the caller is already.
pub(crate) fn further(process: &Process<'_>, user_namespace: bool) -> i32 {
    report(process.socket, set_up_further(process, user_namespace))
}

/// A failure on its way to the maker.
pub(crate) enum Failure {
    Setup(SetupError),
    Hook(HookError),
    /// Said already; only the exit code is left.
    Said(i32),
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        Self::Setup(error)
    }
}

impl From<HookError> for Failure {
    fn from(error: HookError) -> Self {
        Self::Hook(error)
    }
}

pub(crate) fn report(socket: BorrowedFd<'_>, result: Result<(), Failure>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(Failure::Setup(error)) => {
            let _ = handshake::failed(socket, &error);
            1
        }
        Err(Failure::Hook(error)) => {
            let _ = handshake::hook_failed(socket, &error);
            1
        }
        Err(Failure::Said(code)) => code,
    }
}

pub(crate) const LEAVING_EXECUTABLE: &str = "moving from the runtime's executable to a read-only mount of it";

/// First steps that every process takes.
pub(crate) fn begin(executable: Option<&ReadOnlyPlace>) -> Result<(), SetupError> {
    // Nobody may look into this copy of our program, or reach its file through /proc/PID/exe.
    process::set_dumpable(false).step("becoming undumpable", "")?;
    executable.map_or(Ok(()), ReadOnlyPlace::enter).step(LEAVING_EXECUTABLE, "")?;
    process::reset_signals().step("resetting signals", "")?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

pub(crate) fn join_cgroup(cgroup: Option<&Join>, joining: Joining) -> Result<(), SetupError> {
    let failed = |error: crate::cgroup::CgroupError| SetupError {
        operation: "joining the cgroup".into(),
        path: match &error {
            crate::cgroup::CgroupError::Write { path, .. } => path.clone(),
            _ => std::path::PathBuf::new(),
        },
        source: match error {
            crate::cgroup::CgroupError::Write { source, .. } => source,
            other => std::io::Error::other(other.to_string()),
        },
    };
    let Some(cgroup) = cgroup.filter(|_| joining != Joining::Nothing) else { return Ok(()) };
    cgroup.enter().map_err(failed)?;
    if joining == Joining::All { cgroup.enter_unified().map_err(failed) } else { Ok(()) }
}

/// First steps of a process in between.
pub(crate) fn begin_between(cgroup: Option<&Join>, joining: Joining) -> Result<(), SetupError> {
    begin(None)?;
    join_cgroup(cgroup, joining)
}

pub(crate) fn become_root_of_user_namespace() -> Result<(), SetupError> {
    // A namespace that denies setgroups keeps the groups it was born with, which mean nothing in it.
    let _ = process::set_groups(&[]);
    process::set_group_id(0).step("becoming group 0 of the user namespace", "")?;
    process::set_user_id(0).step("becoming user 0 of the user namespace", "")
}

fn set_up(container: &Container<'_>, process: &Process<'_>) -> Result<(), Failure> {
    begin(container.executable)?;
    let mut made = Made { root: open_root()?, prepared: None, filesystems: Vec::new(), console: None };
    for step in container.steps {
        perform(*step, container, process, &mut made)?;
    }
    // Their numbers are the program's.
    let Made { root, prepared, filesystems, console } = made;
    drop((prepared, filesystems));
    settle_and_run(process, root, console)
}

/// What the steps of the first process have made so far.
struct Made {
    /// The root of the moment: the host's until it is changed.
    root: OwnedFd,
    /// What it has opened itself, where the maker might not.
    prepared: Option<Prepared>,
    /// New file systems, by index of the mount; once attached, those that become read-only later.
    filesystems: Vec<Option<OwnedFd>>,
    console: Option<console::Console>,
}

/// What was opened, by whomever.
fn prepared<'a>(container: &Container<'a>, own: &'a Option<Prepared>) -> Result<&'a Prepared, SetupError> {
    let lacking = || std::io::Error::other("nobody has opened them");
    own.as_ref().or(container.prepared).ok_or_else(lacking).step("looking for the sources of mounts", "")
}

fn perform(step: InitStep, container: &Container<'_>, process: &Process<'_>, made: &mut Made) -> Result<(), Failure> {
    let linux = container.spec.linux().as_ref();
    let root = made.root.as_fd();
    let opened = || prepared(container, &made.prepared);
    match step {
        InitStep::OpenSources => made.prepared = Some(container.wanted.open()?),
        InitStep::JoinCgroup => join_cgroup(container.cgroup, container.joining)?,
        InitStep::NewCgroupNamespace => namespace::unshare(NEW_CGROUP).step("making a cgroup namespace", "")?,
        InitStep::JoinNamespaces => {
            spawn::join(container.joins)?;
            // A mount namespace has a root of its own.
            made.root = open_root()?;
        }
        InitStep::BecomeRootOfUserNamespace => become_root_of_user_namespace()?,
        InitStep::AwaitLinks => {
            if !handshake::wait_go(process.socket).step("waiting for links", "")? {
                return Err(Failure::Said(1));
            }
        }
        InitStep::Loopback => netdev::loopback_up().step("bringing up the link", "lo")?,
        InitStep::Keyring => join_keyring(process.keyring)?,
        InitStep::HostName => {
            let name = container.spec.hostname().as_deref().unwrap_or_default();
            namespace::set_host_name(name).step("setting the host name", name)?;
        }
        InitStep::DomainName => {
            let name = container.spec.domainname().as_deref().unwrap_or_default();
            namespace::set_domain_name(name).step("setting the domain name", name)?;
        }
        InitStep::AttachRoot => {
            make_private(root)?;
            mount::attach(opened()?.root.as_fd(), root).step("attaching the root file system", "")?;
        }
        InitStep::AttachRootInPlace => {
            make_private(root)?;
            let place = container.place.unwrap_or(Path::new("/"));
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(CWD, place, flags, Mode::empty()).step("opening", place)?;
            let new = opened()?.root.as_fd();
            mount::attach(new, directory.as_fd()).step("attaching the root file system for its hooks to", place)?;
            made.root = new.try_clone_to_owned().step("copying the root's descriptor", "")?;
        }
        InitStep::MakeFilesystems => made.filesystems = mounts::make(container.mounts)?,
        InitStep::ChangeRoot(pivot) => {
            let new = opened()?.root.as_fd();
            if pivot == Pivot::MoveMount && container.place.is_some() {
                // Over the old root, so that no path leads back there.
                mount::attach(new, open_root()?.as_fd()).step("moving the root file system", "")?;
            }
            match pivot {
                Pivot::PivotRoot => mount::pivot_root(new),
                Pivot::MoveMount => mount::change_root(new),
            }
            .step("changing the root", "")?;
            made.root = open_root()?;
        }
        InitStep::AttachMounts => {
            mounts::attach(root, container.mounts, &opened()?.sources, &mut made.filesystems)?;
        }
        InitStep::Devices => {
            devices::create(root, container.devices, &opened()?.nodes)?;
            devices::link(root)?;
        }
        InitStep::Terminal => made.console = console::make(process.stdio, root)?,
        InitStep::BindConsole => made.console.as_ref().map_or(Ok(()), |console| console::bind(console, root))?,
        InitStep::AwaitHooks => {
            handshake::mounted(process.socket).step("reporting to the caller", "")?;
            if !handshake::wait_go(process.socket).step("waiting for the hooks", "")? {
                return Err(Failure::Said(1));
            }
        }
        InitStep::RunHooks => {
            let terms = Terms { until: process.hooks_until, ..Terms::default() };
            run_hooks(process, Point::CreateContainer, terms)?;
        }
        InitStep::Sysctls => sysctl::write(container.sysctls, process.procfs)?,
        InitStep::ReadOnlyPaths => {
            masks::read_only(root, linux.and_then(|linux| linux.readonly_paths().as_deref()).unwrap_or_default())?;
        }
        InitStep::MaskedPaths => {
            let masked = linux.and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default();
            masks::cover(root, masked, opened()?.null.as_fd())?;
        }
        InitStep::MakeWorkingDirectory => {
            let directory = &process.identity.directory;
            drop(resolve::make_directory(root, directory).step("creating the working directory", directory)?);
        }
        InitStep::ReadOnlyMounts => mounts::finish(container.mounts, &made.filesystems)?,
        InitStep::RootPropagation => set_root_propagation(root, container)?,
        InitStep::ReadOnlyRoot => {
            let change = Change { set: READ_ONLY, ..Change::default() };
            mount::set_attributes(root, &change).step("making the root read-only", "/")?;
        }
    }
    Ok(())
}

fn make_private(root: BorrowedFd<'_>) -> Result<(), SetupError> {
    let private = Change { propagation: Some(Propagation::Private), recursive: true, ..Change::default() };
    mount::set_attributes(root, &private).step("making every mount private", "/")
}

/// The process's own id is the container's, in its PID namespace.
fn run_hooks(process: &Process<'_>, point: Point, terms: Terms<'_>) -> Result<(), HookError> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    process.hooks.map_or(Ok(()), |hooks| hooks.run(point, own, terms))
}

/// Runs the hooks of the start: the program of a hook has the privileges of the container's and is under its filter, also
/// where this process, which makes calls of its own for it, is not yet.
fn run_hooks_of_the_start(process: &Process<'_>, capabilities: &Sets) -> Result<(), HookError> {
    let late = process.seccomp.filter(|filter| filter.listener().is_none());
    let confine = || -> std::io::Result<()> {
        let Some(filter) = late else { return Ok(()) };
        let failed = |source: std::io::Error| std::io::Error::other(format!("loading the seccomp filter: {source}"));
        filter.load().map_err(failed)?;
        if order::needs_privilege(process.identity, true) { capability::set(capabilities) } else { Ok(()) }
    };
    let until = process.hooks.and_then(Hooks::until);
    run_hooks(process, Point::StartContainer, Terms { confine: Some(&confine), until, ..Terms::default() })
}

fn open_root() -> Result<OwnedFd, SetupError> {
    rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("opening", "/")
}

fn set_root_propagation(root: BorrowedFd<'_>, container: &Container<'_>) -> Result<(), SetupError> {
    let propagation = container.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    let propagation = match propagation.unwrap_or("") {
        // As it was prepared, with what is below it; the mounts of the configuration have their own by now.
        "" | "private" | "rprivate" | "slave" | "rslave" => None,
        "shared" => Some((Propagation::Shared, false)),
        "rshared" => Some((Propagation::Shared, true)),
        "unbindable" => Some((Propagation::Unbindable, false)),
        other => {
            return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput))
                .step("setting rootfsPropagation", other);
        }
    };
    crate::prepare::set_propagation(root, propagation).step("setting the propagation of", "/")
}

fn join_keyring(name: Option<&std::ffi::CStr>) -> Result<(), SetupError> {
    let Some(name) = name else { return Ok(()) };
    match keyring::join_new_session(name) {
        // A kernel without keys shares none.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) => Ok(()),
        other => other.map(|_| ()).step("making a session keyring", ""),
    }
}

fn set_up_further(process: &Process<'_>, user_namespace: bool) -> Result<(), Failure> {
    begin(None)?;
    if user_namespace {
        become_root_of_user_namespace()?;
    }
    join_keyring(process.keyring)?;
    limits::set_affinity(process.identity)?;
    let root = open_root()?;
    let master = console::make(process.stdio, root.as_fd())?;
    settle_and_run(process, root, master)
}

/// Streams, limits, privileges: what every process does when its mounts are as they shall be; then it waits for the
/// word and executes its program. Returns only when that failed.
fn settle_and_run(process: &Process<'_>, root: OwnedFd, console: Option<console::Console>) -> Result<(), Failure> {
    let mut state = Settled {
        root,
        console,
        environment: Vec::new(),
        entered: false,
        capabilities: Sets::default(),
        starter: None,
    };
    for step in process.steps {
        if let Err(failure) = settle(*step, process, &mut state) {
            return Err(match &state.starter {
                None => failure,
                Some(starter) => Failure::Said(report(starter.as_fd(), Err(failure))),
            });
        }
    }
    Ok(())
}

/// What the steps of every process have come to.
struct Settled {
    root: OwnedFd,
    console: Option<console::Console>,
    environment: Vec<CString>,
    /// Whether it is in its working directory.
    entered: bool,
    /// What the program is to have.
    capabilities: Sets,
    /// The socket that the start came over, when it is not the maker's: who is there hears what goes wrong from then on.
    starter: Option<OwnedFd>,
}

fn settle(step: ProcessStep, process: &Process<'_>, state: &mut Settled) -> Result<(), Failure> {
    let identity = process.identity;
    let root = state.root.as_fd();
    match step {
        ProcessStep::Label => privileges::label(identity, process.procfs)?,
        ProcessStep::Environment => state.environment = program::environment(root, identity),
        ProcessStep::Streams => console::streams(process.stdio, state.console.take(), root, process.socket)?,
        ProcessStep::EnterDirectory => state.entered = privileges::enter_directory(root, identity)?,
        ProcessStep::CloseDescriptors => {
            // Its number must not be one that the program gets.
            state.root = portreeve_sys::fd::duplicate_above(root, first_free(process.extra_fds.len()))
                .step("copying the root's descriptor", "")?;
            program::keep_only(process, state.root.as_fd(), identity)?;
        }
        ProcessStep::Limits => limits::set(identity)?,
        ProcessStep::FewDescriptors => limits::set_few_descriptors(identity)?,
        ProcessStep::Filter => program::load_filter(process)?,
        ProcessStep::DropPrivileges => {
            let keep_last = order::needs_privilege(identity, process.seccomp.is_some());
            state.capabilities = privileges::drop_to(identity, keep_last)?;
        }
        ProcessStep::DropLastPrivilege => privileges::drop_last(&state.capabilities)?,
        ProcessStep::EnterDirectoryAsUser if state.entered => {}
        ProcessStep::EnterDirectoryAsUser => privileges::enter_directory_as_user(root, identity)?,
        ProcessStep::CheckDirectory => privileges::check_directory(&identity.directory)?,
        ProcessStep::FindProgram => program::find(process, &state.environment)?,
        ProcessStep::Ready => handshake::ready(process.socket).step("reporting to the caller", "")?,
        ProcessStep::AwaitStart => {
            let starter = match process.gate {
                None => handshake::wait_go(process.socket).map(|come| come.then_some(StartedBy::Maker)),
                Some(gate) => gate.wait(process.socket),
            };
            match starter.step("waiting for the start", "")? {
                None => return Err(Failure::Said(1)),
                Some(StartedBy::Maker) => {}
                Some(StartedBy::Visitor(socket)) => state.starter = Some(socket),
            }
        }
        ProcessStep::RunHooks => run_hooks_of_the_start(process, &state.capabilities)?,
        ProcessStep::Execute => {
            let starter = state.starter.as_ref().map_or(process.socket, AsFd::as_fd);
            return Err(program::execute(process, &state.environment, starter));
        }
    }
    Ok(())
}
