//! The cgroups below a cgroup. A container that may write to its own nests them as deep as it likes, so that their paths
//! may be longer than the kernel takes: they are gone through by descriptors, of which two are open at a time.

use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use super::CgroupError;
use super::lifecycle::gone;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A cgroup below another one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    parent: BorrowedFd<'a>,
    /// From the one where the walk began; the last is its own.
    names: &'a [CString],
}

impl Place<'_> {
    fn name(&self) -> &CStr {
        self.names.last().map_or(c".", CString::as_c_str)
    }

    /// Its path below the one where the walk began.
    pub(crate) fn path(&self) -> PathBuf {
        self.names.iter().map(|name| OsStr::from_bytes(name.to_bytes())).collect()
    }

    fn open(&self, file: &str, flags: OFlags) -> io::Result<std::fs::File> {
        let path = [self.name().to_bytes(), b"/", file.as_bytes()].concat();
        Ok(rustix::fs::openat(self.parent, path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    /// The text of one of its files.
    pub(crate) fn read(&self, file: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open(file, OFlags::RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Writes to one of its files.
    pub(crate) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        self.open(file, OFlags::WRONLY)?.write_all(value.as_bytes())
    }

    /// Removes it; one that is gone is none.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(self.parent, self.name(), AtFlags::REMOVEDIR).map_err(io::Error::from) {
            Err(error) if gone(&error) => Ok(()),
            other => other,
        }
    }
}

/// Visits every cgroup below the directory `top`, those below one before itself. What goes meanwhile is passed over.
pub(crate) fn walk(top: &Path, mut visit: impl FnMut(Place<'_>) -> io::Result<()>) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Read { path: top.to_owned(), source };
    let Some(mut here) = there(rustix::fs::openat(CWD, top, DIRECTORY, Mode::empty())).map_err(failed)? else {
        return Ok(());
    };
    let mut names: Vec<CString> = Vec::new();
    let mut left = vec![children(&here).map_err(failed)?];
    while let Some(siblings) = left.last_mut() {
        if let Some(name) = siblings.pop() {
            let opened = there(rustix::fs::openat(&here, name.as_c_str(), DIRECTORY, Mode::empty()));
            if let Some(below) = opened.map_err(failed)? {
                left.push(children(&below).map_err(failed)?);
                names.push(name);
                here = below;
            }
            continue;
        }
        left.pop();
        if !names.is_empty() {
            // A cgroup cannot be moved below another one: the one above is where this came from.
            let above =
                rustix::fs::openat(&here, "..", DIRECTORY, Mode::empty()).map_err(|error| failed(error.into()))?;
            visit(Place { parent: above.as_fd(), names: &names }).map_err(failed)?;
            names.pop();
            here = above;
        }
    }
    Ok(())
}

fn there(opened: rustix::io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match opened.map_err(io::Error::from) {
        Err(error) if gone(&error) => Ok(None),
        other => other.map(Some),
    }
}

fn children(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = match entry.map_err(io::Error::from) {
            Err(error) if gone(&error) => break,
            other => other?,
        };
        if entry.file_type() == FileType::Directory && !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deeper_than_any_path_is_visited_from_below_and_can_be_removed() {
        let top = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(top.path().join("a/b")).expect("make");
        std::fs::write(top.path().join("a/b/file"), "text").expect("write");
        std::fs::create_dir(top.path().join("c")).expect("make");
        let mut seen = Vec::new();
        walk(top.path(), |place| {
            seen.push((place.path(), place.read("file").ok()));
            Ok(())
        })
        .expect("walk");
        seen.sort();
        let expected = [("a", None), ("a/b", Some("text".to_owned())), ("c", None)];
        assert_eq!(seen, expected.map(|(path, text)| (PathBuf::from(path), text)));

        std::fs::remove_dir_all(top.path().join("a")).expect("remove");
        let mut here = rustix::fs::openat(CWD, top.path(), DIRECTORY, Mode::empty()).expect("open");
        let name = "d".repeat(200);
        for _ in 0..40 {
            rustix::fs::mkdirat(&here, name.as_str(), Mode::RWXU).expect("make");
            here = rustix::fs::openat(&here, name.as_str(), DIRECTORY, Mode::empty()).expect("open");
        }
        let mut longest = 0;
        walk(top.path(), |place| {
            longest = longest.max(place.path().as_os_str().len());
            place.remove()
        })
        .expect("walk");
        assert_eq!(longest, 40 * 201 - 1);
        assert_eq!(std::fs::read_dir(top.path()).expect("list").count(), 0);
        walk(&top.path().join("gone"), |_| panic!("nothing is there")).expect("nothing");
    }
}
