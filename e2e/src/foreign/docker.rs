//! Docker with a daemon and storage of its own, and without what it does to a machine's network.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Map, Value, json};

use super::differences::Difference;
use super::facts::compare;
use super::{Enclosure, Facts, IMAGE, Peers, Podman};
use crate::agent::Answer;
use crate::wait::wait_until;

/// A daemon in an enclosure, and its client, which has it use one of the enclosure's runtimes.
#[derive(Debug)]
pub struct Docker<'e> {
    enclosure: &'e Enclosure,
    socket: String,
    daemon: Child,
    runtime: &'static str,
}

impl<'e> Docker<'e> {
    /// The runtime that it uses when it is not told another.
    const OWN: &'static str = "runc";

    /// Starts the daemon and waits until it answers; it ends with the enclosure.
    ///
    /// # Panics
    /// When it does not run here.
    pub fn install(enclosure: &'e Enclosure) -> Self {
        let folder = enclosure.path("docker");
        std::fs::create_dir(&folder).expect("a folder for docker");
        let mut command = enclosure.command(enclosure.peers.program("dockerd"));
        command.args(Self::arguments(&folder));
        let runtimes: Map<String, Value> = enclosure
            .runtimes()
            .into_iter()
            // That one it has by itself.
            .filter(|(name, _)| *name != Self::OWN)
            .map(|(name, path)| (name.to_owned(), json!({ "path": path })))
            .collect();
        let settings = json!({ "runtimes": runtimes, "exec-opts": ["native.cgroupdriver=cgroupfs"] });
        std::fs::write(folder.join("daemon.json"), settings.to_string()).expect("writing docker's settings");
        command.args(["--cgroup-parent", &enclosure.cgroup]);
        let log = File::create(folder.join("log")).expect("a file for the log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = command.spawn().expect("nsenter of util-linux");
        let docker = Self { enclosure, socket: Self::socket(&folder), daemon, runtime: Self::OWN };
        wait_until("docker answers", 60, || {
            let answer = docker.call(&["version"]);
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            if answer.code == 0 { Ok(()) } else { Err(format!("{}{}", answer.stderr, log())) }
        });
        docker
    }

    /// The arguments of a daemon that has all that is its own in `folder`.
    ///
    /// # Panics
    /// When nothing can be written there.
    #[must_use]
    pub fn arguments(folder: &Path) -> Vec<OsString> {
        std::fs::write(folder.join("daemon.json"), "{}").expect("writing docker's settings");
        let own =
            [("--data-root", "root"), ("--exec-root", "exec"), ("--pidfile", "pid"), ("--config-file", "daemon.json")];
        let own = own.into_iter().flat_map(|(flag, name)| [flag.into(), folder.join(name).into()]);
        let plain = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"];
        let plain = plain.into_iter().chain(["--userland-proxy=false", "--host"]).map(OsString::from);
        own.chain(plain).chain([Self::socket(folder).into()]).collect()
    }

    /// Where such a daemon listens.
    #[must_use]
    pub fn socket(folder: &Path) -> String {
        format!("unix://{}/socket", folder.display())
    }

    /// Runs a command of the client to its end.
    #[must_use]
    pub fn call(&self, arguments: &[&str]) -> Answer {
        let mut command = self.enclosure.command(self.enclosure.peers.program("docker"));
        command.args(["--host", &self.socket]).args(arguments);
        self.enclosure.finish(command, "")
    }

    /// The enclosure in which it runs.
    #[must_use]
    pub fn enclosure(&self) -> &Enclosure {
        self.enclosure
    }

    /// `run`, in the foreground, without a network.
    #[must_use]
    pub fn run(&self, flags: &[&str], program: &[&str]) -> Answer {
        self.make(&["run", "--rm"], flags, program)
    }

    /// The prober's report from a container of its own.
    #[must_use]
    pub fn report(&self, flags: &[&str]) -> Answer {
        self.run(flags, &["/prober", "report"])
    }

    /// Starts [`Podman::TRAPS`] under a name, and waits until it waits.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_waiting(&self, name: &str, flags: &[&str]) {
        self.make(&["run", "--detach", "--name", name], flags, &["sh", "-c", Podman::TRAPS]).ok();
        wait_until(&format!("{name} is ready"), 30, || {
            let logs = self.call(&["logs", name]);
            if logs.stdout.contains("ready") { Ok(()) } else { Err(format!("{logs:?}")) }
        });
    }

    fn make(&self, verb: &[&str], flags: &[&str], program: &[&str]) -> Answer {
        let start = [verb, &["--runtime", self.runtime, "--network", "none"]].concat();
        self.call(&[&start, flags, &[IMAGE], program].concat())
    }
}

/// Carries out `case` with docker and each runtime, and compares what was seen; returns what was seen of ours.
///
/// # Panics
/// When ours differs from another and the table does not say why, or when the table says that it must, and it does not.
pub fn docker_sees(test: &str, case: impl Fn(&Docker<'_>, &mut Facts)) -> Option<Facts> {
    let enclosure = Enclosure::new(Peers::for_test(test)?);
    let mut docker = Docker::install(&enclosure);
    let image = enclosure.image(&enclosure.root());
    docker.call(&["load", "--input", &image.tar.to_string_lossy()]).ok();
    let mut all = Vec::new();
    for (name, runtime) in enclosure.runtimes() {
        docker.runtime = name;
        let mut facts = enclosure.facts(&runtime);
        let before = enclosure.leftovers();
        case(&docker, &mut facts);
        facts.answer("containers at the end", &docker.call(&["ps", "--all", "--quiet"]));
        let left: Vec<_> = enclosure.leftovers().into_iter().filter(|one| !before.contains(one)).collect();
        facts.tell("left behind", left.join(" "));
        all.push((name, facts));
    }
    Some(compare(test, &Difference::all(), all))
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // This is nsenter; the daemon itself ends with the enclosure. Already gone is as good.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
