//! Golden tests: each field of `linux.resources`, on both versions.

use expect_test::{Expect, expect};
use oci_spec::runtime::LinuxResources;

use super::*;

fn check_when(now: &InForce, version: Version, json: &str, expected: &Expect) {
    let resources: LinuxResources = serde_json::from_str(json).expect("resources");
    let text = match plan(version, &resources, now) {
        Ok(plan) => {
            let mut lines = String::new();
            for write in plan.writes {
                let absent = match write.absent {
                    Absent::Refuse => String::new(),
                    Absent::Skip => " (or nothing)".to_owned(),
                    Absent::Warn => " (or a warning)".to_owned(),
                    Absent::Instead(file, value) => format!(" (or {file} <- {value})"),
                };
                lines.push_str(&format!("{}: {} <- {}{absent}\n", write.controller, write.file, write.value));
            }
            lines.extend(plan.ignored.iter().map(|field| format!("ignored: {field}\n")));
            lines
        }
        Err(error) => format!("error: {error}\n"),
    };
    expected.assert_eq(&text);
}

fn check(version: Version, json: &str, expected: &Expect) {
    check_when(&InForce::default(), version, json, expected);
}

/// The same on both versions.
fn both(json: &str, v1: &Expect, v2: &Expect) {
    check(Version::V1, json, v1);
    check(Version::V2, json, v2);
}

#[test]
fn limits_of_a_pod() {
    both(
        r#"{"memory": {"limit": 268435456, "swap": 268435456, "reservation": 134217728},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": 100}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#,
        &expect![[r#"
            memory: memory.limit_in_bytes <- 268435456
            memory: memory.memsw.limit_in_bytes <- 268435456 (or a warning)
            memory: memory.soft_limit_in_bytes <- 134217728
            cpu: cpu.shares <- 512
            cpu: cpu.cfs_period_us <- 100000
            cpu: cpu.cfs_quota_us <- 50000
            cpuset: cpuset.cpus <- 0-1
            cpuset: cpuset.mems <- 0
            pids: pids.max <- 100
            hugetlb: hugetlb.2MB.rsvd.limit_in_bytes <- 4194304 (or nothing)
            hugetlb: hugetlb.2MB.limit_in_bytes <- 4194304
        "#]],
        &expect![[r#"
            memory: memory.swap.max <- 0 (or nothing)
            memory: memory.max <- 268435456
            memory: memory.low <- 134217728
            cpu: cpu.weight <- 59
            cpu: cpu.max <- 50000 100000
            cpuset: cpuset.cpus <- 0-1
            cpuset: cpuset.mems <- 0
            pids: pids.max <- 100
            hugetlb: hugetlb.2MB.rsvd.max <- 4194304 (or nothing)
            hugetlb: hugetlb.2MB.max <- 4194304
        "#]],
    );
}

#[test]
fn every_field_of_memory() {
    both(
        r#"{"memory": {"limit": 1000, "reservation": 500, "swap": 3000, "kernel": 7, "kernelTCP": 200, "swappiness": 10,
            "disableOOMKiller": true, "useHierarchy": true, "checkBeforeUpdate": true}}"#,
        &expect![[r#"
            memory: memory.limit_in_bytes <- 1000
            memory: memory.memsw.limit_in_bytes <- 3000 (or a warning)
            memory: memory.soft_limit_in_bytes <- 500
            memory: memory.kmem.tcp.limit_in_bytes <- 200
            memory: memory.swappiness <- 10
            memory: memory.oom_control <- 1
        "#]],
        &expect![[r#"
            memory: memory.swap.max <- 2000 (or a warning)
            memory: memory.max <- 1000
            memory: memory.low <- 500
            ignored: memory.kernelTCP
            ignored: memory.swappiness
            ignored: memory.disableOOMKiller
        "#]],
    );
}

#[test]
fn a_swappiness_of_minus_one_without_its_sign_is_none() {
    both(r#"{"memory": {"swappiness": 18446744073709551615}}"#, &expect![""], &expect![""]);
}

#[test]
fn zero_and_absent_leave_memory_as_it_is() {
    both(
        r#"{"memory": {"limit": 0, "reservation": 0, "swap": 0, "kernelTCP": 0, "disableOOMKiller": false}}"#,
        &expect![[r#"
            memory: memory.oom_control <- 0
        "#]],
        &expect![""],
    );
}

#[test]
fn minus_one_takes_a_limit_away() {
    both(
        r#"{"memory": {"limit": -1, "swap": -1, "reservation": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1},
            "hugepageLimits": [{"pageSize": "1GB", "limit": -1}]}"#,
        &expect![[r#"
            memory: memory.limit_in_bytes <- -1
            memory: memory.memsw.limit_in_bytes <- -1 (or nothing)
            memory: memory.soft_limit_in_bytes <- -1
            cpu: cpu.cfs_quota_us <- -1
            pids: pids.max <- max
            hugetlb: hugetlb.1GB.rsvd.limit_in_bytes <- -1 (or nothing)
            hugetlb: hugetlb.1GB.limit_in_bytes <- -1
        "#]],
        &expect![[r#"
            memory: memory.swap.max <- max (or nothing)
            memory: memory.max <- max
            memory: memory.low <- max
            cpu: cpu.max <- max
            pids: pids.max <- max
            hugetlb: hugetlb.1GB.rsvd.max <- max (or nothing)
            hugetlb: hugetlb.1GB.max <- max
        "#]],
    );
}

#[test]
fn memory_without_a_limit_has_none_on_swap_either() {
    both(
        r#"{"memory": {"limit": -1}}"#,
        &expect![[r#"
        memory: memory.limit_in_bytes <- -1
        memory: memory.memsw.limit_in_bytes <- -1 (or nothing)
    "#]],
        &expect![[r#"
        memory: memory.swap.max <- max (or nothing)
        memory: memory.max <- max
    "#]],
    );
}

#[test]
fn memory_stays_below_memory_and_swap_while_both_change() {
    let json = r#"{"memory": {"limit": 2000, "swap": 2000}}"#;
    let now = |bytes| InForce { memory_and_swap_bytes: Some(bytes), ..InForce::default() };
    check_when(
        &now(1000),
        Version::V1,
        json,
        &expect![[r#"
        memory: memory.memsw.limit_in_bytes <- 2000 (or a warning)
        memory: memory.limit_in_bytes <- 2000
    "#]],
    );
    check_when(
        &now(3000),
        Version::V1,
        json,
        &expect![[r#"
        memory: memory.limit_in_bytes <- 2000
        memory: memory.memsw.limit_in_bytes <- 2000 (or a warning)
    "#]],
    );
    check_when(
        &now(1000),
        Version::V1,
        r#"{"memory": {"limit": -1, "swap": -1}}"#,
        &expect![[r#"
        memory: memory.memsw.limit_in_bytes <- -1 (or nothing)
        memory: memory.limit_in_bytes <- -1
    "#]],
    );
}

#[test]
fn swap_alone_is_counted_from_the_memory_limit_in_force() {
    let json = r#"{"memory": {"swap": 3000}}"#;
    check(
        Version::V1,
        json,
        &expect![[r#"
        memory: memory.memsw.limit_in_bytes <- 3000 (or a warning)
    "#]],
    );
    let now = InForce { memory_bytes: Some(1000), ..InForce::default() };
    check_when(
        &now,
        Version::V2,
        json,
        &expect![[r#"
        memory: memory.swap.max <- 2000 (or a warning)
    "#]],
    );
    check(
        Version::V2,
        json,
        &expect![[r#"
        error: memory.swap: a limit on memory and swap needs one on memory beside it
    "#]],
    );
    check(
        Version::V2,
        r#"{"memory": {"limit": -1, "swap": 3000}}"#,
        &expect![[r#"
        error: memory.swap: a limit on memory and swap needs one on memory beside it
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
fn every_field_of_cpu() {
    both(
        r#"{"cpu": {"shares": 1024, "quota": 20000, "period": 100000, "burst": 5000, "realtimePeriod": 1000000,
            "realtimeRuntime": 950000, "cpus": "0-3,7", "mems": "0-1", "idle": 0}}"#,
        &expect![[r#"
            cpu: cpu.idle <- 0 (or nothing)
            cpu: cpu.shares <- 1024
            cpu: cpu.cfs_period_us <- 100000
            cpu: cpu.cfs_quota_us <- 20000
            cpu: cpu.cfs_burst_us <- 5000
            cpu: cpu.rt_period_us <- 1000000
            cpu: cpu.rt_runtime_us <- 950000
            cpuset: cpuset.cpus <- 0-3,7
            cpuset: cpuset.mems <- 0-1
        "#]],
        &expect![[r#"
            cpu: cpu.idle <- 0 (or nothing)
            cpu: cpu.weight <- 100
            cpu: cpu.max <- 20000 100000
            cpu: cpu.max.burst <- 5000
            cpuset: cpuset.cpus <- 0-3,7
            cpuset: cpuset.mems <- 0-1
            ignored: cpu.realtimePeriod
            ignored: cpu.realtimeRuntime
        "#]],
    );
}

#[test]
fn an_idle_cgroup_gets_no_shares() {
    both(
        r#"{"cpu": {"shares": 512, "idle": 1}}"#,
        &expect![[r#"
        cpu: cpu.idle <- 1
    "#]],
        &expect![[r#"
        cpu: cpu.idle <- 1
    "#]],
    );
}

#[test]
fn a_shorter_period_follows_the_quota_for_it() {
    let now = InForce { period_us: 100_000, realtime_period_us: 1_000_000, ..InForce::default() };
    let shorter = r#"{"cpu": {"quota": 5000, "period": 50000, "realtimePeriod": 500000, "realtimeRuntime": 1000}}"#;
    check_when(
        &now,
        Version::V1,
        shorter,
        &expect![[r#"
        cpu: cpu.cfs_quota_us <- 5000
        cpu: cpu.cfs_period_us <- 50000
        cpu: cpu.rt_runtime_us <- 1000
        cpu: cpu.rt_period_us <- 500000
    "#]],
    );
    check_when(
        &now,
        Version::V1,
        r#"{"cpu": {"quota": 20000, "period": 200000}}"#,
        &expect![[r#"
        cpu: cpu.cfs_period_us <- 200000
        cpu: cpu.cfs_quota_us <- 20000
    "#]],
    );
}

#[test]
fn a_burst_shrinks_before_the_quota_and_grows_after_it() {
    let now = InForce { burst_us: 10_000, ..InForce::default() };
    let smaller = r#"{"cpu": {"quota": 5000, "burst": 5000}}"#;
    check_when(
        &now,
        Version::V1,
        smaller,
        &expect![[r#"
        cpu: cpu.cfs_burst_us <- 5000
        cpu: cpu.cfs_quota_us <- 5000
    "#]],
    );
    check_when(
        &now,
        Version::V2,
        smaller,
        &expect![[r#"
        cpu: cpu.max.burst <- 5000
        cpu: cpu.max <- 5000
    "#]],
    );
    let larger = r#"{"cpu": {"quota": 50000, "burst": 50000}}"#;
    check_when(
        &now,
        Version::V1,
        larger,
        &expect![[r#"
        cpu: cpu.cfs_quota_us <- 50000
        cpu: cpu.cfs_burst_us <- 50000
    "#]],
    );
    check_when(
        &now,
        Version::V2,
        larger,
        &expect![[r#"
        cpu: cpu.max <- 50000
        cpu: cpu.max.burst <- 50000
    "#]],
    );
    both(
        r#"{"cpu": {"burst": 0}}"#,
        &expect![[r#"
        cpu: cpu.cfs_burst_us <- 0 (or nothing)
    "#]],
        &expect![[r#"
        cpu: cpu.max.burst <- 0 (or nothing)
    "#]],
    );
}

#[test]
fn a_period_alone_keeps_the_quota_in_force() {
    let json = r#"{"cpu": {"period": 50000}}"#;
    both(
        json,
        &expect![[r#"
        cpu: cpu.cfs_period_us <- 50000
    "#]],
        &expect![[r#"
        cpu: cpu.max <- max 50000
    "#]],
    );
    let now = InForce { quota_us: Some(20_000), ..InForce::default() };
    check_when(
        &now,
        Version::V2,
        json,
        &expect![[r#"
        cpu: cpu.max <- 20000 50000
    "#]],
    );
}

#[test]
fn a_process_limit_of_zero_is_one_and_a_negative_one_none() {
    for (limit, written) in [(0, "1"), (1, "1"), (-1, "max")] {
        let resources = serde_json::from_value(serde_json::json!({"pids": {"limit": limit}})).expect("resources");
        for version in [Version::V1, Version::V2] {
            let plan = plan(version, &resources, &InForce::default()).expect("plan");
            let values: Vec<_> = plan.writes.iter().map(|write| (write.file.as_str(), write.value.as_str())).collect();
            assert_eq!(values, [("pids.max", written)], "{limit}");
        }
    }
}

#[test]
fn every_field_of_block_io() {
    both(
        r#"{"blockIO": {"weight": 300, "weightDevice": [{"major": 8, "minor": 0, "weight": 500}, {"major": 8, "minor": 16}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}],
            "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2}],
            "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 3}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 18446744073709551615}]}}"#,
        &expect![[r#"
            blkio: blkio.bfq.weight <- 300 (or blkio.weight <- 300)
            blkio: blkio.bfq.weight_device <- 8:0 500 (or blkio.weight_device <- 8:0 500)
            blkio: blkio.throttle.read_bps_device <- 8:0 1
            blkio: blkio.throttle.write_bps_device <- 8:0 2
            blkio: blkio.throttle.read_iops_device <- 8:0 3
            blkio: blkio.throttle.write_iops_device <- 8:16 18446744073709551615
        "#]],
        &expect![[r#"
            io: io.bfq.weight <- 300 (or io.weight <- 2930)
            io: io.bfq.weight <- 8:0 500 (or io.weight <- 8:0 4950)
            io: io.max <- 8:0 rbps=1
            io: io.max <- 8:0 wbps=2
            io: io.max <- 8:0 riops=3
            io: io.max <- 8:16 wiops=18446744073709551615
        "#]],
    );
}

#[test]
fn a_rate_of_zero_is_none() {
    both(
        r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]}}"#,
        &expect![[r#"
            blkio: blkio.throttle.read_bps_device <- 8:0 0
        "#]],
        &expect![[r#"
            io: io.max <- 8:0 rbps=max
        "#]],
    );
}

#[test]
fn a_leaf_weight_is_of_version_one() {
    both(
        r#"{"blockIO": {"leafWeight": 20}}"#,
        &expect![[r#"
        blkio: blkio.leaf_weight <- 20
    "#]],
        &expect![[r#"
        error: blockIO.leafWeight: cgroup v2 has no weight of a cgroup against its children
    "#]],
    );
    both(
        r#"{"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}}"#,
        &expect![[r#"
            blkio: blkio.leaf_weight_device <- 8:0 10
        "#]],
        &expect![[r#"
            error: blockIO.leafWeight: cgroup v2 has no weight of a cgroup against its children
        "#]],
    );
}

#[test]
fn a_weight_out_of_range_is_refused() {
    both(
        r#"{"blockIO": {"weight": 9}}"#,
        &expect![[r#"
        error: blockIO.weight: 9 is not between 10 and 1000
    "#]],
        &expect![[r#"
        error: blockIO.weight: 9 is not between 10 and 1000
    "#]],
    );
    both(
        r#"{"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 1001}]}}"#,
        &expect![[r#"
            error: blockIO.weightDevice: 1001 is not between 10 and 1000
        "#]],
        &expect![[r#"
            error: blockIO.weightDevice: 1001 is not between 10 and 1000
        "#]],
    );
}

#[test]
fn the_ends_of_block_weights_meet() {
    assert_eq!([10, 100, 500, 1000].map(block::cost_weight), [1, 910, 4950, 10_000]);
}

#[test]
fn huge_pages_are_limited_at_reservation_first() {
    both(
        r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}, {"pageSize": "1GB", "limit": 0}]}"#,
        &expect![[r#"
            hugetlb: hugetlb.2MB.rsvd.limit_in_bytes <- 4194304 (or nothing)
            hugetlb: hugetlb.2MB.limit_in_bytes <- 4194304
            hugetlb: hugetlb.1GB.rsvd.limit_in_bytes <- 0 (or nothing)
            hugetlb: hugetlb.1GB.limit_in_bytes <- 0
        "#]],
        &expect![[r#"
            hugetlb: hugetlb.2MB.rsvd.max <- 4194304 (or nothing)
            hugetlb: hugetlb.2MB.max <- 4194304
            hugetlb: hugetlb.1GB.rsvd.max <- 0 (or nothing)
            hugetlb: hugetlb.1GB.max <- 0
        "#]],
    );
    both(
        r#"{"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}"#,
        &expect![[r#"
        error: hugepageLimits.pageSize: "../2MB" is no page size
    "#]],
        &expect![[r#"
        error: hugepageLimits.pageSize: "../2MB" is no page size
    "#]],
    );
}

#[test]
fn traffic_is_marked_on_version_one_and_nothing_else_passes_for_it() {
    both(
        r#"{"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}, {"name": "lo", "priority": 1}]}}"#,
        &expect![[r#"
            net_cls: net_cls.classid <- 1048577
            net_prio: net_prio.ifpriomap <- eth0 500
            net_prio: net_prio.ifpriomap <- lo 1
        "#]],
        &expect![[r#"
            error: network.classID: cgroup v2 marks no traffic; match the cgroup's path in the firewall instead (nftables: socket cgroupv2)
        "#]],
    );
    both(
        r#"{"network": {"priorities": [{"name": "eth0", "priority": 500}]}}"#,
        &expect![[r#"
        net_prio: net_prio.ifpriomap <- eth0 500
    "#]],
        &expect![[r#"
        error: network.priorities: cgroup v2 marks no traffic; match the cgroup's path in the firewall instead (nftables: socket cgroupv2)
    "#]],
    );
    both(
        r#"{"network": {"priorities": [{"name": "a 1\nb", "priority": 500}]}}"#,
        &expect![[r#"
        error: network.priorities: "a 1\nb" is no name of a device
    "#]],
        &expect![[r#"
        error: network.priorities: cgroup v2 marks no traffic; match the cgroup's path in the firewall instead (nftables: socket cgroupv2)
    "#]],
    );
    both(r#"{"network": {}}"#, &expect![""], &expect![""]);
}

#[test]
fn remote_memory_is_limited_by_device() {
    both(
        r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 5}, "mlx3_0": {}}}"#,
        &expect![[r#"
            rdma: rdma.max <- mlx4_0 hca_object=5
            rdma: rdma.max <- mlx5_1 hca_handle=3 hca_object=10000
        "#]],
        &expect![[r#"
            rdma: rdma.max <- mlx4_0 hca_object=5
            rdma: rdma.max <- mlx5_1 hca_handle=3 hca_object=10000
        "#]],
    );
    both(
        r#"{"rdma": {"": {"hcaHandles": 3}}}"#,
        &expect![[r#"
        error: rdma: "" is no name of a device
    "#]],
        &expect![[r#"
        error: rdma: "" is no name of a device
    "#]],
    );
}

#[test]
fn unified_values_are_refused_on_version_one_and_checked_on_version_two() {
    both(
        r#"{"unified": {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:1 rbps=2", "cgroup.max.depth": "3",
            "hugetlb.2MB.rsvd.max": "0", "cgroup.pressure": "0"}}"#,
        &expect![[r#"
            error: unified: cgroup.max.depth needs cgroup v2, this machine has v1
        "#]],
        &expect![[r#"
            cgroup: cgroup.max.depth <- 3
            cgroup: cgroup.pressure <- 0
            hugetlb: hugetlb.2MB.rsvd.max <- 0
            io: io.max <- 8:0 rbps=1
            io: io.max <- 8:1 rbps=2
            memory: memory.high <- 1000
        "#]],
    );
    for name in [
        "../memory.max",
        "memory",
        ".max",
        "memory.max\n",
        "cgroup.procs",
        "cgroup.freeze",
        "cgroup.kill",
        "cgroup.type",
    ] {
        let json = serde_json::json!({"unified": {name: "1"}}).to_string();
        let refusal = format!("error: unified: {name:?} is no setting of a controller\n");
        let resources: LinuxResources = serde_json::from_str(&json).expect("resources");
        let error = plan(Version::V2, &resources, &InForce::default()).expect_err(name);
        assert_eq!(format!("error: {error}\n"), refusal);
    }
}

#[test]
fn an_empty_unified_value_is_written_as_an_empty_line() {
    let resources = serde_json::from_str(r#"{"unified": {"cpuset.cpus": "", "io.max": "8:0 rbps=1\n"}}"#);
    let plan = plan(Version::V2, &resources.expect("resources"), &InForce::default()).expect("plan");
    let values: Vec<&str> = plan.writes.iter().map(|write| write.value.as_str()).collect();
    assert_eq!(values, ["\n", "8:0 rbps=1"]);
}

#[test]
fn the_default_of_shares_is_the_default_of_weight() {
    let weights: Vec<u64> = [0, 2, 10, 102, 1024, 2048, 10_240, 262_144, u64::MAX].map(cpu::weight_of_shares).to_vec();
    assert_eq!(weights, [1, 1, 4, 17, 100, 174, 639, 10_000, 10_000]);
}

#[test]
fn a_limit_is_compared_with_use_only_when_asked() {
    let checked = |json: &str| below_use(&serde_json::from_str(json).expect("memory"));
    assert_eq!(checked(r#"{"limit": 1000, "checkBeforeUpdate": true}"#), Some(1000));
    assert_eq!(checked(r#"{"limit": 1000, "checkBeforeUpdate": false}"#), None);
    assert_eq!(checked(r#"{"limit": 1000}"#), None);
    assert_eq!(checked(r#"{"limit": -1, "checkBeforeUpdate": true}"#), None);
}

#[test]
fn settings_are_what_a_new_cgroup_of_version_2_is_written() {
    let json = r#"{"memory": {"limit": 64, "swap": 100}, "pids": {"limit": -1}, "unified": {"memory.high": "50"},
                   "devices": [{"allow": false}]}"#;
    let resources = serde_json::from_str(json).expect("resources");
    let settings: Vec<(String, String)> =
        settings(&resources).expect("settings").into_iter().map(|one| (one.file, one.value)).collect();
    let expected = [("memory.swap.max", "36"), ("memory.max", "64"), ("pids.max", "max"), ("memory.high", "50")];
    assert_eq!(settings, expected.map(|(file, value)| (file.to_owned(), value.to_owned())));
}
