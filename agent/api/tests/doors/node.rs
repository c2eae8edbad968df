//! The doors of a real node, which runs on the node crate's own fake runtime: manifests in a
//! directory, and clients that apply, plan, watch and delete.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use portreeve_api::{Backend, NodeBackend};
use portreeve_node::fake::{FakeRuntime, Script};
use portreeve_node::source::DirectorySource;
use portreeve_node::{Clock, Node, NodeConfig};
use serde_json::{Value, json};

use crate::client::{House, in_time};

const OWN: &str = "/apis/portreeve.dev/v1alpha1";

struct Machine {
    house: House,
    directory: tempfile::TempDir,
    node: Node,
    _source: DirectorySource,
}

async fn machine() -> Machine {
    // In memory, so that no tmpfs has to be mounted for the volumes: nothing would take it away again.
    let directory = tempfile::Builder::new().prefix("portreeve-doors-").tempdir_in("/dev/shm").unwrap();
    let manifests = directory.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let source = DirectorySource::start(&manifests, None, Duration::from_secs(30)).unwrap();
    let clock = Clock::system();
    let script = Script {
        latency: Duration::ZERO,
        present: ["web:1".to_owned(), "docker.io/library/web:1".to_owned()].into(),
        ..Script::default()
    };
    let runtime = FakeRuntime::new(1, script, clock.clone());
    let config = NodeConfig::new("edge", &manifests, directory.path().join("root"), directory.path().join("run"));
    let node = Node::start_with(config, runtime, source.sets(), clock).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(NodeBackend::new(node.clone()));
    Machine { house: House::of(backend).await, directory, node, _source: source }
}

fn manifest(label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{v: \"{label}\"}}}}\n\
         spec:\n  containers:\n  - {{name: main, image: \"web:1\", imagePullPolicy: IfNotPresent}}\n"
    )
}

fn files(content: &str) -> String {
    json!({ "files": [{ "path": "/somewhere/web.yaml", "content": content }] }).to_string()
}

impl Machine {
    async fn post(&self, verb: &str, body: String) -> (StatusCode, Value) {
        self.house.send(Method::POST, &format!("{OWN}/{verb}"), "*/*", body).await
    }

    /// Follows the pods until one line satisfies.
    async fn until(&self, satisfied: impl Fn(&Value) -> bool) -> Value {
        let mut watch = self.house.lines("/api/v1/pods?watch=1", "*/*").await;
        loop {
            let line = watch.next().await.unwrap();
            if satisfied(&line) {
                return line;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applied_pod_runs_is_planned_and_goes_again() {
    let machine = machine().await;
    let (status, report) = machine.post("apply", files(&manifest("1"))).await;
    assert_eq!((status.as_u16(), &report["applied"][0]["outcome"]), (200, &json!("created")), "{report}");
    assert!(machine.directory.path().join("manifests/applied/pod.default.web.yaml").exists());
    let line = in_time(machine.until(|line| line["object"]["status"]["phase"] == "Running")).await;
    assert_eq!(line["object"]["kind"], "Pod");

    let (status, plan) = machine.post("plan", files(&manifest("2"))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&plan["pods"][0]["change"], &plan["pods"][0]["cost"]), (&json!("Update"), &json!("live")), "{plan}");

    let (status, report) = machine.post("apply", files("kind: Pod\napiVersion: v1\nmetadata: {name: UPPER}\n")).await;
    assert_eq!((status.as_u16(), &report["reason"]), (422, &json!("Invalid")));
    let cause = report["details"]["causes"][0]["message"].as_str().unwrap();
    assert!(cause.starts_with("/somewhere/web.yaml:"), "{cause}");

    let (status, events) =
        machine.house.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dweb").await;
    assert!(status.is_success() && !events["items"].as_array().unwrap().is_empty(), "{events}");

    let (status, _) = machine.house.send(Method::DELETE, "/api/v1/namespaces/default/pods/web", "*/*", "").await;
    assert_eq!(status, StatusCode::OK);
    in_time(async {
        while machine.house.get("/api/v1/namespaces/default/pods/web").await.0 != StatusCode::NOT_FOUND {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    machine.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_another_file_is_not_deleted_and_its_place_is_named() {
    let machine = machine().await;
    std::fs::write(machine.directory.path().join("manifests/web.yaml"), manifest("1")).unwrap();
    in_time(machine.until(|line| line["object"]["status"]["phase"] == "Running")).await;
    let (status, body) = machine.house.send(Method::DELETE, "/api/v1/namespaces/default/pods/web", "*/*", "").await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");
    assert!(body["message"].as_str().unwrap().contains("manifests/web.yaml:1"), "{body}");
    let (_, sources) = machine.house.get(&format!("{OWN}/sources")).await;
    assert_eq!(sources["items"][0]["status"]["objects"], 1, "{sources}");
    let (status, _) = machine.post("namespaces/default/pods/none/restart", String::new()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    machine.node.shutdown().await;
}
