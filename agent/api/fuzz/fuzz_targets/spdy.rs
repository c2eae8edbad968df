//! Any frames, in order or not: the answers are frames of SPDY about streams that the client opened, connections and
//! streams are bounded, and all ends soon after its client has gone, or when it is told to stop.
#![no_main]

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use portreeve_api::backend::{ExecSpec, Input, Output, Session};
use portreeve_api::fuzz;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections at a time, and streams that wait for their other one.
const MOST: usize = 512;
/// How long anything may take that is not stuck. Nobody waits: time passes when nobody does anything.
const LONG: Duration = Duration::from_secs(1_000_000);
/// How long the end may take once it is asked for.
const SOON: Duration = Duration::from_secs(100);
/// The most that a client sends, in bytes.
const ALL: usize = 1 << 20;

/// Streams of a process, and ports of a pod: what a client says they are for.
const KINDS: [&str; 8] = ["error", "data", "stdin", "stdout", "stderr", "resize", "other", ""];
/// Each pod does something else behind them, see `connect`.
const PORTS: [&str; 8] = ["80", "1", "2", "3", "0", "65536", "-1", ""];

#[derive(Debug, Arbitrary)]
struct Case {
    /// Or ports.
    process: Option<Process>,
    /// The client takes what it is sent.
    reads: bool,
    frames: Vec<Frame>,
}

#[derive(Debug, Arbitrary)]
struct Process {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    output: u16,
    exit: Option<u8>,
}

#[derive(Debug, Arbitrary)]
enum Frame {
    /// Of the next number, or of this one.
    Open {
        stream: Option<u8>,
        kind: u8,
        port: u8,
        request: Option<u8>,
        fin: bool,
    },
    /// One after the other, each of a request of its own.
    Many {
        number: u16,
        kind: u8,
    },
    Headers {
        stream: u8,
        block: Vec<u8>,
    },
    Data {
        stream: u8,
        bytes: Vec<u8>,
        fin: bool,
    },
    Much {
        stream: u8,
        length: u16,
    },
    Reset {
        stream: u8,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Control {
        kind: u8,
        flags: u8,
        body: Vec<u8>,
    },
    Any(Vec<u8>),
}

/// What a client sends.
#[derive(Default)]
struct Client {
    sent: Vec<u8>,
    last: u32,
    began: bool,
    opened: BTreeSet<u32>,
}

fn number(number: usize) -> [u8; 4] {
    u32::try_from(number).expect("short").to_be_bytes()
}

impl Client {
    fn control(&mut self, kind: u8, flags: u8, body: &[u8]) {
        self.sent.extend([0x80, 3, 0, kind, flags]);
        self.sent.extend(&number(body.len())[1..]);
        self.sent.extend(body);
    }

    fn data(&mut self, stream: u8, bytes: &[u8], fin: bool) {
        self.sent.extend(u32::from(stream).to_be_bytes());
        self.sent.push(u8::from(fin));
        self.sent.extend(&number(bytes.len())[1..]);
        self.sent.extend(bytes);
    }

    fn open(&mut self, stream: Option<u8>, headers: &[(&str, &str)], fin: bool) {
        let stream = match stream {
            Some(stream) => u32::from(stream),
            None => (self.last + 1) | 1,
        };
        self.last = self.last.max(stream);
        let mut block = number(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(number(text.len()));
            block.extend(text.bytes());
        }
        self.headers(stream, &block, fin);
    }

    fn headers(&mut self, stream: u32, block: &[u8], fin: bool) {
        self.opened.insert(stream);
        let mut body = [stream.to_be_bytes(), [0; 4]].concat();
        body.extend([0, 0]);
        if !std::mem::replace(&mut self.began, true) {
            body.extend([0x78, 0x01]);
        }
        // Not compressed, which is a way to compress.
        let length = u16::try_from(block.len()).expect("short");
        body.push(0);
        body.extend(length.to_le_bytes());
        body.extend((!length).to_le_bytes());
        body.extend(block);
        self.control(1, u8::from(fin), &body);
    }

    fn say(&mut self, frame: &Frame) {
        let chosen = |list: &'static [&str], drawn: u8| list[usize::from(drawn) % list.len()];
        match frame {
            Frame::Open { stream, kind, port, request, fin } => {
                let (kind, port) = (chosen(&KINDS, *kind), chosen(&PORTS, *port));
                let request = request.map(|request| request.to_string()).unwrap_or_default();
                let headers = [("Streamtype", kind), ("port", port), ("requestID", request.as_str())];
                let headers: Vec<_> = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
                self.open(*stream, &headers, *fin);
            }
            Frame::Many { number, kind } => {
                for request in 0..number % 1200 {
                    let request = format!("many {request}");
                    self.open(
                        None,
                        &[("streamtype", chosen(&KINDS, *kind)), ("port", "80"), ("requestid", &request)],
                        false,
                    );
                }
            }
            Frame::Headers { stream, block } => self.headers(u32::from(*stream), block, false),
            Frame::Data { stream, bytes, fin } => self.data(*stream, bytes, *fin),
            Frame::Much { stream, length } => self.data(*stream, &vec![b'x'; usize::from(*length)], false),
            Frame::Reset { stream } => self.control(3, 0, &[0, 0, 0, *stream, 0, 0, 0, 5]),
            Frame::Ping { id } => self.control(6, 0, &id.to_be_bytes()),
            Frame::GoAway => self.control(7, 0, &[0; 8]),
            Frame::Control { kind, flags, body } => {
                if let (1, Some(stream)) = (kind, body.first_chunk::<4>()) {
                    self.opened.insert(u32::from_be_bytes(*stream) & 0x7fff_ffff);
                }
                self.control(*kind, *flags, body);
            }
            Frame::Any(bytes) => self.sent.extend(bytes),
        }
    }
}

/// What is behind the ports.
#[derive(Default)]
struct Pod {
    connections: AtomicUsize,
    /// The other ends of what does nothing.
    idle: Mutex<Vec<DuplexStream>>,
}

/// An output that counts for as long as it is there.
struct Counted(Output, Arc<Pod>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

/// What is behind a port: on 1 nobody, on 2 one that does nothing, on 3 one that has gone, else an echo.
fn connect(port: u16, pod: &Arc<Pod>) -> Result<(Output, Input), String> {
    let (output, input): (Output, Input) = match port {
        1 => return Err("nobody listens".to_owned()),
        2 => {
            let (ours, theirs) = tokio::io::duplex(16);
            pod.idle.lock().expect("one thread").push(theirs);
            let (output, input) = tokio::io::split(ours);
            (Box::new(output), Box::new(input))
        }
        3 => {
            let (ours, _) = tokio::io::duplex(16);
            let (output, input) = tokio::io::split(ours);
            (Box::new(output), Box::new(input))
        }
        _ => {
            let (output, input) = tokio::io::simplex(1024);
            (Box::new(output), Box::new(input))
        }
    };
    assert!(pod.connections.fetch_add(1, Ordering::Relaxed) < MOST);
    Ok((Box::new(Counted(output, Arc::clone(pod))), input))
}

/// What the server said, each frame in its place.
fn check(mut said: &[u8], is_opened: impl Fn(u32) -> bool, streams: usize) {
    let (mut accepted, mut open) = (BTreeSet::new(), BTreeSet::new());
    let word = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().expect("four bytes"));
    while !said.is_empty() {
        let (head, rest) = said.split_at_checked(8).expect("a whole head");
        let (body, rest) = rest.split_at_checked((word(&head[4..]) & 0x00ff_ffff) as usize).expect("a whole frame");
        said = rest;
        match (head[0], head[3]) {
            (0x80, 2) => {
                let stream = word(body);
                assert!(stream % 2 == 1 && is_opened(stream), "{stream}");
                assert!(accepted.insert(stream) && open.insert(stream), "{stream} is accepted once");
            }
            // Also a stream that is not there yet is refused, when data come for it.
            (0x80, 3) => {
                open.remove(&word(body));
                assert!(matches!(word(&body[4..]), 1 | 2 | 3 | 9), "{body:?}");
            }
            (0x80, 6) => assert_eq!(word(body) % 2, 1),
            (0x80, 7) => assert!(matches!(word(&body[4..]), 0 | 1), "{body:?}"),
            (first, _) => {
                assert!(first < 0x80, "{head:?}");
                assert!(accepted.contains(&word(head)), "{} was accepted", word(head));
                if head[4] & 1 == 1 {
                    open.remove(&word(head));
                }
            }
        }
    }
    assert!(open.len() <= streams);
}

fn process(asked: &Process) -> (ExecSpec, Session) {
    let Process { stdin, stdout, stderr, tty, output, exit } = *asked;
    let spec = ExecSpec { command: Vec::new(), tty, stdin, stdout, stderr };
    let written = |length: u16| -> Output { Box::new(std::io::Cursor::new(vec![b'o'; usize::from(length)])) };
    let session = Session {
        stdin: stdin.then(|| Box::new(tokio::io::sink()) as Input),
        stdout: stdout.then(|| written(output)),
        stderr: stderr.then(|| written(output / 2)),
        resize: None,
        exit_code: exit
            .map(|code| -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(async move { Ok(code.into()) }) }),
    };
    (spec, session)
}

async fn run(case: &Case) {
    let mut client = Client::default();
    for frame in &case.frames {
        client.say(frame);
        if client.sent.len() > ALL {
            break;
        }
    }
    let Client { sent, opened, .. } = client;
    // After these the server may see frames that the client has not meant.
    let astray = case.frames.iter().any(|frame| matches!(frame, Frame::Any(_)));
    let pod = Arc::new(Pod::default());
    let stop = CancellationToken::new();
    let (stream, theirs) = tokio::io::duplex(4096);
    let serving = async {
        match &case.process {
            Some(asked) => {
                let (spec, session) = process(asked);
                fuzz::process(theirs, &spec, session, stop.clone()).await;
            }
            None => {
                let pod = Arc::clone(&pod);
                fuzz::ports(theirs, move |port| connect(port, &pod), stop.clone()).await;
            }
        }
    };
    let talking = async {
        let (mut read, mut write) = tokio::io::split(stream);
        let mut said = Vec::new();
        let say = async {
            // Who has been left hears of it, and one that reads nothing is not heard for ever.
            let _left = timeout(LONG, write.write_all(&sent)).await;
            if case.reads {
                let _left = write.shutdown().await;
            } else {
                stop.cancel();
            }
        };
        if case.reads {
            let heard = async { read.read_to_end(&mut said).await.expect("bytes") };
            tokio::join!(say, heard);
        } else {
            say.await;
            stop.cancelled().await;
            // Still there, and taking nothing.
            tokio::time::sleep(SOON).await;
        }
        said
    };
    let served = timeout(2 * LONG, async {
        if case.reads {
            serving.await;
        } else {
            tokio::pin!(serving);
            tokio::select! {
                () = &mut serving => return,
                () = stop.cancelled() => {}
            }
            timeout(SOON, serving).await.expect("it stops");
        }
    });
    let (served, said) = tokio::join!(served, talking);
    served.expect("it ends");
    let streams = if case.process.is_some() { 5 } else { 3 * MOST };
    check(&said, |stream| astray || opened.contains(&stream), streams);
}

fuzz_target!(|case: Case| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(&case));
});
