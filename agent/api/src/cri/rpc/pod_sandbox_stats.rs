//! `PodSandboxStats`, `ListPodSandboxStats` and `StreamPodSandboxStats`: what pods use, with their containers.

use futures_util::{StreamExt as _, stream};
use portreeve_engine::{SandboxState, SandboxStatus};
use tokio::time::Instant;
use tonic::Status;

use super::container_stats::shown;
use super::{AT_ONCE, Answer, Batches, matches};
use crate::cri::v1::{
    LinuxPodSandboxStats, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxAttributes,
    PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, PodSandboxStatsResponse, ProcessUsage,
    StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse, UInt64Value,
};
use crate::cri::written::PATIENCE;
use crate::cri::{Cri, failure, traffic, view};

pub(super) async fn answer(cri: &Cri, asked: &PodSandboxStatsRequest) -> Answer<PodSandboxStatsResponse> {
    let sandbox = cri.sandbox(&asked.pod_sandbox_id)?;
    Ok(PodSandboxStatsResponse { stats: Some(of(cri, &sandbox, Instant::now() + PATIENCE).await?) })
}

pub(super) async fn list(cri: &Cri, asked: &ListPodSandboxStatsRequest) -> Answer<ListPodSandboxStatsResponse> {
    Ok(ListPodSandboxStatsResponse { stats: all(cri, asked.filter.as_ref()).await })
}

pub(super) async fn stream(
    cri: &Cri,
    asked: &StreamPodSandboxStatsRequest,
) -> Result<Batches<StreamPodSandboxStatsResponse>, Status> {
    let all = all(cri, asked.filter.as_ref()).await;
    Ok(super::batches(all, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

async fn all(cri: &Cri, filter: Option<&PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let wanted = |sandbox: &SandboxStatus| {
        sandbox.state == SandboxState::Ready
            && filter.is_none_or(|filter| {
                sandbox.id.as_str().starts_with(&filter.id) && matches(&filter.label_selector, &sandbox.labels)
            })
    };
    let until = Instant::now() + PATIENCE;
    let each: Vec<_> = cri.sandboxes().into_iter().filter(wanted).map(|one| listed(cri, one, until)).collect();
    stream::iter(each).buffered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// What a pod uses; nothing when it has ended since.
async fn listed(cri: &Cri, sandbox: SandboxStatus, until: Instant) -> Option<PodSandboxStats> {
    let found = of(cri, &sandbox, until).await;
    cri.still_ready(&sandbox.id, found)
}

async fn of(cri: &Cri, sandbox: &SandboxStatus, until: Instant) -> Result<PodSandboxStats, Status> {
    let used = cri.engine.sandbox_stats(&sandbox.id).await.map_err(|error| failure::engine(&error))?;
    let (mut containers, mut pids) = (Vec::new(), Vec::new());
    for used in &used.containers {
        if let Some(container) = cri.engine.container(&used.id) {
            pids.extend(container.pid);
            containers.push(shown(cri, &container, used, until).await);
        }
    }
    for (id, error) in &used.unread {
        cri.complaints.unread(id.as_str(), "cgroup", error);
    }
    let rate = cri.rates.take(sandbox.id.as_str(), used.usage.at, used.usage.counted.cpu_usage_ns);
    Ok(PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: sandbox.id.to_string(),
            metadata: Some(view::sandbox_metadata(sandbox)),
            labels: sandbox.labels.clone(),
            annotations: sandbox.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(view::cpu(&used.usage, rate)),
            memory: Some(view::memory(&used.usage)),
            network: traffic::usage(&cri.traffic(sandbox, pids).await),
            process: Some(ProcessUsage {
                timestamp: view::nanoseconds(used.usage.at),
                process_count: Some(UInt64Value { value: used.usage.counted.pids }),
            }),
            containers,
            io: view::io(&used.usage),
        }),
    })
}
