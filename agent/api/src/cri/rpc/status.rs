//! `Status`: whether containers and networks can be made, and what they can be.

use std::collections::BTreeMap;

use portreeve_engine::chain;

use super::Answer;
use crate::cri::Cri;
use crate::cri::v1::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest, StatusResponse,
};

pub(super) async fn answer(cri: &Cri, asked: &StatusRequest) -> Answer<StatusResponse> {
    let lost = cri.engine.lost_ground().borrow().clone();
    // The built-in network is there as long as the engine is; plugins may come and go.
    let network = cri.engine.kubelet_network().await.err().map(|error| chain(&error));
    let condition = |kind: &str, reason: &str, problem: Option<String>| RuntimeCondition {
        r#type: kind.to_owned(),
        status: problem.is_none(),
        reason: if problem.is_some() { reason.to_owned() } else { String::new() },
        message: problem.unwrap_or_default(),
    };
    let mut info = BTreeMap::new();
    if asked.verbose {
        let config = cri.engine.config();
        let text = serde_json::json!({ "root": config.root, "run": config.run, "cgroupRoot": config.cgroup_root });
        info.insert("config".to_owned(), text.to_string());
    }
    let own = RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: cri.own_users };
    Ok(StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![
                condition("RuntimeReady", "LostGround", lost),
                // What a kubelet's log says of every runtime.
                condition("NetworkReady", "NetworkPluginNotReady", network),
            ],
        }),
        info,
        runtime_handlers: cri.handlers.shown(own).await,
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    })
}
