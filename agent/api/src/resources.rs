//! Get, List and Watch of the objects in `v1`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, NamespaceStatus, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use portreeve_node::{Listed, ObjectName, Watch, WatchError};
use serde_json::{Value, json};

use crate::app::App;
use crate::backend::Backend;
use crate::failure::Failure;
use crate::params::Params;
use crate::selector::{FieldSelector, LabelSelector};
use crate::table::{Form, Row, table};
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
    const FIELDS: &'static [&'static str];
    fn metadata(&self) -> &ObjectMeta;
    fn field(&self, path: &str) -> String;
    fn list(backend: &dyn Backend) -> Listed<Self>;
    /// `None` where nothing changes while a client looks.
    fn watch(backend: &dyn Backend, since: Option<u64>) -> Option<Result<Watch<Self>, WatchError>>;
}

fn meta_field(metadata: &ObjectMeta, path: &str) -> String {
    match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        _ => None,
    }
    .unwrap_or_default()
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

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
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
            _ => return meta_field(&self.metadata, path),
        }
        .unwrap_or_default()
    }

    fn list(backend: &dyn Backend) -> Listed<Self> {
        backend.pods()
    }

    fn watch(backend: &dyn Backend, since: Option<u64>) -> Option<Result<Watch<Self>, WatchError>> {
        Some(backend.watch_pods(since))
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

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
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
            _ => return meta_field(&self.metadata, path),
        }
        .unwrap_or_default()
    }

    fn list(backend: &dyn Backend) -> Listed<Self> {
        backend.events()
    }

    fn watch(backend: &dyn Backend, since: Option<u64>) -> Option<Result<Watch<Self>, WatchError>> {
        Some(backend.watch_events(since))
    }
}

impl Resource for ConfigMap {
    const KIND: &'static str = "ConfigMap";
    const PLURAL: &'static str = "configmaps";
    const FIELDS: &'static [&'static str] = &["metadata.name", "metadata.namespace"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, path: &str) -> String {
        meta_field(&self.metadata, path)
    }

    fn list(backend: &dyn Backend) -> Listed<Self> {
        backend.config_maps()
    }

    fn watch(backend: &dyn Backend, since: Option<u64>) -> Option<Result<Watch<Self>, WatchError>> {
        Some(backend.watch_config_maps(since))
    }
}

impl Resource for Node {
    const KIND: &'static str = "Node";
    const PLURAL: &'static str = "nodes";
    const FIELDS: &'static [&'static str] = &["metadata.name", "spec.unschedulable"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, path: &str) -> String {
        match path {
            "spec.unschedulable" => {
                self.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default().to_string()
            }
            _ => meta_field(&self.metadata, path),
        }
    }

    fn list(backend: &dyn Backend) -> Listed<Self> {
        Listed { resource_version: backend.pods().resource_version, items: vec![Arc::new(backend.machine())] }
    }

    fn watch(_backend: &dyn Backend, _since: Option<u64>) -> Option<Result<Watch<Self>, WatchError>> {
        None
    }
}

impl Resource for Namespace {
    const KIND: &'static str = "Namespace";
    const PLURAL: &'static str = "namespaces";
    const FIELDS: &'static [&'static str] = &["metadata.name", "status.phase"];

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn field(&self, path: &str) -> String {
        match path {
            "status.phase" => "Active".to_owned(),
            _ => meta_field(&self.metadata, path),
        }
    }

    /// A namespace is where a pod or a ConfigMap is; `default` always is.
    fn list(backend: &dyn Backend) -> Listed<Self> {
        let pods = backend.pods();
        let maps = backend.config_maps();
        let mut names = BTreeSet::from(["default".to_owned()]);
        names.extend(pods.items.iter().filter_map(|pod| pod.metadata.namespace.clone()));
        names.extend(maps.items.iter().filter_map(|map| map.metadata.namespace.clone()));
        let items = names
            .into_iter()
            .map(|name| {
                let labels = [("kubernetes.io/metadata.name".to_owned(), name.clone())].into();
                Arc::new(Namespace {
                    metadata: ObjectMeta { name: Some(name), labels: Some(labels), ..ObjectMeta::default() },
                    status: Some(NamespaceStatus { phase: Some("Active".to_owned()), ..NamespaceStatus::default() }),
                    ..Namespace::default()
                })
            })
            .collect();
        Listed { resource_version: pods.resource_version.max(maps.resource_version), items }
    }

    fn watch(_backend: &dyn Backend, _since: Option<u64>) -> Option<Result<Watch<Self>, WatchError>> {
        None
    }
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
        let metadata = object.metadata();
        let here = self.namespace.is_none() || self.namespace == metadata.namespace;
        here && self.labels.matches(metadata.labels.as_ref()) && self.fields.matches(|path| object.field(path))
    }
}

fn collection<T: Resource>(
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
    let listed = T::list(app.backend.as_ref());
    let mut items: Vec<Arc<T>> = listed.items.into_iter().filter(|item| query.selects(item.as_ref())).collect();
    let mut metadata = json!({ "resourceVersion": listed.resource_version.to_string() });
    if let Some(after) = params.text("continue") {
        let after =
            after.split_once('/').ok_or_else(|| Failure::bad_request("continue: not a token of this server"))?;
        items.retain(|item| place(item.metadata()) > after);
    }
    if let Some(limit) = params.number("limit")?.filter(|limit| *limit > 0) {
        let limit = usize::try_from(limit.min(MAX_LIMIT)).unwrap_or(usize::MAX);
        let rest = items.len().saturating_sub(limit);
        items.truncate(limit);
        if let (true, Some(last), Some(fields)) = (rest > 0, items.last(), metadata.as_object_mut()) {
            let (namespace, name) = place(last.metadata());
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

fn place(metadata: &ObjectMeta) -> (&str, &str) {
    (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn follow<T: Resource>(app: &App, params: &Params, query: Query, form: Form) -> Result<Response, Failure> {
    let since = params.number("resourceVersion")?.filter(|version| *version > 0);
    let initial_asked = params.flag("sendInitialEvents")?;
    let bookmarks = params.flag("allowWatchBookmarks")?;
    let backend = app.backend.as_ref();
    let from_list = since.is_none() || initial_asked;
    let (initial, version) = if from_list {
        let listed = T::list(backend);
        (listed.items, listed.resource_version)
    } else {
        (Vec::new(), since.unwrap_or_default())
    };
    let start = Start {
        initial,
        mark_initial: initial_asked && bookmarks,
        version,
        changes: T::watch(backend, Some(version)).transpose()?,
    };
    let life = params.number("timeoutSeconds")?.filter(|life| *life > 0).map(Duration::from_secs);
    Ok(watch::respond(start, query, form, life, bookmarks, app.stop.clone()))
}

fn single<T: Resource>(
    app: &App,
    headers: &HeaderMap,
    params: &Params,
    namespace: Option<&str>,
    name: &str,
) -> Result<Response, Failure> {
    let form = Form::of(headers, params)?;
    let listed = T::list(app.backend.as_ref());
    let found = listed.items.iter().find(|item| {
        let metadata = item.metadata();
        metadata.name.as_deref() == Some(name) && (namespace.is_none() || metadata.namespace.as_deref() == namespace)
    });
    let item = found.ok_or_else(|| Failure::not_found(T::PLURAL, name))?;
    Ok(match form {
        Form::Objects => Json(item.as_ref()).into_response(),
        Form::Table(include) => {
            let version = item.metadata().resource_version.clone().unwrap_or_default();
            let metadata = json!({ "resourceVersion": version });
            Json(table([item.as_ref()], include, true, &metadata, Timestamp::now())).into_response()
        }
    })
}

type Answered = Result<Response, Failure>;

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

doors!(Pod: pods, namespaced_pods, pod);
doors!(Event: events, namespaced_events, event);
doors!(ConfigMap: config_maps, namespaced_config_maps, config_map);
doors!(Node: nodes, node);
doors!(Namespace: namespaces, namespace);

/// Removes the manifest of a pod that `apply` wrote; the pod as it was is the answer.
pub(crate) async fn delete_pod(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, Failure> {
    let pods = app.backend.pods();
    let pod = pods
        .items
        .iter()
        .find(|pod| place(&pod.metadata) == (namespace.as_str(), name.as_str()))
        .ok_or_else(|| Failure::not_found("pods", &name))?;
    let object = ObjectName { kind: "Pod".to_owned(), namespace, name };
    app.backend.delete(vec![object]).await?;
    serde_json::to_value(pod.as_ref()).map(Json).map_err(|error| Failure::internal(error.to_string()))
}
