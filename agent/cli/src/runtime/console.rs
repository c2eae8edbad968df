//! Where the program's terminal goes: to nobody, to our own, or to the listener of `--console-socket`.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, bail};
use oci_spec::runtime::Process;
use portreeve_oci::{Stdio, WindowSize};
use portreeve_sys::{socket, terminal};

/// Who holds the master side of the program's terminal.
#[derive(Debug)]
pub(super) enum Holder {
    /// There is no terminal: the program has our own streams.
    Nobody,
    /// This process, which passes on what is typed and printed.
    Us,
    /// Whoever listens on the socket.
    Listener(UnixStream),
}

impl Holder {
    /// Decides by the configuration and the flags; connects to the socket, so that a wrong one is found out early.
    pub(super) fn choose(terminal: bool, detached: bool, socket: Option<&Path>) -> anyhow::Result<Self> {
        match (terminal, detached, socket) {
            (false, _, Some(_)) => bail!("--console-socket is given, and process.terminal is not set"),
            (true, false, Some(_)) => bail!("--console-socket is given, and the terminal stays here without --detach"),
            (true, true, None) => {
                bail!("process.terminal is set, and nobody would hold the terminal: give --console-socket")
            }
            (false, _, None) => Ok(Self::Nobody),
            (true, false, None) => Ok(Self::Us),
            (true, true, Some(path)) => Ok(Self::Listener(connect(path, "console")?)),
        }
    }

    /// The program's streams.
    pub(super) fn stdio(&self, process: &Process) -> Stdio {
        let asked = process.console_size().as_ref().and_then(|size| {
            let number = |number: u64| u16::try_from(number).ok();
            Some(WindowSize { rows: number(size.height())?, columns: number(size.width())? })
        });
        match self {
            Self::Nobody => Stdio::Inherit,
            Self::Us => Stdio::Terminal { size: asked.or_else(own_size) },
            Self::Listener(_) => Stdio::Terminal { size: asked },
        }
    }

    /// Gives the master to the listener; to be called when the program's process is there.
    pub(super) fn hand_over(&self, master: Option<BorrowedFd<'_>>) -> anyhow::Result<()> {
        let (Self::Listener(stream), Some(master)) = (self, master) else { return Ok(()) };
        send(stream, b"/dev/ptmx", master).context("sending the terminal over --console-socket")
    }
}

/// Size of the terminal that we have ourselves.
pub(super) fn own_size() -> Option<WindowSize> {
    let stdin = io::stdin();
    let (rows, columns) = stdin.is_terminal().then(|| terminal::size_of(stdin.as_fd()).ok()).flatten()?;
    (rows > 0 && columns > 0).then_some(WindowSize { rows, columns })
}

/// Connects to a listening socket, at a path of any length.
pub(super) fn connect(path: &Path, what: &str) -> anyhow::Result<UnixStream> {
    let connected = match UnixStream::connect(path) {
        // An address has 107 bytes: a longer path goes by a descriptor of its directory.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => connect_below(path),
        other => other,
    };
    connected.with_context(|| format!("connecting to the {what} socket {}", path.display()))
}

fn connect_below(path: &Path) -> io::Result<UnixStream> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = std::fs::File::open(directory)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}

/// Sends a descriptor with a few words.
pub(super) fn send(stream: &UnixStream, words: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    socket::send(stream.as_fd(), words, &[fd]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_terminal_has_exactly_one_holder() {
        let nowhere = Path::new("/nowhere/socket");
        let cases = [
            (false, false, None, Ok("Nobody")),
            (false, true, None, Ok("Nobody")),
            (true, false, None, Ok("Us")),
            (true, true, None, Err("give --console-socket")),
            (true, true, Some(nowhere), Err("/nowhere/socket")),
            (true, false, Some(nowhere), Err("without --detach")),
            (false, true, Some(nowhere), Err("process.terminal is not set")),
            (false, false, Some(nowhere), Err("process.terminal is not set")),
        ];
        for (terminal, detached, socket, expected) in cases {
            match (Holder::choose(terminal, detached, socket), expected) {
                (Ok(holder), Ok(name)) => assert_eq!(format!("{holder:?}"), name),
                (Err(error), Err(words)) => assert!(format!("{error:#}").contains(words), "{error:#}"),
                (got, expected) => panic!("{terminal} {detached} {socket:?}: {got:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn a_master_arrives_at_a_socket_with_a_long_path() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = folder.path().join("socket");
        let listener = UnixListener::bind(&short).unwrap();
        let path = deep.join("socket");
        std::fs::rename(&short, &path).unwrap();

        let holder = Holder::choose(true, true, Some(&path)).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        holder.hand_over(Some(reader.as_fd())).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (length, fds) = socket::receive(stream.as_fd(), &mut [0; 64]).unwrap();
        assert_eq!((length, fds.len()), (b"/dev/ptmx".len(), 1));
    }
}
