//! The [`Backend`] that is real: a [`Node`] and the engine below it.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{FutureExt, StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node as Machine, Pod};
use portreeve_engine::image::{self, ImageRef, ProgressSink, StoreError};
use portreeve_engine::{AttachRequest, Engine, EngineError, ExecRequest, Resizer, TerminalSize, chain};
use portreeve_node::{
    ApplyReport, ContainerHandle, DeleteReport, Listed, ManifestFile, NamespacedName, Node, NodeError, ObjectName,
    PlanReport, PlanRequest, PodUsage, SourceReport, Versions, Watch, WatchError,
};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::backend::{Answer, Backend, BackendError, ExecSpec, Input, Output, Session, Signal};
use crate::v1alpha1::{API_VERSION, Image, ImageStatus, Meta};

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

    /// Why an image stays, in the words of who runs pods.
    fn told(&self, error: &StoreError) -> String {
        let StoreError::InUse { image, container } = error else { return chain(error) };
        let status = || self.node.engine()?.container(&container.parse().ok()?);
        let Some(status) = status() else { return chain(error) };
        let sandbox = self.node.engine().and_then(|engine| engine.sandbox(&status.sandbox));
        match sandbox.map(|sandbox| sandbox.metadata) {
            Some(pod) => format!(
                "image {} ({image}) is in use by container {} of pod {}/{}: remove that pod's manifest first",
                status.image, status.metadata.name, pod.namespace, pod.name
            ),
            None => chain(error),
        }
    }

    fn pass_sizes_on(&self, resizer: Resizer) -> mpsc::Sender<(u16, u16)> {
        let (resize, mut sizes) = mpsc::channel(RESIZE_QUEUE);
        self.resizes.spawn(async move {
            while let Some((columns, rows)) = sizes.recv().await {
                // A size that comes after the end concerns nobody.
                let _late = resizer.resize(TerminalSize { columns, rows }).await;
            }
        });
        resize
    }
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
        stream::select(sources, drained).boxed()
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
            let mut session = self.engine()?.exec(&container.id, request).await?;
            let (stdin, stdout, stderr) = (session.stdin.take(), session.stdout.take(), session.stderr.take());
            let resize = session.resizer().map(|resizer| self.pass_sizes_on(resizer));
            let exit_code = async move { session.wait().await.map_err(BackendError::from) };
            Ok(Session { stdin, stdout, stderr, resize, exit_code: Some(exit_code.boxed()) })
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
            let mut session = self.engine()?.attach(&container.id, request).await?;
            let (stdin, stdout, stderr) = (session.stdin.take(), session.stdout.take(), session.stderr.take());
            let resize = session.resizer().map(|resizer| self.pass_sizes_on(resizer));
            Ok(Session { stdin, stdout, stderr, resize, exit_code: None })
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
        Ok(self.engine()?.images().list().iter().flat_map(images).collect())
    }

    fn image_changes(&self) -> Signal {
        self.node.engine().map_or_else(|| stream::pending().boxed(), |engine| stirs(engine.images().changes()))
    }

    fn pull<'a>(&'a self, reference: &'a str, progress: ProgressSink) -> Answer<'a, Image> {
        async move {
            let reference = parse_reference(reference)?;
            let pulled = self.engine()?.images().pull(&reference, &[], Some(progress)).await;
            // The name that was asked for comes first.
            pulled
                .map(|pulled| image(&pulled, name_of(&pulled)))
                .map_err(|error| BackendError::Unavailable(chain(&error)))
        }
        .boxed()
    }

    fn load(&self, tar: mpsc::Receiver<io::Result<Bytes>>) -> Answer<'_, Vec<Image>> {
        async move {
            let tar = TarReader { pieces: tar, current: Bytes::new() };
            let loaded = self.engine()?.images().load(tar).await;
            let loaded =
                loaded.map_err(|error| BackendError::Invalid { message: chain(&error), causes: Vec::new() })?;
            Ok(loaded.iter().flat_map(images).collect())
        }
        .boxed()
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Vec<String>> {
        async move {
            let store = self.engine()?.images();
            let Some(found) = store.resolve(reference) else {
                return Err(BackendError::NotFound(format!("image \"{reference}\" not found")));
            };
            // A name takes that name away; an id takes the image with all its names.
            let by_name = reference.parse::<ImageRef>().ok().filter(|name| found.references.contains(name));
            let store = store.clone();
            let removed = tokio::task::spawn_blocking(move || match by_name {
                Some(name) => store.remove(&name),
                None => store.remove_image(&found.id),
            })
            .await
            .map_err(|error| BackendError::Internal(error.to_string()))?
            .map_err(|error| BackendError::Conflict(self.told(&error)))?;
            let mut lines: Vec<String> =
                removed.untagged.iter().map(|name| format!("Untagged: {}", name.familiar())).collect();
            lines.extend(removed.deleted.map(|id| format!("Deleted: {id}")));
            Ok(lines)
        }
        .boxed()
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

fn parse_reference(text: &str) -> Result<ImageRef, BackendError> {
    text.parse::<ImageRef>().map_err(|error| BackendError::BadRequest(format!("image {text:?}: {}", chain(&error))))
}

/// Wakes at every change of what is watched.
fn stirs<T: Send + Sync + 'static>(changes: watch::Receiver<T>) -> Signal {
    let stirs =
        stream::unfold(changes, |mut changes| async move { changes.changed().await.ok().map(|()| ((), changes)) });
    stirs.boxed()
}

/// The first name of an image, or its id.
fn name_of(stored: &image::Image) -> String {
    stored.references.first().map_or_else(|| stored.id.to_string(), ImageRef::familiar)
}

/// An image under each of its names.
fn images(stored: &image::Image) -> Vec<Image> {
    match stored.references.as_slice() {
        [] => vec![image(stored, stored.id.to_string())],
        names => names.iter().map(|name| image(stored, name.familiar())).collect(),
    }
}

fn image(stored: &image::Image, name: String) -> Image {
    Image {
        api_version: API_VERSION.to_owned(),
        kind: "Image".to_owned(),
        // Many images do not say when they were built.
        metadata: Meta { name, creation_timestamp: Some(stored.created.unwrap_or(stored.added_at)), ..Meta::default() },
        status: ImageStatus {
            id: stored.id.to_string(),
            references: stored.references.iter().map(ToString::to_string).collect(),
            repo_digests: stored.repo_digests.clone(),
            size_bytes: stored.size_bytes,
            pinned: stored.pinned,
        },
    }
}

/// An upload as a blocking reader; read on a thread that may block.
struct TarReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for TarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
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
            | NodeError::AnotherDirectory { .. }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_image_is_listed_under_each_of_its_names_with_the_age_that_is_known() {
        let added_at = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut stored = image::Image {
            id: image::ImageId::new(image::Digest::of(b"configuration")),
            references: ["web:1", "registry.example/web:2"].map(|name| name.parse().unwrap()).to_vec(),
            repo_digests: Vec::new(),
            size_bytes: 1,
            config: Arc::default(),
            layers: Vec::new(),
            created: None,
            added_at,
            pinned: false,
        };
        let named: Vec<_> = images(&stored).into_iter().map(|image| image.metadata).collect();
        assert_eq!(
            named.iter().map(|meta| meta.name.as_str()).collect::<Vec<_>>(),
            ["web:1", "registry.example/web:2"]
        );
        assert!(named.iter().all(|meta| meta.creation_timestamp == Some(added_at)), "{named:?}");
        stored.references.clear();
        assert_eq!(images(&stored)[0].metadata.name, stored.id.to_string());
    }
}
