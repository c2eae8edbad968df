//! A kubelet's pods in networks of CNI plugins.

use std::collections::BTreeMap;
use std::path::Path;

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::{
    Agent, BUSYBOX, Cri, World, preload_busybox, skipped, skipped_without_host_ports, skipped_without_root, wait_until,
};
use serde_json::json;
use tonic::Code;

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

fn network_ready(cri: &Cri) -> (bool, String, String) {
    let asked = v1::StatusRequest::default();
    let status = cri.runtime(async |mut runtime| runtime.status(asked).await).unwrap().status.unwrap();
    let condition = status.conditions.into_iter().find(|one| one.r#type == "NetworkReady").unwrap();
    (condition.status, condition.reason, condition.message)
}

#[test]
fn pods_of_a_kubelet_are_in_the_clusters_network_and_the_nodes_own_are_not() {
    if skipped_without_root("cri_network") {
        return;
    }
    if !Path::new(PLUGINS).join("bridge").exists() {
        skipped("cri_network", "Debian's containernetworking-plugins are not installed");
        return;
    }
    let world = World::new("cri-cni");
    preload_busybox(&world);
    let mut agent = Agent::start_with(&world, &["--cri-network", "cni", "--cri-cni-bin-dir", PLUGINS]);
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    let logs = world.path("cri-logs");

    // Before the cluster's network is installed: a node that is not ready, as every kubelet knows it.
    let (ready, reason, message) = network_ready(&cri);
    assert!(!ready && reason == "NetworkPluginNotReady", "{reason}: {message}");
    assert!(message.contains(agent.networks().to_str().unwrap()), "{message}");
    let refused = cri.run_sandbox(&pod("early", &logs)).unwrap_err();
    assert!(refused.message().contains("has no configuration of one"), "{refused}");
    // Those that install it are on the node's network.
    let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..v1::NamespaceOption::default() };
    let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
    let installer = v1::PodSandboxConfig { linux: Some(linux), ..pod("installer", &logs) };
    let installer = cri.run_sandbox(&installer).unwrap();

    let ipam = json!({ "type": "host-local", "dataDir": world.path("ipam"),
        "ranges": [[{ "subnet": "10.92.0.0/24" }], [{ "subnet": "fd92::/64" }]], "routes": [{ "dst": "0.0.0.0/0" }] });
    // As far as the kernel has what the plugins need.
    let publishes = !skipped_without_host_ports(&world, "cri_network: ports by portmap");
    let bucket = ["qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "25ms"];
    let succeeds = |program: &str, arguments: &[&str]| {
        world.command(program).args(arguments).status().is_ok_and(|status| status.success())
    };
    let shapes = succeeds("tc", &bucket) && succeeds("ip", &["link", "add", "probe", "type", "ifb"]);
    if shapes {
        world.sh("ip link del probe && tc qdisc del dev lo root");
    } else {
        skipped("cri_network: limits by bandwidth", "this kernel has no token bucket or no ifb links");
    }
    let mut plugins = vec![json!({ "type": "bridge", "bridge": "prtcni0", "isGateway": true, "ipam": ipam })];
    if publishes {
        plugins.push(json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    if shapes {
        plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
    }
    let list = json!({ "cniVersion": "1.0.0", "name": "cluster", "plugins": plugins });
    std::fs::create_dir(agent.networks()).unwrap();
    std::fs::write(agent.networks().join("10-cluster.conflist"), list.to_string()).unwrap();
    assert_eq!(network_ready(&cri), (true, String::new(), String::new()), "no restart is needed");

    let published = v1::PortMapping {
        protocol: v1::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 8099,
        host_ip: String::new(),
    };
    let limits = BTreeMap::from([("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())]);
    let web = v1::PodSandboxConfig { port_mappings: vec![published], annotations: limits, ..pod("web", &logs) };
    let sandbox = cri.run_sandbox(&web).unwrap();
    let network = cri.sandbox(&sandbox).unwrap().network.unwrap();
    assert_eq!(network.ip, "10.92.0.2");
    assert_eq!(network.additional_ips.iter().map(|ip| ip.ip.as_str()).collect::<Vec<_>>(), ["fd92::2"]);
    let serve = shell("web", BUSYBOX, "echo hello > /index.html; exec httpd -f -p 80 -h /");
    let container = cri.create(&sandbox, serve, &web).unwrap();
    cri.start(&container).unwrap();
    let published = if publishes { "10.92.0.1:8099" } else { "10.92.0.2:80" };
    for address in ["10.92.0.2:80", published] {
        wait_until("the pod answers", 10, || match world.fetch(&format!("http://{address}/")) {
            Ok(page) if page == "hello\n" => Ok(()),
            other => Err(format!("{address}: {other:?}")),
        });
    }
    if shapes {
        let shaped = world.sh("tc qdisc show");
        assert!(shaped.contains("rate 10Mbit"), "{shaped}");
    }
    assert!(cri.inside(&container, "ip -6 addr show dev eth0").contains("fd92::2"));
    for own in ["127.0.0.1", "[::1]"] {
        assert_eq!(cri.inside(&container, &format!("wget -q -O - http://{own}/")), "hello");
    }
    let greedy = BTreeMap::from([("kubernetes.io/egress-bandwidth".to_owned(), "much".to_owned())]);
    let greedy = v1::PodSandboxConfig { annotations: greedy, ..pod("greedy", &logs) };
    assert_eq!(code(cri.run_sandbox(&greedy)), Code::InvalidArgument);

    // A pod of the node's own manifests is where it always is.
    agent.drop_manifest(
        "own.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: own}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers: [{{name: c, image: '{BUSYBOX}', command: [sleep, '1000']}}]\n"
        ),
    );
    let own = agent.wait_ready("own");
    assert!(own["status"]["podIP"].as_str().is_some_and(|ip| !ip.starts_with("10.92.")), "{}", own["status"]);

    agent.kill();
    agent.launch();
    let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
    assert_eq!(cri.sandbox(&sandbox).unwrap().network.unwrap().ip, "10.92.0.2");
    assert_eq!(world.fetch(&format!("http://{published}/")).as_deref(), Ok("hello\n"));

    // By what it was attached with, although the cluster has another network by now.
    std::fs::remove_file(agent.networks().join("10-cluster.conflist")).unwrap();
    for sandbox in [&sandbox, &installer] {
        cri.stop_sandbox(sandbox).unwrap();
        cri.stop_sandbox(sandbox).unwrap();
        cri.remove_sandbox(sandbox).unwrap();
    }
    let taken = std::fs::read_dir(world.path("ipam/cluster")).unwrap().map(|entry| entry.unwrap().file_name());
    let taken: Vec<_> = taken.filter(|name| name.to_string_lossy().starts_with(['1', 'f'])).collect();
    assert!(taken.is_empty(), "{taken:?}");
    assert!(world.fetch(&format!("http://{published}/")).is_err());
    assert_eq!(std::fs::read_dir(agent.run_dir().join("netns")).unwrap().count(), 0);
    // What the plugins leave of the network itself.
    world.sh("ip link del prtcni0");
    if publishes {
        world.sh("nft delete table ip nat && nft delete table ip6 nat");
    }
}

#[test]
fn a_kubelet_of_a_cluster_without_a_network_is_told_of_in_the_log_and_stays_ready() {
    if skipped_without_root("cri_network") {
        return;
    }
    let world = World::new("cri-no-network");
    let arguments = |network| ["--cri-network", network];
    let mut agent = Agent::start_with(&world, &arguments("builtin"));
    let told = |agent: &Agent<'_>| {
        let cri = Cri::connect(&agent.run_dir().join("cri.sock"));
        let network_config = Some(v1::NetworkConfig { pod_cidr: "10.244.0.0/24".to_owned() });
        let asked = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
        cri.runtime(async |mut runtime| runtime.update_runtime_config(asked).await).unwrap();
        (network_ready(&cri).0, agent.log().contains("set cri.network to cni to have them wait"))
    };
    assert_eq!(told(&agent), (true, false));
    agent.terminate();
    agent.use_arguments(&arguments("auto"));
    agent.launch();
    assert_eq!(told(&agent), (true, true));
}
