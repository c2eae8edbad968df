//! Control groups, versions 1 and 2 behind one type.
//!
//! ```text
//!   version 2   /sys/fs/cgroup/<path>                      one directory, controllers enabled from the root down
//!   version 1   /sys/fs/cgroup/<controller>/<path>         one directory per hierarchy
//!   hybrid      version 1, and /sys/fs/cgroup/unified/<path> for what only version 2 has: cgroup.kill, cgroup.events
//! ```
//!
//! **Invariant:** only directories that a [`Cgroup`] names, and those below them, are ever written or removed.

mod devices;
mod error;
mod join;
mod layout;
mod lifecycle;
mod stats;
mod values;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use crate::Pid;
use layout::{Layout, layout};

pub use error::CgroupError;
pub(crate) use join::Join;
pub use stats::Stats;

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
        cgroup.create()?;
        Ok(cgroup)
    }

    /// Makes the cgroup when it is not there.
    pub(crate) fn create(&self) -> Result<(), CgroupError> {
        lifecycle::create(layout()?, self.relative())
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

    /// Writes limits; what `resources` does not name stays as it is.
    ///
    /// # Errors
    /// [`CgroupError`] names file and value; [`CgroupError::BelowUsage`] for a memory limit below current use.
    pub fn apply(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let layout = layout()?;
        let limit = resources.memory().as_ref().and_then(oci_spec::runtime::LinuxMemory::limit);
        if let Some(limit_bytes) = limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0) {
            self.refuse_below_usage(limit_bytes)?;
        }
        if let Some(rules) = resources.devices().as_deref().filter(|rules| !rules.is_empty()) {
            self.apply_devices(layout, rules)?;
        }
        let mut deferred = None;
        for write in values::plan(layout.version(), resources)? {
            match self.write_value(layout, &write) {
                // On version 1 limit <= memsw holds at every moment: the other one has to go first.
                Err(CgroupError::Write { source, .. })
                    if write.file == "memory.limit_in_bytes"
                        && source.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) =>
                {
                    deferred = Some(write);
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        match deferred {
            Some(write) => self.write_value(layout, &write),
            None => Ok(()),
        }
    }

    fn refuse_below_usage(&self, limit_bytes: u64) -> Result<(), CgroupError> {
        let Some(directory) = self.controller_directory("memory") else { return Ok(()) };
        let version = layout()?.version();
        let usage_file = if version == Version::V1 { "memory.usage_in_bytes" } else { "memory.current" };
        let usage =
            std::fs::read_to_string(directory.join(usage_file)).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let Some(usage) = usage.filter(|usage| *usage > limit_bytes) else { return Ok(()) };
        // Clean cache that nobody used lately goes without harm; the rest is in use.
        let stat = std::fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let key = if version == Version::V1 { "total_inactive_file" } else { "inactive_file" };
        let usage_bytes = usage.saturating_sub(stats::keyed(&stat, key).unwrap_or(0));
        if usage_bytes > limit_bytes { Err(CgroupError::BelowUsage { limit_bytes, usage_bytes }) } else { Ok(()) }
    }

    fn apply_devices(&self, layout: &Layout, rules: &[LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        let rules: Vec<devices::Rule> = rules.iter().map(devices::Rule::parse).collect::<Result<_, _>>()?;
        if layout.version() == Version::V2 {
            let path = layout.unified.as_deref().unwrap_or(Path::new("/")).join(self.relative());
            let failed = |source| CgroupError::Devices { path: path.clone(), source };
            let directory = std::fs::File::open(&path).map_err(failed)?;
            return devices::install(directory.as_fd(), &rules).map_err(failed);
        }
        for rule in &rules {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            self.write_value(
                layout,
                &values::Write {
                    controller: "devices",
                    file: file.to_owned(),
                    value: rule.v1_line(),
                    field: "devices",
                },
            )?;
        }
        Ok(())
    }

    fn write_value(&self, layout: &Layout, write: &values::Write) -> Result<(), CgroupError> {
        let missing = || CgroupError::NoController { controller: write.controller, needed_for: write.field.to_owned() };
        let mount = match layout.version() {
            Version::V1 => layout.v1_mount(write.controller),
            Version::V2 => layout.unified.as_deref(),
        };
        let path = mount.ok_or_else(missing)?.join(self.relative()).join(&write.file);
        let mut value = write.value.clone();
        if let Some(rest) = value.strip_prefix(values::CURRENT) {
            let now = std::fs::read_to_string(&path).unwrap_or_default();
            value = format!("{}{rest}", now.split_ascii_whitespace().next().unwrap_or("max"));
        }
        match write_file(&path, &value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => {
                // Swap accounting can be off; with no swap in the machine its limit has no meaning.
                let swap = write.file == "memory.memsw.limit_in_bytes" || write.file == "memory.swap.max";
                if swap { Ok(()) } else { Err(missing()) }
            }
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
                    && write.file == "memory.limit_in_bytes" =>
            {
                let usage_bytes = self.stats().map(|stats| stats.memory_bytes).unwrap_or(0);
                Err(CgroupError::BelowUsage { limit_bytes: value.parse().unwrap_or(0), usage_bytes })
            }
            other => other.map_err(|source| CgroupError::Write { path, value, source }),
        }
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
    /// [`CgroupError::Write`].
    pub fn freeze(&self) -> Result<(), CgroupError> {
        lifecycle::set_frozen(layout()?, self.relative(), true)
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
    /// [`CgroupError::Read`] when it does not exist; files of controllers that are not there count as zero.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        if !self.exists() {
            return Err(CgroupError::Read { path: PathBuf::from(&self.path), source: io::ErrorKind::NotFound.into() });
        }
        Ok(stats::read(layout()?, self.relative()))
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
            for below in lifecycle::directories_below(&directory)? {
                total = total.saturating_add(one(&below).unwrap_or(0));
            }
        }
        Ok(total)
    }

    /// Removes it and everything below it; absent is success. Processes must be gone (or going).
    ///
    /// # Errors
    /// [`CgroupError::Remove`] when it stays busy.
    pub fn remove(&self) -> Result<(), CgroupError> {
        lifecycle::remove(layout()?, self.relative())
    }
}

/// The device rules of a container: those of the configuration; when it has none or begins by denying everything,
/// what every container may use is added.
pub(crate) fn container_device_rules(resources: Option<&LinuxResources>) -> Vec<LinuxDeviceCgroup> {
    let given = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let everything = given.iter().rev().find(|rule| rule.typ().unwrap_or_default() == LinuxDeviceType::A);
    if everything.is_some_and(LinuxDeviceCgroup::allow) {
        return given.to_vec();
    }
    let mut rules = Vec::with_capacity(given.len() + devices::DEFAULT_ALLOWED.len() + 1);
    if everything.is_none() {
        let mut deny = LinuxDeviceCgroup::default();
        deny.set_access(Some("rwm".to_owned()));
        rules.push(deny);
    }
    rules.extend_from_slice(given);
    for (kind, major, minor, access) in devices::DEFAULT_ALLOWED {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(if kind == devices::Kind::Block { LinuxDeviceType::B } else { LinuxDeviceType::C }));
        rule.set_major(major.map(i64::from));
        rule.set_minor(minor.map(i64::from));
        rule.set_access(Some(if access == 1 { "m".to_owned() } else { "rwm".to_owned() }));
        rules.push(rule);
    }
    rules
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
/// [`CgroupError::NotMounted`].
pub fn controllers() -> Result<Vec<String>, CgroupError> {
    let layout = layout()?;
    if let (Version::V2, Some(mount)) = (layout.version(), layout.unified.as_deref()) {
        let text = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
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
        for directory in lifecycle::directories_below(&mount.join(cgroup.relative()))? {
            if let Ok(relative) = directory.strip_prefix(mount) {
                found.insert(format!("/{}", relative.display()));
            }
        }
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
