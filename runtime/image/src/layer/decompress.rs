//! Reads gzip, zstd or plain bytes, whichever they are.

use std::{
    io::{self, BufRead, Cursor, Read},
    sync::Arc,
};

use flate2::bufread::MultiGzDecoder;

use crate::layer::{LayerError, archive::read_error};

type Input<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// The decompressed form of a stream, told by its first bytes and not by a media type, which may lie.
pub(crate) enum Decompressor<R: BufRead> {
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Input<R>>>),
    Plain(Input<R>),
}

impl<R: BufRead> Decompressor<R> {
    pub(crate) fn new(mut input: R) -> Result<Self, LayerError> {
        let mut start = Vec::new();
        while start.len() < 6 {
            let buffer = input.fill_buf().map_err(read_error)?;
            if buffer.is_empty() {
                break;
            }
            let step = buffer.len().min(6 - start.len());
            start.extend_from_slice(buffer.get(..step).unwrap_or_default());
            input.consume(step);
        }
        let unsupported = |name: &str| {
            let problem = format!("{name} is not supported, only gzip, zstd and none");
            LayerError::Decompress(Arc::new(io::Error::new(io::ErrorKind::Unsupported, problem)))
        };
        let kind = start.clone();
        let input = Cursor::new(start).chain(input);
        // Skippable frames lead zstd:chunked layers that some tools write.
        let zstd = kind.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
            || kind.get(1..4) == Some(&[0x2a, 0x4d, 0x18]) && kind.first().is_some_and(|b| b & 0xf0 == 0x50);
        if kind.starts_with(&[0x1f, 0x8b]) {
            Ok(Self::Gzip(Box::new(MultiGzDecoder::new(input))))
        } else if zstd {
            let decoder =
                zstd::stream::read::Decoder::with_buffer(input).map_err(|e| LayerError::Decompress(Arc::new(e)))?;
            Ok(Self::Zstd(Box::new(decoder)))
        } else if kind.starts_with(b"BZh") {
            Err(unsupported("bzip2"))
        } else if kind.starts_with(&[0xfd, b'7', b'z', b'X', b'Z']) {
            Err(unsupported("xz"))
        } else {
            Ok(Self::Plain(input))
        }
    }

    /// The compressed stream, wherever it is now.
    pub(crate) fn into_inner(self) -> R {
        match self {
            Self::Gzip(decoder) => decoder.into_inner().into_inner().1,
            Self::Zstd(decoder) => decoder.finish().into_inner().1,
            Self::Plain(input) => input.into_inner().1,
        }
    }
}

impl<R: BufRead> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Plain(input) => return input.read(buffer),
        };
        // What the network said comes through; the rest is the decoder's own complaint.
        result.map_err(|error| match error.get_ref().map(|e| e.is::<LayerError>()) {
            Some(true) => error,
            _ if error.kind() == io::ErrorKind::Interrupted => error,
            _ => io::Error::other(LayerError::Decompress(Arc::new(error))),
        })
    }
}
