//! Resource limits, scheduling, execution domain, processors and memory nodes.

use portreeve_sys::{memory_policy, process};

use crate::error::{SetupError, Step};
use crate::plan::identity::{DESCRIPTORS, FOR_THE_START, Identity};

const NAMES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

pub(super) fn set(identity: &Identity) -> Result<(), SetupError> {
    let few = identity.few_descriptors().is_some();
    for (resource, soft, hard) in &identity.limits {
        let least = if few && *resource == DESCRIPTORS { FOR_THE_START } else { 0 };
        set_one(*resource, (*soft).max(least), (*hard).max(least))?;
    }
    if let Some(attributes) = &identity.scheduling {
        let what = format!("setting the scheduler to policy {}{}", attributes.policy, hint(attributes.policy));
        process::set_scheduling(attributes).step(&what, "")?;
    }
    if let Some((class, level)) = identity.io_priority {
        process::set_io_priority(class, level).step("setting the I/O priority", "")?;
    }
    if let Some(persona) = identity.personality {
        process::set_personality(persona).step("setting the personality", "")?;
    }
    if let Some(policy) = &identity.memory_policy {
        let what = format!(
            "setting the memory policy to {} (its nodes have to be online, and among those of the cpuset)",
            policy.words
        );
        memory_policy::set(policy.mode, &policy.nodes).step(&what, "")?;
    }
    Ok(())
}

/// To less than [`set`] has left, which takes no privilege.
pub(super) fn set_few_descriptors(identity: &Identity) -> Result<(), SetupError> {
    identity.few_descriptors().map_or(Ok(()), |(soft, hard)| set_one(DESCRIPTORS, soft, hard))
}

fn set_one(resource: u32, soft: u64, hard: u64) -> Result<(), SetupError> {
    let name = usize::try_from(resource).ok().and_then(|index| NAMES.get(index)).unwrap_or(&"?");
    let what = format!("setting RLIMIT_{name} to {soft} (soft) and {hard} (hard; raising it needs CAP_SYS_RESOURCE)");
    process::set_limit(resource, soft, hard).step(&what, "")
}

/// What a real-time policy needs besides CAP_SYS_NICE.
fn hint(policy: u32) -> &'static str {
    match policy {
        1 | 2 => " (in a cgroup of version 1 it needs linux.resources.cpu.realtimeRuntime)",
        _ => "",
    }
}

/// Binds a further process to its processors, after it has joined the container's cgroup.
pub(super) fn set_affinity(identity: &Identity) -> Result<(), SetupError> {
    let Some(set) = &identity.affinity.last else { return Ok(()) };
    rustix::thread::sched_setaffinity(None, set)
        .step("setting process.execCPUAffinity.final (one of them has to be online, and in the container's cpuset)", "")
}
