//! Desired state from a cluster's custom resources, and the report back.
//!
//! ```text
//!   API server                      this crate                             node
//!   NodeWorkloads ---watch---> Keeper --full set of objects--------------> desired state
//!   own NodeAgent -- labels -->   |  ^
//!   ConfigMaps, Secrets, by name  |  +--- how each workload is <--- Assessor <--- pods, ledger
//!   NodeAgent.status <-- Herald --+
//!   Lease, by time <---- Lease
//!   NodeWorkload.status <-- Judge: the one agent that holds the Lease of the rollouts
//! ```
//!
//! A crate of its own, above the node: the node has no client of any server, and runs on when this one is gone.
//!
//! **Invariant:** what a node takes on, and which grants it calls done, is on disk before it acts on it or tells of it.
//!
//! **Invariant:** a server that cannot be reached, and an object that cannot be read, change nothing that runs.

mod assess;
mod configs;
mod connection;
mod herald;
mod holdings;
mod judge;
mod keeper;
mod lease;
mod watching;

use std::path::PathBuf;
use std::time::Duration;

use portreeve_node::Node;
use portreeve_node::source::SourceSet;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use connection::{ConnectError, Credentials};
pub use holdings::HoldingsError;

use holdings::Holdings;
use keeper::Keeper;

/// Where the cluster is, and who this node is in it.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// How its API server is reached.
    pub credentials: Credentials,
    /// Name of the node, of its NodeAgent and of its Lease.
    pub node_name: String,
    /// Namespace of the Leases.
    pub namespace: String,
    /// Directory of what is held, which survives a reboot.
    pub root: PathBuf,
    /// How long an agent that does not renew its Lease is still taken for alive.
    pub lease: Duration,
}

/// Why a node cannot be part of a fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// What it holds cannot be read.
    #[error(transparent)]
    Holdings(#[from] HoldingsError),
    /// The credentials cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// What the cluster wants of this node.
#[derive(Debug)]
pub struct Fleet {
    config: FleetConfig,
    keeper: Keeper,
    sets: watch::Sender<SourceSet>,
}

impl Fleet {
    /// Reads what this node held when it last ran. Nothing is asked of the cluster yet.
    ///
    /// # Errors
    /// [`FleetError`], with nothing changed.
    pub async fn open(config: FleetConfig) -> Result<Self, FleetError> {
        let server = config.credentials.server().await?;
        let holdings = Holdings::read(&config.root.join("workloads.json"))?;
        let keeper = Keeper::new(&config.node_name, &server, holdings);
        let sets = watch::Sender::new(keeper.set());
        Ok(Self { config, keeper, sets })
    }

    /// The sets of objects, for [`Node::start`].
    #[must_use]
    pub fn sets(&self) -> watch::Receiver<SourceSet> {
        self.sets.subscribe()
    }

    /// Follows the cluster and reports to it until `stop`.
    #[must_use]
    pub fn run(self, node: Node, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            let (said, inbox) = mpsc::channel(256);
            let (held, holdings) = watch::channel(self.keeper.holdings());
            let (reports_out, reports) = watch::channel(Vec::new());
            let parts = keeper::Channels { inbox, sets: self.sets, held, reports: reports_out };
            let keeper = self.keeper.run(parts);
            let assessor = assess::run(node.clone(), holdings.clone(), said.clone());
            let connected = connection::run(self.config, node, said, holdings, reports);
            tokio::select! {
                // cancel-safe: a state.
                () = stop.cancelled() => {}
                // None of them ends before the others; what each does is whole or is begun again at the next start.
                () = keeper => {}
                () = assessor => {}
                () = connected => {}
            }
        })
    }
}
