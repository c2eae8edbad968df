//! Facts about this machine's network, for `doctor` and for a pod's events.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::netlink::{Refusal, Socket};
use crate::network::{NETLINK_NETFILTER, NETLINK_ROUTE};
use crate::{Config, Network, NetworkError, link, nft, setting};

/// How long it counts what a look at other firewalls has shown.
const FRESH: Duration = Duration::from_secs(10);

/// Facts about this machine's network; taking them changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Why links cannot be made, if so.
    pub netlink_fault: Option<String>,
    /// Why nftables cannot be used, if so.
    pub nftables_fault: Option<String>,
    /// Parts of nftables that this kernel does not have, and what does not work without them.
    pub lacks: Vec<Lack>,
    /// Whether this machine forwards IPv4 packets now.
    pub ip_forward: bool,
    /// Whether this agent turned that on, or one that is gone.
    pub turned_ip_forward_on: bool,
    /// Whether frames between pods pass through the firewall too (br_netfilter).
    pub bridge_traffic_is_filtered: bool,
    /// Chains of others that can drop what is forwarded to and from pods.
    pub foreign_drops: Vec<ForeignDrop>,
    /// Whose address or route overlaps the pods' subnet (known to an open [`Network`] alone).
    pub subnet_overlap: Option<String>,
    /// Tables of the older iptables in use, whose rules cannot be seen from here.
    pub legacy_iptables: Vec<String>,
}

/// A part of the kernel that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Its name, with the option that builds it.
    pub facility: &'static str,
    /// What does not work without it.
    pub consequence: &'static str,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this kernel lacks {}: {}", self.facility, self.consequence)
    }
}

/// A chain of somebody else that can drop forwarded packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignDrop {
    /// Family of its table: `ip` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// It drops whatever its rules do not accept, by its policy or by a rule for all packets.
    pub by_policy: bool,
    /// It has a rule that drops or rejects.
    pub by_rule: bool,
    /// A rule of it accepts packets of our bridge.
    pub accepts_our_bridge: bool,
}

impl ForeignDrop {
    /// Whether pods most likely have no way out because of it.
    pub fn blocks_pods(&self) -> bool {
        self.by_policy && !self.accepts_our_bridge
    }
}

impl From<nft::ForwardChain> for ForeignDrop {
    fn from(found: nft::ForwardChain) -> Self {
        Self {
            family: found.family.to_owned(),
            table: found.table,
            chain: found.chain,
            by_policy: found.drops_by_policy,
            by_rule: found.has_drop_rule,
            accepts_our_bridge: found.accepts_bridge,
        }
    }
}

impl fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, chain, .. } = self;
        let how = match (self.by_policy, self.by_rule) {
            (true, _) => "drops forwarded packets that none of its rules accepts",
            _ => "has a rule that drops forwarded packets",
        };
        write!(f, "nftables chain {family} {table} {chain} {how}")?;
        if self.accepts_our_bridge {
            write!(f, ", and accepts those of our bridge")?;
        }
        Ok(())
    }
}

/// Facts about this machine's network as an agent with this configuration meets it.
pub fn survey(config: &Config) -> Survey {
    let mut survey = Survey {
        turned_ip_forward_on: is_written(&config.state_dir.join("network.json")) || is_written(&config.subnet_lock),
        ip_forward: setting::read(setting::IP_FORWARD).is_ok_and(|v| v.as_deref() == Some("1")),
        bridge_traffic_is_filtered: setting::read("bridge/bridge-nf-call-iptables")
            .is_ok_and(|value| value.as_deref() == Some("1")),
        legacy_iptables: fs::read_to_string("/proc/net/ip_tables_names")
            .map(|names| names.lines().map(str::to_owned).collect())
            .unwrap_or_default(),
        ..Survey::default()
    };
    let words = |refusal: Refusal| format!("{}: {}", refusal.action, refusal.source);
    survey.netlink_fault = Socket::open(NETLINK_ROUTE)
        .map_err(|error| error.to_string())
        .and_then(|mut socket| link::links(&mut socket).map_err(words))
        .err();
    let found = Socket::open(NETLINK_NETFILTER).map_err(|error| error.to_string()).and_then(|mut socket| {
        let (_, lacks) = nft::probe(&mut socket).map_err(words)?;
        let chains = nft::forward_chains(&mut socket, &config.nft_table, &config.bridge).map_err(words)?;
        Ok((lacks, chains))
    });
    match found {
        Ok((lacks, chains)) => {
            survey.lacks = lacks;
            survey.foreign_drops = chains.into_iter().map(ForeignDrop::from).collect();
        }
        Err(fault) => survey.nftables_fault = Some(fault),
    }
    survey
}

/// Whether a record says that `ip_forward` was turned on; one that cannot be read says nothing.
fn is_written(record: &Path) -> bool {
    let text = fs::read(record).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    record.get("turned_ip_forward_on").is_some_and(|on| on == true)
}

impl Network {
    /// Chains of others because of which pods most likely have no way out and no published port, now.
    ///
    /// # Errors
    /// [`NetworkError::Nftables`] when the kernel could not be asked.
    pub fn blocking_chains(&self) -> Result<Vec<ForeignDrop>, NetworkError> {
        let (table, bridge) = (&self.config.nft_table, &self.config.bridge);
        let found = nft::forward_chains(&mut self.netfilter(), table, bridge);
        match found {
            Ok(chains) => Ok(chains.into_iter().map(ForeignDrop::from).filter(ForeignDrop::blocks_pods).collect()),
            // What has no rules drops nothing.
            Err(refusal) if nft::is_of_lack(&refusal) => Ok(Vec::new()),
            Err(refusal) => Err(self.nftables_error("looking for chains that drop", refusal)),
        }
    }

    /// The same as of at most 10 s ago: each look reads every rule of every firewall on the machine.
    ///
    /// # Errors
    /// As there.
    pub fn recently_blocking_chains(&self) -> Result<Vec<ForeignDrop>, NetworkError> {
        let mut known = self.blocking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, chains)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(chains.clone());
        }
        let found = self.blocking_chains()?;
        *known = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    /// Facts about this machine's network as this agent meets it.
    pub fn survey(&self) -> Survey {
        Survey { subnet_overlap: self.overlap().unwrap_or_default(), ..survey(&self.config) }
    }
}
