//! Where a container is in its life: looked at, never stored; and the lock under which that stays so.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{ContainerState, State};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Container, LifecycleError, Record, Status, record};
use crate::gate;

pub(super) const LOCK: &str = "lock";

/// The right to make, start, change or delete a container; it ends with its holder.
#[derive(Debug)]
pub(super) struct Lock {
    _file: OwnedFd,
}

impl Lock {
    /// Waits for it. Makes its file where it lacks: for the maker, and for the deletion of what one left behind.
    fn make(directory: impl AsFd) -> io::Result<Self> {
        let file = Self::open(directory, OFlags::CREATE)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        Ok(Self { _file: file })
    }

    /// `None` when somebody has it.
    pub(super) fn attempt(directory: impl AsFd) -> io::Result<Option<Self>> {
        // Nobody else makes the file: it would be in the way of who removes the directory.
        let file = Self::open(directory, OFlags::empty())?;
        let free = granted(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive))?;
        Ok(free.then_some(Self { _file: file }))
    }

    /// Whether somebody has it.
    fn is_taken(directory: impl AsFd) -> io::Result<bool> {
        let file = match Self::open(directory, OFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        granted(rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)).map(|free| !free)
    }

    fn open(directory: impl AsFd, how: OFlags) -> io::Result<OwnedFd> {
        let flags = how | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(directory, LOCK, flags, Mode::RUSR | Mode::WUSR)?)
    }
}

/// Whether a lock was free that was not waited for.
fn granted(answer: rustix::io::Result<()>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Container {
    /// Where it is in its life, now.
    ///
    /// # Errors
    /// [`LifecycleError::File`].
    pub fn status(&self) -> Result<Status, LifecycleError> {
        if self.record.process.is_none() {
            let made = Lock::is_taken(&self.directory).map_err(|error| self.file("looking at", LOCK, error))?;
            return Ok(if made { Status::Creating } else { Status::Stopped });
        }
        self.status_when_made()
    }

    /// The same where nobody else has the lock: what has no process then never gets one.
    fn status_when_made(&self) -> Result<Status, LifecycleError> {
        if self.process()?.is_none() {
            return Ok(Status::Stopped);
        }
        if let Some(cgroup) = self.cgroup()?
            && !self.stands_still_for_a_call(&cgroup)?
            && cgroup.is_frozen()?
        {
            return Ok(Status::Paused);
        }
        let waits = gate::waits(self.directory.as_fd()).map_err(|error| self.file("looking at", "waiting", error))?;
        Ok(if waits { Status::Created } else { Status::Running })
    }

    /// Its state as the specification has it, where a paused container counts as running.
    ///
    /// Source: runtime-spec, runtime.md, State.
    ///
    /// # Errors
    /// As [`Container::status`].
    pub fn state(&self) -> Result<State, LifecycleError> {
        let status = match self.status()? {
            Status::Creating => ContainerState::Creating,
            Status::Created => ContainerState::Created,
            Status::Running | Status::Paused => ContainerState::Running,
            Status::Stopped => ContainerState::Stopped,
        };
        Ok(self.state_at(status))
    }

    /// As [`Container::state`], when it is known where it is in its life.
    pub(super) fn state_at(&self, status: ContainerState) -> State {
        let mut state = State::default();
        state
            .set_version(self.record.oci_version.clone())
            .set_id(self.record.id.clone())
            .set_status(status)
            .set_bundle(self.record.bundle.clone());
        if status != ContainerState::Stopped {
            state.set_pid(self.record.process.map(|process| process.pid));
        }
        let annotations = &self.record.annotations;
        if !annotations.is_empty() {
            let all = annotations.iter().map(|(key, value)| (key.clone(), value.clone()));
            state.set_annotations(Some(all.collect()));
        }
        state
    }

    /// Its first process, which is never another one that took over the number.
    ///
    /// # Errors
    /// [`LifecycleError::Status`] when it has ended or is not there yet.
    pub fn pidfd(&self) -> Result<OwnedFd, LifecycleError> {
        match self.process()? {
            Some(process) => Ok(process),
            None => {
                let status = if self.record.process.is_some() { Status::Stopped } else { self.status()? };
                Err(self.refusal(status, "find the process of", "created or running"))
            }
        }
    }

    /// Its first process while it lives.
    pub(super) fn process(&self) -> Result<Option<OwnedFd>, LifecycleError> {
        if self.record.process.is_some() { self.process_or_newborn() } else { Ok(None) }
    }

    /// The same also while it is being made, as far as that is known.
    pub(super) fn process_or_newborn(&self) -> Result<Option<OwnedFd>, LifecycleError> {
        let Some(process) = self.record.process.or(self.record.newborn) else { return Ok(None) };
        process.open().map_err(|error| self.file("looking for the process of", "state.json", error))
    }

    /// Refuses what the container's state does not allow.
    pub(super) fn expect(
        &self,
        verb: &'static str,
        wanted: &'static str,
        good: &[Status],
    ) -> Result<(), LifecycleError> {
        self.check(self.status()?, verb, wanted, good)
    }

    /// The same for who has the lock.
    pub(super) fn expect_locked(
        &self,
        _lock: &Lock,
        verb: &'static str,
        wanted: &'static str,
        good: &[Status],
    ) -> Result<(), LifecycleError> {
        self.check(self.status_when_made()?, verb, wanted, good)
    }

    fn check(
        &self,
        status: Status,
        verb: &'static str,
        wanted: &'static str,
        good: &[Status],
    ) -> Result<(), LifecycleError> {
        if good.contains(&status) { Ok(()) } else { Err(self.refusal(status, verb, wanted)) }
    }

    fn refusal(&self, status: Status, verb: &'static str, wanted: &'static str) -> LifecycleError {
        LifecycleError::Status { id: self.id.0.clone(), status, wanted, verb }
    }

    /// Does something under the lock to the container as its record is then, in one of the states `good`.
    pub(super) fn locked<T>(
        &self,
        verb: &'static str,
        wanted: &'static str,
        good: &[Status],
        act: impl FnOnce(&Self) -> Result<T, LifecycleError>,
    ) -> Result<T, LifecycleError> {
        let lock = self.claim(verb, wanted)?;
        let now;
        let container = if self.record.process.is_some() {
            self
        } else {
            now = self.now()?;
            &now
        };
        container.expect_locked(&lock, verb, wanted, good)?;
        act(container)
    }

    /// Takes the lock, but not that of a container that is being made: who asks may be a hook of the creation, which
    /// would wait for itself.
    pub(super) fn claim(&self, verb: &'static str, wanted: &'static str) -> Result<Lock, LifecycleError> {
        match Lock::attempt(&self.directory) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) if self.record.process.is_none() && self.now()?.record.process.is_none() => {
                Err(self.refusal(Status::Creating, verb, wanted))
            }
            Ok(None) if self.is_ending()? => Err(self.refusal(Status::Stopped, verb, wanted)),
            Ok(None) => self.lock(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.is_removed()? {
                    return Err(LifecycleError::NotFound { id: self.id.0.clone() });
                }
                // Its maker has not come as far, or who deletes it is nearly done.
                Err(self.refusal(self.status()?, verb, wanted))
            }
            Err(error) => Err(self.file("locking", LOCK, error)),
        }
    }

    /// Whether who deletes it runs its last hooks: who asks may be one of these.
    pub(super) fn is_ending(&self) -> Result<bool, LifecycleError> {
        record::is_locked(self.directory.as_fd()).map_err(|error| self.file("looking at", "state.json", error))
    }

    /// Waits for the lock, which is made where it lacks.
    pub(super) fn lock(&self) -> Result<Lock, LifecycleError> {
        Lock::make(&self.directory).map_err(|error| match error.kind() {
            // The directory was removed since it was opened.
            io::ErrorKind::NotFound => LifecycleError::NotFound { id: self.id.0.clone() },
            _ => self.file("locking", LOCK, error),
        })
    }

    /// The same container with its record as it is now: its maker may have written more since it was loaded.
    pub(super) fn now(&self) -> Result<Self, LifecycleError> {
        let directory = self.directory.try_clone().map_err(|error| self.file("opening", "", error))?;
        let record = Record::load(directory.as_fd()).map_err(|error| self.file("reading the record in", "", error))?;
        let record = record.unwrap_or_else(|| Record::unknown(self.id.as_str()));
        Ok(Self {
            id: self.id.clone(),
            path: self.path.clone(),
            directory,
            record,
            spec: OnceCell::new(),
            lost: None,
            held: None,
        })
    }

    /// Whether somebody else has removed the directory meanwhile.
    pub(super) fn is_removed(&self) -> Result<bool, LifecycleError> {
        let stat = rustix::fs::fstat(&self.directory).map_err(|error| self.file("looking at", "", error.into()))?;
        Ok(stat.st_nlink == 0)
    }

    pub(super) fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>, LifecycleError> {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        record::read(self.directory.as_fd(), name, limit).map_err(|error| self.file("reading", name, error))
    }

    pub(super) fn file(&self, action: &'static str, name: &str, source: io::Error) -> LifecycleError {
        LifecycleError::File { action, path: self.path.join(name), source }
    }
}
