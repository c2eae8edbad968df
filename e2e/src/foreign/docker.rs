//! Docker with a daemon and storage of its own, and without what it does to a machine's network.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};

use super::Enclosure;
use crate::agent::Answer;
use crate::wait::wait_until;

/// A daemon in an enclosure, and its client.
#[derive(Debug)]
pub struct Docker<'e> {
    enclosure: &'e Enclosure,
    socket: String,
    daemon: Child,
}

impl<'e> Docker<'e> {
    /// Starts the daemon and waits until it answers; it ends with the enclosure.
    ///
    /// # Panics
    /// When it does not run here.
    pub fn install(enclosure: &'e Enclosure) -> Self {
        let folder = enclosure.path("docker");
        std::fs::create_dir(&folder).expect("a folder for docker");
        let mut command = enclosure.command(enclosure.peers.program("dockerd"));
        command.args(Self::arguments(&folder)).args(["--cgroup-parent", &enclosure.cgroup]);
        let log = File::create(folder.join("log")).expect("a file for the log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = command.spawn().expect("nsenter of util-linux");
        let docker = Self { enclosure, socket: Self::socket(&folder), daemon };
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
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // This is nsenter; the daemon itself ends with the enclosure. Already gone is as good.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
