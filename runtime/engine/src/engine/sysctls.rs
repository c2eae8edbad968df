//! Kernel parameters of a pod's namespaces, each written once: those of the network when that is there.

use std::collections::BTreeMap;

use crate::EngineError;
use crate::client::Client;
use crate::protocol::Call;
use crate::sandbox::{NetworkNamespace, SandboxConfig, UserNamespace};

/// What is set before a pod's network comes: what is not of it, and what every pod has that does not say otherwise.
pub(super) fn early(config: &SandboxConfig) -> BTreeMap<String, String> {
    let asked = |name: &str| config.sysctls.keys().any(|other| other.replace('/', ".") == name);
    let mut sysctls = BTreeMap::new();
    if config.namespaces.network == NetworkNamespace::Pod {
        // As containerd does: a container without privileges may serve port 80 and ping.
        let mut usual = vec![("net.ipv4.ip_unprivileged_port_start", "0")];
        if config.namespaces.user == UserNamespace::Node {
            usual.push(("net.ipv4.ping_group_range", "0 2147483647"));
        }
        let usual = usual.into_iter().filter(|(name, _)| !asked(name));
        sysctls.extend(usual.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    let others = config.sysctls.iter().filter(|(name, _)| !of_network(name));
    sysctls.extend(others.map(|(name, value)| (name.clone(), value.clone())));
    sysctls
}

/// Sets what is asked for of a pod's network, once that is there.
pub(super) async fn set_late(client: &Client, config: &SandboxConfig) -> Result<(), EngineError> {
    let asked = config.sysctls.iter().filter(|(name, _)| of_network(name));
    let values: BTreeMap<_, _> = asked.map(|(name, value)| (name.clone(), value.clone())).collect();
    match values.is_empty() {
        true => Ok(()),
        false => client.ask(Call::Sysctls { values }).await.map(drop),
    }
}

/// Whether a parameter is of the network: of an interface that comes only with it, or what comes with it would write it over.
fn of_network(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Namespaces, SandboxMetadata};

    #[test]
    fn what_is_of_the_network_waits_for_it_and_goes_before_what_is_usual() {
        let asked = ["net.ipv4.conf.eth0.arp_ignore", "net/ipv4/ip_unprivileged_port_start", "kernel.shm_rmid_forced"];
        let config = SandboxConfig {
            metadata: SandboxMetadata { name: "a".into(), namespace: "b".into(), uid: "u".into(), attempt: 0 },
            owner: crate::Owner::Cri,
            hostname: String::new(),
            log_directory: Default::default(),
            dns: Default::default(),
            port_mappings: Vec::new(),
            bandwidth: Default::default(),
            labels: Default::default(),
            annotations: Default::default(),
            cgroup_parent: "/x".into(),
            namespaces: Namespaces::default(),
            privileged: false,
            selinux: None,
            sysctls: asked.map(|name| (name.to_owned(), "1".to_owned())).into(),
            resources: Default::default(),
            handler: None,
        };
        let names: Vec<String> = early(&config).into_keys().collect();
        assert_eq!(names, ["kernel.shm_rmid_forced", "net.ipv4.ping_group_range"]);
        let late: Vec<&String> = config.sysctls.keys().filter(|name| of_network(name)).collect();
        assert_eq!(late, ["net.ipv4.conf.eth0.arp_ignore", "net/ipv4/ip_unprivileged_port_start"]);
    }
}
