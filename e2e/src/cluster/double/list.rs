//! Lists, their pages, and watches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use super::selector::Selector;
use super::store::{Change, Key, Objects, Store};
use super::{Kind, Shape, Snapshot};
use crate::cluster::call::Call;
use crate::cluster::status::{Body, BoxError, Refusal, json_answer};

/// As often as the API server sends them.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// How long a watch lasts that names no end.
const WATCH_LASTS: Duration = Duration::from_secs(30 * 60);

/// The revision that an option names; nothing for any.
fn revision(call: &Call) -> Result<Option<u64>, Refusal> {
    let asked = call.option("resourceVersion").filter(|text| *text != "0");
    let parsed = asked.map(|text| text.parse().map_err(|_| Refusal::bad_request(format!("Invalid value: {text:?}"))));
    parsed.transpose()
}

/// Answers a list; from a moment in the past where `stale` is given.
pub(super) fn list(
    store: &Store,
    kind: &Kind,
    call: &Call,
    shape: Shape,
    stale: Option<&Snapshot>,
) -> Result<Response<Body>, Refusal> {
    let selector = Selector::of(call, kind)?;
    let token = call.option("continue").map(read_token).transpose()?;
    let (revision, objects, after) = match (token, stale) {
        (Some((revision, after)), _) => {
            let gone =
                || Refusal::expired("The provided continue parameter is too old to display a consistent list result.");
            (revision, store.page(revision, kind).ok_or_else(gone)?, Some(after))
        }
        (None, Some(snapshot)) => {
            (snapshot.revision, snapshot.objects.get(&kind.resource()).cloned().unwrap_or_default(), None)
        }
        (None, None) => {
            let (current, objects) = store.all(kind);
            let asked = revision(call)?;
            if let Some(asked) = asked.filter(|asked| *asked > current) {
                return Err(Refusal::too_large(asked, current));
            }
            if asked.is_some_and(|asked| asked < current) && call.option("resourceVersionMatch") == Some("Exact") {
                return Err(Refusal::expired("The resourceVersion for the provided list is too old."));
            }
            (current, objects, None)
        }
    };
    let limit =
        call.option("limit").and_then(|text| text.parse().ok()).filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let chosen = |(key, object): &(&Key, &Arc<Value>)| {
        after.as_ref().is_none_or(|after| *key > after) && selector.matches(object)
    };
    let mut matching = objects.iter().filter(chosen);
    let page: Vec<_> = matching.by_ref().take(limit).collect();
    let remaining = matching.count();
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let (Some((last, _)), true) = (page.last(), remaining > 0) {
        store.keep_page(revision, kind, &objects);
        metadata["continue"] = write_token(revision, last).into();
        if !selector.selects() {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let items: Vec<_> = page.into_iter().map(|(_, object)| shape.of(object)).collect();
    let (api_version, name) = shape.list(kind);
    let list = json!({ "kind": name, "apiVersion": api_version, "metadata": metadata, "items": items });
    Ok(json_answer(StatusCode::OK, &list))
}

fn write_token(revision: u64, (namespace, name): &Key) -> String {
    URL_SAFE_NO_PAD.encode(format!("{revision}/{namespace}/{name}"))
}

fn read_token(token: &str) -> Result<(u64, Key), Refusal> {
    let read = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let [revision, namespace, name] = text.split('/').collect::<Vec<_>>().try_into().ok()?;
        Some((revision.parse().ok()?, (namespace.to_owned(), name.to_owned())))
    };
    read().ok_or_else(|| Refusal::bad_request("continue key is not valid"))
}

/// Answers a watch.
pub(super) fn watch(
    store: &Arc<Store>,
    kind: &'static Kind,
    call: &Call,
    shape: Shape,
) -> Result<Response<Body>, Refusal> {
    let selector = Selector::of(call, kind)?;
    // Before what is there is read: no change after that is missed.
    let news = store.subscribe();
    let initial = call.is_set("sendInitialEvents");
    if initial && call.option("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(Refusal::bad_request("sendInitialEvents needs resourceVersionMatch=NotOlderThan"));
    }
    let begin = revision(call)?;
    let current = store.revision();
    if let Some(asked) = begin.filter(|asked| *asked > current) {
        return Err(Refusal::too_large(asked, current));
    }
    let now = Instant::now();
    let lasts =
        call.option("timeoutSeconds").and_then(|text| text.parse().ok()).map_or(WATCH_LASTS, Duration::from_secs);
    let mut watch = Watch {
        store: Arc::clone(store),
        kind,
        selector,
        shape,
        news,
        lines: VecDeque::new(),
        revision: current,
        ends: now + lasts,
        bookmark: call.is_set("allowWatchBookmarks").then_some(now + BOOKMARK_EVERY),
        ended: false,
    };
    match begin {
        Some(begin) if !initial => watch.revision = begin,
        _ => watch.begin_with(store.all(kind), initial),
    }
    let stream = futures_util::stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(line)), watch))
    });
    let mut answer = Response::new(StreamBody::new(stream).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(answer)
}

/// A watch that goes on.
struct Watch {
    store: Arc<Store>,
    kind: &'static Kind,
    selector: Selector,
    shape: Shape,
    news: Receiver<u64>,
    /// What is to be sent.
    lines: VecDeque<Bytes>,
    /// Up to which all is sent or to be sent.
    revision: u64,
    ends: Instant,
    /// When the next one is due, where they are wanted.
    bookmark: Option<Instant>,
    ended: bool,
}

impl Watch {
    /// Everything that is there comes first, as if it had just been made.
    fn begin_with(&mut self, (revision, objects): (u64, Objects), marked: bool) {
        self.revision = revision;
        for object in objects.values().filter(|object| self.selector.matches(object)) {
            self.lines.push_back(line("ADDED", &self.shape.of(object)));
        }
        if marked && self.bookmark.is_some() {
            self.push_bookmark(true);
        }
    }

    fn push_bookmark(&mut self, initial: bool) {
        let mut metadata = json!({ "resourceVersion": self.revision.to_string(), "creationTimestamp": null });
        if initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let (api_version, kind) = self.shape.one(self.kind);
        self.lines
            .push_back(line("BOOKMARK", &json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata })));
    }

    /// The next line; nothing at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            self.news.mark_unchanged();
            let Some((revision, changes)) = self.store.changes(self.kind, self.revision) else {
                let message = format!("too old resource version: {}", self.revision);
                self.lines.push_back(line("ERROR", &Refusal::expired(message).status()));
                self.ended = true;
                continue;
            };
            for change in &changes {
                self.lines.extend(told(change, &self.selector, self.shape));
            }
            self.revision = revision;
            if !self.lines.is_empty() {
                continue;
            }
            tokio::select! {
                // cancel-safe: what has changed is asked of the store, not taken from here.
                changed = self.news.changed() => self.ended = changed.is_err(),
                // cancel-safe: a time.
                () = sleep_until(self.bookmark.unwrap_or(self.ends).min(self.ends)) => {
                    self.ended = Instant::now() >= self.ends;
                    if let Some(due) = &mut self.bookmark {
                        *due = Instant::now() + BOOKMARK_EVERY;
                        self.push_bookmark(false);
                    }
                }
            }
        }
    }
}

/// What a watch with this selector hears of a change: an object that no longer matches is gone for it.
fn told(change: &Change, selector: &Selector, shape: Shape) -> Option<Bytes> {
    let before = change.before.as_ref().is_some_and(|object| selector.matches(object));
    let after = !change.deleted && selector.matches(&change.after);
    match (before, after) {
        (false, true) => Some(line("ADDED", &shape.of(&change.after))),
        (true, true) => Some(line("MODIFIED", &shape.of(&change.after))),
        (true, false) => {
            // As it was when it still matched, at the revision of the change.
            let mut last = change.before.as_deref()?.clone();
            last["metadata"]["resourceVersion"] = change.revision.to_string().into();
            Some(line("DELETED", &shape.of(&last)))
        }
        (false, false) => None,
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({ "type": kind, "object": object })).into()
}
