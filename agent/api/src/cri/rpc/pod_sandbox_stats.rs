//! `PodSandboxStats`, `ListPodSandboxStats` and `StreamPodSandboxStats`: what pods use, with their containers.

use portreeve_engine::{SandboxState, SandboxStatus};
use tonic::Status;

use super::{Answer, Batches, matches};
use crate::cri::v1::{
    LinuxPodSandboxStats, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxAttributes,
    PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest, PodSandboxStatsResponse, ProcessUsage,
    StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse, UInt64Value,
};
use crate::cri::{Cri, failure, view};

pub(super) async fn answer(cri: &Cri, asked: &PodSandboxStatsRequest) -> Answer<PodSandboxStatsResponse> {
    let sandbox = cri.sandbox(&asked.pod_sandbox_id)?;
    Ok(PodSandboxStatsResponse { stats: Some(of(cri, &sandbox).await?) })
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
    let mut found = Vec::new();
    for sandbox in cri.sandboxes().iter().filter(|sandbox| wanted(sandbox)) {
        // One that has ended since uses nothing any more.
        found.extend(of(cri, sandbox).await.ok());
    }
    found
}

async fn of(cri: &Cri, sandbox: &SandboxStatus) -> Result<PodSandboxStats, Status> {
    let used = cri.engine.sandbox_stats(&sandbox.id).await.map_err(|error| failure::engine(&error))?;
    let (mut containers, mut pids) = (Vec::new(), Vec::new());
    for used in &used.containers {
        if let Some(container) = cri.engine.container(&used.id) {
            pids.extend(container.pid);
            containers.push(view::container_stats(&container, used, cri.written(&container).await));
        }
    }
    Ok(PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: sandbox.id.to_string(),
            metadata: Some(view::sandbox_metadata(sandbox)),
            labels: sandbox.labels.clone(),
            annotations: sandbox.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(view::cpu(&used.usage)),
            memory: Some(view::memory(&used.usage)),
            network: Cri::network(sandbox, pids),
            process: Some(ProcessUsage {
                timestamp: view::nanoseconds(used.usage.at),
                process_count: Some(UInt64Value { value: used.usage.counted.pids }),
            }),
            containers,
            io: view::io(&used.usage),
        }),
    })
}
