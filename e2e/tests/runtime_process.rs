//! `process`: what the program is, as it sees itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use portreeve_e2e::{Report, Runtime, cgroup_version, prober, skipped};
use serde_json::{Value, json};

/// What the prober says of itself outside of any container.
fn outside() -> Report {
    let output = Command::new(prober()).arg("report").output().expect("the prober runs");
    Report::parse(&String::from_utf8_lossy(&output.stdout))
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_user_its_groups_and_its_mask_are_those_given() {
    let Some(runtime) = Runtime::for_test("the_user_its_groups_and_its_mask_are_those_given") else { return };
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [2000, 2001], "umask": 0o027 });
    let report = runtime.report(&runtime.bundle(&["report"]).with(json!({ "process": { "user": user } })));
    let expected = json!({ "uid": [1000, 1000, 1000, 1000], "gid": [1001, 1001, 1001, 1001], "groups": [2000, 2001] });
    assert_eq!(report["ids"], expected);
    assert_eq!(report["umask"], "0027");
    // Without a word about them: no group of the caller, and the usual mask.
    let user = json!({ "uid": 1000, "gid": 1000 });
    let report = runtime.report(&runtime.bundle(&["report"]).with(json!({ "process": { "user": user } })));
    assert_eq!(report["ids"]["groups"], json!([]));
    assert_eq!(report["umask"], "0022");
    // A name that comes with the numbers is not looked up.
    let user = json!({ "uid": 7, "gid": 7, "username": "worker" });
    let report = runtime.report(&runtime.bundle(&["report"]).with(json!({ "process": { "user": user } })));
    assert_eq!(report["ids"]["uid"], json!([7, 7, 7, 7]));
}

#[test]
fn ids_that_are_no_users_are_refused() {
    let Some(runtime) = Runtime::for_test("ids_that_are_no_users_are_refused") else { return };
    for uid in [json!(-1), json!(4_294_967_295_u64), json!(4_294_967_296_u64), json!("0"), json!(1.5)] {
        for field in ["uid", "gid"] {
            let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "user": { field: uid } } }));
            let answer = runtime.run(&bundle, &[]);
            assert_ne!(answer.code, 0, "{field} {uid}: {}", answer.stdout);
            assert_eq!(answer.stdout, "", "{field} {uid}");
        }
    }
}

#[test]
fn arguments_and_environment_arrive_as_they_are() {
    let Some(runtime) = Runtime::for_test("arguments_and_environment_arrive_as_they_are") else { return };
    let long = "x".repeat(100_000);
    let odd = ["/prober", "report", "", "two words", "new\nline", "$HOME \"'\\", "é", &long];
    let env = json!(["PATH=/bin", "EMPTY=", "ODD=a=b c\nd", format!("LONG={long}")]);
    let bundle = runtime.bundle_of(&odd).with(json!({ "process": { "env": env } }));
    bundle.save();
    let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]);
    command.env("SECRET_OF_THE_CALLER", "1");
    let report = Report::parse(&runtime.begin(command).finish().ok());
    assert_eq!(report["args"], json!(odd));
    let mut seen = report["env"].as_object().unwrap().clone();
    // Other runtimes give a home directory where there is none.
    seen.remove("HOME");
    let expected = json!({ "PATH": "/bin", "EMPTY": "", "ODD": "a=b c\nd", "LONG": long });
    assert_eq!(Value::Object(seen), expected);
}

#[test]
fn the_program_is_looked_up_in_its_own_path() {
    let Some(runtime) = Runtime::for_test("the_program_is_looked_up_in_its_own_path") else { return };
    let bundle = runtime.bundle_of(&["named", "report"]);
    bundle.file("opt/tools/named", "#!/bin/sh\nexec /prober report from-the-path\n");
    let file = bundle.root().join("opt/tools/named");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let report = runtime.report(&bundle.with(json!({ "process": { "env": ["PATH=/nowhere:/opt/tools"] } })));
    assert_eq!(report["args"], json!(["/prober", "report", "from-the-path"]));
    // A program with a slash is a path from the working directory.
    let bundle = runtime.bundle_of(&["./prober", "report"]);
    assert_eq!(runtime.report(&bundle)["args"][0], "./prober");
}

#[test]
fn the_working_directory_is_made_where_it_lacks() {
    let Some(runtime) = Runtime::for_test("the_working_directory_is_made_where_it_lacks") else { return };
    for cwd in ["/home", "/var/made/for/it", "/../../var"] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "cwd": cwd } }));
        let report = runtime.report(&bundle);
        assert_eq!(report["cwd"], cwd.trim_start_matches("/../.."), "{cwd}");
    }
    // One that is only there because of a mount.
    let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "cwd": "/mnt/inside" } }));
    std::fs::create_dir(bundle.folder("source").join("inside")).unwrap();
    let source = bundle.folder("source");
    let bundle =
        bundle.with_mount(json!({ "destination": "/mnt", "type": "bind", "source": source, "options": ["bind"] }));
    assert_eq!(runtime.report(&bundle)["cwd"], "/mnt/inside");
}

#[test]
fn a_working_directory_outside_of_the_root_is_refused() {
    let Some(runtime) = Runtime::for_test("a_working_directory_outside_of_the_root_is_refused") else { return };
    for number in 3..20 {
        let cwd = format!("/proc/self/fd/{number}");
        let bundle = runtime.bundle_of(&["cat", "../../../etc/hostname"]).with(json!({ "process": { "cwd": cwd } }));
        let answer = runtime.run(&bundle, &[]);
        assert_ne!(answer.code, 0, "{cwd}: {}", answer.stdout);
        assert_eq!(answer.stdout, "", "{cwd}");
    }
}

#[test]
fn the_capability_sets_of_root_follow_the_bounding_set() {
    let Some(runtime) = Runtime::for_test("the_capability_sets_of_root_follow_the_bounding_set") else { return };
    // See capabilities(7): a program that root executes gets what is bounding or inheritable.
    for nnp in [false, true] {
        for names in [&[][..], &["CAP_KILL"], &["CAP_CHOWN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]]
        {
            let capabilities = json!({ "bounding": names, "permitted": names, "effective": names });
            let change = json!({ "process": { "noNewPrivileges": nnp, "capabilities": capabilities } });
            let report = runtime.report(&runtime.bundle(&["report"]).with(change));
            for which in ["bounding", "permitted", "effective"] {
                assert_eq!(report.capabilities(which), set(names), "{which}, no_new_privs {nnp}");
            }
            for which in ["inheritable", "ambient"] {
                assert_eq!(report.capabilities(which), set(&[]), "{which}, no_new_privs {nnp}");
            }
            assert_eq!(report["no_new_privileges"], nnp);
        }
    }
}

#[test]
fn the_capability_sets_of_another_user_follow_the_ambient_set() {
    let test = "the_capability_sets_of_another_user_follow_the_ambient_set";
    let Some(runtime) = Runtime::for_test(test) else { return };
    for nnp in [false, true] {
        let three = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"];
        for (inheritable, ambient) in [(&[][..], &[][..]), (&["CAP_KILL"], &[]), (&["CAP_KILL"], &["CAP_KILL"])] {
            let change = json!({ "process": {
                "user": { "uid": 1000, "gid": 1000 },
                "noNewPrivileges": nnp,
                "capabilities": {
                    "bounding": three, "permitted": three, "effective": three,
                    "inheritable": inheritable, "ambient": ambient,
                },
            } });
            let report = runtime.report(&runtime.bundle(&["report"]).with(change));
            assert_eq!(report.capabilities("bounding"), set(&three));
            assert_eq!(report.capabilities("inheritable"), set(inheritable));
            for which in ["ambient", "permitted", "effective"] {
                assert_eq!(report.capabilities(which), set(ambient), "{which}, no_new_privs {nnp}");
            }
        }
    }
}

#[test]
fn every_capability_of_the_kernel_can_be_given_and_kept_back() {
    let Some(runtime) = Runtime::for_test("every_capability_of_the_kernel_can_be_given_and_kept_back") else { return };
    let all = outside().capabilities("bounding");
    let given = json!({ "bounding": all, "permitted": all, "effective": all });
    let report = runtime.report(&runtime.bundle(&["report"]).with(json!({ "process": { "capabilities": given } })));
    assert_eq!(report.capabilities("effective"), all);
    let none = runtime.bundle(&["report"]).with(json!({ "process": { "capabilities": null } }));
    let report = runtime.report(&none);
    for which in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
        assert_eq!(report.capabilities(which), set(&[]), "{which}");
    }
}

#[test]
fn a_capability_that_cannot_be_given_is_a_warning() {
    let Some(runtime) = Runtime::for_test("a_capability_that_cannot_be_given_is_a_warning") else { return };
    let held = outside().capabilities("permitted");
    let mut beyond = vec!["CAP_NONSENSE"];
    if !held.contains("CAP_SYS_RESOURCE") {
        beyond.push("CAP_SYS_RESOURCE");
    }
    for name in beyond {
        let names = json!(["CAP_KILL", name]);
        let capabilities = json!({ "bounding": names, "permitted": names, "effective": names });
        let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "capabilities": capabilities } }));
        let answer = runtime.run(&bundle, &[]);
        assert!(answer.stderr.contains(name), "{name}: {}", answer.stderr);
        assert_eq!(Report::parse(&answer.ok()).capabilities("effective"), set(&["CAP_KILL"]));
    }
}

#[test]
fn each_resource_limit_is_set() {
    let Some(runtime) = Runtime::for_test("each_resource_limit_is_set") else { return };
    // Raising a hard limit takes a privilege that this machine may not have: stay below what there is.
    let present = outside();
    let mut wanted = json!({
        "RLIMIT_AS": [1_u64 << 40, 1_u64 << 41], "RLIMIT_CORE": [0, 0], "RLIMIT_CPU": [1000, 2000],
        "RLIMIT_DATA": [1_u64 << 30, 1_u64 << 31], "RLIMIT_FSIZE": [1 << 20, 1 << 21], "RLIMIT_LOCKS": [10, 20],
        "RLIMIT_MEMLOCK": [4096, 8192], "RLIMIT_MSGQUEUE": [1000, 2000], "RLIMIT_NICE": [0, 0],
        "RLIMIT_NOFILE": [64, 128], "RLIMIT_NPROC": [100, 200], "RLIMIT_RSS": [1 << 20, 1 << 21],
        "RLIMIT_RTPRIO": [0, 0], "RLIMIT_RTTIME": [1000, 2000], "RLIMIT_SIGPENDING": [10, 20],
        "RLIMIT_STACK": [1 << 20, 1 << 22],
    });
    for (name, pair) in wanted.as_object_mut().unwrap() {
        let most = present["rlimits"][name][1].as_u64().unwrap();
        for value in pair.as_array_mut().unwrap() {
            *value = json!(value.as_u64().unwrap().min(most));
        }
    }
    let rlimits: Vec<_> = wanted
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, pair)| json!({ "type": name, "soft": pair[0], "hard": pair[1] }))
        .collect();
    let report = runtime.report(&runtime.bundle(&["report"]).with(json!({ "process": { "rlimits": rlimits } })));
    assert_eq!(report["rlimits"], wanted);
}

#[test]
fn a_limit_that_makes_no_sense_is_refused() {
    let Some(runtime) = Runtime::for_test("a_limit_that_makes_no_sense_is_refused") else { return };
    let cases = [
        json!([{ "type": "RLIMIT_NOFILE", "soft": 20, "hard": 10 }]),
        json!([{ "type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1 }]),
        json!([
            { "type": "RLIMIT_NOFILE", "soft": 10, "hard": 10 }, { "type": "RLIMIT_NOFILE", "soft": 20, "hard": 20 },
        ]),
    ];
    for rlimits in cases {
        let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "rlimits": rlimits } }));
        let answer = runtime.run(&bundle, &[]);
        assert_ne!(answer.code, 0, "{rlimits}: {}", answer.stdout);
        assert!(answer.stderr.to_lowercase().contains("rlimit"), "{rlimits}: {}", answer.stderr);
    }
}

#[test]
fn the_out_of_memory_score_is_set_or_left_alone() {
    let Some(runtime) = Runtime::for_test("the_out_of_memory_score_is_set_or_left_alone") else { return };
    for score in [500, 1000] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "oomScoreAdj": score } }));
        assert_eq!(runtime.report(&bundle)["oom_score_adj"], score);
    }
    assert_eq!(runtime.report(&runtime.bundle(&["report"]))["oom_score_adj"], outside()["oom_score_adj"]);
}

#[test]
fn each_scheduling_policy_is_set() {
    let Some(runtime) = Runtime::for_test("each_scheduling_policy_is_set") else { return };
    let cases = [
        (json!({ "policy": "SCHED_OTHER", "nice": 7 }), json!({ "policy": "SCHED_OTHER", "nice": 7 })),
        (json!({ "policy": "SCHED_OTHER", "nice": -3 }), json!({ "policy": "SCHED_OTHER", "nice": -3 })),
        (json!({ "policy": "SCHED_BATCH", "nice": 2 }), json!({ "policy": "SCHED_BATCH", "nice": 2 })),
        (json!({ "policy": "SCHED_IDLE" }), json!({ "policy": "SCHED_IDLE" })),
        (
            json!({ "policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"] }),
            json!({ "policy": "SCHED_BATCH", "flags": 1 }),
        ),
        (
            json!({ "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 5_000_000, "period": 10_000_000 }),
            json!({ "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 5_000_000, "period": 10_000_000 }),
        ),
        // What these two keep is what the process had before; the kernel keeps the policy for the second, too.
        (
            json!({ "policy": "SCHED_BATCH", "nice": 4, "flags": ["SCHED_FLAG_KEEP_POLICY"] }),
            json!({ "policy": "SCHED_OTHER", "nice": 4, "flags": 0 }),
        ),
        (
            json!({ "policy": "SCHED_BATCH", "nice": 4, "flags": ["SCHED_FLAG_KEEP_PARAMS"] }),
            json!({ "nice": outside()["scheduler"]["nice"], "flags": 0 }),
        ),
    ];
    let deadline = [
        (&["SCHED_FLAG_RECLAIM"][..], 2),
        (&["SCHED_FLAG_DL_OVERRUN"], 4),
        (&["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"], 7),
    ];
    let deadline = deadline.map(|(names, bits)| {
        let times = json!({
            "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 5_000_000, "period": 10_000_000,
        });
        let (mut given, mut expected) = (times.clone(), times);
        given["flags"] = json!(names);
        expected["flags"] = json!(bits);
        (given, expected)
    });
    for (given, expected) in cases.into_iter().chain(deadline) {
        let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "scheduler": given } }));
        let report = runtime.report(&bundle);
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&report["scheduler"][key], value, "{key} of {given}: {}", report["scheduler"]);
        }
    }
    let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "scheduler": { "policy": "SCHED_NEVER" } } }));
    assert_ne!(runtime.run(&bundle, &[]).code, 0);
}

#[test]
fn a_real_time_policy_is_set_or_its_lack_of_a_budget_said() {
    let Some(runtime) = Runtime::for_test("a_real_time_policy_is_set_or_its_lack_of_a_budget_said") else { return };
    // Some kernels give a new cgroup no real time at all: found by asking for it in one.
    let controller = if cgroup_version() == 2 { "" } else { "/cpu" };
    let line = format!(
        "set -e; place=/sys/fs/cgroup{controller}{}/asked; mkdir -p $place; code=0; \
         sh -c \"echo \\$\\$ > $place/cgroup.procs; exec chrt --fifo 10 true\" 2>/dev/null || code=$?; \
         rmdir $place; echo $code",
        runtime.cgroup()
    );
    let possible = runtime.world().sh(&line).trim() == "0";
    for policy in ["SCHED_FIFO", "SCHED_RR"] {
        let change = json!({ "process": { "scheduler": { "policy": policy, "priority": 10 } } });
        let answer = runtime.run(&runtime.bundle(&["report"]).with(change), &[]);
        if possible {
            let report = Report::parse(&answer.ok());
            assert_eq!(report["scheduler"]["policy"], policy);
            assert_eq!(report["scheduler"]["priority"], 10);
        } else {
            assert_ne!(answer.code, 0, "{policy}");
            assert!(answer.stderr.contains("scheduler") || answer.stderr.contains("real-time"), "{}", answer.stderr);
        }
    }
}

#[test]
fn each_class_of_input_and_output_is_set() {
    let Some(runtime) = Runtime::for_test("each_class_of_input_and_output_is_set") else { return };
    for (class, priority) in [("IOPRIO_CLASS_BE", 5), ("IOPRIO_CLASS_IDLE", 0), ("IOPRIO_CLASS_RT", 3)] {
        let given = json!({ "class": class, "priority": priority });
        let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "ioPriority": given } }));
        assert_eq!(runtime.report(&bundle)["ioprio"], given);
    }
    let given = json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 });
    let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "ioPriority": given } }));
    assert_ne!(runtime.run(&bundle, &[]).code, 0, "there are eight, from 0 on");
}

#[test]
fn the_personality_is_the_one_given() {
    let Some(runtime) = Runtime::for_test("the_personality_is_the_one_given") else { return };
    for (domain, expected) in [("LINUX", 0), ("LINUX32", 8)] {
        let change = json!({ "linux": { "personality": { "domain": domain } } });
        assert_eq!(runtime.report(&runtime.bundle(&["report"]).with(change))["personality"], expected, "{domain}");
    }
    let change = json!({ "linux": { "personality": { "domain": "HPUX" } } });
    assert_ne!(runtime.run(&runtime.bundle(&["report"]).with(change), &[]).code, 0);
}

#[test]
fn the_memory_policy_is_the_one_given() {
    let test = "the_memory_policy_is_the_one_given";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if !Path::new("/sys/devices/system/node/node0").exists() {
        return skipped(test, "this kernel knows no memory nodes");
    }
    // Modes by the numbers of linux/mempolicy.h.
    let cases = [
        (json!({ "mode": "MPOL_DEFAULT" }), 0, json!([]), 0),
        (json!({ "mode": "MPOL_PREFERRED", "nodes": "0" }), 1, json!([0]), 0),
        (json!({ "mode": "MPOL_BIND", "nodes": "0" }), 2, json!([0]), 0),
        (json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0" }), 3, json!([0]), 0),
        (json!({ "mode": "MPOL_LOCAL" }), 4, json!([]), 0),
        (json!({ "mode": "MPOL_PREFERRED_MANY", "nodes": "0-0" }), 5, json!([0]), 0),
        (json!({ "mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0" }), 6, json!([0]), 0),
        (json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }), 2, json!([0]), 1 << 15),
        (json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"] }), 2, json!([0]), 1 << 14),
        (json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"] }), 2, json!([0]), 1 << 13),
    ];
    for (given, mode, nodes, flags) in cases {
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "memoryPolicy": given } }));
        let report = runtime.report(&bundle);
        assert_eq!(report["memory_policy"], json!({ "mode": mode, "nodes": nodes, "flags": flags }), "{given}");
    }
    for wrong in [
        json!({ "mode": "MPOL_BIND", "nodes": "1023" }),
        json!({ "mode": "MPOL_BIND" }),
        json!({ "mode": "MPOL_BIND", "nodes": "zero" }),
        json!({ "mode": "MPOL_NONSENSE", "nodes": "0" }),
        json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NONSENSE"] }),
    ] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "memoryPolicy": wrong } }));
        assert_ne!(runtime.run(&bundle, &[]).code, 0, "{wrong}");
    }
}

#[test]
fn a_label_without_its_security_module_is_an_error_that_says_so() {
    let test = "a_label_without_its_security_module_is_an_error_that_says_so";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() == "Y" {
        skipped(test, "AppArmor is on: its half is not shown");
    } else {
        let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "apparmorProfile": "some-profile" } }));
        let answer = runtime.run(&bundle, &[]);
        assert_ne!(answer.code, 0, "{}", answer.stdout);
        assert!(answer.stderr.to_lowercase().contains("apparmor"), "{}", answer.stderr);
    }
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return skipped(test, "SELinux is on: its half is not shown");
    }
    let label = "system_u:system_r:container_t:s0:c1,c2";
    let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "selinuxLabel": label } }));
    let answer = runtime.run(&bundle, &[]);
    assert_ne!(answer.code, 0, "{}", answer.stdout);
    assert!(answer.stderr.to_lowercase().contains("selinux"), "{}", answer.stderr);
    // What asks for nothing is given everywhere.
    let none = json!({ "process": { "apparmorProfile": "", "selinuxLabel": "" } });
    assert_eq!(runtime.report(&runtime.bundle(&["report"]).with(none))["pid"], 1);
}

#[test]
fn an_apparmor_profile_confines_the_program() {
    let test = "an_apparmor_profile_confines_the_program";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() != "Y" {
        return skipped(test, "AppArmor is off");
    }
    let name = format!("prt-e2e-{}", std::process::id());
    let profile = format!("profile {name} flags=(attach_disconnected) {{ file, capability, deny /etc/passwd r, }}\n");
    let file = runtime.world().path("profile");
    std::fs::write(&file, profile).unwrap();
    let file = file.to_str().unwrap();
    runtime.world().sh(&format!("apparmor_parser --replace {file}"));
    let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "apparmorProfile": name } }));
    let answer = runtime.run(&bundle, &[]);
    let change = json!({ "process": { "apparmorProfile": name } });
    let tried = runtime.run(&runtime.bundle(&["try", "read /etc/passwd"]).with(change), &[]);
    runtime.world().sh(&format!("apparmor_parser --remove {file}"));
    assert_eq!(Report::parse(&answer.ok())["label"], format!("{name} (enforce)"));
    assert!(tried.clone().ok().contains("EACCES"), "{tried:?}");
    let bundle = runtime.bundle(&["report"]).with(json!({ "process": { "apparmorProfile": "not-loaded" } }));
    let answer = runtime.run(&bundle, &[]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains("not-loaded"), "{}", answer.stderr);
}

#[test]
fn cve_2025_52881_a_label_is_written_nowhere_else() {
    let test = "cve_2025_52881_a_label_is_written_nowhere_else";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() != "Y" {
        return skipped(test, "AppArmor is off");
    }
    let name = format!("prt-label-{}", std::process::id());
    let profile = format!("profile {name} flags=(attach_disconnected) {{ file, capability, deny /etc/passwd r, }}\n");
    let file = runtime.world().path("profile");
    std::fs::write(&file, profile).unwrap();
    let file = file.to_str().unwrap();
    runtime.world().sh(&format!("apparmor_parser --replace {file}"));
    // What a volume has where the label is written takes the label, and the program goes without.
    let decoy = runtime.world().path("decoy");
    std::fs::create_dir_all(decoy.join("apparmor")).unwrap();
    for file in ["exec", "apparmor/exec", "current"] {
        std::fs::write(decoy.join(file), "").unwrap();
    }
    let mut said = Vec::new();
    for destination in
        ["/proc/self/attr", "/proc/1/attr", "/proc/thread-self/attr", "/proc/self/attr/apparmor", "/proc"]
    {
        let source = if destination.ends_with("apparmor") { decoy.join("apparmor") } else { decoy.clone() };
        let mount = json!({ "destination": destination, "type": "bind", "source": source, "options": ["bind"] });
        let bundle = runtime.bundle(&["try", "read /etc/passwd"]).with_mount(mount);
        let answer = runtime.run(&bundle.with(json!({ "process": { "apparmorProfile": name } })), &[]);
        said.push((destination, answer));
    }
    runtime.world().sh(&format!("apparmor_parser --remove {file}"));
    for (destination, answer) in said {
        // To be refused is as good as to be confined.
        let confined = answer.code != 0 || answer.stdout.contains("EACCES");
        assert!(confined, "{destination}: {}{}", answer.stdout, answer.stderr);
    }
    for file in ["exec", "apparmor/exec", "current"] {
        assert_eq!(std::fs::read_to_string(decoy.join(file)).unwrap(), "", "{file}");
    }
}

#[test]
fn a_container_has_a_session_keyring_of_its_own_unless_told_otherwise() {
    let test = "a_container_has_a_session_keyring_of_its_own_unless_told_otherwise";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle(&["report"]);
    let own = runtime.report(&bundle);
    let name = own["keyring"].as_str().unwrap_or_default().rsplit(';').next().unwrap_or_default().to_owned();
    assert!(name.contains(bundle.id()), "{}", own["keyring"]);
    let other = Report::parse(&runtime.run(&runtime.bundle(&["report"]), &["--no-new-keyring"]).ok());
    assert_eq!(other["keyring"], outside()["keyring"]);
}

#[test]
fn signals_are_as_in_a_fresh_process() {
    let Some(runtime) = Runtime::for_test("signals_are_as_in_a_fresh_process") else { return };
    let bundle = runtime.bundle(&["report"]);
    bundle.save();
    let line = ["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()];
    let report = Report::parse(&runtime.begin(runtime.command_after("trap '' HUP USR1", &line)).finish().ok());
    assert_eq!(report["signals"]["blocked"], json!([]));
    // The standard library of the prober itself ignores the first, and no C library lets anyone touch the others.
    let ignored: Vec<_> = report["signals"]["ignored"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| ![13, 32, 33].map(|known| json!(known)).contains(one))
        .collect();
    assert!(ignored.is_empty(), "{ignored:?}");
    // What a program sees that sets nothing itself; the runtime does not take SIGPIPE.
    let bundle = runtime.bundle_of(&["cat", "/proc/self/status"]);
    let said = runtime.run(&bundle, &[]).ok();
    for field in ["SigBlk:", "SigIgn:", "SigCgt:"] {
        let mask = said.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_else(|| panic!("{said}"));
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        // But for the C library's two.
        assert_eq!(mask & !(0b11 << 31), 0, "{field} {mask:x}");
    }
}

#[test]
fn of_variables_with_one_name_the_last_counts() {
    let Some(runtime) = Runtime::for_test("of_variables_with_one_name_the_last_counts") else { return };
    let environment = ["A=1", "PATH=/nowhere", "B=2", "A=3", "PATH=/bin", "A"];
    let bundle = runtime.bundle_of(&["busybox", "env"]);
    let answer = runtime.run(&bundle.with(json!({ "process": { "env": environment[..5] } })), &[]).ok();
    let mut lines: Vec<_> = answer.lines().filter(|line| !line.starts_with("HOME=")).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=3", "B=2", "PATH=/bin"]);
}

#[test]
fn a_capability_that_contradicts_the_other_sets_is_a_warning() {
    let test = "a_capability_that_contradicts_the_other_sets_is_a_warning";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let (some, more) = (json!(["CAP_KILL"]), json!(["CAP_KILL", "CAP_CHOWN"]));
    let all = json!({ "bounding": more, "permitted": some, "effective": some, "inheritable": some, "ambient": some });
    for (set, value) in [("effective", &more), ("ambient", &more), ("inheritable", &json!([]))] {
        let mut capabilities = all.clone();
        capabilities[set] = value.clone();
        let lost = if set == "inheritable" { "CAP_KILL" } else { "CAP_CHOWN" };
        // Whom the kernel gives capabilities for being root, it gives those that are bounding.
        let change = json!({ "process": { "user": { "uid": 1000, "gid": 1000 }, "capabilities": capabilities } });
        let answer = runtime.run(&runtime.bundle(&["report"]).with(change), &[]);
        assert!(answer.stderr.contains(&format!("the program goes without {lost}:")), "{set}: {}", answer.stderr);
        let report = Report::parse(&answer.ok());
        for held in ["effective", "ambient"] {
            assert!(!report.capabilities(held).contains(lost), "{set}: {held}");
        }
    }
    let change = json!({ "process": { "user": { "uid": 1000, "gid": 1000 }, "capabilities": all } });
    assert_eq!(runtime.run(&runtime.bundle(&["report"]).with(change), &[]).stderr, "");
}
