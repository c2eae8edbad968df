//! How the workloads are on this node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use portreeve_crds::Phase;
use portreeve_manifests::Kind;
use portreeve_node::{NamespacedName, Node, Standing};
use tokio::sync::{mpsc, watch};

use crate::holdings::WorkloadKey;
use crate::keeper::{Assessment, Holding, Said};

/// Pods change in bursts: what comes within this is looked at once.
const TOGETHER: Duration = Duration::from_millis(100);
/// What is done shows in pods and in what is desired; this is the safety net while something is not done.
const AGAIN: Duration = Duration::from_secs(10);

/// Looks at the workloads whenever a pod or what is held changes, and tells the keeper.
pub(crate) async fn run(node: Node, mut holdings: watch::Receiver<Arc<Vec<Holding>>>, said: mpsc::Sender<Said>) {
    let mut told: Option<BTreeMap<WorkloadKey, Assessment>> = None;
    let mut pods = node.watch_pods(None).ok();
    let mut desired = node.desired_changed();
    loop {
        let held = Arc::clone(&holdings.borrow_and_update());
        drop(desired.borrow_and_update());
        let Ok(standing) = node.standing().await else { return };
        let now = Timestamp::now();
        let looks: Vec<Look> = held.iter().map(|holding| look(holding, &standing, &node, now)).collect();
        let assessed: BTreeMap<WorkloadKey, Assessment> =
            held.iter().zip(&looks).map(|(holding, look)| (holding.key.clone(), look.assessment.clone())).collect();
        let unfinished = assessed.values().any(|it| !it.available && !it.gone && it.phase != Phase::Failed);
        if told.as_ref() != Some(&assessed) {
            if said.send(Said::Assessed(assessed.clone())).await.is_err() {
                return;
            }
            told = Some(assessed);
        }
        let soonest = looks.iter().filter_map(|look| look.ready_at).min();
        let until = soonest.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let until = until.into_iter().chain(unfinished.then_some(AGAIN)).min();
        let timer = async {
            match until {
                Some(until) => tokio::time::sleep(until).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            match &mut pods {
                Some(pods) => pods.next().await.is_some_and(|changes| changes.is_ok()),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // cancel-safe: the value stays in the channel.
            held = holdings.changed() => if held.is_err() { return },
            // cancel-safe: as above.
            desired = desired.changed() => if desired.is_err() { return },
            // cancel-safe: as its documentation says.
            in_order = changed => if !in_order {
                // It was slower than the pods: from now on again.
                pods = node.watch_pods(None).ok();
            },
            // cancel-safe: time passes.
            () = timer => {}
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

struct Look {
    assessment: Assessment,
    /// When it will have been ready for long enough.
    ready_at: Option<Timestamp>,
}

fn look(holding: &Holding, standing: &Standing, node: &Node, now: Timestamp) -> Look {
    let say = |available, gone, phase, message: String| Look {
        assessment: Assessment { revision: holding.revision.clone(), available, gone, phase, message },
        ready_at: None,
    };
    if holding.revision.is_none() {
        let owns = standing.desired.values().any(|(file, _)| *file == holding.file);
        let gone = !owns && !standing.leaving.contains(&holding.file);
        return if gone {
            say(false, true, Phase::Removed, String::new())
        } else {
            say(false, false, Phase::Removing, "its pods end".to_owned())
        };
    }
    if let Some(problem) = &holding.problem {
        return say(false, false, Phase::Failed, problem.clone());
    }
    for (key, hash) in &holding.objects {
        match standing.desired.get(key) {
            Some((file, of)) if *file == holding.file && of == hash => {}
            Some((file, _)) if *file != holding.file => {
                let message = format!("{key} belongs to {}, which keeps it", file.display());
                return say(false, false, Phase::Failed, message);
            }
            _ => return say(false, false, Phase::Starting, format!("{key} is not in force yet")),
        }
    }
    let pods = holding.objects.iter().filter(|(key, _)| key.kind == Kind::Pod);
    let mut ready_at = None;
    for (key, _) in pods {
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        let pod = node.pod(&name);
        let state = pod.as_deref().map_or(State::Coming("it is not made yet".to_owned()), state);
        match (state, standing.busy.get(&name)) {
            (State::Failing(why), _) => return say(false, false, Phase::Failed, format!("{}: {why}", key.name)),
            (_, Some(step)) => return say(false, false, Phase::Starting, format!("{}: {step}", key.name)),
            (State::Coming(why), None) => return say(false, false, Phase::Unready, format!("{}: {why}", key.name)),
            (State::Done, None) => {}
            (State::Ready(since), None) => {
                let long_enough = SignedDuration::try_from(holding.min_ready).unwrap_or(SignedDuration::MAX);
                ready_at = ready_at.max(Some(since.checked_add(long_enough).unwrap_or(Timestamp::MAX)));
            }
        }
    }
    match ready_at {
        Some(at) if at > now => {
            let mut look = say(false, false, Phase::Starting, "ready, not yet for minReadySeconds".to_owned());
            look.ready_at = Some(at);
            look
        }
        _ => say(true, false, Phase::Available, String::new()),
    }
}

enum State {
    /// Ready since then.
    Ready(Timestamp),
    /// It has ended as it should.
    Done,
    /// It comes up.
    Coming(String),
    /// It fails.
    Failing(String),
}

/// What waits for another try again and again.
const FAILING: &[&str] = &[
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerError",
    "CreateContainerConfigError",
    "RunContainerError",
];

fn state(pod: &Pod) -> State {
    let Some(status) = &pod.status else { return State::Coming("nothing is known of it".to_owned()) };
    match status.phase.as_deref() {
        Some("Succeeded") => return State::Done,
        Some("Failed") => {
            let why = status.message.clone().or(status.reason.clone());
            return State::Failing(why.unwrap_or_else(|| "it has failed".to_owned()));
        }
        _ => {}
    }
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    for container in containers {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
        if FAILING.contains(&reason) {
            let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
            return State::Failing(format!("container {}: {reason}: {message}", container.name));
        }
    }
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    match ready {
        Some(ready) if ready.status == "True" => {
            State::Ready(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
        }
        Some(ready) => State::Coming(ready.message.clone().unwrap_or_else(|| "it is not ready".to_owned())),
        None => State::Coming("it is not ready".to_owned()),
    }
}
