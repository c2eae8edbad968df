//! Ports of a pod over SPDY: each connection has a pair of streams, one for its bytes and one for why there are none.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::frame::{self, Received};
use super::{Connection, Left, Writer, pass_on};
use crate::backend::{Input, Output};
use crate::channel::CHUNK_BYTES;
use crate::stream::ports::Connect;

/// Pieces that wait for the pod, of each connection.
const QUEUE: usize = 8;
/// Streams at a time, two for each connection; further ones are refused.
const MAX_STREAMS: usize = 1024;

/// A connection of which one stream is there.
#[derive(Debug, Default)]
struct Pair {
    port: u16,
    data: Option<u32>,
    error: Option<u32>,
}

/// A connection that is carried.
struct Carried {
    input: Option<mpsc::Sender<Bytes>>,
    task: AbortHandle,
}

/// Carries connections until the client leaves, or `stop`.
pub(crate) async fn run(connection: Connection, connect: Connect, stop: CancellationToken) {
    let Connection { mut reader, mut writer, half, frames } = connection;
    let talk = async move {
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        let mut carried: BTreeMap<u32, Carried> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let received = tokio::select! {
                // cancel-safe: nothing is taken
                () = stop.cancelled() => break,
                // cancel-safe: says its docstring
                received = reader.next() => received,
                // cancel-safe: says its documentation
                Some(ended) = tasks.join_next() => {
                    if let Ok(stream) = ended {
                        carried.remove(&stream);
                    }
                    continue;
                }
            };
            let answered = match received {
                Ok(Some(Received::Open { stream, headers, .. })) => match pair(&mut pairs, stream, &headers) {
                    _ if 2 * carried.len() + pairs.len() > MAX_STREAMS => writer.put(frame::reset(stream)).await,
                    Err(()) => writer.put(frame::reset(stream)).await,
                    Ok(None) => writer.accept(stream).await,
                    Ok(Some((port, data, error))) => {
                        let accepted = writer.accept(stream).await;
                        let (input, pieces) = mpsc::channel(QUEUE);
                        let task = tasks.spawn(carry(connect(port), data, error, writer.clone(), pieces));
                        carried.insert(data, Carried { input: Some(input), task });
                        accepted
                    }
                },
                Ok(Some(Received::Data { stream, payload, fin })) => {
                    if let Some(carried) = carried.get_mut(&stream) {
                        if let Some(input) = &carried.input
                            && !payload.is_empty()
                        {
                            // A pod that reads no more may still write.
                            let _reads_no_more = input.send(payload).await;
                        }
                        if fin {
                            carried.input = None;
                        }
                    }
                    Ok(())
                }
                Ok(Some(Received::Reset { stream })) => {
                    if let Some(carried) = carried.remove(&stream) {
                        carried.task.abort();
                    }
                    Ok(())
                }
                Ok(Some(Received::Ping { id })) => writer.put(frame::pong(id)).await,
                Ok(Some(Received::GoAway) | None) | Err(_) => break,
            };
            if answered == Err(Left) {
                break;
            }
        }
    };
    tokio::join!(talk, pass_on(half, frames));
}

/// Notes a stream; port, data and error stream when both of a connection are there.
fn pair(
    pairs: &mut BTreeMap<String, Pair>,
    stream: u32,
    headers: &BTreeMap<String, String>,
) -> Result<Option<(u16, u32, u32)>, ()> {
    let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0).ok_or(())?;
    // Old clients name no request: then a pair is that of a port.
    let name = headers.get("requestid").cloned().unwrap_or_else(|| format!("port {port}"));
    let pair = pairs.entry(name.clone()).or_default();
    pair.port = port;
    let place = match headers.get("streamtype").map(String::as_str) {
        Some("data") => &mut pair.data,
        Some("error") => &mut pair.error,
        _ => return Err(()),
    };
    if place.replace(stream).is_some() {
        return Err(());
    }
    let (Some(data), Some(error)) = (pair.data, pair.error) else { return Ok(None) };
    pairs.remove(&name);
    Ok(Some((port, data, error)))
}

/// Carries one connection to its end; its data stream.
async fn carry(
    connecting: BoxFuture<'static, Result<(Output, Input), String>>,
    data: u32,
    error: u32,
    writer: Writer,
    mut pieces: mpsc::Receiver<Bytes>,
) -> u32 {
    let said = match connecting.await {
        Ok((mut output, mut input)) => {
            let to = async {
                while let Some(piece) = pieces.recv().await {
                    if input.write_all(&piece).await.is_err() || input.flush().await.is_err() {
                        return;
                    }
                }
                drop(input.shutdown().await);
            };
            let from = async {
                let mut buffer = vec![0; CHUNK_BYTES];
                while let Ok(read @ 1..) = output.read(&mut buffer).await {
                    let piece = buffer.get(..read).unwrap_or_default();
                    if writer.put(frame::data(data, piece, false)).await.is_err() {
                        return;
                    }
                }
                // The client hears of the end at once, and ends its side when it wants.
                let _left = writer.put(frame::data(data, &[], true)).await;
                let _left = writer.put(frame::data(error, &[], true)).await;
            };
            tokio::join!(to, from);
            return data;
        }
        Err(said) => said,
    };
    for frame in [frame::data(error, said.as_bytes(), true), frame::data(data, &[], true)] {
        if writer.put(frame).await.is_err() {
            break;
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(kind: &str, port: &str, request: &str) -> BTreeMap<String, String> {
        [("streamtype", kind), ("port", port), ("requestid", request)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn a_connection_begins_when_both_its_streams_are_there() {
        let mut pairs = BTreeMap::new();
        assert_eq!(pair(&mut pairs, 1, &headers("error", "80", "0")), Ok(None));
        assert_eq!(pair(&mut pairs, 3, &headers("error", "81", "1")), Ok(None));
        assert_eq!(pair(&mut pairs, 5, &headers("data", "81", "1")), Ok(Some((81, 5, 3))));
        assert_eq!(pair(&mut pairs, 7, &headers("data", "80", "0")), Ok(Some((80, 7, 1))));
        assert!(pairs.is_empty());
        assert_eq!(pair(&mut pairs, 9, &headers("error", "80", "")), Ok(None));
        assert_eq!(pair(&mut pairs, 11, &headers("data", "80", "")), Ok(Some((80, 11, 9))));
    }

    #[test]
    fn a_stream_without_port_or_kind_and_a_second_of_one_kind_are_refused() {
        let mut pairs = BTreeMap::new();
        for bad in [headers("data", "", "0"), headers("data", "0", "0"), headers("other", "80", "2"), BTreeMap::new()] {
            assert_eq!(pair(&mut pairs, 1, &bad), Err(()));
        }
        assert_eq!(pair(&mut pairs, 1, &headers("data", "80", "0")), Ok(None));
        assert_eq!(pair(&mut pairs, 3, &headers("data", "80", "0")), Err(()));
    }
}
