//! A bundle: a root file system with the prober in it, and the configuration of a container.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::world::built;

/// The program that tells from inside what it sees: `PORTREEVE_PROBER`, else what `e2e/run` has built.
///
/// # Panics
/// When it was not built, or so that it would need libraries inside the root.
#[must_use]
pub fn prober() -> PathBuf {
    let path = built("PORTREEVE_PROBER", "examples/prober");
    let bytes = std::fs::read(&path).unwrap_or_default();
    let loader = b"/lib64/ld-linux";
    assert!(
        !bytes.windows(loader.len()).any(|window| window == loader),
        "{} is not static: build it by `e2e/build -p portreeve-sys --example prober`, without RUSTFLAGS",
        path.display()
    );
    path
}

/// What a container is made from; its directory goes with the runtime's that made it.
#[derive(Debug, Clone)]
pub struct Bundle {
    id: String,
    path: PathBuf,
    config: Value,
}

impl Bundle {
    /// A bundle of [`Self::plain`] with the prober in its root, `/prober`.
    pub(crate) fn make(path: PathBuf, id: &str, cgroup: &str, arguments: &[&str]) -> Self {
        let bundle = Self::plain(path, id, cgroup, arguments);
        std::fs::copy(prober(), bundle.root().join("prober")).expect("copying the prober");
        bundle
    }

    /// Makes the directory `path` with a root in it: `/bin/busybox` with a few links, `/etc/passwd`, `/etc/group`, and
    /// empty directories. The configuration says what the specification's own example does.
    ///
    /// # Panics
    /// Without a static `/bin/busybox`, or when the directory cannot be made.
    #[must_use]
    pub fn plain(path: PathBuf, id: &str, cgroup: &str, arguments: &[&str]) -> Self {
        let root = path.join("rootfs");
        for directory in ["bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sys", "tmp", "var"] {
            std::fs::create_dir_all(root.join(directory)).expect("a directory of the root");
        }
        std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).expect("the mode of /tmp");
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for applet in ["cat", "ls", "sh", "sleep", "true", "false", "kill", "stty", "id"] {
            symlink("busybox", root.join("bin").join(applet)).expect("a link to busybox");
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nworker:x:1000:1000::/home:/bin/sh\n")
            .expect("/etc/passwd");
        std::fs::write(root.join("etc/group"), "root:x:0:\nworker:x:1000:\nextra:x:2000:worker\n").expect("/etc/group");
        Self { id: id.to_owned(), path, config: example(cgroup, arguments) }
    }

    /// Merges `change` into the configuration: objects field by field, null removes, and all else replaces.
    #[must_use]
    pub fn with(mut self, change: Value) -> Self {
        merge(&mut self.config, change);
        self
    }

    /// Adds a mount after those that there are.
    ///
    /// # Panics
    /// When the configuration has no list of mounts any more.
    #[must_use]
    pub fn with_mount(mut self, mount: Value) -> Self {
        self.config["mounts"].as_array_mut().expect("a list of mounts").push(mount);
        self
    }

    /// Replaces the namespaces of the given type by `namespace`, or takes them away.
    ///
    /// # Panics
    /// When the configuration has no list of namespaces any more.
    #[must_use]
    pub fn with_namespace(mut self, kind: &str, namespace: Option<Value>) -> Self {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().expect("a list of namespaces");
        namespaces.retain(|one| one["type"] != kind);
        namespaces.extend(namespace);
        self
    }

    /// Gives the container a user namespace of `size` ids from `first` of the host on, and the root to its user 0.
    ///
    /// # Panics
    /// When the root cannot be given away.
    #[must_use]
    pub fn with_users(self, first: u32, size: u32) -> Self {
        let mut folders = vec![self.root()];
        while let Some(folder) = folders.pop() {
            std::os::unix::fs::chown(&folder, Some(first), Some(first)).expect("giving a directory away");
            for entry in std::fs::read_dir(&folder).expect("a directory of the root").flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                } else {
                    std::os::unix::fs::lchown(entry.path(), Some(first), Some(first)).expect("giving a file away");
                }
            }
        }
        let maps = json!([{ "containerID": 0, "hostID": first, "size": size }]);
        self.with_namespace("user", Some(json!({ "type": "user" })))
            .with(json!({ "linux": { "uidMappings": maps, "gidMappings": maps } }))
    }

    /// The container's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that becomes the container's root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The configuration as it is now.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What the container's program has said so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(self.path.join("stdout")).map_or_else(|_| String::new(), |text| lossy(&text))
    }

    /// Makes a file in the root, with the directories above it.
    ///
    /// # Panics
    /// When that fails.
    pub fn file(&self, path: &str, content: &str) {
        let path = self.root().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().expect("a path below the root")).expect("directories of the root");
        std::fs::write(path, content).expect("a file of the root");
    }

    /// Makes a directory beside the root, for a bind mount.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).expect("a directory beside the root");
        path
    }

    /// Writes `config.json`, as [`Runtime::create`](crate::Runtime::create) and its like do by themselves.
    ///
    /// # Panics
    /// When that fails.
    pub fn save(&self) {
        let text = serde_json::to_vec_pretty(&self.config).expect("JSON");
        std::fs::write(self.path.join("config.json"), text).expect("writing config.json");
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// JSON Merge Patch, RFC 7386.
fn merge(target: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *target = change;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().expect("it was made one");
    for (key, value) in change {
        if value.is_null() {
            fields.remove(&key);
        } else {
            merge(fields.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn example(cgroup: &str, arguments: &[&str]) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities.clone(),
                "effective": capabilities.clone(),
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs" },
        "hostname": "probed",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "cgroup" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
