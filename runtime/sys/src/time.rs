//! Clocks of time namespaces.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};

/// A clock that a time namespace can move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clock {
    /// CLOCK_MONOTONIC.
    Monotonic,
    /// CLOCK_BOOTTIME.
    Boottime,
}

impl Clock {
    /// The clock of this name: `monotonic`, `boottime`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Monotonic, Self::Boottime].into_iter().find(|clock| clock.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Monotonic => "monotonic",
            Self::Boottime => "boottime",
        }
    }
}

/// By how much a clock of a time namespace differs from the machine's: seconds, and then so many nanoseconds more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// Which clock.
    pub clock: Clock,
    /// Whole seconds; negative for a clock that is behind.
    pub seconds: i64,
    /// Nanoseconds, less than a second.
    pub nanoseconds: u32,
}

/// The clocks of the time namespace that the next child of this process will be in, time_namespaces(7).
///
/// The kernel asks for CAP_SYS_TIME over the namespace when they are opened, not when they are set: who opens them, then
/// enters a user namespace and makes a time namespace there, may set its clocks.
#[derive(Debug)]
pub struct Clocks(File);

impl Clocks {
    /// Opens them.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no time namespaces or procfs is not mounted.
    pub fn open() -> io::Result<Self> {
        Ok(Self(File::options().write(true).open("/proc/self/timens_offsets")?))
    }

    /// Sets them.
    ///
    /// # Errors
    /// `EACCES` when a process is in the namespace already, `ERANGE` for a clock that would stand before the boot or
    /// after about 146 years, `EPERM`.
    pub fn set(&mut self, offsets: &[Offset]) -> io::Result<()> {
        let mut text = String::new();
        for Offset { clock, seconds, nanoseconds } in offsets {
            // A String takes everything.
            let _ = writeln!(text, "{} {seconds} {nanoseconds}", clock.name());
        }
        // One write: the kernel takes all or none.
        match self.0.write(text.as_bytes())? {
            length if length == text.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}
