//! From what the sources say to the ledger.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use portreeve_engine::Owner;
use portreeve_manifests::{Kind, Object, ObjectKey};
use portreeve_plan::{PodKey, PodUid};
use tracing::{info, warn};

use super::Supervisor;
use crate::desired::{News, merge};
use crate::events::{EventKind, Subject};
use crate::report::{FileState, SourceReport, SourceState};
use crate::source::SourceSet;
use crate::volumes::{NodeFacts, VolumeError};
use portreeve_engine::chain;

impl Supervisor {
    /// The sandboxes that run for names the ledger does not know: an agent was killed between
    /// their start and the ledger's write, and they keep their uid.
    pub(super) fn remember_what_runs(&mut self) {
        for sandbox in self.shared.runtime.sandboxes() {
            if sandbox.owner != Owner::Node || sandbox.state != portreeve_engine::SandboxState::Ready {
                continue;
            }
            let uid = sandbox.metadata.uid;
            if !self.ledger.knows(&uid) {
                let key = PodKey { namespace: sandbox.metadata.namespace, name: sandbox.metadata.name };
                self.adoptable.insert(key, uid);
            }
        }
    }

    /// Merges what the sources say, if one has said anything, and tells the workers.
    pub(super) fn merge(&mut self) -> bool {
        let sets: Vec<SourceSet> = self.sets.iter_mut().map(|set| set.borrow_and_update().clone()).collect();
        if !sets.iter().any(SourceSet::says_something) {
            return false;
        }
        let now = self.shared.clock.now();
        let adoptable = &mut self.adoptable;
        let mut new_uid = |key: &ObjectKey| {
            let pod = PodKey { namespace: key.namespace.clone(), name: key.name.clone() };
            let adopted = (key.kind == Kind::Pod).then(|| adoptable.remove(&pod)).flatten();
            adopted.unwrap_or_else(|| uuid::Uuid::new_v4().hyphenated().to_string())
        };
        let node = &self.shared.node;
        let placement = |object: &Object| match object {
            Object::Pod(pod) => elsewhere(pod, node),
            _ => None,
        };
        let complete = sets.iter().all(|set| set.complete);
        let merged = merge(&self.ledger, &sets, now, &mut new_uid, &placement);
        self.tell_problems(&merged.reports);
        self.tell_displaced(&merged.news, &merged.reports);
        self.shared.metrics.sources(&merged.reports);
        self.reports.send_replace(Arc::new(merged.reports));
        let first = complete && !self.merged_once;
        self.merged_once |= complete;
        for news in &merged.news {
            match news {
                News::Admitted(key) => info!(object = %key, "object admitted"),
                News::Changed(key) => info!(object = %key, "object changed"),
                News::Removed(key) => info!(object = %key, "object removed"),
            }
        }
        if merged.ledger != self.ledger {
            self.ledger = merged.ledger;
            self.persist();
        }
        if !merged.news.is_empty() {
            self.show_configs();
        }
        if complete {
            self.judge_what_ran(!first);
        }
        self.dispatch();
        if first {
            self.clean_directories();
        }
        true
    }

    /// Whether the uid is a pod's that is desired, that goes, or that is kept because its manifest may be broken.
    pub(super) fn is_somebodys(&self, uid: &str) -> bool {
        self.ledger.knows(uid) || self.adoptable.values().any(|kept| kept == uid)
    }

    /// Lets go of what ran at the start for names that nothing claims, unless it may have come from what the source
    /// cannot read now: then it runs on, which is told once.
    fn judge_what_ran(&mut self, told: bool) {
        let in_doubt = self.reports.borrow().iter().any(|report| {
            report.state != SourceState::Ready || report.files.iter().any(|file| file.state != FileState::Loaded)
        });
        if !in_doubt {
            self.adoptable.clear();
        } else if !told {
            for (pod, uid) in &self.adoptable {
                let message = "runs without a manifest that can be read: it may have come from one that is broken now, \
                               and is kept until every manifest is in order (`portreeve get sources`)";
                let subject = Subject::pod(&pod.namespace, &pod.name, uid);
                self.shared.events.record(&subject, EventKind::Warning, "ManifestUnknown", message);
                warn!(%pod, pod_uid = %uid, "pod {message}");
            }
        }
    }

    /// Removes what is left on disk of pods that nobody knows any more.
    pub(super) fn clean_directories(&mut self) {
        let known = |uid: &str| self.workers.contains_key(&PodUid(uid.to_owned())) || self.is_somebodys(uid);
        let volumes = self.shared.volumes.clone();
        let mut unknown: BTreeMap<String, Vec<PathBuf>> =
            volumes.uids().into_iter().map(|uid| (uid, Vec::new())).collect();
        for (uid, logs) in self.shared.place.log_directories() {
            // Whose agent was killed in the middle of its first start has nothing but these.
            unknown.entry(uid).or_default().push(logs);
        }
        unknown.retain(|uid, _| !known(uid));
        if unknown.is_empty() {
            return;
        }
        self.tasks.spawn(async move {
            let cleaned = tokio::task::spawn_blocking(move || {
                for (uid, logs) in unknown {
                    let removed = volumes.remove_pod_blocking(&uid).and_then(|()| {
                        logs.into_iter().try_for_each(|path| {
                            std::fs::remove_dir_all(&path)
                                .map_err(|source| VolumeError::Io { action: "removing", path, source })
                        })
                    });
                    match removed {
                        Ok(()) => info!(pod_uid = %uid, "directories of an unknown pod removed"),
                        Err(error) => {
                            warn!(pod_uid = %uid, error = %chain(&error), "directories of an unknown pod were not removed");
                        }
                    }
                }
            });
            // A panic there was logged; nothing depends on it.
            let _ = cleaned.await;
        });
    }
}

/// Why a pod belongs to another node, if it does.
pub(crate) fn elsewhere(pod: &Pod, node: &NodeFacts) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = spec.node_name.as_deref().filter(|name| !name.is_empty() && *name != node.name) {
        return Some(format!("the pod does not run here: spec.nodeName is {name:?}, this node is {:?}", node.name));
    }
    let mut asked = spec.node_selector.iter().flatten();
    let (key, value) = asked.find(|(key, value)| node.labels.get(*key) != Some(*value))?;
    Some(format!("the pod does not run here: spec.nodeSelector asks for {key}={value}, which this node has not"))
}

/// Whether an object is kept out because of its uid.
pub(super) fn refuses_uids(report: &SourceReport) -> bool {
    report.files.iter().flat_map(|file| &file.problems).any(|problem| problem.field == "metadata.uid")
}
