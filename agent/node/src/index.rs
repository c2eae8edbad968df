//! Which sandboxes and containers belong to which pod, so that a worker asks only for its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use portreeve_engine::{ContainerId, ContainerStatus, Owner, SandboxId, SandboxStatus};
use portreeve_plan::PodUid;

/// Sandboxes and containers by pod.
#[derive(Debug, Default)]
pub(crate) struct Index {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    owner: BTreeMap<SandboxId, PodUid>,
    pods: BTreeMap<PodUid, Belongings>,
}

/// What belongs to one pod.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Belongings {
    pub(crate) sandboxes: BTreeSet<SandboxId>,
    pub(crate) containers: BTreeSet<ContainerId>,
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces everything by what the engine lists; says whose belongings differ.
    pub(crate) fn relist(&self, sandboxes: &[SandboxStatus], containers: &[ContainerStatus]) -> BTreeSet<PodUid> {
        let mut next = Inner::default();
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.owner == Owner::Node) {
            let uid = PodUid(sandbox.metadata.uid.clone());
            next.owner.insert(sandbox.id.clone(), uid.clone());
            next.pods.entry(uid).or_default().sandboxes.insert(sandbox.id.clone());
        }
        for container in containers {
            if let Some(uid) = next.owner.get(&container.sandbox) {
                next.pods.entry(uid.clone()).or_default().containers.insert(container.id.clone());
            }
        }
        let mut inner = self.lock();
        let changed = inner
            .pods
            .keys()
            .chain(next.pods.keys())
            .filter(|uid| inner.pods.get(*uid) != next.pods.get(*uid))
            .cloned()
            .collect();
        *inner = next;
        changed
    }

    pub(crate) fn add_sandbox(&self, uid: &PodUid, id: &SandboxId) {
        let mut inner = self.lock();
        inner.owner.insert(id.clone(), uid.clone());
        inner.pods.entry(uid.clone()).or_default().sandboxes.insert(id.clone());
    }

    pub(crate) fn add_container(&self, uid: &PodUid, id: &ContainerId) {
        self.lock().pods.entry(uid.clone()).or_default().containers.insert(id.clone());
    }

    pub(crate) fn remove_sandbox(&self, uid: &PodUid, id: &SandboxId) {
        let mut inner = self.lock();
        inner.owner.remove(id);
        if let Some(pod) = inner.pods.get_mut(uid) {
            pod.sandboxes.remove(id);
        }
    }

    pub(crate) fn remove_container(&self, uid: &PodUid, id: &ContainerId) {
        if let Some(pod) = self.lock().pods.get_mut(uid) {
            pod.containers.remove(id);
        }
    }

    /// What belongs to a pod.
    pub(crate) fn of(&self, uid: &PodUid) -> Belongings {
        self.lock().pods.get(uid).cloned().unwrap_or_default()
    }

    /// The pod of a sandbox.
    pub(crate) fn owner(&self, id: &SandboxId) -> Option<PodUid> {
        self.lock().owner.get(id).cloned()
    }

    /// The pods that have a sandbox.
    pub(crate) fn uids(&self) -> BTreeSet<PodUid> {
        let inner = self.lock();
        inner.pods.iter().filter(|(_, pod)| !pod.sandboxes.is_empty()).map(|(uid, _)| uid.clone()).collect()
    }
}
