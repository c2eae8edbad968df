//! An agent in a world, and the client verbs that speak with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::census::Census;
use crate::image::Image;
use crate::wait::wait_until;
use crate::world::{World, binary};

/// The reference of the preloaded busybox image.
pub const BUSYBOX: &str = "test.local/busybox:1";

/// Puts the busybox image where the agent of `world` will find it at its start.
///
/// # Panics
/// When the directory cannot be written.
pub fn preload_busybox(world: &World) {
    let images = world.path("agent/images");
    std::fs::create_dir_all(&images).expect("the agent's directories");
    let _image = Image::busybox(&images, BUSYBOX);
}

/// What a client verb left.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its exit code; -1 after a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Answer {
    /// The standard output of a verb that succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[expect(clippy::must_use_candidate, reason = "often called for its check alone")]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running agent with directories of its own.
#[derive(Debug)]
pub struct Agent<'w> {
    world: &'w World,
    directory: PathBuf,
    arguments: Vec<String>,
    /// Where it looks for programs, before all else.
    programs: Option<PathBuf>,
    process: Option<Child>,
}

impl<'w> Agent<'w> {
    /// Starts an agent in `world` and waits until it answers.
    #[must_use]
    pub fn start(world: &'w World) -> Self {
        Self::start_with(world, &[])
    }

    /// Starts an agent with further arguments and waits until it answers.
    ///
    /// # Panics
    /// When it does not within 20 s.
    #[must_use]
    pub fn start_with(world: &'w World, arguments: &[&str]) -> Self {
        let directory = world.path("agent");
        for folder in ["manifests", "images"] {
            std::fs::create_dir_all(directory.join(folder)).expect("the agent's directories");
        }
        let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
        let mut agent = Self { world, directory, arguments, programs: None, process: None };
        agent.launch();
        agent
    }

    /// Starts an agent that has [`BUSYBOX`] preloaded.
    #[must_use]
    pub fn with_busybox(world: &'w World) -> Self {
        preload_busybox(world);
        Self::start(world)
    }

    /// Has it find programs of this directory first, from its next launch on.
    pub fn use_programs(&mut self, directory: &Path) {
        self.programs = Some(directory.to_owned());
    }

    /// Gives it other arguments from its next launch on.
    pub fn use_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&text| text.to_owned()).collect();
    }

    /// Starts the process again after [`kill`](Self::kill) or [`terminate`](Self::terminate).
    ///
    /// # Panics
    /// When it does not answer within 20 s.
    pub fn launch(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.directory.join("agent.log"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = self.programs.iter().cloned().chain(std::env::split_paths(&path));
        let child = self
            .world
            .command(binary())
            .arg("agent")
            .args(["--listen", "127.0.0.1:0", "--log", "info,portreeve=debug"])
            .arg("--manifests")
            .arg(self.manifests())
            .arg("--root")
            .arg(self.root())
            .arg("--run")
            .arg(self.run_dir())
            .arg("--preload")
            .arg(self.directory.join("images"))
            .args(&self.arguments)
            .env("PATH", std::env::join_paths(path).expect("directories without colons"))
            // What further arguments may say otherwise.
            .env("PORTREEVE_NODE_NAME", "node-1")
            // Not those of the machine.
            .env("PORTREEVE_CRI_CNI_CONF_DIR", self.networks())
            .env("PORTREEVE_CRI_CDI_SPEC_DIR", self.device_specifications())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the agent's log"))
            .spawn()
            .expect("the agent starts");
        self.process = Some(child);
        wait_until("the agent answers", 20, || {
            let ended = self.process.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(ended.is_none(), "the agent ended with {ended:?}:\n{}", self.log());
            let answer = self.client(&["get", "pods", "-A"]);
            if answer.code == 0 { Ok(()) } else { Err(answer.stderr) }
        });
    }

    /// Runs a client verb and waits for it.
    ///
    /// # Panics
    /// When the binary cannot be run at all.
    #[must_use]
    pub fn client(&self, arguments: &[&str]) -> Answer {
        self.verb(arguments).stdin(Stdio::null()).output().expect("the client verb runs").into()
    }

    /// A client verb that the caller starts.
    #[must_use]
    pub fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("--run").arg(self.run_dir()).args(arguments);
        command
    }

    /// A pod as the agent shows it; `None` when there is none of that name.
    ///
    /// # Panics
    /// When the answer is not JSON.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<Value> {
        let answer = self.client(&["get", "pod", name, "-o", "json"]);
        (answer.code == 0).then(|| serde_json::from_str(&answer.stdout).expect("a pod in JSON"))
    }

    /// Every pod of every namespace.
    ///
    /// # Panics
    /// When the agent does not answer with a list.
    #[must_use]
    pub fn pods(&self) -> Vec<Value> {
        let text = self.client(&["get", "pods", "-A", "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&text).expect("a list of pods in JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until the pod is Ready, and returns it.
    pub fn wait_ready(&self, name: &str) -> Value {
        self.wait_pod(name, "is ready", |pod| condition(pod, "Ready") == Some("True"))
    }

    /// Waits until the pod is as `predicate` says, and returns it.
    ///
    /// # Panics
    /// After 60 s, with the pod, its events and the agent's log.
    pub fn wait_pod(&self, name: &str, what: &str, predicate: impl Fn(&Value) -> bool) -> Value {
        wait_until(&format!("pod {name} {what}"), 60, || {
            let pod = self.pod(name).unwrap_or(Value::Null);
            if predicate(&pod) {
                return Ok(pod);
            }
            let events = self.client(&["get", "events", "-A"]).stdout;
            Err(format!("{}\n{events}\n{}", pod["status"], tail(&self.log(), 40)))
        })
    }

    /// Waits until there is no pod of that name any more.
    pub fn wait_gone(&self, name: &str) {
        wait_until(&format!("pod {name} is gone"), 60, || match self.pod(name) {
            None => Ok(()),
            Some(pod) => Err(format!("{}\n{}", pod["status"], tail(&self.log(), 40))),
        });
    }

    /// Writes a manifest as an editor does: beside, then renamed in.
    ///
    /// # Panics
    /// When it cannot.
    pub fn drop_manifest(&self, file: &str, text: &str) {
        let target = self.manifests().join(file);
        let beside = self.directory.join(format!("{file}.new"));
        std::fs::write(&beside, text).expect("writing a manifest");
        std::fs::rename(&beside, &target).expect("renaming a manifest in");
    }

    /// Removes a manifest.
    ///
    /// # Panics
    /// When it is not there.
    pub fn remove_manifest(&self, file: &str) {
        std::fs::remove_file(self.manifests().join(file)).expect("removing a manifest");
    }

    /// Where specifications of devices are; not made.
    #[must_use]
    pub fn device_specifications(&self) -> PathBuf {
        self.directory.join("cdi")
    }

    /// Where networks of CNI plugins are configured; not made.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.directory.join("net.d")
    }

    /// The directory of manifests.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// What survives a reboot.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// What a reboot ends.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// The agent's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }

    /// Process id of the agent.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> Pid {
        let child = self.process.as_ref().expect("the agent runs");
        Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive"))
    }

    /// SIGKILL, at whatever instruction the agent is.
    pub fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// SIGTERM, and waits for the end; the containers go on.
    pub fn terminate(&mut self) {
        self.end(Signal::SIGTERM);
    }

    fn end(&mut self, signal: Signal) {
        if self.process.is_none() {
            return;
        }
        let pid = self.pid();
        let mut child = self.process.take().expect("checked above");
        // One that has ended by itself is ended; its process id may be another's by now.
        if child.try_wait().expect("asking for the agent's state").is_none() {
            kill(pid, signal).expect("signalling the agent");
        }
        let _status = child.wait().expect("waiting for the agent");
    }

    /// What a loss of power does, and a start after it: every process is killed, every mount, link, rule and cgroup
    /// goes, the run directory is empty, and the agent is started again.
    ///
    /// # Panics
    /// When something of it cannot be taken away, or the agent does not start again.
    pub fn lose_power(&mut self) {
        self.kill();
        wait_until("every process is gone", 20, || {
            let census = self.census();
            // Shims first: one that lives would tidy up after its container.
            let shims = census.processes.iter().filter_map(|process| process.split(' ').next());
            for pid in shims.chain(census.contained.iter().map(String::as_str)) {
                // One that has just ended is as good.
                let _ = kill(Pid::from_raw(pid.parse().expect("a process id")), Signal::SIGKILL);
            }
            let left = census.processes.len() + census.contained.len();
            if left == 0 { Ok(()) } else { Err(format!("{census:?}")) }
        });
        let census = self.census();
        for point in census.mounts.iter().rev() {
            self.world.sh(&format!("umount -l '{point}'"));
        }
        for link in &census.links {
            // Of a pair that went with its other end there is nothing to remove.
            self.world.sh(&format!("ip link delete '{link}' 2>/dev/null || true"));
        }
        for table in &census.tables {
            self.world.sh(&format!("nft delete {table}"));
        }
        for cgroup in census.cgroups.iter().rev() {
            std::fs::remove_dir(cgroup).expect("removing an empty cgroup");
        }
        std::fs::remove_dir_all(self.run_dir()).expect("removing the run directory");
        self.launch();
    }

    /// Everything of this agent that exists on the machine.
    #[must_use]
    pub fn census(&self) -> Census {
        Census::take(self.world, &self.run_dir())
    }

    /// Ends the agent and everything that it made, and tells what is left after up to 10 s.
    pub fn erase(&mut self) -> Census {
        self.terminate();
        self.arguments.push("--ephemeral".to_owned());
        self.launch();
        self.terminate();
        let begun = std::time::Instant::now();
        loop {
            let census = self.census();
            if census.is_empty() || begun.elapsed() > crate::patience(10) {
                return census;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log, last lines ---\n{}", tail(&self.log(), 60));
            // A test that failed still leaves the machine as it found it, as far as the agent can.
            self.terminate();
            self.arguments.push("--ephemeral".to_owned());
            let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.launch();
                self.terminate();
            }));
            if again.is_err() {
                eprintln!("the agent could not clean up after the failed test: {:?}", self.census());
            }
        } else if self.process.is_some() {
            let left = self.erase();
            assert!(left.is_empty(), "the agent left behind: {left:?}");
        }
    }
}

/// The status of a pod's condition.
#[must_use]
pub fn condition<'p>(pod: &'p Value, kind: &str) -> Option<&'p str> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
