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
//!
//! Symbolic links:
//! - The directory itself may be one.
//! - One that leads to a folder is followed where that folder lies below the directory, as in the
//!   mount of a ConfigMap (`..data`) and in the root of git-sync (`current`). Any other is a
//!   problem of the source that names the link: whoever may write to where it leads, `/tmp` for
//!   instance, could run anything as root. What came from behind such a link runs on until the
//!   link is removed.
//! - One that leads to a file is read wherever the file lies, as the kubelet does: somebody chose
//!   just this file.
//! - A folder is read once, under its real path if that is visible.
//!
//! What the kernel shows as files (procfs, sysfs and their like) is neither entered nor read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::statfs::{
    CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, FsType, PROC_SUPER_MAGIC, SYSFS_MAGIC, TRACEFS_MAGIC,
    fstatfs,
};
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
/// Folders of one directory, at most.
const MAX_FOLDERS: usize = 20_000;
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

impl Hints {
    /// Whether they name nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes up further ones.
    pub fn add(&mut self, more: Self) {
        self.closed.extend(more.closed);
        self.touched.extend(more.touched);
        self.rescan |= more.rescan;
        self.swapped |= more.swapped;
    }
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
    listing_took: Duration,
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
            listing_took: Duration::ZERO,
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

    /// How long the last listing of the whole directory took.
    pub fn listing_took(&self) -> Duration {
        self.listing_took
    }

    /// Whether [`Scanner::scan`] would list the whole directory.
    pub fn lists(&self, hints: &Hints) -> bool {
        // What lies in a hidden folder (`..data`) is no manifest, but a link may lead there.
        let hidden = || hints.closed.iter().chain(&hints.touched).any(|path| self.is_hidden(path));
        hints.rescan || self.unreadable.is_some() || !self.complete || hidden()
    }

    /// Looks at what `hints` name, or at everything.
    pub fn scan(&mut self, hints: &Hints, now: Instant) {
        if self.lists(hints) {
            self.list(hints, now);
            return;
        }
        let had_files = !self.files.is_empty();
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
        if had_files && self.files.is_empty() {
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
        if self.unreadable.is_some() {
            // No file is looked at before the directory can be read again.
            return None;
        }
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
        let began = Instant::now();
        let listed = Listing::read(&self.directory);
        self.listing_took = began.elapsed();
        let (identity, listing) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.unreadable = Some(error.to_string());
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

/// The files below `directory` that a source reads, and the folders that it cannot read, with the reason.
///
/// # Errors
/// The directory itself cannot be listed.
pub fn manifests_below(directory: &Path) -> io::Result<(BTreeSet<PathBuf>, BTreeMap<PathBuf, String>)> {
    let (_, listing) = Listing::read(directory)?;
    Ok((listing.files, listing.unreadable))
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
    refuse_kernels_own(&file)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.size().min(1 << 20)).unwrap_or(0));
    (&file).take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok((Stamp::of(&metadata), bytes))
}

/// Reading some of what the kernel shows as files has effects, and their tree has no end.
fn refuse_kernels_own(file: &File) -> io::Result<()> {
    const KERNELS_OWN: [FsType; 6] =
        [PROC_SUPER_MAGIC, SYSFS_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC];
    if KERNELS_OWN.contains(&fstatfs(file)?.filesystem_type()) {
        return Err(io::Error::other("it is the kernel's own (procfs, sysfs or the like) and holds no manifests"));
    }
    Ok(())
}

/// What lies in a directory.
#[derive(Debug)]
struct Listing {
    /// The directory without links.
    root: PathBuf,
    files: BTreeSet<PathBuf>,
    unreadable: BTreeMap<PathBuf, String>,
    entered: BTreeSet<(u64, u64)>,
    /// Links to folders and how deep they lie: followed last, when the real folders are known.
    links: BTreeMap<PathBuf, usize>,
}

impl Listing {
    fn read(directory: &Path) -> io::Result<(Identity, Self)> {
        let mut listing = Self {
            root: fs::canonicalize(directory)?,
            files: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            entered: BTreeSet::new(),
            links: BTreeMap::new(),
        };
        let identity = listing.walk(directory, 0)?;
        while let Some((link, depth)) = listing.links.pop_first() {
            listing.follow(link, depth);
        }
        Ok((identity, listing))
    }

    fn walk(&mut self, folder: &Path, depth: usize) -> io::Result<Identity> {
        let opened =
            File::options().read(true).custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_CLOEXEC).open(folder)?;
        refuse_kernels_own(&opened)?;
        let metadata = opened.metadata()?;
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        if !self.entered.insert((identity.device, identity.inode)) {
            return Ok(identity);
        }
        let mut folders = BTreeSet::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if !is_visible(&entry.file_name()) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.insert(path);
            } else if kind.is_symlink() && fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                self.links.insert(path, depth + 1);
            } else if is_manifest_name(&path) {
                self.files.insert(path);
            }
            if self.files.len() > MAX_FILES {
                return Err(io::Error::other(format!("more than {MAX_FILES} files")));
            }
            if self.entered.len() + folders.len() + self.links.len() > MAX_FOLDERS {
                return Err(io::Error::other(format!("more than {MAX_FOLDERS} folders")));
            }
        }
        for path in folders {
            self.enter(path, depth + 1);
        }
        Ok(identity)
    }

    fn enter(&mut self, folder: PathBuf, depth: usize) {
        if depth > MAX_DEPTH {
            self.unreadable.insert(folder, format!("deeper than {MAX_DEPTH} folders"));
            return;
        }
        match self.walk(&folder, depth) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.unreadable.insert(folder, error.to_string());
            }
            _ => {}
        }
    }

    fn follow(&mut self, link: PathBuf, depth: usize) {
        match fs::canonicalize(&link) {
            Ok(target) if target.starts_with(&self.root) => self.enter(link, depth),
            Ok(target) => {
                let message = format!(
                    "a link to {}, outside the directory, is not followed: copy what it leads to, or link its files",
                    target.display()
                );
                self.unreadable.insert(link, message);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.unreadable.insert(link, error.to_string());
            }
        }
    }
}
