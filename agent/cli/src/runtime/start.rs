//! `start`.

use super::Runtime;
use super::arguments::{Usage, Verb};

pub(super) const USAGE: Usage = Usage {
    name: "start",
    operands: "ID",
    about: "execute the program of a created container",
    flags: &[],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Start(Start { id: given.id()? })),
};

/// Arguments of `start`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    id: String,
}

impl Start {
    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        Ok(runtime.container(&self.id)?.start()?)
    }
}
