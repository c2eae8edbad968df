//! Removing what a pod's containers shaped, and what is mounted on it.

use std::io;
use std::path::Path;

use nix::mount::{MntFlags, umount2};

use super::VolumeError;
use super::empty_dir::is_mount_point;

/// Removes `name` in `folder`, with everything in it; absent is fine.
///
/// What is mounted on it, or one level below `volumes/` in it, is unmounted before.
pub(super) fn tree(folder: &Path, name: &str) -> Result<(), VolumeError> {
    let path = folder.join(name);
    if name.is_empty() || name.contains('/') || matches!(name, "." | "..") {
        return Err(VolumeError::io("removing", &path)(io::ErrorKind::InvalidInput.into()));
    }
    unmount(&path)?;
    for inner in super::names_in(&path.join("volumes")) {
        unmount(&path.join("volumes").join(inner))?;
    }
    portreeve_engine::remove_tree(&path).map_err(VolumeError::io("removing", &path))
}

/// Takes away every mount on exactly this path.
pub(super) fn unmount(path: &Path) -> Result<(), VolumeError> {
    // Mounts may lie on one another after a crash.
    for _ in 0..16 {
        match is_mount_point(path) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => return Ok(()),
            Err(error) => return Err(VolumeError::io("examining", path)(error)),
        }
        umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|error| VolumeError::io("unmounting", path)(error.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_removed_tree_takes_nothing_with_it_that_its_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "x").unwrap();
        let volume = dir.path().join("pods/u/volumes/v");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        symlink(&outside, volume.join("a/link")).unwrap();
        symlink("../../../../outside", volume.join("up")).unwrap();
        symlink(&outside, dir.path().join("pods/linked")).unwrap();

        tree(&dir.path().join("pods"), "u").unwrap();
        tree(&dir.path().join("pods"), "linked").unwrap();
        tree(&dir.path().join("pods"), "absent").unwrap();

        assert!(!dir.path().join("pods/u").exists());
        assert!(!dir.path().join("pods/linked").is_symlink());
        assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "x");
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["..", ".", "", "a/b"] {
            assert!(tree(dir.path(), name).is_err(), "{name}");
        }
    }
}
