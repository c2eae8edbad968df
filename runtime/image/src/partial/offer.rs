//! What a manifest says of a layer that can be pulled in parts.

use std::ops::Range;

use crate::{digest::Digest, manifest::Descriptor, partial::PartialError, text::shown};

/// Largest compressed table of contents, or tar-split, that is held in memory, in bytes: about 180 000 files.
pub(crate) const MAX_PACKED: u64 = 16 << 20;
/// Most that a table of contents decompresses to, in bytes. It is read as a stream.
pub(crate) const MAX_TABLE: u64 = 150 << 20;
/// The same of a tar-split.
const MAX_TAR_SPLIT: u64 = 1 << 30;

const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
/// The same as skopeo 1.9 and others of its time call them; there is no tar-split then.
const OLD_CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
const OLD_POSITION: &str = "io.containers.zstd-chunked.manifest-position";
const TAR_SPLIT_CHECKSUM: &str = "io.github.containers.zstd-chunked.tarsplit-checksum";
const TAR_SPLIT_POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";
const STARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";

/// The only kind of table that there is.
const KIND_OF_TABLE: u64 = 1;

/// Where a layer's table of contents is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Offer {
    /// zstd:chunked.
    Chunked {
        table: Part,
        /// Of the compressed table.
        digest: Digest,
        tar_split: Option<Part>,
        /// Of the compressed tar-split; newer layers have it in the table.
        tar_split_digest: Option<Digest>,
    },
    /// eStargz: the blob's last bytes say where the table is; the digest is of the table itself.
    Stargz { digest: Digest },
}

/// A compressed piece of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) at: Range<u64>,
    /// Its length when it is decompressed, in bytes.
    pub(crate) unpacked: u64,
}

impl Offer {
    /// What the annotations of a verified manifest offer; `None` when that is nothing.
    pub(crate) fn of(blob: &Descriptor) -> Option<Result<Self, PartialError>> {
        let value = |name: &'static str| Some((name, blob.annotations.get(name)?.as_str()));
        let (checksum, position) = (value(CHECKSUM), value(POSITION));
        match (checksum.or(value(OLD_CHECKSUM)), position.or(value(OLD_POSITION)), value(STARGZ)) {
            (Some(checksum), Some(position), _) => {
                let tar_split = (value(TAR_SPLIT_POSITION), value(TAR_SPLIT_CHECKSUM));
                Some(Self::chunked(blob.size, checksum, position, tar_split))
            }
            (_, _, Some(checksum)) => Some(digest(checksum).map(|digest| Self::Stargz { digest })),
            _ => None,
        }
    }

    fn chunked(
        size: u64,
        checksum: Annotation<'_>,
        position: Annotation<'_>,
        tar_split: (Option<Annotation<'_>>, Option<Annotation<'_>>),
    ) -> Result<Self, PartialError> {
        let [start, length, unpacked, kind] = numbers(position)?;
        if kind != KIND_OF_TABLE {
            return Err(not_understood(position));
        }
        let part = |annotation, [start, length, unpacked]: [u64; 3], what, most| {
            let end = start.checked_add(length).filter(|end| length > 0 && *end <= size);
            let end = end.ok_or_else(|| not_understood(annotation))?;
            for (bytes, limit) in [(length, MAX_PACKED), (unpacked, most)] {
                if bytes > limit {
                    return Err(PartialError::Limit { what, limit, unit: "bytes" });
                }
            }
            Ok(Part { at: start..end, unpacked })
        };
        let table = part(position, [start, length, unpacked], "the table of contents", MAX_TABLE)?;
        let (tar_split, tar_split_digest) = match tar_split {
            (Some(position), checksum) => {
                let tar_split = part(position, numbers(position)?, "the tar-split", MAX_TAR_SPLIT)?;
                (Some(tar_split), checksum.map(digest).transpose()?)
            }
            (None, _) => (None, None),
        };
        Ok(Self::Chunked { table, digest: digest(checksum)?, tar_split, tar_split_digest })
    }
}

type Annotation<'a> = (&'static str, &'a str);

fn not_understood((name, value): Annotation<'_>) -> PartialError {
    PartialError::Annotation { name, value: shown(value) }
}

fn digest(annotation: Annotation<'_>) -> Result<Digest, PartialError> {
    annotation.1.parse().map_err(|_| not_understood(annotation))
}

/// Decimal numbers between colons, exactly so many.
fn numbers<const N: usize>(annotation: Annotation<'_>) -> Result<[u64; N], PartialError> {
    let read: Option<Vec<u64>> = annotation.1.split(':').map(|number| number.parse().ok()).collect();
    read.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| not_understood(annotation))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0af90af90af90af90af90af90af90af90af90af90af90af90af90af90af90af9";

    fn offer(size: u64, annotations: &[(&str, &str)]) -> Option<Result<Offer, PartialError>> {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let digest = DIGEST.parse().unwrap();
        Offer::of(&Descriptor { media_type: String::new(), digest, size, annotations })
    }

    #[test]
    fn without_its_annotations_a_layer_offers_nothing() {
        assert!(offer(1000, &[]).is_none());
        assert!(offer(1000, &[(POSITION, "1:2:3:1")]).is_none());
        assert!(offer(1000, &[(CHECKSUM, DIGEST), (TAR_SPLIT_POSITION, "1:2:3")]).is_none());
    }

    #[test]
    fn positions_lie_in_the_blob_and_have_a_bound() {
        let chunked = |position: &str| offer(30 << 20, &[(CHECKSUM, DIGEST), (POSITION, position)]).unwrap();
        let Ok(Offer::Chunked { table, tar_split: None, .. }) = chunked("100:50:700:1") else { panic!("refused") };
        assert_eq!(table, Part { at: 100..150, unpacked: 700 });
        for bad in [
            "",
            "1:2:3",
            "1:2:3:2",
            "1:2:3:1:1",
            "-1:2:3:1",
            "0x1:2:3:1",
            "100:0:0:1",
            "31457280:1:1:1",
            "31457279:2:1:1",
            "18446744073709551615:2:1:1",
            "18446744073709551616:2:1:1",
            "0:16777217:1:1",
            "0:1:157286401:1",
        ] {
            assert!(chunked(bad).is_err(), "{bad:?} was taken");
        }
        for bad in ["1:2", "1:2:3:1", "31457280:1:1", "0:1:1073741825"] {
            let annotations = [(CHECKSUM, DIGEST), (POSITION, "100:50:700:1"), (TAR_SPLIT_POSITION, bad)];
            assert!(offer(30 << 20, &annotations).unwrap().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn digests_are_sha256() {
        for name in [CHECKSUM, STARGZ] {
            let annotations = [(name, "md5:0af9"), (POSITION, "100:50:700:1")];
            assert!(offer(1000, &annotations).unwrap().is_err(), "{name}");
        }
        assert!(matches!(offer(1000, &[(STARGZ, DIGEST)]), Some(Ok(Offer::Stargz { .. }))));
    }
}
