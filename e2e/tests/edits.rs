//! What an edit costs: each row of the cost table, on a running pod.

use std::collections::BTreeMap;

use portreeve_e2e::{
    Agent, BUSYBOX, Image, World, condition, preload_busybox, publishes_host_ports, skipped, skipped_without_root,
    wait_until,
};
use serde_json::{Value, json};

/// A pod of two containers, as JSON, which every test edits.
fn base() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "p", "labels": { "tier": "one" } },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "config", "configMap": { "name": "c" } }],
            "containers": [
                { "name": "edited", "image": BUSYBOX, "command": ["sleep", "1000"],
                  "resources": { "requests": { "memory": "16Mi" }, "limits": { "memory": "32Mi", "cpu": "500m" } },
                  "volumeMounts": [{ "name": "config", "mountPath": "/config" }],
                  "env": [{ "name": "FROM_CONFIG", "valueFrom": { "configMapKeyRef": { "name": "c", "key": "word" } } }] },
                { "name": "bystander", "image": BUSYBOX, "command": ["sleep", "1000"] },
            ],
        },
    })
}

fn config(word: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "word": word } })
}

struct Ids {
    edited: Value,
    bystander: Value,
    ip: Value,
    uid: Value,
}

fn ids(agent: &Agent<'_>) -> Ids {
    let pod = agent.pod("p").expect("the pod is there");
    let id = |name: &str| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.iter().find(|c| c["name"] == name).map_or(Value::Null, |c| c["containerID"].clone())
    };
    Ids {
        edited: id("edited"),
        bystander: id("bystander"),
        ip: pod["status"]["podIP"].clone(),
        uid: pod["metadata"]["uid"].clone(),
    }
}

fn started(world: &World) -> Agent<'_> {
    let agent = Agent::with_busybox(world);
    agent.drop_manifest("c.yaml", &config("hello").to_string());
    agent.drop_manifest("p.yaml", &base().to_string());
    agent.wait_ready("p");
    agent
}

/// Lands the edit and waits until the agent has nothing left to do.
fn land(agent: &Agent<'_>, pod: &Value, seen: impl Fn(&Value) -> bool) {
    agent.drop_manifest("p.yaml", &pod.to_string());
    wait_until("the edit has landed", 60, || {
        let pod = agent.pod("p").unwrap_or_default();
        let quiet = agent.client(&["plan"]);
        if seen(&pod) && condition(&pod, "Ready") == Some("True") && quiet.code == 0 {
            Ok(())
        } else {
            Err(format!("{}\n{}", pod["status"], quiet.stdout))
        }
    });
}

#[test]
fn live_edits_restart_nothing() {
    if skipped_without_root("edits") {
        return;
    }
    let world = World::new("live");
    let agent = started(&world);
    let before = ids(&agent);
    let mut pod = base();
    pod["metadata"]["labels"]["tier"] = json!("two");
    pod["metadata"]["annotations"] = json!({ "note": "edited" });
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1 });
    land(&agent, &pod, |pod| pod["metadata"]["labels"]["tier"] == "two");
    let after = ids(&agent);
    assert_eq!(
        (before.edited, before.bystander, before.ip, before.uid),
        (after.edited, after.bystander, after.ip, after.uid)
    );
}

#[test]
fn a_mounted_config_map_changes_in_place_and_env_goes_stale() {
    if skipped_without_root("edits") {
        return;
    }
    let world = World::new("config");
    let agent = started(&world);
    let before = ids(&agent);
    agent.drop_manifest("c.yaml", &config("changed").to_string());
    wait_until("the mounted file changed", 30, || {
        let out = agent.client(&["exec", "p", "-c", "edited", "--", "cat", "/config/word"]);
        if out.stdout.trim() == "changed" { Ok(()) } else { Err(out.stdout + &out.stderr) }
    });
    let env = agent.client(&["exec", "p", "-c", "edited", "--", "sh", "-c", "echo $FROM_CONFIG"]).ok();
    assert_eq!(env.trim(), "hello");
    assert_eq!(before.edited, ids(&agent).edited);

    // With the annotation the container that uses it restarts, and only that one.
    let mut pod = base();
    pod["metadata"]["annotations"] = json!({ "portreeve.dev/restart-on-change": "true" });
    agent.drop_manifest("p.yaml", &pod.to_string());
    wait_until("the container has the new value", 60, || {
        let out = agent.client(&["exec", "p", "-c", "edited", "--", "sh", "-c", "echo $FROM_CONFIG"]);
        if out.stdout.trim() == "changed" { Ok(()) } else { Err(out.stdout + &out.stderr) }
    });
    assert_eq!(before.bystander, ids(&agent).bystander);
}

#[test]
fn a_mounted_secret_changes_in_place() {
    if skipped_without_root("edits") {
        return;
    }
    let world = World::new("secret");
    let agent = Agent::with_busybox(&world);
    let secret = |word: &str| {
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "word": word } })
            .to_string()
    };
    let mut pod = base();
    pod["spec"]["volumes"] = json!([{ "name": "config", "secret": { "secretName": "s", "defaultMode": 0o400 } }]);
    pod["spec"]["containers"][0]["env"] = json!([
        { "name": "FROM_SECRET", "valueFrom": { "secretKeyRef": { "name": "s", "key": "word" } } },
    ]);
    agent.drop_manifest("s.yaml", &secret("hidden"));
    agent.drop_manifest("p.yaml", &pod.to_string());
    agent.wait_ready("p");
    let before = ids(&agent);
    let inside = |line: &str| agent.client(&["exec", "p", "-c", "edited", "--", "sh", "-c", line]);
    assert_eq!(
        inside("cat /config/word; echo; echo $FROM_SECRET; stat -Lc %a /config/word").ok(),
        "hidden\nhidden\n400\n"
    );
    agent.drop_manifest("s.yaml", &secret("revealed"));
    wait_until("the mounted file changed", 30, || {
        let out = inside("cat /config/word");
        if out.stdout == "revealed" { Ok(()) } else { Err(out.stdout + &out.stderr) }
    });
    assert_eq!(inside("echo $FROM_SECRET; stat -Lc %a /config/word").ok(), "hidden\n400\n");
    let after = ids(&agent);
    assert_eq!(
        (before.edited, before.bystander, before.ip, before.uid),
        (after.edited, after.bystander, after.ip, after.uid)
    );
    let restarts = agent.pod("p").unwrap()["status"]["containerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["restartCount"].clone())
        .collect::<Vec<_>>();
    assert_eq!(restarts, [0, 0]);
}

/// What the cgroup of a container says in the first of `files` that is there.
fn in_cgroup(agent: &Agent<'_>, container: &Value, files: [&str; 2]) -> String {
    let id = container.as_str().unwrap().trim_start_matches("portreeve://").to_owned();
    let census = agent.census();
    let mut all = census.cgroups.iter().filter(|cgroup| cgroup.ends_with(&id));
    let text = all.find_map(|cgroup| files.iter().find_map(|file| std::fs::read_to_string(cgroup.join(file)).ok()));
    text.unwrap_or_else(|| panic!("no cgroup of {id} has one of {files:?}")).trim().to_owned()
}

#[test]
fn cpu_and_memory_change_in_place() {
    if skipped_without_root("edits") {
        return;
    }
    let world = World::new("inplace");
    let agent = started(&world);
    let before = ids(&agent);
    let mut pod = base();
    pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("48Mi");
    pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("250m");
    let plan_file = world.path("edit.json");
    std::fs::write(&plan_file, pod.to_string()).unwrap();
    let plan = agent.client(&["plan", &plan_file.to_string_lossy()]);
    assert_eq!(plan.code, 2, "{}{}", plan.stdout, plan.stderr);
    assert!(plan.stdout.contains("in-place"), "{}", plan.stdout);
    land(&agent, &pod, |pod| pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "48Mi");
    let limit = in_cgroup(&agent, &before.edited, ["memory.limit_in_bytes", "memory.max"]);
    assert_eq!(limit, (48u64 << 20).to_string());
    let quota = in_cgroup(&agent, &before.edited, ["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!(quota.split(' ').next(), Some("25000"), "a quarter of 100 ms");
    let after = ids(&agent);
    assert_eq!((before.edited, before.bystander), (after.edited, after.bystander));
}

#[test]
fn a_changed_command_restarts_that_container_alone() {
    if skipped_without_root("edits") {
        return;
    }
    let world = World::new("restart");
    let agent = started(&world);
    let before = ids(&agent);
    let mut pod = base();
    pod["spec"]["containers"][0]["command"] = json!(["sleep", "2000"]);
    let old = before.edited.clone();
    land(&agent, &pod, |pod| {
        pod["status"]["containerStatuses"].as_array().is_some_and(|all| all.iter().all(|c| c["containerID"] != old))
    });
    let after = ids(&agent);
    assert_ne!(before.edited, after.edited);
    assert_eq!((before.bystander, before.ip, before.uid), (after.bystander, after.ip, after.uid));
}

#[test]
fn a_changed_hostname_recreates_the_pod_under_its_uid() {
    if skipped_without_root("edits") {
        return;
    }
    let world = World::new("recreate");
    let agent = started(&world);
    let before = ids(&agent);
    let mut pod = base();
    pod["spec"]["hostname"] = json!("another");
    let old = before.bystander.clone();
    land(&agent, &pod, |pod| {
        pod["status"]["containerStatuses"].as_array().is_some_and(|all| all.iter().all(|c| c["containerID"] != old))
    });
    let after = ids(&agent);
    assert_ne!(before.edited, after.edited);
    assert_ne!(before.bystander, after.bystander);
    assert_eq!(before.uid, after.uid);
    assert_eq!(agent.client(&["exec", "p", "-c", "edited", "--", "hostname"]).ok().trim(), "another");
}

#[test]
fn a_change_of_the_qos_class_makes_the_pod_anew() {
    if skipped_without_root("edits") {
        return;
    }
    let world = World::new("qos");
    let agent = started(&world);
    let before = ids(&agent);
    let sandboxes = agent.census().entries("run/sandboxes");
    let uid = before.uid.as_str().unwrap().to_owned();
    let lies_in = |class: &str| {
        let census = agent.census();
        census.cgroups.iter().any(|cgroup| cgroup.ends_with(format!("{class}/pod{uid}")))
    };
    assert_eq!(agent.pod("p").unwrap()["status"]["qosClass"], "Burstable");
    assert!(lies_in("burstable") && !lies_in("besteffort"));
    let mut pod = base();
    pod["spec"]["containers"][0].as_object_mut().unwrap().remove("resources");
    let plan_file = world.path("edit.json");
    std::fs::write(&plan_file, pod.to_string()).unwrap();
    let plan = agent.client(&["plan", &plan_file.to_string_lossy()]);
    assert_eq!(plan.code, 2, "{}{}", plan.stdout, plan.stderr);
    for part in ["Pod default/p differs [recreate]", "status.qosClass [recreate]: Burstable -> BestEffort"] {
        assert!(plan.stdout.contains(part), "{part} is missing: {}", plan.stdout);
    }
    land(&agent, &pod, |pod| pod["status"]["qosClass"] == "BestEffort");
    let after = ids(&agent);
    assert_ne!(before.edited, after.edited);
    assert_ne!(before.bystander, after.bystander, "the other container goes with its sandbox");
    assert_eq!(before.uid, after.uid);
    wait_until("one sandbox is there, another one", 10, || {
        let now = agent.census().entries("run/sandboxes");
        if now.len() == 1 && now.is_disjoint(&sandboxes) && lies_in("besteffort") && !lies_in("burstable") {
            Ok(())
        } else {
            Err(format!("{sandboxes:?} were before, now {now:?}"))
        }
    });
}

/// What becomes of the containers by an edit.
enum Becomes {
    /// Those named are other ones, or were not there before, or are not there any more; the rest stay.
    Restart(&'static [&'static str]),
    /// All are other ones.
    Recreate,
}

/// The ids of the containers that the pod has, by name, and its uid.
fn all_ids(agent: &Agent<'_>) -> (BTreeMap<String, Value>, Value) {
    let pod = agent.pod("p").expect("the pod is there");
    let all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let named = all.map(|c| (c["name"].as_str().unwrap().to_owned(), c["containerID"].clone())).collect();
    (named, pod["metadata"]["uid"].clone())
}

#[test]
fn every_field_costs_on_a_running_pod_what_plan_says() {
    use Becomes::{Recreate, Restart};
    if skipped_without_root("edits") {
        return;
    }
    const OTHER: &str = "test.local/busybox:2";
    const EDITED: Becomes = Restart(&["edited"]);
    let world = World::new("costs");
    preload_busybox(&world);
    let _other = Image::busybox_with(&world.path("agent/images"), OTHER, &[("www/two", "2")]);
    let agent = Agent::start(&world);
    agent.drop_manifest("c.yaml", &config("hello").to_string());
    let mut pod = base();
    agent.drop_manifest("p.yaml", &pod.to_string());
    agent.wait_ready("p");

    let at = "/spec/containers/0";
    let third = json!({ "name": "third", "image": BUSYBOX, "command": ["sleep", "1000"] });
    let init = json!([{ "name": "init", "image": BUSYBOX, "command": ["true"] }]);
    let mounts = json!([{ "name": "config", "mountPath": "/elsewhere" }]);
    let volumes = json!([{ "name": "config", "configMap": { "name": "c", "defaultMode": 0o400 } }]);
    let ports = json!([{ "containerPort": 18080, "hostPort": 18080 }]);
    // Each on top of those before it.
    let rows = [
        (format!("{at}/image"), json!(OTHER), EDITED),
        (format!("{at}/args"), json!(["2000"]), EDITED),
        (format!("{at}/env/0"), json!({ "name": "OTHER", "value": "x" }), EDITED),
        (format!("{at}/workingDir"), json!("/tmp"), EDITED),
        (format!("{at}/volumeMounts"), mounts, EDITED),
        (format!("{at}/securityContext"), json!({ "readOnlyRootFilesystem": true }), EDITED),
        ("/spec/containers/2".to_owned(), third, Restart(&["third"])),
        ("/spec/containers/2".to_owned(), Value::Null, Restart(&["third"])),
        ("/spec/securityContext".to_owned(), json!({ "supplementalGroups": [1000] }), Recreate),
        ("/spec/shareProcessNamespace".to_owned(), json!(true), Recreate),
        ("/spec/volumes".to_owned(), volumes, Recreate),
        ("/spec/initContainers".to_owned(), init, Recreate),
        (format!("{at}/ports"), ports, Recreate),
        ("/spec/hostNetwork".to_owned(), json!(true), Recreate),
    ];
    for (number, (pointer, value, becomes)) in rows.into_iter().enumerate() {
        if pointer.ends_with("ports") && !publishes_host_ports(&world) {
            skipped("edits: hostPort", "the nftables of this kernel cannot publish host ports");
            continue;
        }
        let before = all_ids(&agent);
        set(&mut pod, &pointer, value);
        // Costs nothing, and shows which edit the agent has seen.
        let row = json!(number.to_string());
        pod["metadata"]["labels"]["row"] = row.clone();
        let plan_file = world.path("edit.json");
        std::fs::write(&plan_file, pod.to_string()).unwrap();
        let plan = agent.client(&["plan", &plan_file.to_string_lossy()]).stdout;
        let word = if matches!(becomes, Recreate) { "recreate" } else { "restart" };
        assert!(plan.contains(&format!("Pod default/p differs [{word}")), "{pointer}: {plan}");
        land(&agent, &pod, |pod| pod["metadata"]["labels"]["row"] == row);
        let after = all_ids(&agent);
        assert_eq!(before.1, after.1, "{pointer}: another uid");
        let names = before.0.keys().chain(after.0.keys());
        for name in names {
            let stays = before.0.get(name) == after.0.get(name);
            let should = matches!(&becomes, Restart(others) if !others.contains(&name.as_str()));
            assert_eq!(stays, should, "{pointer}: container {name}: {before:?} -> {after:?}");
        }
    }
}

/// Puts a value at a JSON pointer, also where there is none yet; null takes it away.
fn set(pod: &mut Value, pointer: &str, value: Value) {
    let (above, key) = pointer.rsplit_once('/').unwrap();
    match pod.pointer_mut(above).unwrap() {
        Value::Array(all) => {
            let at: usize = key.parse().unwrap();
            let end = (at + 1).min(all.len());
            all.splice(at..end, Some(value).filter(|value| !value.is_null()));
        }
        object => object[key] = value,
    }
}
