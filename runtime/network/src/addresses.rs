//! Which pod gets which address. Pure: what is taken and what was given back is told to it.
//!
//! The address that was given back longest ago is taken next, and those never used come before
//! all: clients that remember a pod's address do not meet another pod there soon.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The free and taken addresses of a subnet.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    subnet: Ipv4Net,
    /// Free, the next one first.
    free: VecDeque<Ipv4Addr>,
    /// How many of `free`, at its end, were in use before.
    used_before: usize,
    taken: BTreeSet<Ipv4Addr>,
}

/// The bridge's address: the first one of the subnet.
pub(crate) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or_else(|| subnet.addr())
}

/// Most addresses that one agent hands out; a /16 has as many.
const MOST: usize = 65_533;

impl Addresses {
    /// The state after `taken` addresses were found in use and `given_back` ones, oldest first,
    /// were in use before; what is in both is taken, what is outside of the subnet is left out.
    pub(crate) fn new(
        subnet: Ipv4Net,
        taken: impl IntoIterator<Item = Ipv4Addr>,
        given_back: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Self {
        let pods: BTreeSet<Ipv4Addr> = subnet.hosts().skip(1).take(MOST).collect();
        let taken: BTreeSet<Ipv4Addr> = taken.into_iter().filter(|address| pods.contains(address)).collect();
        let mut seen = BTreeSet::new();
        let used: Vec<Ipv4Addr> = given_back
            .into_iter()
            .filter(|address| pods.contains(address) && !taken.contains(address) && seen.insert(*address))
            .collect();
        let mut free: VecDeque<Ipv4Addr> =
            pods.iter().filter(|address| !taken.contains(address) && !seen.contains(address)).copied().collect();
        free.extend(&used);
        Self { subnet, free, used_before: used.len(), taken }
    }

    /// The subnet.
    pub(crate) fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// How many addresses pods can have.
    pub(crate) fn capacity(&self) -> usize {
        self.free.len() + self.taken.len()
    }

    /// Takes the next address; `None` when all are taken.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let address = self.free.pop_front()?;
        self.used_before = self.used_before.min(self.free.len());
        self.taken.insert(address);
        Some(address)
    }

    /// Gives an address back; one that is not taken stays as it is.
    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        if self.taken.remove(&address) {
            self.free.push_back(address);
            self.used_before += 1;
        }
    }

    /// The free addresses that were in use before, oldest first: what to keep on disk.
    pub(crate) fn given_back(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.free.iter().skip(self.free.len() - self.used_before).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn small() -> Ipv4Net {
        "10.85.3.0/29".parse().unwrap()
    }

    #[test]
    fn pods_never_get_the_network_gateway_or_broadcast_address() {
        let mut addresses = Addresses::new(small(), [], []);
        let all: Vec<String> = std::iter::from_fn(|| addresses.take()).map(|address| address.to_string()).collect();
        assert_eq!(all, ["10.85.3.2", "10.85.3.3", "10.85.3.4", "10.85.3.5", "10.85.3.6"]);
        assert_eq!(gateway(small()).to_string(), "10.85.3.1");
        assert_eq!(addresses.capacity(), 5);
    }

    #[test]
    fn an_address_is_reused_last() {
        let mut addresses = Addresses::new(small(), [], []);
        let first = addresses.take().unwrap();
        addresses.give_back(first);
        let mut order: Vec<Ipv4Addr> = std::iter::from_fn(|| addresses.take()).collect();
        assert_eq!(order.pop(), Some(first));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take,
        GiveBack(usize),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Take),
            3 => (0_usize..8).prop_map(Step::GiveBack),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_the_oldest_comes_first(
            steps in proptest::collection::vec(step(), 1..200)
        ) {
            let mut addresses = Addresses::new(small(), [], []);
            let mut held: Vec<Ipv4Addr> = Vec::new();
            // When each address was last in use; those never used are older than any.
            let mut last_used: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
            for (now, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Take => match addresses.take() {
                        Some(address) => {
                            prop_assert!(!held.contains(&address));
                            let age = |a: &Ipv4Addr| last_used.get(a).copied().map_or(0, |at| at + 1);
                            let oldest = small().hosts().skip(1)
                                .filter(|a| !held.contains(a))
                                .map(|a| age(&a)).min();
                            prop_assert_eq!(Some(age(&address)), oldest);
                            held.push(address);
                        }
                        None => prop_assert_eq!(held.len(), 5),
                    },
                    Step::GiveBack(which) if which < held.len() => {
                        let address = held.remove(which);
                        last_used.insert(address, now);
                        addresses.give_back(address);
                        addresses.give_back(address);
                    }
                    Step::GiveBack(_) => {}
                    Step::Restart => {
                        let kept: Vec<_> = addresses.given_back().collect();
                        addresses = Addresses::new(small(), held.clone(), kept);
                    }
                }
                prop_assert_eq!(addresses.capacity(), 5);
            }
        }
    }
}
