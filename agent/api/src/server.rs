//! The listeners: the unix socket with everything, the TCP address with health and metrics.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::app::App;
use crate::backend::Backend;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long open requests may go on once the doors close.
const CLOSING: Duration = Duration::from_secs(3);
/// How long to wait after an accept that failed for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most a connection buffers of a request's head, and of a response.
const BUFFER_BYTES: usize = 64 * 1024;

/// Where the doors are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The unix socket; its directory exists.
    pub socket: PathBuf,
    /// A group whose members may connect beside root.
    pub group: Option<u32>,
    /// Where `/metrics`, `/livez` and `/readyz` answer; port 0 takes a free one.
    pub listen: Option<SocketAddr>,
    /// Connections to each listener at a time; further ones wait.
    pub max_connections: usize,
    /// Exec, attach and port-forward sessions at a time; further ones are refused.
    pub max_sessions: usize,
}

impl Config {
    /// The doors at `socket` for root alone, no TCP.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Config { socket: socket.into(), group: None, listen: None, max_connections: 512, max_sessions: 512 }
    }
}

/// Why the doors cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The unix socket cannot be made.
    #[error("listening on {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The TCP address cannot be taken.
    #[error("listening on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Doors that are there but not yet answered: clients wait in the backlog.
#[derive(Debug)]
pub struct Doors {
    socket: UnixListener,
    path: PathBuf,
    tcp: Option<TcpListener>,
    peers: Peers,
    max_connections: usize,
    max_sessions: usize,
}

/// Who may talk to the unix socket.
#[derive(Clone, Copy, Debug)]
struct Peers {
    own_uid: u32,
    any_the_file_admits: bool,
}

impl Peers {
    /// The mode of the socket keeps others out; this holds where its directory was opened up.
    fn admits(self, uid: u32) -> bool {
        self.any_the_file_admits || uid == 0 || uid == self.own_uid
    }
}

impl Doors {
    /// Takes the socket (mode 0600, or 0660 with a group) and the address.
    ///
    /// The socket appears under its name only with its final mode, and replaces what a dead
    /// agent left; the caller makes sure that no living one has it.
    ///
    /// # Errors
    /// [`ServeError`] naming what could not be taken.
    pub async fn bind(config: &Config) -> Result<Doors, ServeError> {
        let socket =
            bind_socket(config).map_err(|source| ServeError::Socket { path: config.socket.clone(), source })?;
        let tcp = match config.listen {
            Some(address) => {
                Some(TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?)
            }
            None => None,
        };
        let own_uid = rustix::process::geteuid().as_raw();
        Ok(Doors {
            socket,
            path: config.socket.clone(),
            tcp,
            peers: Peers { own_uid, any_the_file_admits: config.group.is_some() },
            max_connections: config.max_connections,
            max_sessions: config.max_sessions,
        })
    }

    /// The TCP address that was really taken.
    pub fn listen_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Answers until `stop`; then ends watches and sessions, gives the rest a moment, and takes
    /// the socket's name away.
    pub async fn serve(self, backend: Arc<dyn Backend>, stop: CancellationToken) {
        let sessions = TaskTracker::new();
        let app = App::new(backend, stop.clone(), sessions.clone(), self.max_sessions);
        let connections = TaskTracker::new();
        let unix = accept_unix(&self.socket, self.peers, app.router(), &connections, self.max_connections, &stop);
        let tcp = async {
            if let Some(tcp) = &self.tcp {
                accept_tcp(tcp, app.health_router(), &connections, self.max_connections, &stop).await;
            }
        };
        tokio::join!(unix, tcp);
        if let Err(error) = std::fs::remove_file(&self.path) {
            debug!(path = %self.path.display(), %error, "socket was not removed");
        }
        connections.close();
        sessions.close();
        let ended = async { tokio::join!(connections.wait(), sessions.wait()) };
        if tokio::time::timeout(CLOSING, ended).await.is_err() {
            warn!(connections = connections.len(), sessions = sessions.len(), "open requests were cut off");
        }
    }
}

fn bind_socket(config: &Config) -> io::Result<UnixListener> {
    // Born under another name in the same directory: nobody meets it with a wider mode.
    let mut temporary = config.socket.clone().into_os_string();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    let placed = (|| {
        let mode = if config.group.is_some() { 0o660 } else { 0o600 };
        std::os::unix::fs::chown(&temporary, None, config.group)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&temporary, &config.socket)
    })();
    if let Err(error) = placed {
        drop(std::fs::remove_file(&temporary));
        return Err(error);
    }
    Ok(listener)
}

async fn accept_unix(
    listener: &UnixListener,
    peers: Peers,
    router: Router,
    connections: &TaskTracker,
    max: usize,
    stop: &CancellationToken,
) {
    let places = Arc::new(Semaphore::new(max));
    loop {
        let place = tokio::select! {
            // cancel-safe: no place was taken
            () = stop.cancelled() => return,
            // cancel-safe: a dropped acquire leaves the queue
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            // cancel-safe: nothing was accepted
            () = stop.cancelled() => return,
            // cancel-safe: accept is
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !admitted(&stream, peers) {
            continue;
        }
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            converse(stream, router, stop).await;
            drop(place);
        });
    }
}

fn admitted(stream: &UnixStream, peers: Peers) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peers.admits(peer.uid()) => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), pid = peer.pid(), "a client that is not root was turned away");
            false
        }
        Err(error) => {
            warn!(%error, "a client without credentials was turned away");
            false
        }
    }
}

async fn accept_tcp(
    listener: &TcpListener,
    router: Router,
    connections: &TaskTracker,
    max: usize,
    stop: &CancellationToken,
) {
    let places = Arc::new(Semaphore::new(max));
    loop {
        let place = tokio::select! {
            // cancel-safe: no place was taken
            () = stop.cancelled() => return,
            // cancel-safe: a dropped acquire leaves the queue
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            // cancel-safe: nothing was accepted
            () = stop.cancelled() => return,
            // cancel-safe: accept is
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    converse(stream, router, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end, or until its present request is done once `stop` comes.
pub(crate) async fn converse<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER_BYTES);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        // cancel-safe: the connection is polled on below
        ended = connection.as_mut() => ended,
        // cancel-safe: nothing is lost
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_agents_own_user_come_in_and_others_only_where_a_group_may() {
        let closed = Peers { own_uid: 500, any_the_file_admits: false };
        assert!(closed.admits(0) && closed.admits(500) && !closed.admits(1000));
        assert!(Peers { any_the_file_admits: true, ..closed }.admits(1000));
    }
}
