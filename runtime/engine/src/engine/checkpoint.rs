//! A container's processes, files and log as one archive, while it goes on: what Kubernetes calls a forensic checkpoint.
//!
//! ```text
//!   checkpoint/        CRIU's images
//!   config.dump        what the container was: its ids, its image
//!   spec.dump          its OCI configuration
//!   rootfs-diff.tar    what it wrote to its own layer, as a layer
//!   container.log      what it said
//!   dump.log stats-dump
//! ```
//!
//! Source of the names: checkpointctl, `lib/metadata.go`, which reads archives of containerd and CRI-O.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use portreeve_image::write_diff;
use portreeve_oci::Pid;
use portreeve_oci::cgroup::Cgroup;
use portreeve_oci::lifecycle::{CheckpointOptions, Dumped, dump};
use portreeve_sys::process::pidfd_open;
use rustix::fs::OFlags;

use super::ending::remove_tree;
use super::table::Container;
use super::{Core, blocking, cgroup_error, spawn};
use crate::container::ContainerState;
use crate::protocol::LogCall;
use crate::{ContainerId, EngineError, log_place};

/// The log and the statistics of CRIU, beside its images.
const BESIDE: [&str; 2] = ["dump.log", "stats-dump"];

impl Core {
    /// Where archives are put together. What an agent that was killed left there goes when the next one opens.
    pub(super) fn checkpoints_directory(&self) -> PathBuf {
        self.config.root.join("checkpoints")
    }

    /// After an agent was killed: CRIU may have left a container standing still. Blocking.
    pub(super) fn clear_checkpoints(&self) -> Result<(), EngineError> {
        let place = self.checkpoints_directory();
        let entries = match fs::read_dir(&place) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(EngineError::file("reading", &place)(error)),
        };
        for entry in entries {
            let name = entry.map_err(EngineError::file("reading", &place))?.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            if let Some(container) = id.and_then(|id| self.find_container(&id).ok()) {
                let path = container.facts().record.cgroup.clone();
                let cgroup = Cgroup::at(&path).map_err(cgroup_error("finding", &path))?;
                if cgroup.is_frozen().unwrap_or(false) {
                    cgroup.thaw().map_err(cgroup_error("thawing", &path))?;
                }
            }
        }
        remove_tree(&place)
    }

    pub(super) async fn checkpoint_container(
        self: Arc<Self>,
        id: &ContainerId,
        location: PathBuf,
    ) -> Result<(), EngineError> {
        let container = self.find_container(id)?;
        let _turn = container.turn.lock().await;
        match container.state() {
            ContainerState::Running => {}
            state => return Err(EngineError::WrongState { id: id.clone(), state, wanted: "running" }),
        }
        if let Some(handler) = self.find_sandbox(&container.sandbox)?.facts().record.config.handler.clone() {
            return Err(EngineError::NotByHandler { what: "a checkpoint", handler: handler.name });
        }
        let (core, one) = (Arc::clone(&self), Arc::clone(&container));
        blocking(move || core.checkpoint(&one, &location)).await
    }

    fn checkpoint(&self, container: &Container, location: &Path) -> Result<(), EngineError> {
        if !location.is_absolute() || location.file_name().is_none() || location.is_dir() {
            let message = format!("{} is no absolute path of a file", location.display());
            return Err(EngineError::invalid("location", message));
        }
        let work = self.checkpoints_directory().join(container.id.as_str());
        remove_tree(&work)?;
        spawn::private_directory(&work, 0o700)?;
        let done = self.collect(container, &work, location);
        let cleared = remove_tree(&work);
        done.and(cleared)
    }

    fn collect(&self, container: &Container, work: &Path, location: &Path) -> Result<(), EngineError> {
        let (record, pid) = {
            let facts = container.facts();
            (facts.record.clone(), facts.pid)
        };
        let gone = || EngineError::UnknownContainer(container.id.clone());
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).ok_or_else(gone)?;
        let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
        let pidfd = pidfd_open(pid).map_err(EngineError::file("opening", &process))?;
        // The number still was its own when it was opened: nobody but its shim reaps it, which tells us.
        if container.state() != ContainerState::Running {
            return Err(gone());
        }
        let path = container.directory.join("config.json");
        let text = fs::read(&path).map_err(EngineError::file("reading", &path))?;
        let spec: Spec =
            serde_json::from_slice(&text).map_err(|error| EngineError::file("reading", &path)(error.into()))?;
        let spec = shared_by_path(spec, &process).map_err(EngineError::file("looking at", &process))?;
        let cgroup = Cgroup::at(&record.cgroup).map_err(cgroup_error("finding", &record.cgroup))?;
        let streams = (0..3).map(|fd| fs::read_link(process.join("fd").join(fd.to_string())));
        let descriptors: Vec<String> = streams
            .map(|link| link.map_or_else(|_| "/dev/null".to_owned(), |link| link.display().to_string()))
            .collect();

        let mut options = CheckpointOptions::default();
        options.leave_running = true;
        options.criu.images = work.join("checkpoint");
        options.criu.work = Some(work.to_owned());
        // It goes on: nothing of it may stand in the way, and what is left out would be missed.
        options.criu.tcp_established = true;
        options.criu.external_unix_sockets = true;
        options.criu.file_locks = true;
        let dumped = Dumped {
            spec: &spec,
            pid: pid.as_raw_nonzero().get(),
            pidfd: pidfd.as_fd(),
            cgroup: Some(&cgroup),
            root: &container.directory.join("rootfs"),
            descriptors: &descriptors,
        };
        dump(&dumped, &options)
            .map_err(|source| EngineError::Checkpoint { id: container.id.clone(), source: Box::new(source) })?;

        let about = serde_json::json!({
            "id": container.id, "name": record.config.metadata.name, "rootfsImage": record.config.image,
            "rootfsImageRef": record.image_id, "rootfsImageName": record.config.image, "runtime": "portreeve",
            "createdTime": record.created_at.to_string(), "checkpointedTime": Timestamp::now().to_string(),
            "restored": false,
        });
        let write = |name: &str, text: &serde_json::Value| {
            let path = work.join(name);
            fs::write(&path, text.to_string()).map_err(EngineError::file("writing", &path))
        };
        write("config.dump", &about)?;
        write(
            "spec.dump",
            &serde_json::to_value(&spec).map_err(|error| EngineError::file("encoding", &path)(error.into()))?,
        )?;
        if let Some(call) = &record.call {
            let path = work.join("rootfs-diff.tar");
            let file = File::create_new(&path).map_err(EngineError::file("making", &path))?;
            write_diff(&call.rootfs.upper, io::BufWriter::new(file))
                .map_err(EngineError::file("archiving", &call.rootfs.upper))?;
            if let Some(log) = &call.log {
                let copy = copy_log(log, &work.join("container.log"));
                copy.map_err(EngineError::file("copying", &log.path))?;
            }
        }
        archive(work, location)
    }
}

fn copy_log(log: &LogCall, to: &Path) -> io::Result<()> {
    let mut from = log_place::file(log, OFlags::RDONLY)?;
    io::copy(&mut from, &mut File::create_new(to)?).map(drop)
}

/// What the container has of its pod is inherited from its shim, and no part of its own: named here by its paths, so that
/// it stays out of the images.
fn shared_by_path(mut spec: Spec, process: &Path) -> io::Result<Spec> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for (kind, file) in
        [(LinuxNamespaceType::Network, "net"), (LinuxNamespaceType::Ipc, "ipc"), (LinuxNamespaceType::Uts, "uts")]
    {
        let of = |place: &Path| Ok::<_, io::Error>(fs::metadata(place.join("ns").join(file))?.ino());
        let named = namespaces.iter().any(|one| one.typ() == kind);
        // That of the node is CRIU's own.
        if !named && of(process)? != of(Path::new("/proc/self"))? {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind);
            namespace.set_path(Some(process.join("ns").join(file)));
            namespaces.push(namespace);
        }
    }
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// Puts all of a directory into an archive, which is there only when it is whole.
fn archive(work: &Path, location: &Path) -> Result<(), EngineError> {
    let mut name = location.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let write = || -> io::Result<()> {
        // It holds the container's memory.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        let mut tar = tar::Builder::new(io::BufWriter::new(file));
        tar.append_dir_all("checkpoint", work.join("checkpoint"))?;
        for name in ["config.dump", "spec.dump", "rootfs-diff.tar", "container.log"].into_iter().chain(BESIDE) {
            let path = work.join(name);
            if path.exists() {
                tar.append_path_with_name(&path, name)?;
            }
        }
        tar.into_inner()?.flush()?;
        fs::rename(&part, location)
    };
    write().map_err(|error| {
        let _not_left = fs::remove_file(&part);
        EngineError::file("writing", location)(error)
    })
}
