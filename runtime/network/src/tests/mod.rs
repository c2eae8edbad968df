//! The whole crate against the kernel, each test in network namespaces of its own.

mod attaching;
mod lifecycle;
mod ruleset;
mod traffic;
mod world;
