//! Pulls: tasks of their own, which go on while their worker does what is more urgent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use portreeve_plan::{Action, DesiredPod, ImageName, Step};

use super::super::observe::needing;
use super::super::{PullState, Worker, next_failure, still_to_pull};
use super::StepResult;
use crate::events::EventKind;
use crate::pulls::{self, Watched};
use crate::runtime::{ImageFacts, PullFailure};

/// How often a pod's status says how far its pulls are.
const SHOWN_EVERY: Duration = Duration::from_secs(2);

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
            if let Action::PullImage { image, containers } = &step.action {
                self.begin_pull(desired, image, containers);
                waiting.insert(image.clone());
            }
        }
        let mut failed = false;
        let mut shown_at = tokio::time::Instant::now();
        while !waiting.is_empty() {
            tokio::select! {
                // cancel-safe: a finished task stays in the set until it is joined.
                done = self.pull_tasks.join_next() => match done {
                    None => return StepResult::Interrupted,
                    Some(Ok(done)) => {
                        waiting.remove(&done.0);
                        failed |= done.2.is_err();
                        self.note_pull(done);
                    }
                    // A pull that panicked: asked for again by the next plan.
                    Some(Err(_)) => { self.pulls.retain(|_, state| matches!(state, PullState::Failed(_))); return StepResult::Interrupted; }
                },
                // cancel-safe: a change stays unseen until it is looked at.
                () = moved(&mut self.pulls, shown_at + SHOWN_EVERY) => {
                    let observed = self.observe(desired);
                    self.publish(desired, &observed, self.shared.clock.now());
                    shown_at = tokio::time::Instant::now();
                }
                // cancel-safe: the value stays in the channel.
                _ = self.mailbox.changed() => { self.mailbox.mark_changed(); self.keep_or_drop_pulls(); return StepResult::Interrupted; }
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

    fn begin_pull(&mut self, desired: &Arc<DesiredPod>, image: &ImageName, containers: &[String]) {
        let after = match self.pulls.get(image) {
            Some(PullState::Running { .. }) => return,
            Some(PullState::Failed(failure)) => Some(failure.clone()),
            None => None,
        };
        let (credentials, problems) = pulls::credentials(&desired.pod, &desired.configs);
        for problem in &problems {
            let message = format!("unable to use an image pull secret: {problem}");
            self.event(desired, None, EventKind::Warning, "FailedToRetrieveImagePullSecret", &message);
        }
        for container in containers {
            self.event(desired, Some(container), EventKind::Normal, "Pulling", &format!("Pulling image {:?}", image.0));
        }
        let pulls = Arc::clone(&self.shared.pulls);
        let runtime = Arc::clone(&self.shared.runtime);
        let (uid, name) = (self.uid.0.clone(), image.clone());
        let (sink, progress) = Watched::new();
        self.pull_tasks.spawn(async move {
            let began = tokio::time::Instant::now();
            let pull = pulls.pull(runtime, uid, name.0.clone(), credentials, sink);
            let result = pull.await.map_err(|mut failure| {
                for problem in &problems {
                    failure.message.push_str(&format!("; imagePullSecrets: {problem}"));
                }
                failure
            });
            (name, began.elapsed(), result)
        });
        self.pulls.insert(image.clone(), PullState::Running { after, progress });
    }

    /// An edit may want other images, or name other credentials: pulls begin anew.
    fn keep_or_drop_pulls(&mut self) {
        self.pull_tasks.abort_all();
        self.pulls.retain(|_, state| matches!(state, PullState::Failed(_)));
        while self.pull_tasks.try_join_next().is_some() {}
    }

    pub(in crate::worker) fn take_pulls(&mut self, _desired: &DesiredPod) {
        while let Some(done) = self.pull_tasks.try_join_next() {
            if let Ok(done) = done {
                self.note_pull(done);
            }
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

    /// Notes how a pull ended.
    pub(in crate::worker) fn note_pull(&mut self, done: (ImageName, Duration, Result<ImageFacts, PullFailure>)) {
        let (image, took, result) = done;
        let desired = Arc::clone(&self.mailbox.borrow());
        let label = if result.is_ok() { "success" } else { "failure" };
        self.shared.metrics.pulls.with_label_values(&[label]).observe(took.as_secs_f64());
        let before = match self.pulls.remove(&image) {
            Some(PullState::Running { after, .. }) => after,
            Some(PullState::Failed(failure)) => Some(failure),
            // Given up meanwhile.
            None => return,
        };
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
                self.pulls.insert(image, PullState::Failed(failure));
            }
        }
    }
}
