//! The two services of CRI: each call is handed to the file of its name.

mod attach;
mod batch;
mod checkpoint_container;
mod container_stats;
mod container_status;
mod create_container;
mod exec;
mod exec_sync;
mod get_container_events;
mod image_fs_info;
mod image_status;
mod list_containers;
mod list_images;
mod list_pod_sandbox;
mod metrics;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod pull_image;
mod remove_container;
mod remove_image;
mod remove_pod_sandbox;
mod reopen_container_log;
mod run_pod_sandbox;
mod runtime_config;
mod series;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

use std::collections::BTreeMap;
use std::future::Future;

use oci_spec::runtime::LinuxResources;
use portreeve_engine::EngineError;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::{Cri, failure, v1};
use batch::{Batches, batches};

/// Of how many sandboxes or containers one call reads the files at once.
const AT_ONCE: usize = 4;

/// What a call answers.
type Answer<T> = Result<T, Status>;

/// Both services, over one engine.
#[derive(Debug)]
pub(super) struct Service {
    cri: Cri,
}

impl Service {
    /// The calls of `cri`.
    pub(super) fn new(cri: Cri) -> Self {
        Self { cri }
    }
}

#[tonic::async_trait]
impl v1::runtime_service_server::RuntimeService for Service {
    type StreamPodSandboxesStream = Batches<v1::StreamPodSandboxesResponse>;

    type StreamContainersStream = Batches<v1::StreamContainersResponse>;

    type StreamContainerStatsStream = Batches<v1::StreamContainerStatsResponse>;

    type StreamPodSandboxStatsStream = Batches<v1::StreamPodSandboxStatsResponse>;

    type StreamPodSandboxMetricsStream = Batches<v1::StreamPodSandboxMetricsResponse>;

    type GetContainerEventsStream = get_container_events::Events;

    async fn version(&self, asked: Request<v1::VersionRequest>) -> Answer<Response<v1::VersionResponse>> {
        version::answer(&asked.into_inner()).map(Response::new)
    }

    async fn status(&self, asked: Request<v1::StatusRequest>) -> Answer<Response<v1::StatusResponse>> {
        status::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn runtime_config(
        &self,
        _nothing_asked: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<Response<v1::RuntimeConfigResponse>> {
        runtime_config::answer(&self.cri).map(Response::new)
    }

    async fn update_runtime_config(
        &self,
        asked: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<Response<v1::UpdateRuntimeConfigResponse>> {
        update_runtime_config::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn run_pod_sandbox(
        &self,
        asked: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<Response<v1::RunPodSandboxResponse>> {
        run_pod_sandbox::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn stop_pod_sandbox(
        &self,
        asked: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<Response<v1::StopPodSandboxResponse>> {
        stop_pod_sandbox::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn remove_pod_sandbox(
        &self,
        asked: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<Response<v1::RemovePodSandboxResponse>> {
        remove_pod_sandbox::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_status(
        &self,
        asked: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<Response<v1::PodSandboxStatusResponse>> {
        pod_sandbox_status::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        asked: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<Response<v1::ListPodSandboxResponse>> {
        list_pod_sandbox::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn stream_pod_sandboxes(
        &self,
        asked: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Response<Self::StreamPodSandboxesStream>> {
        list_pod_sandbox::stream(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn update_pod_sandbox_resources(
        &self,
        asked: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<Response<v1::UpdatePodSandboxResourcesResponse>> {
        update_pod_sandbox_resources::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn create_container(
        &self,
        asked: Request<v1::CreateContainerRequest>,
    ) -> Answer<Response<v1::CreateContainerResponse>> {
        create_container::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn start_container(
        &self,
        asked: Request<v1::StartContainerRequest>,
    ) -> Answer<Response<v1::StartContainerResponse>> {
        start_container::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn stop_container(
        &self,
        asked: Request<v1::StopContainerRequest>,
    ) -> Answer<Response<v1::StopContainerResponse>> {
        stop_container::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn remove_container(
        &self,
        asked: Request<v1::RemoveContainerRequest>,
    ) -> Answer<Response<v1::RemoveContainerResponse>> {
        remove_container::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn container_status(
        &self,
        asked: Request<v1::ContainerStatusRequest>,
    ) -> Answer<Response<v1::ContainerStatusResponse>> {
        container_status::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn list_containers(
        &self,
        asked: Request<v1::ListContainersRequest>,
    ) -> Answer<Response<v1::ListContainersResponse>> {
        list_containers::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn stream_containers(
        &self,
        asked: Request<v1::StreamContainersRequest>,
    ) -> Answer<Response<Self::StreamContainersStream>> {
        list_containers::stream(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn update_container_resources(
        &self,
        asked: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<Response<v1::UpdateContainerResourcesResponse>> {
        update_container_resources::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn reopen_container_log(
        &self,
        asked: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<Response<v1::ReopenContainerLogResponse>> {
        reopen_container_log::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn checkpoint_container(
        &self,
        asked: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<Response<v1::CheckpointContainerResponse>> {
        checkpoint_container::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn checkpoint_pod(
        &self,
        _asked: Request<v1::CheckpointPodRequest>,
    ) -> Answer<Response<v1::CheckpointPodResponse>> {
        not_built("checkpoints of whole pods")
    }

    async fn restore_pod(&self, _asked: Request<v1::RestorePodRequest>) -> Answer<Response<v1::RestorePodResponse>> {
        not_built("pods from checkpoints")
    }

    async fn exec_sync(&self, asked: Request<v1::ExecSyncRequest>) -> Answer<Response<v1::ExecSyncResponse>> {
        exec_sync::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn exec(&self, asked: Request<v1::ExecRequest>) -> Answer<Response<v1::ExecResponse>> {
        exec::answer(&self.cri, asked.into_inner()).map(Response::new)
    }

    async fn attach(&self, asked: Request<v1::AttachRequest>) -> Answer<Response<v1::AttachResponse>> {
        attach::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn port_forward(&self, asked: Request<v1::PortForwardRequest>) -> Answer<Response<v1::PortForwardResponse>> {
        port_forward::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn container_stats(
        &self,
        asked: Request<v1::ContainerStatsRequest>,
    ) -> Answer<Response<v1::ContainerStatsResponse>> {
        container_stats::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn list_container_stats(
        &self,
        asked: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<Response<v1::ListContainerStatsResponse>> {
        container_stats::list(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn stream_container_stats(
        &self,
        asked: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Response<Self::StreamContainerStatsStream>> {
        container_stats::stream(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_stats(
        &self,
        asked: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<Response<v1::PodSandboxStatsResponse>> {
        pod_sandbox_stats::answer(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox_stats(
        &self,
        asked: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<Response<v1::ListPodSandboxStatsResponse>> {
        pod_sandbox_stats::list(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn stream_pod_sandbox_stats(
        &self,
        asked: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Response<Self::StreamPodSandboxStatsStream>> {
        pod_sandbox_stats::stream(&self.cri, &asked.into_inner()).await.map(Response::new)
    }

    async fn list_metric_descriptors(
        &self,
        _asked: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<Response<v1::ListMetricDescriptorsResponse>> {
        Ok(Response::new(metrics::descriptors()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _asked: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<Response<v1::ListPodSandboxMetricsResponse>> {
        metrics::list(&self.cri).await.map(Response::new)
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _asked: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Response<Self::StreamPodSandboxMetricsStream>> {
        metrics::stream(&self.cri).await.map(Response::new)
    }

    async fn get_container_events(
        &self,
        _asked: Request<v1::GetEventsRequest>,
    ) -> Answer<Response<Self::GetContainerEventsStream>> {
        Ok(Response::new(get_container_events::answer(&self.cri)))
    }
}

#[tonic::async_trait]
impl v1::image_service_server::ImageService for Service {
    type StreamImagesStream = Batches<v1::StreamImagesResponse>;

    async fn list_images(&self, asked: Request<v1::ListImagesRequest>) -> Answer<Response<v1::ListImagesResponse>> {
        list_images::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn stream_images(
        &self,
        asked: Request<v1::StreamImagesRequest>,
    ) -> Answer<Response<Self::StreamImagesStream>> {
        list_images::stream(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn image_status(&self, asked: Request<v1::ImageStatusRequest>) -> Answer<Response<v1::ImageStatusResponse>> {
        image_status::answer(&self.cri, &asked.into_inner()).map(Response::new)
    }

    async fn pull_image(&self, asked: Request<v1::PullImageRequest>) -> Answer<Response<v1::PullImageResponse>> {
        pull_image::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn remove_image(&self, asked: Request<v1::RemoveImageRequest>) -> Answer<Response<v1::RemoveImageResponse>> {
        remove_image::answer(&self.cri, asked.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(
        &self,
        _asked: Request<v1::ImageFsInfoRequest>,
    ) -> Answer<Response<v1::ImageFsInfoResponse>> {
        image_fs_info::answer(&self.cri).await.map(Response::new)
    }
}

/// What a client may ask of a runtime, and this one cannot do.
fn not_built<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("{what} are not built into this runtime")))
}

/// A kubelet says of every size of huge pages that a container may have none, also where nothing can limit them: that is
/// no reason to make none.
fn without_missing(resources: &mut LinuxResources) {
    let limited = resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty());
    if limited && !portreeve_engine::limits_huge_pages() {
        debug!("limits of huge pages are left out: this machine has no hugetlb controller");
        resources.set_hugepage_limits(None);
    }
}

/// Whether labels have all those that are wanted.
fn matches(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Makes something. When the client has gone by the time it is there, it is taken away again: a client that has given up
/// does not know its id.
async fn make<T, M, U>(cri: &Cri, making: M, undo: impl FnOnce(T) -> U + Send + 'static) -> Result<T, Status>
where
    T: Send + 'static,
    M: Future<Output = Result<T, EngineError>> + Send + 'static,
    U: Future<Output = Result<(), EngineError>> + Send + 'static,
{
    let (answer, made) = tokio::sync::oneshot::channel();
    cri.tasks.spawn(async move {
        if let Err(Ok(unwanted)) = answer.send(making.await)
            && let Err(error) = undo(unwanted).await
        {
            tracing::warn!(error = %portreeve_engine::chain(&error), "what a client gave up was not removed");
        }
    });
    match made.await {
        Ok(made) => made.map_err(|error| failure::engine(&error)),
        Err(_) => Err(Status::unavailable("the agent is stopping")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_must_have_all_that_is_wanted_and_may_have_more() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let has = labels(&[("a", "1"), ("b", "2")]);
        assert!(matches(&labels(&[]), &has) && matches(&labels(&[("b", "2")]), &has));
        assert!(!matches(&labels(&[("a", "2")]), &has) && !matches(&labels(&[("c", "")]), &has));
    }
}
