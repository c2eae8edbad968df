//! `ip_forward` belongs to the whole machine: who turned it on is written down, and the last
//! agent that goes turns it off again.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use serde::{Deserialize, Serialize};

use crate::link;
use crate::names::BRIDGE_ALIAS;
use crate::network::route_error;
use crate::setting;
use crate::{Network, NetworkError};

/// What the agents of a machine tell each other, in the file whose lock they share.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Shared {
    version: u64,
    /// An agent that is gone turned `ip_forward` on.
    turned_ip_forward_on: bool,
}

const VERSION: u64 = 1;

impl Network {
    /// Whether this agent turned `ip_forward` on.
    pub fn turned_ip_forward_on(&self) -> bool {
        self.state().record.as_ref().is_some_and(|record| record.turned_ip_forward_on)
    }

    /// Writes down that `ip_forward` is about to be turned on.
    pub(crate) fn remember_forwarding(&self) -> Result<(), NetworkError> {
        let mut state = self.state();
        if let Some(record) = state.record.as_mut()
            && !record.turned_ip_forward_on
        {
            record.turned_ip_forward_on = true;
            self.records.set_network(record)?;
        }
        Ok(())
    }

    /// Turns `ip_forward` off when it was off before and no other agent's bridge is there;
    /// otherwise tells the others, the last of which does it.
    pub(crate) fn restore_forwarding(&self) -> Result<(), NetworkError> {
        let mut lock = self.lock_machine()?;
        let refuse = |source| NetworkError::Record { path: self.config.subnet_lock.clone(), source };
        let shared = read(&mut lock).map_err(refuse)?;
        // What newer agents tell each other is theirs: `ip_forward` stays as they have it.
        if shared.version > VERSION || !shared.turned_ip_forward_on && !self.turned_ip_forward_on() {
            return Ok(());
        }
        let links = link::links(&mut self.route()).map_err(route_error)?;
        let others = links.iter().any(|link| link.alias.starts_with(BRIDGE_ALIAS) && link.name != self.config.bridge);
        if !others {
            setting::write(setting::IP_FORWARD, "0")?;
        }
        let told = Shared { version: VERSION, turned_ip_forward_on: others };
        write(&mut lock, &told).map_err(refuse)
    }
}

/// What the file says; an empty or unknown one says nothing, one of a newer version its version.
fn read(file: &mut File) -> io::Result<Shared> {
    let mut text = String::new();
    file.rewind()?;
    file.take(4096).read_to_string(&mut text)?;
    let version = |value: serde_json::Value| value.get("version").and_then(serde_json::Value::as_u64);
    let version = serde_json::from_str(&text).ok().and_then(version).unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or(Shared { version, turned_ip_forward_on: false }))
}

fn write(file: &mut File, shared: &Shared) -> io::Result<()> {
    let text = serde_json::to_vec(shared)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&text)
}
