//! What the node notes about a pod beside the engine's records, below `<run>`.
//!
//! One small file per pod, in memory, replaced when something in it changed: the planner's volume
//! records, graceful stops that have begun, hooks that have run, the probes' verdicts, and the
//! last status, from which transition times come. Lost at a reboot, with all it speaks of.
//! Beside it, on disk, the past of a pod that does not always restart: see [`PastBook`].
//!
//! **Invariant:** what a newer agent noted is never overwritten: [`refuse_newer`] comes before any pod.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use portreeve_engine::ContainerId;
use portreeve_plan::{Failure, HookState, KillCause, Past, ProbeVerdicts, Resources, Stopping, Verdict, VolumeRecord};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::disk;

/// Version of the notes and of the past that this agent writes, and the newest it reads.
const VERSION: u32 = 1;
/// The notes of a pod, in its directory below `<run>`.
const NOTES: &str = "state.json";
/// The past of a pod, in its directory below `<root>`.
const PAST: &str = "past.json";
/// What the past is renamed to when it cannot be read.
const DAMAGED_PAST: &str = "past.json.damaged";

/// Why what is noted of a pod cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NotesError {
    /// It cannot be read.
    #[error("reading {path}")]
    Read {
        /// The file, or the directory of all pods.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is no such file.
    #[error("{path} is damaged")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it is damaged.
        #[source]
        source: serde_json::Error,
    },
    /// A newer agent wrote it.
    #[error("{path} has version {found}, this agent knows {VERSION}: use the newer agent")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

#[derive(Deserialize)]
struct Version {
    /// Files without it are of the first version.
    #[serde(default)]
    version: u32,
}

/// Reads a file that says its version; a missing one is `None`.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NotesError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(NotesError::Read { path: path.to_owned(), source }),
    };
    let parse = |source| NotesError::Parse { path: path.to_owned(), source };
    let Version { version } = serde_json::from_slice(&bytes).map_err(parse)?;
    if version > VERSION {
        return Err(NotesError::Newer { path: path.to_owned(), found: version });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(parse)
}

/// Looks at what is noted of each pod, in `disk` (`<root>/pods`) and `memory` (`<run>/pods`), and changes nothing.
///
/// # Errors
/// [`NotesError::Newer`] for the first file of a newer agent, [`NotesError::Read`] for the first one that is there and
/// cannot be read: what the pod has come to is in it. What is damaged is no error here: [`NoteBook::open`] and
/// [`PastBook::open`] go on without it.
pub(crate) fn refuse_newer(disk: &Path, memory: &Path) -> Result<(), NotesError> {
    for (pods, name) in [(disk, PAST), (memory, NOTES)] {
        let failed = |source| NotesError::Read { path: pods.to_owned(), source };
        let entries = match fs::read_dir(pods) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed(source)),
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path().join(name);
            match read::<Version>(&path) {
                Ok(_) | Err(NotesError::Parse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

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
    /// Opens the notes in the pod's directory; damaged ones are as good as none.
    pub(crate) fn open(directory: &Path) -> Self {
        let path = directory.join(NOTES);
        let notes = match read::<Notes>(&path) {
            Ok(notes) => notes.unwrap_or_default(),
            Err(error) => {
                warn!(error = %portreeve_engine::chain(&error), "notes of a pod were not used");
                Notes::default()
            }
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
///
/// Without it such a pod would run a second time. One that cannot be read is therefore not taken for none: it is kept
/// aside, and an unknown past takes its place, with which the pod has ended ([`Past::is_unknown`]).
#[derive(Debug)]
pub(crate) struct PastBook {
    path: PathBuf,
    past: Option<Arc<Past>>,
}

/// The past with its version, as it is on disk.
#[derive(Serialize, Deserialize)]
struct PastFile<P> {
    #[serde(default)]
    version: u32,
    #[serde(flatten)]
    past: P,
}

impl PastBook {
    /// Opens it in the pod's directory on disk.
    ///
    /// # Errors
    /// [`NotesError`]: it is there and says nothing, see [`PastBook::begin_anew`].
    pub(crate) fn open(directory: &Path) -> Result<Self, NotesError> {
        let path = directory.join(PAST);
        let past = read::<PastFile<Past>>(&path)?.map(|file| Arc::new(file.past));
        Ok(Self { path, past })
    }

    /// Puts `unknown` in the place of a past that cannot be read; returns where that one is kept.
    ///
    /// # Errors
    /// The kernel's; the file is then left as it was, and the book says the same.
    pub(crate) fn begin_anew(directory: &Path, unknown: Past) -> (Self, io::Result<PathBuf>) {
        let (path, aside) = (directory.join(PAST), directory.join(DAMAGED_PAST));
        let kept = (|| {
            // By a second name, so that no crash leaves the pod without a past.
            match fs::remove_file(&aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::hard_link(&path, &aside)?,
            }
            write_past(&path, &unknown)
        })();
        (Self { path, past: Some(Arc::new(unknown)) }, kept.map(|()| aside))
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
                write_past(&path, &past)
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

fn write_past(path: &Path, past: &Past) -> io::Result<()> {
    disk::replace_blocking(path, &serde_json::to_vec(&PastFile { version: VERSION, past })?, 0o600)
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

    #[tokio::test]
    async fn a_past_without_a_version_is_read_and_has_one_when_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("past.json");
        fs::write(&path, r#"{"generation":3,"restartRequestedAt":null,"carried":{}}"#).unwrap();
        let mut book = PastBook::open(dir.path()).unwrap();
        let past = book.past().unwrap();
        assert_eq!(past.generation, 3);
        book.keep(Some(past)).await.unwrap();
        let kept: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(kept, serde_json::json!({"version": 1, "generation": 3, "restartRequestedAt": null, "carried": {}}));
        fs::write(&path, r#"{"version":2,"generation":"another"}"#).unwrap();
        assert!(matches!(PastBook::open(dir.path()), Err(NotesError::Newer { found: 2, .. })));
    }

    #[test]
    fn a_past_that_cannot_be_read_is_kept_aside_and_stays_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = || Past { generation: 1, restart_requested_at: None, carried: BTreeMap::new() };
        for damage in ["{\"carr", ""] {
            fs::write(dir.path().join("past.json"), damage).unwrap();
            assert!(matches!(PastBook::open(dir.path()), Err(NotesError::Parse { .. })));
            let (book, kept) = PastBook::begin_anew(dir.path(), unknown());
            assert_eq!(fs::read_to_string(kept.unwrap()).unwrap(), damage);
            assert_eq!(book.past(), PastBook::open(dir.path()).unwrap().past());
            assert_eq!(book.past().as_deref(), Some(&unknown()));
        }
        fs::remove_file(dir.path().join("past.json")).unwrap();
        let (book, kept) = PastBook::begin_anew(dir.path(), unknown());
        assert!(kept.is_err() && book.past().is_some(), "what cannot be kept aside still counts");
    }
}
