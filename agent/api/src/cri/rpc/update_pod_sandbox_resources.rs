//! `UpdatePodSandboxResources`: other limits for a pod. A kubelet has changed the pod's cgroup before, which is its own; one
//! that was made here, for a client that gave none, is changed here.

use super::Answer;
use crate::cri::v1::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};
use crate::cri::{Cri, failure, wanted};

pub(super) async fn answer(
    cri: &Cri,
    asked: UpdatePodSandboxResourcesRequest,
) -> Answer<UpdatePodSandboxResourcesResponse> {
    let sandbox = cri.sandbox(&asked.pod_sandbox_id)?;
    let ours = sandbox.cgroup_parent.starts_with(&format!("{}/", cri.engine.config().cgroup_root));
    if let (true, Some(limits)) = (ours, asked.resources) {
        let mut limits = wanted::resources(limits)?;
        super::without_missing(&mut limits);
        let updated = cri.engine.update_sandbox_resources(&sandbox.id, &limits).await;
        updated.map_err(|error| failure::engine(&error))?;
    }
    Ok(UpdatePodSandboxResourcesResponse {})
}
