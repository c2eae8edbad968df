//! What the kernel counts outside of cgroups: bytes on the network, and what a container has written.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portreeve_engine::{ContainerId, ContainerStatus, NetworkNamespace, SandboxStatus};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::{Cri, v1, view};

/// For how long the size of what was written is told again: it is found by looking at every file.
const FRESH: Duration = Duration::from_secs(30);
/// What lies deeper is not counted.
const MAX_DEPTH: usize = 100;

/// The sizes that were found last, by container.
#[derive(Debug, Clone, Default)]
pub(super) struct Sizes(Arc<Mutex<BTreeMap<ContainerId, (Instant, Size)>>>);

/// What a tree takes on its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    bytes: u64,
    inodes: u64,
}

impl Cri {
    /// What a container has written to its own layer; nothing when that cannot be found.
    pub(super) async fn written(&self, container: &ContainerStatus) -> Option<v1::FilesystemUsage> {
        let known = self.sizes.0.lock().unwrap_or_else(PoisonError::into_inner).get(&container.id).copied();
        let size = match known.filter(|(since, _)| since.elapsed() < FRESH) {
            Some((_, size)) => size,
            None => {
                let (store, id) = (self.engine.images().clone(), container.id.clone());
                let found = tokio::task::spawn_blocking(move || {
                    let parts = store.writable_parts();
                    size_of(&part_of(parts, id.as_str())?).ok()
                });
                let size = found.await.ok().flatten()?;
                let mut sizes = self.sizes.0.lock().unwrap_or_else(PoisonError::into_inner);
                // Of containers that are gone nothing is kept.
                sizes.retain(|_, (since, _)| since.elapsed() < FRESH);
                sizes.insert(container.id.clone(), (Instant::now(), size));
                size
            }
        };
        Some(v1::FilesystemUsage {
            timestamp: view::nanoseconds(Timestamp::now()),
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: self.engine.config().images.root.display().to_string(),
            }),
            used_bytes: Some(v1::UInt64Value { value: size.bytes }),
            inodes_used: Some(v1::UInt64Value { value: size.inodes }),
        })
    }

    /// What went through a pod's own network; nothing when it has the node's. `pids` are processes of its containers.
    pub(super) fn network(sandbox: &SandboxStatus, pids: Vec<u32>) -> Option<v1::NetworkUsage> {
        if sandbox.namespaces.network == NetworkNamespace::Node {
            return None;
        }
        // A pod with users of its own has its network away from its shim.
        let mut pids = pids.into_iter().chain(sandbox.shim_pid);
        let own = std::fs::read_link("/proc/self/ns/net").ok()?;
        let inside = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|network| network != own);
        let pid = pids.find(inside)?;
        let interfaces = interfaces(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?);
        Some(v1::NetworkUsage {
            timestamp: view::nanoseconds(Timestamp::now()),
            default_interface: interfaces.first().cloned(),
            interfaces: interfaces.into_iter().skip(1).collect(),
        })
    }
}

fn part_of(parts: Vec<PathBuf>, id: &str) -> Option<PathBuf> {
    parts.into_iter().find(|part| part.parent().and_then(Path::file_name).is_some_and(|name| name == id))
}

/// The interfaces of `/proc/<pid>/net/dev`, but loopback. Source: proc_pid_net(5).
fn interfaces(text: &str) -> Vec<v1::NetworkInterfaceUsage> {
    let interface = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|count| count.parse().ok()).collect();
        let count = |place: usize| counts.get(place).map(|count| v1::UInt64Value { value: *count });
        (name.trim() != "lo").then(|| v1::NetworkInterfaceUsage {
            name: name.trim().to_owned(),
            rx_bytes: count(0),
            rx_errors: count(2),
            tx_bytes: count(8),
            tx_errors: count(10),
        })
    };
    text.lines().filter_map(interface).collect()
}

/// What a tree takes, its root not counted. Whoever owns it may change it meanwhile: no link is followed.
fn size_of(root: &Path) -> rustix::io::Result<Size> {
    let mut size = Size::default();
    let directory = rustix::fs::open(root, FLAGS, Mode::empty())?;
    add(&directory, 0, &mut size);
    Ok(size)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What cannot be read, or has just gone, is not counted.
fn add(directory: &OwnedFd, depth: usize, size: &mut Size) {
    let Ok(entries) = Dir::read_from(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        size.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        size.inodes += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && depth < MAX_DEPTH
            && let Ok(below) = rustix::fs::openat(directory.as_fd(), name, FLAGS, Mode::empty())
        {
            add(&below, depth + 1, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_but_loopback_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
                    eth0: 1234      10    1    0    0     0          0         0     5678      20    2    0    0     0       0          0\n";
        let found = interfaces(text);
        let numbers = |one: &v1::NetworkInterfaceUsage| [one.rx_bytes, one.rx_errors, one.tx_bytes, one.tx_errors];
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "eth0");
        assert_eq!(numbers(&found[0]).map(|number| number.unwrap().value), [1234, 1, 5678, 2]);
        assert_eq!(interfaces("nonsense"), []);
    }

    #[test]
    fn a_tree_is_counted_and_no_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let (tree, other) = (home.path().join("tree"), home.path().join("other"));
        std::fs::create_dir_all(tree.join("a/b")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(tree.join("a/b/file"), vec![7; 100_000]).unwrap();
        std::fs::write(other.join("large"), vec![7; 1_000_000]).unwrap();
        std::os::unix::fs::symlink(&other, tree.join("link")).unwrap();
        let size = size_of(&tree).unwrap();
        assert_eq!(size.inodes, 4);
        assert!(size.bytes >= 100_000 && size.bytes < 200_000, "{size:?}");
        assert!(size_of(&tree.join("link")).is_err() && size_of(&home.path().join("absent")).is_err());
    }
}
