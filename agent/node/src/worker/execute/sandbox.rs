//! Steps on the sandbox of a pod.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use portreeve_engine::{SandboxConfig, SandboxId, UserNamespace};
use portreeve_plan::{Attempted, DesiredPod, ObservedPod, sandbox_record};

use super::super::{Worker, WorkerNews};
use super::{StepFailure, removal_failure};
use crate::events::EventKind;
use crate::{disk, translate};
use portreeve_engine::chain;

impl Worker {
    pub(super) async fn create_sandbox(
        &mut self,
        desired: &Arc<DesiredPod>,
        observed: &ObservedPod,
        attempt: u32,
        backoff: Option<Duration>,
    ) -> Result<(), StepFailure> {
        let record = sandbox_record(desired, observed, backoff);
        let failure = |message: String| StepFailure {
            what: Attempted::Sandbox,
            reason: "FailedCreatePodSandBox",
            event: "FailedCreatePodSandBox",
            container: None,
            message: format!("failed to create pod sandbox: {message}"),
        };
        let own_users = desired.pod.spec.as_ref().is_some_and(|spec| spec.host_users == Some(false));
        let shared = Arc::clone(&self.shared);
        // The ids are taken when the sandbox is listed: until then nobody else may choose.
        let ids = if own_users { Some(shared.ids.lock().await) } else { None };
        let base = if own_users {
            let base = translate::free_id_base(&self.used_ids());
            Some(base.ok_or_else(|| failure("no range of user ids is free".to_owned()))?)
        } else {
            None
        };
        let config: SandboxConfig = translate::sandbox(self.facts(desired), &record, attempt, &shared.place, base)
            .map_err(|error| failure(chain(&error)))?;
        let hostname = config.hostname.clone();
        let id = shared.runtime.run_sandbox(config).await.map_err(|error| failure(chain(&error)))?;
        drop(ids);
        shared.index.add_sandbox(&self.uid, &id);
        let _ = shared.outbox.send(WorkerNews::Holds);
        for warning in shared.runtime.sandbox(&id).map(|status| status.warnings).unwrap_or_default() {
            self.event(desired, None, EventKind::Warning, "ForwardingBlocked", &warning);
        }
        self.write_hosts(desired, &id, &hostname).map_err(|error| failure(format!("writing its hosts file: {error}")))
    }

    pub(super) async fn stop_sandbox(&mut self, id: &portreeve_plan::SandboxId) -> Result<(), StepFailure> {
        let Ok(id) = id.0.parse::<SandboxId>() else {
            return Ok(());
        };
        let stopped = self.shared.runtime.stop_sandbox(&id).await;
        stopped.map_err(|error| removal_failure("FailedKillPod", chain(&error)))
    }

    pub(super) async fn remove_sandbox(&mut self, id: &portreeve_plan::SandboxId) -> Result<(), StepFailure> {
        let Ok(id) = id.0.parse::<SandboxId>() else {
            return Ok(());
        };
        self.save();
        let removed = self.shared.runtime.remove_sandbox(&id).await;
        removed.map_err(|error| removal_failure("FailedKillPod", chain(&error)))?;
        self.shared.index.remove_sandbox(&self.uid, &id);
        let _ = self.shared.outbox.send(WorkerNews::Holds);
        Ok(())
    }

    pub(super) fn ready_sandbox(&self) -> Option<portreeve_engine::SandboxStatus> {
        let belongings = self.shared.index.of(&self.uid);
        belongings
            .sandboxes
            .iter()
            .filter_map(|id| self.shared.runtime.sandbox(id))
            .filter(|sandbox| sandbox.state == portreeve_engine::SandboxState::Ready)
            .max_by_key(|sandbox| sandbox.metadata.attempt)
    }

    pub(super) fn used_ids(&self) -> Vec<u32> {
        let sandboxes = self.shared.runtime.sandboxes();
        let maps = sandboxes.iter().filter_map(|sandbox| match &sandbox.namespaces.user {
            UserNamespace::Pod { uid_maps, .. } => uid_maps.first().map(|row| row.host),
            UserNamespace::Node => None,
        });
        maps.collect()
    }

    pub(super) fn hosts_path(&self) -> PathBuf {
        self.shared.volumes.disk_of(&self.uid.0).join("etc-hosts")
    }

    pub(super) fn write_hosts(&self, desired: &DesiredPod, id: &SandboxId, hostname: &str) -> io::Result<()> {
        let Some(spec) = &desired.pod.spec else {
            return Ok(());
        };
        let ips = self.shared.runtime.sandbox(id).map(|status| status.ips).unwrap_or_default();
        let text = if spec.host_network == Some(true) {
            translate::node_hosts_file(spec, &fs::read_to_string("/etc/hosts").unwrap_or_default())
        } else {
            translate::hosts_file(spec, hostname, &ips)
        };
        let path = self.hosts_path();
        if let Some(parent) = path.parent() {
            disk::ensure_directory(parent, 0o700)?;
        }
        disk::replace_volatile(&path, text.as_bytes(), 0o644)
    }
}
