//! One pass from compressed bytes to files: digest, decompress, diff id, apply.
//!
//! ```text
//!   bytes --> Counted: sha256, length --> Decompressor --> Unpacked: limits --> buffer --> Digests --> Archive --> files
//! ```
//! **Invariant:** `unpack` returns `Ok` only when both digests were taken over every byte and match;
//! its caller makes the directory visible only then.

use std::{
    io::{self, BufRead, BufReader, Read},
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    layer::{
        Applied, LayerError, Limits,
        apply::apply,
        archive::{Archive, read_error},
        decompress::Decompressor,
        digests::Digests,
    },
};

/// What a layer must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expected {
    /// Digest of the bytes as they come; `None` when these are not the blob, but the archive rebuilt from parts of it:
    /// then only the diff id is verified.
    pub(crate) blob: Option<Digest>,
    /// Length of the blob, of which an archive is to be no more than a multiple.
    pub(crate) length: u64,
    /// Digest of the decompressed archive.
    pub(crate) diff_id: Digest,
}

/// Unpacks a compressed layer into the empty directory `root`, verifying both digests. What it has beyond the
/// [`Limits::ratio`] is taken from `spare`, which the layers of an image share, and given back when it fails: another
/// host may send the layer as it should be.
pub(crate) fn unpack(
    input: impl BufRead,
    expected: &Expected,
    root: BorrowedFd<'_>,
    limits: &Limits,
    spare: &AtomicU64,
) -> Result<Applied, LayerError> {
    let spare = Spare { left: spare, taken: AtomicU64::new(0) };
    let unpacked = unpack_within(input, expected, root, limits, &spare);
    spare.settle(unpacked)
}

/// Reads a compressed layer to its end without unpacking it, verifying both digests. It may cost what [`unpack`] may.
pub(crate) fn check(
    input: impl BufRead,
    expected: &Expected,
    limits: &Limits,
    spare: &AtomicU64,
) -> Result<(), LayerError> {
    let spare = Spare { left: spare, taken: AtomicU64::new(0) };
    let checked = plain(input, expected, limits, &spare).and_then(|plain| verify(plain, expected, Ok(())));
    spare.settle(checked)
}

/// What the layers of an image share.
struct Spare<'a> {
    left: &'a AtomicU64,
    /// By this layer.
    taken: AtomicU64,
}

impl Spare<'_> {
    fn take(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        let enough = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        self.taken.fetch_add(if enough { bytes } else { 0 }, Ordering::Relaxed);
        enough
    }

    /// Gives back what was taken for nothing.
    fn settle<T>(&self, result: Result<T, LayerError>) -> Result<T, LayerError> {
        if result.is_err() {
            self.left.fetch_add(self.taken.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        result
    }
}

fn unpack_within(
    input: impl BufRead,
    expected: &Expected,
    root: BorrowedFd<'_>,
    limits: &Limits,
    spare: &Spare<'_>,
) -> Result<Applied, LayerError> {
    let limits = Limits { unpacked_bytes: unpacked_bytes(expected, limits), ..limits.clone() };
    let mut archive = Archive::new(plain(input, expected, &limits, spare)?, &limits);
    match apply(&mut archive, root, &limits) {
        // A damaged blob most often fails as an archive first; that it is damaged is the better message,
        // so after such an error the rest is still read for its digest.
        applied @ (Ok(_) | Err(LayerError::Malformed { .. } | LayerError::Decompress(_))) => {
            verify(archive.into_input(), expected, applied)
        }
        Err(e) => Err(e),
    }
}

type Plain<'a, R> = Digests<BufReader<Unpacked<'a, Decompressor<Counted<R>>>>>;

/// How much a layer of this length may become.
fn unpacked_bytes(expected: &Expected, limits: &Limits) -> u64 {
    let by_ratio = expected.length.saturating_mul(limits.ratio).max(limits.ratio_floor_bytes);
    limits.unpacked_bytes.min(by_ratio)
}

/// The decompressed archive, counted and hashed in both forms.
fn plain<'a, R: BufRead>(
    input: R,
    expected: &Expected,
    limits: &Limits,
    spare: &'a Spare<'a>,
) -> Result<Plain<'a, R>, LayerError> {
    let inner = Decompressor::new(Counted::new(input, expected))?;
    let free = expected.length.saturating_mul(limits.ratio);
    let plain = Unpacked { inner, length: 0, limit: unpacked_bytes(expected, limits), free, spare };
    Ok(Digests::new(BufReader::with_capacity(1 << 18, plain)))
}

/// Reads what is left and compares both digests; `archive` is what its reader made of the rest.
fn verify<T, R: BufRead>(
    mut rest: Plain<'_, R>,
    expected: &Expected,
    archive: Result<T, LayerError>,
) -> Result<T, LayerError> {
    let drained = drain(&mut rest);
    let (rest, actual) = rest.finish();
    let mut blob = rest.into_inner().inner.into_inner();
    drain(&mut blob)?;
    blob.verify(expected)?;
    let archive = archive?;
    drained?;
    let actual = Digest::from_bytes(&actual);
    if actual != expected.diff_id {
        return Err(LayerError::DiffId { expected: expected.diff_id.clone(), actual });
    }
    Ok(archive)
}

fn drain(input: &mut impl BufRead) -> Result<(), LayerError> {
    loop {
        let length = input.fill_buf().map_err(read_error)?.len();
        if length == 0 {
            return Ok(());
        }
        input.consume(length);
    }
}

/// The blob's own bytes: hashed as they are consumed, and never more than promised.
struct Counted<R> {
    inner: R,
    hasher: Option<Sha256>,
    length: u64,
    limit: u64,
}

impl<R: BufRead> Counted<R> {
    fn new(inner: R, expected: &Expected) -> Self {
        let (hasher, limit) = match expected.blob {
            Some(_) => (Some(Sha256::new()), expected.length),
            None => (None, u64::MAX),
        };
        Self { inner, hasher, length: 0, limit }
    }

    fn verify(self, expected: &Expected) -> Result<(), LayerError> {
        let (Some(hasher), Some(digest)) = (self.hasher, &expected.blob) else {
            return Ok(());
        };
        if self.length != expected.length {
            return Err(LayerError::Length { expected: expected.length, actual: self.length });
        }
        let actual = Digest::from_bytes(&hasher.finalize());
        if actual == *digest { Ok(()) } else { Err(LayerError::Blob { expected: digest.clone(), actual }) }
    }
}

/// What read(2) is to who fills a buffer of his own.
pub(crate) fn read_filled(from: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let available = from.fill_buf()?;
    let step = available.len().min(buffer.len());
    if let (Some(to), Some(from)) = (buffer.get_mut(..step), available.get(..step)) {
        to.copy_from_slice(from);
    }
    from.consume(step);
    Ok(step)
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_filled(self, buffer)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let buffer = self.inner.fill_buf()?;
        let after = self.length.saturating_add(buffer.len() as u64);
        if after > self.limit {
            return Err(io::Error::other(LayerError::Length { expected: self.limit, actual: after }));
        }
        Ok(buffer)
    }

    fn consume(&mut self, amount: usize) {
        if amount == 0 {
            return;
        }
        if let (Some(hasher), Ok(buffer)) = (&mut self.hasher, self.inner.fill_buf()) {
            hasher.update(buffer.get(..amount).unwrap_or(buffer));
        }
        self.inner.consume(amount);
        self.length += amount as u64;
    }
}

/// The decompressed archive, never more than the limits allow.
struct Unpacked<'a, R> {
    inner: R,
    length: u64,
    limit: u64,
    /// So much is no matter of `spare`.
    free: u64,
    spare: &'a Spare<'a>,
}

impl<R: Read> Read for Unpacked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        let before = self.length.max(self.free);
        self.length += length as u64;
        if self.length > self.limit {
            return Err(io::Error::other(LayerError::Limit { what: "unpacked bytes", limit: self.limit }));
        }
        let beyond = self.length.saturating_sub(before);
        if beyond > 0 && !self.spare.take(beyond) {
            let what = "unpacked bytes for its size, with the other layers of its image";
            return Err(io::Error::other(LayerError::Limit { what, limit: self.free }));
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_layer_that_fails_gives_back_what_it_took_of_the_allowance() {
        let zeros = vec![0; 3 << 20];
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(zeros.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "zeros", zeros.as_slice()).unwrap();
        let plain = tar.into_inner().unwrap();
        let packed = zstd::encode_all(plain.as_slice(), 1).unwrap();
        let limits = Limits { ratio: 1, ratio_floor_bytes: 8 << 20, ..Limits::default() };
        let spare = AtomicU64::new(4 << 20);
        let unpack = |diff_id: Digest| {
            let root = tempfile::tempdir().unwrap();
            let root = std::fs::File::open(root.path()).unwrap();
            let expected = Expected { blob: None, length: packed.len() as u64, diff_id };
            super::unpack(packed.as_slice(), &expected, root.as_fd(), &limits, &spare)
        };
        for _ in 0..3 {
            assert!(matches!(unpack(Digest::of(b"another")), Err(LayerError::DiffId { .. })));
            assert_eq!(spare.load(Ordering::Relaxed), 4 << 20);
        }
        unpack(Digest::of(&plain)).unwrap();
        assert!(spare.load(Ordering::Relaxed) < 2 << 20);
    }
}
