//! What `attach` and `detach` promise, and what they refuse.

use std::os::fd::AsFd;

use super::world::{Netns, can_publish, extent, id, tcp, udp, where_possible, world};
use crate::link;
use crate::nft::Extent;
use crate::{Config, Network, NetworkError, PortMapping};

#[test]
fn a_pod_believes_no_router_and_has_no_address_but_ours() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &[]).unwrap();
        assert_eq!(pod.sysctl("ipv6/conf/eth0/accept_ra"), "0");
        assert_eq!(pod.sysctl("ipv6/conf/eth0/autoconf"), "0");
        let addresses = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"));
        let of_eth0 = |line: &&str| line.ends_with("eth0");
        assert_eq!(addresses.unwrap().lines().find(of_eth0), None);
        let published = where_possible(&[tcp(8080, 80)]).len();
        assert_eq!(world.host.sysctl("ipv4/conf/prtest0/route_localnet"), published.to_string());
        assert_eq!(world.host.sysctl("ipv4/conf/all/route_localnet"), "0");
        assert_eq!(world.host.sysctl("ipv6/conf/prtest0/disable_ipv6"), "1");
    });
}

#[test]
fn the_loopback_link_is_set_up_without_an_attachment() {
    world(|_| {
        let pod = Netns::new();
        let reaches = || pod.run(|| std::net::UdpSocket::bind("127.0.0.1:0").and_then(|it| it.connect("127.0.0.1:9")));
        assert_eq!(reaches().unwrap_err().kind(), std::io::ErrorKind::NetworkUnreachable);
        crate::set_loopback_up(&id('a'), pod.as_fd()).unwrap();
        reaches().unwrap();
    });
}

#[test]
fn detaching_is_complete_and_may_be_repeated() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        assert_eq!(world.links(), [at.host_link.clone(), "prtest0".to_owned()]);
        assert_eq!(network.attachments(), [at]);
        for _ in 0..2 {
            network.detach(&id('a')).unwrap();
            assert_eq!(world.links(), ["prtest0"]);
            assert_eq!(network.attachments(), []);
            assert_eq!(network.observe().unwrap(), []);
        }
        network.detach("never-seen").unwrap();
        let records = world.directory.path().join("state/attachments");
        assert_eq!(std::fs::read_dir(records).unwrap().count(), 0);
    });
}

#[test]
fn detaching_works_without_namespace_link_or_table() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        drop(pod);
        network.detach(&id('a')).unwrap();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &where_possible(&[tcp(8080, 80), udp(8080, 80)])).unwrap();
        world.delete_link(&at.host_link);
        let table = ["delete", "table", "ip", "portreeve_test"];
        if extent() > Extent::Nothing {
            world.host.program("nft", &table);
        }
        network.detach(&id('a')).unwrap();
        assert_eq!(world.links(), ["prtest0"]);
        assert_eq!(network.attachments(), []);
    });
}

#[test]
fn attaching_again_keeps_the_address_and_repairs() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let ports = [tcp(8080, 80)];
        let at = network.attach(&id('a'), pod.as_fd(), &ports).unwrap();
        pod.serve("pod", 80);
        assert_eq!(network.attach(&id('a'), pod.as_fd(), &ports).unwrap(), at);
        world.delete_link(&at.host_link);
        assert_eq!(world.host.ask_within(at.address, 80, super::world::IMPATIENCE), None);
        assert_eq!(network.attach(&id('a'), pod.as_fd(), &ports).unwrap(), at);
        assert!(world.host.ask(at.address, 80).is_some());
        // Other ports take the place of the earlier ones.
        network.attach(&id('a'), pod.as_fd(), &[tcp(9090, 80)]).unwrap();
        let localhost = std::net::Ipv4Addr::LOCALHOST;
        assert!(world.host.ask(localhost, 9090).is_some());
        assert_eq!(world.host.ask_within(localhost, 8080, super::world::IMPATIENCE), None);
        assert_eq!(network.observe().unwrap(), []);
    });
}

#[test]
fn a_taken_host_port_names_its_owner_and_changes_nothing() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let (a, b) = (Netns::new(), Netns::new());
        network.attach(&id('a'), a.as_fd(), &[tcp(8080, 80)]).unwrap();
        let links = world.links();
        let on_loopback = PortMapping { host_ip: Some(std::net::Ipv4Addr::LOCALHOST), ..tcp(8080, 80) };
        for port in [tcp(8080, 81), on_loopback] {
            let error = network.attach(&id('b'), b.as_fd(), &[port]).unwrap_err();
            assert!(error.to_string().contains(&id('a')), "{error}");
            assert!(matches!(error, NetworkError::PortTaken { .. }));
        }
        assert_eq!(world.links(), links);
        assert_eq!(network.attachments().len(), 1);
        // The other protocol is another port.
        network.attach(&id('b'), b.as_fd(), &[udp(8080, 80)]).unwrap();
        let twice = [tcp(1, 1), tcp(1, 2)];
        let error = network.attach(&id('c'), b.as_fd(), &twice).unwrap_err();
        assert!(matches!(error, NetworkError::PortInvalid { .. }), "{error}");
    });
}

#[test]
fn an_exhausted_subnet_is_an_error_and_a_released_address_comes_last() {
    world(|world| {
        let config = Config { pod_cidr: Some("10.99.0.0/29".parse().unwrap()), ..world.config() };
        let network = Network::open(config.clone()).unwrap();
        let pods: Vec<Netns> = (0..7).map(|_| Netns::new()).collect();
        let names: Vec<String> = (0..7).map(|n| format!("pod-{n}")).collect();
        let attach = |network: &Network, n: usize| {
            network.attach(&names[n], pods[n].as_fd(), &[]).map(|at| at.address.to_string())
        };
        for n in 0..3 {
            assert_eq!(attach(&network, n).unwrap(), format!("10.99.0.{}", n + 2));
        }
        network.detach("pod-1").unwrap();
        network.detach("pod-0").unwrap();
        // The order outlives the agent.
        drop(network);
        let network = Network::open(config).unwrap();
        assert_eq!(attach(&network, 3).unwrap(), "10.99.0.5");
        assert_eq!(attach(&network, 4).unwrap(), "10.99.0.6");
        assert_eq!(attach(&network, 5).unwrap(), "10.99.0.3");
        assert_eq!(attach(&network, 0).unwrap(), "10.99.0.2");
        let error = attach(&network, 6).unwrap_err();
        assert!(matches!(error, NetworkError::NoFreeAddress { count: 5, .. }), "{error}");
        assert_eq!(world.links().len(), 6);
        network.detach("pod-2").unwrap();
        assert_eq!(attach(&network, 6).unwrap(), "10.99.0.4");
    });
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    world(|world| {
        let network = world.open();
        let (pod, file) = (Netns::new(), tempfile::tempfile().unwrap());
        let error = network.attach(&id('a'), file.as_fd(), &where_possible(&[tcp(80, 80)])).unwrap_err();
        assert!(matches!(error, NetworkError::EnterNetns { .. }), "{error}");
        let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let error = network.attach(&id('a'), own.as_fd(), &[]).unwrap_err();
        assert!(matches!(error, NetworkError::EnterNetns { .. }), "{error}");
        // Another network is in the pod already.
        network.attach(&id('b'), pod.as_fd(), &[]).unwrap();
        network.attach(&id('c'), pod.as_fd(), &[tcp(80, 80)]).unwrap_err();
        assert_eq!(network.attachments().len(), 1);
        assert_eq!(world.links().len(), 2);
        assert_eq!(network.observe().unwrap(), []);
        let records = world.directory.path().join("state/attachments");
        assert_eq!(std::fs::read_dir(records).unwrap().count(), 1);
        for bad in ["", "../x", "a/b"] {
            let error = network.attach(bad, pod.as_fd(), &[]).unwrap_err();
            assert!(matches!(error, NetworkError::SandboxId { .. }));
        }
    });
}

#[test]
fn a_link_too_small_for_ipv6_works() {
    world(|world| {
        let network = Network::open(Config { mtu: Some(1000), ..world.config() }).unwrap();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        pod.serve("pod", 80);
        assert!(world.host.ask(at.address, 80).is_some());
        assert_eq!(network.observe().unwrap(), []);
    });
}

#[test]
fn a_pod_with_its_own_user_namespace_attaches() {
    use std::process::{Command, Stdio};
    world(|world| {
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let mut child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/ns/net", child.id());
        while std::fs::read_link(&path).is_ok_and(|netns| netns == own) {
            assert!(child.try_wait().unwrap().is_none(), "no user namespaces here");
            std::thread::yield_now();
        }
        let netns = std::fs::File::open(&path).unwrap();
        let network = world.open();
        let at = network.attach(&id('a'), netns.as_fd(), &[]).unwrap();
        let pod = Netns::from(netns);
        pod.serve("pod", 80);
        assert!(world.host.ask(at.address, 80).is_some());
        assert_eq!(pod.sysctl("ipv6/conf/eth0/accept_ra"), "0");
        network.detach(&id('a')).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
    });
}

#[test]
fn many_pods_attach_at_once() {
    world(|world| {
        let network = world.open();
        network.ensure().unwrap();
        let pods: Vec<Netns> = (0..40).map(|_| Netns::new()).collect();
        std::thread::scope(|scope| {
            for (thread, pods) in pods.chunks(10).enumerate() {
                let network = &network;
                scope.spawn(move || {
                    for (n, pod) in pods.iter().enumerate() {
                        let id = format!("pod-{thread}-{n}");
                        let port = u16::try_from(20_000 + thread * 100 + n).unwrap();
                        let at = network.attach(&id, pod.as_fd(), &where_possible(&[tcp(port, 80)])).unwrap();
                        if n % 2 == 0 {
                            network.detach(&id).unwrap();
                        }
                        assert_eq!(at.prefix, 24);
                    }
                });
            }
        });
        let addresses: std::collections::BTreeSet<_> = network.attachments().iter().map(|at| at.address).collect();
        assert_eq!(addresses.len(), 20);
        assert_eq!(network.observe().unwrap(), []);
    });
}

#[test]
fn bridge_ports_are_hairpin_ports() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &[]).unwrap();
        let found = link::link(&mut world.host.route(), &at.host_link).unwrap().unwrap();
        assert!(found.hairpin && found.up);
        assert_eq!(found.alias, format!("portreeve prtest0 {}", id('a')));
    });
}
