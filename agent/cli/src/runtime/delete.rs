//! `delete`.

use portreeve_oci::lifecycle::{Id, LifecycleError};

use super::arguments::{Flag, Usage, Verb};
use super::{Runtime, systemd};

pub(super) const USAGE: Usage = Usage {
    name: "delete",
    operands: "ID",
    about: "remove a stopped container",
    flags: &[&[Flag::switch("force", "kill it first if it runs; one that does not exist is fine").short('f')]],
    count: 1..=1,
    ends_flags: false,
    read: |mut given| Ok(Verb::Delete(Delete { force: given.has("force")?, id: given.id()? })),
};

/// Arguments of `delete`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delete {
    id: String,
    force: bool,
}

impl Delete {
    pub(super) fn run(self, runtime: &Runtime) -> anyhow::Result<()> {
        if !self.force {
            runtime.warn(&systemd::delete(runtime.container(&self.id)?, false)?);
            return Ok(());
        }
        match runtime.root()?.load_to_delete(&Id::parse(&self.id)?) {
            Err(LifecycleError::NotFound { .. }) => Ok(()),
            container => {
                runtime.warn(&systemd::delete(container?, true)?);
                Ok(())
            }
        }
    }
}
