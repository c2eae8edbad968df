//! What of an agent exists on the machine: for "nothing is left", and for "nothing changed".

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::world::World;

/// Everything that carries an agent's names, in its world and in the kernel's global trees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// cgroups of all hierarchies, the root of the agent's tree included.
    pub cgroups: BTreeSet<PathBuf>,
    /// Mount points below the agent's directories.
    pub mounts: BTreeSet<String>,
    /// Links of the world's network namespace other than loopback.
    pub links: BTreeSet<String>,
    /// Addresses of the world's network namespace other than loopback's.
    pub addresses: BTreeSet<String>,
    /// nftables tables of the world's network namespace.
    pub tables: BTreeSet<String>,
    /// Processes that name the agent's directories: shims, as pid and command line.
    pub processes: BTreeSet<String>,
    /// Process ids in the agent's cgroups.
    pub contained: BTreeSet<String>,
    /// Sandboxes, snapshots and network attachments on disk.
    pub files: BTreeSet<PathBuf>,
}

impl Census {
    /// Looks at everything once.
    ///
    /// # Panics
    /// When the world is gone.
    #[must_use]
    pub fn take(world: &World, run: &Path) -> Self {
        let hash = hex::encode(Sha256::digest(run.as_os_str().as_bytes()));
        let name = format!("portreeve-{}", &hash[..8]);
        let home = world.home().to_string_lossy().into_owned();
        let mut census = Self::default();
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("a cgroup file system");
        let roots = hierarchies
            .flatten()
            .map(|entry| entry.path().join(&name))
            .chain([Path::new("/sys/fs/cgroup").join(&name)]);
        for root in roots.filter(|root| root.is_dir()) {
            census.walk_cgroups(&root);
        }
        for line in world.mounts() {
            if let Some(point) = line.split(' ').nth(4).filter(|point| point.starts_with(&home)) {
                census.mounts.insert(point.to_owned());
            }
        }
        for line in world.sh("ip -o link").lines() {
            if let Some(link) = line.split(": ").nth(1).filter(|link| *link != "lo") {
                census.links.insert(link.split('@').next().unwrap_or(link).to_owned());
            }
        }
        for line in world.sh("ip -o -4 addr").lines() {
            if let Some(address) = line.split_whitespace().nth(3).filter(|address| !address.starts_with("127.")) {
                census.addresses.insert(address.to_owned());
            }
        }
        census.tables = world.sh("nft list tables").lines().map(str::to_owned).collect();
        census.find_processes(&home);
        for folder in ["agent/run/sandboxes", "agent/root/images/snapshots", "agent/run/network/attachments"] {
            for entry in std::fs::read_dir(world.path(folder)).into_iter().flatten().flatten() {
                census.files.insert(entry.path());
            }
        }
        census
    }

    /// Whether nothing at all was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn walk_cgroups(&mut self, cgroup: &Path) {
        self.cgroups.insert(cgroup.to_owned());
        let inside = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        self.contained.extend(inside.lines().map(str::to_owned));
        for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                self.walk_cgroups(&entry.path());
            }
        }
    }

    fn find_processes(&mut self, home: &str) {
        for entry in std::fs::read_dir("/proc").expect("procfs").flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if pid.bytes().all(|byte| byte.is_ascii_digit()) && pid != std::process::id().to_string() {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                // A registry is the test's own.
                if line.contains(home) && !line.starts_with("docker-registry ") {
                    self.processes.insert(format!("{pid} {line}"));
                }
            }
        }
    }
}
