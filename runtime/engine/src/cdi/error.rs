//! Why a device cannot be given.

use std::io;
use std::path::PathBuf;

use super::DeviceName;

/// Why a container cannot have a device.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// What was asked for is no name of a device.
    #[error("{source_field}: {name:?} is no name of a CDI device, such as vendor.com/class=name: {reason}")]
    Name {
        /// Where it was asked for.
        source_field: String,
        /// What was said.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No file has it.
    #[error("CDI device {name} is in no specification of {}{hints}", directories(.searched))]
    Unknown {
        /// The device.
        name: DeviceName,
        /// Where specifications were looked for.
        searched: Vec<PathBuf>,
        /// What there is instead, and which files could not be used.
        hints: String,
    },
    /// Two files of one directory have it.
    #[error("CDI device {name} is in {} and in {}: take it out of one of them", .files.0.display(), .files.1.display())]
    Conflict {
        /// The device.
        name: DeviceName,
        /// The two.
        files: (PathBuf, PathBuf),
    },
    /// What its file says cannot be done here.
    #[error("{}: {field}: {reason}", .file.display())]
    Edit {
        /// The file.
        file: PathBuf,
        /// The device, or the whole file, and the field.
        field: String,
        /// Why not, and what to do.
        reason: String,
    },
}

fn directories(all: &[PathBuf]) -> String {
    let names: Vec<String> = all.iter().map(|one| one.display().to_string()).collect();
    names.join(", ")
}

/// Why a file, or a whole directory of them, does not count.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("it cannot be read ({0})")]
    Read(#[source] io::Error),
    /// It is no regular file.
    #[error("it is no regular file")]
    Irregular,
    /// It is too long.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
    /// There are too many beside it.
    #[error("the directory has more than {0} of them: take some away")]
    TooMany(usize),
    /// Somebody else can write it.
    #[error(
        "{0}, and what it says is done as root: give it to root and let nobody else write it (chown root, chmod go-w)"
    )]
    Untrusted(String),
    /// It is no document of the kind.
    #[error("{0}")]
    Document(String),
    /// What it says makes no sense.
    #[error("{field}: {reason}")]
    Field {
        /// The field.
        field: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
}

impl FileError {
    pub(super) fn field(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: reason.into() }
    }
}
