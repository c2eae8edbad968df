//! Takes connections and serves each to its end: a place for every client, and a word for the one
//! that finds none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::{Request, Uri};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long to wait after an accept that failed for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most a connection buffers of a request's head, and of a response.
const BUFFER_BYTES: usize = 64 * 1024;
/// Places that only root gets, so that nobody else can lock root out.
const RESERVED: usize = 32;
/// Clients at a time that are told why they are turned away; further ones are only closed.
const REFUSALS: usize = 32;
/// How long telling one may take.
const REFUSING: Duration = Duration::from_secs(1);

/// Who a client is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rank {
    Root,
    Other,
    /// Not let in at all.
    Stranger,
}

/// Where clients come from.
pub(crate) trait Entrance: Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next client, and whether it may come in.
    ///
    /// # Cancel safety
    /// No client is lost when the future is dropped.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Rank)>> + Send;
}

impl Entrance for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Rank)> {
        Ok((self.accept().await?.0, Rank::Other))
    }
}

/// One listener's connections.
pub(crate) struct Reception {
    router: Router,
    connections: TaskTracker,
    places: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Reception {
    /// At most `max` connections at a time, and some more of root's.
    pub(crate) fn new(router: Router, connections: TaskTracker, max: usize, stop: CancellationToken) -> Self {
        let places = |number| Arc::new(Semaphore::new(number));
        Self { router, connections, places: places(max), reserve: places(RESERVED), refusals: places(REFUSALS), stop }
    }

    /// Serves whoever comes in until it is time to stop.
    pub(crate) async fn receive(&self, entrance: &impl Entrance) {
        loop {
            let accepted = tokio::select! {
                // cancel-safe: nothing was accepted
                () = self.stop.cancelled() => return,
                // cancel-safe: says its docstring
                accepted = entrance.next() => accepted,
            };
            let (stream, rank) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let places = match rank {
                Rank::Root => [Some(&self.places), Some(&self.reserve)],
                Rank::Other => [Some(&self.places), None],
                Rank::Stranger => [None, None],
            };
            let place = places.into_iter().flatten().find_map(|places| Arc::clone(places).try_acquire_owned().ok());
            if let Some(place) = place {
                let (router, stop) = (self.router.clone(), self.stop.clone());
                self.connections.spawn(async move {
                    converse(stream, router, stop).await;
                    drop(place);
                });
            } else if let Ok(turn) = Arc::clone(&self.refusals).try_acquire_owned() {
                self.connections.spawn(async move {
                    if tokio::time::timeout(REFUSING, refuse(stream, rank)).await.is_err() {
                        debug!("a client that was turned away did not listen");
                    }
                    drop(turn);
                });
            }
        }
    }
}

/// Tells a client why it is turned away, in the words of the API server.
async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin, rank: Rank) {
    let (head, body) = if rank == Rank::Stranger {
        let body = concat!(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
            r#""message":"this agent is root's; try again as root, or give the socket a group (socketGroup)","#,
            r#""reason":"Forbidden","details":{},"code":403}"#
        );
        ("403 Forbidden", body)
    } else {
        let body = concat!(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
            r#""message":"too many connections to this agent are open; close some, or try again in a second","#,
            r#""reason":"TooManyRequests","details":{"retryAfterSeconds":1},"code":429}"#
        );
        ("429 Too Many Requests\r\nRetry-After: 1", body)
    };
    let answer = format!(
        "HTTP/1.1 {head}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // A request that was not read would reset the connection before the answer is.
    let mut request = [0; 4096];
    let heard = stream.read(&mut request).await;
    if let Err(error) = heard.and(stream.write_all(answer.as_bytes()).await).and(stream.shutdown().await) {
        debug!(%error, "a client that was turned away is gone");
    }
}

/// A path means the same with a slash behind it, as for the API server.
fn without_last_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty())?;
    let path = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Serves one connection to its end, or until its present request is done once `stop` comes.
async fn converse<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // No other version: one that may be idle for ever would keep places from others.
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER_BYTES);
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        if let Some(uri) = without_last_slash(request.uri()) {
            *request.uri_mut() = uri;
        }
        router.call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        // cancel-safe: the connection is polled on below
        ended = connection.as_mut() => ended,
        // cancel-safe: nothing is lost
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}
