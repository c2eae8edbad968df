//! What an agent and a shim say to each other over `<run>/sandboxes/<sid>/shim.sock`.
//!
//! ```text
//!   agent                                   shim
//!     | -- hello {version} ------------------> |
//!     | <-- hello {version, pid, ...} [netns] -|   both speak the lower of the two versions from here on
//!     |                                        |
//!     | -- create {container} ---------------> |   spec: <dir>/containers/<cid>/config.json
//!     | <-- created {pid} -------------------- |
//!     | -- start ----------------------------> |
//!     | <-- started {started_at} ------------- |
//!     | -- exec {..} [stdin, stdout, stderr] -> |   descriptors travel beside the frame (SCM_RIGHTS)
//!     | <-- exec {exec, pid} [terminal] ------ |
//!     | <== exec_exited {exec, code} ========= |   events: unasked, to every connection
//!     | <== exited {container, exit} ========= |   exit.json is on disk before this is said
//!     | -- shutdown -------------------------> |   kills what runs, says done, ends
//!
//!   frame = length of the JSON (u32, little endian), number of descriptors (u32), JSON
//! ```
//!
//! Unknown fields are ignored by both sides, an unknown request is answered with an error, an unknown event is
//! skipped: so a newer agent talks to an older shim. The agent never uses a request that the agreed version lacks.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use jiff::Timestamp;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::Exit;

/// The newest version that this program speaks.
pub(crate) const VERSION: u32 = 1;
/// A frame's JSON is never longer.
pub(crate) const MAX_FRAME: usize = 1 << 20;
/// A frame carries never more descriptors.
pub(crate) const MAX_FDS: usize = 8;

/// A question of the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Comes back with the answer.
    pub(crate) id: u64,
    /// What is asked.
    pub(crate) call: Call,
}

/// The part of a request that even an unknown one has.
#[derive(Debug, Deserialize)]
pub(crate) struct BareRequest {
    /// Comes back with the answer.
    pub(crate) id: u64,
}

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// First of all; answered by `Answer::Hello`, with the pod's network namespace as descriptor.
    Hello { version: u32 },
    /// What there is.
    State,
    /// Set a container up from its `config.json`.
    Create(CreateCall),
    /// Execute its program.
    Start { container: String },
    /// Signal its first process, or everything in its cgroup (SIGKILL only).
    Kill {
        container: String,
        signal: i32,
        #[serde(default)]
        all: bool,
    },
    /// Forget an ended or merely created container.
    Delete { container: String },
    /// Run a further process; descriptors: those of stdin, stdout and stderr that are named.
    Exec(ExecCall),
    /// Kill an exec'd process and its descendants.
    KillExec { exec: u64 },
    /// Size of a container's terminal.
    Resize { container: String, columns: u16, rows: u16 },
    /// Streams of the first process; answered with the asked ones as descriptors, in this order.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// A TCP socket in the pod's network namespace, as descriptor.
    Socket {
        #[serde(default)]
        ipv6: bool,
    },
    /// Set kernel parameters of the pod's namespaces, after its network has come. A shim of an older program, which refuses
    /// it, is asked only when the network has come anew.
    Sysctls { values: BTreeMap<String, String> },
    /// Open the log file anew.
    ReopenLog { container: String },
    /// Kill everything and end.
    Shutdown,
}

/// A container to set up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CreateCall {
    /// Its id; its directory is `<dir>/containers/<id>`.
    pub(crate) container: String,
    /// Its cgroup.
    pub(crate) cgroup: String,
    /// Its root file system.
    pub(crate) rootfs: RootFsCall,
    /// Its log.
    #[serde(default)]
    pub(crate) log: Option<LogCall>,
    /// Keep an input open for attached clients.
    #[serde(default)]
    pub(crate) stdin: bool,
    /// ... until the first one has gone.
    #[serde(default)]
    pub(crate) stdin_once: bool,
    /// A terminal instead of pipes.
    #[serde(default)]
    pub(crate) tty: bool,
    /// A container of this shim and its first process, whose pid namespace the specification names by that number.
    #[serde(default)]
    pub(crate) processes_of: Option<(String, u32)>,
}

/// Layers of a root file system.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RootFsCall {
    /// Read-only layers, topmost first.
    pub(crate) lower: Vec<std::path::PathBuf>,
    /// Writable layer.
    pub(crate) upper: std::path::PathBuf,
    /// Overlay's own.
    pub(crate) work: std::path::PathBuf,
}

/// Where to log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LogCall {
    /// The file.
    pub(crate) path: std::path::PathBuf,
    /// The pod's directory, which it is below; no link is followed from there on. Empty: one of an older agent.
    #[serde(default)]
    pub(crate) directory: std::path::PathBuf,
    /// Rotated past this.
    pub(crate) max_bytes: u64,
    /// Kept at most, the written one included.
    pub(crate) max_files: u32,
}

/// A process to run in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExecCall {
    /// Where.
    pub(crate) container: String,
    /// Program and arguments.
    pub(crate) args: Vec<String>,
    /// Added to the container's environment, `NAME=value`.
    #[serde(default)]
    pub(crate) envs: Vec<String>,
    /// Instead of the container's directory.
    #[serde(default)]
    pub(crate) cwd: Option<String>,
    /// A terminal instead of descriptors; its master is the answer's descriptor.
    #[serde(default)]
    pub(crate) tty: bool,
    /// Columns and rows of the terminal.
    #[serde(default)]
    pub(crate) size: Option<(u16, u16)>,
    /// Which descriptors come with the request.
    #[serde(default)]
    pub(crate) stdin: bool,
    /// See `stdin`.
    #[serde(default)]
    pub(crate) stdout: bool,
    /// See `stdin`.
    #[serde(default)]
    pub(crate) stderr: bool,
}

/// What a shim says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// To the request with this id.
    Reply { id: u64, answer: Answer },
    /// Unasked.
    Event(Event),
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To `Hello`.
    Hello {
        version: u32,
        pid: u32,
        #[serde(default)]
        program: String,
        /// `/proc/self/fd/N` path of the pod's user namespace, as the shim sees it.
        #[serde(default)]
        user_namespace: Option<String>,
        /// Likewise of the pod's pid namespace.
        #[serde(default)]
        pid_namespace: Option<String>,
        /// It runs the hooks of a container's specification.
        #[serde(default)]
        hooks: bool,
    },
    /// To `State`.
    State { containers: Vec<ContainerReport> },
    /// To `Create`.
    Created {
        pid: u32,
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// To `Start`.
    Started { started_at: Timestamp },
    /// To `Exec`.
    Exec { exec: u64, pid: u32 },
    /// It is done.
    Done,
    /// It is not.
    Failed {
        /// Why, for a person.
        message: String,
        /// What kind of failure.
        #[serde(default)]
        kind: Failure,
        /// The exit code recorded for a program that cannot be run.
        #[serde(default)]
        code: i32,
    },
}

/// Kinds of failure that the agent tells apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure {
    /// Nothing special.
    #[default]
    Other,
    /// No such container or process.
    NotFound,
    /// The program cannot be run.
    Program,
    /// The request is unknown to this shim.
    Unsupported,
}

/// A container as its shim sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerReport {
    /// Which.
    pub(crate) container: String,
    /// Its first process.
    pub(crate) pid: u32,
    /// When its program was started.
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    /// How it ended.
    #[serde(default)]
    pub(crate) exit: Option<ExitRecord>,
    /// Log bytes that could not be written.
    #[serde(default)]
    pub(crate) dropped_log_bytes: u64,
}

/// How a container ended; also the content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// Of this record.
    pub(crate) version: u64,
    /// Code, signal, memory.
    pub(crate) exit: Exit,
    /// When its program was started.
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    /// When it ended.
    pub(crate) finished_at: Timestamp,
    /// Set when its program could not be run: `StartError`.
    #[serde(default)]
    pub(crate) reason: String,
    /// Why not.
    #[serde(default)]
    pub(crate) message: String,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// A container ended.
    Exited { container: String, record: ExitRecord },
    /// An exec'd process ended.
    ExecExited { exec: u64, code: i32 },
}

/// A frame being sent: its bytes, its descriptors, how far it got.
#[derive(Debug)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    sent: usize,
}

impl Outgoing {
    /// Encodes a message.
    pub(crate) fn new(message: &impl Serialize, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let mut bytes = vec![0; 8];
        serde_json::to_writer(&mut bytes, message)?;
        let length = u32::try_from(bytes.len() - 8).ok().filter(|length| *length as usize <= MAX_FRAME);
        let count = u32::try_from(fds.len()).ok().filter(|count| *count as usize <= MAX_FDS);
        let (Some(length), Some(count)) = (length, count) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message of more than 1 MiB or 8 descriptors"));
        };
        if let Some(head) = bytes.first_chunk_mut::<4>() {
            *head = length.to_le_bytes();
        }
        if let Some(head) = bytes.get_mut(4..8) {
            head.copy_from_slice(&count.to_le_bytes());
        }
        Ok(Self { bytes, fds, sent: 0 })
    }

    /// Bytes not yet sent.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.sent)
    }

    /// Sends as much as goes; `true` when all has gone. The descriptors go with the first byte.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while self.remaining() > 0 {
            let rest = self.bytes.get(self.sent..).unwrap_or_default();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let fds: Vec<BorrowedFd<'_>> =
                if self.sent == 0 { self.fds.iter().map(AsFd::as_fd).collect() } else { Vec::new() };
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&fds));
            }
            match rustix::net::sendmsg(socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(count) => {
                    self.sent += count;
                    self.fds.clear();
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// Bytes and descriptors that have arrived and are no whole frame yet.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

/// What one `receive` brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Something.
    Bytes,
    /// The other side has closed.
    End,
}

impl Incoming {
    /// Receives once, without waiting.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received> {
        let mut chunk = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut slices = [IoSliceMut::new(&mut chunk)];
        let answer = rustix::net::recvmsg(socket, &mut slices, &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if answer.bytes == 0 {
            return Ok(Received::End);
        }
        self.bytes.extend_from_slice(chunk.get(..answer.bytes).unwrap_or_default());
        Ok(Received::Bytes)
    }

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// `InvalidData` when the other side breaks the protocol: the connection is useless then.
    pub(crate) fn next(&mut self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let Some((head, body)) = self.bytes.split_at_checked(8) else {
            return Ok(None);
        };
        let word = |range: std::ops::Range<usize>| {
            head.get(range)
                .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
                .map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes) as usize)
        };
        let (length, count) = (word(0..4), word(4..8));
        if length > MAX_FRAME || count > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"));
        }
        let Some(json) = body.get(..length) else {
            return Ok(None);
        };
        if self.fds.len() < count {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame without its descriptors"));
        }
        let json = json.to_vec();
        self.bytes.drain(..8 + length);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
        Ok(Some((json, self.fds.drain(..count).collect())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_own_frame() {
        let (agent, shim) = UnixStream::pair().unwrap();
        let (read, write) = std::io::pipe().unwrap();
        for (id, fds) in [(1, vec![]), (2, vec![OwnedFd::from(read), OwnedFd::from(write)]), (3, vec![])] {
            assert!(Outgoing::new(&Request { id, call: Call::State }, fds).unwrap().send(agent.as_fd()).unwrap());
        }
        let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
        while seen.len() < 3 {
            assert_eq!(incoming.receive(shim.as_fd()).unwrap(), Received::Bytes);
            while let Some((json, fds)) = incoming.next().unwrap() {
                seen.push((serde_json::from_slice::<Request>(&json).unwrap().id, fds.len()));
            }
        }
        assert_eq!(seen, [(1, 0), (2, 2), (3, 0)]);
    }

    #[test]
    fn fields_of_a_newer_version_are_ignored_and_its_requests_keep_their_id() {
        let text = r#"{"id":4,"later":1,"call":{"start":{"container":"a","how":"gently"}}}"#;
        assert!(matches!(serde_json::from_str::<Request>(text).unwrap().call, Call::Start { .. }));
        let text = r#"{"id":5,"call":{"teleport":{}}}"#;
        assert!(serde_json::from_str::<Request>(text).is_err());
        assert_eq!(serde_json::from_str::<BareRequest>(text).unwrap().id, 5);
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused() {
        let mut incoming = Incoming { bytes: vec![0xff; 16], fds: VecDeque::new() };
        assert!(incoming.next().is_err());
    }
}
