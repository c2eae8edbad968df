//! Errors of the facade, each in the words of who asked.

use std::path::PathBuf;
use std::time::Duration;

use crate::history::NamespacedName;
use crate::report::{ObjectName, ProblemReport};

/// Why the node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process lacks a privilege.
    #[error("portreeve must run as root (effective user id is {euid})")]
    NotRoot {
        /// The effective user id.
        euid: u32,
    },
    /// A directory cannot be made or locked down.
    #[error("preparing {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The ledger cannot be used.
    #[error("reading the ledger")]
    Ledger(#[from] crate::desired::LedgerError),
    /// What is noted of the pods cannot be used.
    #[error("reading what is noted of the pods")]
    Notes(#[from] crate::notes::NotesError),
    /// The event ring cannot be used.
    #[error("reading the events")]
    Events(#[from] crate::events::EventsError),
    /// The place for volumes cannot be had.
    #[error("preparing the volumes")]
    Volumes(#[from] crate::volumes::VolumeError),
    /// The manifests cannot be watched.
    #[error("watching the manifests")]
    Source(#[from] crate::source::SourceError),
    /// A metric cannot be registered.
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
}

/// Why a request to the node fails; the doors turn it into their own codes.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No such pod.
    #[error("pods {0:?} not found", name.name)]
    PodNotFound {
        /// The pod.
        name: NamespacedName,
    },
    /// Nothing is started on a drained node.
    #[error("pod {name} is not restarted: the node is drained; start the agent again")]
    Drained {
        /// The pod.
        name: NamespacedName,
    },
    /// The pod has no such container.
    #[error("container {container} is not valid for pod {pod}")]
    ContainerNotFound {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
    },
    /// The pod has several containers and none was named.
    #[error(
        "a container name must be specified for pod {pod}, choose one of: [{}]",
        choices.join(" ")
    )]
    ContainerRequired {
        /// The pod's name.
        pod: String,
        /// Its containers.
        choices: Vec<String>,
    },
    /// The container is there but not in the state that the request needs.
    #[error("container {container} in pod {pod} is {state}")]
    ContainerState {
        /// The pod's name.
        pod: String,
        /// The container's name.
        container: String,
        /// What it is instead, e.g. `waiting to start: ContainerCreating`.
        state: String,
    },
    /// A volume cannot be made or removed.
    #[error(transparent)]
    Volumes(#[from] crate::volumes::VolumeError),
    /// The given manifests have errors.
    #[error("{} problem(s) in the manifests", .0.len())]
    Invalid(Vec<ProblemReport>),
    /// The object lives in a file that its owner edits.
    #[error("{object} is defined in {}:{line}; edit or remove it there", file.display())]
    OwnedElsewhere {
        /// The object.
        object: ObjectName,
        /// The file that owns it.
        file: PathBuf,
        /// Line of the document.
        line: u32,
    },
    /// More than the object is in its file, which belongs to `apply`.
    #[error("the file of {object} has something else at {}:{line}; move that to another file first", file.display())]
    Crowded {
        /// The object.
        object: ObjectName,
        /// Its file.
        file: PathBuf,
        /// Line of what else is there.
        line: u32,
    },
    /// The manifests directory, or what is mounted in it, is not there: a file would not land where manifests are read.
    #[error("{path} is not the directory that was read: mount it or put it back first; nothing was changed")]
    AnotherDirectory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said, if there is none at all.
        #[source]
        source: Option<std::io::Error>,
    },
    /// Nobody reads manifests.
    #[error("the agent runs without manifests (--cri-only): nothing was changed; start it without that first")]
    NotWatched,
    /// The file of an object that is desired is not there.
    #[error(
        "{object} is not deleted: its file {path} is not there, and `portreeve get sources` says why it still counts"
    )]
    FileMissing {
        /// The object.
        object: ObjectName,
        /// The file.
        path: PathBuf,
    },
    /// Files were removed, and the agent has not followed.
    #[error(
        "{} removed, but the agent has not followed within {} s; `portreeve get sources` says why",
        paths(.files), .within.as_secs()
    )]
    NotFollowed {
        /// The files.
        files: Vec<PathBuf>,
        /// How long it was waited for.
        within: Duration,
    },
    /// A file cannot be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be removed.
    #[error("removing {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("writing {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The engine refused.
    #[error("{0}")]
    Runtime(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Stopped,
}

fn paths(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
