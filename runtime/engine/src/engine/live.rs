//! What sandboxes and containers use.

use std::path::Path;

use jiff::Timestamp;
use portreeve_oci::cgroup::Cgroup;

use super::{Core, blocking, cgroup_error};
use crate::container::ContainerState;
use crate::{ContainerId, ContainerStats, EngineError, SandboxId, SandboxStats, Usage};

impl Core {
    pub(super) async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, EngineError> {
        let container = self.find_container(id)?;
        let path = container.facts().record.cgroup.clone();
        let usage = blocking(move || read(&path)).await?;
        Ok(ContainerStats { id: id.clone(), usage })
    }

    pub(super) async fn sandbox_stats(&self, id: &SandboxId) -> Result<SandboxStats, EngineError> {
        let sandbox = self.find_sandbox(id)?;
        let parent = sandbox.facts().record.config.cgroup_parent.clone();
        let containers: Vec<_> = self
            .containers_of(id)
            .iter()
            .filter(|one| one.state() == ContainerState::Running)
            .map(|one| (one.id.clone(), one.facts().record.cgroup.clone()))
            .collect();
        let (usage, containers) = blocking(move || {
            // A container that ends meanwhile is left out.
            let each =
                containers.into_iter().filter_map(|(id, path)| Some(ContainerStats { id, usage: read(&path).ok()? }));
            Ok((read(&parent)?, each.collect()))
        })
        .await?;
        Ok(SandboxStats { id: id.clone(), usage, containers })
    }
}

fn read(path: &str) -> Result<Usage, EngineError> {
    let cgroup = Cgroup::at(path).map_err(cgroup_error("finding", path))?;
    if !cgroup.exists() {
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(EngineError::file("reading cgroup", Path::new(path))(gone));
    }
    let read = || Ok(Usage { at: Timestamp::now(), counted: cgroup.stats()?, waited: cgroup.pressures()? });
    read().map_err(cgroup_error("reading", path))
}
