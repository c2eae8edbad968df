//! Standing in for the program before our caller: signals and terminal in, output and exit code out.
//!
//! ```text
//!   signals  --signalfd--> [relay] --pidfd--> program        SIGWINCH: the size of our terminal to the program's
//!   stdin    ------------> [4 KiB] ---------> master         raw, if it is a terminal, until the end
//!   stdout   <------------ [4 KiB] <--------- master
//! ```
//!
//! Without a terminal the program has our own streams, and only signals pass here.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use portreeve_oci::Pid;
use portreeve_sys::{process, terminal};
use rustix::fs::{Mode, OFlags};
use rustix::process::WaitOptions;

use super::console;
use crate::verbs::terminal::Raw;

/// Bytes that are on their way in one direction; a pipe that can be written takes as much without waiting.
const PIECE: usize = 4096;

/// What a terminal holds at most of a program that has ended.
const LAST_WORDS: usize = 256 * 1024;

/// Signals of our caller that wait to be passed on.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Makes every signal wait that can be passed on.
    ///
    /// Those that a fault of our own raises stay as they are, and SIGPIPE, which our own writing may cause.
    pub(super) fn hold() -> anyhow::Result<Self> {
        let mut held = SigSet::all();
        let ours = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGABRT];
        for signal in ours.into_iter().chain([Signal::SIGSYS, Signal::SIGPIPE]) {
            held.remove(signal);
        }
        held.thread_block().context("making signals wait")?;
        let fd = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Ok(Self(fd.context("listening for signals")?))
    }
}

/// The process that the program runs in, and what connects our caller with it.
#[derive(Debug)]
pub(super) struct Relay<'a> {
    signals: Signals,
    pid: Pid,
    pidfd: BorrowedFd<'a>,
    terminal: Option<Terminal>,
}

impl<'a> Relay<'a> {
    /// Our terminal is raw from now on, if the program has one.
    pub(super) fn new(
        signals: Signals,
        pid: Pid,
        pidfd: BorrowedFd<'a>,
        master: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        Ok(Self { signals, pid, pidfd, terminal: master.map(Terminal::new).transpose()? })
    }

    /// Passes on what comes until the process has ended; answers its exit code, 128 and more for a signal.
    ///
    /// Children of other kinds, orphans of the container among them, are reaped on the way.
    pub(super) fn until_the_end(mut self) -> anyhow::Result<i32> {
        loop {
            if let Some(code) = reap(self.pid).context("waiting for the container's process")? {
                if let Some(terminal) = &mut self.terminal {
                    terminal.last_words();
                }
                return Ok(code);
            }
            self.wait().context("waiting for signals and the terminal")?;
            self.pass_signals()?;
            if let Some(terminal) = &mut self.terminal {
                terminal.pass();
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> io::Result<()> {
        let mut set = vec![PollFd::new(self.signals.0.as_fd(), PollFlags::POLLIN)];
        if let Some(terminal) = &self.terminal {
            terminal.waits_for(&mut set);
        }
        match poll(&mut set, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn pass_signals(&self) -> anyhow::Result<()> {
        while let Some(signal) = self.signals.0.read_signal().context("reading a signal")? {
            let number = i32::try_from(signal.ssi_signo).context("reading a signal")?;
            if number == Signal::SIGCHLD as i32 {
                continue; // The next round reaps.
            }
            if number == Signal::SIGWINCH as i32 {
                if let (Some(terminal), Some(size)) = (&self.terminal, console::own_size()) {
                    terminal::set_size(terminal.master.as_fd(), size.rows, size.columns)
                        .context("setting the size of the terminal")?;
                }
                continue;
            }
            match process::pidfd_send_signal(self.pidfd, number) {
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                other => other.with_context(|| format!("passing signal {number} on"))?,
            }
        }
        Ok(())
    }
}

/// Reaps every child that has ended; answers the code of `wanted`, once it has.
fn reap(wanted: Pid) -> io::Result<Option<i32>> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(None) => return Ok(None),
            Ok(Some((pid, status))) if pid == wanted => {
                let by_signal = || status.terminating_signal().map(|signal| signal + 128);
                if let Some(code) = status.exit_status().or_else(by_signal) {
                    return Ok(Some(code));
                }
            }
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The program's terminal and ours.
#[derive(Debug)]
struct Terminal {
    master: OwnedFd,
    input: Flow,
    output: Flow,
    stdin: OwnedFd,
    stdout: OwnedFd,
    _raw: Option<Raw>,
}

impl Terminal {
    fn new(master: OwnedFd) -> anyhow::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).context("preparing the program's terminal")?;
        Ok(Self {
            master,
            input: Flow::default(),
            output: Flow::default(),
            stdin: without_waiting(io::stdin().as_fd(), OFlags::RDONLY).context("preparing standard input")?,
            stdout: without_waiting(io::stdout().as_fd(), OFlags::WRONLY).context("preparing standard output")?,
            _raw: Raw::enter().context("making our terminal raw")?,
        })
    }

    fn waits_for<'a>(&'a self, set: &mut Vec<PollFd<'a>>) {
        let mut add = |fd: BorrowedFd<'a>, flags: PollFlags| {
            if !flags.is_empty() {
                set.push(PollFd::new(fd, flags));
            }
        };
        let on = |wanted: bool, flags: PollFlags| if wanted { flags } else { PollFlags::empty() };
        add(self.stdin.as_fd(), on(self.input.has_room(), PollFlags::POLLIN));
        add(self.stdout.as_fd(), on(self.output.has_bytes(), PollFlags::POLLOUT));
        let master = on(self.output.has_room(), PollFlags::POLLIN) | on(self.input.has_bytes(), PollFlags::POLLOUT);
        add(self.master.as_fd(), master);
    }

    fn pass(&mut self) {
        let (master, stdin, stdout) = (self.master.as_fd(), self.stdin.as_fd(), self.stdout.as_fd());
        self.output.pass(master, stdout);
        if self.output.ended {
            // Nobody has the terminal open any more: what is typed reaches nobody.
            self.input = Flow { ended: true, ..Flow::default() };
        }
        self.input.pass(stdin, master);
    }

    /// What the program has printed and nobody has read yet: waits for our reader, but not for further writers.
    fn last_words(&mut self) {
        for _ in 0..LAST_WORDS / PIECE {
            self.output.pass(self.master.as_fd(), self.stdout.as_fd());
            if !self.output.has_bytes() {
                if !self.output.read(self.master.as_fd()) {
                    return;
                }
                continue;
            }
            let mut set = [PollFd::new(self.stdout.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut set, PollTimeout::NONE).is_err_and(|error| error != Errno::EINTR) {
                return;
            }
        }
    }
}

/// A descriptor of our own for the same file, on which nothing waits; the caller's stays as it is.
///
/// What cannot be opened again (a socket, or a file that is another user's) is used as it is: written in pieces after
/// it was said to be writable.
fn without_waiting(stream: BorrowedFd<'_>, mode: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let is_waited_for = stream.is_terminal() || is_pipe(stream);
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) if is_waited_for => Ok(fd),
        _ => stream.try_clone_to_owned(),
    }
}

fn is_pipe(stream: BorrowedFd<'_>) -> bool {
    let kind = rustix::fs::fstat(stream).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(|kind| kind == rustix::fs::FileType::Fifo)
}

/// Bytes on their way in one direction.
#[derive(Debug)]
struct Flow {
    buffer: Box<[u8; PIECE]>,
    /// What of the buffer is still to be written.
    from: usize,
    until: usize,
    /// The source has ended.
    ended: bool,
    /// The destination is gone: what comes is thrown away, so that the writer is not held up.
    lost: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Self { buffer: Box::new([0; PIECE]), from: 0, until: 0, ended: false, lost: false }
    }
}

impl Flow {
    fn has_bytes(&self) -> bool {
        self.from < self.until
    }

    fn has_room(&self) -> bool {
        !self.ended && !self.has_bytes()
    }

    fn pass(&mut self, source: BorrowedFd<'_>, destination: BorrowedFd<'_>) {
        if self.has_room() && is_ready(source, PollFlags::POLLIN) {
            self.read(source);
        }
        if self.has_bytes() && (self.lost || is_ready(destination, PollFlags::POLLOUT)) {
            self.write(destination);
        }
    }

    /// Answers whether something came.
    fn read(&mut self, source: BorrowedFd<'_>) -> bool {
        if !self.has_room() {
            return false;
        }
        match rustix::io::read(source, self.buffer.as_mut_slice()) {
            Ok(0) => self.ended = true,
            Ok(length) => (self.from, self.until) = (0, length),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // EIO of a master: nobody has the terminal open any more.
            Err(_) => self.ended = true,
        }
        self.has_bytes()
    }

    fn write(&mut self, destination: BorrowedFd<'_>) {
        let bytes = self.buffer.get(self.from..self.until).unwrap_or_default();
        match if self.lost { Ok(bytes.len()) } else { rustix::io::write(destination, bytes) } {
            Ok(length) => self.from += length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => (self.lost, self.from) = (true, self.until),
        }
    }
}

fn is_ready(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut set = [PollFd::new(fd, flags)];
    poll(&mut set, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn bytes_pass_in_their_order_and_wait_for_a_slow_reader() {
        let (source, mut writer) = io::pipe().unwrap();
        let (mut reader, destination) = io::pipe().unwrap();
        let text: Vec<u8> = (0..=255).cycle().take(200 * 1024).collect();
        let expected = text.clone();
        let typing = std::thread::spawn(move || writer.write_all(&text));
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).map(|_| got)
        });
        let mut flow = Flow::default();
        while !flow.ended || flow.has_bytes() {
            let mut set = vec![];
            if flow.has_room() {
                set.push(PollFd::new(source.as_fd(), PollFlags::POLLIN));
            } else {
                set.push(PollFd::new(destination.as_fd(), PollFlags::POLLOUT));
            }
            poll(&mut set, PollTimeout::NONE).unwrap();
            flow.pass(source.as_fd(), destination.as_fd());
        }
        drop(destination);
        typing.join().unwrap().unwrap();
        assert!(reading.join().unwrap().unwrap() == expected);
    }

    #[test]
    fn a_writer_is_not_held_up_by_a_reader_that_went_away() {
        let (source, mut writer) = io::pipe().unwrap();
        let (reader, destination) = io::pipe().unwrap();
        drop(reader);
        let mut flow = Flow::default();
        for _ in 0..100 {
            writer.write_all(&[7; PIECE]).unwrap();
            flow.pass(source.as_fd(), destination.as_fd());
        }
        assert!(flow.lost && !flow.has_bytes());
    }
}
