//! `events`: what a container uses, and that it ran out of memory.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use portreeve_e2e::{Bundle, Runtime, cgroup_version, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn limited(bundle: Bundle) -> Bundle {
    bundle.with(json!({ "linux": { "resources": {
        "memory": { "limit": 64 * MIB, "swap": 64 * MIB }, "pids": { "limit": 20 },
    } } }))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn stats_tell_what_the_cgroup_counts() {
    let Some(runtime) = Runtime::for_test("stats_tell_what_the_cgroup_counts") else { return };
    let bundle = limited(runtime.bundle(&["spin", "600000"]));
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    // A kernel that counts in ticks has seen nothing of a program before its first one.
    let mut event = Value::Null;
    wait_until("time of a program that spins is counted", 20, || {
        let mut told = lines(&runtime.call(&["events", "--stats", bundle.id()]).ok());
        assert_eq!(told.len(), 1, "{told:?}");
        event = told.remove(0);
        if event["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|time| time > 0) {
            Ok(())
        } else {
            Err(event.to_string())
        }
    });
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(bundle.id())));
    let data = &event["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 64 * MIB, "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64().is_some_and(|usage| usage > 0 && usage < 64 * MIB), "{data}");
    assert!(!data["memory"]["raw"].as_object().expect("the lines of memory.stat").is_empty());
    assert_eq!((&data["pids"]["limit"], &data["pids"]["current"]), (&json!(20), &json!(1)), "{data}");
    for group in ["cpuset", "blkio", "hugetlb", "intel_rdt", "network_interfaces"] {
        assert!(data.get(group).is_some(), "{group} is missing: {data}");
    }
}

#[test]
fn stats_come_at_the_interval_until_the_container_ends() {
    let Some(runtime) = Runtime::for_test("stats_come_at_the_interval_until_the_container_ends") else { return };
    let bundle = limited(runtime.bundle(&["wait"]));
    runtime.start_waiting(&bundle);
    let mut command = runtime.command(&["events", "--interval", "20ms", bundle.id()]);
    let mut events = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("events");
    let mut output = BufReader::new(events.stdout.take().expect("a pipe"));
    let mut said = String::new();
    for _ in 0..3 {
        output.read_line(&mut said).expect("a line");
    }
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    output.read_to_string(&mut said).expect("the rest, and the end");
    assert!(events.wait().expect("its end").success());
    assert!(lines(&said).iter().all(|event| event["type"] == "stats"), "{said}");
}

#[test]
fn events_end_when_nobody_reads_them() {
    let Some(runtime) = Runtime::for_test("events_end_when_nobody_reads_them") else { return };
    let bundle = limited(runtime.bundle(&["wait"]));
    runtime.start_waiting(&bundle);
    let mut command = runtime.command(&["events", "--interval", "20ms", bundle.id()]);
    let mut events = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("events");
    drop(events.stdout.take());
    assert!(events.wait().expect("its end").success());
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
}

#[test]
fn events_of_a_container_that_is_deleted_end() {
    let Some(runtime) = Runtime::for_test("events_of_a_container_that_is_deleted_end") else { return };
    // As fast as it may, so that some look at a cgroup of which a part is gone.
    for _ in 0..10 {
        let bundle = limited(runtime.bundle(&["wait"]));
        runtime.start_waiting(&bundle);
        let mut command = runtime.command(&["events", "--interval", "1ms", bundle.id()]);
        let mut events =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("events");
        let mut output = BufReader::new(events.stdout.take().expect("a pipe"));
        let mut said = String::new();
        output.read_line(&mut said).expect("a line");
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        output.read_to_string(&mut said).expect("the rest, and the end");
        let ended = events.wait_with_output().expect("its end");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        assert!(lines(&said).iter().all(|event| event["type"] == "stats"), "{said}");
    }
}

#[test]
fn running_out_of_memory_is_told() {
    let Some(runtime) = Runtime::for_test("running_out_of_memory_is_told") else { return };
    // Version 2 counts the killed, and tells that a cgroup is empty: its first process must outlive the other.
    let line = "while [ ! -e /tmp/go ]; do sleep 0.05; done; /prober eat 256; exec /prober wait";
    let bundle = limited(runtime.bundle_of(&["sh", "-c", line]));
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    let mut command = runtime.command(&["events", "--interval", "20ms", bundle.id()]);
    let mut events = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("events");
    let mut output = BufReader::new(events.stdout.take().expect("a pipe"));
    // It listens before it tells anything.
    let mut said = String::new();
    output.read_line(&mut said).expect("a line");
    bundle.file("tmp/go", "");
    // A minute's worth of lines at most.
    let told = (0..3000).any(|_| {
        said.clear();
        assert!(output.read_line(&mut said).expect("a line") > 0, "it ended (cgroup v{})", cgroup_version());
        let event: Value = serde_json::from_str(&said).expect("JSON");
        event["type"] == "oom" && event["id"] == bundle.id()
    });
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    output.read_to_string(&mut said).expect("the rest, and the end");
    assert!(events.wait().expect("its end").success());
    assert!(told, "the last was {said}");
}

#[test]
fn a_container_that_has_ended_tells_nothing() {
    let Some(runtime) = Runtime::for_test("a_container_that_has_ended_tells_nothing") else { return };
    let bundle = runtime.bundle(&["exit", "0"]);
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    runtime.wait_status(&bundle, "stopped");
    for flags in [&["events", "--stats"][..], &["events"]] {
        let answer = runtime.call(&[flags, &[bundle.id()]].concat());
        assert_ne!(answer.code, 0);
        assert!(answer.stdout.is_empty() && answer.stderr.contains("stopped"), "{}{}", answer.stdout, answer.stderr);
    }
}
