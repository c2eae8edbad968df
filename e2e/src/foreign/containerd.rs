//! Containerd with state, settings and containers of its own, and its client ctr.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::differences::Difference;
use super::facts::{compare, find_report};
use super::{Enclosure, Facts, IMAGE, Peers};
use crate::agent::Answer;
use crate::wait::wait_until;

/// Containerd in an enclosure, and ctr with one of the runtimes.
#[derive(Debug)]
pub struct Containerd<'e> {
    enclosure: &'e Enclosure,
    runtime: PathBuf,
    root: PathBuf,
}

impl Containerd<'_> {
    /// Starts containerd and waits until it answers; it ends with the enclosure.
    fn install(enclosure: &Enclosure) -> Child {
        let (root, state, socket) = (enclosure.path("root"), enclosure.path("state"), enclosure.path("socket"));
        let settings = format!(
            "version = 3\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.grpc.v1.cri\", \"io.containerd.nri.v1.nri\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = \"{}\"\n",
            root.display(),
            state.display(),
            socket.display()
        );
        std::fs::write(enclosure.path("containerd.toml"), settings).expect("writing settings");
        let log = File::create(enclosure.path("containerd.log")).expect("a file for the log");
        let mut command = enclosure.command(enclosure.peers.program("containerd"));
        command.arg("--config").arg(enclosure.path("containerd.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = command.spawn().expect("nsenter of util-linux");
        let (ctr, socket) = (enclosure.peers.program("ctr"), socket);
        wait_until("containerd answers", 30, || {
            let answer = enclosure.call(&[&ctr.to_string_lossy(), "--address", &socket.to_string_lossy(), "version"]);
            if answer.code == 0 { Ok(()) } else { Err(answer.stderr) }
        });
        daemon
    }

    /// The enclosure in which it runs.
    #[must_use]
    pub fn enclosure(&self) -> &Enclosure {
        self.enclosure
    }

    /// The path of the runtime.
    #[must_use]
    pub fn program(&self) -> String {
        self.runtime.to_string_lossy().into_owned()
    }

    /// The id of a task's first process.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn pid(&self, name: &str) -> String {
        let tasks = self.call(&["task", "ls"]).ok();
        let words = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let words = words.into_iter().find(|words| words.first() == Some(&name)).expect("the task");
        (*words.get(1).expect("its process")).to_owned()
    }

    /// Runs a command of the runtime, with the state that containerd gave it.
    #[must_use]
    pub fn runtime(&self, arguments: &[&str], input: &str) -> Answer {
        let mut command = self.enclosure.command(&self.runtime);
        let space = self.enclosure.cgroup().trim_start_matches('/');
        command.arg("--root").arg(Path::new("/run/containerd/runc").join(space)).args(arguments);
        self.enclosure.finish(command, input)
    }

    /// Runs a command of ctr to its end.
    #[must_use]
    pub fn call(&self, arguments: &[&str]) -> Answer {
        self.call_with("", arguments)
    }

    /// Runs a command of ctr to its end, with `input` on its standard input.
    #[must_use]
    pub fn call_with(&self, input: &str, arguments: &[&str]) -> Answer {
        let call = || {
            let mut command = self.enclosure.command(self.enclosure.peers.program("ctr"));
            self.address(&mut command);
            command.args(arguments);
            self.enclosure.finish(command, input)
        };
        if arguments.ends_with(&["/prober", "report"]) { self.reported(call) } else { call() }
    }

    /// Runs a command of ctr on a terminal, which makes the prober report.
    #[must_use]
    pub fn report_on_terminal(&self, arguments: &[&str]) -> Answer {
        let mut ctr = Command::new(self.enclosure.peers.program("ctr"));
        self.address(&mut ctr);
        ctr.args(arguments);
        let words = [ctr.get_program()].into_iter().chain(ctr.get_args());
        let line: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let words = ["script", "--quiet", "--return", "--command", &line.join(" "), "/dev/null"];
        self.reported(|| self.enclosure.call(&words))
    }

    /// Starts a container that was made before, and makes the prober report; its task goes with its end.
    #[must_use]
    pub fn start_reporting(&self, name: &str) -> Answer {
        self.reported(|| self.call(&["task", "start", name]))
    }

    /// Calls ctr until the prober's report comes whole, and says loudly, and of which runtime, when it did not: on a slow
    /// machine its end is missing, or all of it, with our runtime and with others.
    fn reported(&self, call: impl Fn() -> Answer) -> Answer {
        let mut answer = call();
        for _ in 0..4 {
            if answer.code != 0 || find_report(&answer.stdout).is_some() {
                break;
            }
            // Past the capture of passing tests; a closed standard error is no reason to fail.
            let _ = writeln!(
                io::stderr(),
                "REPEATED a call of ctr, with {}: the report ended after {} bytes",
                self.program(),
                answer.stdout.len()
            );
            answer = call();
        }
        answer
    }

    fn address(&self, command: &mut Command) {
        // The namespace is the cgroup above those of its containers, too.
        let space = self.enclosure.cgroup().trim_start_matches('/');
        command.arg("--address").arg(self.enclosure.path("socket")).args(["--namespace", space]);
    }

    /// `run` of a program under a name.
    #[must_use]
    pub fn run(&self, name: &str, flags: &[&str], program: &[&str]) -> Answer {
        let words = self.words("run", name, flags, program);
        self.call(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `run` of a program under a name, in a snapshot of an image.
    ///
    /// # Panics
    /// When containerd does not take the image.
    #[must_use]
    pub fn run_image(&self, name: &str, flags: &[&str], program: &[&str]) -> Answer {
        let image = self.enclosure.image(&self.root);
        self.call(&["image", "import", &image.tar.to_string_lossy()]).ok();
        let own = ["run", "--runc-binary", &self.runtime.to_string_lossy()];
        self.call(&[&own, flags, &[IMAGE, name], program].concat())
    }

    /// The words of a command that makes a container.
    #[must_use]
    pub fn words(&self, verb: &str, name: &str, flags: &[&str], program: &[&str]) -> Vec<String> {
        let (runtime, root) = (self.runtime.to_string_lossy(), self.root.to_string_lossy());
        let own = ["--runc-binary", &runtime, "--env", "PATH=/bin", "--rootfs"];
        let words = verb.split(' ').chain(flags.iter().copied()).chain(own).chain([&*root, name]);
        words.chain(program.iter().copied()).map(str::to_owned).collect()
    }

    /// The status of a task; nothing when there is none.
    ///
    /// # Panics
    /// When ctr fails.
    #[must_use]
    pub fn status(&self, name: &str) -> Option<String> {
        let tasks = self.call(&["task", "ls"]).ok();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        tasks.lines().map(words).find(|line| line.first().is_some_and(|first| first == name))?.pop()
    }

    /// Waits until a task has this status.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait_status(&self, name: &str, status: &str) {
        wait_until(&format!("{name} is {status}"), 30, || {
            let now = self.status(name);
            if now.as_deref() == Some(status) { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }
}

/// Carries out `case` with containerd and each runtime, and compares what was seen; returns what was seen of ours.
///
/// # Panics
/// When ours differs from another and the table does not say why, or when the table says that it must, and it does not.
pub fn containerd_sees(test: &str, case: impl Fn(&Containerd<'_>, &mut Facts)) -> Option<Facts> {
    let enclosure = Enclosure::new(Peers::for_test(test)?);
    let root = enclosure.root();
    let mut daemon = Containerd::install(&enclosure);
    let mut all = Vec::new();
    for (name, runtime) in enclosure.runtimes() {
        let mut facts = enclosure.facts(&runtime);
        let containerd = Containerd { enclosure: &enclosure, runtime, root: root.clone() };
        let before = enclosure.leftovers();
        case(&containerd, &mut facts);
        facts.answer("containers at the end", &containerd.call(&["container", "ls", "--quiet"]));
        let left: Vec<_> = enclosure.leftovers().into_iter().filter(|one| !before.contains(one)).collect();
        facts.tell("left behind", left.join(" "));
        all.push((name, facts));
    }
    drop(enclosure);
    // It ended with its enclosure.
    let _ = daemon.wait();
    Some(compare(test, &Difference::all(), all))
}
