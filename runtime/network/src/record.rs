//! Records on disk: one file per attachment, one of the network, one of addresses given back.
//!
//! A file is written beside its place and renamed there, so it is whole or absent after a kill.
//! It is not forced to the disk: a crash of the machine takes the links with it, and `reconcile`
//! releases every record whose sandbox does not live.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::names::is_sandbox_id;
use crate::{Attachment, NetworkError};

/// The version of every record written by this program.
const VERSION: u64 = 1;
/// No record of ours comes near it.
const LIMIT_BYTES: u64 = 1 << 20;

/// What the network as a whole has to remember.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub(crate) bridge: String,
    pub(crate) nft_table: String,
    pub(crate) subnet: Ipv4Net,
    /// This agent turned `ip_forward` on.
    #[serde(default)]
    pub(crate) turned_ip_forward_on: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct AddressRecord {
    given_back: Vec<Ipv4Addr>,
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u64,
    #[serde(flatten)]
    content: &'a T,
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    root: PathBuf,
}

impl Records {
    /// Makes the directory, readable by its owner alone.
    pub(crate) fn open(root: &Path) -> Result<Self, NetworkError> {
        let attachments = root.join("attachments");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&attachments)
            .map_err(|source| at(&attachments, source))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The record of the network, if there is one.
    ///
    /// One that does not parse is put aside: what it says can be had again.
    pub(crate) fn network(&self) -> Result<Option<NetworkRecord>, NetworkError> {
        let path = self.root.join("network.json");
        match read(&path) {
            Err(NetworkError::Record { source, .. })
                if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory) =>
            {
                let aside = path.with_extension("json.damaged");
                tracing::warn!(path = %path.display(), error = %source, kept_as = %aside.display(),
                    "record of the network damaged, it is made again from those of the pods and the bridge");
                fs::rename(&path, &aside).map_err(|source| at(&path, source))?;
                Ok(None)
            }
            other => other,
        }
    }

    /// Writes the record of the network.
    pub(crate) fn set_network(&self, record: &NetworkRecord) -> Result<(), NetworkError> {
        write(&self.root.join("network.json"), record)
    }

    /// Addresses given back, oldest first; a lost file only costs their order.
    ///
    /// # Errors
    /// [`NetworkError::NewerRecord`]
    pub(crate) fn given_back(&self) -> Result<Vec<Ipv4Addr>, NetworkError> {
        match read::<AddressRecord>(&self.root.join("addresses.json")) {
            Err(error @ NetworkError::NewerRecord { .. }) => Err(error),
            found => Ok(found.ok().flatten().unwrap_or_default().given_back),
        }
    }

    /// Writes the addresses given back.
    pub(crate) fn set_given_back(&self, given_back: Vec<Ipv4Addr>) -> Result<(), NetworkError> {
        write(&self.root.join("addresses.json"), &AddressRecord { given_back })
    }

    /// Every attachment.
    ///
    /// A file that does not parse is put aside: it was not written by this program, and one
    /// broken file must not keep every other pod from its network.
    pub(crate) fn attachments(&self) -> Result<BTreeMap<String, Attachment>, NetworkError> {
        let directory = self.root.join("attachments");
        let mut attachments = BTreeMap::new();
        let entries = fs::read_dir(&directory).map_err(|source| at(&directory, source))?;
        for entry in entries {
            let path = entry.map_err(|source| at(&directory, source))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // What a kill left half-written.
                remove(&path)?;
                continue;
            }
            match read::<Attachment>(&path) {
                Ok(Some(attachment)) => {
                    attachments.insert(attachment.sandbox_id.clone(), attachment);
                }
                Ok(None) => {}
                Err(NetworkError::Record { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
                    tracing::debug!(path = %path.display(), error = %source, "attachment record put aside");
                    let aside = path.with_extension("json.broken");
                    let aside = self.root.join(aside.file_name().unwrap_or_default());
                    fs::rename(&path, &aside).map_err(|source| at(&path, source))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(attachments)
    }

    /// Writes an attachment.
    pub(crate) fn set_attachment(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        write(&self.of_sandbox(&attachment.sandbox_id)?, attachment)
    }

    /// Removes an attachment; absent is success.
    pub(crate) fn remove_attachment(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        remove(&self.of_sandbox(sandbox_id)?)
    }

    /// Removes the records of the network and of addresses.
    pub(crate) fn remove_network(&self) -> Result<(), NetworkError> {
        remove(&self.root.join("addresses.json"))?;
        remove(&self.root.join("network.json"))?;
        let _ = fs::remove_dir(self.root.join("attachments"));
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }

    fn of_sandbox(&self, id: &str) -> Result<PathBuf, NetworkError> {
        if !is_sandbox_id(id) {
            return Err(NetworkError::SandboxId { id: id.to_owned() });
        }
        Ok(self.root.join("attachments").join(format!("{id}.json")))
    }
}

fn at(path: &Path, source: io::Error) -> NetworkError {
    NetworkError::Record { path: path.to_owned(), source }
}

fn remove(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, error)),
        _ => Ok(()),
    }
}

fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), NetworkError> {
    let versioned = Versioned { version: VERSION, content };
    let beside = path.with_extension("new");
    let written = serde_json::to_vec(&versioned)
        .map_err(io::Error::from)
        .and_then(|bytes| {
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?.write_all(&bytes)
        })
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|source| at(path, source))
}

/// Reads a record; absent and empty, as a crash can leave it, is `None`, what does not parse is `InvalidData`.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NetworkError> {
    let invalid = |error: serde_json::Error| at(path, io::Error::new(io::ErrorKind::InvalidData, error));
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > LIMIT_BYTES => {
            return Err(at(path, io::Error::new(io::ErrorKind::InvalidData, "too long")));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let bytes = fs::read(path).map_err(|source| at(path, source))?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(invalid)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    match version {
        Some(found) if found > VERSION => {
            Err(NetworkError::NewerRecord { path: path.to_owned(), found, supported: VERSION })
        }
        _ => serde_json::from_value(value).map(Some).map_err(invalid),
    }
}
