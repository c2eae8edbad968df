//! `spec`.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use portreeve_oci::features::SPECIFICATION;
use serde_json::{Value, json};

use super::arguments::{Flag, Usage, Verb};

pub(super) const USAGE: Usage = Usage {
    name: "spec",
    operands: "",
    about: "write a config.json to begin with",
    flags: &[&[
        Flag::value("bundle", "DIR", "where to (default: the current directory)").short('b'),
        Flag::switch("rootless", "for a container of the user who runs this"),
    ]],
    count: 0..=0,
    ends_flags: false,
    read: |given| {
        let directory = given.path("bundle").unwrap_or_else(|| PathBuf::from("."));
        Ok(Verb::Spec(SpecArguments { directory, rootless: given.has("rootless")? }))
    },
};

/// Arguments of `spec`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SpecArguments {
    directory: PathBuf,
    rootless: bool,
}

impl SpecArguments {
    /// Writes the file; one that is there is never overwritten.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let user = self.rootless.then(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        let text = serde_json::to_string_pretty(&configuration(user)).context("writing the configuration as JSON")?;
        let path = self.directory.join("config.json");
        let file = File::options().write(true).create_new(true).open(&path);
        file.and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// A shell in every namespace of its own, with few privileges; `user` is who is to be its root, when not the host's.
fn configuration(user: Option<(u32, u32)>) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut namespaces = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    namespaces.push(if user.is_some() { "user" } else { "network" });
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({"type": kind})).collect();
    let mut linux = json!({
        "namespaces": namespaces,
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
            "/sys/devices/virtual/powercap", "/sys/firmware",
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    let further = match user {
        None => json!({"resources": {"devices": [{"allow": false, "access": "rwm"}]}}),
        Some((uid, gid)) => json!({
            "uidMappings": [{"containerID": 0, "hostID": uid, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": gid, "size": 1}],
        }),
    };
    if let (Value::Object(linux), Value::Object(further)) = (&mut linux, further) {
        linux.extend(further);
    }
    json!({
        "ociVersion": SPECIFICATION,
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "container",
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
            "noNewPrivileges": true,
        },
        "mounts": mounts(user.is_some()),
        "linux": linux,
    })
}

fn mounts(rootless: bool) -> Value {
    let mount = |kind: &str, destination: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    // Group 5, tty, is not mapped where the user alone is.
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let pts = if rootless { &pts[..5] } else { &pts };
    // The network namespace's owner alone may mount a sysfs.
    let sys = if rootless {
        json!({
            "destination": "/sys", "type": "none", "source": "/sys",
            // Below it as well: some cgroups may be the user's to write to (CVE-2023-25809).
            "options": ["rbind", "nosuid", "noexec", "nodev", "rro"],
        })
    } else {
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"])
    };
    json!([
        mount("proc", "/proc", &[]),
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", pts),
        mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        mount("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_configuration_and_never_replaces_one() {
        for rootless in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let write = || SpecArguments { directory: folder.path().to_owned(), rootless }.run();
            write().unwrap();
            let path = folder.path().join("config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            let spec: oci_spec::runtime::Spec = serde_json::from_str(&text).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            assert_eq!(linux.uid_mappings().is_some(), rootless);
            assert_eq!(spec.version(), SPECIFICATION);
            assert!(format!("{:#}", write().unwrap_err()).contains("config.json"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
