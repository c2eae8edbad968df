//! The agent's end of a shim's socket.
//!
//! One task reads: answers go to whoever asked, events to the [`Listener`]. When the socket ends, every open question
//! is answered with "lost", and then the listener hears of it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};

use crate::EngineError;
use crate::protocol::{Answer, Call, Event, Failure, Incoming, Message, Outgoing, Received, Request, VERSION};

/// Whoever wants to hear of a shim's events and of its end.
pub(crate) trait Listener: Send + Sync + 'static {
    /// Something happened. Called in order, on the reading task: it must not wait.
    fn event(&self, event: Event);
    /// The socket ended; called once.
    fn lost(&self);
}

/// An answer with its descriptors.
pub(crate) type Reply = (Answer, Vec<OwnedFd>);

/// A connection to a shim.
#[derive(Debug)]
pub(crate) struct Client {
    stream: Arc<UnixStream>,
    open: Arc<Mutex<Open>>,
    more: Arc<Notify>,
    next: AtomicU64,
    reader: tokio::task::AbortHandle,
}

/// What is waited for.
#[derive(Debug, Default)]
struct Open {
    ended: bool,
    /// Frames that have not gone yet. A frame stays here until it has gone whole, whoever goes away meanwhile.
    outgoing: VecDeque<Outgoing>,
    questions: HashMap<u64, Question>,
    execs: HashMap<u64, oneshot::Sender<i32>>,
}

#[derive(Debug)]
struct Question {
    answer: oneshot::Sender<Reply>,
    /// For an exec: who waits for its end. Taken over by the reader itself, so that no exit slips through.
    exit: Option<oneshot::Sender<i32>>,
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Takes over a connected socket; must be called within a runtime.
    pub(crate) fn new(stream: StdUnixStream, listener: Arc<dyn Listener>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = Arc::new(UnixStream::from_std(stream)?);
        let open = Arc::new(Mutex::new(Open::default()));
        let more = Arc::new(Notify::new());
        let task = tokio::spawn(serve(Arc::clone(&stream), Arc::clone(&open), Arc::clone(&more), listener));
        Ok(Self { stream, open, more, next: AtomicU64::new(1), reader: task.abort_handle() })
    }

    /// Whether the shim is gone.
    pub(crate) fn ended(&self) -> bool {
        lock(&self.open).ended
    }

    /// Greets; agrees on a version.
    pub(crate) async fn hello(&self) -> Result<(Answer, Vec<OwnedFd>), EngineError> {
        let (answer, fds) = self.ask(Call::Hello { version: VERSION }).await?;
        match answer {
            Answer::Hello { version, .. } if version > VERSION => {
                Err(EngineError::Shim(format!("the shim speaks version {version}, this program up to {VERSION}")))
            }
            answer => Ok((answer, fds)),
        }
    }

    /// Asks without descriptors; a refusal is an error.
    pub(crate) async fn ask(&self, call: Call) -> Result<Reply, EngineError> {
        self.send(call, Vec::new(), None).await
    }

    /// Asks for an exec; the receiver hears of its end.
    pub(crate) async fn exec(
        &self,
        call: Call,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, oneshot::Receiver<i32>), EngineError> {
        let (sender, receiver) = oneshot::channel();
        Ok((self.send(call, fds, Some(sender)).await?, receiver))
    }

    async fn send(
        &self,
        call: Call,
        fds: Vec<OwnedFd>,
        exit: Option<oneshot::Sender<i32>>,
    ) -> Result<Reply, EngineError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let outgoing =
            Outgoing::new(&Request { id, call }, fds).map_err(|error| EngineError::Shim(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut open = lock(&self.open);
            if open.ended {
                return Err(EngineError::ShimLost);
            }
            open.questions.insert(id, Question { answer: sender, exit });
            open.outgoing.push_back(outgoing);
            if !matches!(flush(&self.stream, &mut open), Ok(true)) {
                self.more.notify_one();
            }
        }
        match receiver.await {
            Ok((Answer::Failed { message, kind, code }, _)) => Err(match kind {
                Failure::Program => EngineError::Exec { message, code },
                _ => EngineError::Shim(message),
            }),
            Ok(reply) => Ok(reply),
            Err(_) => Err(EngineError::ShimLost),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Sends what goes without waiting; `true` when nothing is left.
fn flush(stream: &UnixStream, open: &mut Open) -> io::Result<bool> {
    while let Some(first) = open.outgoing.front_mut() {
        match stream.try_io(Interest::WRITABLE, || first.send(stream.as_fd())) {
            Ok(_) => {
                open.outgoing.pop_front();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

async fn serve(stream: Arc<UnixStream>, open: Arc<Mutex<Open>>, more: Arc<Notify>, listener: Arc<dyn Listener>) {
    let mut incoming = Incoming::default();
    loop {
        let waiting = !lock(&open).outgoing.is_empty();
        let interest = if waiting { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        tokio::select! {
            // cancel-safe: readiness is asked again
            ready = stream.ready(interest) => if ready.is_err() { break },
            // cancel-safe: a permit that was not taken stays
            () = more.notified() => {}
        }
        if flush(&stream, &mut lock(&open)).is_err() {
            break;
        }
        match stream.try_io(Interest::READABLE, || incoming.receive(stream.as_fd())) {
            Ok(Received::Bytes) => {}
            Ok(Received::End) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        }
        let whole = loop {
            match incoming.next() {
                Ok(Some((json, fds))) => dispatch(&open, listener.as_ref(), &json, fds),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        if !whole {
            break;
        }
    }
    {
        let mut open = lock(&open);
        *open = Open { ended: true, ..Open::default() };
    }
    listener.lost();
}

fn dispatch(open: &Mutex<Open>, listener: &dyn Listener, json: &[u8], fds: Vec<OwnedFd>) {
    match serde_json::from_slice(json) {
        Ok(Message::Reply { id, answer }) => {
            let mut open = lock(open);
            let Some(Question { answer: sender, exit }) = open.questions.remove(&id) else { return };
            if let (Answer::Exec { exec, .. }, Some(exit)) = (&answer, exit) {
                open.execs.insert(*exec, exit);
            }
            let _nobody_waits_any_more = sender.send((answer, fds));
        }
        Ok(Message::Event(Event::ExecExited { exec, code })) => {
            if let Some(exit) = lock(open).execs.remove(&exec) {
                let _nobody_waits_any_more = exit.send(code);
            }
        }
        Ok(Message::Event(event)) => listener.event(event),
        Err(error) => tracing::debug!(%error, "message of a shim not understood"),
    }
}
