//! dnsPolicy and dnsConfig to a resolver configuration.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::PodSpec;
use portreeve_engine::DnsConfig;

/// Where systemd-resolved keeps the servers behind its own loopback address.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
/// What the C library reads.
const MAX_SERVERS: usize = 3;
/// What Kubernetes allows.
const MAX_SEARCHES: usize = 32;

/// The resolver settings of a pod; empty means a copy of the node's.
pub(super) fn dns(spec: &PodSpec, resolv_conf: &Path) -> DnsConfig {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let in_pod_network = spec.host_network != Some(true);
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        // Without a cluster, `ClusterFirst` means what the kubelet makes of it then: the node's.
        _ => read_resolv_conf(resolv_conf, in_pod_network),
    };
    let Some(config) = &spec.dns_config else {
        return dns;
    };
    dns.servers.extend(config.nameservers.iter().flatten().cloned());
    dns.searches.extend(config.searches.iter().flatten().cloned());
    for option in config.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        dns.options.retain(|given| given.split(':').next() != Some(name.as_str()));
        dns.options.push(match &option.value {
            Some(value) => format!("{name}:{value}"),
            None => name,
        });
    }
    unique(&mut dns.servers, MAX_SERVERS);
    unique(&mut dns.searches, MAX_SEARCHES);
    dns
}

fn unique(list: &mut Vec<String>, most: usize) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
    list.truncate(most);
}

/// Reads a `resolv.conf`. In a pod's own network a loopback server of the node is not there: then
/// the servers behind systemd-resolved are taken.
pub(crate) fn read_resolv_conf(path: &Path, in_pod_network: bool) -> DnsConfig {
    let dns = parse(&fs::read_to_string(path).unwrap_or_default());
    let loopback = |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if in_pod_network
        && !dns.servers.is_empty()
        && dns.servers.iter().all(loopback)
        && let Ok(text) = fs::read_to_string(UPSTREAM)
    {
        return parse(&text);
    }
    dns
}

fn parse(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // Of several search lines the last counts.
            Some("search" | "domain") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns.servers.truncate(MAX_SERVERS);
    dns
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption};

    #[test]
    fn policies_and_configuration_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, "# node\nnameserver 192.0.2.1\nsearch a.test b.test\noptions ndots:2 rotate\n").unwrap();
        let config = PodDNSConfig {
            nameservers: Some(vec!["192.0.2.9".into(), "192.0.2.1".into()]),
            searches: Some(vec!["b.test".into(), "c.test".into()]),
            options: Some(vec![PodDNSConfigOption { name: Some("ndots".into()), value: Some("5".into()) }]),
        };
        let spec = |policy: &str, config: Option<PodDNSConfig>| PodSpec {
            dns_policy: Some(policy.into()),
            dns_config: config,
            ..PodSpec::default()
        };
        let node = dns(&spec("Default", None), &path);
        assert_eq!(node.servers, ["192.0.2.1"]);
        let both = dns(&spec("ClusterFirst", Some(config.clone())), &path);
        assert_eq!(both.servers, ["192.0.2.1", "192.0.2.9"]);
        assert_eq!(both.searches, ["a.test", "b.test", "c.test"]);
        assert_eq!(both.options, ["rotate", "ndots:5"]);
        let none = dns(&spec("None", Some(config)), &path);
        assert_eq!(none.servers, ["192.0.2.9", "192.0.2.1"]);
        assert_eq!(none.options, ["ndots:5"]);
    }
}
