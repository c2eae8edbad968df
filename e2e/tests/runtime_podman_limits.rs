//! `podman --runtime`: limits, when containers are made and later, are those that they are with crun and runc. Where the
//! three differ, `runtime/oci/README.md` says why.

use std::path::Path;

use portreeve_e2e::{has_controller, podman_sees, remove_cgroup, skipped};

/// A line of shell that prints cgroup files: the first version's below the second's name is nothing, and the other way
/// round.
fn print(files: &[&str]) -> String {
    let each = |file: &&str| format!("[ ! -e /sys/fs/cgroup/{file} ] || echo {file} $(cat /sys/fs/cgroup/{file})");
    files.iter().map(each).collect::<Vec<_>>().join("; ")
}

const MEMORY: &[&str] = &[
    "memory/memory.limit_in_bytes",
    "memory/memory.soft_limit_in_bytes",
    "memory/memory.memsw.limit_in_bytes",
    "memory/memory.swappiness",
    "memory.max",
    "memory.low",
    "memory.swap.max",
];

const CPU: &[&str] = &[
    "cpu/cpu.cfs_quota_us",
    "cpu/cpu.cfs_period_us",
    "cpu/cpu.shares",
    "cpuset/cpuset.cpus",
    "cpuset/cpuset.mems",
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
];

const PIDS: &[&str] = &["pids/pids.max", "pids.max"];

/// Whether one of the lines ends with ` value`.
fn says(text: &str, value: &str) -> bool {
    text.lines().any(|line| line.split_once(' ').is_some_and(|(_, rest)| rest == value))
}

#[test]
fn memory_limits_are_the_same() {
    let seen = podman_sees("memory_limits_are_the_same", |podman, facts| {
        let flags = ["--memory", "64m", "--memory-swap", "128m", "--memory-reservation", "32m"];
        facts.answer("limits", &podman.run(&flags, &["sh", "-c", &print(MEMORY)]));
        facts.answer("no flags", &podman.run(&[], &["sh", "-c", &print(&[MEMORY, CPU, PIDS].concat())]));
        let before = podman.enclosure().leftovers();
        facts.answer("swappiness", &podman.run(&["--memory-swappiness", "10"], &["sh", "-c", &print(MEMORY)]));
        let line = print(&["memory/memory.oom_control"]);
        facts.answer("no killer", &podman.run(&["--memory", "64m", "--oom-kill-disable"], &["sh", "-c", &line]));
        // What crun refuses it does not clear away.
        let left = podman.enclosure().leftovers();
        let left: Vec<_> = left.into_iter().filter(|one| !before.contains(one)).collect();
        facts.tell("left by refusals", left.join(" "));
        left.iter().for_each(|cgroup| remove_cgroup(Path::new(cgroup)));
        facts.answer("a small limit", &podman.run(&["--memory", "6m"], &["sh", "-c", &print(MEMORY)]));
        podman.start("eater", &["--memory", "32m", "--memory-swap", "32m"], &["/prober", "eat", "256"]);
        facts.answer("too much", &podman.call(&["wait", "eater"]));
        facts.tell("why", podman.inspect("eater", "{{.State.OOMKilled}} {{.State.ExitCode}}"));
    });
    let Some(seen) = seen else { return };
    assert!(says(seen.value("limits: output"), "67108864"), "{}", seen.value("limits: output"));
    assert_eq!(seen.value("too much: output"), "137");
    assert_eq!(seen.value("why"), "true 137");
}

#[test]
fn processor_limits_are_the_same() {
    let test = "processor_limits_are_the_same";
    let sets = has_controller("cpuset");
    if !sets {
        skipped(test, "the part about sets of processors: there is no cpuset controller");
    }
    let seen = podman_sees(test, |podman, facts| {
        let line = print(CPU);
        facts.answer("share", &podman.run(&["--cpus", "0.5", "--cpu-shares", "512"], &["sh", "-c", &line]));
        let flags = ["--cpu-period", "50000", "--cpu-quota", "20000", "--cpuset-cpus", "0", "--cpuset-mems", "0"];
        facts.answer("quota", &podman.run(if sets { &flags } else { &flags[..4] }, &["sh", "-c", &line]));
        if sets {
            facts.report("one processor", &podman.report(&["--cpuset-cpus", "0"]));
            facts.answer("too many", &podman.run(&["--cpuset-cpus", "9999"], &["true"]));
        }
        let line = print(&["cpu/cpu.rt_period_us", "cpu/cpu.rt_runtime_us"]);
        facts.answer("real time", &podman.run(&["--cpu-rt-period", "100000"], &["sh", "-c", &line]));
    });
    let Some(seen) = seen else { return };
    let share = seen.value("share: output");
    assert!(says(share, "50000") || says(share, "50000 100000"), "{share}");
    if sets {
        assert_eq!(seen.value("one processor: affinity"), "[0]");
        assert_ne!(seen.value("too many: code"), "0");
    }
}

#[test]
fn the_limit_of_processes_is_the_same() {
    let seen = podman_sees("the_limit_of_processes_is_the_same", |podman, facts| {
        facts.answer("value", &podman.run(&["--pids-limit", "20"], &["sh", "-c", &print(PIDS)]));
        facts.answer("none", &podman.run(&["--pids-limit", "-1"], &["sh", "-c", &print(PIDS)]));
        facts.answer("effect", &podman.run(&["--pids-limit", "20"], &["/prober", "fork", "40"]));
    });
    let Some(seen) = seen else { return };
    assert!(says(seen.value("value: output"), "20"), "{}", seen.value("value: output"));
    assert!(seen.value("effect: output").contains("19"), "{}", seen.value("effect: output"));
}

#[test]
fn limits_sysctls_and_scores_are_the_same() {
    let seen = podman_sees("limits_sysctls_and_scores_are_the_same", |podman, facts| {
        let flags = ["--ulimit", "nofile=300:512", "--ulimit", "core=0:0", "--ulimit", "memlock=65536:65536"];
        facts.report("limits", &podman.report(&flags));
        let flags = ["--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "kernel.shmmax=123456789"];
        let program = ["/prober", "report", "net.ipv4.ip_forward", "kernel.shmmax", "kernel.core_pattern"];
        facts.report("sysctls", &podman.run(&flags, &program));
        facts.report("score", &podman.report(&["--oom-score-adj", "500"]));
        facts.answer("another's sysctl", &podman.run(&["--sysctl", "kernel.panic=1"], &["true"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("limits: rlimits/RLIMIT_NOFILE"), "[300,512]");
    assert_eq!(seen.value("sysctls: sysctls/net.ipv4.ip_forward"), "1");
    assert_eq!(seen.value("sysctls: sysctls/kernel.shmmax"), "123456789");
    assert_eq!(seen.value("score: oom_score_adj"), "500");
}

#[test]
fn changed_limits_are_the_same() {
    let seen = podman_sees("changed_limits_are_the_same", |podman, facts| {
        podman.start_waiting("waits", &["--memory", "64m", "--pids-limit", "100"]);
        let line = print(&[MEMORY, CPU, PIDS].concat());
        facts.answer("before", &podman.exec("waits", &[], &["sh", "-c", &line]));
        let flags = ["--memory", "32m", "--cpus", "0.5", "--pids-limit", "30", "--cpu-shares", "300"];
        facts.answer("update", &podman.call(&[&["update"], &flags[..], &["waits"]].concat()));
        facts.answer("after", &podman.exec("waits", &[], &["sh", "-c", &line]));
        let flags =
            ["--cpu-period", "50000", "--cpu-quota", "10000", "--memory-reservation", "16m", "--memory-swap", "48m"];
        facts.answer("others", &podman.call(&[&["update"], &flags[..], &["waits"]].concat()));
        facts.answer("after others", &podman.exec("waits", &[], &["sh", "-c", &line]));
        facts.answer("a set", &podman.call(&["update", "--cpuset-cpus", "0", "waits"]));
        facts.answer("after that", &podman.exec("waits", &[], &["sh", "-c", &line]));
        facts.answer("nonsense", &podman.call(&["update", "--cpuset-cpus", "9999", "waits"]));
        facts.answer("after nonsense", &podman.exec("waits", &[], &["sh", "-c", &line]));
        facts.answer("removal", &podman.remove("waits"));
    });
    let Some(seen) = seen else { return };
    assert!(says(seen.value("before: output"), "67108864"));
    assert!(says(seen.value("after: output"), "33554432") && says(seen.value("after: output"), "30"));
    assert_eq!(seen.value("nonsense: code"), "125");
}
