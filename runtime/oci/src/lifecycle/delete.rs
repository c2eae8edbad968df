//! Removing a container, whatever is left of it.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use portreeve_sys::process::{has_ended, pidfd_send_signal};
use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use super::status::{LOCK, Lock};
use super::{Container, LifecycleError, Record, SIGKILL, Status, record};
use crate::error::Warning;
use crate::hooks::Point;
use crate::rdt;

/// How long a killed process may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long one may take before the others are killed.
const SOON_MS: i32 = 100;

const VERB: &str = "delete";
const WANTED: &str = "stopped";

impl Container {
    /// Removes a stopped container, or with `force` kills any first: all that runs in its cgroup, the cgroup when it
    /// was made for the container, and its directory. Its last hooks run before the directory goes; one that fails is a
    /// warning.
    ///
    /// It can be said again after it failed or was interrupted; with `force` a container that is gone is success. While
    /// another one deletes it and its last hooks run, the answer is a warning: it may come from one of these.
    ///
    /// # Errors
    /// [`LifecycleError::Status`] for one that is not stopped, which changes nothing, and what could not be removed.
    pub fn delete(mut self, force: bool) -> Result<Vec<Warning>, LifecycleError> {
        let taken = if force { self.claim_by_force() } else { self.claim_to_delete() };
        let lock = match taken {
            Err(LifecycleError::NotFound { .. }) if force => return Ok(Vec::new()),
            other => other?,
        };
        let Some(lock) = lock else {
            let what = format!("container {} is being deleted by another call, and its last hooks run", self.id.0);
            return Ok(vec![Warning { what, errno: None }]);
        };
        if self.is_removed()? {
            return if force { Ok(Vec::new()) } else { Err(LifecycleError::NotFound { id: self.id.0.clone() }) };
        }
        match self.reload() {
            // A record that cannot be read says no more than one that is not there.
            Err(_) if force => {}
            other => other?,
        }
        if force {
            self.end_first(patience_ms()).and_then(|ended| self.ended(ended))?;
        } else {
            self.expect_locked(&lock, VERB, WANTED, &[Status::Stopped])?;
        }
        if let Some(cgroup) = self.cgroup()? {
            // What the first process left behind, where no PID namespace has ended it, is in the way of its removal.
            if !self.record.cgroup_made || !cgroup.remove_unused()? {
                cgroup.kill_all()?;
                cgroup.wait_empty(PATIENCE)?;
                if self.record.cgroup_made {
                    cgroup.remove()?;
                }
            }
        }
        rdt::remove(self.record.resctrl.as_deref())?;
        // Before what knows of them is gone: a deletion that is interrupted and said again runs them again.
        let hooks = self.hooks()?;
        let hooks = if hooks.any_at(Point::Poststop) {
            let failed = |error| self.file("locking", "state.json", error);
            let _ending = record::lock(self.directory.as_fd()).map_err(failed)?;
            hooks.run_all(Point::Poststop)
        } else {
            Vec::new()
        };
        self.remove_directory(lock)?;
        let told = self.lost.into_iter().chain(hooks.into_iter().map(|error| error.to_string()));
        Ok(told.map(|what| Warning { what, errno: None }).collect())
    }

    /// The lock of one that is killed for it: a maker or starter that waits for the process has it until then.
    /// `None` while its last hooks run.
    fn claim_by_force(&mut self) -> Result<Option<Lock>, LifecycleError> {
        match Lock::attempt(&self.directory) {
            Ok(Some(lock)) => return Ok(Some(lock)),
            Ok(None) if self.is_ending()? => return Ok(None),
            Err(_) if self.is_removed()? => return Err(LifecycleError::NotFound { id: self.id.0.clone() }),
            // Its maker died before it had made the lock, for which there may be no room, or has not come as far.
            Err(_) if rustix::fs::rmdir(&self.path).is_ok() => {
                return Err(LifecycleError::NotFound { id: self.id.0.clone() });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.file("locking", LOCK, error)),
            Ok(None) | Err(_) => {}
        }
        // Should the record not be readable, the one that was loaded counts.
        let _readable = self.reload();
        self.end()?;
        if self.is_ending()? { Ok(None) } else { self.lock().map(Some) }
    }

    /// The lock of one that is not being made; also of one whose maker died before it had made the lock.
    /// `None` while its last hooks run.
    fn claim_to_delete(&self) -> Result<Option<Lock>, LifecycleError> {
        match self.claim(VERB, WANTED) {
            Err(LifecycleError::Status { status: Status::Stopped, .. }) if self.is_ending()? => Ok(None),
            Err(LifecycleError::Status { status: Status::Stopped, .. }) => self.lock().map(Some),
            other => other.map(Some),
        }
    }

    /// By its descriptor, and in the end alone by its path, which may be that of a new container by then.
    fn remove_directory(&self, mut lock: Lock) -> Result<(), LifecycleError> {
        loop {
            self.remove_files().map_err(|error| self.file("removing the files of", "", error))?;
            match std::fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                other => return other.map_err(|error| self.file("removing", "", error)),
            }
            // Another one who deletes it has made a lock when ours was gone already, and comes first then.
            drop(lock);
            lock = match self.lock() {
                Err(LifecycleError::NotFound { .. }) => return Ok(()),
                other => other?,
            };
            if self.is_removed()? {
                return Ok(());
            }
        }
    }

    fn remove_files(&self) -> io::Result<()> {
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            names.push(entry?.file_name().to_owned());
        }
        names.retain(|name| !matches!(name.to_bytes(), b"." | b".."));
        // Until it is gone, others wait for it.
        names.sort_by_key(|name| name.to_bytes() == LOCK.as_bytes());
        for name in names {
            match rustix::fs::unlinkat(&self.directory, name.as_c_str(), AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Kills the first process and waits for its end, and kills everything that is left in the cgroup then.
    ///
    /// The first one goes first: with a PID namespace of its own all others go with it, and nothing has to be stopped and
    /// looked for.
    pub(super) fn end(&self) -> Result<(), LifecycleError> {
        let first = self.end_first(SOON_MS)?;
        if let Some(cgroup) = self.cgroup()? {
            cgroup.kill_all()?;
        }
        if first { Ok(()) } else { self.end_first(patience_ms()).and_then(|ended| self.ended(ended)) }
    }

    /// Kills the first process; whether it has ended within the time.
    fn end_first(&self, timeout_ms: i32) -> Result<bool, LifecycleError> {
        let Some(pidfd) = self.process_or_newborn()? else { return Ok(true) };
        let failed = |source| LifecycleError::Signal { id: self.id.0.clone(), signal: SIGKILL, source };
        match pidfd_send_signal(pidfd.as_fd(), SIGKILL) {
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(true),
            other => other.map_err(failed)?,
        }
        self.thaw()?;
        has_ended(pidfd.as_fd(), timeout_ms).map_err(failed)
    }

    fn ended(&self, ended: bool) -> Result<(), LifecycleError> {
        let source = || io::Error::new(io::ErrorKind::TimedOut, format!("it has not ended within {PATIENCE:?}"));
        let late = || LifecycleError::Signal { id: self.id.0.clone(), signal: SIGKILL, source: source() };
        if ended { Ok(()) } else { Err(late()) }
    }

    /// Waits for the first process's end when that is about to come.
    pub(super) fn await_end(&self) -> Result<(), LifecycleError> {
        let Some(pidfd) = self.process()? else { return Ok(()) };
        let ended = has_ended(pidfd.as_fd(), patience_ms());
        ended.map(drop).map_err(|error| self.file("waiting for the process of", "", error))
    }

    /// A maker that had the lock has written more.
    fn reload(&mut self) -> Result<(), LifecycleError> {
        if let Some(record) =
            Record::load(self.directory.as_fd()).map_err(|error| self.file("reading", "state.json", error))?
        {
            self.record = record;
        }
        Ok(())
    }
}

fn patience_ms() -> i32 {
    i32::try_from(PATIENCE.as_millis()).unwrap_or(i32::MAX)
}
