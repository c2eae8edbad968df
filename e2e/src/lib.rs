//! End-to-end harness: drives the built binary as a user does, and links no crate of ours.
//!
//! Every test makes a [`World`]: a throwaway directory, network namespace and mount namespace.
//! In it run an [`Agent`], registries, and whatever else the test needs. What the world made
//! is gone when it is dropped, also after a failure, and [`Census`] tells what is left.
//!
//! A [`Runtime`] is the same binary by its other name, with [`Bundle`]s of its own; [`Podman`] and [`Containerd`]
//! drive it, and other runtimes beside it.
//!
//! A [`cluster::ApiServer`] is the API that the agents of a fleet speak with, each through a [`cluster::Door`].
//!
//! The binary under test is `PORTREEVE_BIN`, else the release binary beside this very program in cargo's
//! target directory. Deadlines are multiplied by `PORTREEVE_SLOWNESS` (1 unless a slow guest says otherwise).

mod agent;
mod bundle;
mod census;
pub mod cluster;
pub mod cri;
mod criu;
mod foreign;
mod image;
pub mod measure;
mod registry;
mod report;
mod runtime;
pub mod streaming;
pub mod systemd;
mod wait;
mod world;

use std::io::Write;

pub use agent::{Agent, Answer, BUSYBOX, condition, preload_busybox};
pub use bundle::{Bundle, prober};
pub use census::Census;
pub use cri::Cri;
pub use criu::criu;
pub use foreign::{
    Containerd, Docker, Enclosure, Facts, OTHERS, Peers, Podman, containerd_sees, docker_sees, podman_sees,
};
pub use image::Image;
pub use registry::{LOGIN, Registry};
pub use report::{Attempts, Mount, Report};
pub use runtime::{Call, Runtime, cgroup_hierarchies, cgroup_version, has_controller, remove_cgroup};
pub use wait::{patience, wait_until};
pub use world::{World, binary, built};

/// Says that a test, or what `test` names of one, did not run, past the capture of passing tests.
pub fn skipped(test: &str, why: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// Why a test cannot run here, said loudly; `true` means: return from the test.
#[must_use]
pub fn skipped_without_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped(test, "it starts containers and needs root");
    }
    !root
}

/// Why a test with published host ports cannot run here, said loudly; `true` means: return from the test.
#[must_use]
pub fn skipped_without_host_ports(world: &World, test: &str) -> bool {
    let can = publishes_host_ports(world);
    if !can {
        skipped(test, "the nftables of this kernel cannot publish host ports");
    }
    !can
}

/// Whether the kernel can publish host ports (User Mode Linux has no nftables for IPv4): found by checking such a rule
/// in `world`.
#[must_use]
pub fn publishes_host_ports(world: &World) -> bool {
    let rules = "add table ip probe; add chain ip probe c { type nat hook prerouting priority -100; }; \
                 add rule ip probe c fib daddr type local tcp dport 1 dnat to 127.0.0.1:2";
    world.command("nft").args(["--check", rules]).output().is_ok_and(|output| output.status.success())
}

/// Why a pod with users of its own cannot run here, said loudly in `doctor`'s words; `true` means: return from the test.
///
/// # Panics
/// When `doctor` says nothing about it.
#[must_use]
pub fn skipped_without_own_users(test: &str) -> bool {
    let output = std::process::Command::new(binary()).args(["doctor", "-o", "json"]).output().expect("doctor runs");
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).expect("facts in JSON");
    let mut facts = facts.as_array().into_iter().flatten();
    let fact = facts.find(|fact| fact["name"] == "user namespaces").expect("a fact about user namespaces");
    if let Some(advice) = fact["advice"].as_str() {
        skipped(test, advice);
    }
    fact["advice"].is_string()
}
