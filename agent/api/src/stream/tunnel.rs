//! SPDY inside a WebSocket: its binary messages are pieces of the very bytes that a connection of SPDY would carry, cut
//! anywhere.
//!
//! kubectl forwards ports in this way since 1.31, because proxies let WebSockets pass.
//! Source: KEP-4006; k8s.io/client-go `tools/portforward/tunneling_connection.go`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::channel::CHUNK_BYTES;

/// The name in `Sec-WebSocket-Protocol` of port-forward by SPDY's streams.
pub(crate) const PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";

/// The bytes of a WebSocket's binary messages, both ways.
#[derive(Debug)]
pub(crate) struct Tunnel<S = TokioIo<Upgraded>> {
    socket: WebSocketStream<S>,
    /// What was not read yet of the last message.
    rest: Bytes,
}

impl<S> Tunnel<S> {
    pub(crate) fn through(socket: WebSocketStream<S>) -> Self {
        Self { socket, rest: Bytes::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.socket.poll_next_unpin(context)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Text(_))) => {
                    let wrong = "a message of text in a tunnel of bytes";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, wrong)));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(ended(error)),
            }
        }
        let length = self.rest.len().min(into.remaining());
        into.put_slice(self.rest.get(..length).unwrap_or_default());
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.socket.poll_ready_unpin(context)).map_err(broken)?;
        let piece = bytes.get(..CHUNK_BYTES).unwrap_or(bytes);
        self.socket.start_send_unpin(Message::Binary(Bytes::copy_from_slice(piece))).map_err(broken)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush_unpin(context).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_close_unpin(context).map_err(broken)
    }
}

/// A client that goes without a word has gone.
fn ended(error: Error) -> io::Result<()> {
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Ok(()),
        error => Err(broken(error)),
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::BrokenPipe, error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn pair() -> (WebSocketStream<DuplexStream>, Tunnel<DuplexStream>) {
        let (client, server) = tokio::io::duplex(1000);
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        (client, Tunnel::through(WebSocketStream::from_raw_socket(server, Role::Server, None).await))
    }

    #[tokio::test]
    async fn bytes_go_through_however_they_are_cut() {
        let (mut client, mut tunnel) = pair().await;
        let sent: Vec<u8> = (0..100_000u32).map(|number| number.to_le_bytes()[0]).collect();
        let (mut read, mut write) = tokio::io::split(&mut tunnel);
        let echo = async {
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let talk = async {
            let (mut to, mut from) = (&mut client).split();
            let sending = async {
                for piece in sent.chunks(777) {
                    to.send(Message::Ping(Bytes::new())).await.unwrap();
                    to.send(Message::Binary(Bytes::new())).await.unwrap();
                    to.send(Message::Binary(Bytes::copy_from_slice(piece))).await.unwrap();
                }
            };
            let receiving = async {
                let mut received = Vec::new();
                while received.len() < sent.len() {
                    if let Message::Binary(bytes) = from.next().await.unwrap().unwrap() {
                        received.extend(bytes);
                    }
                }
                received
            };
            let ((), received) = tokio::join!(sending, receiving);
            assert!(received == sent);
            to.close().await.unwrap();
        };
        tokio::join!(echo, talk);
    }

    #[tokio::test]
    async fn text_is_refused_and_a_client_that_goes_is_an_end() {
        let (mut client, mut tunnel) = pair().await;
        client.send(Message::Text("text".into())).await.unwrap();
        assert_eq!(tunnel.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (client, mut tunnel) = pair().await;
        drop(client);
        assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
    }
}
