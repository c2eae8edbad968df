//! What a container writes: read once, logged, and copied to whoever is attached.
//!
//! An attached client that does not read holds the container's output up for at most [`PATIENCE`]; then it is detached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::log::{Log, Which};

/// How long an attached client may hold a container's output up.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// So much is read at once.
const CHUNK: usize = 16 << 10;

/// The reading end of one of a container's streams, or its terminal.
#[derive(Debug)]
pub(super) struct Source {
    fd: OwnedFd,
    which: Which,
    partial: Vec<u8>,
    copies: Vec<Copy>,
}

/// The writing end of a pipe that an attached client reads.
#[derive(Debug)]
struct Copy {
    fd: OwnedFd,
    backlog: Vec<u8>,
    since: Instant,
}

/// What reading brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Bytes.
    Read,
    /// Nothing for now.
    Empty,
    /// It has ended.
    End,
}

impl Source {
    /// `fd` is made non-blocking.
    pub(super) fn new(fd: OwnedFd, which: Which) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, which, partial: Vec::new(), copies: Vec::new() })
    }

    /// Copies what comes from now on to `fd` as well.
    pub(super) fn attach(&mut self, fd: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        self.copies.push(Copy { fd, backlog: Vec::new(), since: Instant::now() });
        Ok(())
    }

    /// Whether a client holds it up.
    pub(super) fn paused(&self) -> bool {
        self.copies.iter().any(|copy| !copy.backlog.is_empty())
    }

    /// Descriptors of clients, and whether each waits for room.
    pub(super) fn clients(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.copies.iter().map(|copy| (copy.fd.as_fd(), !copy.backlog.is_empty()))
    }

    /// When the first slow client is out of patience.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.copies.iter().filter(|copy| !copy.backlog.is_empty()).map(|copy| copy.since + PATIENCE).min()
    }

    /// Reads once and passes it on.
    pub(super) fn pump(&mut self, log: Option<&mut Log>) -> Progress {
        let mut chunk = [0u8; CHUNK];
        let bytes = match rustix::io::read(&self.fd, &mut chunk) {
            Ok(count) if count > 0 => chunk.get(..count).unwrap_or_default(),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Progress::Empty,
            // EIO: nobody has the other side of the terminal any more.
            _ => {
                if let Some(log) = log {
                    log.finish(self.which, &mut self.partial);
                }
                return Progress::End;
            }
        };
        if let Some(log) = log {
            log.write(self.which, &mut self.partial, bytes);
        }
        self.copies.retain_mut(|copy| copy.push(bytes));
        Progress::Read
    }

    /// Gives slow clients what they have room for now; those that are gone or out of patience are detached.
    pub(super) fn flush(&mut self) {
        self.copies.retain_mut(|copy| copy.flush() && copy.alive());
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Copy {
    fn push(&mut self, bytes: &[u8]) -> bool {
        if self.backlog.is_empty() {
            self.since = Instant::now();
        }
        self.backlog.extend_from_slice(bytes);
        self.flush()
    }

    /// `false` when the client is gone.
    fn flush(&mut self) -> bool {
        while !self.backlog.is_empty() {
            match rustix::io::write(&self.fd, &self.backlog) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.since = Instant::now();
                }
                Err(rustix::io::Errno::AGAIN) => return self.since.elapsed() < PATIENCE,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        self.backlog = Vec::new();
        true
    }

    /// `false` when nobody reads the pipe any more.
    fn alive(&self) -> bool {
        let mut fds = [nix::poll::PollFd::new(self.fd.as_fd(), nix::poll::PollFlags::empty())];
        match nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO) {
            Ok(0) => true,
            _ => !fds.iter().any(|fd| fd.revents().is_some_and(|events| !events.is_empty())),
        }
    }
}
