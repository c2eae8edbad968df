//! `linux.devices` and the rules about them: which nodes there are, and which may be used.

use std::os::unix::fs::symlink;

use portreeve_e2e::{Attempts, Runtime};
use serde_json::{Value, json};

/// Everything is denied but what `rules` and the runtime's own list allow.
fn rules(rules: &[Value]) -> Value {
    let mut all = vec![json!({ "allow": false, "access": "rwm" })];
    all.extend_from_slice(rules);
    json!({ "linux": { "resources": { "devices": all } } })
}

/// May make and use any node that the rules let it.
fn privileged() -> Value {
    let capabilities = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    let given = json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
    json!({ "process": { "capabilities": given } })
}

#[test]
fn the_default_devices_are_there() {
    let Some(runtime) = Runtime::for_test("the_default_devices_are_there") else { return };
    for users in [false, true] {
        let mut bundle = runtime.bundle(&["report"]);
        if users {
            bundle = bundle.with_users(100_000, 65536);
        }
        let report = runtime.report(&bundle);
        let devices = &report["devices"];
        for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
            let node = &devices[name];
            assert_eq!((&node["type"], &node["major"], &node["minor"]), (&json!("c"), &json!(1), &json!(minor)));
            assert_eq!(node["mode"], 0o666, "{name}: {node}");
        }
        assert_eq!((&devices["tty"]["major"], &devices["tty"]["minor"]), (&json!(5), &json!(0)));
        assert_eq!(devices["pts/ptmx"]["minor"], 2);
        for (name, target) in [
            ("ptmx", "pts/ptmx"),
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            let seen = devices[name]["target"].as_str().unwrap_or_default();
            assert_eq!(seen.trim_start_matches("/dev/"), target, "{name}");
        }
        assert!(devices["console"].is_null(), "a console comes with a terminal alone");
    }
}

#[test]
fn devices_of_each_type_are_made_as_told() {
    let Some(runtime) = Runtime::for_test("devices_of_each_type_are_made_as_told") else { return };
    let devices = json!([
        { "path": "/dev/one", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 1000, "gid": 1001 },
        { "path": "/dev/two", "type": "b", "major": 7, "minor": 200, "fileMode": 0o600 },
        { "path": "/dev/three", "type": "p", "fileMode": 0o622 },
        { "path": "/dev/four", "type": "u", "major": 1, "minor": 5 },
        { "path": "/dev/net/five", "type": "c", "major": 10, "minor": 200, "fileMode": 0o020_666 },
        { "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 },
    ]);
    let report = runtime.report(&runtime.bundle(&["report"]).with(json!({ "linux": { "devices": devices } })));
    let seen = &report["devices"];
    let one = &seen["one"];
    assert_eq!((&one["type"], &one["major"], &one["minor"]), (&json!("c"), &json!(1), &json!(3)));
    assert_eq!((&one["mode"], &one["uid"], &one["gid"]), (&json!(0o640), &json!(1000), &json!(1001)));
    assert_eq!((&seen["two"]["type"], &seen["two"]["minor"]), (&json!("b"), &json!(200)));
    assert_eq!((&seen["three"]["type"], &seen["three"]["mode"]), (&json!("p"), &json!(0o622)));
    assert_eq!((&seen["four"]["type"], &seen["four"]["uid"]), (&json!("c"), &json!(0)));
    assert_eq!(seen["net/five"]["mode"], 0o666, "bits of the type are none of the mode");
}

#[test]
fn a_fifo_is_made_also_for_users_of_their_own() {
    let Some(runtime) = Runtime::for_test("a_fifo_is_made_also_for_users_of_their_own") else { return };
    let devices = json!([{ "path": "/dev/queue", "type": "p", "fileMode": 0o622, "uid": 7, "gid": 8 }]);
    let bundle =
        runtime.bundle(&["report"]).with_users(100_000, 65536).with(json!({ "linux": { "devices": devices } }));
    let report = runtime.report(&bundle);
    let queue = &report["devices"]["queue"];
    assert_eq!((&queue["type"], &queue["mode"]), (&json!("p"), &json!(0o622)));
    assert_eq!((&queue["uid"], &queue["gid"]), (&json!(7), &json!(8)));
    assert_eq!(report["devices"]["null"]["type"], "c", "the others are the host's");
}

#[test]
fn a_device_outside_of_dev_is_made_inside_the_root() {
    let Some(runtime) = Runtime::for_test("a_device_outside_of_dev_is_made_inside_the_root") else { return };
    let devices = json!([{ "path": "/var/devices/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666 }]);
    let bundle = runtime.bundle(&["try", "open /var/devices/zero r"]);
    let attempts = runtime.attempts(&bundle.with(json!({ "linux": { "devices": devices } })));
    assert_eq!(attempts.errno("open /var/devices/zero r"), "ok");
    // Through a link that leads out of the root.
    let outside = runtime.world().path("outside");
    std::fs::create_dir(&outside).unwrap();
    let bundle = runtime.bundle(&["report"]);
    symlink(&outside, bundle.root().join("link")).unwrap();
    let devices = json!([{ "path": "/link/zero", "type": "c", "major": 1, "minor": 5 }]);
    // Refused, or made inside: both are fine.
    let _ = runtime.run(&bundle.with(json!({ "linux": { "devices": devices } })), &[]);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing is made outside");
}

#[test]
fn a_device_that_cannot_be_is_refused() {
    let Some(runtime) = Runtime::for_test("a_device_that_cannot_be_is_refused") else { return };
    for device in [
        json!({ "path": "/dev/x", "type": "z", "major": 1, "minor": 3 }),
        json!({ "path": "/dev/x", "type": "c" }),
        json!({ "path": "", "type": "c", "major": 1, "minor": 3 }),
    ] {
        let bundle = runtime.bundle(&["report"]).with(json!({ "linux": { "devices": [device] } }));
        let answer = runtime.run(&bundle, &[]);
        assert_ne!(answer.code, 0, "{device}");
        assert!(!answer.stderr.trim().is_empty(), "{device}");
    }
}

#[test]
fn what_the_rules_do_not_allow_is_denied() {
    let Some(runtime) = Runtime::for_test("what_the_rules_do_not_allow_is_denied") else { return };
    // Numbers that no driver has: allowed, the open ends with ENXIO or ENODEV; denied, with EPERM.
    let denied = |errno: &str| errno == "EPERM";
    let operations = [
        "mknod /tmp/loop b 7 200",
        "open /tmp/loop r",
        "open /tmp/loop w",
        "mknod /tmp/other c 240 1",
        "open /tmp/other r",
        "open /dev/null rw",
        "open /dev/zero r",
        "open /dev/full w",
        "open /dev/urandom r",
        "open /dev/ptmx rw",
        "mknod /tmp/null c 1 3",
    ];
    let rule = |access: &str| json!({ "allow": true, "type": "b", "major": 7, "minor": 200, "access": access });
    let wild = json!({ "allow": true, "type": "b", "major": 7, "access": "r" });
    let all_of_type = json!({ "allow": true, "type": "b", "access": "w" });
    // The last rule about a device and an access is the one that counts.
    let taken = json!({ "allow": false, "type": "b", "major": 7, "minor": 200, "access": "w" });
    for (given, read, write) in [
        (vec![], false, false),
        (vec![rule("r")], true, false),
        (vec![rule("w")], false, true),
        (vec![rule("rw")], true, true),
        (vec![wild], true, false),
        (vec![all_of_type], false, true),
        (vec![rule("rw"), taken], true, false),
    ] {
        let bundle = runtime.bundle(&[&["try"], &operations[..]].concat()).with(privileged());
        let bundle = bundle.with(rules(&given));
        let attempts = runtime.attempts(&bundle);
        // The node itself: every runtime lets nodes be made, so that images with nodes can be unpacked inside.
        assert_eq!(attempts.errno("mknod /tmp/null c 1 3"), "ok", "{given:?}");
        assert_eq!(!denied(attempts.errno("open /tmp/loop r")), read, "{given:?}: {attempts:?}");
        assert_eq!(!denied(attempts.errno("open /tmp/loop w")), write, "{given:?}: {attempts:?}");
        assert!(denied(attempts.errno("open /tmp/other r")), "{given:?}: {attempts:?}");
        for always in ["open /dev/null rw", "open /dev/zero r", "open /dev/full w", "open /dev/urandom r"] {
            assert_eq!(attempts.errno(always), "ok", "{always} with {given:?}");
        }
        assert_eq!(attempts.errno("open /dev/ptmx rw"), "ok", "{given:?}");
    }
}

#[test]
fn a_device_that_is_given_is_allowed_only_by_a_rule() {
    let Some(runtime) = Runtime::for_test("a_device_that_is_given_is_allowed_only_by_a_rule") else { return };
    let device = json!({ "linux": { "devices": [
        { "path": "/dev/loop200", "type": "b", "major": 7, "minor": 200, "fileMode": 0o666 },
    ] } });
    let bundle = runtime.bundle(&["try", "open /dev/loop200 r"]).with(privileged());
    let attempts = runtime.attempts(&bundle.with(device.clone()).with(rules(&[])));
    assert_eq!(attempts.errno("open /dev/loop200 r"), "EPERM");
    let rule = json!({ "allow": true, "type": "b", "major": 7, "minor": 200, "access": "rwm" });
    let bundle = runtime.bundle(&["try", "open /dev/loop200 r"]).with(privileged());
    let attempts = runtime.attempts(&bundle.with(device).with(rules(&[rule])));
    assert_ne!(attempts.errno("open /dev/loop200 r"), "EPERM");
}

#[test]
fn rules_of_a_running_container_change() {
    let Some(runtime) = Runtime::for_test("rules_of_a_running_container_change") else { return };
    let bundle = runtime.bundle(&["wait"]).with(privileged()).with(rules(&[]));
    runtime.start_waiting(&bundle);
    let open = || {
        let answer = runtime.exec(&bundle, &[], &["/prober", "try", "mknod /tmp/l b 7 200", "open /tmp/l r"]);
        Attempts::parse(&answer.ok()).errno("open /tmp/l r").to_owned()
    };
    let change = |devices: Value| {
        let file = runtime.world().path("resources.json");
        std::fs::write(&file, json!({ "devices": devices }).to_string()).unwrap();
        runtime.call(&["update", "--resources", file.to_str().unwrap(), bundle.id()])
    };
    assert_eq!(open(), "EPERM");
    let rule = json!({ "allow": true, "type": "b", "major": 7, "minor": 200, "access": "rwm" });
    change(json!([{ "allow": false, "access": "rwm" }, rule])).ok();
    assert_ne!(open(), "EPERM");
    change(json!([{ "allow": false, "access": "rwm" }])).ok();
    assert_eq!(open(), "EPERM");
    let answer = runtime.exec(&bundle, &[], &["/prober", "try", "open /dev/null rw", "open /dev/zero r"]);
    let attempts = Attempts::parse(&answer.ok());
    assert_eq!((attempts.errno("open /dev/null rw"), attempts.errno("open /dev/zero r")), ("ok", "ok"));
}

#[test]
fn a_node_that_is_there_keeps_its_owner() {
    let Some(runtime) = Runtime::for_test("a_node_that_is_there_keeps_its_owner") else { return };
    let bundle = runtime.bundle(&["report"]);
    // In a volume it is the host's.
    let volume = bundle.folder("volume");
    runtime.world().sh(&format!("mknod -m 600 {}/node c 1 3", volume.display()));
    let device = |name: &str| json!({ "path": format!("/dev/sub/{name}"), "type": "c", "major": 1, "minor": 3, "uid": 1000, "gid": 1000 });
    let mount = json!({ "destination": "/dev/sub", "type": "bind", "source": volume, "options": ["bind"] });
    let bundle = bundle.with_mount(mount).with(json!({ "linux": { "devices": [device("node"), device("new")] } }));
    runtime.run(&bundle, &[]).ok();
    let owner = |name: &str| {
        let node = std::fs::metadata(volume.join(name)).unwrap();
        (std::os::unix::fs::MetadataExt::uid(&node), std::os::unix::fs::MetadataExt::mode(&node) & 0o777)
    };
    assert_eq!((owner("node"), owner("new").0), ((0, 0o600), 1000));
    // Another file under its name is an error, and nothing is changed.
    let other = json!({ "linux": { "devices": [{ "path": "/dev/sub/node", "type": "c", "major": 1, "minor": 5 }] } });
    let refused = runtime.run(&bundle.with(other), &[]);
    assert!(refused.code != 0 && refused.stderr.contains("/dev/sub/node"), "{}", refused.stderr);
    assert_eq!(owner("node"), (0, 0o600));
}
