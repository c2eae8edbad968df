//! `ReopenContainerLog`: a kubelet has renamed the log, and wants a new file under the old name.

use super::Answer;
use crate::cri::v1::{ReopenContainerLogRequest, ReopenContainerLogResponse};
use crate::cri::{Cri, failure};

pub(super) async fn answer(cri: &Cri, asked: &ReopenContainerLogRequest) -> Answer<ReopenContainerLogResponse> {
    let container = cri.container(&asked.container_id)?;
    cri.engine.reopen_log(&container.id).await.map_err(|error| failure::engine(&error))?;
    Ok(ReopenContainerLogResponse {})
}
