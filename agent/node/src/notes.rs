//! What the node notes about a pod beside the engine's records, below `<run>`.
//!
//! One small file per pod, in memory, replaced when something in it changed: the planner's volume
//! records, graceful stops that have begun, hooks that have run, the probes' verdicts, and the
//! last status, from which transition times come. Lost at a reboot, with all it speaks of.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use portreeve_engine::ContainerId;
use portreeve_plan::{Failure, HookState, KillCause, Past, ProbeVerdicts, Resources, Stopping, Verdict, VolumeRecord};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::disk;

const VERSION: u32 = 1;

/// The notes of one pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Notes {
    version: u32,
    pub(crate) volumes: BTreeMap<String, VolumeRecord>,
    pub(crate) containers: BTreeMap<String, ContainerNotes>,
    pub(crate) attempts: BTreeMap<String, u32>,
    pub(crate) pulled_at: BTreeMap<String, Timestamp>,
    /// The last pull of an image that failed: its back-off goes on under another agent.
    pub(crate) failed_pulls: BTreeMap<String, Failure>,
    #[serde(with = "shared")]
    pub(crate) status: Option<Arc<PodStatus>>,
}

/// A shared status, in JSON like any other.
mod shared {
    use super::{Arc, Deserialize, PodStatus, Serialize};

    #[allow(clippy::ref_option, reason = "the signature is serde's")]
    pub(super) fn serialize<S: serde::Serializer>(status: &Option<Arc<PodStatus>>, to: S) -> Result<S::Ok, S::Error> {
        status.as_deref().serialize(to)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Arc<PodStatus>>, D::Error> {
        Ok(Option::<PodStatus>::deserialize(from)?.map(Arc::new))
    }
}

/// The notes of one container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerNotes {
    stopping: Option<StoppingNote>,
    post_start: Option<HookNote>,
    startup: Option<VerdictNote>,
    liveness: Option<VerdictNote>,
    readiness: Option<VerdictNote>,
    /// The limits it was last given, if others than those it was created with.
    pub(crate) resources: Option<Resources>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoppingNote {
    deadline: Timestamp,
    pre_stop_ran: bool,
    cause: KillCause,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum HookNote {
    Done,
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum VerdictNote {
    Success,
    Failure(String),
}

impl VerdictNote {
    fn of(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Unknown => None,
            Verdict::Success => Some(Self::Success),
            Verdict::Failure { message } => Some(Self::Failure(message.clone())),
        }
    }

    fn verdict(note: Option<&Self>) -> Verdict {
        match note {
            None => Verdict::Unknown,
            Some(Self::Success) => Verdict::Success,
            Some(Self::Failure(message)) => Verdict::Failure { message: message.clone() },
        }
    }
}

impl ContainerNotes {
    pub(crate) fn stopping(&self) -> Option<Stopping> {
        self.stopping.as_ref().map(|note| Stopping {
            deadline: note.deadline,
            pre_stop_ran: note.pre_stop_ran,
            cause: note.cause,
        })
    }

    pub(crate) fn set_stopping(&mut self, stopping: &Stopping) {
        self.stopping = Some(StoppingNote {
            deadline: stopping.deadline,
            pre_stop_ran: stopping.pre_stop_ran,
            cause: stopping.cause,
        });
    }

    pub(crate) fn post_start(&self) -> HookState {
        match &self.post_start {
            None => HookState::Pending,
            Some(HookNote::Done) => HookState::Done,
            Some(HookNote::Failed(message)) => HookState::Failed { message: message.clone() },
        }
    }

    pub(crate) fn set_post_start(&mut self, result: Result<(), String>) {
        self.post_start = Some(match result {
            Ok(()) => HookNote::Done,
            Err(message) => HookNote::Failed(message),
        });
    }

    pub(crate) fn verdicts(&self) -> ProbeVerdicts {
        ProbeVerdicts {
            startup: VerdictNote::verdict(self.startup.as_ref()),
            liveness: VerdictNote::verdict(self.liveness.as_ref()),
            readiness: VerdictNote::verdict(self.readiness.as_ref()),
        }
    }

    pub(crate) fn set_verdicts(&mut self, verdicts: &ProbeVerdicts) {
        self.startup = VerdictNote::of(&verdicts.startup);
        self.liveness = VerdictNote::of(&verdicts.liveness);
        self.readiness = VerdictNote::of(&verdicts.readiness);
    }
}

impl Notes {
    pub(crate) fn of(&self, id: &ContainerId) -> ContainerNotes {
        self.containers.get(id.as_str()).cloned().unwrap_or_default()
    }

    pub(crate) fn of_mut(&mut self, id: &ContainerId) -> &mut ContainerNotes {
        self.containers.entry(id.as_str().to_owned()).or_default()
    }
}

/// The notes of one pod on disk.
#[derive(Debug)]
pub(crate) struct NoteBook {
    path: PathBuf,
    pub(crate) notes: Notes,
    written: Notes,
}

impl NoteBook {
    /// Opens the notes in the pod's directory; damaged or newer ones are as good as none.
    pub(crate) fn open(directory: &Path) -> Self {
        let path = directory.join("state.json");
        let notes = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Notes>(&bytes) {
                Ok(notes) if notes.version <= VERSION => notes,
                Ok(_) => {
                    warn!(path = %path.display(), "notes of a newer agent were not used");
                    Notes::default()
                }
                Err(error) => {
                    warn!(path = %path.display(), error = %error, "damaged notes were not used");
                    Notes::default()
                }
            },
            Err(_) => Notes::default(),
        };
        Self { path, written: notes.clone(), notes }
    }

    /// Writes the notes if they changed.
    pub(crate) fn save(&mut self) -> io::Result<()> {
        self.notes.version = VERSION;
        if self.notes == self.written {
            return Ok(());
        }
        if let Some(parent) = self.path.parent() {
            disk::ensure_directory(parent, 0o700)?;
        }
        disk::replace_volatile(&self.path, &serde_json::to_vec(&self.notes)?, 0o600)?;
        self.written = self.notes.clone();
        Ok(())
    }
}

/// What of a pod that does not always restart outlives a reboot: one small file, on disk.
#[derive(Debug)]
pub(crate) struct PastBook {
    path: PathBuf,
    past: Option<Arc<Past>>,
}

impl PastBook {
    /// Opens it in the pod's directory on disk; what is damaged is as good as none.
    pub(crate) fn open(directory: &Path) -> Self {
        let path = directory.join("past.json");
        let past = fs::read(&path).ok().and_then(|bytes| match serde_json::from_slice::<Past>(&bytes) {
            Ok(past) => Some(Arc::new(past)),
            Err(error) => {
                warn!(path = %path.display(), error = %error, "the damaged past of a pod was not used");
                None
            }
        });
        Self { path, past }
    }

    /// What was kept last.
    pub(crate) fn past(&self) -> Option<Arc<Past>> {
        self.past.clone()
    }

    /// Whether this is on disk.
    pub(crate) fn has(&self, past: Option<&Past>) -> bool {
        self.past.as_deref() == past
    }

    /// Keeps `past` over crashes and reboots.
    pub(crate) async fn keep(&mut self, past: Option<Arc<Past>>) -> io::Result<()> {
        let (path, next) = (self.path.clone(), past.clone());
        let written = tokio::task::spawn_blocking(move || match next {
            Some(past) => {
                if let Some(parent) = path.parent() {
                    disk::ensure_directory(parent, 0o700)?;
                }
                disk::replace_blocking(&path, &serde_json::to_vec(&*past)?, 0o600)
            }
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        });
        written.await.map_err(io::Error::other)??;
        self.past = past;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_survive_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let id: ContainerId = "ab".repeat(32).parse().unwrap();
        let mut book = NoteBook::open(dir.path());
        let verdicts = ProbeVerdicts {
            startup: Verdict::Success,
            liveness: Verdict::Unknown,
            readiness: Verdict::Failure { message: "no".into() },
        };
        let stopping = Stopping { deadline: Timestamp::UNIX_EPOCH, pre_stop_ran: true, cause: KillCause::PodRemoved };
        let notes = book.notes.of_mut(&id);
        notes.set_verdicts(&verdicts);
        notes.set_stopping(&stopping);
        notes.set_post_start(Err("hook".into()));
        book.save().unwrap();

        let again = NoteBook::open(dir.path()).notes.of(&id);
        assert_eq!(again.verdicts(), verdicts);
        assert_eq!(again.stopping(), Some(stopping));
        assert_eq!(again.post_start(), HookState::Failed { message: "hook".into() });
    }

    #[test]
    fn damaged_notes_are_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json"), "{\"version\":").unwrap();
        assert_eq!(NoteBook::open(dir.path()).notes, Notes::default());
    }
}
