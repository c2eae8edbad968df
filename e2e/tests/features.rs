//! What else a manifest says about a pod: configuration, names, host namespaces, cgroups, late images.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use portreeve_e2e::{Agent, BUSYBOX, Image, Registry, World, skipped, skipped_without_root, wait_until};
use serde_json::{Value, json};

/// A pod of one container that writes what `script` says to `/out/<name>`, all at once, and sleeps.
fn reporter(name: &str, out: &Path, script: &str) -> Value {
    let command = format!("{{ {script}\n}} >/out/.{name} 2>&1; mv /out/.{name} /out/{name}; exec sleep 100000");
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "out", "hostPath": { "path": out } }],
            "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sh", "-c", command],
                "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
            }],
        },
    })
}

fn report(out: &Path, name: &str) -> String {
    wait_until(&format!("{name} has reported"), 60, || {
        std::fs::read_to_string(out.join(name)).map_err(|error| {
            let so_far = std::fs::read_to_string(out.join(format!(".{name}")));
            format!("{error}; so far {so_far:?}")
        })
    })
}

fn add(list: &mut Value, items: Value) {
    let Value::Array(items) = items else { panic!("{items}") };
    list.as_array_mut().expect("a list").extend(items);
}

#[test]
fn configuration_reaches_variables_and_files_and_follows_its_edits() {
    if skipped_without_root("features") {
        return;
    }
    let world = World::new("config");
    let out = world.notebook();
    let agent = Agent::with_busybox(&world);
    let configs = |word: &str| {
        json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" },
              "data": { "level": "high", "other": "unused" }, "binaryData": { "bytes": "AP8K" } },
            { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" },
              "stringData": { "word": word, "pin": "1234" } },
        ]})
    };
    agent.drop_manifest("config.yaml", &configs("hidden").to_string());
    let script = "env; for path in cm/level key.txt about/name about/memory; do \
                  echo file $path $(stat -L -c %a /all/$path) $(cat /all/$path); done; \
                  echo part $(cat /part); echo mine >/mine/file; echo under $(ls /volume); \
                  echo bytes $(busybox od -An -tx1 /all/cm/bytes)";
    let mut pod = reporter("p", &out, script);
    pod["metadata"]["labels"] = json!({ "tier": "one" });
    pod["metadata"]["annotations"] = json!({ "note": "first" });
    add(
        &mut pod["spec"]["volumes"],
        json!([
            { "name": "all", "projected": { "defaultMode": 0o640, "sources": [
                { "configMap": { "name": "c", "items": [
                    { "key": "level", "path": "cm/level" }, { "key": "bytes", "path": "cm/bytes" },
                ] } },
                { "secret": { "name": "s", "items": [{ "key": "word", "path": "key.txt", "mode": 0o400 }] } },
                { "secret": { "name": "absent", "optional": true } },
                { "downwardAPI": { "items": [
                    { "path": "about/name", "fieldRef": { "fieldPath": "metadata.name" } },
                    { "path": "about/memory", "mode": 0o444,
                      "resourceFieldRef": { "containerName": "main", "resource": "limits.memory", "divisor": "1Mi" } },
                ] } },
            ] } },
            { "name": "about", "downwardAPI": { "items": [
                { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                { "path": "note", "fieldRef": { "fieldPath": "metadata.annotations['note']" } },
            ] } },
            { "name": "data", "emptyDir": {} },
        ]),
    );
    let main = &mut pod["spec"]["containers"][0];
    main["resources"] = json!({ "requests": { "cpu": "250m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } });
    main["envFrom"] = json!([
        { "prefix": "C_", "configMapRef": { "name": "c" } },
        { "secretRef": { "name": "s" } },
        { "configMapRef": { "name": "absent", "optional": true } },
    ]);
    let from = |name: &str, source: Value| json!({ "name": name, "valueFrom": source });
    main["env"] = json!([
        from("SECRET", json!({ "secretKeyRef": { "name": "s", "key": "word" } })),
        from("LEVEL", json!({ "configMapKeyRef": { "name": "c", "key": "level" } })),
        from("NO_KEY", json!({ "secretKeyRef": { "name": "s", "key": "absent", "optional": true } })),
        from("NO_MAP", json!({ "configMapKeyRef": { "name": "absent", "key": "x", "optional": true } })),
        from("POD", json!({ "fieldRef": { "fieldPath": "metadata.name" } })),
        from("TIER", json!({ "fieldRef": { "fieldPath": "metadata.labels['tier']" } })),
        from("POD_UID", json!({ "fieldRef": { "fieldPath": "metadata.uid" } })),
        from("NODE", json!({ "fieldRef": { "fieldPath": "spec.nodeName" } })),
        from("POD_IP", json!({ "fieldRef": { "fieldPath": "status.podIP" } })),
        from("MILLIS", json!({ "resourceFieldRef": { "resource": "requests.cpu", "divisor": "1m" } })),
        from("BYTES", json!({ "resourceFieldRef": { "resource": "limits.memory" } })),
        { "name": "JOINED", "value": "$(POD)-$(SECRET)-$(pin)-$(UNSET)-$$(POD)" },
    ]);
    add(
        &mut main["volumeMounts"],
        json!([
            { "name": "all", "mountPath": "/all" },
            { "name": "all", "mountPath": "/part", "subPath": "key.txt" },
            { "name": "about", "mountPath": "/about" },
            { "name": "data", "mountPath": "/mine", "subPathExpr": "of/$(POD)" },
            { "name": "data", "mountPath": "/volume" },
        ]),
    );
    agent.drop_manifest("p.yaml", &pod.to_string());
    let seen = report(&out, "p");
    let ready = agent.wait_ready("p");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for line in [
        "SECRET=hidden",
        "LEVEL=high",
        "C_level=high",
        "C_other=unused",
        "word=hidden",
        "pin=1234",
        "POD=p",
        "TIER=one",
        "NODE=node-1",
        "MILLIS=250",
        "BYTES=67108864",
        "JOINED=p-hidden-1234-$(UNSET)-$(POD)",
        &format!("POD_UID={}", text(&ready["metadata"]["uid"])),
        &format!("POD_IP={}", text(&ready["status"]["podIP"])),
        "file cm/level 640 high",
        "file key.txt 400 hidden",
        "file about/name 640 p",
        "file about/memory 444 64",
        "part hidden",
        "under of",
        "bytes 00 ff 0a",
    ] {
        assert!(seen.lines().any(|found| found == line), "{line:?} is missing:\n{seen}");
    }
    assert!(!seen.contains("NO_KEY=") && !seen.contains("NO_MAP="), "{seen}");

    // Labels, annotations, a limit and a secret are edited; the files follow, and nothing restarts.
    let inside = |line: &str| agent.client(&["exec", "p", "--", "sh", "-c", line]).ok();
    assert_eq!(
        inside("cat /about/labels; echo; cat /about/note; echo; ls /volume/of/p"),
        "tier=\"one\"\nfirst\nfile\n"
    );
    pod["metadata"]["labels"] = json!({ "tier": "two", "more": "yes" });
    pod["metadata"]["annotations"]["note"] = json!("second");
    pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("96Mi");
    agent.drop_manifest("p.yaml", &pod.to_string());
    agent.drop_manifest("config.yaml", &configs("changed").to_string());
    let expected = "more=\"yes\"\ntier=\"two\"\nsecond 96 changed";
    wait_until("the files follow the edits", 60, || {
        let found =
            inside("cat /about/labels; echo; echo $(cat /about/note) $(cat /all/about/memory) $(cat /all/key.txt)");
        if found.trim() == expected { Ok(()) } else { Err(found) }
    });
    assert_eq!(inside("cat /part; echo; echo $SECRET; stat -L -c %a /all/key.txt"), "hidden\nhidden\n400\n");
    let after = agent.pod("p").unwrap();
    let id = |pod: &Value| text(&pod["status"]["containerStatuses"][0]["containerID"]);
    assert_eq!(id(&after), id(&ready));
}

#[test]
fn host_namespaces_names_and_resolvers_are_what_the_manifest_says() {
    if skipped_without_root("features") {
        return;
    }
    let world = World::new("names");
    let out = world.notebook();
    // A node with an address, neighbours and resolvers, for this world alone.
    world.sh("ip addr add 192.0.2.10/32 dev lo");
    for (file, text) in [
        ("hosts", "127.0.0.1 localhost\n198.51.100.9 neighbour.test\n"),
        ("resolv.conf", "nameserver 198.51.100.7\nsearch node.test\noptions ndots:2\n"),
    ] {
        std::fs::write(world.path(file), text).unwrap();
        world.sh(&format!("mount --bind {} /etc/{file}", world.path(file).display()));
    }
    let agent = Agent::with_busybox(&world);
    let script = "hostname; for kind in net pid ipc uts mnt; do echo $kind $(readlink /proc/self/ns/$kind); done; \
                  echo HOST_IP=$HOST_IP; echo --- hosts; cat /etc/hosts; echo --- resolv; cat /etc/resolv.conf";
    let aliases = json!([{ "ip": "203.0.113.5", "hostnames": ["db.test", "cache.test"] }]);
    let pod = |name: &str, more: Value| {
        let mut pod = reporter(name, &out, script);
        pod["spec"]["hostAliases"] = aliases.clone();
        pod["spec"]["containers"][0]["env"] =
            json!([{ "name": "HOST_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.hostIP" } } }]);
        let Value::Object(more) = more else { panic!("{more}") };
        pod["spec"].as_object_mut().unwrap().extend(more);
        agent.drop_manifest(&format!("{name}.yaml"), &pod.to_string());
    };
    let config = json!({
        "nameservers": ["198.51.100.53", "198.51.100.54"], "searches": ["a.test", "b.test"],
        "options": [{ "name": "ndots", "value": "5" }, { "name": "rotate" }],
    });
    pod("node", json!({ "hostNetwork": true, "hostPID": true, "hostIPC": true }));
    pod("own", json!({ "hostname": "box", "subdomain": "sub", "dnsPolicy": "None", "dnsConfig": config }));
    pod("joined", json!({ "dnsPolicy": "Default", "dnsConfig": config }));

    let node = report(&out, "node");
    let namespace = |kind: &str| world.sh(&format!("readlink /proc/self/ns/{kind}")).trim().to_owned();
    for (kind, shared) in [("net", true), ("pid", true), ("ipc", true), ("mnt", false)] {
        let line = format!("{kind} {}", namespace(kind));
        assert_eq!(node.lines().any(|found| found == line), shared, "{line}:\n{node}");
    }
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(node.lines().next(), Some(hostname.trim()), "{node}");
    let ready = agent.wait_ready("node");
    assert_eq!((&ready["status"]["podIP"], &ready["status"]["hostIP"]), (&json!("192.0.2.10"), &json!("192.0.2.10")));
    for line in ["HOST_IP=192.0.2.10", "198.51.100.9 neighbour.test", "203.0.113.5\tdb.test\tcache.test"] {
        assert!(node.lines().any(|found| found == line), "{line:?} is missing:\n{node}");
    }
    let resolver = |report: &str| report.split_once("--- resolv\n").expect("a resolver").1.to_owned();
    assert_eq!(resolver(&node), "search node.test\nnameserver 198.51.100.7\noptions ndots:2\n");

    let own = report(&out, "own");
    assert_eq!(own.lines().next(), Some("box"), "{own}");
    for kind in ["net", "pid", "ipc", "uts", "mnt"] {
        assert!(!own.contains(&namespace(kind)), "{kind}:\n{own}");
    }
    let ip = agent.wait_ready("own")["status"]["podIP"].as_str().unwrap().to_owned();
    for line in [format!("{ip}\tbox"), "127.0.0.1\tlocalhost".to_owned(), "203.0.113.5\tdb.test\tcache.test".to_owned()]
    {
        assert!(own.lines().any(|found| found == line), "{line:?} is missing:\n{own}");
    }
    assert!(!own.contains("neighbour.test"), "{own}");
    let configured = "nameserver 198.51.100.53\nnameserver 198.51.100.54\noptions ndots:5 rotate\n";
    assert_eq!(resolver(&own), format!("search a.test b.test\n{configured}"));
    let joined = report(&out, "joined");
    assert_eq!(joined.lines().next(), Some("joined"), "{joined}");
    assert_eq!(
        resolver(&joined),
        format!("search node.test a.test b.test\nnameserver 198.51.100.7\n{configured}"),
        "the pod's come after the node's"
    );
    // What is left when the agent goes is all that it made.
    world.sh("ip addr del 192.0.2.10/32 dev lo");
}

/// The one value of a file in the cgroup of a container or pod, by its name in either version.
fn cgroup_value(agent: &Agent<'_>, cgroup: &str, names: [&str; 2]) -> String {
    let all = agent.census().cgroups;
    let mut files = all.iter().filter(|path| path.ends_with(cgroup)).flat_map(|path| names.map(|name| path.join(name)));
    let text = files.find_map(|file| std::fs::read_to_string(file).ok());
    text.unwrap_or_else(|| panic!("{cgroup} has neither of {names:?}: {all:?}")).trim().to_owned()
}

#[test]
fn cgroups_have_the_kubelets_places_and_the_manifests_values_before_and_after_an_edit() {
    if skipped_without_root("features") {
        return;
    }
    let world = World::new("cgroups");
    let agent = Agent::with_busybox(&world);
    let pod = |name: &str, resources: &Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    { "name": "main", "image": BUSYBOX, "command": ["sleep", "100000"], "resources": resources },
                ],
            },
        })
    };
    let guaranteed = |cpu: &str, memory: &str| json!({ "limits": { "cpu": cpu, "memory": memory } });
    let burstable = |cpu: &str, pids: &str| {
        let requests = json!({ "cpu": cpu, "memory": "256Mi" });
        json!({ "requests": requests, "limits": { "portreeve.dev/pids": pids } })
    };
    let land = |g: &Value, b: &Value| {
        for (name, resources) in [("g", g), ("b", b), ("e", &json!({}))] {
            agent.drop_manifest(&format!("{name}.yaml"), &pod(name, resources).to_string());
        }
    };
    land(&guaranteed("500m", "32Mi"), &burstable("250m", "50"));

    let mut cgroups = Vec::new();
    for (name, class, level) in
        [("g", "Guaranteed", ""), ("b", "Burstable", "burstable/"), ("e", "BestEffort", "besteffort/")]
    {
        let ready = agent.wait_ready(name);
        assert_eq!(ready["status"]["qosClass"], class);
        let id = ready["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
        let id = id.trim_start_matches("portreeve://").to_owned();
        let of_pod = format!("{level}pod{}", ready["metadata"]["uid"].as_str().unwrap());
        let cgroup = format!("{of_pod}/{id}");
        // The same place in every hierarchy: below the agent's own root, and nowhere else.
        let places: BTreeSet<String> = agent
            .census()
            .cgroups
            .iter()
            .filter(|path| path.ends_with(&id))
            .map(|path| {
                let text = path.to_string_lossy();
                let (_, below) = text.split_once("/portreeve-").expect("the agent's root");
                below.split_once('/').expect("something below the root").1.to_owned()
            })
            .collect();
        assert_eq!(places, BTreeSet::from([cgroup.clone()]), "{class}");
        cgroups.push((of_pod, cgroup));
    }
    let [(g_pod, g), (b_pod, b), (_, e)] = &cgroups[..] else { panic!("{cgroups:?}") };

    let check = |expected: &[(&str, [&str; 2], [&str; 2])]| {
        wait_until("the cgroups hold what the manifests say", 30, || {
            let wrong: Vec<String> = expected
                .iter()
                .map(|(cgroup, files, values)| (cgroup, files, values, cgroup_value(&agent, cgroup, *files)))
                .filter(|(_, _, values, found)| !values.contains(&found.as_str()))
                .map(|(cgroup, files, values, found)| format!("{cgroup} {files:?}: {found}, not {values:?}"))
                .collect();
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
        });
    };
    let quota = ["cpu.cfs_quota_us", "cpu.max"];
    let shares = ["cpu.shares", "cpu.weight"];
    let memory = ["memory.limit_in_bytes", "memory.max"];
    let pids = ["pids.max", "pids.max"];
    check(&[
        (g, quota, ["50000", "50000 100000"]),
        (g, shares, ["512", "59"]),
        (g, memory, ["33554432", "33554432"]),
        (g_pod, shares, ["512", "59"]),
        (b, quota, ["-1", "max 100000"]),
        (b, shares, ["256", "35"]),
        (b, pids, ["50", "50"]),
        (b_pod, shares, ["256", "35"]),
        (e, shares, ["2", "1"]),
    ]);

    let score = |cgroup: &str| -> i32 {
        let pid = cgroup_value(&agent, cgroup, ["cgroup.procs", "cgroup.procs"]);
        std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    let share = i32::try_from(256 * 1024 * 1000 / total).unwrap();
    assert_eq!(score(e), 1000);
    assert_eq!(score(b), (1000 - share).clamp(3, 999));
    let can_lower = Command::new("sh").args(["-c", "echo -997 >/proc/self/oom_score_adj"]).output().unwrap();
    if can_lower.status.success() {
        assert_eq!(score(g), -997);
    } else {
        skipped("the oom_score_adj of a Guaranteed pod", "this machine cannot lower it");
    }

    land(&guaranteed("250m", "48Mi"), &burstable("500m", "70"));
    check(&[
        (g, quota, ["25000", "25000 100000"]),
        (g, shares, ["256", "35"]),
        (g, memory, ["50331648", "50331648"]),
        (g_pod, shares, ["256", "35"]),
        (b, shares, ["512", "59"]),
        (b, pids, ["70", "70"]),
        (b_pod, shares, ["512", "59"]),
    ]);
    for (name, (_, cgroup)) in ["g", "b", "e"].iter().zip(&cgroups) {
        let pod = agent.pod(name).unwrap();
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().to_owned();
        assert!(cgroup.ends_with(id.trim_start_matches("portreeve://")), "{name} was restarted");
    }
}

#[test]
fn a_pod_runs_at_the_told_time_once_its_registry_is_back() {
    if skipped_without_root("features") {
        return;
    }
    let world = World::new("back");
    let mut registry = Registry::start(&world, 5000);
    let reference = registry.push(&Image::busybox(world.home(), "back:1"), "back:1");
    registry.stop();
    let agent = Agent::start(&world);
    agent.drop_manifest(
        "a.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers: [{{name: main, image: '{reference}', command: [sleep, '1000']}}]\n"
        ),
    );
    let told = wait_until("the failure is told", 60, || {
        let events = agent.client(&["get", "events"]).ok();
        let failed = events.lines().find(|line| line.contains("Failed to pull image"));
        failed.map(str::to_owned).ok_or(events)
    });
    registry.resume();
    assert!(told.contains("Warning") && told.contains(&reference), "{told}");
    let (_, next) = told.split_once("next try at ").unwrap_or_else(|| panic!("it does not say when next: {told}"));
    let ready = agent.wait_ready("a");
    let started = ready["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].as_str().unwrap();
    assert_eq!(next.len(), started.len(), "{next} and {started} are of one form");
    assert!(started >= next, "it was told to be tried at {next}, and ran at {started}");
}
