//! Safe wrappers around the system calls that Portreeve needs, and around instructions that the libraries do not use.
//!
//! The only crate with `unsafe`. Functions take [`BorrowedFd`](std::os::fd::BorrowedFd), return
//! [`OwnedFd`](std::os::fd::OwnedFd) and `io::Result`; every descriptor is close-on-exec from birth.
//! rustix and nix do the work where they have the call; the raw calls here are those they lack.
//!
//! **Invariant:** no function of this crate keeps state between calls.

pub mod bpf;
pub mod capability;
pub mod clone;
pub mod exec;
pub mod fd;
pub mod keyring;
pub mod memory;
pub mod memory_policy;
pub mod mount;
pub mod namespace;
pub mod path;
pub mod process;
pub mod seccomp;
pub mod self_exe;
pub mod sha256;
pub mod socket;
pub mod terminal;
pub mod time;
pub mod tree;

mod chain;
mod raw;

pub use chain::chain;
