//! What can go wrong with systemd.

use std::io;
use std::path::PathBuf;

use portreeve_oci::cgroup::CgroupError;

use crate::BOOTED;

/// What can go wrong with systemd.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// It is not the init of this machine.
    #[error(
        "--systemd-cgroup: systemd is not the init of this machine ({BOOTED} is missing); \
         leave the flag out, and have engines use cgroupfs (podman: --cgroup-manager cgroupfs; a kubelet: cgroupDriver: cgroupfs)"
    )]
    NotBooted,
    /// The machine has version 1 cgroups.
    #[error("--systemd-cgroup needs cgroup v2, this machine has v1; leave the flag out, and have engines use cgroupfs")]
    Version,
    /// The caller is not root.
    #[error("--systemd-cgroup needs root; leave the flag out, and have engines use cgroupfs")]
    User,
    /// `linux.cgroupsPath` names no scope.
    #[error("linux.cgroupsPath {path:?}: {reason}")]
    Path {
        /// What it says.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cgroup that a pod is to be in is no slice's.
    #[error("cgroup parent {path:?}: {reason}")]
    Slice {
        /// What it says.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An annotation is no property.
    #[error("annotation {name}: {reason}")]
    Annotation {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bus does not answer.
    #[error("connecting to systemd by the message bus at {socket}")]
    Connect {
        /// Where the bus listens.
        socket: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The conversation broke.
    #[error("talking to systemd")]
    Talk(#[source] io::Error),
    /// A message could not be written or read.
    #[error("encoding a message to systemd, or decoding its answer")]
    Encoding(#[source] zbus::Error),
    /// systemd, or the bus, answered no.
    #[error("{what}: {text} ({name})")]
    Refused {
        /// What was asked for.
        what: String,
        /// Name of the error.
        name: String,
        /// What was said.
        text: String,
    },
    /// A job ended otherwise than it should.
    #[error("the unit {unit} is not as it was asked for: systemd's job has ended with {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// `canceled`, `timeout`, `failed`, `dependency`, `skipped`.
        result: String,
    },
    /// A job has not ended.
    #[error("systemd's job for the unit {unit} has not ended in time: what does it wait for (`systemctl list-jobs`)?")]
    Late {
        /// The unit.
        unit: String,
    },
    /// The scope's cgroup is not where it should be.
    #[error("systemd has not put the scope to {place}, but to: {found}")]
    Elsewhere {
        /// Where it should be.
        place: String,
        /// /proc/self/cgroup of its process.
        found: String,
    },
    /// A cgroup could not be made or written.
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
    /// The process that makes and keeps the scope.
    #[error("asking the process that makes the scope")]
    Keeper {
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What that process said.
    #[error("{0}")]
    Told(String),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl SystemdError {
    /// Of a refusal, says what it was about.
    pub(crate) fn about(self, what: String) -> Self {
        match self {
            Self::Refused { name, text, .. } => Self::Refused { what, name, text },
            other => other,
        }
    }
}
