//! What the facade answers: reports in plain types that a door serialises as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::Timestamp;
use portreeve_manifests::ObjectKey;
use serde::{Deserialize, Serialize};

use crate::history::NamespacedName;

/// What a source says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceReport {
    /// Name of the source, unique on this node: its kind and place.
    pub name: String,
    /// Kind of source: `directory` or `crd`.
    pub kind: String,
    /// Where it reads from.
    pub path: PathBuf,
    /// Whether it can be read.
    pub state: SourceState,
    /// Why it is unreadable, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was last read in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_read: Option<Timestamp>,
    /// Objects it owns now.
    pub objects: usize,
    /// Errors over all its files.
    pub errors: usize,
    /// Warnings over all its files.
    pub warnings: usize,
    /// Objects that run in an older version than their file, because the file is broken.
    pub held_back: usize,
    /// Its files in order of path.
    pub files: Vec<FileReport>,
}

/// Whether a source can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceState {
    /// Not read in full yet: nothing is removed.
    Starting,
    /// Read in full.
    Ready,
    /// Cannot be read: what runs goes on.
    Unreadable,
}

/// What a source says about one of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// What became of it.
    pub state: FileState,
    /// Objects it owns, as `Pod default/web`.
    pub objects: Vec<String>,
    /// Its problems.
    pub problems: Vec<ProblemReport>,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileState {
    /// Everything in it is in force.
    Loaded,
    /// Some of its documents are not in force.
    Partial,
    /// Nothing of its present content is in force; what it said before goes on.
    HeldBack,
}

/// One problem of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemReport {
    /// `error` or `warning`.
    pub severity: String,
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 if the problem has no place in the file.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// The object, as `Pod default/web`, when it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Field path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// Short machine-readable reason, e.g. `Conflict`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl ProblemReport {
    /// Whether it keeps something from being in force.
    pub fn is_error(&self) -> bool {
        self.severity == "error"
    }
}

impl std::fmt::Display for ProblemReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}: ", self.severity)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", self.message)?;
        match &self.fix {
            Some(fix) => write!(f, " ({fix})"),
            None => Ok(()),
        }
    }
}

/// A manifest handed to the facade: the bytes and the name that messages use for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path as the user knows it; `-` for standard input.
    pub path: PathBuf,
    /// Content.
    pub content: String,
}

/// How far what is desired has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Every object that is desired: the file that owns it, and the hash of its content.
    pub desired: BTreeMap<ObjectKey, (PathBuf, String)>,
    /// The files of pods that are being removed.
    pub leaving: BTreeSet<PathBuf>,
    /// The pods for which something is still to be done, and what comes first or stands in the way.
    pub busy: BTreeMap<NamespacedName, String>,
}

/// What a plan is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanRequest {
    /// Manifests laid over the desired set; none: what the agent would do next.
    #[serde(default)]
    pub files: Vec<ManifestFile>,
    /// Treat the files as the whole directory: what they don't name is removed.
    #[serde(default)]
    pub prune: bool,
}

/// What would be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// Pods for which something would be done, or could not be.
    pub pods: Vec<PodPlan>,
    /// ConfigMaps and Secrets that would change.
    pub objects: Vec<ObjectChange>,
    /// Problems of the given files; without files, the errors of the sources.
    pub problems: Vec<ProblemReport>,
    /// The node is drained: until the agent is started again nothing is started, whatever the plan says.
    #[serde(default)]
    pub drained: bool,
}

impl PlanReport {
    /// Whether anything would be done.
    pub fn has_changes(&self) -> bool {
        !self.objects.is_empty()
            || self.pods.iter().any(|pod| pod.change != PodChange::Unchanged || !pod.steps.is_empty())
    }

    /// Whether a given file, or without files a source, has an error.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(ProblemReport::is_error)
    }
}

/// What happens to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodChange {
    /// It is new.
    Create,
    /// It differs.
    Update,
    /// It is removed.
    Delete,
    /// Its desired state is the same; steps are repairs or work in progress.
    Unchanged,
}

/// What would be done with one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPlan {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its uid; none while it is only a preview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// What happens to it.
    pub change: PodChange,
    /// The dearest cost class of its differences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// How it differs from what is applied.
    pub differences: Vec<FieldDifference>,
    /// Steps in order.
    pub steps: Vec<PlannedStep>,
    /// What is started when these steps have had their effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<PlannedStart>,
    /// When the agent looks again although nothing happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake_at: Option<Timestamp>,
    /// Why nothing is done, if something stands in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
}

/// One differing field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldDifference {
    /// Field path.
    pub field: String,
    /// Cost class: `live`, `in-place`, `restart` or `recreate`.
    pub cost: String,
    /// Value that is applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Value that is desired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStep {
    /// What is done, e.g. `StartContainer nginx`.
    pub action: String,
    /// Why.
    pub reason: String,
    /// Cost class.
    pub cost: String,
    /// Of a pull: the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Of a pull: bytes of layers that are not here; none when nobody could say within a few seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch_bytes: Option<u64>,
}

/// Containers that are started after the steps of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStart {
    /// Their names, in the order of the pod.
    pub containers: Vec<String>,
    /// What must have happened before, e.g. `init container setup has ended`.
    pub when: String,
}

/// A ConfigMap or Secret that would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectChange {
    /// `ConfigMap` or `Secret`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `create`, `update` or `delete`.
    pub change: String,
    /// Keys that differ; never values.
    pub keys: Vec<String>,
}

/// What `apply` did with one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `created`, `configured` or `unchanged`.
    pub outcome: String,
    /// File that now holds it.
    pub file: PathBuf,
}

/// What `apply` did, and what it had to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplyReport {
    /// The objects in order of the input.
    pub applied: Vec<Applied>,
    /// Warnings.
    pub warnings: Vec<ProblemReport>,
}

/// Which object `delete` means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// Kind: `Pod`, `ConfigMap` or `Secret`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What `delete` removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The object.
    #[serde(flatten)]
    pub object: ObjectName,
    /// The file that held it.
    pub file: PathBuf,
}

/// What `delete` did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteReport {
    /// What was there and is removed.
    pub deleted: Vec<Deleted>,
    /// What was not there.
    pub absent: Vec<ObjectName>,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullReport {
    /// Reference as the manifest says it.
    pub image: String,
    /// `Pulling`, `Failed`, or for some minutes afterwards `Pulled`.
    pub state: String,
    /// Layers of the image, 0 while unknown.
    pub layers: u64,
    /// Those that are here.
    pub layers_done: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Bytes in all, 0 while unknown.
    pub total_bytes: u64,
    /// Bytes received in each second since the first layer was asked for.
    pub bytes_per_second: u64,
    /// Attempts that failed.
    pub attempts: u32,
    /// Why the last attempt failed; of what was pulled: which host gave it, and which were asked in vain before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When the next attempt is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try: Option<Timestamp>,
    /// When it was pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// What a container or pod uses right now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// CPU time since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that cannot be reclaimed at once, in bytes.
    pub memory_working_set_bytes: u64,
}

/// Use of one pod, by container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodUsage {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// When it was read.
    pub at: Timestamp,
    /// Use by container name.
    pub containers: BTreeMap<String, Usage>,
}

/// What pods have on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageReport {
    /// The writable parts of containers.
    pub containers: Stored,
    /// Volumes on disk.
    pub volumes: Stored,
    /// The logs of pods, those that are kept after their end too.
    pub logs: Stored,
}

/// How many of a kind there are, and what they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// How many.
    pub count: u64,
    /// Bytes on the filesystem.
    pub bytes: u64,
}
