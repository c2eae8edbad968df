//! Ports of a pod over SPDY: each connection has a pair of streams, one for its bytes and one for why there are none.
//!
//! ```text
//!   open --> half --the other half--> data, error --each ends its side, or one ends both--> (gone)
//!               \--reset, data before there is a connection--------------------------------/
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::frame::{self, FrameReader, PROTOCOL_ERROR, REFUSED_STREAM, Received};
use super::{Connection, Left, Writer, carry_frames};
use crate::backend::{Input, Output};
use crate::channel::CHUNK_BYTES;
use crate::stream::ports::Connect;

/// Pieces that wait for the pod, of each connection: each holds 32 KiB at most.
const QUEUE: usize = 2;
/// Connections at a time; further ones are refused.
const MAX_CONNECTIONS: usize = 512;
/// Streams that wait for the other one of their connection; further ones are refused.
const MAX_HALVES: usize = 512;
/// The longest name of a request, in bytes; kubectl counts.
const MAX_NAME: usize = 64;
/// How long a pod may take for a piece: until then its client's other connections wait, too.
const STALLED: Duration = Duration::from_secs(60);

/// Carries connections until the client leaves, or `stop`.
pub(crate) async fn run<S: AsyncRead + AsyncWrite>(
    connection: Connection<S>,
    connect: Connect,
    stop: CancellationToken,
) {
    let Connection { reader, writer, half, frames } = connection;
    let talking = async {
        tokio::select! {
            // cancel-safe: nothing is taken
            () = stop.cancelled() => {}
            // cancel-safe: the connection ends here in any case
            _left = talk(reader, writer, connect) => {}
        }
    };
    carry_frames(talking, half, frames).await;
}

async fn talk<R: AsyncRead + Unpin>(
    mut reader: FrameReader<R>,
    mut writer: Writer,
    connect: Connect,
) -> Result<(), Left> {
    let mut streams = Streams::default();
    let mut tasks = JoinSet::new();
    loop {
        let received = tokio::select! {
            // cancel-safe: says its docstring
            received = reader.next() => received,
            // cancel-safe: says its documentation
            Some(ended) = tasks.join_next() => {
                if let Ok(whole) = ended {
                    streams.ended(whole);
                }
                continue;
            }
        };
        match received {
            Ok(Some(Received::Open { stream, headers, fin })) => {
                let opened = if tasks.len() < MAX_CONNECTIONS { streams.open(stream, &headers, fin) } else { Err(()) };
                let Ok(whole) = opened else {
                    writer.put(frame::reset(stream, REFUSED_STREAM)).await?;
                    continue;
                };
                writer.accept(stream).await?;
                if let Some(whole) = whole {
                    let (pieces, gone) = streams.begin(whole);
                    tasks.spawn(carry(connect(whole.port), whole, writer.clone(), pieces, gone));
                }
            }
            Ok(Some(Received::Data { stream, payload, fin })) => {
                let refused = match streams.data(stream, payload.is_empty(), fin) {
                    Taken::Nothing => None,
                    // A pod that reads no more may still write; one that only takes its time holds up everybody.
                    Taken::Bytes(input) => match tokio::time::timeout(STALLED, input.send(payload)).await {
                        Ok(_reads_no_more) => None,
                        Err(_) => Some(REFUSED_STREAM),
                    },
                    Taken::Early => Some(REFUSED_STREAM),
                    Taken::Closed => Some(reader.why_not(stream)),
                };
                if let Some(why) = refused {
                    streams.reset(stream);
                    writer.put(frame::reset(stream, why)).await?;
                }
            }
            Ok(Some(Received::Reset { stream })) => streams.reset(stream),
            Ok(Some(Received::Again { stream })) => {
                streams.reset(stream);
                writer.put(frame::reset(stream, PROTOCOL_ERROR)).await?;
            }
            Ok(Some(Received::Ping { id })) => writer.put(frame::pong(id)).await?,
            Ok(Some(Received::GoAway) | None) => return Ok(()),
            Err(error) => {
                writer.part(&error).await;
                return Ok(());
            }
        }
    }
}

/// What a stream is for.
#[derive(Debug)]
enum Stream {
    /// One of a connection whose other one is still to come: the name of their request.
    Half(String),
    /// Bytes for the pod, until the client has ended its side; and what ends both sides.
    Data { input: Option<mpsc::Sender<Bytes>>, gone: CancellationToken },
    /// Why there are none. Nothing that a client says there is of interest.
    Error,
}

/// A stream that waits for the other one of its connection.
#[derive(Debug)]
struct Half {
    kind: Kind,
    stream: u32,
    port: u16,
    /// The client has ended its side.
    fin: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// Both streams of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Whole {
    port: u16,
    data: u32,
    error: u32,
    /// The client has nothing to send.
    fin: bool,
}

/// What becomes of data.
#[derive(Debug)]
enum Taken {
    Nothing,
    Bytes(mpsc::Sender<Bytes>),
    /// There is no connection yet.
    Early,
    /// The client's side of the stream has ended, or there is none.
    Closed,
}

/// The streams of a client.
#[derive(Debug, Default)]
struct Streams {
    open: BTreeMap<u32, Stream>,
    /// By the names of their requests.
    halves: BTreeMap<String, Half>,
}

impl Streams {
    /// Notes a stream; its connection when both streams are there. What is refused leaves everything as it was.
    fn open(&mut self, stream: u32, headers: &BTreeMap<String, String>, fin: bool) -> Result<Option<Whole>, ()> {
        let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0).ok_or(())?;
        let kind = match headers.get("streamtype").map(String::as_str) {
            Some("data") => Kind::Data,
            Some("error") => Kind::Error,
            _ => return Err(()),
        };
        // Old clients name no request: then a pair is that of a port.
        let name = headers.get("requestid").cloned().unwrap_or_else(|| format!("port {port}"));
        let Some(half) = self.halves.get(&name) else {
            if self.halves.len() >= MAX_HALVES || name.len() > MAX_NAME {
                return Err(());
            }
            self.halves.insert(name.clone(), Half { kind, stream, port, fin });
            self.open.insert(stream, Stream::Half(name));
            return Ok(None);
        };
        if half.kind == kind || half.port != port {
            return Err(());
        }
        let whole = match kind {
            Kind::Data => Whole { port, data: stream, error: half.stream, fin },
            Kind::Error => Whole { port, data: half.stream, error: stream, fin: half.fin },
        };
        self.halves.remove(&name);
        Ok(Some(whole))
    }

    /// Begins to carry a connection: where its bytes come from, and what says that the client has ended it.
    fn begin(&mut self, whole: Whole) -> (mpsc::Receiver<Bytes>, CancellationToken) {
        let (input, pieces) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let input = (!whole.fin).then_some(input);
        self.open.insert(whole.data, Stream::Data { input, gone: gone.clone() });
        self.open.insert(whole.error, Stream::Error);
        (pieces, gone)
    }

    /// What becomes of data on a stream.
    fn data(&mut self, stream: u32, empty: bool, fin: bool) -> Taken {
        match self.open.get_mut(&stream) {
            Some(Stream::Data { input, .. }) => {
                let taken = match input {
                    Some(input) if !empty => Taken::Bytes(input.clone()),
                    None if !empty => Taken::Closed,
                    _ => Taken::Nothing,
                };
                if fin {
                    *input = None;
                }
                taken
            }
            Some(Stream::Half(name)) => match self.halves.get_mut(name) {
                Some(half) if half.kind == Kind::Data && !empty => Taken::Early,
                Some(half) => {
                    half.fin |= fin;
                    Taken::Nothing
                }
                None => Taken::Nothing,
            },
            Some(Stream::Error) => Taken::Nothing,
            // The end of what has ended is no news.
            None if empty => Taken::Nothing,
            None => Taken::Closed,
        }
    }

    /// A stream was ended by one of both sides.
    fn reset(&mut self, stream: u32) {
        match self.open.remove(&stream) {
            Some(Stream::Half(name)) => drop(self.halves.remove(&name)),
            Some(Stream::Data { gone, .. }) => gone.cancel(),
            Some(Stream::Error) | None => {}
        }
    }

    /// A connection is not carried any more.
    fn ended(&mut self, whole: Whole) {
        self.open.remove(&whole.data);
        self.open.remove(&whole.error);
    }
}

/// Carries one connection to its end. Once it has begun its client hears of the end on the stream of errors, also when
/// `gone` says that it wants no more bytes: kubectl waits for that.
async fn carry(
    connecting: BoxFuture<'static, Result<(Output, Input), String>>,
    whole: Whole,
    writer: Writer,
    pieces: mpsc::Receiver<Bytes>,
    gone: CancellationToken,
) -> Whole {
    let mut told = false;
    tokio::select! {
        // cancel-safe: nothing is taken
        () = gone.cancelled() => {}
        // cancel-safe: nobody wants what is lost
        _left = carry_all(connecting, whole, &writer, pieces, &mut told) => {}
    }
    if !told {
        let _left = writer.put(frame::data(whole.error, &[], true)).await;
    }
    whole
}

/// `told`: the end was, on the stream of errors.
async fn carry_all(
    connecting: BoxFuture<'static, Result<(Output, Input), String>>,
    whole: Whole,
    writer: &Writer,
    mut pieces: mpsc::Receiver<Bytes>,
    told: &mut bool,
) -> Result<(), Left> {
    let (mut output, mut input) = match connecting.await {
        Ok(connection) => connection,
        Err(said) => {
            writer.put(frame::data(whole.error, said.as_bytes(), true)).await?;
            *told = true;
            return writer.put(frame::data(whole.data, &[], true)).await;
        }
    };
    let to = async {
        while let Some(piece) = pieces.recv().await {
            if input.write_all(&piece).await.is_err() || input.flush().await.is_err() {
                // Nobody shall wait for room.
                pieces.close();
                return;
            }
        }
        drop(input.shutdown().await);
    };
    let from = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = output.read(&mut buffer).await {
            let piece = buffer.get(..read).unwrap_or_default();
            writer.put(frame::data(whole.data, piece, false)).await?;
        }
        // The client hears of the end at once, and ends its side when it wants.
        writer.put(frame::data(whole.data, &[], true)).await?;
        writer.put(frame::data(whole.error, &[], true)).await?;
        *told = true;
        Ok(())
    };
    tokio::join!(to, from).1
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::DuplexStream;

    use super::super::tests::Client;
    use super::*;

    fn headers(kind: &str, port: &str, request: &str) -> BTreeMap<String, String> {
        [("streamtype", kind), ("port", port), ("requestid", request)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn whole(port: u16, data: u32, error: u32) -> Result<Option<Whole>, ()> {
        Ok(Some(Whole { port, data, error, fin: false }))
    }

    #[test]
    fn a_connection_begins_when_both_its_streams_are_there() {
        let mut streams = Streams::default();
        let mut open = |stream, kind, port, request| streams.open(stream, &headers(kind, port, request), false);
        assert_eq!(open(1, "error", "80", "0"), Ok(None));
        assert_eq!(open(3, "error", "81", "1"), Ok(None));
        assert_eq!(open(5, "data", "81", "1"), whole(81, 5, 3));
        assert_eq!(open(7, "data", "80", "0"), whole(80, 7, 1));
        assert_eq!(open(9, "error", "80", ""), Ok(None));
        assert_eq!(open(11, "data", "80", ""), whole(80, 11, 9));
        assert!(streams.halves.is_empty());
    }

    #[test]
    fn a_stream_without_port_or_kind_is_refused_and_leaves_nothing() {
        let mut streams = Streams::default();
        let long = "9".repeat(MAX_NAME + 1);
        for (kind, port, request) in
            [("data", "", "0"), ("data", "0", "0"), ("other", "80", "2"), ("", "", ""), ("data", "80", long.as_str())]
        {
            assert_eq!(streams.open(1, &headers(kind, port, request), false), Err(()), "{kind} {port}");
        }
        assert!(streams.halves.is_empty() && streams.open.is_empty());
    }

    #[test]
    fn a_second_stream_of_one_kind_is_refused_and_the_first_stays() {
        let mut streams = Streams::default();
        assert_eq!(streams.open(1, &headers("data", "80", "0"), false), Ok(None));
        assert_eq!(streams.open(3, &headers("data", "80", "0"), false), Err(()));
        assert_eq!(streams.open(5, &headers("error", "81", "0"), false), Err(()), "of another port");
        assert_eq!(streams.open(7, &headers("error", "80", "0"), false), whole(80, 1, 7));
    }

    #[test]
    fn halves_of_connections_are_bounded_and_make_room_when_they_end() {
        let mut streams = Streams::default();
        let mut numbers = (1..).step_by(2);
        let mut open = |streams: &mut Streams| {
            let stream = numbers.next().unwrap();
            streams.open(stream, &headers("error", "80", &stream.to_string()), false)
        };
        for _ in 0..MAX_HALVES {
            assert_eq!(open(&mut streams), Ok(None));
        }
        assert_eq!(open(&mut streams), Err(()));
        assert_eq!((streams.halves.len(), streams.open.len()), (MAX_HALVES, MAX_HALVES));
        streams.reset(1);
        assert_eq!((open(&mut streams), open(&mut streams)), (Ok(None), Err(())));
    }

    #[test]
    fn data_go_to_a_connection_until_the_client_ends_them() {
        let mut streams = Streams::default();
        assert_eq!(streams.open(1, &headers("error", "80", "0"), false), Ok(None));
        // kubectl ends its side of the errors at once.
        assert!(matches!(streams.data(1, true, true), Taken::Nothing));
        assert!(matches!(streams.open(3, &headers("data", "80", "1"), false), Ok(None)));
        assert!(matches!(streams.data(3, false, false), Taken::Early));
        let Ok(Some(whole)) = streams.open(5, &headers("data", "80", "0"), false) else { panic!("a connection") };
        let (_pieces, gone) = streams.begin(whole);
        assert!(matches!(streams.data(5, false, false), Taken::Bytes(_)));
        assert!(matches!(streams.data(5, false, true), Taken::Bytes(_)));
        assert!(matches!(streams.data(5, true, true), Taken::Nothing));
        assert!(matches!(streams.data(5, false, false), Taken::Closed));
        assert!(matches!(streams.data(7, false, false), Taken::Closed));
        streams.reset(5);
        assert!(gone.is_cancelled());
        streams.ended(whole);
        assert_eq!(streams.open.keys().collect::<Vec<_>>(), [&3]);
    }

    /// What a pod writes to, and what it reads from.
    type Pod = (DuplexStream, DuplexStream);

    /// A client, and the pod's ends of its connections. Nobody listens on port 1.
    fn client() -> (Client, mpsc::UnboundedReceiver<Pod>) {
        let (connected, connections) = mpsc::unbounded_channel();
        let connect: Connect = Box::new(move |port| {
            let connected = connected.clone();
            async move {
                if port == 1 {
                    return Err("nobody listens".to_owned());
                }
                let ((output, writes), (input, reads)) = (tokio::io::duplex(1024), tokio::io::duplex(1024));
                drop(connected.send((writes, reads)));
                Ok((Box::new(output) as Output, Box::new(input) as Input))
            }
            .boxed()
        });
        (Client::new(|connection, stop| run(connection, connect, stop)), connections)
    }

    async fn connect(client: &mut Client, port: &str) {
        for (stream, kind) in [(1, "error"), (3, "data")] {
            client.open(stream, &[("port", port), ("streamtype", kind), ("requestid", "0")]).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_fails_says_why() {
        let (mut client, _) = client();
        connect(&mut client, "1").await;
        assert_eq!(client.answers(4).await, ["reply 1", "reply 3", "data 1 nobody listens fin", "data 3 fin"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_wants_no_more_bytes_hears_of_the_end() {
        let (mut client, mut connections) = client();
        connect(&mut client, "80").await;
        let _pod = connections.recv().await.unwrap();
        client.send(frame::reset(3, 5)).await;
        assert_eq!(client.answers(3).await, ["reply 1", "reply 3", "data 1 fin"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_reads_no_more_holds_nobody_up_and_may_still_write() {
        let (mut client, mut connections) = client();
        connect(&mut client, "80").await;
        let (mut writes, reads) = connections.recv().await.unwrap();
        drop(reads);
        for _ in 0..20 {
            client.send(frame::data(3, &[7; 1000], false)).await;
        }
        client.send(frame::pong(9)).await;
        assert_eq!(client.answers(3).await, ["reply 1", "reply 3", "ping 9"]);
        writes.write_all(b"words").await.unwrap();
        assert_eq!(client.answers(1).await, ["data 3 words"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_takes_nothing_loses_its_connection_and_not_the_others() {
        let (mut client, mut connections) = client();
        connect(&mut client, "80").await;
        let _pod = connections.recv().await.unwrap();
        // One that it takes, one of which it takes a part, two that wait.
        for _ in 0..5 {
            client.send(frame::data(3, &[7; 1000], false)).await;
        }
        client.send(frame::pong(9)).await;
        let mut answers = client.answers(5).await;
        answers.sort();
        assert_eq!(answers, ["data 1 fin", "ping 9", "reply 1", "reply 3", "reset 3 3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn data_on_a_stream_that_is_not_open_are_refused() {
        let (mut client, mut connections) = client();
        connect(&mut client, "80").await;
        let _pod = connections.recv().await.unwrap();
        client.send(frame::data(3, b"", true)).await;
        client.send(frame::data(3, b"more", false)).await;
        client.send(frame::data(5, b"more", false)).await;
        let mut answers = client.answers(5).await;
        answers.sort();
        assert_eq!(answers, ["data 1 fin", "reply 1", "reply 3", "reset 3 9", "reset 5 2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_it_for_a_client_that_reads_nothing() {
        let (mut client, _connections) = client();
        for _ in 0..10_000 {
            if !client.try_send(frame::pong(9)).await {
                break;
            }
        }
        client.stop().await;
    }
}
