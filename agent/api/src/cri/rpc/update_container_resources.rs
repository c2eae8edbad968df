//! `UpdateContainerResources`: other limits for a container, at once; those that are not given stay.

use super::Answer;
use crate::cri::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};
use crate::cri::{Cri, failure, wanted};

pub(super) async fn answer(
    cri: &Cri,
    asked: UpdateContainerResourcesRequest,
) -> Answer<UpdateContainerResourcesResponse> {
    let container = cri.container(&asked.container_id)?;
    if let Some(limits) = asked.linux {
        let score = wanted::oom_score_adj(limits.oom_score_adj)?;
        let mut limits = wanted::resources(limits)?;
        super::without_missing(&mut limits);
        cri.engine.update_resources(&container.id, &limits).await.map_err(|error| failure::engine(&error))?;
        // 0 is a field that was left out, as when only processors are assigned.
        if score != 0 {
            cri.engine.update_oom_score_adj(&container.id, score).await.map_err(|error| failure::engine(&error))?;
        }
    }
    Ok(UpdateContainerResourcesResponse {})
}
