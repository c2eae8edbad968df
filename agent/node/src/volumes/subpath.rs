//! subPath: a path inside a volume, resolved by the kernel and never out of it.
//!
//! The volume is under the control of containers that may exchange parts of the path at any
//! moment. So the path is walked with `openat2(RESOLVE_BENEATH)`, and what was found is bound, by
//! its descriptor, onto a place that only root can reach; the container gets that place.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::VolumeError;
use super::remove;
use crate::disk;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Binds `sub_path` of the volume at `source` onto `target`; a missing directory is made.
pub(super) fn bind(source: &Path, volume: &str, sub_path: &str, target: &Path) -> Result<PathBuf, VolumeError> {
    let refuse =
        |message: String| VolumeError::SubPath { name: volume.to_owned(), sub_path: sub_path.to_owned(), message };
    let found = resolve(source, sub_path).map_err(|error| match error {
        Errno::XDEV => refuse("leads out of the volume".to_owned()),
        error => refuse(io::Error::from(error).to_string()),
    })?;
    let is_folder = fstat(&found)
        .map(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
        .map_err(|error| refuse(io::Error::from(error).to_string()))?;

    remove::unmount(target)?;
    let parent = target.parent().unwrap_or(Path::new("/"));
    disk::ensure_directory(parent, 0o700).map_err(VolumeError::io("making", parent))?;
    prepare(target, is_folder).map_err(VolumeError::io("making", target))?;
    let descriptor = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    mount(Some(&descriptor), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|error| VolumeError::io("binding", target)(error.into()))?;
    Ok(target.to_owned())
}

fn prepare(target: &Path, is_folder: bool) -> io::Result<()> {
    if let Ok(found) = fs::symlink_metadata(target) {
        if found.is_dir() == is_folder {
            return Ok(());
        }
        if found.is_dir() { fs::remove_dir(target)? } else { fs::remove_file(target)? }
    }
    if is_folder { fs::create_dir(target) } else { File::create_new(target).map(drop) }
}

/// Opens `sub_path` below `source`, making the directories that are missing.
fn resolve(source: &Path, sub_path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(source, flags, Mode::empty())?;
    let relative = Path::new(sub_path);
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(Errno::XDEV);
    }
    if relative.as_os_str().is_empty() {
        return Ok(root);
    }
    match openat2(&root, relative, flags, Mode::empty(), RESOLVE) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    make_folders(root.as_fd(), relative)?;
    openat2(&root, relative, flags, Mode::empty(), RESOLVE)
}

/// Makes the directories of `relative` that are missing, with the mode of the volume itself: who
/// may use the volume may use what is made in it.
///
/// Source: kubernetes `pkg/volume/util/subpath/subpath_linux.go` doSafeMakeDir.
fn make_folders(root: BorrowedFd<'_>, relative: &Path) -> Result<(), Errno> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut walked = PathBuf::new();
    let mut at = openat2(root, ".", folder, Mode::empty(), RESOLVE)?;
    let mode = Mode::from_raw_mode(fstat(&at)?.st_mode & 0o7777);
    for part in relative.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        match mkdirat(&at, name, mode) {
            Ok(()) => {
                // The umask had its say. Its place may be taken already, but not by a link.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                fchmod(&openat(&at, name, flags, Mode::empty())?, mode)?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        walked.push(name);
        // From the root each time: links inside the volume may lead up, but not out.
        at = openat2(root, &walked, folder, Mode::empty(), RESOLVE)?;
    }
    Ok(())
}

/// Takes away every bind below `folder`.
pub(super) fn release(folder: &Path) -> Result<(), VolumeError> {
    for slot in super::names_in(folder) {
        let path = folder.join(slot);
        remove::unmount(&path)?;
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir(&path),
            Ok(_) => fs::remove_file(&path),
            Err(_) => Ok(()),
        };
        removed.map_err(VolumeError::io("removing", &path))?;
    }
    match fs::remove_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(VolumeError::io("removing", folder)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn read_below(root: &Path, sub_path: &str) -> Result<OwnedFd, Errno> {
        resolve(root, sub_path)
    }

    /// The attack of CVE-2021-30465 on volumes: the way is exchanged with a link while it is walked.
    #[test]
    fn a_directory_that_becomes_a_link_again_and_again_leads_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};

        use rustix::fs::{CWD, RenameFlags, renameat_with};

        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("way")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink("../../../../outside", volume.join("other")).unwrap();
        symlink("../outside", volume.join("third")).unwrap();
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = AtomicBool::new(false);
        let (mut inside, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rounds = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let other = volume.join(if rounds.is_multiple_of(2) { "other" } else { "third" });
                    renameat_with(CWD, volume.join("way"), CWD, other, RenameFlags::EXCHANGE).unwrap();
                    rounds += 1;
                }
            });
            let _stops_it_however_this_ends = Stop(&stop);
            // Both outcomes belong to the test; the bound is for a machine on which one of them never comes.
            for round in 0..20_000 {
                match resolve(&volume, &format!("way/new{round}/inner")) {
                    Ok(found) => {
                        inside += 1;
                        let path = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap();
                        assert!(path.starts_with(&volume), "{path:?}");
                    }
                    Err(_) => refused += 1,
                }
                if inside >= 200 && refused >= 200 {
                    break;
                }
            }
        });
        assert!(inside > 0 && refused > 0, "{inside} inside, {refused} refused");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_sub_path_never_leads_out_of_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("inside/deep")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("inside", volume.join("fine")).unwrap();
        for sub_path in ["up", "up/x", "absolute", "absolute/passwd", "../outside", "inside/../../x", "/etc"] {
            assert_eq!(read_below(&volume, sub_path).err(), Some(Errno::XDEV), "{sub_path}");
        }
        for sub_path in ["inside", "fine", "fine/deep", "new/deep/er", "fine/made"] {
            read_below(&volume, sub_path).unwrap();
        }
        assert!(volume.join("inside/made").is_dir());
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_sub_path_is_made_with_the_mode_of_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o2775, 0o1777, 0o700] {
            let volume = dir.path().join(format!("{mode:o}"));
            fs::create_dir(&volume).unwrap();
            fs::set_permissions(&volume, fs::Permissions::from_mode(mode)).unwrap();
            fs::create_dir(volume.join("given")).unwrap();
            fs::set_permissions(volume.join("given"), fs::Permissions::from_mode(0o711)).unwrap();
            read_below(&volume, "given/data/deep").unwrap();
            let found = |path: &str| fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o7777;
            assert_eq!((found("given/data"), found("given/data/deep")), (mode, mode), "{mode:o}");
            assert_eq!(found("given"), 0o711, "what is there already stays as it is");
        }
    }
}
