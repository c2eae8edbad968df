//! eStargz: gzip members, of which the last ones are a tar entry with the table of contents and a footer.

use std::ops::Range;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;

use crate::{
    digest::Digest,
    layer::{Archive, Limits},
    partial::{
        PartialError,
        chunked::verify,
        offer::MAX_PACKED,
        toc::{Content, Entry, Table, malformed},
    },
};

/// Length of the footer, in bytes.
pub(crate) const FOOTER: u64 = 51;
/// A gzip header with an extra field of 26 bytes: `SG`, and 22 bytes behind their length.
const EXTRA: [u8; 6] = [26, 0, b'S', b'G', 22, 0];
const NAME: &[u8] = b"stargz.index.json";
/// Most that a table has, in bytes; it is held in memory.
const MAX_TABLE: u64 = 32 << 20;

/// An eStargz layer whose table is verified.
#[derive(Debug)]
pub(crate) struct Stargz {
    /// What of files can be left out, in the order of the archive.
    pub(crate) contents: Vec<Content>,
    /// The members before the table's.
    pub(crate) archive: Range<u64>,
    /// The table's member and the footer, as they came.
    pub(crate) tail: Bytes,
}

impl Stargz {
    /// Where the table is with all behind it, by the blob's last bytes.
    pub(crate) fn tail(footer: &[u8], size: u64) -> Result<Range<u64>, PartialError> {
        let refused = |problem: &str| PartialError::Malformed { what: "the footer", problem: problem.to_owned() };
        let field = footer.strip_prefix(&[0x1f, 0x8b, 8, 4]).and_then(|rest| rest.get(6..)?.strip_prefix(&EXTRA));
        let digits = field.and_then(|rest| rest.get(..16).filter(|_| rest.get(16..22) == Some(b"STARGZ")));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let start = digits.filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        let start = start.and_then(|text| u64::from_str_radix(text, 16).ok());
        let start = start.ok_or_else(|| refused("is none of eStargz"))?;
        if footer.len() as u64 != FOOTER || start >= size.saturating_sub(FOOTER) {
            return Err(refused("says that the table is behind the blob"));
        }
        if size - start > MAX_PACKED {
            return Err(PartialError::Limit { what: "the table of contents", limit: MAX_PACKED, unit: "bytes" });
        }
        Ok(start..size)
    }

    /// Reads the blob's end, which begins at `start`.
    pub(crate) fn read(tail: Bytes, start: u64, digest: &Digest) -> Result<Self, PartialError> {
        let limits = Limits { entries: 1, ..Limits::default() };
        let mut entries = Archive::new(std::io::BufReader::new(MultiGzDecoder::new(&tail[..])), &limits);
        let member = entries.next().map_err(malformed)?;
        if member.is_none_or(|member| member.path != NAME) {
            return Err(malformed("the archive's last entry is another"));
        }
        let json = entries.read_all(MAX_TABLE).map_err(malformed)?;
        verify("the table of contents", "the manifest", &json, digest)?;
        let contents = contents(&Table::read(&json[..])?.entries, start)?;
        Ok(Self { contents, archive: 0..start, tail })
    }
}

/// Of each file the chunks before its last: their members have nothing else. The last one's has padding and headers, too.
pub(super) fn contents(entries: &[Entry], end: u64) -> Result<Vec<Content>, PartialError> {
    let mut contents = Vec::new();
    let mut before = 0;
    let mut rest = entries;
    while let Some((file, behind)) = rest.split_first() {
        if file.is_chunk {
            return Err(malformed("a chunk is of no file"));
        }
        let chunks = behind.iter().take_while(|entry| entry.is_chunk).count();
        let (chunks, next) = behind.split_at_checked(chunks).unwrap_or((behind, &[]));
        rest = next;
        let mut covered = 0;
        for entry in std::iter::once(file).chain(chunks) {
            if entry.inner_offset != 0 {
                return Err(malformed("several chunks share a member"));
            }
            if entry.offset < before || entry.offset >= end || entry.chunk_offset != covered {
                return Err(malformed(format!("a chunk is at {}, after {before} and before {end}", entry.offset)));
            }
            before = entry.offset + 1;
            // The last one may leave its size to the file's.
            let last = entry.chunk_size == 0;
            covered = if last { file.size } else { covered.saturating_add(entry.chunk_size) };
        }
        if covered != file.size {
            return Err(malformed("the chunks of a file are not its size"));
        }
        if let (Some(last), Some(digest)) = (chunks.last(), file.digest) {
            let (packed, covered) = (file.offset..last.offset, last.chunk_offset);
            contents.push(Content { digest, size: file.size, packed, covered });
        }
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:0af90af90af90af90af90af90af90af90af90af90af90af90af90af90af90af9";

    fn footer(field: &str) -> Vec<u8> {
        [b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0", field.as_bytes(), b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0"]
            .concat()
    }

    #[test]
    fn the_footer_says_where_the_table_is() {
        let at = |field: &str, size| Stargz::tail(&footer(field), size);
        assert_eq!(at("00000000000003e8STARGZ", 5000).unwrap(), 1000..5000);
        for (field, size) in [
            ("00000000000003e8STARGY", 5000),
            ("+0000000000003e8STARGZ", 5000),
            ("-0000000000003e8STARGZ", 5000),
            ("ffffffffffffffffSTARGZ", 5000),
            // Only the footer would be there.
            ("00000000000003e8STARGZ", 1051),
            ("00000000000003e8STARGZ", 51),
            ("0000000000000000STARGZ", (16 << 20) + 1),
            ("00000000000003e8STARG", 5000),
            ("00000000000003e8STARGZ.", 5000),
        ] {
            assert!(at(field, size).is_err(), "{field} in {size} bytes was taken");
        }
    }

    /// The contents of a table that begins at 1000, as the place in the blob and what is covered of a file.
    fn read(name: &str, entries: &str) -> Result<Vec<(Range<u64>, u64)>, PartialError> {
        let json = format!(r#"{{"version":1,"entries":[{entries}]}}"#);
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(json.len() as u64);
        tar.append_data(&mut header, name, json.as_bytes()).unwrap();
        let mut tail = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        tail.write_all(&tar.into_inner().unwrap()).unwrap();
        let layer = Stargz::read(tail.finish().unwrap().into(), 1000, &Digest::of(json.as_bytes()))?;
        Ok(layer.contents.into_iter().map(|content| (content.packed, content.covered)).collect())
    }

    #[test]
    fn all_chunks_of_a_file_but_its_last_can_be_left_out() {
        let file = |more: &str| format!(r#"{{"type":"reg","size":100,"digest":"{DIGEST}",{more}}}"#);
        let chunk = |more: &str| format!(r#"{{"type":"chunk",{more}}}"#);
        let whole = file(r#""offset":50"#);
        let first = file(r#""offset":60,"chunkSize":40"#);
        let second = chunk(r#""offset":70,"chunkOffset":40,"chunkSize":40"#);
        let third = chunk(r#""offset":80,"chunkOffset":80"#);
        let good = [&whole[..], &first, &second, &third].join(",");
        assert_eq!(read("stargz.index.json", &good).unwrap(), [(60..80, 80)]);
        for (case, entries) in [
            ("a chunk of nothing", vec![&second[..]]),
            ("a chunk that is missing", vec![&first, &third]),
            ("a last chunk that is missing", vec![&first, &second]),
            ("an order that is another", vec![&first, &second, &third, &whole]),
        ] {
            assert!(read("stargz.index.json", &entries.join(",")).is_err(), "{case}");
        }
        for (case, from, to) in [
            ("a place in the table", "\"offset\":80", "\"offset\":1000"),
            ("a place twice", "\"offset\":70", "\"offset\":60"),
            ("a member of several chunks", "\"chunkOffset\":40", "\"innerOffset\":5,\"chunkOffset\":40"),
            ("a size without an end", "\"chunkSize\":40", "\"chunkSize\":18446744073709551615"),
            ("a negative place", "\"offset\":70", "\"offset\":-70"),
        ] {
            let bad = good.replace(from, to);
            assert!(bad != good && read("stargz.index.json", &bad).is_err(), "{case}");
        }
        assert!(read("index.json", &good).is_err(), "another entry");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = Stargz::tail(&bytes, 5000).is_ok();
            let _any = Table::read(&bytes[..]).is_ok();
            prop_assert!(Stargz::read(bytes.into(), 0, &Digest::of(b"")).is_err());
        }
    }
}
