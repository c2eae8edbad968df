//! Steps on the volumes of a pod.

use std::collections::BTreeSet;
use std::sync::Arc;

use portreeve_plan::{Attempted, DesiredPod, volume_records};

use super::super::Worker;
use super::{StepFailure, blocking};
use crate::volumes::Facts;
use portreeve_engine::chain;

impl Worker {
    pub(super) async fn mount(
        &mut self,
        desired: &Arc<DesiredPod>,
        names: &BTreeSet<String>,
        event: &'static str,
    ) -> Result<(), StepFailure> {
        let records = volume_records(desired);
        let (volumes, node) = (self.shared.volumes.clone(), self.shared.node.clone());
        let (pod, uid, names) = (Arc::clone(desired), self.uid.0.clone(), names.clone());
        let mounted = blocking(move || {
            let facts = Facts { pod: &pod.pod, uid: &uid, configs: &pod.configs, node: &node };
            let mut mounted = Vec::new();
            for name in names {
                match volumes.mount_blocking(facts, &name) {
                    Ok(()) => mounted.push(name),
                    Err(error) => return (mounted, Some(chain(&error))),
                }
            }
            (mounted, None)
        })
        .await;
        let (mounted, error) = mounted.unwrap_or_else(|error| (Vec::new(), Some(error)));
        let mut book = self.book();
        for name in mounted {
            if let Some(record) = records.get(&name) {
                book.notes.volumes.insert(name, record.clone());
            }
        }
        drop(book);
        self.save();
        match error {
            None => Ok(()),
            Some(message) => {
                Err(StepFailure { what: Attempted::Volumes, reason: "FailedMount", event, container: None, message })
            }
        }
    }

    pub(super) async fn unmount(&mut self, names: &BTreeSet<String>) -> Result<(), StepFailure> {
        let (volumes, uid, all) = (self.shared.volumes.clone(), self.uid.0.clone(), names.clone());
        let unmounted = blocking(move || {
            all.iter().try_for_each(|name| volumes.unmount_blocking(&uid, name)).map_err(|error| chain(&error))
        })
        .await;
        match unmounted.and_then(|unmounted| unmounted) {
            Ok(()) => {
                let mut book = self.book();
                for name in names {
                    book.notes.volumes.remove(name);
                }
                drop(book);
                self.save();
                Ok(())
            }
            Err(message) => Err(StepFailure {
                what: Attempted::Volumes,
                reason: "FailedUnmount",
                event: "FailedUnMount",
                container: None,
                message,
            }),
        }
    }
}
