//! Telling when a cgroup runs out of memory, by the kernel's own events.
//!
//! ```text
//!   version 1   eventfd registered through cgroup.event_control for memory.oom_control    readable: out of memory, or gone
//!   version 2   epoll of memory.events and cgroup.events (both are pollable, POLLPRI)     readable: changed
//! ```

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::layout::Layout;
use super::{CgroupError, Version, stats, write_file};

/// Tells when a cgroup runs out of memory. Its descriptor is readable when [`OomEvents::read`] has something to say.
#[derive(Debug)]
pub struct OomEvents {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Eventfd { counter: EventFd, directory: PathBuf },
    Files { epoll: Epoll, memory: File, cgroup: File, path: PathBuf, kills: u64 },
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomEvent {
    /// Memory ran out this often since the last answer: version 1 counts each time, version 2 each killed process.
    OutOfMemory(u64),
    /// Nothing of interest.
    Nothing,
    /// The cgroup is gone, or (version 2) its last process is: nothing follows.
    Ended,
}

impl OomEvents {
    pub(crate) fn listen(layout: &Layout, relative: &str) -> Result<Self, CgroupError> {
        let missing = || CgroupError::NoController { controller: "memory".into(), needed_for: "OOM events".into() };
        let source = match layout.version() {
            Version::V1 => {
                let directory = layout.v1_mount("memory").ok_or_else(missing)?.join(relative);
                register(&directory).map_err(|source| CgroupError::Events { path: directory, source })?
            }
            Version::V2 => {
                let directory = layout.unified.as_deref().ok_or_else(missing)?.join(relative);
                watch(&directory).map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound if directory.is_dir() => missing(),
                    _ => CgroupError::Events { path: directory, source },
                })?
            }
        };
        Ok(Self { source })
    }

    /// What has happened since the last call; does not wait.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn read(&mut self) -> Result<OomEvent, CgroupError> {
        match &mut self.source {
            Source::Eventfd { counter, directory } => match counter.read() {
                // Its removal is an event as well.
                Ok(_) if !directory.exists() => Ok(OomEvent::Ended),
                Ok(count) => Ok(OomEvent::OutOfMemory(count)),
                Err(nix::errno::Errno::EAGAIN) if !directory.exists() => Ok(OomEvent::Ended),
                Err(nix::errno::Errno::EAGAIN) => Ok(OomEvent::Nothing),
                Err(error) => Err(CgroupError::Read { path: directory.clone(), source: error.into() }),
            },
            Source::Files { memory, cgroup, path, kills, .. } => {
                let failed = |source| CgroupError::Read { path: path.clone(), source };
                let Some(now) = number(memory, "oom_kill").map_err(failed)? else { return Ok(OomEvent::Ended) };
                let populated = number(cgroup, "populated").map_err(failed)?;
                let more = now.saturating_sub(*kills);
                *kills = now;
                match (more, populated) {
                    (0, Some(1)) => Ok(OomEvent::Nothing),
                    (0, _) => Ok(OomEvent::Ended),
                    (more, _) => Ok(OomEvent::OutOfMemory(more)),
                }
            }
        }
    }
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Eventfd { counter, .. } => counter.as_fd(),
            Source::Files { epoll, .. } => epoll.0.as_fd(),
        }
    }
}

/// Linux cgroup-v1/memory.rst, "OOM Control".
fn register(directory: &Path) -> io::Result<Source> {
    let counter = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = File::open(directory.join("memory.oom_control"))?;
    let line = format!("{} {}", counter.as_fd().as_raw_fd(), control.as_raw_fd());
    write_file(&directory.join("cgroup.event_control"), &line)?;
    Ok(Source::Eventfd { counter, directory: directory.to_owned() })
}

fn watch(directory: &Path) -> io::Result<Source> {
    let path = directory.join("memory.events");
    let mut memory = File::open(&path)?;
    let mut cgroup = File::open(directory.join("cgroup.events"))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for file in [&memory, &cgroup] {
        epoll.add(file, EpollEvent::new(EpollFlags::EPOLLPRI, 0))?;
    }
    // A file tells of changes since it was read last.
    let kills = number(&mut memory, "oom_kill")?.unwrap_or(0);
    number(&mut cgroup, "populated")?;
    Ok(Source::Files { epoll, memory, cgroup, path, kills })
}

/// A value of an open events file; `None` when the cgroup is gone.
fn number(file: &mut File, key: &str) -> io::Result<Option<u64>> {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(stats::keyed(&text, key).unwrap_or(0))),
        Err(error) if super::lifecycle::gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
