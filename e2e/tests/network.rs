//! A real server in a real image, and who can reach it.

use std::path::Path;
use std::process::Command;

use portreeve_e2e::{
    Agent, BUSYBOX, Image, Registry, World, publishes_host_ports, skipped, skipped_without_host_ports,
    skipped_without_root, wait_until,
};

#[test]
fn nginx_from_a_registry_serves_through_its_host_port() {
    if skipped_without_root("network") {
        return;
    }
    if std::env::var_os("PORTREEVE_GUEST").is_some() {
        skipped("nginx", "its image is made by debootstrap, for which the guest is too slow");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/nginx");
    let output = Command::new(script).output().expect("e2e/images/nginx");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tar = String::from_utf8_lossy(&output.stdout).trim().into();
    let world = World::new("nginx");
    let registry = Registry::start(&world, 5000);
    let reference = registry.push(&Image { reference: "test.local/nginx:1".to_owned(), tar }, "nginx:1");
    let agent = Agent::start(&world);
    agent.drop_manifest(
        "nginx.yaml",
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: nginx}}
spec:
  containers:
  - name: nginx
    image: {reference}
    ports: [{{containerPort: 80, hostPort: 18081}}]
    readinessProbe: {{httpGet: {{port: 80}}, periodSeconds: 1}}
"
        ),
    );
    agent.wait_ready("nginx");
    assert_eq!(world.fetch("http://127.0.0.1:18081/").unwrap(), "nginx on portreeve\n");
    // The package manager of the image removed files of the layer below: whiteouts hold.
    let gone = agent.client(&["exec", "nginx", "--", "ls", "/var/lib/apt/lists"]);
    assert_ne!(gone.code, 0, "a file that a layer removed is there: {}", gone.stdout);
}

#[test]
fn pods_reach_each_other_and_the_host_reaches_them() {
    if skipped_without_root("network") {
        return;
    }
    let world = World::new("reach");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("web.yaml", &web(""));
    agent.drop_manifest("client.yaml", &web("").replace("name: web", "name: client"));
    let ip = agent.wait_ready("web")["status"]["podIP"].as_str().unwrap().to_owned();
    let other = agent.wait_ready("client")["status"]["podIP"].as_str().unwrap().to_owned();
    assert_ne!(ip, other);
    let url = format!("http://{ip}:8080/");
    wait_until("the server listens", 10, || world.fetch(&url));
    for pod in ["client", "web"] {
        assert_eq!(
            agent.client(&["exec", pod, "--", "timeout", "5", "wget", "-qO-", &url]).ok(),
            "a page from busybox\n",
            "{pod}"
        );
    }
    let route = agent.client(&["exec", "client", "--", "ip", "route"]).ok();
    assert!(route.contains("default via "), "{route}");
}

#[test]
fn a_published_port_answers_everywhere_it_should() {
    if skipped_without_root("network") {
        return;
    }
    let world = World::new("ports");
    if skipped_without_host_ports(&world, "ports") {
        return;
    }
    // A second address of the host, and a machine outside that is reached through it.
    // Its name is in the world's own mounts, and goes with them however this test ends.
    world.sh("mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip netns add outside");
    world.sh("ip link add uplink type veth peer name eth0 netns outside");
    world.sh("ip addr add 192.0.2.1/24 dev uplink && ip link set uplink up");
    world.sh("ip -n outside addr add 192.0.2.2/24 dev eth0 && ip -n outside link set eth0 up && ip -n outside link set lo up");
    let agent = Agent::with_busybox(&world);
    for (name, port) in [("server", ", ports: [{containerPort: 8080, hostPort: 18080}]"), ("client", "")] {
        agent.drop_manifest(
            &format!("{name}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
                 - {{name: main, image: '{BUSYBOX}', command: [httpd, -f, -p, '8080', -h, /www]{port}}}\n"
            ),
        );
    }
    let server = agent.wait_ready("server");
    let ip = server["status"]["podIP"].as_str().unwrap().to_owned();
    let client = agent.wait_ready("client");
    let client_ip = client["status"]["podIP"].as_str().unwrap().to_owned();
    let page = "a page from busybox\n";
    wait_until("the server listens", 10, || world.fetch(&format!("http://{ip}:8080/")));
    assert_eq!(world.fetch("http://127.0.0.1:18080/").unwrap(), page, "through loopback");
    assert_eq!(world.fetch("http://192.0.2.1:18080/").unwrap(), page, "through the host's own address");
    let outside = world
        .command("ip")
        .args([
            "netns",
            "exec",
            "outside",
            "busybox",
            "timeout",
            "5",
            "busybox",
            "wget",
            "-qO-",
            "http://192.0.2.1:18080/",
        ])
        .output();
    assert_eq!(String::from_utf8_lossy(&outside.unwrap().stdout), page, "from another machine");
    let from = |pod: &str, url: &str| agent.client(&["exec", pod, "--", "timeout", "5", "wget", "-qO-", url]);
    assert_eq!(from("client", &format!("http://{ip}:8080/")).ok(), page, "from pod to pod");
    assert_eq!(from("client", "http://192.0.2.1:18080/").ok(), page, "from a pod through the host");
    assert_eq!(from("server", "http://192.0.2.1:18080/").ok(), page, "from the pod to itself through the host");

    // What a pod says to the outside leaves with the host's address: a server there tells who asked.
    let log = world.path("seen");
    let seen = std::fs::File::create(&log).unwrap();
    let mut server = world
        .command("ip")
        .args(["netns", "exec", "outside", "busybox", "httpd", "-f", "-vv", "-p", "192.0.2.2:7000", "-h", "/proc/self"])
        .stderr(seen)
        .spawn()
        .unwrap();
    let peers = wait_until("the outside machine was asked", 10, || {
        let answer = from("client", "http://192.0.2.2:7000/");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("192.0.2.1:") { Ok(text) } else { Err(format!("{text} {}", answer.stderr)) }
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(!peers.contains(&client_ip), "the pod's own address left the machine: {peers}");

    // Loopback of the host is not reachable from a pod, although a published port answers there.
    let spoofed = agent.client(&["exec", "client", "--", "sh", "-c", "ip route add 127.0.0.0/8 dev eth0"]);
    assert_ne!(spoofed.code, 0, "a pod must not have NET_ADMIN");

    agent.remove_manifest("server.yaml");
    agent.wait_gone("server");
    assert!(world.fetch("http://127.0.0.1:18080/").is_err());
    world.sh("ip link del uplink; ip netns del outside; umount /run/netns");
}

fn web(ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', command: [httpd, -f, -p, '8080', -h, /www]{ports}}}\n"
    )
}

const PUBLISHED: &str = ", ports: [{containerPort: 8080, hostPort: 18080}]";

#[test]
fn a_deleted_table_comes_back_at_once_and_after_a_restart() {
    if skipped_without_root("network") {
        return;
    }
    let world = World::new("table");
    if skipped_without_host_ports(&world, "drift of the table") {
        return;
    }
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest("web.yaml", &web(PUBLISHED));
    agent.wait_ready("web");
    wait_until("the port answers", 10, || world.fetch("http://127.0.0.1:18080/"));
    let tables = agent.census().tables;
    let delete = || tables.iter().for_each(|table| drop(world.sh(&format!("nft delete {table}"))));
    delete();
    wait_until("the running agent made the rules again", 5, || world.fetch("http://127.0.0.1:18080/"));
    agent.terminate();
    delete();
    assert!(world.fetch("http://127.0.0.1:18080/").is_err());
    agent.launch();
    wait_until("the started agent made the rules again", 10, || world.fetch("http://127.0.0.1:18080/"));
}

#[test]
fn a_deleted_link_or_bridge_comes_back_under_the_running_container() {
    if skipped_without_root("network") {
        return;
    }
    let world = World::new("links");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("web.yaml", &web(""));
    let before = agent.wait_ready("web");
    let ip = before["status"]["podIP"].as_str().unwrap().to_owned();
    let answers = |what: &str| wait_until(what, 10, || world.fetch(&format!("http://{ip}:8080/")));
    answers("the pod answers");
    let links = agent.census().links;
    assert_eq!(links.len(), 2, "a bridge and the pod's link: {links:?}");
    for link in &links {
        world.sh(&format!("ip link del {link}"));
        answers(&format!("the pod answers after {link} was deleted"));
    }
    assert_eq!(agent.census().links, links);
    let after = agent.pod("web").unwrap();
    let first = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0].clone();
    assert_eq!(first(&before)["containerID"], first(&after)["containerID"]);
    assert_eq!(first(&after)["restartCount"], 0);
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
}

#[test]
fn a_kernel_that_cannot_publish_a_port_is_named_and_other_pods_run() {
    if skipped_without_root("network") {
        return;
    }
    let world = World::new("unpublished");
    if publishes_host_ports(&world) {
        skipped("a kernel without dnat", "this one has it");
        return;
    }
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("web.yaml", &web(PUBLISHED));
    agent.drop_manifest("plain.yaml", &web("").replace("name: web", "name: plain"));
    agent.wait_ready("plain");
    wait_until("an event names what the kernel lacks", 20, || {
        let events = agent.client(&["get", "events"]).ok();
        if events.contains("18080") && events.contains("this kernel lacks") { Ok(()) } else { Err(events) }
    });
    let pod = agent.pod("web").unwrap_or_default();
    assert_eq!(pod["status"]["phase"], "Pending");
    let doctor = agent.client(&["doctor"]);
    assert!(doctor.stdout.contains("host ports cannot be published"), "{}{}", doctor.stdout, doctor.stderr);
}
