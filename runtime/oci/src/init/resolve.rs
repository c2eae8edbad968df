//! Paths of the container: resolved in its root by the kernel, made where they lack, used as descriptors.
//!
//! A symbolic link in the image or in a shared volume can point anywhere: it is followed below the root, whoever
//! exchanges it while we look (CVE-2021-30465, CVE-2024-45310, CVE-2026-41579).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use portreeve_sys::path::{Limits, in_root};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How often a link may send the walk elsewhere, as in the kernel.
const MAX_LINKS: u32 = 40;

/// The existing object at `path`, whatever it is, as a path descriptor.
pub(super) fn find(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    in_root(root, path, OFlags::PATH, Limits::default())
}

/// The directory at `path`, made with its parents (0755) when it is not there.
pub(super) fn make_directory(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    make(root, path, true)
}

/// The file at `path`, made empty (0644) with its parents when it is not there; an existing object may be anything
/// but a directory.
pub(super) fn make_file(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    make(root, path, false)
}

fn make(root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<OwnedFd> {
    let wanted = if directory { OFlags::PATH | OFlags::DIRECTORY } else { OFlags::PATH };
    match in_root(root, path, wanted, Limits::default()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    // Mostly only the last part lacks.
    if let (Some(above), Some(name)) = (path.parent(), path.file_name())
        && let Ok(parent) = in_root(root, above, OFlags::PATH | OFlags::DIRECTORY, Limits::default())
        && make_one(parent.as_fd(), name, directory).is_ok()
    {
        return in_root(root, path, wanted, Limits::default());
    }
    let mut links = 0;
    let mut todo = parts(path);
    let mut done = PathBuf::from("/");
    while let Some(name) = todo.pop_front() {
        let last = todo.is_empty();
        let parent = in_root(root, &done, OFlags::PATH | OFlags::DIRECTORY, Limits::default())?;
        let here = done.join(&name);
        let flags = if directory || !last { OFlags::PATH | OFlags::DIRECTORY } else { OFlags::PATH };
        match in_root(root, &here, flags, Limits::default()) {
            Ok(fd) if last => return Ok(fd),
            Ok(_) => {
                done = here;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match make_one(parent.as_fd(), &name, directory || !last) {
            Ok(()) if last => return in_root(root, &here, flags, Limits::default()),
            Ok(()) => done = here,
            Err(Errno::EXIST) => {
                // A link to what is not there (or a race: the walk starts again from the same place then).
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                match rustix::fs::readlinkat(&parent, &name, Vec::new()) {
                    Ok(target) => {
                        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                        if target.is_absolute() {
                            done = PathBuf::from("/");
                        }
                        for part in parts(&target).into_iter().rev() {
                            todo.push_front(part);
                        }
                    }
                    Err(_) => todo.push_front(name),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    in_root(root, &done, wanted, Limits::default())
}

/// Components with `..` kept: the kernel resolves it within the root.
fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

fn make_one(parent: BorrowedFd<'_>, name: &OsStr, directory: bool) -> rustix::io::Result<()> {
    if directory {
        return rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// The directory of the last path that was asked for: many are made in one.
#[derive(Debug, Default)]
pub(super) struct Parents(Option<(PathBuf, OwnedFd)>);

impl Parents {
    /// The directory that holds `path`, made when it is not there, and the last name.
    pub(super) fn of<'p>(&mut self, root: BorrowedFd<'_>, path: &'p Path) -> io::Result<(BorrowedFd<'_>, &'p OsStr)> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let above = path.parent().unwrap_or(Path::new("/"));
        let known = self.0.take().filter(|(known, _)| known == above);
        let (_, directory) = self.0.insert(match known {
            Some(known) => known,
            None => (above.to_owned(), make_directory(root, above)?),
        });
        Ok(((*directory).as_fd(), name))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn world() -> (tempfile::TempDir, PathBuf, std::fs::File) {
        let outside = tempfile::tempdir().expect("tempdir");
        let root = outside.path().join("root");
        std::fs::create_dir(&root).expect("mkdir");
        let fd = std::fs::File::open(&root).expect("open");
        (outside, root, fd)
    }

    #[test]
    fn a_missing_directory_is_made_with_its_parents() {
        let (_outside, root, fd) = world();
        make_directory(fd.as_fd(), Path::new("/a/b/c")).expect("make");
        assert!(root.join("a/b/c").is_dir());
    }

    #[test]
    fn a_dangling_link_leads_to_a_file_inside_the_root_never_outside() {
        let (outside, root, fd) = world();
        std::fs::create_dir(root.join("etc")).expect("mkdir");
        symlink("../../../../run/resolv.conf", root.join("etc/resolv.conf")).expect("symlink");
        make_file(fd.as_fd(), Path::new("/etc/resolv.conf")).expect("make");
        assert!(root.join("run/resolv.conf").is_file(), "made where the link points, seen from the root");
        assert!(!outside.path().join("run").exists());
        assert!(!Path::new("/run/resolv.conf").exists());
    }

    #[test]
    fn a_dangling_link_with_any_bytes_leads_to_the_file_of_this_name() {
        let (_outside, root, fd) = world();
        let name = OsString::from_vec(b"not \xff UTF-8".to_vec());
        symlink(&name, root.join("link")).expect("symlink");
        make_file(fd.as_fd(), Path::new("/link")).expect("make");
        assert!(root.join(&name).is_file());
    }

    #[test]
    fn a_link_to_the_host_makes_nothing_there() {
        let (outside, root, fd) = world();
        let host = outside.path().join("host");
        std::fs::create_dir(&host).expect("mkdir");
        symlink(&host, root.join("dev")).expect("symlink");
        make_directory(fd.as_fd(), Path::new("/dev/pts")).expect("make");
        assert_eq!(std::fs::read_dir(&host).expect("read").count(), 0);
        assert!(root.join(host.strip_prefix("/").expect("absolute")).join("pts").is_dir());
    }

    #[test]
    fn links_in_a_circle_end_with_an_error() {
        let (_outside, root, fd) = world();
        symlink("b", root.join("a")).expect("symlink");
        symlink("a", root.join("b")).expect("symlink");
        assert!(make_directory(fd.as_fd(), Path::new("/a/x")).is_err());
    }
}
