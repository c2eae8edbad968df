//! A check of the image store, part by part.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use portreeve_engine::chain;
use portreeve_engine::image::{Check, Credential, Damage, Finding, ImageId, Part, RepairError, Store};
use tokio::sync::mpsc;

use super::NodeBackend;
use super::images::name_of;
use crate::backend::BackendError;
use crate::v1alpha1::{CheckedPart, PartKind, PartState, PathProblem};

/// Parts that wait for the client, or for their repair.
const QUEUE: usize = 16;

struct Work {
    node: NodeBackend,
    store: Store,
    /// One of each image.
    names: BTreeMap<ImageId, String>,
    repair: bool,
    auth: Vec<Credential>,
}

impl NodeBackend {
    pub(super) async fn verify_images(
        &self,
        references: Vec<String>,
        repair: bool,
        auth: Vec<Credential>,
    ) -> Result<BoxStream<'static, CheckedPart>, BackendError> {
        let store = self.engine()?.images().clone();
        let images = match references.as_slice() {
            [] => store.list(),
            named => named.iter().map(|reference| self.find(reference)).collect::<Result<_, _>>()?,
        };
        let names: BTreeMap<ImageId, String> = images.iter().map(|image| (image.id.clone(), name_of(image))).collect();
        let (found, checks) = mpsc::channel(QUEUE);
        let (reading, wanted): (Store, BTreeSet<ImageId>) = (store.clone(), names.keys().cloned().collect());
        // Ends by itself when nobody takes what it finds.
        tokio::task::spawn_blocking(move || {
            reading.verify(&wanted, |check| match found.blocking_send(check) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            });
        });
        let work = Work { node: self.clone(), store, names, repair, auth };
        let parts = stream::unfold((checks, work), |(mut checks, work)| async {
            let check: Check = checks.recv().await?;
            let outcome = match &check.finding {
                Finding::Whole(_) => None,
                _ if work.repair => Some(work.store.repair(&check, &work.auth).await),
                _ => None,
            };
            let part = work.node.view(&check, &work.names, outcome);
            Some((part, (checks, work)))
        });
        Ok(parts.boxed())
    }

    fn view(
        &self,
        check: &Check,
        names: &BTreeMap<ImageId, String>,
        repaired: Option<Result<(), RepairError>>,
    ) -> CheckedPart {
        let (kind, digest) = match &check.part {
            Part::Blob(digest) => (PartKind::Blob, digest.to_string()),
            Part::Layer(diff_id) => (PartKind::Layer, diff_id.to_string()),
            Part::Top(image) => (PartKind::Top, image.to_string()),
        };
        let (state, bytes, damage) = match &check.finding {
            Finding::Whole(bytes) => (PartState::Whole, *bytes, Damage::default()),
            Finding::Unrecorded => (PartState::Unrecorded, 0, Damage::default()),
            Finding::Damaged(damage) => (PartState::Damaged, 0, damage.clone()),
        };
        let (state, unrepaired) = match repaired {
            None => (state, None),
            Some(Ok(())) => (PartState::Repaired, None),
            Some(Err(error)) => (state, Some(self.unrepaired(&error))),
        };
        let problem = |(path, problem)| PathProblem { path, problem };
        CheckedPart {
            kind,
            digest,
            images: check.images.iter().filter_map(|id| names.get(id)).cloned().collect(),
            state,
            bytes,
            problem_count: damage.count,
            problems: damage.told.into_iter().map(problem).collect(),
            unrepaired,
        }
    }

    fn unrepaired(&self, error: &RepairError) -> String {
        match error {
            RepairError::InUse { container } => match self.pod_of(container) {
                Some((_, who)) => format!("{who} stands on it: remove that pod's manifest, and repair then"),
                None => chain(error),
            },
            _ => chain(error),
        }
    }
}
