//! tar-split: all of an archive but the contents of its files.
//!
//! Lines of JSON: `{"type":2,"payload":"<base64>"}` are bytes of the archive, `{"type":1,"name":..,"size":..}` stands for
//! the content of a file. Source: vbatts/tar-split `tar/storage/entry.go`, `packer.go`.

use std::{
    borrow::Cow,
    io::{BufRead, Read},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::partial::PartialError;

const WHAT: &str = "the tar-split";
/// Longest line, in bytes: what [`Limits::header_bytes`](crate::layer::Limits) allows, in base64, and some more.
const MAX_LINE: u64 = 2 << 20;

const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// What comes next in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes.
    Literal(Vec<u8>),
    /// The content of the next file that has any, of so many bytes.
    Content(u64),
}

/// Takes a tar-split apart, a line at a time.
pub(crate) struct TarSplit<R> {
    lines: R,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    size: u64,
    #[serde(borrow)]
    payload: Option<Cow<'a, str>>,
}

impl<R: BufRead> TarSplit<R> {
    pub(crate) fn new(lines: R) -> Self {
        Self { lines }
    }

    fn piece(&mut self) -> Result<Option<Piece>, PartialError> {
        let malformed = |problem: String| PartialError::Malformed { what: WHAT, problem };
        loop {
            let mut text = Vec::new();
            let read = (&mut self.lines).take(MAX_LINE).read_until(b'\n', &mut text);
            if read.map_err(|source| PartialError::Read { what: WHAT, source })? == 0 {
                return Ok(None);
            }
            if text.len() as u64 == MAX_LINE {
                return Err(PartialError::Limit { what: "a line of the tar-split", limit: MAX_LINE, unit: "bytes" });
            }
            let line: Line<'_> = serde_json::from_slice(&text).map_err(|e| malformed(format!("is not valid: {e}")))?;
            match line.kind {
                // Directories and links have no content.
                FILE if line.size == 0 => {}
                FILE => return Ok(Some(Piece::Content(line.size))),
                SEGMENT => {
                    let bytes = STANDARD.decode(line.payload.as_deref().unwrap_or_default());
                    return Ok(Some(Piece::Literal(bytes.map_err(|e| malformed(format!("is not base64: {e}")))?)));
                }
                kind => return Err(malformed(format!("has an entry of type {kind}"))),
            }
        }
    }
}

impl<R: BufRead> Iterator for TarSplit<R> {
    type Item = Result<Piece, PartialError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.piece().transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(text: &[u8]) -> Result<Vec<Piece>, PartialError> {
        TarSplit::new(text).collect()
    }

    #[test]
    fn segments_and_contents_come_in_order() {
        let text = r#"{"type":2,"payload":"aGVhZA==","position":0}
{"type":1,"name":"d/","payload":null,"position":1}
{"type":1,"name_raw":"/w==","size":7,"payload":"6UJLNQ==","position":2}
{"type":2,"payload":"AAA=","position":3}"#;
        let expected = [Piece::Literal(b"head".to_vec()), Piece::Content(7), Piece::Literal(vec![0, 0])];
        assert_eq!(pieces(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn what_is_no_tar_split_is_refused() {
        for bad in [
            "x",
            "{}",
            r#"{"type":3}"#,
            r#"{"type":256}"#,
            r#"{"type":-1}"#,
            r#"{"type":1,"size":-1}"#,
            r#"{"type":1,"size":18446744073709551616}"#,
            r#"{"type":2,"payload":"*"}"#,
            r#"{"type":2,"payload":7}"#,
            r#"{"type":2,"payload":""#,
        ] {
            assert!(pieces(bad.as_bytes()).is_err(), "{bad} was taken");
        }
        let long = format!(r#"{{"type":2,"payload":"{}"}}"#, "A".repeat(2 << 20));
        assert!(matches!(pieces(long.as_bytes()), Err(PartialError::Limit { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _any = pieces(&bytes);
        }
    }
}
