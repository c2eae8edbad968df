//! A blob on its way from the network to who unpacks it.

use std::{
    fs::File,
    io::{self, BufRead, Read, Write},
    path::Path,
};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::{
    layer::{LayerError, read_filled},
    store::{
        StoreError,
        layout::{Layout, Staging, create_private},
    },
};

/// Chunks that wait between network and disk, per layer; each may have 400 KiB.
const CHUNKS_IN_FLIGHT: usize = 1;

/// Passes a blob's bytes on, and writes them into a file that may become one of the store's.
pub(crate) struct Kept {
    chunks: Chunks,
    file: File,
    staging: Staging,
    failed: Option<io::Error>,
}

impl Kept {
    pub(crate) fn new(layout: &Layout, chunks: Chunks) -> Result<Self, StoreError> {
        let staging = layout.stage("blob")?;
        let path = staging.path().join("blob");
        let file = create_private(&path);
        let file = file.map_err(|source| StoreError::Io { operation: "creating", path, source })?;
        Ok(Self { chunks, file, staging, failed: None })
    }

    pub(crate) fn commit(self, target: &Path) -> Result<(), StoreError> {
        let path = self.staging.path().join("blob");
        let written = self.failed.map_or(Ok(()), Err).and_then(|()| std::fs::rename(&path, target));
        written.map_err(|source| StoreError::Io { operation: "keeping", path: target.to_owned(), source })
    }
}

impl Read for Kept {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_filled(self, buffer)
    }
}

impl BufRead for Kept {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.chunks.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if self.failed.is_none() {
            let taken = self.chunks.current.get(..amount).unwrap_or_default();
            self.failed = self.file.write_all(taken).err();
            if self.failed.is_some() {
                // The layer may need the room. That there is none is said by what failed.
                let _room = self.file.set_len(0);
            }
        }
        self.chunks.consume(amount);
    }
}

/// A blob's bytes on the blocking side of the channel, without a copy.
pub(crate) struct Chunks {
    chunks: mpsc::Receiver<Result<Bytes, LayerError>>,
    current: Bytes,
}

impl Chunks {
    /// What is sent is read. Where no more is sent is an end, whatever is missing.
    pub(crate) fn channel() -> (mpsc::Sender<Result<Bytes, LayerError>>, Self) {
        let (sink, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
        (sink, Self { chunks, current: Bytes::new() })
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_filled(self, buffer)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}
