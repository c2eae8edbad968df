//! `/log`: a container's log, from the files the shim writes.
//!
//! ```text
//!   0.log.2  0.log.1  0.log      rotated ones are read first, so that a rotation hides nothing
//!                       ^ follow: inotify says when there is more, the pod's status when it is over
//! ```
//! Nothing is read before the client has taken what was read before.

mod file;
mod line;

use std::convert::Infallible;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use portreeve_node::{ContainerHandle, NamespacedName};
use rustix::fs::inotify;
use tokio::net::unix::pipe;
use tracing::debug;

use crate::app::App;
use crate::failure::Failure;
use crate::params::Params;

use file::Reader;
use line::{Streams, Style};

/// The most lines that a tail looks back for.
const MAX_TAIL_LINES: u64 = 10_000_000;

pub(crate) async fn log(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    params: Params,
) -> Result<Response, Failure> {
    let pod = NamespacedName::new(namespace, name);
    let style = style(&params, &pod.name)?;
    let tail = params.number("tailLines")?.map(|lines| lines.min(MAX_TAIL_LINES));
    let limit = match params.number("limitBytes")? {
        Some(0) => return Err(not_positive(&pod.name, "limitBytes")),
        limit => limit,
    };
    let previous = params.flag("previous")?;
    let follow = params.flag("follow")? && !previous;
    let name = params.text("container");
    let (path, container) = match app.backend.container(&pod, name, previous) {
        Ok(container) => (container.log_path.clone(), Some(container)),
        // What ended and was taken down still has its log, until its manifest goes.
        Err(_) => (app.backend.log_path(&pod, name, previous)?, None),
    };

    // Watched before the first byte is read: what is written in between is not missed.
    let growth = match follow {
        true => Some(watch_directory(&path).map_err(|error| unreadable(&pod, &path, &error))?),
        false => None,
    };
    let opened = path.clone();
    let reader = blocking(move || Reader::open(&opened, style, tail)).await;
    let reader = reader.map_err(|error| unreadable(&pod, &path, &error))?;
    let follower = Follower { app, container, path, reader: Some(reader), growth, left: limit };
    let chunks = stream::unfold(follower, |mut follower| async move {
        follower.chunk().await.map(|chunk| (Ok::<Bytes, Infallible>(chunk), follower))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

fn unreadable(pod: &NamespacedName, path: &FilePath, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        return Failure::bad_request(format!(
            "the container of pod \"{}\" has no log: it has not started yet, or its log was removed",
            pod.name
        ));
    }
    Failure::internal(format!("reading {}: {error}", path.display()))
}

/// In the API server's words.
fn not_positive(pod: &str, field: &str) -> Failure {
    Failure::invalid_option(
        "PodLogOptions",
        pod,
        field,
        "FieldValueInvalid",
        "Invalid value: 0: must be greater than 0",
    )
}

fn style(params: &Params, pod: &str) -> Result<Style, Failure> {
    let since = match (params.text("sinceTime"), params.number("sinceSeconds")?) {
        (Some(_), Some(_)) => {
            return Err(Failure::bad_request("at most one of sinceTime and sinceSeconds may be given"));
        }
        (Some(text), None) => Some(text.parse::<Timestamp>().map_err(|_| {
            let example = "2026-01-31T08:00:00Z or 2026-01-31T09:00:00+01:00";
            Failure::bad_request(format!("sinceTime: {text:?} is not a time such as {example} (RFC 3339)"))
        })?),
        (None, Some(0)) => return Err(not_positive(pod, "sinceSeconds")),
        (None, Some(seconds)) => Timestamp::now().checked_sub(Duration::from_secs(seconds)).ok(),
        (None, None) => None,
    };
    let streams = match params.text("stream") {
        None | Some("All") => Streams::All,
        Some("Stdout") => Streams::Stdout,
        Some("Stderr") => Streams::Stderr,
        Some(other) => return Err(Failure::bad_request(format!("stream: {other:?} is none of All, Stdout, Stderr"))),
    };
    Ok(Style { timestamps: params.flag("timestamps")?, since, streams })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

fn watch_directory(log: &FilePath) -> io::Result<pipe::Receiver> {
    let directory = log.parent().ok_or(io::ErrorKind::NotFound)?;
    let queue = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let events = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&queue, directory, events)?;
    // An inotify queue is read like a pipe, and this is the door to epoll that needs no `unsafe`.
    pipe::Receiver::from_owned_fd_unchecked(queue)
}

struct Follower {
    app: App,
    /// Absent when nothing writes any more.
    container: Option<ContainerHandle>,
    path: PathBuf,
    /// Absent once reading has failed or ended.
    reader: Option<Reader>,
    /// Present while following.
    growth: Option<pipe::Receiver>,
    /// Bytes the client still wants.
    left: Option<u64>,
}

impl Follower {
    async fn chunk(&mut self) -> Option<Bytes> {
        loop {
            // Asked before reading: the last words of a container that ends now are still read.
            let writing = self.growth.is_some() && self.writing();
            let mut reader = self.reader.take()?;
            let read = blocking(move || reader.read().map(|chunk| (chunk, reader))).await;
            let (chunk, reader) = match read {
                Ok(read) => read,
                Err(error) => {
                    debug!(path = %self.path.display(), %error, "log could not be read on");
                    return None;
                }
            };
            self.reader = Some(reader);
            if !chunk.is_empty() {
                return self.cut(chunk);
            }
            if !writing {
                return None;
            }
            self.more().await?;
        }
    }

    fn cut(&mut self, mut chunk: Vec<u8>) -> Option<Bytes> {
        let Some(left) = &mut self.left else { return Some(chunk.into()) };
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        if length >= *left {
            chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            self.reader = None;
        }
        *left = left.saturating_sub(length);
        (!chunk.is_empty()).then(|| chunk.into())
    }

    fn writing(&self) -> bool {
        let Some(container) = &self.container else { return false };
        let now = self.app.backend.container(&container.pod, Some(&container.container), false);
        now.is_ok_and(|now| now.running && now.id == container.id)
    }

    /// Waits until there may be more, or the container may have ended.
    async fn more(&mut self) -> Option<()> {
        let Ok(mut pods) = self.app.backend.watch_pods(None) else { return None };
        // It may have ended between the last look and this watch.
        if !self.writing() {
            return Some(());
        }
        let growth = self.growth.as_ref()?;
        tokio::select! {
            // cancel-safe: nothing is taken
            () = self.app.stop.cancelled() => None,
            // cancel-safe: says its doc; any change of a pod is a reason to look again
            changed = pods.next() => changed.map(|_| ()),
            // cancel-safe: readiness is kept
            ready = growth.readable() => {
                ready.ok()?;
                let mut events = [0u8; 4096];
                while growth.try_read(&mut events).is_ok_and(|read| read > 0) {}
                Some(())
            }
        }
    }
}
