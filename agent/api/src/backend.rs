//! What the doors need from the house: the trait [`Backend`].
//!
//! The node is the one real implementation ([`crate::NodeBackend`]); tests put a scripted one
//! behind the same router.

use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use portreeve_engine::image::{Credential, ProgressSink};
use portreeve_node::{
    ApplyReport, ContainerHandle, DeleteReport, Listed, ManifestFile, NamespacedName, ObjectName, PlanReport,
    PlanRequest, PodUsage, PullReport, SourceReport, Versions, Watch, WatchError,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::v1alpha1::{CheckedPart, DiskReport, Image, ImageDetails, PruneReport, ReferrerList, TagList};

/// Why the house could not do what a client asked; each variant is one HTTP code.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The object does not exist (404).
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense as asked (400).
    #[error("{0}")]
    BadRequest(String),
    /// What was sent is not valid (422).
    #[error("{message}")]
    Invalid {
        /// All in one line.
        message: String,
        /// Each problem, as `file:line:column: error: field: what (fix)`.
        causes: Vec<String>,
    },
    /// The command cannot be run; it is not the container's fault.
    #[error("{message}")]
    Command {
        /// Why.
        message: String,
        /// The exit code a shell would give: 126 or 127.
        code: i32,
    },
    /// The state of the object forbids it (409).
    #[error("{0}")]
    Conflict(String),
    /// It cannot be done now; trying again may help (503).
    #[error("{0}")]
    Unavailable(String),
    /// Something here failed (500).
    #[error("{0}")]
    Internal(String),
}

/// The answer to an asynchronous question.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// Says that something is another than before, not what; at least once after every change.
pub type Signal = BoxStream<'static, ()>;

/// A byte stream from a process.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;
/// A byte stream to a process.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// A process in a container, with the client's end of its standard streams.
///
/// Dropping it gives the streams up; what that means for the process is the engine's to say.
pub struct Session {
    /// Standard input, when asked for.
    pub stdin: Option<Input>,
    /// Standard output; of a terminal: everything.
    pub stdout: Option<Output>,
    /// Standard error; none with a terminal.
    pub stderr: Option<Output>,
    /// New sizes of the terminal, as columns and rows.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    /// The exit code, of a command that was run; death by signal N is 128 + N. None when
    /// attached to what others started: the session then lasts as long as its output.
    pub exit_code: Option<BoxFuture<'static, Result<i32, BackendError>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}

/// What to run in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSpec {
    /// The argument vector; never empty.
    pub command: Vec<String>,
    /// On a terminal of its own.
    pub tty: bool,
    /// With a standard input.
    pub stdin: bool,
    /// With a standard output.
    pub stdout: bool,
    /// With a standard error.
    pub stderr: bool,
}

/// Everything the doors need from the house.
///
/// What is asked of memory answers at once; what touches the kernel or the disk is a future.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The counter from which every list takes its versions.
    fn versions(&self) -> Versions;
    /// The pods with their full status.
    fn pods(&self) -> Listed<Pod>;
    /// Follows the pods from a version on.
    fn watch_pods(&self, since: Option<u64>) -> Result<Watch<Pod>, WatchError>;
    /// The events.
    fn events(&self) -> Listed<Event>;
    /// Follows the events from a version on.
    fn watch_events(&self, since: Option<u64>) -> Result<Watch<Event>, WatchError>;
    /// The ConfigMaps of the manifests.
    fn config_maps(&self) -> Listed<ConfigMap>;
    /// Follows the ConfigMaps from a version on.
    fn watch_config_maps(&self, since: Option<u64>) -> Result<Watch<ConfigMap>, WatchError>;
    /// This machine.
    fn machine(&self) -> Node;
    /// Wakes when the machine changes.
    fn machine_changes(&self) -> Signal;
    /// Where intent comes from, and what is wrong with it.
    fn sources(&self) -> Vec<SourceReport>;
    /// Wakes when a source changes.
    fn source_changes(&self) -> Signal;
    /// The text of `/metrics`.
    fn metrics(&self) -> Answer<'_, String>;
    /// The answer to `/readyz`.
    ///
    /// # Errors
    /// One line per reason why the agent cannot do its work.
    fn ready(&self) -> Result<(), Vec<String>>;

    /// Finds a container of a pod; `None` means the only one, or the default one.
    ///
    /// # Errors
    /// [`BackendError`] when there is none, or the choice is not clear.
    fn container(
        &self,
        pod: &NamespacedName,
        container: Option<&str>,
        previous: bool,
    ) -> Result<ContainerHandle, BackendError>;
    /// Where the log of a container is, also of one that was taken down with its pod ended.
    ///
    /// # Errors
    /// [`BackendError`] when there is none, or the choice is not clear.
    fn log_path(&self, pod: &NamespacedName, container: Option<&str>, previous: bool) -> Result<PathBuf, BackendError>;
    /// Runs a command in a container.
    fn exec<'a>(&'a self, container: &'a ContainerHandle, spec: ExecSpec) -> Answer<'a, Session>;
    /// Joins the standard streams of a container's first process.
    fn attach<'a>(&'a self, container: &'a ContainerHandle, spec: ExecSpec) -> Answer<'a, Session>;
    /// Connects to a port on the pod's loopback.
    fn forward<'a>(&'a self, pod: &'a NamespacedName, port: u16) -> Answer<'a, (Output, Input)>;
    /// What every running container uses now.
    fn usage(&self) -> Answer<'_, Vec<PodUsage>>;

    /// The names of the images in the store, each with its image; the id of one that has no name.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where there is no store.
    fn images(&self) -> Result<Vec<Image>, BackendError>;
    /// Wakes when an image comes, goes, or changes its names.
    fn image_changes(&self) -> Signal;
    /// Pulls an image with the logins that may be tried, `now` also when the window for that is closed; the sender
    /// always holds how far it is.
    fn pull<'a>(
        &'a self,
        reference: &'a str,
        auth: Vec<Credential>,
        now: bool,
        progress: ProgressSink,
    ) -> Answer<'a, Image>;
    /// Sends an image, by reference or id, to the registry of `name`; the sender always holds how far it is.
    fn push<'a>(
        &'a self,
        reference: &'a str,
        name: &'a str,
        auth: Vec<Credential>,
        progress: ProgressSink,
    ) -> Answer<'a, Image>;
    /// The tags that a repository has in its registry.
    fn tags<'a>(&'a self, repository: &'a str, auth: Vec<Credential>) -> Answer<'a, TagList>;
    /// What refers to an image in its registry.
    fn referrers<'a>(&'a self, reference: &'a str, auth: Vec<Credential>) -> Answer<'a, ReferrerList>;
    /// The files of an artifact as a tar; it ends with an error when it could not be written to its end.
    fn artifact<'a>(
        &'a self,
        reference: &'a str,
        auth: Vec<Credential>,
    ) -> Answer<'a, mpsc::Receiver<io::Result<Bytes>>>;
    /// Loads a tar of images and tells their names; `tar` ends when its sender is dropped.
    fn load(&self, tar: mpsc::Receiver<io::Result<Bytes>>) -> Answer<'_, Vec<Image>>;
    /// Images as one tar, by reference or id; it ends with an error when it could not be written to its end.
    fn save(&self, references: Vec<String>, auth: Vec<Credential>) -> Answer<'_, mpsc::Receiver<io::Result<Bytes>>>;
    /// Checks images, by reference or id, or all there are; each part is told of, and repaired if that is wanted. The
    /// check ends when nobody listens.
    fn verify(
        &self,
        references: Vec<String>,
        repair: bool,
        auth: Vec<Credential>,
    ) -> Answer<'_, BoxStream<'static, CheckedPart>>;
    /// Removes an image by reference or id and says what went.
    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Vec<String>>;
    /// All that is known of an image, by reference or id.
    fn image_details<'a>(&'a self, reference: &'a str) -> Answer<'a, ImageDetails>;
    /// Gives the image with this reference or id one more name.
    fn tag_image<'a>(&'a self, reference: &'a str, name: &'a str) -> Answer<'a, Image>;
    /// Removes the images that no pod and no container needs: those without a tag, or `all`.
    fn prune_images(&self, all: bool) -> Answer<'_, PruneReport>;
    /// The pulls of pods' images that run, or wait for their next try.
    fn pulls(&self) -> Vec<PullReport>;
    /// What is on the disk, and what of it could go.
    fn disk(&self) -> Answer<'_, DiskReport>;

    /// What would change.
    fn plan(&self, request: PlanRequest) -> Answer<'_, PlanReport>;
    /// Validates manifests and writes one file per object under `applied/`; objects without a namespace are in the
    /// one given, and others must be.
    fn apply(&self, files: Vec<ManifestFile>, namespace: Option<String>) -> Answer<'_, ApplyReport>;
    /// Removes the files under `applied/` that hold the objects of these manifests; the namespace as for `apply`.
    fn delete_files(&self, files: Vec<ManifestFile>, namespace: Option<String>) -> Answer<'_, DeleteReport>;
    /// Removes the files under `applied/` that hold these objects.
    fn delete(&self, objects: Vec<ObjectName>) -> Answer<'_, DeleteReport>;
    /// Restarts the containers of a pod, within its grace period.
    fn restart<'a>(&'a self, pod: &'a NamespacedName) -> Answer<'a, ()>;
    /// Stops every pod and starts none until the agent is started again.
    fn drain(&self, grace: Option<Duration>) -> Answer<'_, Vec<NamespacedName>>;
}
