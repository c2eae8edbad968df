//! Effects, in the order of the plan; the first failure ends the round.
//!
//! What happened is reported and noted; whether and when to try again is the planner's.

mod container;
mod pull;
mod sandbox;
mod volumes;

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use portreeve_engine::ContainerId;
use portreeve_plan::{Action, Attempted, Beside, DesiredPod, Finished, ObservedPod, Plan, status};
use tokio::sync::oneshot;
use tracing::debug;

use super::{Outcome, Worker, WorkerNews};
use crate::events::EventKind;
use crate::volumes::Facts;
pub(super) use pull::Running;

/// A step that failed: what it was about, the planner's reason, the event's reason, the error.
struct StepFailure {
    what: Attempted,
    reason: &'static str,
    event: &'static str,
    container: Option<String>,
    message: String,
}

enum StepResult {
    Done,
    Interrupted,
    Failed(StepFailure),
}

impl Worker {
    /// Does the steps of `plan`, as far as containers that are being stopped allow, until one fails
    /// or something more urgent comes.
    ///
    /// `now` is the plan's: what it left each stop is counted from then.
    pub(super) async fn execute(
        &mut self,
        desired: &Arc<DesiredPod>,
        observed: &ObservedPod,
        plan: &Plan,
        now: Timestamp,
    ) -> Outcome {
        let mut did = false;
        for batch in plan.batches() {
            if self.stop.is_cancelled() {
                return Outcome::Interrupted;
            }
            let Some(action) = batch.first().map(|step| &step.action) else {
                continue;
            };
            match action.beside_stops(&self.kills.names()) {
                Beside::Now => {}
                Beside::Skip => continue,
                Beside::Wait => break,
            }
            let began = Instant::now();
            let result = match action {
                Action::KillContainer { .. } => {
                    did |= self.begin_kills(desired, observed, batch, now);
                    continue;
                }
                Action::PullImage { .. } => self.pull(desired, batch).await,
                action => self.act(desired, observed, action).await,
            };
            did = true;
            let failed = matches!(result, StepResult::Failed(_));
            for step in batch {
                let name = step_name(&step.action);
                self.shared.metrics.step(name, began.elapsed(), failed);
                debug!(step = %step.action, reason = %step.reason, failed, elapsed = ?began.elapsed(), "step executed");
            }
            match result {
                StepResult::Done => {
                    for step in batch {
                        self.succeeded(&step.action);
                    }
                    if batch.iter().any(|step| matches!(step.action, Action::StopSandbox { .. })) {
                        // What was ready is not any more, long before its successor is.
                        let observed = self.observe(desired);
                        self.publish(desired, &observed, self.shared.clock.now());
                    }
                }
                StepResult::Interrupted => return Outcome::Interrupted,
                StepResult::Failed(failure) => {
                    let until = self.fail(desired, failure.what, failure.reason, failure.message.clone());
                    self.back_off(desired, failure.container.as_deref(), failure.event, &failure.message, until);
                    return Outcome::Failed;
                }
            }
        }
        if did { Outcome::Done } else { Outcome::Waiting }
    }

    /// A success ends the back-off of its kind.
    fn succeeded(&mut self, action: &Action) {
        match action {
            Action::CreateSandbox { .. } => self.failures.remove(&Attempted::Sandbox),
            Action::MountVolumes { .. } | Action::RefreshVolumes { .. } | Action::UnmountVolumes { .. } => {
                self.failures.remove(&Attempted::Volumes)
            }
            // Only a container that was started has got over what kept it from starting.
            Action::StartContainer { container, .. } => self.failures.remove(&Attempted::Container(container.clone())),
            Action::UpdateResources { container, .. } => self.failures.remove(&Attempted::Resources(container.clone())),
            Action::RemoveContainer { .. }
            | Action::StopSandbox { .. }
            | Action::RemoveSandbox { .. }
            | Action::RecordFinished { .. } => self.failures.remove(&Attempted::Removal),
            Action::PullImage { .. }
            | Action::CreateContainer { .. }
            | Action::RunPostStart { .. }
            // See `take_kill`.
            | Action::KillContainer { .. } => None,
        };
    }

    async fn act(&mut self, desired: &Arc<DesiredPod>, observed: &ObservedPod, action: &Action) -> StepResult {
        let result = match action {
            Action::RecordFinished { finished } => self.record_finished(desired, observed, finished).await,
            Action::MountVolumes { volumes } => self.mount(desired, volumes, "FailedMount").await,
            Action::RefreshVolumes { volumes } => self.mount(desired, volumes, "FailedMount").await,
            Action::UnmountVolumes { volumes } => self.unmount(volumes).await,
            Action::CreateSandbox { attempt, backoff } => {
                self.create_sandbox(desired, observed, *attempt, *backoff).await
            }
            Action::CreateContainer { container, attempt, backoff } => {
                self.create_container(desired, container, *attempt, *backoff).await
            }
            Action::StartContainer { container, attempt } => self.start_container(desired, container, *attempt).await,
            Action::RunPostStart { container, attempt } => {
                return self.post_start(desired, observed, container, *attempt).await;
            }
            Action::RemoveContainer { id, .. } => self.remove_container(id).await,
            Action::UpdateResources { id, container, resources } => match id.0.parse::<ContainerId>() {
                Ok(id) => self.update_resources(desired, observed, &id, container, *resources).await,
                Err(_) => Ok(()),
            },
            Action::StopSandbox { id } => self.stop_sandbox(id).await,
            Action::RemoveSandbox { id } => self.remove_sandbox(id).await,
            // Batches of their own.
            Action::PullImage { .. } | Action::KillContainer { .. } => Ok(()),
        };
        match result {
            Ok(()) => StepResult::Done,
            Err(failure) => StepResult::Failed(failure),
        }
    }

    fn facts<'a>(&'a self, desired: &'a DesiredPod) -> Facts<'a> {
        Facts { pod: &desired.pod, uid: &self.uid.0, configs: &desired.configs, node: &self.shared.node }
    }

    async fn record_finished(
        &mut self,
        desired: &Arc<DesiredPod>,
        observed: &ObservedPod,
        finished: &Finished,
    ) -> Result<(), StepFailure> {
        let why = finished.reason.clone().zip(finished.message.clone());
        let mut finished = finished.clone();
        let mut ended = (**desired).clone();
        ended.finished = Some(finished.clone());
        finished.status = Some(Box::new(status(&ended, observed, self.shared.clock.now())));
        let (done, answer) = oneshot::channel();
        let news = WorkerNews::Finished { desired: Arc::clone(desired), finished: Box::new(finished), done };
        let failed = |message: String| removal_failure("FailedRecord", message);
        self.shared.outbox.send(news).map_err(|_| failed("the node is shutting down".to_owned()))?;
        let answer = tokio::select! {
            // cancel-safe: whoever stops waits for no answer.
            answer = answer => answer,
            // cancel-safe: a state.
            () = self.stop.cancelled() => return Err(failed("the node is shutting down".to_owned())),
        };
        match answer {
            Ok(Ok(())) => {
                if let Some((reason, message)) = why {
                    self.event(desired, None, EventKind::Warning, &reason, &message);
                }
                Ok(())
            }
            Ok(Err(message)) => Err(failed(message)),
            Err(_) => Err(failed("the node is shutting down".to_owned())),
        }
    }
}

fn removal_failure(event: &'static str, message: String) -> StepFailure {
    StepFailure { what: Attempted::Removal, reason: event, event, container: None, message }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

fn step_name(action: &Action) -> &'static str {
    match action {
        Action::RecordFinished { .. } => "RecordFinished",
        Action::PullImage { .. } => "PullImage",
        Action::MountVolumes { .. } => "MountVolumes",
        Action::RefreshVolumes { .. } => "RefreshVolumes",
        Action::UnmountVolumes { .. } => "UnmountVolumes",
        Action::CreateSandbox { .. } => "CreateSandbox",
        Action::CreateContainer { .. } => "CreateContainer",
        Action::StartContainer { .. } => "StartContainer",
        Action::RunPostStart { .. } => "RunPostStart",
        Action::KillContainer { .. } => "KillContainer",
        Action::RemoveContainer { .. } => "RemoveContainer",
        Action::UpdateResources { .. } => "UpdateResources",
        Action::StopSandbox { .. } => "StopSandbox",
        Action::RemoveSandbox { .. } => "RemoveSandbox",
    }
}
