//! Clients of the addresses that `Exec`, `Attach` and `PortForward` give: SPDY/3.1, WebSocket v5, and SPDY inside a
//! WebSocket, by hand.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::world::World;

/// What came of a session.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Outcome {
    /// What came on stdout.
    pub stdout: Vec<u8>,
    /// What came on stderr.
    pub stderr: Vec<u8>,
    /// The `Status` at the end.
    pub status: Value,
}

impl Outcome {
    /// The exit code that the status tells; 0 for success.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        if self.status["status"] == "Success" {
            return Some(0);
        }
        self.status["details"]["causes"][0]["message"].as_str()?.parse().ok()
    }
}

/// A connection that asked for an upgrade: the head of the answer, and the connection.
fn upgrade(world: &World, url: &str, headers: &str) -> io::Result<(String, TcpStream)> {
    let (address, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("an address of HTTP");
    let mut stream = world.inside(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n{headers}\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            break;
        }
        head.push(byte[0]);
    }
    Ok((String::from_utf8(head).expect("text"), stream))
}

/// The first line of what the server says to a client that comes with SPDY.
#[must_use]
pub fn refusal(world: &World, url: &str) -> String {
    let headers = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    upgrade(world, url, headers).expect("an answer").0.lines().next().unwrap_or_default().to_owned()
}

/// SPDY on an upgraded connection.
#[derive(Debug)]
pub struct Spdy {
    stream: TcpStream,
    /// Inside a WebSocket: what came of its messages and was not read yet.
    tunnel: Option<Vec<u8>>,
    next: u32,
}

/// A frame of data, or that a stream was refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a stream; the last ones?
    Data(u32, Vec<u8>, bool),
    /// A stream was refused or reset.
    Reset(u32),
    /// The server ends.
    GoAway,
}

impl Spdy {
    /// Upgrades.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn connect(world: &World, url: &str, protocol: &str) -> Self {
        Self::try_connect(world, url, protocol).expect("a connection")
    }

    /// Upgrades.
    ///
    /// # Errors
    /// When the connection breaks, or the server refuses.
    ///
    /// # Panics
    /// When the server speaks another protocol.
    pub fn try_connect(world: &World, url: &str, protocol: &str) -> io::Result<Self> {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        let (head, stream) = upgrade(world, url, &headers)?;
        if !head.starts_with("HTTP/1.1 101") {
            return Err(io::Error::other(head));
        }
        assert!(head.to_lowercase().contains(&format!("x-stream-protocol-version: {protocol}")), "{head}");
        Ok(Self { stream, tunnel: None, next: 1 })
    }

    /// Upgrades to a WebSocket, inside which SPDY forwards ports.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn tunnel(world: &World, url: &str) -> Self {
        let protocol = "SPDY/3.1+portforward.k8s.io";
        let headers = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n"
        );
        let (head, stream) = upgrade(world, url, &headers).expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(head.to_lowercase().contains(&format!("sec-websocket-protocol: {protocol}").to_lowercase()), "{head}");
        Self { stream, tunnel: Some(Vec::new()), next: 1 }
    }

    /// Sends bytes of frames.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.tunnel.is_none() {
            return self.stream.write_all(bytes);
        }
        // Cut where no frame is.
        for piece in bytes.chunks(7) {
            // The key of the mask is zero: what is masked by it stays as it is.
            let mut message = vec![0x82, 0x80 | u8::try_from(piece.len()).expect("short"), 0, 0, 0, 0];
            message.extend(piece);
            self.stream.write_all(&message)?;
        }
        Ok(())
    }

    /// Reads so many bytes of frames; `false` at the end.
    fn get(&mut self, into: &mut [u8]) -> bool {
        let Some(rest) = &mut self.tunnel else { return self.stream.read_exact(into).is_ok() };
        while rest.len() < into.len() {
            let Some((kind, body)) = message(&mut self.stream) else { return false };
            match kind {
                2 => rest.extend(body),
                8 => return false,
                _ => {}
            }
        }
        into.copy_from_slice(&rest[..into.len()]);
        rest.drain(..into.len());
        true
    }

    /// Opens a stream.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        self.try_open(headers).expect("opening a stream")
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn try_open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let number = |number: usize| u32::try_from(number).expect("short").to_be_bytes();
        let mut block = number(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(number(text.len()));
            block.extend(text.bytes());
        }
        let id = self.next;
        self.next += 2;
        let mut body = [id.to_be_bytes(), [0; 4]].concat();
        body.extend([0, 0]);
        if id == 1 {
            body.extend([0x78, 0x01]);
        }
        // Not compressed, which is a way to compress.
        let length = u16::try_from(block.len()).expect("short");
        body.push(0);
        body.extend(length.to_le_bytes());
        body.extend((!length).to_le_bytes());
        body.extend(block);
        let mut frame = vec![0x80, 3, 0, 1, 0];
        frame.extend(&number(body.len())[1..]);
        frame.extend(body);
        self.put(&frame)?;
        Ok(id)
    }

    /// Sends on a stream.
    pub fn send(&mut self, id: u32, bytes: &[u8], last: bool) {
        // Who does not read any more is no failure of the writer.
        let _gone = self.put(&data(id, bytes, last));
    }

    /// A writer for another thread, of what is not inside a WebSocket.
    ///
    /// # Panics
    /// Without descriptors.
    #[must_use]
    pub fn writer(&self) -> TcpStream {
        self.stream.try_clone().expect("a descriptor")
    }

    /// The next frame that says something; `None` at the end, and when nothing comes for 30 s.
    pub fn frame(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 8];
            if !self.get(&mut head) {
                return None;
            }
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let mut body = vec![0; usize::try_from(length).ok()?];
            if !self.get(&mut body) {
                return None;
            }
            let id = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"));
            if head[0] & 0x80 == 0 {
                return Some(Frame::Data(id(&head), body, head[4] & 1 == 1));
            }
            match head[3] {
                3 => return Some(Frame::Reset(id(&body))),
                7 => return Some(Frame::GoAway),
                _ => {}
            }
        }
    }
}

/// A frame of data.
fn data(id: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.push(u8::from(last));
    frame.extend(&u32::try_from(bytes.len()).expect("short").to_be_bytes()[1..]);
    frame.extend(bytes);
    frame
}

/// The next message of a WebSocket: its kind, and what it says; `None` at the end.
fn message(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).ok()?;
    let length = match head[1] & 0x7f {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            usize::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length).expect("a length");
            usize::try_from(u64::from_be_bytes(length)).expect("a small frame")
        }
        short => usize::from(short),
    };
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a whole frame");
    Some((head[0] & 0x0f, body))
}

/// A whole session over SPDY with these streams, of `stdin`, `stdout`, `stderr` and `resize`. `size` goes to `resize`.
///
/// # Panics
/// When the session does not end with a status.
#[must_use]
pub fn over_spdy(world: &World, url: &str, kinds: &[&str], input: &[u8], size: Option<&str>) -> Outcome {
    try_over_spdy(world, url, kinds, input, size).expect("a session with a status")
}

/// As [`over_spdy`].
///
/// # Errors
/// When the connection breaks before the status, or the server refuses.
///
/// # Panics
/// When what comes is not as it should be.
pub fn try_over_spdy(
    world: &World,
    url: &str,
    kinds: &[&str],
    input: &[u8],
    size: Option<&str>,
) -> io::Result<Outcome> {
    let mut spdy = Spdy::try_connect(world, url, "v4.channel.k8s.io")?;
    let mut ids = BTreeMap::new();
    for kind in kinds.iter().chain(&["error"]) {
        ids.insert(*kind, spdy.try_open(&[("streamtype", kind)])?);
    }
    if let Some(size) = size {
        spdy.send(ids["resize"], size.as_bytes(), false);
    }
    let mut outcome = Outcome::default();
    let mut writer = spdy.writer();
    let stdin = ids.get("stdin").copied();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let Some(id) = stdin else { return };
            // Who does not read any more is no failure of the writer.
            for piece in input.chunks(30_000) {
                let _gone = writer.write_all(&data(id, piece, false));
            }
            let _gone = writer.write_all(&data(id, &[], true));
        });
        while let Some(frame) = spdy.frame() {
            match frame {
                Frame::Data(id, bytes, _) if Some(&id) == ids.get("stdout") => outcome.stdout.extend(bytes),
                Frame::Data(id, bytes, _) if Some(&id) == ids.get("stderr") => outcome.stderr.extend(bytes),
                Frame::Data(id, bytes, last) if id == ids["error"] => {
                    assert!(last);
                    outcome.status = serde_json::from_slice(&bytes).expect("a status");
                }
                Frame::GoAway => break,
                _ => {}
            }
        }
    });
    if outcome.status.is_object() { Ok(outcome) } else { Err(io::Error::other(format!("{outcome:?}"))) }
}

/// A whole session over a WebSocket.
///
/// # Panics
/// When the session does not end with a status.
#[must_use]
pub fn over_socket(world: &World, url: &str, input: Option<&[u8]>, size: Option<&str>) -> Outcome {
    let headers = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                   Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
    let (head, mut stream) = upgrade(world, url, headers).expect("an answer");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut outcome = Outcome::default();
    let mut writer = stream.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut say = |channel: u8, bytes: &[u8]| {
                // The key of the mask is zero: what is masked by it stays as it is.
                let length = u16::try_from(bytes.len() + 1).expect("short");
                let mut frame = vec![0x82, 0x80 | 126];
                frame.extend(length.to_be_bytes());
                frame.extend([0; 4]);
                frame.push(channel);
                frame.extend(bytes);
                let _gone = writer.write_all(&frame);
            };
            if let Some(size) = size {
                say(4, size.as_bytes());
            }
            if let Some(input) = input {
                for piece in input.chunks(30_000) {
                    say(0, piece);
                }
                say(255, &[0]);
            }
        });
        loop {
            let (kind, body) = message(&mut stream).expect("a frame");
            match (kind, body.first()) {
                (8, _) => break,
                (2, Some(1)) => outcome.stdout.extend(&body[1..]),
                (2, Some(2)) => outcome.stderr.extend(&body[1..]),
                (2, Some(3)) => outcome.status = serde_json::from_slice(&body[1..]).expect("a status"),
                _ => {}
            }
        }
    });
    assert!(outcome.status.is_object(), "{outcome:?}");
    outcome
}
