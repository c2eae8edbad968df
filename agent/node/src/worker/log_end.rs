//! The end of a container's log, as the message of a container that failed and left none.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of a message that comes from the log, and the lines it may have.
///
/// Source: kubernetes pkg/kubelet/container/runtime.go, `MaxContainerTerminationMessageLogLength`
/// and `MaxContainerTerminationMessageLogLines`.
const MAX_BYTES: usize = 2048;
const MAX_LINES: usize = 80;
/// More than time, stream and tag of a line take.
const MAX_HEAD: usize = 64;
/// Whoever reads so much has all of the message.
const WINDOW: usize = MAX_BYTES + MAX_LINES * MAX_HEAD;

/// What a container said last; empty if it said nothing or its log is gone.
///
/// # Errors
/// What the kernel said.
pub(super) fn log_end(path: &Path) -> io::Result<String> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        opened => opened?,
    };
    let window = u64::try_from(WINDOW).unwrap_or(u64::MAX);
    let start = file.metadata()?.len().saturating_sub(window);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::with_capacity(WINDOW);
    file.take(window).read_to_end(&mut bytes)?;

    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').rev().take(MAX_LINES).collect();
    lines.reverse();
    let text: Vec<u8> = lines.into_iter().flat_map(said).copied().collect();
    let end = text.get(text.len().saturating_sub(MAX_BYTES)..).unwrap_or_default();
    Ok(String::from_utf8_lossy(end).into_owned())
}

/// The content of a line in CRI format, with its line break unless it is a part of one. Of a line whose
/// head is not in the window all of it.
fn said(line: &[u8]) -> &[u8] {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(b"stdout" | b"stderr"), Some(tag), Some(content)) if tag.starts_with(b"P") => {
            content.strip_suffix(b"\n").unwrap_or(content)
        }
        (Some(_), Some(b"stdout" | b"stderr"), Some(_), Some(content)) => content,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(log: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, log).unwrap();
        log_end(&path).unwrap()
    }

    fn line(tag: &str, text: &str) -> String {
        format!("2026-01-02T03:04:05.123456789Z stderr {tag} {text}\n")
    }

    #[test]
    fn the_end_of_a_log_is_bounded_by_lines_and_by_bytes() {
        assert_eq!(end_of(""), "");
        assert_eq!(end_of(&(line("F", "one") + &line("P", "two ") + &line("F", "parts"))), "one\ntwo parts\n");
        let short: Vec<String> = (0..200).map(|number| line("F", &number.to_string())).collect();
        let expected: String = (120..200).map(|number| format!("{number}\n")).collect();
        assert_eq!(end_of(&short.concat()), expected);
        let long: Vec<String> = (0..50).map(|number| line("F", &format!("{number:099}"))).collect();
        let text: String = (0..50).map(|number| format!("{number:099}\n")).collect();
        assert_eq!(end_of(&long.concat()), text[text.len() - MAX_BYTES..]);
        assert_eq!(end_of(&line("F", &"x".repeat(16_000))), "x".repeat(MAX_BYTES - 1) + "\n");
    }

    #[test]
    fn a_log_that_is_gone_says_nothing() {
        assert_eq!(log_end(Path::new("/nonexistent/0.log")).unwrap(), "");
    }
}
