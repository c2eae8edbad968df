//! The pod network of one node: a bridge, veth pairs, addresses, NAT and published ports.
//!
//! ```text
//!   outside ── eth0 ┐                                    ┌── eth0 (pod a, 10.85.0.2)
//!                   │ route / nat          bridge (gateway, 10.85.0.1)
//!   127.0.0.1 ── lo ┘  table ip <name>                   └── eth0 (pod b, 10.85.0.3)
//! ```
//!
//! Everything is done over netlink by this process: no program is run, nothing is polled.
//! [`Network`] is synchronous; a caller with an executor uses its blocking threads.
//!
//! Beside it, [`cni`] attaches pods of a cluster to networks of others, by their programs, and [`Resolver`] finds the hosts that the rest of the agent reaches out to, asynchronously.
//!
//! **Invariant:** what is not ours is never changed or removed. Ours are: the configured bridge
//! and the configured nftables table, when their labels say so, links whose alias names our bridge, and
//! files below the state directory. `ip_forward` is turned on when it is off, and that is recorded.
//!
//! **Invariant:** an address, a link or a published port exists only while a record of it is on
//! disk: the record is written before the kernel is touched and removed after the kernel was
//! cleaned, so that being killed between any two steps leaves nothing that [`Network::reconcile`]
//! does not find.

//! # Decisions
//!
//! 2026-11, **own netlink encoder** for links as for nftables. The ruleset needs one anyway (no
//! crate under our licences encodes it); one writer of a hundred lines for both costs less to
//! read than two ways of doing the same. Rejected: netlink-packet-route, rtnetlink (async).
//!
//! 2026-11, **links are removed in rounds** by link group, because the kernel waits 15 to 40 ms
//! for each removal and once for a group; see `reap`. Rejected: leaving it to the end of the
//! pod's namespace, which anything can keep alive while its address goes to another pod.
//!
//! 2026-11, **MAC addresses follow from IPv4 addresses**, so a reused address needs no neighbour
//! to forget anything, and a bridge that is made again is the same one for running pods.
//!
//! 2026-11, **names of hosts** are found here, below images, because registries and probes ask for
//! them, and reaching others is what this crate is about. hickory-net speaks with the nameservers and
//! resolv-conf reads the file; whom to ask in which order, and what each one did, is our own. Rejected: the
//! C library's way, see `resolver`; hickory-resolver, eight crates more for a cache and a pool of connections
//! that would be made anew for each lookup: after SERVFAIL or REFUSED it asks nobody else, it takes a host
//! without IPv6 whose IPv4 addresses a server cannot tell for one that has none, waits for nameservers that are
//! not there, does not say which it asked, and drops the zone of a link-local one.
//!
//! 2026-11, **records are not synced to disk**: what they describe does not survive a crash of
//! the machine either.

mod config;
mod error;
mod network;

mod attach;
mod reap;
mod upkeep;

mod bridge;
mod forwarding;
mod owner;
mod pod;

mod addresses;
mod drift;
mod names;
mod record;
mod subnet;
mod survey;
mod watch;

mod link;
mod netlink;
mod nft;
mod setting;

mod resolver;

pub mod cni;

pub use config::{Config, DEFAULT_POOL, DEFAULT_SUBNET_LOCK, PortMapping, Protocol};
pub use drift::{Drift, Reconciled};
pub use error::{NetworkError, Retry};
pub use network::{Attachment, Network};
pub use pod::set_loopback_up;
pub use resolver::{ResolveError, Resolver};
pub use survey::{ForeignDrop, Lack, Survey, survey};
pub use watch::Watch;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::string_slice)]
mod tests;
