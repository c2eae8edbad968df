//! Engines of others, driven with our runtime and with theirs: what they and their containers see must be the same.
//!
//! ```text
//! Peers       the programs that e2e/peers has fetched
//! Enclosure   where an engine runs: nothing outlives it
//! Podman      podman with one runtime
//! Containerd  containerd, and ctr with one runtime
//! Docker      dockerd, and its client
//! Facts       what was seen of one runtime, by name
//! compare     ours beside theirs: what is not alike is in the table of runtime/oci/README.md, and what that says is so
//! ```

mod containerd;
mod differences;
mod docker;
mod facts;
mod podman;

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub use self::containerd::{Containerd, containerd_sees};
pub use self::docker::{Docker, docker_sees};
pub use self::facts::Facts;
pub use self::podman::{Podman, podman_sees};
use crate::agent::Answer;
use crate::bundle::{Bundle, prober};
use crate::image::Image;
use crate::runtime::{cgroup_hierarchies, directories, remove_cgroup};
use crate::wait::wait_until;
use crate::world::{World, binary};
use crate::{skipped, skipped_without_root};

/// The runtimes that ours is compared with, by the names of their programs.
pub const OTHERS: [&str; 2] = ["crun", "runc"];

/// What our runtime is called in facts and tables.
const OURS: &str = "portreeve-runtime";

/// The image with the prober in it.
const IMAGE: &str = "test.local/prober:1";

/// A folder of programs that `e2e/peers` made: `PORTREEVE_PEERS`.
#[derive(Debug, Clone)]
pub struct Peers(PathBuf);

impl Peers {
    /// Those of this machine; nothing, said loudly, where the test cannot run.
    ///
    /// # Panics
    /// When the variable names a folder that is not one.
    #[must_use]
    pub fn for_test(test: &str) -> Option<Self> {
        if skipped_without_root(test) {
            return None;
        }
        let peers = Self::find();
        if peers.is_none() {
            skipped(test, "it needs engines and runtimes of others: PORTREEVE_PEERS=$(e2e/peers) fetches them");
        }
        peers
    }

    /// Those that `PORTREEVE_PEERS` names, if it is set.
    ///
    /// # Panics
    /// When e2e/peers did not make that folder.
    #[must_use]
    pub fn find() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("PORTREEVE_PEERS")?);
        assert!(folder.join("versions").is_file(), "PORTREEVE_PEERS says {}: e2e/peers made none", folder.display());
        Some(Self(folder))
    }

    /// The folder of the CNI plugins.
    #[must_use]
    pub fn cni(&self) -> PathBuf {
        self.0.join("cni")
    }

    /// The path of criu, which is not among the programs: engines that find it checkpoint.
    #[must_use]
    pub fn criu(&self) -> PathBuf {
        self.0.join("criu/criu")
    }

    /// The version of a package that they were taken from, without Debian's part.
    ///
    /// # Panics
    /// When it is none of them.
    #[must_use]
    pub fn version(&self, package: &str) -> String {
        let versions = std::fs::read_to_string(self.0.join("versions")).expect("the list of versions");
        let version = versions.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix('='));
        let version = version.unwrap_or_else(|| panic!("{package} is none of the peers: {versions}"));
        version.split(['-', '+', '~']).next().unwrap_or(version).to_owned()
    }

    /// The path of one of the programs.
    ///
    /// # Panics
    /// When it is not among them.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let path = self.0.join("bin").join(name);
        assert!(path.exists(), "{} is missing: remove the folder and run e2e/peers", path.display());
        path
    }
}

/// A world whose processes have a pid namespace of their own and end with it, with an empty `/run`, and with a cgroup.
#[derive(Debug)]
pub struct Enclosure {
    world: World,
    peers: Peers,
    keeper: Child,
    first: Pid,
    cgroup: String,
    calls: Cell<usize>,
    namespaces: OnceCell<BTreeMap<String, String>>,
}

impl Enclosure {
    /// Makes one.
    ///
    /// # Panics
    /// Without root, or without `unshare` and `nsenter` of util-linux.
    #[must_use]
    pub fn new(peers: Peers) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let world = World::new("foreign");
        // The first process waits for orphans. crun takes a mixture of both versions of cgroups for the first one only when
        // the second is not there.
        let line = "mount -t tmpfs none /run && { [ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified; } && \
                    : > \"$0\" && while :; do sleep 1000 & wait; done";
        let ready = world.path("ready");
        let mut keeper = world.command("unshare");
        keeper.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        // It complains when it is killed.
        let complaints = world.path("complaints");
        keeper.args(["sh", "-c", line]).arg(&ready).stdin(Stdio::null());
        keeper.stderr(File::create(&complaints).expect("a file for complaints"));
        let mut keeper = keeper.spawn().expect("unshare of util-linux");
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let first = wait_until("the enclosure is there", 20, || {
            if let Ok(Some(status)) = keeper.try_wait() {
                let why = std::fs::read_to_string(&complaints).unwrap_or_default();
                return Err(format!("it ended with {status}: {why}"));
            }
            let child = std::fs::read_to_string(&children).ok().and_then(|text| text.trim().parse().ok());
            child.filter(|_| ready.exists()).map(Pid::from_raw).ok_or_else(|| "not yet".to_owned())
        });
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        for folder in ["home/.config/containers", "tmp", "calls"] {
            std::fs::create_dir_all(world.path(folder)).expect("a directory of the enclosure");
        }
        Self {
            cgroup: format!("/prt-foreign-{}-{number}", std::process::id()),
            world,
            peers,
            keeper,
            first,
            calls: Cell::new(0),
            namespaces: OnceCell::new(),
        }
    }

    /// The namespaces of those who are in no container, by their kinds.
    fn outside(&self) -> BTreeMap<String, String> {
        let report = self.call(&[&prober().to_string_lossy(), "report"]).ok();
        let report: Value = serde_json::from_str(&report).expect("the prober's report");
        let namespaces = report["namespaces"].as_object().into_iter().flatten();
        namespaces.map(|(kind, link)| (kind.clone(), link.as_str().unwrap_or_default().to_owned())).collect()
    }

    /// The world whose network it has.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// A path below its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    /// The cgroup above those of its containers.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Our runtime and those of [`OTHERS`], by name, with ours as the first.
    ///
    /// # Panics
    /// When one is missing.
    #[must_use]
    pub fn runtimes(&self) -> Vec<(&'static str, PathBuf)> {
        let link = self.path(OURS);
        if !link.is_symlink() {
            symlink(binary().canonicalize().expect("the binary's path"), &link).expect("a link to the binary");
        }
        let others = OTHERS.map(|name| (name, self.peers.program(name)));
        [(OURS, link)].into_iter().chain(others).collect()
    }

    /// A command in the enclosure, with the peers' programs on its path and no settings of the machine's user.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string(), "--net", "--mount", "--pid", "--"]);
        // Of a caller who ignores it (nohup) runc's containers inherit that.
        command.args(["env", "--default-signal=HUP"]).arg(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.peers.0.join("bin").display()));
        command.env("HOME", self.path("home")).env("TMPDIR", self.path("tmp")).env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// Runs a command to its end.
    #[must_use]
    pub fn call(&self, line: &[&str]) -> Answer {
        let (program, arguments) = line.split_first().expect("a command has a program");
        let mut command = self.command(program);
        command.args(arguments);
        self.finish(command, "")
    }

    /// Runs a command to its end, with `input` on its standard input. What it says goes to files: an engine's helpers
    /// keep them open, and do not keep this from going on.
    ///
    /// # Panics
    /// When it does not end.
    fn finish(&self, mut command: Command, input: &str) -> Answer {
        let number = self.calls.replace(self.calls.get() + 1);
        let file = |name: &str| self.path("calls").join(format!("{number}-{name}"));
        std::fs::write(file("in"), input).expect("writing an input");
        command.stdin(File::open(file("in")).expect("an input"));
        command.stdout(File::create(file("out")).expect("a file for the output"));
        command.stderr(File::create(file("err")).expect("a file for the errors"));
        let said = |name: &str| String::from_utf8_lossy(&std::fs::read(file(name)).unwrap_or_default()).into_owned();
        let mut child = command.spawn().expect("nsenter of util-linux");
        let status = wait_until(&format!("{command:?} ends"), 60, || {
            let status = child.try_wait().map_err(|error| error.to_string())?;
            status.ok_or_else(|| format!("{}{}", said("out"), said("err")))
        });
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Answer { code: code.unwrap_or(-1), stdout: said("out"), stderr: said("err") }
    }

    /// Facts about a runtime, in which its own name and paths are made the same as those of all.
    #[must_use]
    pub fn facts(&self, runtime: &Path) -> Facts {
        let same = [
            (runtime.display().to_string(), "RUNTIME"),
            (self.world.home().display().to_string(), "HOME"),
            (self.cgroup.clone(), "/CGROUP"),
        ];
        Facts::new(same.to_vec(), self.namespaces.get_or_init(|| self.outside()).clone())
    }

    /// What is left of containers that were removed: cgroups below the enclosure's but those that the engine keeps for
    /// itself, and states of runtimes.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let states = self.call(&["sh", "-c", "cd /run && ls -d runc/*/ crun/*/ portreeve/runtime/*/ 2>/dev/null"]);
        let mut left: Vec<_> = states.stdout.lines().map(str::to_owned).collect();
        for cgroup in self.cgroups() {
            let below = directories(&cgroup).into_iter().filter(|path| !path.ends_with("conmon"));
            left.extend(below.map(|path| path.display().to_string()));
        }
        left
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let name = self.cgroup.trim_start_matches('/');
        cgroup_hierarchies().into_iter().map(|hierarchy| hierarchy.join(name)).filter(|path| path.is_dir()).collect()
    }

    /// A root file system with the prober and busybox, at `root` below the enclosure's directory.
    fn root(&self) -> PathBuf {
        let bundle = Bundle::make(self.path("bundle"), "root", "", &[]);
        for applet in ["ps", "echo", "touch", "readlink"] {
            symlink("busybox", bundle.root().join("bin").join(applet)).expect("a link to busybox");
        }
        bundle.root()
    }

    /// An image of a root file system.
    fn image(&self, root: &Path) -> Image {
        let mut layer = tar::Builder::new(Vec::new());
        layer.follow_symlinks(false);
        layer.append_dir_all(".", root).expect("a layer of the root");
        let layer = layer.into_inner().expect("writing to memory");
        Image::archive(&self.path(""), IMAGE, &[layer])
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        // What is frozen does not end, and what does not end keeps its pid namespace.
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        // Already gone is as good.
        let _ = kill(self.first, Signal::SIGKILL);
        let _ = self.keeper.wait();
        // What came after that.
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
    }
}
