//! `PodSandboxStatus`: one sandbox with the statuses of its containers.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Answer;
use crate::cri::v1::{PodSandboxStatusRequest, PodSandboxStatusResponse};
use crate::cri::{Cri, view};

pub(super) fn answer(cri: &Cri, asked: &PodSandboxStatusRequest) -> Answer<PodSandboxStatusResponse> {
    let sandbox = cri.sandbox(&asked.pod_sandbox_id)?;
    let mut info = BTreeMap::new();
    if asked.verbose {
        let text = serde_json::json!({
            "pid": sandbox.shim_pid, "cgroupParent": sandbox.cgroup_parent, "warnings": sandbox.warnings,
        });
        info.insert("info".to_owned(), text.to_string());
    }
    Ok(PodSandboxStatusResponse {
        status: Some(view::sandbox_status(&sandbox)),
        info,
        containers_statuses: cri.containers_in(&sandbox.id).iter().map(|one| cri.show(one)).collect(),
        timestamp: view::nanoseconds(Timestamp::now()),
    })
}
