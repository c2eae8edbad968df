//! Graceful stops: noted first, preStop, stop signal, and a deadline that may only come nearer.
//!
//! A stop goes on beside its worker, which looks after the rest of the pod meanwhile and asks the
//! planner what may be done until it has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use portreeve_engine::ContainerId;
use portreeve_plan::{
    Action, Attempted, ContainerState, ContainerView, DesiredPod, KillCause, ObservedPod, Step, Stopping,
};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::{debug, warn};

use super::Worker;
use crate::clock::Clock;
use crate::events::EventKind;
use crate::notes::NoteBook;
use crate::probes::{Handler, Target, run};
use crate::runtime::Runtime;
use portreeve_engine::chain;

/// What is left for the stop signal when preStop took all; the kubelet's.
const LEAST_AFTER_PRE_STOP: Duration = Duration::from_secs(2);

/// The stops of one pod that are going on, one for each container.
#[derive(Debug, Default)]
pub(super) struct Kills {
    going: BTreeMap<ContainerId, Going>,
    tasks: JoinSet<Killed>,
}

#[derive(Debug)]
struct Going {
    container: String,
    deadline: watch::Sender<Timestamp>,
    began: Instant,
    /// Whether preStop is still running.
    in_hook: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Kills {
    /// The names of the containers that are being stopped.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.going.values().map(|going| going.container.clone()).collect()
    }

    /// The next stop that is through; `None` if none is going on.
    ///
    /// # Cancel safety
    /// A stop that is through stays until it is taken.
    pub(super) async fn next(&mut self) -> Option<Result<Killed, JoinError>> {
        self.tasks.join_next().await
    }
}

/// One stop in progress.
struct Kill {
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    book: Arc<Mutex<NoteBook>>,
    id: ContainerId,
    cause: KillCause,
    deadline: watch::Receiver<Timestamp>,
    pre_stop: Option<(Handler, Target)>,
    in_hook: Arc<AtomicBool>,
}

/// What a stop had to say: an error of preStop, an error of the stop itself.
#[derive(Debug)]
pub(super) struct Killed {
    id: ContainerId,
    container: String,
    hook_error: Option<String>,
    error: Option<String>,
}

impl Worker {
    /// Begins the stops of a batch that are not going on yet, each noted on disk before; the time
    /// left of the others may become less. Says whether one is new.
    ///
    /// `now` is the plan's: counted from any other moment, each look at a stop would move its
    /// deadline a little, and a deadline that comes nearer is a signal.
    pub(super) fn begin_kills(
        &mut self,
        desired: &DesiredPod,
        observed: &ObservedPod,
        batch: &[Step],
        now: Timestamp,
    ) -> bool {
        let mut new = false;
        for step in batch {
            let Action::KillContainer { id, container, grace, pre_stop, cause } = &step.action else {
                continue;
            };
            let Ok(engine_id) = id.0.parse::<ContainerId>() else {
                continue;
            };
            let until = after(now, *grace);
            if let Some(going) = self.kills.going.get(&engine_id) {
                going.shorten(until);
                continue;
            }
            let view = observed.containers.iter().find(|view| view.id == *id);
            let begun = view.and_then(|view| view.stopping.as_ref());
            if begun.is_none() {
                let message = killing(container, *cause);
                self.event(desired, Some(container), EventKind::Normal, "Killing", &message);
            }
            // Another agent may have begun it.
            let (deadline, receiver) = watch::channel(begun.map_or(until, |begun| until.min(begun.deadline)));
            let pre_stop = pre_stop.then(|| self.pre_stop(view, &engine_id, observed)).flatten();
            let in_hook = Arc::new(AtomicBool::new(pre_stop.is_some()));
            let kill = Kill {
                runtime: Arc::clone(&self.shared.runtime),
                clock: self.shared.clock.clone(),
                book: Arc::clone(&self.book),
                cause: *cause,
                deadline: receiver,
                pre_stop,
                in_hook: Arc::clone(&in_hook),
                id: engine_id.clone(),
            };
            kill.note(kill.pre_stop.is_none());
            debug!(container = %container, reason = %step.reason, "stop began");
            let task = self.kills.tasks.spawn(kill.run(container.clone()));
            let going = Going { container: container.clone(), deadline, began: Instant::now(), in_hook, task };
            self.kills.going.insert(engine_id, going);
            new = true;
        }
        new
    }

    /// Looks at the stops that are through.
    pub(super) fn take_kills(&mut self) {
        while let Some(done) = self.kills.tasks.try_join_next() {
            self.take_kill(done);
        }
    }

    /// What a stop had to say.
    pub(super) fn take_kill(&mut self, done: Result<Killed, JoinError>) {
        let desired = Arc::clone(&self.mailbox.borrow());
        let killed = match done {
            Ok(killed) => killed,
            Err(error) => {
                self.kills.going.retain(|_, going| !going.task.is_finished());
                if error.is_panic() {
                    self.kill_failed(&desired, format!("stopping a container: {error}"));
                }
                return;
            }
        };
        if let Some(going) = self.kills.going.remove(&killed.id) {
            self.tell_end(&going, killed.error.is_some());
        }
        if let Some(message) = killed.hook_error {
            let message = format!("PreStopHook failed: {message}");
            self.event(&desired, Some(&killed.container), EventKind::Warning, "FailedPreStopHook", &message);
        }
        match killed.error {
            Some(error) => self.kill_failed(&desired, format!("stopping container {}: {error}", killed.container)),
            None => drop(self.failures.remove(&Attempted::Removal)),
        }
    }

    fn kill_failed(&mut self, desired: &DesiredPod, message: String) {
        let until = self.fail(desired, Attempted::Removal, "FailedKillPod", message.clone());
        self.back_off(desired, None, "FailedKillPod", &message, until);
    }

    /// Gives up the hooks of what has ended meanwhile: they have nothing left to prepare. A stop
    /// whose hook is through ends by itself, and has to say how the hook went.
    pub(super) fn drop_kills_of_ended(&mut self, observed: &ObservedPod) {
        let runs = |id: &ContainerId| {
            let view = observed.containers.iter().find(|view| view.id.0 == id.as_str());
            view.is_some_and(|view| matches!(view.state, ContainerState::Running { .. }))
        };
        let vain = |(id, going): &(&ContainerId, &Going)| going.in_hook.load(Ordering::Acquire) && !runs(id);
        let ended: Vec<ContainerId> = self.kills.going.iter().filter(vain).map(|(id, _)| id.clone()).collect();
        for id in ended {
            if let Some(going) = self.kills.going.remove(&id) {
                going.task.abort();
                self.tell_end(&going, false);
            }
        }
    }

    fn tell_end(&self, going: &Going, failed: bool) {
        let elapsed = going.began.elapsed();
        self.shared.metrics.step("KillContainer", elapsed, failed);
        debug!(container = %going.container, failed, elapsed = ?elapsed, "stop ended");
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

impl Going {
    /// A newer wish may leave less time; never more.
    fn shorten(&self, until: Timestamp) {
        self.deadline.send_if_modified(|deadline| {
            let nearer = until < *deadline;
            if nearer {
                *deadline = until;
            }
            nearer
        });
    }
}

impl Kill {
    async fn run(mut self, container: String) -> Killed {
        let mut killed = Killed { id: self.id.clone(), container, hook_error: None, error: None };
        let has_hook = self.pre_stop.is_some();
        if let Some((handler, target)) = self.pre_stop.take() {
            killed.hook_error = self.run_hook(&handler, &target).await.err();
            self.in_hook.store(false, Ordering::Release);
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
                result = &mut hook => return result.map_err(|miss| miss.to_string()),
                // cancel-safe: a timer.
                () = tokio::time::sleep(left) => return Err("did not end within the grace period".to_owned()),
                // cancel-safe: the value stays in the channel.
                Ok(()) = self.deadline.changed() => self.note(false),
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
