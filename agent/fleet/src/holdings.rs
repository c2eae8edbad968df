//! What this node has taken on, on its own disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use portreeve_crds::Held;
use serde::{Deserialize, Serialize};

/// Version of the file that this agent writes, and the newest it reads.
const VERSION: u32 = 1;

/// Why what is held cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HoldingsError {
    /// It cannot be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is no such file.
    #[error(
        "{path} is damaged; restore it, or move it away: nodes then take on workloads anew, without waiting for a slot"
    )]
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

/// A workload by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct WorkloadKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl std::fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is held, by workload.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Holdings {
    path: PathBuf,
    pub(crate) by_workload: BTreeMap<WorkloadKey, Held>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    key: WorkloadKey,
    #[serde(flatten)]
    held: Held,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    workloads: Vec<Entry>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Holdings {
    /// Reads what is held; a missing file is nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, HoldingsError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), by_workload: BTreeMap::new() });
            }
            Err(source) => return Err(HoldingsError::Read { path: path.to_owned(), source }),
        };
        let parse = |source| HoldingsError::Parse { path: path.to_owned(), source };
        let Version { version } = serde_json::from_slice(&bytes).map_err(parse)?;
        if version > VERSION {
            return Err(HoldingsError::Newer { path: path.to_owned(), found: version });
        }
        let document: Document = serde_json::from_slice(&bytes).map_err(parse)?;
        let by_workload = document.workloads.into_iter().map(|entry| (entry.key, entry.held)).collect();
        Ok(Self { path: path.to_owned(), by_workload })
    }

    /// Writes what is held, whole or not at all, and waits for the disk. Secrets may be in it: it is root's alone.
    pub(crate) fn write_blocking(&self) -> io::Result<()> {
        let entry = |(key, held): (&WorkloadKey, &Held)| Entry { key: key.clone(), held: held.clone() };
        let document = Document { version: VERSION, workloads: self.by_workload.iter().map(entry).collect() };
        let bytes = serde_json::to_vec(&document).map_err(io::Error::other)?;
        portreeve_node::replace_blocking(&self.path, &bytes, 0o600)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_read_again_and_newer_state_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("workloads.json");
        let mut holdings = Holdings::read(&path).expect("nothing");
        assert!(holdings.by_workload.is_empty());
        let key = WorkloadKey { namespace: "shop".to_owned(), name: "web".to_owned() };
        holdings.by_workload.insert(key, Held { uid: "u".to_owned(), content: None, grant: 7 });
        holdings.write_blocking().expect("written");
        assert_eq!(Holdings::read(&path).expect("read"), holdings);

        let text = fs::read_to_string(&path).expect("text");
        fs::write(&path, text.replace("\"version\":1", "\"version\":2")).expect("write");
        assert!(matches!(Holdings::read(&path), Err(HoldingsError::Newer { found: 2, .. })));
        fs::write(&path, "{").expect("write");
        assert!(matches!(Holdings::read(&path), Err(HoldingsError::Parse { .. })));
    }
}
