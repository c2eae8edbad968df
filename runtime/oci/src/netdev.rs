//! The loopback link of a new network; moving links of the caller into a container's network, and back when the
//! container cannot be made: rtnetlink(7).
//!
//! A move brings a link down and takes its addresses away. Those that somebody has given it (permanent, of universal
//! scope) are given to it again in its new network, where it then comes up: runtime-spec, config-linux.md, `netDevices`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use portreeve_sys::clone::{Clone3, NEW_NET, clone3};
use portreeve_sys::process::{set_dumpable, wait};
use portreeve_sys::{namespace, socket};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{SetupError, Step};
use crate::plan::netdev::NetDevice;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;
const IFA_F_PERMANENT: u8 = 0x80;
const RT_SCOPE_UNIVERSE: u8 = 0;
const IFF_UP: u32 = 1;
/// In every network: `LOOPBACK_IFINDEX` of the kernel's include/net/flow.h.
const LOOPBACK: u32 = 1;
/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Size of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Size of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// The kernel puts at most 32 KiB into one datagram of a listing.
const BUFFER: usize = 64 << 10;

/// Links that the container has now.
#[derive(Debug)]
pub(crate) struct Handed {
    own: OwnedFd,
    /// Keeps the container's network, and the links in it, when its process has ended.
    target: OwnedFd,
    here: Netlink,
    there: Netlink,
    moved: Vec<Moved>,
}

/// What a link was in the caller's network.
#[derive(Debug)]
struct Moved {
    device: NetDevice,
    was_up: bool,
    addresses: Vec<Address>,
}

/// Moves links into the network behind `target`: all, or none.
pub(crate) fn hand_over(devices: &[NetDevice], target: OwnedFd) -> Result<Handed, SetupError> {
    let opening = "opening the network namespace";
    let path = "/proc/thread-self/ns/net";
    let own = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step(opening, path)?;
    let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).step(opening, path);
    if identity(&own)? == identity(&target)? {
        let same = io::Error::new(io::ErrorKind::InvalidInput, "the network namespace to join is the caller's own");
        return Err(same).step("moving the links of linux.netDevices", "");
    }
    let here = Netlink::open().step("opening a netlink socket", "")?;
    let there = Netlink::open_in(target.as_fd()).step("opening a netlink socket in the container's network", "")?;
    let mut handed = Handed { own, target, here, there, moved: Vec::new() };
    for device in devices {
        if let Err(error) = handed.give(device) {
            return Err(match handed.take_back() {
                Ok(()) => error,
                Err(left) => {
                    SetupError { operation: format!("{left} ({}), after {}", left.source, error.operation), ..error }
                }
            });
        }
    }
    Ok(handed)
}

/// Brings up the loopback link of this process's network, which gives it its addresses.
pub(crate) fn loopback_up() -> io::Result<()> {
    Netlink::open()?.settle(LOOPBACK, &[], false, true)
}

impl Handed {
    fn give(&mut self, device: &NetDevice) -> Result<(), SetupError> {
        let link = self.here.link(&device.name).step("looking for the link", &device.name)?;
        let addresses = self.here.addresses(link.index).step("listing the addresses of the link", &device.name)?;
        self.here
            .move_link(link.index, self.target.as_fd(), &device.inside)
            .step(&format!("moving a link into the container's network, as {}:", device.inside), &device.name)?;
        self.moved.push(Moved { device: device.clone(), was_up: link.up, addresses: addresses.clone() });
        let labels = device.name == device.inside;
        let set = |link: Link| self.there.settle(link.index, &addresses, labels, true);
        self.there.link(&device.inside).and_then(set).step("giving a moved link its addresses again:", &device.name)
    }

    /// Moves every link back and makes it what it was; goes on after a failure, of which it answers the first.
    pub(crate) fn take_back(mut self) -> Result<(), SetupError> {
        let mut answer = Ok(());
        for Moved { device, was_up, addresses } in std::mem::take(&mut self.moved).into_iter().rev() {
            let link = self.there.link(&device.inside);
            let back = link.and_then(|link| self.there.move_link(link.index, self.own.as_fd(), &device.name));
            let back = back.and_then(|()| self.here.link(&device.name));
            let back = back.and_then(|link| self.here.settle(link.index, &addresses, true, was_up));
            answer = answer.and(back.step("taking back the link", &device.name));
        }
        answer
    }
}

/// A link, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    index: u32,
    up: bool,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// A socket of rtnetlink in one network.
#[derive(Debug)]
struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> io::Result<Self> {
        // No protocol is the first one, NETLINK_ROUTE.
        Ok(Self(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    /// In another network: a child goes there and sends the socket back, so that this process stays where it is.
    fn open_in(target: BorrowedFd<'_>) -> io::Result<Self> {
        let (ours, theirs) = socket::message_pair()?;
        let child = clone3(&Clone3::default(), || {
            let opened =
                set_dumpable(false).and_then(|()| namespace::enter(target, NEW_NET)).and_then(|()| Self::open());
            let said = match &opened {
                Ok(netlink) => socket::send(theirs.as_fd(), &0_i32.to_ne_bytes(), &[netlink.0.as_fd()]),
                Err(error) => socket::send(theirs.as_fd(), &error.raw_os_error().unwrap_or(-1).to_ne_bytes(), &[]),
            };
            i32::from(said.is_err())
        })?;
        drop(theirs);
        let mut code = [0; 4];
        let received = socket::receive(ours.as_fd(), &mut code);
        wait(child.pidfd.as_fd())?;
        match received?.1.into_iter().next() {
            Some(socket) => Ok(Self(socket)),
            None => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(code))),
        }
    }

    fn link(&self, name: &str) -> io::Result<Link> {
        let mut body = vec![0; LINK_HEADER];
        attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        let replies = self.request(RTM_GETLINK, NLM_F_ACK, &body)?;
        let links = replies.iter().filter(|(kind, _)| *kind == RTM_NEWLINK);
        let mut links =
            links.filter_map(|(_, body)| Some(Link { index: word(body, 4)?, up: word(body, 8)? & IFF_UP != 0 }));
        links.next().ok_or_else(|| rustix::io::Errno::NODEV.into())
    }

    /// The addresses that somebody has given to the link.
    fn addresses(&self, index: u32) -> io::Result<Vec<Address>> {
        let replies = self.request(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_HEADER])?;
        Ok(replies
            .iter()
            .filter(|(kind, _)| *kind == RTM_NEWADDR)
            .filter_map(|(_, body)| address(body, index))
            .collect())
    }

    fn move_link(&self, index: u32, target: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let mut body = link_header(index, 0);
        attribute(&mut body, IFLA_NET_NS_FD, &target.as_raw_fd().to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        self.request(RTM_SETLINK, NLM_F_ACK, &body).map(|_| ())
    }

    /// Gives a link addresses, with their labels or without, and brings it up.
    fn settle(&self, index: u32, addresses: &[Address], labels: bool, up: bool) -> io::Result<()> {
        for address in addresses {
            let mut body = vec![address.family, address.prefix, 0, RT_SCOPE_UNIVERSE];
            body.extend(index.to_ne_bytes());
            for (kind, value) in address.attributes.iter().filter(|(kind, _)| labels || *kind != IFA_LABEL) {
                attribute(&mut body, *kind, value);
            }
            self.request(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body)?;
        }
        if up { self.request(RTM_SETLINK, NLM_F_ACK, &link_header(index, IFF_UP)).map(|_| ()) } else { Ok(()) }
    }

    /// Sends one message and collects the answers, type and body, up to the kernel's last word.
    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let length = u32::try_from(HEADER + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        rustix::net::send(&self.0, &message, SendFlags::empty())?;
        let mut replies = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let (length, _) =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()))?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, next)) = split(rest) {
                match kind {
                    NLMSG_DONE => return Ok(replies),
                    NLMSG_ERROR => {
                        return match word(body, 0).map(u32::cast_signed) {
                            Some(0) => Ok(replies),
                            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                            None => Err(io::ErrorKind::InvalidData.into()),
                        };
                    }
                    _ => replies.push((kind, body.to_vec())),
                }
                rest = next;
            }
        }
    }
}

fn link_header(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    // Flags, and which of them count.
    [index, flags, flags].iter().for_each(|word| body.extend(word.to_ne_bytes()));
    body
}

/// Appends an attribute, padded to four bytes; those written here are short.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Type and body of the first message, and what comes after it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(word(bytes, 0)?).ok()?;
    let body = bytes.get(HEADER..length)?;
    Some((half(bytes, 4)?, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Reads a message about an address that somebody has given to the link.
fn address(body: &[u8], index: u32) -> Option<Address> {
    let [family, prefix, flags, scope] = *body.first_chunk()?;
    if word(body, 4)? != index || flags & IFA_F_PERMANENT == 0 || scope != RT_SCOPE_UNIVERSE {
        return None;
    }
    let mut attributes = Vec::new();
    let mut rest = body.get(ADDRESS_HEADER..)?;
    while let Some(length) = half(rest, 0).map(usize::from).filter(|length| *length >= 4) {
        let kind = half(rest, 2)?;
        if matches!(kind, IFA_ADDRESS | IFA_LOCAL | IFA_LABEL | IFA_BROADCAST | IFA_FLAGS | IFA_RT_PRIORITY) {
            attributes.push((kind, rest.get(4..length)?.to_vec()));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Address { family, prefix, attributes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_padded_to_four_bytes() {
        let mut body = Vec::new();
        attribute(&mut body, IFLA_IFNAME, b"lo\0");
        let expected = [&7_u16.to_ne_bytes()[..], &3_u16.to_ne_bytes()[..], b"lo\0\0"].concat();
        assert_eq!(body, expected);
    }

    #[test]
    fn only_what_somebody_gave_to_this_link_counts_as_its_address() {
        let with = |flags: u8, scope: u8, index: u32| {
            let mut body = vec![2, 24, flags, scope];
            body.extend(index.to_ne_bytes());
            attribute(&mut body, IFA_LOCAL, &[10, 9, 8, 7]);
            // IFA_CACHEINFO is not for giving.
            attribute(&mut body, 6, &[0; 16]);
            body
        };
        let expected = Address { family: 2, prefix: 24, attributes: vec![(IFA_LOCAL, vec![10, 9, 8, 7])] };
        assert_eq!(address(&with(IFA_F_PERMANENT, 0, 3), 3), Some(expected));
        assert_eq!(address(&with(0, 0, 3), 3), None, "of a lease");
        assert_eq!(address(&with(IFA_F_PERMANENT, 253, 3), 3), None, "of the link itself");
        assert_eq!(address(&with(IFA_F_PERMANENT, 0, 4), 3), None, "of another one");
        assert_eq!(address(&[], 3), None);
    }

    #[test]
    fn a_message_that_is_cut_off_is_none() {
        assert!(split(&[]).is_none());
        assert!(split(&[20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).is_none());
    }
}
