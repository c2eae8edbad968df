//! Tables of contents, which zstd:chunked and eStargz write alike.
//!
//! Names are not read: a file is known by the sha256 of its content and its place in the blob alone, so that no name can
//! lead anywhere.

use std::{
    fmt,
    io::{self, BufReader, Read},
    ops::Range,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};

use crate::{digest::Digest, partial::PartialError};

/// Entries of files and chunks that are remembered, some 100 bytes each.
const MAX_ENTRIES: usize = 500_000;

const WHAT: &str = "the table of contents";

/// sha256 of a file's content.
pub(crate) type Sha256 = [u8; 32];

/// The content of one file, and where the blob has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) digest: Sha256,
    /// Of the whole file, in bytes.
    pub(crate) size: u64,
    /// The compressed bytes that have it, and nothing else.
    pub(crate) packed: Range<u64>,
    /// How much of it they have, from its beginning on, in bytes.
    pub(crate) covered: u64,
}

/// What is of use in a table of contents.
#[derive(Debug)]
pub(crate) struct Table {
    /// Files with content and their further chunks, in order.
    pub(crate) entries: Vec<Entry>,
    /// Digest of the compressed tar-split.
    pub(crate) tar_split: Option<Digest>,
}

/// A file, or a chunk of the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) is_chunk: bool,
    pub(crate) digest: Option<Sha256>,
    pub(crate) size: u64,
    /// Where in the blob its compressed bytes begin.
    pub(crate) offset: u64,
    /// Where they end, when it says so.
    pub(crate) end_offset: u64,
    /// Where in the file's content a chunk begins.
    pub(crate) chunk_offset: u64,
    pub(crate) chunk_size: u64,
    /// Where in the decompressed bytes at `offset` it begins.
    pub(crate) inner_offset: u64,
}

impl Table {
    /// Reads a table; what it says of places and sizes is still to be checked.
    pub(crate) fn read(json: impl Read) -> Result<Self, PartialError> {
        let raw: Raw = serde_json::from_reader(BufReader::new(json)).map_err(|error| match error.io_error_kind() {
            Some(_) => PartialError::Read { what: WHAT, source: io::Error::other(error) },
            None => malformed(error),
        })?;
        if raw.version != 1 {
            return Err(malformed(format!("has version {}", raw.version)));
        }
        Ok(Self { entries: raw.entries.0, tar_split: raw.tar_split_digest })
    }
}

pub(crate) fn malformed(problem: impl fmt::Display) -> PartialError {
    PartialError::Malformed { what: WHAT, problem: format!("is not valid: {problem}") }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    version: u64,
    entries: Entries,
    tar_split_digest: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    #[serde(rename = "type", deserialize_with = "kind")]
    kind: Kind,
    #[serde(default, deserialize_with = "sha256")]
    digest: Option<Sha256>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    end_offset: u64,
    #[serde(default)]
    chunk_offset: u64,
    #[serde(default)]
    chunk_size: u64,
    #[serde(default)]
    inner_offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Chunk,
    Other,
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    Ok(match String::deserialize(deserializer)?.as_str() {
        "reg" => Kind::File,
        "chunk" => Kind::Chunk,
        _ => Kind::Other,
    })
}

fn sha256<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Sha256>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let digest: Digest = text.parse().map_err(D::Error::custom)?;
    Ok(Some(raw(&digest)))
}

/// A digest without its text.
pub(crate) fn raw(digest: &Digest) -> Sha256 {
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest.hex(), &mut bytes).expect("a digest has 64 hexadecimal digits");
    bytes
}

/// Only those that have content.
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Wanted;
        impl<'de> Visitor<'de> for Wanted {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(raw) = list.next_element::<RawEntry>()? {
                    let is_chunk = raw.kind == Kind::Chunk;
                    if !is_chunk && (raw.kind != Kind::File || raw.size == 0) {
                        continue;
                    }
                    if entries.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format_args!("more than {MAX_ENTRIES} files and chunks")));
                    }
                    let RawEntry { digest, size, offset, end_offset, chunk_offset, chunk_size, inner_offset, .. } = raw;
                    entries.push(Entry {
                        is_chunk,
                        digest,
                        size,
                        offset,
                        end_offset,
                        chunk_offset,
                        chunk_size,
                        inner_offset,
                    });
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_seq(Wanted)
    }
}
