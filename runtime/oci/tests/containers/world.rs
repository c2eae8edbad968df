//! What the tests share: a root file system from busybox, a container to change and run, its output.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_spec::runtime::Spec;
use portreeve_oci::cgroup::{self, Cgroup};
use portreeve_oci::{ContainerRef, Create, CreateError, Created, Exec, ExecError, RootFs, Stdio};
pub(crate) use portreeve_sys::chain;
use portreeve_sys::process::{Exit, wait};
use serde_json::{Value, json};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Why no container can be made here.
pub(crate) fn lack() -> Option<String> {
    if portreeve_sys::process::user_id() != 0 {
        return Some("they need root".into());
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("they need a static /bin/busybox (package busybox-static)".into());
    }
    None
}

fn prefix() -> String {
    format!("prt-test-{}-", std::process::id())
}

/// Cgroups of this run that are still there.
pub(crate) fn leftovers() -> Vec<String> {
    let probe = Cgroup::at("/x").expect("cgroups");
    let tops = probe.directories();
    let mut left = Vec::new();
    for top in tops.iter().filter_map(|directory| directory.parent()) {
        for entry in std::fs::read_dir(top).expect("read").flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix()) {
                left.push(entry.path().display().to_string());
            }
        }
    }
    left
}

/// A directory with a root file system, an overlay over it, and a cgroup; all removed at the end.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) cgroup: Cgroup,
    pub(crate) spec: Value,
    /// Use the directory itself instead of an overlay.
    pub(crate) plain: bool,
}

/// What a container did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    pub(crate) fn new(arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("prt-oci-").tempdir().expect("tempdir");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let root = directory.path().join("layer");
        for part in ["bin", "etc", "tmp", "root", "home", "work"] {
            std::fs::create_dir_all(root.join(part)).expect("mkdir");
        }
        for part in ["upper", "overlay-work"] {
            std::fs::create_dir(directory.path().join(part)).expect("mkdir");
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
        for name in [
            "sh", "cat", "ls", "id", "sleep", "true", "false", "mount", "grep", "stat", "hostname", "env", "pwd", "ps",
            "mknod", "touch", "readlink", "dd", "stty", "tty", "test", "kill", "mkdir", "umount", "unshare", "head",
            "tail", "chroot", "tr", "cut", "sort", "rm", "wc", "ln", "nc", "ip", "ulimit",
        ] {
            symlink("busybox", root.join("bin").join(name)).expect("symlink");
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n")
            .expect("passwd");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = Cgroup::at(&format!("/{}{number}", prefix())).expect("cgroup");
        Self { directory, cgroup, spec: default_spec(arguments), plain: false }
    }

    pub(crate) fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.directory.path().join("layer")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A copy of this program, which another build does not take away.
    pub(crate) fn this_program(&self) -> PathBuf {
        let path = self.path("this-program");
        std::fs::copy("/proc/self/exe", &path).expect("copy");
        path
    }

    /// Merges `change` into the configuration, lists being replaced.
    pub(crate) fn with(mut self, change: Value) -> Self {
        merge(&mut self.spec, change);
        self
    }

    /// Adds a mount.
    pub(crate) fn mount(mut self, mount: Value) -> Self {
        self.spec.get_mut("mounts").and_then(Value::as_array_mut).expect("mounts").push(mount);
        self
    }

    pub(crate) fn typed(&self) -> Spec {
        serde_json::from_value(self.spec.clone()).expect("spec")
    }

    pub(crate) fn rootfs(&self) -> RootFs {
        if self.plain {
            return RootFs::Directory(self.layer());
        }
        RootFs::Overlay { lower: vec![self.layer()], upper: self.path("upper"), work: self.path("overlay-work") }
    }

    pub(crate) fn create(&self, spec: &Spec, stdio: Stdio) -> Result<Created, CreateError> {
        portreeve_oci::create(Create::new("test", spec, self.rootfs(), &self.cgroup, stdio))
    }

    /// Creates and starts with output to files; the files and the process come back.
    pub(crate) fn start(&self) -> Live<'_> {
        let spec = self.typed();
        let (stdio, out, err) = self.streams();
        let created = self.create(&spec, stdio).unwrap_or_else(|error| panic!("create: {}", chain(&error)));
        let (running, starter) = created.split();
        starter.start().unwrap_or_else(|error| panic!("start: {}", chain(&error)));
        Live { world: self, spec, pidfd: running.pidfd, pid: running.pid.as_raw_nonzero().get(), out, err }
    }

    pub(crate) fn streams(&self) -> (Stdio, PathBuf, PathBuf) {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (self.path(&format!("out{number}")), self.path(&format!("err{number}")));
        let open = |path: &Path| OwnedFd::from(File::create(path).expect("output file"));
        (Stdio::Pipes { stdin: None, stdout: open(&out), stderr: open(&err) }, out, err)
    }

    pub(crate) fn run(&self) -> Outcome {
        self.start().finish()
    }

    /// The chain of words of a creation that must fail.
    pub(crate) fn refusal(&self) -> String {
        let spec = self.typed();
        let (stdio, ..) = self.streams();
        match self.create(&spec, stdio) {
            Ok(created) => panic!("created as process {:?}", created.pid),
            Err(error) => chain(&error),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.cgroup.kill_all();
        let _ = self.cgroup.wait_empty(Duration::from_secs(5));
        if let Err(error) = self.cgroup.remove() {
            eprintln!("removing the cgroup: {}", chain(&error));
        }
    }
}

/// A started container.
pub(crate) struct Live<'a> {
    pub(crate) world: &'a World,
    pub(crate) spec: Spec,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: i32,
    out: PathBuf,
    err: PathBuf,
}

impl Live<'_> {
    pub(crate) fn finish(self) -> Outcome {
        let exit = wait(self.pidfd.as_fd()).expect("wait");
        Outcome { exit, out: text(&self.out), err: text(&self.err) }
    }

    pub(crate) fn output(&self) -> String {
        text(&self.out)
    }

    pub(crate) fn errors(&self) -> String {
        text(&self.err)
    }

    /// Waits until the output has this text.
    pub(crate) fn wait_for(&self, word: &str) {
        for _ in 0..2000 {
            if self.output().contains(word) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the container never said {word:?}: {:?} {:?}", self.output(), text(&self.err));
    }

    pub(crate) fn try_exec(&self, process: Value) -> Result<Outcome, ExecError> {
        let mut full = serde_json::to_value(self.spec.process()).expect("process");
        merge(&mut full, process);
        let process = serde_json::from_value(full).expect("process");
        let (stdio, out, err) = self.world.streams();
        let container = ContainerRef { pidfd: self.pidfd.as_fd(), spec: &self.spec, cgroup: Some(&self.world.cgroup) };
        let execed = portreeve_oci::exec(Exec::new(container, &process, stdio))?;
        let exit = wait(execed.pidfd.as_fd()).expect("wait");
        Ok(Outcome { exit, out: text(&out), err: text(&err) })
    }

    pub(crate) fn exec(&self, script: &str) -> Outcome {
        self.try_exec(json!({"args": ["sh", "-c", script]})).unwrap_or_else(|error| panic!("exec: {}", chain(&error)))
    }
}

pub(crate) fn text(path: &Path) -> String {
    let mut text = String::new();
    File::open(path).expect("open output").read_to_string(&mut text).expect("read output");
    text
}

pub(crate) fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

pub(crate) const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

fn default_spec(arguments: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "box",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": DEFAULT_CAPABILITIES, "effective": DEFAULT_CAPABILITIES, "permitted": DEFAULT_CAPABILITIES
            }
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// Hierarchy of a controller, for reading its files from the host.
pub(crate) fn controller_file(world: &World, controller: &str, v1: &str, v2: &str) -> String {
    let v1_machine = cgroup::version().expect("version") == cgroup::Version::V1;
    let directories = world.cgroup.directories();
    let directory = directories
        .iter()
        .find(|directory| {
            !v1_machine
                || directory
                    .components()
                    .any(|part| part.as_os_str().to_string_lossy().split(',').any(|name| name == controller))
        })
        .expect("controller");
    std::fs::read_to_string(directory.join(if v1_machine { v1 } else { v2 })).expect("cgroup file").trim().to_owned()
}
