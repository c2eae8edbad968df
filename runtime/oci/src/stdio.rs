//! Where a container's process reads from and writes to.

use std::os::fd::OwnedFd;

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Number of lines.
    pub rows: u16,
    /// Number of columns.
    pub columns: u16,
}

/// Standard streams of a container's process.
#[derive(Debug)]
pub enum Stdio {
    /// Three descriptors, usually pipes; a missing stdin reads as `/dev/null`.
    Pipes {
        /// What the process reads.
        stdin: Option<OwnedFd>,
        /// Where its output goes.
        stdout: OwnedFd,
        /// Where its errors go.
        stderr: OwnedFd,
    },
    /// A terminal of the container's own devpts; its master side comes back to the caller.
    Terminal {
        /// Initial size; the kernel's default (0x0) when absent.
        size: Option<WindowSize>,
    },
    /// The caller's own descriptors 0, 1 and 2.
    Inherit,
}
