//! What an unpacked directory holds, written down when it is made and compared when it is verified.
//!
//! The form is mtree(5), one line for each entry with its whole path, so that other tools can read it:
//!
//! ```text
//!   #mtree
//!   . type=dir mode=0755 uid=0 gid=0 time=1600000000.000000000
//!   ./bin/sh type=file mode=0755 uid=0 gid=0 size=5 time=1600000000.000000000 sha256digest=2cf2..
//! ```
//! Entries come in the order of a walk: a directory, then what is in it, names sorted as bytes. Bytes other than
//! printable ASCII are written as `\ooo`. Extended attributes are `xattr.<name>=<base64>`, as go-mtree has them.
//! Times of access, link counts and labels of the machine's own policy are not part of it.

mod compare;
mod line;
mod walk;

use std::{
    fs::File,
    io::{self, BufRead, BufWriter, Write},
    os::fd::BorrowedFd,
    path::Path,
};

use nix::sys::stat::FileStat;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

pub use compare::Damage;
pub(crate) use compare::verify;
pub(crate) use line::Line;

/// The record's name, beside the directories that it tells of.
pub(crate) const FILE: &str = "files.mtree";

/// A directory that a record tells of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root<'a> {
    pub(crate) directory: BorrowedFd<'a>,
    /// The record is in it, and tells nothing of itself.
    pub(crate) has_record: bool,
}

/// Digests of the files that were written into one directory, by inode: so none has to be read again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    digests: Vec<(u64, [u8; 32])>,
    /// Something may have extended attributes; where nothing was given any, there are none but what the directory
    /// itself passes on.
    pub(crate) attributes: bool,
}

impl Contents {
    /// Of a directory of which nothing is known.
    pub(crate) fn unknown() -> Self {
        Self { digests: Vec::new(), attributes: true }
    }

    pub(crate) fn add(&mut self, inode: u64, digest: [u8; 32]) {
        self.digests.push((inode, digest));
    }

    /// Puts them in order; an inode may have come twice, when a file was replaced.
    fn sort(&mut self) {
        self.digests.sort_by_key(|(inode, _)| *inode);
    }

    fn of(&self, inode: u64) -> Option<[u8; 32]> {
        let after = self.digests.partition_point(|(known, _)| *known <= inode);
        let (known, digest) = self.digests.get(after.checked_sub(1)?)?;
        (*known == inode).then_some(*digest)
    }
}

/// Writes the record of `root` into the new file `to`, and tells the record's own digest. Files that `contents`
/// does not know are read.
pub(crate) fn write(root: Root<'_>, mut contents: Contents, to: &Path) -> io::Result<Digest> {
    contents.sort();
    let mut out = Hashing { out: BufWriter::with_capacity(1 << 16, File::create_new(to)?), hasher: Sha256::new() };
    out.write_all(b"#mtree\n")?;
    let mut digest_of = |parent: BorrowedFd<'_>, name: &[u8], stat: &FileStat| match contents.of(stat.st_ino) {
        Some(digest) => Ok(Some(digest)),
        None => walk::read(parent, name, stat).map(Some),
    };
    walk::walk(root, contents.attributes, &mut digest_of, &mut |_, line| out.write_all(line))?;
    out.flush()?;
    Ok(Digest::from_bytes(&out.hasher.finalize()))
}

/// The lines of a record that are entries. One that is no line of a record ends it with an error.
pub(crate) fn entries(mut record: impl BufRead) -> impl Iterator<Item = io::Result<Line>> {
    std::iter::from_fn(move || next(&mut record).transpose())
}

fn next(record: &mut impl BufRead) -> io::Result<Option<Line>> {
    loop {
        let mut text = Vec::new();
        if record.read_until(b'\n', &mut text)? == 0 {
            return Ok(None);
        }
        if !text.starts_with(b"#") {
            let line = Line::parse(&text);
            return line.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no line of mtree(5)"));
        }
    }
}

struct Hashing<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..length).unwrap_or(bytes));
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
