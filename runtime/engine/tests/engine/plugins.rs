//! A kubelet's pods in networks of plugins, beside the node's own in the built-in one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use portreeve_engine::network::cni::STATUS_LIMIT;
use portreeve_engine::{EngineError, KubeletNetwork, Namespaces, Owner, SandboxConfig, chain};
use serde_json::json;

use crate::world::{World, wait_until};

/// Debian's own place of the plugins; `None`, and a word, where they are not installed.
fn plugins() -> Option<PathBuf> {
    let directory = Path::new("/usr/lib/cni");
    if directory.join("bridge").exists() {
        return Some(directory.to_owned());
    }
    println!("    SKIPPED: Debian's containernetworking-plugins are not installed");
    None
}

/// A world whose kubelet has a network of plugins.
async fn clustered(directory: PathBuf, mode: KubeletNetwork) -> World {
    let mut world = World::new().await;
    world.close().await;
    world.set(|config| {
        config.kubelet_network = mode;
        config.plugins.networks = config.root.join("net.d");
        config.plugins.plugins = vec![directory];
    });
    fs::create_dir_all(world.path("root/net.d")).unwrap();
    world.open().await;
    world
}

fn configure(world: &World) {
    let bridge = json!({
        "type": "bridge", "bridge": "pecni0", "isGateway": true,
        "ipam": { "type": "host-local", "dataDir": world.path("ipam"), "subnet": "10.91.7.0/24",
                  "routes": [{ "dst": "0.0.0.0/0" }] },
    });
    let list = json!({ "cniVersion": "1.0.0", "name": "cluster", "plugins": [bridge] });
    fs::write(world.path("root/net.d/10-cluster.conflist"), list.to_string()).unwrap();
}

fn pod_of(world: &World, owner: Owner) -> SandboxConfig {
    SandboxConfig { owner, namespaces: Namespaces::default(), ..world.sandbox() }
}

/// Addresses that host-local has given out.
fn taken(world: &World) -> usize {
    let entries = fs::read_dir(world.path("ipam/cluster")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count()
}

pub(crate) async fn a_kubelets_pods_are_in_the_network_of_plugins_and_no_others() {
    let Some(directory) = plugins() else { return };
    let mut world = clustered(directory, KubeletNetwork::Auto).await;
    // No network is configured: the built-in one.
    let before = world.run(pod_of(&world, Owner::Cri)).await;
    world.engine().kubelet_network().await.unwrap();
    configure(&world);
    world.engine().kubelet_network().await.unwrap();
    let (cluster, own) = (world.run(pod_of(&world, Owner::Cri)).await, world.run(pod_of(&world, Owner::Node)).await);
    let ips = |world: &World, id| world.engine().sandbox(id).unwrap().ips;
    assert_eq!(ips(&world, &cluster), ["10.91.7.2".parse::<std::net::IpAddr>().unwrap()]);
    for other in [&before, &own] {
        assert!(!ips(&world, other)[0].to_string().starts_with("10.91."), "{other}");
    }
    let (status, seen) = world.script(&cluster, "ifconfig eth0; ping -c 1 -W 2 10.91.7.1").await;
    assert!(seen.contains("10.91.7.2") && status.exit.unwrap().code == 0, "{seen}");

    // An agent that comes later finds it as it is, and does not take it for one of the built-in network.
    world.close().await;
    world.open().await;
    assert_eq!(ips(&world, &cluster), ["10.91.7.2".parse::<std::net::IpAddr>().unwrap()]);
    let (_, seen) = world.script(&cluster, "ifconfig -a | grep -c '^eth'").await;
    assert_eq!((seen.trim(), taken(&world)), ("1", 1));
    let attached = world.engine().network().attachments();
    assert!(attached.iter().all(|one| one.sandbox_id != cluster.as_str()), "{attached:?}");

    // By what it was made, although there is no such network any more.
    fs::remove_file(world.path("root/net.d/10-cluster.conflist")).unwrap();
    world.engine().stop_sandbox(&cluster).await.unwrap();
    assert_eq!(taken(&world), 0);
    for id in [&before, &cluster, &own] {
        world.engine().remove_sandbox(id).await.unwrap();
    }
    assert_eq!(fs::read_dir(world.path("run/netns")).unwrap().count(), 0);
    // The kernel lets go of a cgroup when it has let go of its last process.
    wait_until("no pod's cgroup is left", || world.traces().iter().all(|one| one.ends_with("/burstable"))).await;
}

pub(crate) async fn a_network_of_plugins_that_cannot_be_is_told_and_leaves_nothing() {
    let Some(directory) = plugins() else { return };
    let world = clustered(directory, KubeletNetwork::Plugins).await;
    let error = world.engine().run_sandbox(pod_of(&world, Owner::Cri)).await.unwrap_err();
    assert!(matches!(error, EngineError::NoPluginNetwork { .. }), "{}", chain(&error));
    assert!(world.engine().kubelet_network().await.is_err());
    world.run(pod_of(&world, Owner::Node)).await;
    let list = json!({ "cniVersion": "1.0.0", "name": "cluster", "plugins": [
        { "type": "bridge", "bridge": "pecni0", "ipam": { "type": "host-local", "dataDir": world.path("ipam"),
          "subnet": "10.91.7.0/24" } },
        { "type": "nothing" },
    ] });
    fs::write(world.path("root/net.d/10-cluster.conflist"), list.to_string()).unwrap();
    let error = world.engine().kubelet_network().await.unwrap_err();
    assert!(chain(&error).contains("plugin \"nothing\" is in none of /usr/lib/cni"), "{}", chain(&error));
    let error = world.engine().run_sandbox(pod_of(&world, Owner::Cri)).await.unwrap_err();
    assert!(chain(&error).contains("plugin \"nothing\""), "{}", chain(&error));
    // The plugin that has none cannot let go of it either: what the first one did is known, and undone when it can.
    assert_eq!((taken(&world), fs::read_dir(world.path("root/cni")).unwrap().count()), (1, 1));
    let mut world = world;
    world.close().await;
    world.set(|config| {
        let fixed = config.root.join("bin");
        fs::create_dir_all(&fixed).unwrap();
        fs::write(fixed.join("nothing"), "#!/bin/sh\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(fixed.join("nothing"), mode).unwrap();
        config.plugins.plugins.push(fixed);
    });
    world.open().await;
    wait_until("what is gone is given back", || taken(&world) == 0).await;
    wait_until("nothing is remembered of it", || fs::read_dir(world.path("root/cni")).unwrap().count() == 0).await;
}

/// A plugin for a network whose plugins tell their status, which does what the files beside it say.
fn telling(world: &World) -> PathBuf {
    let directory = world.path("bin");
    fs::create_dir_all(&directory).unwrap();
    let script = format!(
        "#!/bin/sh\ncat > /dev/null; cd {}\n[ $CNI_COMMAND = STATUS ] || exit 0\necho x >> asked\n[ -e slow ] && exec sleep 60\n\
         [ -e lost ] && {{ echo '{{\"cniVersion\": \"1.1.0\", \"code\": 50, \"msg\": \"the uplink is lost\"}}'; exit 1; }}\nexit 0\n",
        directory.display()
    );
    fs::write(directory.join("telling"), script).unwrap();
    fs::set_permissions(directory.join("telling"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    directory
}

pub(crate) async fn what_plugins_say_of_their_network_is_known_at_once_and_asked_in_the_background() {
    let mut world = World::new().await;
    let directory = telling(&world);
    world.close().await;
    world.set(|config| {
        config.kubelet_network = KubeletNetwork::Plugins;
        config.plugins.networks = config.root.join("net.d");
        config.plugins.plugins = vec![directory.clone()];
    });
    world.open().await;
    fs::create_dir_all(world.path("root/net.d")).unwrap();
    let configure = |name: &str| {
        let list = json!({ "cniVersion": "1.1.0", "name": name, "plugins": [{ "type": "telling" }] });
        fs::write(world.path("root/net.d/10-cluster.conflist"), list.to_string()).unwrap();
    };
    let asked = || fs::read_to_string(directory.join("asked")).unwrap_or_default().lines().count();
    let answer = async || {
        let begun = Instant::now();
        let answer = world.engine().kubelet_network().await.map_err(|error| chain(&error));
        assert!(begun.elapsed() < Duration::from_secs(1), "{answer:?} came after {:?}", begun.elapsed());
        answer
    };
    configure("one");
    for _ in 0..20 {
        answer().await.unwrap();
    }
    assert_eq!(asked(), 1);

    // It is asked again when that is due, and what it said counts until it says something else, or nothing in time.
    fs::write(directory.join("slow"), "").unwrap();
    tokio::time::sleep(STATUS_LIMIT).await;
    answer().await.unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let silent = loop {
        match answer().await {
            Ok(()) => assert!(Instant::now() < end, "it is never found out"),
            Err(told) => break told,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(silent.contains("STATUS by plugin telling did not end within 5 s"), "{silent}");
    assert!((2..4).contains(&asked()), "{}", asked());

    // Another network has said nothing yet.
    fs::remove_file(directory.join("slow")).unwrap();
    fs::write(directory.join("lost"), "").unwrap();
    configure("two");
    assert!(answer().await.unwrap_err().contains("the uplink is lost"));
}

pub(crate) async fn a_pod_whose_network_was_harmed_without_an_agent_is_told_of() {
    let Some(directory) = plugins() else { return };
    let mut world = clustered(directory, KubeletNetwork::Plugins).await;
    configure(&world);
    let (whole, harmed) = (world.run(pod_of(&world, Owner::Cri)).await, world.run(pod_of(&world, Owner::Cri)).await);
    world.close().await;
    let netns = world.path("run/netns").join(harmed.as_str());
    let command = ["ip", "addr", "flush", "dev", "eth0"];
    let nsenter = Command::new("nsenter").arg(format!("--net={}", netns.display())).args(command).status().unwrap();
    assert!(nsenter.success());
    world.open().await;
    let warnings = |id| world.engine().sandbox(id).unwrap().warnings;
    wait_until("plugins have looked", || !warnings(&harmed).is_empty()).await;
    assert!(warnings(&harmed)[0].contains("CHECK by plugin bridge"), "{:?}", warnings(&harmed));
    assert_eq!(warnings(&whole), Vec::<String>::new());
    world.engine().kubelet_network().await.unwrap();
    for id in [&whole, &harmed] {
        world.engine().remove_sandbox(id).await.unwrap();
    }
}
