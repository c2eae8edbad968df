//! What every request can reach, and the map from paths to what answers them.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::Backend;
use crate::failure::Failure;
use crate::metrics::Sample;
use crate::own::Mirrors;
use crate::{discovery, log, metrics, own, resources, stream};

/// Manifests of one request, all together.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// What every request can reach.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// The house.
    pub(crate) backend: Arc<dyn Backend>,
    /// What is watched and has no list of its own in the house.
    pub(crate) mirrors: Arc<Mirrors>,
    /// Ends watches, followed logs and sessions.
    pub(crate) stop: CancellationToken,
    /// Owns what outlives its request: upgraded connections.
    pub(crate) sessions: TaskTracker,
    /// How many of those there may be.
    pub(crate) session_places: Arc<Semaphore>,
    /// The use of every container when it was last asked for.
    pub(crate) last_usage: Arc<Mutex<Option<Sample>>>,
}

impl App {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        stop: CancellationToken,
        sessions: TaskTracker,
        max_sessions: usize,
    ) -> Self {
        let session_places = Arc::new(Semaphore::new(max_sessions));
        let mirrors = Arc::new(Mirrors::of(&backend));
        App { backend, mirrors, stop, sessions, session_places, last_usage: Arc::default() }
    }

    /// A place for one session, given back when it is dropped.
    pub(crate) fn session_place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.session_places)
            .try_acquire_owned()
            .map_err(|_| Failure::too_many("too many exec, attach and port-forward sessions are open: end some"))
    }

    /// The unix socket's paths.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .merge(discovery::routes())
            .merge(core_routes())
            .merge(own::routes())
            .merge(metrics::routes())
            .merge(health_routes())
            .fallback(async || Failure::no_such_path())
            .method_not_allowed_fallback(async || Failure::method_not_allowed())
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(self.clone())
    }

    /// The TCP listener's paths: nothing that tells of a pod's content, nothing that acts.
    pub(crate) fn health_router(&self) -> Router {
        health_routes()
            .fallback(async || Failure::no_such_path())
            .method_not_allowed_fallback(async || Failure::method_not_allowed())
            .with_state(self.clone())
    }
}

fn core_routes() -> Router<App> {
    let pod = "/api/v1/namespaces/{namespace}/pods/{name}";
    Router::new()
        .route("/api/v1/pods", get(resources::pods))
        .route("/api/v1/namespaces/{namespace}/pods", get(resources::namespaced_pods))
        .route(pod, get(resources::pod).delete(resources::delete_pod))
        .route(&format!("{pod}/log"), get(log::log))
        .route(&format!("{pod}/exec"), get(stream::exec).post(stream::exec))
        .route(&format!("{pod}/attach"), get(stream::attach).post(stream::attach))
        .route(&format!("{pod}/portforward"), get(stream::forward).post(stream::forward))
        .route("/api/v1/events", get(resources::events))
        .route("/api/v1/namespaces/{namespace}/events", get(resources::namespaced_events))
        .route("/api/v1/namespaces/{namespace}/events/{name}", get(resources::event))
        .route("/api/v1/configmaps", get(resources::config_maps))
        .route("/api/v1/namespaces/{namespace}/configmaps", get(resources::namespaced_config_maps))
        .route("/api/v1/namespaces/{namespace}/configmaps/{name}", get(resources::config_map))
        .route("/api/v1/nodes", get(resources::nodes))
        .route("/api/v1/nodes/{name}", get(resources::node))
        .route("/api/v1/namespaces", get(resources::namespaces))
        .route("/api/v1/namespaces/{name}", get(resources::namespace))
}

fn health_routes() -> Router<App> {
    Router::new()
        .route("/metrics", get(metrics::text))
        .route("/livez", get(async || "ok"))
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(metrics::ready))
}
