//! `RemoveContainer`: also a running one; one that is gone is fine.

use std::time::Duration;

use super::Answer;
use crate::cri::v1::{RemoveContainerRequest, RemoveContainerResponse};
use crate::cri::{Cri, failure};

pub(super) async fn answer(cri: &Cri, asked: &RemoveContainerRequest) -> Answer<RemoveContainerResponse> {
    if let Some(container) = cri.find_container(&asked.container_id)? {
        let ended = cri.engine.stop_container(&container.id, Duration::ZERO).await;
        ended.map_err(|error| failure::engine(&error))?;
        cri.engine.remove_container(&container.id).await.map_err(|error| failure::engine(&error))?;
    }
    Ok(RemoveContainerResponse {})
}
