//! What sandboxes and containers use.

use std::path::Path;

use jiff::Timestamp;
use portreeve_oci::cgroup::{Cgroup, Stats};

use super::{Core, blocking, cgroup_error};
use crate::container::ContainerState;
use crate::{ContainerId, ContainerStats, EngineError, SandboxId, SandboxStats};

impl Core {
    pub(super) async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, EngineError> {
        let container = self.find_container(id)?;
        let path = container.facts().record.cgroup.clone();
        let stats = blocking(move || read(&path)).await?;
        Ok(of_container(id.clone(), stats))
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
        let (whole, containers) = blocking(move || {
            // A container that ends meanwhile is left out.
            let each = containers.into_iter().filter_map(|(id, path)| Some(of_container(id, read(&path).ok()?)));
            Ok((read(&parent)?, each.collect()))
        })
        .await?;
        Ok(SandboxStats {
            id: id.clone(),
            at: Timestamp::now(),
            cpu_usage_ns: whole.cpu_usage_ns,
            memory_bytes: whole.memory_bytes,
            memory_working_set_bytes: whole.memory_working_set_bytes,
            pids: whole.pids,
            containers,
        })
    }
}

fn read(path: &str) -> Result<Stats, EngineError> {
    let cgroup = Cgroup::at(path).map_err(cgroup_error("finding", path))?;
    if !cgroup.exists() {
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(EngineError::file("reading cgroup", Path::new(path))(gone));
    }
    cgroup.stats().map_err(cgroup_error("reading", path))
}

fn of_container(id: ContainerId, stats: Stats) -> ContainerStats {
    ContainerStats {
        id,
        at: Timestamp::now(),
        cpu_usage_ns: stats.cpu_usage_ns,
        memory_bytes: stats.memory_bytes,
        memory_working_set_bytes: stats.memory_working_set_bytes,
        pids: stats.pids,
    }
}
