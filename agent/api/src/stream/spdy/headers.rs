//! Blocks of headers, compressed over a whole connection. SPDY draft 3.1 §2.6.10.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes};
use flate2::{Decompress, FlushDecompress, Status};

/// The most bytes that a block has when it is no longer compressed; those of our clients have some hundred.
const MAX_BYTES: usize = 16 * 1024;
/// The most that is unpacked at a time.
const STEP: usize = 4 * 1024;

/// Words that both ends know, each with its length before it; and a text after them. §2.6.10.1
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
    Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8\
    charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut all = Vec::new();
    for word in WORDS.split(' ') {
        all.put_u32(u32::try_from(word.len()).unwrap_or(0));
        all.extend(word.bytes().map(|byte| if byte == b'_' { b' ' } else { byte }));
    }
    all.extend_from_slice(TEXT.as_bytes());
    all
}

/// Reads one block after the other.
#[derive(Debug)]
pub(super) struct HeaderReader(Decompress);

impl HeaderReader {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of a block; `None` when it makes no sense, after which no other can be read.
    pub(super) fn read(&mut self, mut packed: &[u8]) -> Option<BTreeMap<String, String>> {
        let mut block = Vec::with_capacity(STEP);
        loop {
            if block.capacity() == block.len() {
                block.reserve(STEP);
            }
            let before = (self.0.total_in(), self.0.total_out());
            let unpacked = self.0.decompress_vec(packed, &mut block, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before.0).ok()?;
            packed = packed.get(taken..)?;
            match unpacked {
                Err(error) if error.needs_dictionary().is_some() => drop(self.0.set_dictionary(&dictionary()).ok()?),
                Ok(Status::Ok | Status::BufError) => {
                    let idle = taken == 0 && self.0.total_out() == before.1;
                    if block.len() > MAX_BYTES || (idle && !packed.is_empty() && block.len() < block.capacity()) {
                        return None;
                    }
                    // Room was left: there is no more to come.
                    if packed.is_empty() && block.len() < block.capacity() {
                        return parse(block.into());
                    }
                }
                Ok(Status::StreamEnd) | Err(_) => return None,
            }
        }
    }
}

fn parse(mut block: Bytes) -> Option<BTreeMap<String, String>> {
    let text = |block: &mut Bytes| {
        let length = usize::try_from(block.try_get_u32().ok()?).ok()?;
        if length > block.len() {
            return None;
        }
        String::from_utf8(block.split_to(length).to_vec()).ok()
    };
    let count = block.try_get_u32().ok()?;
    let mut headers = BTreeMap::new();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        // §2.6.10: each has a name, and each name comes once.
        if name.is_empty() || headers.insert(name, text(&mut block)?).is_some() {
            return None;
        }
    }
    block.is_empty().then_some(headers)
}

/// A block without headers: zlib's head when it is the first, the count in a block that is not compressed, and an empty
/// one, without which readers wait for more.
pub(super) fn empty_block(first: bool) -> Vec<u8> {
    let mut packed = if first { vec![0x78, 0x01] } else { Vec::new() };
    packed.extend([0, 4, 0, !4, !0, 0, 0, 0, 0]);
    packed.extend([0, 0, 0, !0, !0]);
    packed
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    fn block(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        block.put_u32(u32::try_from(headers.len()).unwrap());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.put_u32(u32::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }

    fn pack(packer: &mut Compress, block: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(block.len() + 1024);
        packer.compress_vec(block, &mut packed, FlushCompress::Sync).unwrap();
        packed
    }

    #[test]
    fn the_dictionary_is_that_of_the_specification() {
        let mut packer = Compress::new(Compression::best(), true);
        assert_eq!(packer.set_dictionary(&dictionary()).unwrap(), 0xe3c6_a7c2);
        assert_eq!(dictionary().len(), 1423);
    }

    #[test]
    fn blocks_of_one_connection_are_read_with_the_dictionary_and_without() {
        for with in [true, false] {
            let mut packer = Compress::new(Compression::best(), true);
            if with {
                packer.set_dictionary(&dictionary()).unwrap();
            }
            let mut reader = HeaderReader::new();
            let long = "x".repeat(9000);
            for (name, value) in
                [("Streamtype", "error"), ("port", "80"), ("long", long.as_str()), ("version", "HTTP/1.1")]
            {
                let read = reader.read(&pack(&mut packer, &block(&[(name, value)]))).unwrap();
                assert_eq!(read, BTreeMap::from([(name.to_ascii_lowercase(), value.to_owned())]));
            }
        }
    }

    #[test]
    fn what_is_too_long_or_ends_early_is_refused() {
        let mut packer = Compress::new(Compression::best(), true);
        let bomb = "x".repeat(1 << 20);
        assert_eq!(HeaderReader::new().read(&pack(&mut packer, &block(&[("bomb", &bomb)]))), None);
        let mut packer = Compress::new(Compression::best(), true);
        assert_eq!(HeaderReader::new().read(&pack(&mut packer, &[0, 0, 0, 1, 0, 0, 0, 9, b'x'])), None);
        assert_eq!(HeaderReader::new().read(b""), None);
    }

    #[test]
    fn a_header_has_a_name_and_comes_once() {
        for bad in [&[("", "x")][..], &[("a", "x"), ("A", "y")]] {
            let mut packer = Compress::new(Compression::best(), true);
            assert_eq!(HeaderReader::new().read(&pack(&mut packer, &block(bad))), None, "{bad:?}");
        }
    }

    #[test]
    fn empty_blocks_are_read_as_such() {
        let mut reader = HeaderReader::new();
        assert_eq!(reader.read(&empty_block(true)), Some(BTreeMap::new()));
        assert_eq!(reader.read(&empty_block(false)), Some(BTreeMap::new()));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_fail_otherwise(bytes: Vec<u8>, packed: bool) {
            let bytes = if packed { pack(&mut Compress::new(Compression::fast(), true), &bytes) } else { bytes };
            let _read_or_not = HeaderReader::new().read(&bytes);
        }
    }
}
