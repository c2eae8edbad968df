//! Streams to and from processes in containers. Bytes go through pipes or a terminal that the agent holds one end of;
//! they never pass the shim's protocol.

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::EngineError;
use crate::engine::Resizer;

/// Where a process's input is written to. Dropping it ends the input.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;
/// Where a process's output is read from. It ends when the last holder of the other end is gone.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A process to run in a running container, with the container's user, environment and directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// Give it a terminal; then there is no separate `stderr`.
    pub tty: bool,
    /// The terminal's first size.
    pub size: Option<TerminalSize>,
    /// Connect `stdin`; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Connect `stdout`.
    pub stdout: bool,
    /// Connect `stderr`; not with a terminal.
    pub stderr: bool,
    /// Added to the container's environment.
    pub envs: Vec<(String, String)>,
    /// Instead of the container's working directory.
    pub working_dir: Option<String>,
}

/// A process running in a container. Dropping it closes the streams and ends the process.
///
/// With a terminal that is a hang-up, as everywhere: what ignores it goes on. Without one nothing tells a process that
/// reads and writes nothing that nobody is there any more: it is killed, with everything that hangs on it.
pub struct ExecSession {
    /// Present when asked for.
    pub stdin: Option<Input>,
    /// Present when asked for; the terminal's output when there is one.
    pub stdout: Option<Output>,
    /// Present when asked for and there is no terminal.
    pub stderr: Option<Output>,
    pub(crate) resizer: Option<Resizer>,
    pub(crate) exit: oneshot::Receiver<i32>,
    pub(crate) kill: crate::engine::ExecKill,
    /// It is killed when it has not ended before.
    pub(crate) ends_with_us: bool,
}

/// What to attach to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Connect `stdin`; the container must have been created with `stdin`.
    pub stdin: bool,
    /// Connect `stdout`.
    pub stdout: bool,
    /// Connect `stderr`; nothing comes when the container has a terminal.
    pub stderr: bool,
}

/// Streams of a container's first process. Output begins now; what was written before is in the log.
pub struct AttachSession {
    /// Present when asked for.
    pub stdin: Option<Input>,
    /// Present when asked for.
    pub stdout: Option<Output>,
    /// Present when asked for and there is no terminal.
    pub stderr: Option<Output>,
    pub(crate) resizer: Option<Resizer>,
}

/// What `exec_sync` returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it wrote to stdout, up to the limit.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, up to the limit.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub exit_code: i32,
    /// There was more output than the limit; the rest was read and dropped.
    pub truncated: bool,
}

/// CRI's bound for the output of `exec_sync`.
pub(crate) const EXEC_OUTPUT_LIMIT: usize = 16 << 20;
/// How long output is still read after an exec'd process has ended but left heirs of its streams.
pub(crate) const DRAIN: Duration = Duration::from_millis(500);

impl ExecSession {
    /// Waits for the process to end and returns its exit code (128 + n after signal n).
    ///
    /// # Errors
    /// [`EngineError::ShimLost`] when the sandbox ended first.
    ///
    /// # Cancel safety
    /// May be called again after it was dropped half way.
    pub async fn wait(&mut self) -> Result<i32, EngineError> {
        // A second wait after the answer is a mistake of the caller; it is told that nobody answers any more.
        if self.exit.is_terminated() {
            return Err(EngineError::ShimLost);
        }
        let answer = (&mut self.exit).await.map_err(|_| EngineError::ShimLost);
        self.ends_with_us = false;
        answer
    }

    /// Gives the terminal a new size; without a terminal it does nothing.
    ///
    /// # Errors
    /// [`EngineError::Resize`] when the kernel refuses.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), EngineError> {
        match &self.resizer {
            Some(resizer) => resizer.resize(size).await,
            None => Ok(()),
        }
    }

    /// What can give the terminal a new size after the session's streams were moved out; `None` without a terminal.
    pub fn resizer(&self) -> Option<Resizer> {
        self.resizer.clone()
    }

    /// Kills the process and everything it started that still hangs on it.
    ///
    /// # Errors
    /// [`EngineError::ShimLost`] when the sandbox is gone.
    pub async fn kill(&self) -> Result<(), EngineError> {
        self.kill.kill().await
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        if self.ends_with_us {
            self.kill.order();
        }
    }
}

impl AttachSession {
    /// Gives the container's terminal a new size; without a terminal it does nothing.
    ///
    /// # Errors
    /// [`EngineError::Resize`] when the kernel refuses.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), EngineError> {
        match &self.resizer {
            Some(resizer) => resizer.resize(size).await,
            None => Ok(()),
        }
    }

    /// What can give the terminal a new size after the session's streams were moved out; `None` without a terminal.
    pub fn resizer(&self) -> Option<Resizer> {
        self.resizer.clone()
    }
}

impl fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSession").field("stdin", &self.stdin.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for AttachSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachSession").field("stdin", &self.stdin.is_some()).finish_non_exhaustive()
    }
}
