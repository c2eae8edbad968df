//! Doors for the fuzz targets in `fuzz/`, and for nobody else: what reads a stranger's bytes is private otherwise.

use std::future::ready;

use futures_util::FutureExt as _;
use oci_spec::runtime::LinuxResources;
use portreeve_engine::{ContainerConfig, SandboxConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::backend::{ExecSpec, Input, Output, Session};
use crate::cri::{v1, wanted};
use crate::stream::spdy::{Connection, converse, forward};
use crate::stream::{channels, session};

/// The sandbox that a client of CRI asks for; its cgroup is below `root` when none is given.
///
/// # Errors
/// What is wrong with it.
pub fn sandbox(asked: v1::PodSandboxConfig, root: &str) -> Result<SandboxConfig, Status> {
    wanted::sandbox(asked, root)
}

/// The container that a client of CRI asks for.
///
/// # Errors
/// What is wrong with it.
pub fn container(asked: v1::ContainerConfig) -> Result<ContainerConfig, Status> {
    wanted::container(asked, "sha256:0".to_owned())
}

/// The limits that a client of CRI asks for.
///
/// # Errors
/// What is wrong with them.
pub fn resources(asked: v1::LinuxContainerResources) -> Result<LinuxResources, Status> {
    wanted::resources(asked)
}

/// A process's streams, of these kinds, over SPDY.
pub async fn process<S: AsyncRead + AsyncWrite + Send>(
    client: S,
    spec: &ExecSpec,
    process: Session,
    stop: CancellationToken,
) {
    let serve = |streams| session::serve(streams, ready(Ok(process)), stop);
    converse(Connection::over(client), &channels(spec), serve).await;
}

/// Ports of a pod over SPDY.
pub async fn ports<S: AsyncRead + AsyncWrite>(
    client: S,
    connect: impl Fn(u16) -> Result<(Output, Input), String> + Send + Sync + 'static,
    stop: CancellationToken,
) {
    forward::run(Connection::over(client), Box::new(move |port| ready(connect(port)).boxed()), stop).await;
}
