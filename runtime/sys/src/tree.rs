//! Removing a tree that somebody else shaped: no link is followed, no other file system entered, and neither stack nor
//! descriptors go by its depth.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Folders are entered so deep; a deeper one is first moved up.
const MAX_DEPTH: usize = 64;

/// Removes the file, link or tree at `path`; absent is fine. The last component is no link that is followed.
///
/// # Errors
/// The kernel's; and when something is mounted inside.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_at(CWD, &CString::new(path.as_os_str().as_bytes())?)
}

/// The same for `name` in `parent`.
///
/// # Errors
/// As [`remove`].
pub fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // POSIX has EPERM for a directory, Linux EISDIR.
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    let top = match open_folder(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        top => top?,
    };
    let device = fstat(&top)?.st_dev;
    let mut serial = 0;
    // Every pass removes at least one level of each branch or moves its rest up to the top.
    while !empty_folder(top.as_fd(), top.as_fd(), device, 0, &mut serial)? {}
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn open_folder(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
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
        if !matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
            gone(unlinkat(folder, name, AtFlags::empty()))?;
            continue;
        }
        if depth >= MAX_DEPTH {
            *serial += 1;
            let to = CString::new(format!(".portreeve-removing-{serial}"))?;
            match renameat(folder, name, top, to.as_c_str()) {
                // One of that name is there: the next pass takes another.
                Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
                Err(error) => return Err(error.into()),
            }
            whole = false;
            continue;
        }
        let inner = match open_folder(folder, name) {
            // Of a file system that does not say what its entries are.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                gone(unlinkat(folder, name, AtFlags::empty()))?;
                continue;
            }
            inner => inner?,
        };
        if fstat(&inner)?.st_dev != device {
            return Err(io::Error::other("something is mounted inside"));
        }
        if empty_folder(inner.as_fd(), top, device, depth + 1, serial)? {
            gone(unlinkat(folder, name, AtFlags::REMOVEDIR))?;
        } else {
            whole = false;
        }
    }
    Ok(whole)
}

/// What somebody else has removed meanwhile is removed.
fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_removed_tree_takes_nothing_with_it_that_its_links_lead_to() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("outside/precious"), "x").unwrap();
        fs::create_dir_all(at("tree/a/b")).unwrap();
        symlink(at("outside"), at("tree/a/link")).unwrap();
        symlink("../outside", at("tree/up")).unwrap();
        symlink(at("outside"), at("linked")).unwrap();
        fs::write(at("file"), "x").unwrap();
        for name in ["tree", "linked", "file", "absent"] {
            remove(&at(name)).unwrap();
            assert!(fs::symlink_metadata(at(name)).is_err(), "{name}");
        }
        assert_eq!(fs::read_to_string(at("outside/precious")).unwrap(), "x");
    }

    /// A call for each level would end the thread, and a descriptor for each is more than processes have.
    #[test]
    fn a_tree_deeper_than_any_stack_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("v");
        fs::create_dir(&top).unwrap();
        // On its way up meets what it would itself be called.
        fs::create_dir_all(top.join(".portreeve-removing-1/full")).unwrap();
        fs::write(top.join(".portreeve-removing-2"), "").unwrap();
        let mut at: OwnedFd = fs::File::open(&top).unwrap().into();
        for _ in 0..8_000 {
            rustix::fs::mkdirat(&at, c"d", Mode::from_raw_mode(0o700)).unwrap();
            at = open_folder(at.as_fd(), c"d").unwrap();
        }
        drop(at);
        let small = std::thread::Builder::new().stack_size(128 << 10);
        small.spawn(move || remove(&top)).unwrap().join().unwrap().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
