//! End-to-end harness: drives the built binary as a user does, and links no crate of ours.
//!
//! Every test makes a [`World`]: a throwaway directory, network namespace and mount namespace.
//! In it run an [`Agent`], registries, and whatever else the test needs. What the world made
//! is gone when it is dropped, also after a failure, and [`Census`] tells what is left.
//!
//! The binary under test is `PORTREEVE_BIN`, else `target/release/portreeve`. Deadlines are
//! multiplied by `PORTREEVE_SLOWNESS` (1 unless a slow guest says otherwise).

mod agent;
mod census;
mod image;
mod registry;
mod wait;
mod world;

pub use agent::{Agent, Answer, BUSYBOX, condition, preload_busybox};
pub use census::Census;
pub use image::Image;
pub use registry::Registry;
pub use wait::{patience, wait_until};
pub use world::{World, binary};

/// Why a test cannot run here, said loudly; `true` means: return from the test.
#[must_use]
pub fn skipped_without_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: it starts containers and needs root");
    }
    !root
}
