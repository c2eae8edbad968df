//! `ListMetricDescriptors`, `ListPodSandboxMetrics` and `StreamPodSandboxMetrics`: what a kubelet's `/metrics/cadvisor`
//! shows, by cAdvisor's names.

use futures_util::{StreamExt as _, stream};
use portreeve_engine::image::Filesystem;
use portreeve_engine::{SandboxState, SandboxStatus, chain};
use rustix::fs::{major, minor};
use tokio::time::Instant;
use tonic::Status;

use super::series::{Devices, Series, described};
use super::{AT_ONCE, Answer, Batches};
use crate::cri::v1::{
    ContainerMetrics, ListMetricDescriptorsResponse, ListPodSandboxMetricsResponse, PodSandboxMetrics,
    StreamPodSandboxMetricsResponse,
};
use crate::cri::written::PATIENCE;
use crate::cri::{Cri, failure};

pub(super) fn descriptors() -> ListMetricDescriptorsResponse {
    ListMetricDescriptorsResponse { descriptors: described() }
}

pub(super) async fn list(cri: &Cri) -> Answer<ListPodSandboxMetricsResponse> {
    Ok(ListPodSandboxMetricsResponse { pod_metrics: all(cri).await })
}

pub(super) async fn stream(cri: &Cri) -> Result<Batches<StreamPodSandboxMetricsResponse>, Status> {
    let all = all(cri).await;
    Ok(super::batches(all, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}

/// What is the same for every container of a call.
struct Shared {
    /// The file system that all of them write to, and its device.
    disk: Option<(Filesystem, String)>,
    devices: Devices,
    /// Until then walks over what they have written are waited for.
    until: Instant,
}

async fn all(cri: &Cri) -> Vec<PodSandboxMetrics> {
    let devices = Devices::default();
    let disk = disk(cri, &devices).await;
    let shared = Shared { disk, devices, until: Instant::now() + PATIENCE };
    let ready = cri.sandboxes().into_iter().filter(|sandbox| sandbox.state == SandboxState::Ready);
    let each: Vec<_> = ready.map(|sandbox| listed(cri, sandbox, &shared)).collect();
    stream::iter(each).buffered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// What a pod uses; nothing when it has ended since.
async fn listed(cri: &Cri, sandbox: SandboxStatus, shared: &Shared) -> Option<PodSandboxMetrics> {
    let found = of(cri, &sandbox, shared).await;
    cri.still_ready(&sandbox.id, found)
}

async fn of(cri: &Cri, sandbox: &SandboxStatus, shared: &Shared) -> Result<PodSandboxMetrics, Status> {
    let counted = cri.engine.count_sandbox(&sandbox.id).await.map_err(|error| failure::engine(&error))?;
    for (id, error) in &counted.unread {
        cri.complaints.unread(id.as_str(), "cgroup", error);
    }
    let (mut container_metrics, mut pids) = (Vec::new(), Vec::new());
    for one in &counted.containers {
        let Some(container) = cri.engine.container(&one.id) else { continue };
        pids.extend(container.pid);
        let mut series = Series::of_container(sandbox, &container, one.count.usage.at);
        series.cgroup(&one.count, &shared.devices);
        series.processes(&one.processes, one.count.usage.counted.pids_limit);
        series.spec(&container.resources);
        series.seen(container.started_at);
        let written = cri.written(&container, shared.until).await;
        if let Some((disk, device)) = &shared.disk {
            series.disk(disk, written.as_ref(), device);
        }
        container_metrics.push(ContainerMetrics { container_id: container.id.to_string(), metrics: series.metrics });
    }
    let mut series = Series::of_sandbox(sandbox, counted.count.usage.at);
    series.cgroup(&counted.count, &shared.devices);
    series.seen(Some(sandbox.created_at));
    for interface in &cri.traffic(sandbox, pids).await {
        series.network(interface);
    }
    Ok(PodSandboxMetrics { pod_sandbox_id: sandbox.id.to_string(), metrics: series.metrics, container_metrics })
}

/// The file system of the containers' layers, and the device that it is on.
async fn disk(cri: &Cri, devices: &Devices) -> Option<(Filesystem, String)> {
    let (store, root) = (cri.engine.images().clone(), cri.engine.config().images.root.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let device = rustix::fs::stat(&root).map_err(|error| format!("asking for {}: {error}", root.display()))?.st_dev;
        Ok((store.filesystem().map_err(|error| chain(&error))?, device))
    });
    match asked.await.unwrap_or_else(|error| Err(error.to_string())) {
        Ok((filesystem, device)) => {
            Some((filesystem, devices.name(u64::from(major(device)), u64::from(minor(device)))))
        }
        Err(error) => {
            cri.complaints.unread("images", "file system", &error);
            None
        }
    }
}
