//! Frames of SPDY. Draft 3.1 §2.2 and §2.6.
//!
//! ```text
//!   control: 1 | version 3 (15) | type (16) | flags (8) | length (24) | ...
//!   data:    0 | stream (31)               | flags (8) | length (24) | bytes
//! ```

use std::collections::BTreeMap;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::headers::{HeaderReader, empty_block};

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Nothing is wrong. §2.6.6
pub(super) const OK: u32 = 0;
/// The protocol does not allow it. §2.4.2, §2.6.6
pub(super) const PROTOCOL_ERROR: u32 = 1;
/// There is no such stream. §2.4.2
const INVALID_STREAM: u32 = 2;
/// Nothing was done with the stream. §2.4.2
pub(super) const REFUSED_STREAM: u32 = 3;
/// The sender had said that it was done. §2.4.2
const STREAM_ALREADY_CLOSED: u32 = 9;

const FIN: u8 = 1;
/// Bytes before what a frame carries.
const HEAD: usize = 8;
/// The longest control frame.
const MAX_CONTROL: usize = 16 * 1024;
/// Data is passed on in pieces of at most so many bytes, however long its frame is.
const PIECE: usize = 32 * 1024;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Open {
        stream: u32,
        headers: BTreeMap<String, String>,
        fin: bool,
    },
    /// The last stream was opened again, which ends it (`PROTOCOL_ERROR`). §2.3.2
    Again {
        stream: u32,
    },
    Data {
        stream: u32,
        payload: Bytes,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
}

/// Reads frames.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    input: R,
    buffer: BytesMut,
    headers: HeaderReader,
    /// The last stream that was opened.
    last: u32,
    /// What is still to come of a data frame.
    rest: Option<Rest>,
}

#[derive(Debug, Clone, Copy)]
struct Rest {
    stream: u32,
    bytes: usize,
    fin: bool,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: BytesMut::new(), headers: HeaderReader::new(), last: 0, rest: None }
    }

    /// The next frame that says something; `None` at the end.
    ///
    /// # Errors
    /// What the kernel said, or [`io::ErrorKind::InvalidData`].
    ///
    /// # Cancel safety
    /// Cancel safe: what was read stays in the buffer.
    pub(super) async fn next(&mut self) -> io::Result<Option<Received>> {
        loop {
            match self.parse()? {
                Parsed::Frame(received) => return Ok(Some(received)),
                Parsed::Nothing => {}
                Parsed::Incomplete => {
                    if self.input.read_buf(&mut self.buffer).await? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Why data are refused on a stream that is not open.
    pub(super) fn why_not(&self, stream: u32) -> u32 {
        let was_there = !stream.is_multiple_of(2) && stream <= self.last;
        if was_there { STREAM_ALREADY_CLOSED } else { INVALID_STREAM }
    }

    fn parse(&mut self) -> io::Result<Parsed> {
        if let Some(rest) = self.rest {
            return Ok(self.data(rest));
        }
        let Some(mut head) = self.buffer.get(..HEAD) else { return Ok(Parsed::Incomplete) };
        let (first, second) = (head.get_u32(), head.get_u32());
        let (flags, length) = (second.to_be_bytes()[0], usize::try_from(second & 0x00ff_ffff).unwrap_or(usize::MAX));
        if first >> 31 == 0 {
            self.buffer.advance(HEAD);
            return Ok(self.data(Rest { stream: first, bytes: length, fin: flags & FIN != 0 }));
        }
        if (first >> 16) & 0x7fff != 3 || length > MAX_CONTROL {
            return Err(invalid());
        }
        if self.buffer.len() < HEAD + length {
            return Ok(Parsed::Incomplete);
        }
        self.buffer.advance(HEAD);
        let mut body = self.buffer.split_to(length).freeze();
        let kind = u16::try_from(first & 0xffff).unwrap_or(0);
        let mut number = || body.try_get_u32().map(|number| number & 0x7fff_ffff).map_err(|_| invalid());
        Ok(Parsed::Frame(match kind {
            SYN_STREAM => {
                let (stream, _associated) = (number()?, number()?);
                if body.len() < 2 {
                    return Err(invalid());
                }
                body.advance(2);
                let headers = self.headers.read(&body).ok_or_else(invalid)?;
                // A client's streams have odd numbers, each a higher one than that before. §2.3.2
                if stream.is_multiple_of(2) || stream < self.last {
                    return Err(invalid());
                }
                match std::mem::replace(&mut self.last, stream) == stream {
                    true => Received::Again { stream },
                    false => Received::Open { stream, headers, fin: flags & FIN != 0 },
                }
            }
            // They say nothing here, but what comes after them is compressed with them.
            SYN_REPLY | HEADERS => {
                let _stream = number()?;
                let _headers = self.headers.read(&body).ok_or_else(invalid)?;
                return Ok(Parsed::Nothing);
            }
            RST_STREAM => Received::Reset { stream: number()? },
            // Its highest bit belongs to it. An even one would be an answer, and nothing was asked. §2.6.5
            PING => match body.try_get_u32().map_err(|_| invalid())? {
                id if id.is_multiple_of(2) => return Ok(Parsed::Nothing),
                id => Received::Ping { id },
            },
            GOAWAY => Received::GoAway,
            // Settings and windows: nobody who speaks this keeps to them.
            _ => return Ok(Parsed::Nothing),
        }))
    }

    fn data(&mut self, rest: Rest) -> Parsed {
        let Rest { stream, bytes, fin } = rest;
        // What a client wrote in one go is passed on in one go: not every program reads a word in two halves.
        let here = bytes.min(PIECE);
        if self.buffer.len() < here {
            self.rest = Some(rest);
            return Parsed::Incomplete;
        }
        let payload = self.buffer.split_to(here).freeze();
        let left = bytes - here;
        self.rest = (left > 0).then_some(Rest { stream, bytes: left, fin });
        Parsed::Frame(Received::Data { stream, payload, fin: fin && left == 0 })
    }
}

enum Parsed {
    Frame(Received),
    Nothing,
    Incomplete,
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came is no frame of SPDY/3.1")
}

fn control(kind: u16, flags: u8, body: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(HEAD + body.len());
    frame.put_u16(0x8003);
    frame.put_u16(kind);
    put_length(&mut frame, flags, body.len());
    frame.put_slice(body);
    frame
}

fn put_length(frame: &mut BytesMut, flags: u8, length: usize) {
    frame.put_u8(flags);
    frame.put_uint(u64::try_from(length).unwrap_or(0), 3);
}

/// Accepts a stream; `first` on its connection.
pub(super) fn reply(stream: u32, first: bool) -> Bytes {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend(empty_block(first));
    control(SYN_REPLY, 0, &body).freeze()
}

/// Refuses or ends a stream.
pub(super) fn reset(stream: u32, why: u32) -> Bytes {
    let body: Vec<u8> = [stream.to_be_bytes(), why.to_be_bytes()].concat();
    control(RST_STREAM, 0, &body).freeze()
}

/// Answers a ping.
pub(super) fn pong(id: u32) -> Bytes {
    control(PING, 0, &id.to_be_bytes()).freeze()
}

/// No further stream is accepted after `last`.
pub(super) fn go_away(last: u32, why: u32) -> Bytes {
    let body: Vec<u8> = [last.to_be_bytes(), why.to_be_bytes()].concat();
    control(GOAWAY, 0, &body).freeze()
}

/// Bytes on a stream; `fin`: the last ones.
pub(super) fn data(stream: u32, payload: &[u8], fin: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD + payload.len());
    frame.put_u32(stream & 0x7fff_ffff);
    put_length(&mut frame, u8::from(fin), payload.len());
    frame.put_slice(payload);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<io::Result<Received>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = FrameReader::new(bytes);
            let mut all = Vec::new();
            loop {
                match reader.next().await {
                    Ok(Some(received)) => all.push(Ok(received)),
                    Ok(None) => return all,
                    Err(error) => {
                        all.push(Err(error));
                        return all;
                    }
                }
            }
        })
    }

    fn open(stream: u32, first: bool) -> Vec<u8> {
        let mut body = [stream.to_be_bytes(), [0; 4]].concat();
        body.extend([0, 0]);
        body.extend(empty_block(first));
        control(SYN_STREAM, 0, &body).to_vec()
    }

    #[test]
    fn frames_are_read_in_order() {
        let mut bytes = [open(1, true), open(3, false)].concat();
        bytes.extend(data(1, b"hello", false));
        bytes.extend(control(4, 0, &[0; 12]));
        bytes.extend(data(1, b"", true));
        bytes.extend(pong(7));
        bytes.extend(pong(8));
        bytes.extend(reset(3, REFUSED_STREAM));
        bytes.extend(go_away(3, OK));
        let all: Vec<Received> = read(&bytes).into_iter().map(Result::unwrap).collect();
        let opened = |stream| Received::Open { stream, headers: BTreeMap::new(), fin: false };
        let piece = |text: &'static str, fin| Received::Data { stream: 1, payload: text.into(), fin };
        let rest = [Received::Ping { id: 7 }, Received::Reset { stream: 3 }, Received::GoAway];
        assert_eq!(all[..4], [opened(1), opened(3), piece("hello", false), piece("", true)]);
        assert_eq!(all[4..], rest);
    }

    #[test]
    fn a_stream_is_opened_once_and_numbers_only_rise() {
        let again = read(&[open(3, true), open(3, false), open(5, false)].concat());
        let again: Vec<Received> = again.into_iter().map(Result::unwrap).collect();
        assert!(matches!(again[..], [Received::Open { .. }, Received::Again { stream: 3 }, Received::Open { .. }]));
        for wrong in [0, 1, 2, 4, 6] {
            let all = read(&[open(3, true), open(wrong, false)].concat());
            assert_eq!(all[1].as_ref().unwrap_err().kind(), io::ErrorKind::InvalidData, "{wrong}");
        }
    }

    #[test]
    fn headers_that_say_nothing_here_are_read_for_those_that_come_later() {
        let mut bytes = Vec::new();
        for (kind, first) in [(HEADERS, true), (SYN_REPLY, false)] {
            let body = [1u32.to_be_bytes().to_vec(), empty_block(first)].concat();
            bytes.extend(control(kind, 0, &body));
        }
        bytes.extend(open(1, false));
        assert!(matches!(read(&bytes)[..], [Ok(Received::Open { stream: 1, .. })]));
    }

    #[test]
    fn a_long_frame_comes_in_pieces_and_ends_once() {
        let payload = vec![7; 3 * PIECE + 1];
        let all = read(&data(5, &payload, true));
        let (mut bytes, mut fins) = (0, 0);
        for received in all {
            let Received::Data { stream: 5, payload, fin } = received.unwrap() else { panic!("data") };
            assert!(payload.len() <= PIECE);
            bytes += payload.len();
            fins += usize::from(fin);
        }
        assert_eq!((bytes, fins), (payload.len(), 1));
    }

    #[test]
    fn another_version_and_a_control_frame_without_end_are_refused() {
        let mut other = go_away(0, OK).to_vec();
        other[1] = 2;
        let mut long = go_away(0, OK).to_vec();
        long[5] = 0xff;
        for bytes in [other, long] {
            assert_eq!(read(&bytes)[0].as_ref().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_fail_otherwise(bytes: Vec<u8>) {
            let _whatever = read(&bytes);
        }
    }
}
