//! Cgroup limits as the kernel enforces them.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::LinuxResources;
use portreeve_oci::cgroup::{self, Cgroup, CgroupError, OomEvent, Version};
use portreeve_sys::bpf;
use portreeve_sys::process::Exit;
use serde_json::json;

use crate::Test;
use crate::mapped_layers::skipped_without_mapped_layers;
use crate::world::{World, chain, controller_file};

pub(crate) const TESTS: &[Test] = &[
    ("limits_of_the_configuration_are_in_force", limits_of_the_configuration_are_in_force),
    ("a_limit_whose_controller_is_missing_is_refused_by_name", a_limit_whose_controller_is_missing_is_refused_by_name),
    ("a_program_over_its_memory_limit_is_killed_and_counted", a_program_over_its_memory_limit_is_killed_and_counted),
    ("a_memory_limit_too_small_for_the_set_up_is_named", a_memory_limit_too_small_for_the_set_up_is_named),
    ("a_program_over_its_process_limit_cannot_fork", a_program_over_its_process_limit_cannot_fork),
    (
        "a_container_that_may_have_no_further_process_starts_all_the_same",
        a_container_that_may_have_no_further_process_starts_all_the_same,
    ),
    ("a_limit_below_use_is_refused_only_when_asked", a_limit_below_use_is_refused_only_when_asked),
    ("limits_change_in_place", limits_change_in_place),
    ("a_change_that_is_refused_puts_back_what_it_wrote", a_change_that_is_refused_puts_back_what_it_wrote),
    (
        "a_further_process_enters_a_container_that_divides_its_cgroup",
        a_further_process_enters_a_container_that_divides_its_cgroup,
    ),
    ("kill_all_ends_a_fork_bomb", kill_all_ends_a_fork_bomb),
    ("a_frozen_container_stands_still_and_can_be_killed", a_frozen_container_stands_still_and_can_be_killed),
    ("statistics_show_what_was_used", statistics_show_what_was_used),
    ("the_root_and_relative_paths_are_no_cgroups_of_ours", the_root_and_relative_paths_are_no_cgroups_of_ours),
    (
        "cgroups_below_a_root_are_listed_deepest_first_and_removed_with_it",
        cgroups_below_a_root_are_listed_deepest_first_and_removed_with_it,
    ),
    (
        "devices_of_a_running_container_change_without_a_moment_of_denial",
        devices_of_a_running_container_change_without_a_moment_of_denial,
    ),
    ("only_our_own_device_program_is_replaced", only_our_own_device_program_is_replaced),
    ("without_privilege_device_rules_are_left_out_and_said", without_privilege_device_rules_are_left_out_and_said),
    ("a_weight_falls_back_to_the_controller_that_is_there", a_weight_falls_back_to_the_controller_that_is_there),
    ("huge_pages_are_limited_or_refused_by_name", huge_pages_are_limited_or_refused_by_name),
    ("a_container_is_refused_in_an_occupied_or_frozen_cgroup", a_container_is_refused_in_an_occupied_or_frozen_cgroup),
    ("out_of_memory_is_told_by_an_event", out_of_memory_is_told_by_an_event),
    ("a_delegated_cgroup_belongs_to_its_user_but_its_limits", a_delegated_cgroup_belongs_to_its_user_but_its_limits),
    ("root_of_a_user_namespace_divides_its_cgroup", root_of_a_user_namespace_divides_its_cgroup),
    ("figures_show_what_was_used", figures_show_what_was_used),
    ("a_refused_value_is_explained", a_refused_value_is_explained),
    ("what_this_version_has_nothing_for_is_said", what_this_version_has_nothing_for_is_said),
    ("burst_and_period_change_in_place", burst_and_period_change_in_place),
    ("a_cgroup_without_a_path_lies_beside_the_callers", a_cgroup_without_a_path_lies_beside_the_callers),
];

fn resources(json: serde_json::Value) -> LinuxResources {
    serde_json::from_value(json).expect("resources")
}

pub(crate) fn v1() -> bool {
    cgroup::version().expect("version") == Version::V1
}

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

fn a_container_that_may_have_no_further_process_starts_all_the_same() {
    // With clocks of its own it is made by a process in between, which is in the cgroup, too.
    let clocks = json!({"linux": {"timeOffsets": {"monotonic": {"secs": 100}}, "namespaces":
        [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "time"}]}});
    for further in [json!({}), clocks] {
        let world = World::shell("echo up; : | :; echo went on")
            .with(json!({"linux": {"resources": {"pids": {"limit": 0}}}}))
            .with(further);
        let live = world.start();
        assert_eq!(controller_file(&world, "pids", "pids.max", "pids.max"), "1");
        let outcome = live.finish();
        assert_eq!(outcome.out, "up\n", "a shell that cannot fork ends: {outcome:?}");
    }
}

fn a_limit_below_use_is_refused_only_when_asked() {
    let world = World::shell("dd if=/dev/zero of=/dev/shm/fill bs=1M count=32 2>/dev/null; echo up; sleep 100")
        .with(json!({"linux": {"resources": {"memory": {"limit": 134_217_728}}}}));
    let live = world.start();
    live.wait_for("up");
    let limit = || controller_file(&world, "memory", "memory.limit_in_bytes", "memory.max");
    match world.cgroup.apply(&resources(json!({"memory": {"limit": 16_777_216, "checkBeforeUpdate": true}}))) {
        Err(CgroupError::BelowUsage { limit_bytes, usage_bytes }) => {
            assert_eq!(limit_bytes, 16_777_216);
            assert!(usage_bytes > 32 << 20, "{usage_bytes}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(limit(), "134217728");
    let unchecked = world.cgroup.apply(&resources(json!({"memory": {"limit": 16_777_216}})));
    if v1() {
        // The kernel itself refuses what it cannot reclaim.
        assert!(matches!(unchecked, Err(CgroupError::BelowUsage { limit_bytes: 16_777_216, .. })), "{unchecked:?}");
        assert_eq!(limit(), "134217728");
    } else {
        unchecked.expect("taken");
        assert_eq!(limit(), "16777216");
    }
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

fn a_change_that_is_refused_puts_back_what_it_wrote() {
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let values = || {
        [
            controller_file(&world, "memory", "memory.limit_in_bytes", "memory.max"),
            controller_file(&world, "memory", "memory.soft_limit_in_bytes", "memory.low"),
            controller_file(&world, "cpu", "cpu.cfs_quota_us", "cpu.max"),
            controller_file(&world, "cpu", "cpu.shares", "cpu.weight"),
            controller_file(&world, "pids", "pids.max", "pids.max"),
        ]
    };
    let change = json!({
        "memory": {"limit": 67_108_864, "reservation": 33_554_432}, "pids": {"limit": 7},
        "cpu": {"shares": 512, "quota": 20_000, "period": 50_000},
        // There are no such pages.
        "hugepageLimits": [{"pageSize": "3MB", "limit": 0}],
    });
    for before in [json!({}), json!({"memory": {"limit": 134_217_728}, "pids": {"limit": 9}, "cpu": {"quota": 30_000}})]
    {
        world.cgroup.apply(&resources(before)).expect("apply");
        let before = values();
        world.cgroup.change(&resources(change.clone())).expect_err("refused");
        assert_eq!(values(), before);
    }
    // And it would have been written.
    world.cgroup.apply(&resources(change)).expect_err("refused");
    assert_eq!(controller_file(&world, "pids", "pids.max", "pids.max"), "7");
}

fn a_further_process_enters_a_container_that_divides_its_cgroup() {
    if v1() {
        eprintln!("SKIPPED a_further_process_enters_a_container_that_divides_its_cgroup: it needs cgroup v2");
        return;
    }
    let script = "cd /cgroup && mkdir init && echo 0 > init/cgroup.procs && echo '+pids +memory' > cgroup.subtree_control && echo up; sleep 100";
    let world = World::shell(script)
        .mount(json!({"destination": "/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid"]}));
    let live = world.start();
    live.wait_for("up");
    assert_eq!(live.exec("cat /proc/self/cgroup").out, "0::/init\n");
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
    assert!(!world.cgroup.is_frozen().expect("state"));
    world.cgroup.freeze().expect("freeze");
    assert!(world.cgroup.is_frozen().expect("state"));
    let then = live.output().len();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(live.output().len(), then, "it went on");
    world.cgroup.thaw().expect("thaw");
    assert!(!world.cgroup.is_frozen().expect("state"));
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

fn devices_of_a_running_container_change_without_a_moment_of_denial() {
    // The shell's own redirection opens the device, so that a round is fast.
    let world = World::shell(
        "echo up; i=0; while true; do true < /dev/zero || echo denied; i=$((i+1)); [ $((i % 500)) != 0 ] || echo pass$i; done",
    );
    let live = world.start();
    live.wait_for("up");
    let rule =
        |major: i64, minor: i64| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"});
    let nothing = json!({"allow": false, "access": "rwm"});
    let few = json!([nothing, rule(1, 3), rule(1, 5)]);
    let more = json!([nothing, rule(10, 229), rule(1, 5), rule(1, 3), rule(10, 200)]);
    let everything = json!([{"allow": true, "access": "rwm"}]);
    for round in 0..60 {
        let rules = [&few, &more, &everything].into_iter().cycle().nth(round).expect("endless");
        world.cgroup.apply(&resources(json!({"devices": rules}))).expect("apply");
    }
    let passes = live.output().matches("pass").count();
    live.wait_for(&format!("pass{}", (passes + 1) * 500));
    assert!(!live.output().contains("denied"), "{}", live.errors());
    // And a denial would have been seen.
    world.cgroup.apply(&resources(json!({"devices": [nothing, rule(1, 3)]}))).expect("apply");
    live.wait_for("denied");
}

fn only_our_own_device_program_is_replaced() {
    if v1() {
        eprintln!("SKIPPED only_our_own_device_program_is_replaced: it needs cgroup v2");
        return;
    }
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let directory = std::fs::File::open(world.cgroup.directories().first().expect("directory")).expect("open");
    // mov r0, 1; exit
    let allow = [
        bpf::Instruction { code: 0xb4, registers: 0, offset: 0, immediate: 1 },
        bpf::Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ];
    let foreign = bpf::load_device_program("sd_devices", &allow).expect("load");
    bpf::attach_device_program(directory.as_fd(), foreign.as_fd(), None).expect("attach");
    for _ in 0..3 {
        world.cgroup.apply(&resources(json!({"devices": [{"allow": false, "access": "rwm"}]}))).expect("apply");
        let attached = bpf::device_programs(directory.as_fd()).expect("query");
        let mut names: Vec<String> =
            attached.iter().map(|program| bpf::program_name(program.as_fd()).expect("name")).collect();
        names.sort();
        assert_eq!(names, ["portreeve_dev", "sd_devices"]);
    }
}

/// Argument with which this program runs [`without_privilege`], and the cgroup.
pub(crate) const WITHOUT_PRIVILEGE: &str = "without-privilege";

fn without_privilege_device_rules_are_left_out_and_said() {
    if v1() {
        eprintln!("SKIPPED without_privilege_device_rules_are_left_out_and_said: it needs cgroup v2");
        return;
    }
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let program = world.this_program();
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(program).args([WITHOUT_PRIVILEGE, world.cgroup.path()]);
    let outcome = command.output().expect("unshare");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
}

/// The other half, as root of a user namespace.
pub(crate) fn without_privilege(path: &str) {
    let more = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]);
    let warnings = Cgroup::at(path).expect("cgroup").apply(&resources(json!({"devices": more}))).expect("apply");
    let words: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["limiting devices (only the machine's root may): Operation not permitted (os error 1)"]);
}

fn a_weight_falls_back_to_the_controller_that_is_there() {
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let directories = world.cgroup.directories();
    let applied = world.cgroup.apply(&resources(json!({"blockIO": {"weight": 500}})));
    let candidates: &[(&str, &str)] = if v1() {
        &[("blkio.bfq.weight", "500"), ("blkio.weight", "500")]
    } else {
        &[("io.bfq.weight", "default 500"), ("io.weight", "default 4950")]
    };
    let found = candidates.iter().find_map(|(file, expected)| {
        let text = directories.iter().find_map(|directory| std::fs::read_to_string(directory.join(file)).ok())?;
        Some((text.lines().next().unwrap_or_default().to_owned(), *expected))
    });
    match found {
        Some((value, expected)) => {
            applied.expect("apply");
            assert!(value == expected || format!("default {value}") == expected, "{value}");
        }
        None => {
            let words = chain(&applied.expect_err("no weights here"));
            assert!(words.contains("blockIO.weight needs"), "{words}");
        }
    }
}

fn huge_pages_are_limited_or_refused_by_name() {
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let applied = world.cgroup.apply(&resources(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}]})));
    if cgroup::controllers().expect("controllers").iter().any(|name| name == "hugetlb") {
        applied.expect("apply");
        let file = |v1, v2| controller_file(&world, "hugetlb", v1, v2);
        assert_eq!(file("hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.max"), "4194304");
        assert_eq!(file("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"), "4194304");
        return;
    }
    let words = chain(&applied.expect_err("no controller"));
    assert_eq!(words, "the hugetlb controller is not available, which hugepageLimits.limit needs");
}

fn a_container_is_refused_in_an_occupied_or_frozen_cgroup() {
    let world = World::shell("echo up; sleep 100");
    let live = world.start();
    live.wait_for("up");
    let words = world.refusal();
    assert!(
        words.contains("is not empty: 2 processes are in it") || words.contains("is not empty: 1 process"),
        "{words}"
    );
    assert!(world.cgroup.populated().expect("processes"), "whoever was there goes on");
    drop(live);

    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    world.cgroup.freeze().expect("freeze");
    let words = world.refusal();
    assert!(words.contains("is frozen"), "{words}");
    world.cgroup.thaw().expect("thaw");
    assert_eq!(world.run().exit, Exit::Code(0));
}

fn out_of_memory_is_told_by_an_event() {
    let world = World::shell("exec dd if=/dev/zero of=/dev/null bs=256M count=1")
        .with(json!({"linux": {"resources": {"memory": {"limit": 33_554_432, "swap": 33_554_432}}}}));
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let mut events = world.cgroup.oom_events().expect("listen");
    assert_eq!(events.read().expect("nothing yet"), if v1() { OomEvent::Nothing } else { OomEvent::Ended });
    let live = world.start();
    let mut told = || loop {
        let ready = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_000_u16));
        assert_eq!(ready.expect("poll"), 1, "no event within 20 s");
        match events.read().expect("event") {
            OomEvent::Nothing => {}
            other => return other,
        }
    };
    assert_eq!(told(), OomEvent::OutOfMemory(1));
    assert_eq!(live.finish().exit, Exit::Signal(9));
    world.cgroup.wait_empty(Duration::from_secs(5)).expect("empty");
    world.cgroup.remove().expect("remove");
    assert_eq!(told(), OomEvent::Ended);
}

fn a_delegated_cgroup_belongs_to_its_user_but_its_limits() {
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    world.cgroup.delegate(12_345).expect("delegate");
    let directories = world.cgroup.directories();
    let owner = |path: &std::path::Path| std::fs::metadata(path).expect("metadata").uid();
    if v1() {
        assert!(directories.iter().all(|directory| owner(directory) == 0), "version 1 is nobody's but root's");
        return;
    }
    let directory = directories.first().expect("directory");
    for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        assert_eq!(owner(&directory.join(name)), 12_345, "{name}");
    }
    for name in ["memory.max", "pids.max", "cgroup.freeze"] {
        assert_eq!(owner(&directory.join(name)), 0, "{name}");
    }
}

fn root_of_a_user_namespace_divides_its_cgroup() {
    if v1() {
        eprintln!("SKIPPED root_of_a_user_namespace_divides_its_cgroup: it needs cgroup v2");
        return;
    }
    if skipped_without_mapped_layers("root_of_a_user_namespace_divides_its_cgroup") {
        return;
    }
    let maps = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
    let script = "cd /cgroup && mkdir sub && echo 0 > sub/cgroup.procs && cat /proc/self/cgroup; echo 1 > memory.max && echo taken";
    let world = World::shell(script)
        .with(json!({"linux": {"uidMappings": maps, "gidMappings": maps, "namespaces":
            [{"type": "user"}, {"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}]}}))
        .mount(json!({"destination": "/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid"]}));
    let outcome = world.run();
    assert_eq!(outcome.out, "0::/sub\n", "{outcome:?}");
}

fn figures_show_what_was_used() {
    let world = World::shell("dd if=/dev/zero of=/dev/shm/fill bs=1M count=8 2>/dev/null; echo up; sleep 100 & wait")
        .with(json!({"linux": {"resources": {"memory": {"limit": 67_108_864}, "pids": {"limit": 33}}}}));
    let live = world.start();
    live.wait_for("up");
    let figures = world.cgroup.figures().expect("figures");
    assert!(figures.cpu.usage.total > 0, "{figures:?}");
    assert!(figures.memory.usage.usage > 8 << 20 && figures.memory.usage.max > 8 << 20, "{figures:?}");
    assert_eq!((figures.memory.usage.limit, figures.pids.limit), (67_108_864, 33));
    assert!(!figures.memory.raw.is_empty());
    assert!((1..=2).contains(&figures.pids.current), "{figures:?}");
    if v1() {
        assert_eq!(figures.cpuset.cpus.is_empty(), cgroup::controllers().expect("list").iter().all(|c| c != "cpuset"));
        assert!(!figures.cpu.usage.percpu.is_empty() && !figures.cpu.usage.percpu_user.is_empty());
    }
}

fn a_refused_value_is_explained() {
    let world = World::shell("true");
    let below = Cgroup::open_or_create(&format!("{}/below", world.cgroup.path())).expect("create");
    let refusal = |change: serde_json::Value| chain(&below.apply(&resources(change)).expect_err("refused"));
    let words = refusal(json!({"cpu": {"quota": 1}}));
    assert!(words.starts_with("setting cpu.quota: writing \"1") && words.contains("at least 1000"), "{words}");
    below.apply(&resources(json!({"cpu": {"idle": 1}}))).expect("idle");
    let words = refusal(json!({"cpu": {"shares": 512}}));
    assert!(words.contains("an idle cgroup takes no shares"), "{words}");
    below.apply(&resources(json!({"cpu": {"idle": 0, "shares": 512}}))).expect("no longer idle");
    if v1() && below.directories().iter().any(|directory| directory.join("cpu.rt_runtime_us").exists()) {
        let words = refusal(json!({"cpu": {"realtimeRuntime": 1000}}));
        assert!(words.contains("must have a real-time budget"), "{words}");
        world.cgroup.apply(&resources(json!({"cpu": {"realtimeRuntime": 2000}}))).expect("above");
        below.apply(&resources(json!({"cpu": {"realtimeRuntime": 1000}}))).expect("below");
    }
}

fn what_this_version_has_nothing_for_is_said() {
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let warnings = world.cgroup.apply(&resources(json!({"memory": {"swappiness": 10}}))).expect("apply");
    let words: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    if v1() {
        assert_eq!(words, Vec::<String>::new());
        assert_eq!(controller_file(&world, "memory", "memory.swappiness", ""), "10");
        return;
    }
    assert_eq!(words, ["memory.swappiness is not set: cgroup v2 has nothing for it"]);
    let words = chain(&world.cgroup.apply(&resources(json!({"network": {"classID": 1}}))).expect_err("refused"));
    assert!(words.starts_with("network.classID: cgroup v2 marks no traffic"), "{words}");
}

fn burst_and_period_change_in_place() {
    let world = World::shell("true");
    Cgroup::open_or_create(world.cgroup.path()).expect("create");
    let limits = |quota, period, burst| json!({"cpu": {"quota": quota, "period": period, "burst": burst}});
    for (quota, period, burst) in [(50_000, 100_000, 40_000), (5_000, 50_000, 5_000), (200_000, 200_000, 100_000)] {
        world.cgroup.apply(&resources(limits(quota, period, burst))).expect("apply");
        assert_eq!(controller_file(&world, "cpu", "cpu.cfs_burst_us", "cpu.max.burst"), burst.to_string());
        if v1() {
            assert_eq!(controller_file(&world, "cpu", "cpu.cfs_quota_us", ""), quota.to_string());
            assert_eq!(controller_file(&world, "cpu", "cpu.cfs_period_us", ""), period.to_string());
        } else {
            assert_eq!(controller_file(&world, "cpu", "", "cpu.max"), format!("{quota} {period}"));
        }
    }
}

fn a_cgroup_without_a_path_lies_beside_the_callers() {
    assert_eq!(Cgroup::place(Some("/a/b"), "c1").expect("place").path(), "/a/b");
    let placed = Cgroup::place(None, "c1").expect("place");
    assert!(placed.path().ends_with("/c1"), "{placed:?}");
    assert!(matches!(Cgroup::place(Some("../x"), "c1"), Err(CgroupError::Path(_))));
}
