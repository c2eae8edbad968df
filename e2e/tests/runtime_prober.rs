//! The prober and the harness themselves: that they tell the truth about a container that is as simple as can be.

use std::collections::BTreeSet;

use portreeve_e2e::{Attempts, Runtime};
use serde_json::json;

#[test]
fn the_prober_sees_the_specifications_example() {
    let Some(runtime) = Runtime::for_test("the_prober_sees_the_specifications_example") else { return };
    let report = runtime.report(&runtime.bundle(&["report", "kernel.msgmax"]));
    assert_eq!(report["args"], json!(["/prober", "report", "kernel.msgmax"]));
    assert_eq!(report["pid"], 1);
    assert_eq!(report["hostname"], "probed");
    assert_eq!(report["ids"], json!({ "uid": [0, 0, 0, 0], "gid": [0, 0, 0, 0], "groups": [] }));
    let three = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"].map(str::to_owned);
    assert_eq!(report.capabilities("effective"), BTreeSet::from(three));
    assert_eq!(report["rlimits"]["RLIMIT_NOFILE"], json!([1024, 1024]));
    assert_eq!(report["no_new_privileges"], true);
    assert_eq!(report.descriptors(), BTreeSet::from([0, 1, 2]));
    assert_eq!(report.mount("/proc").expect("a mount")["type"], "proc");
    assert_eq!(report.mount("/sys").expect("a mount").options().get("ro").map(String::as_str), Some("ro"));
    assert_eq!(report["devices"]["null"]["minor"], 3);
    assert_eq!(report["processes"].as_object().map(serde_json::Map::len), Some(1), "{}", report["processes"]);
    assert_eq!(report["links"], json!(["lo"]));
    assert!(report["sysctls"]["kernel.msgmax"].is_string());
}

#[test]
fn the_prober_tells_how_an_operation_ended() {
    let Some(runtime) = Runtime::for_test("the_prober_tells_how_an_operation_ended") else { return };
    let operations =
        ["mkdir /made", "mkdir /made", "open /proc/sys/kernel/msgmax w", "readlink /bin/sh", "chroot /nowhere"];
    let attempts = runtime.attempts(&runtime.bundle(&[&["try"], &operations[..]].concat()));
    assert_eq!(attempts.errno("mkdir /made"), "EEXIST", "the second one");
    assert_eq!(attempts.errno("open /proc/sys/kernel/msgmax w"), "EROFS");
    assert_eq!(attempts.errno("chroot /nowhere"), "ENOENT");
    assert_eq!(attempts.value("readlink /bin/sh"), "busybox");
}

#[test]
fn the_harness_follows_a_container_through_its_life() {
    let Some(runtime) = Runtime::for_test("the_harness_follows_a_container_through_its_life") else { return };
    let bundle = runtime.bundle(&["wait"]);
    assert_eq!(runtime.status(&bundle), None);
    runtime.start_waiting(&bundle);
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
    let cgroup = runtime.cgroup_file(&bundle, "pids/", "");
    assert!(cgroup.is_dir(), "{}", cgroup.display());
    assert!(!runtime.leftovers().is_empty(), "a container that is there is seen");
    let answer = runtime.exec(&bundle, &[], &["/prober", "try", "kill 1 0"]);
    assert_eq!(Attempts::parse(&answer.ok()).errno("kill 1 0"), "ok");
    runtime.call(&["kill", bundle.id(), "TERM"]).ok();
    runtime.wait_status(&bundle, "stopped");
    runtime.call(&["delete", bundle.id()]).ok();
    assert_eq!(runtime.status(&bundle), None);
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}
