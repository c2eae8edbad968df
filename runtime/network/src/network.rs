//! The operations of one agent's network.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use ipnet::Ipv4Net;

use crate::{Config, NetworkError, PortMapping};

/// One agent's network. All methods take `&self` and may run on several threads at once; calls
/// for one sandbox id must not overlap.
#[derive(Debug)]
pub struct Network {
    config: Config,
}

/// The place of one sandbox in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The sandbox.
    pub sandbox_id: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// The bridge's address, through which the pod's default route leads.
    pub gateway: Ipv4Addr,
    /// Name of the interface in the pod.
    pub interface: String,
    /// Name of its other end on the host.
    pub host_link: String,
    /// Ports of the host that lead to this pod.
    pub ports: Vec<PortMapping>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// The bridge is absent or misses something.
    Bridge {
        /// What is wrong with it.
        what: String,
    },
    /// A kernel setting of ours has another value.
    Setting {
        /// Its file.
        path: String,
    },
    /// The ruleset of our table is not what it should be.
    Ruleset {
        /// The first difference.
        what: String,
    },
    /// The link of an attachment is absent: only `attach` with the namespace makes a new one.
    LinkMissing {
        /// The sandbox.
        sandbox_id: String,
        /// The name of the link.
        link: String,
    },
    /// The link of an attachment is there, but down or not on our bridge.
    LinkChanged {
        /// The sandbox.
        sandbox_id: String,
        /// The name of the link.
        link: String,
        /// What is wrong with it.
        what: String,
    },
    /// A link of ours that no attachment owns.
    Leftover {
        /// The name of the link.
        link: String,
    },
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge { what } => write!(f, "bridge: {what}"),
            Self::Setting { path } => write!(f, "{path} was changed"),
            Self::Ruleset { what } => write!(f, "nftables: {what}"),
            Self::LinkMissing { sandbox_id, link } => {
                write!(f, "link {link} of sandbox {sandbox_id} is gone")
            }
            Self::LinkChanged {
                sandbox_id,
                link,
                what,
            } => write!(f, "link {link} of sandbox {sandbox_id}: {what}"),
            Self::Leftover { link } => write!(f, "link {link} belongs to no sandbox"),
        }
    }
}

/// A drift that was put right.
pub type Repair = Drift;

/// What `reconcile` found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Sandboxes whose attachment was released because nothing owned it.
    pub released: Vec<String>,
    /// What was put right.
    pub repaired: Vec<Repair>,
    /// Sandboxes that live but have no link: `attach` them again with their namespace.
    pub detached: Vec<String>,
}

/// Facts for `doctor` about this machine's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Whether nftables can be spoken to, or why not.
    pub nftables: Option<String>,
}

impl Network {
    /// Reads the records and makes the network ready.
    ///
    /// # Errors
    /// [`NetworkError`] naming the step that failed.
    pub fn open(config: Config) -> Result<Self, NetworkError> {
        Ok(Self { config })
    }
    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// The pods' subnet.
    pub fn subnet(&self) -> Ipv4Net {
        self.config.pool
    }
    /// Makes or repairs bridge, ruleset and settings.
    ///
    /// # Errors
    /// [`NetworkError`] naming the step that failed.
    pub fn ensure(&self) -> Result<Vec<Repair>, NetworkError> {
        Ok(Vec::new())
    }
    /// Connects a sandbox; a second call with the same arguments repairs the first one's work.
    ///
    /// # Errors
    /// [`NetworkError`] naming the step that failed; nothing is left over then.
    pub fn attach(
        &self,
        sandbox_id: &str,
        _netns: BorrowedFd<'_>,
        _ports: &[PortMapping],
    ) -> Result<Attachment, NetworkError> {
        Err(NetworkError::SandboxId {
            id: sandbox_id.to_owned(),
        })
    }
    /// Releases everything a sandbox has; absent is success.
    ///
    /// # Errors
    /// [`NetworkError::Teardown`]; what could be released is.
    pub fn detach(&self, _sandbox_id: &str) -> Result<(), NetworkError> {
        Ok(())
    }
    /// All attachments, by sandbox id.
    pub fn attachments(&self) -> Vec<Attachment> {
        Vec::new()
    }
    /// What is not as it should be now.
    ///
    /// # Errors
    /// [`NetworkError`] when the kernel could not be asked.
    pub fn observe(&self) -> Result<Vec<Drift>, NetworkError> {
        Ok(Vec::new())
    }
    /// Releases what no living sandbox owns and repairs the others.
    ///
    /// # Errors
    /// [`NetworkError`] naming the step that failed.
    pub fn reconcile(&self, _live: &BTreeSet<String>) -> Result<Reconciled, NetworkError> {
        Ok(Reconciled::default())
    }
    /// Removes bridge, table and records, and restores `ip_forward` when it was off.
    ///
    /// # Errors
    /// [`NetworkError::Teardown`]; what could be removed is.
    pub fn close_and_remove(&self) -> Result<(), NetworkError> {
        Ok(())
    }
    /// Facts for `doctor`.
    pub fn survey(&self) -> Survey {
        survey(&self.config)
    }
}

/// Facts about this machine's network as the agent with this configuration meets it.
pub fn survey(_config: &Config) -> Survey {
    Survey::default()
}
