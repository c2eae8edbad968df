//! What changes manifests, and what would: apply, delete, plan.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use portreeve_engine::image::Credential;
use portreeve_manifests::ObjectKey;

use super::{Node, blocking};
use crate::desired::Ledger;
use crate::error::NodeError;
use crate::history::NamespacedName;
use crate::preview::Preview;
use crate::report::{ApplyReport, DeleteReport, ManifestFile, ObjectName, PlanReport, PlanRequest, Standing};
use crate::{apply, preview};

/// How long `apply` and `delete` wait until the agent has seen what they did.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// How long registries may take to say how large images are, for a plan that people wait for.
const WEIGHED_WITHIN: Duration = Duration::from_secs(5);
/// Images whose registries are asked at once.
const WEIGHED_AT_ONCE: usize = 8;

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
        let (drained, sources) = (self.is_drained(), self.sources());
        let made = move || preview::preview(&shared, &ledger, &views, &sources, &request);
        let Preview { mut report, pulls } = blocking(move || Ok(made())).await?;
        report.drained = drained;
        self.weigh(&mut report, pulls).await;
        Ok(report)
    }

    /// Which objects are desired, and which pods are not what they should be yet.
    ///
    /// # Errors
    /// [`NodeError::Stopped`] during shutdown.
    pub async fn standing(&self) -> Result<Standing, NodeError> {
        let (shared, ledger) = (Arc::clone(&self.inner.shared), self.ledger());
        let views = Arc::clone(&self.inner.outlook.views);
        let sources = self.sources();
        let looked = Arc::clone(&ledger);
        let made = move || preview::preview(&shared, &looked, &views, &sources, &PlanRequest::default());
        let Preview { report, .. } = blocking(move || Ok(made())).await?;
        let busy = report.pods.into_iter().filter_map(|pod| {
            let first = pod.steps.into_iter().next().map(|step| format!("{}: {}", step.action, step.reason));
            Some((NamespacedName::new(pod.namespace, pod.name), pod.blocked.or(first)?))
        });
        Ok(Standing {
            desired: ledger
                .objects
                .iter()
                .map(|(key, record)| (key.clone(), (record.file.clone(), record.hash.clone())))
                .collect(),
            leaving: ledger.removals.values().map(|removal| removal.record.file.clone()).collect(),
            busy: busy.collect(),
        })
    }

    /// Says of each pull of a plan how much of it is not here, as far as registries say that in time.
    async fn weigh(&self, report: &mut PlanReport, pulls: BTreeMap<String, Vec<Credential>>) {
        let runtime = &self.inner.shared.runtime;
        let asking = pulls.into_iter().map(|(image, logins)| async move {
            let bytes = runtime.bytes_to_fetch(&image, logins).await.ok()?;
            Some((image, bytes))
        });
        let answers = stream::iter(asking).buffer_unordered(WEIGHED_AT_ONCE);
        // What has not come by then is not told.
        let in_time = answers.take_until(tokio::time::sleep(WEIGHED_WITHIN));
        let weighed: BTreeMap<String, u64> = in_time.filter_map(std::future::ready).collect().await;
        for step in report.pods.iter_mut().flat_map(|pod| &mut pod.steps) {
            step.fetch_bytes = step.image.as_ref().and_then(|image| weighed.get(image).copied());
        }
    }

    /// Validates, then writes one file per object below `<manifests>/applied`, and waits until the
    /// directory's watcher has seen them.
    ///
    /// # Errors
    /// [`NodeError::Invalid`], [`NodeError::OwnedElsewhere`] or [`NodeError::AnotherDirectory`], with nothing written;
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
        self.watched()?;
        let (manifests, ledger) = (self.inner.config.manifests_dir.clone(), self.ledger());
        let shared = Arc::clone(&self.inner.shared);
        let applied =
            blocking(move || apply::apply_blocking(&manifests, &ledger, &files, namespace.as_deref(), &shared.node));
        let (mut report, expected) = applied.await?;
        let has = |ledger: &Ledger, key: &ObjectKey, hash: &String| {
            ledger.objects.get(key).is_some_and(|record| record.hash == *hash)
        };
        if !self.seen(|ledger| expected.iter().all(|(key, hash)| has(ledger, key, hash))).await {
            let (ledger, manifests) = (self.ledger(), &self.inner.config.manifests_dir);
            let late = expected.iter().filter(|(key, hash)| !has(&ledger, key, hash));
            report.warnings.extend(late.map(|(key, _)| apply::not_seen(manifests, key, SEEN_WITHIN)));
        }
        Ok(report)
    }

    fn watched(&self) -> Result<(), NodeError> {
        if self.inner.config.manifests_watched { Ok(()) } else { Err(NodeError::NotWatched) }
    }

    /// Waits until the ledger is so; false when it is not in time.
    async fn seen(&self, so: impl Fn(&Ledger) -> bool) -> bool {
        let mut ledger = self.inner.outlook.ledger.clone();
        let seen = tokio::time::timeout(SEEN_WITHIN, ledger.wait_for(|ledger| so(ledger))).await;
        matches!(seen, Ok(Ok(_)))
    }

    /// Removes the files of applied objects, and says which were not there.
    ///
    /// # Errors
    /// [`NodeError::OwnedElsewhere`], [`NodeError::AnotherDirectory`] or [`NodeError::FileMissing`], with nothing
    /// removed; [`NodeError::Remove`] if the kernel refuses; [`NodeError::NotFollowed`] if the files are gone and the
    /// agent has not seen it.
    pub async fn delete(&self, objects: Vec<ObjectName>) -> Result<DeleteReport, NodeError> {
        self.watched()?;
        let (manifests, ledger) = (self.inner.config.manifests_dir.clone(), self.ledger());
        let report = blocking(move || apply::delete_blocking(&manifests, &ledger, &objects)).await?;
        let files: Vec<PathBuf> = report.deleted.iter().map(|deleted| deleted.file.clone()).collect();
        if !self.seen(|ledger| ledger.objects.values().all(|record| !files.contains(&record.file))).await {
            return Err(NodeError::NotFollowed { files, within: SEEN_WITHIN });
        }
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
