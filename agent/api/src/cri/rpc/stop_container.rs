//! `StopContainer`: its stop signal, and SIGKILL after the timeout; again is fine, and so is one that is gone.

use std::time::Duration;

use super::Answer;
use crate::cri::v1::{StopContainerRequest, StopContainerResponse};
use crate::cri::{Cri, failure};

pub(super) async fn answer(cri: &Cri, asked: &StopContainerRequest) -> Answer<StopContainerResponse> {
    if let Some(container) = cri.find_container(&asked.container_id)? {
        let grace = Duration::from_secs(u64::try_from(asked.timeout).unwrap_or(0));
        cri.engine.stop_container(&container.id, grace).await.map_err(|error| failure::engine(&error))?;
    }
    Ok(StopContainerResponse {})
}
