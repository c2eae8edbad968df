//! podman of Debian sid, as `e2e/peers` fetches it, with nothing of this machine's in use.

use std::{fs, io::Write, path::PathBuf, process::Command};

use tempfile::TempDir;

/// Its storage is gone with this value.
pub struct Podman {
    peers: PathBuf,
    dir: TempDir,
    driver: &'static str,
}

impl Podman {
    /// One that stores images by `driver`; says so when there is none.
    pub fn find(driver: &'static str) -> Option<Self> {
        let Some(peers) = std::env::var_os("PORTREEVE_PEERS") else {
            let why = "SKIPPED: podman is not there: PORTREEVE_PEERS=$(e2e/peers) fetches it";
            let _ = writeln!(std::io::stderr(), "{why}");
            return None;
        };
        let this = Self { peers: peers.into(), dir: tempfile::tempdir().unwrap(), driver };
        let file = |name: &str, text: &str| {
            let path = this.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file(".config/containers/registries.d/all.yaml", "default-docker: {use-sigstore-attachments: true}\n");
        file(".config/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        file("containers.conf", &format!("[engine]\nhelper_binaries_dir=['{}']\n", this.peers.join("bin").display()));
        file("passphrase", "");
        Some(this)
    }

    /// The path of a file of its own.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// What it prints, or what it complains of.
    pub fn run(&self, args: &[&str]) -> Result<String, String> {
        let program = |name: &str| self.peers.join("bin").join(name);
        let mut command = Command::new(program("podman"));
        command.arg("--conmon").arg(program("conmon")).arg("--runtime").arg(program("crun"));
        for (flag, place) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.args([flag, &self.path(place)]);
        }
        command.args(["--storage-driver", self.driver]).args(args);
        command.env("HOME", self.dir.path()).env("CONTAINERS_CONF", self.path("containers.conf"));
        let output = command.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }
}
