//! Links, addresses and routes: the rtnetlink messages that this crate needs.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;

use crate::netlink::{Batch, Message, Refusal, Socket, Writer, attributes, find};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP: u16 = 0x300;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// No IPv6 address of its own, not even a link-local one.
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;
const AF_UNSPEC: u8 = 0;
const IFF_UP: u32 = 1;

/// A link as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) kind: String,
    pub(crate) up: bool,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    /// Index of the bridge that it is a port of; 0 is none.
    pub(crate) bridge: u32,
    pub(crate) hairpin: bool,
}

/// An IPv4 address of a link, with its subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    pub(crate) net: Ipv4Net,
}

/// An IPv4 route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Net,
    pub(crate) link: u32,
    pub(crate) main_table: bool,
}

/// Which link a message means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    Index(u32),
    Name(&'a str),
}

impl Which<'_> {
    fn header(self, writer: &mut Writer, up: bool) {
        let index = match self {
            Self::Index(index) => index,
            Self::Name(_) => 0,
        };
        let flags = if up { IFF_UP } else { 0 };
        link_header(writer, AF_UNSPEC, index, flags);
        if let Self::Name(name) = self {
            writer.string(IFLA_IFNAME, name);
        }
    }
}

/// `struct ifinfomsg`; `flags` are set, the others stay.
fn link_header(writer: &mut Writer, family: u8, index: u32, flags: u32) {
    writer.raw(&[family, 0, 0, 0]);
    writer.raw(&index.to_ne_bytes());
    writer.raw(&flags.to_ne_bytes());
    writer.raw(&flags.to_ne_bytes());
}

/// Makes a bridge with this MAC address.
pub(crate) fn push_new_bridge(batch: &mut Batch, name: &str, mac: [u8; 6], mtu: u32) {
    let action = format!("making bridge {name}");
    batch.push(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, action, |w| {
        link_header(w, AF_UNSPEC, 0, 0);
        w.string(IFLA_IFNAME, name).bytes(IFLA_ADDRESS, &mac);
        w.u32(IFLA_MTU, mtu);
        w.nest(IFLA_LINKINFO, |w| {
            w.string(IFLA_INFO_KIND, "bridge");
        });
    });
}

/// A veth pair that is to be made.
#[derive(Debug)]
pub(crate) struct NewPair<'a> {
    pub(crate) host_link: &'a str,
    pub(crate) bridge: u32,
    pub(crate) netns: BorrowedFd<'a>,
    pub(crate) pod_interface: &'a str,
    pub(crate) pod_mac: [u8; 6],
    pub(crate) mtu: u32,
}

/// Makes a veth pair, one end as a port of the bridge, the other one inside the namespace.
pub(crate) fn push_new_pair(batch: &mut Batch, pair: &NewPair<'_>) {
    let action = format!("making the veth pair {}", pair.host_link);
    batch.push(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, action, |w| {
        link_header(w, AF_UNSPEC, 0, 0);
        w.string(IFLA_IFNAME, pair.host_link);
        w.u32(IFLA_MTU, pair.mtu).u32(IFLA_MASTER, pair.bridge);
        // One queue each: a veth without XDP never uses more, and each costs memory and time.
        w.u32(IFLA_NUM_TX_QUEUES, 1).u32(IFLA_NUM_RX_QUEUES, 1);
        w.nest(IFLA_LINKINFO, |w| {
            w.string(IFLA_INFO_KIND, "veth");
            w.nest(IFLA_INFO_DATA, |w| {
                w.nest(VETH_INFO_PEER, |w| {
                    // Not yet up: a veth opens only when both ends exist.
                    link_header(w, AF_UNSPEC, 0, 0);
                    w.string(IFLA_IFNAME, pair.pod_interface);
                    w.bytes(IFLA_ADDRESS, &pair.pod_mac).u32(IFLA_MTU, pair.mtu);
                    w.u32(IFLA_NUM_TX_QUEUES, 1).u32(IFLA_NUM_RX_QUEUES, 1);
                    let fd = pair.netns.as_raw_fd();
                    w.bytes(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                });
            });
        });
    });
}

/// Runs a batch in which [`push_no_ipv6_address`] may fail: a kernel without IPv6, or a link whose
/// MTU is too small for it, gives no such address anyway.
pub(crate) fn run_with_or_without_ipv6(socket: &mut Socket, batch: &Batch) -> Result<(), Refusal> {
    let refusals = socket.run_all(batch)?;
    let real = refusals.into_iter().find(|refusal| !refusal.is(nix::libc::EAFNOSUPPORT));
    real.map_or(Ok(()), Err)
}

/// Labels a link, so that it is known as ours whatever happens to our records.
pub(crate) fn push_alias(batch: &mut Batch, name: &str, alias: &str) {
    batch.push(RTM_NEWLINK, 0, format!("labelling link {name}"), |w| {
        Which::Name(name).header(w, false);
        w.string(IFLA_IFALIAS, alias);
    });
}

/// Keeps the kernel from giving the link an IPv6 address.
pub(crate) fn push_no_ipv6_address(batch: &mut Batch, name: &str) {
    let action = format!("keeping IPv6 addresses from link {name}");
    batch.push(RTM_NEWLINK, 0, action, |w| {
        Which::Name(name).header(w, false);
        w.nest(IFLA_AF_SPEC, |w| {
            w.nest(AF_INET6, |w| {
                w.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
            });
        });
    });
}

/// Lets frames leave through the port they came from: a pod reaches itself through its bridge.
pub(crate) fn push_hairpin(batch: &mut Batch, name: &str) {
    let action = format!("turning hairpin mode on for link {name}");
    batch.push(RTM_NEWLINK, 0, action, |w| {
        Which::Name(name).header(w, false);
        w.nest(IFLA_LINKINFO, |w| {
            w.string(IFLA_INFO_SLAVE_KIND, "bridge");
            w.nest(IFLA_INFO_SLAVE_DATA, |w| {
                w.u8(IFLA_BRPORT_MODE, 1);
            });
        });
    });
}

/// Makes a link a port of the bridge.
pub(crate) fn push_port(batch: &mut Batch, name: &str, bridge: u32) {
    let action = format!("making link {name} a port of the bridge");
    batch.push(RTM_NEWLINK, 0, action, |w| {
        Which::Name(name).header(w, false);
        w.u32(IFLA_MASTER, bridge);
    });
}

/// Gives a link its MAC address and MTU.
pub(crate) fn push_mac_and_mtu(batch: &mut Batch, name: &str, mac: [u8; 6], mtu: u32) {
    let action = format!("setting address and MTU of link {name}");
    batch.push(RTM_NEWLINK, 0, action, |w| {
        Which::Name(name).header(w, false);
        w.bytes(IFLA_ADDRESS, &mac).u32(IFLA_MTU, mtu);
    });
}

/// Turns a link on.
pub(crate) fn push_up(batch: &mut Batch, which: Which<'_>) {
    let action = match which {
        Which::Index(index) => format!("turning link {index} on"),
        Which::Name(name) => format!("turning link {name} on"),
    };
    batch.push(RTM_NEWLINK, 0, action, |w| which.header(w, true));
}

/// Removes a link.
pub(crate) fn push_delete(batch: &mut Batch, which: Which<'_>) {
    let action = match which {
        Which::Index(index) => format!("removing link {index}"),
        Which::Name(name) => format!("removing link {name}"),
    };
    batch.push(RTM_DELLINK, 0, action, |w| which.header(w, false));
}

/// Puts a link into a group.
pub(crate) fn push_group(batch: &mut Batch, index: u32, group: u32) {
    let action = format!("putting link {index} into group {group}");
    batch.push(RTM_NEWLINK, 0, action, |w| {
        Which::Index(index).header(w, false);
        w.u32(IFLA_GROUP, group);
    });
}

/// Removes every link of a group.
pub(crate) fn push_delete_group(batch: &mut Batch, group: u32) {
    let action = format!("removing the links of group {group}");
    batch.push(RTM_DELLINK, 0, action, |w| {
        link_header(w, AF_UNSPEC, 0, 0);
        w.u32(IFLA_GROUP, group);
    });
}

/// Gives a link an address.
pub(crate) fn push_address(batch: &mut Batch, link: u32, net: Ipv4Net) {
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    batch.push(RTM_NEWADDR, flags, format!("adding address {net}"), |w| {
        w.raw(&[AF_INET, net.prefix_len(), 0, 0]);
        w.raw(&link.to_ne_bytes());
        w.bytes(IFA_LOCAL, &net.addr().octets());
        w.bytes(IFA_ADDRESS, &net.addr().octets());
        w.bytes(IFA_BROADCAST, &net.broadcast().octets());
    });
}

/// Adds the default route.
pub(crate) fn push_default_route(batch: &mut Batch, link: u32, gateway: Ipv4Addr) {
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let action = format!("adding the default route via {gateway}");
    batch.push(RTM_NEWROUTE, flags, action, |w| {
        w.raw(&[AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST]);
        w.raw(&0_u32.to_ne_bytes());
        w.bytes(RTA_GATEWAY, &gateway.octets()).u32(RTA_OIF, link);
    });
}

/// Every link of the socket's namespace.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let mut request = Batch::new();
    request.push(RTM_GETLINK, NLM_F_DUMP, "listing links", |w| {
        link_header(w, AF_UNSPEC, 0, 0);
        w.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    socket.collect(&request, read_link)
}

/// The link with this name, if there is one.
pub(crate) fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    let mut request = Batch::new();
    request.push(RTM_GETLINK, 0, format!("looking for link {name}"), |w| {
        link_header(w, AF_UNSPEC, 0, 0);
        w.string(IFLA_IFNAME, name);
        w.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    let mut found = None;
    match socket.list(&request, |message| found = read_link(message)) {
        Ok(()) => Ok(found),
        Err(refusal) if refusal.is(nix::libc::ENODEV) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Every IPv4 address of the socket's namespace.
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<Address>, Refusal> {
    let mut request = Batch::new();
    request.push(RTM_GETADDR, NLM_F_DUMP, "listing addresses", |w| {
        w.raw(&[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    });
    socket.collect(&request, read_address)
}

/// Every IPv4 route of the socket's namespace.
pub(crate) fn routes(socket: &mut Socket) -> Result<Vec<Route>, Refusal> {
    let mut request = Batch::new();
    request.push(RTM_GETROUTE, NLM_F_DUMP, "listing routes", |w| {
        w.raw(&[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    });
    socket.collect(&request, read_route)
}

/// What a notification tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    Changed {
        index: u32,
        up: bool,
    },
    /// Removed, or no longer a port of a bridge.
    Removed {
        name: String,
    },
    AddressRemoved {
        index: u32,
    },
}

/// Reads a notification, when it is one of those.
pub(crate) fn read_event(message: &Message<'_>) -> Option<LinkEvent> {
    match message.kind {
        RTM_NEWLINK => read_link(message).map(|link| LinkEvent::Changed { index: link.index, up: link.up }),
        RTM_DELLINK => read_link(message).map(|link| LinkEvent::Removed { name: link.name }),
        RTM_DELADDR => read_address(message).map(|address| LinkEvent::AddressRemoved { index: address.link }),
        _ => None,
    }
}

fn read_link(message: &Message<'_>) -> Option<Link> {
    let index = u32::from_ne_bytes(message.payload.get(4..8)?.try_into().ok()?);
    let flags = u32::from_ne_bytes(message.payload.get(8..12)?.try_into().ok()?);
    let mut link = Link { index, up: flags & IFF_UP != 0, ..Link::default() };
    for attribute in attributes(message.payload.get(16..)?) {
        match attribute.kind {
            IFLA_IFNAME => link.name = attribute.text(),
            IFLA_IFALIAS => link.alias = attribute.text(),
            IFLA_ADDRESS => link.mac = attribute.value.to_vec(),
            IFLA_MTU => link.mtu = attribute.u32()?,
            IFLA_MASTER => link.bridge = attribute.u32()?,
            IFLA_LINKINFO => {
                for part in attribute.nested() {
                    match part.kind {
                        IFLA_INFO_KIND => link.kind = part.text(),
                        IFLA_INFO_SLAVE_DATA => {
                            link.hairpin =
                                find(part.value, IFLA_BRPORT_MODE).is_some_and(|mode| mode.value.first() == Some(&1));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn read_address(message: &Message<'_>) -> Option<Address> {
    let prefix = *message.payload.get(1)?;
    let link = u32::from_ne_bytes(message.payload.get(4..8)?.try_into().ok()?);
    let rest = message.payload.get(8..)?;
    let local = find(rest, IFA_LOCAL).or_else(|| find(rest, IFA_ADDRESS))?;
    let address = Ipv4Addr::from(*local.value.first_chunk::<4>()?);
    let net = Ipv4Net::new(address, prefix).ok()?;
    Some(Address { link, net })
}

fn read_route(message: &Message<'_>) -> Option<Route> {
    let prefix = *message.payload.get(1)?;
    let rest = message.payload.get(12..)?;
    let destination = match find(rest, RTA_DST) {
        Some(found) => Ipv4Addr::from(*found.value.first_chunk::<4>()?),
        None => Ipv4Addr::UNSPECIFIED,
    };
    let table = find(rest, RTA_TABLE).and_then(|table| table.u32());
    Some(Route {
        destination: Ipv4Net::new(destination, prefix).ok()?,
        link: find(rest, RTA_OIF).and_then(|oif| oif.u32()).unwrap_or(0),
        main_table: table == Some(u32::from(RT_TABLE_MAIN)),
    })
}
