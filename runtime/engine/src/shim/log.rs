//! A container's log file, in the format that CRI prescribes: `<RFC 3339 time> stdout|stderr F|P <text>`.
//!
//! A line of more than 16 KiB is written in parts (`P`), the last one as `F`. A file that has grown past its bound
//! becomes `<path>.1`, that one `<path>.2`, and so on. A full disk never stops a container: what cannot be written is
//! counted and dropped.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};

use jiff::Timestamp;
use rustix::fs::{AtFlags, OFlags};

use crate::log_place;
use crate::protocol::LogCall;

/// A longer line is written in parts.
pub(super) const LINE: usize = 16 << 10;
/// So much is formatted before it is written.
const BATCH: usize = 8 << 10;

/// Which of a container's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Its output, or its terminal.
    Stdout,
    /// Its errors.
    Stderr,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An open log file.
#[derive(Debug)]
pub(super) struct Log {
    call: LogCall,
    file: Option<File>,
    bytes: u64,
    /// The last write ended within a line.
    torn: bool,
    dropped: u64,
}

impl Log {
    /// Opens or makes the file; never through a symbolic link, and only a regular file.
    pub(super) fn open(call: LogCall) -> io::Result<Self> {
        let (file, bytes) = open(&call)?;
        Ok(Self { call, file: Some(file), bytes, torn: false, dropped: 0 })
    }

    /// Opens the path anew, after somebody has renamed the file.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let (file, bytes) = open(&self.call)?;
        (self.file, self.bytes, self.torn) = (Some(file), bytes, false);
        Ok(())
    }

    /// Bytes that could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Logs what a stream brought; `partial` keeps the beginning of a line for the next time.
    pub(super) fn write(&mut self, which: Which, partial: &mut Vec<u8>, mut chunk: &[u8]) {
        let now = Timestamp::now();
        let mut batch = Vec::with_capacity(chunk.len().min(BATCH) + 64);
        while !chunk.is_empty() {
            let room = LINE.saturating_sub(partial.len());
            let end = chunk.iter().take(room).position(|byte| *byte == b'\n');
            match end.and_then(|end| Some((chunk.get(..end)?, chunk.get(end + 1..)?))) {
                Some((text, rest)) => {
                    line(&mut batch, now, which, 'F', partial, text);
                    partial.clear();
                    chunk = rest;
                }
                None => {
                    let (text, rest) = chunk.split_at(room.min(chunk.len()));
                    if text.len() == room {
                        line(&mut batch, now, which, 'P', partial, text);
                        partial.clear();
                    } else {
                        partial.extend_from_slice(text);
                    }
                    chunk = rest;
                }
            }
            if batch.len() > BATCH {
                self.append(&batch);
                batch.clear();
            }
        }
        if partial.is_empty() {
            *partial = Vec::new();
        }
        self.append(&batch);
    }

    /// Logs the rest of a stream that ended within a line.
    pub(super) fn finish(&mut self, which: Which, partial: &mut Vec<u8>) {
        if !partial.is_empty() {
            let mut batch = Vec::with_capacity(partial.len() + 64);
            line(&mut batch, Timestamp::now(), which, 'F', partial, &[]);
            *partial = Vec::new();
            self.append(&batch);
        }
    }

    fn append(&mut self, mut batch: &[u8]) {
        if batch.is_empty() {
            return;
        }
        if self.bytes >= self.call.max_bytes && !self.torn {
            self.rotate();
        }
        let Some(file) = &mut self.file else {
            self.dropped += batch.len() as u64;
            return;
        };
        if self.torn {
            match file.write(b"\n") {
                Ok(1) => (self.torn, self.bytes) = (false, self.bytes + 1),
                _ => {
                    self.dropped += batch.len() as u64;
                    return;
                }
            }
        }
        while !batch.is_empty() {
            match file.write(batch) {
                Ok(count) if count > 0 => {
                    self.bytes += count as u64;
                    batch = batch.get(count..).unwrap_or_default();
                    self.torn = !batch.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.dropped += batch.len() as u64;
                    return;
                }
            }
        }
    }

    fn rotate(&mut self) {
        // A directory that cannot be written keeps the file it has: it grows past its bound, or writes fail.
        let Ok((directory, name)) = log_place::open(&self.call) else { return };
        for number in (1..self.call.max_files).rev() {
            let from = if number == 1 { name.to_owned() } else { numbered(name, number - 1) };
            let _absent_or_full = rustix::fs::renameat(&directory, from, &directory, numbered(name, number));
        }
        if self.call.max_files <= 1 {
            let _absent = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
        }
        if let Ok((file, bytes)) = open(&self.call) {
            (self.file, self.bytes) = (Some(file), bytes);
        }
    }
}

fn open(call: &LogCall) -> io::Result<(File, u64)> {
    let file = log_place::file(call, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, metadata.len()))
}

fn numbered(name: &OsStr, number: u32) -> OsString {
    let mut name = name.to_owned();
    name.push(format!(".{number}"));
    name
}

fn line(batch: &mut Vec<u8>, now: Timestamp, which: Which, tag: char, partial: &[u8], text: &[u8]) {
    // Writing to a vector cannot fail. Nine digits keep all lines of one width.
    let _infallible = write!(batch, "{now:.9} {} {tag} ", which.name());
    batch.extend_from_slice(partial);
    batch.extend_from_slice(text);
    batch.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::path::Path;

    use super::*;

    fn call(directory: &Path, max_bytes: u64, max_files: u32) -> LogCall {
        LogCall { path: directory.join("0.log"), directory: directory.to_owned(), max_bytes, max_files }
    }

    fn log(directory: &Path, max_bytes: u64, max_files: u32) -> Log {
        Log::open(call(directory, max_bytes, max_files)).unwrap()
    }

    fn texts(path: &Path) -> Vec<(String, String, usize)> {
        let content = std::fs::read_to_string(path).unwrap();
        content
            .lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ');
                parts.next().unwrap().parse::<Timestamp>().unwrap();
                let (stream, tag) = (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned());
                (stream, tag, parts.next().unwrap().len())
            })
            .collect()
    }

    #[test]
    fn lines_are_joined_over_reads_and_the_rest_is_written_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, mut partial) = (log(directory.path(), 1 << 20, 5), Vec::new());
        for chunk in ["ab", "c\nd", "", "\n\n", "end"] {
            log.write(Which::Stdout, &mut partial, chunk.as_bytes());
        }
        log.finish(Which::Stdout, &mut partial);
        let f = |length| ("stdout".to_owned(), "F".to_owned(), length);
        assert_eq!(texts(&directory.path().join("0.log")), [f(3), f(1), f(0), f(3)]);
    }

    #[test]
    fn a_long_line_is_written_in_parts_of_16_kib() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, mut partial) = (log(directory.path(), 1 << 20, 5), Vec::new());
        let text = "x".repeat(2 * LINE + 5) + "\n";
        for chunk in text.as_bytes().chunks(1000) {
            log.write(Which::Stderr, &mut partial, chunk);
        }
        let lines = texts(&directory.path().join("0.log"));
        let shape: Vec<_> = lines.iter().map(|(_, tag, length)| (tag.as_str(), *length)).collect();
        assert_eq!(shape, [("P", LINE), ("P", LINE), ("F", 5)]);
    }

    #[test]
    fn a_full_file_makes_room_and_only_so_many_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, mut partial) = (log(directory.path(), 1000, 3), Vec::new());
        for number in 0..200 {
            log.write(Which::Stdout, &mut partial, format!("line {number:04} {}\n", "x".repeat(50)).as_bytes());
        }
        let mut names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        let newest = std::fs::read_to_string(directory.path().join("0.log")).unwrap();
        assert!(newest.contains("line 0199"));
        for name in names {
            assert!(std::fs::metadata(directory.path().join(name)).unwrap().len() < 1200);
        }
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_log_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        std::fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink(&target, directory.path().join("0.log")).unwrap();
        assert!(Log::open(call(directory.path(), 1, 1)).is_err());
    }

    #[test]
    fn a_directory_that_became_a_link_is_not_followed_when_a_log_is_opened_again_or_makes_room() {
        let place = tempfile::tempdir().unwrap();
        let (pod, outside) = (place.path().join("pod"), place.path().join("outside"));
        for directory in [pod.join("main"), outside.clone()] {
            std::fs::create_dir_all(directory).unwrap();
        }
        let call = LogCall { path: pod.join("main/0.log"), directory: pod.clone(), max_bytes: 10, max_files: 2 };
        let (mut log, mut partial) = (Log::open(call).unwrap(), Vec::new());
        std::fs::rename(pod.join("main"), pod.join("moved")).unwrap();
        std::os::unix::fs::symlink(&outside, pod.join("main")).unwrap();
        assert!(log.reopen().is_err());
        for _ in 0..5 {
            log.write(Which::Stdout, &mut partial, b"a line of text\n");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(texts(&pod.join("moved/0.log")).len(), 5, "what is open is written on");
    }

    #[test]
    fn a_full_disk_is_counted_and_forgotten() {
        let (mut log, mut partial) = (
            Log {
                call: call(Path::new("/dev"), 1 << 20, 1),
                file: Some(OpenOptions::new().write(true).open("/dev/full").unwrap()),
                bytes: 0,
                torn: false,
                dropped: 0,
            },
            Vec::new(),
        );
        log.write(Which::Stdout, &mut partial, b"lost\n");
        assert!(log.dropped() > 5);
    }
}
