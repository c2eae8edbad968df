//! What can be wrong with the network, and what was done about it.

use std::fmt;

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
            Self::LinkChanged { sandbox_id, link, what } => write!(f, "link {link} of sandbox {sandbox_id}: {what}"),
            Self::Leftover { link } => write!(f, "link {link} belongs to no sandbox"),
        }
    }
}

/// What `reconcile` found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Sandboxes whose attachment was released because nothing owned it.
    pub released: Vec<String>,
    /// What was put right.
    pub repaired: Vec<Drift>,
    /// Sandboxes that live but have no link: `attach` them again with their namespace.
    pub detached: Vec<String>,
}
