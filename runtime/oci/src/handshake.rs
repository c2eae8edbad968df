//! What the container's process and its maker say to each other, over a socket that keeps message borders.
//!
//! ```text
//!   container's process                         maker
//!   (between) Spawned{pid, fd} -------------->  (only when a process in between made it)
//!   Mounted -------------------------------->   prestart and createRuntime hooks, where there are any
//!             <------------------------------   Go
//!   Terminal + descriptor ------------------>
//!   Listener + descriptor ------------------>   goes to `listenerPath` of the seccomp profile at once
//!   Ready ---------------------------------->
//!             <------------------------------   Start       execute the program; or, to a process that waits at a gate,
//!             <------------------------------   Go          leave to outlive its maker: whoever comes there says Start
//!   end of file (execve closed the socket)      started
//!   Failed{operation, path, errno} --------->   at any moment instead
//!   HookFailed{hook, reason} --------------->   the same
//!   NotExecuted{program} ------------------->   instead of Ready, for a process that is to wait at a gate, or of the end
//! ```

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use portreeve_sys::fd::close_range;
use portreeve_sys::socket::{receive, send};
use rustix::io::retry_on_intr;

use crate::error::SetupError;
use crate::hooks::HookError;

/// One message of the container's process.
#[derive(Debug)]
pub(crate) enum Message {
    /// A process in between has made the container's: its id, and the pidfd's number in the shared table.
    Spawned { pid: i32, pidfd: i32 },
    /// The terminal's master side comes along.
    Terminal(OwnedFd),
    /// A socket comes along, at whose other end is what the process becomes: CRIU's.
    Socket(OwnedFd),
    /// A seccomp filter's listener comes along; from now on its calls may wait for who has that.
    Listener(OwnedFd),
    /// The mounts are attached and the root is not changed yet; it waits for [`Word::Go`].
    Mounted,
    /// Everything but execve has been done.
    Ready,
    /// A step failed; the process ends.
    Failed(SetupError),
    /// A hook that it ran failed; the process ends.
    HookFailed(HookError),
    /// This program is not there, or cannot be executed.
    NotExecuted { program: String, search: String, errno: i32 },
    /// This program is there, its interpreter is not.
    NoInterpreter { program: String },
    /// The other side has closed: the program runs, or the process has ended.
    Closed,
}

const SPAWNED: u8 = 1;
const TERMINAL: u8 = 2;
const LISTENER: u8 = 3;
const READY: u8 = 4;
const FAILED: u8 = 5;
const NOT_EXECUTED: u8 = 6;
const NO_INTERPRETER: u8 = 7;
const MOUNTED: u8 = 8;
const HOOK_FAILED: u8 = 9;
const SOCKET: u8 = 10;

/// A message is at most this long; longer names are cut.
const LIMIT: usize = 8192;

/// Tag, number, two texts of which the first has its length before it.
fn encode(tag: u8, number: i32, first: &[u8], second: &[u8]) -> Vec<u8> {
    let first = first.get(..first.len().min(3000)).unwrap_or(first);
    let second = second.get(..second.len().min(4096)).unwrap_or(second);
    let mut bytes = Vec::with_capacity(first.len() + second.len() + 7);
    bytes.push(tag);
    bytes.extend(number.to_le_bytes());
    bytes.extend(u16::try_from(first.len()).unwrap_or(0).to_le_bytes());
    bytes.extend(first);
    bytes.extend(second);
    bytes
}

fn decode(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Message> {
    let (tag, rest) = bytes.split_first()?;
    let (number, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let number = i32::from_le_bytes(*number);
    let (first, second) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(match *tag {
        SPAWNED => Message::Spawned { pid: number, pidfd: text(first).parse().ok()? },
        TERMINAL => Message::Terminal(fds.into_iter().next()?),
        LISTENER => Message::Listener(fds.into_iter().next()?),
        SOCKET => Message::Socket(fds.into_iter().next()?),
        MOUNTED => Message::Mounted,
        READY => Message::Ready,
        HOOK_FAILED => Message::HookFailed(HookError { hook: text(first), reason: text(second) }),
        FAILED => {
            // What has no number has words, behind the operation.
            let words = first.iter().position(|byte| *byte == 0).filter(|_| number == 0).map(|at| first.split_at(at));
            let (operation, source) = match words {
                Some((operation, words)) => (operation, io::Error::other(text(words.get(1..).unwrap_or_default()))),
                None => (first, io::Error::from_raw_os_error(number)),
            };
            let path = PathBuf::from(std::ffi::OsString::from_vec(second.to_vec()));
            Message::Failed(SetupError { operation: text(operation), path, source })
        }
        NOT_EXECUTED => Message::NotExecuted { program: text(first), search: text(second), errno: number },
        NO_INTERPRETER => Message::NoInterpreter { program: text(first) },
        _ => return None,
    })
}

/// In a process that was cloned from the one that has `ours`, the other end of what it listens to: closes its copy, so
/// that it hears when that process ends.
///
/// Nobody drops the copy afterwards: what runs in a clone ends with execve or without destructors.
pub(crate) fn leave(ours: &OwnedFd) -> io::Result<()> {
    let number = ours.as_raw_fd();
    close_range(number, number)
}

/// Waits for the next message.
pub(crate) fn next(socket: BorrowedFd<'_>) -> io::Result<Message> {
    let mut buffer = [0; LIMIT];
    let (length, fds) = match receive(socket, &mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Message::Closed),
        other => other?,
    };
    if length == 0 {
        return Ok(Message::Closed);
    }
    decode(buffer.get(..length).unwrap_or_default(), fds)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the container's process said something unknown"))
}

pub(crate) fn spawned(socket: BorrowedFd<'_>, pid: i32, pidfd: i32) -> io::Result<()> {
    send(socket, &encode(SPAWNED, pid, pidfd.to_string().as_bytes(), b""), &[]).map(|_| ())
}

pub(crate) fn terminal(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, &encode(TERMINAL, 0, b"", b""), &[master]).map(|_| ())
}

pub(crate) fn socket(socket: BorrowedFd<'_>, sent: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, &encode(SOCKET, 0, b"", b""), &[sent]).map(|_| ())
}

/// Makes no call but sendmsg, not even for memory: any other could wait for the listener that it sends.
pub(crate) fn listener(socket: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<()> {
    const MESSAGE: [u8; 7] = [LISTENER, 0, 0, 0, 0, 0, 0];
    send(socket, &MESSAGE, &[listener]).map(|_| ())
}

pub(crate) fn mounted(socket: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, &encode(MOUNTED, 0, b"", b""), &[]).map(|_| ())
}

pub(crate) fn hook_failed(socket: BorrowedFd<'_>, error: &HookError) -> io::Result<()> {
    send(socket, &encode(HOOK_FAILED, 0, error.hook.as_bytes(), error.reason.as_bytes()), &[]).map(|_| ())
}

pub(crate) fn ready(socket: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, &encode(READY, 0, b"", b""), &[]).map(|_| ())
}

pub(crate) fn failed(socket: BorrowedFd<'_>, error: &SetupError) -> io::Result<()> {
    // Errors of our own have no number.
    let (errno, operation) = match error.source.raw_os_error() {
        Some(errno) => (errno, error.operation.clone()),
        None => (0, format!("{}\0{}", error.operation, error.source)),
    };
    send(socket, &encode(FAILED, errno, operation.as_bytes(), error.path.as_os_str().as_bytes()), &[]).map(|_| ())
}

pub(crate) fn not_executed(socket: BorrowedFd<'_>, program: &[u8], search: &[u8], errno: i32) -> io::Result<()> {
    send(socket, &encode(NOT_EXECUTED, errno, program, search), &[]).map(|_| ())
}

pub(crate) fn no_interpreter(socket: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    send(socket, &encode(NO_INTERPRETER, 0, program, b""), &[]).map(|_| ())
}

/// What the container's process is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// To go on; or, where it waits for its start, that it may outlive its maker.
    Go,
    /// To execute its program.
    Start,
}

const GO: &[u8] = b"go";
const START: &[u8] = b"do";

pub(crate) fn say(socket: BorrowedFd<'_>, word: Word) -> io::Result<()> {
    let text = match word {
        Word::Go => GO,
        Word::Start => START,
    };
    send(socket, text, &[]).map(|_| ())
}

/// Waits for a word, whichever; `false` when the maker has gone.
pub(crate) fn wait_go(socket: BorrowedFd<'_>) -> io::Result<bool> {
    wait_word(socket).map(|word| word.is_some())
}

/// Waits for a word; `None` when who was to say it has gone.
pub(crate) fn wait_word(socket: BorrowedFd<'_>) -> io::Result<Option<Word>> {
    let mut buffer = [0; 2];
    let length = retry_on_intr(|| rustix::io::read(socket, &mut buffer))?;
    Ok(match buffer.get(..length) {
        None | Some([]) => None,
        Some(START) => Some(Word::Start),
        Some(_) => Some(Word::Go),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_failure_arrives_with_operation_path_and_number() {
        let (left, right) = portreeve_sys::socket::message_pair().expect("pair");
        let error = SetupError {
            operation: "mounting tmpfs".into(),
            path: "/dev".into(),
            source: io::Error::from_raw_os_error(1),
        };
        failed(left.as_fd(), &error).expect("send");
        drop(left);
        let Message::Failed(arrived) = next(right.as_fd()).expect("message") else { panic!("another message") };
        assert_eq!(arrived.to_string(), "mounting tmpfs /dev");
        assert_eq!(arrived.source.raw_os_error(), Some(1));

        let (left, other) = portreeve_sys::socket::message_pair().expect("pair");
        let source = io::Error::new(io::ErrorKind::PermissionDenied, "it is part of a procfs");
        failed(left.as_fd(), &SetupError { source, ..error }).expect("send");
        let Message::Failed(arrived) = next(other.as_fd()).expect("message") else { panic!("another message") };
        assert_eq!((arrived.to_string().as_str(), arrived.source.raw_os_error()), ("mounting tmpfs /dev", None));
        assert_eq!(arrived.source.to_string(), "it is part of a procfs");
        assert!(matches!(next(right.as_fd()).expect("end"), Message::Closed));
    }
}
