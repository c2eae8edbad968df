//! From a file in a directory to a running pod, and back.

use std::time::{Duration, Instant};

use portreeve_e2e::{Agent, BUSYBOX, World, skipped_without_host_ports, skipped_without_root, wait_until};

#[test]
fn a_dropped_pod_serves_its_host_port_and_goes_with_its_file() {
    if skipped_without_root("lifecycle") {
        return;
    }
    let world = World::new("serve");
    // What the kernel cannot publish is left out; all else holds on every kernel.
    let published = !skipped_without_host_ports(&world, "the host port of the served pod");
    let host_port = if published { ", hostPort: 18080" } else { "" };
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest(
        "web.yaml",
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: httpd
    image: {BUSYBOX}
    command: [httpd, -f, -p, '8080', -h, /www]
    ports: [{{containerPort: 8080{host_port}}}]
    readinessProbe: {{httpGet: {{port: 8080, path: /}}, periodSeconds: 1}}
"
        ),
    );
    let pod = agent.wait_ready("web");
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("portreeve://"));
    let ip = status["podIP"].as_str().expect("a pod address");
    if published {
        assert_eq!(world.fetch("http://127.0.0.1:18080/").unwrap(), "a page from busybox\n");
    }
    assert_eq!(world.fetch(&format!("http://{ip}:8080/")).unwrap(), "a page from busybox\n");

    let table = agent.client(&["get", "pods"]).ok();
    assert!(table.starts_with("NAME"), "{table}");
    assert!(table.contains("web") && table.contains("1/1") && table.contains("Running"), "{table}");
    let out = agent.client(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((out.code, out.stdout.as_str(), out.stderr.lines().next()), (3, "out\n", Some("err")));

    agent.remove_manifest("web.yaml");
    agent.wait_gone("web");
    assert!(world.fetch("http://127.0.0.1:18080/").is_err(), "the published port answers after its pod is gone");
}

#[test]
fn a_removed_file_ends_its_pod_within_its_grace_period() {
    if skipped_without_root("lifecycle") {
        return;
    }
    let world = World::new("graceful");
    let agent = Agent::with_busybox(&world);
    let told = world.path("told");
    std::fs::create_dir(&told).unwrap();
    let pod = |name: &str, grace: u32, command: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: {grace}\n  \
             volumes: [{{name: told, hostPath: {{path: '{told}'}}}}]\n  containers:\n  - {{name: main, image: '{BUSYBOX}', \
             command: [sh, -c, '{command}'], volumeMounts: [{{name: told, mountPath: /told}}]}}\n",
            told = told.display()
        )
    };
    // One has enough time to say goodbye, the other never would end by itself.
    agent.drop_manifest(
        "polite.yaml",
        &pod("polite", 600, "trap \"sleep 1; echo bye >/told/polite; exit 0\" TERM; while true; do sleep 0.1; done"),
    );
    agent.drop_manifest(
        "stubborn.yaml",
        &pod("stubborn", 2, "trap \"echo asked >/told/stubborn\" TERM; while true; do sleep 0.1; done"),
    );
    for name in ["polite", "stubborn"] {
        agent.wait_ready(name);
    }
    let begun = Instant::now();
    for name in ["polite", "stubborn"] {
        agent.remove_manifest(&format!("{name}.yaml"));
    }
    agent.wait_gone("polite");
    agent.wait_gone("stubborn");
    assert!(begun.elapsed() >= Duration::from_secs(2), "a pod was killed before its grace period was over");
    assert_eq!(std::fs::read_to_string(told.join("polite")).unwrap(), "bye\n");
    assert_eq!(std::fs::read_to_string(told.join("stubborn")).unwrap(), "asked\n", "SIGTERM comes first");
}

#[test]
fn init_containers_run_in_order_and_a_finished_pod_stays_readable() {
    if skipped_without_root("lifecycle") {
        return;
    }
    let world = World::new("init");
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest(
        "job.yaml",
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: job}}
spec:
  restartPolicy: Never
  volumes: [{{name: shared, emptyDir: {{}}}}]
  initContainers:
  - {{name: first, image: '{BUSYBOX}', command: [sh, -c, 'echo first > /shared/order'], volumeMounts: [{{name: shared, mountPath: /shared}}]}}
  - {{name: second, image: '{BUSYBOX}', command: [sh, -c, 'echo second >> /shared/order'], volumeMounts: [{{name: shared, mountPath: /shared}}]}}
  containers:
  - {{name: main, image: '{BUSYBOX}', command: [sh, -c, 'cat /shared/order; exit 0'], volumeMounts: [{{name: shared, mountPath: /shared}}]}}
"
        ),
    );
    let done = agent.wait_pod("job", "succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    let uid = done["metadata"]["uid"].clone();
    assert_eq!(agent.client(&["logs", "job", "-c", "main"]).ok(), "first\nsecond\n");

    // What has finished is not run again, whatever happens to the agent.
    agent.kill();
    agent.launch();
    let after = agent.wait_pod("job", "is still there", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(after["metadata"]["uid"], uid);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(agent.client(&["logs", "job"]).ok(), "first\nsecond\n");
}

#[test]
fn containers_outlive_the_agent_and_keep_their_ids() {
    if skipped_without_root("lifecycle") {
        return;
    }
    let world = World::new("outlive");
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &sleeper("a"));
    let before = agent.wait_ready("a");
    agent.terminate();
    assert!(!agent.census().contained.is_empty(), "SIGTERM to the agent must leave containers running");
    agent.launch();
    let after = agent.wait_ready("a");
    assert_eq!(
        before["status"]["containerStatuses"][0]["containerID"],
        after["status"]["containerStatuses"][0]["containerID"]
    );
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn fifty_pods_at_once_all_run_once() {
    if skipped_without_root("lifecycle") {
        return;
    }
    let world = World::new("fifty");
    let agent = Agent::with_busybox(&world);
    let begun = Instant::now();
    for number in 0..50 {
        agent.drop_manifest(&format!("p{number}.yaml"), &sleeper(&format!("p{number}")));
    }
    wait_until("50 pods are ready", 120, || {
        let ready = agent.pods().iter().filter(|pod| portreeve_e2e::condition(pod, "Ready") == Some("True")).count();
        if ready == 50 { Ok(()) } else { Err(format!("{ready} are")) }
    });
    eprintln!("50 pods ready after {:?}", begun.elapsed());
    for pod in agent.pods() {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["metadata"]["name"]);
    }
    let census = agent.census();
    // 50 containers and 50 shims, nothing twice.
    assert_eq!(census.files.iter().filter(|path| path.to_string_lossy().contains("snapshots")).count(), 50);
    assert_eq!(census.files.iter().filter(|path| path.to_string_lossy().contains("sandboxes")).count(), 50);
}

fn sleeper(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', command: [sleep, '100000']}}\n"
    )
}
