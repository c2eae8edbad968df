//! Cgroup limits as the kernel enforces them.

use std::time::Duration;

use portreeve_oci::cgroup::{self, Cgroup, CgroupError, Version};
use portreeve_sys::process::Exit;
use serde_json::json;

use crate::Test;
use crate::world::{World, controller_file};

pub(crate) const TESTS: &[Test] = &[
    ("limits_of_the_configuration_are_in_force", limits_of_the_configuration_are_in_force),
    ("a_limit_whose_controller_is_missing_is_refused_by_name", a_limit_whose_controller_is_missing_is_refused_by_name),
    ("a_program_over_its_memory_limit_is_killed_and_counted", a_program_over_its_memory_limit_is_killed_and_counted),
    ("a_memory_limit_too_small_for_the_set_up_is_named", a_memory_limit_too_small_for_the_set_up_is_named),
    ("a_program_over_its_process_limit_cannot_fork", a_program_over_its_process_limit_cannot_fork),
    ("a_memory_limit_below_use_is_refused_with_the_numbers", a_memory_limit_below_use_is_refused_with_the_numbers),
    ("limits_change_in_place", limits_change_in_place),
    ("kill_all_ends_a_fork_bomb", kill_all_ends_a_fork_bomb),
    ("a_frozen_container_stands_still_and_can_be_killed", a_frozen_container_stands_still_and_can_be_killed),
    ("statistics_show_what_was_used", statistics_show_what_was_used),
    ("the_root_and_relative_paths_are_no_cgroups_of_ours", the_root_and_relative_paths_are_no_cgroups_of_ours),
    (
        "cgroups_below_a_root_are_listed_deepest_first_and_removed_with_it",
        cgroups_below_a_root_are_listed_deepest_first_and_removed_with_it,
    ),
];

fn limits_of_the_configuration_are_in_force() {
    let world = World::shell("echo up; sleep 100").with(json!({"linux": {"resources": {
        "memory": {"limit": 67_108_864}, "cpu": {"shares": 512, "quota": 20_000, "period": 100_000}, "pids": {"limit": 33}}}}));
    let live = world.start();
    live.wait_for("up");
    assert_eq!(controller_file(&world, "memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(controller_file(&world, "pids", "pids.max", "pids.max"), "33");
    if cgroup::version().expect("version") == Version::V1 {
        assert_eq!(controller_file(&world, "cpu", "cpu.shares", ""), "512");
        assert_eq!(controller_file(&world, "cpu", "cpu.cfs_quota_us", ""), "20000");
    } else {
        assert_eq!(controller_file(&world, "cpu", "", "cpu.max"), "20000 100000");
        assert_eq!(controller_file(&world, "cpu", "", "cpu.weight"), "59");
    }
    let stats = world.cgroup.stats().expect("stats");
    assert_eq!((stats.memory_limit_bytes, stats.pids_limit), (Some(67_108_864), Some(33)));
}

fn a_limit_whose_controller_is_missing_is_refused_by_name() {
    let world =
        World::shell("echo up; sleep 100").with(json!({"linux": {"resources": {"cpu": {"cpus": "0", "mems": "0"}}}}));
    let v1 = cgroup::version().expect("version") == Version::V1;
    let offered = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if v1 || offered.split_whitespace().any(|name| name == "cpuset") {
        let live = world.start();
        live.wait_for("up");
        assert_eq!(controller_file(&world, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
        return;
    }
    let words = world.refusal();
    assert!(words.contains("the cpuset controller is not available, which cpu.cpus needs"), "{words}");
}

fn a_program_over_its_memory_limit_is_killed_and_counted() {
    let world = World::shell("exec dd if=/dev/zero of=/dev/null bs=256M count=1")
        .with(json!({"linux": {"resources": {"memory": {"limit": 33_554_432, "swap": 33_554_432}}}}));
    let outcome = world.run();
    assert_eq!(outcome.exit, Exit::Signal(9), "{outcome:?}");
    assert_eq!(world.cgroup.oom_kills().expect("count"), 1);
}

fn a_memory_limit_too_small_for_the_set_up_is_named() {
    // What `512m` means, and what `512` does.
    for limit in [1, 512] {
        let world =
            World::shell("true").with(json!({"linux": {"resources": {"memory": {"limit": limit, "swap": limit}}}}));
        let words = world.refusal();
        assert!(words.starts_with(&format!("the memory limit of {limit} B is too small")), "{words}");
        assert!(words.contains("OOMKilled"), "{words}");
    }
}

fn a_program_over_its_process_limit_cannot_fork() {
    let world = World::shell("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo done")
        .with(json!({"linux": {"resources": {"pids": {"limit": 4}}}}));
    let live = world.start();
    std::thread::sleep(Duration::from_millis(200));
    assert!(world.cgroup.stats().expect("stats").pids <= 4);
    drop(live);
}

fn a_memory_limit_below_use_is_refused_with_the_numbers() {
    let world = World::shell("dd if=/dev/zero of=/dev/shm/fill bs=1M count=32 2>/dev/null; echo up; sleep 100")
        .with(json!({"linux": {"resources": {"memory": {"limit": 134_217_728}}}}));
    let live = world.start();
    live.wait_for("up");
    let smaller = serde_json::from_value(json!({"memory": {"limit": 16_777_216}})).expect("resources");
    match world.cgroup.apply(&smaller) {
        Err(CgroupError::BelowUsage { limit_bytes, usage_bytes }) => {
            assert_eq!(limit_bytes, 16_777_216);
            assert!(usage_bytes > 32 << 20, "{usage_bytes}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(controller_file(&world, "memory", "memory.limit_in_bytes", "memory.max"), "134217728");
}

fn limits_change_in_place() {
    let world = World::shell("echo up; sleep 100")
        .with(json!({"linux": {"resources": {"memory": {"limit": 67_108_864, "swap": 67_108_864}}}}));
    let live = world.start();
    live.wait_for("up");
    for bytes in [134_217_728_i64, 50_331_648] {
        let change = json!({"memory": {"limit": bytes, "swap": bytes}, "pids": {"limit": 77}, "cpu": {"quota": 30_000, "period": 100_000}});
        world.cgroup.apply(&serde_json::from_value(change).expect("resources")).expect("apply");
        assert_eq!(controller_file(&world, "memory", "memory.limit_in_bytes", "memory.max"), bytes.to_string());
        assert_eq!(controller_file(&world, "pids", "pids.max", "pids.max"), "77");
    }
}

fn kill_all_ends_a_fork_bomb() {
    let world = World::shell("while true; do sleep 0.01 & sleep 0.01 & done")
        .with(json!({"linux": {"resources": {"pids": {"limit": 4000}}}}));
    let live = world.start();
    std::thread::sleep(Duration::from_millis(100));
    world.cgroup.kill_all().expect("kill");
    assert_eq!(live.finish().exit, Exit::Signal(9));
    world.cgroup.wait_empty(Duration::from_secs(5)).expect("empty");
    assert_eq!(world.cgroup.processes().expect("processes").len(), 0);
}

fn a_frozen_container_stands_still_and_can_be_killed() {
    let world = World::shell("while true; do echo x; sleep 0.01; done");
    let live = world.start();
    live.wait_for("x");
    world.cgroup.freeze().expect("freeze");
    let then = live.output().len();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(live.output().len(), then, "it went on");
    world.cgroup.thaw().expect("thaw");
    for _ in 0..500 {
        if live.output().len() > then {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(live.output().len() > then, "it goes on after the thaw");
    world.cgroup.freeze().expect("freeze");
    world.cgroup.kill_all().expect("kill");
    assert_eq!(live.finish().exit, Exit::Signal(9));
}

fn statistics_show_what_was_used() {
    let world = World::shell(
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/shm/fill bs=1M count=8 2>/dev/null; echo up; sleep 100 & wait",
    );
    let live = world.start();
    live.wait_for("up");
    std::thread::sleep(Duration::from_millis(50));
    let stats = world.cgroup.stats().expect("stats");
    assert!(stats.cpu_usage_ns > 1_000_000, "{stats:?}");
    assert!(stats.memory_working_set_bytes > 8 << 20, "{stats:?}");
    assert_eq!(stats.pids, 2, "{stats:?}");
    assert_eq!(stats.oom_kills, 0);
}

fn the_root_and_relative_paths_are_no_cgroups_of_ours() {
    for path in ["", "/", "//", "/a/../b", "/..", "/a/./b", "/a\nb"] {
        assert!(matches!(Cgroup::at(path), Err(CgroupError::Path(_))), "{path:?}");
    }
}

fn cgroups_below_a_root_are_listed_deepest_first_and_removed_with_it() {
    let world = World::shell("true");
    let top = world.cgroup.path().to_owned();
    Cgroup::open_or_create(&format!("{top}/a/b")).expect("create");
    Cgroup::open_or_create(&format!("{top}/c")).expect("create");
    let list = cgroup::list_below(&top).expect("list");
    assert_eq!(list, [format!("{top}/a/b"), format!("{top}/a"), format!("{top}/c")]);
    world.cgroup.remove().expect("remove");
    assert!(!world.cgroup.exists());
    world.cgroup.remove().expect("absent is success");
    assert_eq!(cgroup::list_below(&top).expect("list"), Vec::<String>::new());
}
