//! Cgroups made by systemd: in the guest that is booted with it; elsewhere, the refusal.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::systemd::{self, property, systemctl};
use portreeve_e2e::{Attempts, Bundle, Runtime, wait_until};
use serde_json::{Value, json};

const SLICE: &str = "prt-e2e.slice";
const BELOW: &str = "prt.slice/prt-e2e.slice";

/// A runtime that has systemd make its cgroups; nothing, said loudly, where there is none.
fn with_systemd(test: &str) -> Option<Runtime> {
    if systemd::skipped_without(test) {
        return None;
    }
    let mut runtime = Runtime::for_test(test)?;
    runtime.use_flags(&["--systemd-cgroup"]);
    Some(runtime)
}

/// Puts a container into a scope of a name that nobody else has.
fn scoped(bundle: Bundle, name: &str) -> (Bundle, String) {
    let bundle = bundle.with(json!({ "linux": { "cgroupsPath": format!("{SLICE}:unit:{name}") } }));
    (bundle, format!("unit-{name}.scope"))
}

/// A file of a cgroup below the tests' slice.
fn file(place: &str, name: &str) -> String {
    let path = Path::new("/sys/fs/cgroup").join(BELOW).join(place).join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim_end().to_owned()
}

fn cgroup(unit: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(BELOW).join(unit)
}

/// Neither the unit nor its cgroup is there.
fn gone(unit: &str) -> Result<(), String> {
    let state = property(unit, "LoadState");
    let cgroup = cgroup(unit).exists();
    if state == "not-found" && !cgroup { Ok(()) } else { Err(format!("{unit} is {state}, its cgroup: {cgroup}")) }
}

/// Limits of every kind that this guest has a controller for.
fn limits() -> Value {
    json!({
        "memory": { "limit": 67_108_864, "reservation": 33_554_432 },
        "cpu": { "shares": 512, "quota": 50_000, "period": 100_000, "burst": 20_000 },
        "pids": { "limit": 20 },
        "unified": { "memory.high": "50331648", "memory.oom.group": "1" },
        "devices": [
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": 7, "access": "rwm" },
            { "allow": false, "type": "b", "major": 7, "minor": 201, "access": "w" },
        ],
    })
}

/// What each file of the container's cgroup, and of its scope's, has to say about them.
const FILES: [(&str, &str, &str); 8] = [
    ("memory.max", "67108864", "67108864"),
    ("memory.low", "33554432", "33554432"),
    ("memory.high", "50331648", "50331648"),
    ("memory.oom.group", "1", "0"),
    ("cpu.max", "50000 100000", "50000 100000"),
    ("cpu.max.burst", "20000", "20000"),
    ("cpu.weight", "59", "59"),
    ("pids.max", "20", "20"),
];

const OPERATIONS: [&str; 5] =
    ["open /dev/null rw", "open /dev/allowed r", "open /dev/denied r", "open /dev/denied w", "open /dev/forbidden r"];

/// Numbers that no driver has: allowed, the open ends with ENXIO or ENODEV; denied, with EPERM.
fn check_devices(runtime: &Runtime, bundle: &Bundle) {
    let tried = Attempts::parse(&runtime.exec(bundle, &[], &[&["/prober", "try"], &OPERATIONS[..]].concat()).ok());
    let denied = OPERATIONS.map(|operation| tried.errno(operation) == "EPERM");
    assert_eq!(denied, [false, false, false, true, true], "{tried:?}");
}

fn check_files(unit: &str, files: &[(&str, &str, &str)]) {
    for (name, own, scope) in files {
        assert_eq!(file(&format!("{unit}/container"), name), *own, "{name} of the container");
        assert_eq!(file(unit, name), *scope, "{name} of the scope");
    }
}

/// A running container with all of these limits.
fn limited(runtime: &Runtime, name: &str) -> (Bundle, String) {
    let devices = json!([
        { "path": "/dev/allowed", "type": "b", "major": 7, "minor": 200, "fileMode": 0o666 },
        { "path": "/dev/denied", "type": "b", "major": 7, "minor": 201, "fileMode": 0o666 },
        { "path": "/dev/forbidden", "type": "c", "major": 240, "minor": 1, "fileMode": 0o666 },
    ]);
    let bundle = runtime.bundle(&["wait"]).with(json!({ "linux": { "resources": limits(), "devices": devices } }));
    let (bundle, unit) = scoped(bundle, name);
    runtime.start_waiting(&bundle);
    (bundle, unit)
}

#[test]
fn a_container_is_a_scope_in_its_slice_with_its_limits_on_both() {
    let Some(runtime) = with_systemd("a_container_is_a_scope_in_its_slice_with_its_limits_on_both") else { return };
    let (bundle, unit) = limited(&runtime, "limits");
    let place = std::fs::read_to_string(format!("/proc/{}/cgroup", runtime.pid(&bundle))).expect("its cgroup");
    assert!(place.ends_with(&format!("0::/{BELOW}/{unit}/container\n")), "{place}");
    let status = systemctl(&["status", "--no-pager", "--full", &unit]);
    for words in ["active (running)", "container c0 of portreeve", "/prober wait", "limit: 20", "max: 64"] {
        assert!(status.contains(words), "{words}: {status}");
    }
    for (name, value) in [
        ("Slice", SLICE),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("MemoryAccounting", "yes"),
        ("TasksAccounting", "yes"),
        ("CPUAccounting", "yes"),
        ("IOAccounting", "yes"),
        ("MemoryMax", "67108864"),
        ("MemoryLow", "33554432"),
        ("MemoryHigh", "50331648"),
        ("TasksMax", "20"),
        ("CPUWeight", "59"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUQuotaPeriodUSec", "100ms"),
        // Devices are the container's own cgroup's business.
        ("DevicePolicy", "auto"),
        ("DeviceAllow", ""),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    check_files(&unit, &FILES);
    check_devices(&runtime, &bundle);
    assert!(!cgroup(&unit).join("keeper").exists(), "who made it has gone");
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    gone(&unit).expect("the unit goes with its container");
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn reloading_systemd_undoes_neither_limits_nor_devices() {
    let Some(runtime) = with_systemd("reloading_systemd_undoes_neither_limits_nor_devices") else { return };
    let (bundle, unit) = limited(&runtime, "reload");
    for verb in ["daemon-reload", "daemon-reexec"] {
        assert_eq!(systemctl(&[verb]), "", "{verb}");
        check_files(&unit, &FILES);
        check_devices(&runtime, &bundle);
    }
    // Whatever makes systemd look at the scope again.
    assert_eq!(systemctl(&["set-property", "--runtime", &unit, "Description=other"]), "");
    check_files(&unit, &FILES);
    check_devices(&runtime, &bundle);
}

#[test]
fn an_update_changes_the_unit_and_the_cgroup() {
    let Some(runtime) = with_systemd("an_update_changes_the_unit_and_the_cgroup") else { return };
    let (bundle, unit) = limited(&runtime, "update");
    let update = |flags: &[&str]| runtime.call(&[&["update"], flags, &[bundle.id()]].concat());
    update(&["--memory", "96M", "--pids-limit", "30", "--cpu-quota", "15500", "--cpu-burst", "0"]).ok();
    let changed = [
        ("memory.max", "100663296", "100663296"),
        ("pids.max", "30", "30"),
        // systemd counts in percents of a processor: never less than what the container has.
        ("cpu.max", "15500 100000", "16000 100000"),
        ("cpu.max.burst", "0", "0"),
        ("cpu.weight", "59", "59"),
    ];
    check_files(&unit, &changed);
    assert_eq!(property(&unit, "MemoryMax"), "100663296");
    assert_eq!(property(&unit, "TasksMax"), "30");
    assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "160ms");
    assert_eq!(systemctl(&["daemon-reload"]), "");
    check_files(&unit, &changed);
    check_devices(&runtime, &bundle);
    // No limits any more.
    update(&["--memory", "-1", "--pids-limit", "-1", "--cpu-quota", "-1"]).ok();
    check_files(
        &unit,
        &[("memory.max", "max", "max"), ("pids.max", "max", "max"), ("cpu.max", "max 100000", "max 100000")],
    );
    assert_eq!(property(&unit, "TasksMax"), "infinity");
    // What is refused changes neither.
    let refused = update(&["--cpu-quota", "500"]);
    assert_ne!(refused.code, 0);
    check_files(&unit, &[("cpu.max", "max 100000", "max 100000")]);
    assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "infinity");
}

#[test]
fn without_a_path_the_scope_is_the_containers_in_the_systems_slice() {
    let Some(runtime) = with_systemd("without_a_path_the_scope_is_the_containers_in_the_systems_slice") else { return };
    for path in [Value::Null, json!("")] {
        let bundle = runtime.bundle(&["wait"]).with(json!({ "linux": { "cgroupsPath": path } }));
        runtime.start_waiting(&bundle);
        let unit = format!("portreeve-{}.scope", bundle.id());
        let place = std::fs::read_to_string(format!("/proc/{}/cgroup", runtime.pid(&bundle))).expect("its cgroup");
        assert!(place.ends_with(&format!("0::/system.slice/{unit}/container\n")), "{place}");
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        gone(&unit).expect("the unit goes with its container");
    }
    // In the root slice.
    let bundle = runtime.bundle(&["wait"]).with(json!({ "linux": { "cgroupsPath": "-.slice:unit:root" } }));
    runtime.start_waiting(&bundle);
    let place = std::fs::read_to_string(format!("/proc/{}/cgroup", runtime.pid(&bundle))).expect("its cgroup");
    assert!(place.ends_with("0::/unit-root.scope/container\n"), "{place}");
}

#[test]
fn a_container_lives_in_its_scope_as_in_any_cgroup() {
    let Some(runtime) = with_systemd("a_container_lives_in_its_scope_as_in_any_cgroup") else { return };
    let (bundle, unit) = scoped(runtime.bundle(&["wait"]), "life");
    let answer = runtime.create(&bundle, &[]);
    answer.ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("created"));
    assert_eq!(property(&unit, "ActiveState"), "active", "a container that waits holds its scope");
    runtime.call(&["start", bundle.id()]).ok();
    wait_until("it runs", 20, || if bundle.output().is_empty() { Err(String::new()) } else { Ok(()) });
    assert!(runtime.exec_report(&bundle, &[])["pid"].is_number(), "a further process");
    runtime.call(&["pause", bundle.id()]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("paused"));
    assert_eq!(file(&format!("{unit}/container"), "cgroup.freeze"), "1");
    runtime.call(&["resume", bundle.id()]).ok();
    let processes: Value =
        serde_json::from_str(&runtime.call(&["ps", "--format", "json", bundle.id()]).ok()).expect("JSON");
    assert_eq!(processes.as_array().map(Vec::len), Some(1), "{processes}");
    // It ends, and its scope is empty then: systemd removes it, and the container is still to be deleted.
    runtime.call(&["kill", bundle.id(), "TERM"]).ok();
    runtime.wait_status(&bundle, "stopped");
    wait_until("the unit has gone", 20, || gone(&unit));
    runtime.call(&["delete", bundle.id()]).ok();
    assert_eq!(runtime.status(&bundle), None);
}

#[test]
fn run_answers_the_programs_code_and_leaves_no_unit() {
    let Some(runtime) = with_systemd("run_answers_the_programs_code_and_leaves_no_unit") else { return };
    // So few processes that one who keeps the scope would be one too many.
    let limit = json!({ "linux": { "resources": { "pids": { "limit": 1 } } } });
    let (bundle, unit) = scoped(runtime.bundle(&["exit", "7"]).with(limit), "run");
    let answer = runtime.run(&bundle, &[]);
    assert_eq!(answer.code, 7, "{}", answer.stderr);
    gone(&unit).expect("the unit goes with its container");
    // A container that cannot be made.
    let (bundle, unit) = scoped(runtime.bundle_of(&["/missing"]), "missing");
    let answer = runtime.run(&bundle, &[]);
    assert_eq!(answer.code, 127, "{}", answer.stderr);
    gone(&unit).expect("the unit of a container that could not be made");
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn stopping_the_unit_ends_the_container() {
    let Some(runtime) = with_systemd("stopping_the_unit_ends_the_container") else { return };
    let (bundle, unit) = scoped(runtime.bundle(&["wait"]), "stop");
    runtime.start_waiting(&bundle);
    assert_eq!(systemctl(&["stop", &unit]), "");
    runtime.wait_status(&bundle, "stopped");
    runtime.call(&["delete", bundle.id()]).ok();
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn a_path_that_names_no_scope_is_refused_and_nothing_is_made() {
    let Some(runtime) = with_systemd("a_path_that_names_no_scope_is_refused_and_nothing_is_made") else { return };
    for (path, reason) in [
        ("/a/b", "SLICE:PREFIX:NAME"),
        ("system.slice:only", "SLICE:PREFIX:NAME"),
        ("system.slice:a:b:c", "SLICE:PREFIX:NAME"),
        ("prt--e2e.slice:a:b", "no name of a slice"),
        ("system.slice:a:b/c", "no name of a unit"),
        ("system.slice:a:b.slice", "a slice has no processes"),
    ] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "cgroupsPath": path } }));
        let answer = runtime.create(&bundle, &[]);
        assert_ne!(answer.code, 0, "{path}");
        assert!(answer.stderr.contains(reason) && answer.stderr.contains(path), "{path}: {}", answer.stderr);
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn a_slice_that_cannot_be_made_is_told_of_in_systemds_words() {
    let Some(runtime) = with_systemd("a_slice_that_cannot_be_made_is_told_of_in_systemds_words") else { return };
    systemctl(&["mask", "--runtime", "prt-masked.slice"]);
    let bundle = runtime.bundle(&["report"]);
    let bundle = bundle.with(json!({ "linux": { "cgroupsPath": "prt-masked.slice:unit:masked" } }));
    let answer = runtime.create(&bundle, &[]);
    systemctl(&["unmask", "--runtime", "prt-masked.slice"]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains("unit-masked.scope") && answer.stderr.contains("masked"), "{}", answer.stderr);
    assert_eq!(property("unit-masked.scope", "ActiveState"), "inactive");
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn a_name_that_a_living_unit_has_is_left_to_it() {
    let Some(runtime) = with_systemd("a_name_that_a_living_unit_has_is_left_to_it") else { return };
    let (first, unit) = scoped(runtime.bundle(&["wait"]), "taken");
    runtime.start_waiting(&first);
    let (second, _) = scoped(runtime.bundle(&["wait"]), "taken");
    let answer = runtime.create(&second, &[]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains(&unit) && answer.stderr.contains("already"), "{}", answer.stderr);
    assert_eq!(runtime.status(&second), None);
    // A second one of the same name as the container's hears of that.
    let answer = runtime.create(&first, &[]);
    assert!(answer.stderr.contains("container c0 already exists"), "{}", answer.stderr);
    assert_eq!(runtime.status(&first).as_deref(), Some("running"));
    assert_eq!(property(&unit, "ActiveState"), "active");
    check_files(&unit, &[("cgroup.freeze", "0", "0")]);
}

#[test]
fn a_unit_that_failed_before_is_forgotten() {
    let Some(runtime) = with_systemd("a_unit_that_failed_before_is_forgotten") else { return };
    // A process that waits for its start heeds no SIGTERM.
    let soon = json!({ "org.systemd.property.RuntimeMaxSec": "0.2", "org.systemd.property.TimeoutStopSec": "0.2" });
    let annotations = json!({ "annotations": soon });
    let (first, unit) = scoped(runtime.bundle(&["wait"]).with(annotations), "failed");
    runtime.create(&first, &[]).ok();
    wait_until("the unit fails", 20, || {
        let state = property(&unit, "ActiveState");
        if state == "failed" { Ok(()) } else { Err(state) }
    });
    runtime.wait_status(&first, "stopped");
    // With the container of the failed unit still there.
    let (second, _) = scoped(runtime.bundle(&["wait"]), "failed");
    runtime.start_waiting(&second);
    assert_eq!(property(&unit, "ActiveState"), "active");
    runtime.call(&["delete", "--force", second.id()]).ok();
    gone(&unit).expect("the unit goes with its container");
    // And one that is deleted in that state.
    let (third, unit) = scoped(first.clone(), "failed2");
    runtime.call(&["delete", "--force", third.id()]).ok();
    runtime.create(&third, &[]).ok();
    wait_until("the unit fails", 20, || {
        let state = property(&unit, "ActiveState");
        if state == "failed" { Ok(()) } else { Err(state) }
    });
    runtime.call(&["delete", "--force", third.id()]).ok();
    gone(&unit).expect("a failed unit goes with its container, too");
}

#[test]
fn annotations_are_properties_of_the_unit() {
    let Some(runtime) = with_systemd("annotations_are_properties_of_the_unit") else { return };
    let with = |name: &str, value: &str| {
        let annotations = json!({ format!("org.systemd.property.{name}"): value });
        scoped(runtime.bundle(&["wait"]).with(json!({ "annotations": annotations })), &format!("a-{name}"))
    };
    for (name, value, shown, expected) in [
        ("TimeoutStopUSec", "uint64 123000000", "TimeoutStopUSec", "2min 3s"),
        ("TimeoutStopSec", "5", "TimeoutStopUSec", "5s"),
        ("CollectMode", "'inactive-or-failed'", "CollectMode", "inactive-or-failed"),
        ("After", "['basic.target', \"dbus.service\"]", "After", "basic.target dbus.service"),
        ("SendSIGHUP", "true", "SendSIGHUP", "yes"),
    ] {
        let (bundle, unit) = with(name, value);
        runtime.create(&bundle, &[]).ok();
        let found = property(&unit, shown);
        assert!(expected.split(' ').all(|word| found.split(' ').any(|other| other == word)), "{name}: {found}");
        runtime.call(&["delete", "--force", bundle.id()]).ok();
    }
    for (name, value, reason) in [
        ("CollectMode", "inactive", "GVariant"),
        ("NoSuchProperty", "true", "NoSuchProperty"),
        ("Slice", "'system.slice'", "sets it itself"),
        ("PIDs", "[1]", "sets it itself"),
    ] {
        let (bundle, unit) = with(name, value);
        let answer = runtime.create(&bundle, &[]);
        assert_ne!(answer.code, 0, "{name}");
        assert!(answer.stderr.contains(reason), "{name}: {}", answer.stderr);
        gone(&unit).expect("nothing is made");
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_scope_goes_with_a_maker_that_is_killed() {
    let Some(runtime) = with_systemd("a_scope_goes_with_a_maker_that_is_killed") else { return };
    let bundle = runtime.bundle(&["wait"]);
    let told = bundle.path().join("hook");
    let script = format!("echo $$ > {told}.new; mv {told}.new {told}; exec sleep 100", told = told.display());
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
    let (bundle, unit) = scoped(bundle.with(json!({ "hooks": { "createRuntime": [hook] } })), "killed");
    let making = runtime.begin_create(&bundle, &[]);
    wait_until("the hook runs", 20, || std::fs::read_to_string(&told).map_err(|error| error.to_string()));
    let hook = std::fs::read_to_string(&told).expect("what the hook wrote").trim_end().parse().expect("its process");
    assert_eq!(property(&unit, "ActiveState"), "active");
    let inside = std::fs::read_to_string(cgroup(&unit).join("container/cgroup.procs")).expect("the container's cgroup");
    assert_ne!(inside, "");
    kill(making.pid(), Signal::SIGKILL).expect("the maker");
    // A hook is nobody's but its maker's, and it runs on without it, as with runc.
    kill(Pid::from_raw(hook), Signal::SIGKILL).expect("the hook");
    assert_ne!(making.finish().code, 0);
    wait_until("the unit has gone", 20, || gone(&unit));
    assert_eq!(runtime.status(&bundle).as_deref(), Some("stopped"));
    runtime.call(&["delete", bundle.id()]).ok();
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn without_a_bus_nothing_is_made_and_what_is_there_can_go() {
    let Some(runtime) = with_systemd("without_a_bus_nothing_is_made_and_what_is_there_can_go") else { return };
    let (bundle, unit) = limited(&runtime, "bus");
    // For the runtime alone.
    runtime.world().sh("mount -t tmpfs none /run/dbus");
    let answer = runtime.call(&["update", "--memory", "96M", bundle.id()]);
    assert!(answer.stderr.contains("/run/dbus/system_bus_socket"), "{}", answer.stderr);
    check_files(&unit, &FILES);
    let (other, _) = scoped(runtime.bundle(&["wait"]), "bus2");
    let answer = runtime.create(&other, &[]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains("/run/dbus/system_bus_socket"), "{}", answer.stderr);
    assert_eq!(runtime.status(&other), None);
    let answer = runtime.call(&["delete", "--force", bundle.id()]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.stderr.contains("/run/dbus/system_bus_socket"), "a warning: {}", answer.stderr);
    wait_until("the unit has gone", 20, || gone(&unit));
    runtime.world().sh("umount /run/dbus");
}

#[test]
fn a_machine_without_systemd_says_so_before_anything_is_made() {
    let name = "a_machine_without_systemd_says_so_before_anything_is_made";
    let Some(mut runtime) = Runtime::for_test(name) else { return };
    if systemd::booted() {
        runtime.world().sh("mount -t tmpfs none /run/systemd");
    }
    runtime.use_flags(&["--systemd-cgroup"]);
    let (bundle, _) = scoped(runtime.bundle(&["wait"]), "none");
    for verb in ["create", "run"] {
        let path = bundle.path().to_str().expect("UTF-8");
        bundle.save();
        let answer = runtime.call(&[verb, "--bundle", path, bundle.id()]);
        assert_ne!(answer.code, 0, "{verb}");
        assert!(answer.stderr.contains("systemd is not the init of this machine"), "{verb}: {}", answer.stderr);
        assert!(!runtime.root().exists(), "{verb}: no state directory");
    }
    if systemd::booted() {
        runtime.world().sh("umount /run/systemd");
    }
}
