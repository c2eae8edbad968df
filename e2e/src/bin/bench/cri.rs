//! A client of the container runtime interface: the calls behind `crictl runp`, `create`, `start`, `stopp`, `rmp` and
//! `pull`, as one program that stays, which spares the runtime crictl's own start for each of them.
//!
//! Source: `runtime.v1` of the Kubernetes CRI; a message has only those fields that are set here.

use std::path::Path;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxSandbox {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// A request or an answer that is the identifier of a sandbox or container.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    mounts: Vec<Mount>,
    #[prost(string, tag = "11")]
    log_path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    holds: bool,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

/// A pod of one container.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    /// A directory of the host, and where the container has it.
    pub(crate) volume: (String, String),
    pub(crate) logs: String,
    pub(crate) cgroup_parent: String,
}

/// A connection to a runtime.
#[derive(Clone)]
pub(crate) struct Client(Channel);

impl Client {
    /// Connects to the runtime at a socket.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await.map(Self)
    }

    /// What the runtime is not ready for, and why.
    pub(crate) async fn not_ready(&self) -> Result<Vec<String>, Status> {
        let answer: StatusAnswer = self.call("/runtime.v1.RuntimeService/Status", StatusRequest {}).await?;
        let conditions = answer.status.unwrap_or_default().conditions.into_iter();
        Ok(conditions.filter(|one| !one.holds).map(|one| format!("{}: {}", one.kind, one.message)).collect())
    }

    /// Pulls an image.
    pub(crate) async fn pull(&self, reference: &str) -> Result<(), Status> {
        let request = PullImage { image: Some(ImageSpec { image: reference.to_owned() }) };
        self.call::<_, Id>("/runtime.v1.ImageService/PullImage", request).await.map(drop)
    }

    /// Makes a sandbox and its container, starts it, and returns the sandbox's identifier.
    pub(crate) async fn run(&self, pod: Pod) -> Result<String, Status> {
        let sandbox_config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                uid: format!("uid-{}", pod.name),
                namespace: "default".to_owned(),
                name: pod.name.clone(),
            }),
            hostname: pod.name,
            log_directory: pod.logs,
            linux: Some(LinuxSandbox { cgroup_parent: pod.cgroup_parent }),
        };
        let request = RunSandbox { config: Some(sandbox_config.clone()) };
        let Id { id: sandbox } = self.call("/runtime.v1.RuntimeService/RunPodSandbox", request).await?;
        let (host_path, container_path) = pod.volume;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".to_owned() }),
            image: Some(ImageSpec { image: pod.image }),
            command: pod.command,
            mounts: vec![Mount { container_path, host_path }],
            log_path: "main.log".to_owned(),
        };
        let request = CreateContainer {
            pod_sandbox_id: sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let container: Id = self.call("/runtime.v1.RuntimeService/CreateContainer", request).await?;
        self.call::<_, Nothing>("/runtime.v1.RuntimeService/StartContainer", container).await?;
        Ok(sandbox)
    }

    /// Stops a sandbox and removes it with its containers.
    pub(crate) async fn remove(&self, sandbox: String) -> Result<(), Status> {
        let sandbox = Id { id: sandbox };
        self.call::<_, Nothing>("/runtime.v1.RuntimeService/StopPodSandbox", sandbox.clone()).await?;
        self.call::<_, Nothing>("/runtime.v1.RuntimeService/RemovePodSandbox", sandbox).await.map(drop)
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(format!("{method}: {error}")))?;
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let answer = grpc.unary(Request::new(request), PathAndQuery::from_static(method), codec).await;
        answer.map(tonic::Response::into_inner)
    }
}
