//! Get, List and Watch of the objects in `v1`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, NamespaceStatus, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta};
use portreeve_node::{Listed, ObjectName, Watch, WatchError};
use serde_json::{Value, json};

use crate::app::App;
use crate::backend::{Backend, Signal};
use crate::failure::Failure;
use crate::mirror::{Changes, changes};
use crate::own::take_heartbeats;
use crate::params::Params;
use crate::selector::{FieldSelector, LabelSelector};
use crate::table::{Form, Row, table};
use crate::version::{Wanted, check_watch, version};
use crate::watch::{self, Start};

/// The most objects one answer holds when a client asks for a limit.
const MAX_LIMIT: u64 = 10_000;

/// A kind that can be listed and watched.
pub(crate) trait Resource: Row + Clone + PartialEq + Send + Sync + 'static {
    const KIND: &'static str;
    const API_VERSION: &'static str = "v1";
    /// The plural name in paths and messages.
    const PLURAL: &'static str;
    /// The fields that a selector may name.
    const FIELDS: &'static [&'static str] = &["metadata.name"];
    fn identity(&self) -> Identity<'_>;
    /// A field that is not of the identity.
    fn field(&self, _path: &str) -> String {
        String::new()
    }
    fn list(app: &App) -> Result<Listed<Self>, Failure>;
    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure>;
}

/// What every object has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) labels: Option<&'a BTreeMap<String, String>>,
    pub(crate) version: &'a str,
}

impl<'a> From<&'a ObjectMeta> for Identity<'a> {
    fn from(metadata: &'a ObjectMeta) -> Self {
        Identity {
            namespace: metadata.namespace.as_deref(),
            name: metadata.name.as_deref().unwrap_or_default(),
            uid: metadata.uid.as_deref().unwrap_or_default(),
            labels: metadata.labels.as_ref(),
            version: metadata.resource_version.as_deref().unwrap_or_default(),
        }
    }
}

impl<'a> Identity<'a> {
    /// The order of a list, and where it goes on.
    fn place(self) -> (&'a str, &'a str) {
        (self.namespace.unwrap_or_default(), self.name)
    }
}

fn field_of<T: Resource>(object: &T, path: &str) -> String {
    let identity = object.identity();
    match path {
        "metadata.name" => identity.name.to_owned(),
        "metadata.namespace" => identity.namespace.unwrap_or_default().to_owned(),
        "metadata.uid" => identity.uid.to_owned(),
        path => object.field(path),
    }
}

impl Resource for Pod {
    const KIND: &'static str = "Pod";
    const PLURAL: &'static str = "pods";
    const FIELDS: &'static [&'static str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.hostNetwork",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ];

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn field(&self, path: &str) -> String {
        let (spec, status) = (self.spec.as_ref(), self.status.as_ref());
        match path {
            "spec.hostNetwork" => {
                return spec.and_then(|spec| spec.host_network).unwrap_or_default().to_string();
            }
            "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
            "spec.restartPolicy" => spec.and_then(|spec| spec.restart_policy.clone()),
            "spec.schedulerName" => spec.and_then(|spec| spec.scheduler_name.clone()),
            "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
            "status.phase" => status.and_then(|status| status.phase.clone()),
            "status.podIP" => status.and_then(|status| status.pod_ip.clone()),
            _ => None,
        }
        .unwrap_or_default()
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        Ok(app.backend.pods())
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        Ok(changes(app.backend.watch_pods(Some(since))?))
    }
}

impl Resource for Event {
    const KIND: &'static str = "Event";
    const PLURAL: &'static str = "events";
    const FIELDS: &'static [&'static str] = &[
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.resourceVersion",
        "involvedObject.uid",
        "metadata.name",
        "metadata.namespace",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ];

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn field(&self, path: &str) -> String {
        let object = &self.involved_object;
        match path {
            "involvedObject.apiVersion" => object.api_version.clone(),
            "involvedObject.fieldPath" => object.field_path.clone(),
            "involvedObject.kind" => object.kind.clone(),
            "involvedObject.name" => object.name.clone(),
            "involvedObject.namespace" => object.namespace.clone(),
            "involvedObject.resourceVersion" => object.resource_version.clone(),
            "involvedObject.uid" => object.uid.clone(),
            "reason" => self.reason.clone(),
            "reportingComponent" => self.reporting_component.clone(),
            "source" => self.source.as_ref().and_then(|source| source.component.clone()),
            "type" => self.type_.clone(),
            _ => None,
        }
        .unwrap_or_default()
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        Ok(app.backend.events())
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        Ok(changes(app.backend.watch_events(Some(since))?))
    }
}

impl Resource for ConfigMap {
    const KIND: &'static str = "ConfigMap";
    const PLURAL: &'static str = "configmaps";
    const FIELDS: &'static [&'static str] = &["metadata.name", "metadata.namespace"];

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        Ok(app.backend.config_maps())
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        Ok(changes(app.backend.watch_config_maps(Some(since))?))
    }
}

impl Resource for Node {
    const KIND: &'static str = "Node";
    const PLURAL: &'static str = "nodes";
    const FIELDS: &'static [&'static str] = &["metadata.name", "spec.unschedulable"];

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn field(&self, path: &str) -> String {
        match path {
            "spec.unschedulable" => {
                self.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default().to_string()
            }
            _ => String::new(),
        }
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        let mut machines = app.mirrors.machine.list()?;
        // The list changes with the machine; that it lives is told at every look.
        let now = app.backend.machine();
        for machine in &mut machines.items {
            take_heartbeats(Arc::make_mut(machine), &now);
        }
        Ok(machines)
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        Ok(app.mirrors.machine.watch(since, app.backend.machine_changes())?)
    }
}

impl Resource for Namespace {
    const KIND: &'static str = "Namespace";
    const PLURAL: &'static str = "namespaces";
    const FIELDS: &'static [&'static str] = &["metadata.name", "status.phase"];

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn field(&self, path: &str) -> String {
        match path {
            "status.phase" => "Active".to_owned(),
            _ => String::new(),
        }
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        Ok(app.mirrors.namespaces.list()?)
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        let pods = stirs(&app.backend, |backend| backend.watch_pods(None))?;
        let maps = stirs(&app.backend, |backend| backend.watch_config_maps(None))?;
        Ok(app.mirrors.namespaces.watch(since, stream::select(pods, maps).boxed())?)
    }
}

/// Wakes at every change of a list; falling behind is no reason to sleep.
fn stirs<T: Clone + PartialEq + Send + Sync + 'static>(
    backend: &Arc<dyn Backend>,
    begin: fn(&dyn Backend) -> Result<Watch<T>, WatchError>,
) -> Result<Signal, WatchError> {
    let state = (begin(backend.as_ref())?, Arc::clone(backend));
    let stirs = stream::unfold(state, move |(mut watch, backend)| async move {
        if watch.next().await?.is_err() {
            watch = begin(backend.as_ref()).ok()?;
        }
        Some(((), (watch, backend)))
    });
    Ok(stirs.boxed())
}

/// A namespace is where a pod or a ConfigMap is; `default` always is.
pub(crate) fn namespaces_of(backend: &dyn Backend) -> Vec<Namespace> {
    let mut names = BTreeSet::from(["default".to_owned()]);
    names.extend(backend.pods().items.iter().filter_map(|pod| pod.metadata.namespace.clone()));
    names.extend(backend.config_maps().items.iter().filter_map(|map| map.metadata.namespace.clone()));
    let namespace = |name: String| {
        let labels = [("kubernetes.io/metadata.name".to_owned(), name.clone())].into();
        Namespace {
            metadata: ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() },
            status: Some(NamespaceStatus { phase: Some("Active".to_owned()), ..NamespaceStatus::default() }),
            ..Namespace::default()
        }
    };
    names.into_iter().map(namespace).collect()
}

/// What of a kind a client asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    namespace: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Query {
    fn of<T: Resource>(params: &Params, namespace: Option<String>) -> Result<Query, Failure> {
        Ok(Query {
            namespace,
            labels: LabelSelector::parse(params.get("labelSelector").unwrap_or_default())?,
            fields: FieldSelector::parse(params.get("fieldSelector").unwrap_or_default(), T::FIELDS)?,
        })
    }

    /// Whether an object is among what was asked for.
    pub(crate) fn selects<T: Resource>(&self, object: &T) -> bool {
        let identity = object.identity();
        let here = self.namespace.is_none() || self.namespace.as_deref() == identity.namespace;
        here && self.labels.matches(identity.labels) && self.fields.matches(|path| field_of(object, path))
    }
}

pub(crate) fn collection<T: Resource>(
    app: &App,
    headers: &HeaderMap,
    params: &Params,
    namespace: Option<String>,
) -> Result<Response, Failure> {
    let query = Query::of::<T>(params, namespace)?;
    let form = Form::of(headers, params)?;
    if params.flag("watch")? {
        return follow::<T>(app, params, query, form);
    }
    let wanted = Wanted::of_list(params)?;
    let listed = T::list(app)?;
    wanted.check(listed.resource_version, |version| T::watch(app, version).is_ok())?;
    let mut items: Vec<Arc<T>> = listed.items.into_iter().filter(|item| query.selects(item.as_ref())).collect();
    let mut metadata = json!({ "resourceVersion": listed.resource_version.to_string() });
    if let Some(after) = params.text("continue") {
        let after =
            after.split_once('/').ok_or_else(|| Failure::bad_request("continue: not a token of this server"))?;
        items.retain(|item| item.identity().place() > after);
    }
    if let Some(limit) = params.number("limit")?.filter(|limit| *limit > 0) {
        let limit = usize::try_from(limit.min(MAX_LIMIT)).unwrap_or(usize::MAX);
        let rest = items.len().saturating_sub(limit);
        items.truncate(limit);
        if let (true, Some(last), Some(fields)) = (rest > 0, items.last(), metadata.as_object_mut()) {
            let (namespace, name) = last.identity().place();
            fields.insert("continue".to_owned(), format!("{namespace}/{name}").into());
            fields.insert("remainingItemCount".to_owned(), rest.into());
        }
    }
    Ok(match form {
        Form::Objects => Json(json!({
            "kind": format!("{}List", T::KIND),
            "apiVersion": T::API_VERSION,
            "metadata": metadata,
            "items": items.iter().map(Arc::as_ref).collect::<Vec<&T>>(),
        }))
        .into_response(),
        Form::Table(include) => {
            let items = items.iter().map(Arc::as_ref);
            Json(table(items, include, true, &metadata, Timestamp::now())).into_response()
        }
    })
}

fn follow<T: Resource>(app: &App, params: &Params, query: Query, form: Form) -> Result<Response, Failure> {
    check_watch(params)?;
    let since = version(params)?;
    let initial_asked = params.flag("sendInitialEvents")?;
    let bookmarks = params.flag("allowWatchBookmarks")?;
    let life = params.number("timeoutSeconds")?.filter(|life| *life > 0).map(Duration::from_secs);
    let (initial, version) = match since {
        Some(since) if !initial_asked => (Vec::new(), since),
        _ => {
            let listed = T::list(app)?;
            (listed.items, listed.resource_version)
        }
    };
    let start = Start {
        initial,
        mark_initial: initial_asked && bookmarks,
        version,
        // As the API server has it: once the options are read, what fails is told in the stream.
        changes: T::watch(app, version),
    };
    Ok(watch::respond(start, query, form, life, bookmarks, app.stop.clone()))
}

pub(crate) fn single<T: Resource>(
    app: &App,
    headers: &HeaderMap,
    params: &Params,
    namespace: Option<&str>,
    name: &str,
) -> Result<Response, Failure> {
    let form = Form::of(headers, params)?;
    let listed = T::list(app)?;
    if let Some(asked) = version(params)? {
        Wanted::NotOlderThan(asked).check(listed.resource_version, |version| T::watch(app, version).is_ok())?;
    }
    let found = listed.items.iter().find(|item| {
        let identity = item.identity();
        identity.name == name && (namespace.is_none() || identity.namespace == namespace)
    });
    let item = found.ok_or_else(|| Failure::not_found(T::PLURAL, name))?;
    Ok(match form {
        Form::Objects => Json(item.as_ref()).into_response(),
        Form::Table(include) => {
            let metadata = json!({ "resourceVersion": item.identity().version });
            Json(table([item.as_ref()], include, true, &metadata, Timestamp::now())).into_response()
        }
    })
}

pub(crate) type Answered = Result<Response, Failure>;

macro_rules! doors {
    ($kind:ty: $all:ident, $in_namespace:ident, $one:ident) => {
        pub(crate) async fn $all(State(app): State<App>, headers: HeaderMap, params: Params) -> Answered {
            collection::<$kind>(&app, &headers, &params, None)
        }

        pub(crate) async fn $in_namespace(
            State(app): State<App>,
            Path(namespace): Path<String>,
            headers: HeaderMap,
            params: Params,
        ) -> Answered {
            collection::<$kind>(&app, &headers, &params, Some(namespace))
        }

        pub(crate) async fn $one(
            State(app): State<App>,
            Path((namespace, name)): Path<(String, String)>,
            headers: HeaderMap,
            params: Params,
        ) -> Answered {
            single::<$kind>(&app, &headers, &params, Some(&namespace), &name)
        }
    };
    ($kind:ty: $all:ident, $one:ident) => {
        pub(crate) async fn $all(State(app): State<App>, headers: HeaderMap, params: Params) -> Answered {
            collection::<$kind>(&app, &headers, &params, None)
        }

        pub(crate) async fn $one(
            State(app): State<App>,
            Path(name): Path<String>,
            headers: HeaderMap,
            params: Params,
        ) -> Answered {
            single::<$kind>(&app, &headers, &params, None, &name)
        }
    };
}

pub(crate) use doors;

doors!(Pod: pods, namespaced_pods, pod);
doors!(Event: events, namespaced_events, event);
doors!(ConfigMap: config_maps, namespaced_config_maps, config_map);
doors!(Node: nodes, node);
doors!(Namespace: namespaces, namespace);

/// Removes the manifest of a pod that `apply` wrote; the pod as it was is the answer.
pub(crate) async fn delete_pod(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    params: Params,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Failure> {
    let body = body.map_err(|error| Failure::too_large(error.to_string()))?;
    let options = delete_options(&params, &body)?;
    let pods = app.backend.pods();
    let pod = pods
        .items
        .iter()
        .find(|pod| pod.identity().place() == (namespace.as_str(), name.as_str()))
        .ok_or_else(|| Failure::not_found("pods", &name))?;
    check_deletion(&options, pod.identity())?;
    let object = ObjectName { kind: "Pod".to_owned(), namespace, name };
    if let [absent] = app.backend.delete(vec![object]).await?.absent.as_slice() {
        return Err(Failure::not_found("pods", &absent.name));
    }
    serde_json::to_value(pod.as_ref()).map(Json).map_err(|error| Failure::internal(error.to_string()))
}

/// As the API server has it: the body's, or the query's where there is no body.
fn delete_options(params: &Params, body: &[u8]) -> Result<DeleteOptions, Failure> {
    if !body.is_empty() {
        return serde_json::from_slice(body).map_err(|error| Failure::bad_request(format!("request body: {error}")));
    }
    let grace_period_seconds =
        params.number("gracePeriodSeconds")?.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX));
    let dry_run = Some(params.all("dryRun")).filter(|stages| !stages.is_empty());
    Ok(DeleteOptions { dry_run, grace_period_seconds, ..DeleteOptions::default() })
}

/// What cannot be done as it is asked for is not done at all.
fn check_deletion(options: &DeleteOptions, pod: Identity<'_>) -> Result<(), Failure> {
    if options.dry_run.as_ref().is_some_and(|stages| !stages.is_empty()) {
        return Err(Failure::bad_request("dryRun: a deletion cannot be tried here; ask for it without"));
    }
    if options.grace_period_seconds.is_some_and(|seconds| seconds >= 0) {
        return Err(Failure::bad_request(
            "gracePeriodSeconds: a pod ends within the grace period that its manifest gives it; apply a smaller \
             terminationGracePeriodSeconds first (that costs nothing), then delete without it",
        ));
    }
    let wanted = options.preconditions.clone().unwrap_or_default();
    let other =
        |wanted: &Option<String>, found: &str| wanted.as_deref().filter(|wanted| *wanted != found).map(str::to_owned);
    match (other(&wanted.uid, pod.uid), other(&wanted.resource_version, pod.version)) {
        (Some(uid), _) => Err(Failure::conflict(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            pod.uid
        ))),
        (None, Some(version)) => Err(Failure::conflict(format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            pod.version
        ))),
        (None, None) => Ok(()),
    }
}
