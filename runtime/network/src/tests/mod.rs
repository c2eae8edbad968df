//! The whole crate against the kernel, each test in network namespaces of its own.

mod attaching;
mod cni;
mod killing;
mod lacking;
mod lifecycle;
mod owners;
mod ruleset;
mod traffic;
mod world;
