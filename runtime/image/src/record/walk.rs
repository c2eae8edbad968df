//! Goes through a directory in the order of a record, by descriptors and never through a link.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};
use rustix::fs::{lgetxattr, llistxattr};
use sha2::{Digest as _, Sha256};

use crate::{
    layer::{DIRECTORY, open_beneath, shown},
    record::{
        FILE, Root,
        line::{Entry, write},
    },
};

/// Source: xattr(7), `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const LARGEST_XATTR: usize = 64 << 10;

/// Tells of a file in a directory what it contains.
pub(super) type DigestOf<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &[u8], &FileStat) -> io::Result<Option<[u8; 32]>>;

/// Takes a path, and its line.
pub(super) type Tell<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> io::Result<()>;

/// Tells of every entry, its path and its line of a record. Without `attributes` nothing has any, unless the root has:
/// then what was made in it may have got some from it.
pub(super) fn walk(
    Root { directory: root, has_record }: Root<'_>,
    attributes: bool,
    digest_of: DigestOf<'_>,
    tell: Tell<'_>,
) -> io::Result<()> {
    let mut line = Vec::new();
    let mut buffer = vec![0; LARGEST_XATTR];
    // A directory's path, and the names in it that are still to come, the next one last.
    let mut left: Vec<(Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
    let stat = fstat(root)?;
    let xattrs = xattrs_of(&by_name(root, b"."), &mut buffer)?;
    let attributes = attributes || !xattrs.is_empty();
    write(&mut line, b"", &Entry { stat: &stat, digest: None, target: None, xattrs: &xattrs });
    tell(b"", &line)?;
    // The caller's descriptor has a place in the directory that may not be its beginning.
    let mut names = names_in(openat(root, ".", DIRECTORY, Mode::empty())?)?;
    names.retain(|name| !has_record || name != FILE.as_bytes());
    left.push((Vec::new(), names));
    while let Some((directory, mut names)) = left.pop() {
        let parent = open_beneath(root, &directory, DIRECTORY).map_err(|e| named(&directory, e))?;
        while let Some(name) = names.pop() {
            let mut path = directory.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let failed = |e: io::Error| named(&path, e);
            let stat = fstatat(&parent, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|e| failed(e.into()))?;
            let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
            let digest = match kind {
                SFlag::S_IFREG => digest_of(parent.as_fd(), &name, &stat).map_err(failed)?,
                _ => None,
            };
            let target = match kind {
                SFlag::S_IFLNK => Some(readlinkat(&parent, OsStr::from_bytes(&name)).map_err(|e| failed(e.into()))?),
                _ => None,
            };
            let xattrs = match attributes {
                true => xattrs_of(&by_name(parent.as_fd(), &name), &mut buffer).map_err(failed)?,
                false => Vec::new(),
            };
            line.clear();
            let target = target.as_ref().map(|target| target.as_bytes());
            write(&mut line, &path, &Entry { stat: &stat, digest, target, xattrs: &xattrs });
            tell(&path, &line)?;
            if kind == SFlag::S_IFDIR {
                let inside = openat(&parent, OsStr::from_bytes(&name), DIRECTORY, Mode::empty());
                let inside = inside.map_err(io::Error::from).and_then(names_in).map_err(failed)?;
                left.push((directory, names));
                left.push((path, inside));
                break;
            }
        }
    }
    Ok(())
}

/// A name for calls that take no descriptor.
fn by_name(directory: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(OsStr::from_bytes(name))
}

/// An error with the path that it is about.
fn named(path: &[u8], error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", shown(path)))
}

/// Names in a directory, the first of them last.
fn names_in(directory: OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(directory)?.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// Reads a file for its digest.
pub(super) fn read(parent: BorrowedFd<'_>, name: &[u8], stat: &FileStat) -> io::Result<[u8; 32]> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let mut file = File::from(openat(parent, OsStr::from_bytes(name), flags, Mode::empty())?);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; usize::try_from(stat.st_size).unwrap_or(0).clamp(1, 1 << 18)];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// Its extended attributes by name, but for those that the machine's own policy sets.
fn xattrs_of(path: &Path, buffer: &mut [u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let length = match llistxattr(path, &mut *buffer) {
        Ok(0) | Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let list = buffer.get(..length).unwrap_or_default().to_vec();
    let of_the_machine = |name: &[u8]| [&b"security.selinux"[..], b"security.ima", b"security.evm"].contains(&name);
    let names = list.split(|b| *b == 0).filter(|name| !name.is_empty() && !of_the_machine(name));
    let mut found = Vec::new();
    for name in names {
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut *buffer)?;
        found.push((name.to_vec(), buffer.get(..length).unwrap_or_default().to_vec()));
    }
    found.sort();
    Ok(found)
}
