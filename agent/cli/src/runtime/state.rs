//! `state`, and a container's state as it is printed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use portreeve_oci::features::SPECIFICATION;
use portreeve_oci::lifecycle::{Container, Status};
use serde::Serialize;

use super::Runtime;
use super::arguments::{Usage, Verb};

pub(super) const USAGE: Usage = Usage {
    name: "state",
    operands: "ID",
    about: "print the state of a container as JSON",
    flags: &[],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::State(State { id: given.id()? })),
};

/// Arguments of `state`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    id: String,
}

impl State {
    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        let printed = Printed::of(&runtime.container(&self.id)?)?;
        let text = serde_json::to_string_pretty(&printed).context("writing the state as JSON")?;
        super::print(&format!("{text}\n"))
    }
}

/// The specification's state with what runc prints beside it.
///
/// Source: runtime-spec, runtime.md, State; `runc state`.
#[derive(Debug, Serialize)]
pub(super) struct Printed {
    #[serde(rename = "ociVersion")]
    version: String,
    pub(super) id: String,
    /// 0 when there is no process.
    pub(super) pid: i32,
    pub(super) status: String,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    /// Absent when its maker died before it was known: engines read a time, or nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

impl Printed {
    pub(super) fn of(container: &Container) -> anyhow::Result<Self> {
        let (status, record) = (container.status()?, container.record());
        let pid = match status {
            Status::Creating | Status::Stopped => None,
            Status::Created | Status::Running | Status::Paused => record.process.map(|process| process.pid),
        };
        // The specification has no state without a version.
        let version = Some(&record.oci_version).filter(|version| !version.is_empty());
        Ok(Self {
            version: version.map_or(SPECIFICATION, String::as_str).to_owned(),
            id: record.id.clone(),
            pid: pid.unwrap_or(0),
            status: status.to_string(),
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created.clone(),
            annotations: record.annotations.clone(),
            owner: owner(record.owner),
        })
    }
}

/// A user's name by this machine's `/etc/passwd`, or `#UID` of one whom it does not name.
fn owner(id: u32) -> String {
    let accounts = std::fs::read("/etc/passwd").unwrap_or_default();
    account_name(&String::from_utf8_lossy(&accounts), id).map_or_else(|| format!("#{id}"), str::to_owned)
}

/// The name of the first account of this number. Source: passwd(5).
fn account_name(accounts: &str, id: u32) -> Option<&str> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(id)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use portreeve_oci::lifecycle::{Id, Root};

    use super::*;

    #[test]
    fn an_account_is_found_by_its_number() {
        let accounts =
            "# a comment\n:x:7:7::/:\nroot:x:0:0:root:/root:/bin/sh\nporter:x:7:7::/:/bin/sh\nlate:x:7:7::/:";
        assert_eq!(account_name(accounts, 0), Some("root"));
        assert_eq!(account_name(accounts, 7), Some("porter"));
        assert_eq!(account_name(accounts, 8), None);
    }

    #[test]
    fn what_a_maker_left_that_died_at_once_is_a_state_that_engines_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(&folder.path().join("state")).unwrap();
        std::fs::create_dir(folder.path().join("state/half")).unwrap();
        let container = root.load(&Id::parse("half").unwrap()).unwrap();
        let state = serde_json::to_value(Printed::of(&container).unwrap()).unwrap();
        assert_eq!((&state["id"], &state["status"], &state["pid"]), (&"half".into(), &"stopped".into(), &0.into()));
        assert_eq!(state["ociVersion"], SPECIFICATION);
        assert!(state.get("created").is_none(), "no text that is no time: {state}");
    }
}
