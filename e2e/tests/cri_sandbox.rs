//! What a pod of a kubelet is given before its containers: files, kernel parameters, ports.

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, skipped_without_host_ports, skipped_without_root};
use tonic::Code;

#[test]
fn a_container_has_the_nodes_hosts_unless_its_client_mounts_others() {
    if skipped_without_root("cri_sandbox") {
        return;
    }
    let world = World::new("cri-hosts");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let config = pod("a", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let start = |wanted: v1::ContainerConfig| {
        let id = cri.create(&sandbox, wanted, &config).unwrap();
        cri.start(&id).unwrap();
        id
    };
    let plain = start(shell("plain", BUSYBOX, "sleep 1000"));
    let nodes = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert_eq!(cri.inside(&plain, "cat /etc/hosts"), nodes.trim());
    assert_eq!(cri.inside(&plain, "cat /etc/hostname"), "a");
    assert_eq!(cri.inside(&plain, "echo 192.0.2.1 added >> /etc/hosts"), "");
    let neighbour = start(shell("neighbour", BUSYBOX, "sleep 1000"));
    assert!(cri.inside(&neighbour, "cat /etc/hosts").ends_with("192.0.2.1 added"), "one file of the pod");
    assert_eq!(std::fs::read_to_string("/etc/hosts").unwrap_or_default(), nodes, "which is not the node's");

    let own = world.path("hosts");
    std::fs::write(&own, "192.0.2.2 own\n").unwrap();
    let mut wanted = shell("own", BUSYBOX, "sleep 1000");
    let host_path = own.display().to_string();
    wanted.mounts = vec![v1::Mount { container_path: "/etc/hosts".to_owned(), host_path, ..Default::default() }];
    let mounts_own = start(wanted);
    assert_eq!(cri.inside(&mounts_own, "cat /etc/hosts"), "192.0.2.2 own");
    let mut wanted = shell("readonly", BUSYBOX, "sleep 1000");
    let context = v1::LinuxContainerSecurityContext { readonly_rootfs: true, ..Default::default() };
    wanted.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), resources: None });
    let readonly = start(wanted);
    assert_ne!(cri.exec(&readonly, &["sh", "-c", "echo >> /etc/hosts"], 5).unwrap().exit_code, 0);
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn kernel_parameters_of_a_pods_interface_are_set_once_it_is_there() {
    if skipped_without_root("cri_sandbox") {
        return;
    }
    let world = World::new("cri-sysctls");
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let with = |name: &str, sysctls: &[(&str, &str)]| {
        let sysctls = sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let linux = v1::LinuxPodSandboxConfig { sysctls, ..Default::default() };
        v1::PodSandboxConfig { linux: Some(linux), ..pod(name, &world.path("cri-logs")) }
    };
    let config = with(
        "a",
        &[
            ("net.ipv4.conf.eth0.arp_ignore", "2"),
            ("net/ipv4/conf/eth0/arp_announce", "1"),
            ("net.ipv4.ip_unprivileged_port_start", "100"),
            ("kernel.shm_rmid_forced", "1"),
        ],
    );
    let sandbox = cri.run_sandbox(&config).unwrap();
    let id = cri.create(&sandbox, shell("main", BUSYBOX, "sleep 1000"), &config).unwrap();
    cri.start(&id).unwrap();
    let read = "cd /proc/sys && cat net/ipv4/conf/eth0/arp_ignore net/ipv4/conf/eth0/arp_announce \
                net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/shm_rmid_forced";
    assert_eq!(cri.inside(&id, read), "2\n1\n100\n0\t2147483647\n1");
    let refused = cri.run_sandbox(&with("b", &[("net.ipv4.conf.eth7.arp_ignore", "2")])).unwrap_err();
    assert!(refused.message().contains("net.ipv4.conf.eth7.arp_ignore"), "{refused}");
    assert_eq!(cri.sandboxes(v1::PodSandboxFilter::default()).len(), 1, "nothing is left of it");
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn the_built_in_network_publishes_on_what_it_has() {
    if skipped_without_root("cri_sandbox") {
        return;
    }
    let world = World::new("cri-host-ip");
    if skipped_without_host_ports(&world, "cri_sandbox: ports") {
        return;
    }
    let agent = Agent::with_busybox(&world);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let on = |host_ip: &str| {
        let port = v1::PortMapping {
            host_ip: host_ip.to_owned(),
            host_port: 18_181,
            container_port: 80,
            ..v1::PortMapping::default()
        };
        cri.run_sandbox(&v1::PodSandboxConfig { port_mappings: vec![port], ..pod("a", &world.path("cri-logs")) })
    };
    for any in ["", "0.0.0.0", "::", "127.0.0.1", "::ffff:127.0.0.1"] {
        let sandbox = on(any).unwrap_or_else(|refused| panic!("{any}: {refused}"));
        cri.remove_sandbox(&sandbox).unwrap();
    }
    let refused = on("2001:db8::1").unwrap_err();
    assert!(refused.message().contains("2001:db8::1 is of IPv6"), "{refused}");
    assert_eq!(code(Err::<(), _>(refused)), Code::InvalidArgument);
}
