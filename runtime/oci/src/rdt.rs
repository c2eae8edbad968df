//! `linux.intelRdt`: a share of the processor's cache and of the memory's bandwidth, by groups of the resource control file
//! system (Linux filesystems/resctrl.rst; Intel RDT, and what AMD and Arm have of the kind).
//!
//! ```text
//!   /sys/fs/resctrl/  schemata  tasks             the default group, in which every process begins
//!                     <closID or id>/             a group
//!                         schemata                what it gets, a line for each resource:  L3:0=7f0;1=1f
//!                         tasks                   joined by writing 0, as a cgroup
//!                         mon_groups/<id>/tasks   for `enableMonitoring`: counts this container alone
//! ```
//!
//! A group named by `closID` is shared and stays; one with the container's own name goes with it, and so does the one that
//! counts. A shared group that is there already is used as it is: were its schemata others than those asked for, that is
//! an error. Source: runtime-spec, config-linux.md, IntelRdt.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, Spec};
use portreeve_sys::process::pidfd_pid;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Serialize;

use crate::cgroup::{CgroupError, Join, unescape};
use crate::plan::PlanError;

/// What can go wrong with a group of the resource control file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdtError {
    /// The file system is not mounted.
    #[error(
        "linux.intelRdt needs the resource control file system, which is not mounted: mount -t resctrl resctrl \
         /sys/fs/resctrl, where processor and kernel have it"
    )]
    NotMounted,
    /// The configuration cannot be carried out.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// `closID` names a group that is to be there already.
    #[error("there is no group {path}, and without a schema for it linux.intelRdt.closID does not make it")]
    NoGroup {
        /// Its directory.
        path: PathBuf,
    },
    /// A shared group has other schemata than those asked for.
    #[error("group {path} is there already, with {found} instead of {wanted}")]
    Differs {
        /// Its directory.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What it has.
        found: String,
    },
    /// This machine counts nothing.
    #[error("linux.intelRdt.enableMonitoring: this machine has no monitoring groups ({path} is not there)")]
    NoMonitoring {
        /// The directory in which they would be.
        path: PathBuf,
    },
    /// Reading a file or locking the directory.
    #[error("reading {path}")]
    Read {
        /// File.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Making a group.
    #[error("making group {path}{said}")]
    Make {
        /// Its directory.
        path: PathBuf,
        /// What the kernel says of it beyond the error number, in brackets, or nothing.
        said: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Writing schemata.
    #[error("writing {value:?} to {path}{said}")]
    Write {
        /// File.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What the kernel says of it beyond the error number, in brackets, or nothing.
        said: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Removing a group.
    #[error("removing group {path}")]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// `linux.intelRdt`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    group: Group,
    /// What to write to `schemata`, a write(2) each.
    schemata: Vec<String>,
    monitored: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Group {
    /// One with the container's name.
    Own,
    /// One that others may be in.
    Shared(String),
    /// The one in which every process begins; nobody's to change.
    Default,
}

fn field(name: &str) -> String {
    format!("linux.intelRdt.{name}")
}

pub(crate) fn plan(rdt: &LinuxIntelRdt) -> Result<Plan, PlanError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    let group = match given(rdt.clos_id()) {
        None => Group::Own,
        Some(name) if name == "/" => Group::Default,
        Some(name) if is_name(&name) => Group::Shared(name),
        Some(name) => return Err(PlanError::new(field("closID"), format!("{name:?} is no name of a group"))),
    };
    let bandwidth = given(rdt.mem_bw_schema());
    if bandwidth.as_ref().is_some_and(|text| !text.starts_with("MB:") || text.contains('\n')) {
        return Err(PlanError::new(field("memBwSchema"), "is not one line that begins with MB:"));
    }
    let cache = given(rdt.l3_cache_schema()).unwrap_or_default();
    let lines = cache.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("MB:"));
    let first: Vec<&str> = lines.chain(bandwidth.as_deref()).collect();
    let further: Vec<&str> = rdt.schemata().iter().flatten().map(String::as_str).collect();
    if further.iter().any(|line| line.trim().is_empty() || line.contains('\n')) {
        return Err(PlanError::new(field("schemata"), "has an entry that is not one line"));
    }
    // The kernel takes each resource once in a write, and what is to count in the end comes last.
    let schemata = [first, further].into_iter().filter(|lines| !lines.is_empty());
    Ok(Plan {
        group,
        schemata: schemata.map(|lines| lines.join("\n") + "\n").collect(),
        monitored: rdt.enable_monitoring().unwrap_or(false),
    })
}

/// One part of a path, and none of the names that the file system has for itself.
fn is_name(text: &str) -> bool {
    let reserved = ["", ".", "..", "info", "mon_groups", "mon_data"];
    !reserved.contains(&text) && text.len() <= 255 && !text.contains(['/', '\n', '\0'])
}

fn wanted(spec: &Spec) -> Option<&LinuxIntelRdt> {
    spec.linux().as_ref()?.intel_rdt().as_ref()
}

/// Whether what the configuration says can be carried out, as far as that alone tells.
pub(crate) fn check(spec: &Spec) -> Result<(), PlanError> {
    wanted(spec).map_or(Ok(()), |rdt| plan(rdt).map(drop))
}

/// Makes the group of a container, where its configuration wants one; its process enters it with its cgroups.
pub(crate) fn join(join: Join, spec: &Spec, id: &str) -> Result<Join, CgroupError> {
    let Some(rdt) = wanted(spec) else { return Ok(join) };
    join.with(Resctrl::mounted()?.make(&plan(rdt).map_err(RdtError::from)?, id)?)
}

/// A further process of a container enters the groups that its first one is in.
pub(crate) fn join_of(join: Option<Join>, spec: &Spec, first: BorrowedFd<'_>) -> Result<Option<Join>, CgroupError> {
    if wanted(spec).is_none() {
        return Ok(join);
    }
    let resctrl = Resctrl::mounted()?;
    let failed = |path: &str, source| RdtError::Read { path: path.into(), source };
    let pid = || pidfd_pid(first).map_err(|source| failed("/proc/self/fdinfo", source));
    let number = pid()?;
    let Some(of) = number else { return Ok(join) };
    let path = format!("/proc/{}/cpu_resctrl_groups", of.as_raw_nonzero());
    let text = std::fs::read_to_string(&path).map_err(|source| failed(&path, source))?;
    // Its number had not gone to another process by then.
    if pid()? != number {
        return Ok(join);
    }
    join.unwrap_or_else(Join::of_nothing).with(resctrl.tasks_of(&text)).map(Some)
}

/// What of a container's groups goes with it, below the root of the file system: nothing that is there already.
pub(crate) fn to_remove(spec: &Spec, id: &str) -> Result<Option<String>, CgroupError> {
    let Some(rdt) = wanted(spec) else { return Ok(None) };
    let plan = plan(rdt).map_err(RdtError::from)?;
    Ok(Resctrl::mounted()?.new_group(&plan, id))
}

/// Removes the group that a container has alone, where its configuration made one; absent is success.
///
/// # Errors
/// [`CgroupError`] when the kernel keeps it.
pub fn remove_of(spec: &Spec, id: &str) -> Result<(), CgroupError> {
    // Where it is mounted no more, its groups have gone with it.
    let (Some(rdt), Ok(resctrl)) = (wanted(spec), Resctrl::mounted()) else { return Ok(()) };
    let plan = plan(rdt).map_err(RdtError::from)?;
    plan.own(id).map_or(Ok(()), |path| Ok(resctrl.remove(&path)?))
}

/// Removes what [`to_remove`] has named; absent is success.
pub(crate) fn remove(path: Option<&str>) -> Result<(), CgroupError> {
    let Some(path) = path else { return Ok(()) };
    // Where it is mounted no more, its groups have gone with it.
    Resctrl::mounted().map_or(Ok(()), |resctrl| Ok(resctrl.remove(path)?))
}

/// The lines of a group's `schemata`, each of one resource.
#[derive(Debug)]
pub(crate) struct Schemata {
    path: PathBuf,
    text: String,
}

impl Schemata {
    fn read(path: PathBuf) -> Result<Self, RdtError> {
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Self { path, text }),
            Err(source) => Err(RdtError::Read { path, source }),
        }
    }

    /// Writes them to the group again.
    pub(crate) fn write(&self) -> Result<(), RdtError> {
        for line in self.text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let failed = |source| RdtError::Write {
                path: self.path.clone(),
                value: line.to_owned(),
                said: String::new(),
                source,
            };
            std::fs::write(&self.path, format!("{line}\n")).map_err(failed)?;
        }
        Ok(())
    }
}

impl Plan {
    /// Where the group is, below the root.
    fn path(&self, id: &str) -> PathBuf {
        match &self.group {
            Group::Own => id.into(),
            Group::Shared(name) => name.into(),
            Group::Default => PathBuf::new(),
        }
    }

    /// What is the container's alone: one that counts goes with the group that it is in.
    fn own(&self, id: &str) -> Option<String> {
        match &self.group {
            Group::Own => Some(id.to_owned()),
            Group::Shared(name) => self.monitored.then(|| format!("{name}/mon_groups/{id}")),
            Group::Default => self.monitored.then(|| format!("mon_groups/{id}")),
        }
    }
}

/// The tasks that a group's file has.
fn listed(path: &Path) -> Result<BTreeSet<i32>, RdtError> {
    let text = std::fs::read_to_string(path).map_err(|source| RdtError::Read { path: path.to_owned(), source })?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// The resource control file system.
#[derive(Debug)]
pub(crate) struct Resctrl {
    root: PathBuf,
}

impl Resctrl {
    pub(crate) fn mounted() -> Result<Self, RdtError> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let text = std::fs::read_to_string(&path).map_err(|source| RdtError::Read { path, source })?;
        mount_point(&text).map(|root| Self { root }).ok_or(RdtError::NotMounted)
    }

    /// What of a container's groups would be new, below the root: it goes with the container.
    pub(crate) fn new_group(&self, plan: &Plan, id: &str) -> Option<String> {
        plan.own(id).filter(|path| !self.root.join(path).exists())
    }

    /// Moves tasks into the groups of these files. Those that are born meanwhile are where the task is that has made them:
    /// the list is asked for again until it has nothing that is not in the groups.
    pub(crate) fn move_in(
        &self,
        files: &[PathBuf],
        tasks: impl Fn() -> Result<Vec<i32>, CgroupError>,
    ) -> Result<(), CgroupError> {
        let mut moved = BTreeSet::new();
        loop {
            let mut new = tasks()?;
            new.retain(|task| !moved.contains(task));
            if new.is_empty() {
                return Ok(());
            }
            // Born inside: whoever goes on forking there is not run after for ever.
            let mut outside = BTreeSet::new();
            for path in files {
                let inside = listed(path)?;
                outside.extend(new.iter().copied().filter(|task| !inside.contains(task)));
            }
            new.retain(|task| outside.contains(task));
            if new.is_empty() {
                return Ok(());
            }
            for path in files {
                let failed = |source| RdtError::Read { path: path.clone(), source };
                let mut file = File::options().append(true).open(path).map_err(failed)?;
                for task in &new {
                    // Each in a write of its own.
                    match file.write_all(format!("{task}\n").as_bytes()) {
                        // It has ended meanwhile.
                        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                        other => other.map_err(|source| RdtError::Write {
                            path: path.clone(),
                            value: task.to_string(),
                            said: self.said(),
                            source,
                        })?,
                    }
                }
            }
            moved.extend(new);
        }
    }

    /// Makes what the plan wants; answers with the files that a process joins by writing 0 to them, in this order.
    pub(crate) fn make(&self, plan: &Plan, id: &str) -> Result<Vec<PathBuf>, RdtError> {
        if !is_name(id) {
            return Err(
                PlanError::new("linux.intelRdt", format!("a group cannot have the container's name {id:?}")).into()
            );
        }
        let _lock = self.lock()?;
        let group = self.root.join(plan.path(id));
        let made = match &plan.group {
            Group::Default => false,
            Group::Shared(_) if plan.schemata.is_empty() && group.is_dir() => false,
            Group::Shared(_) if plan.schemata.is_empty() => return Err(RdtError::NoGroup { path: group }),
            Group::Own | Group::Shared(_) => self.make_directory(&group)?,
        };
        let furnished = self.furnish(plan, &group, made, id);
        if furnished.is_err() && made {
            // That it could not be furnished tells more than that it could not be removed.
            let _left = std::fs::remove_dir(&group);
        }
        furnished
    }

    fn furnish(&self, plan: &Plan, group: &Path, made: bool, id: &str) -> Result<Vec<PathBuf>, RdtError> {
        if made || plan.group == Group::Own {
            self.write_schemata(plan, group)?;
        } else if !plan.schemata.is_empty() {
            compare(&group.join("schemata"), &plan.schemata)?;
        }
        let mut tasks = vec![group.join("tasks")];
        if plan.monitored {
            let groups = group.join("mon_groups");
            if !groups.is_dir() {
                return Err(RdtError::NoMonitoring { path: groups });
            }
            self.make_directory(&groups.join(id))?;
            tasks.push(groups.join(id).join("tasks"));
        }
        Ok(tasks)
    }

    /// Whether it was not there.
    fn make_directory(&self, path: &Path) -> Result<bool, RdtError> {
        match std::fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(RdtError::Make { path: path.to_owned(), said: self.said(), source }),
        }
    }

    fn write_schemata(&self, plan: &Plan, group: &Path) -> Result<(), RdtError> {
        let path = group.join("schemata");
        for value in &plan.schemata {
            std::fs::write(&path, value).map_err(|source| {
                let (path, value) = (path.clone(), value.trim_end().to_owned());
                RdtError::Write { path, value, said: self.said(), source }
            })?;
        }
        Ok(())
    }

    /// Changes the schemata of a container's group, all of them or none; answers what they were.
    pub(crate) fn change(&self, plan: &Plan, id: &str) -> Result<Schemata, RdtError> {
        if plan.group == Group::Default {
            return Err(PlanError::new(
                field("closID"),
                "is the default group, which is not the container's to change",
            )
            .into());
        }
        let _lock = self.lock()?;
        let group = self.root.join(plan.path(id));
        let before = Schemata::read(group.join("schemata"))?;
        if let Err(error) = self.write_schemata(plan, &group) {
            // The kernel had these in force: should it refuse one now, the first refusal tells more.
            let _as_far_as_possible = before.write();
            return Err(error);
        }
        Ok(before)
    }

    fn remove(&self, path: &str) -> Result<(), RdtError> {
        let path = self.root.join(path);
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| RdtError::Remove { path, source }),
        }
    }

    /// From the words of /proc/PID/cpu_resctrl_groups: `res:GROUP` and `mon:MONITORING-GROUP`.
    fn tasks_of(&self, text: &str) -> Vec<PathBuf> {
        let named = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let Some(group) = named("res:").filter(|name| !name.is_empty()) else { return Vec::new() };
        let group = self.root.join(group.trim_matches('/'));
        let counting = named("mon:").map(|name| name.trim_matches('/')).filter(|name| !name.is_empty());
        let counting = counting.map(|name| group.join("mon_groups").join(name).join("tasks"));
        std::iter::once(group.join("tasks")).chain(counting).collect()
    }

    /// Whoever changes more than one thing locks the root: resctrl.rst, "Locking".
    fn lock(&self) -> Result<File, RdtError> {
        let failed = |source| RdtError::Read { path: self.root.clone(), source };
        let root = File::open(&self.root).map_err(failed)?;
        rustix::fs::flock(&root, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(root)
    }

    /// Why the last change failed, in the kernel's words.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
        match text.trim() {
            "" | "ok" => String::new(),
            words => format!(" ({words})"),
        }
    }

    /// What is counted for a container's group.
    pub(crate) fn figures(&self, plan: &Plan, id: &str) -> Figures {
        let group = self.root.join(plan.path(id));
        let info = |resource: &str, file: &str| number(&self.root.join("info").join(resource).join(file));
        let line = |directory: &Path, resource: &str| {
            let text = std::fs::read_to_string(directory.join("schemata")).unwrap_or_default();
            text.lines().map(str::trim).find(|line| line.starts_with(resource)).map(str::to_owned)
        };
        let has = |resource: &str| self.root.join("info").join(resource).is_dir();
        let (cache, bandwidth) = (has("L3"), has("MB"));
        let of = if plan.monitored { group.join("mon_groups").join(id) } else { group.clone() };
        let domains = domains(&of.join("mon_data"));
        let counts = |file: &str| domains.iter().any(|domain| domain.join(file).exists());
        Figures {
            l3_cache_info: cache.then(|| CacheInfo {
                cbm_mask: std::fs::read_to_string(self.root.join("info/L3/cbm_mask"))
                    .unwrap_or_default()
                    .trim()
                    .to_owned(),
                min_cbm_bits: info("L3", "min_cbm_bits"),
                num_closids: info("L3", "num_closids"),
            }),
            l3_cache_schema_root: line(&self.root, "L3").filter(|_| cache),
            l3_cache_schema: line(&group, "L3").filter(|_| cache),
            mem_bw_info: bandwidth.then(|| BandwidthInfo {
                bandwidth_gran: info("MB", "bandwidth_gran"),
                delay_linear: info("MB", "delay_linear"),
                min_bandwidth: info("MB", "min_bandwidth"),
                num_closids: info("MB", "num_closids"),
            }),
            mem_bw_schema_root: line(&self.root, "MB").filter(|_| bandwidth),
            mem_bw_schema: line(&group, "MB").filter(|_| bandwidth),
            mbm_stats: counts("mbm_total_bytes").then(|| {
                let one = |domain: &PathBuf| Bandwidth {
                    mbm_total_bytes: number(&domain.join("mbm_total_bytes")),
                    mbm_local_bytes: number(&domain.join("mbm_local_bytes")),
                };
                domains.iter().map(one).collect()
            }),
            cmt_stats: counts("llc_occupancy").then(|| {
                let one = |domain: &PathBuf| Occupancy { llc_occupancy: number(&domain.join("llc_occupancy")) };
                domains.iter().map(one).collect()
            }),
        }
    }
}

/// What the kernel counts for a group, in the shape in which `runc events` prints it. Figures that are not there are zero
/// or absent.
///
/// Source of the names: runc, `types/events.go`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the kernel's words: filesystems/resctrl.rst")]
pub struct Figures {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_info: Option<CacheInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_info: Option<BandwidthInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbm_stats: Option<Vec<Bandwidth>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmt_stats: Option<Vec<Occupancy>>,
}

/// `info/L3`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the kernel's words: filesystems/resctrl.rst")]
pub struct CacheInfo {
    pub cbm_mask: String,
    pub min_cbm_bits: u64,
    pub num_closids: u64,
}

/// `info/MB`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the kernel's words: filesystems/resctrl.rst")]
pub struct BandwidthInfo {
    pub bandwidth_gran: u64,
    pub delay_linear: u64,
    pub min_bandwidth: u64,
    pub num_closids: u64,
}

/// Bytes that went over the memory bus of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the kernel's words: filesystems/resctrl.rst")]
pub struct Bandwidth {
    pub mbm_total_bytes: u64,
    pub mbm_local_bytes: u64,
}

/// Bytes of one domain's cache in use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the kernel's words: filesystems/resctrl.rst")]
pub struct Occupancy {
    pub llc_occupancy: u64,
}

fn number(path: &Path) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The directories of L3 domains below `mon_data`, in their order.
fn domains(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_cache = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("mon_L3"));
    let mut domains: Vec<PathBuf> = entries.filter(is_cache).collect();
    domains.sort();
    domains
}

/// Figures of a container's groups; `None` where its configuration wants none.
pub(crate) fn figures(spec: &Spec, id: &str) -> Result<Option<Figures>, CgroupError> {
    let Some(rdt) = wanted(spec) else { return Ok(None) };
    Ok(Some(Resctrl::mounted()?.figures(&plan(rdt).map_err(RdtError::from)?, id)))
}

/// Where the file system is mounted, by the text of /proc/PID/mountinfo.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let of = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        (after.split(' ').next() == Some("resctrl")).then(|| PathBuf::from(unescape(point)))
    };
    mountinfo.lines().find_map(of)
}

/// Whether a file has every value that is asked for; the kernel writes them with other spaces and zeros than they came.
fn compare(path: &Path, wanted: &[String]) -> Result<(), RdtError> {
    let text = std::fs::read_to_string(path).map_err(|source| RdtError::Read { path: path.to_owned(), source })?;
    let there = values(&text);
    // What is written last is what counts.
    for ((resource, domain), value) in values(&wanted.concat()) {
        let found = there.get(&(resource, domain)).copied();
        let same = |found: &str| found.trim_start_matches('0').eq_ignore_ascii_case(value.trim_start_matches('0'));
        if !found.is_some_and(same) {
            let found = found.map_or_else(|| "nothing".to_owned(), |found| format!("{resource}:{domain}={found}"));
            let path = path.parent().unwrap_or(path).to_owned();
            return Err(RdtError::Differs { path, wanted: format!("{resource}:{domain}={value}"), found });
        }
    }
    Ok(())
}

/// Value by resource and domain of lines such as `L3:0=7f0;1=1f`.
fn values(schemata: &str) -> BTreeMap<(&str, &str), &str> {
    let mut values = BTreeMap::new();
    for line in schemata.lines() {
        let (resource, domains) = line.split_once(':').unwrap_or((line, ""));
        for part in domains.split(';') {
            let (domain, value) = part.split_once('=').unwrap_or((part, ""));
            values.insert((resource.trim(), domain.trim()), value.trim());
        }
    }
    values
}

#[cfg(test)]
mod tests;
