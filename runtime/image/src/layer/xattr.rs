//! Extended attributes: which of an archive's are kept, and overlayfs' own.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{StatVfs, XattrFlags, fgetxattr, fsetxattr, fstatvfs, lsetxattr},
    io::Errno,
};

const OPAQUE: &str = "trusted.overlay.opaque";

/// Hides what lower layers have in this directory. Source: Linux `overlayfs.rst`.
pub(crate) fn set_opaque(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Whether a directory hides what lower layers have in it.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0_u8; 1];
    matches!(fgetxattr(directory, OPAQUE, &mut value), Ok(1)) && value == *b"y"
}

/// Attributes that an image may set. Overlayfs' own could redirect lookups or hide files, labels
/// belong to the machine's policy, and integrity hashes to its keys.
fn is_kept(name: &[u8]) -> bool {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return false;
    }
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name == b"security.capability"
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// Sets an archive's attributes on an open file or directory.
pub(crate) fn set_all(file: impl AsFd, xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<()> {
    for (name, value) in xattrs.iter().filter(|(n, _)| is_kept(n)) {
        let set = fsetxattr(file.as_fd(), OsStr::from_bytes(name), value, XattrFlags::empty());
        tolerate(set, file.as_fd())?;
    }
    Ok(())
}

/// The same for what cannot be opened: links, devices, fifos.
pub(crate) fn set_all_at(parent: BorrowedFd<'_>, name: &[u8], xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<()> {
    if !xattrs.keys().any(|n| is_kept(n)) {
        return Ok(());
    }
    let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(OsStr::from_bytes(name));
    for (name, value) in xattrs.iter().filter(|(n, _)| is_kept(n)) {
        match lsetxattr(&path, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            // `user.` attributes exist only on files and directories.
            Err(Errno::PERM) if name.starts_with(b"user.") => {}
            other => tolerate(other, parent)?,
        }
    }
    Ok(())
}

/// A file system without attributes holds the image all the same, as with every other tool.
///
/// One that keeps a file's attributes in its inode and one more block, as ext4 does, says of more of them what it says
/// of a full disk. Nothing that is removed makes room for these.
fn tolerate(result: rustix::io::Result<()>, on: BorrowedFd<'_>) -> io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::NOSPC) if fstatvfs(on).is_ok_and(|now| has_room(&now)) => {
            Err(io::Error::other("they are more than this filesystem keeps for one file"))
        }
        other => Ok(other?),
    }
}

/// Some makes inodes as they are needed, and says that it has none.
fn has_room(filesystem: &StatVfs) -> bool {
    filesystem.f_bavail > 0 && (filesystem.f_files == 0 || filesystem.f_favail > 0)
}
