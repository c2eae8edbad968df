//! A throwaway machine: a directory, a network namespace and a mount namespace.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The binary under test.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn binary() -> PathBuf {
    built("PORTREEVE_BIN", "portreeve")
}

/// A program that the environment's `variable` names, or else `release/<name>` of cargo's target directory.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn built(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
        assert!(path.exists(), "{variable} says {}, which is missing", path.display());
        return path;
    }
    // <target>/<profile>/deps/<test> or <target>/<profile>/<program>: wherever cargo was told to put these.
    let own = std::env::current_exe().expect("our own path");
    let mut beside = own.ancestors().skip(2).take(2).map(|folder| folder.join("release").join(name));
    beside.find(|path| path.exists()).unwrap_or_else(|| panic!("no release/{name} near {}", own.display()))
}

/// A directory, and a process that holds a network and a mount namespace open.
///
/// Only loopback exists in the network namespace at first, and nothing in it leads outside.
#[derive(Debug)]
pub struct World {
    home: TempDir,
    holder: Child,
}

impl World {
    /// Makes one; `name` shows up in the names of its processes and directory.
    ///
    /// # Panics
    /// Without root, or without `unshare` and `nsenter` of util-linux.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let home =
            tempfile::Builder::new().prefix(&format!("prt-e2e-{name}-")).tempdir().expect("a temporary directory");
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--"])
            .args(["sh", "-c", "ip link set lo up && echo ready && exec sleep 100000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("the holder's first line");
        assert_eq!(line, "ready\n", "the namespaces of the world could not be made");
        Self { home, holder }
    }

    /// The world's directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A path below the world's directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Makes a directory of the world in which containers, whoever they run as, write down what they see.
    ///
    /// # Panics
    /// When it is there already.
    #[must_use]
    pub fn notebook(&self) -> PathBuf {
        let out = self.path("out");
        std::fs::create_dir(&out).expect("making the notebook");
        std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o777)).expect("opening the notebook to all");
        out
    }

    /// A command that will run inside the world's namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", "--mount", "--"]).arg(program);
        command
    }

    /// Runs a shell line inside the world and returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn sh(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().expect("nsenter of util-linux");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "`{line}` failed: {stdout}{}", String::from_utf8_lossy(&output.stderr));
        stdout
    }

    /// Does `work` on a thread inside the world's network namespace; sockets made there stay there.
    ///
    /// # Panics
    /// Without root, or when `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.network(), work)
    }

    /// The world's network namespace.
    ///
    /// # Panics
    /// When the holder is gone.
    #[must_use]
    pub fn network(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("the holder lives")
    }

    /// Fetches a page from inside the world.
    ///
    /// # Errors
    /// What the client said when there was no page.
    pub fn fetch(&self, url: &str) -> Result<String, String> {
        // Its own `-T` is not built in: where it is given, wget ends by a signal on some kernels.
        let output = self
            .command("busybox")
            .args(["timeout", "5", "busybox", "wget", "-q", "-O", "-", url])
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(format!("{url}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }

    /// The mounts that the world's mount namespace has, as `/proc/<pid>/mountinfo` tells them.
    ///
    /// # Panics
    /// When the holder is gone.
    #[must_use]
    pub fn mounts(&self) -> Vec<String> {
        let path = format!("/proc/{}/mountinfo", self.holder.id());
        let text = std::fs::read_to_string(path).expect("the holder lives as long as the world");
        text.lines().map(str::to_owned).collect()
    }

    /// The processes that are in the world, but its holder: by their namespaces, their mounts, or by where their root,
    /// directory or program lies; as pid and command line. One that has ended and waits for its parent is none.
    ///
    /// # Panics
    /// Without procfs.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<String> {
        let link = |process: &Path, name: &str| std::fs::read_link(process.join(name)).ok();
        let holder = PathBuf::from(format!("/proc/{}", self.holder.id()));
        let namespaces = ["ns/mnt", "ns/net"].map(|name| (name, link(&holder, name)));
        // The name alone: the root of a mount is told from the top of its file system, which /tmp itself may be.
        let home = self.home().file_name().expect("the directory has a name");
        let within = |path: &Path| path.iter().any(|part| part == home);
        let inside = |process: &Path| {
            let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            namespaces.iter().any(|(name, world)| world.is_some() && link(process, name) == *world)
                || ["root", "cwd", "exe"].iter().any(|name| link(process, name).is_some_and(|path| within(&path)))
                || mounts.lines().any(|line| line.split(' ').skip(3).take(2).any(|path| within(Path::new(path))))
        };
        let processes = std::fs::read_dir("/proc").expect("procfs").flatten().map(|entry| entry.path());
        let processes = processes.filter(|path| *path != holder && path.join("mountinfo").exists() && inside(path));
        processes.map(|path| described(&path)).collect()
    }
}

/// Does `work` on a thread inside a network namespace; sockets made there stay there.
pub(crate) fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("entering the namespace");
        work()
    };
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The pid and the command line of a process, by its directory of procfs.
fn described(process: &Path) -> String {
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let pid = process.file_name().unwrap_or_default().display();
    format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ").trim_end())
}

impl Drop for World {
    fn drop(&mut self) {
        // A holder that is gone already is as good as one that was ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
