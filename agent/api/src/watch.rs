//! `?watch=1`: one JSON document per line, as long as the client reads.
//!
//! Nothing runs ahead of the client: the next line is made when the last one is taken, from the
//! ring of changes that all watchers share. Who falls behind that ring, or comes with a version from before it, gets an
//! ERROR line with 410 and lists again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use portreeve_node::{Change, ChangeKind};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::mirror::Changes;
use crate::resources::{Query, Resource};
use crate::table::{Form, table};

/// How often a client that allows bookmarks learns the newest version.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts when the client does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);

struct Follower<T> {
    changes: Option<Changes<T>>,
    query: Query,
    form: Form,
    columns_sent: bool,
    waiting: VecDeque<Line<T>>,
    version: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    ends_at: Instant,
    stop: CancellationToken,
}

enum Line<T> {
    Object(&'static str, Arc<T>),
    Bookmark { initial_events_end: bool },
    Failed(Failure),
}

/// What a watch begins with.
pub(crate) struct Start<T> {
    /// Objects that are reported as added before any change.
    pub(crate) initial: Vec<Arc<T>>,
    /// A bookmark says where the initial ones end.
    pub(crate) mark_initial: bool,
    /// The version that the initial ones are of, or that the client has.
    pub(crate) version: u64,
    /// What happens from then on, or why that cannot be told.
    pub(crate) changes: Result<Changes<T>, Failure>,
}

/// The answer to a watch: an endless body.
pub(crate) fn respond<T: Resource>(
    start: Start<T>,
    query: Query,
    form: Form,
    life: Option<Duration>,
    bookmarks: bool,
    stop: CancellationToken,
) -> Response {
    let now = Instant::now();
    let mut waiting: VecDeque<Line<T>> = start
        .initial
        .into_iter()
        .filter(|object| query.selects(object.as_ref()))
        .map(|object| Line::Object("ADDED", object))
        .collect();
    if start.mark_initial {
        waiting.push_back(Line::Bookmark { initial_events_end: true });
    }
    let changes = match start.changes {
        Ok(changes) => Some(changes),
        Err(failure) => {
            waiting.push_back(Line::Failed(failure));
            None
        }
    };
    let follower = Follower {
        changes,
        query,
        form,
        columns_sent: false,
        waiting,
        version: start.version,
        bookmarks,
        next_bookmark: now + BOOKMARK_EVERY,
        ends_at: now + life.unwrap_or(DEFAULT_LIFE).min(DEFAULT_LIFE * 24),
        stop,
    };
    let lines = stream::unfold(follower, |mut follower| async move {
        follower.line().await.map(|line| (Ok::<Bytes, Infallible>(line), follower))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

impl<T: Resource> Follower<T> {
    async fn line(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.waiting.pop_front() {
                return Some(self.encode(line));
            }
            let changes = self.changes.as_mut()?;
            tokio::select! {
                // cancel-safe: nothing is taken
                () = self.stop.cancelled() => return None,
                // cancel-safe: a clock
                () = tokio::time::sleep_until(self.ends_at) => return None,
                // cancel-safe: a clock
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    self.waiting.push_back(Line::Bookmark { initial_events_end: false });
                }
                // cancel-safe: a batch that is not taken stays in the stream
                batch = changes.next() => match batch {
                    None => return None,
                    Some(Ok(batch)) => self.take(batch),
                    Some(Err(error)) => {
                        // This is the last line: what follows would have a gap.
                        self.changes = None;
                        self.waiting.push_back(Line::Failed(error.into()));
                    }
                },
            }
        }
    }

    fn take(&mut self, batch: Vec<Change<T>>) {
        for change in batch {
            self.version = change.resource_version;
            let is = self.query.selects(change.object.as_ref());
            let was = change.previous.as_ref().is_some_and(|previous| self.query.selects(previous.as_ref()));
            let word = match (change.kind, was, is) {
                (ChangeKind::Deleted, true, _) | (_, true, false) => "DELETED",
                (ChangeKind::Deleted, false, _) | (_, false, false) => continue,
                (_, false, true) => "ADDED",
                (_, true, true) => "MODIFIED",
            };
            self.waiting.push_back(Line::Object(word, change.object));
        }
    }

    fn encode(&mut self, line: Line<T>) -> Bytes {
        match line {
            Line::Object(word, object) => match self.form {
                Form::Objects => encode_line(word, object.as_ref()),
                Form::Table(include) => {
                    let metadata = json!({ "resourceVersion": object.identity().version });
                    let first = !std::mem::replace(&mut self.columns_sent, true);
                    let table = table([object.as_ref()], include, first, &metadata, Timestamp::now());
                    encode_line(word, &table)
                }
            },
            Line::Bookmark { initial_events_end } => encode_line("BOOKMARK", &self.bookmark::<T>(initial_events_end)),
            Line::Failed(failure) => encode_line("ERROR", &failure.status()),
        }
    }

    fn bookmark<K: Resource>(&self, initial_events_end: bool) -> Value {
        let mut metadata = json!({ "resourceVersion": self.version.to_string() });
        if initial_events_end && let Some(fields) = metadata.as_object_mut() {
            fields.insert("annotations".to_owned(), json!({ "k8s.io/initial-events-end": "true" }));
        }
        match self.form {
            Form::Objects => json!({ "kind": K::KIND, "apiVersion": K::API_VERSION, "metadata": metadata }),
            Form::Table(_) => json!({
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "columnDefinitions": null,
                "rows": [],
            }),
        }
    }
}

#[derive(Serialize)]
struct WatchLine<'a, T> {
    #[serde(rename = "type")]
    word: &'a str,
    object: &'a T,
}

fn encode_line<T: Serialize>(word: &str, object: &T) -> Bytes {
    let mut line = serde_json::to_vec(&WatchLine { word, object }).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
