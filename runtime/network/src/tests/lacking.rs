//! Kernels without a part of nftables: what still works, and what is refused by name.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use super::world::{HOST, IMPATIENCE, Netns, OUTSIDE, id, tcp, world};
use crate::nft::Extent;
use crate::{Drift, Lack, NetworkError, survey};

#[test]
fn the_survey_names_what_nft_cannot_make_either() {
    world(|world| {
        let chain = |kind: &str, hook: &str| {
            format!("table ip prcheck {{ chain c {{ type {kind} hook {hook} priority 0; RULE; }}; }}")
        };
        let cases = [
            ("nf_tables for IPv4", chain("filter", "forward").replace("RULE", "accept")),
            ("nat chains", chain("nat", "postrouting").replace("RULE", "accept")),
            ("nft_masq", chain("nat", "postrouting").replace("RULE", "masquerade")),
            ("nft_ct", chain("filter", "forward").replace("RULE", "ct status dnat accept")),
            ("nft_fib_ipv4", chain("filter", "prerouting").replace("RULE", "fib daddr type local accept")),
            ("nft_nat", chain("nat", "prerouting").replace("RULE", "dnat to 10.0.0.1")),
        ];
        let lacks = survey(&world.config()).lacks;
        let mut missing = Vec::new();
        for (name, rules) in &cases {
            let file = world.directory.path().join("rules");
            std::fs::write(&file, rules).unwrap();
            let Some(accepted) = world.host.succeeds("nft", &["--check", "-f", file.to_str().unwrap()]) else {
                return;
            };
            if !accepted {
                missing.push(*name);
            }
        }
        let named =
            |name: &str| lacks.iter().any(|lack| lack.facility.starts_with(name) || lack.facility.contains(name));
        match missing.first() {
            None => assert_eq!(lacks, []),
            // What follows from the first is not told one by one.
            Some(first) => assert!(named(first), "nft cannot make {missing:?}, we say {lacks:?}"),
        }
        for (name, _) in cases {
            assert!(!named(name) || missing.contains(&name), "nft can make {name}, we say {lacks:?}");
        }
        // Probing made nothing.
        assert_eq!(world.host.program("nft", &["list", "tables"]).unwrap(), "");
    });
}

#[test]
fn a_kernel_without_a_part_refuses_host_ports_by_name_and_nothing_else() {
    world(|world| {
        let reached = super::world::extent();
        for extent in [Extent::Nothing, Extent::Forwarding, Extent::WayOut] {
            if extent > reached {
                let _ = writeln!(
                    std::io::stderr(),
                    "SKIPPED IN PART: this kernel has too little of nftables for {extent:?}"
                );
                continue;
            }
            let network = world.open();
            {
                let mut state = network.state();
                state.extent = extent;
                state.lacks =
                    vec![Lack { facility: "nft_example (CONFIG_EXAMPLE)", consequence: extent.consequence() }];
            }
            let (a, b) = (Netns::new(), Netns::new());
            let error = network.attach(&id('a'), a.as_fd(), &[tcp(8080, 80)]).unwrap_err();
            assert!(matches!(error, NetworkError::KernelLacks { .. }), "{error}");
            let words = error.to_string();
            assert!(words.contains("8080/TCP") && words.contains("nft_example (CONFIG_EXAMPLE)"), "{words}");
            assert_eq!(network.attachments(), []);
            let at_a = network.attach(&id('a'), a.as_fd(), &[]).unwrap();
            let at_b = network.attach(&id('b'), b.as_fd(), &[]).unwrap();
            b.serve("b", 80);
            world.host.serve_until_dropped("host", 90, || {
                assert_eq!(a.ask(at_b.address, 80), Some(format!("b sees {}", at_a.address)));
                assert_eq!(world.host.ask(at_b.address, 80), Some(format!("b sees {}", at_b.gateway)));
                assert_eq!(a.ask(at_a.gateway, 90), Some(format!("host sees {}", at_a.address)));
            });
            let out = world.outside.serve_until_dropped("outside", 80, || a.ask_within(OUTSIDE, 80, IMPATIENCE));
            let seen = (extent == Extent::WayOut).then(|| format!("outside sees {HOST}"));
            assert_eq!(out, seen, "{extent:?}");
            // Without a guard the host's loopback is closed in the other way.
            assert_eq!(world.host.sysctl("ipv4/conf/prtest0/route_localnet"), "0");
            assert_eq!(network.observe().unwrap(), Vec::<Drift>::new());
            assert_eq!(network.ensure().unwrap(), Vec::<Drift>::new());
            network.detach(&id('a')).unwrap();
            network.close_and_remove().unwrap();
            assert_eq!(world.links(), Vec::<String>::new());
        }
    });
}

#[test]
fn the_kernel_of_this_machine_gives_what_the_survey_promises() {
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let lacks = survey(&world.config()).lacks;
        let answer = network.attach(&id('a'), pod.as_fd(), &[tcp(8080, 80)]);
        if lacks.is_empty() {
            answer.unwrap();
            pod.serve("pod", 80);
            assert!(world.host.ask(Ipv4Addr::LOCALHOST, 8080).is_some());
            return;
        }
        let error = answer.unwrap_err();
        assert!(matches!(error, NetworkError::KernelLacks { .. }), "{error}");
        for lack in &lacks {
            assert!(error.to_string().contains(lack.facility), "{error}");
        }
        network.attach(&id('a'), pod.as_fd(), &[]).unwrap();
        assert_eq!(network.observe().unwrap(), Vec::<Drift>::new());
        assert_eq!(network.survey().lacks, lacks);
    });
}
