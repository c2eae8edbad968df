//! One request after the other: who asks, what goes wrong, who answers, what it comes to.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use tokio::sync::watch;

use super::Snapshot;
use super::call::Call;
use super::count::Tally;
use super::double::{Client, Double, Shape, of_root};
use super::fault::{Fault, Faults};
use super::status::{Body, BoxError, Refusal, json_answer, whole};
use super::upstream::{Upstream, User, gather};

/// Which reads a stale server answers from the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Those that ask for any moment, by `resourceVersion=0`: only these may be stale by the API's word.
    ThatMayBe,
    /// All gets and lists, as no API server does: what holds then holds whatever a cache between does.
    All,
}

/// What answers at a door.
#[derive(Debug)]
pub(super) struct Desk {
    double: Double,
    upstream: Upstream,
    user: User,
    /// The newest is the last.
    tokens: Mutex<Vec<String>>,
    pub(super) faults: Faults,
    pub(super) tally: Tally,
    past: Mutex<Option<(Snapshot, Reads)>>,
    /// Counts how often watches were ended.
    expiries: watch::Sender<usize>,
}

impl Desk {
    pub(super) fn new(double: Double, upstream: Upstream, user: User) -> Self {
        Self {
            double,
            upstream,
            user,
            tokens: Mutex::new(vec![new_token()]),
            faults: Faults::default(),
            tally: Tally::default(),
            past: Mutex::default(),
            expiries: watch::Sender::new(0),
        }
    }

    fn tokens(&self) -> MutexGuard<'_, Vec<String>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest token.
    pub(super) fn token(&self) -> String {
        self.tokens().last().cloned().unwrap_or_default()
    }

    /// Makes a newer one.
    pub(super) fn new_token(&self) -> String {
        let token = new_token();
        self.tokens().push(token.clone());
        token
    }

    pub(super) fn refuse_old_tokens(&self) {
        let mut tokens = self.tokens();
        let old = tokens.len().saturating_sub(1);
        tokens.drain(..old);
    }

    pub(super) fn expire_watches(&self) {
        self.expiries.send_modify(|expiries| *expiries += 1);
    }

    pub(super) fn serve_from(&self, past: Option<(Snapshot, Reads)>) {
        *self.past.lock().unwrap_or_else(PoisonError::into_inner) = past;
    }

    fn knows(&self, parts: &Parts) -> bool {
        let token = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        token.is_some_and(|token| self.tokens().iter().any(|known| known == token.trim()))
    }

    /// The moment that this request is answered from, where it is not now.
    fn past(&self, call: &Call) -> Option<Snapshot> {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, reads) = past.as_ref()?;
        let any = call.options.get("resourceVersion").is_some_and(|version| version == "0");
        let read = ["get", "list"].contains(&call.verb) && !call.plural.is_empty();
        (read && (any || *reads == Reads::All)).then(|| snapshot.clone())
    }

    /// Carries a request out. An error means that the client is to get no answer.
    async fn answer(&self, call: &Call, parts: &Parts, body: Bytes) -> anyhow::Result<Response<Body>> {
        let past = self.past(call);
        let stale = past.as_ref().map(|past| &past.double);
        if ["/api", "/apis"].contains(&call.path.trim_end_matches('/')) {
            return Ok(json_answer(StatusCode::OK, &of_root(&call.path, &self.upstream.groups().await?)));
        }
        if let Some(answer) = self.double.try_answer(call, &body, &client(parts), stale) {
            return Ok(answer);
        }
        match &past {
            Some(past) => self.upstream.recall(&past.revision, call, parts, &self.user).await,
            None => self.upstream.pass(parts, body, &self.user).await,
        }
    }
}

/// Serves a request of a client. An error makes its connection end without an answer.
pub(super) async fn serve(desk: Arc<Desk>, request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
    let begun = Instant::now();
    let call = Call::read(&request);
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let resource = call.resource();
    desk.tally.add(call.verb, &resource, |count| {
        count.requests += 1;
        count.received += body.len();
    });
    let mut lost = false;
    let mut refusal = (!desk.knows(&parts)).then(Refusal::unauthorized);
    for fault in desk.faults.meet(&call) {
        match fault {
            Fault::Slow(delay) => tokio::time::sleep(delay).await,
            Fault::Silence => std::future::pending().await,
            Fault::Cut => anyhow::bail!("a test wants the connection cut"),
            Fault::LostAnswer => lost = true,
            Fault::Gone if call.verb == "watch" && refusal.is_none() => return Ok(expired_watch()),
            Fault::Gone | Fault::Conflict | Fault::TooMany(_) | Fault::InternalError => {
                refusal = refusal.or_else(|| fault.refusal());
            }
        }
    }
    let answer = match refusal {
        Some(refusal) => refusal.answer(),
        None => desk.answer(&call, &parts, body).await?,
    };
    anyhow::ensure!(!lost, "a test wants the answer lost");
    if call.verb == "watch" && answer.status() == StatusCode::OK {
        return Ok(passed(&desk, &call, answer));
    }
    let (answer, length) = gather(answer).await?;
    desk.tally.add(call.verb, &resource, |count| {
        count.sent += length;
        count.latencies.push(begun.elapsed());
    });
    Ok(answer)
}

/// Serves a request of the API server behind, which needs a core API: by the double alone, without faults.
pub(super) async fn serve_core(double: Double, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let call = Call::read(&request);
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(Refusal::bad_request("the body has no end").answer()) };
    let answer = double.try_answer(&call, &body.to_bytes(), &client(&parts), None);
    Ok(answer.unwrap_or_else(|| Refusal::no_such_resource().answer()))
}

fn client(parts: &Parts) -> Client {
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let manager = header(USER_AGENT).split('/').next().unwrap_or_default();
    Client {
        manager: if manager.is_empty() { "unknown".into() } else { manager.into() },
        shape: Shape::accepted(header(ACCEPT)),
    }
}

/// A watch from a revision that is no longer kept: it begins, and says so.
fn expired_watch() -> Response<Body> {
    whole(StatusCode::OK, HeaderValue::from_static("application/json"), expiry())
}

fn expiry() -> Bytes {
    let status = Refusal::expired("too old resource version: a test wants it so").status();
    format!("{}\n", json!({ "type": "ERROR", "object": status })).into()
}

/// A watch's answer, counted as it goes, which ends when watches are ended.
fn passed(desk: &Arc<Desk>, call: &Call, answer: Response<Body>) -> Response<Body> {
    /// What is sent next.
    enum Next {
        Frame(Result<Frame<Bytes>, BoxError>),
        Expiry,
        End,
    }
    let (parts, body) = answer.into_parts();
    let mut expiries = desk.expiries.subscribe();
    expiries.mark_unchanged();
    let desk = Arc::clone(desk);
    let (verb, resource) = (call.verb, call.resource());
    // Nothing is put into the middle of an event.
    let state = (body, expiries, true, false);
    let stream = futures_util::stream::unfold(state, move |(mut body, mut expiries, whole, ended)| {
        let (desk, resource) = (Arc::clone(&desk), resource.clone());
        async move {
            let next = tokio::select! {
                _ = std::future::ready(()), if ended => Next::End,
                // cancel-safe: that it changed stays so until it is seen.
                Ok(()) = expiries.changed(), if whole && !ended => Next::Expiry,
                // cancel-safe: a frame is taken whole or not at all.
                frame = body.frame(), if !ended => frame.map_or(Next::End, Next::Frame),
            };
            let (frame, ended) = match next {
                Next::Frame(frame) => (frame, false),
                Next::Expiry => (Ok(Frame::data(expiry())), true),
                Next::End => return None,
            };
            let data = frame.as_ref().ok().and_then(Frame::data_ref);
            let whole = data.map_or(whole, |data| data.ends_with(b"\n"));
            desk.tally.add(verb, &resource, |count| count.sent += data.map_or(0, Bytes::len));
            Some((frame, (body, expiries, whole, ended)))
        }
    });
    Response::from_parts(parts, StreamBody::new(stream).boxed_unsync())
}

/// A word that nobody guesses.
fn new_token() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel makes UUIDs");
    format!("token-{}", uuid.trim())
}
