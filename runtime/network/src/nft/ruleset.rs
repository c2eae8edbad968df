//! What our table holds.
//!
//! ```text
//! prerouting -300  guard        127/8 arriving on the bridge is dropped (route_localnet is on there)
//! prerouting -100  prerouting   published ports lead to their pods, for packets from elsewhere
//! output     -100  output       the same for packets of this host, 127.0.0.1 included
//! forward       0  forward      pods may be forwarded to and from
//! postrouting 100  postrouting  pods leave with the host's address; so do hairpins and loopback
//! ```
//!
//! A published port is one element of a map, so the cost of publishing does not depend on how
//! many there are. The guard stands before connection tracking (-200): a reply to a connection
//! from 127.0.0.1 has that address again only after it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::expression::Expressions;
use crate::names::fingerprint;
use crate::{PortMapping, Protocol};

/// Map from protocol and port to the pod.
pub(super) const PORTS: &str = "host_ports";
/// Map from address, protocol and port to the pod.
pub(super) const PORTS_OF_ADDRESS: &str = "host_ip_ports";

const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// A base chain: name, type, hook (`NF_INET_*`), priority.
pub(super) type Chain = (&'static str, &'static str, u32, i32);

/// The base chains, and the least extent that has each.
const CHAINS: [(Chain, Extent); 5] = [
    (("guard", "filter", 0, -300), Extent::Forwarding),
    (("prerouting", "nat", 0, -100), Extent::Full),
    (("output", "nat", 3, -100), Extent::Full),
    (("forward", "filter", 2, 0), Extent::Forwarding),
    (("postrouting", "nat", 4, 100), Extent::WayOut),
];

/// How much of the ruleset the kernel can hold; each has what the ones before it have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Extent {
    /// No table: nothing but bridge and links.
    Nothing,
    /// Rules that accept and drop: pods reach what routes back to them.
    Forwarding,
    /// Pods leave with the host's address.
    WayOut,
    /// Ports of the host can be published.
    #[default]
    Full,
}

impl Extent {
    /// What does not work with this extent.
    pub(crate) fn consequence(self) -> &'static str {
        match self {
            Self::Nothing => {
                "host ports cannot be published, pods cannot leave with the host's address, \
                 and their packets are not told from others"
            }
            Self::Forwarding => "host ports cannot be published, and pods cannot leave with the host's address",
            Self::WayOut => "host ports cannot be published",
            Self::Full => "nothing is lost",
        }
    }
}

/// A rule with the comment by which it is recognised.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) chain: &'static str,
    pub(super) comment: String,
    pub(super) expressions: Expressions,
}

/// The desired content of our table, without the elements of its maps.
#[derive(Debug)]
pub(crate) struct Ruleset {
    pub(super) table: String,
    /// The table's; empty: none.
    pub(super) comment: String,
    pub(super) extent: Extent,
    pub(super) rules: Vec<Rule>,
}

impl Ruleset {
    /// The rules for pods of `subnet` behind `bridge`, as far as the kernel has what they need.
    pub(crate) fn new(table: &str, bridge: &str, subnet: Ipv4Net, extent: Extent) -> Self {
        let rule = |chain, comment: &str, expressions: Expressions| Rule {
            chain,
            // The number changes with the rule: a listing tells an older rule from this one.
            comment: format!("{comment} [{:08x}]", fingerprint(expressions.bytes()) >> 32),
            expressions,
        };
        let new = Expressions::new;
        let mut rules = vec![
            rule("guard", "pods do not reach the host's loopback", new().arrives_on(bridge).sent_to(LOOPBACK).drop()),
            rule("guard", "pods do not pose as the host's loopback", new().arrives_on(bridge).sent_by(LOOPBACK).drop()),
        ];
        for chain in ["prerouting", "output"] {
            rules.push(rule(
                chain,
                "ports published on one address",
                new().sent_to_this_host().redirect_by_address_and_port(PORTS_OF_ADDRESS),
            ));
            rules.push(rule(
                chain,
                "ports published on every address",
                new().sent_to_this_host().redirect_by_port(PORTS),
            ));
        }
        rules.push(rule("forward", "from pods", new().arrives_on(bridge).accept()));
        rules.push(rule("forward", "to pods", new().leaves_on(bridge).accept()));
        rules.push(rule(
            "postrouting",
            "pods leave with the host's address",
            new().sent_by(subnet).leaves_not_on(bridge).masquerade(),
        ));
        if extent == Extent::Full {
            rules.push(rule(
                "postrouting",
                "the host's loopback reaches published ports",
                new().sent_by(LOOPBACK).leaves_on(bridge).masquerade(),
            ));
            rules.push(rule(
                "postrouting",
                "pods reach published ports of this host",
                new().sent_by(subnet).leaves_on(bridge).was_redirected().masquerade(),
            ));
        }
        let mut ruleset = Self { table: table.to_owned(), comment: String::new(), extent, rules: Vec::new() };
        rules.retain(|rule| ruleset.chains().any(|(name, ..)| name == rule.chain));
        ruleset.rules = rules;
        ruleset
    }

    /// The same, with a comment for the table.
    pub(crate) fn signed(self, comment: String) -> Self {
        Self { comment, ..self }
    }

    /// Puts one rule in the middle into a chain that does not exist.
    #[cfg(test)]
    pub(crate) fn misplace_a_rule(&mut self) {
        let middle = self.rules.len() / 2;
        if let Some(rule) = self.rules.get_mut(middle) {
            rule.chain = "nowhere";
        }
    }

    /// The base chains that the kernel can hold.
    pub(super) fn chains(&self) -> impl Iterator<Item = Chain> + use<> {
        let extent = self.extent;
        CHAINS.into_iter().filter(move |(_, least)| *least <= extent).map(|(chain, _)| chain)
    }
}

/// One published port as an element of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(super) map: &'static str,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Element {
    /// The element that makes `port` lead to the pod at `address`.
    pub(crate) fn new(port: &PortMapping, address: Ipv4Addr) -> Self {
        // Every field of a concatenation fills a register of four bytes.
        let mut key = Vec::with_capacity(12);
        if let Some(ip) = port.host_ip {
            key.extend_from_slice(&ip.octets());
        }
        key.extend_from_slice(&[port.protocol.number(), 0, 0, 0]);
        key.extend_from_slice(&port.host_port.to_be_bytes());
        key.extend_from_slice(&[0, 0]);
        let mut value = address.octets().to_vec();
        value.extend_from_slice(&port.container_port.to_be_bytes());
        value.extend_from_slice(&[0, 0]);
        Self { map: port.host_ip.map_or(PORTS, |_| PORTS_OF_ADDRESS), key, value }
    }

    /// The port for an error or a report: `8080/TCP`.
    pub(crate) fn describe(&self) -> String {
        let (host_ip, rest) = match self.key.len() {
            12 => (self.key.first_chunk::<4>().copied(), self.key.get(4..)),
            _ => (None, Some(self.key.as_slice())),
        };
        let Some([number, _, _, _, high, low, ..]) = rest else {
            return "an element of another shape".to_owned();
        };
        let port = u16::from_be_bytes([*high, *low]);
        let protocol =
            Protocol::from_number(*number).map_or_else(|| number.to_string(), |protocol| protocol.to_string());
        match host_ip {
            Some(ip) => format!("{}:{port}/{protocol}", Ipv4Addr::from(ip)),
            None => format!("{port}/{protocol}"),
        }
    }
}
