//! What the API server for custom resources lacks of a complete one: Secrets, ConfigMaps, Leases, Events, Nodes and
//! Namespaces, in memory, by the conventions of the API.
//!
//! ```text
//! kinds      what there is, and how each kind differs
//! store      objects, revisions, changes
//! list       lists, their pages, watches
//! selector   which of them
//! write      create, update, patch, delete
//! defaults   what the API fills in
//! fields     who owns which field: server-side apply
//! discovery  what clients ask first
//! ```
//!
//! It has no controllers: nothing fills a namespace, collects what an owner has left, or expires an Event. It validates no
//! more than metadata, knows no strategic merge patch and no JSON patch, and speaks JSON alone: clients in Go that send
//! protobuf are refused with 415.

mod defaults;
mod discovery;
mod fields;
mod kinds;
mod list;
mod selector;
mod store;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

pub(super) use self::discovery::{Discovered, groups, of_root};
pub(super) use self::kinds::Kind;
use self::store::{Decision, Frozen, Key, Store};
use super::call::Call;
use super::status::{Body, Refusal, json_answer};

/// The double's objects at one moment.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    revision: u64,
    objects: Frozen,
}

/// The double.
#[derive(Debug, Clone)]
pub(super) struct Double {
    store: Arc<Store>,
}

impl Double {
    /// One that has the namespaces that every cluster has.
    pub(super) fn new() -> Self {
        let double = Self { store: Arc::new(Store::new()) };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            let call = Call {
                verb: "create",
                version: "v1".into(),
                plural: "namespaces".into(),
                content_type: "application/json".into(),
                ..Call::default()
            };
            double
                .answer(&call, namespace.to_string().as_bytes(), &Client::default(), None)
                .expect("a new store takes it");
        }
        double
    }

    /// Everything as it is now.
    pub(super) fn freeze(&self) -> Snapshot {
        let (revision, objects) = self.store.freeze();
        Snapshot { revision, objects }
    }

    /// Forgets what has changed so far.
    pub(super) fn compact(&self) {
        self.store.compact();
    }

    /// Answers a request for a resource that is the double's; nothing for another's.
    pub(super) fn try_answer(
        &self,
        call: &Call,
        body: &Bytes,
        client: &Client,
        stale: Option<&Snapshot>,
    ) -> Option<Response<Body>> {
        if let Some(document) = discovery::of_version(&call.path) {
            return Some(json_answer(StatusCode::OK, &document));
        }
        if let Some(document) = review(call, body) {
            return Some(json_answer(StatusCode::CREATED, &document));
        }
        let ours = call.group.is_empty() || groups().any(|(group, _)| group == call.group);
        if call.plural.is_empty() || !ours {
            return None;
        }
        Some(self.answer(call, body, client, stale).unwrap_or_else(|refusal| refusal.answer()))
    }

    fn answer(
        &self,
        call: &Call,
        body: &[u8],
        client: &Client,
        stale: Option<&Snapshot>,
    ) -> Result<Response<Body>, Refusal> {
        let kind = Kind::find(&call.group, &call.version, &call.plural).ok_or_else(Refusal::no_such_resource)?;
        if !(call.sub.is_empty() || kind.has_status && call.sub == "status") {
            return Err(Refusal::no_such_resource());
        }
        match call.verb {
            "list" => list::list(&self.store, kind, call, client.shape, stale),
            "watch" => list::watch(&self.store, kind, call, client.shape),
            "get" => {
                let key = (call.namespace.clone(), call.name.clone());
                let found = match stale {
                    Some(snapshot) => {
                        snapshot.objects.get(&kind.resource()).and_then(|objects| objects.get(&key)).cloned()
                    }
                    None => self.store.get(kind, &key),
                };
                let object = found.ok_or_else(|| Refusal::not_found(kind, &call.name))?;
                Ok(json_answer(StatusCode::OK, &client.shape.of(&object)))
            }
            _ => write::write(&self.store, kind, call, body, client),
        }
    }
}

/// What of a client's headers decides an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Client {
    /// Who it says it is: User-Agent up to the first slash.
    pub(super) manager: String,
    /// What it wants to see of objects.
    pub(super) shape: Shape,
}

/// What of an object is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Shape {
    /// All.
    #[default]
    Whole,
    /// Its metadata alone: `as=PartialObjectMetadata` in the Accept header.
    Metadata,
}

impl Shape {
    /// That of an Accept header.
    pub(super) fn accepted(header: &str) -> Self {
        if header.contains("as=PartialObjectMetadata") { Self::Metadata } else { Self::Whole }
    }

    fn of(self, object: &Value) -> Value {
        match self {
            Self::Whole => object.clone(),
            Self::Metadata => {
                let metadata = &object["metadata"];
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
        }
    }

    /// Version and kind of an object.
    fn one(self, kind: &Kind) -> (String, String) {
        match self {
            Self::Whole => (kind.api_version(), kind.kind.to_owned()),
            Self::Metadata => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata".to_owned()),
        }
    }

    /// Version and kind of a list.
    fn list(self, kind: &Kind) -> (String, String) {
        let (version, kind) = self.one(kind);
        (version, format!("{kind}List"))
    }
}

/// May the user of a custom resource do this? All may: tests of what is allowed are for a complete API server.
fn review(call: &Call, body: &[u8]) -> Option<Value> {
    let asks = (call.verb, &*call.group, &*call.plural) == ("create", "authorization.k8s.io", "subjectaccessreviews");
    let mut review: Value = asks.then(|| serde_json::from_slice(body).ok())??;
    review["status"] = json!({ "allowed": true });
    Some(review)
}

/// The text at a JSON pointer; none is empty.
fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The time, as objects have it.
fn now() -> Value {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}
