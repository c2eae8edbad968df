//! The ruleset as Debian's `nft` reads it, and the rulesets of others as we read them.

use std::os::fd::AsFd;

use super::world::{Netns, can_filter, can_publish, id, tcp, udp, world};
use crate::netlink::Socket;
use crate::network::NETLINK_NETFILTER;
use crate::{nft, survey};

/// `NFNLGRP_NFTABLES`.
const NFNLGRP_NFTABLES: u32 = 7;

/// What `nft -s list table` prints; the numbers of the rules' contents are left out.
const GOLDEN: &str = r#"table ip portreeve_test {
	map host_ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { udp . 53 : 10.85.0.2 . 5353 }
	}

	map host_ip_ports {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 127.0.0.1 . tcp . 9090 : 10.85.0.2 . 90 }
	}

	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname "prtest0" ip daddr 127.0.0.0/8 drop comment "pods do not reach the host's loopback"
		iifname "prtest0" ip saddr 127.0.0.0/8 drop comment "pods do not pose as the host's loopback"
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @host_ip_ports comment "ports published on one address"
		fib daddr type local dnat ip to meta l4proto . th dport map @host_ports comment "ports published on every address"
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @host_ip_ports comment "ports published on one address"
		fib daddr type local dnat ip to meta l4proto . th dport map @host_ports comment "ports published on every address"
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "prtest0" accept comment "from pods"
		oifname "prtest0" accept comment "to pods"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.85.0.0/24 oifname != "prtest0" masquerade comment "pods leave with the host's address"
		ip saddr 127.0.0.0/8 oifname "prtest0" masquerade comment "the host's loopback reaches published ports"
		ip saddr 10.85.0.0/24 oifname "prtest0" ct status dnat masquerade comment "pods reach published ports of this host"
	}
}
"#;

#[test]
fn nft_reads_the_ruleset_as_it_is_meant() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        let on_loopback = crate::PortMapping { host_ip: Some(std::net::Ipv4Addr::LOCALHOST), ..tcp(9090, 90) };
        let ports = [udp(53, 5353), on_loopback];
        network.attach(&id('a'), pod.as_fd(), &ports).unwrap();
        let arguments = ["-s", "list", "table", "ip", "portreeve_test"];
        let Some(listed) = world.host.program("nft", &arguments) else {
            return;
        };
        // Since Linux 5.10.
        let signature = format!("\tcomment \"{}\"\n", network.owner.table_comment());
        assert!(listed.contains(&signature), "{listed}");
        let listed = listed.replace(&signature, "");
        let mut plain = String::new();
        for (n, part) in listed.split(" [").enumerate() {
            // After " [": eight digits and "]".
            plain.push_str(if n == 0 { part } else { &part[9..] });
        }
        assert_eq!(plain, GOLDEN, "{plain}");
    });
}

/// How many transactions the kernel committed during `work`; it tells of each one that it is done.
fn transactions(work: impl FnOnce()) -> usize {
    let mut heard = Socket::listen(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).unwrap();
    work();
    let mut count = 0;
    heard
        .drain(|message| {
            count += usize::from(nft::is_end_of_transaction(message));
            false
        })
        .unwrap();
    count
}

#[test]
fn a_change_is_one_transaction() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        network.ensure().unwrap();
        let pod = Netns::new();
        let on_loopback = crate::PortMapping { host_ip: Some(std::net::Ipv4Addr::LOCALHOST), ..tcp(9090, 90) };
        let ports = [tcp(8080, 80), udp(53, 53), on_loopback];
        let attached = transactions(|| drop(network.attach(&id('a'), pod.as_fd(), &ports).unwrap()));
        assert_eq!(attached, 1, "three ports in two maps");
        // Wrong in many ways at once: a table without any of our chains, and elements and rules to be made again.
        nft::delete_table(&mut network.netfilter(), "portreeve_test").unwrap();
        assert_eq!(transactions(|| drop(network.ensure().unwrap())), 1, "the whole table");
        assert_eq!(network.observe().unwrap(), []);
        assert_eq!(transactions(|| network.detach(&id('a')).unwrap()), 1, "three ports in two maps");
        assert_eq!(transactions(|| network.close_and_remove().unwrap()), 1);
    });
}

#[test]
fn a_refused_rule_in_the_middle_leaves_everything_as_it_was() {
    if !can_publish() {
        return;
    }
    world(|world| {
        let network = world.open();
        let pod = Netns::new();
        network.attach(&id('a'), pod.as_fd(), &[tcp(8080, 80)]).unwrap();
        let mut ruleset = network.ruleset(network.subnet().unwrap());
        ruleset.misplace_a_rule();
        let refusal = nft::rebuild(&mut network.netfilter(), &ruleset, &[]).unwrap_err();
        assert!(refusal.action.contains("chain nowhere"), "{refusal:?}");
        assert_eq!(network.observe().unwrap(), []);
        pod.serve("pod", 80);
        assert!(world.host.ask(std::net::Ipv4Addr::LOCALHOST, 8080).is_some());
    });
}

#[test]
fn foreign_chains_that_drop_are_named() {
    if !can_filter() {
        return;
    }
    world(|world| {
        let config = world.config();
        let network = world.open();
        network.ensure().unwrap();
        let clean = survey(&config);
        assert_eq!(clean.foreign_drops, []);
        assert_eq!(clean.nftables_fault, None);
        assert!(clean.ip_forward);
        let rules = "
            table inet firewall {
                chain users { oifname \"eth7\" reject; }
                chain forward { type filter hook forward priority 10; policy accept; jump users; }
                chain input { type filter hook input priority 0; policy drop; }
            }
            table ip filter {
                chain FORWARD { type filter hook forward priority 0; policy drop; }
            }";
        let file = world.directory.path().join("rules");
        std::fs::write(&file, rules).unwrap();
        let Some(_) = world.host.program("nft", &["-f", file.to_str().unwrap()]) else {
            return;
        };
        let found = survey(&config).foreign_drops;
        let names: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "nftables chain ip filter FORWARD drops forwarded packets that none of its rules accepts",
                "nftables chain inet firewall forward has a rule that drops forwarded packets",
            ]
        );
        assert!(found[0].blocks_pods() && !found[1].blocks_pods());
        assert_eq!(network.blocking_chains().unwrap(), found[..1]);
        assert_eq!(network.recently_blocking_chains().unwrap(), found[..1]);
        let accept = ["add", "rule", "ip", "filter", "FORWARD", "iifname", "prtest0", "accept"];
        world.host.program("nft", &accept);
        assert!(!survey(&config).foreign_drops[0].blocks_pods());
        assert_eq!(network.blocking_chains().unwrap(), []);
        // A hundred pods at once look once.
        assert_eq!(network.recently_blocking_chains().unwrap(), found[..1]);
        // A last rule for all packets is a policy.
        world.host.program("nft", &["add", "rule", "inet", "firewall", "forward", "counter", "reject"]);
        let blocking = network.blocking_chains().unwrap();
        assert!(matches!(&blocking[..], [one] if one.chain == "forward" && one.by_policy), "{blocking:?}");
        // None of this is ours to touch.
        assert_eq!(network.ensure().unwrap(), []);
        network.close_and_remove().unwrap();
        let left = world.host.program("nft", &["list", "ruleset"]).unwrap();
        assert!(left.contains("table ip filter") && left.contains("table inet firewall"));
    });
}
