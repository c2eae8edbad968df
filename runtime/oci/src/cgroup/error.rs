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
    /// Another container is being made in it.
    #[error("another container is being made in cgroup {path}")]
    Taken {
        /// Path below the root.
        path: String,
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
        controller: String,
        /// The field that needs it.
        needed_for: String,
    },
    /// A limit needs a file that this kernel does not have.
    #[error("this kernel has no {file}, which {needed_for} needs")]
    NoFile {
        /// Name of the file.
        file: String,
        /// The field that needs it.
        needed_for: String,
    },
    /// The kernel refused a value for a reason that its error number does not tell.
    #[error("setting {field}: writing {value:?} to {path} ({hint})")]
    Refused {
        /// Field of `linux.resources`.
        field: String,
        /// File.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What is probably wrong.
        hint: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
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
    /// A cgroup for a new container that is somebody's already.
    #[error("cgroup {path} is not empty: {count} processes are in it; give the container a cgroup of its own")]
    Occupied {
        /// The cgroup.
        path: String,
        /// How many.
        count: usize,
    },
    /// A cgroup for a new container in which nothing runs.
    #[error("cgroup {path} is frozen; thaw it, or give the container another one")]
    Frozen {
        /// The cgroup.
        path: String,
    },
    /// Processes that were to be frozen did not stop in time.
    #[error("processes of cgroup {path} could not be stopped within 2 s")]
    StillRunning {
        /// The cgroup.
        path: String,
    },
    /// Its files could not be given to the container's root.
    #[error("giving {path} to user {uid}")]
    Delegate {
        /// Directory or file.
        path: PathBuf,
        /// The user.
        uid: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel could not be asked to tell when memory runs out.
    #[error("listening for the out-of-memory killer in {path}")]
    Events {
        /// Directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Limits of a container for which the caller may make no cgroup.
    #[error(
        "{} cannot be set: {path} is not the caller's; let root give him a cgroup of version 2 (Delegate=yes in a unit of \
         systemd), or leave the limits out",
        .limits.join(", ")
    )]
    NotDelegated {
        /// The fields.
        limits: Vec<String>,
        /// What he may not write to.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The group of the resource control file system, which is beside the cgroups.
    #[error(transparent)]
    Resctrl(#[from] crate::rdt::RdtError),
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
