//! Safe wrappers around the system calls that Portreeve needs.
//!
//! The only crate with `unsafe`. Functions take [`BorrowedFd`](std::os::fd::BorrowedFd), return
//! [`OwnedFd`](std::os::fd::OwnedFd) and `io::Result`; every descriptor is close-on-exec from birth.

pub mod process;
