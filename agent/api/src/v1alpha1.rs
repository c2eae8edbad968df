//! The objects of `portreeve.dev/v1alpha1`: what is ours and has no Kubernetes kind.

use std::collections::BTreeMap;

use jiff::Timestamp;
pub use portreeve_node::{
    Applied, ApplyReport, DeleteReport, Deleted, FieldDifference, FileReport, FileState, ManifestFile, ObjectChange,
    ObjectName, PlanReport, PlanRequest, PlannedStep, PodChange, PodPlan, ProblemReport, SourceReport, SourceState,
    StorageReport, Stored,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The group and version, as `apiVersion` has it.
pub const API_VERSION: &str = "portreeve.dev/v1alpha1";

/// The part of `metadata` these objects have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// The name.
    pub name: String,
    /// The namespace, of what has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The version of this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// When it came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A list of objects of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectList<T> {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// The kind with `List` behind it.
    pub kind: String,
    /// What a list says of itself.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// The objects.
    pub items: Vec<T>,
}

/// One place that says what should run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `Source`.
    pub kind: String,
    /// Its name on this node.
    pub metadata: Meta,
    /// What was found there.
    pub status: SourceReport,
}

/// One container of one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `Container`.
    pub kind: String,
    /// `pod.container` is the name; a container's own name has no dot.
    pub metadata: Meta,
    /// What is known of it.
    pub status: ContainerView,
}

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerView {
    /// The pod's name.
    pub pod: String,
    /// The container's name in the pod.
    pub name: String,
    /// `app` or `init`.
    pub role: String,
    /// `Running`, or why it waits or ended.
    pub state: String,
    /// Readiness.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: i32,
    /// The image as written.
    pub image: String,
    /// The image's digest.
    pub image_id: String,
    /// With the `portreeve://` in front; empty before the first start.
    pub container_id: String,
    /// Since when it is in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// One name of an image in the store, or an image that has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always `Image`.
    pub kind: String,
    /// The reference, or the id, is the name.
    pub metadata: Meta,
    /// What is known of it.
    pub status: ImageStatus,
}

/// What is known of an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// The digest of its configuration.
    pub id: String,
    /// Tagged references, all that the image has.
    pub references: Vec<String>,
    /// References by digest.
    pub repo_digests: Vec<String>,
    /// What it takes on disk.
    pub size_bytes: u64,
    /// Garbage collection leaves it alone.
    pub pinned: bool,
}

/// All that is known of one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageDetails {
    /// What lists show of it.
    pub image: Image,
    /// The digest of its manifest.
    pub manifest: String,
    /// Its layers, lowest first.
    pub layers: Vec<ImageLayer>,
    /// Its configuration, as it came from its registry or archive.
    pub configuration: Box<RawValue>,
}

/// One layer of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLayer {
    /// The digest of its uncompressed tar.
    pub diff_id: String,
    /// Bytes of its files on disk.
    pub size_bytes: u64,
    /// The digest of what a registry has.
    pub blob: String,
    /// Bytes of what a registry has.
    pub blob_bytes: u64,
    /// What a registry has is here as well.
    pub kept: bool,
}

/// What a removal of images that nobody needs took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PruneReport {
    /// Ids of the images.
    pub images: Vec<String>,
    /// How many layers went, those of pulls that were broken off too.
    pub layers: u64,
    /// Bytes of layers and blobs that are free again.
    pub freed_bytes: u64,
}

/// The tags of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagList {
    /// Registry and repository.
    pub repository: String,
    /// As the registry has them in order.
    pub tags: Vec<String>,
}

/// What refers to an image in its registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferrerList {
    /// The digest that the name means.
    pub digest: String,
    /// Signatures, bills of materials, and others.
    pub referrers: Vec<ReferrerView>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferrerView {
    /// Of its manifest.
    pub digest: String,
    /// What it is.
    pub artifact_type: String,
    /// What kind of manifest that is.
    pub media_type: String,
    /// Bytes of the manifest.
    pub size: u64,
    /// What whoever pushed it says of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A check of the image store, step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Verification {
    /// One part was checked, and repaired if that was wanted.
    Checked(CheckedPart),
    /// That was all.
    Done,
}

/// One part of the image store that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedPart {
    /// What it is.
    pub kind: PartKind,
    /// Of a blob, the diff id of a layer, or the id of the image.
    pub digest: String,
    /// The images that need it, each by one name.
    pub images: Vec<String>,
    /// How it is now.
    pub state: PartState,
    /// Bytes of content that were read of it.
    pub bytes: u64,
    /// Entries that were not as they should be.
    pub problem_count: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<PathProblem>,
    /// Why it is not repaired, when that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrepaired: Option<String>,
}

/// What can be checked by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PartKind {
    /// A document, or a layer as its registry has it.
    Blob,
    /// An unpacked layer.
    Layer,
    /// Directories that an image has on top of its layers.
    Top,
}

/// How a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PartState {
    /// As it was fetched or unpacked.
    Whole,
    /// It was damaged, and is whole now.
    Repaired,
    /// Not as it was.
    Damaged,
    /// An older version unpacked it and kept no digests of it.
    Unrecorded,
}

/// An entry that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathProblem {
    /// Relative to the part; empty for all of it.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

/// What is on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    /// The images.
    pub images: ImageStorage,
    /// What pods have.
    #[serde(flatten)]
    pub pods: StorageReport,
    /// The filesystem of the images.
    pub filesystem: FilesystemReport,
}

/// What images take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageStorage {
    /// How many there are.
    pub count: u64,
    /// How many of them are needed: by a pod, a container, or because they are pinned.
    pub needed: u64,
    /// Bytes of their layers, each counted once.
    pub bytes: u64,
    /// Bytes of the layers that no needed image has.
    pub reclaimable_bytes: u64,
    /// Manifests, configurations, and layers that are kept as they came.
    pub blobs: Stored,
}

/// A filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemReport {
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes that are free for us.
    pub available_bytes: u64,
    /// Its inodes.
    pub inodes: u64,
    /// Those that are free.
    pub inodes_free: u64,
}

/// How far a pull is, one JSON document per line; the last one is `Done` or `Failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum PullProgress {
    /// The registry is asked what the reference means.
    Resolving,
    /// Layers are fetched and unpacked.
    Fetching {
        /// Every layer, lowest first.
        layers: Vec<LayerView>,
        /// The host that has the image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// Hosts that were asked in vain, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tried: Vec<TriedHost>,
    },
    /// It is in the store.
    Done {
        /// What was pulled.
        image: Box<Image>,
    },
    /// It failed, and this is why.
    Failed {
        /// The chain of reasons.
        message: String,
    },
}

/// A host that was asked for an image in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TriedHost {
    /// Host and port.
    pub host: String,
    /// What was wrong.
    pub problem: String,
}

/// One layer of a pull.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerView {
    /// The digest of the blob in the registry.
    pub digest: String,
    /// Bytes to fetch.
    pub total_bytes: u64,
    /// Bytes fetched so far.
    pub fetched_bytes: u64,
    /// Unpacked, verified and in place.
    pub done: bool,
    /// It was here before, nothing is fetched.
    pub present: bool,
    /// Of a push: it may not be passed on, and is not sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
    /// Bytes of its files that are taken from other layers instead of being fetched.
    #[serde(default)]
    pub reused_bytes: u64,
    /// Why all of it is fetched, when it is made for partial pulls and these are on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// What `delete` is asked: manifests, objects by name, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteRequest {
    /// Manifests whose objects go.
    #[serde(default)]
    pub files: Vec<ManifestFile>,
    /// The namespace of objects in `files` that say none; others must be in it.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Objects that go.
    #[serde(default)]
    pub objects: Vec<ObjectName>,
}

/// What `apply` is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplyRequest {
    /// The manifests.
    pub files: Vec<ManifestFile>,
    /// The namespace of objects that say none; others must be in it.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// What `drain` stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainReport {
    /// The pods, as `namespace/name`.
    pub pods: Vec<String>,
}
