//! A client of the socket, as small as a test needs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use portreeve_api::channel::{Frame, Protocol};
use portreeve_api::{Backend, Config, Doors};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use crate::fake::Fake;

/// Doors in a directory of their own, served until this is dropped.
pub(crate) struct House {
    pub(crate) fake: Arc<Fake>,
    pub(crate) socket: PathBuf,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) served: tokio::task::JoinHandle<()>,
    pub(crate) directory: tempfile::TempDir,
}

/// Longer than anything here takes; a test that hangs fails by it.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it should not take that long")
}

impl House {
    pub(crate) async fn open() -> House {
        House::with(1000, 512).await
    }

    pub(crate) async fn with_ring(ring: usize) -> House {
        House::with(ring, 512).await
    }

    pub(crate) async fn with(ring: usize, max_sessions: usize) -> House {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::new(directory.path().to_owned(), ring);
        House::serve(directory, fake.clone(), fake, max_sessions).await
    }

    /// The doors of another house; its fake stands behind nothing.
    pub(crate) async fn of(backend: Arc<dyn Backend>) -> House {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::new(directory.path().to_owned(), 1);
        House::serve(directory, fake, backend, 512).await
    }

    async fn serve(
        directory: tempfile::TempDir,
        fake: Arc<Fake>,
        backend: Arc<dyn Backend>,
        max_sessions: usize,
    ) -> House {
        let mut config = Config::new(directory.path().join("portreeve.sock"));
        config.max_sessions = max_sessions;
        House::configured(directory, fake, backend, config).await
    }

    /// Doors with few places.
    pub(crate) async fn with_places(max_connections: usize) -> House {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::new(directory.path().to_owned(), 1);
        let mut config = Config::new(directory.path().join("portreeve.sock"));
        config.max_connections = max_connections;
        House::configured(directory, fake.clone(), fake, config).await
    }

    async fn configured(
        directory: tempfile::TempDir,
        fake: Arc<Fake>,
        backend: Arc<dyn Backend>,
        mut config: Config,
    ) -> House {
        config.listen = Some("127.0.0.1:0".parse().unwrap());
        let doors = Doors::bind(&config).await.unwrap();
        let address = doors.listen_address().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(doors.serve(backend, stop.clone()));
        House { fake, socket: config.socket, address, stop, served, directory }
    }

    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        in_time(sender.send_request(request)).await.unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: impl Into<Bytes>,
    ) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("accept", accept)
            .body(Full::new(body.into()))
            .unwrap();
        let response = self.request(request).await;
        let status = response.status();
        let body = in_time(response.into_body().collect()).await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        (status, serde_json::from_slice(&body).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, "application/json", "").await
    }

    /// A body that is read line by line.
    pub(crate) async fn lines(&self, path: &str, accept: &str) -> Lines {
        let request = Request::builder()
            .uri(path)
            .header("host", "localhost")
            .header("accept", accept)
            .body(Full::default())
            .unwrap();
        let response = self.request(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        Lines { body: response.into_body(), buffer: BytesMut::new() }
    }

    /// A WebSocket that offers these protocols.
    pub(crate) async fn open_socket(&self, path: &str, offers: &str) -> Result<Channels, (StatusCode, Value)> {
        let request = Request::builder()
            .uri(path)
            .header("host", "localhost")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", offers)
            .body(Full::default())
            .unwrap();
        let response = self.request(request).await;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = response.into_body().collect().await.unwrap().to_bytes();
            return Err((status, serde_json::from_slice(&body).unwrap_or_default()));
        }
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let chosen = response.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned();
        let protocol = Protocol::choose([chosen.as_str()]).unwrap();
        let upgraded = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        Ok(Channels { socket: WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await, protocol })
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line as JSON, or as text; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                return Some(serde_json::from_slice(&line).unwrap_or(Value::String(text)));
            }
            let frame = in_time(self.body.frame()).await?.unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }
}

pub(crate) struct Channels {
    pub(crate) socket: WebSocketStream<TokioIo<Upgraded>>,
    pub(crate) protocol: Protocol,
}

impl Channels {
    pub(crate) async fn send(&mut self, channel: u8, payload: &'static [u8]) {
        let frame = Frame::Bytes { channel, payload: Bytes::from_static(payload) };
        self.socket.send(Message::Binary(frame.encode())).await.unwrap();
    }

    pub(crate) async fn end(&mut self, channel: u8) {
        self.socket.send(Message::Binary(Frame::End { channel }.encode())).await.unwrap();
    }

    /// Everything until the close, joined by channel.
    pub(crate) async fn rest(&mut self) -> std::collections::BTreeMap<u8, Vec<u8>> {
        let mut channels = std::collections::BTreeMap::<u8, Vec<u8>>::new();
        while let Some(message) = in_time(self.socket.next()).await {
            match message.unwrap() {
                Message::Binary(bytes) => {
                    if let Frame::Bytes { channel, payload } = Frame::decode(self.protocol, bytes).unwrap() {
                        channels.entry(channel).or_default().extend_from_slice(&payload);
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        channels
    }
}
