//! SPDY/3.1 as clients of Kubernetes speak it to exec, attach and port-forward: an HTTP upgrade, then streams that the
//! client opens and names by headers.
//!
//! ```text
//!   exec, attach   streamtype: error, stdin, stdout, stderr, resize      one of each that is wanted
//!   port-forward   streamtype: error, data; port; requestid              a pair for each connection
//! ```
//!
//! Nobody who speaks it keeps windows: what a client does not take waits in its connection.
//! Source: SPDY draft 3.1; k8s.io/apimachinery `httpstream/spdy`, k8s.io/kubelet `cri/streaming`.

pub(crate) mod forward;
mod frame;
mod headers;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderName, HeaderValue, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::carrier::{Left, Outgoing, Receiver, Sender};
use super::socket::has_token;
use crate::channel::{ERROR, Frame, RESIZE, STDERR, STDIN, STDOUT};
use crate::failure::Failure;
use frame::{FrameReader, OK, PROTOCOL_ERROR, REFUSED_STREAM, Received};

/// The protocol of exec and attach: how it ended comes as a `Status`.
pub(crate) const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
/// The protocol of port-forward.
pub(crate) const PORT_FORWARD: &str = "portforward.k8s.io";

const PROTOCOLS: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Frames that wait for the client.
const QUEUE: usize = 8;
/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);
/// Pieces that a client may send before its last stream is open.
const EARLY: usize = 8;
/// How long a client may take for each frame when nothing more will be said.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// A request for SPDY, checked and not yet answered.
pub(crate) struct Spdy {
    protocol: &'static str,
    upgraded: OnUpgrade,
}

impl Spdy {
    /// Checks the request; `None` when it asks for something else.
    pub(crate) fn of(request: &mut Request, protocol: &'static str) -> Option<Result<Self, Failure>> {
        let headers = request.headers();
        let asked = request.version() == Version::HTTP_11
            && has_token(headers, &CONNECTION, "upgrade")
            && has_token(headers, &UPGRADE, "spdy/3.1");
        if !asked {
            return None;
        }
        if !has_token(headers, &PROTOCOLS, protocol) {
            let message = format!("none of the offered protocols is spoken here over SPDY: {protocol}");
            return Some(Err(Failure::forbidden(message)));
        }
        Some(Ok(Self { protocol, upgraded: hyper::upgrade::on(request) }))
    }

    /// The answer, and the connection once the answer was sent.
    pub(crate) fn accept(self) -> (Response, impl Future<Output = Option<Connection>> + Send + use<>) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        headers.insert(PROTOCOLS, HeaderValue::from_static(self.protocol));
        let connection = async move {
            match self.upgraded.await {
                Ok(upgraded) => Some(Connection::over(TokioIo::new(upgraded))),
                Err(error) => {
                    debug!(%error, "client left before its stream began");
                    None
                }
            }
        };
        (response, connection)
    }
}

/// A connection that speaks SPDY.
pub(crate) struct Connection<S = TokioIo<Upgraded>> {
    reader: FrameReader<ReadHalf<S>>,
    writer: Writer,
    half: WriteHalf<S>,
    frames: mpsc::Receiver<Bytes>,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    pub(crate) fn over(stream: S) -> Self {
        let (read, half) = tokio::io::split(stream);
        let (queue, frames) = mpsc::channel(QUEUE);
        Self { reader: FrameReader::new(read), writer: Writer { queue, replied: false, last: 0 }, half, frames }
    }
}

/// Talks, and passes the frames on that come of it.
async fn carry_frames<S: AsyncWrite>(
    talk: impl Future<Output = ()>,
    half: WriteHalf<S>,
    frames: mpsc::Receiver<Bytes>,
) {
    let over = CancellationToken::new();
    let talk = async {
        talk.await;
        over.cancel();
    };
    tokio::join!(talk, pass_on(half, frames, &over));
}

/// Passes frames on until nobody has any more. When nobody talks any more either, a client that takes none is left.
async fn pass_on<S: AsyncWrite>(mut half: WriteHalf<S>, mut frames: mpsc::Receiver<Bytes>, over: &CancellationToken) {
    while let Some(frame) = frames.recv().await {
        let write = async {
            half.write_all(&frame).await?;
            half.flush().await
        };
        let late = async {
            over.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            // cancel-safe: the connection ends here if it is not done
            written = write => if written.is_err() {
                return;
            },
            // cancel-safe: only waits
            () = late => return,
        }
    }
    drop(tokio::time::timeout(LAST_WORDS, half.shutdown()).await);
}

/// The way to the client.
#[derive(Debug, Clone)]
struct Writer {
    queue: mpsc::Sender<Bytes>,
    /// Whether a stream was accepted: the first answer begins the compression.
    replied: bool,
    /// The last stream that was accepted.
    last: u32,
}

impl Writer {
    async fn put(&self, frame: Bytes) -> Result<(), Left> {
        self.queue.send(frame).await.map_err(|_| Left)
    }

    async fn accept(&mut self, stream: u32) -> Result<(), Left> {
        let first = !std::mem::replace(&mut self.replied, true);
        self.last = stream;
        self.put(frame::reply(stream, first)).await
    }

    /// The last word to a client of whom no frame could be read. §2.4.1
    async fn part(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::InvalidData {
            let _left = self.put(frame::go_away(self.last, PROTOCOL_ERROR)).await;
        }
    }
}

/// The streams of a process over SPDY: runs `session` over them until it ends. `wanted` are the channels that the client
/// is to open first.
pub(crate) async fn converse<S: AsyncRead + AsyncWrite, F: Future<Output = ()>>(
    connection: Connection<S>,
    wanted: &[u8],
    session: impl FnOnce((ToStreams, FromStreams<ReadHalf<S>>)) -> F,
) {
    let Connection { mut reader, mut writer, half, frames } = connection;
    let talk = async move {
        match tokio::time::timeout(OPENING, opened(&mut reader, &mut writer, wanted)).await {
            Ok(Ok(Opened { streams, channels, early })) => {
                let to = ToStreams { writer: writer.clone(), streams };
                session((to, FromStreams { reader, writer, channels, waiting: early })).await;
            }
            Ok(Err(error)) => {
                debug!(%error, "client left before its streams were open");
                writer.part(&error).await;
            }
            Err(_) => debug!("client did not open its streams in time"),
        }
    };
    carry_frames(talk, half, frames).await;
}

/// The streams of a client.
#[derive(Debug, Default)]
struct Opened {
    /// By channel.
    streams: BTreeMap<u8, u32>,
    /// The channels of those whose end has not come.
    channels: BTreeMap<u32, u8>,
    /// What came on the first while the others were still to come.
    early: VecDeque<Frame>,
}

impl Opened {
    /// One that was ended is as if it had never been there.
    fn forget(&mut self, stream: u32) {
        let Some((&channel, _)) = self.streams.iter().find(|(_, known)| **known == stream) else { return };
        self.streams.remove(&channel);
        self.channels.remove(&stream);
        self.early.retain(|frame| match frame {
            Frame::Bytes { channel: of, .. } | Frame::End { channel: of } => *of != channel,
        });
    }
}

/// Waits until the client has opened every stream that is wanted.
async fn opened<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    writer: &mut Writer,
    wanted: &[u8],
) -> io::Result<Opened> {
    let left = |Left| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut opened = Opened::default();
    while opened.streams.len() < wanted.len() {
        match reader.next().await? {
            Some(Received::Open { stream, headers, fin }) => {
                let channel = headers.get("streamtype").and_then(|kind| channel(kind));
                let channel = channel.filter(|channel| wanted.contains(channel));
                match channel.filter(|channel| !opened.streams.contains_key(channel)) {
                    Some(channel) => {
                        opened.streams.insert(channel, stream);
                        opened.channels.insert(stream, channel);
                        let end = taken(&mut opened.channels, stream, Bytes::new(), fin);
                        opened.early.extend(end.into_iter().flatten());
                        writer.accept(stream).await.map_err(left)?;
                    }
                    None => writer.put(frame::reset(stream, REFUSED_STREAM)).await.map_err(left)?,
                }
            }
            Some(Received::Data { stream, payload, fin }) => {
                match taken(&mut opened.channels, stream, payload, fin) {
                    Some(frames) => opened.early.extend(frames),
                    None => {
                        opened.forget(stream);
                        writer.put(frame::reset(stream, reader.why_not(stream))).await.map_err(left)?;
                    }
                }
                if opened.early.len() > EARLY {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "too much came before all streams were open",
                    ));
                }
            }
            Some(Received::Reset { stream }) => opened.forget(stream),
            Some(Received::Again { stream }) => {
                opened.forget(stream);
                writer.put(frame::reset(stream, PROTOCOL_ERROR)).await.map_err(left)?;
            }
            Some(Received::Ping { id }) => writer.put(frame::pong(id)).await.map_err(left)?,
            Some(Received::GoAway) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(opened)
}

/// What data on a stream mean; `None` when there is no such stream, or none any more.
fn taken(
    channels: &mut BTreeMap<u32, u8>,
    stream: u32,
    payload: Bytes,
    fin: bool,
) -> Option<impl Iterator<Item = Frame> + use<>> {
    let Some(channel) = channels.get(&stream).copied() else {
        // The end of what has ended is no news.
        return payload.is_empty().then(|| None.into_iter().chain(None));
    };
    if fin {
        channels.remove(&stream);
    }
    let bytes = (!payload.is_empty()).then_some(Frame::Bytes { channel, payload });
    let end = fin.then_some(Frame::End { channel });
    Some(bytes.into_iter().chain(end))
}

fn channel(kind: &str) -> Option<u8> {
    Some(match kind {
        "stdin" => STDIN,
        "stdout" => STDOUT,
        "stderr" => STDERR,
        "error" => ERROR,
        "resize" => RESIZE,
        _ => return None,
    })
}

/// To a client over SPDY.
pub(crate) struct ToStreams {
    writer: Writer,
    streams: BTreeMap<u8, u32>,
}

impl Sender for ToStreams {
    async fn send(&mut self, what: Outgoing) -> Result<(), Left> {
        match what {
            // How it ended is the last word: the others end before it.
            Outgoing::Frame(Frame::Bytes { channel: ERROR, payload }) => {
                let status = self.streams.remove(&ERROR);
                for stream in std::mem::take(&mut self.streams).into_values() {
                    self.writer.put(frame::data(stream, &[], true)).await?;
                }
                match status {
                    Some(stream) => self.writer.put(frame::data(stream, &payload, true)).await,
                    None => Ok(()),
                }
            }
            Outgoing::Frame(Frame::Bytes { channel, payload }) => match self.streams.get(&channel) {
                Some(stream) => self.writer.put(frame::data(*stream, &payload, false)).await,
                None => Ok(()),
            },
            Outgoing::Frame(Frame::End { channel }) => match self.streams.remove(&channel) {
                Some(stream) => self.writer.put(frame::data(stream, &[], true)).await,
                None => Ok(()),
            },
            Outgoing::Close => self.writer.put(frame::go_away(self.writer.last, OK)).await,
        }
    }
}

/// From a client over SPDY.
pub(crate) struct FromStreams<R> {
    reader: FrameReader<R>,
    writer: Writer,
    channels: BTreeMap<u32, u8>,
    /// What was received and not yet told.
    waiting: VecDeque<Frame>,
}

impl<R: AsyncRead + Unpin + Send> Receiver for FromStreams<R> {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.waiting.pop_front() {
                return Some(frame);
            }
            let refused = match self.reader.next().await {
                Ok(Some(Received::Data { stream, payload, fin })) => {
                    match taken(&mut self.channels, stream, payload, fin) {
                        Some(frames) => {
                            self.waiting.extend(frames);
                            None
                        }
                        None => Some((stream, self.reader.why_not(stream))),
                    }
                }
                Ok(Some(Received::Reset { stream })) => {
                    self.waiting.extend(self.channels.remove(&stream).map(|channel| Frame::End { channel }));
                    None
                }
                Ok(Some(Received::Again { stream })) => {
                    self.waiting.extend(self.channels.remove(&stream).map(|channel| Frame::End { channel }));
                    Some((stream, PROTOCOL_ERROR))
                }
                Ok(Some(Received::Open { stream, .. })) => Some((stream, REFUSED_STREAM)),
                Ok(Some(Received::Ping { id })) => {
                    self.writer.put(frame::pong(id)).await.ok()?;
                    None
                }
                Ok(Some(Received::GoAway) | None) => return None,
                Err(error) => {
                    self.writer.part(&error).await;
                    return None;
                }
            };
            if let Some((stream, why)) = refused {
                self.writer.put(frame::reset(stream, why)).await.ok()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio::task::JoinHandle;

    use super::*;

    /// More than everything here takes.
    const LONG: Duration = Duration::from_secs(3600);

    /// A client that says what it likes.
    pub(super) struct Client {
        stream: DuplexStream,
        stop: CancellationToken,
        server: JoinHandle<()>,
        /// Whether headers were sent: the first begin the compression.
        began: bool,
    }

    impl Client {
        pub(super) fn new<F: Future<Output = ()> + Send + 'static>(
            serve: impl FnOnce(Connection<DuplexStream>, CancellationToken) -> F,
        ) -> Self {
            let (stream, theirs) = tokio::io::duplex(4096);
            let stop = CancellationToken::new();
            let server = tokio::spawn(serve(Connection::over(theirs), stop.clone()));
            Self { stream, stop, server, began: false }
        }

        pub(super) async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
            let number = |number: usize| u32::try_from(number).unwrap().to_be_bytes();
            let mut block = number(headers.len()).to_vec();
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                block.extend(number(text.len()));
                block.extend(text.bytes());
            }
            let mut body = [stream.to_be_bytes(), [0; 4]].concat();
            body.extend([0, 0]);
            if !std::mem::replace(&mut self.began, true) {
                body.extend([0x78, 0x01]);
            }
            // Not compressed, which is a way to compress.
            let length = u16::try_from(block.len()).unwrap();
            body.push(0);
            body.extend(length.to_le_bytes());
            body.extend((!length).to_le_bytes());
            body.extend(block);
            let mut frame = vec![0x80, 3, 0, 1, 0];
            frame.extend(&number(body.len())[1..]);
            frame.extend(body);
            self.send(frame.into()).await;
        }

        pub(super) async fn send(&mut self, frame: Bytes) {
            assert!(self.try_send(frame).await, "the server takes it");
        }

        /// Whether the server took it.
        pub(super) async fn try_send(&mut self, frame: Bytes) -> bool {
            matches!(tokio::time::timeout(LONG, self.stream.write_all(&frame)).await, Ok(Ok(())))
        }

        /// So many of the next frames, in words.
        pub(super) async fn answers(&mut self, number: usize) -> Vec<String> {
            let mut answers = Vec::new();
            while answers.len() < number {
                let mut head = [0; 8];
                let read = tokio::time::timeout(LONG, self.stream.read_exact(&mut head)).await;
                assert!(matches!(read, Ok(Ok(_))), "{read:?} after {answers:?}");
                let mut body = vec![0; usize::from(head[6]) * 256 + usize::from(head[7])];
                self.stream.read_exact(&mut body).await.unwrap();
                let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
                answers.push(match (head[0], head[3]) {
                    (0x80, 2) => format!("reply {}", number(&body)),
                    (0x80, 3) => format!("reset {} {}", number(&body), number(&body[4..])),
                    (0x80, 6) => format!("ping {}", number(&body)),
                    (0x80, 7) => format!("go away {} {}", number(&body), number(&body[4..])),
                    _ => {
                        let text = String::from_utf8(body).unwrap();
                        let words = [format!("data {}", number(&head)), text];
                        let fin = (head[4] == 1).then(|| "fin".to_owned());
                        let words: Vec<_> = words.into_iter().chain(fin).filter(|word| !word.is_empty()).collect();
                        words.join(" ")
                    }
                });
            }
            answers
        }

        /// Stops the server, which is to end soon.
        pub(super) async fn stop(self) {
            self.stop.cancel();
            tokio::time::timeout(2 * LAST_WORDS, self.server).await.expect("it ends").unwrap();
        }
    }

    /// A client of a process with input and output, and what reaches the process.
    fn client() -> (Client, mpsc::UnboundedReceiver<Frame>) {
        let (told, frames) = mpsc::unbounded_channel();
        let serve = |connection, stop: CancellationToken| {
            let session = move |(mut to, mut from): (ToStreams, FromStreams<ReadHalf<DuplexStream>>)| async move {
                let talk = async {
                    while let Some(frame) = from.next().await {
                        drop(told.send(frame));
                    }
                };
                tokio::select! {
                    () = talk => {}
                    () = stop.cancelled() => loop {
                        let payload = Bytes::from_static(&[b'x'; 1000]);
                        // As much as a process has to say that does not know of its client.
                        let said = to.send(Outgoing::Frame(Frame::Bytes { channel: STDOUT, payload }));
                        if tokio::time::timeout(Duration::from_secs(1), said).await.is_err() {
                            break;
                        }
                    },
                }
            };
            async move { converse(connection, &[STDIN, STDOUT, ERROR], session).await }
        };
        (Client::new(serve), frames)
    }

    fn bytes(channel: u8, text: &'static str) -> Frame {
        Frame::Bytes { channel, payload: text.into() }
    }

    async fn open_all(client: &mut Client) {
        for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            client.open(stream, &[("streamtype", kind)]).await;
        }
        assert_eq!(client.answers(3).await, ["reply 1", "reply 3", "reply 5"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_stream_of_one_kind_is_refused_before_all_are_open_and_after() {
        let (mut client, mut frames) = client();
        for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdin"), (7, "resize"), (9, "stdout"), (11, "stdin")] {
            client.open(stream, &[("streamtype", kind)]).await;
        }
        let answers = ["reply 1", "reply 3", "reset 5 3", "reset 7 3", "reply 9", "reset 11 3"];
        assert_eq!(client.answers(6).await, answers);
        client.send(frame::data(3, b"first", false)).await;
        assert_eq!(frames.recv().await, Some(bytes(STDIN, "first")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_opened_twice_ends_and_another_may_take_its_place() {
        let (mut client, mut frames) = client();
        client.open(1, &[("streamtype", "error")]).await;
        client.open(3, &[("streamtype", "stdin")]).await;
        client.send(frame::data(3, b"lost", false)).await;
        client.open(3, &[("streamtype", "stdout")]).await;
        client.open(5, &[("streamtype", "stdin")]).await;
        client.open(7, &[("streamtype", "stdout")]).await;
        assert_eq!(client.answers(5).await, ["reply 1", "reply 3", "reset 3 1", "reply 5", "reply 7"]);
        client.send(frame::data(5, b"input", false)).await;
        assert_eq!(frames.recv().await, Some(bytes(STDIN, "input")));
        client.open(9, &[("streamtype", "stdin")]).await;
        client.open(9, &[("streamtype", "stdin")]).await;
        assert_eq!(client.answers(2).await, ["reset 9 3", "reset 9 1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_falls_ends_the_connection() {
        let (mut early, _frames) = client();
        early.open(3, &[("streamtype", "error")]).await;
        early.open(1, &[("streamtype", "stdin")]).await;
        assert_eq!(early.answers(2).await, ["reply 3", "go away 3 1"]);
        let (mut late, mut frames) = client();
        open_all(&mut late).await;
        late.open(1, &[("streamtype", "stdin")]).await;
        assert_eq!(late.answers(1).await, ["go away 5 1"]);
        assert_eq!(frames.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_before_all_streams_are_open_is_kept_up_to_a_bound() {
        let (mut client, mut frames) = self::client();
        client.open(1, &[("streamtype", "error")]).await;
        client.open(3, &[("streamtype", "stdin")]).await;
        client.send(frame::data(3, b"early", true)).await;
        client.open(5, &[("streamtype", "stdout")]).await;
        assert_eq!(frames.recv().await, Some(bytes(STDIN, "early")));
        assert_eq!(frames.recv().await, Some(Frame::End { channel: STDIN }));
        let (mut client, _frames) = self::client();
        client.open(1, &[("streamtype", "stdin")]).await;
        for _ in 0..=EARLY {
            client.send(frame::data(1, b"much", false)).await;
        }
        assert_eq!(client.answers(2).await, ["reply 1", "go away 1 1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn data_after_the_last_ones_are_refused() {
        let (mut client, mut frames) = client();
        open_all(&mut client).await;
        client.send(frame::data(3, b"last", true)).await;
        client.send(frame::data(3, b"", true)).await;
        client.send(frame::data(3, b"more", false)).await;
        client.send(frame::data(7, b"more", false)).await;
        assert_eq!(client.answers(2).await, ["reset 3 9", "reset 7 2"]);
        assert_eq!(frames.recv().await, Some(bytes(STDIN, "last")));
        assert_eq!(frames.recv().await, Some(Frame::End { channel: STDIN }));
        assert!(frames.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_left_when_all_is_said() {
        let (mut client, _frames) = client();
        open_all(&mut client).await;
        client.stop().await;
    }
}
