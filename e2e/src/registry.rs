//! A real registry, Debian's `docker-registry`, on the world's loopback.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::image::Image;
use crate::wait::wait_until;
use crate::world::World;

/// The name and password that a closed registry asks for.
pub const LOGIN: (&str, &str) = ("porter", "open sesame");
/// The password above as htpasswd has it.
const HTPASSWD: &str = "porter:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

/// A running registry.
#[derive(Debug)]
pub struct Registry<'w> {
    world: &'w World,
    process: Option<Child>,
    port: u16,
    storage: PathBuf,
    closed: bool,
}

impl<'w> Registry<'w> {
    /// Starts one on `port` of the world's loopback.
    ///
    /// # Panics
    /// When Debian's docker-registry is not installed, or it does not answer.
    #[must_use]
    pub fn start(world: &'w World, port: u16) -> Self {
        Self::start_with(world, port, &world.path(&format!("registry-{port}")), false)
    }

    /// Starts one that keeps its blobs in `storage`, or has them there already.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn serving(world: &'w World, port: u16, storage: &Path) -> Self {
        Self::start_with(world, port, storage, false)
    }

    /// Starts one that answers only to [`LOGIN`], by HTTP Basic authentication.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn closed(world: &'w World, port: u16) -> Self {
        Self::start_with(world, port, &world.path(&format!("registry-{port}")), true)
    }

    fn start_with(world: &'w World, port: u16, storage: &Path, closed: bool) -> Self {
        std::fs::create_dir_all(storage).expect("the registry's directory");
        let passwords = world.path(&format!("registry-{port}.htpasswd"));
        std::fs::write(&passwords, HTPASSWD).expect("the registry's passwords");
        let auth = if closed {
            format!("auth: {{htpasswd: {{realm: harbour, path: {}}}}}\n", passwords.display())
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n{auth}",
            storage.display()
        );
        std::fs::write(world.path(&format!("registry-{port}.yml")), config).expect("the registry's configuration");
        let mut registry = Self { world, process: None, port, storage: storage.to_owned(), closed };
        registry.resume();
        registry
    }

    /// Starts the process again after [`stop`](Self::stop).
    ///
    /// # Panics
    /// When it does not answer.
    pub fn resume(&mut self) {
        let child = self
            .world
            .command("docker-registry")
            .arg("serve")
            .arg(self.world.path(&format!("registry-{}.yml", self.port)))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        self.process = Some(child);
        let login = if self.closed { format!("{}:{}@", LOGIN.0, LOGIN.1.replace(' ', "%20")) } else { String::new() };
        wait_until("the registry answers", 20, || {
            self.world.fetch(&format!("http://{login}127.0.0.1:{}/v2/", self.port))
        });
    }

    /// Stops it: connections are refused from now on.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // A registry that ended by itself is stopped as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Host and port, the first part of a reference.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it keeps its blobs.
    #[must_use]
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// Pushes an image as `repository:tag` and returns the whole reference.
    ///
    /// # Panics
    /// When Debian's skopeo is not installed or fails.
    pub fn push(&self, image: &Image, name: &str) -> String {
        let reference = format!("{}/{name}", self.host());
        let mut command: Command = self.world.command("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        if self.closed {
            command.arg("--dest-creds").arg(format!("{}:{}", LOGIN.0, LOGIN.1));
        }
        let output = command
            .arg(format!("docker-archive:{}", image.tar.display()))
            .arg(format!("docker://{reference}"))
            .output()
            .expect("skopeo is installed");
        assert!(output.status.success(), "pushing {reference}: {}", String::from_utf8_lossy(&output.stderr));
        reference
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
