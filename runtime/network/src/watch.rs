//! Being told by the kernel when somebody changes what is ours, instead of looking again and again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::link::{LinkEvent, read_event};
use crate::netlink::Socket;
use crate::network::{NETLINK_NETFILTER, NETLINK_ROUTE, Phase};
use crate::nft;
use crate::{Network, NetworkError};

/// `RTNLGRP_LINK` and `RTNLGRP_IPV4_IFADDR`.
const ROUTE_GROUPS: [u32; 2] = [1, 5];
/// `NFNLGRP_NFTABLES`.
const NETFILTER_GROUPS: [u32; 1] = [7];

/// Two descriptors that become readable when links, addresses or rulesets change.
#[derive(Debug)]
pub struct Watch {
    route: Socket,
    netfilter: Socket,
    /// The number of the socket that our own changes of rules come from.
    ours: u32,
}

impl Watch {
    /// What to wait on, for reading; then ask [`Network::drifted`].
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.route.as_fd(), self.netfilter.as_fd()]
    }
}

impl Network {
    /// Starts to listen, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`NetworkError::Route`] when the kernel does not let us.
    pub fn watch(&self) -> Result<Watch, NetworkError> {
        let open = |family, groups: &[u32]| {
            Socket::listen(family, groups).map_err(|source| NetworkError::Route {
                action: "listening for changes of the network".to_owned(),
                source,
            })
        };
        Ok(Watch {
            route: open(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            netfilter: open(NETLINK_NETFILTER, &NETFILTER_GROUPS)?,
            ours: self.netfilter().port(),
        })
    }

    /// Reads what was told since the last call, without waiting; whether an [`Network::observe`]
    /// is worth its while. What this agent itself did does not count.
    pub fn drifted(&self, watch: &mut Watch) -> bool {
        let ours = watch.ours;
        let table = self.config.nft_table.as_str();
        let of_rules = watch.netfilter.drain(|message| message.port != ours && nft::is_of_table(message, table));
        let of_links = watch.route.drain(|message| read_event(message).is_some_and(|event| self.concerns(&event)));
        // Losing messages is a change as well.
        let lost = |answer: io::Result<bool>| answer.unwrap_or(true);
        // Both are read to their ends, so that the descriptors are quiet again.
        lost(of_rules) | lost(of_links)
    }

    fn concerns(&self, event: &LinkEvent) -> bool {
        let state = self.state();
        match event {
            LinkEvent::Changed { index, up } => *index == state.bridge_index && !up,
            LinkEvent::AddressRemoved { index } => *index == state.bridge_index,
            LinkEvent::Removed { name } if *name == self.config.bridge => state.ready,
            LinkEvent::Removed { name } => state
                .attachments
                .values()
                .any(|held| held.phase == Phase::Attached && held.attachment.host_link == *name),
        }
    }
}
