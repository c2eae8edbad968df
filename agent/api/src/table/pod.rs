//! The line of a pod: what READY, STATUS and RESTARTS say.
//!
//! Source: k8s.io/kubernetes/pkg/printers/internalversion, `printPod`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};

use super::{Column, NAME, age_of, column, or_none, wide};
use crate::age::age;

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready"),
    column("Status"),
    column("Restarts"),
    column("Age"),
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

/// What a pod's line says about its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodLine {
    ready: String,
    status: String,
    restarts: String,
}

pub(super) fn cells(pod: &Pod, now: Timestamp) -> Vec<Value> {
    let line = pod_line(pod, now);
    let status = pod.status.as_ref();
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref()).map(|gates| {
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let met = gates
            .iter()
            .filter(|gate| conditions.iter().any(|one| one.type_ == gate.condition_type && one.status == "True"))
            .count();
        format!("{met}/{}", gates.len())
    });
    vec![
        json!(pod.metadata.name),
        json!(line.ready),
        json!(line.status),
        json!(line.restarts),
        json!(age_of(pod.metadata.creation_timestamp.as_ref(), now)),
        json!(or_none(status.and_then(|status| status.pod_ip.as_deref()))),
        json!(or_none(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()))),
        json!("<none>"),
        json!(or_none(gates.as_deref())),
    ]
}

struct Counts {
    restarts: i32,
    last_restart: Option<Timestamp>,
}

impl Counts {
    fn add(&mut self, container: &ContainerStatus) {
        self.restarts = self.restarts.saturating_add(container.restart_count);
        let ended = container
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .and_then(|ended| ended.finished_at.as_ref());
        self.last_restart = self.last_restart.max(ended.map(|ended| ended.0));
    }
}

/// Works out a pod's line at `now`.
fn pod_line(pod: &Pod, now: Timestamp) -> PodLine {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
    let init: &[Container] = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let sidecar =
        |name: &str| init.iter().any(|one| one.name == name && one.restart_policy.as_deref() == Some("Always"));
    let mut total = containers;
    total += init.iter().filter(|one| one.restart_policy.as_deref() == Some("Always")).count();
    let mut ready = 0;
    let mut word = status
        .reason
        .clone()
        .filter(|reason| !reason.is_empty())
        .or_else(|| status.phase.clone())
        .unwrap_or_else(|| "Unknown".to_owned());
    let mut counts = Counts { restarts: 0, last_restart: None };
    let mut sidecars = Counts { restarts: 0, last_restart: None };

    let mut initializing = false;
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        counts.add(container);
        let state = container.state.clone().unwrap_or_default();
        if sidecar(&container.name) {
            sidecars.add(container);
            if container.started == Some(true) {
                ready += usize::from(container.ready);
                continue;
            }
        }
        if let Some(ended) = &state.terminated {
            if ended.exit_code == 0 {
                continue;
            }
            word = format!("Init:{}", ended_word(ended.reason.as_deref(), ended.signal, ended.exit_code));
        } else if let Some(reason) = state
            .waiting
            .and_then(|waiting| waiting.reason)
            .filter(|reason| reason != "PodInitializing" && !reason.is_empty())
        {
            word = format!("Init:{reason}");
        } else {
            word = format!("Init:{index}/{}", init.len());
        }
        initializing = true;
        break;
    }

    if !initializing || initialized(status) {
        counts = sidecars;
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            counts.add(container);
            let state = container.state.clone().unwrap_or_default();
            if let Some(reason) = state.waiting.and_then(|waiting| waiting.reason).filter(|reason| !reason.is_empty()) {
                word = reason;
            } else if let Some(ended) = &state.terminated {
                word = ended_word(ended.reason.as_deref(), ended.signal, ended.exit_code);
            } else if container.ready && state.running.is_some() {
                running = true;
                ready += 1;
            }
        }
        if word == "Completed" && running {
            let is_ready = status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
            word = if is_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod.metadata.deletion_timestamp.is_some() && !matches!(word.as_str(), "Succeeded" | "Failed") {
        word = "Terminating".to_owned();
    }
    let restarts = match counts.last_restart {
        Some(last) if counts.restarts > 0 => format!("{} ({} ago)", counts.restarts, age(last, now)),
        _ => counts.restarts.to_string(),
    };
    PodLine { ready: format!("{ready}/{total}"), status: word, restarts }
}

fn ended_word(reason: Option<&str>, signal: Option<i32>, exit_code: i32) -> String {
    match (reason.filter(|reason| !reason.is_empty()), signal) {
        (Some(reason), _) => reason.to_owned(),
        (None, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        (None, _) => format!("ExitCode:{exit_code}"),
    }
}

fn initialized(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Initialized" && condition.status == "True")
}
