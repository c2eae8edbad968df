//! The pod's side of an attachment, from inside its network namespace.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns};

use crate::NetworkError;
use crate::link::{self, Link, Which};
use crate::netlink::{Batch, Refusal, Socket};
use crate::setting;

/// The interface of every pod.
pub(crate) const INTERFACE: &str = "eth0";
const NETLINK_ROUTE: isize = 0;
const LOOPBACK: Which<'static> = Which::Index(1);

/// IPv6 as pods get it: no router is believed (a neighbour could pose as one), no address is made
/// up. `default` is what an interface made later starts with.
const IPV6: [(&str, &str); 5] = [
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/all/autoconf", "0"),
];

/// What the pod's interface gets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interface {
    pub(crate) address: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
}

/// Runs `work` inside a network namespace, on a thread that ends with it: the calling thread
/// never changes its namespace, so nothing can go wrong when coming back.
fn inside<T: Send>(
    sandbox_id: &str,
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let refuse = |source| NetworkError::EnterNetns { id: sandbox_id.to_owned(), source };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("pod-netns".to_owned())
            .stack_size(256 << 10)
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| refuse(errno.into()))?;
                work()
            })
            .map_err(refuse)?;
        thread.join().unwrap_or_else(|_| Err(refuse(io::Error::other("the thread panicked"))))
    })
}

/// Sets the namespace up, lets `connect` put the pair there, and configures the pod's end.
pub(crate) fn set_up(
    sandbox_id: &str,
    netns: BorrowedFd<'_>,
    interface: Interface,
    connect: impl FnOnce() -> Result<(), NetworkError> + Send,
) -> Result<(), NetworkError> {
    inside(sandbox_id, netns, || {
        for (name, value) in IPV6 {
            setting::write_if_present(name, value)
                .map_err(|source| NetworkError::Sysctl { path: setting::path(name), source })?;
        }
        connect()?;
        let mut socket = open()?;
        let link = link::link(&mut socket, INTERFACE).map_err(refuse)?.ok_or_else(|| NetworkError::Route {
            action: format!("finding {INTERFACE} in the pod"),
            source: io::ErrorKind::NotFound.into(),
        })?;
        let mut batch = Batch::new();
        link::push_up(&mut batch, LOOPBACK);
        link::push_address(&mut batch, link.index, interface.address);
        link::push_up(&mut batch, Which::Index(link.index));
        link::push_default_route(&mut batch, link.index, interface.gateway);
        socket.run(&batch).map_err(refuse)
    })
}

/// Sets up the loopback link of a sandbox's new network namespace: plugins of a cluster leave that to the runtime.
///
/// # Errors
/// [`NetworkError::EnterNetns`], [`NetworkError::Route`].
pub fn set_loopback_up(sandbox_id: &str, netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
    inside(sandbox_id, netns, || {
        let mut batch = Batch::new();
        link::push_up(&mut batch, LOOPBACK);
        open()?.run(&batch).map_err(refuse)
    })
}

fn open() -> Result<Socket, NetworkError> {
    let action = "opening a netlink socket in the pod";
    Socket::open(NETLINK_ROUTE).map_err(|source| NetworkError::Route { action: action.to_owned(), source })
}

fn refuse(refusal: Refusal) -> NetworkError {
    NetworkError::Route { action: format!("{} in the pod", refusal.action), source: refusal.source }
}

/// The pod's interface as it is now, if it has one.
pub(crate) fn interface(sandbox_id: &str, netns: BorrowedFd<'_>) -> Result<Option<Link>, NetworkError> {
    inside(sandbox_id, netns, || link::link(&mut open()?, INTERFACE).map_err(refuse))
}
