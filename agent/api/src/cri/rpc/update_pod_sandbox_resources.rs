//! `UpdatePodSandboxResources`: told after a kubelet changed the pod's cgroup, which is its own.

use super::Answer;
use crate::cri::Cri;
use crate::cri::v1::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

pub(super) fn answer(cri: &Cri, asked: &UpdatePodSandboxResourcesRequest) -> Answer<UpdatePodSandboxResourcesResponse> {
    cri.sandbox(&asked.pod_sandbox_id)?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
