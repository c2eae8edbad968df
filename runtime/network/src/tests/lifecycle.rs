//! Starts, restarts, kills, drift and removal.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use ipnet::Ipv4Net;

use super::world::{Netns, World, can_publish, id, tcp, where_possible, world};
use crate::link::{self, Which};
use crate::netlink::Batch;
use crate::{Config, Drift, Network, NetworkError};

fn run(world: &World, build: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    build(&mut batch);
    world.host.route().run(&batch).unwrap();
}

#[test]
fn a_second_start_finds_everything_as_it_was() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &[tcp(8080, 80)]).unwrap();
        let bridge = link::link(&mut world.host.route(), "prtest0").unwrap();
        drop(network);
        let network = world.open();
        assert_eq!(network.attachments(), [at]);
        let reconciled = network.reconcile(&BTreeSet::from([id('a')])).unwrap();
        assert_eq!(reconciled, crate::Reconciled::default());
        assert_eq!(link::link(&mut world.host.route(), "prtest0").unwrap(), bridge);
        pod.serve("pod", 80);
        assert!(world.host.ask(Ipv4Addr::LOCALHOST, 8080).is_some());
    });
}

#[test]
fn what_no_living_sandbox_owns_is_released() {
    world(|world| {
        let network = world.open();
        let (a, b) = (Netns::new(), Netns::new());
        network.attach(&id('a'), a.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        let at_b = network.attach(&id('b'), b.as_fd(), &where_possible(&[tcp(8081, 80)])).unwrap();
        drop(network);
        // A kill between the record and the link, and one after everything but the record.
        let records = world.directory.path().join("state/attachments");
        let text = std::fs::read_to_string(records.join(format!("{}.json", id('a')))).unwrap();
        let early = text.replace(&id('a'), "early").replace("10.85.0.2", "10.85.0.9");
        std::fs::write(records.join("early.json"), early.replace("8080", "8082")).unwrap();
        std::fs::write(records.join("half.new"), "{").unwrap();
        let network = world.open();
        let reconciled = network.reconcile(&BTreeSet::from([id('b')])).unwrap();
        assert_eq!(reconciled.released, [id('a'), "early".to_owned()]);
        assert_eq!(world.links(), [at_b.host_link, "prtest0".to_owned()]);
        assert_eq!(network.observe().unwrap(), []);
        assert_eq!(std::fs::read_dir(records).unwrap().count(), 1);
    });
}

#[test]
fn a_link_whose_record_is_lost_is_removed_and_a_strangers_link_stays() {
    world(|world| {
        let network = world.open();
        let (a, stranger) = (Netns::new(), Netns::new());
        let at = network.attach(&id('a'), a.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        drop(network);
        std::fs::remove_dir_all(world.directory.path().join("state/attachments")).unwrap();
        let bridge = link::link(&mut world.host.route(), "prtest0").unwrap().unwrap();
        run(world, |batch| {
            let pair = link::NewPair {
                host_link: "prstranger",
                bridge: bridge.index,
                netns: stranger.as_fd(),
                pod_interface: "eth0",
                pod_mac: [2, 0, 0, 0, 0, 9],
                mtu: 1500,
            };
            link::push_new_pair(batch, &pair);
        });
        let network = world.open();
        let leftover = Drift::Leftover { link: at.host_link };
        assert!(network.observe().unwrap().contains(&leftover));
        let reconciled = network.reconcile(&BTreeSet::new()).unwrap();
        assert!(reconciled.repaired.contains(&leftover), "{reconciled:?}");
        assert_eq!(world.links(), ["prstranger", "prtest0"]);
        assert_eq!(network.observe().unwrap(), []);
    });
}

#[test]
fn each_drift_is_seen_and_repaired() {
    if !can_publish() {
        return;
    }
    world(|world| {
        if world.host.program("nft", &["--version"]).is_none() || world.host.program("ip", &["-V"]).is_none() {
            return;
        }
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &[tcp(8080, 80)]).unwrap();
        pod.serve("pod", 80);
        let bridge = link::link(&mut world.host.route(), "prtest0").unwrap().unwrap();
        type Damage<'a> = Box<dyn Fn() + 'a>;
        let nft = |arguments: &'static [&'static str]| {
            Box::new(move || drop(world.host.program("nft", arguments))) as Damage<'_>
        };
        let ip = |arguments: Vec<String>| {
            let arguments = move || {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                drop(world.host.program("ip", &arguments));
            };
            Box::new(arguments) as Damage<'_>
        };
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let damages: Vec<(&str, Damage<'_>)> = vec![
            ("flushed ruleset", nft(&["flush", "ruleset"])),
            ("flushed chain", nft(&["flush", "chain", "ip", "portreeve_test", "postrouting"])),
            ("flushed map", nft(&["flush", "map", "ip", "portreeve_test", "host_ports"])),
            ("strange rule", nft(&["add", "rule", "ip", "portreeve_test", "forward", "drop"])),
            (
                "strange port",
                nft(&["add", "element", "ip", "portreeve_test", "host_ports", "{ tcp . 99 : 10.85.0.7 . 80 }"]),
            ),
            ("strange chain", nft(&["add", "chain", "ip", "portreeve_test", "other"])),
            ("ip_forward", Box::new(|| world.host.set_sysctl("ipv4/ip_forward", "0"))),
            ("route_localnet", Box::new(|| world.host.set_sysctl("ipv4/conf/prtest0/route_localnet", "0"))),
            ("no master", ip(words(format!("link set {} nomaster", at.host_link)))),
            ("link down", ip(words(format!("link set {} down", at.host_link)))),
            ("no hairpin", ip(words(format!("link set {} type bridge_slave hairpin off", at.host_link)))),
            ("bridge down", ip(words("link set prtest0 down".to_owned()))),
            ("bridge MAC", ip(words("link set prtest0 address 02:00:00:00:00:77".to_owned()))),
            ("bridge address", ip(words("addr del 10.85.0.1/24 dev prtest0".to_owned()))),
            ("bridge removed", Box::new(|| world.delete_link("prtest0"))),
        ];
        for (what, damage) in damages {
            damage();
            let drifts = network.observe().unwrap();
            assert!(!drifts.is_empty(), "{what} was not seen");
            let repaired = network.ensure().unwrap();
            assert!(!repaired.is_empty(), "{what} was not repaired");
            assert_eq!(network.observe().unwrap(), [], "{what}");
            assert!(world.host.ask(Ipv4Addr::LOCALHOST, 8080).is_some(), "{what}");
            assert_eq!(network.ensure().unwrap(), [], "{what}");
        }
        let remade = link::link(&mut world.host.route(), "prtest0").unwrap().unwrap();
        assert_eq!(remade.mac, bridge.mac);
        // The pod's link is the one thing that needs the namespace.
        world.delete_link(&at.host_link);
        let missing = Drift::LinkMissing { sandbox_id: id('a'), link: at.host_link.clone() };
        assert_eq!(network.observe().unwrap(), [missing]);
        let reconciled = network.reconcile(&BTreeSet::from([id('a')])).unwrap();
        assert_eq!(reconciled.detached, [id('a')]);
        network.attach(&id('a'), pod.as_fd(), &at.ports).unwrap();
        assert_eq!(network.observe().unwrap(), []);
        // Attaching does not wait for anybody to notice that the bridge is gone.
        world.delete_link("prtest0");
        let other = Netns::new();
        let at = network.attach(&id('b'), other.as_fd(), &[]).unwrap();
        assert!(other.run(|| std::net::TcpStream::connect((at.gateway, 1)).is_err()));
        assert_eq!(network.observe().unwrap(), []);
    });
}

#[test]
fn closing_removes_everything_and_restores_forwarding() {
    world(|world| {
        assert_eq!(world.host.sysctl("ipv4/ip_forward"), "0");
        let before = world.host.program("nft", &["list", "ruleset"]);
        let network = world.open();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        assert_eq!(world.host.sysctl("ipv4/ip_forward"), "1");
        assert!(network.survey().turned_ip_forward_on);
        network.close_and_remove().unwrap();
        assert_eq!(world.links(), Vec::<String>::new());
        assert_eq!(world.host.program("nft", &["list", "ruleset"]), before);
        assert_eq!(world.host.sysctl("ipv4/ip_forward"), "0");
        assert!(!world.directory.path().join("state").exists());
        network.close_and_remove().unwrap();
    });
}

#[test]
fn two_agents_take_two_subnets_and_the_last_one_restores_forwarding() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let first = world.open();
        let second = Network::open(Config {
            bridge: "prtest1".to_owned(),
            nft_table: "portreeve-test1".to_owned(),
            state_dir: world.directory.path().join("state1"),
            ..world.config()
        })
        .unwrap();
        let (a, b) = (Netns::new(), Netns::new());
        let at_a = first.attach(&id('a'), a.as_fd(), &[tcp(8080, 80)]).unwrap();
        let at_b = second.attach(&id('b'), b.as_fd(), &[tcp(8081, 80)]).unwrap();
        assert_eq!(at_a.gateway.to_string(), "10.85.0.1");
        assert_eq!(at_b.gateway.to_string(), "10.85.1.1");
        a.serve("a", 80);
        b.serve("b", 80);
        assert!(world.host.ask(Ipv4Addr::LOCALHOST, 8080).unwrap().starts_with("a "));
        assert!(b.ask(super::world::HOST, 8080).unwrap().starts_with("a "));
        assert!(a.ask(super::world::HOST, 8081).unwrap().starts_with("b "));
        first.reconcile(&BTreeSet::new()).unwrap();
        assert_eq!(second.observe().unwrap(), []);
        first.close_and_remove().unwrap();
        assert_eq!(world.host.sysctl("ipv4/ip_forward"), "1");
        assert!(world.host.ask(Ipv4Addr::LOCALHOST, 8081).is_some());
        second.close_and_remove().unwrap();
        assert_eq!(world.host.sysctl("ipv4/ip_forward"), "0");
        assert_eq!(world.links(), Vec::<String>::new());
    });
}

#[test]
fn agents_that_start_at_the_same_time_take_different_subnets() {
    world(|world| {
        const AGENTS: usize = 8;
        for round in 0..5 {
            // Each has files and sockets of its own, as a process has.
            let open = |n: usize| {
                let config = Config {
                    bridge: format!("prtest{n}"),
                    nft_table: format!("portreeve-test{n}"),
                    state_dir: world.directory.path().join(format!("state{n}")),
                    ..world.config()
                };
                Network::open(config).unwrap()
            };
            let networks: Vec<Network> = (0..AGENTS).map(open).collect();
            let barrier = std::sync::Barrier::new(AGENTS);
            std::thread::scope(|scope| {
                for network in &networks {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        network.ensure().unwrap();
                    });
                }
            });
            let subnets: BTreeSet<Ipv4Net> = networks.iter().filter_map(Network::subnet).collect();
            assert_eq!(subnets.len(), AGENTS, "round {round}: {subnets:?}");
            networks.iter().for_each(|network| network.close_and_remove().unwrap());
        }
    });
}

#[test]
fn subnets_in_use_are_left_alone() {
    world(|world| {
        run(world, |batch| {
            link::push_address(batch, 1, "10.85.0.9/32".parse().unwrap());
            link::push_address(batch, 1, "10.85.1.1/24".parse().unwrap());
        });
        let network = world.open();
        network.ensure().unwrap();
        let chosen: Ipv4Net = "10.85.2.0/24".parse().unwrap();
        assert_eq!(network.subnet(), Some(chosen));
        assert_eq!(network.survey().subnet_overlap, None);
        run(world, |batch| {
            link::push_address(batch, 1, "10.9.9.9/8".parse().unwrap());
        });
        let words = network.survey().subnet_overlap.unwrap();
        assert_eq!(words, "10.0.0.0/8 of lo overlaps the pods' subnet 10.85.2.0/24");
        let elsewhere = Network::open(Config {
            bridge: "prtest2".to_owned(),
            nft_table: "portreeve_test2".to_owned(),
            state_dir: world.directory.path().join("state2"),
            ..world.config()
        });
        let elsewhere = elsewhere.unwrap();
        elsewhere.ensure().unwrap();
        let chosen: Ipv4Net = "172.29.0.0/24".parse().unwrap();
        assert_eq!(elsewhere.subnet(), Some(chosen));
        elsewhere.close_and_remove().unwrap();
        let taken = Network::open(Config {
            bridge: "prtest1".to_owned(),
            nft_table: "portreeve-test1".to_owned(),
            state_dir: world.directory.path().join("state1"),
            pod_cidr: Some("10.85.1.0/24".parse().unwrap()),
            ..world.config()
        });
        let error = taken.unwrap().ensure().unwrap_err();
        assert!(matches!(error, NetworkError::SubnetTaken { .. }), "{error}");
        assert_eq!(world.links(), ["prtest0"]);
    });
}

#[test]
fn a_bridge_of_somebody_else_is_not_taken_over() {
    world(|world| {
        run(world, |batch| {
            link::push_new_bridge(batch, "prtest0", [2, 0, 0, 0, 0, 1], 1500);
        });
        let network = world.open();
        let error = network.ensure().unwrap_err();
        assert!(matches!(error, NetworkError::ForeignLink { .. }), "{error}");
        network.close_and_remove().unwrap();
        assert_eq!(world.links(), ["prtest0"]);
    });
}

#[test]
fn another_configuration_replaces_the_network_only_without_pods() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &[]).unwrap();
        drop(network);
        let changed =
            Config { bridge: "prtest9".to_owned(), pod_cidr: Some("10.99.0.0/24".parse().unwrap()), ..world.config() };
        let network = Network::open(changed.clone()).unwrap();
        let error = network.ensure().unwrap_err();
        assert!(matches!(error, NetworkError::Config { field: "bridge", .. }), "{error}");
        world.open().detach(&id('a')).unwrap();
        let network = Network::open(changed).unwrap();
        network.ensure().unwrap();
        assert_eq!(world.links(), ["prtest9"]);
        let at = network.attach(&id('b'), pod.as_fd(), &[]).unwrap();
        assert_eq!(at.address.to_string(), "10.99.0.2");
        assert_eq!(network.observe().unwrap(), []);
    });
}

#[test]
fn records_of_a_newer_version_are_refused_and_kept() {
    world(|world| {
        let state = world.directory.path().join("state");
        std::fs::create_dir_all(state.join("attachments")).unwrap();
        let text = r#"{"version":2,"everything":"else"}"#;
        for name in ["network.json", "addresses.json", &format!("attachments/{}.json", id('a'))] {
            std::fs::write(state.join(name), text).unwrap();
            let error = Network::open(world.config()).unwrap_err();
            assert!(matches!(&error, NetworkError::NewerRecord { found: 2, .. }), "{name}: {error}");
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(std::fs::read_to_string(state.join(name)).unwrap(), text);
            std::fs::remove_file(state.join(name)).unwrap();
        }
        // Of what all agents of the machine share.
        let network = world.open();
        network.ensure().unwrap();
        let shared = world.config().subnet_lock;
        std::fs::write(&shared, text).unwrap();
        network.close_and_remove().unwrap();
        assert_eq!(std::fs::read_to_string(&shared).unwrap(), text);
        assert_eq!(world.host.sysctl("ipv4/ip_forward"), "1");
    });
}

#[test]
fn a_damaged_record_of_the_network_is_made_again() {
    world(|world| {
        // The second subnet of the pool: a free one would be the first.
        let mut early = world.config();
        early.pod_cidr = Some("10.85.1.0/24".parse().unwrap());
        let network = Network::open(early).unwrap();
        let pod = Netns::new();
        let ports = where_possible(&[tcp(8080, 80)]);
        let at = network.attach(&id('a'), pod.as_fd(), &ports).unwrap();
        drop(network);
        let state = world.directory.path().join("state");
        let path = state.join("network.json");
        for (text, kept) in [("{broken", true), ("", false), ("\0\0\0", false)] {
            std::fs::write(&path, text).unwrap();
            let network = world.open();
            assert_eq!(network.subnet(), Some("10.85.1.0/24".parse().unwrap()), "{text:?}");
            let reconciled = network.reconcile(&BTreeSet::from([id('a')])).unwrap();
            assert_eq!(reconciled, crate::Reconciled::default(), "{text:?}");
            assert_eq!(network.attachments(), std::slice::from_ref(&at));
            let aside = state.join("network.json.damaged");
            assert_eq!(std::fs::read_to_string(&aside).ok().as_deref(), kept.then_some(text));
            let _kept_for_nobody = std::fs::remove_file(aside);
            assert_eq!(world.open().subnet(), network.subnet());
        }
        // Without pods the bridge tells.
        let network = world.open();
        network.detach(&id('a')).unwrap();
        drop(network);
        std::fs::write(&path, "[]").unwrap();
        let network = world.open();
        network.ensure().unwrap();
        assert_eq!(network.subnet(), Some("10.85.1.0/24".parse().unwrap()));
        let bridge = link::link(&mut world.host.route(), "prtest0").unwrap().unwrap().index;
        let addresses = link::addresses(&mut world.host.route()).unwrap();
        assert_eq!(addresses.iter().filter(|one| one.link == bridge).count(), 1);
    });
}

#[test]
fn pods_have_the_mtu_of_the_way_out() {
    world(|world| {
        let uplink = link::link(&mut world.host.route(), "uplink").unwrap().unwrap();
        run(world, |batch| {
            link::push_mac_and_mtu(batch, "uplink", [2, 0, 0, 0, 0, 1], 1400);
            link::push_up(batch, Which::Index(uplink.index));
        });
        let network = world.open();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &[]).unwrap();
        let found = link::link(&mut pod.route(), "eth0").unwrap().unwrap();
        assert_eq!(found.mtu, 1400);
    });
}

#[test]
fn the_kernel_tells_what_strangers_did_and_not_what_we_did() {
    if !can_publish() {
        return;
    }
    world(|world| {
        if world.host.program("nft", &["--version"]).is_none() {
            return;
        }
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &[tcp(8080, 80)]).unwrap();
        let mut watch = network.watch().unwrap();
        let other = Netns::new();
        network.attach(&id('b'), other.as_fd(), &[tcp(8081, 80)]).unwrap();
        network.detach(&id('b')).unwrap();
        network.ensure().unwrap();
        assert!(!network.drifted(&mut watch), "our own doing was told");
        let nft = ["delete", "element", "ip", "portreeve_test", "host_ports", "{ tcp . 8080 }"];
        type Damage<'a> = Box<dyn Fn() + 'a>;
        let damages: [(&str, Damage<'_>); 4] = [
            ("an element", Box::new(|| drop(world.host.program("nft", &nft)))),
            ("the ruleset", Box::new(|| drop(world.host.program("nft", &["flush", "ruleset"])))),
            ("the pod's link", Box::new(|| world.delete_link(&at.host_link))),
            ("the bridge", Box::new(|| world.delete_link("prtest0"))),
        ];
        for (what, damage) in damages {
            damage();
            assert!(network.drifted(&mut watch), "{what}");
            network.ensure().unwrap();
            network.attach(&id('a'), pod.as_fd(), &at.ports).unwrap();
            network.drifted(&mut watch);
            assert!(!network.drifted(&mut watch), "{what}: it is not quiet again");
        }
    });
}
