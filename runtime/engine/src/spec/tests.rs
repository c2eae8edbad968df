//! One golden specification, and what single fields change in it.

use serde_json::{Value, json};

use super::*;
use crate::container::{AppArmorProfile, Mount, MountSource, Propagation, SecurityContext, SelinuxOptions};
use crate::sandbox::{DnsConfig, Namespaces, SandboxMetadata};
use crate::{ContainerMetadata, Owner};

fn sandbox() -> SandboxConfig {
    SandboxConfig {
        metadata: SandboxMetadata { name: "web".into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
        owner: Owner::Node,
        hostname: "web".into(),
        log_directory: "/var/log/pods/web".into(),
        dns: DnsConfig::default(),
        port_mappings: vec![],
        bandwidth: Default::default(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: "/portreeve/podu".into(),
        namespaces: Namespaces::default(),
        privileged: false,
        selinux: None,
        sysctls: Default::default(),
        resources: Default::default(),
        handler: None,
    }
}

fn image() -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {
            "Env": ["PATH=/opt/bin", "A=image", "nonsense"], "Entrypoint": ["/init"], "Cmd": ["serve"],
            "WorkingDir": "/srv"
        }
    }))
    .unwrap()
}

fn config() -> ContainerConfig {
    ContainerConfig {
        metadata: ContainerMetadata { name: "c".into(), attempt: 0 },
        image: "img".into(),
        ..ContainerConfig::default()
    }
}

fn spec(config: &ContainerConfig, sandbox: &SandboxConfig) -> Result<Value, EngineError> {
    let identity = Identity { uid: 7, gid: 8, groups: vec![8, 9], home: Some("/home/x".into()) };
    let files = SandboxFiles {
        hostname: Path::new("/run/s/hostname"),
        resolv_conf: Path::new("/run/s/resolv.conf"),
        hosts: None,
        shm: Some(Path::new("/run/s/shm")),
    };
    let spec = specification(Inputs {
        config,
        sandbox,
        image: &image(),
        identity: &identity,
        hostname: "web",
        cgroup: "/portreeve/podu/c",
        files,
        user_namespace: None,
        pid_namespace: Some("/proc/self/fd/9"),
        processes_of: config.processes_of.is_some().then_some(77),
        process_label: config.security.selinux.as_ref().map(|_| "u:r:t:s0:c1,c2"),
        mount_label: config.security.selinux.as_ref().map(|_| "u:object_r:f:s0:c1,c2"),
        devices: &[],
        seccomp: None,
        images: &[ImageMount::Layers(vec!["/l/1".into(), "/l/0".into()])],
        volumes: &[],
        default_apparmor: Some("default"),
        capabilities: u64::MAX,
    })?;
    let mut value = serde_json::to_value(spec).unwrap();
    // A set has no order of its own.
    for kind in ["bounding", "effective", "permitted"] {
        if let Some(list) = value["process"]["capabilities"][kind].as_array_mut() {
            list.sort_by_key(|name| name.as_str().unwrap_or_default().to_owned());
        }
    }
    // The filter is long, and its own tests are elsewhere.
    if !value["linux"]["seccomp"].is_null() {
        value["linux"]["seccomp"] = json!("present");
    }
    Ok(value)
}

#[test]
fn a_plain_container_looks_like_this() {
    let text = serde_json::to_string_pretty(&spec(&config(), &sandbox()).unwrap()).unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/plain.json");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(golden, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(golden).unwrap(), "UPDATE_EXPECT=1 writes {golden}");
}

#[test]
fn command_and_args_replace_as_in_kubernetes() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (command, args, expect) in
        [("", "", "/init serve"), ("", "x y", "/init x y"), ("sh", "", "sh"), ("sh -c", "true", "sh -c true")]
    {
        let config = ContainerConfig { command: words(command), args: words(args), ..config() };
        assert_eq!(spec(&config, &sandbox()).unwrap()["process"]["args"], json!(words(expect)), "{command}|{args}");
    }
}

#[test]
fn the_callers_environment_wins_and_each_name_is_there_once() {
    let envs = [("A", "first"), ("B", "x=y"), ("A", "last"), ("HOME", "/h")];
    let config = ContainerConfig {
        envs: envs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        tty: true,
        ..config()
    };
    let expect = ["PATH=/opt/bin", "HOSTNAME=web", "TERM=xterm", "HOME=/h", "A=last", "B=x=y"];
    assert_eq!(spec(&config, &sandbox()).unwrap()["process"]["env"], json!(expect));
    for name in ["", "A=B", "A\0"] {
        let config = ContainerConfig { envs: vec![(name.to_owned(), String::new())], ..config.clone() };
        assert!(spec(&config, &sandbox()).is_err(), "{name:?}");
    }
}

#[test]
fn capabilities_are_added_and_dropped_as_in_cri() {
    let held = |add: &[&str], drop: &[&str], privileged| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let security = SecurityContext {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            privileged,
            ..SecurityContext::default()
        };
        let value = spec(&ContainerConfig { security, ..config() }, &sandbox())?;
        let names = value["process"]["capabilities"]["bounding"].as_array().unwrap().clone();
        Ok::<_, EngineError>(names.iter().map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(held(&[], &[], false).unwrap().len(), 14);
    assert_eq!(held(&["net_admin", "CAP_CHOWN"], &["ALL"], false).unwrap(), ["CAP_CHOWN", "CAP_NET_ADMIN"]);
    assert_eq!(held(&["ALL"], &["NET_RAW"], false).unwrap().len(), 40);
    assert_eq!(held(&[], &[], true).unwrap().len(), 41);
    assert!(held(&["CAP_FLY"], &[], false).is_err());
}

#[test]
fn what_is_ambient_is_also_held_and_inherited() {
    let security = SecurityContext {
        drop_capabilities: vec!["ALL".to_owned()],
        ambient_capabilities: vec!["net_bind_service".to_owned()],
        ..SecurityContext::default()
    };
    let value = spec(&ContainerConfig { security, ..config() }, &sandbox()).unwrap();
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(value["process"]["capabilities"][set], json!(["CAP_NET_BIND_SERVICE"]), "{set}");
    }
    let none = spec(&config(), &sandbox()).unwrap();
    assert!(none["process"]["capabilities"].get("ambient").is_none_or(Value::is_null));
}

#[test]
fn a_profile_of_the_node_and_labels_are_those_that_are_asked_for() {
    let asked = |security: SecurityContext| spec(&ContainerConfig { security, ..config() }, &sandbox()).unwrap();
    let none = asked(SecurityContext::default());
    assert_eq!(
        (&none["process"]["apparmorProfile"], &none["process"]["selinuxLabel"]),
        (&json!("default"), &Value::Null)
    );
    let unconfined = SecurityContext { apparmor: AppArmorProfile::Unconfined, ..SecurityContext::default() };
    for without in [unconfined, SecurityContext { privileged: true, ..SecurityContext::default() }] {
        assert_eq!(asked(without)["process"]["apparmorProfile"], Value::Null);
    }
    let localhost = AppArmorProfile::Localhost("mine".to_owned());
    let named = asked(SecurityContext { apparmor: localhost, ..SecurityContext::default() });
    assert_eq!(named["process"]["apparmorProfile"], json!("mine"));

    let selinux = Some(SelinuxOptions::default());
    let labelled = asked(SecurityContext { selinux: selinux.clone(), ..SecurityContext::default() });
    assert_eq!(labelled["process"]["selinuxLabel"], json!("u:r:t:s0:c1,c2"));
    assert_eq!(labelled["linux"]["mountLabel"], json!("u:object_r:f:s0:c1,c2"));
    // Its files are the pod's, for its other containers.
    let privileged = asked(SecurityContext { selinux, privileged: true, ..SecurityContext::default() });
    assert_eq!(privileged["process"]["selinuxLabel"], Value::Null);
    assert_eq!(privileged["linux"]["mountLabel"], json!("u:object_r:f:s0:c1,c2"));
}

#[test]
fn a_privileged_container_has_no_filter_and_no_masks() {
    let security = SecurityContext { privileged: true, ..SecurityContext::default() };
    let value = spec(&ContainerConfig { security, ..config() }, &sandbox()).unwrap();
    assert_eq!(value["linux"]["seccomp"], Value::Null);
    assert_eq!(value["linux"]["maskedPaths"], json!([]));
    assert_eq!(value["linux"]["resources"]["devices"][0]["allow"], json!(true));
}

#[test]
fn mounts_replace_the_engines_own_and_parents_come_first() {
    let host = |path: &str, readonly| Mount {
        options: Vec::new(),
        ids: None,
        relabel: false,
        container_path: path.into(),
        source: MountSource::HostPath("/host".into()),
        readonly,
        recursive_readonly: false,
        propagation: Propagation::Private,
    };
    let image = Mount {
        source: MountSource::Image { id: "x".into(), sub_path: None },
        options: vec!["noexec".into(), "nodev".into()],
        ..host("/models", true)
    };
    let mounts = vec![host("/data/deep/", true), host("//data/./", false), image, host("/etc/hostname", true)];
    let value = spec(&ContainerConfig { mounts, ..config() }, &sandbox()).unwrap();
    let all = value["mounts"].as_array().unwrap();
    let at = |path: &str| all.iter().filter(|one| one["destination"] == json!(path)).cloned().collect::<Vec<_>>();
    assert_eq!(at("/etc/hostname").len(), 1);
    assert_eq!(at("/etc/hostname")[0]["source"], json!("/host"));
    assert_eq!(at("/data/deep")[0]["options"], json!(["rbind", "rprivate", "ro"]));
    assert_eq!(at("/models")[0]["options"], json!(["ro", "nosuid", "nodev", "noexec", "lowerdir=/l/1:/l/0"]));
    let executable = Mount { source: MountSource::Image { id: "x".into(), sub_path: None }, ..host("/models", true) };
    let value = spec(&ContainerConfig { mounts: vec![executable], ..config() }, &sandbox()).unwrap();
    let shown = value["mounts"].as_array().unwrap().iter().find(|one| one["destination"] == json!("/models")).unwrap();
    assert_eq!(shown["options"], json!(["ro", "nosuid", "nodev", "lowerdir=/l/1:/l/0"]), "who wants noexec says so");
    let place = |path: &str| all.iter().position(|one| one["destination"] == json!(path)).unwrap();
    assert!(place("/data") < place("/data/deep"));
    for path in ["/", "relative", "/a/.."] {
        assert!(spec(&ContainerConfig { mounts: vec![host(path, true)], ..config() }, &sandbox()).is_err(), "{path}");
    }
}

#[test]
fn a_mount_has_the_ids_that_are_asked_for_and_else_those_of_the_pods_users() {
    let rows = |host: u32| vec![IdMapping { container: 0, host, length: 65_536 }];
    let of_pod = |host: u32| UserNamespace::Pod { uid_maps: rows(host), gid_maps: rows(host) };
    let shown = |source: MountSource, ids: Option<u32>, user: UserNamespace| {
        let mount = Mount {
            options: Vec::new(),
            ids: ids.map(|host| crate::MountIds { users: rows(host), groups: rows(host) }),
            relabel: false,
            container_path: "/data".into(),
            source,
            readonly: false,
            recursive_readonly: false,
            propagation: Propagation::Private,
        };
        let sandbox = SandboxConfig { namespaces: Namespaces { user, ..Namespaces::default() }, ..sandbox() };
        let value = spec(&ContainerConfig { mounts: vec![mount], ..config() }, &sandbox)?;
        let all = value["mounts"].as_array().unwrap();
        let one = all.iter().find(|one| one["destination"] == json!("/data")).unwrap();
        let mapped = one["options"].as_array().unwrap().contains(&json!("idmap"));
        Ok::<_, EngineError>((mapped, one["uidMappings"][0]["hostID"].clone(), one["gidMappings"][0]["hostID"].clone()))
    };
    let path = || MountSource::HostPath("/host".into());
    let image = || MountSource::Image { id: "x".into(), sub_path: None };
    let by_pod = (true, Value::Null, Value::Null);
    assert_eq!(shown(path(), None, UserNamespace::Node).unwrap(), (false, Value::Null, Value::Null));
    assert_eq!(shown(path(), None, of_pod(100_000)).unwrap(), by_pod);
    assert_eq!(shown(path(), Some(100_000), of_pod(100_000)).unwrap(), by_pod);
    let own = (true, json!(200_000), json!(200_000));
    assert_eq!(shown(path(), Some(200_000), of_pod(100_000)).unwrap(), own);
    assert_eq!(shown(path(), Some(200_000), UserNamespace::Node).unwrap(), own);
    assert_eq!(shown(image(), Some(100_000), of_pod(100_000)).unwrap(), by_pod);
    assert!(matches!(shown(image(), Some(200_000), of_pod(100_000)), Err(EngineError::Invalid { .. })));
}

#[test]
fn a_shared_pid_namespace_is_joined_and_the_nodes_is_inherited() {
    let kinds = |pid, own_processes| {
        let sandbox = SandboxConfig { namespaces: Namespaces { pid, ..Namespaces::default() }, ..sandbox() };
        let value = spec(&ContainerConfig { own_processes, ..config() }, &sandbox).unwrap();
        let all = value["linux"]["namespaces"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["type"] == json!("pid"))
    };
    assert_eq!(kinds(PidNamespace::Container, false), Some(json!({"type": "pid"})));
    assert_eq!(kinds(PidNamespace::Pod, false), Some(json!({"type": "pid", "path": "/proc/self/fd/9"})));
    assert_eq!(kinds(PidNamespace::Node, false), None);
    // Unless it is to see its own alone.
    for pid in [PidNamespace::Container, PidNamespace::Pod, PidNamespace::Node] {
        assert_eq!(kinds(pid, true), Some(json!({"type": "pid"})), "{pid:?}");
    }
}

#[test]
fn a_containers_pid_namespace_goes_before_the_sandboxs() {
    let config = ContainerConfig { processes_of: Some("0123456789abcdef".repeat(4).parse().unwrap()), ..config() };
    let value = spec(&config, &sandbox()).unwrap();
    let all = value["linux"]["namespaces"].as_array().unwrap();
    let pid = all.iter().filter(|one| one["type"] == json!("pid")).collect::<Vec<_>>();
    assert_eq!(pid, [&json!({"type": "pid", "path": "/proc/77/ns/pid"})]);
}
