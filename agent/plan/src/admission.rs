//! Which pods of a set may run beside each other: host ports and uids have one owner.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::desired::{Blocked, PodKey, PodUid};

/// A pod that wants to run.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Its uid.
    pub uid: &'a PodUid,
    /// Its name.
    pub key: &'a PodKey,
    /// The pod.
    pub pod: &'a Pod,
    /// When the ledger first knew it; the first owner wins.
    pub admitted_at: Timestamp,
    /// Whether it holds what it asks for (it has a sandbox): such a pod wins over one that only
    /// wants it, so that an edit never takes a port from a running pod.
    pub holds: bool,
}

/// Who of `candidates` must not start, by key, and why. Pods that have ended or are being removed
/// hold ports until their sandbox is stopped: pass them only while they have one.
pub fn admit(candidates: &[Candidate<'_>]) -> BTreeMap<PodKey, Blocked> {
    let mut order: Vec<&Candidate<'_>> = candidates.iter().collect();
    order.sort_by_key(|candidate| (!candidate.holds, candidate.admitted_at, candidate.key));
    let mut uids: BTreeMap<&PodUid, &PodKey> = BTreeMap::new();
    let mut taken: Vec<(HostPort, &PodKey)> = Vec::new();
    let mut blocked = BTreeMap::new();
    for candidate in order {
        if let Some(owner) = uids.get(candidate.uid) {
            let message = format!("uid {} belongs to pod {owner}", candidate.uid);
            let reason = "UidConflict".to_owned();
            blocked.insert(candidate.key.clone(), Blocked { reason, message });
            continue;
        }
        let wanted = host_ports(candidate.pod.spec.as_ref());
        let clash = wanted
            .iter()
            .find_map(|wanted| taken.iter().find(|(owned, _)| owned.clashes(wanted)).map(|(_, owner)| (wanted, owner)));
        if let Some((port, owner)) = clash {
            let message =
                format!("host port {}/{} is used by pod {owner}; change one of them", port.port, port.protocol);
            let reason = "HostPortConflict".to_owned();
            blocked.insert(candidate.key.clone(), Blocked { reason, message });
            continue;
        }
        uids.insert(candidate.uid, candidate.key);
        taken.extend(wanted.into_iter().map(|port| (port, candidate.key)));
    }
    blocked
}

/// A port of the host that a pod asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct HostPort {
    protocol: String,
    ip: IpAddr,
    port: i32,
}

impl HostPort {
    fn clashes(&self, other: &HostPort) -> bool {
        let same_address = self.ip == other.ip || self.ip.is_unspecified() || other.ip.is_unspecified();
        self.port == other.port && self.protocol == other.protocol && same_address
    }
}

/// The host ports of all containers. With the host's network, manifests give each container port
/// as a host port.
fn host_ports(spec: Option<&PodSpec>) -> Vec<HostPort> {
    let Some(spec) = spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten();
    let mut ports: Vec<HostPort> = init
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()).unwrap_or(any),
                port: port.host_port.filter(|port| *port != 0)?,
            })
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}
