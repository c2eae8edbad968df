//! Calls that are killed at any moment leave a container that goes on, and that the next call finds as it was.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use portreeve_e2e::{Bundle, Runtime, cgroup_version, wait_until};
use serde_json::json;

/// Many processes, and a count that shows that they are not standing still.
const MANY: &str = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); sleep 1000 & done; \
                    while :; do i=$((i+1)); echo $i > /tmp/new; busybox mv /tmp/new /tmp/count; sleep 0.02; done";

fn count(bundle: &Bundle) -> u64 {
    std::fs::read_to_string(bundle.root().join("tmp/count")).unwrap_or_default().trim().parse().unwrap_or_default()
}

fn goes_on(bundle: &Bundle) {
    let before = count(bundle);
    wait_until("it counts", 20, || if count(bundle) > before { Ok(()) } else { Err(format!("still {before}")) });
}

fn many(runtime: &Runtime) -> Bundle {
    let bundle = runtime.bundle_of(&["sh", "-c", MANY]);
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    goes_on(&bundle);
    bundle
}

#[test]
fn a_call_that_is_killed_leaves_no_container_standing_still() {
    let Some(runtime) = Runtime::for_test("a_call_that_is_killed_leaves_no_container_standing_still") else { return };
    let bundle = many(&runtime);
    let rules = runtime.world().path("rules.json");
    let rule = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" });
    std::fs::write(&rules, json!({ "devices": [rule] }).to_string()).unwrap();
    let calls: [&[&str]; 3] = [
        &["kill", "--all", bundle.id(), "CONT"],
        &["update", "--resources", rules.to_str().unwrap(), bundle.id()],
        &["update", "--pids-limit", "1000", bundle.id()],
    ];
    let mut killed = 0;
    for round in 0..60_u64 {
        let mut command = runtime.command(calls[usize::try_from(round % 3).unwrap()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // The runtime itself, not who enters the world for it.
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(1500 + 300 * round));
        killed += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(runtime.status(&bundle).as_deref(), Some("running"), "round {round}");
        goes_on(&bundle);
    }
    assert!(killed > 5, "only {killed} were killed before their end");
    // What the user has paused stays so.
    runtime.call(&["pause", bundle.id()]).ok();
    runtime.call(&["kill", "--all", bundle.id(), "CONT"]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("paused"));
    runtime.call(&["resume", bundle.id()]).ok();
    goes_on(&bundle);
}

#[test]
fn what_a_killed_call_has_frozen_is_let_go_by_the_next_one() {
    let Some(runtime) = Runtime::for_test("what_a_killed_call_has_frozen_is_let_go_by_the_next_one") else { return };
    let bundle = many(&runtime);
    let (file, word) = if cgroup_version() == 2 { ("cgroup.freeze", "1") } else { ("freezer/freezer.state", "FROZEN") };
    let freezer = runtime.cgroup_file(&bundle, file, "cgroup.freeze");
    // As one leaves it that was killed between freezing and thawing.
    let left = runtime.root().join(bundle.id()).join("standstill");
    std::fs::File::create(&left).unwrap().flush().unwrap();
    std::fs::write(&freezer, word).unwrap();
    for _ in 0..2 {
        assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
        goes_on(&bundle);
        assert!(!left.exists());
    }
    // Frozen by somebody else, it is paused.
    std::fs::write(&freezer, word).unwrap();
    runtime.wait_status(&bundle, "paused");
    runtime.call(&["resume", bundle.id()]).ok();
    goes_on(&bundle);
}
