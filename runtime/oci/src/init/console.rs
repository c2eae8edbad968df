//! The terminal, from the container's own devpts, and the standard streams.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use portreeve_sys::path::{Limits, in_root};
use portreeve_sys::{fd, mount, process, terminal};
use rustix::fs::OFlags;

use super::{mounts, resolve};
use crate::error::{SetupError, Step};
use crate::handshake;
use crate::stdio::Stdio;

const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Both sides of a terminal.
pub(crate) struct Console {
    master: OwnedFd,
    slave: OwnedFd,
}

/// Makes a terminal when one is asked for.
///
/// The slave comes from the master alone (TIOCGPTPEER): no path below /dev/pts is looked up (CVE-2025-52565).
pub(super) fn make(stdio: &Stdio, root: BorrowedFd<'_>) -> Result<Option<Console>, SetupError> {
    let Stdio::Terminal { size } = stdio else { return Ok(None) };
    let path = Path::new("/dev/pts/ptmx");
    let limits = Limits { no_symlinks: true, ..Limits::default() };
    let master =
        in_root(root, path, OFlags::RDWR | OFlags::NOCTTY, limits).step("opening the terminal multiplexer", path)?;
    let devpts = rustix::fs::fstatfs(&master).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(DEVPTS_MAGIC));
    if !devpts {
        return Err(io::Error::other("it is not on a devpts")).step("opening the terminal multiplexer", path);
    }
    let slave = terminal::slave_of(master.as_fd()).step("opening the terminal", "")?;
    if let Some(size) = size {
        terminal::set_size(master.as_fd(), size.rows, size.columns).step("setting the size of the terminal", "")?;
    }
    Ok(Some(Console { master, slave }))
}

/// Binds the terminal over /dev/console, by descriptor.
pub(super) fn bind(console: &Console, root: BorrowedFd<'_>) -> Result<(), SetupError> {
    let path = Path::new("/dev/console");
    let target = resolve::make_file(root, path).step("creating", path)?;
    mounts::outside_procfs(target.as_fd()).step("mounting the terminal on", path)?;
    let tree = mount::clone_tree_of(console.slave.as_fd(), false).step("copying the terminal's mount for", path)?;
    mount::attach(tree.as_fd(), target.as_fd()).step("mounting the terminal on", path)
}

/// Puts the streams on 0, 1 and 2 and sends the terminal's master to the maker. The process leads a session then.
pub(super) fn streams(
    stdio: &Stdio,
    console: Option<Console>,
    root: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
) -> Result<(), SetupError> {
    // In the maker's process group `kill 0` would signal the maker and all that it has made.
    rustix::process::setsid().step("becoming a session leader", "")?;
    match (stdio, console) {
        (Stdio::Pipes { stdin, stdout, stderr }, _) => {
            let stdin = stdin.as_ref().map(OwnedFd::as_fd);
            let wanted = [stdin.unwrap_or(stdout.as_fd()), stdout.as_fd(), stderr.as_fd()];
            place(wanted)?;
            own_null(root)
        }
        (Stdio::Terminal { .. }, Some(console)) => {
            handshake::terminal(socket, console.master.as_fd()).step("sending the terminal to the caller", "")?;
            drop(console.master);
            terminal::control(console.slave.as_fd()).step("taking the controlling terminal", "")?;
            place([console.slave.as_fd(); 3])
        }
        _ => own_null(root),
    }
}

/// Streams that are the host's null device become the container's: of a file on a mount that the container does not have
/// CRIU makes no checkpoint. Where the container has no null device they stay.
fn own_null(root: BorrowedFd<'_>) -> Result<(), SetupError> {
    let path = Path::new("/dev/null");
    let mut own = None;
    for (stream, number) in
        [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()].into_iter().zip(0..)
    {
        if !is_null(stream) {
            continue;
        }
        if own.is_none() {
            // Not waiting for whoever is at the other end of what an image has put there.
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
            own = in_root(root, path, OFlags::PATH, Limits::default())
                .ok()
                .filter(|node| is_null(node.as_fd()))
                .and_then(|_| in_root(root, path, flags, Limits::default()).ok())
                .filter(|node| is_null(node.as_fd()));
        }
        let Some(own) = &own else { return Ok(()) };
        rustix::fs::fcntl_setfl(own, OFlags::RDWR).step("opening", path)?;
        process::place_fd(own.as_fd(), number).step("placing a standard stream", "")?;
    }
    Ok(())
}

fn is_null(fd: BorrowedFd<'_>) -> bool {
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
            && stat.st_rdev == null
    })
}

fn place(wanted: [BorrowedFd<'_>; 3]) -> Result<(), SetupError> {
    // Copies above the numbers that are about to be replaced.
    let copies = wanted.map(|stream| fd::duplicate_above(stream, 3));
    for (number, copy) in (0..).zip(copies) {
        let copy = copy.step("copying a standard stream", "")?;
        process::place_fd(copy.as_fd(), number).step("placing a standard stream", "")?;
    }
    Ok(())
}

/// Gives the streams to the user that the program runs as, so that it can open them again by /dev/stdout.
pub(super) fn give_streams(uid: u32) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let terminal = kind == rustix::fs::FileType::CharacterDevice && terminal::size_of(stream).is_ok();
        if terminal || matches!(kind, rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket) {
            // A pipe of another user namespace, or a read-only place: the program has the stream all the same.
            let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}
