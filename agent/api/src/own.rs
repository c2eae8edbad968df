//! What is ours, under `/apis/portreeve.dev/v1alpha1`.
//!
//! ```text
//!   GET    sources[/{name}]                     where intent comes from, and what is wrong there
//!   GET    containers, namespaces/{ns}/containers[/{pod}.{container}]
//!   GET    images[/{name}]   DELETE images?reference=
//!   POST   images/pull?reference=&now=  (logins)  ndjson of PullProgress, the last line says how it ended
//!   POST   images/push?reference=&name=         the same, of a push
//!   POST   images/tags?reference=   (logins)    the tags of a repository in its registry
//!   POST   images/artifact?reference=           a tar of its files
//!   POST   images/referrers?reference=          what refers to an image there
//!   POST   images/load     (a tar)              the images
//!   POST   images/save?reference=&reference=   a tar: OCI layout and docker-archive in one
//!   POST   images/verify?reference=&repair=     ndjson of Verification, the last line says that it is complete
//!   GET    images/inspect?reference=            all that is known of one
//!   POST   images/tag?reference=&name=          the image with its new name
//!   POST   images/prune?all=                    what went
//!   GET    pulls                                those of pods that run, or wait for their next try
//!   GET    disk                                 what is on it, and what of it could go
//!   POST   plan  apply  delete  drain           JSON in, JSON out
//!   POST   namespaces/{ns}/pods/{name}/restart
//! ```

mod kinds;

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use portreeve_engine::chain;
use portreeve_engine::image::{Credential, Progress};
use portreeve_node::NamespacedName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::app::App;
use crate::failure::Failure;
use crate::params::Params;
use crate::resources::{Answered, collection, doors, single};
use crate::v1alpha1::{
    API_VERSION, ApplyReport, ApplyRequest, Container, DeleteReport, DeleteRequest, DiskReport, DrainReport, Image,
    ImageDetails, LayerView, PlanReport, PlanRequest, PruneReport, PullProgress, ReferrerList, Source, TagList,
    TriedHost, Verification,
};

pub(crate) use kinds::{Mirrors, take_heartbeats};

/// How often a pull says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Pieces of an uploaded tar that wait for the store.
const UPLOAD_QUEUE: usize = 4;
/// The largest tar that can be loaded.
const MAX_TAR_BYTES: usize = 64 * 1024 * 1024 * 1024;

pub(crate) fn routes() -> Router<App> {
    let own = Router::new()
        .route("/sources", get(sources))
        .route("/sources/{name}", get(source))
        .route("/containers", get(containers))
        .route("/namespaces/{namespace}/containers", get(namespaced_containers))
        .route("/namespaces/{namespace}/containers/{name}", get(container))
        .route("/images", get(images).delete(remove_image))
        .route("/images/{name}", get(image))
        .route("/images/pull", post(pull))
        .route("/images/save", post(save))
        .route("/images/tags", post(tags))
        .route("/images/artifact", post(artifact))
        .route("/images/referrers", post(referrers))
        .route("/images/verify", post(verify))
        .route("/images/inspect", get(inspect))
        .route("/images/tag", post(tag))
        .route("/images/prune", post(prune))
        .route("/pulls", get(pulls))
        .route("/disk", get(disk))
        .route("/images/push", post(push))
        .route("/images/load", post(load).layer(DefaultBodyLimit::max(MAX_TAR_BYTES)))
        .route("/plan", post(plan))
        .route("/apply", post(apply))
        .route("/delete", post(delete))
        .route("/drain", post(drain))
        .route("/namespaces/{namespace}/pods/{name}/restart", post(restart));
    Router::new().nest("/apis/portreeve.dev/v1alpha1", own)
}

doors!(Source: sources, source);
doors!(Container: containers, namespaced_containers, container);
doors!(Image: images, image);

async fn remove_image(State(app): State<App>, params: Params) -> Result<Json<Value>, Failure> {
    let removed = app.backend.remove_image(reference(&params)?).await?;
    Ok(Json(json!({ "removed": removed })))
}

async fn save(State(app): State<App>, params: Params, Auth(auth): Auth) -> Result<Response, Failure> {
    reference(&params)?;
    Ok(streamed(app.backend.save(params.all("reference"), auth).await?))
}

async fn artifact(State(app): State<App>, params: Params, Auth(auth): Auth) -> Result<Response, Failure> {
    Ok(streamed(app.backend.artifact(reference(&params)?, auth).await?))
}

fn streamed(tar: mpsc::Receiver<io::Result<Bytes>>) -> Response {
    let pieces = stream::unfold(tar, |mut tar| async move { tar.recv().await.map(|piece| (piece, tar)) });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/x-tar"));
    response
}

async fn tags(State(app): State<App>, params: Params, Auth(auth): Auth) -> Result<Json<TagList>, Failure> {
    Ok(Json(app.backend.tags(reference(&params)?, auth).await?))
}

async fn referrers(State(app): State<App>, params: Params, Auth(auth): Auth) -> Result<Json<ReferrerList>, Failure> {
    Ok(Json(app.backend.referrers(reference(&params)?, auth).await?))
}

async fn verify(State(app): State<App>, params: Params, Auth(auth): Auth) -> Result<Response, Failure> {
    let checked = app.backend.verify(params.all("reference"), params.flag("repair")?, auth).await?;
    let steps = checked.map(Verification::Checked).chain(stream::iter([Verification::Done]));
    Ok(ndjson(Body::from_stream(steps.map(|step| Ok::<Bytes, Infallible>(json_line(&step))))))
}

async fn inspect(State(app): State<App>, params: Params) -> Result<Json<ImageDetails>, Failure> {
    Ok(Json(app.backend.image_details(reference(&params)?).await?))
}

async fn tag(State(app): State<App>, params: Params) -> Result<Json<Image>, Failure> {
    let name = params.text("name").ok_or_else(|| Failure::bad_request("name: which name does the image get?"))?;
    Ok(Json(app.backend.tag_image(reference(&params)?, name).await?))
}

async fn prune(State(app): State<App>, params: Params) -> Result<Json<PruneReport>, Failure> {
    Ok(Json(app.backend.prune_images(params.flag("all")?).await?))
}

async fn pulls(State(app): State<App>) -> Json<Value> {
    let pulls = app.backend.pulls();
    Json(json!({ "kind": "PullList", "apiVersion": API_VERSION, "metadata": {}, "items": pulls }))
}

async fn disk(State(app): State<App>) -> Result<Json<DiskReport>, Failure> {
    Ok(Json(app.backend.disk().await?))
}

fn reference(params: &Params) -> Result<&str, Failure> {
    params.text("reference").ok_or_else(|| Failure::bad_request("reference: which image?"))
}

/// The logins that a client sends along, as a docker config has them.
struct Auth(Vec<Credential>);

impl axum::extract::FromRequest<App> for Auth {
    type Rejection = Failure;

    async fn from_request(request: axum::extract::Request, app: &App) -> Result<Self, Failure> {
        let bytes =
            BytesMut::from_request(request, app).await.map_err(|error| Failure::too_large(error.to_string()))?;
        if bytes.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let logins = Credential::from_docker_config(&bytes);
        logins.map(Self).map_err(|error| Failure::bad_request(format!("logins: {}", chain(&error))))
    }
}

async fn pull(State(app): State<App>, params: Params, Auth(auth): Auth) -> Result<Response, Failure> {
    let reference = reference(&params)?.to_owned();
    let now = params.flag("now")?;
    let (sink, progress) = watch::channel(Progress::default());
    let backend = app.backend.clone();
    // The pull belongs to this request: a client that leaves takes its interest with it.
    let pull = async move {
        match backend.pull(&reference, auth, now, sink).await {
            Ok(image) => PullProgress::Done { image: Box::new(image) },
            Err(error) => PullProgress::Failed { message: error.to_string() },
        }
    };
    Ok(steps(pull.boxed(), progress))
}

async fn push(State(app): State<App>, params: Params, Auth(auth): Auth) -> Result<Response, Failure> {
    let reference = reference(&params)?.to_owned();
    let name = params.text("name").unwrap_or(&reference).to_owned();
    let (sink, progress) = watch::channel(Progress::default());
    let backend = app.backend.clone();
    let push = async move {
        match backend.push(&reference, &name, auth, sink).await {
            Ok(image) => PullProgress::Done { image: Box::new(image) },
            Err(error) => PullProgress::Failed { message: error.to_string() },
        }
    };
    Ok(steps(push.boxed(), progress))
}

/// Work that goes on as long as its client listens, step by step.
fn steps(work: BoxFuture<'static, PullProgress>, progress: watch::Receiver<Progress>) -> Response {
    let steps = Steps { pull: Some(work), ended: None, progress, pulling: true, next_at: Instant::now() };
    let lines = stream::unfold(steps, |mut steps| async move {
        steps.next().await.map(|step| (Ok::<Bytes, Infallible>(json_line(&step)), steps))
    });
    ndjson(Body::from_stream(lines))
}

/// A pull or a push as a stream: how far it is, at most so often, and last how it ended. Only the newest
/// step waits for the client, however slow it is.
struct Steps {
    pull: Option<BoxFuture<'static, PullProgress>>,
    /// How the pull ended, until it was told.
    ended: Option<PullProgress>,
    progress: watch::Receiver<Progress>,
    pulling: bool,
    next_at: Instant,
}

impl Steps {
    async fn next(&mut self) -> Option<PullProgress> {
        let Some(pull) = self.pull.as_mut() else {
            return self.ended.take();
        };
        loop {
            let changed = async {
                tokio::time::sleep_until(self.next_at).await;
                self.progress.changed().await
            };
            tokio::select! {
                // cancel-safe: kept in `self`
                last = &mut *pull => {
                    self.pull = None;
                    self.ended = Some(last);
                    // Where each layer stood at the end, however short the pull was.
                    return Some(step(&self.progress.borrow()));
                }
                // cancel-safe: a change stays unseen until it is borrowed
                changed = changed, if self.pulling => match changed {
                    Ok(()) => {
                        self.next_at = Instant::now() + PROGRESS_EVERY;
                        return Some(step(&self.progress.borrow_and_update()));
                    }
                    Err(_) => self.pulling = false,
                },
            }
        }
    }
}

fn step(progress: &Progress) -> PullProgress {
    if progress.layers.is_empty() {
        return PullProgress::Resolving;
    }
    let layers = progress
        .layers
        .iter()
        .map(|layer| LayerView {
            digest: layer.digest.to_string(),
            total_bytes: layer.total_bytes,
            fetched_bytes: layer.fetched_bytes,
            done: layer.done,
            present: layer.present,
            foreign: layer.foreign,
            reused_bytes: layer.reused_bytes,
            whole: layer.whole.clone(),
        })
        .collect();
    let tried = progress.tried.iter();
    let tried = tried.map(|tried| TriedHost { host: tried.host.clone(), problem: tried.problem.clone() }).collect();
    PullProgress::Fetching { layers, host: progress.host.clone(), tried }
}

fn json_line<T: Serialize>(value: &T) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn ndjson(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

async fn load(State(app): State<App>, body: Body) -> Result<Response, Failure> {
    let (pieces, tar) = mpsc::channel::<io::Result<Bytes>>(UPLOAD_QUEUE);
    let upload = async move {
        let mut body = body.into_data_stream();
        let mut wanted = true;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(io::Error::other);
            let failed = piece.is_err();
            // A store that has read enough, or failed, reads no more. The rest is taken all the same: a client that
            // cannot get rid of its body does not read why.
            wanted = wanted && pieces.send(piece).await.is_ok();
            if failed {
                return;
            }
        }
    };
    let (loaded, ()) = tokio::join!(app.backend.load(tar), upload);
    let images = loaded?;
    Ok(Json(json!({ "kind": "ImageList", "apiVersion": API_VERSION, "metadata": {}, "items": images })).into_response())
}

/// Reads a JSON body whatever its content type says; a body that is too large is 413.
struct JsonBody<T>(T);

impl<T: DeserializeOwned> axum::extract::FromRequest<App> for JsonBody<T> {
    type Rejection = Failure;

    async fn from_request(request: axum::extract::Request, app: &App) -> Result<Self, Failure> {
        let bytes =
            BytesMut::from_request(request, app).await.map_err(|error| Failure::too_large(error.to_string()))?;
        serde_json::from_slice(&bytes)
            .map(JsonBody)
            .map_err(|error| Failure::bad_request(format!("request body: {error}")))
    }
}

async fn plan(State(app): State<App>, JsonBody(request): JsonBody<PlanRequest>) -> Result<Json<PlanReport>, Failure> {
    Ok(Json(app.backend.plan(request).await?))
}

async fn apply(
    State(app): State<App>,
    JsonBody(request): JsonBody<ApplyRequest>,
) -> Result<Json<ApplyReport>, Failure> {
    Ok(Json(app.backend.apply(request.files, request.namespace).await?))
}

async fn delete(
    State(app): State<App>,
    JsonBody(request): JsonBody<DeleteRequest>,
) -> Result<Json<DeleteReport>, Failure> {
    let mut report = DeleteReport::default();
    if !request.files.is_empty() {
        report = app.backend.delete_files(request.files, request.namespace).await?;
    }
    if !request.objects.is_empty() {
        let named = app.backend.delete(request.objects).await?;
        report.deleted.extend(named.deleted);
        report.absent.extend(named.absent);
    }
    Ok(Json(report))
}

async fn drain(State(app): State<App>, params: Params) -> Result<Json<DrainReport>, Failure> {
    let grace = params.number("gracePeriodSeconds")?.map(Duration::from_secs);
    let pods = app.backend.drain(grace).await?;
    Ok(Json(DrainReport { pods: pods.iter().map(NamespacedName::to_string).collect() }))
}

async fn restart(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, Failure> {
    app.backend.restart(&NamespacedName::new(namespace, name)).await?;
    Ok(Json(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" })))
}
