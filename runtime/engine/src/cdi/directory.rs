//! The files of a directory: which of them count, each bounded before it is read.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::document::Document;
use super::{FileError, check};

/// A specification is never longer: those of big machines have some hundred KiB.
const LONGEST: u64 = 4 << 20;
/// A directory never has more of them.
const MOST: usize = 512;

/// A file, or a directory, and what it says or why it does not count.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) document: Result<Document, FileError>,
}

/// All specifications of a directory, in the order of their names; none where it is not there.
pub(super) fn read(directory: &Path) -> Vec<Found> {
    let names = match names(directory) {
        Ok(names) => names,
        Err(error) => return vec![Found { path: directory.to_owned(), document: Err(error) }],
    };
    let mut all = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        let path = directory.join(name);
        let document = if number < MOST { document(&path) } else { Err(FileError::TooMany(MOST)) };
        match document {
            Ok(None) => {}
            Ok(Some(document)) => all.push(Found { path, document: Ok(document) }),
            Err(error) => all.push(Found { path, document: Err(error) }),
        }
        if number == MOST {
            break;
        }
    }
    all
}

fn names(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error: Errno| FileError::Read(error.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(CWD, directory, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    trusted(&rustix::fs::fstat(&directory).map_err(failed)?, "the directory")?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory).map_err(failed)? {
        let name = PathBuf::from(OsStr::from_bytes(entry.map_err(failed)?.file_name().to_bytes()));
        if name.extension().is_some_and(|kind| matches!(kind.to_str(), Some("json" | "yaml" | "yml"))) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Nothing for what is no file of this directory.
fn document(path: &Path) -> Result<Option<Document>, FileError> {
    // Nobody has to be at the other end of it, whatever lies there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        // Gone since.
        Err(Errno::NOENT) if std::fs::symlink_metadata(path).is_err() => return Ok(None),
        opened => opened.map_err(|error| FileError::Read(error.into()))?,
    };
    let stat = rustix::fs::fstat(file.as_fd()).map_err(|error| FileError::Read(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return Ok(None),
        FileType::RegularFile => {}
        _ => return Err(FileError::Irregular),
    }
    trusted(&stat, "it")?;
    let mut bytes = Vec::new();
    File::from(file).take(LONGEST + 1).read_to_end(&mut bytes).map_err(FileError::Read)?;
    if bytes.len() as u64 > LONGEST {
        return Err(FileError::TooLong(LONGEST));
    }
    let document = parse(&bytes, path.extension().is_some_and(|kind| kind == "json"))?;
    check::check(&document)?;
    Ok(Some(document))
}

/// Reads a document of bounded length.
pub(super) fn parse(bytes: &[u8], json: bool) -> Result<Document, FileError> {
    let read = if json {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    } else {
        serde_yaml::from_slice(bytes).map_err(|error| error.to_string())
    };
    read.map_err(FileError::Document)
}

/// Whether nobody but root, or who this process is, can write it. A link is what it leads to.
fn trusted(stat: &Stat, what: &str) -> Result<(), FileError> {
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != own {
        return Err(FileError::Untrusted(format!("{what} belongs to user {}", stat.st_uid)));
    }
    if stat.st_mode & 0o022 != 0 {
        let mode = stat.st_mode & 0o7777;
        return Err(FileError::Untrusted(format!("{what} can be written by others than its owner (mode {mode:04o})")));
    }
    Ok(())
}
