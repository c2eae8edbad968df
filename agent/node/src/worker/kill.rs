//! Graceful stops: noted first, preStop, stop signal, and a deadline that may only come nearer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::{SignedDuration, Timestamp};
use portreeve_engine::ContainerId;
use portreeve_plan::{Action, ContainerView, DesiredPod, KillCause, ObservedPod, Step, Stopping, plan};
use tokio::sync::watch;
use tracing::warn;

use super::Worker;
use crate::clock::Clock;
use crate::error::chain;
use crate::events::EventKind;
use crate::notes::NoteBook;
use crate::probes::{Handler, Target, run};
use crate::runtime::Runtime;

/// What is left for the stop signal when preStop took all; the kubelet's.
const LEAST_AFTER_PRE_STOP: Duration = Duration::from_secs(2);

/// One stop in progress.
struct Kill {
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    book: Arc<Mutex<NoteBook>>,
    id: ContainerId,
    cause: KillCause,
    deadline: watch::Receiver<Timestamp>,
    pre_stop: Option<(Handler, Target)>,
}

/// What a stop had to say: an error of preStop, an error of the stop itself.
struct Killed {
    container: String,
    hook_error: Option<String>,
    error: Option<String>,
}

impl Worker {
    pub(super) async fn kill_batch(
        &mut self,
        desired: &Arc<DesiredPod>,
        observed: &ObservedPod,
        batch: &[Step],
    ) -> Result<(), String> {
        let now = self.shared.clock.now();
        let mut kills = FuturesUnordered::new();
        let mut deadlines = Vec::new();
        for step in batch {
            let Action::KillContainer { id, container, grace, pre_stop, cause } = &step.action else {
                continue;
            };
            let Ok(engine_id) = id.0.parse::<ContainerId>() else {
                continue;
            };
            let view = observed.containers.iter().find(|view| view.id == *id);
            let until = after(now, *grace);
            let begun = view.is_some_and(|view| view.stopping.is_some());
            if !begun {
                let message = killing(container, *cause);
                self.event(desired, Some(container), EventKind::Normal, "Killing", &message);
            }
            let (deadline, receiver) = watch::channel(until);
            deadlines.push((id.clone(), deadline));
            let kill = Kill {
                runtime: Arc::clone(&self.shared.runtime),
                clock: self.shared.clock.clone(),
                book: Arc::clone(&self.book),
                cause: *cause,
                deadline: receiver,
                pre_stop: pre_stop.then(|| self.pre_stop(view, &engine_id, observed)).flatten(),
                id: engine_id,
            };
            kills.push(kill.run(container.clone()));
        }
        let mut errors = Vec::new();
        let mut mailbox = self.mailbox.clone();
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                // cancel-safe: a finished stop stays in the set until it is taken.
                killed = kills.next() => match killed {
                    None => break,
                    Some(killed) => {
                        if let Some(message) = killed.hook_error {
                            let message = format!("PreStopHook failed: {message}");
                            self.event(desired, Some(&killed.container), EventKind::Warning, "FailedPreStopHook", &message);
                        }
                        errors.extend(killed.error.map(|error| format!("stopping container {}: {error}", killed.container)));
                    }
                },
                // cancel-safe: the value stays in the channel.
                Ok(()) = mailbox.changed() => {
                    let newer = Arc::clone(&mailbox.borrow_and_update());
                    self.shorten(&newer, &deadlines);
                }
                // cancel-safe: a state. What is half stopped is stopped by the next agent.
                () = stop.cancelled() => break,
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// A newer wish may leave less time; never more.
    fn shorten(
        &mut self,
        newer: &Arc<DesiredPod>,
        deadlines: &[(portreeve_plan::ContainerId, watch::Sender<Timestamp>)],
    ) {
        let observed = self.observe(newer);
        let now = self.shared.clock.now();
        for step in plan(newer, &observed, now).steps {
            let Action::KillContainer { id, grace, .. } = step.action else {
                continue;
            };
            let until = after(now, grace);
            for (_, deadline) in deadlines.iter().filter(|(of, _)| *of == id) {
                deadline.send_if_modified(|deadline| {
                    let nearer = until < *deadline;
                    if nearer {
                        *deadline = until;
                    }
                    nearer
                });
            }
        }
        self.publish(newer, &observed, now);
    }

    fn pre_stop(
        &self,
        view: Option<&ContainerView>,
        id: &ContainerId,
        observed: &ObservedPod,
    ) -> Option<(Handler, Target)> {
        // The hook that belongs to what runs, not to what an edit made of it.
        let container = &view?.record.as_ref()?.container;
        let hook = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
        Some((Handler::of_hook(hook)?, self.target(id, container, observed)))
    }
}

impl Kill {
    async fn run(mut self, container: String) -> Killed {
        let mut killed = Killed { container, hook_error: None, error: None };
        let has_hook = self.pre_stop.is_some();
        self.note(!has_hook);
        if let Some((handler, target)) = self.pre_stop.take() {
            killed.hook_error = self.run_hook(&handler, &target).await.err();
            self.note(true);
        }
        loop {
            let deadline = *self.deadline.borrow_and_update();
            let mut left = self.clock.until(deadline);
            if has_hook {
                left = left.max(LEAST_AFTER_PRE_STOP);
            }
            let (runtime, id) = (Arc::clone(&self.runtime), self.id.clone());
            tokio::select! {
                // cancel-safe: stopping again with less time is what follows.
                stopped = runtime.stop_container(&id, left) => {
                    killed.error = stopped.err().map(|error| chain(&error));
                    return killed;
                }
                // cancel-safe: the value stays in the channel; without a sender nothing comes.
                Ok(()) = self.deadline.changed() => self.note(true),
            }
        }
    }

    /// Runs preStop for as long as the deadline, as it is then, allows.
    async fn run_hook(&mut self, handler: &Handler, target: &Target) -> Result<(), String> {
        let hook = run(handler, target, Duration::ZERO);
        tokio::pin!(hook);
        loop {
            let left = self.clock.until(*self.deadline.borrow_and_update());
            tokio::select! {
                // cancel-safe: pinned outside.
                result = &mut hook => return result,
                // cancel-safe: a timer.
                () = tokio::time::sleep(left) => return Err("did not end within the grace period".to_owned()),
                // cancel-safe: the value stays in the channel.
                Ok(()) = self.deadline.changed() => {}
            }
        }
    }

    /// Notes the stop, so that another agent goes on where this one was.
    fn note(&self, pre_stop_ran: bool) {
        let stopping = Stopping { deadline: *self.deadline.borrow(), pre_stop_ran, cause: self.cause };
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.notes.of_mut(&self.id).set_stopping(&stopping);
        if let Err(error) = book.save() {
            warn!(container_id = %self.id, error = %error, "a graceful stop was not noted");
        }
    }
}

fn after(now: Timestamp, grace: Duration) -> Timestamp {
    SignedDuration::try_from(grace).ok().and_then(|grace| now.checked_add(grace).ok()).unwrap_or(Timestamp::MAX)
}

fn killing(container: &str, cause: KillCause) -> String {
    match cause {
        KillCause::LivenessFailed => format!("Container {container} failed liveness probe, will be restarted"),
        KillCause::StartupFailed => format!("Container {container} failed startup probe, will be restarted"),
        KillCause::ContainerChanged => format!("Container {container} definition changed, will be restarted"),
        cause => format!("Stopping container {container}: {cause}"),
    }
}
