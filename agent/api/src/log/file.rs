//! The files of one log, read in order from the right place, rotation included.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::line::{Open, Style};

/// How much is read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// An entry longer than this is not one of ours and is cut.
const MAX_ENTRY_BYTES: usize = 1024 * 1024;

/// Reads a log as a client wants to see it.
pub(super) struct Reader {
    path: PathBuf,
    /// Files still to read, oldest first; the last one is being written.
    files: VecDeque<File>,
    /// The begin of an entry whose end was not written yet.
    unfinished: Vec<u8>,
    style: Style,
    open: Open,
}

impl Reader {
    /// Opens the log at `path` with its rotated files, `tail` entries before the end.
    pub(super) fn open(path: &Path, style: Style, tail: Option<u64>) -> io::Result<Reader> {
        let mut files = VecDeque::from([open_regular(path)?]);
        for rotated in rotated(path)? {
            match open_regular(&rotated) {
                // A rotation that happens meanwhile shows a file twice: once is enough.
                Ok(file) if files.iter().all(|known| !same(known, &file)) => files.push_front(file),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(lines) = tail {
            seek_tail(&mut files, lines)?;
        }
        Ok(Reader { path: path.to_owned(), files, unfinished: Vec::new(), style, open: Open::default() })
    }

    /// The next piece; empty at the end of what is written by now.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        while out.is_empty() {
            let Some(file) = self.files.front_mut() else { break };
            let read = file.read(&mut buffer)?;
            if read > 0 {
                self.entries(buffer.get(..read).unwrap_or_default(), &mut out);
                continue;
            }
            if self.files.len() == 1 {
                match self.successor()? {
                    Some(next) => self.files.push_back(next),
                    None => break,
                }
                // What was written to the old file before it was renamed comes first.
                continue;
            }
            self.files.pop_front();
            self.unfinished.clear();
        }
        Ok(out)
    }

    /// The file that took the place of the one being read, if it was rotated away.
    fn successor(&self) -> io::Result<Option<File>> {
        let next = match open_regular(&self.path) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let known = self.files.back().is_some_and(|current| same(current, &next));
        Ok((!known).then_some(next))
    }

    fn entries(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (entry, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            if self.unfinished.is_empty() {
                self.style.write(entry, &mut self.open, out);
            } else {
                self.unfinished.extend_from_slice(entry);
                let whole = std::mem::take(&mut self.unfinished);
                self.style.write(&whole, &mut self.open, out);
            }
        }
        if self.unfinished.len() + rest.len() <= MAX_ENTRY_BYTES {
            self.unfinished.extend_from_slice(rest);
        }
    }
}

/// Opens a file that is a file: a link could name anything on this machine.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

fn same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// The rotated files of a log, `<name>.<number>`, newest (smallest number) first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|other| other.strip_prefix(name)?.strip_prefix('.')?.parse::<u32>().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Drops whole files and seeks so that `lines` entries are left.
fn seek_tail(files: &mut VecDeque<File>, lines: u64) -> io::Result<()> {
    let mut missing = lines;
    let mut keep = 0;
    for file in files.iter_mut().rev() {
        keep += 1;
        let (offset, found) = tail_offset(file, missing)?;
        file.seek(SeekFrom::Start(offset))?;
        missing = missing.saturating_sub(found);
        if missing == 0 {
            break;
        }
    }
    while files.len() > keep {
        files.pop_front();
    }
    Ok(())
}

/// Where the last `lines` entries of a file begin, and how many there are from there.
fn tail_offset(file: &File, lines: u64) -> io::Result<(u64, u64)> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok((length, 0));
    }
    let chunk = u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX);
    let mut found = 0;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(chunk);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(CHUNK_BYTES)];
        file.read_exact_at(&mut bytes, start)?;
        for (index, _) in bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = start + u64::try_from(index).unwrap_or_default() + 1;
            // The break that ends the last entry begins none.
            if after == length {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok((after, lines));
            }
        }
        end = start;
    }
    Ok((0, found + u64::from(length > 0)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::super::line::Streams;
    use super::*;

    const PLAIN: Style = Style { timestamps: false, since: None, streams: Streams::All };

    fn entries(range: std::ops::Range<u32>) -> String {
        range.map(|n| format!("2026-01-01T00:00:00.000000000Z stdout F line {n}\n")).collect()
    }

    fn lines(range: std::ops::Range<u32>) -> String {
        range.map(|n| format!("line {n}\n")).collect()
    }

    fn all(reader: &mut Reader) -> String {
        let mut text = Vec::new();
        loop {
            let chunk = reader.read().unwrap();
            if chunk.is_empty() {
                return String::from_utf8(text).unwrap();
            }
            text.extend(chunk);
        }
    }

    #[test]
    fn rotated_files_come_first_and_a_tail_reaches_into_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(directory.path().join("0.log.2"), entries(0..3)).unwrap();
        fs::write(directory.path().join("0.log.1"), entries(3..5000)).unwrap();
        fs::write(&path, entries(5000..5002)).unwrap();
        for (tail, first) in
            [(None, 0), (Some(0), 5002), (Some(2), 5000), (Some(4), 4998), (Some(5001), 1), (Some(9999), 0)]
        {
            let mut reader = Reader::open(&path, PLAIN, tail).unwrap();
            assert_eq!(all(&mut reader), lines(first..5002), "tail {tail:?}");
        }
    }

    #[test]
    fn reading_goes_on_through_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, entries(0..1)).unwrap();
        let mut reader = Reader::open(&path, PLAIN, None).unwrap();
        assert_eq!(all(&mut reader), lines(0..1));
        let mut old = fs::OpenOptions::new().append(true).open(&path).unwrap();
        fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        old.write_all(entries(1..2).as_bytes()).unwrap();
        fs::write(&path, entries(2..3)).unwrap();
        assert_eq!(all(&mut reader), lines(1..3));
    }

    #[test]
    fn an_entry_written_in_two_pieces_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let whole = entries(0..1);
        let (begin, end) = whole.split_at(40);
        fs::write(&path, begin).unwrap();
        let mut reader = Reader::open(&path, PLAIN, None).unwrap();
        assert_eq!(all(&mut reader), "");
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(end.as_bytes()).unwrap();
        assert_eq!(all(&mut reader), lines(0..1));
    }

    #[test]
    fn a_log_that_is_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(Reader::open(&path, PLAIN, None).is_err());
    }
}
