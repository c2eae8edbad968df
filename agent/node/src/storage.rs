//! What pods have on the disk: the writable parts of their containers, their volumes and their logs.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use walkdir::WalkDir;

use crate::report::{StorageReport, Stored};

/// Directories that are open at once while one tree is gone through.
const MAX_OPEN: usize = 16;
/// The unit of `st_blocks`; inode(7).
const BLOCK_BYTES: u64 = 512;

/// Counts what lies below the store's snapshots and a node's root. Reads every directory there: must not run on the
/// executor.
pub(crate) fn count_blocking(snapshots: &[impl AsRef<Path>], root: &Path) -> StorageReport {
    let containers = Stored {
        count: snapshots.len() as u64,
        bytes: snapshots.iter().map(|snapshot| tree_bytes(snapshot.as_ref())).sum(),
    };
    let mut volumes = Stored::default();
    for pod in children(&root.join("pods")) {
        for volume in children(&pod.join("volumes")) {
            volumes.count += 1;
            volumes.bytes += tree_bytes(&volume);
        }
    }
    let logs = root.join("logs");
    let logs = Stored { count: children(&logs).len() as u64, bytes: tree_bytes(&logs) };
    StorageReport { containers, volumes, logs }
}

/// Directories in a directory; none in one that is not there (any more).
fn children(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Bytes that a tree takes on its filesystem, as du(1) counts: a file with several names once, nothing of what is
/// mounted in it. What cannot be reached, or goes away meanwhile, counts for nothing.
fn tree_bytes(root: &Path) -> u64 {
    let mut several_names = BTreeSet::new();
    let walk = WalkDir::new(root).follow_root_links(false).same_file_system(true).max_open(MAX_OPEN);
    let files = walk.into_iter().flatten().filter_map(|entry| entry.metadata().ok());
    let counted = files.filter(|file| file.is_dir() || file.nlink() == 1 || several_names.insert(file.ino()));
    counted.map(|file| file.blocks() * BLOCK_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_file_counts_once_and_links_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("big"), vec![1; 4 << 20]).unwrap();
        let volume = root.path().join("pods/uid/volumes/data");
        fs::create_dir_all(&volume).unwrap();
        fs::create_dir_all(root.path().join("logs/pod")).unwrap();
        fs::create_dir_all(root.path().join("pods/uid/volumes/empty")).unwrap();
        let empty = count_blocking(&[] as &[&Path], root.path());
        assert_eq!((empty.volumes.count, empty.logs.count, empty.containers), (2, 1, Stored::default()));
        fs::write(volume.join("a"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(volume.join("a"), volume.join("b")).unwrap();
        symlink(outside.path().join("big"), volume.join("c")).unwrap();
        symlink(outside.path(), volume.join("d")).unwrap();
        symlink(outside.path(), root.path().join("pods/uid/volumes/linked")).unwrap();
        let full = count_blocking(&[&volume, &root.path().join("gone")], root.path());
        let more = full.volumes.bytes - empty.volumes.bytes;
        assert!((1 << 20..(1 << 20) + 65_536).contains(&more), "{more}");
        assert_eq!(full.volumes.count, 2);
        assert_eq!(full.containers.count, 2);
        assert!((1 << 20..2 << 20).contains(&full.containers.bytes), "{full:?}");
    }
}
