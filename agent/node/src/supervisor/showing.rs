//! What the doors and the events are told of the sources.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use portreeve_manifests::Object;
use tracing::warn;

use super::Supervisor;
use crate::desired::{NOT_FOR_THIS_NODE, News};
use crate::events::{EventKind, Subject};
use crate::history::{History, NamespacedName};
use crate::report::{SourceReport, SourceState};

impl Supervisor {
    /// ConfigMaps and Secrets as the doors list them.
    pub(super) fn show_configs(&self) {
        let mut maps = BTreeSet::new();
        let mut secrets = BTreeSet::new();
        for (key, record) in &self.ledger.objects {
            let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
            let fill = |metadata: &mut ObjectMeta| {
                metadata.uid = Some(record.uid.clone());
                metadata.creation_timestamp = Some(Time(record.admitted_at));
            };
            match &*record.object {
                Object::Pod(_) => {}
                Object::ConfigMap(map) => {
                    let mut map = (**map).clone();
                    fill(&mut map.metadata);
                    self.config_maps.put(name.clone(), map);
                    maps.insert(name);
                }
                Object::Secret(secret) => {
                    let mut secret = (**secret).clone();
                    fill(&mut secret.metadata);
                    self.secrets.put(name.clone(), secret);
                    secrets.insert(name);
                }
            }
        }
        retain(&self.config_maps, &maps, |map| &map.metadata);
        retain(&self.secrets, &secrets, |secret| &secret.metadata);
    }

    /// Events for pods that are removed because their manifest asks for another node now.
    pub(super) fn tell_displaced(&self, news: &[News], reports: &[SourceReport]) {
        let removed = news.iter().filter_map(|news| match news {
            News::Removed(key) => Some((key, self.ledger.objects.get(key)?)),
            News::Admitted(_) | News::Changed(_) => None,
        });
        for (key, record) in removed {
            let name = key.to_string();
            let mut problems = reports.iter().flat_map(|report| &report.files).flat_map(|file| &file.problems);
            let why = problems.find(|problem| {
                problem.reason == NOT_FOR_THIS_NODE && problem.object.as_deref() == Some(name.as_str())
            });
            if let Some(problem) = why {
                let subject = Subject::pod(&key.namespace, &key.name, &record.uid);
                self.shared.events.record(&subject, EventKind::Warning, NOT_FOR_THIS_NODE, &problem.message);
            }
        }
    }

    /// An event when what is on disk of the sandboxes is gone, and when it is back.
    pub(super) fn tell_ground(&mut self) {
        let lost = self.lost_ground.borrow_and_update().clone();
        let (kind, reason, message) = match &lost {
            Some(why) => (EventKind::Warning, "RunDirectoryLost", why.as_str()),
            None => (EventKind::Normal, "RunDirectoryBack", "the directories of the state are back"),
        };
        self.shared.events.record(&Subject::node(&self.shared.node.name), kind, reason, message);
    }

    /// Events for what is wrong with the sources, once for each.
    pub(super) fn tell_problems(&mut self, reports: &[SourceReport]) {
        let mut told = BTreeSet::new();
        for report in reports {
            let subject = Subject {
                kind: "Source".to_owned(),
                namespace: "default".to_owned(),
                name: "manifests".to_owned(),
                uid: String::new(),
                field_path: Some(report.path.display().to_string()),
            };
            let mut tell = |reason: &str, message: String| {
                if !self.told.contains(&message) {
                    warn!(source = %report.name, problem = %message, "source has a problem, what runs goes on");
                    self.shared.events.record(&subject, EventKind::Warning, reason, &message);
                }
                told.insert(message);
            };
            if report.state == SourceState::Unreadable {
                let reason = report.reason.clone().unwrap_or_default();
                tell("SourceUnreadable", format!("{} cannot be read: {reason}", report.path.display()));
            }
            for problem in report.files.iter().flat_map(|file| &file.problems) {
                if problem.is_error() {
                    let reason = if problem.reason == "Conflict" { "Conflict" } else { "InvalidManifest" };
                    tell(reason, problem.to_string());
                }
            }
        }
        self.told = told;
    }
}

fn retain<T: Clone + PartialEq>(list: &History<T>, keep: &BTreeSet<NamespacedName>, metadata: fn(&T) -> &ObjectMeta) {
    for item in list.list().items {
        let metadata = metadata(&item);
        if let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) {
            let key = NamespacedName::new(namespace.clone(), name.clone());
            if !keep.contains(&key) {
                list.remove(&key);
            }
        }
    }
}
