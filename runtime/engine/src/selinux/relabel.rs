//! Giving files of the node a label, because a container is to use them.
//!
//! Who shaped a volume may be a container that still runs: no link is followed, every file is held by a descriptor when it
//! is labelled, and neither stack nor descriptors go by the depth of folders.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::EngineError;

/// Where a file has its label. Source: xattr(7), linux/xattr.h `XATTR_NAME_SELINUX`.
const NAME: &str = "security.selinux";
/// No label is longer, in bytes: longer ones are taken for another one.
const LONGEST: usize = 4096;
/// What belongs to the machine, and is not relabelled for a container, whatever path leads there: programs of the node
/// could not use it any more. As opencontainers/selinux has it, which Docker, containerd and CRI-O ask.
const OF_THE_MACHINE: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Gives a volume, a file or a directory with all that is in it, this label. What has it is not written to, and what has no
/// labels stays without. A link has one of its own, and what it leads to keeps its.
///
/// # Errors
/// [`EngineError::Invalid`] for what belongs to the machine; [`EngineError::File`] for the first file that could not be
/// labelled.
pub(crate) fn relabel(volume: &Path, label: &str) -> Result<(), EngineError> {
    let top = open(CWD, volume).map_err(EngineError::file("opening for SELinux", volume))?;
    let found = rustix::fs::fstat(&top).map_err(|error| EngineError::file("looking at", volume)(error.into()))?;
    for place in OF_THE_MACHINE {
        if fs::metadata(place).is_ok_and(|at| (at.dev(), at.ino()) == (found.st_dev, found.st_ino)) {
            let message = format!(
                "{}: {place} belongs to the machine and is not relabelled: mount a directory in it, or leave \
                 selinux_relabel out",
                volume.display()
            );
            return Err(EngineError::invalid("mounts.selinux_relabel", message));
        }
    }
    set(top.as_fd(), label)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Ok(());
    }
    // Paths from the top on, of folders that are still to be entered.
    let mut folders = vec![PathBuf::from(".")];
    while let Some(path) = folders.pop() {
        let failed = |error: Errno| EngineError::file("relabelling for SELinux", &volume.join(&path))(error.into());
        let Some(folder) = enter(&top, &path).map_err(failed)? else { continue };
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let file = match open(folder.as_fd(), name) {
                // Somebody has removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(EngineError::file("opening for SELinux", &volume.join(&path).join(name)))?,
            };
            set(file.as_fd(), label)?;
            let kind = rustix::fs::fstat(&file).map_err(failed)?.st_mode;
            if FileType::from_raw_mode(kind) == FileType::Directory {
                folders.push(path.join(name));
            }
        }
    }
    Ok(())
}

/// Gives one file or directory of this program's own a label, and nothing that is in it.
///
/// # Errors
/// [`EngineError::File`]
pub(crate) fn label(path: &Path, label: &str) -> Result<(), EngineError> {
    let file = open(CWD, path).map_err(EngineError::file("opening for SELinux", path))?;
    set(file.as_fd(), label)
}

/// A file, a link itself, or whatever else has this name; nothing happens to it.
fn open(directory: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, path, flags, Mode::empty())?)
}

/// A folder below the top; none when it is not there any more, or something else is.
fn enter(top: &OwnedFd, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Volumes have mounts in them, which the container sees as well.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn set(file: BorrowedFd<'_>, label: &str) -> Result<(), EngineError> {
    // The link leads to the file itself, also where that is a link: fsetxattr(2) takes no such descriptor.
    let place = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut buffer = [0; LONGEST];
    let length = rustix::fs::getxattr(&place, NAME, &mut buffer).unwrap_or(0);
    // The kernel ends it with a zero.
    if buffer.get(..length).is_some_and(|has| has.strip_suffix(&[0]).unwrap_or(has) == label.as_bytes()) {
        return Ok(());
    }
    match rustix::fs::setxattr(&place, NAME, label.as_bytes(), XattrFlags::empty()) {
        // The file system has none, or one label for all of its files.
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => {
            let path = fs::read_link(&place).unwrap_or_default();
            Err(EngineError::file("relabelling for SELinux", &path)(error.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    /// The label of a file, or of a link itself.
    fn of(path: &Path) -> Option<String> {
        let mut buffer = [0; LONGEST];
        let length = rustix::fs::lgetxattr(path, NAME, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).trim_end_matches('\0').to_owned())
    }

    /// A place whose files can be labelled by this process, on this kernel; without one it says so.
    fn place() -> Option<tempfile::TempDir> {
        let directory = tempfile::tempdir().unwrap();
        match rustix::fs::setxattr(directory.path(), NAME, LABEL.as_bytes(), XattrFlags::empty()) {
            Ok(()) => Some(directory),
            Err(error) => {
                // Without SELinux a kernel stores what root says; with it, what its policy knows.
                let _ = writeln!(std::io::stderr(), "SKIPPED: {NAME} cannot be set in a temporary directory: {error}");
                None
            }
        }
    }

    #[test]
    fn a_volume_is_relabelled_with_all_that_is_in_it_and_nothing_that_its_links_lead_to() {
        let Some(home) = place() else { return };
        let at = |name: &str| home.path().join(name);
        for folder in ["volume/a/b", "volume/empty", "outside/folder"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["volume/file", "volume/a/b/deep", "outside/file", "outside/folder/file"] {
            fs::write(at(file), "").unwrap();
        }
        symlink(at("outside/file"), at("volume/link")).unwrap();
        symlink(at("outside/folder"), at("volume/a/folder")).unwrap();
        symlink("nowhere", at("volume/dangling")).unwrap();
        rustix::fs::mknodat(CWD, at("volume/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        relabel(&at("volume"), LABEL).unwrap();
        for inside in ["", "/a", "/a/b", "/empty", "/file", "/a/b/deep", "/link", "/a/folder", "/dangling", "/pipe"] {
            assert_eq!(of(&at(&format!("volume{inside}"))).as_deref(), Some(LABEL), "{inside}");
        }
        for outside in ["outside", "outside/file", "outside/folder", "outside/folder/file"] {
            assert_eq!(of(&at(outside)), None, "{outside}");
        }
        // Once more, and for a file alone.
        let other = LABEL.replace("c1,c2", "c3,c4");
        relabel(&at("volume/file"), &other).unwrap();
        assert_eq!((of(&at("volume/file")), of(&at("volume"))), (Some(other), Some(LABEL.to_owned())));
        // A link as the volume is labelled itself.
        symlink(at("outside"), at("way")).unwrap();
        relabel(&at("way"), LABEL).unwrap();
        assert_eq!((of(&at("way")).as_deref(), of(&at("outside"))), (Some(LABEL), None));
    }

    #[test]
    fn a_volume_may_be_as_deep_as_a_path_and_what_is_deeper_is_an_error() {
        let Some(home) = place() else { return };
        let top = home.path().join("volume");
        fs::create_dir(&top).unwrap();
        let mut folder = open(CWD, &top).unwrap();
        let mut made = top.clone();
        for _ in 0..1000 {
            rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
            folder = open(folder.as_fd(), Path::new("d")).unwrap();
            made.push("d");
        }
        relabel(&top, LABEL).unwrap();
        assert_eq!(of(&made).as_deref(), Some(LABEL));
        for _ in 0..1100 {
            rustix::fs::mkdirat(&folder, "d", Mode::RWXU).unwrap();
            folder = open(folder.as_fd(), Path::new("d")).unwrap();
        }
        let error = relabel(&top, LABEL).unwrap_err();
        assert!(portreeve_sys::chain(&error).contains("File name too long"), "{error}");
        portreeve_sys::tree::remove(&top).unwrap();
    }

    #[test]
    fn what_belongs_to_the_machine_is_not_relabelled_whatever_path_leads_there() {
        let home = tempfile::tempdir().unwrap();
        let before = of(Path::new("/etc"));
        for path in ["/", "/etc", "/usr/", "/home", "/etc/passwd", "/usr/../etc", "/var/lib"] {
            // Machines differ in what they have.
            if !Path::new(path).exists() {
                continue;
            }
            let error = relabel(Path::new(path), LABEL).unwrap_err();
            let EngineError::Invalid { field, message } = &error else { panic!("{error:?}") };
            assert_eq!(field, "mounts.selinux_relabel");
            assert!(
                message.starts_with(&format!("{path}: ")) && message.contains("belongs to the machine"),
                "{message}"
            );
        }
        let link = home.path().join("link");
        symlink("/", &link).unwrap();
        assert!(relabel(&link.join("etc"), LABEL).is_err());
        assert_eq!(of(Path::new("/etc")), before);
        assert!(relabel(&home.path().join("absent"), LABEL).is_err());
    }
}
