//! Making a container: everything up to, and then including, its program's execve.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use oci_spec::runtime::Spec;

use crate::cgroup::Cgroup;
use crate::error::{CreateError, StartError, Warning};
use crate::stdio::Stdio;
use crate::Pid;

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
    pub(crate) handshake: OwnedFd,
}

impl Created {
    /// Lets the container's process execute its program; returns when it has.
    ///
    /// # Errors
    /// [`StartError`] says why the program could not be executed; the process ends then with
    /// [`StartError::exit_code`] and is still to be reaped by the caller.
    pub fn start(self) -> Result<(), StartError> {
        Err(StartError::Gone)
    }
}

/// Makes a container and returns when its process has done everything but execute its program.
///
/// The caller must be single-threaded; it becomes the parent of the container's process. Dropping the answer
/// without starting ends that process.
///
/// # Errors
/// [`CreateError`] names the step that failed; the process, if there was one, has been killed and reaped.
pub fn create(_request: Create<'_>) -> Result<Created, CreateError> {
    Err(CreateError::Died(String::new()))
}
