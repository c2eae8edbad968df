//! The bridge and the subnet behind it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::libc;

use crate::addresses::{Addresses, gateway};
use crate::config::{DEFAULT_POOL, FALLBACK_POOLS};
use crate::drift::Drift;
use crate::link::{self, Link, Which};
use crate::names::{mac_of, sandbox_of_alias};
use crate::netlink::Batch;
use crate::network::route_error;
use crate::record::NetworkRecord;
use crate::subnet::{Taken, first_free, taken_by};
use crate::{Network, NetworkError};

/// The MTU when there is no default route to learn it from.
const ETHERNET_MTU: u32 = 1500;

impl Network {
    /// What is wrong with the bridge; `None` when it is as it should be.
    pub(crate) fn bridge_fault(
        &self,
        bridge: Option<&Link>,
        addresses: &[link::Address],
        subnet: Ipv4Net,
    ) -> Option<String> {
        let Some(bridge) = bridge else {
            return Some(format!("{} is absent", self.config.bridge));
        };
        let address = bridge_address(subnet);
        let has_address = addresses.iter().any(|found| found.link == bridge.index && found.net == address);
        if !has_address {
            Some(format!("address {address} is absent"))
        } else if !bridge.up {
            Some("it is down".to_owned())
        } else if bridge.mac != mac_of(address.addr()) {
            Some("its MAC address was changed".to_owned())
        } else {
            None
        }
    }

    /// Makes the bridge as it should be; gives its subnet and what was wrong.
    pub(crate) fn ensure_bridge(&self) -> Result<(Ipv4Net, Option<Drift>), NetworkError> {
        // Before the record names what is configured now: what is unsigned is judged by what it named until now.
        self.check()?;
        self.settle_configuration()?;
        let name = self.config.bridge.as_str();
        let known = self.state().record.clone();
        let found = self.own_bridge()?;
        let alias = self.owner.bridge_alias();
        if found.as_ref().is_some_and(|bridge| bridge.alias != alias) {
            let mut batch = Batch::new();
            link::push_alias(&mut batch, name, &alias);
            self.route().run(&batch).map_err(route_error)?;
        }
        let addresses = link::addresses(&mut self.route()).map_err(route_error)?;
        if let (Some(record), Some(bridge)) = (&known, &found) {
            let fault = self.bridge_fault(Some(bridge), &addresses, record.subnet);
            let mut state = self.state();
            state.bridge_index = bridge.index;
            state.mtu = bridge.mtu;
            if fault.is_none() {
                return Ok((record.subnet, None));
            }
        }
        // From here on subnets are compared with those of others: one agent after the other.
        let lock = self.lock_machine()?;
        let earlier = known.as_ref().map(|record| record.subnet).or_else(|| subnet_of(found.as_ref()?, &addresses));
        let subnet = self.choose_subnet(earlier, found.as_ref())?;
        let fault = self.bridge_fault(found.as_ref(), &addresses, subnet);
        self.remember_subnet(subnet)?;
        let mtu = self.mtu()?;
        let address = bridge_address(subnet);
        let mac = mac_of(address.addr());
        if found.is_none() {
            let mut batch = Batch::new();
            link::push_new_bridge(&mut batch, name, mac, mtu);
            link::push_alias(&mut batch, name, &alias);
            link::push_no_ipv6_address(&mut batch, name);
            let made = link::run_with_or_without_ipv6(&mut self.route(), &batch);
            made.map_err(route_error)?;
        }
        let bridge = self.own_bridge()?.ok_or_else(|| NetworkError::Route {
            action: format!("finding bridge {name} after it was made"),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let mut batch = Batch::new();
        link::push_mac_and_mtu(&mut batch, name, mac, mtu);
        link::push_address(&mut batch, bridge.index, address);
        link::push_up(&mut batch, Which::Index(bridge.index));
        self.route().run(&batch).map_err(route_error)?;
        let mut state = self.state();
        state.bridge_index = bridge.index;
        state.mtu = mtu;
        drop(lock);
        let drift = known.and(fault).map(|what| Drift::Bridge { what });
        Ok((subnet, drift))
    }

    /// The subnet: the configured one, else the one in use until now, else a free one.
    fn choose_subnet(&self, earlier: Option<Ipv4Net>, bridge: Option<&Link>) -> Result<Ipv4Net, NetworkError> {
        let taken = self.taken_subnets(bridge)?;
        let refuse =
            |subnet, taken: &Taken| NetworkError::SubnetTaken { subnet, taken: taken.net, owner: taken.owner.clone() };
        let wanted = self.config.pod_cidr.or(earlier);
        match wanted.map(|subnet| (subnet, taken_by(subnet, &taken))) {
            Some((subnet, None)) => Ok(subnet),
            Some((subnet, Some(taken))) if self.config.pod_cidr.is_some() || self.has_links()? => {
                Err(refuse(subnet, taken))
            }
            _ => self.free_subnet(&taken),
        }
    }

    fn free_subnet(&self, taken: &[Taken]) -> Result<Ipv4Net, NetworkError> {
        let pool = self.config.pool;
        let further = FALLBACK_POOLS.iter().filter(|_| pool == DEFAULT_POOL);
        std::iter::once(&pool)
            .chain(further)
            .find_map(|pool| first_free(*pool, taken))
            .ok_or(NetworkError::NoFreeSubnet { pool })
    }

    /// Whose address or route overlaps the pods' subnet now, in words.
    pub(crate) fn overlap(&self) -> Result<Option<String>, NetworkError> {
        let Some(subnet) = self.subnet() else {
            return Ok(None);
        };
        let bridge = link::link(&mut self.route(), &self.config.bridge).map_err(route_error)?;
        let taken = self.taken_subnets(bridge.as_ref())?;
        let words = |taken: &Taken| {
            let Taken { net, owner } = taken;
            format!("{net} of {owner} overlaps the pods' subnet {subnet}")
        };
        Ok(taken_by(subnet, &taken).map(words))
    }

    /// Addresses and routes of everybody else; the default route leaves room for all.
    fn taken_subnets(&self, bridge: Option<&Link>) -> Result<Vec<Taken>, NetworkError> {
        let mut route = self.route();
        let links = link::links(&mut route).map_err(route_error)?;
        let addresses = link::addresses(&mut route).map_err(route_error)?;
        let routes = link::routes(&mut route).map_err(route_error)?;
        let ours = bridge.map(|bridge| bridge.index);
        let owner = |index: u32| {
            let link = links.iter().find(|link| link.index == index);
            link.map_or_else(|| "a route".to_owned(), |link| link.name.clone())
        };
        let of_addresses = addresses.into_iter().map(|address| (address.link, address.net.trunc()));
        let of_routes = routes
            .into_iter()
            .filter(|route| route.destination.prefix_len() > 0)
            .map(|route| (route.link, route.destination));
        Ok(of_addresses
            .chain(of_routes)
            .filter(|(link, _)| Some(*link) != ours)
            .map(|(link, net)| Taken { net, owner: owner(link) })
            .collect())
    }

    /// Writes the subnet down and starts to hand out its addresses.
    fn remember_subnet(&self, subnet: Ipv4Net) -> Result<(), NetworkError> {
        let mut state = self.state();
        let record = NetworkRecord {
            bridge: self.config.bridge.clone(),
            nft_table: self.config.nft_table.clone(),
            subnet,
            turned_ip_forward_on: state.record.as_ref().is_some_and(|record| record.turned_ip_forward_on),
        };
        if state.record.as_ref() != Some(&record) {
            self.records.set_network(&record)?;
            state.record = Some(record);
        }
        if state.addresses.as_ref().map(Addresses::subnet) != Some(subnet) {
            let taken: Vec<Ipv4Addr> = state.attachments.values().map(|held| held.attachment.address).collect();
            let given_back = self.records.given_back()?;
            state.addresses = Some(Addresses::new(subnet, taken, given_back));
        }
        Ok(())
    }

    /// What is configured otherwise than recorded: field, value, and what was before.
    fn reconfigured(&self, record: &NetworkRecord) -> Option<(&'static str, String, String)> {
        if record.bridge != self.config.bridge {
            return Some(("bridge", self.config.bridge.clone(), record.bridge.clone()));
        }
        if record.nft_table != self.config.nft_table {
            return Some(("nftTable", self.config.nft_table.clone(), record.nft_table.clone()));
        }
        let cidr = self.config.pod_cidr.filter(|cidr| *cidr != record.subnet);
        cidr.map(|cidr| ("podCIDR", cidr.to_string(), record.subnet.to_string()))
    }

    /// Pods that are on what was configured before must be drained first.
    pub(crate) fn refuse_other_configuration(&self) -> Result<(), NetworkError> {
        let Some(record) = self.state().record.clone() else {
            return Ok(());
        };
        let Some((field, value, earlier)) = self.reconfigured(&record) else {
            return Ok(());
        };
        let links = link::links(&mut self.route()).map_err(route_error)?;
        let on_it = |link: &Link| sandbox_of_alias(&record.bridge, &link.alias).is_some();
        if links.iter().any(on_it) {
            return Err(NetworkError::Config {
                field,
                value,
                why: format!("pods run with {earlier}; drain the node first"),
            });
        }
        Ok(())
    }

    /// When names or subnet were configured otherwise, the earlier bridge and table go.
    fn settle_configuration(&self) -> Result<(), NetworkError> {
        let record = self.state().record.clone();
        let Some(record) = record.filter(|record| self.reconfigured(record).is_some()) else {
            return Ok(());
        };
        self.refuse_other_configuration()?;
        self.remove_bridge(&record.bridge)?;
        self.remove_table(&record.nft_table)?;
        let mut state = self.state();
        for id in state.attachments.keys() {
            self.records.remove_attachment(id)?;
        }
        state.attachments.clear();
        state.addresses = None;
        if let Some(record) = state.record.as_mut() {
            record.bridge.clone_from(&self.config.bridge);
            record.nft_table.clone_from(&self.config.nft_table);
            record.subnet = self.config.pod_cidr.unwrap_or(record.subnet);
            self.records.set_network(record)?;
        }
        Ok(())
    }

    /// Removes a bridge that we made; absent is success.
    pub(crate) fn remove_bridge(&self, name: &str) -> Result<(), NetworkError> {
        let mut route = self.route();
        let found = link::link(&mut route, name).map_err(route_error)?;
        let Some(bridge) = found.filter(|link| self.may_remove_bridge(link)) else {
            return Ok(());
        };
        let mut batch = Batch::new();
        link::push_delete(&mut batch, Which::Index(bridge.index));
        match route.run(&batch) {
            Err(refusal) if !refusal.is(libc::ENODEV) => Err(route_error(refusal)),
            _ => Ok(()),
        }
    }

    /// Whether any pod's link of ours exists.
    fn has_links(&self) -> Result<bool, NetworkError> {
        let links = link::links(&mut self.route()).map_err(route_error)?;
        Ok(links.iter().any(|link| sandbox_of_alias(&self.config.bridge, &link.alias).is_some()))
    }

    /// The configured MTU, else that of the interface with the default route.
    fn mtu(&self) -> Result<u32, NetworkError> {
        if let Some(mtu) = self.config.mtu {
            return Ok(mtu);
        }
        let mut route = self.route();
        let routes = link::routes(&mut route).map_err(route_error)?;
        let default = routes.iter().find(|route| route.main_table && route.destination.prefix_len() == 0);
        let Some(default) = default else {
            return Ok(ETHERNET_MTU);
        };
        let links = link::links(&mut route).map_err(route_error)?;
        let out = links.iter().find(|link| link.index == default.link);
        Ok(out.map_or(ETHERNET_MTU, |link| link.mtu))
    }
}

/// The subnet that a bridge of ours serves, by the address that it has.
fn subnet_of(bridge: &Link, addresses: &[link::Address]) -> Option<Ipv4Net> {
    let subnets = addresses.iter().filter(|address| address.link == bridge.index).map(|address| address.net);
    subnets.filter(|net| net.addr() == gateway(net.trunc())).map(|net| net.trunc()).next()
}

/// The bridge's address with the length of its subnet.
fn bridge_address(subnet: Ipv4Net) -> Ipv4Net {
    Ipv4Net::new_assert(gateway(subnet), subnet.prefix_len())
}
