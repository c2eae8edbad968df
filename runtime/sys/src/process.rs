//! Processes: clone3, pidfds, waiting.

pub use rustix::process::Pid;
