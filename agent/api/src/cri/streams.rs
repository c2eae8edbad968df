//! The streams of `Exec`, `Attach` and `PortForward`: a call answers with an address on loopback, and whoever has that
//! comes once, by SPDY/3.1 or WebSocket.
//!
//! ```text
//!   kubelet --Exec--> token (1 minute, once) --> http://127.0.0.1:<port>/exec/<token> <--upgrade-- kubectl by the kubelet
//! ```
//! Source: k8s.io/kubelet `cri/streaming`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::any;
use futures_util::FutureExt as _;
use portreeve_engine::{AttachRequest, ContainerId, Engine, ExecRequest, SandboxId, chain};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use crate::backend::{BackendError, ExecSpec, Input, Output};
use crate::failure::Failure;
use crate::node::{attach_session, exec_session};
use crate::reception::Reception;
use crate::stream::{Forwarding, Upgrade, ports, socket};

/// How long an address is good for.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Addresses that nobody has used yet.
const MAX_WAITING: usize = 1000;
/// Sessions at a time.
const MAX_SESSIONS: usize = 1000;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;

/// What an address was given for.
#[derive(Debug, Clone)]
pub(super) enum Job {
    /// A command.
    Exec {
        /// Where.
        container: ContainerId,
        /// What, and with which streams.
        request: ExecRequest,
    },
    /// A container's own streams.
    Attach {
        /// Whose.
        container: ContainerId,
        /// Which.
        request: AttachRequest,
        /// It has a terminal, whose size may change.
        tty: bool,
    },
    /// Ports of a pod.
    Forward {
        /// Whose.
        sandbox: SandboxId,
        /// Those that a client without streams of its own connects to.
        ports: Vec<u16>,
    },
}

impl Job {
    fn path(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::Forward { .. } => "portforward",
        }
    }
}

/// The addresses that wait for their client.
#[derive(Debug)]
struct Waiting {
    good_for: Duration,
    jobs: Mutex<BTreeMap<String, (Instant, Job)>>,
}

impl Waiting {
    fn new(good_for: Duration) -> Self {
        Self { good_for, jobs: Mutex::default() }
    }

    /// Keeps a job, and says under which token; `None` when too many wait.
    fn put(&self, job: Job) -> io::Result<Option<String>> {
        let token = token()?;
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|_, (since, _)| since.elapsed() < self.good_for);
        if jobs.len() >= MAX_WAITING {
            return Ok(None);
        }
        jobs.insert(token.clone(), (Instant::now(), job));
        Ok(Some(token))
    }

    /// The job of a token, which is used up by that.
    fn take(&self, token: &str) -> Option<Job> {
        let taken = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
        taken.filter(|(since, _)| since.elapsed() < self.good_for).map(|(_, job)| job)
    }
}

/// 128 bits that nobody guesses.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Gives addresses, and serves whoever comes to them.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    address: SocketAddr,
    waiting: Arc<Waiting>,
}

/// What a request reaches.
#[derive(Debug, Clone)]
struct Desk {
    engine: Arc<Engine>,
    waiting: Arc<Waiting>,
    places: Arc<Semaphore>,
    sessions: TaskTracker,
    stop: CancellationToken,
}

impl Streams {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, waiting: Arc::new(Waiting::new(GOOD_FOR)) }
    }

    /// The address of a job.
    pub(super) fn url(&self, job: Job) -> Result<String, Status> {
        let path = job.path();
        match self.waiting.put(job) {
            Ok(Some(token)) => Ok(format!("http://{}/{path}/{token}", self.address)),
            Ok(None) => {
                Err(Status::resource_exhausted(format!("{MAX_WAITING} streams wait for their clients already")))
            }
            Err(error) => Err(Status::internal(format!("reading /dev/urandom: {error}"))),
        }
    }

    /// Serves until `stop`; then ends sessions.
    pub(super) async fn serve(self, listener: TcpListener, engine: Arc<Engine>, stop: CancellationToken) {
        let (sessions, connections) = (TaskTracker::new(), TaskTracker::new());
        let desk = Desk {
            engine,
            waiting: self.waiting,
            places: Arc::new(Semaphore::new(MAX_SESSIONS)),
            sessions: sessions.clone(),
            stop: stop.clone(),
        };
        let router = Router::new()
            .route("/{kind}/{token}", any(answer))
            .fallback(async || Failure::no_such_path())
            .with_state(desk);
        Reception::new(router, connections.clone(), MAX_CONNECTIONS, stop).receive(&listener).await;
        connections.close();
        sessions.close();
        tokio::join!(connections.wait(), sessions.wait());
    }
}

async fn answer(
    State(desk): State<Desk>,
    Path((kind, token)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    let job = desk.waiting.take(&token).filter(|job| job.path() == kind).ok_or_else(Failure::no_such_path)?;
    let place = Arc::clone(&desk.places).try_acquire_owned();
    let place = place.map_err(|_| Failure::too_many("too many sessions are open: end some"))?;
    let (engine, stop, tasks) = (desk.engine, desk.stop, desk.sessions.clone());
    let (spec, session) = match job {
        Job::Forward { sandbox, ports } => {
            return forward(&desk.sessions, place, (engine, sandbox), ports, request, stop);
        }
        Job::Exec { container, request } => {
            let spec = ExecSpec {
                command: Vec::new(),
                tty: request.tty,
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            };
            let session = async move {
                let session = engine.exec(&container, request).await.map_err(BackendError::from)?;
                Ok(exec_session(session, &tasks))
            };
            (spec, session.boxed())
        }
        Job::Attach { container, request, tty } => {
            let AttachRequest { stdin, stdout, stderr } = request;
            let spec = ExecSpec { command: Vec::new(), tty, stdin, stdout, stderr };
            let session = async move {
                let session = engine.attach(&container, request).await.map_err(BackendError::from)?;
                Ok(attach_session(session, &tasks))
            };
            (spec, session.boxed())
        }
    };
    let (response, carrier) = Upgrade::of(request)?.accept();
    desk.sessions.spawn(async move {
        let _place = place;
        if let Some(carrier) = carrier.await {
            carrier.serve(&spec, session, stop).await;
        }
    });
    Ok(response)
}

fn forward(
    sessions: &TaskTracker,
    place: tokio::sync::OwnedSemaphorePermit,
    (engine, sandbox): (Arc<Engine>, SandboxId),
    ports: Vec<u16>,
    mut request: Request,
    stop: CancellationToken,
) -> Result<Response, Failure> {
    let connect: ports::Connect = Box::new(move |port| {
        let (engine, sandbox) = (Arc::clone(&engine), sandbox.clone());
        async move {
            let stream = engine.forward(&sandbox, port).await;
            let stream =
                stream.map_err(|error| format!("forwarding port {port} of sandbox {sandbox}: {}", chain(&error)))?;
            let (output, input) = stream.into_split();
            Ok((Box::new(output) as Output, Box::new(input) as Input))
        }
        .boxed()
    });
    if let Some(upgrade) = Forwarding::of(&mut request) {
        let (response, carrying) = upgrade?.accept(connect, stop);
        sessions.spawn(async move {
            let _place = place;
            carrying.await;
        });
        return Ok(response);
    }
    if ports.is_empty() {
        return Err(Failure::bad_request("over the channels of a WebSocket, PortForward is to name its ports"));
    }
    let (response, socket) = socket::Upgrade::of(request)?.accept();
    sessions.spawn(async move {
        let _place = place;
        if let Some((socket, protocol)) = socket.await {
            ports::run(socket, protocol, &ports, &connect, stop).await;
        }
    });
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job::Forward { sandbox: "0".repeat(64).parse().unwrap(), ports: Vec::new() }
    }

    #[test]
    fn an_address_is_good_once_and_for_its_time() {
        let waiting = Waiting::new(Duration::from_secs(60));
        let token = waiting.put(job()).unwrap().unwrap();
        assert!(token.len() == 32 && waiting.take("other").is_none());
        assert!(waiting.take(&token).is_some() && waiting.take(&token).is_none());
        let late = Waiting::new(Duration::ZERO);
        let token = late.put(job()).unwrap().unwrap();
        assert!(late.take(&token).is_none());
    }

    #[test]
    fn addresses_that_nobody_uses_are_bounded_and_make_room_when_their_time_is_over() {
        let waiting = Waiting::new(Duration::from_secs(60));
        for _ in 0..MAX_WAITING {
            assert!(waiting.put(job()).unwrap().is_some());
        }
        assert!(waiting.put(job()).unwrap().is_none());
        let late = Waiting::new(Duration::ZERO);
        for _ in 0..=MAX_WAITING {
            assert!(late.put(job()).unwrap().is_some());
        }
    }
}
