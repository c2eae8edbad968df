//! Control groups, versions 1 and 2 behind one type.
//!
//! ```text
//!   version 2   /sys/fs/cgroup/<path>                      one directory, controllers enabled from the root down
//!   version 1   /sys/fs/cgroup/<controller>/<path>         one directory per hierarchy
//!   hybrid      version 1, and /sys/fs/cgroup/unified/<path> for what only version 2 has: cgroup.kill, cgroup.events
//! ```
//!
//! **Invariant:** only directories that a [`Cgroup`] names, and those below them, are ever written or removed.

mod apply;
mod below;
mod delegate;
mod devices;
mod error;
mod events;
pub mod figures;
mod join;
mod layout;
mod lifecycle;
mod options;
mod permission;
mod placement;
mod stats;
mod tree;
mod values;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Pid;
use layout::layout;

pub use below::Below;
pub(crate) use delegate::owner as delegate_owner;
pub(crate) use devices::{container_rules as container_device_rules, is_root_of_the_machine as devices_can_be_limited};
pub use error::CgroupError;
pub use events::{OomEvent, OomEvents};
pub use figures::{Figures, Pressure, Pressures, Stalls};
pub(crate) use join::Join;
#[cfg(test)]
pub(crate) use join::a_join;
pub(crate) use layout::unescape;
pub(crate) use options::Options;
pub(crate) use permission::{Refusal, limits};
pub use stats::Stats;
pub(crate) use values::settle;
pub use values::{Setting, settings};

/// Which hierarchy carries the controllers on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One mount per controller, possibly with a unified hierarchy beside them.
    V1,
    /// One unified hierarchy.
    V2,
}

/// One cgroup of ours, named by its path below the hierarchy's root, for example `/portreeve/burstable/pod1/c1`.
///
/// On version 1 the same path is used in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// With the leading slash.
    path: String,
}

impl Cgroup {
    /// Names a cgroup without touching it.
    ///
    /// # Errors
    /// [`CgroupError::Path`] when the path is the root or has relative parts; [`CgroupError::NotMounted`].
    pub fn at(path: &str) -> Result<Self, CgroupError> {
        layout()?;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let bad = |part: &&str| *part == "." || *part == ".." || part.bytes().any(|byte| byte == b'\n' || byte == 0);
        if parts.is_empty() || parts.iter().any(bad) {
            return Err(CgroupError::Path(path.to_owned()));
        }
        Ok(Self { path: format!("/{}", parts.join("/")) })
    }

    /// Makes the cgroup and its parents, with every controller that limits need enabled for it.
    ///
    /// # Errors
    /// [`CgroupError::Create`] and those of [`Cgroup::at`].
    pub fn open_or_create(path: &str) -> Result<Self, CgroupError> {
        let cgroup = Self::at(path)?;
        cgroup.claim()?;
        cgroup.complete()?;
        Ok(cgroup)
    }

    /// Begins to make the cgroup; `false` when it is there already, or another one has begun: of several makers one
    /// succeeds.
    pub(crate) fn claim(&self) -> Result<bool, CgroupError> {
        lifecycle::claim(layout()?, self.relative())
    }

    /// Keeps other makers away while the answer is kept, and until the first process has closed its copy.
    ///
    /// # Errors
    /// [`CgroupError::Taken`] when another one is there; [`CgroupError::Read`].
    pub(crate) fn hold(&self) -> Result<File, CgroupError> {
        let held = lifecycle::hold(layout()?, self.relative())?;
        held.ok_or_else(|| CgroupError::Taken { path: self.path.clone() })
    }

    /// Lets whoever has just made it [`hold`](Self::hold) it first.
    pub(crate) fn let_its_maker_hold(&self) -> Result<(), CgroupError> {
        lifecycle::let_its_maker_hold(layout()?, self.relative())
    }

    /// Makes of a cgroup that has been claimed what is not there yet.
    pub(crate) fn complete(&self) -> Result<(), CgroupError> {
        lifecycle::complete(layout()?, self.relative())
    }

    /// Refuses a cgroup that is there already and in which a new container could not live, or not alone: with processes
    /// in it or below it (but the caller's own), or frozen.
    ///
    /// # Errors
    /// [`CgroupError::Occupied`], [`CgroupError::Frozen`], [`CgroupError::Read`].
    pub(crate) fn require_vacant(&self) -> Result<(), CgroupError> {
        let own = i32::try_from(std::process::id()).ok();
        let count = self.processes()?.iter().filter(|pid| Some(pid.as_raw_nonzero().get()) != own).count();
        if count > 0 {
            return Err(CgroupError::Occupied { path: self.path.clone(), count });
        }
        if self.is_frozen()? { Err(CgroupError::Frozen { path: self.path.clone() }) } else { Ok(()) }
    }

    /// Its path below the root.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    fn relative(&self) -> &str {
        self.path.trim_start_matches('/')
    }

    /// Its directories: one on version 2, one per hierarchy on version 1 (the unified one first).
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        layout().map(|layout| layout.mounts().map(|mount| mount.join(self.relative())).collect()).unwrap_or_default()
    }

    /// Its directory in the hierarchy of this version 1 controller, or on version 2 the only one.
    pub(crate) fn controller_directory(&self, controller: &str) -> Option<PathBuf> {
        let layout = layout().ok()?;
        let mount = match layout.version() {
            Version::V1 => layout.v1_mount(controller)?,
            Version::V2 => layout.unified.as_deref()?,
        };
        Some(mount.join(self.relative()))
    }

    /// What a container that mounts `cgroup` gets: (name below /sys/fs/cgroup, directory); one with an empty name on
    /// version 2.
    pub(crate) fn mount_sources(&self) -> Vec<(String, PathBuf)> {
        let Ok(layout) = layout() else { return Vec::new() };
        match layout.version() {
            Version::V2 => layout.unified.iter().map(|mount| (String::new(), mount.join(self.relative()))).collect(),
            Version::V1 => {
                let named = layout.v1.iter().filter_map(|hierarchy| {
                    let name = hierarchy.mount.file_name()?.to_str()?.to_owned();
                    Some((name, hierarchy.mount.join(self.relative())))
                });
                named.collect()
            }
        }
    }

    /// Whether it exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directories().iter().any(|directory| directory.is_dir())
    }

    /// Moves the calling process (which must have a single thread) into the cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn join(&self) -> Result<(), CgroupError> {
        let join = self.prepare_join()?;
        join.enter().and_then(|()| join.enter_unified())
    }

    /// Opens what a child needs to join by itself.
    pub(crate) fn prepare_join(&self) -> Result<Join, CgroupError> {
        Join::open(layout()?, self.relative())
    }

    /// Processes in it and in every cgroup below it.
    ///
    /// # Errors
    /// [`CgroupError::Read`]; a cgroup that does not exist has no processes.
    pub fn processes(&self) -> Result<Vec<Pid>, CgroupError> {
        lifecycle::processes(layout()?, self.relative())
    }

    /// Whether any process is in it or below.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn populated(&self) -> Result<bool, CgroupError> {
        Ok(!self.processes()?.is_empty())
    }

    /// Kills every process in it and below, forks that race with it included; returns without waiting for their end.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        lifecycle::kill_all(layout()?, self.relative())
    }

    /// Waits until no process is left, for at most `timeout`.
    ///
    /// # Errors
    /// [`CgroupError::StillPopulated`] when the time is over.
    pub fn wait_empty(&self, timeout: Duration) -> Result<(), CgroupError> {
        lifecycle::wait_empty(layout()?, self.relative(), Instant::now() + timeout)
    }

    /// Stops every process until [`Cgroup::thaw`]; returns when they have stopped (bounded: 2 s).
    ///
    /// # Errors
    /// [`CgroupError::Write`]; [`CgroupError::StillRunning`] when a process could not be stopped in time: all of them
    /// go on then.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        lifecycle::set_frozen(layout()?, self.relative(), true)
    }

    /// Whether its processes stand still: because it was frozen itself, or one above it was. A cgroup that does not
    /// exist is not frozen.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        lifecycle::is_frozen(layout()?, self.relative())
    }

    /// Lets processes end that were killed while they stood still: on version 1, also those in cgroups below. On version 2
    /// that signal ends frozen processes, too (Linux, admin-guide/cgroup-v2.rst, `cgroup.freeze`), and nothing is done.
    ///
    /// # Errors
    /// As [`Cgroup::thaw`].
    pub(crate) fn release_the_killed(&self) -> Result<(), CgroupError> {
        lifecycle::release_the_killed(layout()?, self.relative())
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        lifecycle::set_frozen(layout()?, self.relative(), false)
    }

    /// What it has used.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when it does not exist, or ends meanwhile, and when a file that is there cannot be read; files
    /// of controllers that are not there count as zero.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let counted = stats::read(layout()?, self.relative());
        // Afterwards: one that ends meanwhile has files that are absent, and its zeros are no figures.
        if !self.exists() {
            return Err(CgroupError::Read { path: PathBuf::from(&self.path), source: io::ErrorKind::NotFound.into() });
        }
        counted
    }

    /// Everything that the kernel counts for it, in the shape in which runc prints it.
    ///
    /// # Errors
    /// As [`Cgroup::stats`].
    pub fn figures(&self) -> Result<Figures, CgroupError> {
        let counted = figures::read(layout()?, self.relative());
        // As in [`Cgroup::stats`].
        if !self.exists() {
            return Err(CgroupError::Read { path: PathBuf::from(&self.path), source: io::ErrorKind::NotFound.into() });
        }
        counted
    }

    /// How long its processes have waited for CPUs, memory and block devices; none under version 1.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`]; [`CgroupError::Read`] when a file that is there cannot be read.
    pub fn pressures(&self) -> Result<Pressures, CgroupError> {
        figures::pressures(layout()?, self.relative())
    }

    /// Begins to listen for processes that the out-of-memory killer ends in it.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] without the memory controller, [`CgroupError::Read`], [`CgroupError::Write`].
    pub fn oom_events(&self) -> Result<OomEvents, CgroupError> {
        OomEvents::listen(layout()?, self.relative())
    }

    /// Gives it to `uid`, as far as the kernel lets a cgroup be delegated; nothing to do on version 1, where it cannot
    /// be done safely.
    ///
    /// # Errors
    /// [`CgroupError::Delegate`].
    pub fn delegate(&self, uid: u32) -> Result<(), CgroupError> {
        delegate::give(layout()?, self.relative(), uid)
    }

    /// The cgroup for what `linux.cgroupsPath` says: an absolute path as it is, a relative one, or `id` where none is
    /// given, beside the caller's own cgroup (version 2) or below it (version 1).
    ///
    /// # Errors
    /// Those of [`Cgroup::at`]; [`CgroupError::Read`].
    pub fn place(cgroups_path: Option<&str>, id: &str) -> Result<Self, CgroupError> {
        let layout = layout()?;
        if let Some(path) = cgroups_path.filter(|path| path.starts_with('/')) {
            return Self::at(path);
        }
        let path = PathBuf::from("/proc/self/cgroup");
        let text = std::fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
        Self::at(&placement::place(cgroups_path, id, &placement::own(layout, &text), layout.version()))
    }

    /// How many processes the out-of-memory killer has ended in it, itself and below.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let Some(directory) = self.controller_directory("memory") else { return Ok(0) };
        let v1 = layout()?.version() == Version::V1;
        let file = if v1 { "memory.oom_control" } else { "memory.events" };
        let one = |directory: &Path| -> Result<u64, CgroupError> {
            let path = directory.join(file);
            let text = std::fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
            Ok(stats::keyed(&text, "oom_kill").unwrap_or(0))
        };
        let mut total = one(&directory)?;
        if v1 {
            // Version 1 counts each cgroup for itself.
            tree::walk(&directory, |place| {
                let kills = place.read(file).ok().and_then(|text| stats::keyed(&text, "oom_kill"));
                total = total.saturating_add(kills.unwrap_or(0));
                Ok(())
            })?;
        }
        Ok(total)
    }

    /// Sends a signal, by number, to every process in it and below that is listed now; the answer is the first refusal.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub(crate) fn signal_each(&self, signal: i32) -> Result<io::Result<()>, CgroupError> {
        lifecycle::signal_each(layout()?, self.relative(), signal)
    }

    /// Removes it when nothing is in it; `false` when something is, or when it cannot be removed.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`].
    pub(crate) fn remove_unused(&self) -> Result<bool, CgroupError> {
        Ok(lifecycle::remove_unused(layout()?, self.relative()))
    }

    /// Removes it and everything below it; absent is success. Processes must be gone (or going).
    ///
    /// # Errors
    /// [`CgroupError::Remove`] when it stays busy.
    pub fn remove(&self) -> Result<(), CgroupError> {
        lifecycle::remove(layout()?, self.relative())
    }
}

/// Which version carries the controllers here.
///
/// # Errors
/// [`CgroupError::NotMounted`].
pub fn version() -> Result<Version, CgroupError> {
    Ok(layout()?.version())
}

/// Controllers that limits can be set with here: of the version 1 mounts, or of the root of version 2.
///
/// # Errors
/// [`CgroupError::NotMounted`], [`CgroupError::Read`].
pub fn controllers() -> Result<Vec<String>, CgroupError> {
    let layout = layout()?;
    if let (Version::V2, Some(mount)) = (layout.version(), layout.unified.as_deref()) {
        let path = mount.join("cgroup.controllers");
        let text = std::fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
        return Ok(text.split_ascii_whitespace().map(str::to_owned).collect());
    }
    let all = layout.v1.iter().flat_map(|hierarchy| &hierarchy.controllers);
    Ok(all.filter(|name| !name.starts_with("name=")).cloned().collect())
}

/// Whether a unified hierarchy without controllers is mounted beside version 1.
#[must_use]
pub fn is_hybrid() -> bool {
    layout().is_ok_and(|layout| layout.version() == Version::V1 && layout.unified.is_some())
}

/// Every cgroup below `root` (itself not included), deepest first; absent is empty. For recovery and cleaning.
///
/// # Errors
/// [`CgroupError::Read`].
pub fn list_below(root: &str) -> Result<Vec<String>, CgroupError> {
    let cgroup = Cgroup::at(root)?;
    let mut found = std::collections::BTreeSet::new();
    for mount in layout()?.mounts() {
        let top = Path::new("/").join(cgroup.relative());
        tree::walk(&mount.join(cgroup.relative()), |place| {
            found.insert(top.join(place.path()).display().to_string());
            Ok(())
        })?;
    }
    let mut list: Vec<String> = found.into_iter().collect();
    list.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count()));
    Ok(list)
}

/// Writes a file of the kernel's in one write(2).
fn write_file(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
