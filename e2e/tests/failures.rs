//! What goes wrong in a pod, and what is said about it.

use std::io::{Read, Write};
use std::process::Stdio;

use portreeve_e2e::Image;
use portreeve_e2e::{Agent, BUSYBOX, Registry, World, skipped_without_root, wait_until};
use serde_json::Value;

fn pod(name: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', {container}}}\n"
    )
}

fn first(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn a_crash_loop_backs_off_and_says_when_it_tries_again() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("crash");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("crash.yaml", &pod("crash", "command: [sh, -c, 'exit 5']"));
    let waiting = agent.wait_pod("crash", "waits for its backoff", |pod| {
        first(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let last = &first(&waiting)["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 5);
    assert_eq!(last["reason"], "Error");
    let message = first(&waiting)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("back-off"), "{message}");
    assert!(message.contains("next try at 20"), "{message}");
    let events = agent.client(&["get", "events"]).ok();
    assert!(events.lines().any(|line| line.contains("BackOff") && line.contains("next try at 20")), "{events}");
}

#[test]
fn an_oom_kill_is_named() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("oom");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest(
        "oom.yaml",
        &pod("oom", "command: [sh, -c, 'tail /dev/zero'], resources: {limits: {memory: 16Mi}}"),
    );
    agent.wait_pod("oom", "was killed for its memory", |pod| {
        let terminated = [&first(pod)["lastState"]["terminated"], &first(pod)["state"]["terminated"]];
        terminated.iter().any(|t| t["reason"] == "OOMKilled" && t["exitCode"] == 137)
    });
}

#[test]
fn a_failing_liveness_probe_restarts_the_container_and_readiness_does_not() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("probe");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest(
        "live.yaml",
        &pod(
            "live",
            "command: [sh, -c, 'touch /tmp/ok; sleep 3; rm /tmp/ok; sleep 1000'], \
             livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}",
        ),
    );
    agent.drop_manifest(
        "unready.yaml",
        &pod(
            "unready",
            "command: [sleep, '1000'], readinessProbe: {tcpSocket: {port: 1}, periodSeconds: 1, failureThreshold: 1}",
        ),
    );
    agent.wait_pod("live", "was restarted", |pod| first(pod)["restartCount"].as_u64() >= Some(1));
    let unready = agent.wait_pod("unready", "runs", |pod| pod["status"]["phase"] == "Running");
    assert_eq!(first(&unready)["ready"], false);
    assert_eq!(first(&unready)["restartCount"], 0);
    let events = agent.client(&["get", "events"]).ok();
    assert!(events.contains("Unhealthy"), "{events}");
}

#[test]
fn a_missing_image_is_pulled_once_it_appears() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("pull");
    let mut registry = Registry::start(&world, 5000);
    let agent = Agent::start(&world);
    let text = |name: &str, image: &str| pod(name, "command: [sleep, '1000']").replace(BUSYBOX, image);
    agent.drop_manifest("late.yaml", &text("late", "127.0.0.1:5000/late:1"));
    let waiting = agent.wait_pod("late", "says that its image is missing", |pod| {
        matches!(first(pod)["state"]["waiting"]["reason"].as_str(), Some("ErrImagePull" | "ImagePullBackOff"))
    });
    let message = first(&waiting)["state"]["waiting"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("127.0.0.1:5000/late:1"), "{message}");
    registry.push(&Image::busybox(world.home(), "late:1"), "late:1");
    agent.wait_ready("late");

    registry.stop();
    agent.drop_manifest("down.yaml", &text("down", "127.0.0.1:5000/other:1"));
    let waiting = agent.wait_pod("down", "says that its registry is down", |pod| {
        matches!(first(pod)["state"]["waiting"]["reason"].as_str(), Some("ErrImagePull" | "ImagePullBackOff"))
    });
    let message = first(&waiting)["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("127.0.0.1:5000"), "{message}");
    assert_eq!(portreeve_e2e::condition(&agent.pod("late").unwrap(), "Ready"), Some("True"));
    wait_until("an event says when it is tried again", 20, || {
        let events = agent.client(&["get", "events"]).ok();
        let told = |line: &str| line.contains("pod/down") && line.contains("next try at 20");
        if events.lines().any(told) { Ok(()) } else { Err(events) }
    });
    registry.resume();
    registry.push(&Image::busybox(world.home(), "other:1"), "other:1");
    agent.wait_ready("down");
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_never_run() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("digest");
    let registry = Registry::start(&world, 5000);
    registry.push(&Image::busybox(world.home(), "broken:1"), "broken:1");
    // Another byte in the largest blob: the registry serves it under the old digest.
    let line = format!("find {} -name data -size +100k", registry.storage().display());
    let blob = world.sh(&line).lines().next().expect("a layer blob").to_owned();
    world.sh(&format!("printf X | dd of={blob} bs=1 seek=5000 conv=notrunc status=none"));
    let agent = Agent::start(&world);
    agent.drop_manifest(
        "broken.yaml",
        &pod("broken", "command: [sleep, '1000']").replace(BUSYBOX, "127.0.0.1:5000/broken:1"),
    );
    let waiting = agent.wait_pod("broken", "refuses the image", |pod| {
        first(pod)["state"]["waiting"]["message"].as_str().is_some_and(|message| message.contains("digest"))
    });
    assert_eq!(waiting["status"]["phase"], "Pending");
    assert!(!agent.client(&["get", "images"]).ok().contains("broken"));
}

#[test]
fn a_killed_shim_leaves_no_orphans_and_its_pod_comes_back() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("shim");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "command: [sleep, '100000']"));
    let before = agent.wait_ready("a");
    let contained = agent.census().contained;
    let shims: Vec<i32> = agent
        .census()
        .processes
        .iter()
        .filter(|line| line.contains(" shim "))
        .filter_map(|line| line.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(shims.len(), 1, "one shim per pod: {:?}", agent.census().processes);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shims[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("the pod was made again", 60, || {
        let pod = agent.pod("a").unwrap_or_default();
        let id = first(&pod)["containerID"].clone();
        if id.is_string()
            && id != first(&before)["containerID"]
            && portreeve_e2e::condition(&pod, "Ready") == Some("True")
        {
            Ok(())
        } else {
            Err(format!("{}", pod["status"]))
        }
    });
    let after = agent.census().contained;
    assert!(contained.is_disjoint(&after), "an orphan of the killed shim lives on: {contained:?} {after:?}");
    assert_eq!(agent.pod("a").unwrap()["metadata"]["uid"], before["metadata"]["uid"]);
}

/// What `/readyz` says.
fn readiness(world: &World, agent: &Agent<'_>) -> String {
    let description = std::fs::read_to_string(agent.run_dir().join("agent.json")).expect("agent.json");
    let description: Value = serde_json::from_str(&description).expect("JSON");
    ask_readiness(world, description["listen"].as_str().expect("an address"))
}

fn ask_readiness(world: &World, address: &str) -> String {
    let (host, port) = address.split_once(':').expect("an address with a port");
    let client = world.command("busybox").args(["nc", host, port]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut client = client.expect("busybox runs");
    // Its input stays open until the answer is there: who closes it is taken to have left.
    client.stdin.as_ref().unwrap().write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    client.wait().unwrap();
    answer
}

fn wait_told(what: &str, answer: impl Fn() -> String, words: &str) {
    wait_until(what, 60, || {
        let answer = answer();
        if answer.contains(words) { Ok(()) } else { Err(answer) }
    });
}

#[test]
fn a_ledger_that_cannot_be_written_is_told_and_undoes_no_edit_at_the_next_start() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("ledger");
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "command: [sleep, '100000']"));
    agent.wait_ready("a");
    wait_told("the node is ready", || readiness(&world, &agent), "200 OK");
    // As a full disk does, it lets nobody write the file that replaces the ledger.
    let block = agent.root().join(".ledger.json.new");
    std::fs::create_dir(&block).unwrap();
    agent.drop_manifest("a.yaml", &pod("a", "command: [sleep, '200000']"));
    let edited = agent.wait_pod("a", "runs as edited", |pod| {
        first(pod)["restartCount"] == 1 && portreeve_e2e::condition(pod, "Ready") == Some("True")
    });
    wait_told("the node is not ready", || readiness(&world, &agent), "not ready: the ledger cannot be written");
    let events = agent.client(&["get", "events"]).ok();
    assert!(events.lines().any(|line| line.contains("LedgerNotWritten") && line.contains("next try at")), "{events}");

    agent.terminate();
    agent.launch();
    // What would be undone is undone before a pod that comes later runs.
    agent.drop_manifest("b.yaml", &pod("b", "command: [sleep, '100000']"));
    agent.wait_ready("b");
    let after = agent.wait_ready("a");
    assert_eq!(first(&after)["containerID"], first(&edited)["containerID"]);
    assert_eq!(agent.client(&["get", "events"]).ok().matches("Killing").count(), 1, "the edit's alone");

    std::fs::remove_dir(&block).unwrap();
    wait_told("the node is ready again", || readiness(&world, &agent), "200 OK");
}

#[test]
fn a_run_directory_that_is_moved_away_makes_the_node_unready_until_it_is_back() {
    if skipped_without_root("failures") {
        return;
    }
    let world = World::new("moved");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "command: [sleep, '100000']"));
    let before = agent.wait_ready("a");
    let description = std::fs::read_to_string(agent.run_dir().join("agent.json")).unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    let address = description["listen"].as_str().unwrap();
    let aside = world.path("agent/aside");
    std::fs::rename(agent.run_dir(), &aside).unwrap();
    let place = agent.run_dir().join("sandboxes");
    wait_told("the node is not ready", || ask_readiness(&world, address), &format!("not ready: {}", place.display()));
    std::fs::rename(&aside, agent.run_dir()).unwrap();
    wait_told("the node is ready again", || ask_readiness(&world, address), "200 OK");
    let events = agent.client(&["get", "events"]).ok();
    assert!(events.contains("RunDirectoryLost") && events.contains("RunDirectoryBack"), "{events}");
    assert_eq!(first(&agent.wait_ready("a"))["containerID"], first(&before)["containerID"]);
}
