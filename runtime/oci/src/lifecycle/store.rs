//! The directory that knows every container, and how one gets into it.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Spec, State};
use portreeve_sys::process::{pidfd_send_signal, wait};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::record::{self, ProcessRecord, Record, replace};
use super::status::Lock;
use super::{CgroupChoice, Container, CreateOptions, CreatedContainer, Id, LifecycleError, Rootless, SIGKILL};
use crate::Pid;
use crate::cgroup::{self, Cgroup, CgroupError, Refusal};
use crate::config::{self, Config, ConfigError};
use crate::create::{Born, Create, Gate, RootFs, Running, create};
use crate::error::{CreateError, Warning};
use crate::gate;
use crate::hooks::Hooks;
use crate::plan::{PlanError, mounts};
use crate::rdt;
use crate::stdio::Stdio;

/// The directory that knows every container.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    directory: OwnedFd,
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

impl Root {
    /// Opens the directory, which is made when missing, for the caller's user alone (mode 0700).
    ///
    /// # Errors
    /// [`LifecycleError::File`], also for a directory of another user or one that others may write to.
    pub fn open(path: &Path) -> Result<Self, LifecycleError> {
        let failed = |action| move |source| LifecycleError::File { action, path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(failed("finding the state directory"))?;
        if let Some(parent) = absolute.parent() {
            let mut builder = std::fs::DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(parent);
            made.map_err(failed("making the parents of the state directory"))?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(&absolute) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("making the state directory")(error));
            }
            _ => {}
        }
        let open = || -> io::Result<OwnedFd> {
            let directory = rustix::fs::open(&absolute, DIRECTORY, Mode::empty())?;
            let stat = rustix::fs::fstat(&directory)?;
            if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
                let text = "it belongs to another user, or others may write to it: whoever can could start, \
                            change and replace containers";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
            }
            Ok(directory)
        };
        let directory = open().map_err(failed("opening the state directory"))?;
        Ok(Self { path: absolute, directory })
    }

    /// Every container, in the order of their names; what is no container's directory is left out.
    ///
    /// # Errors
    /// [`LifecycleError::File`].
    pub fn ids(&self) -> Result<Vec<Id>, LifecycleError> {
        let names = || -> io::Result<Vec<Id>> {
            let mut names = Vec::new();
            for entry in Dir::read_from(&self.directory)? {
                let entry = entry?;
                let id = entry.file_name().to_str().ok().and_then(|name| Id::parse(name).ok());
                let directory = entry.file_type() == rustix::fs::FileType::Directory;
                names.extend(id.filter(|_| directory));
            }
            names.sort();
            Ok(names)
        };
        names().map_err(|source| self.file("reading the state directory", "", source))
    }

    /// A container by its name.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`]; [`LifecycleError::File`] when its record cannot be read.
    pub fn load(&self, id: &Id) -> Result<Container, LifecycleError> {
        let directory = self.find(id)?;
        let record = Record::load(directory.as_fd())
            .map_err(|error| self.file("reading the record in", id.as_str(), error))?
            .unwrap_or_else(|| Record::unknown(id.as_str()));
        Ok(self.container(id, directory, record))
    }

    /// A container to be deleted by force. Of one whose record cannot be read the cgroup counts that its configuration
    /// says, by which its processes are found; without that, its processes live on, which the deletion tells.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`].
    pub fn load_to_delete(&self, id: &Id) -> Result<Container, LifecycleError> {
        let directory = self.find(id)?;
        let (record, lost) = match Record::load(directory.as_fd()) {
            Ok(record) => (record.unwrap_or_else(|| Record::unknown(id.as_str())), None),
            Err(error) => (Record::unknown(id.as_str()), Some(error)),
        };
        let mut container = self.container(id, directory, record);
        if let Some(error) = lost {
            container.find_cgroup(&error);
        }
        Ok(container)
    }

    fn find(&self, id: &Id) -> Result<OwnedFd, LifecycleError> {
        match rustix::fs::openat(&self.directory, id.as_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => Err(LifecycleError::NotFound { id: id.0.clone() }),
            other => other.map_err(|error| self.file("opening", id.as_str(), error.into())),
        }
    }

    fn container(&self, id: &Id, directory: OwnedFd, record: Record) -> Container {
        Container {
            id: id.clone(),
            path: self.path.join(id.as_str()),
            directory,
            record,
            spec: OnceCell::new(),
            lost: None,
            held: None,
        }
    }

    /// Makes a container from the bundle's `config.json`; its process waits for [`Container::start`] then.
    ///
    /// The caller is as that of [`create()`](crate::create()).
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing is left of the container then, or what could not be removed is left for
    /// [`Container::delete`].
    pub fn create(
        &self,
        id: &Id,
        bundle: &Path,
        options: CreateOptions<'_>,
    ) -> Result<CreatedContainer, LifecycleError> {
        let failed = |source| LifecycleError::File { action: "opening the bundle", path: bundle.to_owned(), source };
        let directory = std::fs::File::open(bundle).map_err(failed)?;
        let config = config::read(directory.as_fd())?;
        self.create_from(id, bundle, config, options)
    }

    /// As [`Root::create`], from a configuration that has been read from the bundle already. `config.spec` is what the
    /// container is made from, `config.raw` what is kept of it.
    ///
    /// # Errors
    /// As [`Root::create`].
    pub fn create_from(
        &self,
        id: &Id,
        bundle: &Path,
        mut config: Config,
        options: CreateOptions<'_>,
    ) -> Result<CreatedContainer, LifecycleError> {
        let (mut container, lock) = self.reserve_for(id, bundle, &mut config, options.rootless)?;
        container.record.scope = options.scope.clone();
        match container.make(&config, options) {
            Ok(running) => {
                let Running { pid, pidfd, terminal, mut warnings } = running;
                warnings.extend(config.warnings.into_iter().map(|what| Warning { what, errno: None }));
                Ok(CreatedContainer { container, pidfd, pid, terminal, warnings })
            }
            Err(error) => Err(container.discard(lock, error)),
        }
    }

    /// A new container's directory, with what its configuration says of it in the record, which is not written yet.
    pub(super) fn reserve_for(
        &self,
        id: &Id,
        bundle: &Path,
        config: &mut Config,
        rootless: Rootless,
    ) -> Result<(Container, Lock), LifecycleError> {
        let failed = |source| LifecycleError::File { action: "finding the bundle", path: bundle.to_owned(), source };
        let bundle = std::fs::canonicalize(bundle).map_err(failed)?;
        mounts::in_bundle(&mut config.spec, &bundle);
        let root = config.spec.root().as_ref().ok_or_else(|| PlanError::new("root", "is missing"));
        let rootfs = bundle.join(root.map_err(CreateError::from)?.path());
        // What is recorded is run when the container goes.
        Hooks::plan(config.spec.hooks().as_ref(), State::default()).map_err(CreateError::from)?;
        let (mut container, lock) = self.reserve(id)?;
        container.record = Record {
            bundle,
            rootfs,
            oci_version: config.spec.version().clone(),
            created: jiff::Timestamp::now().to_string(),
            rootless: rootless == Rootless::Yes,
            annotations: config.spec.annotations().clone().unwrap_or_default().into_iter().collect(),
            hooks: config.spec.hooks().clone(),
            startable: config.spec.process().is_some(),
            ..Record::unknown(id.as_str())
        };
        Ok((container, lock))
    }

    /// The one who makes the directory has the name.
    fn reserve(&self, id: &Id) -> Result<(Container, Lock), LifecycleError> {
        match rustix::fs::mkdirat(&self.directory, id.as_str(), Mode::RWXU) {
            Err(Errno::EXIST) => return Err(LifecycleError::Exists { id: id.0.clone() }),
            other => other.map_err(|error| self.file("making", id.as_str(), error.into()))?,
        }
        let reserved = self.load(id).and_then(|container| {
            let lock = container.lock()?;
            Ok((container, lock))
        });
        if reserved.is_err() {
            // Only while nothing is in it. That it could not be used says more than that it is still there.
            let _ = rustix::fs::unlinkat(&self.directory, id.as_str(), AtFlags::REMOVEDIR);
        }
        reserved
    }

    fn file(&self, action: &'static str, name: &str, source: io::Error) -> LifecycleError {
        LifecycleError::File { action, path: self.path.join(name), source }
    }
}

impl Container {
    /// Removes what was begun of a container that could not be made; answers why it could not.
    pub(super) fn discard(mut self, lock: Lock, why: LifecycleError) -> LifecycleError {
        if let LifecycleError::Create(CreateError::Plan(_) | CreateError::Seccomp(_)) = &why {
            // Nothing was begun of a configuration that is refused: there is nothing whose end hooks are told.
            self.record.hooks = None;
            if let Err(error) = self.save() {
                return error;
            }
        }
        drop(lock);
        // What cannot be removed now is there for another try; that it failed says more than its last hooks do.
        let _ = self.delete(true);
        why
    }

    /// In the place of a record that cannot be read. A path that is relative would name another cgroup for another caller.
    fn find_cgroup(&mut self, why: &io::Error) {
        let path = self.spec().ok().and_then(|spec| spec.linux().as_ref()?.cgroups_path().as_ref()?.to_str());
        let path = path.filter(|path| path.starts_with('/')).map(Cgroup::at);
        match path {
            // It was vacant before, so that what is in it is the container's.
            Some(Ok(cgroup)) => {
                (self.record.cgroup, self.record.cgroup_made) = (Some(cgroup.path().to_owned()), true);
            }
            _ => self.lost = Some(format!("its record cannot be read ({why}): processes of it may live on")),
        }
    }

    /// Makes the container whose directory this is; what has been made stays recorded when that fails.
    fn make(&mut self, config: &Config, options: CreateOptions<'_>) -> Result<Running, LifecycleError> {
        let CreateOptions { stdio, extra_fds, keep_keyring, pivot, cgroup, rootless, hold, executable, .. } = options;
        self.record.descriptors = links(&stdio);
        let (cgroup, passed_over) = self.occupy(config, &cgroup, rootless)?;
        let (listener, lock) =
            gate::bind(self.directory.as_fd()).map_err(|error| self.file("making the gate in", "", error))?;
        let record = &self.record;
        let made = OnceCell::new();
        let write_down = |pid: Pid| {
            let process = Some(ProcessRecord::of(pid)?);
            // Where no cgroup tells of it, who deletes the container meanwhile finds the process here.
            if record.cgroup.is_none() {
                Record { newborn: process, ..record.clone() }.save(self.directory.as_fd())?;
            }
            // While the process sets itself up, on another processor.
            let record = made.get_or_init(|| Record { process, ..record.clone() });
            record.prepare(self.directory.as_fd())
        };
        let created = create(Create {
            id: &self.id.0,
            spec: &config.spec,
            rootfs: RootFs::Directory(self.record.rootfs.clone()),
            cgroup: cgroup.as_ref(),
            cgroup_is_new: self.record.cgroup_made,
            stdio,
            extra_fds,
            keep_keyring,
            pivot,
            gate: Gate::Listening { listener, lock },
            bundle: self.record.bundle.clone(),
            outside: None,
            hooks_within: None,
            patience: None,
            rootless,
            executable,
            born: Some(Born(&write_down)),
        });
        if let Err(CreateError::Cgroup(error)) = &created {
            self.forget_taken(error)?;
        }
        let (mut running, starter) = created?.split();
        running.warnings.extend(passed_over);
        if let Some(record) = made.into_inner() {
            self.record = record;
        }
        // Until its maker lets go of it the process ends with the maker: one that nobody knows of never waits.
        let known = record::put_prepared(self.directory.as_fd());
        let kept = known.map_err(|error| self.file("writing the record in", "", error)).and_then(|()| {
            if hold {
                self.held = Some(starter.into_socket());
                Ok(())
            } else {
                Ok(starter.release()?)
            }
        });
        match kept {
            Ok(()) => Ok(running),
            Err(error) => {
                // Both fail only for a process that has ended and been reaped.
                let _gone = pidfd_send_signal(running.pidfd.as_fd(), SIGKILL);
                let _gone = wait(running.pidfd.as_fd());
                Err(error)
            }
        }
    }

    /// Takes the container's cgroup, and writes down what there is of it; the cgroup is not made yet. Answers also why
    /// there is none.
    pub(super) fn occupy(
        &mut self,
        config: &Config,
        cgroup: &CgroupChoice,
        rootless: Rootless,
    ) -> Result<(Option<Cgroup>, Option<Warning>), LifecycleError> {
        let (cgroup, passed_over) = match rootless {
            Rootless::No => (choose(cgroup, &config.spec, &self.id)?, None),
            Rootless::Yes => choose_own(cgroup, &config.spec, &self.id)?,
        };
        if let Some(cgroup) = &cgroup {
            self.record.cgroup_made = !cgroup.exists();
            if !self.record.cgroup_made {
                // Before it is recorded: what is recorded can be killed.
                cgroup.require_vacant()?;
            }
            self.record.cgroup = Some(cgroup.path().to_owned());
        }
        self.record.resctrl = rdt::to_remove(&config.spec, &self.id.0)?;
        replace(self.directory.as_fd(), config::NAME, &config.raw)
            .map_err(|error| self.file("writing", config::NAME, error))?;
        self.save()?;
        Ok((cgroup, passed_over))
    }

    /// Forgets a cgroup that turns out to be another one's: what is recorded is killed and removed with the container.
    pub(super) fn forget_taken(&mut self, error: &CgroupError) -> Result<(), LifecycleError> {
        if matches!(error, CgroupError::Taken { .. } | CgroupError::Occupied { .. } | CgroupError::Frozen { .. }) {
            (self.record.cgroup, self.record.cgroup_made) = (None, false);
            self.save()?;
        }
        Ok(())
    }

    pub(super) fn save(&self) -> Result<(), LifecycleError> {
        self.record.save(self.directory.as_fd()).map_err(|error| self.file("writing the record in", "", error))
    }
}

/// The cgroup that a container gets from a caller who may not be allowed to make it: none then, and why, for a container
/// that asks for no limits.
fn choose_own(
    choice: &CgroupChoice,
    spec: &Spec,
    id: &Id,
) -> Result<(Option<Cgroup>, Option<Warning>), LifecycleError> {
    let refused = match choose(choice, spec, id) {
        Err(LifecycleError::Cgroup(CgroupError::NotMounted)) => {
            Refusal { path: "/sys/fs/cgroup".into(), source: io::ErrorKind::NotFound.into() }
        }
        Ok(Some(cgroup)) => match cgroup.refusal()? {
            None => return Ok((Some(cgroup), None)),
            Some(refusal) => refusal,
        },
        other => return Ok((other?, None)),
    };
    let Refusal { path, source } = refused;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let limits = resources.map(cgroup::limits).transpose();
    let limits = limits.map_err(|error| LifecycleError::Config(ConfigError::Json(error)))?.unwrap_or_default();
    if !limits.is_empty() {
        return Err(CgroupError::NotDelegated { limits, path, source }.into());
    }
    let what = format!(
        "the container has no cgroup of its own and stays in the runtime's: {} is not delegated to this user",
        path.display()
    );
    Ok((None, Some(Warning { what, errno: source.raw_os_error() })))
}

/// What the streams are that a first process gets, for a checkpoint: pipes of the caller's are found again when it is
/// restored. A terminal is the container's own.
fn links(stdio: &Stdio) -> Vec<String> {
    let streams = match stdio {
        Stdio::Inherit => [0, 1, 2].map(Some),
        Stdio::Pipes { stdin, stdout, stderr } => {
            [stdin.as_ref().map(AsRawFd::as_raw_fd), Some(stdout.as_raw_fd()), Some(stderr.as_raw_fd())]
        }
        Stdio::Terminal { .. } => return Vec::new(),
    };
    streams.map(|number| number.map(link_of).unwrap_or_default()).to_vec()
}

/// What a descriptor of this process is; empty for one that is not open.
pub(super) fn link_of(number: RawFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
    link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The cgroup that a container gets.
fn choose(choice: &CgroupChoice, spec: &Spec, id: &Id) -> Result<Option<Cgroup>, LifecycleError> {
    let asked = match choice {
        CgroupChoice::None => return Ok(None),
        CgroupChoice::Path(path) => return Ok(Some(Cgroup::at(path)?)),
        CgroupChoice::FromConfig => spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.cgroups_path().as_ref())
            .map(|path| path.to_str().ok_or_else(|| PlanError::new("linux.cgroupsPath", "is not text")))
            .transpose()
            .map_err(CreateError::from)?,
    };
    Ok(Some(Cgroup::place(asked, id.as_str())?))
}
