//! One table per kind of field: what a manifest says, and what the engine is asked for.

use std::path::Path;

use portreeve_engine::{Propagation, SeccompProfile, SecurityContext, SupplementalGroupsPolicy};
use portreeve_plan::{Config, Configs};
use serde_json::{Value, json};

use super::*;
use crate::volumes::NodeFacts;

fn spec(value: Value) -> PodSpec {
    serde_json::from_value(value).unwrap()
}

/// A pod `web` in `shop` with this spec, labels and one ConfigMap and Secret; run on node `n1`.
fn with_facts<T>(spec: Value, then: impl FnOnce(Facts<'_>) -> T) -> T {
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "a"}, "annotations": {"note": "b"}},
        "spec": spec,
    }))
    .unwrap();
    let data = |key: &str, value: &str| Config::new(BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())]));
    let configs = Configs {
        config_maps: BTreeMap::from([("map".to_owned(), data("key", "from map"))]),
        secrets: BTreeMap::from([("secret".to_owned(), data("key", "from secret"))]),
        ..Configs::default()
    };
    let node = NodeFacts {
        name: "n1".to_owned(),
        host_ips: vec!["192.0.2.1".to_owned(), "192.0.2.2".to_owned()],
        cpu_millis: 4000,
        memory_bytes: 8 << 30,
        storage_bytes: 100 << 30,
        ..NodeFacts::default()
    };
    then(Facts { pod: &pod, uid: "u1", configs: &configs, node: &node })
}

fn place() -> Place {
    Place { cgroup_root: "/root/".to_owned(), logs: PathBuf::from("/l"), resolv_conf: PathBuf::from("/nowhere") }
}

fn sandbox_of(value: Value, id_base: Option<u32>) -> Result<SandboxConfig, TranslateError> {
    let record = SandboxRecord { spec: PodSpec::default(), backoff_seconds: None, carried: BTreeMap::new() };
    with_facts(value, |facts| sandbox(facts, &record, 2, &place(), id_base))
}

fn container_of(definition: Value) -> Result<ContainerConfig, TranslateError> {
    with_facts(json!({"serviceAccountName": "robot", "containers": [definition]}), |facts| {
        let definition = &facts.pod.spec.as_ref().unwrap().containers[0];
        let record = ContainerRecord {
            container: definition.clone(),
            backoff_seconds: None,
            env: BTreeMap::new(),
            resources: Resources::of(definition),
        };
        let ips = ["10.0.0.2".to_owned(), "fd00::2".to_owned()];
        let parts =
            Parts { record: &record, attempt: 3, image_id: "sha256:1".to_owned(), ips: &ips, mounts: Vec::new() };
        container(facts, definition, parts)
    })
}

#[test]
fn the_log_directory_of_the_longest_name_can_be_made() {
    let place = place();
    let uid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    let short = place.log_directory("default", "web", uid);
    assert_eq!(short, PathBuf::from(format!("/l/default_web_{uid}")));
    let long = place.log_directory(&"n".repeat(63), &"a".repeat(253), uid);
    let name = long.file_name().unwrap().to_str().unwrap();
    assert_eq!(name.len(), 255);
    assert!(name.ends_with(&format!("aa_{uid}")), "{name}");
}

#[test]
fn each_field_of_a_security_context_is_asked_for() {
    type Change = fn(&mut SecurityContext);
    let nothing = || json!({});
    let profile = |value: &str| json!({"seccompProfile": {"type": value, "localhostProfile": "p/x.json"}});
    // The pod's context, the container's, and what differs from the default.
    let table: Vec<(Value, Value, Change)> = vec![
        (nothing(), nothing(), |_| {}),
        (json!({"runAsUser": 1}), nothing(), |it| it.run_as_user = Some(1)),
        (json!({"runAsUser": 1}), json!({"runAsUser": 0}), |it| it.run_as_user = Some(0)),
        (json!({"runAsGroup": 1}), nothing(), |it| it.run_as_group = Some(1)),
        (json!({"runAsGroup": 1}), json!({"runAsGroup": 2}), |it| it.run_as_group = Some(2)),
        (json!({"runAsNonRoot": true}), nothing(), |it| it.run_as_non_root = true),
        (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), |_| {}),
        (json!({"supplementalGroups": [3, 4], "fsGroup": 5}), nothing(), |it| {
            it.supplemental_groups = vec![3, 4, 5];
        }),
        (json!({"supplementalGroupsPolicy": "Strict"}), nothing(), |it| {
            it.supplemental_groups_policy = SupplementalGroupsPolicy::Strict;
        }),
        (json!({"supplementalGroupsPolicy": "Merge"}), nothing(), |_| {}),
        (nothing(), json!({"readOnlyRootFilesystem": true}), |it| it.readonly_rootfs = true),
        (nothing(), json!({"allowPrivilegeEscalation": false}), |it| it.no_new_privs = true),
        (nothing(), json!({"allowPrivilegeEscalation": true}), |_| {}),
        (nothing(), json!({"privileged": true}), |it| {
            it.privileged = true;
            it.seccomp = SeccompProfile::Unconfined;
        }),
        (profile("RuntimeDefault"), json!({"privileged": true}), |it| {
            it.privileged = true;
            it.seccomp = SeccompProfile::Unconfined;
        }),
        (nothing(), json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}), |it| {
            it.add_capabilities = vec!["NET_ADMIN".to_owned()];
            it.drop_capabilities = vec!["ALL".to_owned()];
        }),
        (nothing(), json!({"procMount": "Unmasked"}), |it| {
            it.masked_paths = Some(Vec::new());
            it.readonly_paths = Some(Vec::new());
        }),
        (nothing(), json!({"procMount": "Default"}), |_| {}),
        (profile("RuntimeDefault"), nothing(), |_| {}),
        (profile("Unconfined"), nothing(), |it| it.seccomp = SeccompProfile::Unconfined),
        (profile("Unconfined"), profile("RuntimeDefault"), |_| {}),
        (nothing(), profile("Localhost"), |it| {
            it.seccomp = SeccompProfile::Localhost("/var/lib/kubelet/seccomp/p/x.json".into());
        }),
    ];
    for (pod, own, change) in table {
        let words = format!("pod {pod}, container {own}");
        let spec = spec(json!({"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}));
        let mut expected = SecurityContext::default();
        change(&mut expected);
        assert_eq!(security::security(&spec, &spec.containers[0]).unwrap(), expected, "{words}");
    }
    for (pod, own, message) in [
        (nothing(), json!({"runAsUser": -1}), "runAsUser: -1 is out of range"),
        (nothing(), json!({"runAsGroup": 1_i64 << 32}), "runAsGroup: 4294967296 is out of range"),
        (json!({"fsGroup": -2}), nothing(), "supplementalGroups: -2 is out of range"),
    ] {
        let spec = spec(json!({"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}));
        assert_eq!(security::security(&spec, &spec.containers[0]).unwrap_err().to_string(), message);
    }
}

#[test]
fn each_source_of_a_variable_gives_its_value() {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let resource = |what: &str, divisor: &str| json!({"resourceFieldRef": {"resource": what, "divisor": divisor}});
    let key = |kind: &str, name: &str, key: &str| json!({kind: {"name": name, "key": key}});
    let optional = |kind: &str, name: &str, key: &str| json!({kind: {"name": name, "key": key, "optional": true}});
    // `Ok(None)`: the variable is not set.
    let table: Vec<(Value, Result<Option<&str>, &str>)> = vec![
        (field("metadata.name"), Ok(Some("web"))),
        (field("metadata.namespace"), Ok(Some("shop"))),
        (field("metadata.uid"), Ok(Some("u1"))),
        (field("metadata.labels['app']"), Ok(Some("a"))),
        (field("metadata.annotations['note']"), Ok(Some("b"))),
        (field("metadata.labels['none']"), Ok(Some(""))),
        (field("spec.nodeName"), Ok(Some("n1"))),
        (field("spec.serviceAccountName"), Ok(Some("robot"))),
        (field("status.hostIP"), Ok(Some("192.0.2.1"))),
        (field("status.hostIPs"), Ok(Some("192.0.2.1,192.0.2.2"))),
        (field("status.podIP"), Ok(Some("10.0.0.2"))),
        (field("status.podIPs"), Ok(Some("10.0.0.2,fd00::2"))),
        (field("spec.nosuch"), Err("variable V: ")),
        (resource("requests.cpu", "1m"), Ok(Some("250"))),
        (resource("requests.cpu", "1"), Ok(Some("1"))),
        (resource("limits.cpu", "1"), Ok(Some("4"))),
        (resource("requests.memory", "1Mi"), Ok(Some("64"))),
        (resource("limits.memory", "1Mi"), Ok(Some("128"))),
        (resource("limits.ephemeral-storage", "1Gi"), Ok(Some("100"))),
        (resource("requests.ephemeral-storage", "1"), Ok(Some("0"))),
        (resource("limits.nosuch", "1"), Err("variable V: ")),
        (key("configMapKeyRef", "map", "key"), Ok(Some("from map"))),
        (key("secretKeyRef", "secret", "key"), Ok(Some("from secret"))),
        (key("configMapKeyRef", "none", "key"), Err("\"none\" does not exist")),
        (key("secretKeyRef", "none", "key"), Err("\"none\" does not exist")),
        (key("configMapKeyRef", "map", "none"), Err("\"map\" has no key \"none\"")),
        (key("secretKeyRef", "secret", "none"), Err("\"secret\" has no key \"none\"")),
        (optional("configMapKeyRef", "none", "key"), Ok(None)),
        (optional("secretKeyRef", "secret", "none"), Ok(None)),
    ];
    let resources = json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}});
    for (from, expected) in table {
        let env = json!([{"name": "V", "valueFrom": from}]);
        let made = container_of(json!({"name": "c", "env": env, "resources": resources}));
        match (made.map(|made| made.envs), expected) {
            (Ok(found), Ok(None)) => assert_eq!(found, [], "{from}"),
            (Ok(found), Ok(Some(value))) => assert_eq!(found, [("V".to_owned(), value.to_owned())], "{from}"),
            (Err(error), Err(words)) => {
                let error = portreeve_engine::chain(&error);
                assert!(error.contains(words), "{from}: {error}");
            }
            (found, _) => panic!("{from}: {found:?}"),
        }
    }
}

#[test]
fn lists_of_variables_are_joined_and_expanded_in_their_order() {
    let all = json!([
        {"configMapRef": {"name": "map"}}, {"prefix": "S_", "secretRef": {"name": "secret"}},
        {"configMapRef": {"name": "none", "optional": true}}, {"secretRef": {"name": "none", "optional": true}},
    ]);
    let env = json!([
        {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(key)-$(C)-$$(A)"}, {"name": "C", "value": "3"},
        {"name": "key", "value": "own"}, {"name": "E"},
    ]);
    let made = container_of(json!({
        "name": "c", "envFrom": all, "env": env, "command": ["run", "$(B)"], "args": ["$(S_key)", "$(NONE)", "$$(A)"],
    }))
    .unwrap();
    let envs: Vec<_> = made.envs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(envs, ["key=own", "S_key=from secret", "A=1", "B=1-from map-$(C)-$(A)", "C=3", "E="]);
    assert_eq!(made.command, ["run", "1-from map-$(C)-$(A)"]);
    assert_eq!(made.args, ["from secret", "$(NONE)", "$(A)"]);
    for kind in ["configMapRef", "secretRef"] {
        let error = container_of(json!({"name": "c", "envFrom": [{kind: {"name": "none"}}]})).unwrap_err();
        assert!(error.to_string().contains("\"none\" does not exist"), "{error}");
    }
}

#[test]
fn each_kind_of_mount_is_asked_for_as_it_is_meant() {
    let volumes = [
        ("emptyDir", json!({})),
        ("hostPath", json!({"path": "/x"})),
        ("configMap", json!({"name": "map"})),
        ("secret", json!({"secretName": "secret"})),
        ("projected", json!({"sources": []})),
        ("downwardAPI", json!({"items": []})),
    ];
    // The mount, whether it is read-only: of a volume one may write to, and of one that shows configuration;
    // whether what is below is too; its propagation.
    let table = [
        (json!({}), [false, true], false, Propagation::Private),
        (json!({"readOnly": true}), [true, true], false, Propagation::Private),
        (json!({"readOnly": false}), [false, true], false, Propagation::Private),
        (json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), [true, true], true, Propagation::Private),
        (json!({"readOnly": true, "recursiveReadOnly": "IfPossible"}), [true, true], true, Propagation::Private),
        (json!({"readOnly": true, "recursiveReadOnly": "Disabled"}), [true, true], false, Propagation::Private),
        (json!({"mountPropagation": "None"}), [false, true], false, Propagation::Private),
        (json!({"mountPropagation": "HostToContainer"}), [false, true], false, Propagation::HostToContainer),
        (json!({"mountPropagation": "Bidirectional"}), [false, true], false, Propagation::Bidirectional),
    ];
    for (kind, source) in &volumes {
        for (mount, readonly, recursive, propagation) in &table {
            let mut mount = mount.clone();
            mount["name"] = "v".into();
            mount["mountPath"] = "/d".into();
            let spec = spec(json!({
                "volumes": [{"name": "v", *kind: source}],
                "containers": [{"name": "c", "volumeMounts": [mount]}],
            }));
            let plans = mount_plans(&spec, &spec.containers[0], &[]).unwrap();
            let made = plans[0].mount(portreeve_engine::MountSource::HostPath("/source".into()));
            let shows = usize::from(!matches!(*kind, "emptyDir" | "hostPath"));
            assert_eq!(made.container_path, Path::new("/d"));
            assert_eq!(made.source, portreeve_engine::MountSource::HostPath("/source".into()));
            assert_eq!(
                (made.readonly, made.recursive_readonly, made.propagation),
                (readonly[shows], *recursive, *propagation),
                "{kind} {mount}"
            );
        }
    }
    let absent = spec(json!({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/d"}]}]}));
    let error = mount_plans(&absent, &absent.containers[0], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the pod has no volume \"v\"");
}

#[test]
fn resources_become_limits_and_a_place_in_the_tree() {
    type Expected = (Option<u64>, Option<i64>, Option<i64>, i32, &'static str);
    // Shares, quota of 100 ms, memory, oom_score_adj, the pod's cgroup.
    let table: [(Value, Expected); 8] = [
        (json!({}), (Some(2), None, None, 1000, "/root/besteffort/podu1")),
        (json!({"requests": {"cpu": "1"}}), (Some(1024), None, None, 999, "/root/burstable/podu1")),
        (json!({"limits": {"cpu": "1500m"}}), (Some(1536), Some(150_000), None, 999, "/root/burstable/podu1")),
        (json!({"requests": {"cpu": "1m"}}), (Some(2), None, None, 999, "/root/burstable/podu1")),
        (json!({"limits": {"memory": "1Gi"}}), (Some(2), None, Some(1 << 30), 999, "/root/burstable/podu1")),
        (json!({"requests": {"memory": "4Gi"}}), (Some(2), None, None, 500, "/root/burstable/podu1")),
        (json!({"requests": {"memory": "8Gi"}}), (Some(2), None, None, 3, "/root/burstable/podu1")),
        (
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}),
            (Some(1024), Some(100_000), Some(1 << 30), -997, "/root/podu1"),
        ),
    ];
    for (resources, (shares, quota, memory, oom, cgroup)) in table {
        let definition = json!({"name": "c", "resources": resources});
        let made = container_of(definition.clone()).unwrap();
        let cpu = made.resources.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota()), (shares, quota), "{resources}");
        assert_eq!(made.resources.memory().as_ref().and_then(|memory| memory.limit()), memory, "{resources}");
        assert_eq!(made.oom_score_adj, Some(oom), "{resources}");
        let home = sandbox_of(json!({"containers": [definition]}), None).unwrap();
        assert_eq!(home.cgroup_parent, cgroup, "{resources}");
    }
}

#[test]
fn what_a_pod_shares_and_publishes_is_asked_for() {
    let namespaces = |network, pid, ipc| Namespaces { network, pid, ipc, user: UserNamespace::Node };
    let (net, ipc) = (NetworkNamespace::Pod, IpcNamespace::Pod);
    for (fields, expected) in [
        (json!({}), namespaces(net, PidNamespace::Container, ipc)),
        (json!({"hostNetwork": true}), namespaces(NetworkNamespace::Node, PidNamespace::Container, ipc)),
        (json!({"hostPID": true}), namespaces(net, PidNamespace::Node, ipc)),
        (json!({"hostIPC": true}), namespaces(net, PidNamespace::Container, IpcNamespace::Node)),
        (json!({"shareProcessNamespace": true}), namespaces(net, PidNamespace::Pod, ipc)),
    ] {
        let mut spec = fields.clone();
        spec["containers"] = json!([]);
        assert_eq!(sandbox_of(spec, None).unwrap().namespaces, expected, "{fields}");
    }
    let rows = vec![IdMapping { container: 0, host: 131_072, length: 65_536 }];
    let own = sandbox_of(json!({"hostUsers": false, "containers": []}), Some(131_072)).unwrap();
    assert_eq!(own.namespaces.user, UserNamespace::Pod { uid_maps: rows.clone(), gid_maps: rows });

    let ports = json!([
        {"containerPort": 80}, {"containerPort": 81, "hostPort": 8081},
        {"containerPort": 82, "hostPort": 8082, "protocol": "UDP", "hostIP": "127.0.0.1"},
        {"containerPort": 83, "hostPort": 8083, "protocol": "SCTP", "hostIP": "0.0.0.0"},
    ]);
    let mut spec = json!({
        "hostname": "given", "containers": [{"name": "c", "ports": ports}],
        "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "9"}]},
    });
    let made = sandbox_of(spec.clone(), None).unwrap();
    let mapped = |protocol, host_ip: Option<&str>, host_port, container_port| Published {
        protocol,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port,
    };
    assert_eq!(
        made.port_mappings,
        [
            mapped(Protocol::Tcp, None, 8081, 81),
            mapped(Protocol::Udp, Some("127.0.0.1"), 8082, 82),
            mapped(Protocol::Sctp, None, 8083, 83)
        ]
    );
    assert_eq!((made.hostname.as_str(), made.metadata.attempt), ("given", 2));
    assert_eq!(made.sysctls.into_iter().collect::<Vec<_>>(), [("net.core.somaxconn".to_owned(), "9".to_owned())]);
    for mistyped in ["localhost", "127.0.0.l", "::1"] {
        let mut spec = spec.clone();
        spec["containers"][0]["ports"][1]["hostIP"] = mistyped.into();
        let refused = sandbox_of(spec, None).expect_err("not published on every address instead").to_string();
        assert!(refused.contains("hostIP") && refused.contains(mistyped), "{refused}");
    }
    spec["hostNetwork"] = true.into();
    assert_eq!(sandbox_of(spec, None).unwrap().port_mappings, [], "a program there takes the node's port itself");
    for (name, expected) in
        [("", "web"), (&*"x".repeat(70), &*"x".repeat(63)), (&*format!("{}-y", "x".repeat(62)), &*"x".repeat(62))]
    {
        assert_eq!(sandbox_of(json!({"hostname": name, "containers": []}), None).unwrap().hostname, expected);
    }
}

#[test]
fn the_rest_of_a_container_is_asked_for() {
    let made = container_of(json!({
        "name": "c", "image": "i:1", "workingDir": "/w", "stdin": true, "stdinOnce": true, "tty": true,
        "lifecycle": {"stopSignal": "SIGUSR1"},
    }))
    .unwrap();
    assert_eq!((made.image.as_str(), made.image_id.as_deref()), ("i:1", Some("sha256:1")));
    assert_eq!(made.working_dir.as_deref(), Some("/w"));
    assert!(made.stdin && made.stdin_once && made.tty);
    assert_eq!(made.stop_signal.as_deref(), Some("SIGUSR1"));
    assert_eq!(made.log_path.as_deref(), Some(Path::new("c/3.log")));
    assert_eq!((made.metadata.name.as_str(), made.metadata.attempt), ("c", 3));
    assert_eq!(made.labels[CONTAINER_NAME], "c");
    let plain = container_of(json!({"name": "c", "workingDir": ""})).unwrap();
    assert!(!plain.stdin && !plain.stdin_once && !plain.tty);
    assert_eq!((plain.working_dir, plain.stop_signal), (None, None));
}
