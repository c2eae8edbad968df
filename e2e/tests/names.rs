//! Names of hosts: registries and probes find them by the machine's hosts file and nameservers, never
//! by the C library, whose modules a static program must not load.

use std::net::UdpSocket;

use portreeve_e2e::{Agent, BUSYBOX, Image, Registry, World, preload_busybox, skipped_without_root};
use serde_json::json;

/// A world with files of its own that say how names are found; to the C library they are unknown.
fn world(name: &str, hosts: &str, resolv_conf: &str) -> World {
    let world = World::new(name);
    for (file, text) in [("hosts", hosts), ("resolv.conf", resolv_conf), ("nsswitch.conf", "hosts: nowhere\n")] {
        std::fs::write(world.path(file), text).unwrap();
        world.sh(&format!("mount --bind {} /etc/{file}", world.path(file).display()));
    }
    world
}

/// A nameserver at `address` of the world that knows one name, as 127.0.0.1.
fn nameserver(world: &World, address: &str, known: &'static str) {
    let socket = world.inside(|| UdpSocket::bind((address, 53)).expect("port 53 of a new namespace"));
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // RFC 1035 §4: a header of 12 bytes, the name as labels with their lengths, type and class.
            let mut message = buffer[..length].to_vec();
            let name: Vec<u8> =
                known.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
            let (ours, kind) = (message[12..].starts_with(&name) && message[12 + name.len()] == 0, message[length - 3]);
            message[2..4].copy_from_slice(&[0x81, if ours { 0x80 } else { 0x83 }]);
            if ours && kind == 1 {
                message[7] = 1;
                message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            // The asker may have gone.
            let _ = socket.send_to(&message, from);
        }
    });
}

#[test]
fn a_registry_is_found_by_the_hosts_file() {
    if skipped_without_root("names") {
        return;
    }
    let world = world("hosts", "127.0.0.1 localhost\n127.0.0.1 quay.test harbour.test\n", "nameserver 127.0.0.1\n");
    let registry = Registry::start(&world, 5000);
    registry.push(&Image::busybox(world.home(), "app:1"), "app:1");
    let agent = Agent::start_with(&world, &["--insecure-registry", "harbour.test:5000"]);
    agent.client(&["image", "pull", "harbour.test:5000/app:1"]).ok();
    // Nothing listens where the nameserver should be.
    let answer = agent.client(&["image", "pull", "elsewhere.test:5000/app:1"]);
    assert_ne!(answer.code, 0);
    for part in ["looking up elsewhere.test: ", "nameserver 127.0.0.1 cannot be reached", "/etc/resolv.conf"] {
        assert!(answer.stderr.contains(part), "{part:?} is missing: {}", answer.stderr);
    }
}

#[test]
fn a_registry_is_found_by_the_nameserver_that_resolv_conf_names_now() {
    if skipped_without_root("names") {
        return;
    }
    let world =
        world("dns", "127.0.0.1 localhost\n", "nameserver 127.0.0.1\nsearch a.test town.test\noptions ndots:2\n");
    let registry = Registry::start(&world, 5000);
    registry.push(&Image::busybox(world.home(), "app:1"), "app:1");
    nameserver(&world, "127.0.0.1", "quay.old.town.test");
    nameserver(&world, "127.0.0.2", "quay.new.test");
    let insecure = ["--insecure-registry", "quay.old:5000", "--insecure-registry", "quay.new.test:5000"];
    let agent = Agent::start_with(&world, &insecure);
    agent.client(&["image", "pull", "quay.old:5000/app:1"]).ok();
    let unknown = |host: &str| {
        let answer = agent.client(&["image", "pull", &format!("{host}:5000/app:1")]);
        assert_ne!(answer.code, 0, "{host}");
        let expected = format!("no such host: {host} ");
        assert!(answer.stderr.contains(&expected), "{expected:?} is missing: {}", answer.stderr);
    };
    unknown("quay.new.test");
    // As after a lease with other servers; the agent runs on.
    std::fs::write(world.path("resolv.conf"), "nameserver 127.0.0.2\n").unwrap();
    agent.client(&["image", "pull", "quay.new.test:5000/app:1"]).ok();
    unknown("nowhere.test");
}

#[test]
fn a_probe_finds_the_host_that_it_names() {
    if skipped_without_root("names") {
        return;
    }
    let world = world("probe", "127.0.0.1 localhost\n127.0.0.1 probed.test\n", "nameserver 127.0.0.1\n");
    preload_busybox(&world);
    let agent = Agent::start(&world);
    let listener = world.inside(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    let pod = |name: &str, host: &str| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sleep", "1000"],
                "readinessProbe": { "tcpSocket": { "host": host, "port": port }, "periodSeconds": 1 },
            }] },
        });
        agent.drop_manifest(&format!("{name}.yaml"), &pod.to_string());
    };
    pod("named", "probed.test");
    pod("lost", "lost.test");
    agent.wait_ready("named");
    portreeve_e2e::wait_until("the probe of a lost host says why", 20, || {
        let events = agent.client(&["get", "events", "-o", "json"]).ok();
        match events.contains("looking up lost.test: nameserver 127.0.0.1 cannot be reached") {
            true => Ok(()),
            false => Err(events),
        }
    });
}
