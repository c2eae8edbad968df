//! The life of pods, from the file to the process.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use portreeve_node::{NamespacedName, PlanRequest};

use crate::world::{World, pod};

pub(crate) async fn a_dropped_manifest_runs_and_a_removed_one_leaves_nothing() {
    let world = World::new().await;
    // The first pod makes the network; the second is what a user waits for.
    world.write("warm.yaml", &pod("warm", "exec sleep 1000", ""));
    world.until("warm is ready", |w| w.is_ready("warm")).await;
    let began = Instant::now();
    world.write("web.yaml", &pod("web", "exec sleep 1000", ""));
    let mut watch = world.node().watch_pods(None).unwrap();
    while !world.is_ready("web") {
        watch.next().await.unwrap().unwrap();
    }
    println!("  file dropped to ready: {:?}", began.elapsed());
    let status = world.pod("web").unwrap().status.clone().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.pod_ip.is_some(), "{status:?}");
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0);
    world.remove("web.yaml");
    world.remove("warm.yaml");
    world.until("both are gone", |w| w.node().pods().items.is_empty()).await;
    world.until("nothing is left", |w| w.traces().is_empty()).await;
    let events = world.node().events().items;
    for reason in ["Created", "Started", "Killing"] {
        assert!(events.iter().any(|event| event.reason.as_deref() == Some(reason)), "{reason}");
    }
}

pub(crate) async fn volumes_and_environment_show_what_the_manifest_says_and_follow_edits() {
    let world = World::new().await;
    let config = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{a.conf: \"{value}\"}}\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{token: hush}}\n"
        )
    };
    world.write("config.yaml", &config("one"));
    let more = r#"
    env:
    - {name: FROM_MAP, valueFrom: {configMapKeyRef: {name: settings, key: a.conf}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: GREETING, value: "hello $(NAME)"}
    envFrom: [{secretRef: {name: keys}, prefix: K_}]
    volumeMounts:
    - {name: map, mountPath: /map}
    - {name: keys, mountPath: /keys}
    - {name: scratch, mountPath: /scratch}
    - {name: memory, mountPath: /memory}
    - {name: about, mountPath: /about}
    - {name: scratch, mountPath: /below, subPath: some/where}
  volumes:
  - {name: map, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: about, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
"#;
    world.write("web.yaml", &pod("web", "exec sleep 1000", more));
    world.until("web is ready", |w| w.is_ready("web")).await;
    let seen = world
        .sh("web", "cat /map/a.conf; echo; echo $FROM_MAP; echo $GREETING; echo $K_token; cat /keys/token; echo; cat /about/name; echo; touch /below/x; ls /scratch/some/where; grep -c ' /memory tmpfs' /proc/self/mounts; grep -c web /etc/hosts; hostname")
        .await;
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        ["one", "one", "hello web", "hush", "hush", "web", "x", "1", "1", "web"],
        "{seen}"
    );
    let id = world.container_id("web");
    world.write("config.yaml", &config("two"));
    for _ in 0..500 {
        if world.sh("web", "cat /map/a.conf").await == "two" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.sh("web", "cat /map/a.conf").await, "two");
    assert_eq!(world.container_id("web"), id, "a mounted ConfigMap is live");
    world.remove("web.yaml");
    world.until("web is gone", |w| w.node().pods().items.is_empty() && w.traces().is_empty()).await;
}

pub(crate) async fn a_new_agent_finds_the_same_containers_and_ready_does_not_flip() {
    let mut world = World::new().await;
    let probe = "\n    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}\n";
    world.write("web.yaml", &pod("web", "touch /tmp/ready; exec sleep 1000", probe));
    world.until("web is ready", |w| w.is_ready("web")).await;
    let (id, uid) = (world.container_id("web"), world.pod("web").unwrap().metadata.uid.clone());
    world.close().await;
    world.open().await;
    let mut watch = world.node().watch_pods(None).unwrap();
    if !world.is_ready("web") {
        let first = watch.next().await.unwrap().unwrap();
        let status = first[0].object.status.clone().unwrap();
        let ready = status.conditions.unwrap().iter().any(|c| c.type_ == "Ready" && c.status == "True");
        assert!(ready, "the first status of the new agent says ready");
    }
    assert_eq!(world.container_id("web"), id);
    assert_eq!(world.pod("web").unwrap().metadata.uid, uid);
    // A broken file over a running pod, also across agents.
    world.write("web.yaml", "{{{");
    world.until("the error is reported", |w| w.node().sources()[0].errors > 0).await;
    world.close().await;
    world.open().await;
    world.until("the error is reported again", |w| w.node().sources()[0].errors > 0).await;
    world.until("web is shown", |w| w.pod("web").is_some()).await;
    assert_eq!(world.container_id("web"), id);
}

pub(crate) async fn a_failing_liveness_probe_restarts_the_container() {
    let world = World::new().await;
    let probe = "\n    livenessProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1, failureThreshold: 2}\n";
    let text = pod("web", "touch /tmp/alive; exec sleep 1000", probe);
    world.write("web.yaml", &text.replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 0"));
    world.until("web is ready", |w| w.is_ready("web")).await;
    let id = world.container_id("web");
    // Ready says that the program runs, not that it has come as far as its file.
    world.sh("web", "until [ -e /tmp/alive ]; do sleep 0.01; done; rm /tmp/alive").await;
    world.until("it was restarted", |w| w.is_ready("web") && w.container_id("web") != id).await;
    let status = world.pod("web").unwrap().status.clone().unwrap();
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 1);
    let events = world.node().events().items;
    assert!(events.iter().any(|event| event.reason.as_deref() == Some("Unhealthy")));
}

pub(crate) async fn edits_cost_what_their_class_says() {
    let world = World::new().await;
    let text = pod("web", "exec sleep 1000", "");
    world.write("web.yaml", &text);
    world.until("web is ready", |w| w.is_ready("web")).await;
    let (id, name) = (world.container_id("web"), NamespacedName::new("default", "web"));
    let sandbox = world.node().sandbox(&name).unwrap();

    let labelled = text.replace("metadata: {name: web}", "metadata: {name: web, labels: {a: b}}");
    world.write("web.yaml", &labelled);
    world.until("the label is there", |w| w.pod("web").unwrap().metadata.labels.is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.container_id("web"), id, "a label is live");

    let edited = labelled.replace("exec sleep 1000", "exec sleep 1001");
    let request = PlanRequest { files: vec![world.file("web.yaml", &edited)], prune: false };
    let plan = world.node().plan(request).await.unwrap();
    assert!(plan.has_changes() && plan.pods[0].cost.as_deref().unwrap().starts_with("restart"), "{plan:?}");
    assert_eq!(world.container_id("web"), id, "a plan changes nothing");
    world.write("web.yaml", &edited);
    world.until("it was restarted", |w| w.is_ready("web") && w.container_id("web") != id).await;
    assert_eq!(world.node().sandbox(&name).unwrap(), sandbox, "a command restarts the container alone");

    world.write("web.yaml", &edited.replace("spec:\n", "spec:\n  hostname: other\n"));
    world
        .until("it was recreated", |w| w.node().sandbox(&name).is_ok_and(|new| new != sandbox) && w.is_ready("web"))
        .await;
    assert_eq!(world.sh("web", "hostname").await, "other");
}

pub(crate) async fn a_job_runs_once_and_its_log_stays() {
    let mut world = World::new().await;
    let text = pod("job", "echo done", "").replace("restartPolicy: Always", "restartPolicy: Never");
    world.write("job.yaml", &text);
    let phase = |w: &World| w.pod("job").and_then(|pod| pod.status.clone()?.phase).unwrap_or_default();
    world.until("it succeeded", |w| phase(w) == "Succeeded").await;
    let name = NamespacedName::new("default", "job");
    let log = || std::fs::read_to_string(world.node().log_path(&name, None, false).unwrap()).unwrap();
    assert!(log().ends_with("stdout F done\n"), "{}", log());
    world.close().await;
    world.open().await;
    world.until("it is still ended", |w| phase(w) == "Succeeded").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(phase(&world), "Succeeded");
    let log = std::fs::read_to_string(world.node().log_path(&name, None, false).unwrap()).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
}

pub(crate) async fn a_failed_container_that_left_no_message_says_the_end_of_its_log() {
    let world = World::new().await;
    let job = |name: &str, script: &str, policy: &str| {
        let text = pod(name, script, &format!("\n    terminationMessagePolicy: {policy}"));
        world.write(&format!("{name}.yaml"), &text.replace("restartPolicy: Always", "restartPolicy: Never"));
    };
    let cases = [
        ("quiet", "echo one; echo two >&2; exit 3", "FallbackToLogsOnError", Some("one\ntwo\n")),
        ("wrote", "echo no; echo -n why > /dev/termination-log; exit 3", "FallbackToLogsOnError", Some("why")),
        ("fine", "echo done", "FallbackToLogsOnError", None),
        ("file", "echo no; exit 3", "File", None),
    ];
    for (name, script, policy, _) in cases {
        job(name, script, policy);
    }
    let ended = |w: &World, name: &str| {
        let statuses = w.pod(name)?.status.clone()?.container_statuses?;
        statuses.first()?.state.clone()?.terminated
    };
    for (name, _, _, expected) in cases {
        world.until(name, |w| ended(w, name).is_some()).await;
        assert_eq!(ended(&world, name).unwrap().message.as_deref(), expected, "{name}");
    }
}

pub(crate) async fn a_drain_stops_everything_and_keeps_what_it_came_to() {
    let mut world = World::new().await;
    world.write("a.yaml", &pod("a", "echo said; exec sleep 1000", ""));
    world.write("b.yaml", &pod("b", "exec sleep 1000", ""));
    world.until("both are ready", |w| w.is_ready("a") && w.is_ready("b")).await;
    let uid = world.pod("a").unwrap().metadata.uid.clone();
    let stopped = world.node().drain(Some(Duration::from_secs(1))).await.unwrap();
    assert_eq!(stopped.len(), 2);
    assert!(world.node().is_drained());
    let traces = world.traces();
    let processes = |path: &String| fs::read_to_string(Path::new(path).join("cgroup.procs")).unwrap_or_default();
    assert!(traces.iter().all(|path| processes(path).is_empty()), "{traces:?}");
    assert!(traces.iter().all(|path| path.starts_with('/')), "nothing is mounted: {traces:?}");
    let status = world.pod("a").unwrap().status.clone().unwrap();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Drained")));
    let ended = status.container_statuses.unwrap().remove(0).state.unwrap().terminated.unwrap();
    assert_ne!(ended.exit_code, 0);
    let log = world.node().log_path(&NamespacedName::new("default", "a"), None, false).unwrap();
    assert!(fs::read_to_string(log).unwrap().contains("said"));
    world.remove("b.yaml");
    world.until("b is gone", |w| w.pod("b").is_none()).await;
    world.close().await;
    world.open().await;
    world.until("a is ready again", |w| w.is_ready("a")).await;
    assert_eq!(world.pod("a").unwrap().metadata.uid, uid);
    world.remove("a.yaml");
    world.until("nothing is left", |w| w.traces().is_empty()).await;
}

pub(crate) async fn qos_levels_have_the_weights_that_their_pods_ask_for() {
    let world = World::new().await;
    let asks = "\n    resources: {requests: {cpu: 500m}}\n";
    world.write("burst.yaml", &pod("burst", "exec sleep 1000", asks));
    world.write("best.yaml", &pod("best", "exec sleep 1000", ""));
    world.until("both are ready", |w| w.is_ready("burst") && w.is_ready("best")).await;
    // The same in the words of version 1 and version 2 of cgroups.
    for (level, found) in [("burstable", ["512", "59"]), ("besteffort", ["2", "1"])] {
        world.until("the level weighs that", |w| found.iter().any(|value| w.cpu_weight(level) == *value)).await;
    }
}

pub(crate) async fn a_missing_sub_path_can_be_used_by_whoever_may_use_the_volume() {
    let world = World::new().await;
    let more = r#"
    securityContext: {runAsUser: 1000}
    volumeMounts: [{name: v, mountPath: rel/data, subPath: some/data}]
  volumes: [{name: v, emptyDir: {}}]
"#;
    world.write("web.yaml", &pod("web", "touch /rel/data/x && exec sleep 1000", more));
    world.until("web is ready", |w| w.is_ready("web")).await;
    // Ready says that the program runs, not that it has come as far as its file.
    let line = "until [ -e /rel/data/x ]; do sleep 0.01; done; ls /rel/data; touch /rel/data/y && echo yes";
    assert_eq!(world.sh("web", line).await, "x\nyes");
}

/// A firewall of somebody else in the test's own network; gone when it is dropped.
struct Firewall;

impl Drop for Firewall {
    fn drop(&mut self) {
        let _gone = std::process::Command::new("nft").args(["delete", "table", "ip", "firewall"]).status();
    }
}

pub(crate) async fn a_firewall_that_drops_forwarded_packets_is_named_in_an_event_of_the_pod() {
    let world = World::new().await;
    let _firewall = Firewall;
    for rule in [
        ["add", "table", "ip", "firewall", ""],
        ["add", "chain", "ip", "firewall", "forward { type filter hook forward priority 5; policy drop; }"],
    ] {
        match std::process::Command::new("nft").args(rule.iter().filter(|word| !word.is_empty())).status() {
            Ok(status) if status.success() => {}
            other => {
                eprintln!("SKIPPED: nft makes no firewall here: {other:?}");
                return;
            }
        }
    }
    world.write("web.yaml", &pod("web", "exec sleep 1000", ""));
    world.until("it is ready", |w| w.is_ready("web")).await;
    let events = world.node().events().items;
    let blocked: Vec<_> = events.iter().filter(|one| one.reason.as_deref() == Some("ForwardingBlocked")).collect();
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    let (event, message) = (&blocked[0], blocked[0].message.clone().unwrap());
    assert_eq!((event.type_.as_deref(), event.involved_object.name.as_deref()), (Some("Warning"), Some("web")));
    assert!(message.contains("nftables chain ip firewall forward") && message.contains(world.bridge()), "{message}");
}
