//! The [`Backend`] that is real: a [`Node`] and the engine below it.

mod images;
mod verify;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node as Machine, Pod};
use portreeve_engine::image::{Credential, ProgressSink};
use portreeve_engine::{
    AttachRequest, AttachSession, Engine, EngineError, ExecRequest, ExecSession, Resizer, TerminalSize, chain,
};
use portreeve_node::{
    ApplyReport, ContainerHandle, DeleteReport, Listed, ManifestFile, NamespacedName, Node, NodeError, ObjectName,
    PlanReport, PlanRequest, PodUsage, PullReport, SourceReport, Versions, Watch, WatchError,
};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::backend::{Answer, Backend, BackendError, ExecSpec, Input, Output, Session, Signal};
use crate::v1alpha1::{CheckedPart, DiskReport, Image, ImageDetails, PruneReport, ReferrerList, TagList};

/// New terminal sizes that wait for the kernel.
const RESIZE_QUEUE: usize = 4;

/// A node behind the doors.
#[derive(Clone, Debug)]
pub struct NodeBackend {
    node: Node,
    /// Tasks that pass terminal sizes on; each ends with its session.
    resizes: TaskTracker,
}

impl NodeBackend {
    /// The doors of this node.
    pub fn new(node: Node) -> Self {
        NodeBackend { node, resizes: TaskTracker::new() }
    }

    fn engine(&self) -> Result<&Engine, BackendError> {
        match self.node.engine() {
            Some(engine) => Ok(engine),
            None => Err(BackendError::Unavailable("this node has no runtime".to_owned())),
        }
    }
}

/// The streams of a command that was run. `tasks` own what passes terminal sizes on.
pub(crate) fn exec_session(mut session: ExecSession, tasks: &TaskTracker) -> Session {
    let (stdin, stdout, stderr) = (session.stdin.take(), session.stdout.take(), session.stderr.take());
    let resize = session.resizer().map(|resizer| pass_sizes_on(resizer, tasks));
    let exit_code = async move { session.wait().await.map_err(BackendError::from) };
    Session { stdin, stdout, stderr, resize, exit_code: Some(exit_code.boxed()) }
}

/// The streams of a container's own process.
pub(crate) fn attach_session(mut session: AttachSession, tasks: &TaskTracker) -> Session {
    let (stdin, stdout, stderr) = (session.stdin.take(), session.stdout.take(), session.stderr.take());
    let resize = session.resizer().map(|resizer| pass_sizes_on(resizer, tasks));
    Session { stdin, stdout, stderr, resize, exit_code: None }
}

fn pass_sizes_on(resizer: Resizer, tasks: &TaskTracker) -> mpsc::Sender<(u16, u16)> {
    let (resize, mut sizes) = mpsc::channel(RESIZE_QUEUE);
    tasks.spawn(async move {
        while let Some((columns, rows)) = sizes.recv().await {
            // A size that comes after the end concerns nobody.
            let _late = resizer.resize(TerminalSize { columns, rows }).await;
        }
    });
    resize
}

impl Backend for NodeBackend {
    fn versions(&self) -> Versions {
        self.node.versions()
    }

    fn pods(&self) -> Listed<Pod> {
        self.node.pods()
    }

    fn watch_pods(&self, since: Option<u64>) -> Result<Watch<Pod>, WatchError> {
        self.node.watch_pods(since)
    }

    fn events(&self) -> Listed<Event> {
        self.node.events()
    }

    fn watch_events(&self, since: Option<u64>) -> Result<Watch<Event>, WatchError> {
        self.node.watch_events(since)
    }

    fn config_maps(&self) -> Listed<ConfigMap> {
        self.node.config_maps()
    }

    fn watch_config_maps(&self, since: Option<u64>) -> Result<Watch<ConfigMap>, WatchError> {
        self.node.watch_config_maps(since)
    }

    fn machine(&self) -> Machine {
        self.node.node_object()
    }

    fn machine_changes(&self) -> Signal {
        let (sources, drained) = (stirs(self.node.sources_changed()), stirs(self.node.drained_changed()));
        let room = stirs(self.node.room_changed());
        stream::select(room, stream::select(sources, drained)).boxed()
    }

    fn sources(&self) -> Vec<SourceReport> {
        self.node.sources()
    }

    fn source_changes(&self) -> Signal {
        stirs(self.node.sources_changed())
    }

    fn metrics(&self) -> Answer<'_, String> {
        async move { Ok(self.node.metrics_text().await) }.boxed()
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        self.node.ready()
    }

    fn container(
        &self,
        pod: &NamespacedName,
        container: Option<&str>,
        previous: bool,
    ) -> Result<ContainerHandle, BackendError> {
        Ok(self.node.container(pod, container, previous)?)
    }

    fn log_path(&self, pod: &NamespacedName, container: Option<&str>, previous: bool) -> Result<PathBuf, BackendError> {
        Ok(self.node.log_path(pod, container, previous)?)
    }

    fn exec<'a>(&'a self, container: &'a ContainerHandle, spec: ExecSpec) -> Answer<'a, Session> {
        async move {
            running(container)?;
            let request = ExecRequest {
                command: spec.command,
                tty: spec.tty,
                stdin: spec.stdin,
                stdout: spec.stdout,
                stderr: spec.stderr,
                ..ExecRequest::default()
            };
            Ok(exec_session(self.engine()?.exec(&container.id, request).await?, &self.resizes))
        }
        .boxed()
    }

    fn attach<'a>(&'a self, container: &'a ContainerHandle, spec: ExecSpec) -> Answer<'a, Session> {
        async move {
            running(container)?;
            if spec.tty && !container.tty {
                return Err(BackendError::BadRequest(format!(
                    "container {} in pod {} has no terminal: attach without -t, or set tty: true in its manifest",
                    container.container, container.pod.name
                )));
            }
            if spec.stdin && !container.stdin {
                return Err(BackendError::BadRequest(format!(
                    "container {} in pod {} has no input: attach without -i, or set stdin: true in its manifest",
                    container.container, container.pod.name
                )));
            }
            let request = AttachRequest { stdin: spec.stdin, stdout: spec.stdout, stderr: spec.stderr };
            Ok(attach_session(self.engine()?.attach(&container.id, request).await?, &self.resizes))
        }
        .boxed()
    }

    fn forward<'a>(&'a self, pod: &'a NamespacedName, port: u16) -> Answer<'a, (Output, Input)> {
        async move {
            let sandbox = self.node.sandbox(pod)?;
            let stream = self.engine()?.forward(&sandbox, port).await?;
            let (output, input) = stream.into_split();
            Ok((Box::new(output) as Output, Box::new(input) as Input))
        }
        .boxed()
    }

    fn usage(&self) -> Answer<'_, Vec<PodUsage>> {
        async move { Ok(self.node.usage().await) }.boxed()
    }

    fn images(&self) -> Result<Vec<Image>, BackendError> {
        Ok(self.engine()?.images().list().iter().flat_map(images::each_name).collect())
    }

    fn image_changes(&self) -> Signal {
        self.node.engine().map_or_else(|| stream::pending().boxed(), |engine| stirs(engine.images().changes()))
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        auth: Vec<Credential>,
        now: bool,
        progress: ProgressSink,
    ) -> Answer<'a, Image> {
        self.pull_image(reference, auth, now, progress).boxed()
    }

    fn push<'a>(
        &'a self,
        reference: &'a str,
        name: &'a str,
        auth: Vec<Credential>,
        progress: ProgressSink,
    ) -> Answer<'a, Image> {
        self.push_image(reference, name, auth, progress).boxed()
    }

    fn load(&self, tar: mpsc::Receiver<io::Result<Bytes>>) -> Answer<'_, Vec<Image>> {
        self.load_images(tar).boxed()
    }

    fn save(&self, references: Vec<String>, auth: Vec<Credential>) -> Answer<'_, mpsc::Receiver<io::Result<Bytes>>> {
        self.save_images(references, auth).boxed()
    }

    fn tags<'a>(&'a self, repository: &'a str, auth: Vec<Credential>) -> Answer<'a, TagList> {
        self.tags_of(repository, auth).boxed()
    }

    fn referrers<'a>(&'a self, reference: &'a str, auth: Vec<Credential>) -> Answer<'a, ReferrerList> {
        self.referrers_of(reference, auth).boxed()
    }

    fn artifact<'a>(
        &'a self,
        reference: &'a str,
        auth: Vec<Credential>,
    ) -> Answer<'a, mpsc::Receiver<io::Result<Bytes>>> {
        self.artifact_of(reference, auth).boxed()
    }

    fn verify(
        &self,
        references: Vec<String>,
        repair: bool,
        auth: Vec<Credential>,
    ) -> Answer<'_, BoxStream<'static, CheckedPart>> {
        self.verify_images(references, repair, auth).boxed()
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Vec<String>> {
        self.take_image_away(reference).boxed()
    }

    fn image_details<'a>(&'a self, reference: &'a str) -> Answer<'a, ImageDetails> {
        self.details_of_image(reference).boxed()
    }

    fn tag_image<'a>(&'a self, reference: &'a str, name: &'a str) -> Answer<'a, Image> {
        self.name_image(reference, name).boxed()
    }

    fn prune_images(&self, all: bool) -> Answer<'_, PruneReport> {
        self.take_unneeded_away(all).boxed()
    }

    fn pulls(&self) -> Vec<PullReport> {
        self.node.pulls()
    }

    fn disk(&self) -> Answer<'_, DiskReport> {
        self.measure_disk().boxed()
    }

    fn plan(&self, request: PlanRequest) -> Answer<'_, PlanReport> {
        async move { Ok(self.node.plan(request).await?) }.boxed()
    }

    fn apply(&self, files: Vec<ManifestFile>, namespace: Option<String>) -> Answer<'_, ApplyReport> {
        async move { Ok(self.node.apply_in(files, namespace).await?) }.boxed()
    }

    fn delete_files(&self, files: Vec<ManifestFile>, namespace: Option<String>) -> Answer<'_, DeleteReport> {
        async move {
            let objects = self.node.objects_in(&files, namespace.as_deref())?;
            Ok(self.node.delete(objects).await?)
        }
        .boxed()
    }

    fn delete(&self, objects: Vec<ObjectName>) -> Answer<'_, DeleteReport> {
        async move { Ok(self.node.delete(objects).await?) }.boxed()
    }

    fn restart<'a>(&'a self, pod: &'a NamespacedName) -> Answer<'a, ()> {
        async move { Ok(self.node.restart_pod(pod).await?) }.boxed()
    }

    fn drain(&self, grace: Option<Duration>) -> Answer<'_, Vec<NamespacedName>> {
        async move { Ok(self.node.drain(grace).await?) }.boxed()
    }
}

fn running(container: &ContainerHandle) -> Result<(), BackendError> {
    if container.running {
        return Ok(());
    }
    Err(BackendError::BadRequest(format!(
        "container {} in pod {} is not running",
        container.container, container.pod.name
    )))
}

/// Wakes at every change of what is watched.
fn stirs<T: Send + Sync + 'static>(changes: watch::Receiver<T>) -> Signal {
    let stirs =
        stream::unfold(changes, |mut changes| async move { changes.changed().await.ok().map(|()| ((), changes)) });
    stirs.boxed()
}

impl From<NodeError> for BackendError {
    fn from(error: NodeError) -> Self {
        let text = chain(&error);
        match error {
            NodeError::PodNotFound { .. } => BackendError::NotFound(text),
            NodeError::ContainerNotFound { .. }
            | NodeError::ContainerRequired { .. }
            | NodeError::ContainerState { .. } => BackendError::BadRequest(text),
            NodeError::Invalid(problems) => {
                BackendError::Invalid { message: text, causes: problems.iter().map(ToString::to_string).collect() }
            }
            NodeError::OwnedElsewhere { .. }
            | NodeError::Crowded { .. }
            | NodeError::AnotherDirectory { .. }
            | NodeError::NotWatched
            | NodeError::FileMissing { .. }
            | NodeError::Drained { .. } => BackendError::Conflict(text),
            NodeError::Stopped => BackendError::Unavailable(text),
            _ => BackendError::Internal(text),
        }
    }
}

impl From<EngineError> for BackendError {
    fn from(error: EngineError) -> Self {
        let text = chain(&error);
        match error {
            EngineError::UnknownSandbox(_) | EngineError::UnknownContainer(_) => BackendError::NotFound(text),
            EngineError::SandboxNotReady { .. } | EngineError::WrongState { .. } => BackendError::Conflict(text),
            EngineError::Invalid { .. } => BackendError::BadRequest(text),
            EngineError::Exec { code: code @ 1.., .. } => BackendError::Command { message: text, code },
            EngineError::Forward { .. } => BackendError::Unavailable(text),
            _ => BackendError::Internal(text),
        }
    }
}
