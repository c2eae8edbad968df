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

use std::collections::BTreeMap;
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
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tracing::debug;

use super::carrier::{Left, Outgoing, Receiver, Sender};
use super::socket::has_token;
use crate::channel::{ERROR, Frame, RESIZE, STDERR, STDIN, STDOUT};
use crate::failure::Failure;
use frame::{FrameReader, Received};

/// The protocol of exec and attach: how it ended comes as a `Status`.
pub(crate) const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
/// The protocol of port-forward.
pub(crate) const PORT_FORWARD: &str = "portforward.k8s.io";

const PROTOCOLS: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Frames that wait for the client.
const QUEUE: usize = 8;
/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

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
                Ok(upgraded) => Some(Connection::new(upgraded)),
                Err(error) => {
                    debug!(%error, "client left before its stream began");
                    None
                }
            }
        };
        (response, connection)
    }
}

/// An upgraded connection.
pub(crate) struct Connection {
    reader: FrameReader<ReadHalf<TokioIo<Upgraded>>>,
    writer: Writer,
    half: WriteHalf<TokioIo<Upgraded>>,
    frames: mpsc::Receiver<Bytes>,
}

impl Connection {
    fn new(upgraded: Upgraded) -> Self {
        let (read, half) = tokio::io::split(TokioIo::new(upgraded));
        let (queue, frames) = mpsc::channel(QUEUE);
        Self { reader: FrameReader::new(read), writer: Writer { queue, replied: false, last: 0 }, half, frames }
    }
}

/// Passes frames on until nobody has any more.
async fn pass_on(mut half: WriteHalf<TokioIo<Upgraded>>, mut frames: mpsc::Receiver<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if half.write_all(&frame).await.is_err() || half.flush().await.is_err() {
            return;
        }
    }
    drop(half.shutdown().await);
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
}

/// The streams of a process over SPDY: runs `session` over them until it ends. `wanted` are the channels that the client
/// is to open first.
pub(crate) async fn converse<F: Future<Output = ()>>(
    connection: Connection,
    wanted: &[u8],
    session: impl FnOnce((ToStreams, FromStreams)) -> F,
) {
    let Connection { mut reader, mut writer, half, frames } = connection;
    let talk = async move {
        match tokio::time::timeout(OPENING, opened(&mut reader, &mut writer, wanted)).await {
            Ok(Ok(streams)) => {
                let ids = streams.iter().map(|(channel, stream)| (*stream, *channel)).collect();
                let to = ToStreams { writer: writer.clone(), streams };
                session((to, FromStreams { reader, writer, channels: ids, ended: None })).await;
            }
            Ok(Err(error)) => debug!(%error, "client left before its streams were open"),
            Err(_) => debug!("client did not open its streams in time"),
        }
    };
    tokio::join!(talk, pass_on(half, frames));
}

/// Waits until the client has opened every stream that is wanted: stream by channel.
async fn opened(
    reader: &mut FrameReader<ReadHalf<TokioIo<Upgraded>>>,
    writer: &mut Writer,
    wanted: &[u8],
) -> io::Result<BTreeMap<u8, u32>> {
    let left = |Left| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut streams = BTreeMap::new();
    while streams.len() < wanted.len() {
        match reader.next().await? {
            Some(Received::Open { stream, headers, .. }) => {
                let channel = headers.get("streamtype").and_then(|kind| channel(kind));
                let channel = channel.filter(|channel| wanted.contains(channel) && !streams.contains_key(channel));
                match channel {
                    Some(channel) => {
                        streams.insert(channel, stream);
                        writer.accept(stream).await.map_err(left)?;
                    }
                    None => writer.put(frame::reset(stream)).await.map_err(left)?,
                }
            }
            Some(Received::Ping { id }) => writer.put(frame::pong(id)).await.map_err(left)?,
            // Input before the process runs would need a place of its own; clients wait for all streams.
            Some(Received::Data { .. } | Received::Reset { .. }) => {}
            Some(Received::GoAway) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(streams)
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
            Outgoing::Close => self.writer.put(frame::go_away(self.writer.last)).await,
        }
    }
}

/// From a client over SPDY.
pub(crate) struct FromStreams {
    reader: FrameReader<ReadHalf<TokioIo<Upgraded>>>,
    writer: Writer,
    channels: BTreeMap<u32, u8>,
    /// A channel whose last bytes were told, and whose end was not.
    ended: Option<u8>,
}

impl Receiver for FromStreams {
    async fn next(&mut self) -> Option<Frame> {
        if let Some(channel) = self.ended.take() {
            return Some(Frame::End { channel });
        }
        loop {
            match self.reader.next().await.ok()?? {
                Received::Data { stream, payload, fin } => {
                    let Some(&channel) = self.channels.get(&stream) else { continue };
                    if payload.is_empty() && fin {
                        return Some(Frame::End { channel });
                    }
                    self.ended = fin.then_some(channel);
                    return Some(Frame::Bytes { channel, payload });
                }
                Received::Reset { stream } => {
                    if let Some(channel) = self.channels.remove(&stream) {
                        return Some(Frame::End { channel });
                    }
                }
                Received::Open { stream, .. } => self.writer.put(frame::reset(stream)).await.ok()?,
                Received::Ping { id } => self.writer.put(frame::pong(id)).await.ok()?,
                Received::GoAway => return None,
            }
        }
    }
}
