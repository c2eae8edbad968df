//! What is on disk: versioned JSON, one file per sandbox and per container, replaced by rename.
//!
//! ```text
//!   <run>/damaged/                  records that could not be understood, for whoever wants to know why
//!   <run>/sandboxes/<sid>/          0700
//!     sandbox.json                  phase making -> ready -> stopped
//!     intent.json                   sandbox.json as it was first: says whose the sandbox is when that is damaged
//!     shim.json shim.sock shim.log  what the shim was started with, how to reach it, what it complained about
//!     hostname resolv.conf hosts shm/  given to the containers
//!     runtime/                      what another runtime keeps of the containers
//!     containers/<cid>/
//!       container.json              phase making -> made
//!       config.json                 OCI specification
//!       rootfs/                     where hooks find its files, in its own mount namespace, and another runtime its root
//!       mounts/                     mounts for another runtime, see `handler`
//!       exit.json                   written by the shim
//! ```

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::container::ContainerConfig;
use crate::protocol::CreateCall;
use crate::sandbox::SandboxConfig;
use crate::selinux::Labels;
use crate::{ContainerId, EngineError, SandboxId};

/// The newest version that this program reads.
pub(crate) const VERSION: u64 = 1;
/// The directory of a container with hooks; `root.path` of its specification.
pub(crate) const ROOTFS: &str = "rootfs";
/// A record is never longer: a pod's annotations hold its manifest.
const LONGEST: u64 = 16 << 20;

/// How far a sandbox got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SandboxPhase {
    /// Asked for; anything of it may exist. Undone by recovery.
    Making,
    /// Whole.
    Ready,
    /// Not to run any more.
    Stopped,
}

/// `sandbox.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) version: u64,
    pub(crate) id: SandboxId,
    pub(crate) phase: SandboxPhase,
    pub(crate) config: SandboxConfig,
    pub(crate) created_at: Timestamp,
    #[serde(default)]
    pub(crate) ips: Vec<IpAddr>,
    #[serde(default)]
    pub(crate) shim_pid: Option<u32>,
    /// The cgroup of its scope, where systemd makes it.
    #[serde(default)]
    pub(crate) scope: Option<String>,
    /// The labels of its processes and files, where SELinux gives it some.
    #[serde(default)]
    pub(crate) selinux: Option<Labels>,
    /// Plugins attached it.
    #[serde(default)]
    pub(crate) plugins: bool,
    /// Why it is stopped.
    #[serde(default)]
    pub(crate) reason: String,
}

impl SandboxRecord {
    /// The cgroup that those of its containers are in.
    pub(crate) fn containers_cgroup(&self) -> &str {
        self.scope.as_deref().unwrap_or(&self.config.cgroup_parent)
    }
}

/// How far a container got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ContainerPhase {
    /// Asked for; undone by recovery.
    Making,
    /// Set up: the shim, or `exit.json`, knows the rest.
    Made,
}

/// `container.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u64,
    pub(crate) id: ContainerId,
    pub(crate) sandbox: SandboxId,
    pub(crate) phase: ContainerPhase,
    pub(crate) config: ContainerConfig,
    pub(crate) created_at: Timestamp,
    #[serde(default)]
    pub(crate) image_id: String,
    #[serde(default)]
    pub(crate) user: (u32, u32),
    #[serde(default)]
    pub(crate) groups: Vec<u32>,
    #[serde(default)]
    pub(crate) stop_signal: i32,
    #[serde(default)]
    pub(crate) cgroup: String,
    /// What the shim was asked.
    #[serde(default)]
    pub(crate) call: Option<CreateCall>,
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
}

/// What even a record of a newer program has.
#[derive(Debug, Deserialize)]
pub(crate) struct Versioned {
    version: u64,
}

/// Reads a record; `None` when there is none, or when a crash left it empty.
///
/// # Errors
/// [`EngineError::NewerState`]; [`EngineError::DamagedState`] when it makes no sense; [`EngineError::File`] when it
/// cannot be read.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EngineError> {
    let damaged = |source| EngineError::DamagedState { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Err(damaged(error)),
        Err(error) => return Err(EngineError::file("reading", path)(error)),
    };
    // Some file systems keep the length of what was not written yet, and nothing else.
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let broken = |error: serde_json::Error| damaged(error.into());
    let versioned: Versioned = serde_json::from_slice(&bytes).map_err(broken)?;
    if versioned.version > VERSION {
        return Err(EngineError::NewerState { path: path.to_owned(), found: versioned.version, known: VERSION });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(broken)
}

/// Writes a record; whoever reads sees the old one or the new one.
pub(crate) fn write(path: &Path, record: &impl Serialize) -> Result<(), EngineError> {
    let bytes = serde_json::to_vec(record).map_err(|error| EngineError::file("encoding", path)(error.into()))?;
    replace(path, &bytes, 0o600).map_err(EngineError::file("writing", path))
}

/// Writes a file beside its place and renames it there.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = Path::new(&name);
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(mode).open(temporary)?;
    file.write_all(bytes)?;
    fs::rename(temporary, path)
}
