//! `linux.resources`: limits as the kernel has them, what they do, and how `update` changes them.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use portreeve_e2e::{Answer, Attempts, Bundle, Runtime, cgroup_version, has_controller, skipped, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// One limit: what is configured, and for either version the file and the values that it may then have.
struct Limit {
    resources: Value,
    first: (&'static str, &'static [&'static str]),
    second: (&'static str, &'static [&'static str]),
}

fn limit(
    resources: Value,
    first: (&'static str, &'static [&'static str]),
    second: (&'static str, &'static [&'static str]),
) -> Limit {
    Limit { resources, first, second }
}

/// What has no file under one of the versions has an empty name there.
fn limits() -> Vec<Limit> {
    vec![
        limit(
            json!({ "memory": { "limit": 64 * MIB } }),
            ("memory/memory.limit_in_bytes", &["67108864"]),
            ("memory.max", &["67108864"]),
        ),
        limit(
            json!({ "memory": { "reservation": 32 * MIB } }),
            ("memory/memory.soft_limit_in_bytes", &["33554432"]),
            ("memory.low", &["33554432"]),
        ),
        limit(
            json!({ "memory": { "limit": 64 * MIB, "swap": 96 * MIB } }),
            ("memory/memory.memsw.limit_in_bytes", &["100663296"]),
            ("memory.swap.max", &["33554432"]),
        ),
        limit(json!({ "memory": { "swappiness": 10 } }), ("memory/memory.swappiness", &["10"]), ("", &[])),
        limit(
            json!({ "memory": { "kernelTCP": 16 * MIB } }),
            ("memory/memory.kmem.tcp.limit_in_bytes", &["16777216"]),
            ("", &[]),
        ),
        // The weight of the second version has been worked out in two ways by other runtimes.
        limit(json!({ "cpu": { "shares": 512 } }), ("cpu/cpu.shares", &["512"]), ("cpu.weight", &["20", "59"])),
        limit(
            json!({ "cpu": { "quota": 50_000, "period": 200_000 } }),
            ("cpu/cpu.cfs_quota_us", &["50000"]),
            ("cpu.max", &["50000 200000"]),
        ),
        limit(
            json!({ "cpu": { "quota": 50_000, "period": 200_000 } }),
            ("cpu/cpu.cfs_period_us", &["200000"]),
            ("cpu.max", &["50000 200000"]),
        ),
        limit(
            json!({ "cpu": { "quota": 50_000, "period": 100_000, "burst": 10_000 } }),
            ("cpu/cpu.cfs_burst_us", &["10000"]),
            ("cpu.max.burst", &["10000"]),
        ),
        limit(json!({ "cpu": { "idle": 1 } }), ("cpu/cpu.idle", &["1"]), ("cpu.idle", &["1"])),
        limit(json!({ "cpu": { "cpus": "0" } }), ("cpuset/cpuset.cpus", &["0"]), ("cpuset.cpus", &["0"])),
        limit(json!({ "cpu": { "mems": "0" } }), ("cpuset/cpuset.mems", &["0"]), ("cpuset.mems", &["0"])),
        limit(json!({ "pids": { "limit": 20 } }), ("pids/pids.max", &["20"]), ("pids.max", &["20"])),
        limit(json!({ "pids": { "limit": -1 } }), ("pids/pids.max", &["max"]), ("pids.max", &["max"])),
        limit(
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 * MIB }] }),
            ("hugetlb/hugetlb.2MB.limit_in_bytes", &["4194304"]),
            ("hugetlb.2MB.max", &["4194304"]),
        ),
        limit(
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 * MIB }] }),
            ("hugetlb/hugetlb.2MB.rsvd.limit_in_bytes", &["4194304"]),
            ("hugetlb.2MB.rsvd.max", &["4194304"]),
        ),
        limit(json!({ "unified": { "memory.high": "33554432" } }), ("", &[]), ("memory.high", &["33554432"])),
    ]
}

/// Whether this kernel has the file in cgroups that are not the topmost.
fn has(runtime: &Runtime, bundle: &Bundle, limit: &Limit) -> bool {
    let (first, second) = (limit.first.0, limit.second.0);
    let named = if cgroup_version() == 2 { second } else { first };
    !named.is_empty() && runtime.cgroup_file(bundle, first, second).exists()
}

fn resources(resources: &Value) -> Value {
    json!({ "linux": { "resources": resources } })
}

/// `update` with resources on its standard input.
fn update(runtime: &Runtime, bundle: &Bundle, resources: &Value) -> Answer {
    let mut command = runtime.command(&["update", "--resources", "-", bundle.id()]);
    command.stdin(Stdio::piped());
    let mut call = runtime.begin(command);
    let mut input = call.stdin().expect("a pipe");
    // One that refuses at once does not read.
    let _ = input.write_all(resources.to_string().as_bytes());
    drop(input);
    call.finish()
}

#[test]
fn each_limit_is_written_at_creation_and_by_update() {
    let test = "each_limit_is_written_at_creation_and_by_update";
    let Some(runtime) = Runtime::for_test(test) else { return };
    for limit in limits() {
        let plain = runtime.bundle(&["wait"]);
        runtime.start_waiting(&plain);
        if !has(&runtime, &plain, &limit) {
            skipped(test, &format!("these cgroups have no file for {}", limit.resources));
            continue;
        }
        let check = |bundle: &Bundle, when: &str| {
            let value = runtime.cgroup_value(bundle, limit.first.0, limit.second.0);
            let expected = if cgroup_version() == 2 { limit.second.1 } else { limit.first.1 };
            assert!(expected.contains(&&*value), "{when}, {}: {value}, not one of {expected:?}", limit.resources);
        };
        update(&runtime, &plain, &limit.resources).ok();
        check(&plain, "updated");
        let limited = runtime.bundle(&["wait"]).with(resources(&limit.resources));
        runtime.create(&limited, &[]).ok();
        check(&limited, "created");
        for bundle in [plain, limited] {
            runtime.call(&["delete", "--force", bundle.id()]).ok();
        }
    }
}

#[test]
fn a_weight_and_rates_of_block_devices_are_written() {
    let test = "a_weight_and_rates_of_block_devices_are_written";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let Some(device) = disk() else { return skipped(test, "this machine has no disk") };
    let (major, minor) = device.split_once(':').unwrap();
    let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    let rate = |rate: u64| json!([{ "major": major, "minor": minor, "rate": rate }]);
    let given = json!({ "blockIO": {
        "throttleReadBpsDevice": rate(MIB), "throttleWriteBpsDevice": rate(2 * MIB),
        "throttleReadIOPSDevice": rate(100), "throttleWriteIOPSDevice": rate(200),
    } });
    let bundle = runtime.bundle(&["wait"]).with(resources(&given));
    runtime.create(&bundle, &[]).ok();
    if cgroup_version() == 2 {
        let seen = runtime.cgroup_value(&bundle, "", "io.max");
        assert_eq!(seen, format!("{device} rbps=1048576 wbps=2097152 riops=100 wiops=200"));
    } else {
        for (file, value) in [("read_bps", MIB), ("write_bps", 2 * MIB), ("read_iops", 100), ("write_iops", 200)] {
            let seen = runtime.cgroup_value(&bundle, &format!("blkio/blkio.throttle.{file}_device"), "");
            assert_eq!(seen, format!("{device} {value}"), "{file}");
        }
    }
}

#[test]
fn a_weight_of_block_devices_goes_to_the_scheduler_that_there_is_or_is_refused() {
    let test = "a_weight_of_block_devices_goes_to_the_scheduler_that_there_is_or_is_refused";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // A container that could not be made has no cgroup, so one without a word about weights is asked for the files.
    let plain = runtime.bundle(&["wait"]);
    runtime.create(&plain, &[]).ok();
    // BFQ takes the configuration's numbers; the cost model of the second version has a scale of its own.
    let files = [("blkio/blkio.bfq.weight", "io.bfq.weight", "300"), ("blkio/blkio.weight", "io.weight", "2930")];
    let file = files.iter().find(|(first, second, _)| runtime.cgroup_file(&plain, first, second).exists());
    let given = json!({ "blockIO": { "weight": 300 } });
    let bundle = runtime.bundle(&["wait"]).with(resources(&given));
    let answer = runtime.create(&bundle, &[]);
    let updated = update(&runtime, &plain, &given);
    if let Some((first, second, scaled)) = file {
        answer.ok();
        updated.ok();
        let expected = if cgroup_version() == 2 { scaled } else { "300" };
        for bundle in [&bundle, &plain] {
            let value = runtime.cgroup_value(bundle, first, second);
            assert_eq!(value.trim_start_matches("default "), expected, "{}", bundle.id());
        }
    } else {
        for (what, answer) in [("create", answer), ("update", updated)] {
            assert_eq!(answer.code, 1, "{what}: {}", answer.stderr);
            assert!(answer.stderr.contains(", which blockIO.weight needs"), "{what}: {}", answer.stderr);
        }
        assert_eq!(runtime.status(&bundle), None, "it was not made");
    }
    assert_eq!(runtime.status(&plain).as_deref(), Some("created"), "it stays, whatever was said to the update");
}

#[test]
fn a_weight_of_a_cgroup_against_those_below_it_is_refused_where_there_is_none() {
    let test = "a_weight_of_a_cgroup_against_those_below_it_is_refused_where_there_is_none";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let plain = runtime.bundle(&["wait"]);
    runtime.create(&plain, &[]).ok();
    let second = cgroup_version() == 2;
    // CFQ had it, and is gone since Linux 5.0.
    if !second && runtime.cgroup_file(&plain, "blkio/blkio.leaf_weight", "").exists() {
        return skipped(test, "these cgroups have a weight of their own against those below them");
    }
    let words = if second {
        "cgroup v2 has no weight of a cgroup against its children"
    } else {
        "this kernel has no blkio.leaf_weight, which blockIO.leafWeight needs"
    };
    let given = json!({ "blockIO": { "leafWeight": 300 } });
    let created = runtime.create(&runtime.bundle(&["wait"]).with(resources(&given)), &[]);
    for (what, answer) in [("create", created), ("update", update(&runtime, &plain, &given))] {
        assert_eq!(answer.code, 1, "{what}: {}", answer.stderr);
        assert!(answer.stderr.contains(words), "{what}: {}", answer.stderr);
    }
    runtime.call(&["delete", "--force", plain.id()]).ok();
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

/// The number of a disk of this machine.
fn disk() -> Option<String> {
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    let mut names: Vec<_> = disks.map(|entry| entry.path()).filter(|path| path.join("queue").exists()).collect();
    names.sort_by_key(|path| path.to_string_lossy().contains("loop") || path.to_string_lossy().contains("ram"));
    Some(std::fs::read_to_string(names.first()?.join("dev")).ok()?.trim().to_owned())
}

#[test]
fn a_limit_without_its_controller_is_an_error_that_names_it() {
    let test = "a_limit_without_its_controller_is_an_error_that_names_it";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let version = cgroup_version();
    let there = |controller: &str| {
        version == 1 && Path::new("/sys/fs/cgroup").join(controller).is_dir()
            || version == 2
                && std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                    .unwrap()
                    .split_whitespace()
                    .any(|one| one == controller)
    };
    for (given, controller, words) in [
        (json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }] }), "hugetlb", "hugetlb"),
        (json!({ "network": { "classID": 1_048_577 } }), "net_cls", if version == 1 { "net_cls" } else { "network" }),
        (
            json!({ "network": { "priorities": [{ "name": "lo", "priority": 3 }] } }),
            "net_prio",
            if version == 1 { "net_prio" } else { "network" },
        ),
        (json!({ "rdma": { "mlx5_1": { "hcaHandles": 3, "hcaObjects": 10 } } }), "rdma", "rdma"),
    ] {
        if there(controller) && controller == "rdma" {
            // A device that is not there is as good as a controller that is not: the kernel refuses it.
            let answer = runtime.create(&runtime.bundle(&["wait"]).with(resources(&given)), &[]);
            assert_ne!(answer.code, 0, "{given}");
            for words in ["rdma.max", "mlx5_1", "No such device"] {
                assert!(answer.stderr.contains(words), "{given}: {}", answer.stderr);
            }
            assert_eq!(runtime.leftovers(), Vec::<String>::new());
            continue;
        }
        if there(controller) {
            skipped(test, &format!("{controller} is there"));
            continue;
        }
        let answer = runtime.create(&runtime.bundle(&["wait"]).with(resources(&given)), &[]);
        assert_ne!(answer.code, 0, "{given}");
        assert!(answer.stderr.contains(words), "{given}: {}", answer.stderr);
    }
    if version == 1 {
        let given = json!({ "unified": { "memory.high": "33554432" } });
        let answer = runtime.create(&runtime.bundle(&["wait"]).with(resources(&given)), &[]);
        assert_ne!(answer.code, 0);
        assert!(answer.stderr.to_lowercase().contains("unified"), "{}", answer.stderr);
    }
}

#[test]
fn network_traffic_is_marked_where_its_controllers_are_mounted() {
    let test = "network_traffic_is_marked_where_its_controllers_are_mounted";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if cgroup_version() == 2 {
        return skipped(test, "cgroup v2 marks no traffic");
    }
    // Seen by nobody else: the hierarchy is mounted in a mount namespace of the test's own.
    let mount = runtime.world().path("net");
    std::fs::create_dir(&mount).unwrap();
    let mount = mount.display().to_string();
    let mounted = format!("mount -t cgroup -o net_cls,net_prio none {mount} && echo mounted || true");
    if runtime.world().sh(&mounted).trim() != "mounted" {
        return skipped(test, "net_cls and net_prio cannot be mounted");
    }
    let given = json!({ "network": { "classID": 1_048_577, "priorities": [{ "name": "lo", "priority": 3 }] } });
    let bundle = runtime.bundle(&["wait"]).with(resources(&given));
    runtime.start_waiting(&bundle);
    let cgroup = format!("{mount}{}/{}", runtime.cgroup(), bundle.id());
    let read = |file: &str| runtime.world().sh(&format!("cat {cgroup}/{file}"));
    assert_eq!(read("net_cls.classid"), "1048577\n");
    assert!(read("net_prio.ifpriomap").lines().any(|line| line == "lo 3"), "{}", read("net_prio.ifpriomap"));
    assert!(read("cgroup.procs").lines().next().is_some(), "the container is in it");
    let change = json!({ "network": { "classID": 1_048_578, "priorities": [{ "name": "lo", "priority": 4 }] } });
    update(&runtime, &bundle, &change).ok();
    assert_eq!(read("net_cls.classid"), "1048578\n");
    assert!(read("net_prio.ifpriomap").lines().any(|line| line == "lo 4"), "{}", read("net_prio.ifpriomap"));
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    let parent = format!("{mount}{}", runtime.cgroup());
    runtime.world().sh(&format!("test ! -d {parent} || rmdir {parent}"));
    // A hierarchy that is unmounted before the last of its cgroups has gone stays with the kernel.
    wait_until("the root of the hierarchy is left alone", 20, || {
        let controllers = std::fs::read_to_string("/proc/cgroups").unwrap();
        let line = controllers.lines().find(|line| line.starts_with("net_cls\t")).unwrap_or_default().to_owned();
        if line.split_whitespace().nth(2) == Some("1") { Ok(()) } else { Err(line) }
    });
    runtime.world().sh(&format!("umount {mount}"));
}

#[test]
fn a_value_that_makes_no_sense_is_refused_and_leaves_nothing() {
    let Some(runtime) = Runtime::for_test("a_value_that_makes_no_sense_is_refused_and_leaves_nothing") else { return };
    for given in [
        json!({ "cpu": { "cpus": "900-901" } }),
        json!({ "cpu": { "quota": 10, "period": 1 } }),
        json!({ "memory": { "limit": 64 * MIB, "swap": 32 * MIB } }),
        json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] }),
        json!({ "unified": { "../escape": "1" } }),
        json!({ "unified": { "memory.nonsense": "1" } }),
    ] {
        let bundle = runtime.bundle(&["wait"]).with(resources(&given));
        let answer = runtime.create(&bundle, &[]);
        assert_ne!(answer.code, 0, "{given}");
        assert!(!answer.stderr.trim().is_empty(), "{given}");
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{given}");
    }
}

#[test]
fn memory_beyond_the_limit_ends_the_container() {
    let Some(runtime) = Runtime::for_test("memory_beyond_the_limit_ends_the_container") else { return };
    let given = resources(&json!({ "memory": { "limit": 32 * MIB, "swap": 32 * MIB } }));
    let within = runtime.run(&runtime.bundle(&["eat", "8"]).with(given.clone()), &[]);
    assert_eq!(within.ok(), "\"ate\"\n");
    let beyond = runtime.run(&runtime.bundle(&["eat", "128"]).with(given), &[]);
    assert_eq!(beyond.code, 137, "{}{}", beyond.stdout, beyond.stderr);
}

#[test]
fn processes_beyond_the_limit_do_not_start() {
    let Some(runtime) = Runtime::for_test("processes_beyond_the_limit_do_not_start") else { return };
    let bundle = runtime.bundle(&["fork", "50"]).with(resources(&json!({ "pids": { "limit": 10 } })));
    let said: Value = serde_json::from_str(&runtime.run(&bundle, &[]).ok()).unwrap();
    assert_eq!(said, json!({ "came_to_be": 9, "errno": "EAGAIN" }));
}

#[test]
fn a_process_limit_of_zero_counts_since_it_can_be_left_out() {
    let Some(runtime) = Runtime::for_test("a_process_limit_of_zero_counts_since_it_can_be_left_out") else { return };
    for (version, pids, expected) in [
        ("1.3.0", json!({ "limit": 0 }), json!({ "came_to_be": 0, "errno": "EAGAIN" })),
        ("1.3.0", json!({}), json!({ "came_to_be": 3, "errno": null })),
        ("1.2.1", json!({ "limit": 0 }), json!({ "came_to_be": 3, "errno": null })),
    ] {
        let given = resources(&json!({ "pids": pids }));
        let bundle = runtime.bundle(&["fork", "3"]).with(given).with(json!({ "ociVersion": version }));
        let said: Value = serde_json::from_str(&runtime.run(&bundle, &[]).ok()).unwrap();
        assert_eq!(said, expected, "{version} {pids}");
    }
}

#[test]
fn a_quota_slows_the_container_down() {
    let Some(runtime) = Runtime::for_test("a_quota_slows_the_container_down") else { return };
    let given = resources(&json!({ "cpu": { "quota": 10_000, "period": 100_000 } }));
    let spin = || -> Value {
        serde_json::from_str(&runtime.run(&runtime.bundle(&["spin", "1000"]).with(given.clone()), &[]).ok()).unwrap()
    };
    let slow = |said: &Value| {
        let (used, elapsed) = (said["used_ms"].as_u64().unwrap(), said["elapsed_ms"].as_u64().unwrap());
        used * 100 < elapsed * 25
    };
    // A guest whose own processor is taken away misses the ends of quotas: then it may try again.
    let mut tries = Vec::new();
    while tries.len() < 3 && !tries.last().is_some_and(slow) {
        tries.push(spin());
    }
    assert!(tries.last().is_some_and(slow), "a tenth of a processor, and some for the first period: {tries:?}");
}

#[test]
fn a_set_of_processors_holds() {
    let test = "a_set_of_processors_holds";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle(&["report"]).with(resources(&json!({ "cpu": { "cpus": "0" } })));
    if !has_controller("cpuset") {
        return skipped(test, "there is no cpuset controller");
    }
    assert_eq!(runtime.report(&bundle)["affinity"], json!([0]));
}

#[test]
fn update_takes_every_limit_as_a_flag() {
    let test = "update_takes_every_limit_as_a_flag";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle(&["wait"]);
    runtime.start_waiting(&bundle);
    for (flags, first, second, expected) in [
        (&["--memory", "67108864"][..], "memory/memory.limit_in_bytes", "memory.max", &["67108864"][..]),
        (&["--memory", "48m"], "memory/memory.limit_in_bytes", "memory.max", &["50331648"]),
        (&["--memory-reservation", "16777216"], "memory/memory.soft_limit_in_bytes", "memory.low", &["16777216"]),
        (
            &["--memory", "33554432", "--memory-swap", "67108864"],
            "memory/memory.memsw.limit_in_bytes",
            "memory.swap.max",
            &["67108864", "33554432"],
        ),
        (&["--pids-limit", "33"], "pids/pids.max", "pids.max", &["33"]),
        (&["--cpu-share", "256"], "cpu/cpu.shares", "cpu.weight", &["256", "10", "35"]),
        (
            &["--cpu-period", "50000", "--cpu-quota", "25000"],
            "cpu/cpu.cfs_quota_us",
            "cpu.max",
            &["25000", "25000 50000"],
        ),
        (&["--cpu-burst", "5000"], "cpu/cpu.cfs_burst_us", "cpu.max.burst", &["5000"]),
        (&["--cpu-quota", "-1", "--cpu-burst", "0"], "cpu/cpu.cfs_quota_us", "cpu.max", &["-1", "max 50000"]),
        (&["--cpuset-cpus", "0"], "cpuset/cpuset.cpus", "cpuset.cpus", &["0"]),
        (&["--cpuset-mems", "0"], "cpuset/cpuset.mems", "cpuset.mems", &["0"]),
        (&["--cpu-idle", "1"], "cpu/cpu.idle", "cpu.idle", &["1"]),
        (&["--cpu-idle", "0"], "cpu/cpu.idle", "cpu.idle", &["0"]),
    ] {
        if !runtime.cgroup_file(&bundle, first, second).exists() {
            skipped(test, &format!("these cgroups have no file for {flags:?}"));
            continue;
        }
        runtime.call(&[&["update"], flags, &[bundle.id()]].concat()).ok();
        let value = runtime.cgroup_value(&bundle, first, second);
        assert!(expected.contains(&&*value), "{flags:?}: {value}");
    }
    // What was not mentioned last is as it was.
    assert_eq!(runtime.cgroup_value(&bundle, "pids/pids.max", "pids.max"), "33");
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
}

/// The configuration that is kept of a container.
fn stored(runtime: &Runtime, bundle: &Bundle) -> Value {
    let text = std::fs::read_to_string(runtime.root().join(bundle.id()).join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn memory_and_swap_together_stay_when_memory_alone_is_updated() {
    let test = "memory_and_swap_together_stay_when_memory_alone_is_updated";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let given = json!({ "memory": { "limit": 64 * MIB, "swap": 96 * MIB } });
    let bundle = runtime.bundle(&["wait"]).with(resources(&given));
    runtime.start_waiting(&bundle);
    if !runtime.cgroup_file(&bundle, "memory/memory.memsw.limit_in_bytes", "memory.swap.max").exists() {
        return skipped(test, "this kernel does not count swap");
    }
    let swap = || runtime.cgroup_value(&bundle, "memory/memory.memsw.limit_in_bytes", "memory.swap.max");
    let alone = |mib: u64| (if cgroup_version() == 2 { mib } else { 96 } * MIB).to_string();
    runtime.call(&["update", "--memory", "80m", bundle.id()]).ok();
    assert_eq!(swap(), alone(16));
    // More than both together.
    assert_ne!(runtime.call(&["update", "--memory", "128m", bundle.id()]).code, 0);
    assert_eq!(swap(), alone(16));
    assert_eq!(runtime.cgroup_value(&bundle, "memory/memory.limit_in_bytes", "memory.max"), (80 * MIB).to_string());
    let kept = stored(&runtime, &bundle);
    assert_eq!(kept["linux"]["resources"]["memory"], json!({ "limit": 80 * MIB, "swap": 96 * MIB }));
    update(&runtime, &bundle, &json!({ "memory": { "limit": -1 } })).ok();
    let kept = stored(&runtime, &bundle);
    assert_eq!(kept["linux"]["resources"]["memory"], json!({ "limit": -1, "swap": -1 }));
}

#[test]
fn a_zero_in_an_update_says_nothing() {
    let Some(runtime) = Runtime::for_test("a_zero_in_an_update_says_nothing") else { return };
    let given = json!({ "memory": { "limit": 64 * MIB }, "pids": { "limit": 20 } });
    let bundle = runtime.bundle(&["wait"]).with(resources(&given));
    runtime.start_waiting(&bundle);
    let before = stored(&runtime, &bundle);
    update(&runtime, &bundle, &json!({ "memory": { "limit": 0 }, "pids": {} })).ok();
    runtime.call(&["update", "--pids-limit", "0", "--memory", "0", bundle.id()]).ok();
    assert_eq!(stored(&runtime, &bundle), before);
    assert_eq!(runtime.cgroup_value(&bundle, "pids/pids.max", "pids.max"), "20");
}

#[test]
fn without_the_resource_control_file_system_its_groups_are_refused_in_plain_words() {
    let test = "without_the_resource_control_file_system_its_groups_are_refused_in_plain_words";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - resctrl ") {
        return skipped(test, "it is mounted");
    }
    for group in [json!({ "closID": "some" }), json!({}), json!({ "schemata": ["L3:0=f"] })] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "intelRdt": group } }));
        let answer = runtime.run(&bundle, &[]);
        assert_ne!(answer.code, 0, "{group}");
        assert!(
            answer.stderr.contains("linux.intelRdt") && answer.stderr.contains("mount -t resctrl"),
            "{}",
            answer.stderr
        );
        assert_eq!(runtime.leftovers(), Vec::<String>::new());
    }
    let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "intelRdt": { "closID": "../x" } } }));
    let answer = runtime.run(&bundle, &[]);
    assert!(answer.code != 0 && answer.stderr.contains("closID"), "{}", answer.stderr);
    let bundle = runtime.bundle(&["wait"]);
    runtime.start_waiting(&bundle);
    for words in [["--l3-cache-schema", "L3:0=f"], ["--mem-bw-schema", "MB:0=20"]] {
        let answer = runtime.call(&["update", words[0], words[1], bundle.id()]);
        assert!(answer.code != 0 && answer.stderr.contains("mount -t resctrl"), "{}", answer.stderr);
    }
}

#[test]
fn an_update_that_fails_changes_nothing() {
    let Some(runtime) = Runtime::for_test("an_update_that_fails_changes_nothing") else { return };
    let given = json!({ "memory": { "limit": 64 * MIB }, "pids": { "limit": 20 } });
    let bundle = runtime.bundle(&["wait"]).with(resources(&given));
    runtime.start_waiting(&bundle);
    let values = || {
        (
            runtime.cgroup_value(&bundle, "memory/memory.limit_in_bytes", "memory.max"),
            runtime.cgroup_value(&bundle, "pids/pids.max", "pids.max"),
        )
    };
    let before = values();
    for text in ["{\"pids\":", "[]", "{\"pids\":{\"limit\":\"many\"}}", "{\"memory\":{\"limit\":\"1\"}}"] {
        let file = runtime.world().path("resources.json");
        std::fs::write(&file, text).unwrap();
        let answer = runtime.call(&["update", "-r", file.to_str().unwrap(), bundle.id()]);
        assert_ne!(answer.code, 0, "{text}");
        assert_eq!(values(), before, "{text}");
    }
    let answer = runtime.call(&["update", "--cpuset-cpus", "900", "--pids-limit", "7", bundle.id()]);
    assert_ne!(answer.code, 0);
    assert_eq!(values(), before, "one limit that cannot be leaves the others");
    // Also of a container whose configuration names none of them.
    let plain = runtime.bundle(&["wait"]);
    runtime.start_waiting(&plain);
    let none = runtime.cgroup_value(&plain, "pids/pids.max", "pids.max");
    let asked = json!({ "pids": { "limit": 7 }, "unified": { "memory.nonsense": "1" } });
    let asked = if cgroup_version() == 2 {
        asked
    } else {
        json!({ "pids": { "limit": 7 }, "hugepageLimits": [{ "pageSize": "3MB", "limit": 1 }] })
    };
    assert_ne!(update(&runtime, &plain, &asked).code, 0);
    assert_eq!(runtime.cgroup_value(&plain, "pids/pids.max", "pids.max"), none);
    for flags in [["--memory", "much"], ["--pids-limit", "many"], ["--cpu-share", "-"]] {
        assert_ne!(runtime.call(&[&["update"], &flags[..], &[bundle.id()]].concat()).code, 0, "{flags:?}");
        assert_eq!(values(), before, "{flags:?}");
    }
}

#[test]
fn a_limit_below_use_is_refused_only_when_asked_to() {
    let test = "a_limit_below_use_is_refused_only_when_asked_to";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if cgroup_version() == 1 {
        return skipped(test, "the kernel itself refuses it under the first version");
    }
    let bundle = runtime.bundle_of(&["sh", "-c", "/prober wait & exec /prober wait"]);
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    let asked = json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } });
    let before = runtime.cgroup_value(&bundle, "", "memory.max");
    assert_ne!(update(&runtime, &bundle, &asked).code, 0);
    assert_eq!(runtime.cgroup_value(&bundle, "", "memory.max"), before);
    update(&runtime, &bundle, &json!({ "memory": { "limit": 4096 } })).ok();
    assert_eq!(runtime.cgroup_value(&bundle, "", "memory.max"), "4096");
}

#[test]
fn processes_that_are_entered_later_are_limited_too() {
    let Some(runtime) = Runtime::for_test("processes_that_are_entered_later_are_limited_too") else { return };
    let bundle = runtime.bundle(&["wait"]).with(resources(&json!({ "pids": { "limit": 10 } })));
    runtime.start_waiting(&bundle);
    let said = runtime.exec(&bundle, &[], &["/prober", "fork", "50"]).ok();
    let said: Value = serde_json::from_str(said.trim()).unwrap();
    assert!(said["came_to_be"].as_u64().is_some_and(|count| count <= 8), "{said}");
    let users = runtime.bundle(&["wait"]).with_users(100_000, 65536);
    let users = users.with(resources(&json!({ "pids": { "limit": 10 } })));
    runtime.start_waiting(&users);
    let inside = runtime.cgroup_value(&users, "pids/cgroup.procs", "cgroup.procs");
    assert_eq!(inside, runtime.pid(&users).to_string(), "also one with users of its own");
    let answer = runtime.exec(&users, &[], &["/prober", "try", "read /proc/self/cgroup"]);
    assert_eq!(Attempts::parse(&answer.ok()).errno("read /proc/self/cgroup"), "ok");
}

#[test]
fn the_out_of_memory_killer_can_be_kept_away() {
    let test = "the_out_of_memory_killer_can_be_kept_away";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if cgroup_version() == 2 {
        return skipped(test, "the second version has no such setting");
    }
    let given = json!({ "memory": { "limit": 64 * MIB, "disableOOMKiller": true } });
    let bundle = runtime.bundle(&["wait"]).with(resources(&given));
    runtime.create(&bundle, &[]).ok();
    let control = runtime.cgroup_value(&bundle, "memory/memory.oom_control", "");
    assert!(control.contains("oom_kill_disable 1"), "{control}");
}

#[test]
fn a_hierarchy_that_is_covered_is_left_alone() {
    let Some(runtime) = Runtime::for_test("a_hierarchy_that_is_covered_is_left_alone") else { return };
    if cgroup_version() != 1 {
        skipped("a_hierarchy_that_is_covered_is_left_alone", "version 2 has one hierarchy");
        return;
    }
    runtime.world().sh("mount -t tmpfs none /sys/fs/cgroup/blkio");
    let bundle = runtime.bundle(&["wait"]);
    runtime.start_waiting(&bundle);
    let group = std::fs::read_to_string(format!("/proc/{}/cgroup", runtime.pid(&bundle))).expect("its cgroups");
    let of = |name: &str| {
        let line = group.lines().find(|line| line.split(':').nth(1) == Some(name)).expect("a hierarchy");
        line.rsplit(':').next().expect("a path").to_owned()
    };
    assert!(of("pids").ends_with(bundle.id()), "{group}");
    assert!(!of("blkio").ends_with(bundle.id()), "{group}");
    runtime.call(&["exec", bundle.id(), "/bin/true"]).ok();
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    // What needs it is refused by name.
    let weight = runtime.bundle(&["wait"]).with(resources(&json!({ "blockIO": { "weight": 500 } })));
    let answer = runtime.create(&weight, &[]);
    assert!(answer.code != 0 && answer.stderr.contains("blkio"), "{}", answer.stderr);
    runtime.world().sh("umount /sys/fs/cgroup/blkio");
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn everything_is_killed_also_without_a_freezer() {
    let Some(runtime) = Runtime::for_test("everything_is_killed_also_without_a_freezer") else { return };
    if cgroup_version() != 1 {
        skipped("everything_is_killed_also_without_a_freezer", "version 2 kills by itself");
        return;
    }
    for name in ["freezer", "unified"] {
        runtime.world().sh(&format!("! test -e /sys/fs/cgroup/{name} || mount -t tmpfs none /sys/fs/cgroup/{name}"));
    }
    for verb in [&["kill", "--all"][..], &["delete", "--force"]] {
        let bundle = runtime.bundle_of(&["sh", "-c", "for each in 1 2 3; do /prober wait & done; exec /prober wait"]);
        let bundle = bundle.with_namespace("pid", None);
        runtime.create(&bundle, &[]).ok();
        runtime.call(&["start", bundle.id()]).ok();
        wait_until("four are ready", 20, || {
            let said = bundle.output();
            if said.lines().count() == 4 { Ok(()) } else { Err(said) }
        });
        let signal = if verb[0] == "kill" { &["KILL"][..] } else { &[] };
        runtime.call(&[verb, &[bundle.id()], signal].concat()).ok();
        let cgroup = runtime.cgroup_file(&bundle, "pids/cgroup.procs", "");
        wait_until("none is left", 20, || match std::fs::read_to_string(&cgroup) {
            Ok(left) if !left.is_empty() => Err(left),
            _ => Ok(()),
        });
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        assert!(!cgroup.exists(), "{verb:?}");
    }
    for name in ["freezer", "unified"] {
        runtime.world().sh(&format!("! test -e /sys/fs/cgroup/{name} || umount /sys/fs/cgroup/{name}"));
    }
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}
