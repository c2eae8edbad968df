//! From `linux.resources` to the files of a cgroup, as data. Pure; the golden tests beside it are its specification.

mod before;
mod block;
mod cpu;
mod memory;
mod settle;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxResources};

use super::{CgroupError, Version};

pub(crate) use before::before;
pub(crate) use memory::below_use;
pub(crate) use settle::settle;

/// What is written to a file of a new cgroup on version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name of the file.
    pub file: String,
    /// What is written to it.
    pub value: String,
}

/// What limits write to a new cgroup on version 2, in order: for who sets the same limits by other means as well. Device
/// rules are not among it.
///
/// # Errors
/// [`CgroupError::Value`], as [`Cgroup::apply`](super::Cgroup::apply) would answer it.
pub fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let plan = plan(Version::V2, resources, &InForce::default())?;
    Ok(plan.writes.into_iter().map(|Write { file, value, .. }| Setting { file, value }).collect())
}

/// One value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// Controller whose hierarchy has the file (version 1), or that must be enabled (version 2).
    pub(crate) controller: Cow<'static, str>,
    /// File name.
    pub(crate) file: String,
    /// What to write.
    pub(crate) value: String,
    /// The field that asked for it.
    pub(crate) field: Cow<'static, str>,
    /// What to do where there is no such file.
    pub(crate) absent: Absent,
}

/// What to do where a kernel has no file for a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The limit cannot be kept: an error.
    Refuse,
    /// Nothing is lost without it.
    Skip,
    /// The container can live without it, but whoever asked should know.
    Warn,
    /// Another file has the same meaning: its name and value.
    Instead(String, String),
}

impl Write {
    fn or(self, absent: Absent) -> Self {
        Self { absent, ..self }
    }

    /// Files that it may be written to, the first that is there, and the value for each.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = (&str, &str)> {
        let instead = match &self.absent {
            Absent::Instead(file, value) => Some((file.as_str(), value.as_str())),
            _ => None,
        };
        std::iter::once((self.file.as_str(), self.value.as_str())).chain(instead)
    }
}

fn write(controller: &'static str, file: &str, value: impl ToString, field: &'static str) -> Write {
    Write {
        controller: controller.into(),
        file: file.to_owned(),
        value: value.to_string(),
        field: field.into(),
        absent: Absent::Refuse,
    }
}

fn value_error(field: &str, reason: impl Into<String>) -> CgroupError {
    CgroupError::Value { field: field.to_owned(), reason: reason.into() }
}

/// What to write, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    /// The values.
    pub(crate) writes: Vec<Write>,
    /// Fields for which this version of cgroups has nothing, and without which the container can live.
    pub(crate) ignored: Vec<&'static str>,
}

/// What a cgroup enforces at the moment, as far as the order of the writes, or a value, depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct InForce {
    /// Limit on memory, bytes; `None` without one.
    pub(crate) memory_bytes: Option<u64>,
    /// Version 1: limit on memory and swap together, bytes; `None` without one.
    pub(crate) memory_and_swap_bytes: Option<u64>,
    /// Quota of CPU time; `None` without one.
    pub(crate) quota_us: Option<u64>,
    /// The period it is for.
    pub(crate) period_us: u64,
    /// What may be used beyond the quota.
    pub(crate) burst_us: u64,
    /// Version 1: period of the real-time budget.
    pub(crate) realtime_period_us: u64,
}

/// What to write for `resources`, in an order in which no moment asks for more than before or after; devices are not
/// among it (they are rules, see `devices`).
pub(crate) fn plan(version: Version, resources: &LinuxResources, now: &InForce) -> Result<Plan, CgroupError> {
    let mut plan = Plan::default();
    if let Some(memory) = resources.memory() {
        match version {
            Version::V1 => memory::v1(memory, now, &mut plan),
            Version::V2 => memory::v2(memory, now, &mut plan)?,
        }
    }
    if let Some(cpu) = resources.cpu() {
        match version {
            Version::V1 => cpu::v1(cpu, now, &mut plan),
            Version::V2 => cpu::v2(cpu, now, &mut plan),
        }
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()) {
        // systemd takes no 0, and 1 is the same to a cgroup with a process in it: none may be added. So writes runc.
        let limit = if limit == 0 { 1 } else { limit };
        plan.writes.push(write("pids", "pids.max", max_of(limit), "pids.limit"));
    }
    if let Some(block) = resources.block_io() {
        match version {
            Version::V1 => block::v1(block, &mut plan)?,
            Version::V2 => block::v2(block, &mut plan)?,
        }
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        huge_pages(version, limit, &mut plan)?;
    }
    if let Some(wanted) = resources.network() {
        network(version, wanted, &mut plan)?;
    }
    rdma(resources, &mut plan)?;
    unified(version, resources, &mut plan)?;
    Ok(plan)
}

/// Negative is no limit.
fn max_of(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// Reservations are limited before faults, as the specification wants it: a program over a reservation limit is told by
/// mmap(2), one over a fault limit is killed by SIGBUS. Kernels before 5.7 count faults only.
fn huge_pages(version: Version, limit: &LinuxHugepageLimit, plan: &mut Plan) -> Result<(), CgroupError> {
    let size = limit.page_size();
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(value_error("hugepageLimits.pageSize", format!("{size:?} is no page size")));
    }
    let (suffix, value) = match version {
        Version::V1 => ("limit_in_bytes", limit.limit().to_string()),
        Version::V2 => ("max", max_of(limit.limit())),
    };
    let one = |file: &str| write("hugetlb", file, &value, "hugepageLimits.limit");
    plan.writes.push(one(&format!("hugetlb.{size}.rsvd.{suffix}")).or(Absent::Skip));
    plan.writes.push(one(&format!("hugetlb.{size}.{suffix}")));
    Ok(())
}

fn network(version: Version, network: &LinuxNetwork, plan: &mut Plan) -> Result<(), CgroupError> {
    let class = network.class_id().filter(|class| *class != 0);
    let priorities = network.priorities().as_deref().unwrap_or_default();
    if version == Version::V2 {
        // Firewalls decide by these marks: a container without them would be treated as another one.
        let field = match (class, priorities) {
            (Some(_), _) => "network.classID",
            (None, [_, ..]) => "network.priorities",
            (None, []) => return Ok(()),
        };
        return Err(value_error(
            field,
            "cgroup v2 marks no traffic; match the cgroup's path in the firewall instead (nftables: socket cgroupv2)",
        ));
    }
    if let Some(class) = class {
        plan.writes.push(write("net_cls", "net_cls.classid", class, "network.classID"));
    }
    for priority in priorities {
        one_word("network.priorities", priority.name())?;
        let value = format!("{} {}", priority.name(), priority.priority());
        plan.writes.push(write("net_prio", "net_prio.ifpriomap", value, "network.priorities"));
    }
    Ok(())
}

fn rdma(resources: &LinuxResources, plan: &mut Plan) -> Result<(), CgroupError> {
    let mut limits: Vec<_> = resources.rdma().iter().flatten().collect();
    limits.sort_by_key(|(name, _)| name.as_str());
    for (name, limit) in limits {
        one_word("rdma", name)?;
        let mut value = name.clone();
        for (key, count) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(count) = count {
                value.push_str(&format!(" {key}={count}"));
            }
        }
        if value != *name {
            plan.writes.push(write("rdma", "rdma.max", value, "rdma"));
        }
    }
    Ok(())
}

/// A name that becomes the first word of a line.
fn one_word(field: &str, name: &str) -> Result<(), CgroupError> {
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(value_error(field, format!("{name:?} is no name of a device")));
    }
    Ok(())
}

/// Files of the hierarchy itself that are settings; the others (`cgroup.procs`, `cgroup.freeze`, ...) act.
const SETTINGS: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

fn unified(version: Version, resources: &LinuxResources, plan: &mut Plan) -> Result<(), CgroupError> {
    let mut entries: Vec<_> = resources.unified().iter().flatten().collect();
    entries.sort();
    for (file, value) in entries {
        if version == Version::V1 {
            return Err(value_error("unified", format!("{file} needs cgroup v2, this machine has v1")));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let controller = file.split_once('.').map(|(controller, _)| controller).unwrap_or_default();
        let acts = controller == "cgroup" && !SETTINGS.contains(&file.as_str());
        if controller.is_empty() || acts || !file.bytes().all(plain) {
            return Err(value_error("unified", format!("{file:?} is no setting of a controller")));
        }
        // One without a word is a setting as well, for example no processors of its own; but a write of nothing is none.
        let empty = value.trim().is_empty().then_some("\n");
        for line in empty.into_iter().chain(value.lines().filter(|line| !line.trim().is_empty())) {
            plan.writes.push(Write {
                controller: controller.to_owned().into(),
                file: file.clone(),
                value: line.to_owned(),
                field: format!("unified[{file}]").into(),
                absent: Absent::Refuse,
            });
        }
    }
    Ok(())
}
