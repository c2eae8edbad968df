//! fsGroup: a volume's files belong to a group.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, fchmod, fchown, fstat, openat, statat};

/// What the group may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
}

const MAX_DEPTH: usize = 256;

/// Gives `folder` and everything below it to `group`, without following any link.
pub(super) fn give_to_group(folder: BorrowedFd<'_>, group: u32, access: Access) -> io::Result<()> {
    let device = fstat(folder)?.st_dev;
    below(folder, group, access, device, 0)
}

fn below(folder: BorrowedFd<'_>, group: u32, access: Access, device: u64, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("deeper than {MAX_DEPTH} folders")));
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if found.st_dev != device {
            continue;
        }
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                let inner = openat(folder, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                below(inner.as_fd(), group, access, device, depth + 1)?;
            }
            // A second name may be a file of somebody else.
            FileType::RegularFile if found.st_nlink == 1 => {
                let file = openat(folder, name, flags, Mode::empty())?;
                own(file.as_fd(), group, access, false)?;
            }
            _ => {}
        }
    }
    own(folder, group, access, true)
}

fn own(file: BorrowedFd<'_>, group: u32, access: Access, is_folder: bool) -> io::Result<()> {
    let found = fstat(file)?;
    let add = match (access, is_folder) {
        (Access::ReadWrite, true) => 0o2770,
        (Access::ReadWrite, false) => 0o660,
        (Access::ReadOnly, true) => 0o2550,
        (Access::ReadOnly, false) => 0o440,
    };
    let mode = (found.st_mode & 0o7777) | add;
    if found.st_gid != group {
        fchown(file, None, Some(Gid::from_raw(group)))?;
    }
    fchmod(file, Mode::from_raw_mode(mode))?;
    Ok(())
}
