//! emptyDir: a directory on disk, or a tmpfs of its own.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::VolumeError;
use super::ownership;
use crate::disk;

/// Makes sure that `path` is memory, so that Secrets below it never reach a disk.
pub(super) fn ensure_memory(path: &Path) -> Result<(), VolumeError> {
    let found = statfs(path).map_err(|error| VolumeError::io("examining", path)(error.into()))?;
    if found.filesystem_type() == TMPFS_MAGIC {
        return Ok(());
    }
    mount_tmpfs(path, "mode=0700")
}

/// Makes an emptyDir; `memory` is `Some(size limit)` for a tmpfs.
pub(super) fn ensure(place: &Path, memory: Option<Option<u64>>, fs_group: Option<u32>) -> Result<(), VolumeError> {
    disk::ensure_directory(place, 0o755).map_err(VolumeError::io("making", place))?;
    if let Some(size) = memory
        && !is_mount_point(place).map_err(VolumeError::io("examining", place))?
    {
        let size = size.map_or_else(String::new, |bytes| format!(",size={bytes}"));
        mount_tmpfs(place, &format!("mode=0777{size}"))?;
    }
    // Open to whatever user the containers run as, like the kubelet's.
    let mode = if fs_group.is_some() { 0o2777 } else { 0o777 };
    let folder = fs::File::open(place).map_err(VolumeError::io("opening", place))?;
    if let Some(group) = fs_group {
        ownership::give_to_group(folder.as_fd(), group, ownership::Access::ReadWrite)
            .map_err(VolumeError::io("giving to fsGroup", place))?;
    }
    folder.set_permissions(fs::Permissions::from_mode(mode)).map_err(VolumeError::io("opening up", place))
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<(), VolumeError> {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some(options))
        .map_err(|error| VolumeError::io("mounting a tmpfs on", path)(error.into()))
}

/// Whether something is mounted exactly here.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let found = statx(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}
