//! One agent's network: its configuration, its records, and what it knows in memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::Ipv4Net;
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::addresses::Addresses;
use crate::names::link_name_fault;
use crate::netlink::{Refusal, Socket};
use crate::nft::{Element, Extent, Ruleset};
use crate::owner::Owner;
use crate::reap::Reaper;
use crate::record::{NetworkRecord, Records};
use crate::{Config, ForeignDrop, Lack, NetworkError, PortMapping};

pub(crate) const NETLINK_ROUTE: isize = 0;
pub(crate) const NETLINK_NETFILTER: isize = 12;

/// One agent's network. All methods take `&self` and may run on several threads at once, which
/// must be in the network namespace of the thread that opened it; calls for one sandbox id must
/// not overlap.
#[derive(Debug)]
pub struct Network {
    pub(crate) config: Config,
    pub(crate) records: Records,
    pub(crate) owner: Owner,
    /// Serialises what looks at the network as a whole. Taken before every other lock.
    pub(crate) upkeep: Mutex<()>,
    /// Taken before `state`: who changes the ruleset decides by the attachments of that moment.
    pub(crate) netfilter: Mutex<Socket>,
    pub(crate) route: Mutex<Socket>,
    pub(crate) reaper: Reaper,
    /// Device and inode of the host's network namespace.
    pub(crate) own_netns: (u64, u64),
    pub(crate) state: Mutex<State>,
    /// Who blocks forwarding, and when that was looked up.
    pub(crate) blocking: Mutex<Option<(Instant, Vec<ForeignDrop>)>>,
}

/// The place of one sandbox in the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    #[serde(default)]
    pub ports: Vec<PortMapping>,
}

/// What is known in memory; the records and the kernel can give all of it again.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) record: Option<NetworkRecord>,
    pub(crate) addresses: Option<Addresses>,
    pub(crate) attachments: BTreeMap<String, Held>,
    /// Bridge and ruleset were made or checked since `open`.
    pub(crate) ready: bool,
    pub(crate) bridge_index: u32,
    pub(crate) mtu: u32,
    /// How much of the ruleset this kernel can hold, all of it until it refused.
    pub(crate) extent: Extent,
    /// What it lacks for the rest.
    pub(crate) lacks: Vec<Lack>,
}

/// An attachment and what is being done with it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) attachment: Attachment,
    pub(crate) phase: Phase,
}

/// Where an attachment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `attach` is at work: nobody else touches it.
    Attaching,
    /// In use.
    Attached,
    /// `detach` is at work or failed: its ports are not published again.
    Releasing,
}

impl State {
    /// The elements that the maps of the ruleset have to hold.
    pub(crate) fn elements(&self) -> Vec<Element> {
        if self.extent < Extent::Full {
            return Vec::new();
        }
        self.attachments
            .values()
            .filter(|held| held.phase != Phase::Releasing)
            .flat_map(|held| elements_of(&held.attachment))
            .collect()
    }
}

/// The elements that publish an attachment's ports.
pub(crate) fn elements_of(attachment: &Attachment) -> Vec<Element> {
    let element = |port| Element::new(port, attachment.address);
    attachment.ports.iter().map(element).collect()
}

impl Network {
    /// Reads the records; the kernel is not changed before [`Network::ensure`] or the first
    /// [`Network::attach`].
    ///
    /// # Errors
    /// [`NetworkError::Config`] for names that cannot be used, [`NetworkError::NewerRecord`] when
    /// a newer version of this program wrote the records, and when netlink or the records cannot
    /// be used.
    pub fn open(config: Config) -> Result<Self, NetworkError> {
        validate(&config)?;
        let records = Records::open(&config.state_dir)?;
        let record = records.network()?;
        // Before anything is put right: what a newer program wrote stays as it is.
        let given_back = records.given_back()?;
        let attachments = records.attachments()?;
        let record = match record {
            None => remade(&config, &records, attachments.values().next())?,
            record => record,
        };
        let socket = |family, action: &str| {
            Socket::open(family).map_err(|source| NetworkError::Route { action: action.to_owned(), source })
        };
        let attachments = attachments.into_iter().map(|(id, attachment)| {
            let phase = Phase::Attached;
            (id, Held { attachment, phase })
        });
        let mut state = State { record, attachments: attachments.collect(), ..State::default() };
        let taken: Vec<Ipv4Addr> = state.attachments.values().map(|held| held.attachment.address).collect();
        state.addresses = state.record.as_ref().map(|record| Addresses::new(record.subnet, taken, given_back));
        Ok(Self {
            route: Mutex::new(socket(NETLINK_ROUTE, "opening a route socket")?),
            reaper: Reaper::new(socket(NETLINK_ROUTE, "opening a route socket")?),
            own_netns: own_netns()?,
            netfilter: Mutex::new(socket(NETLINK_NETFILTER, "opening a netfilter socket")?),
            upkeep: Mutex::new(()),
            state: Mutex::new(state),
            blocking: Mutex::default(),
            owner: Owner::of(&config.state_dir),
            records,
            config,
        })
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The pods' subnet, once it was chosen.
    pub fn subnet(&self) -> Option<Ipv4Net> {
        self.state().record.as_ref().map(|record| record.subnet)
    }

    /// All attachments, by sandbox id.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.state()
            .attachments
            .values()
            .filter(|held| held.phase == Phase::Attached)
            .map(|held| held.attachment.clone())
            .collect()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn route(&self) -> MutexGuard<'_, Socket> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn netfilter(&self) -> MutexGuard<'_, Socket> {
        self.netfilter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ruleset(&self, subnet: Ipv4Net) -> Ruleset {
        let ruleset = Ruleset::new(&self.config.nft_table, &self.config.bridge, subnet, self.state().extent);
        ruleset.signed(self.owner.table_comment())
    }

    /// Takes the lock that all agents of this machine share; it ends with the file.
    pub(crate) fn lock_machine(&self) -> Result<File, NetworkError> {
        let path = &self.config.subnet_lock;
        let refuse = |source| NetworkError::Record { path: path.clone(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(refuse)?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(refuse)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|errno| refuse(errno.into()))?;
        Ok(file)
    }

    pub(crate) fn nftables_error(&self, action: &'static str, refusal: Refusal) -> NetworkError {
        let source = std::io::Error::new(refusal.source.kind(), format!("{}: {}", refusal.action, refusal.source));
        NetworkError::Nftables { action, table: self.config.nft_table.clone(), source }
    }
}

/// A lost record, from that of any pod; without pods the bridge alone can tell, which is asked when it is needed.
///
/// Whether it was this agent that turned `ip_forward` on is not known any more: then it stays on.
fn remade(config: &Config, records: &Records, any: Option<&Attachment>) -> Result<Option<NetworkRecord>, NetworkError> {
    let subnet = any.and_then(|any| Ipv4Net::new(any.gateway, any.prefix).ok());
    let record = subnet.map(|subnet| NetworkRecord {
        bridge: config.bridge.clone(),
        nft_table: config.nft_table.clone(),
        subnet: subnet.trunc(),
        turned_ip_forward_on: false,
    });
    record.as_ref().map_or(Ok(()), |record| records.set_network(record))?;
    Ok(record)
}

/// The network namespace of the calling thread.
fn own_netns() -> Result<(u64, u64), NetworkError> {
    let path = "/proc/thread-self/ns/net";
    let found =
        rustix::fs::stat(path).map_err(|errno| NetworkError::Record { path: path.into(), source: errno.into() })?;
    Ok((found.st_dev, found.st_ino))
}

/// An error of rtnetlink.
pub(crate) fn route_error(refusal: Refusal) -> NetworkError {
    NetworkError::Route { action: refusal.action, source: refusal.source }
}

fn validate(config: &Config) -> Result<(), NetworkError> {
    let refuse = |field, value: String, why: &str| Err(NetworkError::Config { field, value, why: why.to_owned() });
    if let Some(why) = link_name_fault(&config.bridge) {
        return refuse("bridge", config.bridge.clone(), why);
    }
    let table = &config.nft_table;
    // What `nft` reads as a name without quotes.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let starts_right = table.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if !starts_right || table.len() > 63 || !table.bytes().all(plain) {
        let why = "a table's name has 1 to 63 letters, digits, '_' and '-', a letter first";
        return refuse("nftTable", table.clone(), why);
    }
    if let Some(cidr) = config.pod_cidr {
        if !(16..=29).contains(&cidr.prefix_len()) {
            return refuse("podCIDR", cidr.to_string(), "its prefix must be /16 to /29");
        }
        if cidr.trunc() != cidr {
            let why = format!("it has host bits set; the subnet is {}", cidr.trunc());
            return refuse("podCIDR", cidr.to_string(), &why);
        }
        let first = cidr.network();
        if first.is_loopback() || first.is_multicast() || first.is_unspecified() {
            return refuse("podCIDR", cidr.to_string(), "pods cannot have such addresses");
        }
    }
    if config.mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
        let value = config.mtu.unwrap_or_default().to_string();
        return refuse("mtu", value, "it must be 576 to 65535");
    }
    Ok(())
}
