//! The agent's end of a shim's socket.
//!
//! One task reads: answers go to whoever asked, events to the [`Listener`]. When the socket ends, or a question stays
//! without an answer for too long, every open question is answered with "lost", and then the listener hears of it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use crate::protocol::{Answer, Call, Event, Failure, Incoming, Message, Outgoing, Received, Request, VERSION};
use crate::{EngineError, SandboxId};

/// All that a shim does is quick, and it does one thing after the other. One that is asked and says nothing for this
/// many waits of [`WAIT`] sees no container end any more either: it is given up.
const WAITS: u32 = 6;
/// Short beside the whole: after this very process was stopped for a while, one wait is over at once, but not all.
const WAIT: Duration = Duration::from_secs(5);

/// The id of requests whose answer nobody waits for.
const NOBODY: u64 = 0;

/// Why there are no answers any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The socket ended.
    Died,
    /// It was given up.
    Silent,
}

impl End {
    /// As the reason of a sandbox that is not ready.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Died => "shim died",
            Self::Silent => "shim did not answer",
        }
    }
}

/// Whoever wants to hear of a shim's events and of its end.
pub(crate) trait Listener: Send + Sync + 'static {
    /// Something happened. Called in order, on the reading task: it must not wait.
    fn event(&self, event: Event);
    /// There are no answers any more; called once.
    fn lost(&self, end: End);
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
    /// As the shim has said.
    hooks: AtomicBool,
    /// Who begins an exec: a container can hold up its beginning, and the shim would go on to those whose caller has gone.
    exec: Arc<Semaphore>,
    reader: tokio::task::AbortHandle,
}

/// What is waited for.
#[derive(Debug, Default)]
struct Open {
    end: Option<End>,
    /// Frames that have not gone yet. A frame stays here until it has gone whole, whoever goes away meanwhile.
    outgoing: VecDeque<Outgoing>,
    questions: HashMap<u64, Question>,
    execs: HashMap<u64, oneshot::Sender<i32>>,
}

#[derive(Debug)]
struct Question {
    answer: oneshot::Sender<Reply>,
    exec: Option<Beginning>,
}

/// Of an exec that the shim was asked for.
#[derive(Debug)]
struct Beginning {
    /// Who waits for its end. Taken over by the reader itself, so that no exit slips through.
    exit: oneshot::Sender<i32>,
    /// Whether or not anybody waits for the answer, the next one is asked for when it has come.
    _turn: OwnedSemaphorePermit,
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
        let (next, hooks) = (AtomicU64::new(1), AtomicBool::new(false));
        let exec = Arc::new(Semaphore::new(1));
        Ok(Self { stream, open, more, next, hooks, exec, reader: task.abort_handle() })
    }

    /// Set when the shim is gone.
    pub(crate) fn ended(&self) -> Option<End> {
        lock(&self.open).end
    }

    /// Greets the shim of `id`; agrees on a version.
    pub(crate) async fn hello(&self, id: &SandboxId) -> Result<(Answer, Vec<OwnedFd>), EngineError> {
        let (answer, fds) = self.ask(Call::Hello { version: VERSION }).await?;
        match answer {
            Answer::Hello { version, .. } if version > VERSION => {
                Err(EngineError::NewerShim { id: id.clone(), found: version, known: VERSION })
            }
            answer => {
                let runs = matches!(answer, Answer::Hello { hooks: true, .. });
                self.hooks.store(runs, Ordering::Relaxed);
                Ok((answer, fds))
            }
        }
    }

    /// Whether the shim has greeted as one that runs hooks: one of an older program would leave them out.
    pub(crate) fn runs_hooks(&self) -> bool {
        self.hooks.load(Ordering::Relaxed)
    }

    /// Asks without descriptors; a refusal is an error.
    pub(crate) async fn ask(&self, call: Call) -> Result<Reply, EngineError> {
        self.send(call, Vec::new(), None).await
    }

    /// Asks for an exec when the one before has begun; the receiver hears of its end.
    ///
    /// # Cancel safety
    /// Dropping it before its turn has come leaves the shim alone; after that, what begins is killed.
    pub(crate) async fn exec(
        &self,
        call: Call,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, oneshot::Receiver<i32>), EngineError> {
        let turn = Arc::clone(&self.exec).acquire_owned().await.map_err(|_closed| EngineError::ShimLost)?;
        let (exit, receiver) = oneshot::channel();
        Ok((self.send(call, fds, Some(Beginning { exit, _turn: turn })).await?, receiver))
    }

    /// Orders to kill an exec'd process, and waits for nothing.
    pub(crate) fn kill_exec(&self, exec: u64) {
        let mut open = lock(&self.open);
        if open.end.is_none() {
            kill_unclaimed(&mut open, exec);
            // At once, as far as it goes: whoever orders this may be the last one to hold the connection.
            let _all_gone = flush(&self.stream, &mut open);
            self.more.notify_one();
        }
    }

    async fn send(&self, call: Call, fds: Vec<OwnedFd>, exec: Option<Beginning>) -> Result<Reply, EngineError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let outgoing =
            Outgoing::new(&Request { id, call }, fds).map_err(|error| EngineError::Shim(error.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut open = lock(&self.open);
            if open.end.is_some() {
                return Err(EngineError::ShimLost);
            }
            open.questions.insert(id, Question { answer: sender, exec });
            open.outgoing.push_back(outgoing);
            // What does not go at once is the reader's, as are errors. It also begins to wait.
            let _all_gone = flush(&self.stream, &mut open);
            self.more.notify_one();
        }
        let mut asked = Asked { client: self, receiver };
        match (&mut asked.receiver).await {
            Ok((Answer::Failed { message, kind, code }, _)) => Err(match kind {
                Failure::Program => EngineError::Exec { message, code },
                _ => EngineError::Shim(message),
            }),
            Ok(reply) => Ok(reply),
            Err(_) => Err(match self.ended() {
                Some(End::Silent) => EngineError::ShimSilent { waited: WAIT * WAITS },
                _ => EngineError::ShimLost,
            }),
        }
    }
}

/// Waits for an answer. A process that was started for somebody who has gone meanwhile is killed: nobody else knows it.
struct Asked<'a> {
    client: &'a Client,
    receiver: oneshot::Receiver<Reply>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        // An answer that comes after this is refused, which its sender sees.
        if let Ok((Answer::Exec { exec, .. }, _)) = self.receiver.try_recv() {
            self.client.kill_exec(exec);
        }
    }
}

/// Queues the order to kill an exec'd process; nobody waits for the answer.
fn kill_unclaimed(open: &mut Open, exec: u64) {
    open.execs.remove(&exec);
    match Outgoing::new(&Request { id: NOBODY, call: Call::KillExec { exec } }, Vec::new()) {
        Ok(outgoing) => open.outgoing.push_back(outgoing),
        Err(error) => tracing::debug!(%error, exec, "unclaimed process not killed"),
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
    let (mut asked, mut silent) = (false, 0);
    let mut patience = pin!(tokio::time::sleep(WAIT));
    loop {
        let (sending, asking) = {
            let open = lock(&open);
            (!open.outgoing.is_empty(), !open.questions.is_empty())
        };
        if asking && !asked {
            silent = 0;
            patience.as_mut().reset(Instant::now() + WAIT);
        }
        asked = asking;
        let interest = if sending { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        tokio::select! {
            // cancel-safe: readiness is asked again
            ready = stream.ready(interest) => if ready.is_err() { break },
            // cancel-safe: a permit that was not taken stays
            () = more.notified() => {}
            // cancel-safe: it stays the same one
            () = &mut patience, if asking => {
                silent += 1;
                patience.as_mut().reset(Instant::now() + WAIT);
                if silent == WAITS {
                    lock(&open).end = Some(End::Silent);
                    break;
                }
            }
        }
        if flush(&stream, &mut lock(&open)).is_err() {
            break;
        }
        match stream.try_io(Interest::READABLE, || incoming.receive(stream.as_fd())) {
            Ok(Received::Bytes) => {
                silent = 0;
                patience.as_mut().reset(Instant::now() + WAIT);
            }
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
    let end = {
        let mut open = lock(&open);
        let end = open.end.unwrap_or(End::Died);
        *open = Open { end: Some(end), ..Open::default() };
        end
    };
    listener.lost(end);
}

fn dispatch(open: &Mutex<Open>, listener: &dyn Listener, json: &[u8], fds: Vec<OwnedFd>) {
    match serde_json::from_slice(json) {
        Ok(Message::Reply { id, answer }) => {
            let mut open = lock(open);
            let Some(Question { answer: sender, exec: beginning }) = open.questions.remove(&id) else { return };
            if let (Answer::Exec { exec, .. }, Some(beginning)) = (&answer, beginning) {
                open.execs.insert(*exec, beginning.exit);
            }
            if let Err((Answer::Exec { exec, .. }, _)) = sender.send((answer, fds)) {
                kill_unclaimed(&mut open, exec);
            }
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as Std;

    use super::*;
    use crate::protocol::ExecCall;

    #[derive(Debug, Default)]
    struct Ear(Mutex<Vec<End>>);

    impl Listener for Ear {
        fn event(&self, _: Event) {}

        fn lost(&self, end: End) {
            self.0.lock().unwrap().push(end);
        }
    }

    fn pair() -> (Client, Arc<Ear>, Connection) {
        let (ours, theirs) = Std::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let ear = Arc::new(Ear::default());
        let client = Client::new(ours, Arc::clone(&ear) as Arc<dyn Listener>).unwrap();
        (client, ear, Connection { stream: UnixStream::from_std(theirs).unwrap(), incoming: Incoming::default() })
    }

    /// The shim's end.
    struct Connection {
        stream: UnixStream,
        incoming: Incoming,
    }

    impl Connection {
        async fn next(&mut self) -> Request {
            loop {
                if let Some((json, _)) = self.incoming.next().unwrap() {
                    return serde_json::from_slice(&json).unwrap();
                }
                self.stream.readable().await.unwrap();
                let _again =
                    self.stream.try_io(Interest::READABLE, || self.incoming.receive(self.stream.as_fd()).map(drop));
            }
        }

        fn answer(&self, id: u64, answer: Answer) {
            let mut outgoing = Outgoing::new(&Message::Reply { id, answer }, Vec::new()).unwrap();
            assert!(outgoing.send(self.stream.as_fd()).unwrap());
        }
    }

    fn exec() -> Call {
        Call::Exec(ExecCall {
            container: "c".into(),
            args: vec!["true".into()],
            envs: vec![],
            cwd: None,
            tty: false,
            size: None,
            stdin: false,
            stdout: false,
            stderr: false,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_says_nothing_is_given_up() {
        let (client, ear, mut shim) = pair();
        let begin = Instant::now();
        // Nobody waits for this answer any more, and still it is missed.
        assert!(tokio::time::timeout(Duration::from_secs(1), client.ask(Call::State)).await.is_err());
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(client.ended().is_none());
        let answer = client.ask(Call::Socket { ipv6: false }).await;
        assert!(matches!(answer, Err(EngineError::ShimSilent { .. })), "{answer:?}");
        assert_eq!(begin.elapsed().as_secs(), 30);
        assert!(matches!(client.ask(Call::State).await, Err(EngineError::ShimLost)));
        assert_eq!((client.ended(), ear.0.lock().unwrap().as_slice()), (Some(End::Silent), [End::Silent].as_slice()));
        assert!(matches!(shim.next().await.call, Call::State));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_nobody_asks_may_be_silent() {
        let (client, ear, mut shim) = pair();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let ((), answer) = tokio::join!(
            async {
                let request = shim.next().await;
                tokio::time::sleep(Duration::from_secs(29)).await;
                shim.answer(request.id, Answer::Done);
            },
            client.ask(Call::State)
        );
        assert!(answer.is_ok(), "{answer:?}");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(client.ended().is_none());
        drop(shim);
        assert!(matches!(client.ask(Call::State).await, Err(EngineError::ShimLost)));
        while ear.0.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(ear.0.lock().unwrap().as_slice(), [End::Died]);
    }

    #[tokio::test]
    async fn a_process_that_nobody_waits_for_is_killed() {
        let (client, _ear, mut shim) = pair();
        let begun = Answer::Exec { exec: 7, pid: 1 };
        // Whoever asked goes before the answer.
        tokio::select! {
            biased;
            _ = client.exec(exec(), Vec::new()) => panic!("no answer was given"),
            () = tokio::task::yield_now() => {}
        }
        let request = shim.next().await;
        shim.answer(request.id, begun);
        assert!(matches!(shim.next().await.call, Call::KillExec { exec: 7 }));
        // And when the answer is there already, and was not taken.
        let mut asked = Box::pin(client.exec(exec(), Vec::new()));
        assert!(waits(&mut asked).await);
        let request = shim.next().await;
        shim.answer(request.id, Answer::Exec { exec: 8, pid: 1 });
        while !lock(&client.open).questions.is_empty() {
            tokio::task::yield_now().await;
        }
        drop(asked);
        assert!(matches!(shim.next().await.call, Call::KillExec { exec: 8 }));
    }

    #[tokio::test]
    async fn execs_that_are_given_up_before_their_turn_never_reach_the_shim() {
        let (client, _ear, mut shim) = pair();
        let mut first = Box::pin(client.exec(exec(), Vec::new()));
        let mut second = Box::pin(client.exec(exec(), Vec::new()));
        let mut third = Box::pin(client.exec(exec(), Vec::new()));
        assert!(waits(&mut first).await && waits(&mut second).await && waits(&mut third).await);
        // The first is under way: its turn ends with the answer, which nobody takes.
        let begun = shim.next().await;
        drop((first, second));
        assert!(waits(&mut third).await);
        shim.answer(begun.id, Answer::Exec { exec: 7, pid: 1 });
        let (answer, ()) = tokio::join!(third, async {
            assert!(matches!(shim.next().await.call, Call::KillExec { exec: 7 }));
            let request = shim.next().await;
            assert!(matches!(request.call, Call::Exec(_)));
            shim.answer(request.id, Answer::Exec { exec: 8, pid: 1 });
        });
        assert!(matches!(answer, Ok(((Answer::Exec { exec: 8, .. }, _), _))));
    }

    #[tokio::test]
    async fn whoever_waits_for_its_turn_hears_that_the_shim_is_gone() {
        let (client, _ear, shim) = pair();
        let gone = async {
            tokio::task::yield_now().await;
            drop(shim);
        };
        let (first, second, ()) = tokio::join!(client.exec(exec(), vec![]), client.exec(exec(), vec![]), gone);
        assert!(matches!(first, Err(EngineError::ShimLost)) && matches!(second, Err(EngineError::ShimLost)));
    }

    /// Polls once; whether it waits.
    async fn waits(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }
}
