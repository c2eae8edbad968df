//! What carries the frames of a session: a WebSocket, or the streams of SPDY.

use std::future::Future;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::socket::Socket;
use crate::channel::{Frame, Protocol};

/// The client is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left;

/// What goes to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// A frame.
    Frame(Frame),
    /// The end, after which only the client's own end is waited for.
    Close,
}

/// The way to a client.
pub(crate) trait Sender: Send {
    /// Sends, as soon as the client takes more.
    fn send(&mut self, what: Outgoing) -> impl Future<Output = Result<(), Left>> + Send;
}

/// The way from a client.
pub(crate) trait Receiver: Send {
    /// The next frame; `None` when the client left, or said what makes no sense.
    fn next(&mut self) -> impl Future<Output = Option<Frame>> + Send;
}

/// To a client over a WebSocket.
pub(crate) struct ToSocket(SplitSink<Socket, Message>);

/// From a client over a WebSocket.
pub(crate) struct FromSocket(SplitStream<Socket>, Protocol);

/// Both ways over a WebSocket.
pub(crate) fn over_socket(socket: Socket, protocol: Protocol) -> (ToSocket, FromSocket) {
    let (sink, stream) = socket.split();
    (ToSocket(sink), FromSocket(stream, protocol))
}

impl Sender for ToSocket {
    async fn send(&mut self, what: Outgoing) -> Result<(), Left> {
        let message = match what {
            Outgoing::Frame(frame) => Message::Binary(frame.encode()),
            Outgoing::Close => Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })),
        };
        self.0.send(message).await.map_err(|_| Left)
    }
}

impl Receiver for FromSocket {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            let bytes = match self.0.next().await?.ok()? {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return None,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            return Frame::decode(self.1, bytes).ok();
        }
    }
}
