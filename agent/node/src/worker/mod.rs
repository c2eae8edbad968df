//! One task per pod: observe, plan, execute, wait.
//!
//! ```text
//!            +--------- desired (latest wins), engine event, probe verdict, wake_at ---------+
//!            v                                                                               |
//!   observe --> plan --> status published --> steps? --no--> notes saved, wait --------------+
//!      ^                                        |
//!      +-------- done, or first failure <-- execute in order
//! ```
//!
//! **Invariant:** a pod has one worker, and a worker does one thing at a time. What arrives while
//! it is busy is looked at when it is done; only a pull and a postStart hook give way before.
//! Graceful stops go on beside it, see [`kill`]: each is noted on disk before it begins.

mod execute;
mod kill;
mod log_end;
mod observe;
mod tell;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portreeve_engine::{ContainerId, EngineError};
use portreeve_plan::{
    Attempted, DesiredPod, Failure, Finished, ImageName, Intent, ObservedPod, Past, PodUid, SandboxId, next_try, past,
    plan, remember, status,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::clock::Clock;
use crate::events::{EventKind, Events, Subject};
use crate::history::{History, NamespacedName};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::notes::{NoteBook, NotesError, PastBook};
use crate::probes::{ProbeReport, Probes};
use crate::pulls::{Pulls, Watched};
use crate::runtime::{ImageFacts, PullFailure, Runtime};
use crate::translate::Place;
use crate::volumes::{NodeFacts, Volumes};

/// A step that has begun when the node stops has this long to end.
const STOPS_WITHIN: Duration = Duration::from_secs(5);
/// A plan that is made again and again without a pause is slowed down after so many rounds.
const MAX_HASTE: u32 = 20;

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) clock: Clock,
    pub(crate) place: Place,
    pub(crate) volumes: Volumes,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Metrics,
    pub(crate) node: NodeFacts,
    pub(crate) pulls: Arc<Pulls>,
    pub(crate) index: Index,
    pub(crate) pods: Arc<History<Pod>>,
    pub(crate) outbox: mpsc::UnboundedSender<WorkerNews>,
    /// What each worker saw last, for previews.
    pub(crate) observed: Mutex<BTreeMap<PodUid, Arc<ObservedPod>>>,
    /// When the node started.
    pub(crate) started_at: Timestamp,
    /// Held while a pod with its own users gets its ids and its sandbox.
    pub(crate) ids: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What a worker tells the supervisor.
#[derive(Debug)]
pub(crate) enum WorkerNews {
    /// This version of the pod has ended; answered when that is on disk.
    Finished { desired: Arc<DesiredPod>, finished: Box<Finished>, done: oneshot::Sender<Result<(), String>> },
    /// Nothing of the pod is left; the worker has ended.
    Removed { uid: PodUid },
    /// The pod was to rest, and does.
    Rests { uid: PodUid },
    /// The pod got or lost its sandbox, which decides who holds host ports.
    Holds,
}

/// A pull of this pod.
#[derive(Debug)]
enum PullState {
    Running { after: Option<Failure>, progress: Watched, running: execute::Running },
    Failed(Failure),
}

/// How long a pull took, and what came of it.
type PullDone = (Duration, Result<ImageFacts, PullFailure>);

/// How executing a plan ended.
enum Outcome {
    /// Every step was done.
    Done,
    /// A step failed; it is noted.
    Failed,
    /// Something more urgent came; plan again.
    Interrupted,
    /// Everything that is left waits for a container that is being stopped.
    Waiting,
}

/// One pod's task.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    uid: PodUid,
    mailbox: watch::Receiver<Arc<DesiredPod>>,
    wake: Arc<Notify>,
    stop: CancellationToken,
    book: Arc<Mutex<NoteBook>>,
    past: PastBook,
    failures: BTreeMap<Attempted, Failure>,
    pulls: BTreeMap<ImageName, PullState>,
    pull_tasks: JoinSet<PullDone>,
    kills: kill::Kills,
    probes: Probes,
    probe_inbox: mpsc::Receiver<ProbeReport>,
    records: observe::Records,
    told: BTreeSet<(Option<String>, String, Option<Timestamp>, String)>,
    /// Sandboxes whose loss was told.
    lost: BTreeSet<SandboxId>,
    was_ready_at: Option<Timestamp>,
}

/// What the supervisor holds of a worker.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    pub(crate) mailbox: watch::Sender<Arc<DesiredPod>>,
    pub(crate) wake: Arc<Notify>,
}

impl Worker {
    /// A worker and what to reach it by.
    pub(crate) fn new(shared: &Arc<Shared>, desired: Arc<DesiredPod>, stop: CancellationToken) -> (Self, WorkerHandle) {
        let uid = desired.uid.clone();
        let (outbox, probe_inbox) = mpsc::channel(64);
        let wake = Arc::new(Notify::new());
        let mut book = NoteBook::open(&shared.volumes.memory_of(&uid.0));
        book.notes.failed_pulls.retain(|image, _| still_to_pull(shared, &desired, image));
        let failed = book.notes.failed_pulls.iter();
        let pulls: BTreeMap<_, _> =
            failed.map(|(image, failure)| (ImageName(image.clone()), PullState::Failed(failure.clone()))).collect();
        for (image, state) in &pulls {
            if let PullState::Failed(failure) = state {
                shared.pulls.failed(&uid.0, &image.0, failure);
            }
        }
        let directory = shared.volumes.disk_of(&uid.0);
        let past = PastBook::open(&directory).unwrap_or_else(|error| lost_past(shared, &desired, &directory, &error));
        let (sender, mailbox) = watch::channel(desired);
        let worker = Self {
            shared: Arc::clone(shared),
            mailbox,
            wake: Arc::clone(&wake),
            stop,
            book: Arc::new(Mutex::new(book)),
            past,
            failures: BTreeMap::new(),
            pulls,
            pull_tasks: JoinSet::new(),
            kills: kill::Kills::default(),
            probes: Probes::new(Arc::clone(&shared.runtime), shared.clock.clone(), outbox),
            probe_inbox,
            records: observe::Records::default(),
            told: BTreeSet::new(),
            lost: BTreeSet::new(),
            was_ready_at: None,
            uid,
        };
        (worker, WorkerHandle { mailbox: sender, wake })
    }

    fn book(&self) -> MutexGuard<'_, NoteBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) {
        if let Err(error) = self.book().save() {
            warn!(pod_uid = %self.uid, error = %error, "notes of a pod were not written");
        }
    }

    /// Works until the pod is gone or the node stops; containers are left as they are.
    pub(crate) async fn run(mut self) {
        let mut haste = 0_u32;
        let mut trigger = "start";
        loop {
            if self.stop.is_cancelled() {
                return;
            }
            let desired = Arc::clone(&self.mailbox.borrow_and_update());
            let key = desired.key();
            let span = info_span!("reconcile", pod = %key, pod_uid = %self.uid, trigger);
            let stop = self.stop.clone();
            let reconciled = tokio::select! {
                // Boxed, so that a worker that waits does not hold the room of a round.
                round = Box::pin(self.reconcile(&desired)).instrument(span) => round,
                // What is half done then is found by the next agent, as after a kill.
                () = async { stop.cancelled().await; tokio::time::sleep(STOPS_WITHIN).await } => return,
            };
            let (wake_at, again) = match reconciled {
                Round::Removed => return,
                Round::Again => (None, true),
                Round::Wait(wake_at) => (wake_at, false),
            };
            if again {
                haste += 1;
                if haste < MAX_HASTE {
                    trigger = "again";
                    continue;
                }
                // A plan that never ends is a defect; it must not take the machine with it.
                warn!(pod = %key, "plan did not come to rest, slowing down");
            } else {
                haste = 0;
            }
            let pause = again.then(|| Duration::from_secs(1));
            let Some(next) = self.wait(wake_at, pause).await else {
                return;
            };
            trigger = next;
        }
    }

    async fn reconcile(&mut self, desired: &Arc<DesiredPod>) -> Round {
        let timer = self.shared.metrics.reconciles.start_timer();
        self.take_reports();
        self.drop_unwanted_pulls(desired);
        self.take_pulls();
        self.drop_settled_pulls(desired);
        self.take_kills();
        let observed = Arc::new(self.observe(desired));
        self.drop_kills_of_ended(&observed);
        let now = self.shared.clock.now();
        let plan = plan(desired, &observed, now);
        self.show_observed(&observed);
        // Whoever tells of new images looks at what is shown: what came between the look and the showing is seen here.
        if has_come(&*self.shared.runtime, &observed) {
            timer.observe_duration();
            return Round::Again;
        }
        if plan.removed {
            timer.observe_duration();
            return self.forget(desired).await;
        }
        self.publish(desired, &observed, now);
        if let Err(error) = self.keep_past(desired, &observed).await {
            warn!(error = %error, "what a pod has come to was not written, and a reboot would not know it");
        }
        self.tell_losses(desired, &observed);
        self.tell_waits(desired, &plan);
        self.ensure_probes(desired, &observed);
        if plan.is_empty() {
            self.save();
            if plan.rests {
                // The supervisor is gone only when the node stops.
                let _ = self.shared.outbox.send(WorkerNews::Rests { uid: self.uid.clone() });
            }
            timer.observe_duration();
            return Round::Wait(plan.wake_at);
        }
        debug!(steps = plan.steps.len(), "plan made");
        let outcome = self.execute(desired, &observed, &plan, now).await;
        timer.observe_duration();
        match outcome {
            Outcome::Done | Outcome::Interrupted => Round::Again,
            Outcome::Failed => {
                self.save();
                Round::Again
            }
            Outcome::Waiting => {
                self.save();
                Round::Wait(plan.wake_at)
            }
        }
    }

    /// Waits for the next thing to do; `None` when the node stops.
    async fn wait(&mut self, wake_at: Option<Timestamp>, pause: Option<Duration>) -> Option<&'static str> {
        if let Some(pause) = pause {
            tokio::select! {
                // cancel-safe: a timer.
                () = tokio::time::sleep(pause) => {}
                // cancel-safe: a state.
                () = self.stop.cancelled() => return None,
            }
            return Some("pause");
        }
        let clock = self.shared.clock.clone();
        let timer = async {
            match wake_at {
                // A moment later rather than earlier: the planner asks for that very moment.
                Some(at) => tokio::time::sleep(clock.until(at) + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // cancel-safe: a state.
            () = self.stop.cancelled() => None,
            // cancel-safe: the value stays in the channel; a closed one means shutdown.
            changed = self.mailbox.changed() => changed.ok().map(|()| "desired"),
            // cancel-safe: a notification stays stored.
            () = self.wake.notified() => Some("engine"),
            // cancel-safe: a report stays in the channel until it is received.
            report = self.probe_inbox.recv() => {
                if let Some(report) = report {
                    self.take_report(&report);
                }
                Some("probe")
            }
            // cancel-safe: a finished task stays in the set until it is joined.
            Some(ended) = self.pull_tasks.join_next_with_id() => {
                self.note_pull(ended);
                Some("pull")
            }
            // cancel-safe: see there.
            Some(done) = self.kills.next() => {
                self.take_kill(done);
                Some("stop")
            }
            // cancel-safe: a timer.
            () = timer => Some("timer"),
        }
    }

    /// Everything of the pod is gone: its directories follow.
    async fn forget(&mut self, desired: &Arc<DesiredPod>) -> Round {
        let key = desired.key();
        let shared = Arc::clone(&self.shared);
        let uid = self.uid.0.clone();
        let logs = shared.place.log_directory(&key.namespace, &key.name, &uid);
        let (volumes, of) = (shared.volumes.clone(), uid.clone());
        let removed = tokio::task::spawn_blocking(move || {
            volumes.remove_pod_blocking(&of)?;
            match std::fs::remove_dir_all(&logs) {
                // What cannot be named is not there either.
                Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => {
                    Err(crate::volumes::VolumeError::Io { action: "removing", path: logs, source: error })
                }
                _ => Ok(()),
            }
        })
        .await;
        if let Ok(Err(error)) = removed {
            let message = portreeve_engine::chain(&error);
            warn!(pod = %key, error = %message, "directories of a pod were not removed");
            let until = self.fail(desired, Attempted::Removal, "FailedRemoval", message.clone());
            self.back_off(desired, None, "FailedRemoval", &message, until);
            return Round::Wait(Some(until));
        }
        shared.pulls.forget(&uid);
        shared.observed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
        shared.pods.remove(&NamespacedName::new(key.namespace.clone(), key.name.clone()));
        info!(pod = %key, pod_uid = %uid, "pod removed");
        // The supervisor is gone only when the node stops.
        let _ = shared.outbox.send(WorkerNews::Removed { uid: self.uid.clone() });
        Round::Removed
    }

    /// Computes the status and shows it.
    fn publish(&mut self, desired: &DesiredPod, observed: &ObservedPod, now: Timestamp) {
        let status = status(desired, observed, now);
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if ready && self.was_ready_at.is_none() {
            self.was_ready_at = Some(now);
            if desired.generation == 1 && desired.admitted_at >= self.shared.started_at {
                let took = Duration::try_from(now.duration_since(desired.admitted_at)).unwrap_or_default();
                self.shared.metrics.starts.observe(took.as_secs_f64());
            }
        }
        let mut pod = (*desired.pod).clone();
        pod.metadata.uid = Some(self.uid.0.clone());
        pod.metadata.generation = Some(desired.generation);
        pod.metadata.creation_timestamp = Some(Time(desired.admitted_at));
        if let Intent::Remove { since, grace } = &desired.intent {
            let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
            let seconds = grace.map_or(own, |grace| i64::try_from(grace.as_secs()).unwrap_or(own));
            pod.metadata.deletion_grace_period_seconds = Some(seconds);
            pod.metadata.deletion_timestamp =
                since.checked_add(jiff::SignedDuration::from_secs(seconds)).ok().map(Time);
        }
        if let Some(spec) = &mut pod.spec {
            spec.node_name = Some(self.shared.node.name.clone());
        }
        pod.status = Some(status.clone());
        let key = desired.key();
        self.shared.pods.put(NamespacedName::new(key.namespace, key.name), pod);
        let history = remember(observed, status);
        let mut book = self.book();
        book.notes.status = history.previous;
        book.notes.attempts = history.attempts;
    }

    /// Keeps on disk what the pod has come to, before anything follows from it.
    async fn keep_past(&mut self, desired: &DesiredPod, observed: &ObservedPod) -> std::io::Result<()> {
        if matches!(desired.intent, Intent::Remove { .. }) {
            return Ok(());
        }
        let past = past(desired, observed);
        if self.past.has(past.as_deref()) { Ok(()) } else { self.past.keep(past).await }
    }

    fn show_observed(&self, observed: &Arc<ObservedPod>) {
        let mut seen = self.shared.observed.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(self.uid.clone(), Arc::clone(observed));
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.probe_inbox.try_recv() {
            self.take_report(&report);
        }
    }

    fn take_report(&mut self, report: &ProbeReport) {
        let desired = Arc::clone(&self.mailbox.borrow());
        match report {
            ProbeReport::Unhealthy { container, kind, message } => {
                self.shared.metrics.unhealthy.with_label_values(&[kind.as_str()]).inc();
                let message = format!("{} probe failed: {message}", kind.as_str());
                self.event(&desired, Some(container), EventKind::Warning, "Unhealthy", &message);
            }
            ProbeReport::Untried { container, kind, message } => {
                let message = format!("{} probe errored and resulted in unknown state: {message}", kind.as_str());
                self.event(&desired, Some(container), EventKind::Warning, "Unhealthy", &message);
            }
            ProbeReport::Verdict { id, kind, verdict } => {
                let mut book = self.book();
                let notes = book.notes.of_mut(id);
                let mut verdicts = notes.verdicts();
                match kind {
                    crate::probes::ProbeKind::Startup => verdicts.startup = verdict.clone(),
                    crate::probes::ProbeKind::Liveness => verdicts.liveness = verdict.clone(),
                    crate::probes::ProbeKind::Readiness => verdicts.readiness = verdict.clone(),
                }
                notes.set_verdicts(&verdicts);
                drop(book);
                self.save();
            }
        }
    }

    /// Notes a failed step, for the planner's back-off, and says when it is tried again.
    fn fail(&mut self, desired: &DesiredPod, what: Attempted, reason: &str, message: String) -> Timestamp {
        let failure = next_failure(self.failures.get(&what), desired, self.shared.clock.now(), reason, message);
        let until = next_try(&what, &failure);
        self.failures.insert(what, failure);
        until
    }

    fn engine_container(&self, name: &str, attempt: u32) -> Option<ContainerId> {
        let belongings = self.shared.index.of(&self.uid);
        belongings
            .containers
            .iter()
            .filter_map(|id| self.shared.runtime.container(id))
            .find(|container| container.metadata.name == name && container.metadata.attempt == attempt)
            .map(|container| container.id)
    }
}

/// Whether an image is here that the pod was seen to wait for.
pub(crate) fn has_come(runtime: &dyn Runtime, observed: &ObservedPod) -> bool {
    let mut wanting = observed.images.iter().filter(|(_, view)| view.is_wanting());
    wanting.any(|(name, _)| matches!(runtime.lookup_image(&name.0), Ok(Some(facts)) if facts.refused.is_none()))
}

/// The past of a pod whose file says nothing, with a warning: nobody else knows that the pod had run.
fn lost_past(shared: &Shared, desired: &DesiredPod, directory: &Path, error: &NotesError) -> PastBook {
    let (generation, restart_requested_at) = (desired.generation, desired.restart_requested_at);
    let unknown = Past { generation, restart_requested_at, carried: BTreeMap::new() };
    let (book, kept) = PastBook::begin_anew(directory, unknown);
    let error = portreeve_engine::chain(error);
    let place = match kept {
        Ok(aside) => format!("it is kept as {}", aside.display()),
        Err(error) => format!("it was left where it is: {error}"),
    };
    let key = desired.key();
    warn!(pod = %key, error, place, "the past of a pod could not be read, and is taken for one that has ended");
    let message = format!(
        "what the pod had come to cannot be read: {error}; {place}. Unless it always restarts, or its containers are \
         still there, it is not run again before it is edited or `restart pod` asks for it"
    );
    let subject = Subject::pod(&key.namespace, &key.name, &desired.uid.0);
    shared.events.record(&subject, EventKind::Warning, "PastUnreadable", &message);
    book
}

/// Whether a pull of this image that failed is still one of the pod's to make: the image may have come by another way
/// since, or left the manifest.
fn still_to_pull(shared: &Shared, desired: &DesiredPod, image: &str) -> bool {
    let here = matches!(shared.runtime.lookup_image(image), Ok(Some(facts)) if facts.refused.is_none());
    observe::needing(desired, image).any(|(_, needed)| needed.policy == "Always" || !here)
}

enum Round {
    /// The pod is gone.
    Removed,
    /// Look again at once.
    Again,
    /// Nothing to do until something happens, or until then.
    Wait(Option<Timestamp>),
}

fn next_failure(
    before: Option<&Failure>,
    desired: &DesiredPod,
    at: Timestamp,
    reason: &str,
    message: String,
) -> Failure {
    let attempts = before
        .filter(|before| before.generation == desired.generation)
        .map_or(1, |before| before.attempts.saturating_add(1));
    Failure { at, attempts, generation: desired.generation, reason: reason.to_owned(), message, not_before: None }
}

/// An engine's error in the words of a container's reason.
fn create_reason(error: &EngineError) -> &'static str {
    match error {
        EngineError::RunsAsRoot { .. } | EngineError::Invalid { .. } => "CreateContainerConfigError",
        _ => "CreateContainerError",
    }
}

#[cfg(test)]
mod tests {
    use super::Worker;

    fn size_of_future<F>(_: fn(Worker) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_worker_that_waits_is_small() {
        let bytes = size_of_future(Worker::run);
        assert!(bytes <= 2048, "{bytes}");
    }
}
