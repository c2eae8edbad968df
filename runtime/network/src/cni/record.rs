//! What a pod was attached by, on disk: to detach it by that, whatever the administrator has changed since.
//!
//! **Invariant:** there is a record before the first plugin runs, and until all of them have let go of the pod. It is
//! synced: what plugins keep (addresses that are taken) outlives the machine's boot.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CniError;

const VERSION: u64 = 1;

/// One pod's attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    version: u64,
    pub(super) container: String,
    pub(super) interface: String,
    pub(super) netns: PathBuf,
    pub(super) arguments: String,
    pub(super) capabilities: Map<String, Value>,
    /// The whole list of plugins.
    pub(super) network: Value,
    /// The file that it was from, for whoever reads of it.
    pub(super) source: PathBuf,
    /// What the last plugin answered; none when that did not come to pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
}

/// The directory of records.
#[derive(Debug, Clone)]
pub(super) struct Records(PathBuf);

impl Record {
    pub(super) fn new(container: &str, interface: &str, netns: &Path, network: Value, source: &Path) -> Self {
        Self {
            version: VERSION,
            container: container.to_owned(),
            interface: interface.to_owned(),
            netns: netns.to_owned(),
            arguments: String::new(),
            capabilities: Map::new(),
            network,
            source: source.to_owned(),
            result: None,
        }
    }
}

impl Records {
    pub(super) fn open(directory: &Path) -> Result<Self, CniError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| CniError::Io { operation: "creating", path: directory.to_owned(), source })?;
        Ok(Self(directory.to_owned()))
    }

    fn path(&self, container: &str) -> PathBuf {
        self.0.join(format!("{container}.json"))
    }

    pub(super) fn read(&self, container: &str) -> Result<Option<Record>, CniError> {
        let path = self.path(container);
        let failed = |source| CniError::Io { operation: "reading", path: path.clone(), source };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let record: Record = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        if record.version > VERSION {
            let problem = format!("it was written by a newer version (format {})", record.version);
            return Err(failed(io::Error::other(problem)));
        }
        Ok(Some(record))
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), CniError> {
        let path = self.path(&record.container);
        // No container is called so: names begin with a letter or digit.
        let temporary = self.0.join(format!(".{}", record.container));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_data()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.0)?.sync_all()
        })();
        written.map_err(|source| CniError::Io { operation: "writing", path, source })
    }

    pub(super) fn remove(&self, container: &str) -> Result<(), CniError> {
        let path = self.path(container);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| CniError::Io { operation: "removing", path, source }),
        }
    }

    /// The containers that have one.
    pub(super) fn containers(&self) -> Result<Vec<String>, CniError> {
        let failed = |source| CniError::Io { operation: "listing", path: self.0.clone(), source };
        let mut containers = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let container = name.to_str().and_then(|name| name.strip_suffix(".json"));
            containers.extend(container.filter(|container| !container.starts_with('.')).map(str::to_owned));
        }
        Ok(containers)
    }
}
