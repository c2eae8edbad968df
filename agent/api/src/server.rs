//! The listeners: the unix socket with everything, the TCP address with health and metrics.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::app::App;
use crate::backend::Backend;
use crate::reception::{Entrance, Rank, Reception};

/// How long open requests may go on once the doors close.
const CLOSING: Duration = Duration::from_secs(3);

/// Where the doors are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The unix socket; its directory exists.
    pub socket: PathBuf,
    /// A group whose members may connect beside root.
    pub group: Option<u32>,
    /// Where `/metrics`, `/livez` and `/readyz` answer; port 0 takes a free one.
    pub listen: Option<SocketAddr>,
    /// Connections to each listener at a time; further ones get 429, root's on the socket a little later.
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
    socket: Socket,
    path: PathBuf,
    tcp: Option<TcpListener>,
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
        let tcp = match config.listen {
            Some(address) => {
                Some(TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?)
            }
            None => None,
        };
        // Last: an address that is taken leaves no socket behind.
        let listener = bind_socket(&config.socket, config.group)
            .map_err(|source| ServeError::Socket { path: config.socket.clone(), source })?;
        let own_uid = rustix::process::geteuid().as_raw();
        let peers = Peers { own_uid, any_the_file_admits: config.group.is_some() };
        Ok(Doors {
            socket: Socket { listener, peers },
            path: config.socket.clone(),
            tcp,
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
        let reception = |router| Reception::new(router, connections.clone(), self.max_connections, stop.clone());
        let (at_socket, at_address) = (reception(app.router()), reception(app.health_router()));
        let unix = at_socket.receive(&self.socket);
        let tcp = async {
            if let Some(tcp) = &self.tcp {
                at_address.receive(tcp).await;
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

/// A socket of mode 0600, or 0660 for a group.
pub(crate) fn bind_socket(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    // Born under another name in the same directory: nobody meets it with a wider mode.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    let placed = (|| {
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        std::os::unix::fs::chown(&temporary, None, group)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&temporary, path)
    })();
    if let Err(error) = placed {
        drop(std::fs::remove_file(&temporary));
        return Err(error);
    }
    Ok(listener)
}

/// The unix socket, and who may talk to it.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    peers: Peers,
}

impl Entrance for Socket {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Rank)> {
        let (stream, _) = self.listener.accept().await?;
        let rank = match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 => Rank::Root,
            Ok(peer) if self.peers.admits(peer.uid()) => Rank::Other,
            Ok(peer) => {
                warn!(uid = peer.uid(), pid = peer.pid(), "a client that is not root was turned away");
                Rank::Stranger
            }
            Err(error) => {
                warn!(%error, "a client without credentials was turned away");
                Rank::Stranger
            }
        };
        Ok((stream, rank))
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
