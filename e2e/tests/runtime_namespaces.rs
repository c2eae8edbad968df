//! `linux.namespaces`: new ones, joined ones, the caller's; and what hangs on them: ids, names, clocks, sysctls.

use std::path::Path;

use portreeve_e2e::{Runtime, skipped, wait_until};
use serde_json::json;

/// Types of the specification, and the names that procfs has for them.
const KINDS: [(&str, &str); 8] = [
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("time", "time"),
];

/// The namespace of a kind that commands of the runtime's world are in.
fn of_the_caller(runtime: &Runtime, name: &str) -> String {
    runtime.world().sh(&format!("readlink /proc/self/ns/{name}")).trim().to_owned()
}

#[test]
fn each_namespace_is_new_when_it_is_listed() {
    let Some(runtime) = Runtime::for_test("each_namespace_is_new_when_it_is_listed") else { return };
    let bundle = runtime.bundle(&["report"]).with_namespace("time", Some(json!({ "type": "time" })));
    let report = runtime.report(&bundle.with_users(100_000, 65536));
    for (kind, name) in KINDS {
        assert_ne!(report["namespaces"][name], of_the_caller(&runtime, name), "{kind}");
    }
}

#[test]
fn a_namespace_that_is_not_listed_is_the_callers() {
    let Some(runtime) = Runtime::for_test("a_namespace_that_is_not_listed_is_the_callers") else { return };
    for (kind, name) in KINDS.into_iter().filter(|(kind, _)| *kind != "mount") {
        let mut bundle = runtime.bundle(&["report"]).with_namespace(kind, None);
        if kind == "uts" {
            bundle = bundle.with(json!({ "hostname": null }));
        }
        let report = runtime.report(&bundle);
        assert_eq!(report["namespaces"][name], of_the_caller(&runtime, name), "{kind}");
        // The caller's sysfs belongs to the caller's network: what is mounted is not made its own.
        assert_eq!(report["pid"] == 1, kind != "pid");
    }
}

#[test]
fn each_namespace_can_be_another_containers() {
    let Some(runtime) = Runtime::for_test("each_namespace_can_be_another_containers") else { return };
    let first = runtime.bundle(&["wait"]).with_namespace("time", Some(json!({ "type": "time" })));
    runtime.start_waiting(&first);
    let other = runtime.exec_report(&first, &[]);
    let pid = runtime.pid(&first);
    for (kind, name) in KINDS.into_iter().filter(|(kind, _)| !matches!(*kind, "user" | "mount")) {
        let path = format!("/proc/{pid}/ns/{name}");
        let mut bundle = runtime.bundle(&["report"]).with_namespace(kind, Some(json!({ "type": kind, "path": path })));
        if kind == "uts" {
            bundle = bundle.with(json!({ "hostname": null }));
        }
        let report = runtime.report(&bundle);
        assert_eq!(report["namespaces"][name], other["namespaces"][name], "{kind}");
        let alone = KINDS.iter().filter(|(listed, _)| *listed != kind && !matches!(*listed, "user" | "time"));
        for (new, name) in alone {
            assert_ne!(report["namespaces"][*name], other["namespaces"][*name], "{new} beside a joined {kind}");
        }
    }
}

#[test]
fn a_pod_shares_all_but_its_root() {
    let Some(runtime) = Runtime::for_test("a_pod_shares_all_but_its_root") else { return };
    let first = runtime.bundle(&["wait"]);
    runtime.start_waiting(&first);
    let pid = runtime.pid(&first);
    let mut second = runtime.bundle(&["wait"]).with(json!({ "hostname": null }));
    for (kind, name) in [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        let path = format!("/proc/{pid}/ns/{name}");
        second = second.with_namespace(kind, Some(json!({ "type": kind, "path": path })));
    }
    runtime.start_waiting(&second);
    let report = runtime.exec_report(&second, &[]);
    assert_eq!(report["hostname"], "probed");
    let processes = report["processes"].as_object().unwrap();
    assert!(processes.len() >= 3 && processes.contains_key("1"), "{processes:?}");
    assert_ne!(report["pid"], 1);
    // The pid namespace ends with its first process, and all in it.
    runtime.call(&["kill", first.id(), "KILL"]).ok();
    runtime.wait_status(&second, "stopped");
    let late = runtime.bundle(&["report"]);
    let late = late.with_namespace("pid", Some(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") })));
    assert_ne!(runtime.run(&late, &[]).code, 0, "its end is the end of the namespace");
}

#[test]
fn a_joined_user_namespace_gives_its_ids() {
    let Some(runtime) = Runtime::for_test("a_joined_user_namespace_gives_its_ids") else { return };
    let first = runtime.bundle(&["wait"]).with_users(100_000, 65536);
    runtime.start_waiting(&first);
    let path = format!("/proc/{}/ns/user", runtime.pid(&first));
    let second = runtime.bundle(&["report"]).with_users(100_000, 65536);
    let second = second
        .with_namespace("user", Some(json!({ "type": "user", "path": path })))
        .with(json!({ "linux": { "uidMappings": null, "gidMappings": null } }));
    let report = runtime.report(&second);
    assert_eq!(report["namespaces"]["user"], runtime.exec_report(&first, &[])["namespaces"]["user"]);
    assert_eq!(report["id_maps"]["uid"], json!([[0, 100_000, 65536]]));
    assert_eq!(report["ids"]["uid"], json!([0, 0, 0, 0]));
}

#[test]
fn a_mount_namespace_can_be_joined_or_be_the_callers() {
    let Some(runtime) = Runtime::for_test("a_mount_namespace_can_be_joined_or_be_the_callers") else { return };
    let before = runtime.world().mounts();
    let bundle = runtime.bundle(&["report"]).with_namespace("mount", None).with(json!({
        "mounts": [], "linux": { "maskedPaths": null, "readonlyPaths": null },
    }));
    let bundle = bundle.with(json!({ "process": { "args": ["/prober", "try", "list /", "list /proc"] } }));
    let attempts = runtime.attempts(&bundle);
    let names = attempts.value("list /").as_array().unwrap();
    assert!(names.contains(&json!("prober")), "it is in its root: {names:?}");
    // A further process is there too.
    let waiting = runtime.bundle(&["wait"]).with_namespace("mount", None).with(json!({
        "mounts": [], "linux": { "maskedPaths": null, "readonlyPaths": null },
    }));
    runtime.start_waiting(&waiting);
    let names = runtime.exec(&waiting, &[], &["/bin/busybox", "ls", "/", "/.."]).ok();
    assert_eq!(names.matches("prober").count(), 2, "{names}");
    assert_eq!(runtime.world().mounts(), before, "and nothing was mounted for the caller");
    let mounting = runtime.bundle(&["report"]).with_namespace("mount", None);
    assert!(runtime.run(&mounting, &[]).stderr.contains("mount namespace"));

    let first = runtime.bundle(&["wait"]);
    runtime.start_waiting(&first);
    let path = format!("/proc/{}/ns/mnt", runtime.pid(&first));
    let second = runtime.bundle(&["report"]).with_namespace("mount", Some(json!({ "type": "mount", "path": path })));
    // Its procfs is that of its processes.
    let processes = json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", runtime.pid(&first)) });
    let second = second.with_namespace("pid", Some(processes));
    let second = second.with(json!({ "mounts": [], "linux": { "maskedPaths": null, "readonlyPaths": null } }));
    let other = runtime.exec_report(&first, &[]);
    let report = runtime.report(&second);
    assert_eq!(report["namespaces"]["mnt"], other["namespaces"]["mnt"]);
    assert_eq!(report["mounts"], other["mounts"], "which is left as it was");
}

#[test]
fn a_namespace_that_cannot_be_is_refused() {
    let Some(runtime) = Runtime::for_test("a_namespace_that_cannot_be_is_refused") else { return };
    let namespace = |kind: &str, path: &str| json!({ "type": kind, "path": path });
    let wrong_type = runtime.bundle(&["report"]).with_namespace("ipc", Some(namespace("ipc", "/proc/self/ns/uts")));
    let no_namespace = runtime.bundle(&["report"]).with_namespace("ipc", Some(namespace("ipc", "/etc/passwd")));
    let absent = runtime.bundle(&["report"]).with_namespace("ipc", Some(namespace("ipc", "/proc/0/ns/ipc")));
    let relative = runtime.bundle(&["report"]).with_namespace("ipc", Some(namespace("ipc", "proc/self/ns/ipc")));
    let unknown = runtime.bundle(&["report"]).with_namespace("dream", Some(json!({ "type": "dream" })));
    let mut twice = runtime.bundle(&["report"]);
    let mut list = twice.config()["linux"]["namespaces"].clone();
    list.as_array_mut().unwrap().push(json!({ "type": "pid" }));
    twice = twice.with(json!({ "linux": { "namespaces": list } }));
    let reasons = ["is a uts namespace", "is not a namespace", "/proc/0/ns/ipc", "is not absolute", "dream", "second"];
    for (bundle, reason) in [wrong_type, no_namespace, absent, relative, unknown, twice].iter().zip(reasons) {
        let answer = runtime.run(bundle, &[]);
        assert_ne!(answer.code, 0, "{}", bundle.config()["linux"]["namespaces"]);
        assert!(answer.stderr.contains(reason), "{reason}: {}", answer.stderr);
        assert_eq!(answer.stdout, "", "{}", bundle.config()["linux"]["namespaces"]);
    }
}

#[test]
fn the_names_are_set_in_a_uts_namespace_of_its_own_alone() {
    let Some(runtime) = Runtime::for_test("the_names_are_set_in_a_uts_namespace_of_its_own_alone") else { return };
    let names = json!({ "hostname": "one.example", "domainname": "two.example" });
    let report = runtime.report(&runtime.bundle(&["report"]).with(names.clone()));
    assert_eq!(report["hostname"], "one.example");
    assert_eq!(report["domainname"], "two.example");
    let before = runtime.world().sh("busybox hostname");
    let bundle = runtime.bundle(&["report"]).with_namespace("uts", None).with(names);
    assert_ne!(runtime.run(&bundle, &[]).code, 0);
    let long = runtime.bundle(&["report"]).with(json!({ "hostname": "x".repeat(65) }));
    assert_ne!(runtime.run(&long, &[]).code, 0, "the kernel takes 64 bytes");
    assert_eq!(runtime.world().sh("busybox hostname"), before);
}

#[test]
fn users_are_mapped_as_told() {
    let Some(runtime) = Runtime::for_test("users_are_mapped_as_told") else { return };
    let bundle = runtime.bundle(&["wait"]).with_users(100_000, 1000);
    let uids = json!([
        { "containerID": 0, "hostID": 100_000, "size": 500 }, { "containerID": 500, "hostID": 200_000, "size": 500 },
    ]);
    let gids = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    let bundle = bundle.with(json!({ "linux": { "uidMappings": uids, "gidMappings": gids } }));
    runtime.start_waiting(&bundle);
    let report = runtime.exec_report(&bundle, &["--user", "600:7"]);
    assert_eq!(report["id_maps"]["uid"], json!([[0, 100_000, 500], [500, 200_000, 500]]));
    assert_eq!(report["id_maps"]["gid"], json!([[0, 100_000, 1000]]));
    assert_eq!(report["ids"]["uid"], json!([600, 600, 600, 600]));
    let status = std::fs::read_to_string(format!("/proc/{}/status", runtime.pid(&bundle))).unwrap();
    assert!(status.contains("Uid:\t100000\t"), "its root is nobody here: {status}");
    // A user that is not mapped, and maps that overlap.
    assert_ne!(runtime.exec(&bundle, &["--user", "1000"], &["/prober", "report"]).code, 0);
    let overlapping = json!([
        { "containerID": 0, "hostID": 100_000, "size": 10 }, { "containerID": 5, "hostID": 300_000, "size": 10 },
    ]);
    let bundle = runtime.bundle(&["report"]).with_users(100_000, 1000);
    let bundle = bundle.with(json!({ "linux": { "uidMappings": overlapping } }));
    assert_ne!(runtime.run(&bundle, &[]).code, 0);
}

#[test]
fn a_user_namespace_has_working_devices_and_file_systems() {
    let Some(runtime) = Runtime::for_test("a_user_namespace_has_working_devices_and_file_systems") else { return };
    let operations = [
        "write /dev/null x",
        "read /proc/self/comm",
        "open /dev/zero r",
        "create /dev/shm/file text",
        "list /sys/class",
        "list /dev/mqueue",
        "open /dev/ptmx rw",
        "create /made text",
        "unshare mount",
    ];
    let bundle = runtime.bundle(&[&["try"], &operations[..]].concat()).with_users(100_000, 65536);
    let attempts = runtime.attempts(&bundle);
    for operation in &operations[..8] {
        assert_eq!(attempts.errno(operation), "ok", "{operation}");
    }
    assert_eq!(attempts.errno("unshare mount"), "EPERM", "without CAP_SYS_ADMIN");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(bundle.root().join("made")).unwrap());
    assert_eq!(owner, 100_000);
}

#[test]
fn what_comes_with_a_namespace_belongs_to_the_containers_root() {
    let Some(runtime) = Runtime::for_test("what_comes_with_a_namespace_belongs_to_the_containers_root") else { return };
    let line = "for place in /dev /dev/shm /dev/mqueue /dev/pts/ptmx /proc; do busybox stat -c '%n %u %g' $place; done";
    let bundle = runtime.bundle_of(&["busybox", "sh", "-c", line]).with_users(100_000, 65536);
    let said = runtime.run(&bundle, &[]).ok();
    let strangers: Vec<&str> =
        said.lines().filter(|line| !line.ends_with(" 0 0") && !line.starts_with("/proc ")).collect();
    assert_eq!((strangers, said.lines().count()), (Vec::new(), 5), "{said}");
}

#[test]
fn the_clocks_of_a_time_namespace_are_moved() {
    let Some(runtime) = Runtime::for_test("the_clocks_of_a_time_namespace_are_moved") else { return };
    let before = runtime.report(&runtime.bundle(&["report"]));
    let bundle = runtime.bundle(&["report"]).with_namespace("time", Some(json!({ "type": "time" }))).with(json!({
        "linux": { "timeOffsets": {
            "monotonic": { "secs": 172_800, "nanosecs": 5 }, "boottime": { "secs": 604_800, "nanosecs": 0 },
        } },
    }));
    let report = runtime.report(&bundle);
    assert_ne!(report["namespaces"]["time"], of_the_caller(&runtime, "time"));
    for (clock, offset) in [("monotonic", 172_800), ("boottime", 604_800)] {
        let moved = report["clocks"][clock].as_i64().unwrap() - before["clocks"][clock].as_i64().unwrap();
        assert!((offset..offset + 60).contains(&moved), "{clock} moved by {moved}");
    }
    let offsets = report["time_offsets"].as_str().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(offsets, ["monotonic", "172800", "5", "boottime", "604800", "0"]);
    // Clocks of the caller cannot be moved.
    let caller = runtime.bundle(&["report"]);
    let caller = caller.with(json!({ "linux": { "timeOffsets": { "monotonic": { "secs": 5 } } } }));
    assert_ne!(runtime.run(&caller, &[]).code, 0);
}

#[test]
fn sysctls_of_its_own_namespaces_are_set() {
    let Some(runtime) = Runtime::for_test("sysctls_of_its_own_namespaces_are_set") else { return };
    let values = json!({
        "net.ipv4.ip_forward": "1", "net.ipv4.ping_group_range": "0 1000", "net.core.somaxconn": "4096",
        "kernel.msgmax": "9000", "kernel.shm_rmid_forced": "1", "kernel.sem": "250 32000 100 200",
        "fs.mqueue.msg_max": "20",
    });
    let names: Vec<_> = values.as_object().unwrap().keys().map(String::as_str).collect();
    let bundle = runtime.bundle(&[&["report"], &names[..]].concat());
    let report = runtime.report(&bundle.with(json!({ "linux": { "sysctl": values } })));
    for (name, value) in values.as_object().unwrap() {
        let seen = report["sysctls"][name].as_str().unwrap_or_default();
        let seen = seen.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(&json!(seen), value, "{name}");
    }
}

#[test]
fn a_sysctl_of_the_host_is_refused() {
    let Some(runtime) = Runtime::for_test("a_sysctl_of_the_host_is_refused") else { return };
    // Each with the value that it has: an attempt that succeeds does no harm.
    let present = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).map(|text| text.trim().to_owned())
    };
    for name in [
        "kernel.core_pattern",
        "kernel.modprobe",
        "kernel.panic",
        "vm.swappiness",
        "vm.overcommit_memory",
        "fs.file-max",
        "kernel.pid_max",
        "kernel.randomize_va_space",
        "dev.tty.ldisc_autoload",
        "user.max_user_namespaces",
    ] {
        let Ok(value) = present(name) else {
            skipped("a_sysctl_of_the_host_is_refused", &format!("this kernel has no {name}"));
            continue;
        };
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "sysctl": { name: value } } }));
        let answer = runtime.run(&bundle, &[]);
        assert_ne!(answer.code, 0, "{name}");
        assert!(answer.stderr.contains(name), "{}", answer.stderr);
    }
    // Names that are paths, and such as are a namespace's when that is the host's.
    for (name, without) in [
        ("kernel/../kernel/core_pattern", ""),
        ("../sys/kernel/core_pattern", ""),
        ("net.ipv4.ip_forward", "network"),
        ("kernel.msgmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
    ] {
        let mut bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "sysctl": { name: "1" } } }));
        if !without.is_empty() {
            let value = present(name).unwrap();
            bundle = bundle.with(json!({ "linux": { "sysctl": { name: value } } })).with_namespace(without, None);
        }
        assert_ne!(runtime.run(&bundle, &[]).code, 0, "{name} without a namespace {without}");
    }
}

#[test]
fn cve_2022_0811_a_sysctl_has_one_name_and_one_value() {
    let Some(runtime) = Runtime::for_test("cve_2022_0811_a_sysctl_has_one_name_and_one_value") else { return };
    let before = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for value in ["1+kernel.core_pattern=|/escaped", "1\nkernel.core_pattern=|/escaped", "1,kernel.core_pattern=x"] {
        let sysctl = json!({ "kernel.shm_rmid_forced": value });
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "sysctl": sysctl } }));
        assert_ne!(runtime.run(&bundle, &[]).code, 0, "{value:?}");
        assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
    }
}

#[test]
fn a_container_sees_its_own_cgroup_as_the_top() {
    let Some(runtime) = Runtime::for_test("a_container_sees_its_own_cgroup_as_the_top") else { return };
    let report = runtime.report(&runtime.bundle(&["report"]));
    let lines: Vec<_> = report["cgroup"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let first = lines.iter().find(|line| line.contains(":pids:") || line.starts_with("0::")).expect("a line");
    assert!(first.ends_with(":/"), "{lines:?}");
    let bundle = runtime.bundle(&["report"]).with_namespace("cgroup", None);
    let report = runtime.report(&bundle);
    let path = bundle.config()["linux"]["cgroupsPath"].as_str().unwrap();
    let lines: Vec<_> = report["cgroup"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let pids = lines.iter().find(|line| line.contains(":pids:")).or(lines.last()).expect("a line");
    assert!(pids.ends_with(path), "{lines:?}");
}

#[test]
fn a_cgroup_is_found_without_a_path_and_below_a_relative_one() {
    let test = "a_cgroup_is_found_without_a_path_and_below_a_relative_one";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let relative = runtime.cgroup().trim_start_matches('/').to_owned() + "/relative";
    for path in [json!(null), json!(relative)] {
        let bundle = runtime.bundle(&["wait"]).with(json!({ "linux": { "cgroupsPath": path } }));
        runtime.start_waiting(&bundle);
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", runtime.pid(&bundle))).unwrap();
        let caller = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let pick = |text: &str| {
            let line = text.lines().find(|line| line.contains(":pids:")).or(text.lines().last()).unwrap();
            line.rsplit(':').next().unwrap().to_owned()
        };
        assert_ne!(pick(&own), pick(&caller), "it is not the caller's");
        if path.is_string() {
            assert!(pick(&own).ends_with(&relative), "{own}");
        }
        let place = pick(&own);
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        let root = if portreeve_e2e::cgroup_version() == 2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
        let directory = Path::new(root).join(place.trim_start_matches('/'));
        wait_until("its cgroup is gone", 5, || {
            if directory.exists() { Err(directory.display().to_string()) } else { Ok(()) }
        });
    }
}

#[test]
fn parameters_are_set_for_users_of_their_own_who_share_the_process_ids_with_the_host() {
    let test = "parameters_are_set_for_users_of_their_own_who_share_the_process_ids_with_the_host";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // Nobody but the owner of a PID namespace makes a procfs of it.
    let kinds = ["user", "mount", "network", "uts", "ipc"].map(|kind| json!({ "type": kind }));
    let change = json!({ "linux": { "namespaces": kinds, "sysctl": { "net.ipv4.ping_group_range": "0 100" } } });
    let bundle = runtime.bundle_of(&["cat", "/proc/sys/net/ipv4/ping_group_range"]).with_users(100_000, 65536);
    let said = runtime.run(&bundle.with(change), &[]).ok();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "100"]);
}
