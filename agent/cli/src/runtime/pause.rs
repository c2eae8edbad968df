//! `pause` and `resume`.

use super::Runtime;
use super::arguments::{Usage, Verb};

pub(super) const PAUSE: Usage = Usage {
    name: "pause",
    operands: "ID",
    about: "freeze all processes of a container",
    flags: &[],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Pause(Pause { id: given.id()? })),
};

pub(super) const RESUME: Usage = Usage {
    name: "resume",
    operands: "ID",
    about: "let the processes of a paused container go on",
    flags: &[],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Resume(Pause { id: given.id()? })),
};

/// Arguments of `pause` and `resume`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pause {
    id: String,
}

impl Pause {
    pub(super) fn pause(self, runtime: &Runtime) -> anyhow::Result<()> {
        Ok(runtime.container(&self.id)?.pause()?)
    }

    pub(super) fn resume(self, runtime: &Runtime) -> anyhow::Result<()> {
        Ok(runtime.container(&self.id)?.resume()?)
    }
}
