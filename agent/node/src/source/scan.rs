//! Reading a directory of manifests: what counts, and from when.
//!
//! ```text
//!   unknown --seen closed, renamed in, or old enough--> read
//!      |                                                 |  ^
//!      +--changed, no close seen--> pending --200 ms-----+  |
//!                                                        |  |
//!   gone <--100 ms-- vanishing <------not found----------+  +-- changed
//! ```
//!
//! A file that vanishes is believed after a moment only: `git checkout` and some editors remove a
//! file and write it again. Nothing here waits; [`Scanner::deadline`] says when to look again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use portreeve_manifests::{ParsedFile, parse_file};

use super::names::{is_manifest_name, is_visible};
use super::{FileContent, Identity, SourceFile, SourceSet};

/// A file without a seen close counts when it is unchanged for so long.
pub(crate) const SETTLES_AFTER: Duration = Duration::from_millis(200);
/// A file is gone when it is absent for so long.
pub(crate) const GONE_AFTER: Duration = Duration::from_millis(100);
/// Folders below the directory are followed so deep.
const MAX_DEPTH: usize = 32;
/// Files of one directory, at most.
const MAX_FILES: usize = 20_000;
/// Bytes of one file, at most; the parser refuses more with a message.
const MAX_BYTES: u64 = 16 << 20;

/// What a watcher reported since the last scan.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Hints {
    /// Files whose writer closed them, or that were renamed in.
    pub closed: BTreeSet<PathBuf>,
    /// Files that changed somehow.
    pub touched: BTreeSet<PathBuf>,
    /// Something else changed: list everything.
    pub rescan: bool,
    /// Something was renamed: what symbolic links now lead to counts at once.
    pub swapped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long ago the inode changed; `None` if that is in the future.
    fn age(&self) -> Option<Duration> {
        let seconds = u64::try_from(self.changed.0).ok()?;
        let nanos = u32::try_from(self.changed.1).ok()?;
        let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))?;
        SystemTime::now().duration_since(changed).ok()
    }
}

#[derive(Debug)]
struct Known {
    content: Option<FileContent>,
    read: Option<Stamp>,
    pending: Option<(Stamp, Instant)>,
    absent_since: Option<Instant>,
}

/// The state of one directory between scans.
#[derive(Debug)]
pub struct Scanner {
    directory: PathBuf,
    identity: Option<Identity>,
    files: BTreeMap<PathBuf, Known>,
    unreadable: Option<String>,
    unreadable_folders: BTreeMap<PathBuf, String>,
    complete: bool,
    read_at: Option<jiff::Timestamp>,
    name: String,
}

impl Scanner {
    /// A scanner of `directory`; `identity` is the directory that earlier runs read.
    pub fn new(directory: &Path, identity: Option<Identity>) -> Self {
        Self {
            directory: directory.to_owned(),
            identity,
            files: BTreeMap::new(),
            unreadable: None,
            unreadable_folders: BTreeMap::new(),
            complete: false,
            read_at: None,
            name: SourceSet::starting(directory).name,
        }
    }

    /// The directory that was last read.
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Why the directory cannot be read, if so.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// Looks at what `hints` name, or at everything.
    pub fn scan(&mut self, hints: &Hints, now: Instant) {
        // What lies in a hidden folder (`..data`) is no manifest, but a link may lead there.
        let hidden = hints.closed.iter().chain(&hints.touched).any(|path| self.is_hidden(path));
        if hints.rescan || hidden || self.unreadable.is_some() || !self.complete {
            self.list(hints, now);
            return;
        }
        let due: Vec<PathBuf> = self
            .files
            .iter()
            .filter(|(_, known)| known.pending.is_some() || known.absent_since.is_some())
            .map(|(path, _)| path.clone())
            .collect();
        let paths: BTreeSet<PathBuf> = hints.closed.iter().chain(&hints.touched).cloned().chain(due).collect();
        for path in paths {
            self.examine(&path, hints, now);
        }
        if self.files.is_empty() {
            // The last file is gone: only the same directory may say so.
            self.list(&Hints { rescan: true, ..Hints::default() }, now);
        }
    }

    fn is_hidden(&self, path: &Path) -> bool {
        path.strip_prefix(&self.directory)
            .map_or(true, |below| !below.components().all(|part| is_visible(part.as_os_str())))
    }

    /// When the next look is due although nothing is reported.
    pub fn deadline(&self) -> Option<Instant> {
        self.files
            .values()
            .flat_map(|known| {
                let settles = known.pending.map(|(_, since)| since + SETTLES_AFTER);
                let gone = known.absent_since.map(|since| since + GONE_AFTER);
                settles.into_iter().chain(gone)
            })
            .min()
    }

    /// What is known now.
    pub fn set(&self) -> SourceSet {
        SourceSet {
            name: self.name.clone(),
            path: self.directory.clone(),
            identity: self.identity,
            unreadable: self.unreadable.clone(),
            unreadable_folders: self.unreadable_folders.clone(),
            files: self
                .files
                .iter()
                .filter_map(|(path, known)| {
                    let content = known.content.clone()?;
                    let vanishing = known.absent_since.is_some();
                    Some((path.clone(), SourceFile { content, vanishing }))
                })
                .collect(),
            // A file that is still being written at the first look may hold objects that run
            // already: the list is complete when the last of them has settled.
            complete: self.complete && !self.files.values().any(|known| known.content.is_none()),
            read_at: self.read_at,
        }
    }

    fn list(&mut self, hints: &Hints, now: Instant) {
        let mut listing = Listing::default();
        let identity = match listing.read(&self.directory) {
            Ok(identity) => identity,
            Err(error) => {
                self.unreadable = Some(error);
                return;
            }
        };
        let replaced = self.identity.is_some_and(|known| known != identity);
        if replaced && listing.files.is_empty() && listing.unreadable.is_empty() {
            self.unreadable = Some("it is another directory than before, and empty: not mounted?".to_owned());
            return;
        }
        self.identity = Some(identity);
        self.unreadable = None;
        self.unreadable_folders = listing.unreadable;
        let known: Vec<PathBuf> = self.files.keys().cloned().collect();
        for path in known.into_iter().chain(listing.files) {
            if !self.unreadable_folders.keys().any(|folder| path.starts_with(folder)) {
                self.examine(&path, hints, now);
            }
        }
        self.complete = true;
        self.read_at = Some(jiff::Timestamp::now());
    }

    fn examine(&mut self, path: &Path, hints: &Hints, now: Instant) {
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file);
        let Some(metadata) = metadata else {
            self.absent(path, now);
            return;
        };
        let known = self.files.entry(path.to_owned()).or_insert_with(|| Known {
            content: None,
            read: None,
            pending: None,
            absent_since: None,
        });
        known.absent_since = None;
        let stamp = Stamp::of(&metadata);
        if known.read == Some(stamp) {
            known.pending = None;
            return;
        }
        let old_enough = match known.pending {
            Some((seen, since)) if seen == stamp => now.duration_since(since) >= SETTLES_AFTER,
            _ => false,
        } || stamp.age().is_some_and(|age| age >= SETTLES_AFTER);
        let swapped = hints.swapped && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
        if !(old_enough || swapped || hints.closed.contains(path)) {
            match known.pending {
                Some((seen, _)) if seen == stamp => {}
                _ => known.pending = Some((stamp, now)),
            }
            return;
        }
        match read(path) {
            Ok((read, bytes)) => {
                known.read = Some(read);
                known.pending = None;
                known.content = Some(FileContent::Parsed(Arc::new(parse(path, &bytes))));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.absent(path, now);
            }
            Err(error) => {
                // Not remembered as read: the next look tries again.
                known.pending = Some((stamp, now));
                known.content = Some(FileContent::Unreadable(error.to_string()));
            }
        }
    }

    fn absent(&mut self, path: &Path, now: Instant) {
        let Some(known) = self.files.get_mut(path) else {
            return;
        };
        known.pending = None;
        let since = *known.absent_since.get_or_insert(now);
        if known.content.is_none() || now.duration_since(since) >= GONE_AFTER {
            self.files.remove(path);
        }
    }
}

fn parse(path: &Path, bytes: &[u8]) -> ParsedFile {
    parse_file(path, bytes)
}

fn read(path: &Path) -> io::Result<(Stamp, Vec<u8>)> {
    // Never block on a fifo, whatever was put in place of the file meanwhile.
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY | nix::libc::O_CLOEXEC)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.size().min(1 << 20)).unwrap_or(0));
    (&file).take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok((Stamp::of(&metadata), bytes))
}

#[derive(Debug, Default)]
struct Listing {
    files: BTreeSet<PathBuf>,
    unreadable: BTreeMap<PathBuf, String>,
    entered: BTreeSet<(u64, u64)>,
}

impl Listing {
    fn read(&mut self, directory: &Path) -> Result<Identity, String> {
        let open = |path: &Path| -> io::Result<(Identity, fs::ReadDir)> {
            let metadata = fs::metadata(path)?;
            if !metadata.is_dir() {
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
            let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
            Ok((identity, fs::read_dir(path)?))
        };
        let (identity, entries) = open(directory).map_err(|error| error.to_string())?;
        self.entered.insert((identity.device, identity.inode));
        self.walk(directory, entries, 0).map_err(|error| error.to_string())?;
        Ok(identity)
    }

    fn walk(&mut self, folder: &Path, entries: fs::ReadDir, depth: usize) -> io::Result<()> {
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if !is_visible(&entry.file_name()) {
                continue;
            }
            let kind = entry.file_type()?;
            let is_folder = kind.is_dir() || (kind.is_symlink() && fs::metadata(&path).is_ok_and(|m| m.is_dir()));
            if !is_folder {
                if is_manifest_name(&path) {
                    if self.files.len() >= MAX_FILES {
                        return Err(io::Error::other(format!("more than {MAX_FILES} files")));
                    }
                    self.files.insert(path);
                }
                continue;
            }
            if depth >= MAX_DEPTH {
                self.unreadable.insert(path, format!("deeper than {MAX_DEPTH} folders"));
                continue;
            }
            let inside = fs::metadata(&path).and_then(|metadata| Ok((metadata, fs::read_dir(&path)?)));
            match inside {
                Ok((metadata, inside)) => {
                    // A symbolic link may lead back up.
                    if self.entered.insert((metadata.dev(), metadata.ino()))
                        && let Err(error) = self.walk(&path, inside, depth + 1)
                    {
                        self.unreadable.insert(folder.join(&path), error.to_string());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.unreadable.insert(path, error.to_string());
                }
            }
        }
        Ok(())
    }
}
