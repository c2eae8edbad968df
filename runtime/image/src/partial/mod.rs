//! Partial pulls: a layer's archive, rebuilt from files that the store has and from parts of its blob.
//!
//! ```text
//!   annotations of the verified manifest
//!        |  digest                        +---------- records of the layers that are here
//!        v                                v
//!   table of contents (by range) --> contents: sha256, size, where in the blob --> plan: ranges to fetch
//!                                                                                    |
//!        tar-split (by range): headers ---+                                          v
//!        files of other layers, hashed ---+--> the archive, byte by byte --> unpack: diff id <-- frames, decompressed
//! ```
//! What a table says is believed only to save work: the archive that comes out is unpacked as any other, and
//! stays only when its sha256 is the diff id of the image's configuration.
//!
//! - zstd:chunked has each file's content in frames of its own. With a tar-split, which has all that is between contents,
//!   only contents are fetched. Without one (older layers) the headers are in frames between
//!   those of the contents; then all of the blob is fetched but the largest contents that are here.
//! - eStargz is treated like the latter. The gzip member of a file's last chunk has the next file's header, too, so
//!   only the other chunks can be left out: files of at most one chunk (4 MiB) save nothing.
//!
//! Source: containers/storage `pkg/chunked` (its `internal/minimal/compression.go` documents the annotations and the table),
//! vbatts/tar-split `tar/storage`, containerd/stargz-snapshotter `docs/estargz.md`.

mod chunked;
mod error;
mod estargz;
mod fetched;
mod local;
mod offer;
mod plan;
mod prepared;
mod rebuilt;
mod tarsplit;
mod toc;

use std::ops::Range;

pub(crate) use chunked::{Chunked, tar_split};
pub(crate) use error::PartialError;
pub(crate) use estargz::{FOOTER, Stargz};
pub(crate) use offer::Offer;
pub(crate) use plan::check_worth;
pub(crate) use prepared::Prepared;
pub(crate) use tarsplit::{Piece, TarSplit};

use fetched::Fetched;
use local::Found;
use plan::Plan;
use rebuilt::Rebuilt;

/// Where the contents are that a table tells of, by the rules of each form that it fits, before `end`.
pub(crate) fn places(table: &[u8], end: u64) -> Vec<Vec<Range<u64>>> {
    let Ok(table) = toc::Table::read(table) else { return Vec::new() };
    let forms = [chunked::contents(&table.entries, end), estargz::contents(&table.entries, end)];
    forms.into_iter().flatten().map(|contents| contents.into_iter().map(|c| c.packed).collect()).collect()
}
