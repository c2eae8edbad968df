//! A runtime with runc's command line, driven as an engine does.
//!
//! The program is `PORTREEVE_RUNTIME`, a path or a name, so that other runtimes can be asked the same questions; else
//! it is the binary under test by its second name, `portreeve-runtime`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::agent::Answer;
use crate::bundle::Bundle;
use crate::report::{Attempts, Report};
use crate::skipped_without_root;
use crate::wait::{patience, wait_until};
use crate::world::{World, binary};

/// Where the machine's cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A runtime in a world of its own, with a state directory and a cgroup for its containers.
///
/// Dropped, it deletes its containers and says what they left behind: files of the state directory, cgroups, mounts,
/// processes.
#[derive(Debug)]
pub struct Runtime {
    world: World,
    program: PathBuf,
    root: PathBuf,
    flags: Vec<String>,
    cgroup: String,
    mounts: Vec<String>,
    calls: Cell<usize>,
    bundles: RefCell<Vec<String>>,
}

impl Runtime {
    /// Makes one for the test of this name; nothing, said loudly, where the test cannot run.
    #[must_use]
    pub fn for_test(test: &str) -> Option<Self> {
        (!skipped_without_root(test)).then(Self::new)
    }

    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let world = World::new("runtime");
        let other = std::env::var_os("PORTREEVE_RUNTIME").map(PathBuf::from);
        if other.is_some() && Path::new(CGROUPS).join("unified").exists() {
            // Other runtimes take a mixture of both versions for the first one only when the second is out of sight.
            world.sh(&format!("mount -t tmpfs none {CGROUPS}/unified"));
        }
        let program = other.unwrap_or_else(|| {
            let link = world.path("portreeve-runtime");
            let binary = binary().canonicalize().expect("the binary's path");
            std::os::unix::fs::symlink(binary, &link).expect("a link to the binary");
            link
        });
        std::fs::create_dir(world.path("calls")).expect("a directory for what calls say");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            root: world.path("state"),
            flags: Vec::new(),
            mounts: world.mounts(),
            world,
            program,
            cgroup: format!("/prt-e2e-{}-{number}", std::process::id()),
            calls: Cell::new(0),
            bundles: RefCell::default(),
        }
    }

    /// The world that it runs in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The program, by its path or name.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// From here on uses a copy of the program, in the world's directory, which may come to harm; says where it is.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn use_copy(&mut self) -> PathBuf {
        let found = self.world.sh(&format!("command -v {}", self.program.display()));
        let name = self.program.file_name().expect("a program has a name");
        let copy = self.world.path("copy").join(name);
        std::fs::create_dir_all(self.world.path("copy")).expect("a directory for the copy");
        std::fs::copy(found.trim(), &copy).expect("copying the program");
        self.program.clone_from(&copy);
        copy
    }

    /// From here on gives these flags before every verb.
    pub fn use_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    }

    /// Its state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cgroup above those of its containers, as a `cgroupsPath`.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A bundle whose program is the prober with these arguments.
    #[must_use]
    pub fn bundle(&self, arguments: &[&str]) -> Bundle {
        self.bundle_of(&[&["/prober"], arguments].concat())
    }

    /// A bundle with any program.
    #[must_use]
    pub fn bundle_of(&self, arguments: &[&str]) -> Bundle {
        let id = format!("c{}", self.bundles.borrow().len());
        let path = self.world.path(&format!("bundle-{id}"));
        let bundle = Bundle::make(path, &id, &format!("{}/{id}", self.cgroup), arguments);
        self.bundles.borrow_mut().push(id);
        bundle
    }

    /// A command of the runtime, inside its world.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command(&self.program);
        command.arg("--root").arg(&self.root).args(&self.flags).args(arguments);
        command
    }

    /// A command of the runtime that a shell line comes before: to open descriptors, say.
    #[must_use]
    pub fn command_after(&self, line: &str, arguments: &[&str]) -> Command {
        let mut command = self.world.command("sh");
        command.args(["-c", &format!("{line}; exec \"$@\""), "sh"]).arg(&self.program);
        command.arg("--root").arg(&self.root).args(arguments);
        command
    }

    /// Begins a command whose outputs go to files, so that a container may keep them.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn begin(&self, command: Command) -> Call {
        let number = self.calls.replace(self.calls.get() + 1);
        self.begin_to(command, &self.world.path(&format!("calls/{number}")))
    }

    fn begin_to(&self, mut command: Command, directory: &Path) -> Call {
        std::fs::create_dir_all(directory).expect("a directory for what a call says");
        let (out, err) = (directory.join("stdout"), directory.join("stderr"));
        command.stdout(File::create(&out).expect("a file for the output"));
        command.stderr(File::create(&err).expect("a file for the errors"));
        let child = command.spawn().expect("nsenter of util-linux");
        Call { said: format!("{command:?}"), child: Some(child), out, err }
    }

    /// Begins a command whose controlling terminal, and all of whose streams, are `terminal`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn begin_on(&self, terminal: &OwnedFd, arguments: &[&str]) -> Call {
        let mut command = self.world.command("setsid");
        command.args(["--ctty", "--wait"]).arg(&self.program).arg("--root").arg(&self.root).args(arguments);
        let stream = || Stdio::from(terminal.try_clone().expect("another descriptor"));
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let mut call = Call::from(command.spawn().expect("setsid of util-linux"));
        call.said = format!("{command:?}");
        call
    }

    /// Runs a verb to its end.
    #[must_use]
    pub fn call(&self, arguments: &[&str]) -> Answer {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null());
        self.begin(command).finish()
    }

    /// `create`, with further flags; the container's output goes to the bundle's.
    #[must_use]
    pub fn create(&self, bundle: &Bundle, flags: &[&str]) -> Answer {
        self.begin_create(bundle, flags).finish()
    }

    /// Begins `create`.
    #[must_use]
    pub fn begin_create(&self, bundle: &Bundle, flags: &[&str]) -> Call {
        self.begin_verb("create", bundle, flags)
    }

    /// `run` in the foreground, with further flags.
    #[must_use]
    pub fn run(&self, bundle: &Bundle, flags: &[&str]) -> Answer {
        self.begin_run(bundle, flags).finish()
    }

    /// Begins `run` in the foreground.
    #[must_use]
    pub fn begin_run(&self, bundle: &Bundle, flags: &[&str]) -> Call {
        self.begin_verb("run", bundle, flags)
    }

    fn begin_verb(&self, verb: &str, bundle: &Bundle, flags: &[&str]) -> Call {
        bundle.save();
        let path = bundle.path().to_str().expect("a path in UTF-8");
        let mut command = self.command(&[&[verb, "--bundle", path], flags, &[bundle.id()]].concat());
        command.stdin(Stdio::null());
        self.begin_to(command, bundle.path())
    }

    /// Runs the bundle and reads the report that its program gives.
    ///
    /// # Panics
    /// When the run fails.
    #[must_use]
    pub fn report(&self, bundle: &Bundle) -> Report {
        Report::parse(&self.run(bundle, &[]).ok())
    }

    /// Runs the bundle and tells how the operations that its program tries have ended.
    ///
    /// # Panics
    /// When the run fails.
    #[must_use]
    pub fn attempts(&self, bundle: &Bundle) -> Attempts {
        Attempts::parse(&self.run(bundle, &[]).ok())
    }

    /// Creates and starts the bundle, whose program is the prober with `wait` or `catch`, and waits until it is ready.
    ///
    /// # Panics
    /// When that fails.
    pub fn start_waiting(&self, bundle: &Bundle) {
        self.create(bundle, &[]).ok();
        self.call(&["start", bundle.id()]).ok();
        wait_until("the container's program is ready", 20, || {
            let said = bundle.output();
            if said.starts_with("\"ready\"\n") { Ok(()) } else { Err(said) }
        });
    }

    /// A waiting container that has come to `state`.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn waiting_in(&self, state: &str) -> Bundle {
        let bundle = self.bundle(&["wait"]);
        match state {
            "absent" => return bundle,
            "created" => drop(self.create(&bundle, &[]).ok()),
            _ => self.start_waiting(&bundle),
        }
        match state {
            "paused" => drop(self.call(&["pause", bundle.id()]).ok()),
            "stopped" => {
                self.call(&["kill", bundle.id(), "KILL"]).ok();
                self.wait_status(&bundle, "stopped");
            }
            _ => {}
        }
        assert_eq!(self.status(&bundle).as_deref(), Some(state));
        bundle
    }

    /// `exec` of a program in a container, with further flags.
    #[must_use]
    pub fn exec(&self, bundle: &Bundle, flags: &[&str], arguments: &[&str]) -> Answer {
        self.call(&[&["exec"], flags, &[bundle.id()], arguments].concat())
    }

    /// `exec` of the prober's report.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn exec_report(&self, bundle: &Bundle, flags: &[&str]) -> Report {
        Report::parse(&self.exec(bundle, flags, &["/prober", "report"]).ok())
    }

    /// What `state` says.
    ///
    /// # Panics
    /// When it fails or says no JSON.
    #[must_use]
    pub fn state(&self, bundle: &Bundle) -> Value {
        serde_json::from_str(&self.call(&["state", bundle.id()]).ok()).expect("a state in JSON")
    }

    /// The status of a container; nothing when there is none of this name.
    ///
    /// # Panics
    /// When the state is no JSON.
    #[must_use]
    pub fn status(&self, bundle: &Bundle) -> Option<String> {
        let answer = self.call(&["state", bundle.id()]);
        let state = (answer.code == 0).then(|| serde_json::from_str::<Value>(&answer.stdout).expect("JSON"))?;
        Some(state["status"].as_str().expect("a status").to_owned())
    }

    /// Waits until a container has this status.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_status(&self, bundle: &Bundle, status: &str) {
        wait_until(&format!("{} is {status}", bundle.id()), 20, || {
            let now = self.status(bundle);
            if now.as_deref() == Some(status) { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }

    /// The pid that `state` tells.
    ///
    /// # Panics
    /// When it tells none.
    #[must_use]
    pub fn pid(&self, bundle: &Bundle) -> Pid {
        let pid = self.state(bundle)["pid"].as_i64().expect("a pid");
        Pid::from_raw(pid.try_into().expect("a pid is a small number"))
    }

    /// A cgroup file of a container: under the first version `first` ("memory/memory.limit_in_bytes": controller and
    /// file), under the second `second`.
    #[must_use]
    pub fn cgroup_file(&self, bundle: &Bundle, first: &str, second: &str) -> PathBuf {
        let path = bundle.config()["linux"]["cgroupsPath"].as_str().unwrap_or_default().trim_start_matches('/');
        if cgroup_version() == 2 {
            return Path::new(CGROUPS).join(path).join(second);
        }
        let (controller, file) = first.split_once('/').unwrap_or((first, ""));
        Path::new(CGROUPS).join(controller).join(path).join(file)
    }

    /// The text of [`Self::cgroup_file`], without the end of its line.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn cgroup_value(&self, bundle: &Bundle, first: &str, second: &str) -> String {
        let path = self.cgroup_file(bundle, first, second);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim_end().to_owned()
    }

    /// What is left of containers that were deleted; empty when nothing is.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<_> = directories(&self.root).iter().map(|path| path.display().to_string()).collect();
        for cgroup in self.cgroups() {
            left.extend(directories(&cgroup).iter().map(|path| path.display().to_string()));
        }
        left.extend(self.world.mounts().into_iter().filter(|mount| !self.mounts.contains(mount)));
        left.extend(self.lingering());
        left
    }

    /// The processes in its world that do not end within a moment: one that was killed takes its time to go.
    #[must_use]
    pub fn lingering(&self) -> BTreeSet<String> {
        let begun = Instant::now();
        loop {
            let processes = self.world.processes();
            if processes.is_empty() || begun.elapsed() > patience(5) {
                return processes;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The cgroup of its containers in every hierarchy that has it.
    fn cgroups(&self) -> Vec<PathBuf> {
        let name = self.cgroup.trim_start_matches('/');
        cgroup_hierarchies().into_iter().map(|hierarchy| hierarchy.join(name)).filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let names = directories(&self.root).into_iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        for id in self.bundles.take().into_iter().chain(names).collect::<BTreeSet<_>>() {
            let mut command = self.command(&["delete", "--force", &id]);
            // One that was deleted, or never made, is as good as one that is now; one that cannot be is left behind.
            let deleting = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let _ = deleting.map(|child| ended(child, patience(30)));
        }
        let left = self.leftovers();
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// A command that was begun. Dropped before its end, it is killed; what it has started is its container's.
#[derive(Debug)]
pub struct Call {
    said: String,
    /// Until it was waited for.
    child: Option<Child>,
    out: PathBuf,
    err: PathBuf,
}

impl Call {
    fn child(&self) -> &Child {
        self.child.as_ref().expect("it was not waited for")
    }

    /// Its process.
    ///
    /// # Panics
    /// Never: the kernel's pids fit.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child().id().try_into().expect("a pid is a small number"))
    }

    /// Its standard input, if that is a pipe.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.as_mut().and_then(|child| child.stdin.take())
    }

    /// What it has said on its standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read(&self.out)
    }

    /// Waits until it has said `text`.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_for(&self, text: &str) {
        wait_until(&format!("`{}` says {text:?}", self.said), 20, || {
            let said = self.stdout();
            if said.contains(text) { Ok(()) } else { Err(format!("{said}{}", read(&self.err))) }
        });
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the process is there");
    }

    /// Waits for its end, not for that of what it started.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn finish(mut self) -> Answer {
        let child = self.child.take().expect("it was not waited for");
        let Some(status) = ended(child, patience(60)) else {
            panic!("`{}` did not end: {}{}", self.said, read(&self.out), read(&self.err));
        };
        assert!(!status.core_dumped(), "`{}` dumped core: {}", self.said, read(&self.err));
        Answer { code: status.code().unwrap_or(-1), stdout: read(&self.out), stderr: read(&self.err) }
    }
}

/// A command that was begun without a file for what it says.
impl From<Child> for Call {
    fn from(child: Child) -> Self {
        Self { said: format!("{child:?}"), child: Some(child), out: PathBuf::new(), err: PathBuf::new() }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            ended(child, Duration::ZERO);
        }
    }
}

/// How a child has ended, its input closed; one that has not within `limit` is killed.
fn ended(mut child: Child, limit: Duration) -> Option<ExitStatus> {
    let pid = Pid::from_raw(child.id().try_into().expect("a pid is a small number"));
    drop(child.stdin.take());
    let (sender, receiver) = mpsc::channel();
    // The receiver waits longer than the thread lives, or is gone.
    std::thread::spawn(move || drop(sender.send(child.wait())));
    let status = receiver.recv_timeout(limit).ok();
    if status.is_none() {
        // It may have ended just now.
        let _ = kill(pid, Signal::SIGKILL);
        let _ = receiver.recv_timeout(patience(10));
    }
    status.map(|status| status.expect("a child that was not waited for"))
}

/// Which version of cgroups this machine limits containers with: 1 also where the second is there for order alone.
#[must_use]
pub fn cgroup_version() -> u8 {
    if Path::new(CGROUPS).join("cgroup.controllers").exists() { 2 } else { 1 }
}

/// Whether this machine's cgroups have a controller: User Mode Linux has no `cpuset`.
#[must_use]
pub fn has_controller(name: &str) -> bool {
    if cgroup_version() == 1 {
        return Path::new(CGROUPS).join(name).exists();
    }
    read(&Path::new(CGROUPS).join("cgroup.controllers")).split_whitespace().any(|other| other == name)
}

/// Where this process sees each hierarchy of cgroups.
#[must_use]
pub fn cgroup_hierarchies() -> Vec<PathBuf> {
    let tops = directories(Path::new(CGROUPS)).into_iter().chain([PathBuf::from(CGROUPS)]);
    if cgroup_version() == 2 { vec![PathBuf::from(CGROUPS)] } else { tops.filter(|top| is_cgroup(top)).collect() }
}

fn is_cgroup(directory: &Path) -> bool {
    directory.join("cgroup.procs").exists()
}

fn read(path: &Path) -> String {
    std::fs::read(path).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Removes a tree of cgroups, and ends what a runtime has left in it.
pub fn remove_cgroup(path: &Path) {
    for below in directories(path) {
        remove_cgroup(&below);
    }
    // Only a hierarchy of the first version with a freezer has the file; a frozen process does not end.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .open(path.join("freezer.state"))
        .map(|mut file| std::io::Write::write_all(&mut file, b"THAWED"));
    let begun = Instant::now();
    while begun.elapsed() < patience(5) {
        for pid in read(&path.join("cgroup.procs")).lines().filter_map(|line| line.parse().ok()) {
            // One that has ended meanwhile is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if std::fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::yield_now();
    }
    eprintln!("{} is still in use", path.display());
}
