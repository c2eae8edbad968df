//! One line of a record.

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::stat::{FileStat, SFlag, major, minor};

/// One entry, as a record has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Relative to the directory that the record tells of; empty for that itself.
    pub(crate) path: Vec<u8>,
    text: Vec<u8>,
}

impl Line {
    /// Takes a line apart; `None` when it is none that [`write()`] makes.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = text.strip_suffix(b"\n")?;
        let (path, rest) = text.split_at(text.iter().position(|b| *b == b' ')?);
        let path = unescape(path)?;
        let path = if path == b"." { Vec::new() } else { path.strip_prefix(b"./")?.to_vec() };
        Some(Self { path, text: rest.to_vec() })
    }

    /// Each keyword with its value as it is written.
    pub(crate) fn keywords(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.text.split(|b| *b == b' ').filter_map(|word| {
            let at = word.iter().position(|b| *b == b'=')?;
            Some((word.get(..at)?, word.get(at + 1..)?))
        })
    }

    /// The value of a keyword.
    pub(crate) fn value(&self, keyword: &[u8]) -> Option<&[u8]> {
        self.keywords().find(|(name, _)| *name == keyword).map(|(_, value)| value)
    }
}

/// What a line says besides its path.
pub(crate) struct Entry<'a> {
    pub(crate) stat: &'a FileStat,
    /// Of a file.
    pub(crate) digest: Option<[u8; 32]>,
    /// Of a symbolic link.
    pub(crate) target: Option<&'a [u8]>,
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Appends the line of an entry.
pub(crate) fn write(line: &mut Vec<u8>, path: &[u8], entry: &Entry<'_>) {
    let Entry { stat, digest, target, xattrs } = entry;
    line.push(b'.');
    if !path.is_empty() {
        line.push(b'/');
        escape(line, path);
    }
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let name = match kind {
        SFlag::S_IFREG => "file",
        SFlag::S_IFDIR => "dir",
        SFlag::S_IFLNK => "link",
        SFlag::S_IFCHR => "char",
        SFlag::S_IFBLK => "block",
        SFlag::S_IFIFO => "fifo",
        _ => "socket",
    };
    append(line, format_args!(" type={name}"));
    // The mode of a link means nothing, and differs between file systems.
    if kind != SFlag::S_IFLNK {
        append(line, format_args!(" mode={:04o}", stat.st_mode & 0o7777));
    }
    append(line, format_args!(" uid={} gid={}", stat.st_uid, stat.st_gid));
    if kind == SFlag::S_IFREG {
        append(line, format_args!(" size={}", stat.st_size));
    }
    if kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK {
        append(line, format_args!(" device=native,{},{}", major(stat.st_rdev), minor(stat.st_rdev)));
    }
    append(line, format_args!(" time={}.{:09}", stat.st_mtime, stat.st_mtime_nsec));
    if let Some(target) = target {
        line.extend_from_slice(b" link=");
        escape(line, target);
    }
    if let Some(digest) = digest {
        append(line, format_args!(" sha256digest={}", hex::encode(digest)));
    }
    for (name, value) in *xattrs {
        line.extend_from_slice(b" xattr.");
        escape(line, name);
        append(line, format_args!("={}", STANDARD.encode(value)));
    }
    line.push(b'\n');
}

fn append(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("a vector takes whatever is written");
}

/// Source: vis(3) with `VIS_OCTAL`; what means something to a shell or in a record is escaped as well.
fn escape(line: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'\\' | b'#' | b'*' | b'?' | b'[' | b'=' => append(line, format_args!("\\{byte:03o}")),
            b'!'..=b'~' => line.push(*byte),
            _ => append(line, format_args!("\\{byte:03o}")),
        }
    }
}

/// Back again; `None` when a backslash has no three octal digits of one byte behind it.
pub(crate) fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let mut value = 0_u16;
        for _ in 0..3 {
            let digit = rest.next().filter(|d| (b'0'..=b'7').contains(*d))?;
            value = value * 8 + u16::from(digit - b'0');
        }
        bytes.push(u8::try_from(value).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_bytes_a_name_has_it_is_one_word_and_comes_back(name in proptest::collection::vec(1_u8.., 0..40)) {
            let mut word = Vec::new();
            escape(&mut word, &name);
            prop_assert!(word.iter().all(|b| (b'!'..=b'~').contains(b) && *b != b'='));
            prop_assert_eq!(unescape(&word), Some(name));
        }

        #[test]
        fn no_bytes_make_the_parser_fail_but_for_no_line(text in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _any = Line::parse(&text).map(|line| line.keywords().count());
        }
    }

    #[test]
    fn what_is_no_escape_is_refused() {
        for bad in [&b"\\"[..], b"\\12", b"\\128", b"\\400", b"\\x41"] {
            assert_eq!(unescape(bad), None, "{bad:?}");
        }
        assert!(Line::parse(b"usr/bin type=dir\n").is_none(), "not below the root");
        assert!(Line::parse(b"./usr/bin type=dir").is_none(), "cut off");
    }
}
