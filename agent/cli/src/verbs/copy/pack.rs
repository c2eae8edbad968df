//! A local file or directory as a tar stream.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use portreeve_api::channel::CHUNK_BYTES;
use tokio::sync::mpsc;

/// Writes into a channel; the other side's end is a broken pipe.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..bytes.len().min(CHUNK_BYTES)).unwrap_or_default();
        match self.0.blocking_send(Bytes::copy_from_slice(piece)) {
            Ok(()) => Ok(piece.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs `from` under the name `name`; links are packed as links.
pub(in crate::verbs) fn pack(from: &Path, name: &str, pieces: mpsc::Sender<Bytes>) -> anyhow::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(CHUNK_BYTES, Pieces(pieces)));
    archive.follow_symlinks(false);
    // The path itself may be a link: the user named what it points at.
    let kind = std::fs::metadata(from).with_context(|| format!("reading {}", from.display()))?;
    if kind.is_dir() {
        archive.append_dir_all(name, from)
    } else {
        archive.append_file(name, &mut std::fs::File::open(from)?)
    }
    .with_context(|| format!("packing {}", from.display()))?;
    archive.into_inner()?.flush()?;
    Ok(())
}
