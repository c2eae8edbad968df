//! What changes manifests, and what would: apply, delete, plan.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Node, blocking};
use crate::desired::Ledger;
use crate::error::NodeError;
use crate::report::{ApplyReport, DeleteReport, ManifestFile, ObjectName, PlanReport, PlanRequest};
use crate::{apply, preview};

/// How long `apply` waits until its objects are seen in the directory.
const APPLY_SEEN_WITHIN: Duration = Duration::from_secs(3);

impl Node {
    fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.inner.outlook.ledger.borrow())
    }

    /// What would be done if the given files were laid over the manifests, or what comes next.
    ///
    /// # Errors
    /// [`NodeError::Stopped`] during shutdown; problems of the files are in the report.
    pub async fn plan(&self, request: PlanRequest) -> Result<PlanReport, NodeError> {
        if self.inner.stop.is_cancelled() {
            return Err(NodeError::Stopped);
        }
        let (shared, ledger) = (Arc::clone(&self.inner.shared), self.ledger());
        let views = Arc::clone(&self.inner.outlook.views);
        let drained = self.is_drained();
        blocking(move || Ok(PlanReport { drained, ..preview::preview(&shared, &ledger, &views, &request) })).await
    }

    /// Validates, then writes one file per object below `<manifests>/applied`, and waits until the
    /// directory's watcher has seen them.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] or [`NodeError::OwnedElsewhere`], with nothing written;
    /// [`NodeError::Write`] if the kernel refuses.
    pub async fn apply(&self, files: Vec<ManifestFile>) -> Result<ApplyReport, NodeError> {
        self.apply_in(files, None).await
    }

    /// As [`Node::apply`]; with a namespace, objects that say none are in it.
    ///
    /// # Errors
    /// As [`Node::apply`]; [`NodeError::Invalid`] also when an object is in another namespace.
    pub async fn apply_in(
        &self,
        files: Vec<ManifestFile>,
        namespace: Option<String>,
    ) -> Result<ApplyReport, NodeError> {
        let (manifests, ledger) = (self.inner.config.manifests_dir.clone(), self.ledger());
        let shared = Arc::clone(&self.inner.shared);
        let applied =
            blocking(move || apply::apply_blocking(&manifests, &ledger, &files, namespace.as_deref(), &shared.node));
        let (report, expected) = applied.await?;
        let mut ledger = self.inner.outlook.ledger.clone();
        let seen = ledger.wait_for(|ledger| {
            expected.iter().all(|(key, hash)| ledger.objects.get(key).is_some_and(|record| record.hash == *hash))
        });
        // The files are what counts.
        let _ = tokio::time::timeout(APPLY_SEEN_WITHIN, seen).await;
        Ok(report)
    }

    /// Removes the files of applied objects, and says which were not there.
    ///
    /// # Errors
    /// [`NodeError::OwnedElsewhere`], with nothing removed.
    pub async fn delete(&self, objects: Vec<ObjectName>) -> Result<DeleteReport, NodeError> {
        let (manifests, ledger) = (self.inner.config.manifests_dir.clone(), self.ledger());
        let report = blocking(move || apply::delete_blocking(&manifests, &ledger, &objects)).await?;
        let files: Vec<PathBuf> = report.deleted.iter().map(|deleted| deleted.file.clone()).collect();
        let mut ledger = self.inner.outlook.ledger.clone();
        let seen = ledger.wait_for(|ledger| ledger.objects.values().all(|record| !files.contains(&record.file)));
        let _ = tokio::time::timeout(APPLY_SEEN_WITHIN, seen).await;
        Ok(report)
    }

    /// The objects that the given manifests name, for `delete -f`.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] if a document does not say what it names, or is in another namespace than the one given.
    pub fn objects_in(&self, files: &[ManifestFile], namespace: Option<&str>) -> Result<Vec<ObjectName>, NodeError> {
        apply::named(files, namespace)
    }
}
