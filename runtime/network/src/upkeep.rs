//! Keeping what all pods share as it should be, and removing it.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use ipnet::Ipv4Net;

use crate::drift::{Drift, Reconciled};
use crate::link::{self, Link};
use crate::names::sandbox_of_alias;
use crate::network::{Phase, route_error};
use crate::nft::{self, Extent};
use crate::owner::Label;
use crate::setting;
use crate::{Network, NetworkError};

impl Network {
    /// Makes or repairs bridge, settings, ruleset and the host's end of the pods' links.
    ///
    /// Gives what was put right; making things for the first time is not a repair.
    ///
    /// # Errors
    /// [`NetworkError`] naming the step that failed. What was done before stays.
    pub fn ensure(&self) -> Result<Vec<Drift>, NetworkError> {
        let _upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        self.ensure_locked()
    }

    /// What is not as it should be now; nothing is changed.
    ///
    /// # Errors
    /// [`NetworkError`] when the kernel could not be asked.
    pub fn observe(&self) -> Result<Vec<Drift>, NetworkError> {
        let Some(subnet) = self.subnet() else {
            return Ok(Vec::new());
        };
        let mut drifts = Vec::new();
        let (links, addresses) = {
            let mut route = self.route();
            let links = link::links(&mut route).map_err(route_error)?;
            (links, link::addresses(&mut route).map_err(route_error)?)
        };
        let bridge = links.iter().find(|link| link.name == self.config.bridge);
        if let Some(what) = self.bridge_fault(bridge, &addresses, subnet) {
            drifts.push(Drift::Bridge { what });
        }
        if bridge.is_some() {
            for (name, value) in self.settings() {
                if setting::read(&name)?.is_some_and(|found| found != value) {
                    let path = setting::path(&name).display().to_string();
                    drifts.push(Drift::Setting { path });
                }
            }
        }
        drifts.extend(self.ruleset_drift(subnet)?);
        drifts.extend(self.link_drifts(&links, bridge));
        Ok(drifts)
    }

    /// Releases what no sandbox in `live` owns, and repairs the others: for a start after any end.
    ///
    /// A sandbox whose `attach` is at work counts as living.
    ///
    /// # Errors
    /// [`NetworkError`] naming the step that failed; a failed release keeps its record.
    pub fn reconcile(&self, live: &BTreeSet<String>) -> Result<Reconciled, NetworkError> {
        let mut reconciled = Reconciled::default();
        let mut failures = Vec::new();
        let dead = self.dead(live);
        failures.extend(self.release(&dead));
        let state = self.state();
        let released = dead.into_iter().filter(|id| !state.attachments.contains_key(id));
        reconciled.released = released.collect();
        drop(state);
        reconciled.repaired = self.ensure()?;
        let links = link::links(&mut self.route()).map_err(route_error)?;
        let mut leftovers = Vec::new();
        for drift in self.link_drifts(&links, None) {
            match drift {
                Drift::Leftover { link } => leftovers.push(link),
                Drift::LinkMissing { sandbox_id, .. } => reconciled.detached.push(sandbox_id),
                _ => {}
            }
        }
        failures.extend(self.remove_links(leftovers.iter().map(String::as_str)).err());
        let removed = leftovers.into_iter().map(|link| Drift::Leftover { link });
        reconciled.repaired.extend(removed);
        if failures.is_empty() {
            return Ok(reconciled);
        }
        Err(NetworkError::Teardown { what: "what no sandbox owns".to_owned(), failures })
    }

    /// Releases every attachment, removes bridge, table and records, and turns `ip_forward` off
    /// again when it was off before and no other agent needs it.
    ///
    /// # Errors
    /// [`NetworkError::Teardown`] with every failure; what could be removed is.
    pub fn close_and_remove(&self) -> Result<(), NetworkError> {
        let _upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failures = Vec::new();
        let ids: Vec<String> = self.state().attachments.keys().cloned().collect();
        failures.extend(self.release(&ids));
        let links = link::links(&mut self.route());
        match links {
            // They go by the bridge that they name.
            Ok(_) if matches!(self.own_bridge(), Err(NetworkError::ForeignLink { .. })) => {}
            // Those that are not ours are passed over.
            Ok(links) => {
                let names = links.iter().map(|link| link.name.as_str());
                failures.extend(self.remove_links(names).err());
            }
            Err(refusal) => failures.push(route_error(refusal)),
        }
        failures.extend(self.remove_bridge(&self.config.bridge).err());
        failures.extend(self.remove_table(&self.config.nft_table).err());
        failures.extend(self.restore_forwarding().err());
        if failures.is_empty() {
            let mut state = self.state();
            failures.extend(self.records.remove_network().err());
            state.record = None;
            state.addresses = None;
            state.ready = false;
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(NetworkError::Teardown { what: format!("bridge {} and all behind it", self.config.bridge), failures })
    }

    /// Makes everything unless that was done since `open`.
    pub(crate) fn make_ready(&self) -> Result<(), NetworkError> {
        if self.state().ready {
            return Ok(());
        }
        let _upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state().ready {
            return Ok(());
        }
        self.ensure_locked().map(drop)
    }

    fn ensure_locked(&self) -> Result<Vec<Drift>, NetworkError> {
        let (subnet, drift) = self.ensure_bridge()?;
        let mut repaired: Vec<Drift> = drift.into_iter().collect();
        // The guard stands before `route_localnet` is turned on, which it is there for.
        repaired.extend(self.ensure_ruleset(subnet)?);
        let first = !self.state().ready;
        for (name, value) in self.settings() {
            match setting::read(&name)? {
                Some(found) if found != value => {}
                _ => continue,
            }
            if name == setting::IP_FORWARD {
                self.remember_forwarding()?;
            }
            setting::write(&name, &value)?;
            if !first {
                let path = setting::path(&name).display().to_string();
                repaired.push(Drift::Setting { path });
            }
        }
        let links = link::links(&mut self.route()).map_err(route_error)?;
        let bridge = links.iter().find(|link| link.name == self.config.bridge);
        for drift in self.link_drifts(&links, bridge) {
            if let Drift::LinkChanged { link, .. } = &drift {
                self.repair_link(link)?;
                repaired.push(drift);
            }
        }
        self.state().ready = true;
        Ok(repaired)
    }

    fn ensure_ruleset(&self, subnet: Ipv4Net) -> Result<Option<Drift>, NetworkError> {
        let label = self.own_table()?;
        let mut socket = self.netfilter();
        let (mut elements, first) = {
            let state = self.state();
            (state.elements(), !state.ready)
        };
        // Once for each start: a kernel that cannot keep the signature is not asked again and again.
        let mut unsigned = first && label == Some(Label::Unsigned);
        let what = loop {
            let ruleset = self.ruleset(subnet);
            let what = nft::difference(&mut socket, &ruleset, &elements)
                .map_err(|refusal| self.nftables_error("reading the ruleset", refusal))?;
            let what = match what {
                None if !std::mem::take(&mut unsigned) => return Ok(None),
                what => what,
            };
            let refuse = |refusal| self.nftables_error("writing the ruleset", refusal);
            match nft::rebuild(&mut socket, &ruleset, &elements) {
                Ok(()) => break what,
                Err(refusal) if nft::is_of_lack(&refusal) => {
                    let (extent, lacks) = nft::probe(&mut socket).map_err(refuse)?;
                    let mut state = self.state();
                    if extent >= state.extent {
                        return Err(refuse(refusal));
                    }
                    tracing::debug!(?extent, ?lacks, "the kernel cannot hold the whole ruleset");
                    state.extent = extent;
                    state.lacks = lacks;
                    elements = state.elements();
                }
                Err(refusal) => return Err(refuse(refusal)),
            }
        };
        let had_pods = !self.state().attachments.is_empty();
        Ok(what.filter(|_| !first || had_pods).map(|what| Drift::Ruleset { what }))
    }

    fn ruleset_drift(&self, subnet: Ipv4Net) -> Result<Option<Drift>, NetworkError> {
        let mut socket = self.netfilter();
        let elements = self.state().elements();
        let what = nft::difference(&mut socket, &self.ruleset(subnet), &elements)
            .map_err(|refusal| self.nftables_error("reading the ruleset", refusal))?;
        Ok(what.map(|what| Drift::Ruleset { what }))
    }

    /// The settings that pods need, and their values.
    fn settings(&self) -> [(String, String); 3] {
        let bridge = &self.config.bridge;
        // Connections from 127.0.0.1 to published ports leave through the bridge. Where none can
        // be published, nor a guard be set up, it stays closed.
        let route_localnet = if self.state().extent == Extent::Full { "1" } else { "0" };
        [
            (setting::IP_FORWARD.to_owned(), "1".to_owned()),
            (format!("ipv4/conf/{bridge}/route_localnet"), route_localnet.to_owned()),
            // Pods have IPv4 alone: none of them is to be heard as an IPv6 router by the host.
            (format!("ipv6/conf/{bridge}/disable_ipv6"), "1".to_owned()),
        ]
    }

    /// What is wrong with the links of pods; without a bridge their place on it is not judged.
    fn link_drifts(&self, links: &[Link], bridge: Option<&Link>) -> Vec<Drift> {
        let state = self.state();
        let mut drifts = Vec::new();
        for (id, held) in &state.attachments {
            if held.phase != Phase::Attached {
                continue;
            }
            let (sandbox_id, name) = (id.clone(), held.attachment.host_link.clone());
            let found = links
                .iter()
                .find(|link| link.name == name && sandbox_of_alias(&self.config.bridge, &link.alias) == Some(id));
            let Some(found) = found else {
                drifts.push(Drift::LinkMissing { sandbox_id, link: name });
                continue;
            };
            let Some(bridge) = bridge else { continue };
            let what = if found.bridge != bridge.index {
                "it is not a port of the bridge"
            } else if !found.up {
                "it is down"
            } else if !found.hairpin {
                "hairpin mode is off"
            } else {
                continue;
            };
            drifts.push(Drift::LinkChanged { sandbox_id, link: name, what: what.to_owned() });
        }
        let unowned = links.iter().filter(|link| {
            sandbox_of_alias(&self.config.bridge, &link.alias).is_some_and(|id| !state.attachments.contains_key(id))
        });
        drifts.extend(unowned.map(|link| Drift::Leftover { link: link.name.clone() }));
        drifts
    }

    fn dead(&self, live: &BTreeSet<String>) -> Vec<String> {
        self.state()
            .attachments
            .iter()
            .filter(|(id, held)| !live.contains(*id) && held.phase != Phase::Attaching)
            .map(|(id, _)| id.clone())
            .collect()
    }
}
