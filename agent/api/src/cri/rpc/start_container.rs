//! `StartContainer`: runs what was created.

use super::Answer;
use crate::cri::v1::{StartContainerRequest, StartContainerResponse};
use crate::cri::{Cri, failure};

pub(super) async fn answer(cri: &Cri, asked: &StartContainerRequest) -> Answer<StartContainerResponse> {
    let container = cri.container(&asked.container_id)?;
    cri.engine.start_container(&container.id).await.map_err(|error| failure::engine(&error))?;
    Ok(StartContainerResponse {})
}
