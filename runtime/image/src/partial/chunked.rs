//! zstd:chunked: a table of contents, and perhaps a tar-split, in skippable frames behind the archive's.

use std::{io::Read, ops::Range};

use bytes::Bytes;

use crate::{
    digest::Digest,
    layer::USUAL_WINDOW_LOG,
    partial::{
        PartialError,
        offer::Part,
        toc::{Content, Entry, Table, malformed},
    },
};

/// The magic number and the length of a skippable frame.
const FRAME_HEADER: u64 = 8;

/// A zstd:chunked layer whose table is verified.
#[derive(Debug)]
pub(crate) struct Chunked {
    /// All files with content, in the order of the archive.
    pub(crate) contents: Vec<Content>,
    /// The frames of the archive.
    pub(crate) archive: Range<u64>,
    /// The digest that the tar-split must have, when there is one.
    pub(crate) tar_split: Option<Digest>,
}

impl Chunked {
    /// Reads a table as it came. `tar_split` is where its tar-split is, if anywhere.
    pub(crate) fn read(
        packed: &[u8],
        table: &Part,
        digest: &Digest,
        tar_split: Option<&Part>,
        tar_split_digest: Option<Digest>,
    ) -> Result<Self, PartialError> {
        verify("the table of contents", "the manifest", packed, digest)?;
        let unread = |source| PartialError::Read { what: "the table of contents", source };
        let mut json = zstd::stream::read::Decoder::with_buffer(packed).map_err(unread)?;
        json.window_log_max(USUAL_WINDOW_LOG).map_err(unread)?;
        let read = Table::read(json.take(table.unpacked))?;
        let behind = tar_split.map_or(table.at.start, |part| part.at.start.min(table.at.start));
        let archive = 0..behind.saturating_sub(FRAME_HEADER);
        let contents = contents(&read.entries, archive.end)?;
        let tar_split = tar_split.and_then(|_| read.tar_split.or(tar_split_digest));
        Ok(Self { contents, archive, tar_split })
    }
}

/// Bytes that must be what somebody trusted says.
pub(crate) fn verify(
    what: &'static str,
    by: &'static str,
    content: &[u8],
    expected: &Digest,
) -> Result<(), PartialError> {
    let actual = Digest::of(content);
    if actual == *expected {
        Ok(())
    } else {
        Err(PartialError::Digest { what, by, expected: expected.clone(), actual })
    }
}

/// Verifies a tar-split as it came.
pub(crate) fn tar_split(packed: Bytes, expected: &Digest) -> Result<Bytes, PartialError> {
    verify("the tar-split", "the table of contents", &packed, expected).map(|()| packed)
}

/// The frames of each file, one behind the other below `end`. Chunks are of no use: files are looked for whole.
pub(super) fn contents(entries: &[Entry], end: u64) -> Result<Vec<Content>, PartialError> {
    let mut contents = Vec::new();
    let mut before = 0;
    for entry in entries.iter().filter(|entry| !entry.is_chunk) {
        let Some(digest) = entry.digest else { return Err(malformed("a file has no digest")) };
        let packed = entry.offset..entry.end_offset;
        if packed.is_empty() || packed.start < before || packed.end > end {
            return Err(malformed(format!("a file is at {packed:?}, after {before} and before {end}")));
        }
        before = packed.end;
        contents.push(Content { digest, size: entry.size, packed, covered: entry.size });
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0af90af90af90af90af90af90af90af90af90af90af90af90af90af90af90af9";

    fn read(json: &str) -> Result<Chunked, PartialError> {
        let packed = zstd::encode_all(json.as_bytes(), 1).unwrap();
        let table = Part { at: 1008..1500, unpacked: json.len() as u64 };
        Chunked::read(&packed, &table, &Digest::of(&packed), None, None)
    }

    fn table(entries: &str) -> String {
        format!(r#"{{"version":1,"entries":[{entries}]}}"#)
    }

    fn file(size: i128, offset: i128, end: i128) -> String {
        format!(
            r#"{{"type":"reg","name":"../../etc/x","size":{size},"digest":"{DIGEST}","offset":{offset},"endOffset":{end}}}"#
        )
    }

    #[test]
    fn files_with_content_are_known_by_digest_and_place() {
        let entries = [
            r#"{"type":"dir","name":"d","mode":493}"#.to_owned(),
            file(7, 50, 60),
            r#"{"type":"chunk","name":"d","offset":55,"chunkOffset":3,"chunkSize":4}"#.to_owned(),
            r#"{"type":"reg","name":"empty"}"#.to_owned(),
            r#"{"type":"a kind of tomorrow","new":[{}]}"#.to_owned(),
            file(8, 60, 1000),
        ];
        let read = read(&table(&entries.join(","))).unwrap();
        assert_eq!(read.archive, 0..1000);
        let found: Vec<_> = read.contents.iter().map(|c| (c.size, c.packed.clone(), c.covered)).collect();
        assert_eq!(found, [(7, 50..60, 7), (8, 60..1000, 8)]);
    }

    #[test]
    fn a_table_that_cannot_be_is_refused() {
        let huge = i128::from(u64::MAX);
        for (case, json) in [
            ("no json", "{".to_owned()),
            ("another version", table("").replace('1', "2")),
            ("no entries", r#"{"version":1}"#.to_owned()),
            ("something behind it", table("") + "x"),
            ("overlapping files", table(&[file(1, 50, 60), file(1, 59, 70)].join(","))),
            ("files out of order", table(&[file(1, 50, 60), file(1, 10, 20)].join(","))),
            ("a file in the table", table(&file(1, 990, 1001))),
            ("a file behind the blob", table(&file(1, huge - 1, huge))),
            ("an end before the beginning", table(&file(1, 60, 50))),
            ("no frames", table(&file(1, 60, 60))),
            ("a negative place", table(&file(1, -1, 50))),
            ("a negative size", table(&file(-1, 1, 50))),
            ("a place beyond 64 bits", table(&file(1, 1, huge + 1))),
            ("no digest", table(&file(1, 1, 50).replace("digest", "digesta"))),
            ("a digest that leads elsewhere", table(&file(1, 1, 50).replace(DIGEST, "sha256:../../etc/passwd"))),
            ("a place twice", table(&file(1, 1, 50).replace("\"size\"", "\"offset\":1,\"size\""))),
        ] {
            assert!(read(&json).is_err(), "{case}: {json} was taken");
        }
    }

    #[test]
    fn a_table_has_the_digest_and_no_more_than_the_length_of_the_manifest() {
        let json = table("");
        let packed = zstd::encode_all(json.as_bytes(), 1).unwrap();
        let whole = Part { at: 1008..1500, unpacked: json.len() as u64 };
        let cut = Part { unpacked: json.len() as u64 - 1, ..whole.clone() };
        let wrong = Digest::of(b"x");
        assert!(Chunked::read(&packed, &whole, &Digest::of(&packed), None, None).is_ok());
        assert!(matches!(Chunked::read(&packed, &whole, &wrong, None, None), Err(PartialError::Digest { .. })));
        assert!(Chunked::read(&packed, &cut, &Digest::of(&packed), None, None).is_err());
        assert!(matches!(tar_split(Bytes::from(packed), &wrong), Err(PartialError::Digest { .. })));
    }

    #[test]
    fn more_files_than_are_remembered_are_refused() {
        let entry = file(1, 1, 50);
        let json = table(&vec![entry; 500_001].join(","));
        assert!(read(&json).unwrap_err().to_string().contains("more than 500000"));
    }

    #[test]
    fn a_tar_split_counts_only_with_a_digest() {
        let part = Part { at: 900..950, unpacked: 100 };
        let read = |json: &str, digest| {
            let packed = zstd::encode_all(json.as_bytes(), 1).unwrap();
            let table = Part { at: 1008..1500, unpacked: json.len() as u64 };
            Chunked::read(&packed, &table, &Digest::of(&packed), Some(&part), digest).unwrap()
        };
        let annotated = Digest::of(b"annotated");
        let told = table("").replace("\"entries\"", &format!("\"tarSplitDigest\":\"{DIGEST}\",\"entries\""));
        assert_eq!(read(&table(""), None).tar_split, None);
        assert_eq!(read(&table(""), Some(annotated.clone())).tar_split, Some(annotated.clone()));
        assert_eq!(read(&told, Some(annotated)).tar_split.unwrap().as_str(), DIGEST);
        assert_eq!(read(&told, None).archive, 0..892);
    }
}
