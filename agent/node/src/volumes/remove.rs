//! Removing a tree that its user shaped: no link is followed, no other file system entered.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, renameat, statat, unlinkat};

use super::VolumeError;
use super::empty_dir::is_mount_point;

/// Folders are entered so deep; a deeper one is first moved up.
const MAX_DEPTH: usize = 64;

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
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(folder, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(VolumeError::io("opening", folder)(error.into())),
    };
    remove_entry(parent.as_fd(), name).map_err(VolumeError::io("removing", &path))
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

fn remove_entry(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let found = match statat(parent, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Ok(unlinkat(parent, name.as_c_str(), AtFlags::empty())?);
    }
    let top = open_folder(parent, &name)?;
    let device = fstat(&top)?.st_dev;
    let mut serial = 0;
    // Every pass removes at least one level of each branch or moves its rest up to the top.
    while !empty_folder(top.as_fd(), top.as_fd(), device, 0, &mut serial)? {}
    Ok(unlinkat(parent, name.as_c_str(), AtFlags::REMOVEDIR)?)
}

fn open_folder(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Empties `folder`; false if parts were moved up to `top` instead.
fn empty_folder(
    folder: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    device: u64,
    depth: usize,
    serial: &mut u64,
) -> io::Result<bool> {
    let mut whole = true;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            unlinkat(folder, name, AtFlags::empty())?;
            continue;
        }
        if found.st_dev != device {
            return Err(io::Error::other("something is mounted inside"));
        }
        if depth >= MAX_DEPTH {
            *serial += 1;
            let to = CString::new(format!(".portreeve-removing-{serial}"))?;
            match renameat(folder, name, top, to.as_c_str()) {
                Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => {}
                Err(error) => return Err(error.into()),
            }
            whole = false;
            continue;
        }
        let inner = open_folder(folder, name)?;
        if empty_folder(inner.as_fd(), top, device, depth + 1, serial)? {
            unlinkat(folder, name, AtFlags::REMOVEDIR)?;
        } else {
            whole = false;
        }
    }
    Ok(whole)
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
    fn a_tree_deeper_than_any_stack_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("v")).unwrap();
        let mut at: OwnedFd = fs::File::open(dir.path().join("v")).unwrap().into();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            at = open_folder(at.as_fd(), c"d").unwrap();
        }
        drop(at);
        tree(dir.path(), "v").unwrap();
        assert!(!dir.path().join("v").exists());
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["..", ".", "", "a/b"] {
            assert!(tree(dir.path(), name).is_err(), "{name}");
        }
    }
}
