//! Memory and swap.

use oci_spec::runtime::LinuxMemory;

use super::{Absent, CgroupError, InForce, Plan, value_error, write};

/// The limit that an update asks to have checked, when it is one.
pub(crate) fn below_use(memory: &LinuxMemory) -> Option<u64> {
    let checked = memory.check_before_update().unwrap_or(false);
    let limit = memory.limit().filter(|limit| *limit > 0).and_then(|limit| u64::try_from(limit).ok());
    limit.filter(|_| checked)
}

pub(super) fn v1(memory: &LinuxMemory, now: &InForce, plan: &mut Plan) {
    let limit = memory.limit().filter(|limit| *limit != 0);
    // Without a limit on memory there can be none on memory and swap together.
    let swap = memory.swap().filter(|swap| *swap != 0).or(limit.filter(|limit| *limit < 0));
    let memory_limit = limit.map(|limit| write("memory", "memory.limit_in_bytes", limit, "memory.limit"));
    let both = swap.map(|swap| {
        write("memory", "memory.memsw.limit_in_bytes", swap, "memory.swap").or(if swap < 0 {
            Absent::Skip
        } else {
            Absent::Warn
        })
    });
    // Memory's own limit may at no moment be above that of memory and swap together.
    let grows = match (limit, now.memory_and_swap_bytes) {
        (Some(limit), Some(together)) => u64::try_from(limit).map_or(true, |limit| limit > together),
        _ => false,
    };
    plan.writes.extend(if grows { [both, memory_limit] } else { [memory_limit, both] }.into_iter().flatten());
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        plan.writes.push(write("memory", "memory.soft_limit_in_bytes", reservation, "memory.reservation"));
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|tcp| *tcp != 0) {
        plan.writes.push(write("memory", "memory.kmem.tcp.limit_in_bytes", tcp, "memory.kernelTCP"));
    }
    if let Some(swappiness) = swappiness(memory) {
        plan.writes.push(write("memory", "memory.swappiness", swappiness, "memory.swappiness"));
    }
    if let Some(disable) = memory.disable_oom_killer() {
        plan.writes.push(write("memory", "memory.oom_control", u8::from(disable), "memory.disableOOMKiller"));
    }
}

pub(super) fn v2(memory: &LinuxMemory, now: &InForce, plan: &mut Plan) -> Result<(), CgroupError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let swap = memory.swap().filter(|swap| *swap != 0).or(limit.filter(|limit| *limit < 0));
    if let Some(swap) = swap {
        let swap = swap_alone(swap, limit, now)?;
        let nothing = swap.is_none_or(|bytes| bytes == 0);
        let value = swap.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        let absent = if nothing { Absent::Skip } else { Absent::Warn };
        plan.writes.push(write("memory", "memory.swap.max", value, "memory.swap").or(absent));
    }
    if let Some(limit) = limit {
        plan.writes.push(write("memory", "memory.max", super::max_of(limit), "memory.limit"));
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        plan.writes.push(write("memory", "memory.low", super::max_of(reservation), "memory.reservation"));
    }
    let ignored = [
        (memory.kernel_tcp().is_some_and(|tcp| tcp != 0), "memory.kernelTCP"),
        (swappiness(memory).is_some(), "memory.swappiness"),
        (memory.disable_oom_killer() == Some(true), "memory.disableOOMKiller"),
    ];
    plan.ignored.extend(ignored.into_iter().filter(|(asked, _)| *asked).map(|(_, field)| field));
    Ok(())
}

/// Callers write the -1 that stands for none as what it is without a sign.
fn swappiness(memory: &LinuxMemory) -> Option<u64> {
    memory.swappiness().filter(|swappiness| *swappiness != u64::MAX)
}

/// The configuration counts memory and swap together, version 2 swap alone; `None` is no limit.
fn swap_alone(swap: i64, limit: Option<i64>, now: &InForce) -> Result<Option<u64>, CgroupError> {
    let Ok(together) = u64::try_from(swap) else { return Ok(None) };
    let limit = match limit {
        Some(limit) => u64::try_from(limit).ok(),
        None => now.memory_bytes,
    };
    let Some(limit) = limit else {
        return Err(value_error("memory.swap", "a limit on memory and swap needs one on memory beside it"));
    };
    match together.checked_sub(limit) {
        Some(alone) => Ok(Some(alone)),
        None => Err(value_error(
            "memory.swap",
            format!("{together} (memory and swap together) is below the memory limit {limit}"),
        )),
    }
}
