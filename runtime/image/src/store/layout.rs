//! Where things are below the store's root, and how unfinished things become finished ones.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::fcntl::{RenameFlags, renameat2};

use portreeve_sys::tree;

use crate::{digest::Digest, record, store::StoreError};

/// Paths below the root.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    next: AtomicU64,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), next: AtomicU64::new(0) }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Blobs of layers that are kept until what was unpacked of them is on the disk for good.
    pub(crate) fn unsynced(&self) -> PathBuf {
        self.root.join("unsynced")
    }

    pub(crate) fn unsynced_blob(&self, digest: &Digest) -> PathBuf {
        self.unsynced().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    /// What an image needs on top of its layers; see `meta`.
    pub(crate) fn finish(&self, image: &Digest) -> PathBuf {
        self.layers().join(format!("finish-{}", image.hex()))
    }

    /// The record of what is in `finish`.
    pub(crate) fn finish_record(&self, image: &Digest) -> PathBuf {
        self.finish(image).join(record::FILE)
    }

    /// What lies on top of one layer of an image; see `redirect`.
    pub(crate) fn redirected(&self, image: &Digest, diff_id: &Digest) -> PathBuf {
        self.finish(image).join(diff_id.hex())
    }

    /// Layers that no image has any more, and that a container may stand on.
    pub(crate) fn aside(&self) -> PathBuf {
        self.root.join("aside")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Makes the directories, all of them for our eyes only.
    pub(crate) fn create(&self) -> Result<(), StoreError> {
        make_private(&self.root, true)?;
        for directory in ["blobs", "blobs/sha256", "unsynced", "layers", "aside", "snapshots", "staging"] {
            make_private(&self.root.join(directory), false)?;
        }
        let marker = self.root.join("oci-layout");
        if marker.exists() { Ok(()) } else { self.write(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#, false) }
    }

    /// A name in staging that nobody has. Who clears away what was not used for long may have taken the directory, which
    /// is empty most of the time.
    fn unique(&self, what: &str) -> Result<PathBuf, StoreError> {
        let staging = self.staging();
        if !staging.is_dir() {
            make_private(&staging, false)?;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(staging.join(format!("{what}-{number}")))
    }

    /// A new private directory that is removed again unless it is committed.
    pub(crate) fn stage(&self, what: &str) -> Result<Staging, StoreError> {
        let path = self.unique(what)?;
        make_private(&path, false)?;
        Ok(Staging { path })
    }

    /// Moves something finished out of sight, to be deleted without haste.
    pub(crate) fn discard(&self, path: &Path) -> Result<Option<Staging>, StoreError> {
        let to = self.unique("trash")?;
        match fs::rename(path, &to) {
            Ok(()) => Ok(Some(Staging { path: to })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { operation: "removing", path: path.to_owned(), source }),
        }
    }

    /// Moves a layer to where nobody takes it for one that is in place, and where it stays.
    pub(crate) fn put_aside(&self, path: &Path) -> Result<(), StoreError> {
        let name = name_of(path).unwrap_or_default();
        // The same one may be there since an earlier time.
        let free = (0_u64..).map(|number| self.aside().join(format!("{name}.{number}"))).find(|to| !to.exists());
        let moved = free.map_or(Ok(()), |to| fs::rename(path, to));
        moved.map_err(|source| StoreError::Io { operation: "putting aside", path: path.to_owned(), source })
    }

    /// Writes a blob under its digest; the caller has verified it. `durable` when no sync of all will follow.
    pub(crate) fn write_blob(&self, digest: &Digest, content: &[u8], durable: bool) -> Result<(), StoreError> {
        let path = self.blob(digest);
        if fs::metadata(&path).is_ok_and(|m| m.len() == content.len() as u64) {
            return Ok(());
        }
        self.write(&path, content, durable)
    }

    /// Replaces a file so that it always is either the old or the new one.
    pub(crate) fn write(&self, path: &Path, content: &[u8], durable: bool) -> Result<(), StoreError> {
        let temporary = self.unique("file")?;
        let failed = |operation| {
            let path = path.to_owned();
            move |source| StoreError::Io { operation, path, source }
        };
        let written = (|| {
            let mut file = create_private(&temporary)?;
            file.write_all(content)?;
            if durable {
                file.sync_data()?;
            }
            fs::rename(&temporary, path)
        })();
        if written.is_err() {
            // Its own failure would say nothing new; the next start clears the directory.
            let _left_for_the_next_start = fs::remove_file(&temporary);
        }
        written.map_err(failed("writing"))?;
        if durable {
            let directory = path.parent().unwrap_or(&self.root);
            File::open(directory).and_then(|d| d.sync_all()).map_err(failed("writing"))?;
        }
        Ok(())
    }

    /// Empties the staging directory. What cannot be removed is reported, and tried again next time.
    pub(crate) fn clear_staging(&self) -> Result<(), StoreError> {
        for path in entries(&self.staging())? {
            if let Err(error) = tree::remove(&path) {
                tracing::debug!(path = %path.display(), %error, "unfinished work could not be removed");
            }
        }
        Ok(())
    }
}

/// A directory that is not finished. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it visible as `target`, at once and whole; something that is there already stays.
    pub(crate) fn commit(self, target: &Path) -> Result<(), StoreError> {
        match fs::rename(&self.path, target) {
            Ok(()) => Ok(()),
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => Ok(()),
            Err(source) => Err(StoreError::Io { operation: "committing", path: target.to_owned(), source }),
        }
    }

    /// Makes it visible as `target` in place of what is there, which goes when what is returned is dropped.
    pub(crate) fn replace(self, target: &Path) -> Result<Self, StoreError> {
        let here = nix::fcntl::AT_FDCWD;
        let exchanged = renameat2(here, &self.path, here, target, RenameFlags::RENAME_EXCHANGE);
        let done = match exchanged {
            Err(nix::errno::Errno::ENOENT) => fs::rename(&self.path, target),
            other => other.map_err(io::Error::from),
        };
        done.map_err(|source| StoreError::Io { operation: "replacing", path: target.to_owned(), source })?;
        Ok(self)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Committed: then the path is gone. Not removable: then the next start tries again.
        if let Err(error) = tree::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "what nothing needs any more could not be removed");
        }
    }
}

/// The paths in a directory, in order.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::Io { operation: "reading", path: directory.to_owned(), source };
    let mut found = fs::read_dir(directory)
        .and_then(|list| list.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>())
        .map_err(failed)?;
    found.sort();
    Ok(found)
}

/// The last part of a path as text; names that we did not make may be anything.
pub(crate) fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(OsStr::to_str)
}

/// A new file that only we can read.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn make_private(path: &Path, with_parents: bool) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { operation: "creating", path: path.to_owned(), source };
    if with_parents && let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
        _ => {}
    }
    // It may be older than we are, or the umask took something.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}
