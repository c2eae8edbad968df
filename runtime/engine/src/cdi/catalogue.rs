//! Which file has a device.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::directory::{self, Found};
use super::document::{ContainerEdits, Document};
use super::{CdiError, DeviceName};

/// As many devices, and as many files that do not count, are named when one is looked for in vain.
const NAMED: usize = 8;

/// All specifications of a node.
#[derive(Debug)]
pub(super) struct Catalogue {
    searched: Vec<PathBuf>,
    /// Each with the number of its directory.
    documents: Vec<(usize, PathBuf, Document)>,
    devices: BTreeMap<DeviceName, Entry>,
    /// Why files, and directories, do not count.
    unusable: Vec<String>,
}

/// Where a device is: the number of its document and its own number there.
#[derive(Debug)]
struct Entry {
    document: usize,
    device: usize,
    /// The document of another file of the same directory that has it, too.
    rival: Option<usize>,
}

/// What is to be done for a container: the edits of a file, once, before those of its devices.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) file: &'a Path,
    /// The device, or the file as a whole, as errors name it.
    pub(super) place: String,
    pub(super) edits: &'a ContainerEdits,
}

impl Catalogue {
    /// Reads all files of these directories. Blocking.
    pub(super) fn read(directories: &[PathBuf]) -> Self {
        let (documents, devices, unusable) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut all = Self { searched: directories.to_vec(), documents, devices, unusable };
        for (number, directory) in directories.iter().enumerate() {
            for Found { path, document } in directory::read(directory) {
                match document {
                    Ok(document) => all.add(number, path, document),
                    Err(error) => {
                        tracing::debug!(path = %path.display(), %error, "specification of devices left out");
                        all.unusable.push(format!("{}: {error}", path.display()));
                    }
                }
            }
        }
        all
    }

    fn add(&mut self, directory: usize, path: PathBuf, document: Document) {
        let own = self.documents.len();
        for (device, one) in document.devices.iter().enumerate() {
            let name = DeviceName::new(&document.kind, &one.name);
            let entry = Entry { document: own, device, rival: None };
            match self.devices.get_mut(&name) {
                Some(there) if self.documents.get(there.document).is_some_and(|(of, ..)| *of == directory) => {
                    there.rival = Some(own);
                }
                // A later directory counts.
                _ => _ = self.devices.insert(name, entry),
            }
        }
        self.documents.push((directory, path, document));
    }

    /// What the devices come to, in the order of the request.
    ///
    /// # Errors
    /// [`CdiError::Unknown`], [`CdiError::Conflict`].
    pub(super) fn find(&self, devices: &[DeviceName]) -> Result<Vec<Part<'_>>, CdiError> {
        let mut parts = Vec::new();
        let mut used = Vec::new();
        for name in devices {
            let unknown =
                || CdiError::Unknown { name: name.clone(), searched: self.searched.clone(), hints: self.hints(name) };
            let entry = self.devices.get(name).ok_or_else(unknown)?;
            let (_, file, document) = self.documents.get(entry.document).ok_or_else(unknown)?;
            if let Some((_, rival, _)) = entry.rival.and_then(|rival| self.documents.get(rival)) {
                return Err(CdiError::Conflict { name: name.clone(), files: (file.clone(), rival.clone()) });
            }
            let device = document.devices.get(entry.device).ok_or_else(unknown)?;
            if !used.contains(&entry.document) {
                used.push(entry.document);
                let place = "containerEdits".to_owned();
                parts.push(Part { file, place, edits: &document.container_edits });
            }
            let place = format!("device {:?}: containerEdits", device.name);
            parts.push(Part { file, place, edits: &device.container_edits });
        }
        Ok(parts)
    }

    /// What may help who looks for a device in vain.
    fn hints(&self, name: &DeviceName) -> String {
        let few = |all: Vec<String>, between: &str| match all.len().checked_sub(NAMED) {
            Some(further @ 1..) => {
                let named: Vec<String> = all.into_iter().take(NAMED).collect();
                format!("{}{between}and {further} more", named.join(between))
            }
            _ => all.join(between),
        };
        let alike: Vec<String> =
            self.devices.keys().filter(|one| one.kind() == name.kind()).map(ToString::to_string).collect();
        let mut hints = match alike.is_empty() {
            true => format!("; no file is of kind {}", name.kind()),
            false => format!("; of its kind there are {}", few(alike, ", ")),
        };
        if !self.unusable.is_empty() {
            hints.push_str(&format!("; left out: {}", few(self.unusable.clone(), "; ")));
        }
        hints
    }
}

/// What the specifications of a node have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Devices that can be asked for.
    pub devices: Vec<DeviceName>,
    /// Why files, directories or devices do not count, each with its name.
    pub unusable: Vec<String>,
}

/// Looks at all specifications of these directories. Blocking.
#[must_use]
pub fn survey(directories: &[PathBuf]) -> Survey {
    let Catalogue { devices, mut unusable, documents, .. } = Catalogue::read(directories);
    let path = |number: usize| documents.get(number).map(|(_, path, _)| path.clone()).unwrap_or_default();
    let mut usable = Vec::new();
    for (name, entry) in devices {
        match entry.rival {
            None => usable.push(name),
            Some(rival) => {
                let files = (path(entry.document), path(rival));
                unusable.push(CdiError::Conflict { name, files }.to_string());
            }
        }
    }
    Survey { devices: usable, unusable }
}
