//! What can go wrong, by operation; set-up errors of the container's own process arrive here over the handshake.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::cgroup::CgroupError;
use crate::hooks::HookError;
use crate::plan::PlanError;
use crate::seccomp::{ListenerError, SeccompError};

/// A set-up step that failed, in the caller or in the container's own process.
#[derive(Debug, thiserror::Error)]
#[error("{operation}{}", subject(.path))]
pub struct SetupError {
    /// What was tried, for example `mounting tmpfs`.
    pub operation: String,
    /// What it was tried on; empty when there is nothing to name.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

fn subject(path: &std::path::Path) -> String {
    if path.as_os_str().is_empty() { String::new() } else { format!(" {}", path.display()) }
}

/// Why a container could not be created; nothing of it is left then.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The configuration cannot be turned into a container.
    #[error("reading the container's configuration")]
    Plan(#[from] PlanError),
    /// The seccomp profile does not compile.
    #[error("compiling the seccomp profile")]
    Seccomp(#[from] SeccompError),
    /// The container's cgroup could not be set up.
    #[error("setting up the container's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A set-up step failed.
    #[error("setting up the container")]
    Setup(#[from] SetupError),
    /// The kernel killed the container's process during its set-up because its cgroup's memory did not suffice.
    #[error(
        "the memory limit{} is too small: the kernel killed the container's process during its set-up (OOMKilled); \
         raise the limit",
        bytes(*.limit_bytes)
    )]
    OutOfMemory {
        /// The container's own limit; without one it was a cgroup's above it.
        limit_bytes: Option<i64>,
    },
    /// The listener of its seccomp filter did not reach the program that answers it.
    #[error("handing over the listener of the seccomp filter")]
    Listener(#[from] ListenerError),
    /// Its program is not there, or cannot be executed: for a container that is started by somebody else later.
    #[error(transparent)]
    Program(StartError),
    /// One of its hooks failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The container's process ended before it had said that it is ready.
    #[error("the container's process ended during its set-up ({0})")]
    Died(String),
    /// Beyond the failure itself, a link of `linux.netDevices` did not come back.
    #[error("the container could not be created, and {link} failed ({})", .link.source)]
    LinkLeft {
        /// Why the container could not be created.
        #[source]
        cause: Box<CreateError>,
        /// Why the link did not come back.
        link: SetupError,
    },
    /// Beyond the failure itself, the cgroup that had been made could not be removed.
    #[error("the container could not be created, and the cgroup made for it could not be removed ({cgroup})")]
    CgroupLeft {
        /// Why the container could not be created.
        #[source]
        cause: Box<CreateError>,
        /// Why the cgroup could not be removed.
        cgroup: CgroupError,
    },
}

fn bytes(limit: Option<i64>) -> String {
    limit.map_or_else(|| " above the container's cgroup".to_owned(), |limit| format!(" of {limit} B"))
}

/// Why a created container's program could not be started; its process has ended then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no such program in the container.
    #[error("executing {program:?} in the container: {}", missing(.search))]
    NotFound {
        /// First argument of the process.
        program: String,
        /// The directories that were searched; `not searched` for a name with a slash.
        search: String,
    },
    /// The program exists, and what it is to be run by does not.
    #[error(
        "executing {program:?} in the container: no such file or directory: its interpreter, not the file itself: \
         see the #! line of a script, and add the dynamic loader and C library that a binary was linked for"
    )]
    NoInterpreter {
        /// First argument of the process.
        program: String,
    },
    /// The program exists and cannot be executed: permission or format.
    #[error("executing {program:?} in the container")]
    NotExecutable {
        /// First argument of the process.
        program: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// One of its hooks failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A last step before execve failed.
    #[error("starting the container")]
    Setup(#[from] SetupError),
    /// The container's process is gone.
    #[error("the created container's process has gone")]
    Gone,
    /// It ended without a word and without having executed its program.
    #[error(
        "the container's process has ended before it executed its program, and could not say why: linux.seccomp may \
         forbid execve, write and exit, or process.rlimits leave too little"
    )]
    Silent,
}

/// The words by which container engines tell a missing program from other failures.
fn missing(search: &str) -> String {
    match search {
        "not searched" => "no such file or directory".to_owned(),
        search => format!("executable file not found in $PATH ({search})"),
    }
}

impl StartError {
    /// The exit code that shells and container tools use for this failure: 127 not found, 126 not executable.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } | Self::NoInterpreter { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::Setup(_) | Self::Hook(_) | Self::Gone | Self::Silent => 128,
        }
    }
}

/// Why a further process could not be started in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The process's configuration cannot be used.
    #[error("reading the process's configuration")]
    Plan(#[from] PlanError),
    /// The seccomp profile does not compile.
    #[error("compiling the seccomp profile")]
    Seccomp(#[from] SeccompError),
    /// The container's cgroup could not be joined.
    #[error("joining the container's cgroup")]
    Cgroup(#[from] CgroupError),
    /// A set-up step failed.
    #[error("setting up the process")]
    Setup(#[from] SetupError),
    /// The program did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The listener of its seccomp filter did not reach the program that answers it.
    #[error("handing over the listener of the seccomp filter")]
    Listener(#[from] ListenerError),
    /// The process ended during its set-up.
    #[error("the process ended during its set-up ({0})")]
    Died(String),
}

impl ExecError {
    /// The exit code that shells and container tools use for this failure.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start(error) => error.exit_code(),
            _ => 128,
        }
    }
}

/// Something asked for that this machine refused and that the container can live without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What was tried, or left out.
    pub what: String,
    /// The kernel's answer, where it was the kernel that refused.
    pub errno: Option<i32>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "{}: {}", self.what, io::Error::from_raw_os_error(errno)),
            None => f.write_str(&self.what),
        }
    }
}

/// Names the operation and its subject when an `io::Result` fails.
pub(crate) trait Step<T> {
    /// `what` is a gerund phrase, `path` what it acted on.
    fn step(self, what: &str, path: impl Into<PathBuf>) -> Result<T, SetupError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: &str, path: impl Into<PathBuf>) -> Result<T, SetupError> {
        self.map_err(|error| SetupError { operation: what.to_owned(), path: path.into(), source: error.into() })
    }
}
