//! Ports of a pod on a socket's channels: port `i` has data on `2i` and errors on `2i + 1`.
//!
//! Each channel opens with its port, two bytes, little endian. Under v5 a close of a data
//! channel means that this side sends nothing more, as a TCP half-close does.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

use super::socket::Socket;
use crate::backend::{Input, Output};
use crate::channel::{CHUNK_BYTES, Frame, Protocol};

/// Frames that wait for the client.
const QUEUE: usize = 4;

/// Connects to a port, or says why not.
pub(crate) type Connect = Box<dyn Fn(u16) -> BoxFuture<'static, Result<(Output, Input), String>> + Send + Sync>;

/// Carries the ports until each has ended, or the client left.
pub(crate) async fn run(socket: Socket, protocol: Protocol, ports: &[u16], connect: &Connect, stop: CancellationToken) {
    let (mut sink, mut stream) = socket.split();
    let (queue, mut frames) = mpsc::channel::<Frame>(QUEUE);
    let mut inputs: BTreeMap<u8, Option<Input>> = BTreeMap::new();
    let mut outputs = Vec::new();
    for (index, port) in (0u8..).zip(ports) {
        let (data, error) = (index * 2, index * 2 + 1);
        let opening = Bytes::copy_from_slice(&port.to_le_bytes());
        for channel in [data, error] {
            let frame = Frame::Bytes { channel, payload: opening.clone() };
            if sink.send(Message::Binary(frame.encode())).await.is_err() {
                return;
            }
        }
        match connect(*port).await {
            Ok((output, input)) => {
                inputs.insert(data, Some(input));
                outputs.push((data, output));
            }
            Err(message) => {
                let frame = Frame::Bytes { channel: error, payload: message.into() };
                if sink.send(Message::Binary(frame.encode())).await.is_err() {
                    return;
                }
            }
        }
    }

    let copies = futures_util::future::join_all(
        outputs.into_iter().map(|(channel, output)| copy_out(output, channel, protocol, queue.clone())),
    );
    drop(queue);
    let writer = async {
        while let Some(frame) = frames.recv().await {
            if sink.send(Message::Binary(frame.encode())).await.is_err() {
                return;
            }
        }
    };
    let reader = async {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(bytes) = message else {
                if matches!(message, Message::Close(_)) {
                    return;
                }
                continue;
            };
            match Frame::decode(protocol, bytes) {
                Ok(Frame::Bytes { channel, payload }) => {
                    if let Some(slot) = inputs.get_mut(&channel)
                        && let Some(input) = slot
                        && (input.write_all(&payload).await.is_err() || input.flush().await.is_err())
                    {
                        *slot = None;
                    }
                }
                Ok(Frame::End { channel }) => {
                    if let Some(mut input) = inputs.get_mut(&channel).and_then(Option::take) {
                        drop(input.shutdown().await);
                    }
                }
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        // cancel-safe: the connection ends here in any case
        () = stop.cancelled() => {}
        // cancel-safe: as above
        _ = async { tokio::join!(copies, writer) } => {}
        // cancel-safe: as above
        () = reader => {}
    }
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    drop(sink.send(Message::Close(Some(close))).await);
}

async fn copy_out(mut output: Output, channel: u8, protocol: Protocol, queue: mpsc::Sender<Frame>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        let payload = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
        if queue.send(Frame::Bytes { channel, payload }).await.is_err() {
            return;
        }
    }
    if protocol >= Protocol::V5 {
        drop(queue.send(Frame::End { channel }).await);
    }
}
