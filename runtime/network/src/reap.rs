//! Removing links, many at once.
//!
//! The kernel waits for several RCU grace periods whenever it removes a link: 15 to 40 ms, half of
//! it with the lock held that every look at a link needs. It waits once for all links of a group.
//! So whoever removes links says which, and the first to come here removes those of all.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::libc;

use crate::link::{self, Link, Which};
use crate::names::{fingerprint, sandbox_of_alias};
use crate::netlink::{Batch, Refusal, Socket};
use crate::network::route_error;
use crate::{Network, NetworkError};

/// More links than this are looked up by one listing.
const FEW: usize = 8;

/// What is to be removed, in rounds: one thread removes the links of a round while those of the
/// next one are collected.
#[derive(Debug)]
pub(crate) struct Reaper {
    rounds: Mutex<Rounds>,
    over: Condvar,
    /// A socket of its own: attaching goes on while the kernel waits.
    socket: Mutex<Socket>,
}

#[derive(Debug, Default)]
struct Rounds {
    /// Links of the next round.
    doomed: BTreeSet<String>,
    /// Number of the next round; all before it are over, but for one that may be `running`.
    next: u64,
    running: bool,
    /// Links of which it is not known whether they are gone; who asked for one learns why.
    stuck: BTreeSet<String>,
}

impl Rounds {
    /// Whether this round is over.
    fn is_over(&self, round: u64) -> bool {
        round + u64::from(self.running) < self.next
    }
}

impl Reaper {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { rounds: Mutex::default(), over: Condvar::new(), socket: Mutex::new(socket) }
    }

    fn rounds(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// Removes links of ours; absent is success, and one of somebody else stays.
    pub(crate) fn remove_links<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<(), NetworkError> {
        let names: Vec<&str> = names.into_iter().collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut rounds = self.reaper.rounds();
        rounds.doomed.extend(names.iter().map(|name| (*name).to_owned()));
        let round = rounds.next;
        while !rounds.is_over(round) {
            if rounds.running {
                let over = &self.reaper.over;
                rounds = over.wait(rounds).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            rounds.running = true;
            rounds.next += 1;
            let doomed = std::mem::take(&mut rounds.doomed);
            drop(rounds);
            let answer = self.try_reap(&mut self.reaper.socket(), &doomed);
            rounds = self.reaper.rounds();
            rounds.running = false;
            if let Err(refusal) = answer {
                tracing::debug!(action = refusal.action, error = %refusal.source, "links not removed as a group");
                rounds.stuck.extend(doomed);
            }
            self.reaper.over.notify_all();
        }
        let stuck: Vec<&str> = names.into_iter().filter(|name| rounds.stuck.remove(*name)).collect();
        drop(rounds);
        if stuck.is_empty() {
            return Ok(());
        }
        let mut socket = self.reaper.socket();
        for name in stuck {
            let found = self.own_link(&mut socket, name).map_err(route_error)?;
            let Some(found) = found else { continue };
            let mut batch = Batch::new();
            link::push_delete(&mut batch, Which::Index(found.index));
            match socket.run(&batch) {
                Err(refusal) if !refusal.is(libc::ENODEV) => return Err(route_error(refusal)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes these links as one group.
    fn try_reap(&self, socket: &mut Socket, names: &BTreeSet<String>) -> Result<(), Refusal> {
        let mut indexes = Vec::new();
        if names.len() > FEW {
            let links = link::links(socket)?;
            let doomed = |link: &&Link| names.contains(&link.name) && self.is_own(link);
            indexes.extend(links.iter().filter(doomed).map(|link| link.index));
        } else {
            for name in names {
                indexes.extend(self.own_link(socket, name)?.map(|link| link.index));
            }
        }
        let mut batch = Batch::new();
        match indexes.as_slice() {
            [] => return Ok(()),
            [index] => link::push_delete(&mut batch, Which::Index(*index)),
            indexes => {
                for index in indexes {
                    link::push_group(&mut batch, *index, self.group());
                }
                link::push_delete_group(&mut batch, self.group());
            }
        }
        // A link can go by itself, with its namespace.
        let refusals = socket.run_all(&batch)?;
        let real = refusals.into_iter().find(|refusal| !refusal.is(libc::ENODEV));
        real.map_or(Ok(()), Err)
    }

    /// The link with this name, when it is a pod's and ours.
    fn own_link(&self, socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
        Ok(link::link(socket, name)?.filter(|link| self.is_own(link)))
    }

    fn is_own(&self, link: &Link) -> bool {
        sandbox_of_alias(&self.config.bridge, &link.alias).is_some()
    }

    /// The group that our links join to be removed; 0 is everybody's.
    fn group(&self) -> u32 {
        let hash = fingerprint(self.config.bridge.as_bytes()) >> 32;
        u32::try_from(hash).unwrap_or(1).max(1)
    }
}
