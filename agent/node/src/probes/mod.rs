//! Probes: one timer task per probe of a running container, and only while it is needed.
//!
//! ```text
//!   running --startup probe?--> Startup --success--> Liveness + Readiness
//!                                  |                     |         |
//!                                  +--failure--> verdict, the task ends until there is a new container
//!                                                                  +--goes on, both ways, until the end
//! ```
//!
//! A task counts thresholds and reports verdicts only; what follows from one is the planner's.
//! Verdicts are kept in the pod's state below `<run>`, so that a restarted agent goes on where it
//! was and readiness does not flip.

mod check;
mod dial;
mod http;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use portreeve_engine::ContainerId;
use portreeve_plan::{Fingerprint, ProbeVerdicts, Verdict};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::runtime::Runtime;

pub(crate) use check::{Handler, Miss, Target, run};

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What a probe task tells its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProbeReport {
    /// One try failed.
    Unhealthy { container: String, kind: ProbeKind, message: String },
    /// One try could not be made; it counts neither way.
    Untried { container: String, kind: ProbeKind, message: String },
    /// The verdict is another than before.
    Verdict { id: ContainerId, kind: ProbeKind, verdict: Verdict },
}

/// A container whose probes may be needed.
#[derive(Debug, Clone)]
pub(crate) struct Probed<'a> {
    pub(crate) id: &'a ContainerId,
    pub(crate) container: &'a Container,
    pub(crate) started_at: Timestamp,
    pub(crate) verdicts: &'a ProbeVerdicts,
    /// It is being stopped: only readiness goes on.
    pub(crate) stopping: bool,
}

/// The probe tasks of one pod.
pub(crate) struct Probes {
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    tasks: JoinSet<()>,
    running: BTreeMap<(ContainerId, ProbeKind), (Fingerprint, AbortHandle)>,
    outbox: mpsc::Sender<ProbeReport>,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

impl Probes {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, clock: Clock, outbox: mpsc::Sender<ProbeReport>) -> Self {
        Self { runtime, clock, tasks: JoinSet::new(), running: BTreeMap::new(), outbox }
    }

    /// Makes the running tasks those that are needed now.
    pub(crate) fn ensure(&mut self, containers: &[Probed<'_>], host: Option<&str>) {
        while self.tasks.try_join_next().is_some() {}
        let mut needed = BTreeMap::new();
        for probed in containers {
            for (kind, probe) in needed_now(probed) {
                let print = Fingerprint::of(serde_json::to_vec(&(probe, host)).unwrap_or_default());
                needed.insert((probed.id.clone(), kind), (print, probe, probed));
            }
        }
        self.running.retain(|key, (print, task)| {
            let keep = needed.get(key).is_some_and(|(wanted, ..)| wanted == print);
            if !keep {
                task.abort();
            }
            keep
        });
        for ((id, kind), (print, probe, probed)) in needed {
            if self.running.contains_key(&(id.clone(), kind)) {
                continue;
            }
            let Some(handler) = Handler::of_probe(probe) else {
                continue;
            };
            let task = ProbeTask {
                kind,
                handler,
                target: Target {
                    runtime: Arc::clone(&self.runtime),
                    id: id.clone(),
                    container: Arc::new(probed.container.clone()),
                    host: host.map(str::to_owned),
                },
                timing: Timing::of(probe),
                age: self.clock.since(probed.started_at),
                verdict: verdict_of(probed.verdicts, kind).clone(),
                outbox: self.outbox.clone(),
            };
            let handle = self.tasks.spawn(task.run());
            self.running.insert((id, kind), (print, handle));
        }
    }
}

/// The probes that a container needs in its present state.
fn needed_now<'a>(probed: &Probed<'a>) -> Vec<(ProbeKind, &'a Probe)> {
    let container = probed.container;
    if let Some(startup) = &container.startup_probe {
        match probed.verdicts.startup {
            Verdict::Success => {}
            Verdict::Failure { .. } => return Vec::new(),
            Verdict::Unknown if probed.stopping => return Vec::new(),
            Verdict::Unknown => return vec![(ProbeKind::Startup, startup)],
        }
    }
    let mut needed = Vec::new();
    let failed = matches!(probed.verdicts.liveness, Verdict::Failure { .. });
    if let Some(liveness) = container.liveness_probe.as_ref().filter(|_| !probed.stopping && !failed) {
        needed.push((ProbeKind::Liveness, liveness));
    }
    if let Some(readiness) = &container.readiness_probe {
        needed.push((ProbeKind::Readiness, readiness));
    }
    needed
}

fn verdict_of(verdicts: &ProbeVerdicts, kind: ProbeKind) -> &Verdict {
    match kind {
        ProbeKind::Startup => &verdicts.startup,
        ProbeKind::Liveness => &verdicts.liveness,
        ProbeKind::Readiness => &verdicts.readiness,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Timing {
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    successes: u32,
    failures: u32,
}

impl Timing {
    fn of(probe: &Probe) -> Self {
        let number = |value: Option<i32>, default: u32, least: u32| {
            value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).max(least)
        };
        let seconds = |value, default, least| Duration::from_secs(u64::from(number(value, default, least)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            successes: number(probe.success_threshold, 1, 1),
            failures: number(probe.failure_threshold, 3, 1),
        }
    }
}

struct ProbeTask {
    kind: ProbeKind,
    handler: Handler,
    target: Target,
    timing: Timing,
    /// How long the container has run.
    age: Duration,
    verdict: Verdict,
    outbox: mpsc::Sender<ProbeReport>,
}

impl ProbeTask {
    async fn run(mut self) {
        let mut due = Instant::now() + self.timing.initial_delay.saturating_sub(self.age);
        let (mut successes, mut failures) = (0_u32, 0_u32);
        loop {
            tokio::time::sleep_until(due).await;
            let result =
                match tokio::time::timeout(self.timing.timeout, run(&self.handler, &self.target, self.timing.timeout))
                    .await
                {
                    Ok(result) => result,
                    Err(_) => Err(Miss::Failed(format!("timed out after {} s", self.timing.timeout.as_secs()))),
                };
            match result {
                Ok(()) => {
                    failures = 0;
                    successes = successes.saturating_add(1);
                    if successes >= self.timing.successes && !self.tell(Verdict::Success).await {
                        return;
                    }
                }
                // Source: kubernetes `pkg/kubelet/prober/worker.go` doProbe: the result is thrown away.
                Err(Miss::Untried(message)) => {
                    let container = self.target.container.name.clone();
                    let untried = ProbeReport::Untried { container, kind: self.kind, message };
                    if self.outbox.send(untried).await.is_err() {
                        return;
                    }
                }
                Err(Miss::Failed(message)) => {
                    successes = 0;
                    failures = failures.saturating_add(1);
                    let unhealthy = ProbeReport::Unhealthy {
                        container: self.target.container.name.clone(),
                        kind: self.kind,
                        message: message.clone(),
                    };
                    if self.outbox.send(unhealthy).await.is_err() {
                        return;
                    }
                    if failures >= self.timing.failures && !self.tell(Verdict::Failure { message }).await {
                        return;
                    }
                }
            }
            due = (due + self.timing.period).max(Instant::now());
        }
    }

    /// Reports a verdict if it is another; false when this probe has done its work.
    async fn tell(&mut self, verdict: Verdict) -> bool {
        let same_kind = std::mem::discriminant(&verdict) == std::mem::discriminant(&self.verdict);
        let failed = matches!(verdict, Verdict::Failure { .. });
        if !same_kind {
            self.verdict = verdict.clone();
            let report = ProbeReport::Verdict { id: self.target.id.clone(), kind: self.kind, verdict };
            if self.outbox.send(report).await.is_err() {
                return false;
            }
        }
        match self.kind {
            ProbeKind::Startup => false,
            ProbeKind::Liveness => !failed,
            ProbeKind::Readiness => true,
        }
    }
}
