//! `ContainerStats`, `ListContainerStats` and `StreamContainerStats`: what running containers use.

use portreeve_engine::{ContainerState, ContainerStatus};
use tonic::Status;

use super::{Answer, Batches, matches};
use crate::cri::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatsResponse, ListContainerStatsRequest,
    ListContainerStatsResponse, StreamContainerStatsRequest, StreamContainerStatsResponse,
};
use crate::cri::{Cri, failure, view};

pub(super) async fn answer(cri: &Cri, asked: &ContainerStatsRequest) -> Answer<ContainerStatsResponse> {
    let container = cri.container(&asked.container_id)?;
    let used = cri.engine.stats(&container.id).await.map_err(|error| failure::engine(&error))?;
    let written = cri.written(&container).await;
    Ok(ContainerStatsResponse { stats: Some(view::container_stats(&container, &used, written)) })
}

pub(super) async fn list(cri: &Cri, asked: &ListContainerStatsRequest) -> Answer<ListContainerStatsResponse> {
    Ok(ListContainerStatsResponse { stats: all(cri, asked.filter.as_ref()).await })
}

pub(super) async fn stream(
    cri: &Cri,
    asked: &StreamContainerStatsRequest,
) -> Result<Batches<StreamContainerStatsResponse>, Status> {
    let all = all(cri, asked.filter.as_ref()).await;
    Ok(super::batches(all, |container_stats| StreamContainerStatsResponse { container_stats }))
}

async fn all(cri: &Cri, filter: Option<&ContainerStatsFilter>) -> Vec<ContainerStats> {
    let wanted = |container: &ContainerStatus| {
        container.state == ContainerState::Running
            && filter.is_none_or(|filter| {
                container.id.as_str().starts_with(&filter.id)
                    && container.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
                    && matches(&filter.label_selector, &container.labels)
            })
    };
    let mut found = Vec::new();
    for container in cri.containers().iter().filter(|container| wanted(container)) {
        // One that has ended since uses nothing any more.
        if let Ok(used) = cri.engine.stats(&container.id).await {
            found.push(view::container_stats(container, &used, cri.written(container).await));
        }
    }
    found
}
