//! CRI v1: a kubelet, or crictl, over gRPC at `<run>/cri.sock`.
//!
//! ```text
//!   kubelet, crictl --> RuntimeService --> Engine        one file per call in rpc/
//!                   \-> ImageService ----> image::Store
//!                         wanted/: what is asked, as the engine wants it; view.rs: what is, as CRI shows it
//!                         rates.rs, traffic.rs, written.rs: what is used beside what cgroups count
//! ```
//!
//! Here the client reconciles: calls drive the engine directly, and neither plan nor node know of them.
//! Source: cri-api v1, `api.proto`.
//!
//! **Invariant:** a call sees and touches only sandboxes that came through here ([`Owner::Cri`]), and their containers.

mod complaints;
mod failure;
mod fit;
mod handlers;
mod host_path;
mod names;
mod rates;
mod rpc;
mod streams;
mod traffic;
mod view;
pub(crate) mod wanted;
mod written;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use portreeve_engine::{ContainerStatus, Engine, Owner, SandboxId, SandboxState, SandboxStatus};
use portreeve_node::Node;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tracing::{debug, warn};

use crate::server::{ServeError, bind_socket};
use complaints::Complaints;
use handlers::Handlers;
use names::Names;
use rates::Rates;
use rpc::Service;
use streams::Streams;
use written::Layers;

/// CRI v1 as types, made from `proto/cri.proto`.
#[allow(missing_docs, unreachable_pub, missing_debug_implementations, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Longest request, in bytes; the bound that a kubelet has, too.
const MAX_MESSAGE: usize = 16 << 20;

/// How many calls one connection may have open; a kubelet has some dozens.
const MAX_CALLS: u32 = 1024;
/// How long open calls may go on once the socket closes.
const CLOSING: Duration = Duration::from_secs(3);
/// How long nobody is accepted after the kernel refused.
const PAUSE: Duration = Duration::from_millis(100);

/// The socket, and the address of streams, there but not yet answered: clients wait in the backlog.
#[derive(Debug)]
pub struct CriSocket {
    listener: UnixListener,
    streams: TcpListener,
    address: SocketAddr,
    path: PathBuf,
}

impl CriSocket {
    /// Takes the socket (mode 0600): who makes containers is root; and a port of loopback, for streams.
    ///
    /// # Errors
    /// [`ServeError`] when one of them cannot be made.
    pub async fn bind(path: &Path) -> Result<Self, ServeError> {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let failed = |source| ServeError::Listen { address: loopback, source };
        let streams = TcpListener::bind(loopback).await.map_err(failed)?;
        let address = streams.local_addr().map_err(failed)?;
        let listener =
            bind_socket(path, None).map_err(|source| ServeError::Socket { path: path.to_owned(), source })?;
        Ok(Self { listener, streams, address, path: path.to_owned() })
    }
}

/// Clients that are root or who the agent is.
fn clients(listener: &UnixListener) -> impl Stream<Item = io::Result<UnixStream>> + '_ {
    let own = rustix::process::geteuid().as_raw();
    stream::unfold(listener, move |listener| async move {
        loop {
            match listener.accept().await {
                Ok((client, _)) => match client.peer_cred() {
                    Ok(peer) if peer.uid() == 0 || peer.uid() == own => return Some((Ok(client), listener)),
                    peer => warn!(?peer, "a client that is not root was turned away"),
                },
                // Out of descriptors, for example: it goes on when others have gone.
                Err(error) => {
                    debug!(%error, "a client was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// What the calls work on.
#[derive(Debug, Clone)]
pub struct Cri {
    engine: Arc<Engine>,
    node: Node,
    /// Whether pods can have users of their own here.
    own_users: bool,
    /// Runtimes beside our own.
    handlers: Handlers,
    /// Where streams are.
    streams: Streams,
    /// What is being made now.
    names: Names,
    /// How much containers had written when it was looked at last.
    layers: Layers,
    /// What they and their pods use of the processors, from one call to the next.
    rates: Rates,
    /// What could not be read of them.
    complaints: Complaints,
    /// What goes on when its client has gone.
    tasks: TaskTracker,
    /// Ends streams.
    stop: CancellationToken,
}

impl Cri {
    /// Answers at a socket for an engine that `node` has, too, until `stop`; then ends streams, gives the rest a moment,
    /// and takes the socket's name away. `own_users`: whether the kernel can give pods users of their own; `handlers`:
    /// programs of other runtimes, by the names under which pods ask for them.
    pub async fn serve(
        engine: Arc<Engine>,
        node: Node,
        own_users: bool,
        handlers: BTreeMap<String, PathBuf>,
        socket: CriSocket,
        stop: CancellationToken,
    ) {
        let (streams, tasks) = (Streams::new(socket.address), TaskTracker::new());
        let cri = Self {
            engine: Arc::clone(&engine),
            node,
            own_users,
            handlers: Handlers::new(handlers),
            streams: streams.clone(),
            names: Names::default(),
            layers: Layers::default(),
            rates: Rates::default(),
            complaints: Complaints::default(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(streams.serve(socket.streams, engine, stop.clone()));
        let service = Arc::new(Service::new(cri));
        let runtime = v1::runtime_service_server::RuntimeServiceServer::from_arc(Arc::clone(&service));
        let images = v1::image_service_server::ImageServiceServer::from_arc(service);
        let clients = Box::pin(clients(&socket.listener));
        let served = tonic::transport::Server::builder()
            .max_concurrent_streams(Some(MAX_CALLS))
            .add_service(runtime.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
            .add_service(images.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE))
            .serve_with_incoming_shutdown(clients, stop.clone().cancelled_owned());
        let closing = async {
            stop.cancelled().await;
            tokio::time::sleep(CLOSING).await;
        };
        tokio::select! {
            // cancel-safe: what is dropped here is cut off.
            served = served => if let Err(error) = served {
                warn!(%error, "CRI is not served any more");
            },
            // cancel-safe: only waits.
            () = closing => warn!("open calls were cut off"),
        }
        if let Err(error) = std::fs::remove_file(&socket.path) {
            debug!(path = %socket.path.display(), %error, "socket was not removed");
        }
        tasks.close();
        if tokio::time::timeout(CLOSING, tasks.wait()).await.is_err() {
            warn!(tasks = tasks.len(), "open streams were cut off");
        }
    }

    fn sandboxes(&self) -> Vec<SandboxStatus> {
        self.engine.sandboxes_where(|config| config.owner == Owner::Cri)
    }

    fn containers(&self) -> Vec<ContainerStatus> {
        self.engine.containers_where(|_, config| config.owner == Owner::Cri)
    }

    /// The containers of a sandbox.
    fn containers_in(&self, sandbox: &SandboxId) -> Vec<ContainerStatus> {
        self.engine.containers_where(|id, _| id == sandbox)
    }

    /// The sandbox with this id, or with the only one that begins so; `None` when there is none.
    fn find_sandbox(&self, id: &str) -> Result<Option<SandboxStatus>, Status> {
        if let Ok(id) = id.parse() {
            return Ok(self.engine.sandbox(&id).filter(|sandbox| sandbox.owner == Owner::Cri));
        }
        only(id, self.sandboxes(), |sandbox| sandbox.id.as_str())
    }

    /// What was found of a sandbox. Of one that has ended meanwhile there is nothing; of one that has not, why there is
    /// nothing is told.
    fn still_ready<T>(&self, id: &SandboxId, found: Result<T, Status>) -> Option<T> {
        if !self.engine.sandbox(id).is_some_and(|sandbox| sandbox.state == SandboxState::Ready) {
            return None;
        }
        found.map_err(|error| self.complaints.unread(id.as_str(), "cgroup", error.message())).ok()
    }

    fn sandbox(&self, id: &str) -> Result<SandboxStatus, Status> {
        self.find_sandbox(id)?.ok_or_else(|| Status::not_found(format!("no pod sandbox {id:?}")))
    }

    /// The container with this id, or with the only one that begins so; `None` when there is none.
    fn find_container(&self, id: &str) -> Result<Option<ContainerStatus>, Status> {
        if let Ok(id) = id.parse() {
            let found = self.engine.container(&id);
            return Ok(found.filter(|container| matches!(self.find_sandbox(container.sandbox.as_str()), Ok(Some(_)))));
        }
        only(id, self.containers(), |container| container.id.as_str())
    }

    /// A container as CRI shows it, by the digest under which its image came.
    fn show(&self, container: &ContainerStatus) -> v1::ContainerStatus {
        // The image may be gone by now.
        let image = self.engine.images().resolve(&container.image_id);
        let digests = image.map(|image| image.repo_digests).unwrap_or_default();
        view::container_status(container, &digests)
    }

    fn container(&self, id: &str) -> Result<ContainerStatus, Status> {
        self.find_container(id)?.ok_or_else(|| Status::not_found(format!("no container {id:?}")))
    }
}

/// The only one whose id begins like this.
fn only<T>(id: &str, all: Vec<T>, of: impl Fn(&T) -> &str) -> Result<Option<T>, Status> {
    if id.is_empty() {
        return Err(Status::invalid_argument("an id is missing"));
    }
    let mut found = all.into_iter().filter(|one| of(one).starts_with(id));
    let first = found.next();
    match found.next() {
        None => Ok(first),
        Some(_) => Err(Status::invalid_argument(format!("{id:?} is the beginning of more than one id"))),
    }
}
