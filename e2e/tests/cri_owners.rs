//! Pods of a kubelet and pods of manifests beside each other, and agents that come and go.

use std::path::PathBuf;

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, skipped_without_root, wait_until};
use tonic::Code;

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

fn logs(world: &World) -> PathBuf {
    world.path("cri-logs")
}

/// Everything of CRI is gone, so that the harness finds nothing of it.
fn clear(cri: &Cri) {
    for sandbox in cri.sandboxes(v1::PodSandboxFilter::default()) {
        cri.remove_sandbox(&sandbox.id).unwrap();
    }
}

/// Shims and processes of containers.
fn left(agent: &Agent<'_>) -> Vec<String> {
    let census = agent.census();
    census.processes.into_iter().filter(|process| process.contains(" shim ")).chain(census.contained).collect()
}

#[test]
fn pods_outlive_the_agent_and_are_found_again() {
    if skipped_without_root("cri_owners") {
        return;
    }
    let world = World::new("cri-restart");
    let mut agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let config = pod("a", &logs(&world));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let stays =
        cri.create(&sandbox, shell("stays", BUSYBOX, "while :; do echo tick; sleep 0.1; done"), &config).unwrap();
    cri.start(&stays).unwrap();
    let go = world.path("share");
    let mut ends = shell("ends", BUSYBOX, "while [ ! -e /share/go ]; do sleep 0.05; done; exit 9");
    ends.mounts = vec![v1::Mount {
        container_path: "/share".to_owned(),
        host_path: go.display().to_string(),
        ..v1::Mount::default()
    }];
    let ends = cri.create(&sandbox, ends, &config).unwrap();
    cri.start(&ends).unwrap();
    let waits = cri.create(&sandbox, shell("waits", BUSYBOX, "sleep 1000"), &config).unwrap();
    let before = (cri.sandbox(&sandbox).unwrap(), cri.container(&stays).unwrap());

    agent.kill();
    std::fs::write(go.join("go"), "").unwrap();
    agent.launch();
    let cri = connect(&agent);
    assert_eq!((cri.sandbox(&sandbox).unwrap(), cri.container(&stays).unwrap()), before);
    let ended = cri.wait_exited(&ends);
    assert_eq!(ended.exit_code, 9, "{ended:?}");
    cri.start(&waits).unwrap();
    assert_eq!(cri.inside(&stays, "echo here"), "here");
    let log = logs(&world).join("a/stays.log");
    let lines = std::fs::read_to_string(&log).unwrap().lines().count();
    wait_until("the log goes on", 10, || {
        let now = std::fs::read_to_string(&log).unwrap().lines().count();
        if now > lines { Ok(()) } else { Err(now.to_string()) }
    });

    // Between any two calls.
    agent.kill();
    agent.launch();
    let cri = connect(&agent);
    cri.stop(&stays, 0).unwrap();
    agent.terminate();
    agent.launch();
    let cri = connect(&agent);
    assert_eq!(cri.container(&stays).unwrap().exit_code, 137);
    cri.stop_sandbox(&sandbox).unwrap();
    agent.kill();
    agent.launch();
    let cri = connect(&agent);
    assert_eq!(cri.sandbox(&sandbox).unwrap().state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(cri.containers(v1::ContainerFilter::default()).len(), 3);
    cri.remove_sandbox(&sandbox).unwrap();
    assert_eq!(cri.containers(v1::ContainerFilter::default()).len(), 0);
    assert_eq!(left(&agent), Vec::<String>::new());
}

#[test]
fn pods_of_a_kubelet_and_of_manifests_never_mix() {
    if skipped_without_root("cri_owners") {
        return;
    }
    let world = World::new("cri-owners");
    let mut agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let manifest = |word: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: own}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: {BUSYBOX}, command: [sleep, '1000'], env: [{{name: WORD, value: {word}}}]}}
"
        )
    };
    agent.drop_manifest("own.yaml", &manifest("one"));
    let own = agent.wait_ready("own");
    // The very name of the other.
    let mut config = pod("own", &logs(&world));
    config.metadata.as_mut().unwrap().uid = own["metadata"]["uid"].as_str().unwrap().to_owned();
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&id).unwrap();
    let seen = |cri: &Cri| {
        let sandboxes = cri.sandboxes(v1::PodSandboxFilter::default());
        let containers = cri.containers(v1::ContainerFilter::default());
        let ids = |all: Vec<String>| all.join(" ");
        let sandboxes = ids(sandboxes.into_iter().map(|sandbox| sandbox.id).collect());
        (sandboxes, ids(containers.into_iter().map(|container| container.id).collect()))
    };
    assert_eq!(seen(&cri), (sandbox.clone(), id.clone()));
    assert_eq!(agent.pods().len(), 1);
    let text = own["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let foreign = text.rsplit('/').next().unwrap();
    assert_eq!(code(cri.container(foreign)), Code::NotFound);
    assert_eq!(code(cri.exec(foreign, &["true"], 5)), Code::NotFound);
    cri.stop(foreign, 0).unwrap();
    cri.remove(foreign).unwrap();
    agent.drop_manifest("own.yaml", &manifest("two"));
    agent.wait_pod("own", "was restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1 && pod["status"]["phase"] == "Running"
    });
    agent.kill();
    agent.launch();
    let cri = connect(&agent);
    agent.remove_manifest("own.yaml");
    agent.wait_gone("own");
    assert_eq!(seen(&cri), (sandbox, id.clone()));
    assert_eq!(cri.container(&id).unwrap().state(), v1::ContainerState::ContainerRunning);
    clear(&cri);
}

#[test]
fn with_cri_alone_no_manifest_is_read() {
    if skipped_without_root("cri_owners") {
        return;
    }
    let world = World::new("cri-only");
    let mut agent = Agent::with_busybox(&world);
    let manifest = |name: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '1000']}}]
"
        )
    };
    agent.drop_manifest("before.yaml", &manifest("before"));
    agent.wait_ready("before");
    agent.terminate();
    agent.use_arguments(&["--cri-only"]);
    agent.remove_manifest("before.yaml");
    agent.drop_manifest("after.yaml", &manifest("after"));
    agent.launch();
    let cri = connect(&agent);
    let config = pod("a", &logs(&world));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let names =
        || agent.pods().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(), ["before"], "what runs goes on, and nothing comes");
    let file = world.path("more.yaml");
    std::fs::write(&file, manifest("more")).unwrap();
    let refused = agent.client(&["apply", "-f", file.to_str().unwrap()]);
    assert!(refused.code != 0 && refused.stderr.contains("--cri-only"), "{refused:?}");
    cri.remove_sandbox(&sandbox).unwrap();
    agent.terminate();
    agent.use_arguments(&[]);
    agent.launch();
    agent.wait_ready("after");
    agent.wait_gone("before");
    agent.remove_manifest("after.yaml");
    agent.wait_gone("after");
}
