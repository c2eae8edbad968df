//! What can go wrong with a cgroup.

use std::io;
use std::path::PathBuf;

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// There is no usable cgroup mount.
    #[error("no cgroup hierarchy is mounted below /sys/fs/cgroup")]
    NotMounted,
    /// A path that does not name a cgroup below the root: relative parts, empty, or the root itself.
    #[error("{0:?} does not name a cgroup of its own below the root")]
    Path(String),
    /// Making the cgroup's directory.
    #[error("creating cgroup {path}")]
    Create {
        /// Directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Reading one of its files.
    #[error("reading {path}")]
    Read {
        /// File.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Writing one of its files.
    #[error("writing {value:?} to {path}")]
    Write {
        /// File.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A limit needs a controller that this machine does not have or has not delegated.
    #[error("the {controller} controller is not available, which {needed_for} needs")]
    NoController {
        /// Name of the controller.
        controller: &'static str,
        /// The field that needs it.
        needed_for: String,
    },
    /// A memory limit below what is in use would only make the kernel kill.
    #[error("memory limit of {limit_bytes} bytes is below the {usage_bytes} bytes in use")]
    BelowUsage {
        /// What was asked for.
        limit_bytes: u64,
        /// What is in use.
        usage_bytes: u64,
    },
    /// A value that cannot be written to this version of cgroups.
    #[error("{field}: {reason}")]
    Value {
        /// Field of `linux.resources`.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// Removing its directory.
    #[error("removing cgroup {path}")]
    Remove {
        /// Directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Processes did not go in time.
    #[error("{count} processes are still in cgroup {path}")]
    StillPopulated {
        /// The cgroup.
        path: String,
        /// How many.
        count: usize,
    },
    /// The device program could not be installed.
    #[error("installing the device rules of {path}")]
    Devices {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
