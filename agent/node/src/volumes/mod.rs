//! Volumes of pods: made, filled, refreshed and removed.
//!
//! ```text
//!   <root>/pods/<uid>/volumes/<name>   emptyDir on disk
//!   <run>/pods/<uid>/volumes/<name>    emptyDir in memory (a tmpfs each), and everything that shows
//!                                      configuration, Secrets included: `<run>` is memory
//!   <run>/pods/<uid>/subpaths/..       bind mounts of resolved subPaths
//! ```
//!
//! **Invariant:** nothing below a volume is trusted: resolving, removing and owning never follow a
//! link out of it, and removing never leaves its file system.

mod content;
mod empty_dir;
mod host_path;
mod ownership;
mod payload;
mod remove;
mod subpath;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use portreeve_manifests::quantity;
use portreeve_plan::Configs;

use crate::disk;

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The pod has no such volume.
    #[error("pod has no volume {name:?}")]
    Unknown {
        /// The volume.
        name: String,
    },
    /// What it should show is not there.
    #[error("volume {name:?}")]
    Content {
        /// The volume.
        name: String,
        /// What is missing.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host's path is not what the volume says.
    #[error("volume {name:?}: hostPath {path}: {message}")]
    HostPath {
        /// The volume.
        name: String,
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// This version cannot make it.
    #[error("volume {name:?} is of a kind that is not supported by this version")]
    Unsupported {
        /// The volume.
        name: String,
    },
    /// A subPath leads nowhere or out of its volume.
    #[error("subPath {sub_path:?} of volume {name:?}: {message}")]
    SubPath {
        /// The volume.
        name: String,
        /// The path.
        sub_path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The kernel refused.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// What volume code needs to know beside the pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) uid: &'a str,
    pub(crate) configs: &'a Configs,
    pub(crate) node: &'a NodeFacts,
}

/// What a pod may ask and learn of the node.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    /// With the well-known ones.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) host_ips: Vec<String>,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    /// Of the file system of volumes, logs and images.
    pub(crate) storage_bytes: u64,
}

/// The folder of all pods, below `<root>` and below `<run>`.
pub(crate) const PODS: &str = "pods";

/// Where the volumes of all pods are.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    disk: PathBuf,
    memory: PathBuf,
}

impl Volumes {
    /// Volumes below `<root>/pods` and `<run>/pods`; the latter is made memory if it is not.
    pub(crate) fn open(root: &Path, run: &Path) -> Result<Self, VolumeError> {
        let volumes = Self { disk: root.join(PODS), memory: run.join(PODS) };
        for path in [&volumes.disk, &volumes.memory] {
            disk::ensure_directory(path, 0o700).map_err(VolumeError::io("making", path))?;
        }
        empty_dir::ensure_memory(&volumes.memory)?;
        Ok(volumes)
    }

    /// Directory of a pod's state that survives a reboot.
    pub(crate) fn disk_of(&self, uid: &str) -> PathBuf {
        self.disk.join(uid)
    }

    /// Directory of a pod's state that a reboot ends.
    pub(crate) fn memory_of(&self, uid: &str) -> PathBuf {
        self.memory.join(uid)
    }

    /// Where a volume's content is, to be mounted.
    pub(crate) fn source(&self, uid: &str, volume: &Volume) -> PathBuf {
        if let Some(host) = &volume.host_path {
            return PathBuf::from(&host.path);
        }
        self.place(uid, volume)
    }

    fn place(&self, uid: &str, volume: &Volume) -> PathBuf {
        let on_disk =
            volume.empty_dir.as_ref().is_some_and(|empty| empty.medium.as_deref().unwrap_or_default().is_empty());
        let base = if on_disk { self.disk_of(uid) } else { self.memory_of(uid) };
        base.join("volumes").join(&volume.name)
    }

    /// Makes a volume available; again is fine. Content is brought up to date.
    pub(crate) fn mount_blocking(&self, facts: Facts<'_>, name: &str) -> Result<(), VolumeError> {
        let spec = facts.pod.spec.as_ref();
        let volume = spec
            .and_then(|spec| spec.volumes.as_ref()?.iter().find(|volume| volume.name == name))
            .ok_or_else(|| VolumeError::Unknown { name: name.to_owned() })?;
        if let Some(host) = &volume.host_path {
            return host_path::ensure(name, host);
        }
        if volume.image.is_some() {
            // Each container that shows it mounts its layers itself.
            return Ok(());
        }
        let place = self.place(facts.uid, volume);
        let fs_group =
            spec.and_then(|spec| spec.security_context.as_ref()?.fs_group).and_then(|group| u32::try_from(group).ok());
        if let Some(parent) = place.parent() {
            disk::ensure_directory(parent, 0o700).map_err(VolumeError::io("making", parent))?;
        }
        if let Some(empty) = &volume.empty_dir {
            let size = empty.size_limit.as_ref().and_then(|size| quantity::bytes(size).ok());
            let in_memory = empty.medium.as_deref() == Some("Memory");
            empty_dir::ensure(&place, in_memory.then_some(size), fs_group)?;
            return Ok(());
        }
        let files = content::files(facts, volume)
            .map_err(|source| VolumeError::Content { name: name.to_owned(), source: Box::new(source) })?
            .ok_or_else(|| VolumeError::Unsupported { name: name.to_owned() })?;
        payload::write(&place, &files, fs_group).map_err(VolumeError::io("writing", &place))
    }

    /// Takes a volume away with its content; again is fine.
    pub(crate) fn unmount_blocking(&self, uid: &str, name: &str) -> Result<(), VolumeError> {
        subpath::release(&self.memory_of(uid).join("subpaths").join(name))?;
        for base in [self.memory_of(uid), self.disk_of(uid)] {
            let folder = base.join("volumes");
            remove::tree(&folder, name)?;
        }
        Ok(())
    }

    /// Resolves a subPath to something that can be bind-mounted whatever happens to the volume.
    pub(crate) fn subpath_blocking(
        &self,
        uid: &str,
        volume: &Volume,
        sub_path: &str,
        slot: &str,
    ) -> Result<PathBuf, VolumeError> {
        let target = self.memory_of(uid).join("subpaths").join(&volume.name).join(slot);
        subpath::bind(&self.source(uid, volume), &volume.name, sub_path, &target)
    }

    /// Removes everything of a pod.
    pub(crate) fn remove_pod_blocking(&self, uid: &str) -> Result<(), VolumeError> {
        let subpaths = self.memory_of(uid).join("subpaths");
        for volume in names_in(&subpaths) {
            subpath::release(&subpaths.join(volume))?;
        }
        remove::tree(&self.memory, uid)?;
        remove::tree(&self.disk, uid)
    }

    /// Gives the memory back that [`Volumes::open`] mounted, if nothing is in it any more.
    pub(crate) fn close_blocking(&self) {
        if names_in(&self.memory).is_empty() {
            // What is still mounted is found and used by the next agent.
            let _ = remove::unmount(&self.memory);
        }
    }

    /// The uids of which something is left.
    pub(crate) fn uids(&self) -> std::collections::BTreeSet<String> {
        names_in(&self.disk).into_iter().chain(names_in(&self.memory)).collect()
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Files by relative path, with their modes.
pub(crate) type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;
