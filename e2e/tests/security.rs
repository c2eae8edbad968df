//! securityContext: what a container's processes are and may do, as the kernel tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use portreeve_e2e::{Agent, BUSYBOX, World, skipped_without_root, wait_until};
use serde_json::{Value, json};

/// What a container with no word about capabilities has: the 14 that Docker and containerd give.
const USUAL_CAPABILITIES: u64 = 0xa804_25fb;

/// A container that writes what `script` says to `/out/<name>`, all at once, and then sleeps.
fn reporter(name: &str, script: &str, security: &Value) -> Value {
    let command = format!(
        "{{ grep -E '^(Cap|NoNewPrivs|Seccomp|Groups)' /proc/self/status; {script}\n}} >/out/.{name} 2>&1; \
         mv /out/.{name} /out/{name}; exec sleep 100000"
    );
    json!({
        "name": name, "image": BUSYBOX, "command": ["sh", "-c", command], "securityContext": security,
        "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
    })
}

fn pod(name: &str, out: &Path, security: &Value, containers: Vec<Value>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": security,
            "volumes": [{ "name": "out", "hostPath": { "path": out } }],
            "containers": containers,
        },
    })
}

/// The lines `key: value` or `key=value` of a report; and all of it under the empty key.
fn report(out: &Path, name: &str) -> BTreeMap<String, String> {
    let text = wait_until(&format!("{name} has reported"), 60, || {
        std::fs::read_to_string(out.join(name)).map_err(|error| {
            let so_far = std::fs::read_to_string(out.join(format!(".{name}")));
            format!("{error}; so far {so_far:?}")
        })
    });
    let pairs = text.lines().filter_map(|line| line.split_once([':', '=']));
    let mut report: BTreeMap<String, String> =
        pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect();
    report.insert(String::new(), text);
    report
}

fn capabilities(report: &BTreeMap<String, String>, set: &str) -> u64 {
    u64::from_str_radix(&report[set], 16).expect("a mask of capabilities")
}

fn numbers(text: &str) -> BTreeSet<u32> {
    text.split_whitespace().map(|word| word.parse().unwrap_or_else(|_| panic!("{text}"))).collect()
}

#[test]
fn privileges_are_what_the_manifest_says() {
    if skipped_without_root("security") {
        return;
    }
    let world = World::new("privileges");
    let out = world.notebook();
    // Where the kubelet's profiles lie, for this world alone.
    world.sh("mount -t tmpfs tmpfs /var/lib && mkdir -p /var/lib/kubelet/seccomp/profiles");
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }],
    });
    world.sh(&format!("echo '{profile}' >/var/lib/kubelet/seccomp/profiles/no-mkdir.json"));
    let agent = Agent::with_busybox(&world);

    // A device of the machine that no ordinary container has.
    let usual = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];
    let devices = std::fs::read_dir("/dev").unwrap().flatten().filter(|entry| {
        let kind = entry.file_type().unwrap();
        (kind.is_char_device() || kind.is_block_device()) && usual.iter().all(|name| entry.file_name() != *name)
    });
    let device = devices.map(|entry| entry.path()).min();
    // What an ordinary container must not see of the kernel, as far as this one has it.
    let mut secrets = vec!["/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list"];
    secrets.retain(|path| Path::new(path).exists());
    assert!(!secrets.is_empty());
    let kernel = format!(
        "grep -q ' /proc/sys ro' /proc/self/mountinfo && echo sys=ro || echo sys=rw\n\
         for path in {}; do grep -q \" $path \" /proc/self/mountinfo && echo hidden=yes || echo shown=yes; done\n\
         test -e {} && echo device=there || echo device=absent",
        secrets.join(" "),
        device.as_deref().unwrap_or(Path::new("/dev/none")).display()
    );
    let write = "mkdir /new 2>/dev/null && echo root=rw || echo root=ro; touch /out/touched && echo volume=rw";
    agent.drop_manifest(
        "a.yaml",
        &pod(
            "a",
            &out,
            &json!({
                "seccompProfile": { "type": "Unconfined" },
                "sysctls": [
                    { "name": "net.ipv4.ip_unprivileged_port_start", "value": "81" },
                    { "name": "kernel.shm_rmid_forced", "value": "1" },
                ],
            }),
            vec![
                reporter(
                    "pods",
                    "echo port=$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start) \
                     shm=$(cat /proc/sys/kernel/shm_rmid_forced)",
                    &json!({}),
                ),
                reporter(
                    "strict",
                    write,
                    &json!({
                        "seccompProfile": { "type": "RuntimeDefault" },
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
                    }),
                ),
                reporter(
                    "local",
                    "mkdir /new",
                    &json!({
                        "seccompProfile": { "type": "Localhost", "localhostProfile": "profiles/no-mkdir.json" },
                        "capabilities": { "add": ["SYS_TIME"], "drop": ["CHOWN"] },
                    }),
                ),
                reporter("privileged", &kernel, &json!({ "privileged": true })),
            ],
        )
        .to_string(),
    );
    let plain = reporter("plain", &format!("{kernel}\n{write}"), &json!({}));
    agent.drop_manifest("b.yaml", &pod("b", &out, &json!({}), vec![plain]).to_string());
    // Without its own users procMount could not be Unmasked.
    let unmasked = reporter("unmasked", &kernel, &json!({ "procMount": "Unmasked" }));
    let mut manifest = pod("c", &out, &json!({}), vec![unmasked]);
    manifest["spec"]["hostUsers"] = json!(false);
    agent.drop_manifest("c.yaml", &manifest.to_string());

    // A profile that is not there is no reason to run without one.
    let absent = reporter(
        "absent",
        "true",
        &json!({
            "seccompProfile": { "type": "Localhost", "localhostProfile": "profiles/absent.json" },
        }),
    );
    agent.drop_manifest("d.yaml", &pod("d", &out, &json!({}), vec![absent]).to_string());

    let pods = report(&out, "pods");
    assert_eq!((pods["Seccomp"].as_str(), pods["NoNewPrivs"].as_str()), ("0", "0"));
    assert_eq!(pods["port"], "81 shm=1");
    assert_eq!(capabilities(&pods, "CapEff"), USUAL_CAPABILITIES);
    assert_eq!(capabilities(&pods, "CapBnd"), USUAL_CAPABILITIES);

    let strict = report(&out, "strict");
    assert_eq!((strict["Seccomp"].as_str(), strict["NoNewPrivs"].as_str()), ("2", "1"), "the container's word wins");
    for set in ["CapEff", "CapBnd", "CapPrm"] {
        assert_eq!(capabilities(&strict, set), 1 << 10, "{set}");
    }
    assert_eq!((strict["root"].as_str(), strict["volume"].as_str()), ("ro", "rw"));

    let local = report(&out, "local");
    assert_eq!(local["Seccomp"], "2");
    assert!(local[""].contains("No space left on device"), "the profile's own error: {}", local[""]);
    assert_eq!(capabilities(&local, "CapBnd"), (USUAL_CAPABILITIES | 1 << 25) & !1);

    let privileged = report(&out, "privileged");
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    assert_eq!(privileged["CapEff"], own.trim(), "all that the agent has");
    assert_eq!(privileged["Seccomp"], "0");
    assert_eq!((privileged["sys"].as_str(), privileged.get("hidden")), ("rw", None), "{}", privileged[""]);
    if device.is_some() {
        assert_eq!(privileged["device"], "there", "{device:?}");
    }

    let plain = report(&out, "plain");
    assert_eq!((plain["Seccomp"].as_str(), plain["NoNewPrivs"].as_str()), ("2", "0"));
    assert_eq!(capabilities(&plain, "CapEff"), USUAL_CAPABILITIES);
    assert_eq!((plain["sys"].as_str(), plain.get("shown")), ("ro", None), "{}", plain[""]);
    assert_eq!((plain["root"].as_str(), plain["device"].as_str()), ("rw", "absent"), "{device:?}");

    let unmasked = report(&out, "unmasked");
    assert_eq!((unmasked["sys"].as_str(), unmasked.get("hidden")), ("rw", None), "{}", unmasked[""]);
    for name in ["a", "b", "c"] {
        agent.wait_ready(name);
    }
    agent.wait_pod("d", "names the missing profile", |pod| {
        let message = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
        message.as_str().is_some_and(|message| message.contains("profiles/absent.json"))
    });
    assert!(!out.join("absent").exists(), "it ran");
}

#[test]
fn users_groups_and_volumes_are_whose_the_manifest_says() {
    if skipped_without_root("security") {
        return;
    }
    let world = World::new("ids");
    let out = world.notebook();
    let agent = Agent::with_busybox(&world);
    let configs = |key: &str| {
        json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "word": "open" } },
            { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "key": key } },
        ]})
    };
    agent.drop_manifest("config.yaml", &configs("hidden").to_string());

    let ids = "echo user=$(id -u); echo group=$(id -g); echo groups=$(id -G)";
    let mounts = "for path in /data /memory /config/..data/ /config/word /secret/key /projected/word /out; do \
                  echo $path=$(stat -L -c '%g %a' $path); done; \
                  echo new >/data/new; echo new=$(stat -c '%u:%g' /data/new); echo read=$(cat /secret/key); \
                  dd if=/dev/zero of=/memory/big bs=1M count=2";
    let mut files = reporter("files", &format!("{ids}; {mounts}"), &json!({}));
    for volume in ["data", "memory", "config", "secret", "projected"] {
        files["volumeMounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "name": volume, "mountPath": format!("/{volume}") }));
    }
    let volumes = [
        json!({ "name": "data", "emptyDir": {} }),
        json!({ "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
        json!({ "name": "config", "configMap": { "name": "c" } }),
        json!({ "name": "secret", "secret": { "secretName": "s", "defaultMode": 0o400 } }),
        json!({
            "name": "projected",
            "projected": { "defaultMode": 0o400, "sources": [{ "configMap": { "name": "c" } }] },
        }),
    ];
    let of_pod = json!({
        "runAsUser": 1000, "runAsGroup": 3000, "runAsNonRoot": true,
        "supplementalGroups": [4000], "fsGroup": 5000, "fsGroupChangePolicy": "OnRootMismatch",
    });
    // The same once more with users of its own, where ids on disk are others than inside.
    let (mut mapped, own) = (files.clone(), json!({ "runAsUser": 2000, "runAsGroup": 2001 }));
    mapped["name"] = json!("mapped");
    mapped["command"][2] = json!(files["command"][2].as_str().unwrap().replace("files", "mapped"));
    for (name, users, containers) in [("a", true, vec![files, reporter("own", ids, &own)]), ("d", false, vec![mapped])]
    {
        let mut manifest = pod(name, &out, &of_pod, containers);
        manifest["spec"]["volumes"].as_array_mut().unwrap().extend(volumes.clone());
        manifest["spec"]["hostUsers"] = json!(users);
        agent.drop_manifest(&format!("{name}.yaml"), &manifest.to_string());
    }
    let strict = json!({ "runAsUser": 1000, "supplementalGroups": [4000], "supplementalGroupsPolicy": "Strict" });
    agent.drop_manifest("b.yaml", &pod("b", &out, &strict, vec![reporter("strict", ids, &json!({}))]).to_string());
    let refused = reporter("refused", "true", &json!({ "runAsNonRoot": true }));
    agent.drop_manifest("c.yaml", &pod("c", &out, &json!({ "runAsNonRoot": false }), vec![refused]).to_string());

    for name in ["files", "mapped"] {
        let files = report(&out, name);
        assert_eq!((files["user"].as_str(), files["group"].as_str()), ("1000", "3000"), "{name}");
        // By the image user 1000 is in group 2000, too.
        assert_eq!(numbers(&files["groups"]), BTreeSet::from([2000, 3000, 4000, 5000]), "{name}");
        assert_eq!(capabilities(&files, "CapEff"), 0, "a user that is not root");
        for (path, expected) in [
            ("/data", "5000 2777"),
            ("/memory", "5000 2777"),
            ("/config/..data/", "5000 2755"),
            ("/config/word", "5000 644"),
            ("/secret/key", "5000 440"),
            ("/projected/word", "5000 440"),
            ("/out", "0 777"),
        ] {
            assert_eq!(files[path], expected, "{name}, {path}: {}", files[""]);
        }
        assert_eq!((files["new"].as_str(), files["read"].as_str()), ("1000:5000", "hidden"), "{}", files[""]);
        assert!(files[""].contains("No space left on device"), "the size limit: {}", files[""]);
    }

    let own = report(&out, "own");
    assert_eq!((own["user"].as_str(), own["group"].as_str()), ("2000", "2001"), "the container's word wins");
    assert_eq!(numbers(&own["groups"]), BTreeSet::from([2001, 4000, 5000]));
    let strict = report(&out, "strict");
    assert_eq!((strict["user"].as_str(), strict["group"].as_str()), ("1000", "1000"));
    assert_eq!(numbers(&strict["groups"]), BTreeSet::from([1000, 4000]), "the image's groups do not count");

    let refused = agent.wait_pod("c", "is refused", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let why = refused["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(why.contains("runAsNonRoot") || why.contains("non-root"), "{why}");
    let events = agent.client(&["get", "events"]).ok();
    let told = events.lines().find(|line| line.contains("pod/c") && line.contains("Warning"));
    assert!(told.is_some_and(|line| line.contains("runAsNonRoot") || line.contains("non-root")), "{events}");
    assert!(!out.join("refused").exists(), "it ran");
    for name in ["a", "b", "d"] {
        agent.wait_ready(name);
    }
    // What replaces a file is the group's as well.
    agent.drop_manifest("config.yaml", &configs("changed").to_string());
    wait_until("the mounted secret changes", 60, || {
        let line = "cat /secret/key; stat -L -c ' %g %a' /secret/key";
        let found = agent.client(&["exec", "a", "-c", "files", "--", "sh", "-c", line]).ok();
        if found == "changed 5000 440\n" { Ok(()) } else { Err(found) }
    });
}
