//! Agents that were given another one's names.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use super::world::{Netns, World, can_filter, id, tcp, where_possible, world};
use crate::link;
use crate::netlink::{Batch, Socket};
use crate::nft::{self, Extent, Ruleset};
use crate::{Config, Network, NetworkError};

/// Another agent of the same machine, with these names.
fn other(world: &World, bridge: &str, table: &str) -> Network {
    let config = Config {
        bridge: bridge.to_owned(),
        nft_table: table.to_owned(),
        state_dir: world.directory.path().join("other"),
        ..world.config()
    };
    Network::open(config).unwrap()
}

fn alias(world: &World) -> String {
    link::link(&mut world.host.route(), "prtest0").unwrap().unwrap().alias
}

fn set_alias(world: &World, alias: &str) {
    let mut batch = Batch::new();
    link::push_alias(&mut batch, "prtest0", alias);
    world.host.route().run(&batch).unwrap();
}

fn netfilter(world: &World) -> Socket {
    world.host.run(|| Socket::open(12).unwrap())
}

fn comment(world: &World) -> Option<String> {
    nft::table_comment(&mut netfilter(world), "portreeve_test").unwrap().flatten()
}

#[test]
fn the_names_of_another_agent_are_refused_and_what_has_them_is_left_alone() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        let (links, before) = (world.links(), alias(world));
        let place = world.directory.path().join("state").canonicalize().unwrap().display().to_string();
        assert!(before.ends_with(&place), "{before}");

        let second = other(world, "prtest0", "portreeve_other");
        for error in [second.check().unwrap_err(), second.ensure().unwrap_err()] {
            let words = error.to_string();
            assert!(matches!(error, NetworkError::ForeignLink { .. }) && words.contains(&place), "{words}");
        }
        assert!(second.reconcile(&BTreeSet::new()).is_err());
        second.close_and_remove().unwrap();
        if super::world::extent() > Extent::Nothing {
            let second = other(world, "prtest9", "portreeve_test");
            for error in [second.check().unwrap_err(), second.ensure().unwrap_err()] {
                let words = error.to_string();
                assert!(matches!(error, NetworkError::ForeignTable { .. }) && words.contains(&place), "{words}");
            }
            second.close_and_remove().unwrap();
        }
        assert_eq!((world.links(), alias(world)), (links, before));
        assert_eq!(network.observe().unwrap(), []);
        // The same directory by another way is the same agent.
        let way = world.directory.path().join("way");
        std::os::unix::fs::symlink(world.directory.path().join("state"), &way).unwrap();
        drop(network);
        let network = Network::open(Config { state_dir: way, ..world.config() }).unwrap();
        network.check().unwrap();
        network.close_and_remove().unwrap();
        assert_eq!(world.links(), Vec::<String>::new());
    });
}

#[test]
fn what_an_older_version_left_unsigned_is_taken_over_when_the_records_name_it() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let at = network.attach(&id('a'), pod.as_fd(), &where_possible(&[tcp(8080, 80)])).unwrap();
        let (signed, signed_table) = (alias(world), comment(world));
        let elements = network.state().elements();
        let subnet = network.subnet().unwrap();
        drop(network);
        let older = || {
            set_alias(world, "portreeve bridge");
            let ruleset = Ruleset::new("portreeve_test", "prtest0", subnet, super::world::extent());
            nft::rebuild(&mut netfilter(world), &ruleset, &elements).unwrap();
            assert!(comment(world).unwrap_or_default().is_empty());
        };
        older();
        let error = other(world, "prtest0", "portreeve_other").check().unwrap_err();
        assert!(matches!(error, NetworkError::ForeignLink { .. }), "{error}");

        let network = world.open();
        network.check().unwrap();
        assert_eq!(network.reconcile(&BTreeSet::from([id('a')])).unwrap(), crate::Reconciled::default());
        assert_eq!((alias(world), comment(world)), (signed, signed_table));
        assert_eq!((network.attachments(), network.observe().unwrap()), (vec![at], vec![]));
        drop(network);

        // Records that name other things make nothing ours.
        older();
        std::fs::remove_dir_all(world.directory.path().join("state")).unwrap();
        assert!(matches!(world.open().ensure(), Err(NetworkError::ForeignLink { .. })));
        let elsewhere = Config { bridge: "prtest9".to_owned(), ..world.config() };
        let network = Network::open(elsewhere).unwrap();
        if super::world::extent() > Extent::Nothing {
            assert!(matches!(network.ensure(), Err(NetworkError::ForeignTable { .. })));
        }
        assert_eq!(alias(world), "portreeve bridge");
    });
}

#[test]
fn a_table_of_somebody_else_is_not_emptied() {
    if !can_filter() {
        return;
    }
    world(|world| {
        let rules = "table ip portreeve_test { chain theirs { counter; }; }";
        let file = world.directory.path().join("rules");
        std::fs::write(&file, rules).unwrap();
        let Some(_) = world.host.program("nft", &["-f", file.to_str().unwrap()]) else {
            return;
        };
        let network = world.open();
        let error = network.ensure().unwrap_err();
        assert!(matches!(&error, NetworkError::ForeignTable { table, .. } if table == "portreeve_test"), "{error}");
        network.close_and_remove().unwrap();
        assert!(world.host.program("nft", &["list", "ruleset"]).unwrap().contains("chain theirs"));
        assert_eq!(world.links(), Vec::<String>::new());
    });
}
