//! A netlink socket that answers in the same call.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::libc;

use super::decode::{Message, attributes, messages};
use super::encode::Batch;

/// `NLMSG_ERROR`: the outcome of one message.
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a listing.
const NLMSG_DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: the listing was taken while its subject changed.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_ACK_TLVS`: the outcome carries attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// `NLM_F_CAPPED`: the outcome does not repeat the request.
const NLM_F_CAPPED: u16 = 0x100;
/// `NLMSGERR_ATTR_MSG`: a sentence of the kernel about the failure.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// What the kernel puts at most into one datagram of a listing.
const BUFFER_BYTES: usize = 32 << 10;
/// Most a listing of one kind of object may take: about a million links, and a bound at last.
const LISTING_LIMIT_BYTES: usize = 1 << 30;

/// A bound socket of one netlink family, in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    inner: RawSocket,
    buffer: Vec<u8>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

/// What the kernel refused, and its reason.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What the refused message was to do.
    pub(crate) action: String,
    /// The error, with the kernel's own sentence when it gave one.
    pub(crate) source: io::Error,
    /// The bare number of the error.
    pub(crate) code: Option<i32>,
    /// Number of the refused message in its batch.
    pub(crate) message: Option<u32>,
}

impl Refusal {
    fn of(action: impl Into<String>, source: io::Error) -> Self {
        Self { action: action.into(), code: source.raw_os_error(), source, message: None }
    }

    /// Whether the kernel's error has this number.
    pub(crate) fn is(&self, code: i32) -> bool {
        self.code == Some(code)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Socket {
    /// Opens a socket of this `NETLINK_*` family.
    pub(crate) fn open(family: isize) -> io::Result<Self> {
        let mut inner = RawSocket::new(family)?;
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        // Both exist since Linux 4.12; without them only the kernel's sentence is missing.
        let _ = inner.set_cap_ack(true);
        let _ = inner.set_ext_ack(true);
        Ok(Self { inner, buffer: Vec::with_capacity(BUFFER_BYTES) })
    }

    /// Opens a socket that hears the messages of these groups.
    pub(crate) fn listen(family: isize, groups: &[u32]) -> io::Result<Self> {
        let socket = Self::open(family)?;
        for group in groups {
            socket.inner.add_membership(*group)?;
        }
        Ok(socket)
    }

    /// The number by which the kernel knows this socket.
    pub(crate) fn port(&self) -> u32 {
        let mut address = SocketAddr::new(0, 0);
        // An unbound socket has port 0, as has the kernel: no message of ours is taken for it.
        match self.inner.get_address(&mut address) {
            Ok(()) => address.port_number(),
            Err(_) => 0,
        }
    }

    /// Reads what waits in the socket; whether `any` of its messages is one.
    ///
    /// # Errors
    /// With `ENOBUFS` when messages were lost.
    pub(crate) fn drain(&mut self, mut any: impl FnMut(&Message<'_>) -> bool) -> io::Result<bool> {
        let mut found = false;
        let mut lost = None;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(bytes) => found |= messages(bytes).filter(|message| any(message)).count() > 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if lost.is_none() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        lost.map_or(Ok(found), Err)
    }

    /// Sends the batch and gives the first refusal.
    ///
    /// Only the last message asks for an answer, because failures are reported unasked; so the
    /// answers of a batch of any length fit the socket's buffer unless most of it fails.
    pub(crate) fn run(&mut self, batch: &Batch) -> Result<(), Refusal> {
        let failures = self.run_all(batch)?;
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Sends the batch and gives every refusal, in the order of the messages.
    ///
    /// # Errors
    /// When the batch could not be sent, or its last message was not answered.
    pub(crate) fn run_all(&mut self, batch: &Batch) -> Result<Vec<Refusal>, Refusal> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.drop_unread();
        self.send(&batch.with_answer()).map_err(|source| Refusal::of("sending to the kernel", source))?;
        let mut answered = false;
        let mut failures = Vec::new();
        loop {
            let read = match self.receive(libc::MSG_DONTWAIT) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Answers were lost for want of space; those that stay still say what failed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    answered = false;
                    continue;
                }
                Err(error) => return Err(Refusal::of("hearing the kernel's answer", error)),
            };
            for message in messages(read) {
                let Some(outcome) = outcome(&message) else {
                    continue;
                };
                answered = true;
                if let Err((source, code)) = outcome {
                    let index = usize::try_from(message.sequence).unwrap_or(usize::MAX);
                    let action = batch.actions.get(index).cloned().unwrap_or_default();
                    let message = Some(message.sequence);
                    failures.push(Refusal { action, source, code: Some(code), message });
                }
            }
        }
        if !answered {
            let action = batch.actions.last().cloned().unwrap_or_default();
            let source = io::Error::other("the kernel did not answer");
            return Err(Refusal::of(action, source));
        }
        Ok(failures)
    }

    /// What `read` makes of each message of a listing; a listing whose subject changed while it
    /// was taken is taken again.
    pub(crate) fn collect<T>(
        &mut self,
        request: &Batch,
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        let mut attempts = 0;
        loop {
            let mut items = Vec::new();
            match self.list(request, |message| items.extend(read(message))) {
                Ok(()) => return Ok(items),
                Err(refusal) if refusal.source.kind() == io::ErrorKind::Interrupted && attempts < 50 => {
                    attempts += 1;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Sends one request and shows every message of its answer to `each`.
    ///
    /// # Errors
    /// With `ErrorKind::Interrupted` when the subject changed meanwhile: ask again.
    pub(crate) fn list(&mut self, request: &Batch, mut each: impl FnMut(&Message<'_>)) -> Result<(), Refusal> {
        let action = request.actions.first().cloned().unwrap_or_default();
        let refuse = |source| Refusal::of(action.clone(), source);
        self.drop_unread();
        self.send(&request.with_answer()).map_err(refuse)?;
        let mut interrupted = false;
        let mut seen_bytes = 0_usize;
        loop {
            let read = self.receive(0).map_err(refuse)?;
            seen_bytes = seen_bytes.saturating_add(read.len());
            if seen_bytes > LISTING_LIMIT_BYTES {
                return Err(refuse(io::Error::other("the listing is too long")));
            }
            for message in messages(read) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                if message.kind == NLMSG_DONE {
                    if interrupted {
                        return Err(refuse(io::ErrorKind::Interrupted.into()));
                    }
                    // The listing's own error, if any, stands where an outcome has its code.
                    return match message.payload.first_chunk().map(|b| i32::from_ne_bytes(*b)) {
                        Some(code) if code < 0 => Err(refuse(io::Error::from_raw_os_error(code.saturating_neg()))),
                        _ => Ok(()),
                    };
                }
                match outcome(&message) {
                    Some(Ok(())) => return Ok(()),
                    Some(Err((source, code))) => {
                        return Err(Refusal { action, source, code: Some(code), message: None });
                    }
                    None => each(&message),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.inner.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one datagram; the kernel makes none longer than the buffer (`netlink_dump`).
    fn receive(&mut self, flags: libc::c_int) -> io::Result<&[u8]> {
        loop {
            self.buffer.clear();
            match self.inner.recv(&mut self.buffer, flags | libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(io::Error::other("the kernel's answer was cut short"));
                }
                Ok(_) => return Ok(&self.buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets what an earlier, given up, exchange left in the socket.
    fn drop_unread(&mut self) {
        while self.receive(libc::MSG_DONTWAIT).is_ok() {}
    }
}

/// The outcome that a message reports, if it is one.
fn outcome(message: &Message<'_>) -> Option<Result<(), (io::Error, i32)>> {
    if message.kind != NLMSG_ERROR {
        return None;
    }
    let code = i32::from_ne_bytes(*message.payload.first_chunk()?).saturating_neg();
    if code == 0 {
        return Some(Ok(()));
    }
    let plain = io::Error::from_raw_os_error(code);
    let sentence = sentence(message).map(|words| io::Error::new(plain.kind(), format!("{plain}: {words}")));
    Some(Err((sentence.unwrap_or(plain), code)))
}

/// The kernel's sentence about a failure.
fn sentence(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // After the code comes the header of the request, and unless capped all of it.
    let request = message.payload.get(4..)?;
    let length = match message.flags & NLM_F_CAPPED {
        0 => usize::try_from(u32::from_ne_bytes(*request.first_chunk()?)).ok()?,
        _ => 16,
    };
    attributes(request.get(length.next_multiple_of(4)..)?)
        .find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)
        .map(|attribute| attribute.text())
}
