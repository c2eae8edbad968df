//! Putting limits in force.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;

use super::layout::{Layout, layout};
use super::values::{self, Absent, InForce, Write};
use super::{Cgroup, CgroupError, Version, devices, lifecycle, stats, write_file};
use crate::Warning;

impl Cgroup {
    /// Writes limits; what `resources` does not name stays as it is. Says what this machine has no means for and the
    /// container can live without.
    ///
    /// Device rules replace those in force at once: no process that may open a device before and after sees a moment
    /// in which it may not.
    ///
    /// Source: OCI runtime-spec, config-linux.md, "Control groups"; Linux cgroup-v1/*.rst, cgroup-v2.rst.
    ///
    /// # Errors
    /// [`CgroupError`] names field, file and value; [`CgroupError::BelowUsage`] for a memory limit below what is in
    /// use, when `memory.checkBeforeUpdate` asks for that (version 1 refuses it always, once it has failed to reclaim).
    pub fn apply(&self, resources: &LinuxResources) -> Result<Vec<Warning>, CgroupError> {
        self.put_in_force(resources, false, |_| {})
    }

    /// As [`Cgroup::apply`], for a cgroup that has just been made, in which nothing runs yet.
    ///
    /// # Errors
    /// As [`Cgroup::apply`].
    pub(crate) fn apply_first(&self, resources: &LinuxResources) -> Result<Vec<Warning>, CgroupError> {
        self.put_in_force(resources, true, |_| {})
    }

    /// As [`Cgroup::apply`], for a cgroup that lives on when a limit is refused: those that were written before it are
    /// then put back to what they were, as far as the kernel takes that.
    ///
    /// # Errors
    /// As [`Cgroup::apply`].
    pub fn change(&self, resources: &LinuxResources) -> Result<Vec<Warning>, CgroupError> {
        let layout = layout()?;
        let mut undo: Vec<(PathBuf, String)> = Vec::new();
        let changed = self.put_in_force(resources, false, |write| {
            for (file, value) in write.candidates() {
                let Some(path) = self.file(layout, &write.controller, file) else { continue };
                if let Ok(text) = std::fs::read_to_string(&path) {
                    undo.extend(values::before(file, value, &text).map(|value| (path, value)));
                    return;
                }
            }
        });
        if changed.is_err() {
            for (path, value) in undo.iter().rev() {
                // The kernel had it in force: should it refuse it now, the first refusal tells more.
                let _as_far_as_possible = write_file(path, value);
            }
        }
        changed
    }

    /// `about_to` is told of each value before it is written.
    fn put_in_force(
        &self,
        resources: &LinuxResources,
        vacant: bool,
        mut about_to: impl FnMut(&Write),
    ) -> Result<Vec<Warning>, CgroupError> {
        let layout = layout()?;
        let plan = values::plan(layout.version(), resources, &self.in_force(layout.version(), resources))?;
        let rules = resources.devices().as_deref().filter(|rules| !rules.is_empty());
        let rules = rules.map(devices::parse).transpose()?;
        if let Some(limit_bytes) = resources.memory().as_ref().and_then(values::below_use) {
            self.refuse_below_usage(limit_bytes)?;
        }
        let mut warnings: Vec<Warning> =
            plan.ignored.into_iter().map(|field| unsupported(field, "cgroup v2")).collect();
        for write in &plan.writes {
            about_to(write);
            warnings.extend(self.write_value(layout, write)?);
        }
        // Last: on version 2 they change as a whole or not at all, and nothing that could be refused follows.
        if let Some(rules) = rules {
            warnings.extend(self.apply_devices(layout, &rules, vacant)?);
        }
        Ok(warnings)
    }

    /// A file of this cgroup, in the hierarchy of the controller on version 1.
    fn file(&self, layout: &Layout, controller: &str, name: &str) -> Option<PathBuf> {
        let mount = match layout.version() {
            Version::V1 => layout.v1_mount(controller)?,
            Version::V2 => layout.unified.as_deref()?,
        };
        Some(mount.join(self.relative()).join(name))
    }

    /// Reads what the plan for `resources` depends on.
    fn in_force(&self, version: Version, resources: &LinuxResources) -> InForce {
        let text = |controller: &str, file: &str| {
            let directory = self.controller_directory(controller)?;
            std::fs::read_to_string(directory.join(file)).ok()
        };
        let number = |controller: &str, file: &str| text(controller, file)?.trim().parse::<u64>().ok();
        let v1 = version == Version::V1;
        let mut now = InForce::default();
        if let Some(memory) = resources.memory() {
            if v1 && memory.limit().is_some() {
                now.memory_and_swap_bytes =
                    number("memory", "memory.memsw.limit_in_bytes").filter(|limit| *limit < stats::V1_UNLIMITED);
            } else if !v1 && memory.swap().is_some() && memory.limit().is_none() {
                now.memory_bytes = number("memory", "memory.max");
            }
        }
        if let Some(cpu) = resources.cpu() {
            if cpu.burst().is_some() {
                now.burst_us = number("cpu", if v1 { "cpu.cfs_burst_us" } else { "cpu.max.burst" }).unwrap_or(0);
            }
            if v1 && cpu.period().is_some() {
                now.period_us = number("cpu", "cpu.cfs_period_us").unwrap_or(0);
            } else if !v1 && cpu.period().is_some() && cpu.quota().is_none_or(|quota| quota == 0) {
                let words = text("cpu", "cpu.max").unwrap_or_default();
                now.quota_us = words.split_ascii_whitespace().next().and_then(|quota| quota.parse().ok());
            }
            if v1 && cpu.realtime_period().is_some() {
                now.realtime_period_us = number("cpu", "cpu.rt_period_us").unwrap_or(0);
            }
        }
        now
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

    fn apply_devices(
        &self,
        layout: &Layout,
        rules: &[devices::Rule],
        vacant: bool,
    ) -> Result<Option<Warning>, CgroupError> {
        match layout.version() {
            Version::V1 => self.apply_devices_v1(layout, rules, vacant).map(|()| None),
            Version::V2 => self.apply_devices_v2(layout, rules),
        }
    }

    fn apply_devices_v2(&self, layout: &Layout, rules: &[devices::Rule]) -> Result<Option<Warning>, CgroupError> {
        let path = layout.unified.as_deref().unwrap_or(Path::new("/")).join(self.relative());
        let failed = |source| CgroupError::Devices { path: path.clone(), source };
        let directory = File::open(&path).map_err(failed)?;
        match devices::install(directory.as_fd(), rules) {
            Ok(()) => Ok(None),
            // Without CAP_BPF and CAP_SYS_ADMIN over the machine nobody can make device nodes either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && devices::dispensable(rules) => {
                let what = "limiting devices (only the machine's root may)".to_owned();
                Ok(Some(Warning { what, errno: error.raw_os_error() }))
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn apply_devices_v1(&self, layout: &Layout, rules: &[devices::Rule], vacant: bool) -> Result<(), CgroupError> {
        let missing =
            || CgroupError::NoController { controller: "devices".to_owned(), needed_for: "devices".to_owned() };
        let directory = layout.v1_mount("devices").ok_or_else(missing)?.join(self.relative());
        let list = directory.join("devices.list");
        let text = std::fs::read_to_string(&list).map_err(|source| CgroupError::Read { path: list, source })?;
        let change = devices::transition(&devices::State::parse(&text), rules)?;
        // The mode cannot be changed without forgetting every exception: nobody may run meanwhile.
        let stop = change.resets && !vacant && self.populated()? && !self.is_frozen()?;
        if stop {
            self.freeze()?;
        }
        let written = write_lines(&directory, &change.lines);
        let thawed = if stop { lifecycle::set_frozen(layout, self.relative(), false) } else { Ok(()) };
        written.and(thawed)
    }

    fn write_value(&self, layout: &Layout, write: &Write) -> Result<Option<Warning>, CgroupError> {
        let missing = || CgroupError::NoController {
            controller: write.controller.to_string(),
            needed_for: write.field.to_string(),
        };
        let path = self.file(layout, &write.controller, &write.file).ok_or_else(missing)?;
        let directory = path.parent().unwrap_or(&path).to_owned();
        match write_file(&path, &write.value) {
            Ok(()) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => {}
            Err(error) => return Err(self.refused(path, write, error)),
        }
        let missing_file = || CgroupError::NoFile { file: write.file.clone(), needed_for: write.field.to_string() };
        match &write.absent {
            Absent::Refuse if lacks(layout, &directory, &write.controller) => Err(missing()),
            Absent::Refuse => Err(missing_file()),
            Absent::Skip => Ok(None),
            Absent::Warn => Ok(Some(unsupported(&write.field, "this kernel"))),
            Absent::Instead(file, value) => {
                let path = directory.join(file);
                match write_file(&path, value) {
                    Ok(()) => Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        Err(if lacks(layout, &directory, &write.controller) { missing() } else { missing_file() })
                    }
                    Err(error) => Err(self.refused(path, write, error)),
                }
            }
        }
    }

    /// The kernel's refusal of a value, with what it means where the kernel has only EINVAL for it.
    fn refused(&self, path: PathBuf, write: &Write, source: io::Error) -> CgroupError {
        let errno = source.raw_os_error().map(Errno::from_raw_os_error);
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let limits_memory = matches!(file, "memory.limit_in_bytes" | "memory.memsw.limit_in_bytes");
        let hint = match (file, errno) {
            (_, Some(Errno::BUSY)) if limits_memory => {
                let usage_bytes = self.stats().map(|stats| stats.memory_bytes).unwrap_or(0);
                return CgroupError::BelowUsage { limit_bytes: write.value.parse().unwrap_or(0), usage_bytes };
            }
            (_, Some(Errno::INVAL)) if limits_memory => {
                "memory alone may not have a higher limit than memory and swap together: give both"
            }
            ("cpu.rt_runtime_us" | "cpu.rt_period_us", Some(Errno::INVAL)) => {
                "every cgroup above must have a real-time budget that covers it"
            }
            ("cpu.shares" | "cpu.weight", Some(Errno::INVAL)) => "an idle cgroup takes no shares: set cpu.idle to 0",
            (
                "cpu.cfs_quota_us" | "cpu.cfs_period_us" | "cpu.cfs_burst_us" | "cpu.max" | "cpu.max.burst",
                Some(Errno::INVAL),
            ) => {
                "quota and period are at least 1000, a period at most 1000000, a burst at most the quota, and no cgroup above may allow less"
            }
            ("cpuset.cpus" | "cpuset.mems", Some(Errno::INVAL | Errno::ACCESS | Errno::RANGE)) => {
                "it must be a part of what the cgroup above has"
            }
            (_, Some(Errno::NODEV)) if matches!(&*write.controller, "io" | "blkio") => "there is no such block device",
            (_, Some(Errno::ACCESS | Errno::PERM | Errno::ROFS)) => "this cgroup is not delegated to the caller",
            _ => return CgroupError::Write { path, value: write.value.clone(), source },
        };
        CgroupError::Refused { field: write.field.to_string(), value: write.value.clone(), path, hint, source }
    }
}

/// Writes each line by a write(2) of its own, as the kernel wants rules, to files that are opened once.
fn write_lines(directory: &Path, lines: &[(&'static str, String)]) -> Result<(), CgroupError> {
    for lines in lines.chunk_by(|one, other| one.0 == other.0) {
        let Some((file, first)) = lines.first() else { continue };
        let path = directory.join(file);
        let failed = |line: &str, source| CgroupError::Write { path: path.clone(), value: line.to_owned(), source };
        let mut open = File::options().write(true).open(&path).map_err(|source| failed(first, source))?;
        for (_, line) in lines {
            open.write_all(line.as_bytes()).map_err(|source| failed(line, source))?;
        }
    }
    Ok(())
}

/// Whether a version 2 cgroup was not given a controller.
fn lacks(layout: &Layout, directory: &Path, controller: &str) -> bool {
    layout.version() == Version::V2
        && controller != "cgroup"
        && std::fs::read_to_string(directory.join("cgroup.controllers"))
            .is_ok_and(|list| !list.split_ascii_whitespace().any(|name| name == controller))
}

fn unsupported(field: &str, by: &str) -> Warning {
    Warning { what: format!("{field} is not set: {by} has nothing for it"), errno: None }
}
