//! `RemovePodSandbox`: with its containers, also running ones; one that is gone is fine.

use super::Answer;
use crate::cri::v1::{RemovePodSandboxRequest, RemovePodSandboxResponse};
use crate::cri::{Cri, failure};

pub(super) async fn answer(cri: &Cri, asked: &RemovePodSandboxRequest) -> Answer<RemovePodSandboxResponse> {
    if let Some(sandbox) = cri.find_sandbox(&asked.pod_sandbox_id)? {
        cri.engine.stop_sandbox(&sandbox.id).await.map_err(|error| failure::engine(&error))?;
        cri.engine.remove_sandbox(&sandbox.id).await.map_err(|error| failure::engine(&error))?;
    }
    Ok(RemovePodSandboxResponse {})
}
