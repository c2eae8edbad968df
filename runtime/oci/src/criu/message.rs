//! CRIU's remote procedure calls as bytes: protocol buffers, as many of their fields as are needed here.
//!
//! Source of the numbers: CRIU, images/rpc.proto; of the form: protobuf.dev, "Encoding".

use std::io;

/// A message in the making: fields in the order in which they are added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

impl Message {
    /// Adds a number of any of the kinds `bool`, `int32`, `uint32` and `enum`.
    pub(super) fn number(mut self, field: u64, value: impl Into<i64>) -> Self {
        self.varint(field << 3 | VARINT);
        // A negative one has ten bytes, as a 64-bit number in two's complement.
        self.varint(value.into().cast_unsigned());
        self
    }

    /// Adds a text, a path for one, or a message in the message.
    pub(super) fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push((value & 0x7f) as u8);
    }
}

/// A field's value.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a kind that is of no use here.
    Other,
}

/// The fields of a message, in their order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> io::Result<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            VARINT => Value::Number(self.varint()?),
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| cut())?;
                Value::Bytes(self.take(length)?)
            }
            FIXED_64 => self.take(8).map(|_| Value::Other)?,
            FIXED_32 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(cut()),
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.first().copied().unwrap_or_default();
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(cut())
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer is no message of the protocol")
}

/// What is asked for: `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
    FeatureCheck = 9,
    Version = 10,
}

/// What CRIU says: `criu_resp`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Response {
    kind: u64,
    pub(super) success: bool,
    pub(super) errno: i32,
    /// Why it failed, where it says so beyond its log.
    pub(super) words: Option<String>,
    pub(super) notice: Notice,
    pub(super) version: Version,
    /// Whether the kernel tells what memory has changed since the last dump.
    pub(super) tracks_memory: bool,
}

/// A moment of a dump or of a restoration at which CRIU waits for us: `criu_notify`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// Which.
    pub(crate) script: String,
    /// The container's first process, where there is one already.
    pub(crate) pid: i32,
}

/// A version of CRIU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) sublevel: u32,
}

impl Response {
    pub(super) fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u64
    }

    pub(super) fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut response = Self::default();
        let mut fields = Fields(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Number(kind)) => response.kind = kind,
                (2, Value::Number(success)) => response.success = success != 0,
                (5, Value::Bytes(notice)) => response.notice = Notice::read(notice)?,
                (7, Value::Number(errno)) => response.errno = small(errno)?,
                (8, Value::Bytes(features)) => response.tracks_memory = first_is_set(features)?,
                (9, Value::Bytes(words)) => response.words = Some(String::from_utf8_lossy(words).trim().to_owned()),
                (10, Value::Bytes(version)) => response.version = Version::read(version)?,
                _ => {}
            }
        }
        Ok(response)
    }
}

impl Notice {
    fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut notice = Self::default();
        let mut fields = Fields(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(script)) => notice.script = String::from_utf8_lossy(script).into_owned(),
                (2, Value::Number(pid)) => notice.pid = small(pid)?,
                _ => {}
            }
        }
        Ok(notice)
    }
}

impl Version {
    fn read(bytes: &[u8]) -> io::Result<Self> {
        let mut version = Self::default();
        let mut fields = Fields(bytes);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Number(number)) => version.major = small(number)?,
                (2, Value::Number(number)) => version.minor = small(number)?,
                (4, Value::Number(number)) => version.sublevel = small(number)?,
                _ => {}
            }
        }
        Ok(version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.sublevel)
    }
}

fn first_is_set(bytes: &[u8]) -> io::Result<bool> {
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        if let (1, Value::Number(number)) = field {
            return Ok(number != 0);
        }
    }
    Ok(false)
}

/// A number of at most 32 bits.
fn small<T: TryFrom<i64>>(number: u64) -> io::Result<T> {
    T::try_from(number.cast_signed()).map_err(|_| cut())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_form_of_the_protocol() {
        // As `protoc --encode` writes them.
        let inner = Message::default().bytes(1, "net").number(2, 300);
        let whole = Message::default().number(1, 2).message(2, &inner).number(3, true).number(16, -1);
        let expected =
            b"\x08\x02\x12\x08\x0a\x03net\x10\xac\x02\x18\x01\x80\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(whole.as_bytes(), expected);
    }

    #[test]
    fn an_answer_is_read_and_what_is_not_known_is_passed_over() {
        let notice = Message::default().bytes(1, "post-restore").number(2, 4711);
        let version = Message::default().number(1, 4).number(2, 2).bytes(3, "v4.2.1-3").number(4, 1);
        let mut bytes = Message::default().number(1, 6).number(2, true).message(5, &notice).number(7, -5);
        bytes = bytes
            .bytes(9, "why\n")
            .message(10, &version)
            .bytes(99, "later")
            .message(8, &Message::default().number(1, 1));
        bytes.0.extend(b"\x65\0\0\0\0\x61\0\0\0\0\0\0\0\0");
        let response = Response::read(bytes.as_bytes()).expect("an answer");
        assert!(response.is(Kind::Notify) && response.success && response.tracks_memory);
        assert_eq!((response.notice.script.as_str(), response.notice.pid), ("post-restore", 4711));
        assert_eq!((response.errno, response.words.as_deref()), (-5, Some("why")));
        assert_eq!(response.version.to_string(), "4.2.1");
        assert!(response.version > Version { major: 3, minor: 17, sublevel: 9 });
    }

    #[test]
    fn an_answer_that_is_cut_off_is_an_error() {
        let whole = Message::default().number(1, 300).bytes(9, "why");
        for length in 1..whole.as_bytes().len() {
            if length != 3 {
                assert!(Response::read(&whole.as_bytes()[..length]).is_err(), "{length}");
            }
        }
        for bytes in [
            &b"\x0b\x00"[..],
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        ] {
            assert!(Response::read(bytes).is_err(), "{bytes:x?}");
        }
    }
}
