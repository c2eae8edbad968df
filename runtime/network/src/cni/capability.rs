//! What a pod asks of a network beyond an address: each plugin gets of it what it says that it can do.
//!
//! Source: CNI conventions §Dynamic Plugin specific fields.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Protocol;

/// What a pod asks of a network beyond an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `portMappings`: ports of the machine that lead to the pod.
    pub ports: Vec<Published>,
    /// `bandwidth`: bits per second into and out of the pod.
    pub ingress_bits: Option<u64>,
    /// The same out of the pod.
    pub egress_bits: Option<u64>,
    /// `dns`: nameservers, search domains and options.
    pub dns: Option<Names>,
    /// `cgroupPath`: the pod's cgroup.
    pub cgroup: Option<String>,
}

/// A port of the machine that leads to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Of the machine; `None` for all of its addresses, 0.0.0.0 for those of IPv4, :: for those of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Of the machine.
    pub host_port: u16,
    /// Of the pod.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
}

/// How a pod finds names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Addresses of nameservers, in order.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
}

/// A bucket that never limits by itself: the rate does. Source: the bandwidth plugin takes bursts up to this.
const BURST: u32 = u32::MAX / 2;

impl Capabilities {
    /// All of it, by the names of the capabilities.
    pub(super) fn by_name(&self) -> Map<String, Value> {
        let mut all = Map::new();
        if !self.ports.is_empty() {
            all.insert("portMappings".to_owned(), self.ports.iter().map(Published::document).collect());
        }
        if self.ingress_bits.is_some() || self.egress_bits.is_some() {
            let mut limits = Map::new();
            for (rate, burst, bits) in
                [("ingressRate", "ingressBurst", self.ingress_bits), ("egressRate", "egressBurst", self.egress_bits)]
            {
                if let Some(bits) = bits {
                    limits.insert(rate.to_owned(), bits.into());
                    limits.insert(burst.to_owned(), BURST.into());
                }
            }
            all.insert("bandwidth".to_owned(), limits.into());
        }
        if let Some(Names { servers, searches, options }) = &self.dns {
            let document = json!({ "servers": servers, "searches": searches, "options": options });
            all.insert("dns".to_owned(), document);
        }
        if let Some(cgroup) = &self.cgroup {
            all.insert("cgroupPath".to_owned(), cgroup.as_str().into());
        }
        all
    }
}

impl Published {
    fn document(&self) -> Value {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        let (host_port, container_port) = (self.host_port, self.container_port);
        let mut document = json!({ "hostPort": host_port, "containerPort": container_port, "protocol": protocol });
        if let (Some(address), Value::Object(fields)) = (self.host_ip, &mut document) {
            fields.insert("hostIP".to_owned(), address.to_string().into());
        }
        document
    }
}

/// What of these a plugin takes that says it can do `names`; `None` for nothing.
pub(super) fn taken(all: &Map<String, Value>, names: &BTreeSet<String>) -> Option<Value> {
    let taken: Map<String, Value> = all
        .iter()
        .filter(|(name, _)| names.contains(*name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    (!taken.is_empty()).then_some(Value::Object(taken))
}
