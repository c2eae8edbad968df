//! Files of layers that are here.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::fd::AsFd,
    path::PathBuf,
};

use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256 as Hasher};

use crate::{
    digest::Digest,
    layer::open_beneath,
    partial::{
        PartialError,
        toc::{Content, Sha256},
    },
    record,
    text::shown,
};

/// Which of the wanted contents are here, and where.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Layers, and the directories that have their files and records.
    layers: Vec<(Digest, PathBuf)>,
    files: HashMap<Sha256, Place>,
}

#[derive(Debug)]
struct Place {
    layer: usize,
    path: Box<[u8]>,
}

/// Looks through the records of `layers` for files with the wanted contents. A layer without a record has none, nor has
/// one with a record that cannot be read: who reads a file verifies it in any case.
pub(crate) fn find(layers: impl IntoIterator<Item = (Digest, PathBuf)>, wanted: &[Content]) -> Found {
    let sizes: HashMap<Sha256, u64> = wanted.iter().map(|content| (content.digest, content.size)).collect();
    let mut found = Found::default();
    for (layer, directory) in layers {
        let looked = File::open(directory.join(record::FILE))
            .and_then(|file| found.look_through(BufReader::with_capacity(1 << 16, file), &sizes));
        match looked {
            Ok(false) => {}
            Ok(true) => found.layers.push((layer, directory)),
            Err(error) => {
                tracing::debug!(%layer, %error, "record of a layer was not read");
                let number = found.layers.len();
                found.files.retain(|_, place| place.layer != number);
            }
        }
        if found.files.len() == sizes.len() {
            break;
        }
    }
    found
}

impl Found {
    /// Whether the record of what will be the last layer has anything that was not found before.
    fn look_through(&mut self, record: impl BufRead, sizes: &HashMap<Sha256, u64>) -> io::Result<bool> {
        let before = self.files.len();
        for line in record::entries(record) {
            let line = line?;
            let mut digest = [0; 32];
            let is_digest =
                line.value(b"sha256digest").is_some_and(|hex| hex::decode_to_slice(hex, &mut digest).is_ok());
            if !is_digest || self.files.contains_key(&digest) {
                continue;
            }
            let size = line.value(b"size").and_then(|size| std::str::from_utf8(size).ok()?.parse().ok());
            if size.is_some() && size.as_ref() == sizes.get(&digest) {
                let layer = self.layers.len();
                self.files.insert(digest, Place { layer, path: line.path.into() });
            }
        }
        Ok(self.files.len() > before)
    }

    /// Whether a file with this content is here, by its record.
    pub(crate) fn has(&self, content: &Content) -> bool {
        self.files.contains_key(&content.digest)
    }

    /// The layers that have any.
    pub(crate) fn layers(&self) -> Vec<Digest> {
        self.layers.iter().map(|(layer, _)| layer.clone()).collect()
    }
}

/// Opens files that were found, one after the other.
#[derive(Debug)]
pub(crate) struct Files {
    found: Found,
    /// The layer of the last one.
    open: Option<(usize, File)>,
}

impl Files {
    pub(crate) fn new(found: Found) -> Self {
        Self { found, open: None }
    }

    /// Whether a file with this content is here.
    pub(crate) fn has(&self, content: &Content) -> bool {
        self.found.has(content)
    }

    /// Opens a file with this content, to read as much of it as the content covers.
    pub(crate) fn open(&mut self, content: &Content) -> Result<Verified, PartialError> {
        let Some(place) = self.found.files.get(&content.digest) else { return Err(PartialError::NothingHere) };
        let Some((layer, directory)) = self.found.layers.get(place.layer) else {
            return Err(PartialError::NothingHere);
        };
        let name = Name { layer: layer.clone(), path: shown(&String::from_utf8_lossy(&place.path)) };
        let failed = |source| name.unreadable(source);
        let root = match self.open.take() {
            Some((number, root)) if number == place.layer => root,
            _ => File::open(directory.join("fs")).map_err(failed)?,
        };
        // Nothing but a file is to be opened: no link is followed, no pipe waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::from(open_beneath(root.as_fd(), &place.path, flags).map_err(failed)?);
        self.open = Some((place.layer, root));
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() != content.size {
            return Err(name.changed());
        }
        Ok(Verified { file, name, hasher: Hasher::new(), content: content.clone(), at: 0 })
    }
}

#[derive(Debug)]
struct Name {
    layer: Digest,
    path: String,
}

impl Name {
    fn unreadable(&self, source: io::Error) -> PartialError {
        PartialError::Local { layer: self.layer.clone(), path: self.path.clone(), source }
    }

    fn changed(&self) -> PartialError {
        PartialError::Changed { layer: self.layer.clone(), path: self.path.clone() }
    }
}

/// A file that is hashed as it is read. Its end comes only when all of it was what it should be.
#[derive(Debug)]
pub(crate) struct Verified {
    file: File,
    name: Name,
    hasher: Hasher,
    content: Content,
    at: u64,
}

impl Verified {
    /// What is not covered is of no use, but belongs to the digest.
    fn finish(&mut self) -> io::Result<()> {
        let mut rest = BufReader::new((&mut self.file).take(self.content.size - self.at));
        loop {
            let buffer = rest.fill_buf().map_err(|e| io::Error::other(self.name.unreadable(e)))?;
            if buffer.is_empty() {
                break;
            }
            self.hasher.update(buffer);
            let length = buffer.len();
            rest.consume(length);
        }
        let digest: Sha256 = self.hasher.finalize_reset().into();
        if digest == self.content.digest { Ok(()) } else { Err(io::Error::other(self.name.changed())) }
    }
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.content.covered.saturating_sub(self.at);
        if left == 0 {
            self.finish()?;
            return Ok(0);
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..length).unwrap_or_default();
        let length = self.file.read(part).map_err(|e| io::Error::other(self.name.unreadable(e)))?;
        if length == 0 {
            return Err(io::Error::other(self.name.changed()));
        }
        self.hasher.update(buffer.get(..length).unwrap_or_default());
        self.at += length as u64;
        Ok(length)
    }
}
