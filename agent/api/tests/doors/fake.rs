//! A house that answers from memory, behind the real doors.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use portreeve_api::backend::{Answer, Backend, BackendError, ExecSpec, Input, Output, Session, Signal};
use portreeve_api::v1alpha1::{
    CheckedPart, DiskReport, Image, ImageDetails, ImageStatus, Meta, PartKind, PartState, PruneReport, ReferrerList,
    TagList,
};
use portreeve_engine::image::{Credential, Phase, Progress, ProgressSink};
use portreeve_node::{
    ApplyReport, ContainerHandle, DeleteReport, Deleted, History, Listed, ManifestFile, NamespacedName, ObjectName,
    PlanReport, PlanRequest, PodUsage, PullReport, SourceReport, SourceState, Usage, Versions, Watch, WatchError,
};
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

/// Lists as the node keeps them, and scripted processes.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) pods: Arc<History<Pod>>,
    pub(crate) events: Arc<History<Event>>,
    pub(crate) config_maps: Arc<History<ConfigMap>>,
    versions: Versions,
    pub(crate) logs: PathBuf,
    /// The images' names.
    pub(crate) images: watch::Sender<Vec<&'static str>>,
    /// How many errors the source has.
    pub(crate) errors: watch::Sender<usize>,
    pub(crate) drained: watch::Sender<bool>,
    /// How often the machine was looked at.
    looks: AtomicI64,
}

impl Fake {
    pub(crate) fn new(logs: PathBuf, ring: usize) -> Arc<Fake> {
        let versions = Versions::starting_at(100);
        Arc::new(Fake {
            pods: Arc::new(History::new(versions.clone(), ring, |pod: &mut Pod, version| {
                pod.metadata.resource_version = Some(version.to_string());
            })),
            events: Arc::new(History::new(versions.clone(), ring, |event: &mut Event, version| {
                event.metadata.resource_version = Some(version.to_string());
            })),
            config_maps: Arc::new(History::new(versions.clone(), ring, |map: &mut ConfigMap, version| {
                map.metadata.resource_version = Some(version.to_string());
            })),
            versions,
            logs,
            images: watch::Sender::new(vec!["busybox:latest"]),
            errors: watch::Sender::new(0),
            drained: watch::Sender::new(false),
            looks: AtomicI64::default(),
        })
    }

    /// Puts a pod with one container in; `state` is the container's.
    pub(crate) fn put(&self, namespace: &str, name: &str, labels: &[(&str, &str)], running: bool) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let state = if running { "running" } else { "terminated" };
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": name, "namespace": namespace, "labels": labels, "uid": "8f2f7f0e-0000-4000-8000-000000000001",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": { "nodeName": "edge", "containers": [{ "name": "main", "image": "busybox" }] },
            "status": {
                "phase": if running { "Running" } else { "Succeeded" },
                "conditions": [{ "type": "Ready", "status": "True" }],
                "containerStatuses": [{
                    "name": "main", "ready": running, "restartCount": 0, "image": "busybox", "imageID": "sha256:1",
                    "containerID": "portreeve://1", "state": { (state): { "exitCode": 0 } },
                }],
            },
        }))
        .unwrap();
        self.pods.put(NamespacedName::new(namespace, name), pod);
    }

    pub(crate) fn remove(&self, namespace: &str, name: &str) {
        self.pods.remove(&NamespacedName::new(namespace, name));
    }
}

fn boxed<T: Send + 'static>(result: Result<T, BackendError>) -> BoxFuture<'static, Result<T, BackendError>> {
    async move { result }.boxed()
}

fn stirs<T: Send + Sync + 'static>(changes: &watch::Sender<T>) -> Signal {
    let changed = |mut changes: watch::Receiver<T>| async move { changes.changed().await.ok().map(|()| ((), changes)) };
    stream::unfold(changes.subscribe(), changed).boxed()
}

fn image() -> Image {
    named("busybox:latest")
}

fn named(name: &str) -> Image {
    Image {
        api_version: "portreeve.dev/v1alpha1".into(),
        kind: "Image".into(),
        metadata: Meta { name: name.into(), ..Meta::default() },
        status: ImageStatus { id: "sha256:1".into(), size_bytes: 4_000_000, ..ImageStatus::default() },
    }
}

/// Ends of a pipe: ours to script, the session's to give away.
fn pipe() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(1024)
}

impl Backend for Fake {
    fn versions(&self) -> Versions {
        self.versions.clone()
    }

    fn pods(&self) -> Listed<Pod> {
        self.pods.list()
    }

    fn watch_pods(&self, since: Option<u64>) -> Result<Watch<Pod>, WatchError> {
        self.pods.watch(since)
    }

    fn events(&self) -> Listed<Event> {
        self.events.list()
    }

    fn watch_events(&self, since: Option<u64>) -> Result<Watch<Event>, WatchError> {
        self.events.watch(since)
    }

    fn config_maps(&self) -> Listed<ConfigMap> {
        self.config_maps.list()
    }

    fn watch_config_maps(&self, since: Option<u64>) -> Result<Watch<ConfigMap>, WatchError> {
        self.config_maps.watch(since)
    }

    fn machine(&self) -> Node {
        // It beats once a second, and a second passes between two looks.
        let beat = Timestamp::from_second(self.looks.fetch_add(1, Ordering::Relaxed)).unwrap();
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": "edge" },
            "spec": { "unschedulable": *self.drained.borrow() },
            "status": { "conditions": [
                { "type": "Ready", "status": "True", "lastHeartbeatTime": beat.to_string() },
            ] },
        }))
        .unwrap()
    }

    fn machine_changes(&self) -> Signal {
        stirs(&self.drained)
    }

    fn sources(&self) -> Vec<SourceReport> {
        vec![SourceReport {
            name: "directory".into(),
            kind: "directory".into(),
            path: "/etc/portreeve/manifests".into(),
            state: SourceState::Ready,
            reason: None,
            last_read: Some(Timestamp::UNIX_EPOCH),
            objects: 1,
            errors: *self.errors.borrow(),
            warnings: 0,
            held_back: 0,
            files: Vec::new(),
        }]
    }

    fn source_changes(&self) -> Signal {
        stirs(&self.errors)
    }

    fn metrics(&self) -> Answer<'_, String> {
        boxed(Ok("portreeve_up 1\n".into()))
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        if self.pods.list().items.is_empty() { Err(vec!["no source was read".into()]) } else { Ok(()) }
    }

    fn container(
        &self,
        pod: &NamespacedName,
        container: Option<&str>,
        _previous: bool,
    ) -> Result<ContainerHandle, BackendError> {
        let found =
            self.pods.get(pod).ok_or_else(|| BackendError::NotFound(format!("pods \"{}\" not found", pod.name)))?;
        if container.is_some_and(|container| container != "main") {
            return Err(BackendError::BadRequest(format!("container {container:?} is not valid")));
        }
        let running = found.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
        Ok(ContainerHandle {
            pod: pod.clone(),
            container: "main".into(),
            id: "1".repeat(64).parse().unwrap(),
            sandbox: "2".repeat(64).parse().unwrap(),
            log_path: self.logs.join("0.log"),
            running,
            tty: false,
            stdin: true,
        })
    }

    fn log_path(&self, pod: &NamespacedName, container: Option<&str>, previous: bool) -> Result<PathBuf, BackendError> {
        Ok(self.container(pod, container, previous)?.log_path)
    }

    /// `cat` gives back what it gets; `fail N` says so on stderr and exits with N; `flood` writes
    /// without end; `size` waits for one size of the terminal and exits 0; others are not found.
    fn exec<'a>(&'a self, _container: &'a ContainerHandle, spec: ExecSpec) -> Answer<'a, Session> {
        let (stdin, mut process_in) = pipe();
        let (mut process_out, stdout) = pipe();
        let (mut process_err, stderr) = pipe();
        let (resize, mut sizes) = mpsc::channel(4);
        let words: Vec<&str> = spec.command.iter().map(String::as_str).collect();
        let exit_code: BoxFuture<'static, Result<i32, BackendError>> = match words.as_slice() {
            ["cat"] => async move {
                tokio::io::copy(&mut process_in, &mut process_out).await.unwrap();
                Ok(0)
            }
            .boxed(),
            ["fail", code] => {
                let code = code.parse().unwrap();
                async move {
                    process_err.write_all(b"it failed").await.unwrap();
                    Ok(code)
                }
                .boxed()
            }
            ["flood"] => async move {
                while process_out.write_all(&[b'x'; 512]).await.is_ok() {}
                Ok(0)
            }
            .boxed(),
            ["size"] => async move {
                let (columns, rows) = sizes.recv().await.unwrap();
                process_out.write_all(format!("{columns}x{rows}").as_bytes()).await.unwrap();
                Ok(0)
            }
            .boxed(),
            _ => {
                return boxed(Err(BackendError::Command { message: "exec: not found".into(), code: 127 }));
            }
        };
        // A process runs whether somebody waits for it or not.
        let process = tokio::spawn(exit_code);
        boxed(Ok(Session {
            stdin: spec.stdin.then(|| Box::new(stdin) as Input),
            stdout: spec.stdout.then(|| Box::new(stdout) as Output),
            stderr: spec.stderr.then(|| Box::new(stderr) as Output),
            resize: Some(resize),
            exit_code: Some(async move { process.await.unwrap() }.boxed()),
        }))
    }

    fn attach<'a>(&'a self, _container: &'a ContainerHandle, spec: ExecSpec) -> Answer<'a, Session> {
        let (mut process_out, stdout) = pipe();
        tokio::spawn(async move { process_out.write_all(b"attached").await });
        boxed(Ok(Session {
            stdin: None,
            stdout: spec.stdout.then(|| Box::new(stdout) as Output),
            stderr: None,
            resize: None,
            exit_code: None,
        }))
    }

    /// Port 7 echoes until its input ends and then says so; nobody listens on others.
    fn forward<'a>(&'a self, _pod: &'a NamespacedName, port: u16) -> Answer<'a, (Output, Input)> {
        if port != 7 {
            return boxed(Err(BackendError::Unavailable("connection refused".into())));
        }
        let (near, far) = pipe();
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            write.write_all(&all).await.unwrap();
            write.write_all(b" and that was all").await.unwrap();
            write.shutdown().await.unwrap();
        });
        let (read, write) = tokio::io::split(near);
        boxed(Ok((Box::new(read) as Output, Box::new(write) as Input)))
    }

    fn usage(&self) -> Answer<'_, Vec<PodUsage>> {
        let since = Timestamp::now().as_nanosecond();
        let usage = Usage { cpu_ns: u64::try_from(since / 2).unwrap(), memory_working_set_bytes: 3 << 20 };
        boxed(Ok(vec![PodUsage {
            namespace: "default".into(),
            name: "web".into(),
            at: Timestamp::now(),
            containers: BTreeMap::from([("main".into(), usage)]),
        }]))
    }

    fn images(&self) -> Result<Vec<Image>, BackendError> {
        Ok(self.images.borrow().iter().map(|name| named(name)).collect())
    }

    fn image_changes(&self) -> Signal {
        stirs(&self.images)
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        auth: Vec<Credential>,
        _now: bool,
        progress: ProgressSink,
    ) -> Answer<'a, Image> {
        let known = reference == "busybox" || reference == "private" && auth.len() == 1;
        async move {
            progress.send_replace(Progress { phase: Phase::Fetching, ..Progress::default() });
            if known { Ok(image()) } else { Err(BackendError::Unavailable("registry: 404".into())) }
        }
        .boxed()
    }

    fn push<'a>(
        &'a self,
        reference: &'a str,
        name: &'a str,
        _auth: Vec<Credential>,
        _progress: ProgressSink,
    ) -> Answer<'a, Image> {
        boxed(match reference {
            "busybox" => Ok(named(name)),
            other => Err(BackendError::NotFound(format!("image {other:?} not found"))),
        })
    }

    fn load(&self, mut tar: mpsc::Receiver<io::Result<Bytes>>) -> Answer<'_, Vec<Image>> {
        async move {
            let mut bytes = 0;
            while let Some(piece) = tar.recv().await {
                let piece = piece.unwrap();
                if piece.starts_with(b"no archive") {
                    let message = "it is no archive".to_owned();
                    return Err(BackendError::Invalid { message, causes: Vec::new() });
                }
                bytes += piece.len();
            }
            let mut loaded = image();
            loaded.status.size_bytes = bytes as u64;
            Ok(vec![loaded])
        }
        .boxed()
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Vec<String>> {
        boxed(match reference {
            "busybox" => Ok(vec!["Untagged: busybox:latest".into()]),
            other => Err(BackendError::NotFound(format!("image {other:?} not found"))),
        })
    }

    fn save(&self, references: Vec<String>, _auth: Vec<Credential>) -> Answer<'_, mpsc::Receiver<io::Result<Bytes>>> {
        if references.iter().any(|reference| reference == "nothing") {
            return boxed(Err(BackendError::NotFound("image \"nothing\" not found".into())));
        }
        let (pieces, tar) = mpsc::channel(4);
        tokio::spawn(async move {
            for reference in references {
                let piece =
                    if reference == "broken" { Err(io::Error::other("it broke")) } else { Ok(reference.into()) };
                pieces.send(piece).await.unwrap();
            }
        });
        boxed(Ok(tar))
    }

    fn image_details<'a>(&'a self, reference: &'a str) -> Answer<'a, ImageDetails> {
        boxed(match reference {
            "busybox" => Ok(ImageDetails {
                image: image(),
                manifest: "sha256:2".into(),
                layers: Vec::new(),
                configuration: RawValue::from_string("{ \"os\":  \"linux\" }".into()).unwrap(),
            }),
            other => Err(BackendError::NotFound(format!("image {other:?} not found"))),
        })
    }

    fn tag_image<'a>(&'a self, _reference: &'a str, name: &'a str) -> Answer<'a, Image> {
        boxed(Ok(named(name)))
    }

    fn tags<'a>(&'a self, repository: &'a str, _auth: Vec<Credential>) -> Answer<'a, TagList> {
        boxed(Ok(TagList { repository: repository.into(), tags: vec!["1".into()] }))
    }

    fn referrers<'a>(&'a self, _reference: &'a str, _auth: Vec<Credential>) -> Answer<'a, ReferrerList> {
        boxed(Ok(ReferrerList::default()))
    }

    fn artifact<'a>(
        &'a self,
        reference: &'a str,
        auth: Vec<Credential>,
    ) -> Answer<'a, mpsc::Receiver<io::Result<Bytes>>> {
        self.save(vec![reference.to_owned()], auth)
    }

    fn verify(
        &self,
        references: Vec<String>,
        repair: bool,
        _auth: Vec<Credential>,
    ) -> Answer<'_, BoxStream<'static, CheckedPart>> {
        let parts = references.into_iter().map(move |reference| CheckedPart {
            kind: PartKind::Layer,
            digest: "sha256:1".into(),
            images: vec![reference],
            state: if repair { PartState::Repaired } else { PartState::Whole },
            bytes: 7,
            problem_count: 0,
            problems: Vec::new(),
            unrepaired: None,
        });
        boxed(Ok(stream::iter(parts.collect::<Vec<_>>()).boxed()))
    }

    fn prune_images(&self, all: bool) -> Answer<'_, PruneReport> {
        boxed(Ok(PruneReport { images: vec!["sha256:1".into()], layers: u64::from(all), freed_bytes: 7 }))
    }

    fn pulls(&self) -> Vec<PullReport> {
        vec![PullReport {
            image: "web:1".into(),
            state: "Pulling".into(),
            layers: 5,
            layers_done: 3,
            bytes: 7,
            total_bytes: 9,
            bytes_per_second: 2,
            attempts: 0,
            message: None,
            next_try: None,
            ended_at: None,
        }]
    }

    fn disk(&self) -> Answer<'_, DiskReport> {
        boxed(Ok(DiskReport::default()))
    }

    fn plan(&self, _request: PlanRequest) -> Answer<'_, PlanReport> {
        boxed(Ok(PlanReport::default()))
    }

    fn apply(&self, files: Vec<ManifestFile>, _namespace: Option<String>) -> Answer<'_, ApplyReport> {
        let causes = files.iter().map(|file| format!("{}:1:1: error: bad", file.path.display())).collect();
        boxed(Err(BackendError::Invalid { message: "1 problem(s) in the manifests".into(), causes }))
    }

    fn delete_files(&self, _files: Vec<ManifestFile>, _namespace: Option<String>) -> Answer<'_, DeleteReport> {
        boxed(Ok(DeleteReport::default()))
    }

    fn delete(&self, objects: Vec<ObjectName>) -> Answer<'_, DeleteReport> {
        boxed(match objects.as_slice() {
            [object] if object.name == "elsewhere" => {
                Err(BackendError::Conflict(format!("{object} is defined in /m/a.yaml:3; edit or remove it there")))
            }
            objects => {
                for object in objects {
                    self.remove(&object.namespace, &object.name);
                }
                let file = PathBuf::from("/m/applied/x.yaml");
                let deleted = objects.iter().map(|object| Deleted { object: object.clone(), file: file.clone() });
                Ok(DeleteReport { deleted: deleted.collect(), absent: Vec::new() })
            }
        })
    }

    fn restart<'a>(&'a self, pod: &'a NamespacedName) -> Answer<'a, ()> {
        boxed(match self.pods.get(pod) {
            Some(_) => Ok(()),
            None => Err(BackendError::NotFound(format!("pods {:?} not found", pod.name))),
        })
    }

    fn drain(&self, _grace: Option<Duration>) -> Answer<'_, Vec<NamespacedName>> {
        boxed(Ok(vec![NamespacedName::new("default", "web")]))
    }
}
