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
//! What comes in place of the directory that was read, or of one that could not be, is read when the
//! list of its files has not changed for 200 ms: it may be mounted first and filled then. A folder
//! that is a mount point is remembered: when it is another one and empty, it is not read as empty.
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
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use super::names::{is_manifest_name, is_visible};
use super::{FileContent, Ground, Identity, SourceFile, SourceSet};

/// A file without a seen close counts when it is unchanged for so long.
pub(crate) const SETTLES_AFTER: Duration = Duration::from_millis(200);
/// A file is gone when it is absent for so long.
pub(crate) const GONE_AFTER: Duration = Duration::from_millis(100);
/// Why a directory or folder is not believed to be empty.
const NOT_MOUNTED: &str = "it is another directory than before, and empty: not mounted?";
/// Folders below the directory are followed so deep.
const MAX_DEPTH: usize = 32;
/// Files of one directory, at most.
const MAX_FILES: usize = 20_000;
/// Folders of one directory, at most.
const MAX_FOLDERS: usize = 20_000;
/// Bytes of one file, at most; the parser refuses more with a message.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

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

/// What is found in place of what could not be read, or was another directory.
#[derive(Debug)]
struct Arrival {
    identity: Identity,
    files: BTreeSet<PathBuf>,
    since: Instant,
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
    /// The folders that are mount points, also while nothing is mounted there.
    mounts: BTreeMap<PathBuf, Identity>,
    arrival: Option<Arrival>,
    files: BTreeMap<PathBuf, Known>,
    unreadable: Option<String>,
    unreadable_folders: BTreeMap<PathBuf, String>,
    complete: bool,
    read_at: Option<jiff::Timestamp>,
    name: String,
    listing_took: Duration,
}

impl Scanner {
    /// A scanner of `directory`; `ground` is what earlier runs read from.
    pub fn new(directory: &Path, ground: Option<Ground>) -> Self {
        let (identity, mounts) = ground.map(|ground| (ground.identity, ground.mounts)).unzip();
        Self {
            directory: directory.to_owned(),
            identity,
            mounts: mounts.unwrap_or_default(),
            arrival: None,
            files: BTreeMap::new(),
            unreadable: None,
            unreadable_folders: BTreeMap::new(),
            complete: false,
            read_at: None,
            name: SourceSet::starting(directory).name,
            listing_took: Duration::ZERO,
        }
    }

    /// The directory that was last read, and what is mounted in it now.
    pub fn ground(&self) -> Option<Ground> {
        let mounted = self.mounts.iter().filter(|(folder, _)| !self.unreadable_folders.contains_key(*folder));
        let mounts = mounted.map(|(folder, identity)| (folder.clone(), *identity)).collect();
        Some(Ground { identity: self.identity?, mounts })
    }

    /// Whether the directory, or something that was mounted in it, cannot be read and may come back unreported.
    pub fn misses_something(&self) -> bool {
        self.unreadable.is_some() || self.mounts.keys().any(|folder| self.unreadable_folders.contains_key(folder))
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
        hints.rescan || self.unreadable.is_some() || self.arrival.is_some() || !self.complete || hidden()
    }

    /// Looks at what `hints` name, or at everything.
    pub fn scan(&mut self, hints: &Hints, now: Instant) {
        // A file that is not found is gone only where everything is that was read from.
        if self.lists(hints) || !self.has_its_ground() {
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
    }

    /// Whether the directory and what is mounted in it are what was read last.
    fn has_its_ground(&self) -> bool {
        let is = |path: &Path, known: Identity| {
            fs::metadata(path).is_ok_and(|metadata| metadata.is_dir() && Identity::of(&metadata) == known)
        };
        self.ground().is_some_and(|ground| {
            is(&self.directory, ground.identity) && ground.mounts.iter().all(|(folder, known)| is(folder, *known))
        })
    }

    fn is_hidden(&self, path: &Path) -> bool {
        path.strip_prefix(&self.directory)
            .map_or(true, |below| !below.components().all(|part| is_visible(part.as_os_str())))
    }

    /// When the next look is due although nothing is reported.
    pub fn deadline(&self) -> Option<Instant> {
        if let Some(arrival) = &self.arrival {
            return Some(arrival.since + SETTLES_AFTER);
        }
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
            mounts: self.mounts.clone(),
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
        let (identity, mut listing) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.arrival = None;
                self.unreadable = Some(error.to_string());
                return;
            }
        };
        let replaced = self.identity.is_some_and(|known| known != identity);
        if replaced && listing.files.is_empty() && listing.unreadable.is_empty() {
            self.arrival = None;
            self.unreadable = Some(NOT_MOUNTED.to_owned());
            return;
        }
        listing.miss(&self.mounts);
        if (replaced || self.is_back(&listing)) && !self.has_arrived(identity, &listing, now) {
            return;
        }
        self.arrival = None;
        self.identity = Some(identity);
        self.mounts = listing.mounts;
        self.unreadable = None;
        self.unreadable_folders = listing.unreadable;
        let known: Vec<PathBuf> = self.files.keys().cloned().collect();
        for path in known.into_iter().chain(listing.files) {
            if !self.unreadable_folders.keys().any(|folder| path.starts_with(folder)) {
                self.examine(&path, hints, now);
            } else if let Some(known) = self.files.get_mut(&path) {
                // Nothing about it is due before its folder can be read again.
                known.pending = None;
                known.absent_since = None;
            }
        }
        self.complete = true;
        self.read_at = Some(jiff::Timestamp::now());
    }

    /// Whether something can be read again that could not be.
    fn is_back(&self, listing: &Listing) -> bool {
        let missed = |folder: &PathBuf| self.unreadable_folders.contains_key(folder);
        self.unreadable.is_some()
            || self.mounts.keys().any(|folder| missed(folder) && !listing.unreadable.contains_key(folder))
    }

    /// Whether what came in place of another directory is there as a whole: what is mounted first and filled then
    /// must not be taken for one from which files were removed.
    fn has_arrived(&mut self, identity: Identity, listing: &Listing, now: Instant) -> bool {
        match &self.arrival {
            Some(seen) if seen.identity == identity && seen.files == listing.files => {
                now.duration_since(seen.since) >= SETTLES_AFTER
            }
            _ => {
                self.arrival = Some(Arrival { identity, files: listing.files.clone(), since: now });
                false
            }
        }
    }

    fn examine(&mut self, path: &Path, hints: &Hints, now: Instant) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            // Only what is not even a link is gone: where a link leads may come back.
            _ if fs::symlink_metadata(path).is_err_and(|error| is_absence(&error)) => {
                self.absent(path, now);
                return;
            }
            other => {
                let reason = other.map_or_else(
                    |error| format!("{error} (what it said last stays in force)"),
                    |_| "it is not a regular file (what it said last stays in force)".to_owned(),
                );
                let known = self.known(path);
                (known.read, known.pending) = (None, None);
                known.content = Some(FileContent::Unreadable(reason));
                return;
            }
        };
        let known = self.known(path);
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

    /// What is known of a file that is there.
    fn known(&mut self, path: &Path) -> &mut Known {
        let unread = || Known { content: None, read: None, pending: None, absent_since: None };
        let known = self.files.entry(path.to_owned()).or_insert_with(unread);
        known.absent_since = None;
        known
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

/// Whether nothing is there: no entry, or a file where its folder was.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
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

/// Whether something is mounted at this folder. Source: statx(2), `STATX_ATTR_MOUNT_ROOT`, Linux 5.8.
fn is_mount_point(folder: &File) -> io::Result<bool> {
    let found = rustix::fs::statx(folder, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// What lies in a directory.
#[derive(Debug)]
struct Listing {
    /// The directory without links.
    root: PathBuf,
    files: BTreeSet<PathBuf>,
    unreadable: BTreeMap<PathBuf, String>,
    entered: BTreeSet<(u64, u64)>,
    folders: BTreeMap<PathBuf, Identity>,
    mounts: BTreeMap<PathBuf, Identity>,
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
            folders: BTreeMap::new(),
            mounts: BTreeMap::new(),
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
        let identity = Identity::of(&opened.metadata()?);
        if !self.entered.insert((identity.device, identity.inode)) {
            return Ok(identity);
        }
        self.folders.insert(folder.to_owned(), identity);
        if depth > 0 && is_mount_point(&opened)? {
            self.mounts.insert(folder.to_owned(), identity);
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
            } else if kind.is_symlink() && fs::metadata(&path).is_err() {
                // It may have led to a folder: what was read there stays.
                self.unreadable
                    .insert(path, "a link that leads nowhere: put back what it leads to, or remove it".to_owned());
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

    /// Takes up which of the mount points that are known have nothing mounted: they are no folders without files.
    fn miss(&mut self, known: &BTreeMap<PathBuf, Identity>) {
        for (folder, before) in known {
            // Nothing is known of what lies in a folder that cannot be read.
            let unknown = self.unreadable.keys().any(|unreadable| folder.starts_with(unreadable));
            let below = |path: &PathBuf| path.starts_with(folder);
            let empty = !self.files.iter().any(below) && !self.unreadable.keys().any(below);
            let missed = match self.folders.get(folder) {
                Some(now) => now != before && empty,
                // Removed, or a link that leads nowhere now.
                None => fs::symlink_metadata(folder).is_ok(),
            };
            if unknown || missed {
                self.mounts.insert(folder.clone(), *before);
            }
            if missed && !unknown {
                self.unreadable.insert(folder.clone(), NOT_MOUNTED.to_owned());
            }
        }
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
