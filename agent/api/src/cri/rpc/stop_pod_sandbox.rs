//! `StopPodSandbox`: kills what is left in it and gives back its network; again is fine, and so is one that is gone.

use super::Answer;
use crate::cri::v1::{StopPodSandboxRequest, StopPodSandboxResponse};
use crate::cri::{Cri, failure};

pub(super) async fn answer(cri: &Cri, asked: &StopPodSandboxRequest) -> Answer<StopPodSandboxResponse> {
    if let Some(sandbox) = cri.find_sandbox(&asked.pod_sandbox_id)? {
        cri.engine.stop_sandbox(&sandbox.id).await.map_err(|error| failure::engine(&error))?;
    }
    Ok(StopPodSandboxResponse {})
}
