//! What a caller decides about the pod network.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// The addresses that subnets are taken from when no `pod_cidr` is configured.
pub const DEFAULT_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 85, 0, 0), 16);

/// Where to look when everything of [`DEFAULT_POOL`] overlaps a route, as a VPN's 10.0.0.0/8 does.
pub(crate) const FALLBACK_POOLS: [Ipv4Net; 2] =
    [Ipv4Net::new_assert(Ipv4Addr::new(172, 29, 0, 0), 16), Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 240, 0), 20)];

/// The file whose lock orders all agents of one machine while they choose a subnet.
pub const DEFAULT_SUBNET_LOCK: &str = "/run/portreeve-subnets.lock";

/// Names and places of one agent's network. Two agents of one machine differ in `bridge`,
/// `nft_table` and `state_dir`, and share `pool` and `subnet_lock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the bridge, at most 15 bytes.
    pub bridge: String,
    /// Addresses of the pods; `None` takes the first free /24 of `pool`.
    pub pod_cidr: Option<Ipv4Net>,
    /// Where subnets come from when `pod_cidr` is not set; beyond the default pool, and only
    /// beyond that, two others are tried.
    pub pool: Ipv4Net,
    /// Name of the nftables table of family `ip`.
    pub nft_table: String,
    /// Directory of our records; made with mode 0700.
    pub state_dir: PathBuf,
    /// Lock shared by all agents of the machine.
    pub subnet_lock: PathBuf,
    /// MTU of bridge and pods; `None` takes that of the interface with the default route.
    pub mtu: Option<u32>,
}

impl Config {
    /// The usual names, with records below `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            bridge: "portreeve0".to_owned(),
            pod_cidr: None,
            pool: DEFAULT_POOL,
            nft_table: "portreeve".to_owned(),
            state_dir: state_dir.into(),
            subnet_lock: PathBuf::from(DEFAULT_SUBNET_LOCK),
            mtu: None,
        }
    }
}

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in the IPv4 header.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this number in the IPv4 header, when it is one that can be published.
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port of the host that leads to a port of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Answers on this local address only; `None` or 0.0.0.0 means every local IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Addr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
}

impl PortMapping {
    /// The same mapping with 0.0.0.0 written as what it means.
    pub(crate) fn normalized(mut self) -> Self {
        self.host_ip = self.host_ip.filter(|ip| !ip.is_unspecified());
        self
    }

    /// Whether a packet exists that both mappings claim.
    pub(crate) fn conflicts_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && match (self.host_ip, other.host_ip) {
                (Some(mine), Some(theirs)) => mine == theirs,
                _ => true,
            }
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ip) = self.host_ip {
            write!(f, "{ip}:")?;
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}
