//! Sources: each turns one outside world into full sets of objects.
//!
//! **Invariant:** a source never says what changed, only what is; and *unreadable is not empty*:
//! a set that could not be read in full says so and removes nothing.

mod directory;
mod names;
mod scan;

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use portreeve_manifests::ParsedFile;
use serde::{Deserialize, Serialize};

pub use directory::{DirectorySource, SourceError};
pub(crate) use scan::MAX_BYTES;
pub use scan::{Hints, Scanner, manifests_below};

/// Device and inode of a directory: whether it is still the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
}

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// What a source reads from, to be remembered over restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// The directory.
    pub identity: Identity,
    /// The folders in it that are mount points, and what is mounted there.
    pub mounts: BTreeMap<PathBuf, Identity>,
}

/// What a file said when it was last read.
#[derive(Debug, Clone, PartialEq)]
pub enum FileContent {
    /// It was read and parsed; the parser's verdicts are inside.
    Parsed(Arc<ParsedFile>),
    /// It is there and cannot be read.
    Unreadable(String),
}

/// One file of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceFile {
    /// What it says.
    pub content: FileContent,
    /// It was gone at the last look, too short ago to be believed: who else claims its objects
    /// may have them, and until then they stay.
    pub vanishing: bool,
}

/// Everything a source knows.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceSet {
    /// Name of the source.
    pub name: String,
    /// Where it reads.
    pub path: PathBuf,
    /// The directory that was read, to be remembered over restarts.
    pub identity: Option<Identity>,
    /// The folders inside that are mount points and what is mounted there, or was when they were last read.
    pub mounts: BTreeMap<PathBuf, Identity>,
    /// Why the source as a whole cannot be read; `files` are then the last known ones.
    pub unreadable: Option<String>,
    /// Folders inside that cannot be read: what came from below them stays.
    pub unreadable_folders: BTreeMap<PathBuf, String>,
    /// The files by path.
    pub files: BTreeMap<PathBuf, SourceFile>,
    /// Whether a full list was ever read: before that nothing is removed.
    pub complete: bool,
    /// When it was last read in full.
    pub read_at: Option<Timestamp>,
}

/// Where manifests come from.
#[derive(Debug)]
pub enum Source {
    /// A watched directory.
    Directory(DirectorySource),
    /// Nowhere: it says that it cannot be read, once.
    Silent(tokio::sync::watch::Sender<SourceSet>),
}

impl Source {
    /// A directory that nobody reads: what was desired of it stays desired.
    pub fn silent(directory: &Path) -> Self {
        let unreadable = Some("not watched: the agent runs without manifests (--cri-only)".to_owned());
        Self::Silent(tokio::sync::watch::Sender::new(SourceSet { unreadable, ..SourceSet::starting(directory) }))
    }

    /// The sets, newest first and only.
    pub fn sets(&self) -> tokio::sync::watch::Receiver<SourceSet> {
        match self {
            Self::Directory(directory) => directory.sets(),
            Self::Silent(sets) => sets.subscribe(),
        }
    }
}

impl SourceSet {
    /// A source of which nothing is known yet.
    pub fn starting(path: &Path) -> Self {
        Self {
            name: format!("directory:{}", path.display()),
            path: path.to_owned(),
            identity: None,
            mounts: BTreeMap::new(),
            unreadable: None,
            unreadable_folders: BTreeMap::new(),
            files: BTreeMap::new(),
            complete: false,
            read_at: None,
        }
    }

    /// The kind of its source: what its name begins with.
    pub fn kind(&self) -> &str {
        self.name.split_once(':').map_or(self.name.as_str(), |(kind, _)| kind)
    }

    /// Whether it was read, or could not be.
    pub fn says_something(&self) -> bool {
        self.complete || self.unreadable.is_some()
    }

    /// Whether the absence of `file` from this set means nothing.
    pub fn is_silent_about(&self, file: &Path) -> bool {
        !self.complete
            || self.unreadable.is_some()
            || self.unreadable_folders.keys().any(|folder| file.starts_with(folder))
    }
}
