//! Cloning the container's process, directly or by a process in between, and listening to it until it is ready.
//!
//! ```text
//!   maker --clone3(cgroup, namespaces)--> container's process            the usual way
//!
//!   maker --clone3(cgroup, shared files)--> in between: cgroup, setns    user, PID or time namespace joined
//!                                              |clone3(namespaces, sibling)
//!                                              +--> container's process, a child of the maker
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use portreeve_sys::clone::{Child, Clone3, clone3};
use portreeve_sys::process::{Exit, pidfd_send_signal, wait};
use portreeve_sys::{fd, namespace, socket};
use rustix::io::Errno;

use crate::Pid;
use crate::cgroup::Join;
use crate::error::{SetupError, StartError, Step};
use crate::handshake::{self, Message};
use crate::init::{self, Joining};

/// A process that has been cloned and sets itself up.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Child,
    /// The maker's end of the handshake.
    pub(crate) socket: OwnedFd,
    /// What it said before the process in between could say that it exists.
    pub(crate) early: Vec<Message>,
}

/// How a process could not be brought to life.
#[derive(Debug)]
pub(crate) enum SpawnError {
    Setup(SetupError),
    Died(String),
}

impl From<SetupError> for SpawnError {
    fn from(error: SetupError) -> Self {
        Self::Setup(error)
    }
}

/// Both ends of a handshake; the child's is numbered above what the program will use.
pub(crate) fn sockets(extra_fds: usize) -> Result<(OwnedFd, OwnedFd), SetupError> {
    let (ours, theirs) = socket::message_pair().step("making a socket pair", "")?;
    let minimum = i32::try_from(extra_fds).unwrap_or(0).saturating_add(3);
    let theirs = fd::duplicate_above(theirs.as_fd(), minimum).step("copying a socket", "")?;
    Ok((ours, theirs))
}

/// Clones directly. `body` gets what of the cgroup is left to join.
pub(crate) fn direct(
    sockets: (OwnedFd, OwnedFd),
    namespaces: u64,
    cgroup: &Join,
    body: impl Fn(BorrowedFd<'_>, Joining) -> i32,
) -> Result<Spawned, SpawnError> {
    let (ours, theirs) = sockets;
    let how = Clone3 { namespaces, cgroup: cgroup.unified(), ..Clone3::default() };
    let born = if how.cgroup.is_some() { Joining::VersionOne } else { Joining::All };
    let child = match clone3(&how, || body(theirs.as_fd(), born)) {
        // A kernel or cgroup that takes no newborn: the child walks.
        Err(error) if how.cgroup.is_some() && walkable(&error) => {
            clone3(&Clone3 { cgroup: None, ..how }, || body(theirs.as_fd(), Joining::All))
        }
        other => other,
    };
    let child = child.step("cloning the container's process", "")?;
    Ok(Spawned { child, socket: ours, early: Vec::new() })
}

fn walkable(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::INVAL, Errno::ACCESS, Errno::BUSY, Errno::NODEV]
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// Clones by a process in between, which joins the cgroup and runs `enter` first.
pub(crate) fn between(
    sockets: (OwnedFd, OwnedFd),
    namespaces: u64,
    cgroup: &Join,
    enter: impl Fn() -> Result<(), SetupError>,
    body: impl Fn(BorrowedFd<'_>, Joining) -> i32,
) -> Result<Spawned, SpawnError> {
    let (ours, theirs) = sockets;
    let run = |joining: Joining| {
        let made = init::begin_between(cgroup, joining).and_then(|()| enter()).and_then(|()| {
            let how = Clone3 { namespaces, sibling: true, ..Clone3::default() };
            clone3(&how, || body(theirs.as_fd(), Joining::Nothing)).step("cloning the container's process", "")
        });
        match made {
            Ok(child) => {
                let pid = child.pid.as_raw_nonzero().get();
                // The table of descriptors is shared with the maker, who takes this one over.
                let pidfd = std::os::fd::IntoRawFd::into_raw_fd(child.pidfd);
                i32::from(handshake::spawned(theirs.as_fd(), pid, pidfd).is_err())
            }
            Err(error) => {
                let _ = handshake::failed(theirs.as_fd(), &error);
                1
            }
        }
    };
    let how = Clone3 { cgroup: cgroup.unified(), share_files: true, ..Clone3::default() };
    let born = if how.cgroup.is_some() { Joining::VersionOne } else { Joining::All };
    let first = match clone3(&how, || run(born)) {
        Err(error) if how.cgroup.is_some() && walkable(&error) => {
            clone3(&Clone3 { cgroup: None, ..how }, || run(Joining::All))
        }
        other => other,
    };
    let first = first.step("cloning the process in between", "")?;
    let exit = wait(first.pidfd.as_fd()).step("waiting for the process in between", "")?;
    drop(theirs);
    // The two share the socket: the container's process may be ready before the one in between has said that it exists.
    let mut early = Vec::new();
    loop {
        match handshake::next(ours.as_fd()).step("listening to the process in between", "")? {
            Message::Spawned { pid, pidfd } => {
                let pidfd = fd::take(pidfd).step("taking over the process's descriptor", "")?;
                let pid = Pid::from_raw(pid).ok_or_else(|| SpawnError::Died("it has no process id".into()))?;
                return Ok(Spawned { child: Child { pid, pidfd }, socket: ours, early });
            }
            Message::Failed(error) if exit != Exit::Code(0) => return Err(error.into()),
            Message::Closed => {
                return Err(SpawnError::Died(format!(
                    "the process in between {}, last word {early:?}",
                    describe(exit)
                )));
            }
            other => early.push(other),
        }
    }
}

/// What came with [`Message::Ready`].
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) terminal: Option<OwnedFd>,
}

/// Listens until the process is ready; on failure it has been killed and reaped.
pub(crate) fn listen(spawned: &mut Spawned) -> Result<Heard, SpawnError> {
    let mut heard = Heard::default();
    let mut early = std::mem::take(&mut spawned.early).into_iter();
    loop {
        let message = early.next().map_or_else(|| handshake::next(spawned.socket.as_fd()), Ok);
        match message.step("listening to the container's process", "") {
            Ok(Message::Ready) => return Ok(heard),
            Ok(Message::Terminal(master)) => heard.terminal = Some(master),
            Ok(Message::Failed(error)) => {
                abandon(spawned);
                return Err(error.into());
            }
            Ok(Message::Closed) => {
                return Err(SpawnError::Died(abandon(spawned).map_or_else(|| "lost".into(), describe)));
            }
            Ok(other) => {
                abandon(spawned);
                return Err(SpawnError::Died(format!("it said {other:?}")));
            }
            Err(error) => {
                abandon(spawned);
                return Err(error.into());
            }
        }
    }
}

/// Kills and reaps.
pub(crate) fn abandon(spawned: &Spawned) -> Option<Exit> {
    let _ = pidfd_send_signal(spawned.child.pidfd.as_fd(), 9);
    wait(spawned.child.pidfd.as_fd()).ok()
}

/// Says the word and listens until the program has been executed.
pub(crate) fn start(socket: BorrowedFd<'_>) -> Result<(), StartError> {
    match handshake::go(socket) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(StartError::Gone),
        other => other.step("telling the container's process to start", "")?,
    }
    match handshake::next(socket).step("listening to the container's process", "")? {
        Message::Closed => Ok(()),
        Message::Failed(error) => Err(error.into()),
        Message::NotExecuted { program, search, errno } => {
            let source = io::Error::from_raw_os_error(errno);
            if errno == Errno::NOENT.raw_os_error() {
                Err(StartError::NotFound { program, search })
            } else {
                Err(StartError::NotExecutable { program, source })
            }
        }
        Message::NoInterpreter { program } => Err(StartError::NoInterpreter { program }),
        _ => Err(StartError::Gone),
    }
}

fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal(signal) => format!("was killed by signal {signal}"),
    }
}

/// Enters namespaces, those that refuse with the caller's own privileges again after the others.
pub(crate) fn enter(joins: &[(u64, OwnedFd)]) -> Result<(), SetupError> {
    for (kind, fd) in joins {
        namespace::enter(fd.as_fd(), *kind)
            .step("joining a namespace", format!("(kind {kind:#x}, descriptor {})", fd.as_raw_fd()))?;
    }
    Ok(())
}
