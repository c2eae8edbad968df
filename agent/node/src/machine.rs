//! What the node knows about its machine.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use crate::config::NodeConfig;
use crate::volumes::NodeFacts;

/// Looks at the machine once.
pub(crate) fn facts(config: &NodeConfig) -> NodeFacts {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    NodeFacts {
        name: config.node_name.clone(),
        labels: config.node_labels(),
        host_ips: host_ips(),
        cpu_millis: u64::try_from(cpus).unwrap_or(1).saturating_mul(1000),
        memory_bytes: memory_bytes(Path::new("/proc/meminfo")),
        storage_bytes: storage_bytes(&config.root),
    }
}

/// The node's addresses, the one that leads out first.
fn host_ips() -> Vec<String> {
    // Connecting a datagram socket sends nothing: it only asks the routing table.
    let outward = UdpSocket::bind(("0.0.0.0", 0))
        .and_then(|socket| {
            socket.connect(("192.0.2.1", 9))?;
            socket.local_addr()
        })
        .map(|address| address.ip())
        .ok()
        .filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
    let mut ips: Vec<IpAddr> = outward.into_iter().collect();
    if ips.is_empty() {
        let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let addresses = interfaces.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
        ips.extend(addresses.filter(|ip| !ip.is_loopback()).take(1).map(IpAddr::V4));
    }
    if ips.is_empty() {
        ips.push(IpAddr::from([127, 0, 0, 1]));
    }
    ips.iter().map(ToString::to_string).collect()
}

fn memory_bytes(meminfo: &Path) -> u64 {
    let text = fs::read_to_string(meminfo).unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

fn storage_bytes(root: &Path) -> u64 {
    let found = rustix::fs::statvfs(root);
    found.map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}
