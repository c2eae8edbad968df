//! Unix sockets: pairs, messages that carry descriptors, the peer's credentials.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// At most this many descriptors travel with one message (the kernel's own bound is 253).
pub const MAX_FDS: usize = 16;

/// Two connected sockets that keep message borders.
///
/// # Errors
/// `EMFILE`.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Bounds how long reading from a socket may take; what takes longer fails with `EAGAIN`. `None`: no bound.
///
/// # Errors
/// Of setsockopt(2).
pub fn bound_reads(socket: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<()> {
    Ok(set_socket_timeout(socket, Timeout::Recv, patience)?)
}

/// Connects to a stream socket; connecting, and then each sending, waits for the other side at most `patience`.
///
/// # Errors
/// `ENOENT`, `ECONNREFUSED` when nobody listens, `EAGAIN` when the time is over, `ENAMETOOLONG` for a path of more than
/// 107 bytes.
pub fn connect(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Sends one message with descriptors; a closed peer is an error, never a signal. Answers the bytes sent.
///
/// # Errors
/// `EPIPE` when the peer has closed, `EMSGSIZE`, `E2BIG` for more than [`MAX_FDS`] descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Receives one message into `buffer` and the descriptors that came with it; 0 bytes mean that the peer has closed.
///
/// # Errors
/// `EAGAIN` on a non-blocking socket; `EMSGSIZE` when the message or its descriptors did not fit.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let answer = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let truncated = rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC;
    if answer.flags.intersects(truncated) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((answer.bytes, fds))
}

/// Who is at the other end of a connected unix socket: process, user and group id at the time of connect.
///
/// # Errors
/// For anything but a unix socket.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<(i32, u32, u32)> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok((credentials.pid.as_raw_nonzero().get(), credentials.uid.as_raw(), credentials.gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_message() {
        let (left, right) = message_pair().expect("pair");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        send(left.as_fd(), b"take this", &[writer.as_fd()]).expect("send");
        drop(writer);
        let mut buffer = [0; 64];
        let (length, mut fds) = receive(right.as_fd(), &mut buffer).expect("receive");
        assert_eq!(buffer.get(..length), Some(&b"take this"[..]));
        std::fs::File::from(fds.pop().expect("one descriptor")).write_all(b"through").expect("write");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
    }

    #[test]
    fn a_closed_peer_reads_as_nothing_and_writes_as_an_error() {
        let (left, right) = message_pair().expect("pair");
        drop(right);
        assert_eq!(receive(left.as_fd(), &mut [0; 8]).expect("end").0, 0);
        assert_eq!(send(left.as_fd(), b"x", &[]).expect_err("closed").kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn waiting_for_one_who_neither_accepts_nor_reads_has_an_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
        rustix::net::listen(&listener, 0).expect("one may wait");
        let patience = Duration::from_millis(20);
        let first = connect(&path, patience).expect("connect");
        assert_eq!(connect(&path, patience).expect_err("nobody accepts").kind(), io::ErrorKind::WouldBlock);
        let everything = vec![0; 16 << 20];
        let taken = send(first.as_fd(), &everything, &[]).expect("as much as fits");
        assert!(taken < everything.len(), "{taken}");
        assert_eq!(send(first.as_fd(), &everything, &[]).expect_err("nobody reads").kind(), io::ErrorKind::WouldBlock);
    }
}
