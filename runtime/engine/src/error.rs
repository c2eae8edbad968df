//! Why a verb of the engine failed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portreeve_network::{NetworkError, cni::CniError};
pub use portreeve_sys::chain;

use crate::cdi::CdiError;
use crate::{ContainerId, ContainerState, SandboxId};

/// Whether the same call may succeed later without anything being edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It may.
    Later,
    /// It will not, until the request changes.
    Never,
}

/// Why a verb of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such sandbox.
    #[error("no sandbox {0}")]
    UnknownSandbox(SandboxId),
    /// No such container.
    #[error("no container {0}")]
    UnknownContainer(ContainerId),
    /// The sandbox cannot run containers any more.
    #[error("sandbox {id} is not ready: {reason}")]
    SandboxNotReady {
        /// Which.
        id: SandboxId,
        /// Why.
        reason: String,
    },
    /// The container is not in a state for this.
    #[error("container {id} is {state:?}, it would have to be {wanted}")]
    WrongState {
        /// Which.
        id: ContainerId,
        /// What it is.
        state: ContainerState,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// The configuration asks for something impossible.
    #[error("{field}: {message}")]
    Invalid {
        /// The field of the configuration.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// `run_as_non_root` is set and the user comes out as root.
    #[error("container has runAsNonRoot and its user {user:?} is root")]
    RunsAsRoot {
        /// The user as asked for.
        user: String,
    },
    /// The image is not in the store.
    #[error("image {reference:?} is not present")]
    ImageMissing {
        /// Its reference.
        reference: String,
    },
    /// The container's program cannot be run.
    #[error("{message}")]
    Start {
        /// Why, as the shim said it.
        message: String,
        /// The exit code recorded for it (126, 127 or 128).
        code: i32,
    },
    /// The command to execute in a container cannot be run.
    #[error("{message}")]
    Exec {
        /// Why, as the shim said it.
        message: String,
        /// 126 or 127 when the program is at fault.
        code: i32,
    },
    /// A command did not end in time and was killed.
    #[error("command did not end within {timeout:?}")]
    ExecTimeout {
        /// How long it had.
        timeout: Duration,
    },
    /// The shim is gone.
    #[error("the sandbox's shim is gone")]
    ShimLost,
    /// The shim does not answer: its sandbox is given up, and what runs in it is killed.
    #[error("the sandbox's shim did not answer within {waited:?}, its sandbox is given up")]
    ShimSilent {
        /// How long was waited for it.
        waited: Duration,
    },
    /// The shim could not do what it was asked.
    #[error("{0}")]
    Shim(String),
    /// The shim could not be started.
    #[error("starting a shim from {executable}")]
    SpawnShim {
        /// The program.
        executable: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The terminal's size could not be set.
    #[error("resizing a terminal")]
    Resize {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No connection to a port of the pod.
    #[error("connecting to port {port} of sandbox {id}")]
    Forward {
        /// Which.
        id: SandboxId,
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pod's network could not be made or released.
    #[error("network of sandbox {id}")]
    Network {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// The network could not be opened or reconciled.
    #[error("opening the pod network")]
    NetworkOpen(#[source] NetworkError),
    /// Plugins could not attach a sandbox, or not detach it.
    #[error("network of sandbox {id}")]
    Plugins {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: CniError,
    },
    /// The network of plugins cannot be used.
    #[error("using the network of plugins")]
    PluginNetwork(#[source] CniError),
    /// It did not come to an answer: the engine ends.
    #[error("asking the plugins of the network was broken off")]
    PluginsNotAsked,
    /// There has to be one, and there is none.
    #[error("using the network of plugins: {} has no configuration of one; put it there, or allow the built-in network", directory.display())]
    NoPluginNetwork {
        /// Where one is looked for.
        directory: PathBuf,
    },
    /// The image store could not do its part.
    #[error("{action}")]
    Images {
        /// What was tried.
        action: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A cgroup could not be made, read, changed or removed.
    #[error("{action} cgroup {path}")]
    Cgroup {
        /// What was tried.
        action: &'static str,
        /// Its path from the cgroup root.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or directory of the engine.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A state file was written by a newer version; it and what it describes were left alone.
    #[error(
        "{path} has version {found}, this program knows up to {known}: start the newer program again, or drain it first"
    )]
    NewerState {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest one known.
        known: u64,
    },
    /// A shim speaks no version of the protocol that this program knows; it and what it holds were left alone.
    #[error(
        "the shim of sandbox {id} speaks version {found}, this program up to {known}: start the newer program again, \
         or drain it first"
    )]
    NewerShim {
        /// Which.
        id: SandboxId,
        /// Its version.
        found: u32,
        /// The newest one known.
        known: u32,
    },
    /// A state file cannot be understood.
    #[error("understanding {path}")]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// A device that was asked for by name cannot be given.
    #[error(transparent)]
    Cdi(#[from] CdiError),
    /// A container could not be checkpointed; it goes on.
    #[error("checkpointing container {id}")]
    Checkpoint {
        /// Which.
        id: ContainerId,
        /// Why.
        #[source]
        source: Box<portreeve_oci::lifecycle::LifecycleError>,
    },
    /// Containers of another runtime do not have that.
    #[error("{what} is not made of a container of the runtime handler {handler:?}")]
    NotByHandler {
        /// What was asked for.
        what: &'static str,
        /// The handler's name.
        handler: String,
    },
    /// Several parts of a teardown failed; the others were done.
    #[error("{}", crate::error::lines(.0))]
    Teardown(Vec<EngineError>),
}

impl EngineError {
    /// Whether the same call may succeed later without anything being edited.
    pub fn retry(&self) -> Retry {
        match self {
            Self::UnknownSandbox(_)
            | Self::UnknownContainer(_)
            | Self::WrongState { .. }
            | Self::Invalid { .. }
            | Self::Cdi(CdiError::Name { .. })
            | Self::RunsAsRoot { .. }
            | Self::NotByHandler { .. }
            | Self::NewerState { .. }
            | Self::NewerShim { .. } => Retry::Never,
            _ => Retry::Later,
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }

    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }
}

/// As much of a message as is told, 4 KiB: it quotes what was asked for, and has to fit the frames of shims and the headers
/// of gRPC.
#[must_use]
pub fn shortened(message: String) -> String {
    within(message, 4096, char::len_utf8)
}

/// As much of a message as is kept of each container that has ended: 1 KiB as it stands in JSON, where a control character
/// has six bytes. A shim tells of all its containers in one frame.
pub(crate) fn recorded(message: String) -> String {
    within(message, 1024, |c| match c {
        '"' | '\\' => 2,
        c if c.is_ascii_control() => 6,
        c => c.len_utf8(),
    })
}

/// The beginning of a message of which every character counts as so much.
fn within(mut message: String, most: usize, count: impl Fn(char) -> usize) -> String {
    let mut so_far = 0;
    let beyond = message.char_indices().find(|(_, c)| {
        so_far += count(*c);
        so_far > most
    });
    if let Some((end, _)) = beyond {
        message.truncate(end);
        message.push_str("...");
    }
    message
}

/// Several errors on one line.
pub(crate) fn lines(errors: &[EngineError]) -> String {
    errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; ")
}

/// `Ok` without errors; the error itself when there is one; all of them otherwise.
pub(crate) fn all(mut errors: Vec<EngineError>) -> Result<(), EngineError> {
    match errors.len() {
        0 => Ok(()),
        1 => errors.pop().map_or(Ok(()), Err),
        _ => Err(EngineError::Teardown(errors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_and_what_is_recorded_have_their_bounds_however_it_is_written() {
        for text in ["short", "it says \"no\"\n"] {
            assert_eq!((shortened(text.to_owned()), recorded(text.to_owned())), (text.to_owned(), text.to_owned()));
        }
        assert_eq!(shortened("x".repeat(5000)), "x".repeat(4096) + "...");
        assert_eq!(recorded("x".repeat(5000)), "x".repeat(1024) + "...");
        for character in ["\u{1}", "\"", "\\", "\u{7f}", "\u{fffd}", "\u{1f600}"] {
            assert!(shortened(character.repeat(5000)).len() <= 4096 + 3, "{character:?}");
            let written = serde_json::to_string(&recorded(character.repeat(5000))).unwrap();
            assert!(written.len() <= 1024 + 3 + 2, "{character:?}: {}", written.len());
        }
    }
}
