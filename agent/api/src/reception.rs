//! Takes connections and serves each to its end: a place for every client, and a word for the one
//! that finds none.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
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
}

/// Where clients come from.
pub(crate) trait Entrance: Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next client that may come in.
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
            let mut place = Arc::clone(&self.places).try_acquire_owned();
            if place.is_err() && rank == Rank::Root {
                place = Arc::clone(&self.reserve).try_acquire_owned();
            }
            if let Ok(place) = place {
                let (router, stop) = (self.router.clone(), self.stop.clone());
                self.connections.spawn(async move {
                    converse(stream, router, stop).await;
                    drop(place);
                });
            } else if let Ok(turn) = Arc::clone(&self.refusals).try_acquire_owned() {
                self.connections.spawn(async move {
                    if tokio::time::timeout(REFUSING, refuse(stream)).await.is_err() {
                        debug!("a client that was turned away did not listen");
                    }
                    drop(turn);
                });
            }
        }
    }
}

/// Tells a client that every place is taken, in the words of the API server.
async fn refuse(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let body = concat!(
        r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
        r#""message":"too many connections to this agent are open; close some, or try again in a second","#,
        r#""reason":"TooManyRequests","details":{"retryAfterSeconds":1},"code":429}"#
    );
    let answer = format!(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // A request that was not read would reset the connection before the answer is.
    let mut request = [0; 4096];
    let heard = stream.read(&mut request).await;
    if let Err(error) = heard.and(stream.write_all(answer.as_bytes()).await).and(stream.shutdown().await) {
        debug!(%error, "a client that was turned away is gone");
    }
}

/// Serves one connection to its end, or until its present request is done once `stop` comes.
async fn converse<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER_BYTES);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
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
