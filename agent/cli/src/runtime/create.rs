//! `create`.

use super::arguments::{Usage, Verb};
use super::creation::{self, Creation, Stays};
use super::{Prepared, Runtime};

pub(super) const USAGE: Usage = Usage {
    name: "create",
    operands: "ID",
    about: "make a container that waits for its start",
    flags: &[creation::FLAGS],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Create(Create { creation: Creation::read(&mut given)? })),
};

/// Arguments of `create`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) creation: Creation,
}

impl Create {
    pub(super) fn run(self, runtime: &Runtime, prepared: Prepared) -> anyhow::Result<()> {
        let Prepared { passed, executable } = prepared;
        self.creation.make(runtime, passed, executable.as_ref(), Stays::Ends).map(drop)
    }
}
