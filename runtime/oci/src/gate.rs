//! Where a created container's process waits for a start that may come from another process than its maker.
//!
//! ```text
//!   <directory>/start.sock    the process listens here; who connects and starts it gets the rest of the handshake; its
//!                             maker may start it over the socket that the two have
//!   <directory>/waiting       the process holds an exclusive flock(2) on it, which falls with execve or its end
//! ```
//!
//! Both are descriptors that the process inherits: it needs no path, and what it says about a failed execve reaches
//! whoever starts it. The lock tells a waiting process from a running program without a moment in between, and nothing
//! has to be cleaned up when either side is killed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use portreeve_sys::fd::duplicate_above;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::create::Gate;
use crate::error::{StartError, Step};
use crate::handshake::{self, Word};
use crate::spawn;

const SOCKET: &str = "start.sock";
const WAITING: &str = "waiting";

/// Makes the socket and the locked file in a container's directory.
pub(crate) fn bind(directory: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let waiting = rustix::fs::openat(directory, WAITING, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::flock(&waiting, FlockOperation::LockExclusive)?;
    let listener = socket()?;
    // Before bind(2), this is the mode that the socket's file gets: who may write to it may start the container.
    rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&listener, &address(directory)?)?;
    rustix::net::listen(&listener, 8)?;
    Ok((listener, waiting))
}

/// Makes the file of a gate that nobody waits at: of a container that was restored and not started.
pub(crate) fn passed(directory: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, WAITING, flags, Mode::RUSR | Mode::WUSR).map(drop)?)
}

/// Whether a process still waits at the gate of this directory.
pub(crate) fn waits(directory: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::flock(waiting(directory)?, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Connects to the process that waits at the gate of this directory, and waits on.
pub(crate) fn knock(directory: BorrowedFd<'_>) -> Result<OwnedFd, StartError> {
    let socket = socket().step("making a socket", "")?;
    let address = address(directory).step("naming the socket", SOCKET)?;
    match retry_on_intr(|| rustix::net::connect(&socket, &address)) {
        Err(Errno::CONNREFUSED) => return Err(StartError::Gone),
        other => other.step("connecting to the container's process at", SOCKET)?,
    }
    Ok(socket)
}

/// Lets the process at the other end of `socket` execute its program; returns when it has, or is about to end.
pub(crate) fn open(directory: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> Result<(), StartError> {
    spawn::start(socket)?;
    // The program runs, and the kernel is about to let go of the lock: who asks from now on is to see that.
    settle(directory)
}

/// Returns when the process waits no more: it is one that is about to execute its program, or to end.
pub(crate) fn settle(directory: BorrowedFd<'_>) -> Result<(), StartError> {
    let waiting = waiting(directory).step("opening", WAITING)?;
    retry_on_intr(|| rustix::fs::flock(&waiting, FlockOperation::LockShared)).step("locking", WAITING)?;
    Ok(())
}

fn waiting(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(directory, WAITING, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// By descriptor: an address has room for 107 bytes of path only.
fn address(directory: BorrowedFd<'_>) -> io::Result<SocketAddrUnix> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(SOCKET);
    Ok(SocketAddrUnix::new(path)?)
}

/// A gate as the container's process inherits it.
#[derive(Debug)]
pub(crate) struct Inherited {
    listener: OwnedFd,
    waiting: OwnedFd,
}

impl Inherited {
    /// `None` for a gate at the maker's socket; else its descriptors, with numbers of at least `minimum`.
    pub(crate) fn from(gate: Gate, minimum: i32) -> io::Result<Option<Self>> {
        let Gate::Listening { listener, lock } = gate else { return Ok(None) };
        let above = |fd: OwnedFd| duplicate_above(fd.as_fd(), minimum);
        Ok(Some(Self { listener: above(listener)?, waiting: above(lock)? }))
    }

    /// Its descriptors: all must be kept while the process waits.
    pub(crate) fn numbers(&self) -> [i32; 2] {
        [self.listener.as_raw_fd(), self.waiting.as_raw_fd()]
    }

    /// Waits for the start; `None` when the maker has ended without having let go of the process.
    pub(crate) fn wait(&self, maker: BorrowedFd<'_>) -> io::Result<Option<StartedBy>> {
        let mut maker = Some(maker);
        loop {
            let ready = ready(self.listener.as_fd(), maker)?;
            if let Some(socket) = maker.filter(|_| ready.maker) {
                match handshake::wait_word(socket)? {
                    None => return Ok(None),
                    Some(Word::Start) => return Ok(Some(StartedBy::Maker)),
                    Some(Word::Go) => maker = None,
                }
            }
            if ready.listener {
                let socket = retry_on_intr(|| rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC))?;
                // Whoever connects and goes away again has started nothing.
                if handshake::wait_go(socket.as_fd())? {
                    return Ok(Some(StartedBy::Visitor(socket)));
                }
            }
        }
    }
}

/// Who has started a process that waited at a gate.
#[derive(Debug)]
pub(crate) enum StartedBy {
    /// Its maker, over the socket that the two have.
    Maker,
    /// Whoever has connected, over this one.
    Visitor(OwnedFd),
}

struct Ready {
    listener: bool,
    maker: bool,
}

fn ready(listener: BorrowedFd<'_>, maker: Option<BorrowedFd<'_>>) -> io::Result<Ready> {
    let mut sets: Vec<PollFd<'_>> =
        std::iter::once(listener).chain(maker).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    while let Err(error) = nix::poll::poll(&mut sets, PollTimeout::NONE) {
        if error != nix::errno::Errno::EINTR {
            return Err(error.into());
        }
    }
    let mut any = sets.iter().map(|set| set.any().unwrap_or(true));
    Ok(Ready { listener: any.next().unwrap_or(false), maker: any.next().unwrap_or(false) })
}

#[cfg(test)]
mod tests {
    use portreeve_sys::socket::message_pair;

    use super::*;

    #[test]
    fn a_process_is_started_by_its_maker_or_once_that_has_let_go_by_whoever_comes() {
        let directory = tempfile::tempdir().expect("tempdir");
        let folder = std::fs::File::open(directory.path()).expect("open");
        let (listener, lock) = bind(folder.as_fd()).expect("a gate");
        let gate = Inherited::from(Gate::Listening { listener, lock }, 3).expect("copies").expect("a gate");
        let word = |word| {
            let (maker, newborn) = message_pair().expect("a pair");
            handshake::say(maker.as_fd(), word).expect("say");
            (maker, newborn)
        };
        let (_maker, newborn) = word(Word::Start);
        assert!(matches!(gate.wait(newborn.as_fd()).expect("a start"), Some(StartedBy::Maker)));

        let (maker, newborn) = word(Word::Go);
        drop(maker);
        let visit = knock(folder.as_fd()).expect("a visit");
        handshake::say(visit.as_fd(), Word::Start).expect("say");
        assert!(matches!(gate.wait(newborn.as_fd()).expect("a start"), Some(StartedBy::Visitor(_))));

        let (maker, newborn) = message_pair().expect("a pair");
        drop(maker);
        assert!(gate.wait(newborn.as_fd()).expect("an end").is_none(), "its maker has gone without a word");
    }
}
