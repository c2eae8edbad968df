//! The API on the socket as a client library meets it, and the metrics.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use portreeve_e2e::{Agent, BUSYBOX, World, skipped_without_root, wait_until};
use serde_json::Value;

/// One request over the agent's socket: the status code and the body.
fn get(agent: &Agent<'_>, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(agent.run_dir().join("portreeve.sock")).expect("the socket");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code"), body.to_owned())
}

fn json(agent: &Agent<'_>, path: &str) -> Value {
    let (code, body) = get(agent, path);
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn the_socket_speaks_the_kubernetes_api() {
    if skipped_without_root("doors") {
        return;
    }
    let world = World::new("doors");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest(
        "a.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{app: one}}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
             - {{name: main, image: '{BUSYBOX}', command: [sh, -c, 'echo one; echo two; sleep 1000']}}\n"
        ),
    );
    agent.wait_ready("a");
    assert!(json(&agent, "/version")["gitVersion"].is_string());
    assert_eq!(json(&agent, "/api")["kind"], "APIVersions");
    assert_eq!(json(&agent, "/api/v1")["kind"], "APIResourceList");
    let list = json(&agent, "/api/v1/pods");
    assert_eq!(list["kind"], "PodList");
    assert!(list["metadata"]["resourceVersion"].is_string());
    assert_eq!(json(&agent, "/api/v1/namespaces/default/pods/a")["kind"], "Pod");
    assert_eq!(json(&agent, "/api/v1/pods?labelSelector=app%3Done")["items"].as_array().unwrap().len(), 1);
    assert_eq!(json(&agent, "/api/v1/pods?labelSelector=app%21%3Done")["items"].as_array().unwrap().len(), 0);
    let (code, body) = get(&agent, "/api/v1/namespaces/default/pods/none");
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, status["kind"].as_str(), status["reason"].as_str()), (404, Some("Status"), Some("NotFound")));
    let (_, log) = get(&agent, "/api/v1/namespaces/default/pods/a/log?tailLines=1");
    assert_eq!(log, "two\n");
    assert_eq!(json(&agent, "/api/v1/nodes")["items"][0]["metadata"]["name"], "node-1");
    assert!(!json(&agent, "/api/v1/events")["items"].as_array().unwrap().is_empty());

    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(json(&agent, &format!("/api/v1/pods?resourceVersion={version}"))["kind"], "PodList");
    for (query, code, reason) in [
        ("resourceVersion=abc", 400, "BadRequest"),
        ("resourceVersionMatch=Exact", 422, "Invalid"),
        ("resourceVersion=1&resourceVersionMatch=Exact", 410, "Expired"),
        ("resourceVersion=9999999999999999999", 504, "Timeout"),
    ] {
        let (found, body) = get(&agent, &format!("/api/v1/pods?{query}"));
        let status: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((found, status["reason"].as_str()), (code, Some(reason)), "{query}: {body}");
    }
    let old = json(&agent, "/apis/portreeve.dev/v1alpha1/containers?watch=1&resourceVersion=1");
    assert_eq!((&old["type"], &old["object"]["code"]), (&"ERROR".into(), &410.into()), "{old}");
    assert_eq!(json(&agent, "/api/v1/pods/")["kind"], "PodList");

    let mode = std::fs::metadata(agent.run_dir().join("portreeve.sock")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
}

#[test]
fn metrics_and_health_answer_on_the_address_that_agent_json_names() {
    if skipped_without_root("doors") {
        return;
    }
    let world = World::new("metrics");
    let agent = Agent::with_busybox(&world);
    let description = wait_until("agent.json is there", 10, || {
        std::fs::read_to_string(agent.run_dir().join("agent.json")).map_err(|error| error.to_string())
    });
    let description: Value = serde_json::from_str(&description).unwrap();
    assert_eq!(description["pid"].as_i64(), Some(i64::from(agent.pid().as_raw())));
    let version = format!("portreeve {}\n", description["version"].as_str().unwrap());
    assert_eq!(version, agent.client(&["version"]).ok());
    let listen = description["listen"].as_str().unwrap();
    assert!(!listen.ends_with(":0"), "{listen}");
    let metrics = world.fetch(&format!("http://{listen}/metrics")).unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("portreeve_")), "{metrics}");
    assert!(world.fetch(&format!("http://{listen}/livez")).is_ok());
    wait_until("the agent is ready", 10, || world.fetch(&format!("http://{listen}/readyz")));
    assert!(world.fetch(&format!("http://{listen}/api/v1/pods")).is_err(), "the API is not for the network");
}

#[test]
fn who_speaks_http_2_is_turned_away_and_keeps_no_place() {
    if skipped_without_root("doors") {
        return;
    }
    let world = World::new("preface");
    let agent = Agent::start(&world);
    let mut stream = UnixStream::connect(agent.run_dir().join("portreeve.sock")).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // To its end: an answer in frames, as HTTP/2 has it, would be followed by waiting.
    let ended = stream.read_to_end(&mut answer);
    let reset = matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset);
    assert!(ended.is_ok() || reset, "{ended:?}: {answer:?}");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
    assert_eq!(get(&agent, "/version").0, 200);
}

#[test]
fn a_second_agent_in_the_same_place_refuses_to_start() {
    if skipped_without_root("doors") {
        return;
    }
    let world = World::new("second");
    let agent = Agent::start(&world);
    for (run, root) in [(agent.run_dir(), world.path("other-root")), (world.path("other-run"), agent.root())] {
        let output = world
            .command(portreeve_e2e::binary())
            .args(["agent", "--listen", "127.0.0.1:0"])
            .arg("--manifests")
            .arg(agent.manifests())
            .arg("--root")
            .arg(root)
            .arg("--run")
            .arg(run)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("another agent uses"), "{stderr}");
        let made = ["other-root", "other-run"].map(|name| world.path(name).exists());
        assert_eq!(made, [false, false], "what was made for an agent that is refused is left");
    }
    assert_eq!(agent.client(&["get", "pods"]).code, 0);
}
