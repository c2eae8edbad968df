//! etcd and the API server for custom resources: processes on loopback that end with the test.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};

use tokio::net::TcpSocket;

use super::authority::{Authority, Certificate};

/// The folder that `e2e/apiserver` made: `PORTREEVE_APISERVER`, else what it prints now.
///
/// # Panics
/// When there is none and it cannot be made.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(folder) = std::env::var_os("PORTREEVE_APISERVER").map(PathBuf::from) {
            let made = folder.join("versions").is_file();
            assert!(made, "PORTREEVE_APISERVER says {}: e2e/apiserver made none", folder.display());
            return folder;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apiserver");
        let output = Command::new(&script).output();
        let output = output.unwrap_or_else(|error| panic!("{} does not run: {error}", script.display()));
        let said = String::from_utf8_lossy(&output.stderr);
        let why = "this test needs an API server: PORTREEVE_APISERVER names none, and e2e/apiserver could not make one";
        assert!(output.status.success(), "{why}:\n{said}");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}

/// A port that is ours as long as this lives, also while nobody listens there.
#[derive(Debug)]
pub(super) struct Reserved {
    _bound: TcpSocket,
    pub(super) address: SocketAddr,
}

impl Reserved {
    /// Takes a free one of loopback, in the network namespace of this thread.
    pub(super) fn new() -> Self {
        let bound = reusable(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("loopback has free ports");
        let address = bound.local_addr().expect("it is bound");
        Self { _bound: bound, address }
    }
}

/// A socket that is bound beside others which do not listen.
pub(super) fn reusable(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A thread that starts processes, and with which they end: however this program ends, they do not stay.
#[derive(Debug)]
struct Keeper {
    orders: mpsc::Sender<(Command, mpsc::Sender<io::Result<Child>>)>,
}

impl Keeper {
    fn new() -> Self {
        let (orders, received) = mpsc::channel::<(Command, mpsc::Sender<io::Result<Child>>)>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                // Who asked is waiting.
                let _ = answer.send(command.spawn());
            }
        });
        Self { orders }
    }

    fn spawn(&self, program: &Path, arguments: &[String], log: &Path) -> Child {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("the directory takes files");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments).stdin(Stdio::null());
        command.stdout(file.try_clone().expect("a file is open")).stderr(file);
        let (answer, answered) = mpsc::channel();
        self.orders.send((command, answer)).expect("the thread lives as long as this");
        answered.recv().expect("it answers").expect("setpriv of util-linux")
    }
}

/// Where the processes find what they need.
#[derive(Debug)]
pub(super) struct Setup<'s> {
    /// A directory of their own.
    pub(super) directory: &'s Path,
    pub(super) authority: &'s Authority,
    /// What the API server shows to clients.
    pub(super) certificate: &'s Certificate,
    /// The common name of the client whose word on who somebody is counts.
    pub(super) proxy: &'s str,
    /// A kubeconfig file of the core API that the API server asks.
    pub(super) core: &'s Path,
}

/// etcd and the API server, of which one may be down.
#[derive(Debug)]
pub(super) struct Processes {
    keeper: Keeper,
    directory: PathBuf,
    etcd_client: Reserved,
    _etcd_peer: Reserved,
    server: Reserved,
    arguments: Vec<String>,
    etcd: Child,
    running: Option<Child>,
}

impl Processes {
    /// Starts both.
    ///
    /// # Panics
    /// When `e2e/apiserver` made nothing that runs.
    pub(super) fn start(setup: &Setup<'_>) -> Self {
        let (etcd_client, etcd_peer, server) = (Reserved::new(), Reserved::new(), Reserved::new());
        let keeper = Keeper::new();
        let url = |port: &Reserved| format!("http://{}", port.address);
        let file = |path: &Path| path.display().to_string();
        let etcd = keeper.spawn(
            &programs().join("bin/etcd"),
            &[
                format!("--data-dir={}", setup.directory.join("etcd").display()),
                format!("--listen-client-urls={}", url(&etcd_client)),
                format!("--advertise-client-urls={}", url(&etcd_client)),
                format!("--listen-peer-urls={}", url(&etcd_peer)),
                format!("--initial-advertise-peer-urls={}", url(&etcd_peer)),
                format!("--initial-cluster=default={}", url(&etcd_peer)),
                // The machine stays on as long as the test does.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
            &setup.directory.join("etcd.log"),
        );
        let arguments = vec![
            format!("--etcd-servers={}", url(&etcd_client)),
            // When history is forgotten is for a test to say.
            "--etcd-compaction-interval=0".to_owned(),
            format!("--bind-address={}", server.address.ip()),
            format!("--secure-port={}", server.address.port()),
            format!("--tls-cert-file={}", file(&setup.certificate.certificate)),
            format!("--tls-private-key-file={}", file(&setup.certificate.key)),
            // Who somebody is, the proxy in front says, as an aggregating API server does; what they may, the core API.
            format!("--requestheader-client-ca-file={}", file(&setup.authority.certificate())),
            format!("--requestheader-allowed-names={}", setup.proxy),
            "--authentication-skip-lookup".to_owned(),
            format!("--authentication-kubeconfig={}", file(setup.core)),
            format!("--authorization-kubeconfig={}", file(setup.core)),
            format!("--kubeconfig={}", file(setup.core)),
            // Its FlowSchemas would be of a core API, too.
            "--enable-priority-and-fairness=false".to_owned(),
        ];
        let directory = setup.directory.to_owned();
        let mut processes =
            Self { keeper, directory, etcd_client, _etcd_peer: etcd_peer, server, arguments, etcd, running: None };
        processes.start_server();
        processes
    }

    /// Where the API server listens.
    pub(super) fn server(&self) -> SocketAddr {
        self.server.address
    }

    /// Where etcd listens.
    pub(super) fn etcd(&self) -> SocketAddr {
        self.etcd_client.address
    }

    /// Starts the API server, where it does not run.
    pub(super) fn start_server(&mut self) {
        if self.running.is_none() {
            let program = programs().join("bin/apiextensions-apiserver");
            self.running = Some(self.keeper.spawn(&program, &self.arguments, &self.directory.join("apiserver.log")));
        }
    }

    /// Kills the API server.
    pub(super) fn kill_server(&mut self) {
        if let Some(mut child) = self.running.take() {
            // One that ended by itself is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What both said last, for a failure's sake, and whether they ended.
    pub(super) fn complaints(&mut self) -> String {
        let mut all = String::new();
        let ended = |child: &mut Child| matches!(child.try_wait(), Ok(Some(_)));
        let server = self.running.as_mut().is_none_or(ended);
        for (name, ended) in [("etcd", ended(&mut self.etcd)), ("apiserver", server)] {
            let text = std::fs::read_to_string(self.directory.join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
            all.push_str(&format!("--- {name}{}:\n{last}\n", if ended { ", which has ended" } else { "" }));
        }
        all
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill_server();
        // One that ended by itself is as good.
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}
