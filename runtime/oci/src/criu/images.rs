//! The directories that CRIU writes to and reads from.
//!
//! An image holds all that a container's processes have in memory, and what is restored runs as what the images say: so a
//! directory that is made has mode 0700, files in it have 0600, and one that somebody else could write to is refused.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::CriuError;
use crate::error::{SetupError, Step};

/// Which streams of the first process were the caller's: as runc and crun name it, whose images are of use here too.
const DESCRIPTORS: &str = "descriptors.json";
/// Three names of files.
const DESCRIPTORS_LIMIT: u64 = 64 << 10;
/// Of a log, this much of its end is looked at.
const LOG_LIMIT: u64 = 256 << 10;
/// As many of its lines are told.
const LINES: usize = 5;

/// Where images are, and the log.
#[derive(Debug)]
pub(crate) struct Images {
    path: PathBuf,
    directory: OwnedFd,
    /// The directory for the log and whatever else is no image, where that is another one.
    work: Option<(PathBuf, OwnedFd)>,
}

impl Images {
    /// For a checkpoint: made where they are not there.
    pub(crate) fn make(path: &Path, work: Option<&Path>) -> Result<Self, CriuError> {
        make(path)?;
        Self::open(path, work)
    }

    /// For a restoration: the images are there.
    pub(crate) fn open(path: &Path, work: Option<&Path>) -> Result<Self, CriuError> {
        let directory = open(path)?;
        let work = work.map(|work| {
            make(work)?;
            Ok::<_, CriuError>((work.to_owned(), open(work)?))
        });
        Ok(Self { path: path.to_owned(), directory, work: work.transpose()? })
    }

    /// Refuses a directory with the images of the dump before that could not be used: CRIU looks for it from the one of
    /// this dump on.
    pub(crate) fn check_parent(&self, parent: &Path) -> Result<(), CriuError> {
        let path = self.path.join(parent);
        if parent.is_absolute() {
            let source =
                io::Error::new(io::ErrorKind::InvalidInput, "--parent-path has to be relative to --image-path");
            return Err(CriuError::Directory { action: "using", path: parent.to_owned(), source });
        }
        open(&path).map(drop)
    }

    /// The directories of images and of logs, opened again: in another mount namespace they are other mounts, and CRIU
    /// mounts something in the one that it works in.
    pub(super) fn open_again(&self) -> Result<[OwnedFd; 2], SetupError> {
        let again = |path: &Path, before: &OwnedFd| -> Result<OwnedFd, SetupError> {
            let now =
                rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("opening", path)?;
            let place =
                |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).step("looking at", path);
            if place(&now)? != place(before)? {
                return Err(io::Error::other("it is another one now")).step("opening", path);
            }
            Ok(now)
        };
        let (work, work_directory) = self.work.as_ref().map_or((&self.path, &self.directory), |(path, fd)| (path, fd));
        Ok([again(&self.path, &self.directory)?, again(work, work_directory)?])
    }

    /// Keeps what the streams of the first process were.
    pub(crate) fn write_descriptors(&self, descriptors: &[String]) -> Result<(), CriuError> {
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(descriptors)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.directory, DESCRIPTORS, flags, Mode::RUSR | Mode::WUSR)?;
            File::from(file).write_all(&text)
        };
        write().map_err(|source| self.failed("writing", source))
    }

    /// What the streams of the first process were.
    pub(crate) fn descriptors(&self) -> Result<Vec<String>, CriuError> {
        let read = || -> io::Result<Vec<String>> {
            let mut text = Vec::new();
            let file = file(self.directory.as_fd(), DESCRIPTORS)?;
            if file.take(DESCRIPTORS_LIMIT + 1).read_to_end(&mut text)? as u64 > DESCRIPTORS_LIMIT {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(serde_json::from_slice(&text)?)
        };
        read().map_err(|source| self.failed("reading", source))
    }

    fn failed(&self, action: &'static str, source: io::Error) -> CriuError {
        CriuError::Directory { action, path: self.path.join(DESCRIPTORS), source }
    }

    /// Adds to CRIU's failure what its log says.
    pub(crate) fn explain(&self, error: CriuError, log: &str) -> CriuError {
        let CriuError::Failed { verb, reason } = error else { return error };
        let (path, directory) = match &self.work {
            Some((path, directory)) => (path, directory.as_fd()),
            None => (&self.path, self.directory.as_fd()),
        };
        let told = last_words(directory, log).ok().and_then(|lines| complaints(&lines));
        // What it answers is the first line of its log that tells of an error, which is mostly harmless.
        let reason = told.map_or(reason, |told| format!("{} says: {told}", path.join(log).display()));
        CriuError::Failed { verb, reason }
    }
}

fn file(directory: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?.into())
}

fn last_words(directory: BorrowedFd<'_>, log: &str) -> io::Result<String> {
    let mut file = file(directory, log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT)))?;
    let mut text = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The last lines that tell of errors, on one line; else the last ones.
fn complaints(log: &str) -> Option<String> {
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    let errors: Vec<&str> = lines().filter(|line| line.contains("Error")).collect();
    let lines = if errors.is_empty() { lines().collect() } else { errors };
    let told = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    (!told.is_empty()).then(|| told.join("; "))
}

fn make(path: &Path) -> Result<(), CriuError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| CriuError::Directory { action: "making", path: path.to_owned(), source })
}

fn open(path: &Path) -> Result<OwnedFd, CriuError> {
    let open = || -> io::Result<OwnedFd> {
        let directory = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&directory)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
            let text =
                "it belongs to another user, or others may write to it: whoever can could change what is restored";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(directory)
    };
    open().map_err(|source| CriuError::Directory { action: "opening", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn directories_are_the_owners_alone_and_others_are_refused() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("deep/images");
        let images = Images::make(&path, Some(&folder.path().join("work"))).expect("made");
        for made in ["deep", "deep/images", "work"] {
            let mode = folder.path().join(made).metadata().expect("stat").permissions().mode() & 0o777;
            assert_eq!(mode, 0o700, "{made}");
        }
        images.write_descriptors(&["pipe:[1]".into(), "/dev/null".into()]).expect("written");
        let file = path.join(DESCRIPTORS).metadata().expect("stat").permissions().mode() & 0o777;
        assert_eq!(file, 0o600);
        assert_eq!(images.descriptors().expect("read"), ["pipe:[1]", "/dev/null"]);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770)).expect("chmod");
        let refused = Images::open(&path, None).expect_err("others may write");
        assert!(std::error::Error::source(&refused).expect("why").to_string().contains("others may write to it"));
        assert!(Images::open(&folder.path().join("nowhere"), None).is_err(), "nothing is made for a restoration");
        assert!(!folder.path().join("nowhere").exists());
    }

    #[test]
    fn a_parent_lies_relative_to_the_images() {
        let folder = tempfile::tempdir().expect("tempdir");
        let images = Images::make(&folder.path().join("second"), None).expect("made");
        assert!(images.check_parent(Path::new("../first")).is_err());
        Images::make(&folder.path().join("first"), None).expect("made");
        images.check_parent(Path::new("../first")).expect("there");
        assert!(images.check_parent(&folder.path().join("first")).is_err(), "absolute");
    }

    #[test]
    fn a_failure_is_explained_by_the_errors_of_the_log() {
        let folder = tempfile::tempdir().expect("tempdir");
        let images = Images::make(folder.path(), None).expect("there");
        let explained = |log: &str| {
            std::fs::write(folder.path().join("dump.log"), log).expect("log");
            let error = CriuError::Failed { verb: "dump it", reason: "it failed".into() };
            images.explain(error, "dump.log").to_string()
        };
        let place = folder.path().join("dump.log");
        let told =
            explained("(00.1) fine\n(00.2) Error (criu/x.c:1): no\n(00.3) going on\n(00.4) Error (criu/y.c:2): end\n");
        let expected = "(00.2) Error (criu/x.c:1): no; (00.4) Error (criu/y.c:2): end";
        assert_eq!(told, format!("CRIU could not dump it: {} says: {expected}", place.display()));
        assert!(explained("a\nb\n").ends_with("says: a; b"));
        assert_eq!(explained(""), "CRIU could not dump it: it failed");
        let many: String = (0..20).map(|number| format!("Error {number}\n")).collect();
        assert!(explained(&many).ends_with("says: Error 15; Error 16; Error 17; Error 18; Error 19"));
    }
}
