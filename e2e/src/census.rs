//! What of an agent exists on the machine: for "nothing is left", and for "nothing changed".

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
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
    /// Routes of the world's network namespace.
    pub routes: BTreeSet<String>,
    /// Other network namespaces: those that the kernel knows as a peer of the world's, by number, and mounted ones.
    pub namespaces: BTreeSet<String>,
    /// nftables tables of the world's network namespace.
    pub tables: BTreeSet<String>,
    /// Chains, rules, sets and maps of these tables, without their elements.
    pub rules: BTreeSet<String>,
    /// Elements of these sets and maps.
    pub elements: BTreeSet<String>,
    /// Processes that name the agent's directories: shims, as pid and command line.
    pub processes: BTreeSet<String>,
    /// Process ids in the agent's cgroups.
    pub contained: BTreeSet<String>,
    /// What is on disk for single pods: the entries of `FOLDERS`.
    pub files: BTreeSet<PathBuf>,
}

/// Folders of an agent in which each entry belongs to one pod, sandbox or container.
const FOLDERS: [&str; 6] = [
    "run/sandboxes",
    "run/network/attachments",
    "run/pods",
    "root/pods",
    "root/logs",
    // A container's own layer, and where its overlay does its work.
    "root/images/snapshots",
];

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
            let Some(point) = line.split(' ').nth(4) else { continue };
            if point.starts_with(&home) {
                census.mounts.insert(point.to_owned());
            }
            // Kept open by a mount: `net:[4026532178]` is then what is mounted.
            if let Some(namespace) = line.split(' ').nth(3).filter(|root| root.starts_with("net:[")) {
                census.namespaces.insert(format!("{namespace} at {point}"));
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
        census.routes = world.sh("ip -o -4 route").lines().map(|line| line.trim_end().to_owned()).collect();
        census.namespaces.extend(world.sh("ip netns list-id").lines().map(str::to_owned));
        census.tables = world.sh("nft list tables").lines().map(str::to_owned).collect();
        census.find_rules(&world.sh("nft --json list ruleset"));
        census.find_processes(&home);
        let root = run.with_file_name("root");
        for folder in FOLDERS {
            let (place, below) = folder.split_once('/').expect("the folders are below two");
            let directory = if place == "run" { run } else { &root }.join(below);
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                census.files.insert(entry.path());
            }
        }
        census
    }

    /// What there is for single pods in one of `FOLDERS`, by name.
    ///
    /// # Panics
    /// When it is none of them.
    #[must_use]
    pub fn entries(&self, folder: &str) -> BTreeSet<String> {
        assert!(FOLDERS.contains(&folder), "{folder} is not counted");
        let within = |path: &&PathBuf| path.parent().is_some_and(|parent| parent.ends_with(folder));
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        self.files.iter().filter(within).filter_map(name).collect()
    }

    /// The processes in the agent's cgroups: for each command line, how many there are.
    #[must_use]
    pub fn commands(&self) -> BTreeMap<String, usize> {
        let mut commands = BTreeMap::new();
        for pid in &self.contained {
            // One that has ended since then is not there.
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned();
            *commands.entry(line).or_insert(0) += 1;
        }
        commands
    }

    /// Whether nothing at all was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes up what `nft --json list ruleset` tells.
    fn find_rules(&mut self, text: &str) {
        let ruleset: Value = serde_json::from_str(text).expect("nft speaks JSON");
        for object in ruleset["nftables"].as_array().into_iter().flatten() {
            for (kind, value) in object.as_object().into_iter().flatten().filter(|(kind, _)| *kind != "metainfo") {
                let mut value = value.clone();
                let Some(fields) = value.as_object_mut() else { continue };
                // A number that the kernel gives: another for the same rule after it was made again.
                fields.remove("handle");
                let elements = fields.remove("elem").unwrap_or_default();
                let name = fields.get("name").map(Value::to_string).unwrap_or_default();
                self.elements.extend(elements.as_array().into_iter().flatten().map(|one| format!("{name}: {one}")));
                self.rules.insert(format!("{kind} {value}"));
            }
        }
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
