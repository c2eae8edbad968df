//! Taking away everything that this engine made on the machine, for agents that are thrown away.

use std::sync::Arc;

use portreeve_oci::cgroup::Cgroup;

use super::{Core, blocking, cgroup_error};
use crate::{EngineError, SandboxId};

impl Core {
    /// Removes every sandbox, then bridge, rules, records and the cgroup root.
    pub(super) async fn erase(self: &Arc<Self>) -> Result<(), EngineError> {
        let sandboxes: Vec<SandboxId> = self.table().sandboxes.keys().cloned().collect();
        let mut removals = tokio::task::JoinSet::new();
        for id in sandboxes {
            let core = Arc::clone(self);
            removals.spawn(async move { core.remove_sandbox(&id).await });
        }
        while let Some(removed) = removals.join_next().await {
            removed.map_err(|error| EngineError::Shim(format!("a removal ended early: {error}")))??;
        }
        let core = Arc::clone(self);
        blocking(move || {
            core.network.close_and_remove().map_err(EngineError::NetworkOpen)?;
            let root = &core.config.cgroup_root;
            let cgroup = Cgroup::at(root).map_err(cgroup_error("finding", root))?;
            cgroup.remove().map_err(cgroup_error("removing", root))
        })
        .await
    }
}
