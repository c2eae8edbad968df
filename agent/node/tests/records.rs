//! What older agents left on disk is read, and what newer ones left is refused and left alone.
//!
//! `fixtures/v1` was kept from an agent of version 1 on a fake runtime, stopped after half a minute with three pods:
//! `done`, which never restarts, and of which one container had completed; `crash`, which always restarts, and was at
//! its third container; and `gone`, which was asked to go and did not mind. A ConfigMap and a Secret lay beside them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use portreeve_engine::chain;
use portreeve_node::fake::{FakeRuntime, Script};
use portreeve_node::source::SourceSet;
use portreeve_node::{Clock, NamespacedName, Node, NodeConfig, Runtime, StartError};
use serde_json::Value;
use tokio::sync::watch;

const DONE: &str = "8155fceb-6a5b-4bfe-b6e3-43f37e6d3533";
const CRASH: &str = "2a30e602-00b9-4b50-b1d8-ce44f232d9c4";
const GONE: &str = "01383ce9-613a-48a2-a0d5-5f27e6efcf4d";

/// The files of the older agent, below a directory of the test's own.
struct Disk {
    config: NodeConfig,
    dir: tempfile::TempDir,
}

/// An agent that has nothing but those files: no container of the older one is left, and no manifest was read yet.
struct Agent {
    node: Node,
    runtime: Arc<FakeRuntime>,
    _sets: watch::Sender<SourceSet>,
}

/// Every file below a directory, by its path in it.
fn files(directory: &Path) -> BTreeMap<PathBuf, String> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![directory.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read_to_string(&path).unwrap();
                files.insert(path.strip_prefix(directory).unwrap().to_owned(), content);
            }
        }
    }
    files
}

impl Disk {
    fn new() -> Self {
        // In memory, so that no tmpfs has to be mounted for the volumes.
        let dir = tempfile::Builder::new().prefix("portreeve-records-").tempdir_in("/dev/shm").unwrap();
        for (path, content) in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let config = NodeConfig::new("node", "/manifests", dir.path().join("root"), dir.path().join("run"));
        Self { config, dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn start(&self) -> Result<Agent, StartError> {
        let clock = Clock::tokio_from("2026-01-02T00:00:00Z".parse::<Timestamp>().unwrap());
        let present = ["good:1", "stuck:1", "crash:1", "done:1"].map(str::to_owned).into();
        let runtime = FakeRuntime::new(1, Script { present, ..Script::default() }, clock.clone());
        let (sets, receiver) = watch::channel(SourceSet::starting(Path::new("/manifests")));
        let node = Node::start_with(self.config.clone(), runtime.clone(), receiver, clock)?;
        Ok(Agent { node, runtime, _sets: sets })
    }
}

impl Agent {
    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain until {what}: {:?}", self.node.pods().items);
    }

    fn pod(&self, name: &str) -> Arc<Pod> {
        self.node.pod(&NamespacedName::new("default", name)).unwrap()
    }

    fn status(&self, name: &str) -> PodStatus {
        self.node.pod(&NamespacedName::new("default", name)).and_then(|pod| pod.status.clone()).unwrap_or_default()
    }

    fn is(&self, name: &str, phase: &str) -> bool {
        self.status(name).phase.as_deref() == Some(phase)
    }
}

#[tokio::test(start_paused = true)]
async fn what_version_1_wrote_is_read() {
    let disk = Disk::new();
    let agent = disk.start().unwrap();
    agent.until("both pods are judged", |agent| agent.is("done", "Failed") && agent.is("crash", "Running")).await;

    // ledger.json
    let uid = |name: &str| agent.pod(name).metadata.uid.clone();
    assert_eq!((uid("done").as_deref(), uid("crash").as_deref()), (Some(DONE), Some(CRASH)));
    let maps = agent.node.config_maps().items;
    assert_eq!(maps[0].data.as_ref().unwrap()["key"], "value");
    assert_eq!(maps[0].binary_data.as_ref().unwrap()["bytes"].0, [0, 1, 2]);
    assert_eq!(agent.node.secrets().items[0].data.as_ref().unwrap()["key"].0, b"value");
    agent.until("the removal is ended", |_| !disk.path("run/pods").join(GONE).exists()).await;
    assert!(!agent.node.pods().items.iter().any(|pod| pod.metadata.name.as_deref() == Some("gone")));

    // past.json
    let ends = agent.status("done").container_statuses.unwrap();
    let ends =
        ends.iter().map(|status| (status.name.as_str(), status.state.as_ref().unwrap().terminated.clone().unwrap()));
    let ends: BTreeMap<_, _> = ends.map(|(name, end)| (name, (end.exit_code, end.reason.unwrap()))).collect();
    assert_eq!(ends["completed"], (0, "Completed".to_owned()));
    assert_eq!(ends["served"], (137, "ContainerStatusUnknown".to_owned()));
    assert_eq!(agent.runtime.sandboxes().len(), 1, "it is not run again");

    // state.json
    let crash = agent.status("crash");
    assert_eq!(crash.container_statuses.unwrap()[0].restart_count, 3, "three containers had been");
    let scheduled = crash.conditions.unwrap().into_iter().find(|condition| condition.type_ == "PodScheduled").unwrap();
    assert_eq!(scheduled.last_transition_time.unwrap().0.to_string(), "2026-01-01T00:00:00Z");

    // events.jsonl
    let events = agent.node.events().items;
    let told = events.iter().find(|event| event.metadata.name.as_deref() == Some("gone.660eca8ab11b41")).unwrap();
    assert_eq!(told.message.as_deref(), Some("Created container main"));
    agent.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_agent_wrote_is_refused_and_left_alone() {
    let pods = [format!("root/pods/{DONE}/past.json"), format!("run/pods/{CRASH}/state.json")];
    for file in pods.iter().map(String::as_str).chain(["root/ledger.json", "root/events.jsonl"]) {
        let disk = Disk::new();
        let path = disk.path(file);
        // Of a newer version nothing but the version is known.
        fs::write(&path, "{\"version\":2,\"carried\":[]}\n").unwrap();
        let before = files(disk.dir.path());
        let Err(error) = disk.start() else { panic!("{file} was used") };
        let told = format!("{} has version 2, this agent knows 1: use the newer agent", path.display());
        assert!(chain(&error).ends_with(&told), "{}", chain(&error));
        assert_eq!(files(disk.dir.path()), before);
    }
    // What cannot be read may be one of those.
    let disk = Disk::new();
    let path = disk.path(&pods[0]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let Err(error) = disk.start() else { panic!("a pod whose past cannot be read was begun anew") };
    assert!(chain(&error).contains(&format!("reading {}", path.display())), "{}", chain(&error));
    assert!(path.is_dir(), "it was moved");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_past_is_damaged_is_not_run_again() {
    let disk = Disk::new();
    let past = disk.path(&format!("root/pods/{DONE}/past.json"));
    let damaged = &fs::read_to_string(&past).unwrap()[..100];
    fs::write(&past, damaged).unwrap();
    // What is found damaged once is not known at the next reboot either.
    for _ in 0..2 {
        let agent = disk.start().unwrap();
        agent.until("it has ended", |agent| agent.is("done", "Failed")).await;
        assert!(agent.status("done").message.unwrap().contains("cannot be read"), "{:?}", agent.status("done"));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(agent.runtime.sandboxes().len(), 1, "but that of the other");
        let events = agent.node.events().items;
        let told: Vec<_> = events.iter().filter(|event| event.reason.as_deref() == Some("PastUnreadable")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].type_.as_deref(), Some("Warning"));
        agent.node.shutdown().await;
        // The ledger keeps the end of a pod, too; the past alone must do.
        let mut ledger: Value = serde_json::from_slice(&fs::read(disk.path("root/ledger.json")).unwrap()).unwrap();
        for record in ledger["objects"].as_array_mut().unwrap() {
            record.as_object_mut().unwrap().remove("finished");
        }
        fs::write(disk.path("root/ledger.json"), ledger.to_string()).unwrap();
    }
    assert_eq!(fs::read_to_string(past.with_file_name("past.json.damaged")).unwrap(), damaged);
}
