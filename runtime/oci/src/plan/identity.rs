//! From `process` to what the program is and may do. Pure.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, Capability, IOPriorityClass, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    PosixRlimitType, Process, Spec,
};
use portreeve_sys::process::Scheduling;

use super::PlanError;
use super::locality::{self, Affinity, MemoryPolicy};
use super::mounts::clean;

/// Everything about the program that is decided before its process exists.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) directory: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: Option<u32>,
    pub(crate) capabilities: CapabilityMasks,
    pub(crate) no_new_privileges: bool,
    /// Kernel number, soft, hard.
    pub(crate) limits: Vec<(u32, u64, u64)>,
    pub(crate) scheduling: Option<Scheduling>,
    /// Class, level.
    pub(crate) io_priority: Option<(u8, u8)>,
    pub(crate) personality: Option<u64>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
    /// Of a process that is not the container's first.
    pub(crate) affinity: Affinity,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) selinux_label: Option<String>,
}

/// `RLIMIT_NOFILE`.
pub(crate) const DESCRIPTORS: u32 = 7;

/// What a process may need at its start. It has more open by then, and a limit counts for new ones alone.
pub(crate) const FOR_THE_START: u64 = 16;

impl Identity {
    /// The limit of descriptors, soft and hard, when it leaves too few for the start.
    pub(crate) fn few_descriptors(&self) -> Option<(u64, u64)> {
        let limit = self.limits.iter().rfind(|(resource, ..)| *resource == DESCRIPTORS)?;
        (limit.1 < FOR_THE_START).then_some((limit.1, limit.2))
    }
}

/// The five sets, one bit per capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CapabilityMasks {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) inheritable: u64,
    pub(crate) permitted: u64,
    pub(crate) ambient: u64,
}

impl CapabilityMasks {
    /// The program's capabilities that a runtime with only `held` cannot give it.
    pub(crate) fn beyond(&self, held: u64) -> u64 {
        (self.permitted | self.inheritable) & !held
    }

    /// Those that the kernel gives to nobody: effective without being permitted, ambient without being permitted and
    /// inheritable. capabilities(7).
    pub(crate) fn contradictory(&self) -> u64 {
        (self.effective & !self.permitted) | (self.ambient & !(self.permitted & self.inheritable))
    }
}

/// Of variables with one name the last, as who sets a variable again means it: which of two a program finds is its own
/// affair.
fn last_of_each(environment: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut is_new = |variable: &String| seen.insert(variable.split('=').next().unwrap_or_default().to_owned());
    let mut kept: Vec<String> = environment.iter().rev().filter(|variable| is_new(variable)).cloned().collect();
    kept.reverse();
    kept
}

/// The names of the capabilities of a mask.
pub(crate) fn names(mask: u64) -> String {
    let has = |one: &&Capability| mask & (1 << number(**one)) != 0;
    CAPABILITIES.iter().filter(has).map(|one| format!("CAP_{one}")).collect::<Vec<_>>().join(", ")
}

/// Reads `process`; `spec` gives the personality and the memory policy.
pub(crate) fn plan(process: &Process, spec: &Spec) -> Result<Identity, PlanError> {
    let arguments = strings(process.args().as_deref().unwrap_or_default(), "process.args")?;
    if arguments.first().is_none_or(|program| program.is_empty()) {
        return Err(PlanError::new("process.args", "is empty: there is nothing to execute"));
    }
    let environment = process.env().as_deref().unwrap_or_default();
    for (index, variable) in environment.iter().enumerate() {
        if variable.find('=').is_none_or(|at| at == 0) {
            return Err(PlanError::new(format!("process.env[{index}]"), format!("{variable:?} is not NAME=VALUE")));
        }
    }
    if !process.cwd().is_absolute() {
        return Err(PlanError::new(
            "process.cwd",
            format!("{:?} is not an absolute path", process.cwd().display().to_string()),
        ));
    }
    let user = process.user();
    for (field, id) in [("process.user.uid", user.uid()), ("process.user.gid", user.gid())] {
        // -1 means "leave as it is" to the kernel.
        if id == u32::MAX {
            return Err(PlanError::new(field, "4294967295 is no id"));
        }
    }
    let score = process.oom_score_adj();
    if score.is_some_and(|score| !(-1000..=1000).contains(&score)) {
        return Err(PlanError::new("process.oomScoreAdj", "is not within -1000 and 1000"));
    }
    Ok(Identity {
        arguments,
        environment: strings(&last_of_each(environment), "process.env")?,
        directory: clean(process.cwd()),
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: capabilities(process),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        limits: limits(process)?,
        scheduling: scheduling(process)?,
        io_priority: io_priority(process)?,
        personality: personality(spec)?,
        memory_policy: locality::memory_policy(spec)?,
        affinity: locality::affinity(process)?,
        oom_score_adj: score,
        apparmor_profile: process.apparmor_profile().clone().filter(|profile| !profile.is_empty()),
        selinux_label: process.selinux_label().clone().filter(|label| !label.is_empty()),
    })
}

fn strings(list: &[String], field: &str) -> Result<Vec<CString>, PlanError> {
    let one = |(index, text): (usize, &String)| {
        CString::new(text.as_str()).map_err(|_| PlanError::new(format!("{field}[{index}]"), "has a NUL byte"))
    };
    list.iter().enumerate().map(one).collect()
}

fn capabilities(process: &Process) -> CapabilityMasks {
    let Some(sets) = process.capabilities() else { return CapabilityMasks::default() };
    let mask = |set: &Option<Capabilities>| set.iter().flatten().fold(0, |mask, one| mask | (1_u64 << number(*one)));
    CapabilityMasks {
        bounding: mask(sets.bounding()),
        effective: mask(sets.effective()),
        inheritable: mask(sets.inheritable()),
        permitted: mask(sets.permitted()),
        ambient: mask(sets.ambient()),
    }
}

/// Every capability, in the order of the kernel's numbers.
pub(crate) const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The kernel's number of a capability, capabilities(7).
pub(crate) fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

fn limits(process: &Process) -> Result<Vec<(u32, u64, u64)>, PlanError> {
    let mut limits: Vec<(u32, u64, u64)> = Vec::new();
    for (index, limit) in process.rlimits().as_deref().unwrap_or_default().iter().enumerate() {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => 0,
            PosixRlimitType::RlimitFsize => 1,
            PosixRlimitType::RlimitData => 2,
            PosixRlimitType::RlimitStack => 3,
            PosixRlimitType::RlimitCore => 4,
            PosixRlimitType::RlimitRss => 5,
            PosixRlimitType::RlimitNproc => 6,
            PosixRlimitType::RlimitNofile => 7,
            PosixRlimitType::RlimitMemlock => 8,
            PosixRlimitType::RlimitAs => 9,
            PosixRlimitType::RlimitLocks => 10,
            PosixRlimitType::RlimitSigpending => 11,
            PosixRlimitType::RlimitMsgqueue => 12,
            PosixRlimitType::RlimitNice => 13,
            PosixRlimitType::RlimitRtprio => 14,
            PosixRlimitType::RlimitRttime => 15,
        };
        let field = format!("process.rlimits[{index}]");
        if limits.iter().any(|(known, ..)| *known == resource) {
            return Err(PlanError::new(field, format!("{:?} is there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(PlanError::new(field, format!("soft {} exceeds hard {}", limit.soft(), limit.hard())));
        }
        limits.push((resource, limit.soft(), limit.hard()));
    }
    Ok(limits)
}

fn scheduling(process: &Process) -> Result<Option<Scheduling>, PlanError> {
    let Some(scheduler) = process.scheduler() else { return Ok(None) };
    let mut attributes = Scheduling::default();
    attributes.policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    for flag in scheduler.flags().iter().flatten() {
        attributes.flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        };
    }
    attributes.nice = scheduler.nice().unwrap_or(0);
    attributes.priority = u32::try_from(scheduler.priority().unwrap_or(0))
        .map_err(|_| PlanError::new("process.scheduler.priority", "is negative"))?;
    attributes.runtime = scheduler.runtime().unwrap_or(0);
    attributes.deadline = scheduler.deadline().unwrap_or(0);
    attributes.period = scheduler.period().unwrap_or(0);
    Ok(Some(attributes))
}

fn io_priority(process: &Process) -> Result<Option<(u8, u8)>, PlanError> {
    let Some(priority) = process.io_priority() else { return Ok(None) };
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u8::try_from(priority.priority()).ok().filter(|level| *level < 8);
    level
        .map(|level| Some((class, level)))
        .ok_or_else(|| PlanError::new("process.ioPriority.priority", "is not within 0 and 7"))
}

fn personality(spec: &Spec) -> Result<Option<u64>, PlanError> {
    let Some(personality) = spec.linux().as_ref().and_then(|linux| linux.personality().as_ref()) else {
        return Ok(None);
    };
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(PlanError::new("linux.personality.flags", "no flag is defined by the specification"));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a `process.scheduler` becomes, read as a bundle's is.
    fn scheduled(scheduler: &serde_json::Value) -> Scheduling {
        let process = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["true"], "scheduler": scheduler });
        let config = json!({ "ociVersion": "1.3.0", "process": process });
        let spec = crate::config::parse(config.to_string().as_bytes()).expect("config").spec;
        let identity = plan(spec.process().as_ref().expect("process"), &spec).expect("plan");
        identity.scheduling.expect("a scheduler")
    }

    // Source: Linux include/uapi/linux/sched.h.
    #[test]
    fn each_scheduler_flag_has_the_kernels_bit() {
        let flags = [
            ("SCHED_FLAG_RESET_ON_FORK", 0x01),
            ("SCHED_FLAG_RECLAIM", 0x02),
            ("SCHED_FLAG_DL_OVERRUN", 0x04),
            ("SCHED_FLAG_KEEP_POLICY", 0x08),
            ("SCHED_FLAG_KEEP_PARAMS", 0x10),
            ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
            ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
        ];
        let bits = |names: &[&str]| scheduled(&json!({ "policy": "SCHED_OTHER", "flags": names })).flags;
        for (name, bit) in flags {
            assert_eq!(bits(&[name]), bit, "{name}");
        }
        assert_eq!(bits(&flags.map(|(name, _)| name)), 0x7f);
        assert_eq!(bits(&[]), 0);
    }

    // Source: as before.
    #[test]
    fn each_scheduling_policy_has_the_kernels_number() {
        let policies = [
            ("SCHED_OTHER", 0),
            ("SCHED_FIFO", 1),
            ("SCHED_RR", 2),
            ("SCHED_BATCH", 3),
            ("SCHED_ISO", 4),
            ("SCHED_IDLE", 5),
            ("SCHED_DEADLINE", 6),
        ];
        for (name, number) in policies {
            assert_eq!(scheduled(&json!({ "policy": name })).policy, number, "{name}");
        }
    }
}
