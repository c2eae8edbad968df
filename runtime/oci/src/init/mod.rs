//! The container's own process, from its first instruction to execve. Runs in a clone of a single-threaded process.
//!
//! Order, and why: the cgroup first, so that nothing escapes its limits; mounts are all made detached before
//! pivot_root and attached after it, so that no path of the container can ever be resolved on the host; privileges go
//! last; the seccomp filter comes before them only when it could not be loaded afterwards.

mod console;
mod devices;
mod limits;
mod masks;
mod mounts;
mod privileges;
mod program;
mod resolve;
mod sysctl;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::Spec;
use portreeve_sys::mount::{self, Change, Propagation, READ_ONLY};
use portreeve_sys::{keyring, namespace, process};
use rustix::fs::{CWD, Mode, OFlags};

use crate::cgroup::Join;
use crate::error::{SetupError, Step};
use crate::handshake;
use crate::plan::identity::Identity;
use crate::plan::mounts::MountOp;
use crate::plan::namespaces::Namespaces;
use crate::prepare::{Device, Prepared};
use crate::seccomp::Filter;
use crate::stdio::Stdio;

/// What the program of any process in a container needs.
#[derive(Debug)]
pub(crate) struct Process<'a> {
    pub(crate) identity: &'a Identity,
    pub(crate) seccomp: Option<&'a Filter>,
    pub(crate) stdio: &'a Stdio,
    pub(crate) extra_fds: &'a [OwnedFd],
    pub(crate) socket: BorrowedFd<'a>,
    /// Name of a new session keyring, unless the caller's is kept.
    pub(crate) keyring: Option<&'a std::ffi::CStr>,
}

/// What a container's first process needs beyond that.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) namespaces: &'a Namespaces,
    /// Open files of the namespaces to join, unless a process in between has joined them.
    pub(crate) joins: &'a [(u64, OwnedFd)],
    pub(crate) mounts: &'a [MountOp],
    pub(crate) devices: &'a [Device],
    pub(crate) prepared: &'a Prepared,
    pub(crate) cgroup: &'a Join,
    /// What of the cgroup is left to join.
    pub(crate) joining: Joining,
    pub(crate) user_namespace: bool,
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

/// Runs a further process of a container, in whose namespaces the caller is.
pub(crate) fn further(process: &Process<'_>, user_namespace: bool) -> i32 {
    report(process.socket, set_up_further(process, user_namespace))
}

/// A failure on its way to the maker.
pub(crate) enum Failure {
    Setup(SetupError),
    /// Said already; only the exit code is left.
    Said(i32),
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        Self::Setup(error)
    }
}

pub(crate) fn report(socket: BorrowedFd<'_>, result: Result<(), Failure>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(Failure::Setup(error)) => {
            let _ = handshake::failed(socket, &error);
            1
        }
        Err(Failure::Said(code)) => code,
    }
}

/// First steps that every process takes.
pub(crate) fn begin() -> Result<(), SetupError> {
    // Nobody may look into this copy of our program, or reach its file through /proc/PID/exe.
    process::set_dumpable(false).step("becoming undumpable", "")?;
    process::reset_signals().step("resetting signals", "")?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

pub(crate) fn join_cgroup(cgroup: &Join, joining: Joining) -> Result<(), SetupError> {
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
    if joining == Joining::Nothing {
        return Ok(());
    }
    cgroup.enter().map_err(failed)?;
    if joining == Joining::All { cgroup.enter_unified().map_err(failed) } else { Ok(()) }
}

/// First steps of a process in between.
pub(crate) fn begin_between(cgroup: &Join, joining: Joining) -> Result<(), SetupError> {
    begin()?;
    join_cgroup(cgroup, joining)
}

fn become_root_of_user_namespace() -> Result<(), SetupError> {
    // A namespace that denies setgroups keeps the groups it was born with, which mean nothing in it.
    let _ = process::set_groups(&[]);
    process::set_group_id(0).step("becoming group 0 of the user namespace", "")?;
    process::set_user_id(0).step("becoming user 0 of the user namespace", "")
}

fn set_up(container: &Container<'_>, process: &Process<'_>) -> Result<(), Failure> {
    let namespaces = container.namespaces;
    begin()?;
    join_cgroup(container.cgroup, container.joining)?;
    if namespaces.new & portreeve_sys::clone::NEW_CGROUP != 0 {
        // Only now: a cgroup namespace has as its root the cgroups that its maker is in.
        namespace::unshare(portreeve_sys::clone::NEW_CGROUP).step("making a cgroup namespace", "")?;
    }
    for (kind, fd) in container.joins {
        namespace::enter(fd.as_fd(), *kind).step("joining a namespace", "")?;
    }
    if container.user_namespace {
        become_root_of_user_namespace()?;
    }
    if let Some(name) = process.keyring {
        join_keyring(name)?;
    }
    if namespaces.has(portreeve_sys::clone::NEW_UTS) {
        if let Some(name) = container.spec.hostname() {
            namespace::set_host_name(name).step("setting the host name", name.as_str())?;
        }
        if let Some(name) = container.spec.domainname() {
            namespace::set_domain_name(name).step("setting the domain name", name.as_str())?;
        }
    }
    let root = root(container)?;
    let master = console::make(process.stdio, root.as_fd())?;
    if let Some(console) = &master
        && !mounts::replaces_dev(container.mounts)
    {
        console::bind(console, root.as_fd())?;
    }
    let linux = container.spec.linux().as_ref();
    sysctl::write(linux.and_then(|linux| linux.sysctl().as_ref()))?;
    masks::read_only(root.as_fd(), linux.and_then(|linux| linux.readonly_paths().as_deref()).unwrap_or_default())?;
    let masked = linux.and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default();
    masks::cover(root.as_fd(), masked, container.prepared.null.as_fd())?;
    let directory = &process.identity.directory;
    drop(resolve::make_directory(root.as_fd(), directory).step("creating the working directory", directory)?);
    finish_root(root.as_fd(), container)?;
    settle_and_run(process, root, master)
}

/// Mounts everything and makes it the root of this mount namespace; answers the new root.
fn root(container: &Container<'_>) -> Result<OwnedFd, SetupError> {
    let old = open_root()?;
    let private = Change { propagation: Some(Propagation::Private), recursive: true, ..Change::default() };
    mount::set_attributes(old.as_fd(), &private).step("making every mount private", "/")?;
    mount::attach(container.prepared.root.as_fd(), old.as_fd()).step("attaching the root file system", "")?;
    // Detached, before pivot_root: in a user namespace the kernel gives a procfs or sysfs only to someone who sees one.
    let made = mounts::make(container.mounts)?;
    mount::pivot_root(container.prepared.root.as_fd()).step("changing the root", "")?;
    let root = open_root()?;
    mounts::attach(root.as_fd(), container.mounts, &container.prepared.sources, &made)?;
    if !mounts::replaces_dev(container.mounts) {
        devices::create(root.as_fd(), container.devices, &container.prepared.nodes)?;
        devices::link(root.as_fd())?;
    }
    Ok(root)
}

fn open_root() -> Result<OwnedFd, SetupError> {
    rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("opening", "/")
}

fn finish_root(root: BorrowedFd<'_>, container: &Container<'_>) -> Result<(), SetupError> {
    let propagation = container.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    let propagation = match propagation.unwrap_or("") {
        "" | "private" | "rprivate" => None,
        "shared" => Some((Propagation::Shared, false)),
        "rshared" => Some((Propagation::Shared, true)),
        "slave" => Some((Propagation::Slave, false)),
        "rslave" => Some((Propagation::Slave, true)),
        "unbindable" => Some((Propagation::Unbindable, false)),
        other => {
            return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput))
                .step("setting rootfsPropagation", other);
        }
    };
    crate::prepare::set_propagation(root, propagation).step("setting the propagation of", "/")?;
    if container.spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false)) {
        mount::set_attributes(root, &Change { set: READ_ONLY, ..Change::default() })
            .step("making the root read-only", "/")?;
    }
    Ok(())
}

fn join_keyring(name: &std::ffi::CStr) -> Result<(), SetupError> {
    match keyring::join_new_session(name) {
        // A kernel without keys shares none.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) => Ok(()),
        other => other.map(|_| ()).step("making a session keyring", ""),
    }
}

fn set_up_further(process: &Process<'_>, user_namespace: bool) -> Result<(), Failure> {
    begin()?;
    if user_namespace {
        become_root_of_user_namespace()?;
    }
    if let Some(name) = process.keyring {
        join_keyring(name)?;
    }
    let root = open_root()?;
    let master = console::make(process.stdio, root.as_fd())?;
    settle_and_run(process, root, master)
}

/// Streams, limits, privileges: what every process does when its mounts are as they shall be; then it waits for the
/// word and executes its program. Returns only when that failed.
fn settle_and_run(process: &Process<'_>, root: OwnedFd, console: Option<console::Console>) -> Result<(), Failure> {
    let identity = process.identity;
    limits::set(identity)?;
    privileges::label(identity)?;
    let environment = program::environment(root.as_fd(), identity);
    console::streams(process.stdio, console, process.socket)?;
    // Its number must not be one that the program gets.
    let kept = portreeve_sys::fd::duplicate_above(root.as_fd(), program::first_free(process))
        .step("copying the root's descriptor", "")?;
    drop(root);
    let root = kept;
    let entered = privileges::enter_directory(root.as_fd(), identity)?;
    program::keep_only(process, root.as_fd(), identity)?;
    if !identity.no_new_privileges {
        // Later this would need a privilege that is about to go.
        program::load_filter(process.seccomp)?;
    }
    privileges::drop_to(identity)?;
    if !entered {
        privileges::enter_directory_as_user(root.as_fd(), identity)?;
    }
    drop(root);
    privileges::check_directory(&identity.directory)?;
    handshake::ready(process.socket).step("reporting to the caller", "")?;
    if !handshake::wait_go(process.socket).step("waiting for the start", "")? {
        return Err(Failure::Said(1));
    }
    if identity.no_new_privileges {
        program::load_filter(process.seccomp)?;
    }
    Err(program::execute(process, &environment))
}
