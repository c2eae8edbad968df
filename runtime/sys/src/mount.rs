//! The mount API by descriptor: file systems and trees are made detached, given their attributes, then attached.
//!
//! ```text
//!   new_filesystem -> set_* -> create -> mount --+
//!                                                +--> set_attributes -> attach
//!   clone_tree ----------------------------------+
//! ```

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::raw::check;

/// Read-only mount.
pub const READ_ONLY: u64 = 0x01;
/// Set-user-ID and file capabilities do not count.
pub const NO_SUID: u64 = 0x02;
/// Device nodes cannot be opened.
pub const NO_DEV: u64 = 0x04;
/// Programs cannot be executed.
pub const NO_EXEC: u64 = 0x08;
/// Mask of the access time modes below.
pub const ATIME_MASK: u64 = 0x70;
/// Access times as POSIX wants, the value 0 within [`ATIME_MASK`] being relative access times.
pub const STRICT_ATIME: u64 = 0x20;
/// No access times.
pub const NO_ATIME: u64 = 0x10;
/// No access times of directories.
pub const NO_DIR_ATIME: u64 = 0x80;
/// Ids are mapped through a user namespace.
pub const ID_MAP: u64 = 0x0010_0000;
/// Symbolic links are not followed.
pub const NO_SYMLINK_FOLLOW: u64 = 0x0020_0000;

/// How mount events travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// To and from the peers.
    Shared,
    /// From the master only.
    Slave,
    /// Not at all.
    Private,
    /// Not at all, and it cannot be bound elsewhere.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Self::Shared => libc::MS_SHARED,
            Self::Slave => libc::MS_SLAVE,
            Self::Private => libc::MS_PRIVATE,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A change of a mount's attributes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear, before setting.
    pub clear: u64,
    /// New propagation.
    pub propagation: Option<Propagation>,
    /// User namespace whose maps the mount translates ids with.
    pub id_map: Option<BorrowedFd<'a>>,
    /// Also for every mount below.
    pub recursive: bool,
}

impl Change<'_> {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0 && self.propagation.is_none() && self.id_map.is_none()
    }
}

/// Changes the attributes of the mount behind `fd`, which is its root. mount_setattr(2), Linux 5.12.
///
/// # Errors
/// `EPERM` for an attribute that is locked in this user namespace, `EBUSY` when files are open for writing,
/// `EINVAL` for an id map on a file system without support.
pub fn set_attributes(fd: BorrowedFd<'_>, change: &Change<'_>) -> io::Result<()> {
    let mut attributes = Attributes {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation.map_or(0, Propagation::flag),
        userns_fd: 0,
    };
    if let Some(namespace) = change.id_map {
        attributes.set |= ID_MAP;
        attributes.userns_fd = u64::from(namespace.as_raw_fd().unsigned_abs());
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, `attributes` a valid mount_attr of the size given; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    })?;
    Ok(())
}

/// A detached copy of the mount tree at `path` (from `directory` when relative). The last component is not followed
/// when `no_follow`.
///
/// # Errors
/// `ENOENT`, `EPERM` without CAP_SYS_ADMIN, `EINVAL` when locked mounts would be uncovered or it is unbindable.
pub fn clone_tree(directory: BorrowedFd<'_>, path: &Path, recursive: bool, no_follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if no_follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    Ok(rustix::mount::open_tree(directory, path, flags)?)
}

/// A detached copy of the mount tree at an open file or directory.
///
/// # Errors
/// As [`clone_tree`].
pub fn clone_tree_of(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(fd, "", flags)?)
}

/// Begins a new file system of this type.
///
/// # Errors
/// `ENODEV` when the kernel does not know the type, `EPERM`.
pub fn new_filesystem(kind: &str) -> io::Result<OwnedFd> {
    Ok(rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?)
}

/// Begins to change the file system that is mounted at `path`; nothing is changed before [`reconfigure`].
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN in the user namespace of the file system, `EINVAL` where nothing is mounted.
pub fn pick(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::mount::fspick(CWD, path, FsPickFlags::FSPICK_CLOEXEC)?)
}

/// Gives the options that were set to a file system that [`pick`] has answered.
///
/// # Errors
/// As its type has them: see mount(2), `MS_REMOUNT`.
pub fn reconfigure(filesystem: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::mount::fsconfig_reconfigure(filesystem)?)
}

/// Sets a `key=value` option, at most 255 bytes of value.
///
/// # Errors
/// `EINVAL` for an option the file system does not take.
pub fn set_string(filesystem: BorrowedFd<'_>, key: &str, value: impl AsRef<std::ffi::OsStr>) -> io::Result<()> {
    Ok(rustix::mount::fsconfig_set_string(filesystem, key, value.as_ref())?)
}

/// Sets an option without a value.
///
/// # Errors
/// As [`set_string`].
pub fn set_flag(filesystem: BorrowedFd<'_>, key: &str) -> io::Result<()> {
    Ok(rustix::mount::fsconfig_set_flag(filesystem, key)?)
}

/// Sets an option to an open file.
///
/// # Errors
/// As [`set_string`].
pub fn set_fd(filesystem: BorrowedFd<'_>, key: &str, value: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::mount::fsconfig_set_fd(filesystem, key, value)?)
}

/// Makes the file system and a detached mount of it with these attributes.
///
/// # Errors
/// `EINVAL` for an attribute that the kernel cannot take here, and those of the file system; [`complaint`] has its own
/// words for it.
pub fn create(filesystem: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    let attributes = u32::try_from(attributes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    rustix::mount::fsconfig_create(filesystem)?;
    Ok(rustix::mount::fsmount(filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// What the kernel had to say about the last failure on a file system context, if anything.
#[must_use]
pub fn complaint(filesystem: BorrowedFd<'_>) -> Option<String> {
    let mut buffer = [0_u8; 512];
    let length = rustix::io::read(filesystem, &mut buffer).ok()?;
    let text = String::from_utf8_lossy(buffer.get(..length)?).trim().to_owned();
    // The first two characters are the level and a space: "e overlay: ...".
    let text = text.get(2..).unwrap_or(&text).to_owned();
    (!text.is_empty()).then_some(text)
}

/// Attaches a detached mount on top of the open directory or file `target`.
///
/// # Errors
/// `ENOTDIR` when one is a directory and the other is not, `EINVAL` when `target` is not in this mount namespace.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Makes the directory behind `root` the root of this mount namespace and detaches the old one; the working
/// directory is then the new root.
///
/// # Errors
/// `EINVAL` when `root` is not the root of an attached mount, or the old root is the initial ramfs.
pub fn pivot_root(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The new root over the old one at the same place, pivot_root(2) "pivot_root(".", ".")".
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Makes the mount the root directory of this process, whose old root stays where it was.
///
/// # Errors
/// `EPERM` without CAP_SYS_CHROOT.
pub fn change_root(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Detaches the mount at `path`, at once for new users, in fact when its last user has gone.
///
/// # Errors
/// `EINVAL` when it is not a mount point.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}
