//! What is changed of sandboxes that are there: limits, labels and annotations.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use portreeve_oci::cgroup::Cgroup;

use super::{Core, blocking, cgroup_error};
use crate::{EngineError, SandboxId, record};

impl Core {
    pub(super) async fn update_sandbox_resources(
        self: Arc<Self>,
        id: &SandboxId,
        resources: LinuxResources,
    ) -> Result<(), EngineError> {
        let sandbox = self.find_sandbox(id)?;
        let _turn = sandbox.turn.write().await;
        // What is of a slice is systemd's to write; who changes it tells systemd, and us.
        let parent = Some(sandbox.facts().record.clone()).filter(|record| record.scope.is_none());
        if let Some(parent) = parent.map(|record| record.config.cgroup_parent) {
            let limits = resources.clone();
            blocking(move || {
                let cgroup = Cgroup::at(&parent).map_err(cgroup_error("finding", &parent))?;
                super::container::limit_cgroup(&cgroup, limits)
            })
            .await?;
        }
        let record = {
            let mut facts = sandbox.facts();
            super::container::merge(&mut facts.record.config.resources, &resources);
            facts.record.clone()
        };
        record::write(&sandbox.directory.join("sandbox.json"), &record)
    }

    pub(super) async fn update_cgroup_resources(
        self: Arc<Self>,
        path: String,
        resources: LinuxResources,
    ) -> Result<(), EngineError> {
        if !self.is_ours(&path) {
            return Err(EngineError::invalid("cgroup", format!("{path} is not below {}", self.config.cgroup_root)));
        }
        blocking(move || {
            let cgroup = Cgroup::open_or_create(&path).map_err(cgroup_error("making", &path))?;
            super::container::limit_cgroup(&cgroup, resources)
        })
        .await
    }

    pub(super) async fn annotate_sandbox(
        self: Arc<Self>,
        id: &SandboxId,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        let sandbox = self.find_sandbox(id)?;
        let _turn = sandbox.turn.write().await;
        let record = {
            let mut facts = sandbox.facts();
            facts.record.config.labels = labels;
            facts.record.config.annotations = annotations;
            facts.record.clone()
        };
        record::write(&sandbox.directory.join("sandbox.json"), &record)
    }

    /// Whether a cgroup is below our root, and not somebody else's that only houses our containers.
    pub(super) fn is_ours(&self, cgroup: &str) -> bool {
        let root = self.config.cgroup_root.trim_end_matches('/');
        cgroup.strip_prefix(root).is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
    }
}
