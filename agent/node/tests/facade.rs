//! What the doors ask: apply, delete, plan, restart; over a directory source and a fake runtime.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve_node::fake::{FakeRuntime, Script};
use portreeve_node::source::DirectorySource;
use portreeve_node::{
    Clock, ManifestFile, NamespacedName, Node, NodeConfig, NodeError, ObjectName, PlanRequest, PodChange, Runtime,
    SourceState, WatchError,
};

struct World {
    dir: tempfile::TempDir,
    runtime: Arc<FakeRuntime>,
    node: Node,
    _source: DirectorySource,
}

fn world() -> World {
    // In memory, so that no tmpfs has to be mounted for the volumes.
    let dir = tempfile::Builder::new().prefix("portreeve-facade-").tempdir_in("/dev/shm").unwrap();
    let manifests = dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let script =
        Script { latency: Duration::ZERO, present: ["i:1", "i:2"].map(str::to_owned).into(), ..Script::default() };
    let runtime = FakeRuntime::new(1, script, Clock::system());
    let source = DirectorySource::start(&manifests, None, Duration::from_secs(60)).unwrap();
    let config = NodeConfig::new("node", manifests, dir.path().join("root"), dir.path().join("run"));
    let shared: Arc<dyn Runtime> = runtime.clone();
    let node = Node::start_with(config, shared, source.sets(), Clock::system()).unwrap();
    World { dir, runtime, node, _source: source }
}

impl World {
    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.manifest(name), text).unwrap();
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !so(self) {
            assert!(began.elapsed() < Duration::from_secs(10), "waited in vain until {what}: {:?}", self.runtime.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn phase(&self, name: &str) -> String {
        let pod = self.node.pod(&NamespacedName::new("default", name));
        pod.and_then(|pod| pod.status.clone()?.phase).unwrap_or_default()
    }

    fn running(&self, name: &str) -> bool {
        self.phase(name) == "Running"
    }
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: c, image: \"{image}\", imagePullPolicy: IfNotPresent}}\n"
    )
}

fn given(text: &str) -> Vec<ManifestFile> {
    vec![ManifestFile { path: "-".into(), content: text.to_owned() }]
}

fn named(name: &str) -> ObjectName {
    ObjectName { kind: "Pod".into(), namespace: "default".into(), name: name.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_writes_one_file_per_object_and_delete_removes_only_those() {
    let world = world();
    let two = pod("a", "i:1") + "---\n" + &pod("b", "i:1");
    let report = world.node.apply(given(&two)).await.unwrap();
    let outcomes: Vec<_> = report.applied.iter().map(|it| (it.name.as_str(), it.outcome.as_str())).collect();
    assert_eq!(outcomes, [("a", "created"), ("b", "created")]);
    assert!(world.manifest("applied/pod.default.a.yaml").exists());
    world.until("both run", |w| w.running("a") && w.running("b")).await;

    let report = world.node.apply(given(&(pod("a", "i:1") + "---\n" + &pod("b", "i:2")))).await.unwrap();
    let outcomes: Vec<_> = report.applied.iter().map(|it| it.outcome.as_str()).collect();
    assert_eq!(outcomes, ["unchanged", "configured"]);
    let source = &world.node.sources()[0];
    let read = (source.errors, source.warnings, source.objects);
    assert_eq!(read, (0, 0, 2), "what was written reads back without a word: {source:?}");

    world.write("own.yaml", &pod("c", "i:1"));
    world.until("c runs", |w| w.running("c")).await;
    for error in [
        world.node.apply(given(&pod("c", "i:2"))).await.unwrap_err(),
        world.node.delete(vec![named("c")]).await.unwrap_err(),
    ] {
        assert!(matches!(&error, NodeError::OwnedElsewhere { line: 1, .. }), "{error:?}");
        assert!(error.to_string().contains("own.yaml:1"), "{error}");
    }
    // All or nothing.
    assert!(world.node.delete(vec![named("a"), named("c")]).await.is_err());
    assert!(world.manifest("applied/pod.default.a.yaml").exists());
    let report = world.node.delete(vec![named("x"), named("a")]).await.unwrap();
    assert_eq!(report.absent, [named("x")]);
    assert_eq!(report.deleted[0].object, named("a"), "what is not there keeps nothing else");
    world.until("a is gone", |w| w.phase("a").is_empty()).await;
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_mends_a_file_that_was_broken_by_hand() {
    let world = world();
    world.node.apply(given(&pod("a", "i:1"))).await.unwrap();
    world.until("it runs", |w| w.running("a")).await;
    let good = fs::read_to_string(world.manifest("applied/pod.default.a.yaml")).unwrap();
    for broken in
        ["", "# gone\n", "{{{", "apiVersion: v1\nkind: Pod\n", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"]
    {
        world.write("applied/pod.default.a.yaml", broken);
        for outcome in ["configured", "unchanged"] {
            let report = world.node.apply(given(&pod("a", "i:1"))).await.unwrap();
            assert_eq!(report.applied[0].outcome, outcome, "{broken:?}");
            assert_eq!(fs::read_to_string(world.manifest("applied/pod.default.a.yaml")).unwrap(), good);
        }
    }
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_added_to_an_applied_file_is_not_lost() {
    let world = world();
    world.node.apply(given(&pod("a", "i:1"))).await.unwrap();
    world.until("it runs", |w| w.running("a")).await;
    let good = fs::read_to_string(world.manifest("applied/pod.default.a.yaml")).unwrap();
    let line = good.lines().count() + 2;
    for more in [
        "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\n",
        "apiVersion: v1\nkind: Pod\n",
        "kind: [\"?\"]\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
    ] {
        let both = format!("{good}---\n{more}");
        world.write("applied/pod.default.a.yaml", &both);
        for error in [
            world.node.apply(given(&pod("a", "i:2"))).await.unwrap_err(),
            world.node.apply(given(&pod("a", "i:1"))).await.unwrap_err(),
            world.node.delete(vec![named("a")]).await.unwrap_err(),
        ] {
            assert!(matches!(&error, NodeError::Crowded { .. }), "{more}: {error:?}");
            assert!(error.to_string().contains(&format!("applied/pod.default.a.yaml:{line};")), "{error}");
        }
        assert_eq!(fs::read_to_string(world.manifest("applied/pod.default.a.yaml")).unwrap(), both);
    }
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_or_removed_while_the_directory_is_not_the_one_that_was_read() {
    let world = world();
    world.write("own.yaml", &pod("own", "i:1"));
    world.node.apply(given(&pod("a", "i:1"))).await.unwrap();
    world.until("both run", |w| w.running("own") && w.running("a")).await;
    let (manifests, away) = (world.manifest(""), world.dir.path().join("away"));
    fs::rename(&manifests, &away).unwrap();
    for another in [false, true] {
        if another {
            // As below a mount that is gone.
            fs::create_dir(&manifests).unwrap();
        }
        for error in [
            world.node.apply(given(&pod("b", "i:1"))).await.unwrap_err(),
            world.node.apply(given(&pod("a", "i:1"))).await.unwrap_err(),
            world.node.delete(vec![named("a")]).await.unwrap_err(),
            world.node.delete(vec![named("x")]).await.unwrap_err(),
        ] {
            assert!(matches!(&error, NodeError::AnotherDirectory { source, .. } if source.is_none() == another));
            let told = format!("{} is not the directory that was read", world.dir.path().join("manifests").display());
            assert!(error.to_string().starts_with(&told), "{error}");
        }
        assert_eq!(manifests.exists(), another, "it is never made");
        assert!(!another || fs::read_dir(&manifests).unwrap().next().is_none(), "something was written");
        world.until("it is unreadable", |w| w.node.sources()[0].state == SourceState::Unreadable).await;
        let plan = world.node.plan(PlanRequest::default()).await.unwrap();
        assert!(plan.has_errors() && !plan.has_changes(), "{plan:?}");
        assert_eq!(plan.problems[0].file, world.dir.path().join("manifests"));
    }
    assert!(away.join("applied/pod.default.a.yaml").exists());
    assert!(world.running("own") && world.running("a"));
    fs::remove_dir(&manifests).unwrap();
    fs::rename(&away, &manifests).unwrap();
    world.until("it is read again", |w| w.node.sources()[0].state == SourceState::Ready).await;
    assert!(!world.node.plan(PlanRequest::default()).await.unwrap().has_errors());
    world.node.delete(vec![named("a")]).await.unwrap();
    world.until("a is gone", |w| w.phase("a").is_empty()).await;
    assert!(world.running("own"));
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_deleted_is_not_said_to_be() {
    let world = world();
    world.node.apply(given(&(pod("a", "i:1") + "---\n" + &pod("b", "i:1")))).await.unwrap();
    world.until("both run", |w| w.running("a") && w.running("b")).await;
    // A link that is not followed: what came from there runs on, and its files are out of sight.
    let aside = world.dir.path().join("aside");
    fs::rename(world.manifest("applied"), &aside).unwrap();
    std::os::unix::fs::symlink(&aside, world.manifest("applied")).unwrap();
    world.until("the link is refused", |w| w.node.sources()[0].errors > 0).await;
    fs::rename(aside.join("pod.default.a.yaml"), world.dir.path().join("a")).unwrap();
    let error = world.node.delete(vec![named("b"), named("a")]).await.unwrap_err();
    assert!(matches!(&error, NodeError::FileMissing { object, .. } if *object == named("a")), "{error:?}");
    assert!(aside.join("pod.default.b.yaml").exists(), "all or nothing");
    let error = world.node.delete(vec![named("b")]).await.unwrap_err();
    let NodeError::NotFollowed { files, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*files, [world.manifest("applied/pod.default.b.yaml")]);
    assert!(error.to_string().contains("get sources"), "{error}");
    assert!(world.running("a") && world.running("b"));
    let report = world.node.apply(given(&pod("b", "i:2"))).await.unwrap();
    let told: Vec<_> =
        report.warnings.iter().map(|warning| (warning.reason.as_str(), warning.object.clone())).collect();
    assert_eq!(told, [("NotSeen", Some("Pod default/b".to_owned()))]);
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uid_that_cannot_be_had_is_refused_before_anything_is_written() {
    let world = world();
    world.node.apply(given(&pod("web", "i:1"))).await.unwrap();
    world.until("it runs", |w| w.running("web")).await;
    let pods = world.node.pods();
    let uid = pods.items[0].metadata.uid.clone().unwrap();
    let with_uid = |name: &str, uid: &str| pod(name, "i:1").replace("a: {name:", &format!("a: {{uid: {uid}, name:"));
    let own = "0b5e4ee4-5c5f-4bd5-9c7d-8d1d7f2a4f10";
    for (text, object) in [
        (with_uid("a", &uid), "Pod default/a"),
        (with_uid("a", own) + "---\n" + &with_uid("b", &own.to_uppercase()), "Pod default/b"),
    ] {
        let Err(NodeError::Invalid(problems)) = world.node.apply(given(&text)).await else { panic!("accepted") };
        assert_eq!((problems.len(), problems[0].object.as_deref()), (1, Some(object)), "{problems:?}");
        assert_eq!(problems[0].field, "metadata.uid");
        let plan = world.node.plan(PlanRequest { files: given(&text), prune: true }).await.unwrap();
        assert_eq!(plan.problems, problems);
        assert!(plan.pods.iter().all(|pod| Some(format!("Pod default/{}", pod.name)).as_deref() != Some(object)));
    }
    assert_eq!(fs::read_dir(world.manifest("applied")).unwrap().count(), 1);
    // Its own it may say, and a free one.
    world.node.apply(given(&(with_uid("web", &uid) + "---\n" + &with_uid("a", own)))).await.unwrap();
    world.until("a runs", |w| w.running("a")).await;
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_without_files_names_the_errors_of_the_sources() {
    let world = world();
    world.write("a.yaml", &pod("a", "i:1"));
    world.until("a runs", |w| w.running("a")).await;
    world.until("nothing is left to do", |w| w.runtime.containers().len() == 1).await;
    assert!(!world.node.plan(PlanRequest::default()).await.unwrap().has_errors());
    world.write("a.yaml", "{{{");
    world.until("the error is seen", |w| w.node.sources()[0].errors > 0).await;
    let plan = world.node.plan(PlanRequest::default()).await.unwrap();
    assert!(plan.has_errors() && !plan.has_changes(), "{plan:?}");
    assert_eq!(plan.problems[0].file, world.manifest("a.yaml"));
    let given = PlanRequest { files: given(&pod("a", "i:1")), prune: false };
    assert!(!world.node.plan(given).await.unwrap().has_errors(), "files are judged by themselves");
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_it_starts_later() {
    let world = world();
    let text =
        pod("a", "i:1").replace("  containers:", "  initContainers: [{name: init, image: \"i:1\"}]\n  containers:");
    let plan = world.node.plan(PlanRequest { files: given(&text), prune: false }).await.unwrap();
    let then: Vec<_> = plan.pods[0].then.iter().map(|then| (then.containers.join(","), then.when.as_str())).collect();
    assert_eq!(then, [("c".to_owned(), "init container init has ended")]);
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_replaces_a_file_as_a_whole() {
    use std::io::Read;
    let world = world();
    let text = |word: &str| {
        let data = word.repeat(100_000);
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{word: {data}}}\n")
    };
    world.node.apply(given(&text("old"))).await.unwrap();
    let path = world.manifest("applied/configmap.default.c.yaml");
    let former = fs::read_to_string(&path).unwrap();
    // A reader in the middle of the former content reads it to its end: the file itself is never written to.
    let mut reader = fs::File::open(&path).unwrap();
    let mut read = String::new();
    reader.by_ref().take(1000).read_to_string(&mut read).unwrap();
    world.node.apply(given(&text("new"))).await.unwrap();
    reader.read_to_string(&mut read).unwrap();
    assert!(read == former, "the file was changed under its reader");
    assert_eq!(fs::read_to_string(&path).unwrap(), former.replace("old", "new"));
    let names: Vec<_> = fs::read_dir(world.manifest("applied")).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["configmap.default.c.yaml"]);
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_apply_writes_means_what_was_given() {
    let world = world();
    // Characters that YAML forbids, folds or takes for something else, and keys that the API server would store twice.
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n\
                  data: {a: \"x\\x7fy\\u2028z\\u0085\\t\\u0001\\u00a0\\ufeff\", b: 'on', c: '0o7', d: \" \\n x\"}\n---\n";
    let pod = pod("a", "i:1").replace("{name: a}", "{name: a, labels: {app: x}}")
        + "  topologySpreadConstraints:\n  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, \
           labelSelector: {}, matchLabelKeys: [app]}\n";
    let given = config.to_owned() + &pod;
    world.node.apply(self::given(&given)).await.unwrap();
    let wanted = portreeve_manifests::parse_file(std::path::Path::new("given.yaml"), given.as_bytes());
    for (name, wanted) in ["configmap.default.c", "pod.default.a"].into_iter().zip(wanted.objects()) {
        let path = world.manifest(&format!("applied/{name}.yaml"));
        let read = portreeve_manifests::parse_file(&path, &fs::read(&path).unwrap());
        assert_eq!(read.objects().next(), Some(wanted), "{:?}", read.problems);
    }
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_the_longest_name_runs_and_can_be_removed() {
    let world = world();
    let name = "a".repeat(253);
    world.write("long.yaml", &pod(&name, "i:1"));
    world.until("it runs", |w| w.running(&name)).await;
    fs::remove_file(world.manifest("long.yaml")).unwrap();
    world.until("it is gone", |w| w.phase(&name).is_empty()).await;
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_for_objects_that_say_none_and_others_must_be_in_it() {
    let world = world();
    let prod = || Some("prod".to_owned());
    world.node.apply_in(given(&pod("a", "i:1")), prod()).await.unwrap();
    assert!(world.manifest("applied/pod.prod.a.yaml").exists());
    let other = pod("b", "i:1").replace("name: b", "name: b, namespace: test");
    let Err(NodeError::Invalid(problems)) = world.node.apply_in(given(&other), prod()).await else {
        panic!("accepted");
    };
    assert_eq!((problems.len(), problems[0].line), (1, 1), "{problems:?}");
    assert!(problems[0].to_string().contains("give -n test"), "{}", problems[0]);
    assert!(matches!(world.node.objects_in(&given(&other), Some("prod")), Err(NodeError::Invalid(_))));
    let objects = world.node.objects_in(&given(&pod("a", "i:1")), Some("prod")).unwrap();
    assert_eq!(world.node.delete(objects).await.unwrap().deleted.len(), 1);
    assert!(!world.manifest("applied/pod.prod.a.yaml").exists());
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_namespace_is_none() {
    let world = world();
    let both = pod("a", "i:1") + "---\n" + &pod("b", "i:1").replace("name: b", "name: b, namespace: test");
    let report = world.node.apply_in(given(&both), Some(String::new())).await.unwrap();
    let places: Vec<_> = report.applied.iter().map(|it| (it.namespace.as_str(), it.name.as_str())).collect();
    assert_eq!(places, [("default", "a"), ("test", "b")]);
    let named = world.node.objects_in(&given(&both), Some("")).unwrap();
    assert_eq!(named.iter().map(ToString::to_string).collect::<Vec<_>>(), ["Pod default/a", "Pod test/b"]);
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_given_twice_is_refused_with_both_places() {
    let world = world();
    let file = |path: &str, text: String| ManifestFile { path: path.into(), content: text };
    let files = vec![
        file("/x/one.yaml", pod("a", "i:1") + "---\n" + &pod("b", "i:1")),
        file("/x/two.yaml", "# again\n".to_owned() + &pod("b", "i:2")),
    ];
    let told = "/x/two.yaml:2:1: error: metadata.name: Pod default/b is also in /x/one.yaml:9 \
                (rename one of the two, or leave it out)";
    let Err(NodeError::Invalid(problems)) = world.node.apply(files.clone()).await else {
        panic!("accepted");
    };
    assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [told]);
    assert!(!world.manifest("applied").exists(), "something was written");
    let plan = world.node.plan(PlanRequest { files: files.clone(), prune: false }).await.unwrap();
    assert!(plan.has_errors(), "{plan:?}");
    assert_eq!(plan.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [told]);
    // What is to go is clear all the same.
    assert_eq!(world.node.objects_in(&files, None).unwrap(), [named("a"), named("b")]);
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_invalid_is_not_written() {
    let world = world();
    let broken = pod("a", "i:1") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: []}\n";
    let Err(NodeError::Invalid(problems)) = world.node.apply(given(&broken)).await else {
        panic!("accepted");
    };
    assert!(problems[0].line > 0, "{problems:?}");
    assert!(!world.manifest("applied").exists());
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_would_be_done_and_does_nothing() {
    let world = world();
    world.write("a.yaml", &pod("a", "i:1"));
    world.write("b.yaml", &pod("b", "i:1"));
    world.until("both run", |w| w.running("a") && w.running("b")).await;
    world.until("nothing is left to do", |w| w.runtime.containers().len() == 2).await;
    let quiet = world.node.plan(PlanRequest::default()).await.unwrap();
    assert!(!quiet.has_changes(), "{quiet:?}");
    let verbs = world.runtime.verbs();

    let same = PlanRequest { files: given(&pod("a", "i:1")), prune: false };
    assert!(!world.node.plan(same).await.unwrap().has_changes());
    let other = PlanRequest { files: given(&(pod("a", "i:2") + "---\n" + &pod("new", "i:1"))), prune: false };
    let report = world.node.plan(other.clone()).await.unwrap();
    let changes: Vec<_> = report.pods.iter().map(|pod| (pod.name.as_str(), pod.change)).collect();
    assert_eq!(changes, [("a", PodChange::Update), ("new", PodChange::Create)]);
    assert!(report.pods.iter().all(|pod| !pod.steps.is_empty()), "{report:?}");
    let pruned = world.node.plan(PlanRequest { prune: true, ..other }).await.unwrap();
    let changes: Vec<_> = pruned.pods.iter().map(|pod| (pod.name.as_str(), pod.change)).collect();
    assert_eq!(changes, [("a", PodChange::Update), ("b", PodChange::Delete), ("new", PodChange::Create)]);
    assert_eq!(world.runtime.verbs(), verbs);
    assert!(!pruned.drained);
    world.node.drain(None).await.unwrap();
    let drained = world.node.plan(PlanRequest::default()).await.unwrap();
    assert!(drained.drained && !drained.has_changes(), "{drained:?}");
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_makes_new_containers_once() {
    let world = world();
    world.write("a.yaml", &pod("a", "i:1"));
    world.until("a runs", |w| w.running("a")).await;
    let name = NamespacedName::new("default", "a");
    let before = world.node.container(&name, None, false).unwrap().id;
    world.node.restart_pod(&name).await.unwrap();
    world
        .until("it is another", |w| {
            w.node.container(&name, None, false).is_ok_and(|handle| handle.running && handle.id != before)
        })
        .await;
    let after = world.node.container(&name, None, false).unwrap().id;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.node.container(&name, None, false).unwrap().id, after);
    let missing = world.node.restart_pod(&NamespacedName::new("default", "x")).await;
    assert!(matches!(missing, Err(NodeError::PodNotFound { .. })));
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_of_two_pods_that_want_one_host_port_is_blocked() {
    let world = world();
    let port = |name: &str| {
        pod(name, "i:1").replace("imagePullPolicy", "ports: [{containerPort: 80, hostPort: 8080}], imagePullPolicy")
    };
    world.write("a.yaml", &port("a"));
    world.until("a runs", |w| w.running("a")).await;
    world.write("b.yaml", &port("b"));
    world
        .until("b is refused", |w| {
            let pod = w.node.pod(&NamespacedName::new("default", "b"));
            pod.and_then(|pod| pod.status.clone()?.reason).as_deref() == Some("HostPortConflict")
        })
        .await;
    assert!(world.running("a"));
    fs::remove_file(world.manifest("a.yaml")).unwrap();
    world.until("b runs", |w| w.running("b")).await;
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_falls_far_behind_lists_again_and_goes_on() {
    let world = world();
    let mut lazy = world.node.watch_pods(None).unwrap();
    let all: Vec<String> = (0..150).map(|number| pod(&format!("p{number}"), "i:1")).collect();
    world.write("all.yaml", &all.join("---\n"));
    world.until("all run", |w| (0..150).all(|number| w.running(&format!("p{number}")))).await;
    assert!(matches!(lazy.next().await, Some(Err(WatchError::TooOld { .. }))), "what is kept of the past is bounded");
    let listed = world.node.pods();
    assert_eq!(listed.items.len(), 150);
    let mut watch = world.node.watch_pods(Some(listed.resource_version)).unwrap();
    fs::remove_file(world.manifest("all.yaml")).unwrap();
    assert!(!watch.next().await.unwrap().unwrap().is_empty());
    world.until("all are gone", |w| w.node.pods().items.is_empty()).await;
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_name_phases_and_sources() {
    let world = world();
    world.write("a.yaml", &pod("a", "i:1"));
    world.write("b.yaml", "{{{");
    world.until("a runs", |w| w.running("a")).await;
    world.until("the error is seen", |w| w.node.sources()[0].errors > 0).await;
    let text = world.node.metrics_text().await;
    assert!(text.contains("portreeve_pods{phase=\"Running\"} 1"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("portreeve_source_errors{") && line.ends_with(" 1")), "{text}");
    assert!(world.node.ready().is_ok());
    world.node.shutdown().await;
}
