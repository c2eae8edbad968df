//! Making a container: everything up to, and then including, its program's execve.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{
    ContainerState, LinuxMemory, LinuxResources, LinuxSeccomp, Process as ProcessSpec, Spec, State,
};
use portreeve_sys::clone::{Child, NEW_CGROUP, NEW_MOUNT, NEW_NET, NEW_TIME, NEW_USER};
use portreeve_sys::namespace;
use portreeve_sys::self_exe::ReadOnlyPlace;
use rustix::fs::{Mode, OFlags};

use crate::cgroup::{Cgroup, CgroupError, Join, container_device_rules, delegate_owner, devices_can_be_limited};
use crate::error::{CreateError, SetupError, StartError, Step, Warning};
use crate::gate::Inherited;
use crate::hooks::{Hooks, Outside, Point, Terms};
use crate::init::{self, Container, Joining, Process};
use crate::lifecycle::Rootless;
use crate::plan::identity::Identity;
use crate::plan::mounts::MountOp;
use crate::plan::namespaces::Namespaces;
use crate::plan::netdev::NetDevice;
use crate::plan::sysctl::Sysctl;
use crate::plan::{PlanError, identity, mounts, namespaces, netdev, order, sysctl};
use crate::prepare::{self, Device, Wanted};
use crate::seccomp::{Filter, SeccompError};
use crate::spawn::{self, Place, SpawnError, Spawned};
use crate::stdio::Stdio;
use crate::{Pid, rdt, userns};

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

/// How the container's root file system becomes its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pivot {
    /// pivot_root(2): nothing of the old root is left in the container's mount namespace.
    #[default]
    PivotRoot,
    /// The new root is mounted over the old one, which stays below it, and entered by chroot(2): for a caller whose own
    /// root cannot be pivoted away from (an initial RAM file system).
    MoveMount,
}

/// Where the container's process waits for its start.
#[derive(Debug, Default)]
pub enum Gate {
    /// At the socket of its maker, who lives on: [`Created::start`]. When the maker ends, so does the process.
    #[default]
    Held,
    /// At a listening socket, for whoever may connect to it; outlives the maker.
    Listening {
        /// The socket.
        listener: OwnedFd,
        /// A file with an exclusive flock(2), which falls with the execution of the program.
        lock: OwnedFd,
    },
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
    /// The cgroup it runs in; created when missing, and `linux.resources` is written to it. Without one the container
    /// stays in the caller's, and has no limits.
    pub cgroup: Option<&'a Cgroup>,
    /// The cgroup was not there when its maker looked: should another one make it first, the container is not made.
    pub cgroup_is_new: bool,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Descriptors that the program gets as 3, 4, and so on.
    pub extra_fds: Vec<OwnedFd>,
    /// Keep the caller's session keyring instead of giving the container a new one.
    pub keep_keyring: bool,
    /// How the root file system becomes the root.
    pub pivot: Pivot,
    /// Where the process waits for its start.
    pub gate: Gate,
    /// The bundle's directory, of which hooks are told, and the program that takes the listener of a seccomp filter. For
    /// hooks of the creation, layers are attached at its directory `rootfs`, which has to be there, in the container's
    /// own mount namespace: nothing is mounted on the host.
    pub bundle: PathBuf,
    /// What hooks beside the container do before they are executed; `None`: they stay where the maker is.
    pub outside: Option<Outside<'a>>,
    /// How long the hooks of the creation may take together, and those of the start; `None`: as long as each of them may.
    pub hooks_within: Option<Duration>,
    /// How long the container's process may be silent while it sets itself up, and until its program has been executed;
    /// `None`: without bound. Its hooks are part of that.
    pub patience: Option<Duration>,
    /// Whether the caller lacks the privileges of the host's root.
    pub rootless: Rootless,
    /// Where the caller's executable is out of the reach of whoever is in the container, if it is not there yet. Its
    /// first process moves there before it does anything else, when nobody in the container can look at it earlier, nor
    /// at the caller; the caller itself does otherwise, before it clones any.
    pub executable: Option<&'a ReadOnlyPlace>,
    /// Hears of the container's process as soon as it is there, before hooks run.
    pub(crate) born: Option<Born<'a>>,
}

/// Is told of a process; an error ends it.
pub(crate) struct Born<'a>(pub(crate) &'a dyn Fn(Pid) -> std::io::Result<()>);

impl std::fmt::Debug for Born<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Born")
    }
}

impl<'a> Create<'a> {
    /// A container with no further descriptors and a session keyring of its own, which waits for its maker.
    #[must_use]
    pub fn new(id: &'a str, spec: &'a Spec, rootfs: RootFs, cgroup: &'a Cgroup, stdio: Stdio) -> Self {
        Self {
            id,
            spec,
            rootfs,
            cgroup: Some(cgroup),
            cgroup_is_new: false,
            stdio,
            extra_fds: Vec::new(),
            keep_keyring: false,
            pivot: Pivot::default(),
            gate: Gate::default(),
            bundle: PathBuf::new(),
            outside: None,
            hooks_within: None,
            patience: None,
            rootless: Rootless::No,
            executable: None,
            born: None,
        }
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

    /// Lets a process that waits at [`Gate::Listening`] outlive its maker: only a start, or a signal, ends it now.
    ///
    /// # Errors
    /// [`StartError::Gone`] when it has ended.
    pub fn release(self) -> Result<(), StartError> {
        spawn::go(self.socket.as_fd())
    }

    /// What keeps the process waiting while it is open.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

/// Makes a container and returns when its process has done everything but execute its program.
///
/// The caller must be single-threaded; it becomes the parent of the container's process. Dropping the answer
/// without starting ends that process.
///
/// Of the configuration's hooks it runs those up to `createContainer`, and the container's process that of
/// `startContainer`; `poststart` and `poststop` are the caller's.
///
/// # Errors
/// [`CreateError`] names the step that failed; the process, if there was one, has been killed and reaped.
pub fn create(request: Create<'_>) -> Result<Created, CreateError> {
    let plan = Plan::of(request.spec)?;
    let Some(cgroup) = request.cgroup else {
        let join = rdt::join(Join::of_nothing(), request.spec, request.id)?;
        return make(request, plan, Place { cgroup: Some(&join), birth: false }, Vec::new());
    };
    let (ours, _held) = claim(cgroup, request.cgroup_is_new)?;
    let late = late_limit(request.spec);
    let limited = limit(cgroup, ours, request.spec, request.rootless, late.is_some())
        .and_then(|(join, warnings)| Ok((rdt::join(join, request.spec, request.id)?, warnings)))
        .map_err(CreateError::from);
    let made = limited.and_then(|(join, warnings)| {
        let made = make(request, plan, Place { cgroup: Some(&join), birth: ours }, warnings)?;
        match late.map_or(Ok(Vec::new()), |late| cgroup.apply(&late)) {
            Ok(_nothing_to_warn_of) => Ok(made),
            Err(error) => {
                spawn::end(made.pidfd.as_fd());
                Err(error.into())
            }
        }
    });
    match made {
        Err(cause) if ours => match clear(cgroup) {
            Ok(()) => Err(cause),
            Err(cgroup) => Err(CreateError::CgroupLeft { cause: Box::new(cause), cgroup }),
        },
        made => made,
    }
}

/// Whether a container can be made of a configuration, as far as that alone tells: nothing is touched, and the kernel is
/// asked for no more than whether it knows the actions and flags of the seccomp profile.
///
/// # Errors
/// [`CreateError`], as [`create()`] would answer before it does anything.
pub fn check(spec: &Spec) -> Result<(), CreateError> {
    Plan::of(spec).map(drop)
}

/// What the configuration asks for, decided before anything is touched.
struct Plan {
    identity: Identity,
    namespaces: Namespaces,
    mounts: Vec<MountOp>,
    sysctls: Vec<Sysctl>,
    filter: Option<Filter>,
    devices: Vec<Device>,
    hooks: Hooks,
    links: Vec<NetDevice>,
}

impl Plan {
    fn of(spec: &Spec) -> Result<Self, CreateError> {
        let linux = spec.linux().as_ref();
        let namespaces = namespaces::plan(spec)?;
        rdt::check(spec)?;
        Ok(Self {
            identity: spec.process().as_ref().map_or_else(|| nobody(spec), |process| identity::plan(process, spec))?,
            hooks: Hooks::plan(spec.hooks().as_ref(), state(spec, ContainerState::Creating))?,
            sysctls: sysctl::plan(spec, &namespaces)?,
            links: netdev::plan(spec, &namespaces)?,
            namespaces,
            mounts: mounts::plan(spec)?,
            filter: linux.and_then(|linux| linux.seccomp().as_ref()).map(filter).transpose()?,
            devices: prepare::devices(linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default())?,
        })
    }
}

/// Of a container without a process, which can be made and has nothing to execute.
fn nobody(spec: &Spec) -> Result<Identity, PlanError> {
    let mut identity = identity::plan(&ProcessSpec::default(), spec)?;
    identity.arguments.clear();
    Ok(identity)
}

/// Compiles a profile that this kernel can carry out.
pub(crate) fn filter(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let filter = Filter::compile(profile)?;
    filter.check_kernel()?;
    Ok(filter)
}

/// Whether there is a filter, and whether it has a listener.
pub(crate) fn hears(filter: Option<&Filter>) -> Option<bool> {
    filter.map(|filter| filter.listener().is_some())
}

/// Whether the cgroup is to be made, and what keeps other makers away until a process is there, which who comes later
/// sees.
pub(crate) fn claim(cgroup: &Cgroup, must_be_new: bool) -> Result<(bool, File), CgroupError> {
    let new = cgroup.claim()?;
    if !new {
        if must_be_new {
            return Err(CgroupError::Taken { path: cgroup.path().to_owned() });
        }
        cgroup.let_its_maker_hold()?;
    }
    match cgroup.hold() {
        Ok(held) => Ok((new, held)),
        Err(error) => {
            if new {
                // Only while nothing is in it. Why it is not ours says more than that it is still there.
                let _ = cgroup.remove_unused();
            }
            Err(error)
        }
    }
}

/// The limit on processes, if it is too low to make the container under it: one process may have to make the container's
/// (a user namespace is joined), and both are in the cgroup then. Until the container is made nothing of it runs.
fn late_limit(spec: &Spec) -> Option<LinuxResources> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref())?;
    let pids = resources.pids().filter(|pids| (0..2).contains(&pids.limit()))?;
    let mut late = LinuxResources::default();
    late.set_pids(Some(pids)).set_devices(None);
    Some(late)
}

/// Makes a cgroup that was claimed, with the limits of the configuration, and opens what joins it. That of processes is
/// left to the caller when it is `late`.
pub(crate) fn limit(
    cgroup: &Cgroup,
    new: bool,
    spec: &Spec,
    rootless: Rootless,
    late: bool,
) -> Result<(Join, Vec<Warning>), CgroupError> {
    let given = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let mut resources: LinuxResources = given.cloned().unwrap_or_default();
    // Nobody else may have them enforced, and makes nodes either: a container without has those that are bound into it.
    let enforced = rootless == Rootless::No || devices_can_be_limited();
    resources.set_devices(enforced.then(|| container_device_rules(given)));
    if late {
        resources.set_pids(None);
    }
    if !new {
        cgroup.require_vacant()?;
    }
    cgroup.complete()?;
    let mut warnings = if new { cgroup.apply_first(&resources)? } else { cgroup.apply(&resources)? };
    if let Some(owner) = delegate_owner(spec) {
        match cgroup.delegate(owner) {
            // A user may give nothing away, not to an id lent to him either: the container's root divides it no further.
            Err(CgroupError::Delegate { path, uid, source }) if rootless == Rootless::Yes => {
                let what = format!("giving {} to user {uid}", path.display());
                warnings.push(Warning { what, errno: source.raw_os_error() });
            }
            other => other?,
        }
    }
    Ok((cgroup.prepare_join()?, warnings))
}

/// Removes the cgroup of a container that could not be made; its process has been reaped.
fn clear(cgroup: &Cgroup) -> Result<(), CgroupError> {
    cgroup.kill_all()?;
    cgroup.wait_empty(Duration::from_secs(5))?;
    cgroup.remove()
}

fn make(request: Create<'_>, plan: Plan, place: Place<'_>, mut warnings: Vec<Warning>) -> Result<Created, CreateError> {
    let Create {
        id,
        spec,
        rootfs,
        cgroup,
        stdio,
        extra_fds,
        keep_keyring,
        pivot,
        gate,
        bundle,
        outside,
        hooks_within,
        patience,
        rootless,
        executable,
        born,
        ..
    } = request;
    let Plan { identity, namespaces, mounts: ops, sysctls, filter, devices, hooks, links } = plan;
    let hooks = hooks.about(id, &bundle).within(hooks_within);
    let until = hooks.until();
    let looked_for = hooks.place(&rootfs, namespaces.new & NEW_MOUNT != 0)?;
    let opens = rootless == Rootless::Yes && !prepare::may_mount()?;
    if opens && !namespaces.has(NEW_MOUNT) {
        let reason = "lists no mount namespace: a user who is not root cannot make a container's root in his own";
        return Err(PlanError::new("linux.namespaces", reason).into());
    }
    let linux = spec.linux().as_ref();
    let steps = order::container(&order::Shape {
        spec,
        namespaces: &namespaces,
        mounts: &ops,
        sysctls: &sysctls,
        pivot,
        keep_keyring,
        terminal: matches!(stdio, Stdio::Terminal { .. }),
        hooks: &hooks,
        opens,
    });
    let executable = match executable {
        Some(place) if !namespaces.is_born_alone() => {
            place.enter().step(init::LEAVING_EXECUTABLE, "")?;
            None
        }
        other => other,
    };
    let procfs = prepare::procfs(&namespaces, &identity, !sysctls.is_empty());
    let mut namespaces = namespaces;
    let mut joins = open_joins(&namespaces)?;
    prepare::own_parameters(&sysctls, &joins)?;
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
    let no_root = || PlanError::new("linux.uidMappings", "does not map the container's root (0)");
    warnings.extend(prepare::beyond(&identity.capabilities, user_namespace.is_some())?);
    let owner = match user_namespace {
        // One that is joined has maps, also when nobody says them here.
        Some(namespace) if uids.is_empty() || gids.is_empty() => {
            userns::host_root_of(namespace)?.ok_or_else(no_root)?
        }
        Some(_) => userns::host_root(uids).zip(userns::host_root(gids)).ok_or_else(no_root)?,
        None => (0, 0),
    };
    let wanted = Wanted {
        rootfs: &rootfs,
        receives: mounts::root_receives(spec),
        mounts: &ops,
        cgroup,
        devices: &devices,
        user_namespace,
        owner,
        label: mounts::label(spec),
        rootless,
    };
    let prepared = if opens { None } else { Some(wanted.open()?) };
    let stdio = complete(stdio)?;
    let keyring = if keep_keyring { None } else { CString::new(format!("_ses.{id}")).ok() };
    let sockets = spawn::sockets(extra_fds.len(), patience)?;
    let gate = Inherited::from(gate, spawn::first_free(extra_fds.len())).step("copying the gate's descriptors", "")?;
    let between = namespaces.needs_intermediate();
    let end = order::End { filter: hears(filter.as_ref()), look_up: gate.is_some(), hooks: Some(&hooks) };
    let order = order::process(&identity, end);
    let run = |socket: std::os::fd::BorrowedFd<'_>, joining: Joining| {
        let process = Process {
            steps: &order,
            identity: &identity,
            seccomp: filter.as_ref(),
            stdio: &stdio,
            extra_fds: &extra_fds,
            socket,
            gate: gate.as_ref(),
            keyring: keyring.as_deref(),
            hooks: Some(&hooks),
            hooks_until: until,
            procfs: procfs.as_ref().map(AsFd::as_fd),
        };
        let container = Container {
            steps: &steps,
            spec,
            joins: if between { &[] } else { &joins },
            mounts: &ops,
            sysctls: &sysctls,
            devices: &devices,
            prepared: prepared.as_ref(),
            wanted: &wanted,
            place: looked_for.as_deref(),
            executable,
            cgroup: place.cgroup,
            joining,
        };
        init::container(&container, &process)
    };
    // One whose clocks are moved is made by the process in between, who moves them.
    let late = if namespaces.offsets.is_empty() { NEW_CGROUP } else { NEW_CGROUP | NEW_TIME };
    let new = namespaces.new & !late;
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let limit = resources.and_then(|resources| resources.memory().as_ref()).and_then(LinuxMemory::limit);
    // Of a cgroup that was there before, the count tells of others as well.
    let fresh = cgroup.filter(|_| place.birth);
    let failed = |error| create_error(error, fresh, limit);
    let clone = || {
        if between {
            let enter = || {
                spawn::enter(&joins, &namespaces.offsets)?;
                // What comes with a new namespace (/dev/mqueue) belongs to whoever makes it. Who has to open everything
                // himself first does so as the caller's user.
                if user_namespace.is_some() && !opens { init::become_root_of_user_namespace() } else { Ok(()) }
            };
            spawn::between(sockets, patience, new, place, enter, run)
        } else {
            spawn::direct(sockets, new, place, run)
        }
    };
    let mut spawned = scored(identity.oom_score_adj, &mut warnings, || clone().map_err(failed))?;
    if let Some(Born(tell)) = born
        && let Err(error) = tell(spawned.child.pid)
    {
        spawn::abandon(&spawned);
        return Err(error).step("writing down the container's process", "").map_err(CreateError::from);
    }
    let handed = if links.is_empty() { None } else { Some(hand_over(&links, &joins, &spawned)?) };
    let told = filter.as_ref().and_then(Filter::listener).map(|listener| {
        let mut state = hooks.state().clone();
        state.set_pid(Some(spawned.child.pid.as_raw_nonzero().get()));
        (listener, state)
    });
    let mounted = |child: &Child| {
        let pid = child.pid.as_raw_nonzero().get();
        let terms = Terms { alive: Some(child.pidfd.as_fd()), confine: outside.map(|outside| outside.0), until };
        hooks.run(Point::Prestart, pid, terms).and_then(|()| hooks.run(Point::CreateRuntime, pid, terms))
    };
    let heard = match (spawn::listen(&mut spawned, told, mounted).map_err(failed), handed) {
        (Err(cause), Some(handed)) => {
            return Err(match handed.take_back() {
                Ok(()) => cause,
                Err(link) => CreateError::LinkLeft { cause: Box::new(cause), link },
            });
        }
        (heard, _) => heard?,
    };
    let Spawned { child, socket, .. } = spawned;
    Ok(Created { pid: child.pid, pidfd: child.pidfd, terminal: heard.terminal, warnings, socket })
}

/// Moves links of the caller into the network of a process that waits for them.
fn hand_over(
    links: &[NetDevice],
    joins: &[(u64, OwnedFd)],
    spawned: &Spawned,
) -> Result<crate::netdev::Handed, SetupError> {
    let joined = joins.iter().find(|(kind, _)| *kind == NEW_NET);
    let target = joined.map_or_else(
        || {
            let path = format!("/proc/{}/ns/net", spawned.child.pid.as_raw_nonzero());
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .step("opening the network namespace", path)
        },
        |(_, fd)| fd.try_clone().step("copying a descriptor", ""),
    );
    let handed = target.and_then(|target| crate::netdev::hand_over(links, target));
    if handed.is_err() {
        spawn::abandon(spawned);
        return handed;
    }
    // When it has gone, how it ended tells more.
    let _ = spawn::go(spawned.socket.as_fd());
    handed
}

/// As much of a container's state as its configuration says.
pub(crate) fn state(spec: &Spec, status: ContainerState) -> State {
    let mut state = State::default();
    state.set_version(spec.version().clone()).set_status(status).set_annotations(spec.annotations().clone());
    state
}

fn create_error(error: SpawnError, cgroup: Option<&Cgroup>, limit_bytes: Option<i64>) -> CreateError {
    match error {
        // Nothing but this process has been in the cgroup.
        _ if cgroup.is_some_and(|cgroup| cgroup.oom_kills().is_ok_and(|kills| kills > 0)) => {
            CreateError::OutOfMemory { limit_bytes }
        }
        SpawnError::Setup(error) => error.into(),
        SpawnError::Listener(error) => error.into(),
        SpawnError::Start(StartError::Hook(error)) => error.into(),
        SpawnError::Start(error) => CreateError::Program(error),
        SpawnError::Died(how) => CreateError::Died(how),
    }
}

pub(crate) fn open_joins(namespaces: &Namespaces) -> Result<Vec<(u64, OwnedFd)>, SetupError> {
    let open = |(kind, path): &(u64, PathBuf)| {
        let what = format!("opening the {} namespace", namespaces::name(*kind));
        // Whatever lies there: nobody has to be at the other end of it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).step(&what, path)?;
        let is = match namespace::kind(file.as_fd()).step(&what, path)? {
            Some(found) if found == *kind => return Ok((*kind, file)),
            Some(found) => format!("it is a {} namespace", namespaces::name(found)),
            None => "it is not a namespace".to_owned(),
        };
        Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, is)).step(&what, path)
    };
    namespaces.join.iter().map(open).collect()
}

/// A missing stdin reads as the host's /dev/null.
pub(crate) fn complete(stdio: Stdio) -> Result<Stdio, SetupError> {
    match stdio {
        Stdio::Pipes { stdin: None, stdout, stderr } => {
            let null = File::open("/dev/null").step("opening", "/dev/null")?;
            Ok(Stdio::Pipes { stdin: Some(null.into()), stdout, stderr })
        }
        other => Ok(other),
    }
}

/// Clones a process that the kernel kills as readily as `score` says when memory runs out.
///
/// A user's own process is out of his reach once it is undumpable: it is born with the score, which is the maker's for
/// that moment.
pub(crate) fn scored<E: From<SetupError>>(
    score: Option<i32>,
    warnings: &mut Vec<Warning>,
    clone: impl FnOnce() -> Result<Spawned, E>,
) -> Result<Spawned, E> {
    const OWN: &str = "/proc/self/oom_score_adj";
    let Some(score) = score else { return clone() };
    if rustix::process::geteuid().is_root() {
        let spawned = clone()?;
        set_oom_score(&spawned, score, warnings)?;
        return Ok(spawned);
    }
    let before = std::fs::read_to_string(OWN).step("reading", OWN)?;
    match std::fs::write(OWN, score.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            warnings.push(not_lowered(score, &error));
            return clone();
        }
        other => other.step("setting oom_score_adj", OWN)?,
    }
    let spawned = clone();
    // Everybody may go back to where somebody with privileges has put him.
    let back = std::fs::write(OWN, before.trim_end()).step("setting oom_score_adj back", OWN);
    if let Err(error) = back {
        spawned.iter().for_each(|spawned| _ = spawn::abandon(spawned));
        return Err(error.into());
    }
    spawned
}

fn not_lowered(score: i32, error: &std::io::Error) -> Warning {
    Warning { what: format!("setting oom_score_adj to {score}"), errno: error.raw_os_error() }
}

/// Sets how readily the kernel kills the process when memory runs out. Lowering the value needs CAP_SYS_RESOURCE: where
/// that is refused the container runs with what it inherits, and a warning says so.
///
/// Done by the maker: the process itself is undumpable, so that its own files of /proc are not its own.
fn set_oom_score(spawned: &Spawned, score: i32, warnings: &mut Vec<Warning>) -> Result<(), SetupError> {
    let path = format!("/proc/{}/oom_score_adj", spawned.child.pid.as_raw_nonzero());
    match std::fs::write(&path, score.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            warnings.push(not_lowered(score, &error));
            Ok(())
        }
        // It has ended already: what it said on the way tells more.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            spawn::abandon(spawned);
            Err(error).step("setting oom_score_adj", path)
        }
        Ok(()) => Ok(()),
    }
}
