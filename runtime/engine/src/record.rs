//! What is on disk: versioned JSON, one file per sandbox and per container, replaced by rename.
//!
//! ```text
//!   <run>/sandboxes/<sid>/          0700
//!     sandbox.json                  phase making -> ready -> stopped
//!     shim.json shim.sock shim.log  what the shim was started with, how to reach it, what it complained about
//!     hostname resolv.conf shm/     given to the containers
//!     containers/<cid>/
//!       container.json              phase making -> made
//!       config.json                 OCI specification
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
use crate::{ContainerId, EngineError, SandboxId};

/// The newest version that this program reads.
pub(crate) const VERSION: u64 = 1;
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
    /// Why it is stopped.
    #[serde(default)]
    pub(crate) reason: String,
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
    pub(crate) stop_signal: i32,
    #[serde(default)]
    pub(crate) cgroup: String,
    /// What the shim was asked.
    #[serde(default)]
    pub(crate) call: Option<CreateCall>,
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

/// Reads a record; `None` when there is none, or when a crash left it empty.
///
/// # Errors
/// [`EngineError::NewerState`]; [`EngineError::File`] when it cannot be read or makes no sense.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EngineError> {
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(LONGEST).read_to_end(&mut bytes).map_err(EngineError::file("reading", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(EngineError::file("opening", path)(error)),
    };
    let broken = |error: serde_json::Error| EngineError::file("understanding", path)(error.into());
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
