//! The ledger: every object in its last good version, with its uid, on disk.
//!
//! One file, `<root>/ledger.json`, 0600, replaced as a whole when something changed. It holds
//! Secrets in clear, as etcd does; whoever reads `<root>` is root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use portreeve_manifests::{Kind, Object, ObjectKey};
use portreeve_plan::{Finished, PodUid};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::disk;
use crate::source::{Ground, Identity};

/// Version of the ledger that this agent writes, and the newest it reads.
const VERSION: u32 = 1;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be read.
    #[error("reading {path}")]
    Read {
        /// The ledger.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error("writing {path}")]
    Write {
        /// The ledger.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is no ledger.
    #[error("{path} is damaged; restore it, or move it away to start with new uids")]
    Parse {
        /// The ledger.
        path: PathBuf,
        /// Where it is damaged.
        #[source]
        source: serde_json::Error,
    },
    /// A newer agent wrote it.
    #[error("{path} has version {found}, this agent knows {VERSION}: use the newer agent")]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// One object as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Random at first admission, the same until the object is removed.
    pub uid: String,
    /// The file that owns the name.
    pub file: PathBuf,
    /// Line of its document.
    pub line: u32,
    /// Counts its edits, from 1.
    pub generation: i64,
    /// When it was first known.
    pub admitted_at: Timestamp,
    /// When it last changed.
    pub changed_at: Timestamp,
    /// Hash of its content.
    pub hash: String,
    /// The last `restart pod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_requested_at: Option<Timestamp>,
    /// How the pod ended, if it must not run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Box<Finished>>,
    /// The last good version.
    #[serde(with = "stored")]
    pub object: Arc<Object>,
}

/// A pod that is on its way out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// What it was.
    pub record: Record,
    /// When its removal was asked for.
    pub since: Timestamp,
}

/// All objects.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ledger {
    /// The directories that were last read, by source.
    pub identities: BTreeMap<String, Identity>,
    /// The folders of these directories that are mount points, and what was mounted there.
    pub mounts: BTreeMap<PathBuf, Identity>,
    /// The objects that should be there.
    pub objects: BTreeMap<ObjectKey, Record>,
    /// The pods that should go, by uid.
    pub removals: BTreeMap<PodUid, Removal>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileOut<'a> {
    version: u32,
    identities: &'a BTreeMap<String, Identity>,
    mounts: &'a BTreeMap<PathBuf, Identity>,
    objects: Vec<&'a Record>,
    removals: &'a BTreeMap<PodUid, Removal>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileIn {
    identities: BTreeMap<String, Identity>,
    #[serde(default)]
    mounts: BTreeMap<PathBuf, Identity>,
    objects: Vec<Record>,
    removals: BTreeMap<PodUid, Removal>,
}

impl Ledger {
    /// Reads the ledger at `path`; a missing one is empty.
    ///
    /// # Errors
    /// [`LedgerError`]; the file is left alone.
    pub fn read(path: &Path) -> Result<Self, LedgerError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(LedgerError::Read { path: path.to_owned(), source }),
        };
        let parse = |source| LedgerError::Parse { path: path.to_owned(), source };
        let version: Version = serde_json::from_slice(&bytes).map_err(parse)?;
        if version.version > VERSION {
            return Err(LedgerError::Newer { path: path.to_owned(), found: version.version });
        }
        let file: FileIn = serde_json::from_slice(&bytes).map_err(parse)?;
        let objects = file.objects.into_iter().map(|record| (record.object.key(), record)).collect();
        Ok(Self { identities: file.identities, mounts: file.mounts, objects, removals: file.removals })
    }

    /// Writes the ledger at `path`, whole or not at all, and waits for the disk.
    ///
    /// # Errors
    /// [`LedgerError::Write`]; the former ledger is then still there.
    pub fn write_blocking(&self, path: &Path) -> Result<(), LedgerError> {
        let file = FileOut {
            version: VERSION,
            identities: &self.identities,
            mounts: &self.mounts,
            objects: self.objects.values().collect(),
            removals: &self.removals,
        };
        serde_json::to_vec(&file)
            .map_err(io::Error::other)
            .and_then(|bytes| disk::replace_blocking(path, &bytes, 0o600))
            .map_err(|source| LedgerError::Write { path: path.to_owned(), source })
    }

    /// What was known of the ground of a source when it was last read.
    pub(crate) fn ground(&self, source: &str) -> Option<Ground> {
        Some(Ground { identity: *self.identities.get(source)?, mounts: self.mounts.clone() })
    }

    /// Every uid that is taken.
    pub(crate) fn uids(&self) -> BTreeSet<String> {
        let removed = self.removals.keys().map(|uid| uid.0.clone());
        self.objects.values().map(|record| record.uid.clone()).chain(removed).collect()
    }

    /// Whether an object that should be there, or a pod that should go, has this uid.
    pub(crate) fn knows(&self, uid: &str) -> bool {
        self.removals.keys().any(|removed| removed.0 == uid) || self.objects.values().any(|record| record.uid == uid)
    }

    /// The pods that should run.
    pub fn pods(&self) -> impl Iterator<Item = (&ObjectKey, &Record, &Arc<Pod>)> {
        self.objects.iter().filter_map(|(key, record)| match &*record.object {
            Object::Pod(pod) => Some((key, record, pod)),
            _ => None,
        })
    }

    /// The object of this kind and name.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Record> {
        self.objects.get(&ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// `Object` in JSON: the kind as the only key of a map.
mod stored {
    use super::{Arc, ConfigMap, Deserialize, Deserializer, Object, Pod, Secret, Serialize, Serializer};

    #[derive(Serialize)]
    enum Out<'a> {
        Pod(&'a Pod),
        ConfigMap(&'a ConfigMap),
        Secret(&'a Secret),
    }

    #[derive(Deserialize)]
    enum In {
        Pod(Box<Pod>),
        ConfigMap(Box<ConfigMap>),
        Secret(Box<Secret>),
    }

    pub(super) fn serialize<S: Serializer>(object: &Arc<Object>, to: S) -> Result<S::Ok, S::Error> {
        match &**object {
            Object::Pod(pod) => Out::Pod(pod).serialize(to),
            Object::ConfigMap(map) => Out::ConfigMap(map).serialize(to),
            Object::Secret(secret) => Out::Secret(secret).serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<Object>, D::Error> {
        Ok(Arc::new(match In::deserialize(from)? {
            In::Pod(pod) => Object::Pod(pod.into()),
            In::ConfigMap(map) => Object::ConfigMap(map.into()),
            In::Secret(secret) => Object::Secret(secret.into()),
        }))
    }
}
