//! CPU time and which CPUs.

use oci_spec::runtime::LinuxCpu;

use super::{Absent, InForce, Plan, Write, write};

pub(super) fn v1(cpu: &LinuxCpu, now: &InForce, plan: &mut Plan) {
    let idle = idle(cpu);
    let shares = shares(cpu).map(|shares| write("cpu", "cpu.shares", shares, "cpu.shares"));
    let quota = quota(cpu).map(|quota| write("cpu", "cpu.cfs_quota_us", quota, "cpu.quota"));
    let period = period(cpu);
    let shorter = period.is_some_and(|period| period < now.period_us);
    let period = period.map(|period| write("cpu", "cpu.cfs_period_us", period, "cpu.period"));
    plan.writes.extend([idle, shares].into_iter().flatten());
    plan.writes.extend(around(burst(cpu, "cpu.cfs_burst_us", now), in_order(shorter, period, quota)));
    let period = cpu.realtime_period().filter(|period| *period != 0);
    let shorter = period.is_some_and(|period| period < now.realtime_period_us);
    let period = period.map(|period| write("cpu", "cpu.rt_period_us", period, "cpu.realtimePeriod"));
    let runtime = cpu.realtime_runtime().filter(|runtime| *runtime != 0);
    let runtime = runtime.map(|runtime| write("cpu", "cpu.rt_runtime_us", runtime, "cpu.realtimeRuntime"));
    plan.writes.extend(in_order(shorter, period, runtime));
    cpusets(cpu, plan);
}

pub(super) fn v2(cpu: &LinuxCpu, now: &InForce, plan: &mut Plan) {
    let idle = idle(cpu);
    let weight = shares(cpu).map(|shares| write("cpu", "cpu.weight", weight_of_shares(shares), "cpu.shares"));
    plan.writes.extend([idle, weight].into_iter().flatten());
    let words = |quota: Option<u64>| quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
    let quota = quota(cpu).map(|quota| words(u64::try_from(quota).ok()));
    let bandwidth = match (quota, period(cpu)) {
        (None, None) => None,
        (Some(quota), None) => Some(write("cpu", "cpu.max", quota, "cpu.quota")),
        (Some(quota), Some(period)) => Some(write("cpu", "cpu.max", format!("{quota} {period}"), "cpu.quota")),
        // The kernel has no way to write a period alone.
        (None, Some(period)) => {
            Some(write("cpu", "cpu.max", format!("{} {period}", words(now.quota_us)), "cpu.period"))
        }
    };
    plan.writes.extend(around(burst(cpu, "cpu.max.burst", now), bandwidth));
    let realtime = [
        (cpu.realtime_period().is_some_and(|period| period != 0), "cpu.realtimePeriod"),
        (cpu.realtime_runtime().is_some_and(|runtime| runtime != 0), "cpu.realtimeRuntime"),
    ];
    plan.ignored.extend(realtime.into_iter().filter(|(asked, _)| *asked).map(|(_, field)| field));
    cpusets(cpu, plan);
}

/// Kernels before 5.15 know no idle cgroups, so that none is.
fn idle(cpu: &LinuxCpu) -> Option<Write> {
    let idle = cpu.idle()?;
    let absent = if idle == 0 { Absent::Skip } else { Absent::Refuse };
    Some(write("cpu", "cpu.idle", idle, "cpu.idle").or(absent))
}

/// An idle cgroup takes no shares; one that ceases to be idle does, once it has ceased.
fn shares(cpu: &LinuxCpu) -> Option<u64> {
    cpu.shares().filter(|shares| *shares != 0 && cpu.idle().unwrap_or(0) == 0)
}

fn quota(cpu: &LinuxCpu) -> Option<i64> {
    cpu.quota().filter(|quota| *quota != 0)
}

fn period(cpu: &LinuxCpu) -> Option<u64> {
    cpu.period().filter(|period| *period != 0)
}

/// The kernel compares quota / period with the parent's after each write: a longer period goes first, and a shorter one
/// last, so that the share in between is below both.
fn in_order(shorter: bool, period: Option<Write>, quota: Option<Write>) -> impl Iterator<Item = Write> {
    if shorter { [quota, period] } else { [period, quota] }.into_iter().flatten()
}

/// A burst that shrinks, and whether it does.
fn burst(cpu: &LinuxCpu, file: &str, now: &InForce) -> Option<(Write, bool)> {
    let burst = cpu.burst()?;
    let absent = if burst == 0 { Absent::Skip } else { Absent::Refuse };
    Some((write("cpu", file, burst, "cpu.burst").or(absent), burst <= now.burst_us))
}

/// A burst may at no moment exceed the quota: one that shrinks goes first, one that grows last.
fn around(burst: Option<(Write, bool)>, bandwidth: impl IntoIterator<Item = Write>) -> Vec<Write> {
    let (first, last) = match burst {
        Some((write, true)) => (Some(write), None),
        Some((write, false)) => (None, Some(write)),
        None => (None, None),
    };
    first.into_iter().chain(bandwidth).chain(last).collect()
}

fn cpusets(cpu: &LinuxCpu, plan: &mut Plan) {
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        plan.writes.push(write("cpuset", "cpuset.cpus", cpus, "cpu.cpus"));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        plan.writes.push(write("cpuset", "cpuset.mems", mems, "cpu.mems"));
    }
}

/// Shares (2 to 262144, 1024 is the default) as a weight (1 to 10000, 100 is the default): minimum, default and
/// maximum of both scales meet, with a quadratic fit between, as crun 1.23 and runc 1.4 have it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "2 to 262144 become 1 to 10000"
)]
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}
