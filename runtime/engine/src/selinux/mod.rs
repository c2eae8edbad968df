//! SELinux: the labels of a pod's processes and files, and of the volumes that are given to it.
//!
//! ```text
//!   policy's defaults          system_u:system_r:container_t:s0      system_u:object_r:container_file_t:s0
//!     a pair of categories of its own --> pod         ...:s0:c17,c301     ...:s0:c17,c301
//!       over that what the pod asks for --> in its record, and held as long as the pod is there
//!         over that what a container asks for --> linux.mountLabel, and process.selinuxLabel unless it is privileged
//! ```
//!
//! The policy keeps processes of one pair from files and processes of another, so that pods are kept apart though all are
//! of one type. Containers of one pod share theirs.
//!
//! Only pods of a kubelet have labels. A node without SELinux has none of this: what is asked for says nothing there.
//!
//! Source: container_selinux(8), selinux_config(5), mcs(8); CRI `SELinuxOption`; the files and their order as
//! opencontainers/selinux has them, what is labelled as CRI-O and containerd have it.

mod context;
mod levels;
mod relabel;

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::SelinuxOptions;
use crate::sandbox::{IpcNamespace, PidNamespace, SandboxConfig};
use crate::{EngineError, Owner};
use context::Context;
pub(crate) use levels::Held;
use levels::Levels;
pub(crate) use relabel::{label, relabel};

/// There when the kernel labels by it. Source: Linux, security/selinux/selinuxfs.c.
const ENFORCE: &str = "sys/fs/selinux/enforce";
/// What this process is labelled as: `kernel` until a policy is loaded.
const CURRENT: &str = "proc/self/attr/current";
/// Which policy counts. Source: selinux_config(5).
const CONFIG: &str = "etc/selinux/config";
/// The defaults of containers where they are not the policy's own: what containers-common installs.
const CONTAINERS: &str = "usr/share/containers/selinux/contexts";
/// The defaults of containers, in the policy's directory.
const LXC_CONTEXTS: &str = "contexts/lxc_contexts";
/// None of these files is ever longer, in bytes.
const LONGEST: u64 = 64 << 10;
/// The field of a request that says it.
const FIELD: &str = "selinux_options";

/// The labels of a pod, or of one of its containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Labels {
    /// Of its processes.
    pub(crate) process: String,
    /// Of the files that they make, and of those that are made for them.
    pub(crate) files: String,
}

/// SELinux of this node.
#[derive(Debug)]
pub(crate) struct Selinux {
    root: PathBuf,
    levels: Levels,
}

impl Selinux {
    /// As the files below `root` describe it: `/` on a node.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), levels: Levels::default() }
    }

    /// Whether the node labels: a policy is loaded, and this agent may see its file system writable. A container without
    /// SELinux of its own is shown that read-only.
    fn is_enabled(&self) -> bool {
        let enforce = self.root.join(ENFORCE);
        let writable =
            rustix::fs::statvfs(&enforce).is_ok_and(|at| !at.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        writable
            && bounded(&self.root.join(CURRENT)).is_ok_and(|label| label.trim_end_matches(['\0', '\n']) != "kernel")
    }

    /// The labels of a new pod, and the level that is held for it; none where the node does not label.
    ///
    /// Neither has a pod that sees the node's processes or ipc, unless it asks for some: it could use nothing of what it
    /// is shown. So CRI-O and Docker have it.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for what is no part of a label; [`EngineError::File`].
    pub(crate) fn of_pod(&self, config: &SandboxConfig) -> Result<Option<(Labels, Option<Held>)>, EngineError> {
        let asked = asked(config.selinux.as_ref());
        let namespaces = &config.namespaces;
        let sees_node = namespaces.pid == PidNamespace::Node || namespaces.ipc == IpcNamespace::Node;
        if config.owner != Owner::Cri || (sees_node && asked.is_none()) || !self.is_enabled() {
            return Ok(None);
        }
        let Some((mut process, mut files)) = self.defaults(asked)? else { return Ok(None) };
        let named = asked.is_some_and(|asked| !asked.level.is_empty());
        // A policy without levels has no categories.
        let drawn = match process.level.is_some() && !named {
            true => Some(self.levels.draw()?),
            false => None,
        };
        if let Some(drawn) = &drawn {
            process.level = Some(drawn.level().to_owned());
            files.level = Some(drawn.level().to_owned());
        }
        let labels = laid_over(process, files, asked)?;
        let held = drawn.or_else(|| self.hold(&labels));
        Ok(Some((labels, held)))
    }

    /// Holds the level of a pod that was found again.
    pub(crate) fn hold(&self, labels: &Labels) -> Option<Held> {
        let level = labels.process.parse::<Context>().ok()?.level?;
        Some(self.levels.hold(level))
    }

    /// The labels of a container in a pod that has these; none where the node does not label, and in a pod that has none
    /// unless the container asks for some.
    ///
    /// # Errors
    /// As [`Self::of_pod`].
    pub(crate) fn of_container(
        &self,
        pod: Option<&Labels>,
        options: Option<&SelinuxOptions>,
    ) -> Result<Option<Labels>, EngineError> {
        let asked = asked(options);
        if (pod.is_none() && asked.is_none()) || !self.is_enabled() {
            return Ok(None);
        }
        let base = match pod {
            Some(pod) => Some((parsed(&pod.process)?, parsed(&pod.files)?)),
            None => self.defaults(asked)?,
        };
        base.map(|(process, files)| laid_over(process, files, asked)).transpose()
    }

    /// What the node's policy has for processes and files of containers; none where it knows nothing of containers, which
    /// is an error for who asked for something.
    fn defaults(&self, asked: Option<&SelinuxOptions>) -> Result<Option<(Context, Context)>, EngineError> {
        let (path, text) = match self.read(CONTAINERS)? {
            Some(text) => (self.root.join(CONTAINERS), text),
            None => {
                let config = self.read(CONFIG)?.unwrap_or_default();
                let policy = values(&config, "SELINUXTYPE").unwrap_or_default();
                // The name of a directory, and no way out of the one that it is in.
                let policy = Path::new(policy).file_name().unwrap_or_default();
                let place = Path::new("etc/selinux").join(policy).join(LXC_CONTEXTS);
                let text = self.read(&place)?.unwrap_or_default();
                (self.root.join(place), text)
            }
        };
        let found = values(&text, "process").zip(values(&text, "file"));
        match (found, asked) {
            (Some((process, files)), _) => {
                let of = |key: &str, text: &str| {
                    let parsed = text.parse::<Context>();
                    parsed.map_err(|error| EngineError::file("reading", &path)(in_file(key, &error)))
                };
                Ok(Some((of("process", process)?, of("file", files)?)))
            }
            (None, None) => Ok(None),
            (None, Some(_)) => {
                let message = format!(
                    "{} names no process and file of containers: install the policy of containers (container-selinux)",
                    path.display()
                );
                Err(EngineError::invalid(FIELD, message))
            }
        }
    }

    /// A file of the node; none where there is none.
    fn read(&self, path: impl AsRef<Path>) -> Result<Option<String>, EngineError> {
        let path = self.root.join(path);
        match bounded(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EngineError::file("reading", &path)(error)),
        }
    }
}

/// The label that processes of containers have by default on the node whose files are below `root`, `/`; `None` where
/// nothing is labelled.
///
/// # Errors
/// [`EngineError::Invalid`] when the node's policy knows no containers: nothing of a kubelet has labels then.
/// [`EngineError::File`] when it cannot be read: a kubelet's pods cannot be made then.
pub fn survey_selinux(root: &Path) -> Result<Option<String>, EngineError> {
    let selinux = Selinux::at(root);
    if !selinux.is_enabled() {
        return Ok(None);
    }
    let defaults = selinux.defaults(Some(&SelinuxOptions::default()))?;
    Ok(defaults.map(|(process, _)| process.to_string()))
}

fn bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

fn in_file(key: &str, error: &context::ContextError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{key}: {error}"))
}

/// What says something.
fn asked(options: Option<&SelinuxOptions>) -> Option<&SelinuxOptions> {
    options.filter(|options| **options != SelinuxOptions::default())
}

/// A label that this program has written down.
fn parsed(label: &str) -> Result<Context, EngineError> {
    label.parse().map_err(|error: context::ContextError| EngineError::invalid(FIELD, error.to_string()))
}

/// Every part that is asked for, in place of the usual one. Files have the user and the level of the processes, and their
/// own role and type.
fn laid_over(mut process: Context, mut files: Context, asked: Option<&SelinuxOptions>) -> Result<Labels, EngineError> {
    let Some(asked) = asked else { return Ok(Labels { process: process.to_string(), files: files.to_string() }) };
    part("user", &asked.user, &mut process.user)?;
    part("user", &asked.user, &mut files.user)?;
    part("role", &asked.role, &mut process.role)?;
    part("type", &asked.kind, &mut process.kind)?;
    if !asked.level.is_empty() {
        let checked = context::check_level(&asked.level);
        checked.map_err(|error| EngineError::invalid(format!("{FIELD}.level"), error.to_string()))?;
        process.level = Some(asked.level.clone());
        files.level = Some(asked.level.clone());
    }
    Ok(Labels { process: process.to_string(), files: files.to_string() })
}

/// A part as it was asked for, if it was.
fn part(name: &str, asked: &str, part: &mut String) -> Result<(), EngineError> {
    if asked.is_empty() {
        return Ok(());
    }
    context::check_part(asked).map_err(|error| EngineError::invalid(format!("{FIELD}.{name}"), error.to_string()))?;
    asked.clone_into(part);
    Ok(())
}

/// The value of a `key = "value"` line; lines that begin with `#` or `;` say nothing.
fn values<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let mut pairs = lines.filter_map(|line| line.split_once('='));
    let value = pairs.find_map(|(name, value)| (name.trim() == key).then(|| value.trim().trim_matches('"')))?;
    Some(value).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests;
