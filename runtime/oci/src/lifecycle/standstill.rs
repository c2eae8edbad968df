//! Processes that stand still for the time of one call, which may be killed meanwhile: a file says so, locked by that call.
//! Without the lock it was left behind, and whoever looks next lets the processes go on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use rustix::io::{Errno, retry_on_intr};

use super::{Container, LifecycleError};
use crate::cgroup::Cgroup;

const NAME: &str = "standstill";

/// Dropped, the file is gone; to be dropped when the processes go on.
#[derive(Debug)]
pub(super) struct Standstill<'a> {
    container: &'a Container,
    _lock: OwnedFd,
}

impl Drop for Standstill<'_> {
    fn drop(&mut self) {
        // Left behind, it lets processes go on that do so already.
        let _ = self.container.forget_standstill();
    }
}

impl Container {
    /// To be taken before processes are frozen for a call's time; waits for another call that does the same. `None` when they
    /// are frozen already, and stay so.
    pub(super) fn standstill_of(&self, cgroup: &Cgroup) -> Result<Option<Standstill<'_>>, LifecycleError> {
        if !self.stands_still_for_a_call(cgroup)? && cgroup.is_frozen()? {
            return Ok(None);
        }
        let standstill = self.standstill()?;
        // Meanwhile somebody may have paused it.
        Ok(if cgroup.is_frozen()? { None } else { Some(standstill) })
    }

    /// The same for who does not know yet whether they are frozen.
    pub(super) fn standstill(&self) -> Result<Standstill<'_>, LifecycleError> {
        let take = || loop {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::openat(&self.directory, NAME, flags, Mode::RUSR | Mode::WUSR)?;
            retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
            // Who had it before has removed the file.
            if rustix::fs::fstat(&file)?.st_nlink > 0 {
                return Ok(file);
            }
        };
        let lock = take().map_err(|error: io::Error| self.file("making", NAME, error))?;
        Ok(Standstill { container: self, _lock: lock })
    }

    /// Whether processes that are frozen, or about to be, are so for one call alone: for one that works on, or was killed. In
    /// the second case they go on now.
    pub(super) fn stands_still_for_a_call(&self, cgroup: &Cgroup) -> Result<bool, LifecycleError> {
        let failed = |error: Errno| self.file("looking at", NAME, error.into());
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(self.directory.as_fd(), NAME, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(false),
            other => other.map_err(failed)?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(true),
            other => other.map_err(failed)?,
        }
        // Its call has ended meanwhile, and who is frozen now is so for another reason.
        if rustix::fs::fstat(&file).map_err(failed)?.st_nlink == 0 {
            return Ok(false);
        }
        cgroup.thaw()?;
        self.forget_standstill().map_err(failed)?;
        Ok(true)
    }

    fn forget_standstill(&self) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.directory, NAME, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}
