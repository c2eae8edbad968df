//! Hooks: programs of the host, or of the container, that run at six points of its life and are told its state.
//!
//! ```text
//!   create   mounts attached -> prestart, createRuntime    maker's namespaces       its failure undoes the creation
//!                            -> createContainer            container's, old root    the same
//!            pivot_root, ready, word of the start
//!   start                    -> startContainer             container's              the container stops
//!            execve          -> poststart                  starter's                the container stops
//!   delete   cgroup removed  -> poststop                   deleter's                is a warning
//! ```
//!
//! Source: runtime-spec, config.md, POSIX-platform Hooks, and runtime.md, Lifecycle.

use std::ffi::CString;
use std::fmt;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use oci_spec::runtime::{ContainerState, Hook as HookSpec, Hooks as HooksSpec, Spec, State};
use portreeve_sys::clone::{Child, Clone3, clone3};
use portreeve_sys::process::{Exit, Pid, pidfd_send_signal, wait};
use portreeve_sys::{exec, fd, process};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Signal, kill_process_group};

use crate::create::{self, RootFs};
use crate::plan::PlanError;

/// The directory of a bundle in which layers are attached for hooks.
pub(crate) const ROOTFS: &str = "rootfs";

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    /// Where the container is in its life by then.
    fn status(self) -> ContainerState {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => ContainerState::Creating,
            Self::StartContainer => ContainerState::Created,
            Self::Poststart => ContainerState::Running,
            Self::Poststop => ContainerState::Stopped,
        }
    }

    /// Whether the container's mounts have to be there, and its old root too.
    fn precedes_pivot(self) -> bool {
        matches!(self, Self::Prestart | Self::CreateRuntime | Self::CreateContainer)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// A hook that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("running the {hook}: {reason}")]
pub struct HookError {
    /// Which: its point, its place there from 1 on, and its path.
    pub hook: String,
    /// What it did, and the end of what it said.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hook {
    point: Point,
    /// For errors.
    name: String,
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    timeout: Option<Duration>,
}

/// What hooks of a point run under, beyond the configuration.
#[derive(Clone, Copy, Default)]
pub(crate) struct Terms<'a> {
    /// The container's process, as a descriptor: when it ends, a hook that still runs is killed.
    pub(crate) alive: Option<BorrowedFd<'a>>,
    /// What the hook's own process does last before it executes it.
    pub(crate) confine: Option<&'a dyn Fn() -> io::Result<()>>,
    /// When it is killed, also before its own timeout.
    pub(crate) until: Option<Instant>,
}

/// What a hook that runs beside the container does last before it is executed: a maker that lives in other namespaces than
/// its hooks are to see enters theirs. It is done in a process of the hook's own; an error is the hook's.
#[derive(Clone, Copy)]
pub struct Outside<'a>(pub &'a dyn Fn() -> io::Result<()>);

impl fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outside")
    }
}

/// The hooks that whoever holds a container runs when it has been created: `poststart` and `poststop`.
#[derive(Debug, Clone)]
pub struct LaterHooks(Hooks);

impl LaterHooks {
    /// Those of a configuration; `None` when it has none of the two.
    ///
    /// `id` and `bundle` are what they are told about the container.
    ///
    /// # Errors
    /// [`PlanError`] for a hook that cannot be run, whatever its point.
    pub fn of(spec: &Spec, id: &str, bundle: &Path) -> Result<Option<Self>, PlanError> {
        let mut hooks = Hooks::plan(spec.hooks().as_ref(), create::state(spec, ContainerState::Creating))?;
        hooks.hooks.retain(|hook| matches!(hook.point, Point::Poststart | Point::Poststop));
        Ok((!hooks.hooks.is_empty()).then(|| Self(hooks.about(id, bundle))))
    }

    /// Runs the `poststart` hooks, up to the first that fails: the container is to be stopped then.
    ///
    /// `pid` is its first process; hooks that still run at `until` are killed.
    ///
    /// # Errors
    /// [`HookError`] of the one that failed.
    pub fn run_poststart(&self, pid: Pid, outside: Outside<'_>, until: Instant) -> Result<(), HookError> {
        let terms = Terms { confine: Some(outside.0), until: Some(until), ..Terms::default() };
        self.0.run(Point::Poststart, pid.as_raw_nonzero().get(), terms)
    }

    /// Runs the `poststop` hooks, also after one that fails; what failed is the answer.
    ///
    /// Hooks that still run at `until` are killed, and fail.
    #[must_use]
    pub fn run_poststop(&self, outside: Outside<'_>, until: Instant) -> Vec<HookError> {
        let terms = Terms { confine: Some(outside.0), until: Some(until), ..Terms::default() };
        self.0.each(Point::Poststop, None, terms).filter_map(Result::err).collect()
    }
}

/// The hooks of a container, in the order of the configuration, and what they are told about it.
#[derive(Debug, Clone)]
pub(crate) struct Hooks {
    hooks: Vec<Hook>,
    /// But for the status, which follows from the point.
    state: State,
    /// How long those of a point may take together, whatever each of them may.
    within: Option<Duration>,
}

impl Hooks {
    /// Reads `hooks`; nothing is run, and the file system is not looked at.
    pub(crate) fn plan(spec: Option<&HooksSpec>, state: State) -> Result<Self, PlanError> {
        let mut hooks = Vec::new();
        if let Some(spec) = spec {
            let points = [
                (Point::Prestart, spec.prestart()),
                (Point::CreateRuntime, spec.create_runtime()),
                (Point::CreateContainer, spec.create_container()),
                (Point::StartContainer, spec.start_container()),
                (Point::Poststart, spec.poststart()),
                (Point::Poststop, spec.poststop()),
            ];
            for (point, list) in points {
                for (index, hook) in list.as_deref().unwrap_or_default().iter().enumerate() {
                    hooks.push(read(point, index, hook)?);
                }
            }
        }
        Ok(Self { hooks, state, within: None })
    }

    /// The same hooks, which are told about the container of this name and bundle.
    pub(crate) fn about(mut self, id: &str, bundle: &Path) -> Self {
        self.state.set_id(id.to_owned()).set_bundle(bundle.to_owned());
        self
    }

    /// The same hooks, where those of a point have only so long together.
    pub(crate) fn within(self, within: Option<Duration>) -> Self {
        Self { within, ..self }
    }

    /// When those that begin now have to have ended.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.within.and_then(|within| Instant::now().checked_add(within))
    }

    /// What they are told, but for the process.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn any_at(&self, point: Point) -> bool {
        self.hooks.iter().any(|hook| hook.point == point)
    }

    /// Where the container's root file system is attached for its hooks to find; `None` when none looks for it.
    ///
    /// Layers have no place of their own: they are attached in the bundle, in the directory that [`Create::bundle`] names.
    ///
    /// [`Create::bundle`]: crate::Create::bundle
    pub(crate) fn place(&self, rootfs: &RootFs, own_mounts: bool) -> Result<Option<PathBuf>, PlanError> {
        match rootfs {
            // Its hooks would run in the container's root.
            _ if !own_mounts && self.any_at(Point::CreateContainer) => {
                Err(PlanError::new("hooks.createContainer", "needs a new mount namespace"))
            }
            _ if !own_mounts || !self.any_before_pivot() => Ok(None),
            RootFs::Directory(path) => Ok(Some(path.clone())),
            RootFs::Overlay { .. } if self.state.bundle().as_os_str().is_empty() => Err(PlanError::new(
                "hooks",
                "those of the creation need a bundle, in which they find the root file system",
            )),
            RootFs::Overlay { .. } => Ok(Some(self.state.bundle().join(ROOTFS))),
        }
    }

    /// Whether a hook wants to see the container's mounts from outside its root.
    pub(crate) fn any_before_pivot(&self) -> bool {
        self.hooks.iter().any(|hook| hook.point.precedes_pivot())
    }

    /// Runs those of a point, in their order, up to the first that fails. `pid` is the container's process, as the
    /// caller's PID namespace has it.
    pub(crate) fn run(&self, point: Point, pid: i32, terms: Terms<'_>) -> Result<(), HookError> {
        self.each(point, Some(pid), terms).collect()
    }

    /// Runs those of a point, also after one that fails, for a container without a process.
    pub(crate) fn run_all(&self, point: Point) -> Vec<HookError> {
        self.each(point, None, Terms::default()).filter_map(Result::err).collect()
    }

    fn each(&self, point: Point, pid: Option<i32>, terms: Terms<'_>) -> impl Iterator<Item = Result<(), HookError>> {
        let mut state = self.state.clone();
        state.set_status(point.status()).set_pid(pid);
        // The bundle is a directory of the host.
        let directory = (point != Point::StartContainer).then(|| state.bundle().clone());
        self.hooks.iter().filter(move |hook| hook.point == point).map(move |hook| {
            let ran = serde_json::to_vec(&state).map_err(io::Error::from);
            ran.and_then(|state| hook.run(&state, directory.as_deref(), terms))
                .unwrap_or_else(|error| Err(error.to_string()))
                .map_err(|reason| HookError { hook: hook.name.clone(), reason })
        })
    }
}

fn read(point: Point, index: usize, hook: &HookSpec) -> Result<Hook, PlanError> {
    let field = |name: &str| format!("hooks.{point}[{index}].{name}");
    let text = |name: &str, text: &str| CString::new(text).map_err(|_| PlanError::new(field(name), "has a NUL byte"));
    let texts = |name: &str, list: &Option<Vec<String>>| -> Result<Vec<CString>, PlanError> {
        list.iter().flatten().map(|one| text(name, one)).collect()
    };
    let path = hook.path().to_str().ok_or_else(|| PlanError::new(field("path"), "is not text"))?;
    if !path.starts_with('/') {
        return Err(PlanError::new(field("path"), format!("{path:?} is not an absolute path")));
    }
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Some(Duration::from_secs(seconds)),
            _ => return Err(PlanError::new(field("timeout"), format!("{seconds} is not above zero"))),
        },
    };
    let name = format!("{point} hook {} ({path})", index + 1);
    let path = text("path", path)?;
    let mut arguments = texts("args", hook.args())?;
    if arguments.is_empty() {
        arguments.push(path.clone());
    }
    Ok(Hook { point, name, path, arguments, environment: texts("env", hook.env())?, timeout })
}

impl Hook {
    /// Runs it; the inner error says what it did wrong, the outer one what the kernel refused us.
    fn run(&self, state: &[u8], directory: Option<&Path>, terms: Terms<'_>) -> io::Result<Result<(), String>> {
        // A file and no pipe: a hook that does not read it holds nobody up.
        let stdin = fd::sealed_memory(c"state", state)?;
        rustix::fs::seek(&stdin, rustix::fs::SeekFrom::Start(0))?;
        let (output, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let child = clone3(&Clone3::default(), || self.execute(&stdin, &theirs, directory, terms))?;
        drop(theirs);
        let mut said = Tail::default();
        let end = self.await_end(&child, output, terms, &mut said)?;
        let killed = "and was killed with all of its process group";
        Ok(match end {
            End::Itself(Exit::Code(0)) => Ok(()),
            End::Itself(Exit::Code(code)) => Err(format!("it ended with code {code}{said}")),
            End::Itself(Exit::Signal(signal)) => Err(format!("it was killed by signal {signal}{said}")),
            End::TimedOut => {
                let seconds = self.timeout.unwrap_or_default().as_secs();
                Err(format!("it timed out after {seconds} s, {killed}{said}"))
            }
            End::Late => Err(format!("it still ran when the time that hooks have together was over, {killed}{said}")),
            End::Outlived => Err(format!("it still ran when the container's process had ended, {killed}{said}")),
        })
    }

    /// Runs in a clone; answers only when there was nothing to execute.
    fn execute(&self, stdin: &OwnedFd, output: &OwnedFd, directory: Option<&Path>, terms: Terms<'_>) -> i32 {
        let ready = || -> io::Result<()> {
            // So that it can be ended together with what it starts.
            rustix::process::setpgid(None, None)?;
            process::reset_signals()?;
            rustix::process::umask(Mode::from_raw_mode(0o022));
            if let Some(directory) = directory.filter(|directory| !directory.as_os_str().is_empty()) {
                rustix::process::chdir(directory)?;
            }
            // Copies above the numbers that are about to be replaced.
            let copies = [stdin, output, output].map(|stream| fd::duplicate_above(stream.as_fd(), 3));
            for (number, copy) in (0..).zip(copies) {
                process::place_fd(&copy?, number)?;
            }
            fd::close_on_exec_from(3)?;
            terms.confine.map_or(Ok(()), |confine| confine())
        };
        let error = ready().err().unwrap_or_else(|| exec::execve(&self.path, &self.arguments, &self.environment));
        // Into what it says; who does not hear that sees the code.
        let _ = writeln!(io::stderr(), "executing it: {error}");
        127
    }

    /// Waits for its end, not for that of what it leaves behind.
    fn await_end(&self, child: &Child, output: OwnedFd, terms: Terms<'_>, said: &mut Tail) -> io::Result<End> {
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let first = [deadline, terms.until].into_iter().flatten().min();
        let mut output = Some(output);
        loop {
            let left = first.map(|first| first.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                end(child)?;
                return Ok(if first == deadline { End::TimedOut } else { End::Late });
            }
            let fds = [Some(child.pidfd.as_fd()), terms.alive, output.as_ref().map(AsFd::as_fd)];
            let [ended, outlived, heard] = ready(fds, left)?;
            if heard && output.as_ref().is_some_and(|output| !said.hear(output)) {
                output = None;
            }
            if ended {
                // What it said last.
                output.iter().for_each(|output| _ = said.hear(output));
                return wait(child.pidfd.as_fd()).map(End::Itself);
            }
            if outlived {
                end(child)?;
                return Ok(End::Outlived);
            }
        }
    }
}

/// How a hook ended.
enum End {
    Itself(Exit),
    /// It took too long, and was killed.
    TimedOut,
    /// It and others of its point took too long together, and it was killed.
    Late,
    /// The container's process ended before it, and it was killed.
    Outlived,
}

/// Kills a hook with its process group, which has its number until it is reaped.
fn end(child: &Child) -> io::Result<()> {
    match kill_process_group(child.pid, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    // It may not have come as far as having a group.
    pidfd_send_signal(child.pidfd.as_fd(), Signal::KILL.as_raw())?;
    wait(child.pidfd.as_fd()).map(drop)
}

/// Which of these can be read, where a pidfd can when its process has ended.
fn ready(fds: [Option<BorrowedFd<'_>>; 3], left: Option<Duration>) -> io::Result<[bool; 3]> {
    let mut sets: Vec<PollFd<'_>> = fds.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout = left.map_or(PollTimeout::NONE, |left| {
        // Rounded up, so that nothing is left when it is over.
        let milliseconds = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    });
    match nix::poll::poll(&mut sets, timeout) {
        Err(nix::errno::Errno::EINTR) => return Ok([false; 3]),
        other => other?,
    };
    let mut any = sets.iter().map(|set| set.any().unwrap_or(true));
    Ok(fds.map(|fd| fd.is_some() && any.next().unwrap_or(false)))
}

/// The end of what a hook says.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

/// As much of it is kept: it goes into an error, which may have to pass a handshake.
const KEPT: usize = 2048;

impl Tail {
    /// Takes what is there; `false` when nothing can come any more.
    fn hear(&mut self, output: &OwnedFd) -> bool {
        // What a pipe holds: all of it is heard at once.
        let mut buffer = vec![0; 1 << 16];
        match rustix::io::read(output, &mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.0.extend(buffer.iter().take(length));
                self.0.drain(..self.0.len().saturating_sub(KEPT));
                true
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.0);
        match text.trim() {
            "" => Ok(()),
            text => write!(f, ", and said: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(hooks: Value) -> Result<Hooks, String> {
        let spec: HooksSpec = serde_json::from_value(hooks).expect("hooks");
        Hooks::plan(Some(&spec), State::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_its_field() {
        let cases = [
            (json!({"prestart": [{"path": "bin/x"}]}), "hooks.prestart[0].path: \"bin/x\" is not an absolute path"),
            (
                json!({"poststop": [{"path": "/x"}, {"path": ""}]}),
                "hooks.poststop[1].path: \"\" is not an absolute path",
            ),
            (json!({"poststart": [{"path": "/x", "timeout": 0}]}), "hooks.poststart[0].timeout: 0 is not above zero"),
            (
                json!({"createRuntime": [{"path": "/x", "timeout": -1}]}),
                "hooks.createRuntime[0].timeout: -1 is not above zero",
            ),
            (
                json!({"startContainer": [{"path": "/x", "args": ["a\0"]}]}),
                "hooks.startContainer[0].args: has a NUL byte",
            ),
            (
                json!({"createContainer": [{"path": "/x", "env": ["A=\0"]}]}),
                "hooks.createContainer[0].env: has a NUL byte",
            ),
        ];
        for (hooks, expected) in cases {
            assert_eq!(planned(hooks).expect_err("refused"), expected);
        }
    }

    #[test]
    fn only_hooks_that_want_the_old_root_delay_its_change() {
        let of = |kind: &str| planned(json!({ kind: [{"path": "/x"}] })).expect("planned").any_before_pivot();
        let delaying = ["prestart", "createRuntime", "createContainer"].map(of);
        assert_eq!((delaying, ["startContainer", "poststart", "poststop"].map(of)), ([true; 3], [false; 3]));
    }

    #[test]
    fn a_hook_without_arguments_is_given_its_path() {
        let hooks = planned(json!({"poststop": [{"path": "/x"}]})).expect("planned");
        assert_eq!(hooks.hooks.first().expect("one").arguments, [c"/x".to_owned()]);
    }
}
