//! Exec, attach and port-forward: a WebSocket with the channels of [`crate::channel`], or SPDY's streams, which for
//! port-forward may be in a WebSocket, too.

pub(crate) mod carrier;
pub(crate) mod ports;
pub(crate) mod session;
pub(crate) mod socket;
pub(crate) mod spdy;
mod tunnel;

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use portreeve_node::NamespacedName;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::backend::{BackendError, ExecSpec, Session};
use crate::channel::{ERROR, Protocol, RESIZE, STDERR, STDIN, STDOUT};
use crate::failure::Failure;
use crate::params::Params;

/// The most ports one connection forwards.
const MAX_PORTS: usize = 64;
/// The most bytes a command has, arguments together.
const MAX_COMMAND_BYTES: usize = 128 * 1024;

/// A request for the streams of a process, checked and not yet answered.
pub(crate) enum Upgrade {
    Socket(socket::Upgrade),
    Spdy(spdy::Spdy),
}

/// A connection for the streams of a process.
pub(crate) enum Carrier {
    Socket(socket::Socket, Protocol),
    Spdy(spdy::Connection),
}

impl Upgrade {
    /// Checks the request.
    pub(crate) fn of(mut request: Request) -> Result<Self, Failure> {
        match spdy::Spdy::of(&mut request, spdy::REMOTE_COMMAND) {
            Some(spdy) => spdy.map(Self::Spdy),
            None => socket::Upgrade::of(request).map(Self::Socket),
        }
    }

    /// The answer, and the connection once the answer was sent.
    pub(crate) fn accept(self) -> (Response, BoxFuture<'static, Option<Carrier>>) {
        match self {
            Self::Socket(upgrade) => {
                let (response, socket) = upgrade.accept();
                (response, async { socket.await.map(|(socket, protocol)| Carrier::Socket(socket, protocol)) }.boxed())
            }
            Self::Spdy(upgrade) => {
                let (response, connection) = upgrade.accept();
                (response, async { connection.await.map(Carrier::Spdy) }.boxed())
            }
        }
    }
}

/// A request for connections to ports of a pod by streams of SPDY, which name them; checked and not yet answered.
pub(crate) enum Forwarding {
    Spdy(spdy::Spdy),
    /// In a WebSocket.
    Tunnel(socket::Upgrade<()>),
}

impl Forwarding {
    /// Checks the request; `None` when it asks for something else.
    pub(crate) fn of(request: &mut Request) -> Option<Result<Self, Failure>> {
        if let Some(spdy) = spdy::Spdy::of(request, spdy::PORT_FORWARD) {
            return Some(spdy.map(Self::Spdy));
        }
        Some(socket::Upgrade::offering(request, tunnel::PORT_FORWARD)?.map(Self::Tunnel))
    }

    /// The answer, and what carries connections from when it was sent until the client leaves, or `stop`.
    pub(crate) fn accept(self, connect: ports::Connect, stop: CancellationToken) -> (Response, BoxFuture<'static, ()>) {
        match self {
            Self::Spdy(upgrade) => {
                let (response, connection) = upgrade.accept();
                let carrying = async move {
                    if let Some(connection) = connection.await {
                        spdy::forward::run(connection, connect, stop).await;
                    }
                };
                (response, carrying.boxed())
            }
            Self::Tunnel(upgrade) => {
                let (response, socket) = upgrade.accept();
                let carrying = async move {
                    if let Some((socket, ())) = socket.await {
                        let connection = spdy::Connection::over(tunnel::Tunnel::through(socket));
                        spdy::forward::run(connection, connect, stop).await;
                    }
                };
                (response, carrying.boxed())
            }
        }
    }
}

impl Carrier {
    /// Begins a session as soon as the client is ready for it, and carries it to its end.
    pub(crate) async fn serve(
        self,
        spec: &ExecSpec,
        session: impl Future<Output = Result<Session, BackendError>>,
        stop: CancellationToken,
    ) {
        match self {
            Self::Socket(socket, protocol) => {
                session::serve(carrier::over_socket(socket, protocol), session, stop).await;
            }
            Self::Spdy(connection) => {
                spdy::converse(connection, &channels(spec), |streams| session::serve(streams, session, stop)).await;
            }
        }
    }
}

/// The channels of a process, each a stream of SPDY that its client opens.
pub(crate) fn channels(spec: &ExecSpec) -> Vec<u8> {
    let all = [(STDIN, spec.stdin), (STDOUT, spec.stdout), (STDERR, spec.stderr), (RESIZE, spec.tty), (ERROR, true)];
    all.into_iter().filter_map(|(channel, wanted)| wanted.then_some(channel)).collect()
}

/// Runs a command in a container.
pub(crate) async fn exec(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    params: Params,
    request: Request,
) -> Result<Response, Failure> {
    let command = params.all("command");
    if command.first().is_none_or(String::is_empty) {
        return Err(Failure::bad_request("you must specify at least 1 command for the container"));
    }
    if command.iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES {
        return Err(Failure::bad_request("the command is longer than 128 KiB"));
    }
    let spec = spec(&params, command)?;
    let pod = NamespacedName::new(namespace, name);
    refuse_completed(&app, &pod, "exec into")?;
    let container = app.backend.container(&pod, params.text("container"), false)?;
    // From here on a failure travels on the error channel, where clients look for it.
    let upgrade = Upgrade::of(request)?;
    let place = app.session_place()?;
    let (response, carrier) = upgrade.accept();
    let (backend, stop) = (app.backend.clone(), app.stop.clone());
    app.sessions.spawn(async move {
        let _place = place;
        let Some(carrier) = carrier.await else { return };
        carrier.serve(&spec, backend.exec(&container, spec.clone()), stop).await;
    });
    Ok(response)
}

/// Joins the streams of a container's first process.
pub(crate) async fn attach(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    params: Params,
    request: Request,
) -> Result<Response, Failure> {
    let spec = spec(&params, Vec::new())?;
    let pod = NamespacedName::new(namespace, name);
    refuse_completed(&app, &pod, "attach")?;
    let container = app.backend.container(&pod, params.text("container"), false)?;
    // From here on a failure travels on the error channel, where clients look for it.
    let upgrade = Upgrade::of(request)?;
    let place = app.session_place()?;
    let (response, carrier) = upgrade.accept();
    let (backend, stop) = (app.backend.clone(), app.stop.clone());
    app.sessions.spawn(async move {
        let _place = place;
        let Some(carrier) = carrier.await else { return };
        carrier.serve(&spec, backend.attach(&container, spec.clone()), stop).await;
    });
    Ok(response)
}

fn spec(params: &Params, command: Vec<String>) -> Result<ExecSpec, Failure> {
    let tty = params.flag("tty")?;
    let spec = ExecSpec {
        command,
        tty,
        stdin: params.flag("stdin")?,
        stdout: params.flag("stdout")?,
        // A terminal has one output; kubectl does not ask for both, other clients do.
        stderr: params.flag("stderr")? && !tty,
    };
    if !spec.stdin && !spec.stdout && !spec.stderr {
        return Err(Failure::bad_request("you must specify at least one of stdin, stdout, stderr"));
    }
    Ok(spec)
}

/// Connects to ports of a pod.
pub(crate) async fn forward(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    params: Params,
    mut request: Request,
) -> Result<Response, Failure> {
    let pod = NamespacedName::new(namespace, name);
    if find(&app, &pod).is_none() {
        return Err(Failure::not_found("pods", &pod.name));
    }
    let (backend, stop) = (app.backend.clone(), app.stop.clone());
    let connect: ports::Connect = Box::new(move |port| {
        let (backend, pod) = (backend.clone(), pod.clone());
        async move {
            let connected = backend.forward(&pod, port).await;
            connected.map_err(|failed| format!("forwarding port {port} of pod {pod}: {failed}"))
        }
        .boxed()
    });
    if let Some(upgrade) = Forwarding::of(&mut request) {
        let upgrade = upgrade?;
        let place = app.session_place()?;
        let (response, carrying) = upgrade.accept(connect, stop);
        app.sessions.spawn(async move {
            let _place = place;
            carrying.await;
        });
        return Ok(response);
    }
    let ports = ports_of(&params)?;
    let upgrade = socket::Upgrade::of(request)?;
    let place = app.session_place()?;
    let (response, socket) = upgrade.accept();
    app.sessions.spawn(async move {
        let _place = place;
        if let Some((socket, protocol)) = socket.await {
            ports::run(socket, protocol, &ports, &connect, stop).await;
        }
    });
    Ok(response)
}

fn ports_of(params: &Params) -> Result<Vec<u16>, Failure> {
    let mut ports = Vec::new();
    for text in params.all("ports").iter().flat_map(|text| text.split(',')).filter(|text| !text.is_empty()) {
        match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => ports.push(port),
            _ => return Err(Failure::bad_request(format!("ports: {text:?} is not a port"))),
        }
    }
    if ports.is_empty() || ports.len() > MAX_PORTS {
        return Err(Failure::bad_request(format!("ports: between 1 and {MAX_PORTS} ports are needed")));
    }
    Ok(ports)
}

fn find(app: &App, pod: &NamespacedName) -> Option<Arc<Pod>> {
    app.backend.pods().items.into_iter().find(|one| {
        one.metadata.namespace.as_deref() == Some(pod.namespace.as_str())
            && one.metadata.name.as_deref() == Some(pod.name.as_str())
    })
}

/// Nothing runs in a pod that has ended, whatever is known of its containers. The words are kubectl's own.
fn refuse_completed(app: &App, pod: &NamespacedName, verb: &str) -> Result<(), Failure> {
    let phase = find(app, pod).and_then(|found| found.status.as_ref()?.phase.clone());
    match phase.as_deref() {
        Some(phase @ ("Succeeded" | "Failed")) => {
            Err(Failure::bad_request(format!("cannot {verb} a container in a completed pod; current phase is {phase}")))
        }
        _ => Ok(()),
    }
}

/// The protocols in the words of an error message.
fn protocols() -> String {
    format!("{}, {}", Protocol::V5.name(), Protocol::V4.name())
}
