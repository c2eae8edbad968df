//! The directory that knows every container, and how one gets into it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Spec, State};
use portreeve_sys::process::{pidfd_send_signal, wait};
use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use super::record::{ProcessRecord, Record, replace};
use super::{CgroupChoice, Container, CreateOptions, CreatedContainer, Id, LifecycleError, Rootless, SIGKILL};
use crate::cgroup::Cgroup;
use crate::config::{self, Config};
use crate::create::{Create, Gate, RootFs, Running, create};
use crate::error::{CreateError, Warning};
use crate::gate;
use crate::hooks::Hooks;
use crate::plan::{PlanError, mounts};
use crate::rdt;

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

    /// A container to be deleted by force: a record that cannot be read says no more than one that is not there.
    ///
    /// # Errors
    /// [`LifecycleError::NotFound`].
    pub fn load_to_delete(&self, id: &Id) -> Result<Container, LifecycleError> {
        let directory = self.find(id)?;
        let record = Record::load(directory.as_fd()).ok().flatten().unwrap_or_else(|| Record::unknown(id.as_str()));
        Ok(self.container(id, directory, record))
    }

    fn find(&self, id: &Id) -> Result<OwnedFd, LifecycleError> {
        match rustix::fs::openat(&self.directory, id.as_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => Err(LifecycleError::NotFound { id: id.0.clone() }),
            other => other.map_err(|error| self.file("opening", id.as_str(), error.into())),
        }
    }

    fn container(&self, id: &Id, directory: OwnedFd, record: Record) -> Container {
        Container { id: id.clone(), path: self.path.join(id.as_str()), directory, record, held: None }
    }

    /// Makes a container from the bundle's `config.json`; its process waits for [`Container::start`] then.
    ///
    /// The caller is as that of [`create()`](crate::create()).
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing is left of the container then, or what could not be removed is left for
    /// [`Container::delete`].
    pub fn create(&self, id: &Id, bundle: &Path, options: CreateOptions) -> Result<CreatedContainer, LifecycleError> {
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
        options: CreateOptions,
    ) -> Result<CreatedContainer, LifecycleError> {
        let failed = |source| LifecycleError::File { action: "finding the bundle", path: bundle.to_owned(), source };
        let bundle = std::fs::canonicalize(bundle).map_err(failed)?;
        mounts::in_bundle(&mut config.spec, &bundle);
        let root = config.spec.root().as_ref().ok_or_else(|| PlanError::new("root", "is missing"));
        let rootfs = bundle.join(root.map_err(CreateError::from)?.path());
        // What is recorded is run when the container goes.
        Hooks::plan(config.spec.hooks().as_ref(), State::default()).map_err(CreateError::from)?;
        let mut container = self.reserve(id)?;
        let lock = container.lock()?;
        container.record = Record {
            bundle,
            rootfs,
            oci_version: config.spec.version().clone(),
            created: jiff::Timestamp::now().to_string(),
            rootless: options.rootless == Rootless::Yes,
            annotations: config.spec.annotations().clone().unwrap_or_default().into_iter().collect(),
            hooks: config.spec.hooks().clone(),
            startable: config.spec.process().is_some(),
            ..Record::unknown(id.as_str())
        };
        match container.make(&config, options) {
            Ok(running) => {
                let Running { pid, pidfd, terminal, mut warnings } = running;
                warnings.extend(config.warnings.into_iter().map(|what| Warning { what, errno: None }));
                Ok(CreatedContainer { container, pidfd, pid, terminal, warnings })
            }
            Err(error) => {
                drop(lock);
                // What cannot be removed now is there for another try; that it failed says more than its last hooks do.
                let _ = container.delete(true);
                Err(error)
            }
        }
    }

    /// The one who makes the directory has the name.
    fn reserve(&self, id: &Id) -> Result<Container, LifecycleError> {
        match rustix::fs::mkdirat(&self.directory, id.as_str(), Mode::RWXU) {
            Err(Errno::EXIST) => return Err(LifecycleError::Exists { id: id.0.clone() }),
            other => other.map_err(|error| self.file("making", id.as_str(), error.into()))?,
        }
        self.load(id)
    }

    fn file(&self, action: &'static str, name: &str, source: io::Error) -> LifecycleError {
        LifecycleError::File { action, path: self.path.join(name), source }
    }
}

impl Container {
    /// Makes the container whose directory this is; what has been made stays recorded when that fails.
    fn make(&mut self, config: &Config, options: CreateOptions) -> Result<Running, LifecycleError> {
        let CreateOptions { stdio, extra_fds, keep_keyring, pivot, cgroup, hold, .. } = options;
        let cgroup = choose(&cgroup, &config.spec, &self.id)?;
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
        let (listener, lock) =
            gate::bind(self.directory.as_fd()).map_err(|error| self.file("making the gate in", "", error))?;
        let (running, starter) = create(Create {
            id: &self.id.0,
            spec: &config.spec,
            rootfs: RootFs::Directory(self.record.rootfs.clone()),
            cgroup: cgroup.as_ref(),
            stdio,
            extra_fds,
            keep_keyring,
            pivot,
            gate: Gate::Listening { listener, lock },
            bundle: self.record.bundle.clone(),
        })?
        .split();
        // Until its maker lets go of it the process ends with the maker: one that nobody knows of never waits.
        let known = ProcessRecord::of(running.pid).map_err(|error| self.file("looking for the process of", "", error));
        let kept = known.and_then(|process| {
            self.record.process = Some(process);
            self.save()?;
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

    pub(super) fn save(&self) -> Result<(), LifecycleError> {
        self.record.save(self.directory.as_fd()).map_err(|error| self.file("writing the record in", "", error))
    }
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
