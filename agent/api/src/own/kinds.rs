//! The kinds that are ours, as lists that can be watched.
//!
//! Containers are told of by their pods and change with them; sources, images, the machine and the namespaces are
//! mirrored.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Node, Pod};
use portreeve_node::{Change, ChangeKind, Listed, NamespacedName, SourceReport, Versions};

use crate::app::App;
use crate::backend::{Backend, BackendError};
use crate::failure::Failure;
use crate::mirror::{Changes, Mirror, changes};
use crate::resources::{Identity, Resource, namespaces_of};
use crate::v1alpha1::{API_VERSION, Container, ContainerView, Image, Meta, Source};

/// Changes of images that are remembered.
const IMAGES: usize = 64;
/// Changes of sources that are remembered: each tells of every file, and is as large as that.
const SOURCES: usize = 8;
/// Changes of the machine and of the namespaces that are remembered.
const FEW: usize = 64;

/// What is watched and has no list of its own in the house.
#[derive(Debug)]
pub(crate) struct Mirrors {
    pub(crate) sources: Arc<Mirror<Source>>,
    pub(crate) images: Arc<Mirror<Image>>,
    pub(crate) machine: Arc<Mirror<Node>>,
    pub(crate) namespaces: Arc<Mirror<Namespace>>,
}

impl Mirrors {
    /// The lists of this house.
    pub(crate) fn of(backend: &Arc<dyn Backend>) -> Mirrors {
        let (sources, images, machine, namespaces) =
            (Arc::clone(backend), Arc::clone(backend), Arc::clone(backend), Arc::clone(backend));
        let versions = backend.versions();
        Mirrors {
            sources: mirror(
                &versions,
                SOURCES,
                |source: &mut Source, version| source.metadata.resource_version = Some(version.to_string()),
                move |_| Ok(sources.sources().into_iter().map(named).collect()),
            ),
            images: mirror(
                &versions,
                IMAGES,
                |image: &mut Image, version| image.metadata.resource_version = Some(version.to_string()),
                move |_| images.images(),
            ),
            machine: mirror(
                &versions,
                FEW,
                |node: &mut Node, version| node.metadata.resource_version = Some(version.to_string()),
                move |known| Ok(vec![heartbeats_aside(machine.machine(), known)]),
            ),
            namespaces: mirror(
                &versions,
                FEW,
                |namespace: &mut Namespace, version| namespace.metadata.resource_version = Some(version.to_string()),
                move |_| Ok(namespaces_of(namespaces.as_ref())),
            ),
        }
    }
}

/// A list of a kind that is in no namespace.
fn mirror<T: Resource>(
    versions: &Versions,
    remembered: usize,
    stamp: fn(&mut T, u64),
    read: impl Fn(&[Arc<T>]) -> Result<Vec<T>, BackendError> + Send + Sync + 'static,
) -> Arc<Mirror<T>> {
    let name = |object: &T| NamespacedName::new("", object.identity().name);
    Mirror::new(versions.clone(), remembered, name, stamp, read)
}

fn named(report: SourceReport) -> Source {
    Source {
        api_version: API_VERSION.to_owned(),
        kind: "Source".to_owned(),
        metadata: Meta { name: report.name.clone(), ..Meta::default() },
        status: report,
    }
}

/// The machine with the heartbeats that it had when it was last another: a heart that beats is no change.
fn heartbeats_aside(mut machine: Node, known: &[Arc<Node>]) -> Node {
    let Some(before) = known.iter().find(|before| before.metadata.name == machine.metadata.name) else {
        return machine;
    };
    let now = machine.clone();
    take_heartbeats(&mut machine, before);
    machine.metadata.resource_version.clone_from(&before.metadata.resource_version);
    if machine == **before { machine } else { now }
}

/// Gives `machine` the heartbeats of `other`, condition by condition.
pub(crate) fn take_heartbeats(machine: &mut Node, other: &Node) {
    let beats = other.status.iter().flat_map(|status| status.conditions.iter().flatten());
    for condition in machine.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten()) {
        if let Some(beat) = beats.clone().find(|beat| beat.type_ == condition.type_) {
            condition.last_heartbeat_time.clone_from(&beat.last_heartbeat_time);
        }
    }
}

impl<'a> From<&'a Meta> for Identity<'a> {
    fn from(metadata: &'a Meta) -> Self {
        Identity {
            namespace: metadata.namespace.as_deref(),
            name: &metadata.name,
            uid: "",
            labels: Some(&metadata.labels),
            version: metadata.resource_version.as_deref().unwrap_or_default(),
        }
    }
}

impl Resource for Source {
    const KIND: &'static str = "Source";
    const API_VERSION: &'static str = API_VERSION;
    const PLURAL: &'static str = "sources";

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        Ok(app.mirrors.sources.list()?)
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        Ok(app.mirrors.sources.watch(since, app.backend.source_changes())?)
    }
}

impl Resource for Image {
    const KIND: &'static str = "Image";
    const API_VERSION: &'static str = API_VERSION;
    const PLURAL: &'static str = "images";

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        Ok(app.mirrors.images.list()?)
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        Ok(app.mirrors.images.watch(since, app.backend.image_changes())?)
    }
}

impl Resource for Container {
    const KIND: &'static str = "Container";
    const API_VERSION: &'static str = API_VERSION;
    const PLURAL: &'static str = "containers";
    const FIELDS: &'static [&'static str] = &["metadata.name", "metadata.namespace", "status.pod", "status.state"];

    fn identity(&self) -> Identity<'_> {
        (&self.metadata).into()
    }

    fn field(&self, path: &str) -> String {
        match path {
            "status.pod" => self.status.pod.clone(),
            "status.state" => self.status.state.clone(),
            _ => String::new(),
        }
    }

    fn list(app: &App) -> Result<Listed<Self>, Failure> {
        let pods = app.backend.pods();
        let mut items: Vec<Container> = pods.items.iter().flat_map(|pod| containers_of(pod)).collect();
        items.sort_by(|one, other| place(one).cmp(&place(other)));
        Ok(Listed { resource_version: pods.resource_version, items: items.into_iter().map(Arc::new).collect() })
    }

    fn watch(app: &App, since: u64) -> Result<Changes<Self>, Failure> {
        let pods = changes(app.backend.watch_pods(Some(since))?);
        Ok(pods.map(|batch| batch.map(|batch| batch.iter().flat_map(changed_in).collect())).boxed())
    }
}

fn place(container: &Container) -> (Option<&str>, &str) {
    (container.metadata.namespace.as_deref(), &container.metadata.name)
}

/// The containers of a pod as its status tells of them.
fn containers_of(pod: &Pod) -> Vec<Container> {
    let Some(status) = &pod.status else { return Vec::new() };
    let init = status.init_container_statuses.iter().flatten().map(|one| ("init", one));
    let app = status.container_statuses.iter().flatten().map(|one| ("app", one));
    init.chain(app).map(|(role, one)| container(pod, role, one)).collect()
}

/// What a change of a pod changes in its containers.
fn changed_in(change: &Change<Pod>) -> Vec<Change<Container>> {
    let version = change.resource_version;
    let stamp = |mut container: Container| {
        container.metadata.resource_version = Some(version.to_string());
        container
    };
    let by_name = |pod: &Pod| -> BTreeMap<String, Container> {
        containers_of(pod).into_iter().map(|one| (one.metadata.name.clone(), one)).collect()
    };
    let mut before = change.previous.as_deref().map(by_name).unwrap_or_default();
    let now = if change.kind == ChangeKind::Deleted { BTreeMap::new() } else { by_name(&change.object) };
    let mut changes = Vec::new();
    for (name, object) in now {
        let previous = before.remove(&name);
        let kind = match &previous {
            None => ChangeKind::Added,
            Some(previous) if stamp(previous.clone()) != stamp(object.clone()) => ChangeKind::Modified,
            Some(_) => continue,
        };
        let object = Arc::new(stamp(object));
        changes.push(Change { kind, resource_version: version, object, previous: previous.map(Arc::new) });
    }
    for previous in before.into_values() {
        let (kind, object) = (ChangeKind::Deleted, Arc::new(stamp(previous.clone())));
        changes.push(Change { kind, resource_version: version, object, previous: Some(Arc::new(previous)) });
    }
    changes
}

fn container(pod: &Pod, role: &str, status: &ContainerStatus) -> Container {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let state = status.state.clone().unwrap_or_default();
    let (word, since) = if let Some(running) = state.running {
        ("Running".to_owned(), running.started_at)
    } else if let Some(ended) = state.terminated {
        (ended.reason.unwrap_or_else(|| format!("ExitCode:{}", ended.exit_code)), ended.finished_at)
    } else {
        (state.waiting.and_then(|waiting| waiting.reason).unwrap_or_else(|| "Waiting".to_owned()), None)
    };
    Container {
        api_version: API_VERSION.to_owned(),
        kind: "Container".to_owned(),
        metadata: Meta {
            name: format!("{name}.{}", status.name),
            namespace: pod.metadata.namespace.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ..Meta::default()
        },
        status: ContainerView {
            pod: name,
            name: status.name.clone(),
            role: role.to_owned(),
            state: word,
            ready: status.ready,
            restarts: status.restart_count,
            image: status.image.clone(),
            image_id: status.image_id.clone(),
            container_id: status.container_id.clone().unwrap_or_default(),
            since: since.map(|since| since.0),
        },
    }
}
