//! HTTP over the agent's unix socket: one connection per request, as few bytes held as possible.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use http::header::{
    ACCEPT, CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use portreeve_api::channel::{MAX_MESSAGE_BYTES, Protocol};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::task::AbortOnDropHandle;

/// The largest answer that is read whole.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// How long an answer may take, unless told otherwise: the agent is on the same machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line of a stream.
const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// What is asked for as a table.
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const JSON: &str = "application/json";

/// A body on its way to the agent.
pub(crate) type Body = BoxBody<Bytes, io::Error>;
/// A WebSocket to the agent.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// An answer of the agent that is not a success.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The HTTP code.
    pub(crate) code: StatusCode,
    /// What went wrong.
    pub(crate) message: String,
    /// Each cause, where there are several.
    pub(crate) causes: Vec<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, "\n  {cause}"))
    }
}

impl std::error::Error for Refused {}

/// A client of one agent.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    /// How long an answer may take, where that was said; zero means as long as it takes.
    limit: Option<Duration>,
}

/// An answer whose body is still to be read.
pub(crate) struct Answer {
    body: Incoming,
    // The connection lives as long as its answer is read.
    _connection: AbortOnDropHandle<()>,
}

impl Client {
    pub(crate) fn new(socket: PathBuf, limit: Option<Duration>) -> Client {
        Client { socket, limit }
    }

    /// Gives an answer its time: an agent that is stopped takes connections all the same, and would never answer.
    async fn in_time<T>(&self, answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let limit = self.limit.unwrap_or(PATIENCE);
        if limit.is_zero() {
            return answer.await;
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(silent_agent(&self.socket, limit).await),
        }
    }

    async fn connect(&self) -> anyhow::Result<UnixStream> {
        UnixStream::connect(&self.socket).await.map_err(|error| unreachable_agent(&self.socket, &error))
    }

    async fn send(&self, request: Request<Body>) -> anyhow::Result<(http::Response<Incoming>, AbortOnDropHandle<()>)> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("talking to the agent")?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // How it ended shows in the answer.
            let _ended = connection.with_upgrades().await;
        }));
        let response = sender
            .send_request(request)
            .await
            .with_context(|| format!("talking to the agent at {}", self.socket.display()))?;
        Ok((response, connection))
    }

    /// Sends a request; an answer that is not a success is a [`Refused`]. It must begin in time, and may then last.
    pub(crate) async fn request(&self, method: Method, path: &str, accept: &str, body: Body) -> anyhow::Result<Answer> {
        self.in_time(self.ask(method, path, accept, body)).await
    }

    /// As [`Client::request`], for what takes its time: unless told otherwise, the agent must only be alive.
    pub(crate) async fn request_long(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Body,
    ) -> anyhow::Result<Answer> {
        if self.limit.is_some() {
            return self.request(method, path, accept, body).await;
        }
        drop(self.request(Method::GET, "/livez", "*/*", empty()).await?);
        self.ask(method, path, accept, body).await
    }

    async fn ask(&self, method: Method, path: &str, accept: &str, body: Body) -> anyhow::Result<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, JSON)
            .body(body)?;
        let (response, connection) = self.send(request).await?;
        let code = response.status();
        let answer = Answer { body: response.into_body(), _connection: connection };
        if code.is_success() {
            return Ok(answer);
        }
        Err(refused(code, &answer.bytes().await?).into())
    }

    /// Gets one document.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.get_as(path, JSON).await
    }

    /// Gets one document in another form.
    pub(crate) async fn get_as<T: DeserializeOwned>(&self, path: &str, accept: &str) -> anyhow::Result<T> {
        self.in_time(async { self.ask(Method::GET, path, accept, empty()).await?.json().await }).await
    }

    /// Posts a document and gets one back.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let body = full(serde_json::to_vec(body)?);
        self.in_time(async { self.ask(Method::POST, path, JSON, body).await?.json().await }).await
    }

    /// Opens a WebSocket with the channel protocol.
    pub(crate) async fn open(&self, path: &str) -> anyhow::Result<(Socket, Protocol)> {
        self.in_time(self.upgrade(path)).await
    }

    async fn upgrade(&self, path: &str) -> anyhow::Result<(Socket, Protocol)> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, generate_key())
            .header(SEC_WEBSOCKET_PROTOCOL, format!("{}, {}", Protocol::V5.name(), Protocol::V4.name()))
            .body(empty())?;
        let (response, connection) = self.send(request).await?;
        let code = response.status();
        if code != StatusCode::SWITCHING_PROTOCOLS {
            let answer = Answer { body: response.into_body(), _connection: connection };
            return Err(refused(code, &answer.bytes().await?).into());
        }
        let offered = response.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
        let protocol = Protocol::choose(offered.iter().filter_map(|value| value.to_str().ok()))
            .ok_or_else(|| anyhow!("the agent answered with an unknown stream protocol"))?;
        let upgraded = hyper::upgrade::on(response).await.context("opening a stream to the agent")?;
        connection.await.context("opening a stream to the agent")?;
        let limits = WebSocketConfig::default()
            .write_buffer_size(0)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(limits)).await;
        Ok((socket, protocol))
    }
}

impl Answer {
    /// The next piece of the body.
    pub(crate) async fn piece(&mut self) -> anyhow::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| gone(&error))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    async fn bytes(mut self) -> anyhow::Result<Bytes> {
        let mut all = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if all.len() + piece.len() > MAX_ANSWER_BYTES {
                bail!("the agent's answer is larger than {} MiB", MAX_ANSWER_BYTES >> 20);
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// The whole body as one document.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.bytes().await?).context("the agent's answer is not what this version expects")
    }

    /// The body as lines of JSON.
    pub(crate) fn lines(self) -> Lines {
        Lines { answer: self, buffer: BytesMut::new() }
    }
}

/// A body that is read line by line.
pub(crate) struct Lines {
    answer: Answer,
    buffer: BytesMut,
}

impl Lines {
    /// The next line; `None` at the end.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                let line =
                    serde_json::from_slice(&line).context("the agent's stream is not what this version expects")?;
                return Ok(Some(line));
            }
            match self.answer.piece().await? {
                Some(piece) if self.buffer.len() + piece.len() > MAX_LINE_BYTES => {
                    bail!("a line of the stream is too long")
                }
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

/// What a stream that breaks off means: the agent ends its streams when it stops, and cannot when it is killed, or when
/// what it reads for one turns out to be damaged.
pub(crate) fn gone(error: &impl fmt::Display) -> anyhow::Error {
    anyhow!("the agent went away, or broke off and says why in its log ({error})")
}

fn refused(code: StatusCode, body: &[u8]) -> Refused {
    let status: Status = serde_json::from_slice(body).unwrap_or_default();
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let message = status.message.unwrap_or_else(|| format!("the agent answered {code}"));
    // A message of one problem says it already.
    let causes =
        causes.into_iter().filter_map(|cause| cause.message).filter(|cause| !message.ends_with(cause.as_str()));
    Refused { code, causes: causes.collect(), message }
}

fn unreachable_agent(socket: &Path, error: &io::Error) -> anyhow::Error {
    let path = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
            "no agent answers at {path}: start one with `portreeve agent`, or name it with --run DIR or --socket PATH"
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!(
                "no permission to talk to the agent at {path}: run this as root, or as a member of the socket's group"
            )
        }
        io::ErrorKind::WouldBlock => anyhow!(
            "the agent at {path} takes no more connections: it hangs, or too many clients wait for it; see its log, \
             or start it again (containers keep running)"
        ),
        _ => anyhow!("talking to the agent at {path}: {error}"),
    }
}

/// Who it is that does not answer, and what can be done about it.
async fn silent_agent(socket: &Path, limit: Duration) -> anyhow::Error {
    let path = socket.display();
    // The kernel knows who listens there, also when nobody takes the connection.
    let peer = UnixStream::connect(socket).await.and_then(|stream| stream.peer_cred());
    let Some(pid) = peer.ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0) else {
        return anyhow!("the agent at {path} does not answer within {limit:?}");
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).map_or("unknown", str::trim);
    let advice = if state.starts_with(['T', 't']) {
        format!("`kill -CONT {pid}` lets it go on")
    } else {
        "it may be starting, or have much to do: give it longer (--request-timeout, 0 for no limit), see its log, or \
         start it again (containers keep running)"
            .to_owned()
    };
    anyhow!("the agent (pid {pid}, state {state}) at {path} does not answer within {limit:?}; {advice}")
}

/// No body.
pub(crate) fn empty() -> Body {
    full(Vec::new())
}

/// A body in one piece.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body that comes in pieces.
pub(crate) fn pieces(stream: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static) -> Body {
    use futures_util::TryStreamExt;
    BodyExt::boxed(StreamBody::new(stream.map_ok(Frame::data)))
}

/// Joins a path and a query, escaping the values.
pub(crate) fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let mut text = path.to_owned();
    for (index, (key, value)) in query.iter().enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(key);
        text.push('=');
        text.push_str(&escape(value));
    }
    text
}

/// Escapes what a path segment or a query value cannot hold.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_value_may_hold_anything() {
        let path = with_query("/p", &[("command", "a b&c=d/é"), ("tty", "1")]);
        assert_eq!(path, "/p?command=a%20b%26c%3Dd%2F%C3%A9&tty=1");
        assert!(path.parse::<http::Uri>().is_ok());
    }

    #[test]
    fn a_status_with_causes_prints_each_on_its_line() {
        let status =
            br#"{"message":"2 problems","details":{"causes":[{"message":"a:1:2: error: x"},{"message":"b"}]}}"#;
        let refused = refused(StatusCode::UNPROCESSABLE_ENTITY, status);
        assert_eq!(refused.to_string(), "2 problems\n  a:1:2: error: x\n  b");
    }

    #[tokio::test]
    async fn an_agent_that_dies_is_said_to_have_gone_away() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let dies = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _head = stream.read(&mut request).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
        };
        let client = Client::new(socket, None);
        let reads = async {
            let mut answer = client.request(Method::GET, "/log", JSON, empty()).await.unwrap();
            assert_eq!(answer.piece().await.unwrap().unwrap(), "abc");
            format!("{:#}", answer.piece().await.unwrap_err())
        };
        let (error, ()) = tokio::join!(reads, dies);
        assert!(error.starts_with("the agent went away, or broke off and says why in its log ("), "{error}");
    }

    #[tokio::test]
    async fn an_absent_agent_is_said_with_what_to_do() {
        let client = Client::new("/nonexistent/portreeve.sock".into(), None);
        let error = client.get::<serde_json::Value>("/version").await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/portreeve.sock") && error.contains("portreeve agent"), "{error}");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_answer_is_named_with_its_state() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let _listens_and_takes_nobody = tokio::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(socket.clone(), Some(Duration::from_millis(20)));
        let errors = [
            client.get::<serde_json::Value>("/version").await.unwrap_err(),
            client.post::<serde_json::Value>("/plan", &()).await.unwrap_err(),
            client.request(Method::GET, "/log", JSON, empty()).await.err().unwrap(),
            client.request_long(Method::POST, "/drain", JSON, empty()).await.err().unwrap(),
            client.open("/exec").await.err().unwrap(),
        ];
        let begin = format!("the agent (pid {}, state ", std::process::id());
        for error in errors.map(|error| error.to_string()) {
            assert!(error.starts_with(&begin) && error.contains("--request-timeout"), "{error}");
            assert!(error.contains(&format!(" at {} does not answer within 20ms; ", socket.display())), "{error}");
        }
        // No limit at all.
        let client = Client::new(socket, Some(Duration::ZERO));
        let later = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(())
        };
        client.in_time(later).await.unwrap();
    }

    #[tokio::test]
    async fn a_document_must_be_whole_in_time_and_a_stream_must_only_begin() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let half = async {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                // Who only looks who listens sends nothing, and leaves.
                if stream.read(&mut [0; 4096]).await.unwrap() > 0 {
                    let part = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n";
                    stream.write_all(part).await.unwrap();
                    open.push(stream);
                }
            }
        };
        let limit = Duration::from_millis(500);
        let client = Client::new(socket, Some(limit));
        let asks = async {
            let error = client.get::<serde_json::Value>("/version").await.unwrap_err().to_string();
            assert!(error.contains("does not answer within"), "{error}");
            let mut answer = client.request(Method::GET, "/log", JSON, empty()).await.unwrap();
            assert_eq!(answer.piece().await.unwrap().unwrap(), "{");
            assert!(tokio::time::timeout(limit, answer.piece()).await.is_err(), "the stream has ended");
        };
        tokio::select! {
            () = asks => {}
            () = half => {}
        }
    }

    #[tokio::test]
    async fn what_takes_its_time_is_asked_of_an_agent_that_lives() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let lives = async {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                asked.push(String::from_utf8_lossy(&head[..read]).lines().next().unwrap_or_default().to_owned());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
            asked
        };
        let client = Client::new(socket, None);
        let (answer, asked) = tokio::join!(client.request_long(Method::POST, "/drain", JSON, empty()), lives);
        answer.unwrap();
        assert_eq!(asked, ["GET /livez HTTP/1.1", "POST /drain HTTP/1.1"]);
    }
}
