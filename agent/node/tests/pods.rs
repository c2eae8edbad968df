//! What single pods go through, in simulated time: slow stops, probes, a reboot, missing objects.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use portreeve_engine::{ContainerState, SandboxState};
use portreeve_manifests::parse_file;
use portreeve_node::fake::{FakeRuntime, Program, Script};
use portreeve_node::source::{FileContent, Identity, SourceFile, SourceSet};
use portreeve_node::{
    Clock, ManifestFile, NamespacedName, Node, NodeConfig, NodeError, PlanRequest, PodChange, Runtime,
};
use tokio::sync::watch;

/// `stuck` is not alive and does not mind a stop signal, `good` leaves at once, `crash` ends by itself.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: stuck
    image: "stuck:1"
    imagePullPolicy: Never
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}
  - {name: good, image: "good:1", imagePullPolicy: Never}
  - {name: crash, image: "crash:1", imagePullPolicy: Never}
"#;

struct World {
    runtime: Arc<FakeRuntime>,
    clock: Clock,
    config: NodeConfig,
    sets: watch::Sender<SourceSet>,
    node: Node,
    _dir: tempfile::TempDir,
}

/// A source with these files: name and text.
fn set(files: &[(&str, &str)]) -> SourceSet {
    let root = Path::new("/manifests");
    let mut set = SourceSet::starting(root);
    set.complete = true;
    set.identity = Some(Identity { device: 1, inode: 1 });
    for (name, text) in files {
        let path = root.join(name);
        let parsed = parse_file(&path, text.as_bytes());
        assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
        let file = SourceFile { content: FileContent::Parsed(Arc::new(parsed)), vanishing: false };
        set.files.insert(path, file);
    }
    set
}

impl World {
    fn new(text: &str) -> Self {
        let clock = Clock::tokio_from("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        // In memory, so that no tmpfs has to be mounted for the volumes.
        let dir = tempfile::Builder::new().prefix("portreeve-stop-").tempdir_in("/dev/shm").unwrap();
        let script = Script {
            programs: BTreeMap::from([
                ("stuck:1".to_owned(), Program::Serve { leaves_after: Duration::from_secs(3600) }),
                ("crash:1".to_owned(), Program::Exit { after: Duration::from_secs(6), code: 1 }),
                ("done:1".to_owned(), Program::Exit { after: Duration::from_secs(1), code: 0 }),
            ]),
            present: ["stuck:1", "good:1", "crash:1", "done:1"].map(str::to_owned).into(),
            ..Script::default()
        };
        let runtime = FakeRuntime::new(1, script, clock.clone());
        let config = NodeConfig::new("node", "/manifests", dir.path().join("root"), dir.path().join("run"));
        let (sets, receiver) = watch::channel(set(&[("p.yaml", text)]));
        let shared: Arc<dyn Runtime> = runtime.clone();
        let node = Node::start_with(config.clone(), shared, receiver, clock.clone()).unwrap();
        World { runtime, clock, config, sets, node, _dir: dir }
    }

    /// Another agent takes over from one that was killed.
    async fn kill_agent(&mut self) {
        self.node.abort();
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.runtime.next_agent(None);
        let shared: Arc<dyn Runtime> = self.runtime.clone();
        self.node = Node::start_with(self.config.clone(), shared, self.sets.subscribe(), self.clock.clone()).unwrap();
    }

    /// The machine goes down and comes up: what `<run>` and the kernel held is gone.
    async fn reboot(&mut self) {
        self.node.abort();
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.runtime.reboot();
        std::fs::remove_dir_all(&self.config.run).unwrap();
        self.runtime.next_agent(None);
        let shared: Arc<dyn Runtime> = self.runtime.clone();
        self.node = Node::start_with(self.config.clone(), shared, self.sets.subscribe(), self.clock.clone()).unwrap();
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let events = self.node.events().items;
        let events = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
        events.map(|event| event.message.clone().unwrap_or_default()).collect()
    }

    fn phase(&self) -> String {
        self.pod().and_then(|pod| pod.status.clone()?.phase).unwrap_or_default()
    }

    fn pod(&self) -> Option<Arc<Pod>> {
        self.node.pod(&NamespacedName::new("default", "p"))
    }

    fn status(&self, container: &str) -> ContainerStatus {
        let status = self.pod().and_then(|pod| pod.status.clone()).unwrap();
        status.container_statuses.unwrap().into_iter().find(|status| status.name == container).unwrap()
    }

    fn running(&self, container: &str) -> usize {
        let all = self.runtime.containers();
        all.iter().filter(|c| c.metadata.name == container && c.state == ContainerState::Running).count()
    }

    fn killing(&self, container: &str) -> usize {
        let about = |message: &&String| {
            message.starts_with(&format!("Stopping container {container}"))
                || message.starts_with(&format!("Container {container} "))
        };
        self.events("Killing").iter().filter(about).count()
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let began = tokio::time::Instant::now();
        while !so(self) {
            let waited = began.elapsed();
            assert!(waited < Duration::from_secs(120), "waited in vain until {what}: {:#?}", self.runtime.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_pod_stops_all_its_containers_while_one_is_being_stopped_already() {
    let world = World::new(POD);
    world.until("stuck is being stopped", |w| w.killing("stuck") == 1).await;
    let began = tokio::time::Instant::now();
    world.sets.send_replace(set(&[]));
    world.until("good has ended", |w| w.running("good") == 0).await;
    assert!(began.elapsed() < Duration::from_secs(2), "after {:?}", began.elapsed());
    assert_eq!(world.running("stuck"), 1, "which has time left");
    world.until("nothing is left", |w| w.runtime.sandboxes().is_empty() && w.pod().is_none()).await;
    assert!(began.elapsed() < Duration::from_secs(22), "after {:?}", began.elapsed());
    assert_eq!(world.runtime.violations(), Vec::<String>::new());
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn others_are_restarted_and_their_status_shown_while_one_is_being_stopped() {
    let world = World::new(POD);
    world.until("stuck is being stopped", |w| w.killing("stuck") == 1).await;
    world.until("crash has ended", |w| w.status("crash").restart_count == 1).await;
    assert_eq!((world.running("crash"), world.running("stuck")), (1, 1), "it was started again at once");
    world.until("crash waits", |w| w.status("crash").state.unwrap().waiting.is_some()).await;
    assert!(!world.status("crash").ready);
    assert_eq!(world.running("stuck"), 1);
    world.until("stuck was restarted", |w| w.status("stuck").restart_count == 1).await;
    assert_eq!(world.runtime.violations(), Vec::<String>::new());
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_neither_begun_twice_nor_extended_by_another_agent() {
    let mut world = World::new(POD);
    world.until("stuck is being stopped", |w| w.killing("stuck") == 1).await;
    let began = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(8)).await;
    world.kill_agent().await;
    world.until("stuck was restarted", |w| w.running("stuck") == 0).await;
    let took = began.elapsed();
    assert!((Duration::from_secs(18)..Duration::from_secs(22)).contains(&took), "{took:?}");
    assert_eq!(world.killing("stuck"), 1);
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_hook_of_a_container_that_has_ended_keeps_nobody_waiting() {
    let (head, _) = POD.split_once("  - name: stuck").unwrap();
    let crash = "  - {name: crash, image: \"crash:1\", lifecycle: {preStop: {sleep: {seconds: 15}}}}\n";
    let world = World::new(&format!("{head}{crash}"));
    world.until("it runs", |w| w.running("crash") == 1).await;
    let began = tokio::time::Instant::now();
    world.sets.send_replace(set(&[]));
    world.until("nothing is left", |w| w.runtime.sandboxes().is_empty()).await;
    assert!(began.elapsed() < Duration::from_secs(8), "after {:?}", began.elapsed());
    world.node.shutdown().await;
}

/// A pod named `p`; `spec` goes on after `containers`.
fn pod(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{spec}")
}

const GOOD: &str = "  containers:\n  - {name: good, image: \"good:1\", imagePullPolicy: Never}\n";

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_restarts_is_not_run_again_after_a_reboot() {
    let more = "  - {name: done, image: \"done:1\", imagePullPolicy: Never}\n";
    let mut world = World::new(&pod(&format!("  restartPolicy: Never\n{GOOD}{more}")));
    world
        .until("one has completed", |w| w.pod().is_some() && w.status("done").state.unwrap().terminated.is_some())
        .await;
    world.until("the other runs", |w| w.running("good") == 1).await;
    world.reboot().await;
    world.until("it has failed", |w| w.phase() == "Failed").await;
    let end = |world: &World, name: &str| {
        let end = world.status(name).state.unwrap().terminated.unwrap();
        (end.exit_code, end.reason.unwrap())
    };
    assert_eq!(end(&world, "done"), (0, "Completed".to_owned()));
    assert_eq!(end(&world, "good"), (137, "ContainerStatusUnknown".to_owned()));
    assert!(world.events("SandboxLost").iter().any(|message| message.contains("reboot")), "{:?}", world.node.events());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.runtime.sandboxes(), []);
    world.reboot().await;
    world.until("it still has", |w| w.phase() == "Failed").await;
    assert_eq!(end(&world, "done").0, 0);
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_had_completed_before_a_reboot_is_not_run_again_and_the_rest_is() {
    let more = "  - {name: done, image: \"done:1\", imagePullPolicy: Never}\n";
    let mut world = World::new(&pod(&format!("  restartPolicy: OnFailure\n{GOOD}{more}")));
    world
        .until("one has completed", |w| w.pod().is_some() && w.status("done").state.unwrap().terminated.is_some())
        .await;
    world.reboot().await;
    world.until("the other runs", |w| w.running("good") == 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.runtime.containers().len(), 1);
    assert_eq!(world.status("good").restart_count, 1);
    assert_eq!(world.status("done").state.unwrap().terminated.unwrap().exit_code, 0);
    let found = world.node.container(&NamespacedName::new("default", "p"), Some("done"), false);
    assert_eq!(found.unwrap_err().to_string(), "container done in pod p is not running");
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_be_evaluated_kills_nothing() {
    let probe = "    livenessProbe: {httpGet: {port: nosuch}, periodSeconds: 1, failureThreshold: 1}\n";
    let world = World::new(&pod(&format!("  containers:\n  - name: good\n    image: \"good:1\"\n{probe}")));
    world.until("it was tried", |w| !w.events("Unhealthy").is_empty()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((world.running("good"), world.status("good").restart_count), (1, 0));
    let message = "Liveness probe errored and resulted in unknown state: container good has no port \"nosuch\"";
    assert_eq!(world.events("Unhealthy"), [message]);
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_object_of_a_volume_is_an_event() {
    let volumes = "  volumes: [{name: v, configMap: {name: nope}}]\n";
    let world = World::new(&pod(&format!("{GOOD}{volumes}")));
    world.until("it is told", |w| !w.events("FailedMount").is_empty()).await;
    assert_eq!(world.events("FailedMount"), ["volume v: configmap \"nope\" not found"]);
    let waiting = world.status("good").state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_pull_secret_is_an_event() {
    let container = "  containers: [{name: c, image: \"absent:1\"}]\n";
    let world = World::new(&pod(&format!("  imagePullSecrets: [{{name: nope}}]\n{container}")));
    world.until("it is told", |w| !w.events("FailedToRetrieveImagePullSecret").is_empty()).await;
    let told = world.events("FailedToRetrieveImagePullSecret");
    assert!(told[0].contains("Secret \"nope\" does not exist"), "{told:?}");
    let message = |w: &World| w.status("c").state.unwrap().waiting.and_then(|waiting| waiting.message);
    world.until("the failed pull says so", |w| message(w).is_some_and(|it| it.contains("\"nope\""))).await;
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_leaves_a_pull_alone_that_the_pod_wants_as_before() {
    let with = |metadata: &str, spec: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p{metadata}}}\nspec:\n{spec}")
    };
    let slow = "  containers: [{name: c, image: \"slow:1\"}]\n";
    let world = World::new(&with("", slow));
    world.runtime.slow_pulls(Duration::from_secs(60));
    world.runtime.publish("slow:1");
    world.runtime.publish("slow:2");
    let begun = |w: &World| w.runtime.pulls_begun();
    world.until("it is pulled", |w| begun(w).len() == 1).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    // Another label.
    let edit = |text: &str| world.sets.send_replace(set(&[("p.yaml", text)]));
    edit(&with(", labels: {a: b}", slow));
    let labelled = |w: &World| w.pod().is_some_and(|pod| pod.metadata.labels.is_some());
    world.until("it is seen", labelled).await;
    world.until("it runs", |w| w.running("c") == 1).await;
    assert_eq!(begun(&world), [("slow:1".to_owned(), 0)]);
    assert_eq!(world.events("Pulling").len(), 1);
    // Another image, and then another login for it.
    let other = "  containers: [{name: c, image: \"slow:2\"}]\n";
    edit(&with("", other));
    world.until("it is pulled", |w| begun(w).len() == 2).await;
    let login = "apiVersion: v1\nkind: Secret\nmetadata: {name: login}\ntype: kubernetes.io/dockerconfigjson\nstringData: \
                 {.dockerconfigjson: '{\"auths\": {\"r.example\": {\"username\": \"u\", \"password\": \"p\"}}}'}\n";
    let pod = with("", &format!("  imagePullSecrets: [{{name: login}}]\n{other}"));
    edit(&format!("{login}---\n{pod}"));
    world.until("it is pulled with it", |w| begun(w).len() == 3).await;
    // The first image is wanted again: the pull of the other is given up.
    edit(&with("", slow));
    world.until("it runs", |w| w.running("c") == 1).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(begun(&world), [("slow:1".to_owned(), 0), ("slow:2".to_owned(), 0), ("slow:2".to_owned(), 1)]);
    assert!(!world.runtime.log().contains(&"pull slow:2".to_owned()), "{:?}", world.runtime.log());
    assert_eq!(world.runtime.violations(), [""; 0]);
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_an_event() {
    let world = World::new(&pod(GOOD));
    world.until("it runs", |w| w.running("good") == 1).await;
    let sandbox = world.runtime.sandboxes()[0].id.clone();
    world.runtime.lose_sandbox(&sandbox);
    world.until("it runs again", |w| w.running("good") == 1 && w.runtime.sandboxes()[0].id != sandbox).await;
    assert_eq!(world.events("SandboxLost"), ["the sandbox is lost, and all its containers with it: shim died"]);
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_manifest_asks_for_another_node_goes_with_a_word() {
    let world = World::new(&pod(GOOD));
    world.until("it runs", |w| w.running("good") == 1).await;
    let elsewhere = pod(&format!("  nodeSelector: {{disk: ssd}}\n{GOOD}"));
    let request = PlanRequest {
        files: vec![ManifestFile { path: "edit.yaml".into(), content: elsewhere.clone() }],
        prune: false,
    };
    let why = "the pod does not run here: spec.nodeSelector asks for disk=ssd, which this node has not";
    let plan = world.node.plan(request).await.unwrap();
    assert_eq!(plan.pods[0].change, PodChange::Delete, "{plan:?}");
    assert!(plan.pods[0].steps.iter().all(|step| step.reason == why), "{plan:?}");
    let problems: Vec<_> =
        plan.problems.iter().map(|it| (it.severity.as_str(), it.file.to_str().unwrap(), it.line)).collect();
    assert_eq!(problems, [("warning", "edit.yaml", 1)]);
    world.sets.send_replace(set(&[("p.yaml", &elsewhere)]));
    world.until("it is gone", |w| w.pod().is_none()).await;
    assert_eq!(world.events("NotForThisNode"), [why]);

    let new = ManifestFile { path: "new.yaml".into(), content: elsewhere.replace("name: p}", "name: q}") };
    let plan = world.node.plan(PlanRequest { files: vec![new], prune: false }).await.unwrap();
    assert!(!plan.has_changes() && plan.problems[0].message == why, "{plan:?}");
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_uid_is_given_out_again_when_its_pod_is_gone() {
    let with_uid = |name: &str, digit: u32| {
        let uid = format!("00000000-0000-4000-8000-{digit:012}");
        pod(GOOD).replace("{name: p}", &format!("{{name: {name}, uid: {uid}}}"))
    };
    let (one, two) = (with_uid("p", 1), with_uid("q", 1));
    let world = World::new(&one);
    world.until("p runs", |w| w.running("good") == 1).await;
    world.sets.send_replace(set(&[("p.yaml", &one), ("q.yaml", &two)]));
    world.until("q is refused", |w| w.node.sources()[0].errors == 1).await;
    world.sets.send_replace(set(&[("p.yaml", &with_uid("p", 2)), ("q.yaml", &two)]));
    world.until("both run", |w| w.running("good") == 2 && w.node.sources()[0].errors == 0).await;
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn qos_levels_weigh_what_their_pods_ask_for() {
    let of = |name: &str, cpu: &str| {
        let resources = format!("resources: {{requests: {{cpu: {cpu}}}}}, imagePullPolicy");
        pod(GOOD).replace("name: p}", &format!("name: {name}}}")).replace("imagePullPolicy", &resources)
    };
    let (a, b) = (of("a", "500m"), of("b", "250m"));
    let world = World::new(&pod(GOOD));
    let weights = |w: &World| {
        let shares = w.runtime.shares();
        ["/portreeve/burstable", "/portreeve/besteffort"].map(|path| shares.get(path).copied())
    };
    world.until("nothing asks for more", |w| weights(w) == [None, Some(2)]).await;
    world.sets.send_replace(set(&[("a.yaml", &a), ("b.yaml", &b)]));
    world.until("both count", |w| weights(w) == [Some(768), Some(2)]).await;
    world.sets.send_replace(set(&[("a.yaml", &a)]));
    world.until("one has gone", |w| weights(w) == [Some(512), Some(2)]).await;
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_node_keeps_what_its_pods_came_to_and_restarts_none() {
    let mut world = World::new(&pod(GOOD));
    let of = |name: &str, policy: &str, image: &str| {
        let container = format!("  containers:\n  - {{name: {name}, image: \"{image}\", imagePullPolicy: Never}}\n");
        pod(&format!("  restartPolicy: {policy}\n{container}")).replace("name: p}", &format!("name: {name}}}"))
    };
    let (done, crash) = (of("done", "Never", "done:1"), of("crash", "Always", "crash:1"));
    world.sets.send_replace(set(&[("p.yaml", &pod(GOOD)), ("done.yaml", &done), ("crash.yaml", &crash)]));
    let named = |name: &str| NamespacedName::new("default", name);
    let status =
        |w: &World, name: &str| w.node.pod(&named(name)).and_then(|pod| pod.status.clone()).unwrap_or_default();
    let phase = |w: &World, name: &str| status(w, name).phase.unwrap_or_default();
    let container = |w: &World, name: &str| status(w, name).container_statuses.unwrap().remove(0);
    world.until("done has ended", |w| phase(w, "done") == "Succeeded").await;
    world.until("crash was restarted", |w| w.running("crash") == 1 && container(w, "crash").restart_count == 1).await;
    let ready = |w: &World| w.runtime.sandboxes().iter().filter(|s| s.state == SandboxState::Ready).count();
    world.until("done is released", |w| ready(w) == 2).await;
    let before = status(&world, "done");
    let uid = world.node.pod(&named("p")).unwrap().metadata.uid.clone();

    let stopped = world.node.drain(Some(Duration::from_secs(3))).await.unwrap();
    assert_eq!(stopped, [named("crash"), named("p")], "what had ended is not stopped");
    assert!(world.node.is_drained());
    assert_eq!(status(&world, "done"), before);
    for name in ["p", "crash"] {
        let status = status(&world, name);
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Drained")), "{name}");
    }
    let crash = container(&world, "crash");
    assert!(crash.state.unwrap().terminated.is_some() && crash.last_state.unwrap().terminated.is_some());
    assert_eq!(crash.restart_count, 1);
    for (name, previous) in [("p", false), ("done", false), ("crash", false), ("crash", true)] {
        assert!(world.node.log_path(&named(name), None, previous).is_ok(), "{name}");
    }
    let refused = world.node.restart_pod(&named("p")).await.unwrap_err();
    assert_eq!(refused.to_string(), "pod default/p is not restarted: the node is drained; start the agent again");
    assert!(matches!(world.node.restart_pod(&named("x")).await, Err(NodeError::PodNotFound { .. })));

    // What comes now waits, what goes is gone, and a second drain has nothing to do.
    let late = of("late", "Always", "good:1");
    world.sets.send_replace(set(&[("p.yaml", &pod(GOOD)), ("done.yaml", &done), ("late.yaml", &late)]));
    world.until("crash is gone", |w| w.node.pod(&named("crash")).is_none()).await;
    world.until("late waits", |w| status(w, "late").reason.as_deref() == Some("Drained")).await;
    assert_eq!(phase(&world, "late"), "Pending");
    assert_eq!(world.node.drain(None).await.unwrap().len(), 2);
    let running = |w: &World| w.runtime.containers().iter().filter(|c| c.state == ContainerState::Running).count();
    assert_eq!(running(&world), 0);

    world.kill_agent().await;
    world.until("the others run", |w| phase(w, "p") == "Running" && phase(w, "late") == "Running").await;
    assert_eq!(world.node.pod(&named("p")).unwrap().metadata.uid, uid);
    assert_eq!(container(&world, "p").restart_count, 1);
    assert_eq!(phase(&world, "done"), "Succeeded");
    assert_eq!(world.runtime.violations(), Vec::<String>::new());
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_back_off_of_a_pull_goes_on_under_another_agent() {
    let mut world = World::new(&pod("  containers: [{name: c, image: \"absent:1\"}]\n"));
    let attempts = |w: &World| w.node.pulls().first().map_or(0, |pull| pull.attempts);
    world.until("it failed three times", |w| attempts(w) == 3).await;
    let failed = tokio::time::Instant::now();
    let pulls = |w: &World| w.runtime.log().iter().filter(|line| line.contains("pull")).count();
    let before = pulls(&world);
    let told = world.events("Failed");
    assert_eq!(told.len(), 2, "one for the pull and one for what it means: {told:?}");
    let waits = world.events("BackOff");
    assert!(waits.len() == 1 && waits[0].contains("; next try at 2026-01-01T00:0"), "{waits:?}");
    world.kill_agent().await;
    world.until("it is told again", |w| attempts(w) == 3).await;
    world.until("it fails again", |w| attempts(w) == 4).await;
    let took = failed.elapsed();
    assert!((Duration::from_secs(39)..Duration::from_secs(43)).contains(&took), "{took:?}");
    assert_eq!(pulls(&world), before + 1);
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_wants_to_be_left_alone_is_also_by_another_agent() {
    const PAUSE: Duration = Duration::from_secs(100);
    let mut world = World::new(&pod("  containers: [{name: c, image: \"absent:1\"}]\n"));
    world.runtime.make_registry_busy(PAUSE);
    let attempts = |w: &World| w.node.pulls().first().map_or(0, |pull| pull.attempts);
    world.until("it failed", |w| attempts(w) == 1).await;
    let failed = tokio::time::Instant::now();
    let told = world.events("Failed");
    assert!(told.iter().any(|event| event.contains("; next try at 2026-01-01T00:01:4")), "{told:?}");
    tokio::time::sleep(PAUSE / 2).await;
    world.kill_agent().await;
    world.until("it is tried again", |w| attempts(w) == 2).await;
    assert!((PAUSE..PAUSE + Duration::from_secs(5)).contains(&failed.elapsed()), "{:?}", failed.elapsed());
    // An edit is a reason to ask at once.
    let before = tokio::time::Instant::now();
    world.sets.send_replace(set(&[("p.yaml", &pod("  containers: [{name: c, image: \"absent:1\", args: [x]}]\n"))]));
    world.until("it is tried at once", |w| attempts(w) == 1).await;
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_for_a_volume_backs_off_also_when_a_container_has_that_very_image() {
    let files = "  volumes: [{name: files, image: {reference: \"good:1\", pullPolicy: Always}}]\n";
    let container = "  containers: [{name: c, image: \"good:1\", imagePullPolicy: IfNotPresent, \
                     volumeMounts: [{name: files, mountPath: /files}]}]\n";
    let world = World::new(&pod(&format!("{files}{container}")));
    tokio::time::sleep(Duration::from_secs(100)).await;
    let pulls = world.runtime.log().iter().filter(|line| line.contains("pull")).count();
    assert!((3..=5).contains(&pulls), "10 s, then twice as long each time: {:?}", world.runtime.log());
    assert_eq!(world.running("c"), 0, "Always means that its registry must answer");
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_a_setting_put_off_is_made_at_once_by_an_agent_without_it() {
    let mut world = World::new(&pod("  containers: [{name: c, image: \"late:1\"}]\n"));
    world.runtime.make_registry_busy(Duration::from_secs(8 * 3600));
    world.runtime.close_window(true);
    let attempts = |w: &World| w.node.pulls().first().map_or(0, |pull| pull.attempts);
    world.until("it is put off", |w| attempts(w) == 1).await;
    world.runtime.close_window(false);
    world.runtime.publish("late:1");
    world.kill_agent().await;
    world.until("it runs", |w| w.running("c") == 1).await;
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_came_by_another_way_is_not_waited_for_by_another_agent() {
    let container = |policy: &str| format!("  containers: [{{name: c, image: \"absent:1\", {policy}}}]\n");
    for (policy, pulled) in [("imagePullPolicy: IfNotPresent", false), ("imagePullPolicy: Always", true)] {
        let mut world = World::new(&pod(&container(policy)));
        let attempts = |w: &World| w.node.pulls().first().map_or(0, |pull| pull.attempts);
        world.until("it failed", |w| attempts(w) == 1).await;
        world.node.abort();
        world.runtime.load("absent:1");
        world.kill_agent().await;
        let waits = |w: &World| attempts(w) == 1;
        if pulled {
            world.until("it asks the registry all the same", waits).await;
        } else {
            world.until("it runs", |w| w.running("c") == 1).await;
            assert!(!waits(&world), "{:?}", world.node.pulls());
        }
        world.node.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_came_by_another_way_starts_whoever_waits_for_it() {
    for policy in ["IfNotPresent", "Never"] {
        let world =
            World::new(&pod(&format!("  containers: [{{name: c, image: \"absent:1\", imagePullPolicy: {policy}}}]\n")));
        world.until("it waits", |w| !w.events("Failed").is_empty()).await;
        let loaded = tokio::time::Instant::now();
        world.runtime.load("absent:1");
        world.until("it runs", |w| w.running("c") == 1).await;
        assert!(loaded.elapsed() < Duration::from_secs(2), "{policy}: {:?}", loaded.elapsed());
        assert!(world.node.pulls().is_empty(), "{:?}", world.node.pulls());
        world.node.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_not_written_is_told_and_undoes_no_edit_under_another_agent() {
    let mut world = World::new(&pod(GOOD));
    let reasons = |w: &World| w.node.ready().err().unwrap_or_default().join("; ");
    world.until("it runs", |w| w.running("good") == 1 && reasons(w).is_empty()).await;
    // As a full disk does, it lets nobody write the file that replaces the ledger.
    let block = world.config.root.join(".ledger.json.new");
    std::fs::create_dir(&block).unwrap();
    let edited = pod(&GOOD.replace("imagePullPolicy", "args: [edited], imagePullPolicy"));
    world.sets.send_replace(set(&[("p.yaml", &edited)]));
    world.until("the edit runs", |w| w.running("good") == 1 && w.status("good").restart_count == 1).await;
    world.until("the node is not ready", |w| reasons(w).contains("the ledger cannot be written")).await;
    assert!(reasons(&world).contains("ledger.json"), "{}", reasons(&world));
    let condition = world.node.node_object().status.unwrap().conditions.unwrap().remove(0);
    assert_eq!((condition.status.as_str(), condition.message), ("False", Some(reasons(&world))));
    let told = world.events("LedgerNotWritten");
    assert!(told.len() == 1 && told[0].contains("; next try at "), "{told:?}");
    let tries = |w: &World| {
        let events = w.node.events().items;
        let told = events.iter().find(|event| event.reason.as_deref() == Some("LedgerNotWritten"));
        told.and_then(|event| event.count).unwrap_or_default()
    };
    let before = tries(&world);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!((15..30).contains(&(tries(&world) - before)), "with back-off: {} tries", tries(&world));

    let runs = |w: &World| w.runtime.containers().into_iter().map(|it| it.id).collect::<Vec<_>>();
    let container = runs(&world);
    // The next agent hears of its source a little after it began.
    world.sets.send_replace(SourceSet::starting(Path::new("/manifests")));
    world.kill_agent().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.sets.send_replace(set(&[("p.yaml", &edited)]));
    world.until("the pod is shown", |w| w.running("good") == 1 && w.phase() == "Running").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(runs(&world), container, "{:#?}", world.runtime.log());

    assert!(!reasons(&world).is_empty());
    std::fs::remove_dir(&block).unwrap();
    world.until("it is written by itself", |w| reasons(w).is_empty()).await;
    assert_eq!(world.events("LedgerWritten").len(), 1);
    world.node.shutdown().await;
    let ledger = std::fs::read_to_string(world.config.root.join("ledger.json")).unwrap();
    assert!(ledger.contains("edited"), "{ledger}");
}

#[tokio::test(start_paused = true)]
async fn what_runs_without_a_record_stays_while_a_file_is_broken() {
    const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n";
    let mut world = World::new(MAP);
    let block = world.config.root.join(".ledger.json.new");
    let runs = |w: &World| w.runtime.containers().into_iter().map(|it| it.id).collect::<Vec<_>>();
    world.until("the source has been read", |w| w.node.ready().is_ok()).await;
    std::fs::create_dir(&block).unwrap();
    world.sets.send_replace(set(&[("m.yaml", MAP), ("p.yaml", &pod(GOOD))]));
    world.until("it runs", |w| w.running("good") == 1).await;
    let container = runs(&world);

    // Nothing on disk knows the pod, and its file says nothing any more.
    let mut broken = set(&[("m.yaml", MAP)]);
    let file = SourceFile { content: FileContent::Unreadable("broken".to_owned()), vanishing: false };
    broken.files.insert(std::path::PathBuf::from("/manifests/p.yaml"), file);
    world.sets.send_replace(broken);
    let volumes = std::fs::read_dir(world.config.root.join("pods")).unwrap().next().unwrap().unwrap().path();
    // What a pod left that an agent was killed over before anything knew of it.
    let logs = |name: &str| world.config.root.join("logs").join(name);
    let (nobodys, foreign) = (logs("default_x_9e2b8f8a-3a3b-4d7e-8a44-0c3a6cf0a111"), logs("somebody_elses"));
    let own = logs(&format!("default_p_{}", volumes.file_name().unwrap().to_str().unwrap()));
    for folder in [&nobodys, &foreign, &own] {
        std::fs::create_dir_all(folder).unwrap();
    }
    world.kill_agent().await;
    std::fs::remove_dir(&block).unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(runs(&world), container, "{:#?}", world.runtime.log());
    world.until("what belongs to nobody is removed", |_| !nobodys.exists()).await;
    assert!(volumes.exists() && own.exists() && foreign.exists());
    assert_eq!(world.events("ManifestUnknown").len(), 1);
    world.sets.send_replace(set(&[("m.yaml", MAP), ("p.yaml", &pod(GOOD))]));
    world.until("the pod is shown", |w| w.running("good") == 1 && w.phase() == "Running").await;
    assert_eq!(runs(&world), container, "{:#?}", world.runtime.log());

    // In order, but without the pod that nothing on disk knows: it goes.
    std::fs::create_dir(&block).unwrap();
    let other = pod(GOOD).replace("name: p", "name: other");
    world.sets.send_replace(set(&[("m.yaml", MAP), ("p.yaml", &pod(GOOD)), ("o.yaml", &other)]));
    world.until("the other runs", |w| w.runtime.containers().len() == 2).await;
    world.sets.send_replace(set(&[("m.yaml", MAP), ("p.yaml", &pod(GOOD))]));
    world.kill_agent().await;
    std::fs::remove_dir(&block).unwrap();
    world.until("the other is gone", |w| w.runtime.containers().len() == 1).await;
    assert_eq!(runs(&world), container);
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_ledger_knows_runs_although_its_source_says_nothing() {
    let mut world = World::new(&pod(GOOD));
    world.until("it runs", |w| w.running("good") == 1).await;
    world.sets.send_replace(SourceSet::starting(Path::new("/manifests")));
    world.reboot().await;
    world.until("it runs again", |w| w.running("good") == 1).await;
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_run_directory_that_is_moved_away_makes_the_node_unready_until_it_is_back() {
    let world = World::new(&pod(GOOD));
    world.until("it runs", |w| w.running("good") == 1 && w.node.ready().is_ok()).await;
    world.runtime.lose_ground(Some("it was moved"));
    assert_eq!(world.node.ready(), Err(vec!["it was moved".to_owned()]));
    world.until("it is told", |w| w.events("RunDirectoryLost") == ["it was moved"]).await;
    world.runtime.lose_ground(None);
    assert!(world.node.ready().is_ok());
    world.until("it is told", |w| w.events("RunDirectoryBack").len() == 1).await;
    world.node.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_refused_waits_by_that_name_and_what_runs_goes_on() {
    let text = POD.replace("imagePullPolicy: Never", "imagePullPolicy: IfNotPresent");
    let world = World::new(&text);
    world.until("good runs", |world| world.running("good") == 1).await;
    // The policy changes: what runs goes on, what ends does not start again.
    let why = "refused by /p.json: default[0] (sigstoreSigned): it has no signature";
    world.runtime.refuse("good:1", why);
    world.runtime.refuse("crash:1", why);
    let waits = |world: &World| {
        let waiting = world.status("crash").state.and_then(|state| state.waiting)?;
        (waiting.reason.as_deref() == Some("SignatureValidationFailed")).then_some(waiting.message?)
    };
    world.until("crash waits", |world| waits(world).is_some()).await;
    let message = waits(&world).unwrap();
    assert!(message.starts_with(why), "{message}");
    let before = world.status("crash").restart_count;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((world.running("good"), world.status("good").restart_count), (1, 0));
    assert_eq!((world.running("crash"), world.status("crash").restart_count), (0, before));
    assert!(waits(&world).is_some_and(|message| message.starts_with(why)), "{:?}", world.status("crash"));
    // Its registry has a signature now.
    world.runtime.publish("crash:1");
    let log = || world.runtime.log().iter().filter(|line| line.contains("pull crash:1")).count();
    let asked = log();
    world.until("crash runs again", |world| world.status("crash").restart_count > before).await;
    assert!(log() > asked);
    assert_eq!(world.runtime.violations(), [""; 0]);
    world.node.abort();
}
