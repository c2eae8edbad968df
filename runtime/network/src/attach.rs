//! Connecting a sandbox and releasing it again.
//!
//! The record is written first and removed last; between them, whatever a kill interrupts, the
//! record names all that may exist in the kernel.

use std::os::fd::BorrowedFd;

use ipnet::Ipv4Net;
use nix::libc;

use crate::addresses::gateway;
use crate::link::{self, NewPair, Which};
use crate::names::{host_link, is_sandbox_id, link_alias, mac_of, sandbox_of_alias};
use crate::netlink::Batch;
use crate::network::{Held, Phase, elements_of, route_error};
use crate::nft::{self, Extent};
use crate::pod;
use crate::{Attachment, Network, NetworkError, PortMapping};

impl Network {
    /// Connects a sandbox's network namespace and publishes its ports.
    ///
    /// A second call for the same sandbox keeps its address, makes again what is missing, and
    /// publishes `ports` in the place of the earlier ones.
    ///
    /// # Errors
    /// [`NetworkError`] naming the step that failed; then nothing is left over.
    pub fn attach(
        &self,
        sandbox_id: &str,
        netns: BorrowedFd<'_>,
        ports: &[PortMapping],
    ) -> Result<Attachment, NetworkError> {
        if !is_sandbox_id(sandbox_id) {
            return Err(NetworkError::SandboxId { id: sandbox_id.to_owned() });
        }
        let ports = checked_ports(ports)?;
        self.refuse_own_netns(sandbox_id, netns)?;
        self.make_ready()?;
        if let Some(port) = ports.first() {
            self.refuse_unpublishable(port)?;
        }
        let (attachment, earlier) = self.reserve(sandbox_id, ports)?;
        let connected = self
            .records
            .set_attachment(&attachment)
            .and_then(|()| self.connect_surely(&attachment, netns, earlier.is_some()))
            .and_then(|()| self.publish(&attachment, earlier.as_ref()));
        match connected {
            Ok(()) => {
                if let Some(held) = self.state().attachments.get_mut(sandbox_id) {
                    held.phase = Phase::Attached;
                }
                Ok(attachment)
            }
            Err(error) => {
                if let Some(earlier) = earlier {
                    self.restore(earlier);
                    return Err(error);
                }
                // The first failure is what the caller has to know; a failure to clean up keeps
                // the record, so that `detach` and `reconcile` come back to it.
                if let Err(cleanup) = self.detach(sandbox_id) {
                    tracing::debug!(sandbox_id, error = %cleanup, "failed attachment not released");
                }
                Err(error)
            }
        }
    }

    /// Releases everything that a sandbox has; absent is success.
    ///
    /// Works when the namespace, the link or the table is gone.
    ///
    /// # Errors
    /// [`NetworkError::Teardown`] with every failure; what could be released is, and a further
    /// call tries the rest again.
    pub fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let failures = self.release(std::slice::from_ref(&sandbox_id.to_owned()));
        if failures.is_empty() {
            return Ok(());
        }
        Err(NetworkError::Teardown { what: format!("the network of sandbox {sandbox_id}"), failures })
    }

    /// Releases several sandboxes at the price of one; gives every failure.
    pub(crate) fn release(&self, sandbox_ids: &[String]) -> Vec<NetworkError> {
        let attachments: Vec<Attachment> = {
            let mut state = self.state();
            let release = |id| {
                let held = state.attachments.get_mut(id)?;
                held.phase = Phase::Releasing;
                Some(held.attachment.clone())
            };
            sandbox_ids.iter().filter_map(release).collect()
        };
        if attachments.is_empty() {
            return Vec::new();
        }
        let mut failures = Vec::new();
        failures.extend(self.withdraw(&attachments).err());
        let links = attachments.iter().map(|at| at.host_link.as_str());
        failures.extend(self.remove_links(links).err());
        if failures.is_empty() {
            failures.extend(self.forget(&attachments).err());
        }
        failures
    }

    /// A sandbox of the host's network has nothing to attach; taking it for a pod's would give the
    /// host a pod's interface.
    fn refuse_own_netns(&self, id: &str, netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let refuse = |source| NetworkError::EnterNetns { id: id.to_owned(), source };
        let found = rustix::fs::fstat(netns).map_err(|errno| refuse(errno.into()))?;
        if (found.st_dev, found.st_ino) == self.own_netns {
            let why = "it is the host's own network namespace";
            return Err(refuse(std::io::Error::other(why)));
        }
        Ok(())
    }

    /// A pod whose ports would not answer must not look as if they did.
    fn refuse_unpublishable(&self, port: &PortMapping) -> Result<(), NetworkError> {
        let state = self.state();
        if state.extent == Extent::Full {
            return Ok(());
        }
        let missing: Vec<&str> = state.lacks.iter().map(|lack| lack.facility).collect();
        Err(NetworkError::KernelLacks { port: port.to_string(), missing: missing.join(", ") })
    }

    /// Gives the sandbox an address and its ports, in memory; also what it had before.
    fn reserve(
        &self,
        sandbox_id: &str,
        ports: Vec<PortMapping>,
    ) -> Result<(Attachment, Option<Attachment>), NetworkError> {
        let mut state = self.state();
        for (owner, held) in &state.attachments {
            if owner == sandbox_id {
                continue;
            }
            for port in &ports {
                let conflicts = |theirs: &&PortMapping| theirs.conflicts_with(port);
                if let Some(theirs) = held.attachment.ports.iter().find(conflicts) {
                    return Err(NetworkError::PortTaken {
                        port: port.to_string(),
                        owner: owner.clone(),
                        theirs: theirs.to_string(),
                    });
                }
            }
        }
        let earlier = state.attachments.get(sandbox_id).map(|held| held.attachment.clone());
        let addresses = state.addresses.as_mut().ok_or_else(not_ready)?;
        let subnet = addresses.subnet();
        let address = match &earlier {
            Some(earlier) if !subnet.contains(&earlier.address) => {
                return Err(NetworkError::AddressOutside {
                    id: sandbox_id.to_owned(),
                    address: earlier.address,
                    subnet,
                });
            }
            Some(earlier) => earlier.address,
            None => addresses.take().ok_or(NetworkError::NoFreeAddress { subnet, count: addresses.capacity() })?,
        };
        let attachment = Attachment {
            sandbox_id: sandbox_id.to_owned(),
            address,
            prefix: subnet.prefix_len(),
            gateway: gateway(subnet),
            interface: pod::INTERFACE.to_owned(),
            host_link: host_link(&self.config.bridge, sandbox_id),
            ports,
        };
        let held = Held { attachment: attachment.clone(), phase: Phase::Attaching };
        state.attachments.insert(sandbox_id.to_owned(), held);
        Ok((attachment, earlier))
    }

    /// After a failed second `attach` the first one's work counts again.
    fn restore(&self, earlier: Attachment) {
        if let Err(error) = self.records.set_attachment(&earlier) {
            tracing::debug!(sandbox_id = earlier.sandbox_id, %error, "record not restored");
        }
        let phase = Phase::Attached;
        let id = earlier.sandbox_id.clone();
        let held = Held { attachment: earlier, phase };
        self.state().attachments.insert(id, held);
    }

    /// Connects; when the bridge was removed since it was last looked at, after making it again.
    fn connect_surely(&self, attachment: &Attachment, netns: BorrowedFd<'_>, again: bool) -> Result<(), NetworkError> {
        let Err(error) = self.connect(attachment, netns, again) else {
            return Ok(());
        };
        let bridge = link::link(&mut self.route(), &self.config.bridge).map_err(route_error)?;
        if bridge.is_some_and(|bridge| bridge.index == self.state().bridge_index) {
            return Err(error);
        }
        self.ensure()?;
        self.connect(attachment, netns, true)
    }

    /// Makes the pair and configures both ends.
    fn connect(&self, attachment: &Attachment, netns: BorrowedFd<'_>, again: bool) -> Result<(), NetworkError> {
        let id = attachment.sandbox_id.as_str();
        let mut make = true;
        let found = match again {
            true => link::link(&mut self.route(), &attachment.host_link).map_err(route_error)?,
            false => None,
        };
        if let Some(found) = found {
            let ours = sandbox_of_alias(&self.config.bridge, &found.alias) == Some(id);
            make = !ours || pod::interface(id, netns)?.is_none();
            if make {
                self.remove_links([attachment.host_link.as_str()])?;
            }
        }
        let address = Ipv4Net::new_assert(attachment.address, attachment.prefix);
        let interface = pod::Interface { address, gateway: attachment.gateway };
        pod::set_up(id, netns, interface, || match make {
            true => self.make_pair(attachment, netns),
            false => self.repair_link(&attachment.host_link),
        })
    }

    /// Runs on a thread inside the pod's namespace, where only the host's sockets are the host's.
    fn make_pair(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
        for attempt in 0.. {
            let (bridge, mtu) = {
                let state = self.state();
                (state.bridge_index, state.mtu)
            };
            let name = attachment.host_link.as_str();
            let mut batch = Batch::new();
            let pair = NewPair {
                host_link: name,
                bridge,
                netns,
                pod_interface: &attachment.interface,
                pod_mac: mac_of(attachment.address),
                mtu,
            };
            link::push_new_pair(&mut batch, &pair);
            let alias = link_alias(&self.config.bridge, &attachment.sandbox_id);
            link::push_alias(&mut batch, name, &alias);
            link::push_no_ipv6_address(&mut batch, name);
            link::push_hairpin(&mut batch, name);
            link::push_up(&mut batch, Which::Name(name));
            let answer = link::run_with_or_without_ipv6(&mut self.route(), &batch);
            match answer {
                Ok(()) => return Ok(()),
                // A link of this name that is ours was left by somebody who lost our records.
                Err(refusal) if attempt == 0 && refusal.message == Some(0) && refusal.is(libc::EEXIST) => {
                    let found = link::link(&mut self.route(), name).map_err(route_error)?;
                    let Some(found) = found else {
                        return Err(route_error(refusal));
                    };
                    if sandbox_of_alias(&self.config.bridge, &found.alias).is_none() {
                        return Err(NetworkError::ForeignLink {
                            name: name.to_owned(),
                            why: format!("a {} of somebody else has this name", found.kind),
                        });
                    }
                    self.remove_links([name])?;
                }
                Err(refusal) => {
                    // Without its label nobody would know the link as ours.
                    if refusal.message.is_some_and(|message| message > 0) {
                        let mut batch = Batch::new();
                        link::push_delete(&mut batch, Which::Name(name));
                        self.route().run(&batch).map_err(route_error)?;
                    }
                    return Err(route_error(refusal));
                }
            }
        }
        Ok(())
    }

    /// Puts a pod's link right on the host: a port of the bridge, hairpin on, up.
    pub(crate) fn repair_link(&self, name: &str) -> Result<(), NetworkError> {
        let bridge = self.state().bridge_index;
        let mut batch = Batch::new();
        link::push_port(&mut batch, name, bridge);
        link::push_hairpin(&mut batch, name);
        link::push_up(&mut batch, Which::Name(name));
        self.route().run(&batch).map_err(route_error)
    }

    /// Publishes an attachment's ports in the place of those it had before.
    fn publish(&self, attachment: &Attachment, earlier: Option<&Attachment>) -> Result<(), NetworkError> {
        let wanted = elements_of(attachment);
        let stale: Vec<_> = earlier
            .map(elements_of)
            .unwrap_or_default()
            .into_iter()
            .filter(|element| !wanted.contains(element))
            .collect();
        if wanted.is_empty() && stale.is_empty() {
            return Ok(());
        }
        let table = &self.config.nft_table;
        let added = {
            let mut socket = self.netfilter();
            nft::delete_elements(&mut socket, table, &stale)
                .and_then(|()| nft::add_elements(&mut socket, table, &wanted))
        };
        if let Err(refusal) = added {
            if !refusal.is(libc::ENOENT) {
                return Err(self.nftables_error("publishing host ports", refusal));
            }
            // The table was flushed: making it again publishes these ports too.
            self.ensure()?;
        }
        self.forget_flows(attachment);
        Ok(())
    }

    fn withdraw(&self, attachments: &[Attachment]) -> Result<(), NetworkError> {
        let elements: Vec<_> = attachments.iter().flat_map(elements_of).collect();
        if elements.is_empty() {
            return Ok(());
        }
        let answer = nft::delete_elements(&mut self.netfilter(), &self.config.nft_table, &elements);
        match answer {
            Err(refusal) if !nft::is_of_lack(&refusal) => Err(self.nftables_error("withdrawing host ports", refusal)),
            _ => {
                attachments.iter().for_each(|at| self.forget_flows(at));
                Ok(())
            }
        }
    }

    /// A remembered flow only delays a client that does not change its port: no reason to fail.
    fn forget_flows(&self, attachment: &Attachment) {
        if let Err(refusal) = nft::forget_flows(&mut self.netfilter(), &attachment.ports) {
            let (action, error) = (refusal.action, refusal.source);
            tracing::debug!(action, %error, "stale flows were not forgotten");
        }
    }

    /// Gives the addresses back and removes the records, in this order.
    fn forget(&self, attachments: &[Attachment]) -> Result<(), NetworkError> {
        let mut state = self.state();
        if let Some(addresses) = state.addresses.as_mut() {
            let mut given_back: Vec<_> = addresses.given_back().collect();
            given_back.extend(attachments.iter().map(|at| at.address));
            self.records.set_given_back(given_back)?;
        }
        for attachment in attachments {
            self.records.remove_attachment(&attachment.sandbox_id)?;
            if let Some(addresses) = state.addresses.as_mut() {
                addresses.give_back(attachment.address);
            }
            state.attachments.remove(&attachment.sandbox_id);
        }
        Ok(())
    }
}

fn not_ready() -> NetworkError {
    NetworkError::Config { field: "podCIDR", value: String::new(), why: "the network was removed meanwhile".to_owned() }
}

/// The ports in one form, each of them possible, none of them twice.
fn checked_ports(ports: &[PortMapping]) -> Result<Vec<PortMapping>, NetworkError> {
    let mut checked: Vec<PortMapping> = Vec::with_capacity(ports.len());
    for port in ports.iter().map(|port| port.normalized()) {
        let refuse = |why| NetworkError::PortInvalid { port: port.to_string(), why };
        if port.host_port == 0 || port.container_port == 0 {
            return Err(refuse("ports are 1 to 65535"));
        }
        if checked.iter().any(|other| other.conflicts_with(&port)) {
            return Err(refuse("this sandbox asks for it twice"));
        }
        checked.push(port);
    }
    Ok(checked)
}
