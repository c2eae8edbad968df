//! Health, `/metrics`, and what pods use, as `metrics.k8s.io` has it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use portreeve_node::PodUsage;
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::Failure;
use crate::params::Params;
use crate::selector::LabelSelector;

/// The shortest span over which a rate says something.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// The longest span over which it still speaks of now.
const MAX_WINDOW: Duration = Duration::from_secs(60);

pub(crate) async fn text(State(app): State<App>) -> Result<Response, Failure> {
    let text = app.backend.metrics().await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

pub(crate) async fn ready(State(app): State<App>) -> Response {
    match app.backend.ready() {
        Ok(()) => "ok".into_response(),
        Err(reasons) => {
            let text = reasons.iter().map(|reason| format!("not ready: {reason}\n")).collect::<String>();
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

pub(crate) fn routes() -> Router<App> {
    let metrics = Router::new()
        .route("/pods", get(pods))
        .route("/namespaces/{namespace}/pods", get(namespaced_pods))
        .route("/namespaces/{namespace}/pods/{name}", get(pod))
        .route("/nodes", get(nodes))
        .route("/nodes/{name}", get(node));
    Router::new().nest("/apis/metrics.k8s.io/v1beta1", metrics)
}

/// CPU time of every container at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    at: Timestamp,
    cpu_ns: BTreeMap<(String, String, String), u64>,
}

impl Sample {
    fn of(usage: &[PodUsage]) -> Sample {
        let mut cpu_ns = BTreeMap::new();
        for pod in usage {
            for (container, used) in &pod.containers {
                cpu_ns.insert((pod.namespace.clone(), pod.name.clone(), container.clone()), used.cpu_ns);
            }
        }
        Sample { at: Timestamp::now(), cpu_ns }
    }

    fn age(&self) -> Duration {
        Duration::try_from(Timestamp::now().duration_since(self.at)).unwrap_or(MAX_WINDOW * 2)
    }
}

struct Rate {
    namespace: String,
    pod: String,
    /// Container, nanoseconds of CPU per second, working set.
    containers: Vec<(String, u64, u64)>,
}

/// What everything used since the last question, or over a second when there was none.
async fn rates(app: &App) -> Result<(Vec<Rate>, Duration), Failure> {
    let remembered = app.last_usage.lock().ok().and_then(|last| last.clone());
    let before = match remembered.filter(|last| last.age() <= MAX_WINDOW) {
        Some(last) => last,
        None => Sample::of(&app.backend.usage().await?),
    };
    tokio::time::sleep(MIN_WINDOW.saturating_sub(before.age())).await;
    let usage = app.backend.usage().await?;
    let now = Sample::of(&usage);
    let window = Duration::try_from(now.at.duration_since(before.at)).unwrap_or(MIN_WINDOW).max(MIN_WINDOW);
    let rates = usage
        .into_iter()
        .map(|pod| Rate {
            containers: pod
                .containers
                .iter()
                .map(|(container, used)| {
                    let key = (pod.namespace.clone(), pod.name.clone(), container.clone());
                    let then = before.cpu_ns.get(&key).copied().unwrap_or(used.cpu_ns);
                    let spent = u128::from(used.cpu_ns.saturating_sub(then));
                    let rate = spent * 1_000_000_000 / window.as_nanos().max(1);
                    (container.clone(), u64::try_from(rate).unwrap_or(u64::MAX), used.memory_working_set_bytes)
                })
                .collect(),
            namespace: pod.namespace,
            pod: pod.name,
        })
        .collect();
    if let Ok(mut last) = app.last_usage.lock() {
        *last = Some(now);
    }
    Ok((rates, window))
}

fn quantities(cpu_ns_per_second: u64, memory_bytes: u64) -> Value {
    json!({ "cpu": format!("{cpu_ns_per_second}n"), "memory": format!("{}Ki", memory_bytes.div_ceil(1024)) })
}

fn pod_metrics(rate: &Rate, pod: Option<&Pod>, window: Duration) -> Value {
    let containers: Vec<Value> = rate
        .containers
        .iter()
        .map(|(name, cpu, memory)| json!({ "name": name, "usage": quantities(*cpu, *memory) }))
        .collect();
    json!({
        "kind": "PodMetrics",
        "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": {
            "name": rate.pod,
            "namespace": rate.namespace,
            "creationTimestamp": Timestamp::now().to_string(),
            "labels": pod.and_then(|pod| pod.metadata.labels.as_ref()),
        },
        "timestamp": Timestamp::now().to_string(),
        "window": format!("{:.3}s", window.as_secs_f64()),
        "containers": containers,
    })
}

async fn pods(State(app): State<App>, params: Params) -> Result<Json<Value>, Failure> {
    list_pods(&app, &params, None).await
}

async fn namespaced_pods(
    State(app): State<App>,
    Path(namespace): Path<String>,
    params: Params,
) -> Result<Json<Value>, Failure> {
    list_pods(&app, &params, Some(&namespace)).await
}

fn pod_of<'a>(pods: &'a [std::sync::Arc<Pod>], rate: &Rate) -> Option<&'a Pod> {
    pods.iter()
        .find(|pod| {
            pod.metadata.name.as_deref() == Some(rate.pod.as_str())
                && pod.metadata.namespace.as_deref() == Some(rate.namespace.as_str())
        })
        .map(std::sync::Arc::as_ref)
}

async fn list_pods(app: &App, params: &Params, namespace: Option<&str>) -> Result<Json<Value>, Failure> {
    let labels = LabelSelector::parse(params.get("labelSelector").unwrap_or_default())?;
    let (rates, window) = rates(app).await?;
    let pods = app.backend.pods().items;
    let items: Vec<Value> = rates
        .iter()
        .filter(|rate| namespace.is_none_or(|namespace| rate.namespace == namespace))
        .filter_map(|rate| {
            let pod = pod_of(&pods, rate);
            let metadata = pod.map(|pod| &pod.metadata);
            labels
                .matches(metadata.and_then(|metadata| metadata.labels.as_ref()))
                .then(|| pod_metrics(rate, pod, window))
        })
        .collect();
    Ok(Json(json!({
        "kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items,
    })))
}

async fn pod(State(app): State<App>, Path((namespace, name)): Path<(String, String)>) -> Result<Json<Value>, Failure> {
    let (rates, window) = rates(&app).await?;
    let pods = app.backend.pods().items;
    let rate = rates
        .iter()
        .find(|rate| rate.namespace == namespace && rate.pod == name)
        .ok_or_else(|| Failure::not_found("podmetrics.metrics.k8s.io", &name))?;
    Ok(Json(pod_metrics(rate, pod_of(&pods, rate), window)))
}

async fn machine_metrics(app: &App) -> Result<Value, Failure> {
    let (rates, window) = rates(app).await?;
    let containers = rates.iter().flat_map(|rate| &rate.containers);
    let (cpu, memory) = containers.fold((0u64, 0u64), |(cpu, memory), (_, more_cpu, more_memory)| {
        (cpu.saturating_add(*more_cpu), memory.saturating_add(*more_memory))
    });
    Ok(json!({
        "kind": "NodeMetrics",
        "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": {
            "name": app.backend.machine().metadata.name,
            "creationTimestamp": Timestamp::now().to_string(),
        },
        "timestamp": Timestamp::now().to_string(),
        "window": format!("{:.3}s", window.as_secs_f64()),
        "usage": quantities(cpu, memory),
    }))
}

async fn nodes(State(app): State<App>) -> Result<Json<Value>, Failure> {
    let items = [machine_metrics(&app).await?];
    Ok(Json(json!({
        "kind": "NodeMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items,
    })))
}

async fn node(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Value>, Failure> {
    if app.backend.machine().metadata.name.as_deref() != Some(name.as_str()) {
        return Err(Failure::not_found("nodemetrics.metrics.k8s.io", &name));
    }
    Ok(Json(machine_metrics(&app).await?))
}
