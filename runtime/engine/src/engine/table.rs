//! What exists, as the engine knows it: fed by the verbs and by the shims' events.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::{RwLock, watch};

use crate::client::Client;
use crate::container::{ContainerState, ContainerStatus};
use crate::protocol::ExitRecord;
use crate::record::{ContainerRecord, SandboxPhase, SandboxRecord};
use crate::sandbox::{SandboxState, SandboxStatus};
use crate::selinux::Held;
use crate::{ContainerId, EngineError, Exit, SandboxId};

/// All sandboxes and containers.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) sandboxes: BTreeMap<SandboxId, Arc<Sandbox>>,
    pub(super) containers: BTreeMap<ContainerId, Arc<Container>>,
}

/// A sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    pub(super) directory: PathBuf,
    /// Held shared while containers are made, alone while it is stopped or removed.
    pub(super) turn: RwLock<()>,
    facts: Mutex<SandboxFacts>,
}

/// What changes of a sandbox.
#[derive(Debug)]
pub(super) struct SandboxFacts {
    pub(super) record: SandboxRecord,
    pub(super) client: Option<Arc<Client>>,
    pub(super) user_namespace: Option<String>,
    pub(super) pid_namespace: Option<String>,
    /// The shim, when this very process has started it and so has to reap it.
    pub(super) child: Option<Child>,
    /// It was stopped, and nothing of it is left but records.
    pub(super) released: bool,
    /// Its level, which no other pod is given as long as it is known here.
    pub(super) _level: Option<Held>,
    /// What stood in the way of its network when it was made, or what plugins missed of it when it was found again.
    pub(super) warnings: Vec<String>,
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: ContainerId,
    pub(super) sandbox: SandboxId,
    pub(super) directory: PathBuf,
    /// Held while it is started or removed.
    pub(super) turn: tokio::sync::Mutex<()>,
    facts: Mutex<ContainerFacts>,
    changed: watch::Sender<()>,
}

/// What changes of a container.
#[derive(Debug, Clone)]
pub(super) struct ContainerFacts {
    pub(super) record: ContainerRecord,
    pub(super) pid: Option<u32>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) exit: Option<ExitRecord>,
    pub(super) removed: bool,
}

impl Sandbox {
    pub(super) fn new(directory: PathBuf, facts: SandboxFacts) -> Self {
        Self { id: facts.record.id.clone(), directory, turn: RwLock::new(()), facts: Mutex::new(facts) }
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, SandboxFacts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its shim, when it can run containers.
    pub(super) fn ready(&self) -> Result<Arc<Client>, EngineError> {
        let facts = self.facts();
        match (&facts.client, facts.record.phase) {
            (Some(client), SandboxPhase::Ready) => Ok(Arc::clone(client)),
            _ => Err(EngineError::SandboxNotReady { id: self.id.clone(), reason: reason(&facts.record) }),
        }
    }

    pub(super) fn status(&self) -> SandboxStatus {
        let facts = self.facts();
        let (record, config) = (&facts.record, &facts.record.config);
        let ready = record.phase == SandboxPhase::Ready && facts.client.is_some();
        SandboxStatus {
            id: self.id.clone(),
            metadata: config.metadata.clone(),
            owner: config.owner,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            state: if ready { SandboxState::Ready } else { SandboxState::NotReady { reason: reason(record) } },
            created_at: record.created_at,
            handler: config.handler.clone(),
            ips: record.ips.clone(),
            warnings: facts.warnings.clone(),
            shim_pid: record.shim_pid.filter(|_| ready),
            namespaces: config.namespaces.clone(),
            privileged: config.privileged,
            cgroup_parent: config.cgroup_parent.clone(),
            log_directory: config.log_directory.clone(),
        }
    }
}

fn reason(record: &SandboxRecord) -> String {
    if record.reason.is_empty() { "not ready".to_owned() } else { record.reason.clone() }
}

impl Container {
    pub(super) fn new(directory: PathBuf, facts: ContainerFacts) -> Self {
        Self {
            id: facts.record.id.clone(),
            sandbox: facts.record.sandbox.clone(),
            directory,
            turn: tokio::sync::Mutex::new(()),
            facts: Mutex::new(facts),
            changed: watch::Sender::new(()),
        }
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, ContainerFacts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known and tells whoever waits.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut ContainerFacts) -> T) -> T {
        let answer = change(&mut self.facts());
        self.changed.send_replace(());
        answer
    }

    pub(super) fn state(&self) -> ContainerState {
        self.facts().state()
    }

    /// Waits until it has ended or is gone.
    pub(super) async fn ended(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let facts = self.facts();
                if facts.exit.is_some() || facts.removed {
                    return;
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn status(&self, log_directory: Option<&std::path::Path>) -> ContainerStatus {
        let facts = self.facts();
        let (record, config) = (&facts.record, &facts.record.config);
        let exit = facts.exit.as_ref();
        ContainerStatus {
            id: self.id.clone(),
            sandbox: self.sandbox.clone(),
            metadata: config.metadata.clone(),
            state: facts.state(),
            created_at: record.created_at,
            started_at: facts.started_at.or(exit.and_then(|record| record.started_at)),
            finished_at: exit.map(|record| record.finished_at),
            exit: exit.map(|record| record.exit),
            reason: exit.map(ending).unwrap_or_default(),
            message: exit.map(|record| record.message.clone()).unwrap_or_default(),
            image: config.image.clone(),
            image_id: record.image_id.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: log_directory.zip(config.log_path.as_ref()).map(|(directory, path)| directory.join(path)),
            resources: config.resources.clone(),
            oom_score_adj: config.oom_score_adj.unwrap_or(0),
            cgroup: record.cgroup.clone(),
            pid: facts.pid.filter(|_| exit.is_none()),
            user: record.user,
            groups: record.groups.clone(),
            stop_signal: record.stop_signal,
            stdin: config.stdin,
            tty: config.tty,
            mounts: config.mounts.clone(),
        }
    }
}

/// The word that the kubelet has for it.
fn ending(record: &ExitRecord) -> String {
    match (record.reason.as_str(), record.exit) {
        ("", Exit { oom_killed: true, .. }) => "OOMKilled",
        ("", Exit { code: 0, .. }) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    }
    .to_owned()
}

impl ContainerFacts {
    pub(super) fn state(&self) -> ContainerState {
        match (&self.exit, self.started_at) {
            (Some(_), _) => ContainerState::Exited,
            (None, Some(_)) => ContainerState::Running,
            (None, None) => ContainerState::Created,
        }
    }
}
