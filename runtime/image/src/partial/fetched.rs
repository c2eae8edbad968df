//! The parts of a blob that are fetched, as they come.

use std::{
    io::{self, BufRead, Read},
    ops::Range,
    vec,
};

use crate::layer::read_filled;

/// Knows where in the blob the bytes belong that come one request after the other.
pub(crate) struct Fetched<R> {
    input: R,
    requests: vec::IntoIter<Range<u64>>,
    /// What is still to come of the request at hand.
    left: Range<u64>,
}

impl<R: BufRead> Fetched<R> {
    pub(crate) fn new(input: R, requests: Vec<Range<u64>>) -> Self {
        Self { input, requests: requests.into_iter(), left: 0..0 }
    }

    /// Goes on to this place of the blob, which lies ahead and is fetched; what comes before is not needed.
    pub(crate) fn go_to(&mut self, place: u64) -> io::Result<()> {
        while !self.left.contains(&place) {
            self.skip(self.left.end)?;
            self.left = self.requests.next().ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        self.skip(place)
    }

    fn skip(&mut self, to: u64) -> io::Result<()> {
        while self.left.start < to {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(to - self.left.start).unwrap_or(usize::MAX).min(length);
            self.consume(step);
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Fetched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_filled(self, buffer)
    }
}

/// Ends with the request at hand.
impl<R: BufRead> BufRead for Fetched<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf()?;
        Ok(buffer.get(..left).unwrap_or(buffer))
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.left.start += amount as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_where_the_blob_has_them() {
        let requests = vec![10..20, 50..60, 90..100];
        // Each byte of the blob is its place.
        let input: Vec<u8> = requests.iter().cloned().flatten().map(|place| u8::try_from(place).unwrap()).collect();
        let mut fetched = Fetched::new(&input[..], requests.clone());
        for place in [12, 15, 50, 99] {
            fetched.go_to(place).unwrap();
            let mut byte = [0];
            fetched.read_exact(&mut byte).unwrap();
            assert_eq!(u64::from(byte[0]), place);
        }
        for (place, behind) in [(30, 3), (5, 3), (100, 3), (15, 1)] {
            let mut fetched = Fetched::new(&input[..], requests[..behind].to_vec());
            fetched.go_to(19).unwrap();
            assert!(fetched.go_to(place).is_err(), "{place}");
        }
        let mut cut_off = Fetched::new(&input[..15], requests);
        cut_off.go_to(54).unwrap();
        assert!(cut_off.go_to(56).is_err());
    }
}
