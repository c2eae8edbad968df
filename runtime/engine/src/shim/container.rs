//! A container in the shim: its first process, its streams, how it ended.
//!
//! ```text
//!   create --> Waiting --start--> Running --SIGCHLD--> Ended --delete--> (forgotten)
//!                 \----- start fails, killed ------------^
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use portreeve_oci::cgroup::Cgroup;
use portreeve_oci::{Create, CreateError, Created, LaterHooks, Outside, RootFs, Stdio, WindowSize};
use portreeve_sys::process;

use super::log::{Log, Which};
use super::output::{Progress, Source};
use super::pod::Namespaces;
use crate::Exit;
use crate::handler::Runtime;
use crate::protocol::{Answer, ContainerReport, CreateCall, ExitRecord, Failure};

/// So much of what an ended container left in its pipes is read before its exit is announced.
const LAST_READS: usize = 64;
/// All hooks of one step of a container have so long together: the shim does nothing else meanwhile, and an agent gives up
/// one that is silent for half a minute.
pub(crate) const HOOKS: Duration = Duration::from_secs(20);
/// A container's process may be silent so long, its hooks included: another one of its pod may have stopped it.
const PATIENCE: Duration = Duration::from_secs(HOOKS.as_secs() + 2);
/// The exit code of a container whose program could not be run, whatever the reason.
/// Source: containerd internal/cri/server/helpers.go, `errorStartExitCode`.
const START_ERROR: i32 = 128;

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) cgroup: Cgroup,
    directory: PathBuf,
    waiting: Option<Waiting>,
    /// What has made it, as long as that has something of it.
    foreign: Option<Runtime>,
    /// Those that are still to run: after the start, and once at the end. Another runtime runs its own.
    hooks: Option<LaterHooks>,
    started_at: Option<Timestamp>,
    exit: Option<ExitRecord>,
    /// Its program could not be run: why.
    unstartable: Option<String>,
    /// Its first process ends all others with it.
    own_pids: bool,
    log: Option<Log>,
    pub(super) outputs: [Option<Source>; 2],
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdin_once: bool,
}

/// Where it waits for its start.
#[derive(Debug)]
enum Waiting {
    /// At a socket of ours.
    Ours(Created),
    /// Wherever another runtime has it wait.
    Theirs(Runtime),
}

/// What the shim answers when a request fails.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) kind: Failure,
    pub(super) code: i32,
}

impl Refusal {
    pub(super) fn new(kind: Failure, message: impl Into<String>) -> Self {
        Self { message: crate::error::shortened(message.into()), kind, code: 0 }
    }

    pub(super) fn of(error: &dyn std::error::Error) -> Self {
        Self::new(Failure::Other, crate::error::chain(error))
    }

    pub(super) fn context(action: &str, error: &dyn std::error::Error) -> Self {
        Self::new(Failure::Other, format!("{action}: {}", crate::error::chain(error)))
    }

    pub(super) fn answer(self) -> Answer {
        Answer::Failed { message: self.message, kind: self.kind, code: self.code }
    }
}

/// Reads a container's specification; it is big, so nobody keeps it.
pub(super) fn specification(directory: &Path) -> Result<Spec, Refusal> {
    let path = directory.join("config.json");
    let context = |error: &dyn std::error::Error| Refusal::context(&format!("reading {}", path.display()), error);
    let bytes = fs::read(&path).map_err(|error| context(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| context(&error))
}

impl Container {
    /// Sets it up, up to but not including its program; hooks beside it run where `namespaces` lead out to.
    pub(super) fn create(
        directory: PathBuf,
        call: CreateCall,
        foreign: Option<&Runtime>,
        namespaces: &Namespaces,
    ) -> Result<(Self, Vec<String>), Refusal> {
        let spec = specification(&directory)?;
        let cgroup = Cgroup::at(&call.cgroup).map_err(|error| Refusal::of(&error))?;
        let log = match call.log {
            Some(log) => {
                let path = log.path.display().to_string();
                let log = Log::open(log).map_err(|error| Refusal::context(&format!("opening log {path}"), &error))?;
                Some(log)
            }
            None => None,
        };
        let (stdio, ends) = streams(&spec, call.tty, call.stdin)
            .map_err(|error| Refusal::context("making the container's streams", &error))?;
        let rootfs = RootFs::Overlay { lower: call.rootfs.lower, upper: call.rootfs.upper, work: call.rootfs.work };
        let hooks = match foreign {
            None => LaterHooks::of(&spec, &call.container, &directory).map_err(|error| Refusal::of(&error))?,
            Some(_) => None,
        };
        let own_pids = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).is_some_and(|namespaces| {
            namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_none())
        });
        let context = |error: io::Error| Refusal::context("keeping the container's streams", &error);
        let (pid, pidfd, terminal, waiting, warnings) = match foreign {
            None => {
                let outside = || namespaces.leave();
                let mut request = Create::new(&call.container, &spec, rootfs, &cgroup, stdio);
                request.bundle.clone_from(&directory);
                request.outside = Some(Outside(&outside));
                request.hooks_within = Some(HOOKS);
                request.patience = Some(PATIENCE);
                let mut created = portreeve_oci::create(request).map_err(|error| {
                    // Nothing was begun of a specification that is refused; what other hooks have begun, these end.
                    if !matches!(error, CreateError::Plan(_) | CreateError::Seccomp(_)) {
                        run_last(&call.container, hooks.as_ref(), namespaces);
                    }
                    Refusal::of(&error)
                })?;
                let warnings: Vec<String> = created.warnings.iter().map(ToString::to_string).collect();
                let pidfd = created.pidfd.try_clone().map_err(context)?;
                let terminal = created.terminal.take();
                (created.pid.as_raw_nonzero().get(), pidfd, terminal, Waiting::Ours(created), warnings)
            }
            Some(runtime) => {
                let ears: Vec<BorrowedFd<'_>> =
                    [&ends.stdout, &ends.stderr].into_iter().flatten().map(AsFd::as_fd).collect();
                let users = namespaces.process_of_users();
                let users = users.map_err(|error| Refusal::context("finding the pod's users", &error))?;
                let made =
                    runtime.create((&call.container, &directory, &cgroup), spec, users, &rootfs, stdio, &ears)?;
                let words = Some(made.words).filter(|words| !words.is_empty());
                let waiting = Waiting::Theirs(runtime.clone());
                (made.pid, made.pidfd, made.terminal, waiting, words.into_iter().collect())
            }
        };
        let outputs = match &terminal {
            Some(master) => {
                [Some(Source::new(master.try_clone().map_err(context)?, Which::Stdout).map_err(context)?), None]
            }
            None => {
                let source = |fd: Option<OwnedFd>, which| fd.map(|fd| Source::new(fd, which)).transpose();
                [
                    source(ends.stdout, Which::Stdout).map_err(context)?,
                    source(ends.stderr, Which::Stderr).map_err(context)?,
                ]
            }
        };
        let container = Self {
            id: call.container,
            pid,
            pidfd,
            cgroup,
            directory,
            waiting: Some(waiting),
            foreign: foreign.cloned(),
            hooks,
            started_at: None,
            exit: None,
            unstartable: None,
            own_pids,
            log,
            outputs,
            terminal,
            stdin: ends.stdin,
            stdin_once: call.stdin_once,
        };
        Ok((container, warnings))
    }

    /// Executes its program. An error has been kept: the process ends, and its exit will say `StartError`.
    pub(super) fn start(&mut self, namespaces: &Namespaces) -> Result<Timestamp, Refusal> {
        if let (None, Some(started_at)) = (&self.exit, self.started_at) {
            return Ok(started_at);
        }
        let Some(waiting) = self.waiting.take() else {
            return Err(Refusal::new(Failure::Other, "the container has ended already"));
        };
        let until = Instant::now() + HOOKS;
        let mut pid = None;
        let started = match waiting {
            Waiting::Ours(created) => {
                pid = Some(created.pid);
                created.start().map_err(|error| crate::error::chain(&error))
            }
            Waiting::Theirs(runtime) => {
                let started = runtime.start(&self.id, &self.directory);
                started.map_err(|error| {
                    // What our own does by itself, when it cannot execute the program.
                    let _second_way = self.cgroup.kill_all();
                    let _gone = process::pidfd_send_signal(self.pidfd.as_fd(), nix::libc::SIGKILL);
                    crate::error::chain(&error)
                })
            }
        };
        if let Err(message) = started {
            return Err(self.unstarted(message));
        }
        let now = Timestamp::now();
        self.started_at = Some(now);
        let outside = || namespaces.leave();
        let ran = self.hooks.as_ref().zip(pid).map(|(hooks, pid)| hooks.run_poststart(pid, Outside(&outside), until));
        match ran.unwrap_or(Ok(())) {
            Ok(()) => Ok(now),
            Err(error) => {
                // Source: runtime-spec, runtime.md, Lifecycle, step 9: the container is stopped then.
                let _it_ends_anyway = self.kill(nix::libc::SIGKILL, true);
                Err(self.unstarted(crate::error::chain(&error)))
            }
        }
    }

    fn unstarted(&mut self, message: String) -> Refusal {
        let message = crate::error::shortened(message);
        // One that was stopped has not ended by itself.
        let _gone = process::pidfd_send_signal(self.pidfd.as_fd(), nix::libc::SIGKILL);
        self.unstartable = Some(message.clone());
        Refusal { message, kind: Failure::Program, code: START_ERROR }
    }

    /// Runs the hooks of its end; a second time there are none.
    pub(super) fn run_last_hooks(&mut self, namespaces: &Namespaces) {
        run_last(&self.id, self.hooks.take().as_ref(), namespaces);
    }

    /// Ends one that was never started, when hooks wait for that.
    pub(super) fn give_up(&mut self, namespaces: &Namespaces) {
        self.waiting = None;
        if self.hooks.is_some() {
            let _nothing_to_wait_for = process::has_ended(self.pidfd.as_fd(), 1000);
            self.run_last_hooks(namespaces);
        }
    }

    /// Whether its first process still is there.
    pub(super) fn alive(&self) -> bool {
        self.exit.is_none()
    }

    /// Signals its first process, or kills everything in its cgroup.
    pub(super) fn kill(&self, signal: i32, all: bool) -> Result<(), Refusal> {
        if all {
            self.cgroup.kill_all().map_err(|error| Refusal::of(&error))?;
        }
        if !self.alive() {
            return Ok(());
        }
        // The first process may stand for one that only its runtime reaches.
        if let Some(runtime) = self.foreign.as_ref().filter(|_| !all) {
            return match runtime.signal(&self.id, &self.directory, signal) {
                Err(error) if !process::has_ended(self.pidfd.as_fd(), 0).unwrap_or(false) => Err(Refusal::of(&error)),
                _ => Ok(()),
            };
        }
        match process::pidfd_send_signal(self.pidfd.as_fd(), signal) {
            // It is being killed with its cgroup, which no security module forbids.
            Err(error) if !all && error.raw_os_error() != Some(nix::libc::ESRCH) => {
                Err(Refusal::context("signalling the container", &error))
            }
            _ => Ok(()),
        }
    }

    /// Records how it ended: first what it still had to say, then durably, then the answer.
    pub(super) fn ended(&mut self, how: process::Exit) -> ExitRecord {
        let finished_at = Timestamp::now();
        if !self.own_pids {
            let _nothing_left = self.cgroup.kill_all();
        }
        for index in 0..self.outputs.len() {
            for _ in 0..LAST_READS {
                if self.pump(index) != Progress::Read {
                    break;
                }
            }
        }
        self.waiting = None;
        self.stdin = None;
        self.terminal = None;
        let mut exit = match how {
            process::Exit::Code(code) => Exit { code, ..Exit::default() },
            process::Exit::Signal(signal) => Exit { code: 128 + signal, signal: Some(signal), oom_killed: false },
        };
        let (reason, message) = match self.unstartable.take() {
            Some(message) => {
                exit = Exit { code: START_ERROR, ..Exit::default() };
                ("StartError".to_owned(), crate::error::recorded(message))
            }
            None => Default::default(),
        };
        exit.oom_killed = exit.code != 0 && self.cgroup.oom_kills().unwrap_or(0) > 0;
        let record = ExitRecord { version: 1, exit, started_at: self.started_at, finished_at, reason, message };
        if let Err(error) = write_exit(&self.directory, &record) {
            eprintln!("recording the exit of {}: {error}", self.id);
        }
        self.exit = Some(record.clone());
        record
    }

    /// Has another runtime forget it; for ours there is nothing to do.
    pub(super) fn forget(&mut self) {
        if let Some(runtime) = self.foreign.take() {
            runtime.forget_or_tell(&self.id, &self.directory);
        }
    }

    /// What has made it, when that is not our own runtime.
    pub(super) fn foreign(&self) -> Option<&Runtime> {
        self.foreign.as_ref()
    }

    /// Reads once from one of its streams.
    pub(super) fn pump(&mut self, index: usize) -> Progress {
        let Some(slot) = self.outputs.get_mut(index) else {
            return Progress::End;
        };
        let Some(source) = slot else {
            return Progress::End;
        };
        let progress = source.pump(self.log.as_mut());
        if progress == Progress::End {
            *slot = None;
        }
        progress
    }

    /// The descriptors for an attached client, in the order stdin, stdout, stderr.
    pub(super) fn attach(&mut self, stdin: bool, stdout: bool, stderr: bool) -> Result<Vec<OwnedFd>, Refusal> {
        if !self.alive() {
            return Err(Refusal::new(Failure::NotFound, "the container has ended"));
        }
        let context = |error: io::Error| Refusal::context("attaching", &error);
        let mut fds = Vec::new();
        if stdin {
            let end = self.stdin.as_ref().or(self.terminal.as_ref());
            let end = end.ok_or_else(|| Refusal::new(Failure::Other, "the container takes no input"))?;
            fds.push(end.try_clone().map_err(context)?);
            if self.stdin_once {
                // The client has the only end now: when it goes, the container's input ends.
                self.stdin = None;
            }
        }
        for (wanted, source) in [stdout, stderr].into_iter().zip(&mut self.outputs) {
            if wanted {
                let (reader, writer) = io::pipe().map_err(context)?;
                if let Some(source) = source {
                    source.attach(writer.into()).map_err(context)?;
                }
                fds.push(reader.into());
            }
        }
        Ok(fds)
    }

    /// Gives its terminal a new size.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> Result<(), Refusal> {
        match &self.terminal {
            Some(terminal) => portreeve_sys::terminal::set_size(terminal.as_fd(), rows, columns)
                .map_err(|error| Refusal::context("resizing the terminal", &error)),
            None => Ok(()),
        }
    }

    /// Opens its log anew.
    pub(super) fn reopen_log(&mut self) -> Result<(), Refusal> {
        match &mut self.log {
            Some(log) => log.reopen().map_err(|error| Refusal::context("reopening the log", &error)),
            None => Ok(()),
        }
    }

    /// What the agent is told when it asks.
    pub(super) fn report(&self) -> ContainerReport {
        ContainerReport {
            container: self.id.clone(),
            pid: u32::try_from(self.pid).unwrap_or(0),
            started_at: self.started_at,
            exit: self.exit.clone(),
            dropped_log_bytes: self.log.as_ref().map_or(0, Log::dropped),
        }
    }

    /// Its directory below the sandbox's.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its first process as a descriptor.
    pub(super) fn first(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether its program runs.
    pub(super) fn running(&self) -> bool {
        self.alive() && self.started_at.is_some()
    }
}

/// Our ends of a container's pipes.
#[derive(Debug, Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

fn streams(spec: &Spec, tty: bool, stdin: bool) -> io::Result<(Stdio, Ends)> {
    if tty {
        let size = spec.process().as_ref().and_then(|process| process.console_size()).map(|size| WindowSize {
            rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
            columns: u16::try_from(size.width()).unwrap_or(u16::MAX),
        });
        return Ok((Stdio::Terminal { size }, Ends::default()));
    }
    let (out_reader, out_writer) = io::pipe()?;
    let (err_reader, err_writer) = io::pipe()?;
    let (in_reader, in_writer) =
        if stdin { io::pipe().map(|(reader, writer)| (Some(reader), Some(writer)))? } else { (None, None) };
    Ok((
        Stdio::Pipes { stdin: in_reader.map(Into::into), stdout: out_writer.into(), stderr: err_writer.into() },
        Ends { stdin: in_writer.map(Into::into), stdout: Some(out_reader.into()), stderr: Some(err_reader.into()) },
    ))
}

/// Runs the hooks of a container's end; that one fails changes nothing any more.
fn run_last(id: &str, hooks: Option<&LaterHooks>, namespaces: &Namespaces) {
    let Some(hooks) = hooks else { return };
    let outside = || namespaces.leave();
    for error in hooks.run_poststop(Outside(&outside), Instant::now() + HOOKS) {
        eprintln!("at the end of {id}: {}", crate::error::chain(&error));
    }
}

fn write_exit(directory: &Path, record: &ExitRecord) -> io::Result<()> {
    // Not the name that an agent has for it: one that has given this shim up writes it as well.
    let temporary = directory.join("exit.json.shim");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(&temporary, directory.join("exit.json"))
}
