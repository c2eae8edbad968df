//! Cloning the container's process, directly or by a process in between, and listening to it until it is ready.
//!
//! ```text
//!   maker --clone3(cgroup, namespaces)--> container's process            the usual way
//!
//!   maker --setns(PID), clone3(cgroup), setns(back)--> further process: setns
//!
//!   maker --clone3(cgroup, shared files)--> in between: cgroup, setns    user namespace entered; for a first process also
//!                                                                        a PID or time namespace
//!                                              |clone3(namespaces, sibling)
//!                                              +--> container's process, a child of the maker
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use oci_spec::runtime::State;
use portreeve_sys::clone::{Child, Clone3, NEW_TIME, NEW_USER, clone3};
use portreeve_sys::process::{Exit, has_ended, pidfd_send_signal, wait};
use portreeve_sys::time::{Clocks, Offset};
use portreeve_sys::{fd, namespace, socket};
use rustix::io::Errno;

use crate::Pid;
use crate::cgroup::Join;
use crate::error::{SetupError, StartError, Step};
use crate::handshake::{self, Message, Word};
use crate::hooks::HookError;
use crate::init::{self, Joining};
use crate::plan::namespaces;
use crate::seccomp::{Listener, ListenerError};

/// How long a process that was killed may take to end.
const KILLED_MS: i32 = 5000;

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
    Listener(ListenerError),
    /// Its program cannot be executed, or a hook failed.
    Start(StartError),
    Died(String),
}

impl From<SetupError> for SpawnError {
    fn from(error: SetupError) -> Self {
        Self::Setup(error)
    }
}

/// Both ends of a handshake; the child's is numbered above what the program will use. On ours every word comes within
/// `patience`, or what listens fails.
pub(crate) fn sockets(extra_fds: usize, patience: Option<Duration>) -> Result<(OwnedFd, OwnedFd), SetupError> {
    let (ours, theirs) = socket::message_pair().step("making a socket pair", "")?;
    socket::bound_reads(ours.as_fd(), patience).step("setting the time for the handshake", "")?;
    let theirs = fd::duplicate_above(theirs.as_fd(), first_free(extra_fds)).step("copying a socket", "")?;
    Ok((ours, theirs))
}

/// The lowest number that is not the program's.
pub(crate) fn first_free(extra_fds: usize) -> i32 {
    i32::try_from(extra_fds).unwrap_or(0).saturating_add(3)
}

/// A cgroup that a process is to be in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place<'a> {
    /// `None`: that of the caller.
    pub(crate) cgroup: Option<&'a Join>,
    /// Whether it may be born there. In a cgroup that was killed once (`cgroup.kill`) kernels since 6.15 kill whatever is
    /// born by CLONE_INTO_CGROUP, but not what comes on foot.
    pub(crate) birth: bool,
}

impl<'a> Place<'a> {
    fn birth(self) -> Option<BorrowedFd<'a>> {
        self.cgroup.filter(|_| self.birth).and_then(Join::unified)
    }
}

/// Clones directly. `body` gets what of the cgroup is left to join.
pub(crate) fn direct(
    sockets: (OwnedFd, OwnedFd),
    namespaces: u64,
    place: Place<'_>,
    body: impl Fn(BorrowedFd<'_>, Joining) -> i32,
) -> Result<Spawned, SpawnError> {
    let (ours, theirs) = sockets;
    let run = |joining: Joining| alone(&ours, theirs.as_fd(), || body(theirs.as_fd(), joining));
    let how = Clone3 { namespaces, cgroup: place.birth(), ..Clone3::default() };
    let born = if how.cgroup.is_some() { Joining::VersionOne } else { Joining::All };
    let child = match clone3(&how, || run(born)) {
        // A kernel or cgroup that takes no newborn: the child walks.
        Err(error) if how.cgroup.is_some() && walkable(&error) => {
            clone3(&Clone3 { cgroup: None, ..how }, || run(Joining::All))
        }
        other => other,
    };
    let child = child.step("cloning the container's process", "")?;
    Ok(Spawned { child, socket: ours, early: Vec::new() })
}

/// Runs the newborn's part when it has let go of the maker's end: without that it would not hear that the maker has
/// ended, and wait for its word without end.
fn alone(ours: &OwnedFd, theirs: BorrowedFd<'_>, body: impl FnOnce() -> i32) -> i32 {
    match handshake::leave(ours).step("closing the maker's socket", "") {
        Ok(()) => body(),
        Err(error) => init::report(theirs, Err(error.into())),
    }
}

fn walkable(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::INVAL, Errno::ACCESS, Errno::BUSY, Errno::NODEV]
        .iter()
        .any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// Clones by a process in between, which joins the cgroup and runs `enter` first.
pub(crate) fn between(
    sockets: (OwnedFd, OwnedFd),
    patience: Option<Duration>,
    namespaces: u64,
    place: Place<'_>,
    enter: impl Fn() -> Result<(), SetupError>,
    body: impl Fn(BorrowedFd<'_>, Joining) -> i32,
) -> Result<Spawned, SpawnError> {
    let (ours, theirs) = sockets;
    let run = |joining: Joining| {
        let made = init::begin_between(place.cgroup, joining).and_then(|()| enter()).and_then(|()| {
            let how = Clone3 { namespaces, sibling: true, ..Clone3::default() };
            // The newborn has a table of its own, this process has the maker's.
            let born = || alone(&ours, theirs.as_fd(), || body(theirs.as_fd(), Joining::Nothing));
            clone3(&how, born).step("cloning the container's process", "")
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
    let how = Clone3 { cgroup: place.birth(), share_files: true, ..Clone3::default() };
    let born = if how.cgroup.is_some() { Joining::VersionOne } else { Joining::All };
    let first = match clone3(&how, || run(born)) {
        Err(error) if how.cgroup.is_some() && walkable(&error) => {
            clone3(&Clone3 { cgroup: None, ..how }, || run(Joining::All))
        }
        other => other,
    };
    let first = first.step("cloning the process in between", "")?;
    let waiting = "waiting for the process in between";
    let within = patience.map_or(-1, |patience| i32::try_from(patience.as_millis()).unwrap_or(i32::MAX));
    if !has_ended(first.pidfd.as_fd(), within).step(waiting, "")? {
        let _ = pidfd_send_signal(first.pidfd.as_fd(), 9);
        Err(late()).step(waiting, "")?;
    }
    let exit = wait(first.pidfd.as_fd()).step(waiting, "")?;
    drop(theirs);
    let listening = "listening to the process in between";
    let good = exit == Exit::Code(0);
    // One that was killed has said what it had to say. A process that it made and did not tell of is not waited for: it
    // ends with our end of the socket.
    let wait_for_it =
        |wait: bool| if good { Ok(()) } else { rustix::io::ioctl_fionbio(&ours, !wait).step(listening, "") };
    wait_for_it(false)?;
    // The two share the socket: the container's process may be ready before the one in between has said that it exists.
    let mut early = Vec::new();
    loop {
        match handshake::next(ours.as_fd()) {
            Ok(Message::Spawned { pid, pidfd }) => {
                wait_for_it(true)?;
                let pidfd = fd::take(pidfd).step("taking over the process's descriptor", "")?;
                let pid = Pid::from_raw(pid).ok_or_else(|| SpawnError::Died("it has no process id".into()))?;
                return Ok(Spawned { child: Child { pid, pidfd }, socket: ours, early });
            }
            Ok(Message::Failed(error)) if !good => return Err(error.into()),
            Err(error) if good || error.kind() != io::ErrorKind::WouldBlock => {
                return Err(error).step(listening, "").map_err(SpawnError::from);
            }
            Ok(Message::Closed) | Err(_) => {
                return Err(SpawnError::Died(format!(
                    "the process in between {}, last word {early:?}",
                    describe(exit)
                )));
            }
            Ok(other) => early.push(other),
        }
    }
}

/// What came with [`Message::Ready`].
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) terminal: Option<OwnedFd>,
}

/// Listens until the process is ready; on failure it has been killed and reaped.
///
/// `told` is where the listener of its seccomp filter goes, and what is said with it; `mounted` is done when its mounts
/// are attached, while it waits.
pub(crate) fn listen(
    spawned: &mut Spawned,
    mut told: Option<(&Listener, State)>,
    mounted: impl Fn(&Child) -> Result<(), HookError>,
) -> Result<Heard, SpawnError> {
    let mut heard = Heard::default();
    let mut early = std::mem::take(&mut spawned.early).into_iter();
    loop {
        let message = early.next().map_or_else(|| hear(spawned.socket.as_fd()), Ok);
        match message.step("listening to the container's process", "") {
            Ok(Message::Ready) => return Ok(heard),
            Ok(Message::Terminal(master)) => heard.terminal = Some(master),
            Ok(Message::Listener(listener)) if let Some((to, state)) = told.take() => {
                let pid = spawned.child.pid.as_raw_nonzero().get();
                if let Err(error) = to.send(listener.as_fd(), pid, state) {
                    abandon(spawned);
                    return Err(SpawnError::Listener(error));
                }
            }
            Ok(Message::Mounted) => {
                let done = mounted(&spawned.child).map_err(StartError::from);
                match done.and_then(|()| go(spawned.socket.as_fd())) {
                    // When it has gone meanwhile, how it ended tells more.
                    Ok(()) | Err(StartError::Gone) => {}
                    Err(error) => {
                        abandon(spawned);
                        return Err(SpawnError::Start(error));
                    }
                }
            }
            Ok(Message::Failed(error)) => {
                abandon(spawned);
                return Err(error.into());
            }
            Ok(message @ (Message::HookFailed(_) | Message::NotExecuted { .. } | Message::NoInterpreter { .. })) => {
                abandon(spawned);
                return Err(SpawnError::Start(refusal(message)));
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
    end(spawned.child.pidfd.as_fd())
}

/// As [`abandon`], of a process that is known by its descriptor. One that does not end although it was killed, such as
/// one of a frozen cgroup, is left to whoever reaps orphans.
pub(crate) fn end(pidfd: BorrowedFd<'_>) -> Option<Exit> {
    let _ = pidfd_send_signal(pidfd, 9);
    let ended = has_ended(pidfd, KILLED_MS).unwrap_or(true);
    if ended { wait(pidfd).ok() } else { None }
}

/// The next word, of a process that may have been stopped before it could say it.
fn hear(socket: BorrowedFd<'_>) -> io::Result<Message> {
    handshake::next(socket).map_err(|error| if error.kind() == io::ErrorKind::WouldBlock { late() } else { error })
}

fn late() -> io::Error {
    let what = "it has not gone on in time: somebody in the container has stopped it, or its cgroup is frozen";
    io::Error::new(io::ErrorKind::TimedOut, what)
}

/// Tells the process to go on.
pub(crate) fn go(socket: BorrowedFd<'_>) -> Result<(), StartError> {
    say(socket, Word::Go)
}

fn say(socket: BorrowedFd<'_>, word: Word) -> Result<(), StartError> {
    match handshake::say(socket, word) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StartError::Gone),
        other => Ok(other.step("telling the container's process to go on", "")?),
    }
}

/// Starts the program and listens until it has been executed.
pub(crate) fn start(socket: BorrowedFd<'_>) -> Result<(), StartError> {
    say(socket, Word::Start)?;
    match hear(socket).step("listening to the container's process", "")? {
        Message::Closed => Ok(()),
        message => Err(refusal(message)),
    }
}

/// Why its program does not run, from the process that was to execute it.
fn refusal(message: Message) -> StartError {
    match message {
        Message::Failed(error) => error.into(),
        Message::HookFailed(error) => error.into(),
        Message::NotExecuted { program, search, errno } if errno == Errno::NOENT.raw_os_error() => {
            StartError::NotFound { program, search }
        }
        Message::NotExecuted { program, errno, .. } => {
            let source = match io::Error::from_raw_os_error(errno) {
                // Docker looks for these words, as they are written here.
                error if errno == Errno::ACCESS.raw_os_error() => io::Error::new(error.kind(), "permission denied"),
                error => error,
            };
            StartError::NotExecutable { program, source }
        }
        Message::NoInterpreter { program } => StartError::NoInterpreter { program },
        _ => StartError::Gone,
    }
}

pub(crate) fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal(signal) => format!("was killed by signal {signal}"),
    }
}

/// Enters namespaces, and then sets the clocks of a new time namespace for the children.
pub(crate) fn enter(joins: &[(u64, OwnedFd)], offsets: &[Offset]) -> Result<(), SetupError> {
    let setting = "setting the clocks of the time namespace";
    // Before the user namespace is entered, where CAP_SYS_TIME is no longer that of the host.
    let clocks = if offsets.is_empty() { None } else { Some(Clocks::open().step(setting, "")?) };
    join(joins)?;
    let Some(mut clocks) = clocks else { return Ok(()) };
    namespace::unshare(NEW_TIME).step("making a time namespace", "")?;
    clocks.set(offsets).step(setting, "")
}

/// Enters namespaces, the user namespace last: but those that need its privileges, where the caller has none, after it.
pub(crate) fn join(joins: &[(u64, OwnedFd)]) -> Result<(), SetupError> {
    let one = |(kind, fd): &(u64, OwnedFd)| {
        namespace::enter(fd.as_fd(), *kind).step(&format!("joining the {} namespace", namespaces::name(*kind)), "")
    };
    let mut later = joins.iter().any(|(kind, _)| *kind == NEW_USER).then(Vec::new);
    for join in joins {
        match (one(join), &mut later) {
            (Err(error), Some(later)) if join.0 != NEW_USER && is_refusal(&error) => later.push(join),
            (joined, _) => joined?,
        }
    }
    later.iter().flatten().copied().try_for_each(one)
}

fn is_refusal(error: &SetupError) -> bool {
    error.source.raw_os_error() == Some(Errno::PERM.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use portreeve_sys::process::set_no_new_privileges;
    use portreeve_sys::seccomp::{Instruction, load};
    use rustix::process::{WaitOptions, wait as wait_for_any};

    use super::*;
    use crate::cgroup::a_join;
    use crate::seccomp::{call_number, native};

    /// Set in a process that runs one test, and nothing beside it: makers have one thread.
    const ALONE: &str = "PORTREEVE_TEST_ALONE";

    #[test]
    fn a_process_is_born_in_a_new_cgroup_and_walks_into_another() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (second, first) = (a_join(Some(directory.path())), a_join(None));
        for (place, born) in [
            (Place { cgroup: Some(&second), birth: true }, true),
            (Place { cgroup: Some(&second), birth: false }, false),
            (Place { cgroup: Some(&first), birth: true }, false),
            (Place { cgroup: None, birth: true }, false),
        ] {
            let Some(fd) = place.birth() else {
                assert!(!born, "{place:?}");
                continue;
            };
            assert!(born, "{place:?}");
            let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
            let expected = inode(rustix::fs::stat(directory.path()).expect("stat"));
            assert_eq!(inode(rustix::fs::fstat(fd).expect("stat")), expected, "it is the cgroup's directory");
        }
    }

    #[test]
    fn a_process_in_between_that_is_killed_before_it_has_told_of_another_is_not_waited_for() {
        if std::env::var_os(ALONE).is_some() {
            return killed_before_it_has_told();
        }
        let name = "spawn::tests::a_process_in_between_that_is_killed_before_it_has_told_of_another_is_not_waited_for";
        let mut command = Command::new("/proc/self/exe");
        let mut alone = command.args(["--exact", name, "--test-threads=1"]).env(ALONE, "1").spawn().expect("spawn");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match alone.try_wait().expect("wait") {
                Some(status) => return assert!(status.success(), "{status}"),
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                None => break,
            }
        }
        alone.kill().expect("kill");
        alone.wait().expect("wait");
        panic!("it waits without end");
    }

    fn killed_before_it_has_told() {
        let instruction = |code, jump_true, jump_false, operand| Instruction { code, jump_true, jump_false, operand };
        let call = call_number("sendmsg", native()).expect("a call");
        // Loads the number of the call; is it that one, the process is killed.
        let program = [
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 0, 1, call),
            instruction(0x06, 0, 0, 0x8000_0000),
            instruction(0x06, 0, 0, 0x7fff_0000),
        ];
        let enter = || -> Result<(), SetupError> {
            set_no_new_privileges().step("setting no_new_privs", "")?;
            load(&program, 0).map(drop).step("loading a filter", "")
        };
        let body = |socket: BorrowedFd<'_>, _: Joining| i32::from(handshake::wait_go(socket).is_err());
        let sockets = sockets(0, None).expect("sockets");
        let error = between(sockets, None, 0, Place::default(), enter, body).expect_err("it was killed");
        assert!(matches!(&error, SpawnError::Died(how) if how.contains("signal 31")), "{error:?}");
        // What it made ends by itself.
        let (_, status) = wait_for_any(WaitOptions::empty()).expect("wait").expect("a child");
        assert_eq!(status.exit_status(), Some(0));
    }
}
