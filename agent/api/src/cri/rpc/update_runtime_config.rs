//! `UpdateRuntimeConfig`: the pod CIDR that a cluster gave the node. Addresses of pods are the agent's setting.

use std::net::IpAddr;

use tonic::Status;

use super::Answer;
use crate::cri::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

pub(super) fn answer(asked: &UpdateRuntimeConfigRequest) -> Answer<UpdateRuntimeConfigResponse> {
    let network = asked.runtime_config.as_ref().and_then(|config| config.network_config.as_ref());
    if let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) {
        // One of each family, where there are both.
        if let Some(bad) = network.pod_cidr.split(',').find(|cidr| !is_cidr(cidr)) {
            let message = format!("runtime_config.network_config.pod_cidr: {bad:?} is no network");
            return Err(Status::invalid_argument(message));
        }
        tracing::info!(
            pod_cidr = network.pod_cidr,
            "a kubelet names a pod CIDR; podCIDR of the agent's settings counts"
        );
    }
    Ok(UpdateRuntimeConfigResponse {})
}

fn is_cidr(text: &str) -> bool {
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let parsed = text
        .split_once('/')
        .and_then(|(address, length)| Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?)));
    parsed.is_some_and(|(address, length)| length <= bits(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::v1::{NetworkConfig, RuntimeConfig};

    #[test]
    fn only_networks_are_named() {
        let named = |pod_cidr: &str| {
            let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.to_owned() });
            answer(&UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) }).is_ok()
        };
        for good in ["", "10.244.0.0/24", "10.244.0.0/24,fd00::/64"] {
            assert!(named(good), "{good}");
        }
        for bad in ["nonsense", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0.0/8,", "/8"] {
            assert!(!named(bad), "{bad}");
        }
    }
}
