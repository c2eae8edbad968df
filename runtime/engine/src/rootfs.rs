//! Small files of an image, read from its layers without mounting anything.
//!
//! The layers are walked as overlayfs would merge them: the topmost entry of a name counts, a whiteout or an opaque
//! directory hides what is below, a symbolic link is followed within the image. Every step is one `openat` of one name
//! without following, so nothing outside the layers is ever reached, whatever the image contains.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

/// More links than that are a loop.
const LINKS: usize = 40;

/// One directory of the merged tree: its layers, topmost first.
type Merged = Vec<OwnedFd>;

enum Entry {
    Directory(Merged),
    File(OwnedFd),
    Link(OsString),
    Absent,
}

/// Reads a regular file of at most `limit` bytes; `None` when there is none.
///
/// # Errors
/// `FileTooLarge` beyond the limit; `InvalidInput` when it is no regular file; those of reading.
pub(crate) fn read(layers: &[PathBuf], path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(fd) = find(layers, Path::new(path))? else { return Ok(None) };
    let file = File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// What is at a path of an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory: the host's directories that it is made of, topmost first.
    Directory(Vec<PathBuf>),
    /// A file.
    File,
    /// Nothing.
    Absent,
}

/// What the image has at a path; links are followed within the image.
///
/// # Errors
/// Those of reading the layers; `InvalidInput` for a device.
pub(crate) fn place(layers: &[PathBuf], path: &Path) -> io::Result<Place> {
    Ok(match walk(layers, path)? {
        Entry::Directory(merged) => Place::Directory(paths(&merged)?),
        Entry::File(_) => Place::File,
        Entry::Absent | Entry::Link(_) => Place::Absent,
    })
}

/// The paths of descriptors, not ones put together: layers are read-only and ours, and no link of theirs was followed.
fn paths(merged: &Merged) -> io::Result<Vec<PathBuf>> {
    merged.iter().map(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))).collect()
}

/// The host directories that make up one directory of the image, topmost first; links in the path are refused.
pub(crate) fn directories(layers: &[PathBuf], path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut here: Merged = layers
        .iter()
        .map(|layer| Ok(rustix::fs::openat(CWD, layer, DIRECTORY, Mode::empty())?))
        .collect::<io::Result<_>>()?;
    for name in names(path) {
        here = match entry(&here, &name)? {
            Entry::Directory(merged) => merged,
            Entry::Absent | Entry::File(_) => return Ok(Vec::new()),
            Entry::Link(_) => return Err(Errno::LOOP.into()),
        };
    }
    paths(&here)
}

fn find(layers: &[PathBuf], path: &Path) -> io::Result<Option<OwnedFd>> {
    Ok(match walk(layers, path)? {
        Entry::Directory(merged) => merged.into_iter().next(),
        Entry::File(fd) => Some(fd),
        Entry::Absent | Entry::Link(_) => None,
    })
}

/// Goes to a path and follows links within the image; never ends in a link.
fn walk(layers: &[PathBuf], path: &Path) -> io::Result<Entry> {
    let root = || -> io::Result<Merged> {
        layers.iter().map(|layer| Ok(rustix::fs::openat(CWD, layer, DIRECTORY, Mode::empty())?)).collect()
    };
    let mut parents: Vec<Merged> = vec![root()?];
    let mut todo: VecDeque<OsString> = names(path);
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            if parents.len() > 1 {
                parents.pop();
            }
            continue;
        }
        let Some(here) = parents.last() else { return Ok(Entry::Absent) };
        match entry(here, &name)? {
            Entry::Absent => return Ok(Entry::Absent),
            Entry::Directory(merged) => parents.push(merged),
            Entry::File(fd) if todo.is_empty() => return Ok(Entry::File(fd)),
            Entry::File(_) => return Ok(Entry::Absent),
            Entry::Link(target) => {
                links += 1;
                if links > LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = Path::new(&target);
                if target.is_absolute() {
                    parents.truncate(1);
                }
                for name in names(target).into_iter().rev() {
                    todo.push_front(name);
                }
            }
        }
    }
    Ok(parents.pop().map_or(Entry::Absent, Entry::Directory))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn entry(here: &Merged, name: &OsStr) -> io::Result<Entry> {
    let mut merged = Merged::new();
    for layer in here {
        let stat = match rustix::fs::statat(layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let fd = rustix::fs::openat(layer, name, DIRECTORY, Mode::empty())?;
                let mut value = [0; 1];
                let opaque =
                    rustix::fs::fgetxattr(&fd, "trusted.overlay.opaque", &mut value) == Ok(1) && value == *b"y";
                merged.push(fd);
                if opaque {
                    break;
                }
            }
            // Something else hides what is below it, and is hidden by a directory above it.
            _ if !merged.is_empty() => break,
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Entry::Absent),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(layer, name, Vec::new())?;
                return Ok(Entry::Link(OsString::from_vec(target.into_bytes())));
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                return Ok(Entry::File(rustix::fs::openat(layer, name, flags, Mode::empty())?));
            }
            _ => {
                let text = String::from_utf8_lossy(name.as_bytes()).into_owned();
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{text} is a device")));
            }
        }
    }
    Ok(if merged.is_empty() { Entry::Absent } else { Entry::Directory(merged) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn layers(count: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let layers: Vec<_> = (0..count).map(|number| directory.path().join(number.to_string())).collect();
        for layer in &layers {
            fs::create_dir_all(layer.join("etc")).unwrap();
        }
        (directory, layers)
    }

    #[test]
    fn the_topmost_layer_counts_and_links_stay_in_the_image() {
        let (_directory, layers) = layers(2);
        fs::write(layers[0].join("etc/group"), "top").unwrap();
        fs::write(layers[1].join("etc/group"), "bottom").unwrap();
        fs::create_dir_all(layers[1].join("usr/lib")).unwrap();
        fs::write(layers[1].join("usr/lib/passwd"), "linked").unwrap();
        symlink("/../../usr/lib/passwd", layers[0].join("etc/passwd")).unwrap();
        assert_eq!(read(&layers, "etc/group", 10).unwrap().unwrap(), b"top");
        assert_eq!(read(&layers, "etc/passwd", 10).unwrap().unwrap(), b"linked");
        assert!(matches!(place(&layers, Path::new("/usr/lib")).unwrap(), Place::Directory(_)));
        assert_eq!(place(&layers, Path::new("/usr/none")).unwrap(), Place::Absent);
    }

    #[test]
    fn a_link_to_a_host_file_finds_nothing() {
        let (directory, layers) = layers(1);
        let secret = directory.path().join("secret");
        fs::write(&secret, "x").unwrap();
        symlink(&secret, layers[0].join("etc/passwd")).unwrap();
        assert_eq!(read(&layers, "etc/passwd", 10).unwrap(), None);
        fs::remove_file(layers[0].join("etc/passwd")).unwrap();
        symlink("../../../../secret", layers[0].join("etc/passwd")).unwrap();
        assert_eq!(read(&layers, "etc/passwd", 10).unwrap(), None);
    }

    #[test]
    fn endless_files_and_loops_of_links_are_refused() {
        let (_directory, layers) = layers(1);
        fs::write(layers[0].join("etc/passwd"), vec![b'x'; 100]).unwrap();
        assert_eq!(read(&layers, "etc/passwd", 99).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        symlink("group", layers[0].join("etc/group")).unwrap();
        assert!(read(&layers, "etc/group", 99).is_err());
    }
}
