//! A door of the cluster: an address, a kubeconfig file, and faults and counts of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Snapshot;
use super::authority::Authority;
use super::count::Counts;
use super::fault::{Fault, Injected, Requests};
use super::process::{Reserved, reusable};
use super::serve::{Desk, Reads, serve};
use crate::world::within;

/// A way into the cluster. It closes when it is dropped.
#[derive(Debug)]
pub struct Door {
    core: Arc<Core>,
}

/// What the cluster keeps of a door: it closes all of them when the API server is killed.
#[derive(Debug)]
pub(super) struct Core {
    desk: Arc<Desk>,
    runtime: Handle,
    tls: Arc<ServerConfig>,
    /// The network namespace, where it is not this process's.
    namespace: Option<File>,
    reserved: Reserved,
    files: Files,
    state: Mutex<State>,
}

/// What clients read.
#[derive(Debug)]
struct Files {
    kubeconfig: PathBuf,
    token: PathBuf,
    authority: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    /// The server behind does not run.
    down: bool,
    /// The test wants it closed.
    closed: bool,
    listening: Option<Listening>,
    connections: CancellationToken,
}

/// Somebody listens.
#[derive(Debug)]
struct Listening {
    task: AbortHandle,
    /// Says nothing, and ends once the socket is closed.
    gone: mpsc::Receiver<()>,
}

impl Door {
    /// Opens one on loopback, in the network namespace where one is given; its files are called by `name`.
    pub(super) fn open_new(
        name: &str,
        directory: &Path,
        authority: &Authority,
        (runtime, tls): (Handle, Arc<ServerConfig>),
        namespace: Option<File>,
        desk: Desk,
    ) -> Self {
        let reserved = match &namespace {
            Some(namespace) => within(namespace, Reserved::new),
            None => Reserved::new(),
        };
        let files = Files {
            kubeconfig: directory.join(format!("{name}.kubeconfig")),
            token: directory.join(format!("{name}.token")),
            authority: authority.certificate(),
        };
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
             contexts: [{{name: {name}, context: {{cluster: {name}, user: {name}}}}}]\n\
             clusters: [{{name: {name}, cluster: {{server: 'https://{}', certificate-authority: {}}}}}]\n\
             users: [{{name: {name}, user: {{tokenFile: {}}}}}]\n",
            reserved.address,
            files.authority.display(),
            files.token.display()
        );
        std::fs::write(&files.token, desk.token()).expect("the directory takes files");
        std::fs::write(&files.kubeconfig, text).expect("the directory takes files");
        let state = Mutex::default();
        let core = Arc::new(Core { desk: Arc::new(desk), runtime, tls, namespace, reserved, files, state });
        core.settle(|_| ());
        Self { core }
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// A kubeconfig file for clients: its user has a token in a file.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.core.files.kubeconfig
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.core.reserved.address
    }

    /// The file with the certificate of the authority that signed the server's, as a pod has it.
    #[must_use]
    pub fn authority(&self) -> &Path {
        &self.core.files.authority
    }

    /// The file with the token that is good now, as a pod has it.
    #[must_use]
    pub fn token_file(&self) -> &Path {
        &self.core.files.token
    }

    /// Cuts all connections, and refuses new ones until [`open`](Self::open).
    pub fn close(&self) {
        self.core.settle(|state| state.closed = true);
    }

    /// Takes connections again, at the same address.
    pub fn open(&self) {
        self.core.settle(|state| state.closed = false);
    }

    /// Cuts all connections that are there; new ones are taken.
    pub fn cut(&self) {
        self.core.state().cut();
    }

    /// Switches a fault on until what this returns is dropped. Of several that meet a request, delays add up, and the first
    /// other one counts.
    pub fn inject(&self, requests: Requests, fault: Fault) -> Injected {
        self.core.desk.faults.inject(requests, fault)
    }

    /// Ends all watches that run with the event that says 410 Gone.
    pub fn expire_watches(&self) {
        self.core.desk.expire_watches();
    }

    /// Answers gets and lists as things were at that moment, until [`serve_fresh`](Self::serve_fresh).
    pub fn serve_stale(&self, snapshot: &Snapshot, reads: Reads) {
        self.core.desk.serve_from(Some((snapshot.clone(), reads)));
    }

    /// Answers with what is so now.
    pub fn serve_fresh(&self) {
        self.core.desk.serve_from(None);
    }

    /// Puts a new token into the file. The old ones are good until [`refuse_old_tokens`](Self::refuse_old_tokens).
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn rotate_token(&self) {
        let next = self.core.files.token.with_extension("next");
        std::fs::write(&next, self.core.desk.new_token()).expect("the directory takes files");
        std::fs::rename(next, &self.core.files.token).expect("the directory takes files");
    }

    /// Answers 401 to all tokens but the newest.
    pub fn refuse_old_tokens(&self) {
        self.core.desk.refuse_old_tokens();
    }

    /// What was asked so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.core.desk.tally.counts()
    }

    /// What was asked so far, and counts anew.
    #[must_use]
    pub fn take_counts(&self) -> Counts {
        self.core.desk.tally.take()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    fn cut(&mut self) {
        std::mem::take(&mut self.connections).cancel();
    }
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether the server behind runs.
    pub(super) fn set_down(self: &Arc<Self>, down: bool) {
        self.settle(|state| state.down = down);
    }

    /// Changes what is wanted, and listens or not as it is wanted now. At the end it is so.
    fn settle(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let wanted = !state.down && !state.closed;
        if wanted && state.listening.is_none() {
            state.listening = Some(self.listen());
        } else if !wanted {
            state.cut();
            let listening = state.listening.take();
            // Who is just being let in asks for the state.
            drop(state);
            if let Some(Listening { task, gone }) = listening {
                task.abort();
                // Nobody sends anything: this ends when the task is gone.
                let _ = gone.recv();
            }
            self.state().cut();
        }
    }

    fn listen(self: &Arc<Self>) -> Listening {
        let bind = || {
            // The socket is told to the runtime by the thread that makes it.
            let _runtime = self.runtime.enter();
            reusable(self.reserved.address).and_then(|socket| socket.listen(1024))
        };
        let listener = match &self.namespace {
            Some(namespace) => within(namespace, bind),
            None => bind(),
        };
        let listener = listener.expect("the port is ours");
        let (here, gone) = mpsc::channel::<()>();
        let core = Arc::clone(self);
        let task = self.runtime.spawn(async move {
            let _here = here;
            core.accept(listener).await;
        });
        Listening { task: task.abort_handle(), gone }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            // A client that is gone before it is let in is none.
            let Ok((stream, _)) = listener.accept().await else { continue };
            let cut = self.state().connections.clone();
            let (desk, acceptor) = (Arc::clone(&self.desk), TlsAcceptor::from(Arc::clone(&self.tls)));
            tokio::spawn(cut.run_until_cancelled_owned(connection(desk, acceptor, stream)));
        }
    }
}

/// Serves a client until it goes. What ends it early is the client's affair, or a fault's.
async fn connection(desk: Arc<Desk>, acceptor: TlsAcceptor, stream: TcpStream) {
    // Small answers are not to wait for each other.
    let _ = stream.set_nodelay(true);
    if let Ok(stream) = acceptor.accept(stream).await {
        let service = service_fn(|request| serve(Arc::clone(&desk), request));
        let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
    }
}
