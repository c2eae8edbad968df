//! The fields of `PodSandboxConfig` and `ContainerConfig`, group by group, seen from inside.

use portreeve_e2e::cri::{image_spec, pod, shell, v1};
use portreeve_e2e::{
    Agent, BUSYBOX, Cri, World, cgroup_hierarchies, remove_cgroup, skipped, skipped_without_host_ports,
    skipped_without_own_users, skipped_without_root, wait_until,
};

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

/// A pod with these namespaces.
fn sandbox(cri: &Cri, world: &World, name: &str, options: v1::NamespaceOption) -> (String, v1::PodSandboxConfig) {
    let mut config = pod(name, &world.path("cri-logs"));
    let context = v1::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        // For the containers that have every right.
        privileged: true,
        ..Default::default()
    };
    config.linux = Some(v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
    (cri.run_sandbox(&config).unwrap_or_else(|refused| panic!("{name}: {refused}")), config)
}

fn start(cri: &Cri, (sandbox, config): &(String, v1::PodSandboxConfig), wanted: v1::ContainerConfig) -> String {
    let id = cri.create(sandbox, wanted, config).unwrap_or_else(|refused| panic!("{refused}"));
    cri.start(&id).unwrap();
    id
}

fn clear(cri: &Cri) {
    for sandbox in cri.sandboxes(v1::PodSandboxFilter::default()) {
        cri.remove_sandbox(&sandbox.id).unwrap();
    }
}

#[test]
fn namespaces_are_the_pods_the_containers_or_the_nodes() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-namespaces");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let inside = |id: &str, name: &str| cri.inside(id, &format!("readlink /proc/self/ns/{name}"));
    let nodes = |name: &str| world.sh(&format!("readlink /proc/self/ns/{name}")).trim().to_owned();
    let sleep = |name: &str| shell(name, BUSYBOX, "sleep 1000");

    let container = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let own = sandbox(&cri, &world, "own", container);
    let (a, b) = (start(&cri, &own, sleep("a")), start(&cri, &own, sleep("b")));
    for name in ["net", "ipc", "uts"] {
        assert_eq!(inside(&a, name), inside(&b, name), "{name}");
        assert_ne!(inside(&a, name), nodes(name), "{name}");
    }
    assert_ne!(inside(&a, "pid"), inside(&b, "pid"));
    let told = cri.sandbox(&own.0).unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(told.pid(), v1::NamespaceMode::Container);

    let shared = sandbox(&cri, &world, "shared", v1::NamespaceOption::default());
    let (a, b) = (start(&cri, &shared, sleep("a")), start(&cri, &shared, sleep("b")));
    assert_eq!(inside(&a, "pid"), inside(&b, "pid"));
    assert!(cri.inside(&a, "ps").matches("sleep 1000").count() >= 2);
    let alone = v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let context = v1::LinuxContainerSecurityContext { namespace_options: Some(alone), ..Default::default() };
    let linux = v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() };
    let alone = start(&cri, &shared, v1::ContainerConfig { linux: Some(linux), ..sleep("alone") });
    assert_ne!(inside(&alone, "pid"), inside(&a, "pid"));
    assert_eq!(cri.inside(&alone, "ps").matches("sleep 1000").count(), 1);
    assert_eq!(inside(&alone, "ipc"), inside(&a, "ipc"));

    let node = v1::NamespaceMode::Node.into();
    let node = v1::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() };
    let node = sandbox(&cri, &world, "node", node);
    let a = start(&cri, &node, sleep("a"));
    for name in ["net", "ipc", "pid"] {
        assert_eq!(inside(&a, name), nodes(name), "{name}");
    }
    assert_eq!(cri.sandbox(&node.0).unwrap().network.unwrap().ip, "");
    clear(&cri);
}

#[test]
fn a_container_sees_the_processes_of_its_target_and_ends_with_it() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-target");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let options = |pid: v1::NamespaceMode, target_id: &str| v1::NamespaceOption {
        pid: pid.into(),
        target_id: target_id.to_owned(),
        ..Default::default()
    };
    let pod = sandbox(&cri, &world, "a", options(v1::NamespaceMode::Container, ""));
    let other = sandbox(&cri, &world, "b", options(v1::NamespaceMode::Container, ""));
    let debugs = |name: &str, target: &str| {
        let mut wanted = shell(name, BUSYBOX, "sleep 2000");
        let context = v1::LinuxContainerSecurityContext {
            namespace_options: Some(options(v1::NamespaceMode::Target, target)),
            ..Default::default()
        };
        wanted.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        wanted
    };
    let target = start(&cri, &pod, shell("target", BUSYBOX, "exec sleep 1000"));
    let debugger = start(&cri, &pod, debugs("debugger", &target));
    let seen = cri.inside(&debugger, "ps");
    assert!(seen.contains("sleep 1000") && seen.contains("sleep 2000"), "{seen}");
    assert_eq!(cri.inside(&debugger, "cat /proc/1/cmdline | tr '\\0' ' '").trim(), "sleep 1000");

    let foreign = cri.create(&other.0, debugs("foreign", &target), &other.1).unwrap_err();
    assert!(foreign.message().contains("another sandbox"), "{foreign}");
    cri.stop(&target, 0).unwrap();
    assert_eq!(cri.wait_exited(&debugger).exit_code, 137);
    let late = cri.create(&pod.0, debugs("late", &target), &pod.1).unwrap_err();
    assert!(late.message().contains("does not run"), "{late}");
    clear(&cri);
}

#[test]
fn a_container_is_told_with_its_groups_and_keeps_what_is_ambient() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-groups");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, "a", v1::NamespaceOption::default());
    let mut wanted = shell("main", BUSYBOX, "sleep 1000");
    let capabilities =
        v1::Capability { add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()], ..Default::default() };
    let context = v1::LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value: 1000 }),
        run_as_group: Some(v1::Int64Value { value: 2000 }),
        supplemental_groups: vec![3000, 4000],
        capabilities: Some(capabilities),
        ..Default::default()
    };
    wanted.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    let id = start(&cri, &pod, wanted);
    let user = cri.container(&id).unwrap().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 2000));
    let inside = cri.inside(&id, "id -G");
    let told = user.supplemental_groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!((inside.as_str(), told.as_str()), ("2000 3000 4000", "2000 3000 4000"));
    let sets = cri.inside(&id, "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status");
    let only = format!("{:016x}", 1_u64 << 10);
    assert_eq!(sets.matches(&only).count(), 4, "{sets}");
    clear(&cri);
}

#[test]
fn an_apparmor_profile_of_the_node_confines_and_one_that_is_not_there_is_refused() {
    let test = "an_apparmor_profile_of_the_node_confines_and_one_that_is_not_there_is_refused";
    if skipped_without_root(test) {
        return;
    }
    let world = World::new("cri-apparmor");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, "a", v1::NamespaceOption::default());
    let under = |name: &str, profile: &str| {
        let mut wanted = shell(name, BUSYBOX, "sleep 1000");
        let apparmor = v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Localhost.into(),
            localhost_ref: profile.to_owned(),
        };
        let context = v1::LinuxContainerSecurityContext { apparmor: Some(apparmor), ..Default::default() };
        wanted.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        wanted
    };
    let refused = cri.create(&pod.0, under("absent", "not-loaded"), &pod.1).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("not-loaded"), "{refused}");
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() == "Y" {
        let name = format!("prt-cri-{}", std::process::id());
        let profile =
            format!("profile {name} flags=(attach_disconnected) {{ file, capability, deny /etc/passwd r, }}\n");
        let file = world.path("profile");
        std::fs::write(&file, profile).unwrap();
        world.sh(&format!("apparmor_parser --replace {}", file.display()));
        let id = start(&cri, &pod, under("confined", &name));
        assert_eq!(cri.inside(&id, "cat /proc/self/attr/current"), format!("{name} (enforce)"));
        assert_ne!(cri.exec(&id, &["cat", "/etc/passwd"], 5).unwrap().exit_code, 0, "also what comes in later");
        // The profile lets no signal in.
        cri.stop(&id, 1).unwrap();
        assert_eq!(cri.container(&id).unwrap().exit_code, 137);
        cri.remove(&id).unwrap();
        world.sh(&format!("apparmor_parser --remove {}", file.display()));
    } else {
        skipped(test, "AppArmor is off: that a profile confines is not shown");
    }
    clear(&cri);
}

#[test]
fn limits_and_devices_are_taken_as_a_kubelet_sends_them() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-kubelet");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, "a", v1::NamespaceOption::default());
    let none = |page_size: &str| v1::HugepageLimit { page_size: page_size.to_owned(), limit: 0 };
    // Source: kubelet, kuberuntime_container_linux.go: a row for every size of the machine, of a container with none.
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sizes = sizes.filter_map(|entry| {
        let kilobytes: u64 =
            entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(if kilobytes >= 1 << 20 { format!("{}GB", kilobytes >> 20) } else { format!("{}MB", kilobytes >> 10) })
    });
    let resources = v1::LinuxContainerResources {
        cpu_shares: 102,
        cpu_period: 100_000,
        cpu_quota: 20_000,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        oom_score_adj: 999,
        hugepage_limits: sizes.map(|size| none(&size)).collect(),
        ..Default::default()
    };
    let mut wanted = shell("main", BUSYBOX, "sleep 1000");
    wanted.linux = Some(v1::LinuxContainerConfig { resources: Some(resources.clone()), security_context: None });
    let place = world.path("devices");
    std::fs::create_dir_all(place.join("below")).unwrap();
    for node in ["one", "below/two"] {
        world.sh(&format!("mknod {} c 1 3", place.join(node).display()));
    }
    wanted.devices = vec![v1::Device {
        container_path: "/dev/all".to_owned(),
        host_path: place.display().to_string(),
        permissions: "rw".to_owned(),
    }];
    let id = start(&cri, &pod, wanted.clone());
    assert_eq!(cri.inside(&id, "echo x > /dev/all/one && echo x > /dev/all/below/two && echo written"), "written");
    let update = v1::UpdateContainerResourcesRequest { container_id: id, linux: Some(resources), ..Default::default() };
    cri.runtime(async |mut runtime| runtime.update_container_resources(update).await).unwrap();
    wanted.metadata.as_mut().unwrap().attempt = 1;
    wanted.devices[0].host_path = world.path("cri-logs").display().to_string();
    assert_eq!(cri.create(&pod.0, wanted, &pod.1).unwrap_err().code(), tonic::Code::InvalidArgument);
    clear(&cri);
}

/// Of a pod's containers one stops whatever comes into it, and its client asks for what cannot be: the other goes on.
#[test]
fn a_hostile_container_and_a_hostile_request_end_no_neighbour() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-hostile");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pid = v1::NamespaceMode::Container.into();
    let pod = sandbox(&cri, &world, "a", v1::NamespaceOption { pid, ..Default::default() });
    let good = start(&cri, &pod, shell("good", BUSYBOX, "sleep 1000"));
    let huge = "0,".repeat(1_000_000);
    let mut wanted = shell("huge", BUSYBOX, "true");
    let resources = v1::LinuxContainerResources { cpuset_cpus: huge, ..Default::default() };
    wanted.linux = Some(v1::LinuxContainerConfig { resources: Some(resources), security_context: None });
    let refused = cri.create(&pod.0, wanted, &pod.1).unwrap_err();
    assert!(refused.message().len() < 5000, "{}", refused.message().len());
    let pipe = world.path("pipe");
    world.sh(&format!("mkfifo {}", pipe.display()));
    let profile = v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Localhost.into(),
        localhost_ref: pipe.display().to_string(),
    };
    let mut wanted = shell("pipe", BUSYBOX, "true");
    let context = v1::LinuxContainerSecurityContext { seccomp: Some(profile), ..Default::default() };
    wanted.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    assert_eq!(cri.create(&pod.0, wanted, &pod.1).unwrap_err().code(), tonic::Code::InvalidArgument);

    let stops = start(&cri, &pod, shell("stops", BUSYBOX, "while :; do kill -STOP -1; done 2> /dev/null"));
    let stopped = (0..4).filter(|_| cri.exec(&stops, &["true"], 1).is_err()).count();
    eprintln!("{stopped} of 4 processes were stopped on their way in");
    assert_eq!(cri.inside(&good, "echo here"), "here");
    assert_eq!(cri.sandbox(&pod.0).unwrap().state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(cri.container(&good).unwrap().state(), v1::ContainerState::ContainerRunning);
    cri.stop(&stops, 0).unwrap();
    clear(&cri);
}

#[test]
fn a_container_that_names_no_apparmor_profile_has_the_default_one() {
    let test = "a_container_that_names_no_apparmor_profile_has_the_default_one";
    if skipped_without_root(test) {
        return;
    }
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.trim() != "Y" {
        return skipped(test, "AppArmor is off");
    }
    let world = World::new("cri-apparmor-default");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, "a", v1::NamespaceOption::default());
    let under = |name: &str, change: &dyn Fn(&mut v1::LinuxContainerSecurityContext)| {
        let mut context = v1::LinuxContainerSecurityContext::default();
        // What else would forbid it is away: all capabilities, and nothing masked or read-only.
        let all = vec!["ALL".to_owned()];
        context.capabilities = Some(v1::Capability { add_capabilities: all, ..Default::default() });
        change(&mut context);
        let mut wanted = shell(name, BUSYBOX, "sleep 1000");
        wanted.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        start(&cri, &pod, wanted)
    };
    let label = |id: &str| cri.inside(id, "cat /proc/self/attr/current");
    let profile = |kind: v1::security_profile::ProfileType| {
        Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() })
    };
    use v1::security_profile::ProfileType::{RuntimeDefault, Unconfined};
    let free = under("free", &|context| context.apparmor = profile(Unconfined));
    let privileged = under("privileged", &|context| context.privileged = true);
    for id in [&free, &privileged] {
        assert_eq!(label(id), "unconfined");
    }
    let plain = under("plain", &|_| {});
    // Somebody tidies up what no file of /etc/apparmor.d has: what comes next has it again.
    let loaded = || std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap();
    let listed = loaded();
    let name =
        listed.lines().find_map(|line| line.strip_suffix(" (enforce)").filter(|n| n.starts_with("portreeve-default-")));
    let name = name.expect("the default profile").to_owned();
    std::fs::write("/sys/kernel/security/apparmor/.remove", &name).unwrap();
    assert!(!loaded().contains(&name));
    let asked = under("asked", &|context| context.apparmor = profile(RuntimeDefault));
    assert_eq!(label(&asked), format!("{name} (enforce)"));
    cri.stop(&plain, 0).unwrap();
    let forbidden = [
        "mkdir -p /m; mount -t tmpfs none /m",
        "echo core > /proc/sys/kernel/core_pattern",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "echo b > /proc/sysrq-trigger",
        "cat /proc/kcore > /dev/null",
    ];
    for line in forbidden {
        let answer = cri.exec(&asked, &["sh", "-c", line], 10).unwrap();
        let words = String::from_utf8_lossy(&answer.stderr);
        assert!(answer.exit_code != 0 && words.contains("ermission denied"), "{line}: {words}");
    }
    for line in
        ["echo 0 > /proc/self/oom_score_adj", "cat /proc/sys/kernel/shmmax > /proc/sys/kernel/shmmax", "ls /sys/class"]
    {
        let answer = cri.exec(&asked, &["sh", "-c", line], 10).unwrap();
        assert_eq!(answer.exit_code, 0, "{line}: {}", String::from_utf8_lossy(&answer.stderr));
    }
    // Signals of the agent come in.
    cri.stop(&asked, 0).unwrap();
    clear(&cri);
}

#[test]
fn a_pod_has_the_users_that_it_is_given() {
    if skipped_without_root("cri_fields") || skipped_without_own_users("cri_fields: users") {
        return;
    }
    let world = World::new("cri-users");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let rows = vec![v1::IdMapping { host_id: 700_000, container_id: 0, length: 65_536 }];
    let own = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: rows.clone(), gids: rows };
    let rootless = vec![v1::IdMapping { host_id: 700_000, container_id: 1, length: 65_536 }];
    for wrong in [rootless, vec![]] {
        let options = v1::UserNamespace { gids: wrong, ..own.clone() };
        let mut config = portreeve_e2e::cri::pod("wrong", &world.path("cri-logs"));
        let options = v1::NamespaceOption { userns_options: Some(options), ..Default::default() };
        let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        config.linux = Some(v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
        let refused = cri.run_sandbox(&config).unwrap_err();
        assert!(
            refused.code() == tonic::Code::InvalidArgument && refused.message().contains("not mapped"),
            "{refused}"
        );
    }
    let pid = v1::NamespaceMode::Container.into();
    let pod = sandbox(
        &cri,
        &world,
        "a",
        v1::NamespaceOption { userns_options: Some(own.clone()), pid, ..Default::default() },
    );
    let shared = world.path("shared");
    let mut wanted = shell("main", BUSYBOX, "sleep 1000");
    wanted.mounts = vec![v1::Mount {
        container_path: "/shared".to_owned(),
        host_path: shared.display().to_string(),
        uid_mappings: own.uids.clone(),
        gid_mappings: own.gids.clone(),
        ..Default::default()
    }];
    let id = start(&cri, &pod, wanted);
    let map = cri.inside(&id, "cat /proc/self/uid_map");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "700000", "65536"]);
    assert_eq!(cri.inside(&id, "id -u; touch /shared/x; stat -c %u /shared/x"), "0\n0");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(shared.join("x")).unwrap());
    assert_eq!(owner, 0, "mapped back");
    let told = cri.sandbox(&pod.0).unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(told.userns_options, Some(own));
    clear(&cri);
}

#[test]
fn a_port_of_the_node_leads_to_the_pod() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-ports");
    if skipped_without_host_ports(&world, "cri_fields: ports") {
        return;
    }
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let mut config = pod("a", &world.path("cri-logs"));
    config.port_mappings = vec![
        v1::PortMapping { host_port: 18_080, container_port: 8080, ..Default::default() },
        v1::PortMapping { host_port: 0, container_port: 9090, ..Default::default() },
    ];
    let id = cri.run_sandbox(&config).unwrap();
    let ip = cri.sandbox(&id).unwrap().network.unwrap().ip;
    let _web = start(&cri, &(id, config), shell("web", BUSYBOX, "httpd -f -p 8080 -h /www"));
    for address in [format!("{ip}:8080"), "127.0.0.1:18080".to_owned()] {
        let page = wait_until("the page comes", 20, || world.fetch(&format!("http://{address}/index.html")));
        assert_eq!(page, "a page from busybox\n", "{address}");
    }
    clear(&cri);
    assert!(world.fetch("http://127.0.0.1:18080/").is_err());
}

#[test]
fn mounts_are_read_only_travel_and_show_images_as_they_are_asked_to() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-mounts");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, "a", v1::NamespaceOption::default());
    let share = world.path("share");
    std::fs::create_dir(&share).unwrap();
    world.sh(&format!(
        "mount -t tmpfs shared {0} && mount --make-shared {0} && mkdir {0}/sub && mount -t tmpfs sub {0}/sub",
        share.display()
    ));
    let mount = |path: &str, change: fn(&mut v1::Mount)| {
        let host_path = share.display().to_string();
        let mut mount = v1::Mount { container_path: path.to_owned(), host_path, ..Default::default() };
        change(&mut mount);
        mount
    };
    let mut wanted = shell("main", BUSYBOX, "sleep 1000");
    wanted.mounts = vec![
        mount("/rw", |_| {}),
        mount("/ro", |mount| mount.readonly = true),
        mount("/rro", |mount| (mount.readonly, mount.recursive_read_only) = (true, true)),
        mount("/noexec", |mount| mount.mount_options = vec!["noexec".to_owned()]),
        mount("/slave", |mount| mount.propagation = v1::MountPropagation::PropagationHostToContainer.into()),
        v1::Mount {
            container_path: "/image".to_owned(),
            image: Some(image_spec(BUSYBOX)),
            image_sub_path: "www".to_owned(),
            ..Default::default()
        },
    ];
    wanted.devices = vec![v1::Device {
        host_path: "/dev/null".to_owned(),
        container_path: "/dev/nothing".to_owned(),
        permissions: "rw".to_owned(),
    }];
    let id = start(&cri, &pod, wanted);
    let writes = |path: &str| cri.exec(&id, &["touch", path], 5).unwrap().exit_code == 0;
    let found = ["/rw/x", "/rw/sub/x", "/ro/x", "/ro/sub/x", "/rro/x", "/rro/sub/x", "/image/x"].map(writes);
    assert_eq!(found, [true, true, false, true, false, false, false]);
    assert_eq!(cri.inside(&id, "cat /image/index.html; echo gone > /dev/nothing"), "a page from busybox");
    let run = "cp /bin/busybox /rw/true && /rw/true";
    assert_eq!(cri.exec(&id, &["sh", "-c", run], 5).unwrap().exit_code, 0);
    let refused = cri.exec(&id, &["/noexec/true"], 5).unwrap_err();
    assert!(refused.message().contains("permission denied"), "{refused}");
    world.sh(&format!("mkdir {0}/late && mount -t tmpfs late {0}/late && touch {0}/late/x", share.display()));
    assert_eq!(cri.inside(&id, "ls /slave/late"), "x");
    assert_eq!(cri.inside(&id, "ls /rw/late"), "");
    let told = cri.container(&id).unwrap().mounts;
    assert!(told[2].recursive_read_only, "{told:?}");
    let image = told[5].image.as_ref().unwrap();
    assert_eq!((image.image.as_str(), told[5].image_sub_path.as_str(), told[5].readonly), (BUSYBOX, "www", true));
    clear(&cri);
    world.sh(&format!("umount -R '{}'", share.display()));
}

#[test]
fn the_cgroup_of_a_kubelet_is_used_and_left_to_it() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-cgroup");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let parent = format!("portreeve-e2e-kubelet-{}", std::process::id());
    let removed = Removed(parent.clone());
    let mut config = pod("a", &world.path("cri-logs"));
    let cgroup_parent = format!("/{parent}/burstable/poda");
    config.linux = Some(v1::LinuxPodSandboxConfig { cgroup_parent, ..Default::default() });
    let id = cri.run_sandbox(&config).unwrap();
    let container = start(&cri, &(id.clone(), config.clone()), shell("main", BUSYBOX, "sleep 1000"));
    let of = |leaf: &str| {
        let below = format!("{parent}/burstable/poda/{leaf}");
        cgroup_hierarchies().iter().filter(|root| root.join(&below).is_dir()).count()
    };
    assert!(of("") >= 1);
    // By this name others find the container of a cgroup.
    assert_eq!(of(&container), of(""));
    cri.remove_sandbox(&id).unwrap();
    assert_eq!(of(&container), 0);
    assert!(of("") >= 1, "it is the kubelet's");
    drop(removed);
}

/// A cgroup that goes with the test.
struct Removed(String);

impl Drop for Removed {
    fn drop(&mut self) {
        for root in cgroup_hierarchies() {
            remove_cgroup(&root.join(&self.0));
        }
    }
}

#[test]
fn a_container_ends_by_its_own_signal_and_may_have_a_terminal_or_every_right() {
    if skipped_without_root("cri_fields") {
        return;
    }
    let world = World::new("cri-process");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let pod = sandbox(&cri, &world, "a", v1::NamespaceOption::default());
    let line = "trap 'exit 21' QUIT; touch /ready; while :; do sleep 0.1; done";
    let mut wanted = shell("signal", BUSYBOX, line);
    wanted.stop_signal = v1::Signal::Sigquit.into();
    let id = start(&cri, &pod, wanted);
    wait_until("it listens", 10, || match cri.exec(&id, &["test", "-e", "/ready"], 5).unwrap().exit_code {
        0 => Ok(()),
        code => Err(code.to_string()),
    });
    assert_eq!(cri.container(&id).unwrap().stop_signal(), v1::Signal::Sigquit);
    cri.stop(&id, 10).unwrap();
    assert_eq!(cri.container(&id).unwrap().exit_code, 21);

    let mut wanted = shell("terminal", BUSYBOX, "test -t 1 && echo terminal; echo error >&2");
    wanted.tty = true;
    let id = start(&cri, &pod, wanted);
    let _ended = cri.wait_exited(&id);
    let log = std::fs::read_to_string(world.path("cri-logs/a/terminal.log")).unwrap();
    let words: Vec<_> =
        log.lines().filter_map(|line| line.split_once(" stdout F ").map(|(_, word)| word.trim_end())).collect();
    assert_eq!(words, ["terminal", "error"], "{log}");

    let mut wanted = shell("all", BUSYBOX, "sleep 1000");
    // As a kubelet asks for it, which gives the same lists to every container.
    let context = v1::LinuxContainerSecurityContext {
        privileged: true,
        masked_paths: vec!["/proc/acpi".to_owned(), "/proc/timer_list".to_owned(), "/sys/firmware".to_owned()],
        readonly_paths: vec!["/proc/sys".to_owned(), "/proc/irq".to_owned()],
        ..Default::default()
    };
    wanted.linux = Some(v1::LinuxContainerConfig { resources: None, security_context: Some(context) });
    let id = start(&cri, &pod, wanted);
    assert_eq!(cri.inside(&id, "mkdir /m && mount -t tmpfs m /m && echo mounted"), "mounted");
    assert_eq!(cri.inside(&id, "cat /proc/sys/net/core/somaxconn > /proc/sys/net/core/somaxconn && echo set"), "set");
    let mounts = cri.inside(&id, "cat /proc/mounts");
    assert!(!mounts.lines().any(|line| line.contains(" /proc/") || line.contains(" /sys/firmware")), "{mounts}");
    // One of the node's that no other container has.
    assert_eq!(cri.inside(&id, "test -c /dev/kmsg && echo there"), "there");
    clear(&cri);
}
