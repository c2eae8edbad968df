//! The user's terminal while a process elsewhere has it.

use std::io::{self, IsTerminal, Read};

use bytes::Bytes;
use portreeve_api::channel::{CHUNK_BYTES, TerminalSize};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Pieces of input that wait for the agent.
const QUEUE: usize = 4;

/// The terminal on standard input, in raw mode until this is dropped.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal raw; `None` when standard input is none.
    pub(crate) fn enter() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Raw { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // At once: a terminal that nobody reads any more never drains. Nobody is left to tell when it is gone itself.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of the user's terminal.
pub(super) fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(TerminalSize { width: size.ws_col, height: size.ws_row })
}

/// Standard input in pieces, until its end.
///
/// A thread of its own reads it: a terminal cannot be read without waiting, and the process must
/// be able to end while nobody types.
pub(super) fn input() -> mpsc::Receiver<Bytes> {
    let (pieces, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(read @ 1..) => {
                    let piece = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
                    if pieces.blocking_send(piece).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return,
            }
        }
    });
    receiver
}
