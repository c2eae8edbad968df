//! Who pulls: each with a store of its own, empty at first, that goes with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::measure::{Account, usage_file};
use portreeve_e2e::{Agent, Docker, Enclosure, Peers, World, built, cgroup_version, wait_until};

/// The programs that are compared, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    Portreeve,
    Containerd,
    Podman,
    Docker,
}

impl Program {
    /// What it is called in tables.
    pub(crate) fn label(self, peers: &Peers) -> String {
        match self {
            Self::Portreeve => "portreeve".to_owned(),
            Self::Containerd => format!("containerd {}", peers.version("containerd")),
            Self::Podman => format!("podman {}", peers.version("podman")),
            Self::Docker => format!("docker {}", peers.version("docker.io")),
        }
    }
}

/// Where they run, the agent apart, which asks for what is left in its world; and the stop-watch.
pub(crate) struct Ground {
    pub(crate) world: World,
    pub(crate) enclosure: Enclosure,
    pub(crate) peers: Peers,
    pub(crate) floor: PathBuf,
}

impl Ground {
    /// Makes a new one.
    pub(crate) fn new(peers: &Peers) -> Self {
        let enclosure = enclosure(peers);
        Self {
            world: World::new("images"),
            enclosure,
            peers: peers.clone(),
            floor: built("PORTREEVE_FLOOR", "examples/floor"),
        }
    }

    /// Those that need a registry.
    pub(crate) fn worlds(&self) -> [&World; 2] {
        [&self.world, self.enclosure.world()]
    }
}

/// Where podman and skopeo forget what they remember of blobs, wherever they keep the rest.
pub(crate) fn enclosure(peers: &Peers) -> Enclosure {
    let enclosure = Enclosure::new(peers.clone());
    enclosure.call(&["mount", "-t", "tmpfs", "none", "/var/lib"]).ok();
    enclosure
}

/// A program that runs, with what it has pulled so far.
pub(crate) struct Engine<'g> {
    ground: &'g Ground,
    // In the order in which they go: the cgroup can go only when nobody is in it any more.
    kind: Kind<'g>,
    account: Account,
    folder: PathBuf,
}

enum Kind<'g> {
    Portreeve(Box<Agent<'g>>),
    Containerd {
        nsenter: Child,
        daemon: Pid,
    },
    Podman,
    /// It has a containerd of its own besides.
    Docker {
        nsenter: Child,
        daemon: Pid,
    },
}

impl<'g> Engine<'g> {
    /// Starts a program whose store is empty.
    pub(crate) fn start(ground: &'g Ground, program: Program) -> Self {
        let folder = match program {
            // The agent's harness has a name of its own for it.
            Program::Portreeve => ground.world.path("agent"),
            _ => ground.enclosure.path("engine"),
        };
        std::fs::create_dir_all(&folder).expect("a directory for the engine");
        let (kind, account) = match program {
            Program::Portreeve => {
                // However full the disk is, what is measured stays.
                let agent = Agent::start_with(&ground.world, &["--image-gc-high-threshold-percent", "100"]);
                let account = Account::of(&agent);
                (Kind::Portreeve(Box::new(agent)), account)
            }
            Program::Containerd => start_containerd(ground, &folder),
            Program::Podman => {
                configure_podman(ground, &folder);
                (Kind::Podman, Account::new(&[]))
            }
            Program::Docker => start_docker(ground, &folder),
        };
        Self { ground, kind, account, folder }
    }

    /// The world in whose network it is.
    pub(crate) fn world(&self) -> &World {
        match &self.kind {
            Kind::Portreeve(_) => &self.ground.world,
            Kind::Containerd { .. } | Kind::Podman | Kind::Docker { .. } => self.ground.enclosure.world(),
        }
    }

    /// By which its processor time is counted.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// The process that does the work for its clients, if it is not they.
    pub(crate) fn daemon(&self) -> Option<Pid> {
        match &self.kind {
            Kind::Portreeve(agent) => Some(agent.pid()),
            Kind::Containerd { daemon, .. } | Kind::Docker { daemon, .. } => Some(*daemon),
            Kind::Podman => None,
        }
    }

    /// The client that pulls `reference`, under the stop-watch.
    pub(crate) fn pull(&self, reference: &str) -> Command {
        let peer = |name: &str| {
            let mut command = self.timed(|floor| self.ground.enclosure.command(floor));
            command.arg(self.ground.peers.program(name));
            command
        };
        match &self.kind {
            Kind::Portreeve(agent) => {
                let verb = agent.verb(&["image", "pull", reference]);
                let mut command = self.timed(|floor| Command::new(floor));
                command.arg(verb.get_program()).args(verb.get_args());
                command
            }
            Kind::Containerd { .. } => {
                // By its transfer service, as ctr has it since containerd 2.
                let mut command = peer("ctr");
                command.arg("--address").arg(self.folder.join("socket"));
                command.args(["--namespace", "k8s.io", "images", "pull", "--plain-http", reference]);
                command
            }
            Kind::Podman => {
                let mut command = peer("podman");
                for variable in ["CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF"] {
                    command.env(variable, self.folder.join(variable));
                }
                command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
                for (flag, name) in [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "libpod")] {
                    command.arg(flag).arg(self.folder.join(name));
                }
                command.args(["--cgroup-manager", "cgroupfs", "pull", "--quiet", "--tls-verify=false", reference]);
                command
            }
            Kind::Docker { .. } => {
                let mut command = peer("docker");
                // It takes a registry on loopback for one without TLS.
                command.args(["--host", &Docker::socket(&self.folder), "pull", "--quiet", reference]);
                command
            }
        }
    }

    fn timed(&self, command: impl FnOnce(&Path) -> Command) -> Command {
        let join = if cgroup_version() == 2 { "cgroup.procs" } else { "tasks" };
        let mut command = command(&self.ground.floor);
        command.arg("time").arg(self.account.cgroup().join(join)).arg(usage_file(self.account.cgroup())).arg("");
        command
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        match &mut self.kind {
            Kind::Portreeve(agent) if !std::thread::panicking() => {
                let left = agent.erase();
                assert!(left.is_empty(), "the agent left behind: {left:?}");
            }
            Kind::Portreeve(_) | Kind::Podman => {}
            Kind::Containerd { nsenter, daemon } | Kind::Docker { nsenter, daemon } => {
                // One that has ended by itself has ended.
                let _ = kill(*daemon, Signal::SIGTERM);
                let _ = nsenter.wait();
            }
        }
    }
}

fn start_containerd<'g>(ground: &Ground, folder: &Path) -> (Kind<'g>, Account) {
    let settings = format!(
        "version = 3\nroot = '{0}/root'\nstate = '{0}/state'\ndisabled_plugins = ['io.containerd.cri.v1.images', \
         'io.containerd.cri.v1.runtime', 'io.containerd.grpc.v1.cri', 'io.containerd.nri.v1.nri', \
         'io.containerd.internal.v1.opt']\n[grpc]\naddress = '{0}/socket'\n",
        folder.display()
    );
    std::fs::write(folder.join("containerd.toml"), settings).expect("writing containerd's settings");
    let account = Account::new(&[]);
    let enclosure = &ground.enclosure;
    let mut command = account.command(|shell| enclosure.command(shell), ground.peers.program("containerd"));
    command.arg("--config").arg(folder.join("containerd.toml")).stdin(Stdio::null()).stdout(Stdio::null());
    let log = File::create(folder.join("containerd.log")).expect("a file for containerd's log");
    let nsenter = command.stderr(log).spawn().expect("nsenter of util-linux");
    let (ctr, socket) = (ground.peers.program("ctr"), folder.join("socket"));
    let daemon = wait_until("containerd answers", 30, || {
        let answer = enclosure.call(&[&ctr.to_string_lossy(), "--address", &socket.to_string_lossy(), "version"]);
        let daemon = account.processes("containerd").first().and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        daemon.filter(|_| answer.code == 0).ok_or(answer.stderr)
    });
    (Kind::Containerd { nsenter, daemon }, account)
}

fn start_docker<'g>(ground: &Ground, folder: &Path) -> (Kind<'g>, Account) {
    let account = Account::new(&[]);
    let enclosure = &ground.enclosure;
    let mut command = account.command(|shell| enclosure.command(shell), ground.peers.program("dockerd"));
    command.args(Docker::arguments(folder));
    let log = File::create(folder.join("docker.log")).expect("a file for docker's log");
    let nsenter =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("nsenter of util-linux");
    let (client, socket) = (ground.peers.program("docker"), Docker::socket(folder));
    let daemon = wait_until("docker answers", 60, || {
        let answer = enclosure.call(&[&client.to_string_lossy(), "--host", &socket, "version"]);
        let daemon = account.processes("dockerd").first().and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        daemon.filter(|_| answer.code == 0).ok_or_else(|| {
            format!("{}{}", answer.stderr, std::fs::read_to_string(folder.join("docker.log")).unwrap_or_default())
        })
    });
    (Kind::Docker { nsenter, daemon }, account)
}

fn configure_podman(ground: &Ground, folder: &Path) {
    let programs = ground.peers.program("conmon");
    let settings = format!(
        "[engine]\nconmon_path = [\"{}\"]\nhelper_binaries_dir = [\"{}\"]\nevents_logger = \"file\"\n",
        programs.display(),
        programs.parent().expect("a folder of programs").display(),
    );
    let write = |path: PathBuf, text: &str| std::fs::write(path, text).expect("writing podman's settings");
    write(folder.join("CONTAINERS_CONF"), &settings);
    write(folder.join("CONTAINERS_STORAGE_CONF"), "[storage]\ndriver = \"overlay\"\n");
    write(folder.join("CONTAINERS_REGISTRIES_CONF"), "");
    let policy = ground.enclosure.path("home/.config/containers/policy.json");
    write(policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
}
