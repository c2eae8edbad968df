//! The digest of an archive, and of each file in it, taken as it is read.
//!
//! Every byte of a file counts for both, and a file begins where a block of the archive's digest does: so the two are
//! taken together, by instructions that interleave, in three quarters of the time.

use std::io::{self, BufRead, Read};

use sha2::{Digest as _, Sha256, block_api::compress256};

use crate::layer::stream::read_filled;

/// Passes on what is read, and knows its digest and those of parts of it.
#[derive(Debug)]
pub(crate) struct Digests<R> {
    inner: R,
    pair: Pair,
}

impl<R: BufRead> Digests<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, pair: Pair::default() }
    }

    /// A part begins here.
    pub(crate) fn begin(&mut self) {
        self.pair.begin();
    }

    /// The digest of all that was consumed since.
    pub(crate) fn end(&mut self) -> [u8; 32] {
        self.pair.end()
    }

    /// The input, and the digest of all that was consumed.
    pub(crate) fn finish(self) -> (R, [u8; 32]) {
        (self.inner, self.pair.of_all())
    }
}

impl<R: BufRead> Read for Digests<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_filled(self, buffer)
    }
}

impl<R: BufRead> BufRead for Digests<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // What is there already is not read again.
        if amount > 0
            && let Ok(buffer) = self.inner.fill_buf()
        {
            self.pair.update(buffer.get(..amount).unwrap_or(buffer));
        }
        self.inner.consume(amount);
    }
}

const BLOCK: usize = 64;

/// SHA-256 of a stream, and of a part of it at a time. Source: FIPS 180-4.
#[derive(Debug)]
struct Pair {
    all: State,
    part: Part,
    /// The first `filled` of these bytes do not make a block yet.
    rest: [u8; BLOCK],
    filled: usize,
}

#[derive(Debug)]
enum Part {
    None,
    /// It began where a block begins, so that its blocks are the stream's.
    Along(State),
    Apart(Box<Sha256>),
}

#[derive(Debug, Clone, Copy)]
struct State {
    words: [u32; 8],
    length: u64,
}

impl Default for Pair {
    fn default() -> Self {
        Self { all: State::NEW, part: Part::None, rest: [0; BLOCK], filled: 0 }
    }
}

impl State {
    /// Source: FIPS 180-4 §5.3.3.
    const NEW: Self = Self {
        words: [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19],
        length: 0,
    };

    /// The digest, with the bytes after the last whole block. Source: FIPS 180-4 §5.1.1.
    fn finish(mut self, rest: &[u8]) -> [u8; 32] {
        let mut last = [[0; BLOCK]; 2];
        let bytes = last.as_flattened_mut();
        for (to, from) in bytes.iter_mut().zip(rest.iter().chain([&0x80])) {
            *to = *from;
        }
        let blocks = if rest.len() + 9 <= BLOCK { 1 } else { 2 };
        let end = blocks * BLOCK;
        if let Some(place) = bytes.get_mut(end - 8..end) {
            place.copy_from_slice(&(self.length * 8).to_be_bytes());
        }
        compress256(&mut self.words, last.get(..blocks).unwrap_or_default());
        let mut digest = [0; 32];
        for (to, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.words) {
            *to = word.to_be_bytes();
        }
        digest
    }
}

impl Pair {
    fn begin(&mut self) {
        self.part = match self.filled {
            0 => Part::Along(State::NEW),
            _ => Part::Apart(Box::new(Sha256::new())),
        };
    }

    fn end(&mut self) -> [u8; 32] {
        match std::mem::replace(&mut self.part, Part::None) {
            Part::Along(part) => part.finish(self.rest()),
            Part::Apart(hasher) => hasher.finalize().into(),
            Part::None => State::NEW.finish(&[]),
        }
    }

    fn of_all(&self) -> [u8; 32] {
        self.all.finish(self.rest())
    }

    fn rest(&self) -> &[u8] {
        self.rest.get(..self.filled).unwrap_or_default()
    }

    fn update(&mut self, bytes: &[u8]) {
        self.all.length += bytes.len() as u64;
        match &mut self.part {
            Part::Along(part) => part.length += bytes.len() as u64,
            Part::Apart(hasher) => hasher.update(bytes),
            Part::None => {}
        }
        let mut bytes = bytes;
        if self.filled > 0 {
            let (first, others) = bytes.split_at_checked(BLOCK - self.filled).unwrap_or((bytes, &[]));
            self.keep(first);
            bytes = others;
            if self.filled == BLOCK {
                self.filled = 0;
                self.compress(&[self.rest]);
            }
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        self.compress(blocks);
        self.keep(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        for (to, byte) in self.rest.iter_mut().skip(self.filled).zip(bytes) {
            *to = *byte;
        }
        self.filled += bytes.len();
    }

    fn compress(&mut self, blocks: &[[u8; BLOCK]]) {
        if let Part::Along(part) = &mut self.part {
            let mut both = [self.all.words, part.words];
            if !portreeve_sys::sha256::compress_two(&mut both, blocks) {
                both.iter_mut().for_each(|one| compress256(one, blocks));
            }
            [self.all.words, part.words] = both;
        } else {
            compress256(&mut self.all.words, blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn library(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    #[test]
    fn every_length_around_a_block_ends_as_the_standard_says() {
        for length in 0..300 {
            let bytes: Vec<u8> = (0..=255_u8).cycle().take(length).collect();
            let mut pair = Pair::default();
            pair.begin();
            pair.update(&bytes);
            assert_eq!(pair.end(), library(&bytes), "{length}");
            assert_eq!(pair.of_all(), library(&bytes), "{length}");
        }
    }

    proptest! {
        /// Whatever pieces it comes in, and wherever parts begin.
        #[test]
        fn parts_and_all_have_the_digests_that_the_library_gives(
            parts in proptest::collection::vec(
                (any::<bool>(), proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..6), any::<bool>()),
                0..8,
            ),
        ) {
            let mut pair = Pair::default();
            let mut all = Vec::new();
            for (counts, pieces, aligned) in parts {
                if counts {
                    pair.begin();
                }
                for piece in &pieces {
                    pair.update(piece);
                }
                let whole = pieces.concat();
                if counts {
                    prop_assert_eq!(pair.end(), library(&whole));
                }
                all.extend_from_slice(&whole);
                if aligned {
                    let padding = vec![0; all.len().next_multiple_of(512) - all.len()];
                    pair.update(&padding);
                    all.extend_from_slice(&padding);
                }
            }
            prop_assert_eq!(pair.of_all(), library(&all));
        }
    }
}
