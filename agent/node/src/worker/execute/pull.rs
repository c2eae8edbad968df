//! Pulls: tasks of their own, which go on while their worker does what is more urgent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use portreeve_engine::image::Credential;
use portreeve_plan::{Action, DesiredPod, ImageName, Intent, Step};
use tokio::task::{AbortHandle, Id, JoinError};

use super::super::observe::needing;
use super::super::{PullDone, PullState, Worker, next_failure, still_to_pull};
use super::StepResult;
use crate::events::EventKind;
use crate::pulls::{self, Watched};

/// How often a pod's status says how far its pulls are.
const SHOWN_EVERY: Duration = Duration::from_secs(2);

/// A pull that runs, and what it was begun with.
#[derive(Debug)]
pub(in crate::worker) struct Running {
    task: AbortHandle,
    wanted: Wanted,
}

/// What of a pod's manifest, and of its Secrets, decides how an image is pulled.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// Of each thing that needs it.
    policies: BTreeSet<String>,
    credentials: Vec<Credential>,
}

impl Wanted {
    /// With a word for each login that cannot be read; `None` when the pod does not need the image.
    fn of(desired: &DesiredPod, image: &ImageName) -> Option<(Self, Vec<String>)> {
        let policies: BTreeSet<String> =
            needing(desired, &image.0).map(|(_, needed)| needed.policy.to_owned()).collect();
        if desired.intent != Intent::Run || policies.is_empty() {
            return None;
        }
        let (credentials, problems) = pulls::credentials(&desired.pod, &desired.configs);
        Some((Self { policies, credentials }, problems))
    }
}

/// Waits until a pull that runs is further than when it was looked at, and not before that time.
async fn moved(pulls: &mut BTreeMap<ImageName, PullState>, not_before: tokio::time::Instant) {
    tokio::time::sleep_until(not_before).await;
    let mut changes: FuturesUnordered<_> = pulls
        .values_mut()
        .filter_map(|state| match state {
            PullState::Running { progress, .. } => Some(progress.changed()),
            PullState::Failed(_) => None,
        })
        .collect();
    loop {
        match changes.next().await {
            Some(true) => return,
            // Those that have ended are told of by their tasks.
            Some(false) => {}
            None => std::future::pending::<()>().await,
        }
    }
}

impl Worker {
    /// Waits for pulls, and gives way to anything else that comes; they go on meanwhile.
    pub(super) async fn pull(&mut self, desired: &Arc<DesiredPod>, batch: &[Step]) -> StepResult {
        let mut waiting = BTreeSet::new();
        for step in batch {
            if let Action::PullImage { image, containers } = &step.action
                && self.begin_pull(desired, image, containers)
            {
                waiting.insert(image.clone());
            }
        }
        let mut failed = false;
        let mut shown_at = tokio::time::Instant::now();
        while !waiting.is_empty() {
            tokio::select! {
                // cancel-safe: a finished task stays in the set until it is joined.
                done = self.pull_tasks.join_next_with_id() => match done {
                    None => return StepResult::Interrupted,
                    Some(ended) => if let Some((image, pulled)) = self.note_pull(ended) {
                        waiting.remove(&image);
                        failed |= !pulled;
                    },
                },
                // cancel-safe: a change stays unseen until it is looked at.
                () = moved(&mut self.pulls, shown_at + SHOWN_EVERY) => {
                    let observed = self.observe(desired);
                    self.publish(desired, &observed, self.shared.clock.now());
                    shown_at = tokio::time::Instant::now();
                }
                // cancel-safe: the value stays in the channel.
                _ = self.mailbox.changed() => { self.mailbox.mark_changed(); return StepResult::Interrupted; }
                // cancel-safe: a notification stays stored.
                () = self.wake.notified() => return StepResult::Interrupted,
                // cancel-safe: see there.
                Some(done) = self.kills.next() => {
                    self.take_kill(done);
                    return StepResult::Interrupted;
                }
                // cancel-safe: a report stays in the channel until it is received.
                report = self.probe_inbox.recv() => if let Some(report) = report {
                    self.take_report(&report);
                    return StepResult::Interrupted;
                },
                // cancel-safe: a state.
                () = self.stop.cancelled() => return StepResult::Interrupted,
            }
        }
        // A failed pull is the image's failure, not the plan's: the next plan sees it.
        if failed { StepResult::Interrupted } else { StepResult::Done }
    }

    /// Whether there is something to wait for.
    fn begin_pull(&mut self, desired: &Arc<DesiredPod>, image: &ImageName, containers: &[String]) -> bool {
        let after = match self.pulls.get(image) {
            Some(PullState::Running { .. }) => return true,
            Some(PullState::Failed(failure)) => Some(failure.clone()),
            None => None,
        };
        let Some((wanted, problems)) = Wanted::of(desired, image) else { return false };
        for problem in &problems {
            let message = format!("unable to use an image pull secret: {problem}");
            self.event(desired, None, EventKind::Warning, "FailedToRetrieveImagePullSecret", &message);
        }
        for container in containers {
            self.event(desired, Some(container), EventKind::Normal, "Pulling", &format!("Pulling image {:?}", image.0));
        }
        let pulls = Arc::clone(&self.shared.pulls);
        let runtime = Arc::clone(&self.shared.runtime);
        let (uid, name) = (self.uid.0.clone(), image.0.clone());
        let (sink, progress) = Watched::new();
        let credentials = wanted.credentials.clone();
        let task = self.pull_tasks.spawn(async move {
            let began = tokio::time::Instant::now();
            let pull = pulls.pull(runtime, uid, name, credentials, sink);
            let result = pull.await.map_err(|mut failure| {
                for problem in &problems {
                    failure.message.push_str(&format!("; imagePullSecrets: {problem}"));
                }
                failure
            });
            (began.elapsed(), result)
        });
        self.pulls.insert(image.clone(), PullState::Running { after, progress, running: Running { task, wanted } });
        true
    }

    /// Gives up pulls of images that the pod does not want any more, or wants by other logins or another policy; the
    /// next plan asks for those again. The others go on, whatever else was edited.
    pub(in crate::worker) fn drop_unwanted_pulls(&mut self, desired: &DesiredPod) {
        self.pulls.retain(|image, state| {
            let PullState::Running { running, .. } = state else { return true };
            let wanted = Wanted::of(desired, image).is_some_and(|(wanted, _)| wanted == running.wanted);
            if !wanted {
                running.task.abort();
            }
            wanted
        });
    }

    pub(in crate::worker) fn take_pulls(&mut self) {
        while let Some(ended) = self.pull_tasks.try_join_next_with_id() {
            self.note_pull(ended);
        }
    }

    /// Forgets failures of pulls that are not the pod's to make any more.
    pub(in crate::worker) fn drop_settled_pulls(&mut self, desired: &DesiredPod) {
        let settled = |(image, state): (&ImageName, &PullState)| {
            let over = matches!(state, PullState::Failed(_)) && !still_to_pull(&self.shared, desired, &image.0);
            over.then(|| image.clone())
        };
        let settled: Vec<ImageName> = self.pulls.iter().filter_map(settled).collect();
        for image in settled {
            self.shared.pulls.settled(&self.uid.0, &image.0);
            self.book().notes.failed_pulls.remove(&image.0);
            self.pulls.remove(&image);
        }
    }

    /// Notes how a pull ended: which, and whether the image is there; nothing when it was given up before.
    pub(in crate::worker) fn note_pull(
        &mut self,
        ended: Result<(Id, PullDone), JoinError>,
    ) -> Option<(ImageName, bool)> {
        // By its task: one that was begun anew has the same name.
        let task = ended.as_ref().map_or_else(JoinError::id, |(task, _)| *task);
        let (image, before) = self.pulls.iter().find_map(|(image, state)| match state {
            PullState::Running { after, running, .. } if running.task.id() == task => {
                Some((image.clone(), after.clone()))
            }
            _ => None,
        })?;
        self.pulls.remove(&image);
        // One that panicked is asked for again by the next plan.
        let Ok((_, (took, result))) = ended else { return Some((image, false)) };
        let pulled = result.is_ok();
        let desired = Arc::clone(&self.mailbox.borrow());
        let label = if pulled { "success" } else { "failure" };
        self.shared.metrics.pulls.with_label_values(&[label]).observe(took.as_secs_f64());
        let mut users: Vec<String> = needing(&desired, &image.0).map(|(container, _)| container.name.clone()).collect();
        users.dedup();
        match result {
            Ok(facts) => {
                let now = self.shared.clock.now();
                let mut book = self.book();
                book.notes.pulled_at.insert(image.0.clone(), now);
                book.notes.failed_pulls.remove(&image.0);
                drop(book);
                let mut message = format!(
                    "Successfully pulled image {:?} in {} ms, {} bytes",
                    image.0,
                    took.as_millis(),
                    facts.size_bytes
                );
                if let Some(way) = &facts.way {
                    message.push_str(&format!(", {way}"));
                }
                for user in &users {
                    self.event(&desired, Some(user), EventKind::Normal, "Pulled", &message);
                }
            }
            Err(error) => {
                let now = self.shared.clock.now();
                let mut failure = next_failure(before.as_ref(), &desired, now, &error.reason, error.message.clone());
                failure.not_before = error.retry_after.and_then(|pause| now.checked_add(pause).ok());
                let next = pulls::next_try(&failure);
                self.shared.pulls.failed(&self.uid.0, &image.0, &failure);
                let mut book = self.book();
                book.notes.failed_pulls.retain(|other, _| needing(&desired, other).next().is_some());
                if error.by_setting {
                    book.notes.failed_pulls.remove(&image.0);
                } else {
                    book.notes.failed_pulls.insert(image.0.clone(), failure.clone());
                }
                drop(book);
                let message = format!("Failed to pull image {:?}: {}", image.0, error.message);
                for user in &users {
                    self.back_off(&desired, Some(user), "Failed", &message, next);
                }
                self.pulls.insert(image.clone(), PullState::Failed(failure));
            }
        }
        Some((image, pulled))
    }
}
