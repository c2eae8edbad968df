//! A client of CRI, as a kubelet is one.

use std::future::Future;
use std::path::Path;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::wait::wait_until;

/// CRI as types.
#[allow(missing_docs, unreachable_pub, missing_debug_implementations, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

use v1::image_service_client::ImageServiceClient;
use v1::runtime_service_client::RuntimeServiceClient;

/// The longest message, as a kubelet has it.
const MAX_MESSAGE: usize = 16 << 20;

/// A connection to a runtime.
#[derive(Debug)]
pub struct Cri {
    executor: tokio::runtime::Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects to the runtime at `socket`; when it ends and comes back, calls go to the new one.
    ///
    /// # Panics
    /// When nobody answers within 20 s.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let executor =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a path");
        let channel = {
            let _within = executor.enter();
            endpoint.connect_lazy()
        };
        let cri = Self { executor, channel };
        wait_until("the runtime answers", 20, || {
            let version = v1::VersionRequest { version: "v1".to_owned() };
            cri.runtime(async |mut runtime| runtime.version(version).await).map_err(|status| status.to_string())
        });
        cri
    }

    /// Calls the runtime service.
    ///
    /// # Errors
    /// What the server answered.
    pub fn runtime<T, F: AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>>(
        &self,
        call: F,
    ) -> Result<T, Status> {
        self.wait(call(self.runtime_client())).map(Response::into_inner)
    }

    /// Calls the image service.
    ///
    /// # Errors
    /// What the server answered.
    pub fn images<T, F: AsyncFnOnce(ImageServiceClient<Channel>) -> Result<Response<T>, Status>>(
        &self,
        call: F,
    ) -> Result<T, Status> {
        self.wait(call(self.image_client())).map(Response::into_inner)
    }

    /// The runtime service, for streams.
    #[must_use]
    pub fn runtime_client(&self) -> RuntimeServiceClient<Channel> {
        let client = RuntimeServiceClient::new(self.channel.clone());
        client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(32 << 20)
    }

    /// The image service, for streams.
    #[must_use]
    pub fn image_client(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    /// Waits for a future of this connection.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.executor.block_on(future)
    }

    /// Makes a sandbox.
    ///
    /// # Errors
    /// What the server answered.
    pub fn run_sandbox(&self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        self.run_sandbox_by(config, "")
    }

    /// Makes a sandbox whose containers a runtime handler makes.
    ///
    /// # Errors
    /// What the server answered.
    pub fn run_sandbox_by(&self, config: &v1::PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        self.runtime(async |mut runtime| runtime.run_pod_sandbox(request).await).map(|answer| answer.pod_sandbox_id)
    }

    /// Makes a container.
    ///
    /// # Errors
    /// What the server answered.
    pub fn create(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        pod: &v1::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.clone()),
        };
        self.runtime(async |mut runtime| runtime.create_container(request).await).map(|answer| answer.container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// What the server answered.
    pub fn start(&self, container: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest { container_id: container.to_owned() };
        self.runtime(async |mut runtime| runtime.start_container(request).await).map(drop)
    }

    /// Stops a container.
    ///
    /// # Errors
    /// What the server answered.
    pub fn stop(&self, container: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: container.to_owned(), timeout };
        self.runtime(async |mut runtime| runtime.stop_container(request).await).map(drop)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// What the server answered.
    pub fn remove(&self, container: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime(async |mut runtime| runtime.remove_container(request).await).map(drop)
    }

    /// Stops a sandbox.
    ///
    /// # Errors
    /// What the server answered.
    pub fn stop_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime(async |mut runtime| runtime.stop_pod_sandbox(request).await).map(drop)
    }

    /// Removes a sandbox.
    ///
    /// # Errors
    /// What the server answered.
    pub fn remove_sandbox(&self, sandbox: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.runtime(async |mut runtime| runtime.remove_pod_sandbox(request).await).map(drop)
    }

    /// A sandbox's status.
    ///
    /// # Errors
    /// What the server answered.
    pub fn sandbox(&self, sandbox: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let answer = self.runtime(async |mut runtime| runtime.pod_sandbox_status(request).await)?;
        answer.status.ok_or_else(|| Status::data_loss("a status without a status"))
    }

    /// A container's status.
    ///
    /// # Errors
    /// What the server answered.
    pub fn container(&self, container: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.runtime(async |mut runtime| runtime.container_status(request).await)?;
        answer.status.ok_or_else(|| Status::data_loss("a status without a status"))
    }

    /// The sandboxes that a filter lets through.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn sandboxes(&self, filter: v1::PodSandboxFilter) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        self.runtime(async |mut runtime| runtime.list_pod_sandbox(request).await).expect("a list of sandboxes").items
    }

    /// The containers that a filter lets through.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn containers(&self, filter: v1::ContainerFilter) -> Vec<v1::Container> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        self.runtime(async |mut runtime| runtime.list_containers(request).await)
            .expect("a list of containers")
            .containers
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// What the server answered.
    pub fn exec(&self, container: &str, cmd: &[&str], timeout: i64) -> Result<v1::ExecSyncResponse, Status> {
        let cmd = cmd.iter().map(|&word| word.to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout };
        self.runtime(async |mut runtime| runtime.exec_sync(request).await)
    }

    /// What a shell line prints in a container.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn inside(&self, container: &str, line: &str) -> String {
        let done = self.exec(container, &["sh", "-c", line], 30).expect("a command runs");
        let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert_eq!(done.exit_code, 0, "`{line}`: {stdout}{stderr}");
        stdout.trim().to_owned()
    }

    /// Waits until a container has ended, and returns what it is then.
    #[must_use]
    pub fn wait_exited(&self, container: &str) -> v1::ContainerStatus {
        wait_until("the container has ended", 20, || match self.container(container) {
            Ok(status) if status.state() == v1::ContainerState::ContainerExited => Ok(status),
            other => Err(format!("{other:?}")),
        })
    }

    /// Pulls an image without a login.
    ///
    /// # Errors
    /// What the server answered.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        let request = v1::PullImageRequest { image: Some(image_spec(image)), auth: None, sandbox_config: None };
        self.images(async |mut images| images.pull_image(request).await).map(|answer| answer.image_ref)
    }

    /// An image; `None` when it is not there.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn image(&self, image: &str) -> Option<v1::Image> {
        let request = v1::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        self.images(async |mut images| images.image_status(request).await).expect("an image's status").image
    }
}

/// An image by its name.
#[must_use]
pub fn image_spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), ..v1::ImageSpec::default() }
}

/// A pod of this name, with logs below `logs`.
#[must_use]
pub fn pod(name: &str, logs: &Path) -> v1::PodSandboxConfig {
    let metadata = v1::PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        namespace: "default".to_owned(),
        attempt: 0,
    };
    v1::PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.to_owned(),
        log_directory: logs.join(name).display().to_string(),
        ..v1::PodSandboxConfig::default()
    }
}

/// A container that runs a shell line; its log is `<name>.log`.
#[must_use]
pub fn shell(name: &str, image: &str, line: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(image_spec(image)),
        command: ["sh", "-c", line].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        ..v1::ContainerConfig::default()
    }
}

/// The code of a refusal.
///
/// # Panics
/// When it was none.
pub fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("a refusal").code()
}
