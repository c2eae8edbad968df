//! Podman with storage, settings and containers of its own.

use std::path::PathBuf;

use super::differences::Difference;
use super::facts::compare;
use super::{Enclosure, Facts, Peers};
use crate::agent::Answer;
use crate::wait::wait_until;

/// Podman with one of the runtimes, and with storage and settings of its own.
#[derive(Debug)]
pub struct Podman<'e> {
    enclosure: &'e Enclosure,
    runtime: PathBuf,
}

impl<'e> Podman<'e> {
    /// The image with the prober in it.
    pub const IMAGE: &'static str = super::IMAGE;

    /// A line of shell that waits for signals as a container's first process, says so, and ends with 5 after SIGTERM.
    pub const TRAPS: &'static str =
        "trap 'echo told; exit 5' TERM; trap 'echo user' USR1; echo ready; while :; do sleep 0.05; done";

    /// Makes podman's settings and storage, with the image in it, and runs it with crun.
    ///
    /// # Panics
    /// When podman does not run here.
    pub fn install(enclosure: &'e Enclosure) -> Self {
        let peers = &enclosure.peers;
        // Where this process may not raise limits, podman's own defaults are refused.
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\nseccomp_profile = \
             \"{}\"\ninit_path = \"{}\"\n[engine]\nconmon_path = [\"{}\"]\nhelper_binaries_dir = [\"{}\"]\n\
             events_logger = \"file\"\n",
            peers.0.join("share/seccomp.json").display(),
            peers.program("catatonit").display(),
            peers.program("conmon").display(),
            peers.0.join("bin").display(),
        );
        let write = |name: &str, text: &str| std::fs::write(enclosure.path(name), text).expect("writing settings");
        write("containers.conf", &settings);
        write("storage.conf", "[storage]\ndriver = \"overlay\"\n[storage.options]\nroot-auto-userns-user = \"root\"\n");
        write("registries.conf", "");
        write("home/.config/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        // Ids that podman may choose from, in the enclosure's mounts alone.
        write("ids", "root:500000:100000\n");
        let ids = enclosure.path("ids").to_string_lossy().into_owned();
        for file in ["/etc/subuid", "/etc/subgid"] {
            enclosure.call(&["mount", "--bind", &ids, file]).ok();
        }
        let image = enclosure.image(&enclosure.root());
        let podman = Self { enclosure, runtime: peers.program("crun") };
        podman.call(&["load", "-q", "-i", &image.tar.to_string_lossy()]).ok();
        podman
    }

    /// The enclosure in which it runs.
    #[must_use]
    pub fn enclosure(&self) -> &Enclosure {
        self.enclosure
    }

    /// Runs a command of podman to its end.
    #[must_use]
    pub fn call(&self, arguments: &[&str]) -> Answer {
        self.call_with("", arguments)
    }

    /// Runs a command of podman to its end, with `input` on its standard input.
    #[must_use]
    pub fn call_with(&self, input: &str, arguments: &[&str]) -> Answer {
        let mut command = self.enclosure.command(self.enclosure.peers.program("podman"));
        for (variable, file) in [
            ("CONTAINERS_CONF", "containers.conf"),
            ("CONTAINERS_STORAGE_CONF", "storage.conf"),
            ("CONTAINERS_REGISTRIES_CONF", "registries.conf"),
        ] {
            command.env(variable, self.enclosure.path(file));
        }
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        for (flag, folder) in [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "libpod")] {
            command.arg(flag).arg(self.enclosure.path(folder));
        }
        command.args(["--cgroup-manager", "cgroupfs", "--runtime"]).arg(&self.runtime).args(arguments);
        self.enclosure.finish(command, input)
    }

    /// `run`, in the foreground, without a network unless the flags say otherwise.
    #[must_use]
    pub fn run(&self, flags: &[&str], program: &[&str]) -> Answer {
        self.make("", &["run", "--rm"], flags, program)
    }

    /// As [`run`](Self::run), with `input` on the standard input.
    #[must_use]
    pub fn run_with(&self, input: &str, flags: &[&str], program: &[&str]) -> Answer {
        self.make(input, &["run", "--rm"], flags, program)
    }

    /// The prober's report from a container of its own.
    #[must_use]
    pub fn report(&self, flags: &[&str]) -> Answer {
        self.run(flags, &["/prober", "report"])
    }

    /// How the prober's operations end in a container of its own.
    #[must_use]
    pub fn tried(&self, flags: &[&str], operations: &[&str]) -> Answer {
        self.run(flags, &[&["/prober", "try"], operations].concat())
    }

    /// `run --detach` under a name.
    ///
    /// # Panics
    /// When it fails.
    pub fn start(&self, name: &str, flags: &[&str], program: &[&str]) {
        self.make("", &["run", "--detach", "--name", name], flags, program).ok();
    }

    /// Starts [`TRAPS`](Self::TRAPS) under a name, and waits until it waits.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_waiting(&self, name: &str, flags: &[&str]) {
        self.start(name, flags, &["sh", "-c", Self::TRAPS]);
        self.wait_said(name, "ready");
    }

    /// Removes a container, whatever it does.
    #[must_use]
    pub fn remove(&self, name: &str) -> Answer {
        self.call(&["rm", "--force", "--time", "0", name])
    }

    /// `create` under a name.
    ///
    /// # Panics
    /// When it fails.
    pub fn create(&self, name: &str, flags: &[&str], program: &[&str]) {
        self.make("", &["create", "--name", name], flags, program).ok();
    }

    /// `run` of a program in a root file system that is a folder, as `--rootfs` takes it.
    #[must_use]
    pub fn run_rootfs(&self, root: &str, flags: &[&str], program: &[&str]) -> Answer {
        self.make_from(&["--rootfs", root], "", &["run", "--rm"], flags, program)
    }

    /// `run` with the hooks that a folder describes.
    #[must_use]
    pub fn run_hooked(&self, hooks: &str, program: &[&str]) -> Answer {
        self.make("", &["--hooks-dir", hooks, "run", "--rm"], &[], program)
    }

    fn make(&self, input: &str, verb: &[&str], flags: &[&str], program: &[&str]) -> Answer {
        self.make_from(&[Self::IMAGE], input, verb, flags, program)
    }

    fn make_from(&self, root: &[&str], input: &str, verb: &[&str], flags: &[&str], program: &[&str]) -> Answer {
        let mut line = verb.to_vec();
        line.extend(["--cgroup-parent", self.enclosure.cgroup()]);
        if !flags.iter().any(|flag| flag.starts_with("--network") || flag.starts_with("--pod")) {
            line.push("--network=none");
        }
        line.extend(flags);
        line.extend(root);
        line.extend(program);
        self.call_with(input, &line)
    }

    /// `exec` of a program in a container.
    #[must_use]
    pub fn exec(&self, name: &str, flags: &[&str], program: &[&str]) -> Answer {
        self.call(&[&["exec"], flags, &[name], program].concat())
    }

    /// What a template finds in a container's description.
    ///
    /// # Panics
    /// When the container is not there.
    #[must_use]
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.call(&["inspect", "--format", template, name]).ok().trim().to_owned()
    }

    /// Waits until a container has said `text`.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_said(&self, name: &str, text: &str) {
        wait_until(&format!("{name} says {text:?}"), 30, || {
            let logs = self.call(&["logs", name]);
            if logs.stdout.contains(text) { Ok(()) } else { Err(format!("{logs:?}")) }
        });
    }
}

/// Carries out `case` with podman and each runtime, and compares what was seen; returns what was seen of ours.
///
/// # Panics
/// When ours differs from another and the table does not say why, or when the table says that it must, and it does not.
pub fn podman_sees(test: &str, case: impl Fn(&Podman<'_>, &mut Facts)) -> Option<Facts> {
    let enclosure = Enclosure::new(Peers::for_test(test)?);
    Podman::install(&enclosure);
    let all = enclosure.runtimes().into_iter().map(|(name, runtime)| {
        let mut facts = enclosure.facts(&runtime);
        let podman = Podman { enclosure: &enclosure, runtime };
        let before = enclosure.leftovers();
        case(&podman, &mut facts);
        facts.answer("removal of all", &podman.call(&["rm", "--force", "--all", "--time", "0"]));
        let left: Vec<_> = enclosure.leftovers().into_iter().filter(|one| !before.contains(one)).collect();
        facts.tell("left behind", left.join(" "));
        (name, facts)
    });
    Some(compare(test, &Difference::all(), all.collect()))
}
