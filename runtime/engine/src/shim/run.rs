//! The loop: what is ready is done, one thing after the other.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use portreeve_sys::process;
use rustix::process::WaitOptions;

use super::connection::Connection;
use super::container::Container;
use super::exec::Running;
use super::output::Progress;
use super::pod::Namespaces;
use crate::handler::Runtime;
use crate::protocol::{Event, Message};

/// All that a shim has.
#[derive(Debug)]
pub(super) struct Shim {
    pub(super) directory: PathBuf,
    pub(super) namespaces: Namespaces,
    /// What makes its containers, when that is not our own runtime.
    pub(super) runtime: Option<Runtime>,
    /// By a number of the shim's own.
    pub(super) containers: BTreeMap<u64, Container>,
    pub(super) execs: BTreeMap<u64, Running>,
    pub(super) next: u64,
    /// Set when it is to end: the connection and request that wait for it.
    pub(super) ending: Option<(u64, u64)>,
    listener: UnixListener,
    signals: SignalFd,
    connections: BTreeMap<u64, Connection>,
}

/// What a polled descriptor belongs to.
#[derive(Debug, Clone, Copy)]
enum Of {
    Listener,
    Signals,
    Connection(u64),
    Output(u64, usize),
    Client(u64, usize),
}

/// Blocks SIGCHLD and makes it readable.
pub(super) fn child_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Runs until it is told to end.
pub(super) fn run(mut shim: Shim) {
    while !shim.ended() {
        let ready = shim.wait();
        for (of, flags) in ready {
            shim.serve(of, flags);
        }
    }
}

impl Shim {
    pub(super) fn new(directory: PathBuf, listener: UnixListener, signals: SignalFd, namespaces: Namespaces) -> Self {
        Self {
            runtime: Runtime::of(&directory).map(|runtime| runtime.called_from(namespaces.left())),
            directory,
            namespaces,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            next: 1,
            ending: None,
            listener,
            signals,
            connections: BTreeMap::new(),
        }
    }

    /// A number that was not given before.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    fn ended(&mut self) -> bool {
        let Some((connection, request)) = self.ending else {
            return false;
        };
        if self.containers.values().any(Container::alive) {
            return false;
        }
        self.say(connection, &Message::Reply { id: request, answer: crate::protocol::Answer::Done }, Vec::new());
        true
    }

    fn wait(&mut self) -> Vec<(Of, PollFlags)> {
        let (mut owners, mut fds) = (Vec::new(), Vec::new());
        let mut deadline: Option<Instant> = None;
        {
            let mut watch = |of: Of, fd, flags| {
                owners.push(of);
                fds.push(PollFd::new(fd, flags));
            };
            watch(Of::Listener, self.listener.as_fd(), PollFlags::POLLIN);
            watch(Of::Signals, self.signals.as_fd(), PollFlags::POLLIN);
            for (number, connection) in &self.connections {
                let room = if connection.blocked() { PollFlags::POLLOUT } else { PollFlags::empty() };
                watch(Of::Connection(*number), connection.as_fd(), PollFlags::POLLIN | room);
            }
            for (number, container) in &self.containers {
                for (index, source) in container.outputs.iter().enumerate() {
                    let Some(source) = source else { continue };
                    if !source.paused() {
                        watch(Of::Output(*number, index), source.as_fd(), PollFlags::POLLIN);
                    }
                    for (client, waits) in source.clients() {
                        let room = if waits { PollFlags::POLLOUT } else { PollFlags::empty() };
                        watch(Of::Client(*number, index), client, room);
                    }
                    deadline = [deadline, source.deadline()].into_iter().flatten().min();
                }
            }
        }
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)
        });
        let overdue = matches!(poll(&mut fds, timeout), Ok(0));
        let mut ready: Vec<_> = owners
            .iter()
            .zip(&fds)
            .filter_map(|(of, fd)| Some((*of, fd.revents()?)).filter(|(_, flags)| !flags.is_empty()))
            .collect();
        if overdue {
            ready.extend(owners.iter().filter(|of| matches!(of, Of::Client(..))).map(|of| (*of, PollFlags::POLLOUT)));
        }
        ready
    }

    fn serve(&mut self, of: Of, flags: PollFlags) {
        match of {
            Of::Listener => {
                while let Ok((stream, _)) = self.listener.accept() {
                    if trusted(stream.as_fd()) && stream.set_nonblocking(true).is_ok() {
                        let number = self.number();
                        self.connections.insert(number, Connection::new(stream));
                    }
                }
            }
            Of::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Of::Connection(number) => self.converse(number, flags),
            Of::Output(number, index) => {
                if let Some(container) = self.containers.get_mut(&number) {
                    // A few reads in a row: a busy container costs fewer polls, and nobody starves.
                    for _ in 0..4 {
                        if container.pump(index) != Progress::Read {
                            break;
                        }
                    }
                }
            }
            Of::Client(number, index) => {
                let source = self.containers.get_mut(&number).and_then(|container| container.outputs.get_mut(index));
                if let Some(Some(source)) = source {
                    source.flush();
                }
            }
        }
    }

    fn converse(&mut self, number: u64, flags: PollFlags) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if flags.contains(PollFlags::POLLOUT) && connection.flush().is_err() {
            self.connections.remove(&number);
            return;
        }
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        match connection.receive() {
            Ok(frames) => {
                for (json, fds) in frames {
                    self.answer(number, &json, fds);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.connections.remove(&number);
            }
        }
    }

    /// From now on this connection hears of events.
    pub(super) fn greet(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.greeted = true;
        }
    }

    /// Says something to one agent; one that does not listen is dropped.
    pub(super) fn say(&mut self, number: u64, message: &Message, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if connection.say(message, fds).is_err() {
            self.connections.remove(&number);
        }
    }

    fn announce(&mut self, event: &Event) {
        let numbers: Vec<u64> =
            self.connections.iter().filter(|(_, one)| one.greeted).map(|(number, _)| *number).collect();
        for number in numbers {
            self.say(number, &Message::Event(event.clone()), Vec::new());
        }
    }

    /// Reaps every ended child: containers, exec'd processes, and orphans that came to the subreaper.
    pub(super) fn reap(&mut self) {
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Err(rustix::io::Errno::INTR) => continue,
                Ok(None) | Err(_) => return,
            };
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => process::Exit::Code(code),
                (None, Some(signal)) => process::Exit::Signal(signal),
                (None, None) => continue,
            };
            let pid = pid.as_raw_nonzero().get();
            self.gone(pid, how);
        }
    }

    fn gone(&mut self, pid: i32, how: process::Exit) {
        let of_pid = |(_, one): &(&u64, &mut Container)| one.pid == pid && one.alive();
        if let Some((number, container)) = self.containers.iter_mut().find(of_pid) {
            let (number, record) = (*number, container.ended(how));
            let event = Event::Exited { container: container.id.clone(), record };
            self.announce(&event);
            // Whoever waits for the end has heard of it: they take their time.
            if let Some(container) = self.containers.get_mut(&number) {
                container.run_last_hooks(&self.namespaces);
                container.forget();
            }
        } else if let Some(exec) = self.execs.iter().find(|(_, one)| one.pid == pid).map(|(number, _)| *number) {
            self.execs.remove(&exec);
            let code = match how {
                process::Exit::Code(code) => code,
                process::Exit::Signal(signal) => 128 + signal,
            };
            self.announce(&Event::ExecExited { exec, code });
        }
    }

    /// The container of this id.
    pub(super) fn find(&mut self, id: &str) -> Option<(u64, &mut Container)> {
        self.containers.iter_mut().find(|(_, one)| one.id == id).map(|(number, one)| (*number, one))
    }
}

/// Only root, or whoever the shim itself is, may give orders.
fn trusted(socket: BorrowedFd<'_>) -> bool {
    let own = process::user_id();
    portreeve_sys::socket::peer(socket).is_ok_and(|(_, user, _)| user == 0 || user == own)
}
