//! `ContainerStats`, `ListContainerStats` and `StreamContainerStats`: what running containers use.

use futures_util::{StreamExt as _, stream};
use portreeve_engine::{ContainerState, ContainerStats as Used, ContainerStatus, chain};
use tokio::time::Instant;
use tonic::Status;

use super::{AT_ONCE, Answer, Batches, matches};
use crate::cri::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatsResponse, ListContainerStatsRequest,
    ListContainerStatsResponse, StreamContainerStatsRequest, StreamContainerStatsResponse,
};
use crate::cri::written::PATIENCE;
use crate::cri::{Cri, failure, view};

pub(super) async fn answer(cri: &Cri, asked: &ContainerStatsRequest) -> Answer<ContainerStatsResponse> {
    let container = cri.container(&asked.container_id)?;
    let used = cri.engine.stats(&container.id).await.map_err(|error| failure::engine(&error))?;
    Ok(ContainerStatsResponse { stats: Some(shown(cri, &container, &used, Instant::now() + PATIENCE).await) })
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
    let until = Instant::now() + PATIENCE;
    let each: Vec<_> = cri.containers().into_iter().filter(wanted).map(|one| of(cri, one, until)).collect();
    stream::iter(each).buffered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// What a container uses; nothing when it has ended since.
async fn of(cri: &Cri, container: ContainerStatus, until: Instant) -> Option<ContainerStats> {
    let used = cri.engine.stats(&container.id).await;
    if !cri.engine.container(&container.id).is_some_and(|one| one.state == ContainerState::Running) {
        return None;
    }
    match used {
        Ok(used) => Some(shown(cri, &container, &used, until).await),
        Err(error) => {
            cri.complaints.unread(container.id.as_str(), "cgroup", &chain(&error));
            None
        }
    }
}

/// What a container uses, with what it has written; a walk over that is waited for `until` then.
pub(super) async fn shown(cri: &Cri, container: &ContainerStatus, used: &Used, until: Instant) -> ContainerStats {
    let rate = cri.rates.take(container.id.as_str(), used.usage.at, used.usage.counted.cpu_usage_ns);
    view::container_stats(container, used, rate, cri.written(container, until).await)
}
