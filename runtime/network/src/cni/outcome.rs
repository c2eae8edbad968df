//! What plugins say that they did.
//!
//! Source: CNI specification 1.1 §Section 5; 0.3.1 and 0.4.0 say the same with more words.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

/// How a pod is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The network.
    pub network: String,
    /// Its addresses there, in the order of the plugins.
    pub addresses: Vec<IpNet>,
    /// Nameservers that the network tells.
    pub nameservers: Vec<IpAddr>,
    /// Search domains that the network tells.
    pub searches: Vec<String>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Address>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    interface: Option<usize>,
}

#[derive(Default, Deserialize)]
struct Dns {
    #[serde(default)]
    nameservers: Vec<String>,
    #[serde(default)]
    search: Vec<String>,
}

impl Attached {
    /// What a result says of the pod's `interface`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn of(network: &str, interface: &str, result: &Value) -> Result<Self, String> {
        let raw: Raw = Raw::deserialize(result).map_err(|error| format!("its result cannot be read: {error}"))?;
        let is_of_the_pod = |address: &&Address| match address.interface {
            // Who does not say which one means the only one.
            None => true,
            Some(index) => raw.interfaces.get(index).is_some_and(|i| i.name == interface && !i.sandbox.is_empty()),
        };
        let addresses = raw.ips.iter().filter(is_of_the_pod).map(|address| {
            address.address.parse().map_err(|_| format!("its result has {:?} for an address", address.address))
        });
        Ok(Self {
            network: network.to_owned(),
            addresses: addresses.collect::<Result<_, String>>()?,
            // Names of nameservers are of no use to who looks for names.
            nameservers: raw.dns.nameservers.iter().filter_map(|server| server.parse().ok()).collect(),
            searches: raw.dns.search,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_the_pods_interface_are_its_own() {
        let result = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"},
                           {"name": "lo", "sandbox": "/run/netns/a"}],
            "ips": [{"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2},
                    {"version": "6", "address": "fd00::5/64", "interface": 2},
                    {"version": "4", "address": "10.1.0.1/24", "interface": 0},
                    {"version": "4", "address": "127.0.0.1/8", "interface": 3}],
            "dns": {"nameservers": ["10.1.0.1", "a name"], "search": ["lan"]},
        });
        let attached = Attached::of("net", "eth0", &result).unwrap();
        let addresses: Vec<String> = attached.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.0.5/24", "fd00::5/64"]);
        assert_eq!((attached.nameservers.len(), attached.searches.as_slice()), (1, ["lan".to_owned()].as_slice()));
        // Who names no interface has one alone.
        let plain = json!({"ips": [{"address": "10.1.0.9/16"}]});
        assert_eq!(Attached::of("net", "eth0", &plain).unwrap().addresses.len(), 1);
        for wrong in [json!(null), json!({"ips": [{"address": "here"}]}), json!({"ips": 3})] {
            assert!(Attached::of("net", "eth0", &wrong).is_err(), "{wrong}");
        }
    }
}
