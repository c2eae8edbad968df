//! Containers that outlive the process that made them: a directory per container, and what can be done to one.
//!
//! ```text
//!   <root>/<id>/config.json   what it was made from, byte for byte; an update changes it
//!               state.json    its record: cgroup, process; written before the cgroup is made, and with the process
//!               start.sock    where its process waits for the start
//!               waiting       locked by the process while it waits
//!               lock          locked by whoever makes, starts, changes or deletes it
//!               standstill    locked by a call for whose time the processes are frozen
//!
//!            create                  start                  end of the process
//!   Creating ------> Created -----------------> Running ------------------------> Stopped --delete--> (gone)
//!      |                |                         |  ^                               ^
//!      | maker dies     | kill        pause/resume v  |                               |
//!      +----------------+---------------------> Paused, until resumed ----------------+
//! ```
//!
//! One that is being made is not waited for: what needs the lock is refused then, so that a hook of the creation that asks
//! for it does not wait for itself; nor is one that is being deleted, while its last hooks run. A deletion by force waits
//! for the maker, whose process it has killed before.
//!
//! No state is stored: it follows from the process, the two locks and the cgroup, which the kernel keeps right when a
//! runtime is killed at any moment. A maker that dies leaves nothing that waits: the container's process ends with it
//! until its record is written.
//!
//! **Invariant:** a process is found by its id and the time of its beginning, and then used as a descriptor.
//! **Invariant:** a cgroup that was there before the container was empty then, and stays when the container goes.

mod checkpoint;
mod delete;
mod processes;
mod rdt;
mod record;
mod restore;
mod standstill;
mod status;
mod store;
mod update;

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{ContainerState, Spec};
use portreeve_sys::process::pidfd_send_signal;
use portreeve_sys::self_exe::ReadOnlyPlace;

use crate::Pid;
use crate::cgroup::{Below, Cgroup, CgroupError};
use crate::config::{self, ConfigError};
use crate::create::Pivot;
use crate::criu::CriuError;
use crate::error::{CreateError, ExecError, StartError, Warning};
use crate::exec::{ContainerRef, Exec, Execed, exec};
use crate::gate;
use crate::hooks::{Hooks, Point, Terms};
use crate::stdio::Stdio;

pub use checkpoint::{CheckpointOptions, Dumped, dump};
pub use rdt::RdtChange;
pub use record::{ProcessRecord, Record};
pub use restore::RestoreOptions;
pub use store::Root;

/// Name of a container: 1 to 255 of the characters `A-Z a-z 0-9 _ + - .`, and neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(String);

impl Id {
    /// Checks a name.
    ///
    /// # Errors
    /// [`LifecycleError::Id`].
    pub fn parse(text: &str) -> Result<Self, LifecycleError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
        if (1..=255).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".." {
            Ok(Self(text.to_owned()))
        } else {
            Err(LifecycleError::Id { text: text.to_owned() })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How to make a container, beyond what its bundle says.
#[derive(Debug)]
#[non_exhaustive]
pub struct CreateOptions<'a> {
    /// Its standard streams.
    pub stdio: Stdio,
    /// Descriptors that the program gets as 3, 4, and so on.
    pub extra_fds: Vec<OwnedFd>,
    /// Keep the caller's session keyring instead of giving the container a new one.
    pub keep_keyring: bool,
    /// How its root file system becomes its root.
    pub pivot: Pivot,
    /// Its cgroup.
    pub cgroup: CgroupChoice,
    /// Name of the systemd scope in which that cgroup lies: kept in the container's record, for who deletes it.
    pub scope: Option<String>,
    /// Whether the caller lacks the privileges of the host's root.
    pub rootless: Rootless,
    /// The container's process ends when its [`Container`] is dropped, or the caller ends, before the start: for a
    /// caller that starts it itself.
    pub hold: bool,
    /// As [`Create::executable`](crate::Create::executable).
    pub executable: Option<&'a ReadOnlyPlace>,
}

impl CreateOptions<'_> {
    /// What the bundle says, and nothing else.
    #[must_use]
    pub fn new(stdio: Stdio) -> Self {
        Self {
            stdio,
            extra_fds: Vec::new(),
            keep_keyring: false,
            pivot: Pivot::PivotRoot,
            cgroup: CgroupChoice::FromConfig,
            scope: None,
            rootless: Rootless::No,
            hold: false,
            executable: None,
        }
    }
}

/// Which cgroup a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupChoice {
    /// That of `linux.cgroupsPath`; below the caller's own when the path is relative or absent.
    FromConfig,
    /// This one, an absolute path below the hierarchy's root.
    Path(String),
    /// None of its own: it stays in the caller's, without limits.
    None,
}

/// Whether the caller lacks the privileges of the host's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rootless {
    /// It lacks them.
    Yes,
    /// It has them.
    No,
}

/// A container that has just been made.
#[derive(Debug)]
#[non_exhaustive]
pub struct CreatedContainer {
    /// The container.
    pub container: Container,
    /// Its first process, a child of the caller.
    pub pidfd: OwnedFd,
    /// The same process.
    pub pid: Pid,
    /// Master side of its terminal, for [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// What this machine refused and the container can live without.
    pub warnings: Vec<Warning>,
}

/// A further process to run in a container.
#[derive(Debug)]
#[non_exhaustive]
pub struct ExecRequest {
    /// What to run.
    pub process: oci_spec::runtime::Process,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Descriptors that the program gets as 3, 4, and so on.
    pub extra_fds: Vec<OwnedFd>,
    /// Keep the caller's session keyring instead of giving the process a new one.
    pub keep_keyring: bool,
    /// Cgroups below the container's, for those hierarchies that they name.
    pub below: Vec<Below>,
    /// Wait in a paused container until it goes on, instead of failing.
    pub while_paused: bool,
}

impl ExecRequest {
    /// A process with no further descriptors and a session keyring of its own.
    #[must_use]
    pub fn new(process: oci_spec::runtime::Process, stdio: Stdio) -> Self {
        Self { process, stdio, extra_fds: Vec::new(), keep_keyring: false, below: Vec::new(), while_paused: false }
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is being made.
    Creating,
    /// Its process waits for the start.
    Created,
    /// Its program runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended, or its maker before there was one.
    Stopped,
}

/// A container, by the files of its directory.
#[derive(Debug)]
pub struct Container {
    id: Id,
    path: PathBuf,
    directory: OwnedFd,
    record: Record,
    /// Its configuration, once it has been read.
    spec: OnceCell<Spec>,
    /// What its deletion cannot do, because the record cannot be read.
    lost: Option<String>,
    /// The maker's end of the handshake, where the process is held by its maker.
    held: Option<OwnedFd>,
}

impl Container {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// What is kept of it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The configuration it was made from, or that an update has left; read once.
    ///
    /// # Errors
    /// [`LifecycleError::File`], [`LifecycleError::Config`].
    pub fn spec(&self) -> Result<&Spec, LifecycleError> {
        if let Some(spec) = self.spec.get() {
            return Ok(spec);
        }
        let read = config::own(self.read(config::NAME, config::LIMIT)?)?.spec;
        Ok(self.spec.get_or_init(|| read))
    }

    /// Its cgroup; `None` for one that stayed in its maker's.
    ///
    /// # Errors
    /// [`LifecycleError::Cgroup`].
    pub fn cgroup(&self) -> Result<Option<Cgroup>, LifecycleError> {
        Ok(self.record.cgroup.as_deref().map(Cgroup::at).transpose()?)
    }

    /// Lets a created container's process execute its program; returns when it has.
    ///
    /// # Errors
    /// [`LifecycleError::Status`] and [`LifecycleError::NoProcess`], which change nothing; [`LifecycleError::Start`], when
    /// the container has stopped, also because a hook of the start failed.
    pub fn start(&self) -> Result<(), LifecycleError> {
        let (hooks, pid) = self.locked("start", "created", &[Status::Created], |this| {
            if !this.record.startable {
                return Err(LifecycleError::NoProcess { id: this.id.0.clone() });
            }
            let hooks = this.hooks()?;
            let visit;
            let socket = match &this.held {
                Some(held) => held,
                None => {
                    visit = gate::knock(this.directory.as_fd()).map_err(|error| this.not_begun(error))?;
                    &visit
                }
            };
            match gate::open(this.directory.as_fd(), socket.as_fd()) {
                Err(error @ StartError::Gone) if this.held.is_some() => return Err(this.not_begun(error)),
                Err(error) => {
                    // Why it did not start says more than how long it took to end.
                    let _ended = this.await_end();
                    return Err(error.into());
                }
                Ok(()) => {}
            }
            if let Some(process) = this.record.process
                && process.never_executed()
            {
                let _ended = this.await_end();
                return Err(StartError::Silent.into());
            }
            Ok((hooks, this.record.process.map_or(0, |process| process.pid)))
        })?;
        // Without the lock: hooks take their time, and may ask the runtime for something themselves.
        hooks.run(Point::Poststart, pid, Terms::default()).map_err(|mut error| {
            // Source: runtime-spec, runtime.md, Lifecycle, step 9: the container is stopped then.
            if let Err(left) = self.stop() {
                error.reason.push_str(&format!("; and the container could not be stopped: {left}"));
            }
            StartError::Hook(error).into()
        })
    }

    /// Why its process cannot be told to start. When it is not at the gate any more, another one, who was killed since, may
    /// have started it: it executes its program just now.
    fn not_begun(&self, error: StartError) -> LifecycleError {
        if !matches!(error, StartError::Gone) {
            return error.into();
        }
        let settled = gate::settle(self.directory.as_fd()).map_err(LifecycleError::from);
        let status = settled.and_then(|()| self.expect("start", "created", &[Status::Created]));
        status.err().unwrap_or_else(|| error.into())
    }

    /// Ends its processes, unless somebody has deleted it: its cgroup may be another's by now.
    fn stop(&self) -> Result<(), LifecycleError> {
        let _lock = match self.lock() {
            Err(LifecycleError::NotFound { .. }) => return Ok(()),
            other => other?,
        };
        if self.is_removed()? { Ok(()) } else { self.end() }
    }

    /// The hooks of its configuration.
    fn hooks(&self) -> Result<Hooks, LifecycleError> {
        let state = self.state_at(ContainerState::Creating);
        Ok(Hooks::plan(self.record.hooks.as_ref(), state).map_err(CreateError::from)?)
    }

    /// Sends a signal, by number, to its first process, or with `all` to every process in its cgroup, which for a
    /// container without a PID namespace of its own can outlive the first: there SIGKILL is for all of them in any case.
    /// Without a cgroup, those of its PID namespace.
    ///
    /// # Errors
    /// [`LifecycleError::Status`] for a container that does not run, with `all` for one that is being made;
    /// [`LifecycleError::Signal`].
    pub fn kill(&self, signal: i32, all: bool) -> Result<(), LifecycleError> {
        let failed = |source| LifecycleError::Signal { id: self.id.0.clone(), signal, source };
        let runs = || self.expect("kill", "created or running", &[Status::Created, Status::Running, Status::Paused]);
        if all {
            let told = |error| match error {
                Failed::Cgroup(error) => error.into(),
                Failed::Signal(error) => failed(error),
            };
            let Some(cgroup) = self.cgroup()? else {
                if self.record.process.is_some() && self.process()?.is_none() {
                    return Ok(());
                }
                runs()?;
                if !self.has_own_pids()? {
                    let why =
                        "it has neither a cgroup nor a PID namespace, by which all of its processes could be found";
                    return Err(failed(io::Error::other(why)));
                }
                return self.signal_each(signal).map_err(told);
            };
            if self.record.process.is_none() {
                runs()?;
            }
            // Of what has ended already nothing is left to signal: shims ask for it to be sure.
            return self.signal_all(&cgroup, signal, told);
        }
        runs()?;
        pidfd_send_signal(self.pidfd()?.as_fd(), signal).map_err(failed)?;
        if signal != SIGKILL {
            return Ok(());
        }
        self.thaw()?;
        match self.cgroup()? {
            // Where it cannot be read whether it shares them, none is to be left.
            Some(cgroup) if !self.has_own_pids().unwrap_or(false) => Ok(cgroup.kill_all()?),
            _ => Ok(()),
        }
    }

    /// Lets frozen processes end that have been killed. Said after the signal: it may have been frozen just before. Where
    /// it is not needed it is not done: whoever freezes them meanwhile would wait for what was undone.
    fn thaw(&self) -> Result<(), LifecycleError> {
        self.cgroup()?.map_or(Ok(()), |cgroup| Ok(cgroup.release_the_killed()?))
    }

    /// Freezes its processes.
    ///
    /// # Errors
    /// [`LifecycleError::Status`], [`LifecycleError::Cgroup`].
    pub fn pause(&self) -> Result<(), LifecycleError> {
        let good = [Status::Created, Status::Running];
        self.locked("pause", "created or running", &good, |this| {
            let cgroup = this.own_cgroup("pause")?;
            // Who freezes them for a call's time would thaw them as well.
            let standstill = this.standstill()?;
            cgroup.freeze()?;
            drop(standstill);
            // On version 1 it would stand still for ever; who has killed it may have looked before it stood.
            if this.is_killed()? {
                cgroup.thaw()?;
                this.await_end()?;
                return this.expect("pause", "created or running", &good);
            }
            Ok(())
        })
    }

    /// Whether its first process has SIGKILL before it. Source: proc_pid_status(5), `ShdPnd`.
    fn is_killed(&self) -> Result<bool, LifecycleError> {
        let Some(process) = self.record.process else { return Ok(false) };
        let text = match std::fs::read_to_string(format!("/proc/{}/status", process.pid)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => return Ok(true),
            other => other.map_err(|error| self.file("looking for signals of the process of", "", error))?,
        };
        let pending = text.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        Ok(pending & (1 << (SIGKILL - 1)) != 0)
    }

    /// Lets its frozen processes go on.
    ///
    /// # Errors
    /// [`LifecycleError::Status`], [`LifecycleError::Cgroup`].
    pub fn resume(&self) -> Result<(), LifecycleError> {
        self.locked("resume", "paused", &[Status::Paused], |this| Ok(this.own_cgroup("resume")?.thaw()?))
    }

    /// Runs a further process in it; the caller is as that of [`exec()`](crate::exec()).
    ///
    /// # Errors
    /// [`LifecycleError::Status`], [`LifecycleError::Exec`].
    pub fn exec(&self, request: ExecRequest) -> Result<Execed, LifecycleError> {
        let ExecRequest { process, stdio, extra_fds, keep_keyring, below, while_paused } = request;
        let allowed = [Status::Created, Status::Running, Status::Paused];
        let allowed = allowed.get(..if while_paused { 3 } else { 2 }).unwrap_or_default();
        self.expect("execute a process in", "created or running", allowed)?;
        let (pidfd, spec, cgroup) = (self.pidfd()?, self.spec()?, self.cgroup()?);
        let with_clocks = self.record.restored.then(|| restore::with_clocks(spec.clone()));
        let spec = with_clocks.as_ref().unwrap_or(spec);
        if cgroup.is_none() && !below.is_empty() {
            return Err(LifecycleError::NoCgroup { id: self.id.0.clone(), verb: "choose a cgroup below that of" });
        }
        let container = ContainerRef { pidfd: pidfd.as_fd(), spec, cgroup: cgroup.as_ref() };
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let heard = seccomp.is_some_and(|profile| profile.listener_path().is_some());
        let state = if heard { Some(self.state()?) } else { None };
        Ok(exec(Exec { extra_fds, keep_keyring, below: &below, state, ..Exec::new(container, &process, stdio) })?)
    }

    /// Signals every process of a cgroup, those that fork meanwhile included.
    fn signal_all(
        &self,
        cgroup: &Cgroup,
        signal: i32,
        told: impl Fn(Failed) -> LifecycleError,
    ) -> Result<(), LifecycleError> {
        if signal == SIGKILL {
            return Ok(cgroup.kill_all()?);
        }
        let standstill = self.standstill_of(cgroup)?;
        // Nothing forks then; a machine without a freezer signals what is there now.
        let froze = standstill.is_some() && cgroup.freeze().is_ok();
        let signalled = cgroup.signal_each(signal);
        if froze {
            cgroup.thaw()?;
        }
        drop(standstill);
        signalled?.map_err(|error| told(Failed::Signal(error)))
    }

    fn own_cgroup(&self, verb: &'static str) -> Result<Cgroup, LifecycleError> {
        self.cgroup()?.ok_or_else(|| LifecycleError::NoCgroup { id: self.id.0.clone(), verb })
    }
}

const SIGKILL: i32 = 9;

enum Failed {
    Cgroup(CgroupError),
    Signal(io::Error),
}

impl From<CgroupError> for Failed {
    fn from(error: CgroupError) -> Self {
        Self::Cgroup(error)
    }
}

/// What is said of a process that has ended.
fn ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// What can go wrong with a container and its directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifecycleError {
    /// Not a name of a container.
    #[error(
        "{text:?} is no container id: 1 to 255 letters, digits and any of `_`, `+`, `-`, `.`, other than \".\" and \"..\""
    )]
    Id {
        /// What was given.
        text: String,
    },
    /// The name is taken.
    #[error("container {id} already exists")]
    Exists {
        /// Its name.
        id: String,
    },
    /// There is no such container.
    #[error("container {id} does not exist")]
    NotFound {
        /// The name.
        id: String,
    },
    /// The container is in a state in which this cannot be done.
    #[error("cannot {verb} container {id}: it is {status}, and has to be {wanted}")]
    Status {
        /// Its name.
        id: String,
        /// Where it is.
        status: Status,
        /// Where it would have to be.
        wanted: &'static str,
        /// What was asked for.
        verb: &'static str,
    },
    /// Its configuration has no process.
    #[error("cannot start container {id}: its configuration has no process")]
    NoProcess {
        /// Its name.
        id: String,
    },
    /// The container stayed in the cgroup of its maker.
    #[error("cannot {verb} container {id}: it has no cgroup of its own")]
    NoCgroup {
        /// Its name.
        id: String,
        /// What was asked for.
        verb: &'static str,
    },
    /// A file of the state directory or of the bundle.
    #[error("{action} {path}")]
    File {
        /// What was tried, a gerund.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The container could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its program could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A further process could not be started.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// It could not be checkpointed, or restored.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// A signal could not be sent.
    #[error("sending signal {signal} to container {id}")]
    Signal {
        /// Its name.
        id: String,
        /// Number of the signal.
        signal: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl LifecycleError {
    /// Whether it failed because CRIU is not installed, or too old.
    #[must_use]
    pub fn lacks_criu(&self) -> bool {
        matches!(self, Self::Criu(CriuError::Missing { .. } | CriuError::Old { .. }))
    }

    /// The exit code that shells and container tools use for this failure: 127 not found, 126 not executable, else 1.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start(error) => error.exit_code(),
            Self::Exec(error) => error.exit_code(),
            Self::Create(CreateError::Program(error)) => error.exit_code(),
            _ => 1,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}
