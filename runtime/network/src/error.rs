//! Why an operation of the network failed.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

/// What went wrong, by the operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A configured name or subnet cannot be used.
    #[error("using {field} {value:?}: {why}")]
    Config {
        /// The field of the configuration.
        field: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A sandbox id cannot name a record.
    #[error("using {id:?} as a sandbox id: only letters, digits, '-' and '_', at most 128")]
    SandboxId {
        /// The id.
        id: String,
    },
    /// No subnet of the pool is free.
    #[error("choosing a subnet: every /24 of {pool} overlaps an address or route of this machine")]
    NoFreeSubnet {
        /// The pool.
        pool: Ipv4Net,
    },
    /// The pods' subnet is in use by someone else.
    #[error("using {subnet} for pods: it overlaps {taken} of {owner}")]
    SubnetTaken {
        /// The subnet of the pods.
        subnet: Ipv4Net,
        /// The address or route that is in the way.
        taken: Ipv4Net,
        /// The interface that it belongs to.
        owner: String,
    },
    /// Every address of the subnet belongs to a sandbox.
    #[error("choosing an address: all {count} addresses of {subnet} are taken by running pods")]
    NoFreeAddress {
        /// The subnet of the pods.
        subnet: Ipv4Net,
        /// How many addresses pods can have.
        count: usize,
    },
    /// Another sandbox publishes this port.
    #[error("publishing host port {port}: sandbox {owner} has published {theirs}")]
    PortTaken {
        /// The port that was asked for.
        port: String,
        /// The sandbox that has it.
        owner: String,
        /// The port as its owner published it.
        theirs: String,
    },
    /// One sandbox asks twice for a port, or for port 0.
    #[error("publishing host port {port}: {why}")]
    PortInvalid {
        /// The port that was asked for.
        port: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// This kernel cannot lead a port of the host to a pod.
    #[error("publishing host port {port}: this kernel lacks {missing}; load or build it, then restart the agent")]
    KernelLacks {
        /// The port that was asked for.
        port: String,
        /// What the kernel would need, by its builders' names.
        missing: String,
    },
    /// A name is taken by a link that is not ours.
    #[error("using link {name}: {why}")]
    ForeignLink {
        /// The name.
        name: String,
        /// What the link is.
        why: String,
    },
    /// The table's name is taken by a table that is not ours.
    #[error("using nftables table {table}: {why}")]
    ForeignTable {
        /// The name.
        table: String,
        /// Whose it is, and what to do.
        why: String,
    },
    /// The kernel refused a change of links, addresses or routes.
    #[error("{action}")]
    Route {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change of the nftables ruleset.
    #[error("{action} in nftables table {table}")]
    Nftables {
        /// What was tried.
        action: &'static str,
        /// The table.
        table: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A kernel setting could not be read or written.
    #[error("setting {path}")]
    Sysctl {
        /// The file of the setting.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pod's network namespace could not be entered.
    #[error("entering the network namespace of sandbox {id}")]
    EnterNetns {
        /// The sandbox.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record could not be read or written.
    #[error("keeping the record {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record was written by a newer version of this program; it is left as it is.
    #[error("reading {path}: its version {found} is newer than {supported}, which this program knows")]
    NewerRecord {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest version that this program reads.
        supported: u64,
    },
    /// The recorded address of a sandbox is not one of the pods' subnet.
    #[error("attaching sandbox {id}: it has no address {address} in {subnet}")]
    AddressOutside {
        /// The sandbox.
        id: String,
        /// Its recorded address.
        address: Ipv4Addr,
        /// The subnet of the pods.
        subnet: Ipv4Net,
    },
    /// Several steps of a teardown failed; the others were done.
    #[error("removing {what}: {}", join(.failures))]
    Teardown {
        /// What was being removed.
        what: String,
        /// Every failure.
        failures: Vec<NetworkError>,
    },
}

/// When the same call can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Only with another configuration, manifest or machine.
    Never,
    /// When another sandbox was released.
    AfterRelease,
    /// The kernel may answer otherwise next time.
    Later,
}

impl NetworkError {
    /// Whether and when to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Config { .. }
            | Self::SandboxId { .. }
            | Self::PortInvalid { .. }
            | Self::KernelLacks { .. }
            | Self::NewerRecord { .. }
            | Self::AddressOutside { .. } => Retry::Never,
            Self::NoFreeAddress { .. } | Self::PortTaken { .. } => Retry::AfterRelease,
            Self::NoFreeSubnet { .. }
            | Self::SubnetTaken { .. }
            | Self::ForeignLink { .. }
            | Self::ForeignTable { .. }
            | Self::Route { .. }
            | Self::Nftables { .. }
            | Self::Sysctl { .. }
            | Self::EnterNetns { .. }
            | Self::Record { .. }
            | Self::Teardown { .. } => Retry::Later,
        }
    }
}

/// One line for several failures, each with its cause.
fn join(failures: &[NetworkError]) -> String {
    let lines: Vec<String> = failures
        .iter()
        .map(|failure| match std::error::Error::source(failure) {
            Some(source) => format!("{failure}: {source}"),
            None => failure.to_string(),
        })
        .collect();
    lines.join("; ")
}
