//! From `linux.resources` to the files of a cgroup, as data. Pure; the golden tests below are its specification.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::{CgroupError, Version};

/// One value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    /// Controller whose hierarchy has the file (version 1), or that must be enabled (version 2).
    pub(crate) controller: &'static str,
    /// File name.
    pub(crate) file: String,
    /// What to write.
    pub(crate) value: String,
    /// The field that asked for it.
    pub(crate) field: &'static str,
}

fn write(controller: &'static str, file: &str, value: impl ToString, field: &'static str) -> Write {
    Write { controller, file: file.to_owned(), value: value.to_string(), field }
}

/// What to write for `resources`, in order; devices are not among it (they are rules, see `devices`).
pub(crate) fn plan(version: Version, resources: &LinuxResources) -> Result<Vec<Write>, CgroupError> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        match version {
            Version::V1 => memory_v1(memory, &mut writes),
            Version::V2 => memory_v2(memory, &mut writes)?,
        }
    }
    if let Some(cpu) = resources.cpu() {
        match version {
            Version::V1 => cpu_v1(cpu, &mut writes),
            Version::V2 => cpu_v2(cpu, &mut writes),
        }
    }
    if let Some(pids) = resources.pids() {
        let limit = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() };
        writes.push(write("pids", "pids.max", limit, "pids.limit"));
    }
    if let Some(block) = resources.block_io() {
        block_io(version, block, &mut writes);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(CgroupError::Value {
                field: "hugepageLimits.pageSize".into(),
                reason: format!("{size:?} is no page size"),
            });
        }
        let file = match version {
            Version::V1 => format!("hugetlb.{size}.limit_in_bytes"),
            Version::V2 => format!("hugetlb.{size}.max"),
        };
        let value =
            if limit.limit() < 0 && version == Version::V2 { "max".to_owned() } else { limit.limit().to_string() };
        writes.push(write("hugetlb", &file, value, "hugepageLimits.limit"));
    }
    if let Some(network) = resources.network()
        && version == Version::V1
    {
        if let Some(class) = network.class_id() {
            writes.push(write("net_cls", "net_cls.classid", class, "network.classID"));
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            writes.push(write("net_prio", "net_prio.ifpriomap", value, "network.priorities"));
        }
    }
    let mut rdma: Vec<_> = resources.rdma().iter().flatten().collect();
    rdma.sort_by_key(|(name, _)| name.as_str());
    for (name, limit) in rdma {
        let part = |key: &str, value: Option<u32>| value.map_or_else(String::new, |value| format!(" {key}={value}"));
        let value =
            format!("{name}{}{}", part("hca_handle", limit.hca_handles()), part("hca_object", limit.hca_objects()));
        writes.push(write("rdma", "rdma.max", value, "rdma"));
    }
    unified(version, resources, &mut writes)?;
    Ok(writes)
}

fn unified(version: Version, resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<(), CgroupError> {
    let mut entries: Vec<_> = resources.unified().iter().flatten().collect();
    entries.sort();
    for (file, value) in entries {
        if version == Version::V1 {
            let reason = format!("{file} needs cgroup v2, this machine has v1");
            return Err(CgroupError::Value { field: "unified".into(), reason });
        }
        if file.contains('/') || !file.contains('.') || file.starts_with("cgroup.") {
            return Err(CgroupError::Value {
                field: "unified".into(),
                reason: format!("{file:?} is no file of a controller"),
            });
        }
        for line in value.lines() {
            writes.push(write("unified", file, line, "unified"));
        }
    }
    Ok(())
}

#[allow(deprecated, reason = "kernel memory is read to be ignored, as the specification allows")]
fn memory_v1(memory: &LinuxMemory, writes: &mut Vec<Write>) {
    if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
        writes.push(write("memory", "memory.limit_in_bytes", limit, "memory.limit"));
    }
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        writes.push(write("memory", "memory.memsw.limit_in_bytes", swap, "memory.swap"));
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        writes.push(write("memory", "memory.soft_limit_in_bytes", reservation, "memory.reservation"));
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|tcp| *tcp != 0) {
        writes.push(write("memory", "memory.kmem.tcp.limit_in_bytes", tcp, "memory.kernelTCP"));
    }
    if let Some(swappiness) = memory.swappiness() {
        writes.push(write("memory", "memory.swappiness", swappiness, "memory.swappiness"));
    }
    if let Some(disable) = memory.disable_oom_killer() {
        writes.push(write("memory", "memory.oom_control", u8::from(disable), "memory.disableOOMKiller"));
    }
}

fn memory_v2(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<(), CgroupError> {
    let number = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        // Version 1 counts memory and swap together, version 2 swap alone.
        let limit = memory.limit().unwrap_or(0);
        let value = match (swap, limit) {
            (..0, _) => "max".to_owned(),
            (_, ..=0) => {
                let reason = "a swap limit needs a memory limit beside it".to_owned();
                return Err(CgroupError::Value { field: "memory.swap".into(), reason });
            }
            (swap, limit) if swap < limit => {
                let reason = format!("{swap} (memory and swap together) is below the memory limit {limit}");
                return Err(CgroupError::Value { field: "memory.swap".into(), reason });
            }
            (swap, limit) => (swap - limit).to_string(),
        };
        writes.push(write("memory", "memory.swap.max", value, "memory.swap"));
    }
    if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
        writes.push(write("memory", "memory.max", number(limit), "memory.limit"));
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        writes.push(write("memory", "memory.low", number(reservation), "memory.reservation"));
    }
    Ok(())
}

fn cpu_v1(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        writes.push(write("cpu", "cpu.shares", shares, "cpu.shares"));
    }
    if let Some(period) = cpu.period().filter(|period| *period != 0) {
        writes.push(write("cpu", "cpu.cfs_period_us", period, "cpu.period"));
    }
    if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
        writes.push(write("cpu", "cpu.cfs_quota_us", quota, "cpu.quota"));
    }
    if let Some(burst) = cpu.burst() {
        writes.push(write("cpu", "cpu.cfs_burst_us", burst, "cpu.burst"));
    }
    if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
        writes.push(write("cpu", "cpu.rt_period_us", period, "cpu.realtimePeriod"));
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
        writes.push(write("cpu", "cpu.rt_runtime_us", runtime, "cpu.realtimeRuntime"));
    }
    if let Some(idle) = cpu.idle() {
        writes.push(write("cpu", "cpu.idle", idle, "cpu.idle"));
    }
    cpusets(cpu, writes);
}

fn cpu_v2(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    if let Some(idle) = cpu.idle() {
        writes.push(write("cpu", "cpu.idle", idle, "cpu.idle"));
    }
    // An idle cgroup takes no weight.
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0 && cpu.idle().unwrap_or(0) == 0) {
        writes.push(write("cpu", "cpu.weight", weight_of_shares(shares), "cpu.shares"));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let quota_text = quota.map(|quota| if quota < 0 { "max".to_owned() } else { quota.to_string() });
    match (quota_text, period) {
        (None, None) => {}
        (Some(quota), None) => writes.push(write("cpu", "cpu.max", quota, "cpu.quota")),
        (Some(quota), Some(period)) => writes.push(write("cpu", "cpu.max", format!("{quota} {period}"), "cpu.quota")),
        // The kernel has no way to write a period alone: `CURRENT` is replaced by the quota in force.
        (None, Some(period)) => writes.push(write("cpu", "cpu.max", format!("{CURRENT} {period}"), "cpu.period")),
    }
    if let Some(burst) = cpu.burst() {
        writes.push(write("cpu", "cpu.max.burst", burst, "cpu.burst"));
    }
    cpusets(cpu, writes);
}

/// Stands for the first word that the file has now.
pub(crate) const CURRENT: &str = "current";

fn cpusets(cpu: &LinuxCpu, writes: &mut Vec<Write>) {
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        writes.push(write("cpuset", "cpuset.cpus", cpus, "cpu.cpus"));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        writes.push(write("cpuset", "cpuset.mems", mems, "cpu.mems"));
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
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
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

fn block_io(version: Version, block: &LinuxBlockIo, writes: &mut Vec<Write>) {
    match version {
        Version::V1 => {
            if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
                writes.push(write("blkio", "blkio.bfq.weight", weight, "blockIO.weight"));
            }
            for device in block.weight_device().iter().flatten() {
                if let Some(weight) = device.weight() {
                    let value = format!("{}:{} {weight}", device.major(), device.minor());
                    writes.push(write("blkio", "blkio.bfq.weight_device", value, "blockIO.weightDevice"));
                }
            }
            throttle(block, |device, name, field, _| {
                let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
                writes.push(write("blkio", &format!("blkio.throttle.{name}_device"), value, field));
            });
        }
        Version::V2 => {
            if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
                writes.push(write("io", "io.bfq.weight", weight, "blockIO.weight"));
            }
            for device in block.weight_device().iter().flatten() {
                if let Some(weight) = device.weight() {
                    let value = format!("{}:{} {weight}", device.major(), device.minor());
                    writes.push(write("io", "io.bfq.weight", value, "blockIO.weightDevice"));
                }
            }
            throttle(block, |device, _, field, key| {
                let value = format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
                writes.push(write("io", "io.max", value, field));
            });
        }
    }
}

fn throttle(block: &LinuxBlockIo, mut each: impl FnMut(&LinuxThrottleDevice, &str, &'static str, &str)) {
    let lists = [
        (block.throttle_read_bps_device(), "read_bps", "blockIO.throttleReadBpsDevice", "rbps"),
        (block.throttle_write_bps_device(), "write_bps", "blockIO.throttleWriteBpsDevice", "wbps"),
        (block.throttle_read_iops_device(), "read_iops", "blockIO.throttleReadIOPSDevice", "riops"),
        (block.throttle_write_iops_device(), "write_iops", "blockIO.throttleWriteIOPSDevice", "wiops"),
    ];
    for (devices, name, field, key) in lists {
        for device in devices.iter().flatten() {
            each(device, name, field, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(version: Version, json: &str, expected: &Expect) {
        let resources: LinuxResources = serde_json::from_str(json).expect("resources");
        let text = match plan(version, &resources) {
            Ok(writes) => writes.iter().map(|w| format!("{}: {} <- {}\n", w.controller, w.file, w.value)).collect(),
            Err(error) => format!("error: {error}\n"),
        };
        expected.assert_eq(&text);
    }

    const POD: &str = r#"{
        "memory": {"limit": 268435456, "swap": 268435456, "reservation": 134217728},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 100},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]
    }"#;

    #[test]
    fn limits_become_version_one_files() {
        check(
            Version::V1,
            POD,
            &expect![[r#"
            memory: memory.limit_in_bytes <- 268435456
            memory: memory.memsw.limit_in_bytes <- 268435456
            memory: memory.soft_limit_in_bytes <- 134217728
            cpu: cpu.shares <- 512
            cpu: cpu.cfs_period_us <- 100000
            cpu: cpu.cfs_quota_us <- 50000
            cpuset: cpuset.cpus <- 0-1
            cpuset: cpuset.mems <- 0
            pids: pids.max <- 100
            hugetlb: hugetlb.2MB.limit_in_bytes <- 4194304
        "#]],
        );
    }

    #[test]
    fn limits_become_version_two_files() {
        check(
            Version::V2,
            POD,
            &expect![[r#"
            memory: memory.swap.max <- 0
            memory: memory.max <- 268435456
            memory: memory.low <- 134217728
            cpu: cpu.weight <- 59
            cpu: cpu.max <- 50000 100000
            cpuset: cpuset.cpus <- 0-1
            cpuset: cpuset.mems <- 0
            pids: pids.max <- 100
            hugetlb: hugetlb.2MB.max <- 4194304
        "#]],
        );
    }

    #[test]
    fn minus_one_takes_a_limit_away() {
        let json = r#"{"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}"#;
        check(
            Version::V1,
            json,
            &expect![[r#"
            memory: memory.limit_in_bytes <- -1
            memory: memory.memsw.limit_in_bytes <- -1
            cpu: cpu.cfs_quota_us <- -1
            pids: pids.max <- max
        "#]],
        );
        check(
            Version::V2,
            json,
            &expect![[r#"
            memory: memory.swap.max <- max
            memory: memory.max <- max
            cpu: cpu.max <- max
            pids: pids.max <- max
        "#]],
        );
    }

    #[test]
    fn unified_values_are_refused_on_version_one_and_checked_on_version_two() {
        check(
            Version::V1,
            r#"{"unified": {"memory.high": "1000"}}"#,
            &expect![[r#"
            error: unified: memory.high needs cgroup v2, this machine has v1
        "#]],
        );
        check(
            Version::V2,
            r#"{"unified": {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:1 rbps=2"}}"#,
            &expect![[r#"
            unified: io.max <- 8:0 rbps=1
            unified: io.max <- 8:1 rbps=2
            unified: memory.high <- 1000
        "#]],
        );
        check(
            Version::V2,
            r#"{"unified": {"../memory.max": "1000"}}"#,
            &expect![[r#"
            error: unified: "../memory.max" is no file of a controller
        "#]],
        );
        check(
            Version::V2,
            r#"{"unified": {"cgroup.procs": "1"}}"#,
            &expect![[r#"
            error: unified: "cgroup.procs" is no file of a controller
        "#]],
        );
    }

    #[test]
    fn swap_below_memory_is_refused_on_version_two() {
        check(
            Version::V2,
            r#"{"memory": {"limit": 100, "swap": 50}}"#,
            &expect![[r#"
            error: memory.swap: 50 (memory and swap together) is below the memory limit 100
        "#]],
        );
    }

    #[test]
    fn block_io_throttles_name_their_device() {
        let json = r#"{"blockIO": {"weight": 300, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 50}]}}"#;
        check(
            Version::V1,
            json,
            &expect![[r#"
            blkio: blkio.bfq.weight <- 300
            blkio: blkio.throttle.read_bps_device <- 8:0 1048576
            blkio: blkio.throttle.write_iops_device <- 8:16 50
        "#]],
        );
        check(
            Version::V2,
            json,
            &expect![[r#"
            io: io.bfq.weight <- 300
            io: io.max <- 8:0 rbps=1048576
            io: io.max <- 8:16 wiops=50
        "#]],
        );
    }

    #[test]
    fn the_default_of_shares_is_the_default_of_weight() {
        let weights: Vec<u64> = [0, 2, 10, 102, 1024, 2048, 10_240, 262_144, u64::MAX].map(weight_of_shares).to_vec();
        assert_eq!(weights, [1, 1, 4, 17, 100, 174, 639, 10_000, 10_000]);
    }

    #[test]
    fn a_period_alone_keeps_the_quota_in_force() {
        check(
            Version::V2,
            r#"{"cpu": {"period": 50000}}"#,
            &expect![[r#"
            cpu: cpu.max <- current 50000
        "#]],
        );
    }
}
