//! `UpdateRuntimeConfig`: the pod CIDR that a cluster gave the node. Addresses of pods are the agent's setting.

use std::net::IpAddr;

use portreeve_engine::KubeletNetwork;
use portreeve_engine::network::cni::NetworkList;
use tonic::Status;

use super::Answer;
use crate::cri::Cri;
use crate::cri::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

pub(super) async fn answer(cri: &Cri, asked: &UpdateRuntimeConfigRequest) -> Answer<UpdateRuntimeConfigResponse> {
    if let Some(pod_cidr) = named(asked)? {
        tracing::info!(pod_cidr, "a kubelet names a pod CIDR; podCIDR of the agent's settings counts");
        let config = cri.engine.config();
        if config.kubelet_network == KubeletNetwork::Auto {
            let networks = config.plugins.networks.clone();
            let directory = networks.display().to_string();
            let found = tokio::task::spawn_blocking(move || NetworkList::first_of(&networks)).await;
            // One that cannot be used is told by `Status`.
            if matches!(found, Ok(Ok(None))) {
                tracing::warn!(
                    pod_cidr,
                    directory,
                    "a kubelet of a cluster, and no network of plugins: pods are on this node's bridge, where other nodes \
                     do not reach them; set cri.network to cni to have them wait for the cluster's, or to builtin"
                );
            }
        }
    }
    Ok(UpdateRuntimeConfigResponse {})
}

/// The networks, one of each family where there are both; none when nothing is named.
fn named(asked: &UpdateRuntimeConfigRequest) -> Result<Option<&str>, Status> {
    let network = asked.runtime_config.as_ref().and_then(|config| config.network_config.as_ref());
    let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) else { return Ok(None) };
    match network.pod_cidr.split(',').find(|cidr| !is_cidr(cidr)) {
        Some(bad) => {
            let message = format!("runtime_config.network_config.pod_cidr: {bad:?} is no network");
            Err(Status::invalid_argument(message))
        }
        None => Ok(Some(&network.pod_cidr)),
    }
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
        let found = |pod_cidr: &str| {
            let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.to_owned() });
            let asked = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
            named(&asked).map(|found| found.map(str::to_owned))
        };
        assert_eq!(found("").unwrap(), None);
        for good in ["10.244.0.0/24", "10.244.0.0/24,fd00::/64"] {
            assert_eq!(found(good).unwrap().as_deref(), Some(good));
        }
        for bad in ["nonsense", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0.0/8,", "/8"] {
            assert!(found(bad).is_err(), "{bad}");
        }
    }
}
