//! A container's processes into files.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use portreeve_sys::clone::{NEW_NET, NEW_PID};
use portreeve_sys::path::{Limits, in_root};
use rustix::fs::{FileType, Mode, OFlags};

use super::{Container, LifecycleError, Status};
use crate::cgroup::Cgroup;
use crate::criu::{self, Criu, CriuOptions, Dump, Images, Request, Terms};
use crate::error::{SetupError, Step, Warning};
use crate::exec::root_of;

/// CRIU's log.
const LOG: &str = "dump.log";

/// What is at the place of a masked file, under the name that runc gives it in images.
pub(super) const NULL: &str = "/dev/null";

/// The names that joined namespaces have in images, as those of runc and crun.
pub(super) const NETWORK: &str = "extRootNetNS";
pub(super) const PROCESSES: &str = "extRootPidNS";

/// How to checkpoint a container.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct CheckpointOptions {
    /// What is said to CRIU for a checkpoint and for a restoration.
    pub criu: CriuOptions,
    /// Where the images of the dump before are, relative to those of this one: memory that is the same is not written.
    pub parent: Option<PathBuf>,
    /// The container goes on.
    pub leave_running: bool,
    /// Memory alone, of a container that goes on; another dump is to follow.
    pub pre_dump: bool,
    /// Address and port of a page server, which takes the memory.
    pub page_server: Option<(String, u16)>,
}

impl Container {
    /// Writes its processes, with all that is theirs alone, to files of CRIU's. Then it is deleted, unless it is to go on.
    ///
    /// # Errors
    /// [`LifecycleError::Status`], [`LifecycleError::Criu`]: the container goes on. What prevents the deletion afterwards
    /// leaves a container that has stopped.
    pub fn checkpoint(self, options: &CheckpointOptions) -> Result<Vec<Warning>, LifecycleError> {
        let good = [Status::Running, Status::Paused];
        self.locked("checkpoint", "running", &good, |this| this.dump(options))?;
        if options.leave_running || options.pre_dump { Ok(Vec::new()) } else { self.delete(true) }
    }

    fn dump(&self, options: &CheckpointOptions) -> Result<(), LifecycleError> {
        let (pidfd, cgroup) = (self.pidfd()?, self.cgroup()?);
        let pid = self.record.process.map_or(0, |process| process.pid);
        let dumped = Dumped {
            spec: self.spec()?,
            pid,
            pidfd: pidfd.as_fd(),
            cgroup: cgroup.as_ref(),
            root: &self.record.rootfs,
            descriptors: &self.record.descriptors,
        };
        dump(&dumped, options)
    }
}

/// A container that runs, wherever its state is kept.
#[derive(Debug, Clone, Copy)]
pub struct Dumped<'a> {
    /// Its configuration. What it shares is joined by a path there.
    pub spec: &'a Spec,
    /// Its first process.
    pub pid: i32,
    /// The same, which cannot be mistaken for a later one.
    pub pidfd: BorrowedFd<'a>,
    /// Its cgroup, where it has one.
    pub cgroup: Option<&'a Cgroup>,
    /// Its root file system.
    pub root: &'a Path,
    /// What its first process got as standard streams, as links of `/proc/PID/fd` tell it.
    pub descriptors: &'a [String],
}

/// Writes a container's processes, with all that is theirs alone, to files of CRIU's. With
/// [`CheckpointOptions::leave_running`] they go on, else CRIU ends them.
///
/// # Errors
/// [`LifecycleError::Criu`], or what of the configuration could not come back: the container goes on.
pub fn dump(container: &Dumped<'_>, options: &CheckpointOptions) -> Result<(), LifecycleError> {
    let plan = criu::plan(container.spec).map_err(crate::CreateError::from)?;
    let criu = Criu::find(options.criu.program.as_deref())?;
    if options.pre_dump || options.parent.is_some() {
        criu.require_tracking()?;
    }
    let images = Images::make(&options.criu.images, options.criu.work.as_deref())?;
    if let Some(parent) = &options.parent {
        images.check_parent(parent)?;
    }
    let freezer = container.cgroup.and_then(|cgroup| cgroup.controller_directory("freezer"));
    let mut externals = Vec::new();
    if !options.pre_dump {
        let root = root_of(container.pidfd).map_err(criu::CriuError::from)?;
        let hierarchies = container.cgroup.map(Cgroup::mount_sources).unwrap_or_default();
        let places = plan.external_mounts(&hierarchies).into_iter().map(|(place, _)| place);
        externals = mounts(root.as_fd(), places, &plan.masked).map_err(criu::CriuError::from)?;
        for (kind, file, name) in [(NEW_NET, "net", NETWORK), (NEW_PID, "pid", PROCESSES)] {
            if plan.namespaces.joins(kind) {
                let inode = namespace(container.pid, file).map_err(criu::CriuError::from)?;
                externals.push(format!("{file}[{inode}]:{name}").into_bytes());
            }
        }
        images.write_descriptors(container.descriptors)?;
    }
    let request = Request::dump(
        &options.criu,
        &Dump {
            pid: container.pid,
            root: container.root,
            leave_running: options.leave_running,
            pre_dump: options.pre_dump,
            parent: options.parent.as_deref(),
            page_server: options.page_server.as_ref().map(|(address, port)| (address.as_str(), *port)),
            freezer: freezer.as_deref(),
            externals: &externals,
            log: LOG,
        },
    );
    let terms = Terms { images: Some(&images), umask: Some(0o077), ..Terms::default() };
    let done = criu.begin(&terms)?.ask("checkpoint the container", &request, |_, _| true);
    done.map(drop).map_err(|error| images.explain(error, LOG).into())
}

/// The mounts that are not the container's own, in CRIU's words: `mnt[PLACE]:NAME`.
fn mounts(
    root: BorrowedFd<'_>,
    binds: impl Iterator<Item = PathBuf>,
    masked: &[PathBuf],
) -> Result<Vec<Vec<u8>>, SetupError> {
    let mut externals = Vec::new();
    let mut add = |place: &Path, name: &Path| {
        let parts = [b"mnt[", place.as_os_str().as_bytes(), b"]:", name.as_os_str().as_bytes()];
        externals.push(parts.concat());
    };
    for name in binds {
        // By whatever links it was reached: a mount is known by where it is.
        let found = find(root, &name)?;
        let place =
            found.as_ref().map_or(Ok(name.clone()), |found| place_of(found.as_fd())).step("looking at", &name)?;
        add(&place, &name);
    }
    for path in masked {
        let Some(found) = find(root, path)? else { continue };
        let stat = rustix::fs::fstat(&found).step("looking at", path)?;
        // A directory is covered by a file system of the container's own.
        if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
            add(&place_of(found.as_fd()).step("looking at", path)?, Path::new(NULL));
        }
    }
    Ok(externals)
}

fn find(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, SetupError> {
    match in_root(root, path, OFlags::PATH, Limits::default()) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some).step("looking for", path),
    }
}

/// A path of the container, seen from its root: that of its mount namespace, which is not ours.
fn place_of(found: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn namespace(pid: i32, file: &str) -> Result<u64, SetupError> {
    let path = format!("/proc/{pid}/ns/{file}");
    let namespace = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let stat = namespace.and_then(rustix::fs::fstat).step("looking at", path)?;
    Ok(stat.st_ino)
}
