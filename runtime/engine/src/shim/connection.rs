//! One agent that is connected.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::protocol::{Incoming, Message, Outgoing, Received};

/// An agent that lets more than this pile up is dropped; it connects again and asks for the state.
const BACKLOG: usize = 4 << 20;

/// A connection: what has come of a frame, and what has not gone yet.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    incoming: Incoming,
    outgoing: VecDeque<Outgoing>,
    /// It has said hello: events are for it too.
    pub(super) greeted: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, incoming: Incoming::default(), outgoing: VecDeque::new(), greeted: false }
    }

    /// Whether it waits for room to send.
    pub(super) fn blocked(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues a message and sends what goes.
    pub(super) fn say(&mut self, message: &Message, fds: Vec<OwnedFd>) -> io::Result<()> {
        self.outgoing.push_back(Outgoing::new(message, fds)?);
        if self.outgoing.iter().map(Outgoing::remaining).sum::<usize>() > BACKLOG {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the agent does not read"));
        }
        self.flush()
    }

    /// Sends what goes without waiting.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some(first) = self.outgoing.front_mut() {
            match first.send(self.stream.as_fd()) {
                Ok(true) => {
                    self.outgoing.pop_front();
                }
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives what is there; the whole frames come out.
    pub(super) fn receive(&mut self) -> io::Result<Vec<(Vec<u8>, Vec<OwnedFd>)>> {
        if self.incoming.receive(self.stream.as_fd())? == Received::End {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut frames = Vec::new();
        while let Some(frame) = self.incoming.next()? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
