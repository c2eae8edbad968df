//! Published ports, as the built-in network can have them.

use std::net::IpAddr;

use portreeve_network::PortMapping;
use portreeve_network::cni::Published;

use crate::EngineError;

/// Ports as the built-in network publishes them, which has addresses of IPv4 alone.
pub(super) fn built_in(ports: &[Published]) -> Result<Vec<PortMapping>, EngineError> {
    let one = |port: &Published| {
        let host_ip = match port.host_ip {
            None => None,
            Some(IpAddr::V4(address)) => Some(address),
            // Who listens on it answers on all addresses, and these are all that there are.
            Some(IpAddr::V6(address)) if address.is_unspecified() => None,
            Some(IpAddr::V6(address)) => Some(address.to_ipv4_mapped().ok_or_else(|| {
                let message =
                    format!("{address} is of IPv6, which the built-in network has not; plugins (CNI) may have");
                EngineError::invalid("port_mappings.host_ip", message)
            })?),
        };
        let Published { protocol, host_port, container_port, .. } = *port;
        Ok(PortMapping { protocol, host_ip, host_port, container_port })
    };
    ports.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use portreeve_network::Protocol;

    use super::*;

    #[test]
    fn the_built_in_network_publishes_on_addresses_of_ipv4() {
        let on = |address: Option<&str>| {
            let host_ip = address.map(|address| address.parse().unwrap());
            let port = Published { host_ip, host_port: 8080, container_port: 80, protocol: Protocol::Tcp };
            built_in(&[port]).map(|ports| ports[0].host_ip.map(|address| address.to_string()))
        };
        assert_eq!(on(None).unwrap(), None);
        assert_eq!(on(Some("::")).unwrap(), None);
        for (asked, expected) in [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::ffff:192.0.2.1", "192.0.2.1")]
        {
            assert_eq!(on(Some(asked)).unwrap().as_deref(), Some(expected));
        }
        for refused in ["::1", "2001:db8::1"] {
            assert!(matches!(on(Some(refused)), Err(EngineError::Invalid { .. })), "{refused}");
        }
    }
}
