//! Users, groups, capabilities, no_new_privs, limits of processes, kernel parameters.

use portreeve_sys::process::Exit;
use serde_json::{Value, json};

use crate::Test;
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[
    ("the_inheritable_set_is_empty_in_run_and_exec", the_inheritable_set_is_empty_in_run_and_exec),
    ("the_bounding_set_is_what_was_asked_for", the_bounding_set_is_what_was_asked_for),
    ("ambient_capabilities_reach_a_user_that_is_not_root", ambient_capabilities_reach_a_user_that_is_not_root),
    ("a_user_has_exactly_its_groups_and_umask", a_user_has_exactly_its_groups_and_umask),
    (
        "a_user_that_is_not_root_can_open_its_standard_streams_again",
        a_user_that_is_not_root_can_open_its_standard_streams_again,
    ),
    ("no_new_privileges_is_set_when_asked_for_only", no_new_privileges_is_set_when_asked_for_only),
    (
        "resource_limits_are_set_and_cannot_be_raised_without_privilege",
        resource_limits_are_set_and_cannot_be_raised_without_privilege,
    ),
    (
        "a_namespaced_kernel_parameter_is_set_and_a_hosts_one_is_not_reachable",
        a_namespaced_kernel_parameter_is_set_and_a_hosts_one_is_not_reachable,
    ),
    ("a_lower_oom_score_is_set_or_warned_about", a_lower_oom_score_is_set_or_warned_about),
    ("a_limit_of_open_files_does_not_bind_the_set_up", a_limit_of_open_files_does_not_bind_the_set_up),
    ("a_filter_need_not_allow_what_only_the_set_up_does", a_filter_need_not_allow_what_only_the_set_up_does),
];

pub(crate) fn status_field(text: &str, name: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("field").trim().to_owned()
}

fn the_inheritable_set_is_empty_in_run_and_exec() {
    let world = World::shell("cat /proc/self/status; echo up; sleep 100");
    let live = world.start();
    live.wait_for("up");
    for text in [live.output(), live.exec("cat /proc/self/status").out] {
        assert_eq!(status_field(&text, "CapInh"), "0000000000000000");
        assert_eq!(status_field(&text, "CapAmb"), "0000000000000000");
        assert_eq!(status_field(&text, "CapEff"), "00000000a80425fb");
    }
}

fn the_bounding_set_is_what_was_asked_for() {
    let world = World::shell("cat /proc/self/status").with(json!({"process": {"capabilities": {
        "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN", "CAP_KILL"]}}}));
    let text = world.run().out;
    assert_eq!(status_field(&text, "CapBnd"), "0000000000000021");
    let none = World::shell("cat /proc/self/status").with(json!({"process": {"capabilities": Value::Null}})).run().out;
    assert_eq!(status_field(&none, "CapBnd"), "0000000000000000");
    assert_eq!(status_field(&none, "CapEff"), "0000000000000000");
}

fn ambient_capabilities_reach_a_user_that_is_not_root() {
    let set = json!(["CAP_NET_BIND_SERVICE"]);
    let world = World::shell("cat /proc/self/status")
        .with(json!({"process": {"user": {"uid": 1000, "gid": 1000}, "capabilities": {
        "bounding": set, "effective": set, "permitted": set, "inheritable": set, "ambient": set}}}));
    assert_eq!(status_field(&world.run().out, "CapEff"), "0000000000000400");
}

fn a_user_has_exactly_its_groups_and_umask() {
    let world = World::shell("id -u; id -g; id -G; umask; echo $HOME; cat /proc/self/status")
        .with(json!({"process": {"user": {"uid": 1000, "gid": 1000, "additionalGids": [7, 3000], "umask": 0o027}}}));
    let text = world.run().out;
    let lines: Vec<&str> = text.lines().take(5).collect();
    assert_eq!(lines, ["1000", "1000", "1000 7 3000", "0027", "/home/web"], "{text}");
    assert_eq!(status_field(&text, "CapEff"), "0000000000000000");
    assert_eq!(status_field(&text, "Groups"), "7 3000");
}

fn a_user_that_is_not_root_can_open_its_standard_streams_again() {
    use std::io::Read;
    let world =
        World::shell("echo through > /dev/stdout").with(json!({"process": {"user": {"uid": 1000, "gid": 1000}}}));
    let spec = world.typed();
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let second = writer.try_clone().expect("clone");
    let stdio = portreeve_oci::Stdio::Pipes { stdin: None, stdout: writer.into(), stderr: second.into() };
    world.create(&spec, stdio).expect("create").start().expect("start");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("read");
    assert_eq!(text, "through\n");
}

fn no_new_privileges_is_set_when_asked_for_only() {
    for wanted in [true, false] {
        let world = World::shell("cat /proc/self/status").with(json!({"process": {"noNewPrivileges": wanted}}));
        assert_eq!(status_field(&world.run().out, "NoNewPrivs"), if wanted { "1" } else { "0" });
    }
}

fn resource_limits_are_set_and_cannot_be_raised_without_privilege() {
    let limit =
        |soft: u64, hard: u64| json!({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]}});
    let outcome = World::shell("ulimit -Sn; ulimit -Hn").with(limit(100, 200)).run();
    assert_eq!(outcome.out, "100\n200\n");
    let resource = portreeve_sys::capability::get().expect("capabilities").permitted
        & (1 << portreeve_sys::capability::CAP_SYS_RESOURCE)
        != 0;
    if resource {
        eprintln!("SKIPPED half of a test: this machine has CAP_SYS_RESOURCE");
        return;
    }
    let words = World::shell("true").with(limit(100, 10_000_000)).refusal();
    assert!(words.contains("RLIMIT_NOFILE") && words.contains("CAP_SYS_RESOURCE"), "{words}");
}

fn a_namespaced_kernel_parameter_is_set_and_a_hosts_one_is_not_reachable() {
    let world =
        World::shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo 5 > /proc/sys/kernel/shm_rmid_forced")
            .with(json!({"linux": {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "80"}}}));
    let outcome = world.run();
    assert_eq!(outcome.out, "80\n");
    assert!(outcome.err.contains("Read-only file system"), "{outcome:?}");
    let words = World::shell("true").with(json!({"linux": {"sysctl": {"../sys/kernel/core_pattern": "|x"}}})).refusal();
    assert!(words.contains("kernel parameter"), "{words}");
}

fn a_lower_oom_score_is_set_or_warned_about() {
    let world = World::shell("cat /proc/self/oom_score_adj").with(json!({"process": {"oomScoreAdj": -500}}));
    let spec = world.typed();
    let (stdio, ..) = world.streams();
    let created = world.create(&spec, stdio).expect("create");
    let warned = created.warnings.iter().any(|warning| warning.what.contains("oom_score_adj"));
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", created.pid.as_raw_nonzero())).expect("read");
    assert!(warned || score.trim() == "-500", "{score} {:?}", created.warnings);
    let raised = World::shell("cat /proc/self/oom_score_adj").with(json!({"process": {"oomScoreAdj": 700}})).run();
    assert_eq!((raised.exit, raised.out.as_str()), (Exit::Code(0), "700\n"));
}

fn a_limit_of_open_files_does_not_bind_the_set_up() {
    let limit = json!({"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5}]}});
    let world = World::shell("ulimit -Sn; echo up; sleep 100").with(limit);
    let live = world.start();
    live.wait_for("up");
    assert_eq!((live.output().as_str(), live.exec("ulimit -Hn").out.as_str()), ("5\nup\n", "5\n"));
}

fn a_filter_need_not_allow_what_only_the_set_up_does() {
    let names = ["close_range", "openat2", "move_mount", "setresuid", "setgroups", "accept4", "fchdir"];
    let denied = json!({"names": names, "action": "SCMP_ACT_KILL_PROCESS"});
    for no_new_privileges in [true, false] {
        let world = World::shell("echo up; sleep 100").with(json!({
            "process": {"noNewPrivileges": no_new_privileges},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}},
        }));
        let live = world.start();
        live.wait_for("up");
        assert_eq!(live.exec("echo ran").out, "ran\n", "{no_new_privileges}");
    }
}
