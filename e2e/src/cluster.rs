//! A cluster's API without a cluster: Kubernetes' own API server for custom resources, and a double of what it lacks.
//!
//! ```text
//!   tests, agents --kubeconfig--> Door --+--> double                   Secrets, ConfigMaps, Leases, Events, Nodes, ...
//!                                 faults |      ^
//!                                 counts |      | core API, without faults
//!                                        +--> apiextensions-apiserver --> etcd
//! ```
//!
//! `apiextensions-apiserver` is what a complete API server serves `/apis` of custom resources with: definitions,
//! defaults, schemas, CEL, status, patches, server-side apply, watches. A [`Door`] speaks TLS, knows its client by a
//! bearer token, and tells the server who it is. The double answers the API server's questions for a core API, too:
//! namespaces must be there, and ValidatingAdmissionPolicies that are written to it hold for custom resources. It is a
//! double: what it does is what the API conventions say, and no more.
//!
//! Every [`ApiServer`] is by itself, on ports of loopback that were free and in a temporary directory. A door may be in
//! the network namespace of a [`World`], so that agents in worlds of their own share one server, and each can be cut off.

mod authority;
mod call;
mod count;
mod door;
mod double;
mod fault;
mod process;
mod serve;
mod status;
mod upstream;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use self::authority::{Authority, Certificate};
pub use self::count::{Count, Counts};
pub use self::door::Door;
use self::double::Double;
pub use self::fault::{Fault, Injected, Requests};
use self::process::{Processes, Setup};
pub use self::serve::Reads;
use self::serve::{Desk, serve_core};
use self::upstream::{Upstream, User};
use crate::wait::wait_until;
use crate::world::World;

/// The common name that the API server believes.
const PROXY: &str = "proxy";

/// Everything as it was at one moment, for [`Door::serve_stale`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    double: double::Snapshot,
    revision: String,
}

/// A running API. Its processes end when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    /// Dropped first: who knocks meets nobody.
    door: Option<Door>,
    doors: Mutex<Vec<Weak<door::Core>>>,
    processes: Mutex<Processes>,
    double: Double,
    upstream: Upstream,
    tls: Arc<ServerConfig>,
    authority: Authority,
    /// Always there but while this is dropped.
    runtime: Option<Runtime>,
    directory: TempDir,
}

impl ApiServer {
    /// Starts etcd and the API server on loopback, and waits until it is ready. Its [`door`](Self::door) is an
    /// administrator's.
    ///
    /// It is for tests with and without an async runtime: its own is apart, and this waits for seconds.
    ///
    /// # Panics
    /// When there is no API server and `e2e/apiserver` cannot make one, or it is not ready within a minute.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("prt-e2e-cluster-").tempdir().expect("a temporary directory");
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().thread_name("cluster").build().expect("threads");
        let authority = Authority::new(directory.path());
        let (certificate, own) = (authority.server("server"), authority.client(PROXY));
        let double = Double::new();
        let core = directory.path().join("core.kubeconfig");
        write_core_kubeconfig(&core, serve_double(&runtime, &double));
        let setup = Setup {
            directory: directory.path(),
            authority: &authority,
            certificate: &certificate,
            proxy: PROXY,
            core: &core,
        };
        let processes = Processes::start(&setup);
        let upstream = Upstream::new(processes.server(), processes.etcd(), &authority, &own);
        let mut cluster = Self {
            door: None,
            doors: Mutex::default(),
            processes: Mutex::new(processes),
            double,
            upstream,
            tls: tls(&certificate),
            authority,
            runtime: Some(runtime),
            directory,
        };
        cluster.wait_until_ready();
        cluster.door = Some(cluster.open("admin", None, User::administrator()));
        cluster
    }

    /// The administrator's door.
    ///
    /// # Panics
    /// Never while this lives.
    #[must_use]
    pub fn door(&self) -> &Door {
        self.door.as_ref().expect("it is there until this is dropped")
    }

    /// Opens a door for the agent of a node: its token is that of a ServiceAccount, bound to the node `name`. With a world,
    /// it is on that world's loopback.
    #[must_use]
    pub fn open_door(&self, name: &str, world: Option<&World>) -> Door {
        self.open(name, world, User::agent(name))
    }

    /// Kills the API server, and with it all doors: connections are cut and refused until [`start_again`](Self::start_again).
    pub fn stop(&self) {
        for door in self.live_doors() {
            door.set_down(true);
        }
        self.processes().kill_server();
    }

    /// Starts it again after [`stop`](Self::stop), with what etcd and the double keep, and opens all doors at their addresses.
    ///
    /// # Panics
    /// When it is not ready within a minute.
    pub fn start_again(&self) {
        self.processes().start_server();
        self.wait_until_ready();
        for door in self.live_doors() {
            door.set_down(false);
        }
    }

    /// Everything as it is now, to answer from later.
    ///
    /// # Panics
    /// When the API server does not answer.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let upstream = self.upstream.clone();
        let revision = self.run(async move { upstream.revision().await }).expect("the API server answers");
        Snapshot { double: self.double.freeze(), revision }
    }

    /// Forgets all history: watches from the past, and further pages of lists, are 410 from now on. Those of custom resources
    /// are only after [`stop`](Self::stop) and [`start_again`](Self::start_again): until then the API server has them in its
    /// memory.
    ///
    /// # Panics
    /// When etcd does not answer.
    pub fn compact(&self) {
        self.double.compact();
        let upstream = self.upstream.clone();
        self.run(async move { upstream.compact().await }).expect("etcd answers");
    }

    fn open(&self, name: &str, world: Option<&World>, user: User) -> Door {
        let desk = Desk::new(self.double.clone(), self.upstream.clone(), user);
        let setting = (self.runtime().handle().clone(), Arc::clone(&self.tls));
        let door =
            Door::open_new(name, self.directory.path(), &self.authority, setting, world.map(World::network), desk);
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.push(Arc::downgrade(door.core()));
        door
    }

    fn live_doors(&self) -> Vec<Arc<door::Core>> {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        doors.retain(|door| door.strong_count() > 0);
        doors.iter().filter_map(Weak::upgrade).collect()
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until this is dropped")
    }

    /// Waits for what is done on the runtime, from whatever thread.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        // Who asked is waiting.
        self.runtime().spawn(async move { drop(answer.send(work.await)) });
        answered.recv().expect("work on the runtime does not panic")
    }

    fn wait_until_ready(&self) {
        wait_until("the API server is ready", 60, || {
            let upstream = self.upstream.clone();
            self.run(async move { upstream.readiness().await })
                .map_err(|why| format!("{why}\n{}", self.processes().complaints()))
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for door in self.live_doors() {
            door.set_down(true);
        }
        self.processes().kill_server();
        if let Some(runtime) = self.runtime.take() {
            // Waiting is forbidden where a test is async.
            runtime.shutdown_background();
        }
    }
}

/// Serves the API server's core API, and says where.
fn serve_double(runtime: &Runtime, double: &Double) -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("it is bound");
    let _context = runtime.enter();
    let listener = TcpListener::from_std(listener).expect("a socket");
    let double = double.clone();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let double = double.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| serve_core(double.clone(), request));
                // What ends a connection early is the API server's affair.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

fn write_core_kubeconfig(path: &Path, core: SocketAddr) {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: core\ncontexts: [{{name: core, context: {{cluster: core, user: core}}}}]\n\
         clusters: [{{name: core, cluster: {{server: 'http://{core}'}}}}]\nusers: [{{name: core, user: {{}}}}]\n"
    );
    std::fs::write(path, text).expect("the directory takes files");
}

fn tls(certificate: &Certificate) -> Arc<ServerConfig> {
    let chain = CertificateDer::from_pem_file(&certificate.certificate).expect("openssl wrote a certificate");
    let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("openssl wrote a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows them")
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .expect("the key fits the certificate");
    Arc::new(config)
}
