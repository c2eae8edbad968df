//! The master side of a terminal as an asynchronous stream, and its size.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::client::Client;
use crate::protocol::Call;
use crate::{ContainerId, EngineError, TerminalSize};

/// Gives a terminal a new size. It may outlive the session it came from, and then does nothing.
#[derive(Debug, Clone)]
pub struct Resizer(Of);

#[derive(Debug, Clone)]
enum Of {
    /// Of an exec'd process, whose master side is here.
    Master(Arc<AsyncFd<OwnedFd>>),
    /// Of a container, whose master side the shim holds.
    Shim(Arc<Client>, ContainerId),
}

impl Resizer {
    pub(super) fn of_container(client: Arc<Client>, id: ContainerId) -> Self {
        Self(Of::Shim(client, id))
    }

    /// Sets columns and rows.
    ///
    /// # Errors
    /// [`EngineError::Resize`] when the kernel refuses; [`EngineError::ShimLost`].
    pub async fn resize(&self, size: TerminalSize) -> Result<(), EngineError> {
        match &self.0 {
            Of::Master(master) => portreeve_sys::terminal::set_size(master.get_ref().as_fd(), size.rows, size.columns)
                .map_err(|source| EngineError::Resize { source }),
            Of::Shim(client, id) => {
                let TerminalSize { columns, rows } = size;
                client.ask(Call::Resize { container: id.to_string(), columns, rows }).await.map(drop)
            }
        }
    }
}

/// One holder of a terminal's master side.
#[derive(Debug, Clone)]
pub(super) struct Master(Arc<AsyncFd<OwnedFd>>);

impl Master {
    /// Must be called within a runtime.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // Its replacement is unsafe for kinds of descriptors that lie about themselves; an `OwnedFd` does not.
        #[expect(deprecated, reason = "the successor needs unsafe code")]
        let fd = AsyncFd::new(fd)?;
        Ok(Self(Arc::new(fd)))
    }

    pub(super) fn resizer(&self) -> Resizer {
        Resizer(Of::Master(Arc::clone(&self.0)))
    }
}

impl AsyncRead for Master {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), room)?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the other side any more: its end.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Master {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(answer) => return Poll::Ready(answer),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A terminal has no half-close; whoever wants to say "end" sends its end-of-file character.
        Poll::Ready(Ok(()))
    }
}
