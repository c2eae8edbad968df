//! Worlds worth planning for: a pod of some shape that runs, and then things happen to it.

use std::sync::Arc;

use jiff::SignedDuration;
use portreeve_plan::{
    Attempted, ContainerId, ContainerState, HookState, ImageView, PodUid, RESTART_ON_CHANGE, ResourcesView, SandboxId,
    SandboxState, Verdict,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::model::{Node, exited, running};
use crate::pods::{self, settings};

/// The shape of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    mains: usize,
    inits: usize,
    sidecar: bool,
    hook: bool,
    policy: &'static str,
    always_pull: bool,
}

/// Something that happens to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    ChangedImage,
    ChangedCommand,
    ChangedLimits,
    ChangedGrace,
    ChangedHostname,
    ChangedVolumes,
    ChangedShownImage,
    ContainerAdded,
    ContainerRemoved,
    ConfigChanged,
    ConfigChangedAndRestartAsked,
    ExitedRecently(i32),
    ExitedLongAgo,
    CrashedOften,
    WentWithoutTrace,
    Orphan,
    OrphanSandbox,
    Duplicate,
    SandboxGone,
    SandboxStopped,
    ImageMissing,
    ImageFailed,
    NotAlive,
    HookPending,
    HookFailed,
    RestartRequested,
    CreatedNotStarted,
    LimitsDrifted,
    RecordUnreadable,
    OldRecords,
    VolumesUnmounted,
    StartFailed,
    Removed,
    Drained,
    DrainedBefore,
    Foreign,
}

pub(crate) fn shapes() -> impl Strategy<Value = Shape> {
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    (1..=3_usize, 0..=2_usize, any::<bool>(), any::<bool>(), policy, any::<bool>()).prop_map(
        |(mains, inits, sidecar, hook, policy, always_pull)| Shape { mains, inits, sidecar, hook, policy, always_pull },
    )
}

pub(crate) fn cases() -> impl Strategy<Value = Vec<Case>> {
    use Case::*;
    let one = proptest::sample::select(vec![
        ChangedImage,
        ChangedCommand,
        ChangedLimits,
        ChangedGrace,
        ChangedHostname,
        ChangedVolumes,
        ChangedShownImage,
        ContainerAdded,
        ContainerRemoved,
        ConfigChanged,
        ConfigChangedAndRestartAsked,
        ExitedRecently(0),
        ExitedRecently(1),
        ExitedLongAgo,
        CrashedOften,
        WentWithoutTrace,
        Orphan,
        OrphanSandbox,
        Duplicate,
        SandboxGone,
        SandboxStopped,
        ImageMissing,
        ImageFailed,
        NotAlive,
        HookPending,
        HookFailed,
        RestartRequested,
        CreatedNotStarted,
        LimitsDrifted,
        RecordUnreadable,
        OldRecords,
        VolumesUnmounted,
        StartFailed,
        Removed,
        Drained,
        DrainedBefore,
        Foreign,
    ]);
    proptest::collection::vec(one, 1..=3)
}

fn spec(shape: &Shape) -> Value {
    let pull = if shape.always_pull { "Always" } else { "IfNotPresent" };
    let container = |name: String| {
        json!({
            "name": name, "image": format!("{name}:1"), "imagePullPolicy": pull,
            "env": pods::level(),
            "volumeMounts": [{"name": "conf", "mountPath": "/conf"}, {"name": "files", "mountPath": "/files"}],
            "resources": {"requests": {"cpu": "100m"}},
            "livenessProbe": {"tcpSocket": {"port": 1}},
        })
    };
    let mut mains: Vec<Value> = (0..shape.mains).map(|at| container(format!("main-{at}"))).collect();
    if shape.hook {
        mains[0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["x"]}}});
    }
    let mut inits: Vec<Value> =
        (0..shape.inits).map(|at| json!({"name": format!("init-{at}"), "image": "init:1"})).collect();
    if shape.sidecar {
        inits.insert(0, json!({"name": "side", "image": "side:1", "restartPolicy": "Always"}));
    }
    json!({
        "restartPolicy": shape.policy,
        "terminationGracePeriodSeconds": 5,
        "volumes": [{"name": "conf", "configMap": {"name": "settings"}},
                    {"name": "tmp", "emptyDir": {}},
                    {"name": "files", "image": {"reference": "files:1", "pullPolicy": pull}}],
        "initContainers": inits,
        "containers": mains,
    })
}

/// A pod of this shape that runs, and to which these things have happened.
pub(crate) fn world(shape: &Shape, cases: &[Case]) -> Node {
    let mut desired = pods::wanted(spec(shape));
    desired.configs = settings("info", desired.admitted_at);
    let mut node = Node::running_pod(desired);
    for case in cases {
        node.pass(1);
        happen(&mut node, *case);
    }
    node
}

fn spec_of(node: &Node) -> Value {
    serde_json::to_value(node.desired.pod.spec.clone().unwrap()).unwrap()
}

fn edit(node: &mut Node, pointer: &str, value: Value) {
    let edited = pods::with(spec_of(node), pointer, value);
    node.edit(edited);
}

fn happen(node: &mut Node, case: Case) {
    let now = node.now;
    let main = node.desired.pod.spec.as_ref().unwrap().containers[0].name.clone();
    match case {
        Case::ChangedImage => edit(node, "/containers/0/image", json!("main:2")),
        Case::ChangedCommand => edit(node, "/containers/0/command", json!([now.to_string()])),
        Case::ChangedLimits => {
            edit(node, "/containers/0/resources/requests/cpu", json!("200m"));
        }
        Case::ChangedGrace => edit(node, "/terminationGracePeriodSeconds", json!(7)),
        Case::ChangedHostname => edit(node, "/hostname", json!("other")),
        Case::ChangedVolumes => {
            edit(node, "/volumes/1", json!({"name": "tmp", "emptyDir": {"medium": "Memory"}}));
        }
        Case::ChangedShownImage => edit(node, "/volumes/2/image/reference", json!("files:2")),
        Case::ContainerAdded => {
            edit(
                node,
                "/containers/-",
                json!({"name": format!("more-{}", node.desired.generation), "image": "more:1"}),
            );
        }
        Case::ContainerRemoved => {
            let mut spec = spec_of(node);
            let containers = spec["containers"].as_array_mut().unwrap();
            if containers.len() > 1 {
                containers.pop();
            }
            node.edit(spec);
        }
        Case::ConfigChanged => node.desired.configs = settings("debug", now),
        Case::ConfigChangedAndRestartAsked => {
            node.annotate(RESTART_ON_CHANGE, "true");
            node.desired.configs = settings("trace", now);
        }
        Case::RestartRequested => node.desired.restart_requested_at = Some(now),
        Case::Removed => node.remove(),
        Case::Drained => node.drain(),
        Case::DrainedBefore => {
            let intent = node.desired.intent.clone();
            node.drain();
            while !node.plan().is_empty() && node.round(usize::MAX).is_ok() {}
            node.desired.intent = intent;
        }
        Case::SandboxGone | Case::SandboxStopped => {
            // Whoever stops a sandbox from outside takes its containers with it.
            for view in &mut node.observed.containers {
                if let ContainerState::Running { started_at } = view.state {
                    view.state = exited(137, Some(started_at), now);
                }
            }
            if let Some(sandbox) = node.observed.sandboxes.last_mut() {
                let reason = "the shim died".to_owned();
                sandbox.state = match case {
                    Case::SandboxGone => SandboxState::Lost { reason, at: Some(now) },
                    _ => SandboxState::Stopped,
                };
            }
        }
        Case::ImageMissing => node.observed.images.clear(),
        Case::ImageFailed => {
            let failure = node.failure(2, "ErrImagePull");
            for view in node.observed.images.values_mut() {
                *view = ImageView::Failed(failure.clone());
            }
        }
        Case::VolumesUnmounted => {
            node.observed.volumes.clear();
        }
        Case::StartFailed => {
            node.fail(Attempted::Container(main), "RunContainerError");
        }
        Case::OrphanSandbox => {
            let mut old = node.observed.sandboxes[0].clone();
            old.id = SandboxId(format!("old-{now}"));
            old.attempt = 0;
            old.created_at -= SignedDuration::from_hours(1);
            node.observed.sandboxes.insert(0, old);
        }
        Case::ExitedRecently(_)
        | Case::ExitedLongAgo
        | Case::CrashedOften
        | Case::WentWithoutTrace
        | Case::Orphan
        | Case::Duplicate
        | Case::NotAlive
        | Case::HookPending
        | Case::HookFailed
        | Case::CreatedNotStarted
        | Case::LimitsDrifted
        | Case::RecordUnreadable
        | Case::OldRecords
        | Case::Foreign => befall(node, case, &main),
    }
}

/// What happens to one container that is there.
fn befall(node: &mut Node, case: Case, main: &str) {
    let now = node.now;
    let Some(at) = node.observed.containers.iter().position(|v| v.name == main && running(v)) else {
        return;
    };
    let copy = |node: &mut Node, name: &str| {
        let mut copy = node.observed.containers[at].clone();
        copy.id = ContainerId(format!("{name}-{}", node.observed.containers.len()));
        copy
    };
    let view = &mut node.observed.containers[at];
    let ContainerState::Running { started_at } = view.state else { return };
    match case {
        Case::ExitedRecently(code) => view.state = exited(code, Some(started_at), now),
        Case::ExitedLongAgo => {
            view.state = exited(1, Some(started_at), now - SignedDuration::from_secs(900));
        }
        Case::CrashedOften => {
            if let Some(record) = &mut view.record {
                Arc::make_mut(record).backoff_seconds = Some(80);
            }
            view.attempt += 5;
            view.state = exited(1, Some(now - SignedDuration::from_secs(2)), now);
        }
        Case::WentWithoutTrace => view.state = ContainerState::Unknown,
        Case::NotAlive => {
            let id = view.id.clone();
            let failure = Verdict::Failure { message: "refused".to_owned() };
            node.observed.probes.entry(id).or_default().liveness = failure;
        }
        Case::HookPending => view.post_start = HookState::Pending,
        Case::HookFailed => view.post_start = HookState::Failed { message: "no".to_owned() },
        Case::CreatedNotStarted => {
            view.state = ContainerState::Created;
            view.post_start = HookState::Pending;
        }
        Case::LimitsDrifted => {
            view.resources = ResourcesView::Drifted { found: "cpu.max is 1".to_owned() };
        }
        Case::RecordUnreadable => view.record = None,
        Case::Orphan => {
            let mut orphan = copy(node, "orphan");
            orphan.name = "orphan".to_owned();
            node.observed.containers.push(orphan);
        }
        Case::Duplicate => {
            let mut twin = copy(node, "twin");
            // No two of one name are ever made as the same attempt.
            let attempts = node.observed.containers.iter().filter(|view| view.name == main).map(|view| view.attempt);
            twin.attempt = attempts.max().unwrap_or_default() + 1;
            node.observed.containers.push(twin);
        }
        Case::OldRecords => {
            let attempt = node.observed.containers[at].attempt;
            node.observed.containers[at].attempt = attempt + 2;
            for older in 0..2 {
                let mut old = copy(node, "old");
                old.attempt = attempt + older;
                old.state = exited(1, Some(started_at), now);
                node.observed.containers.push(old);
            }
        }
        Case::Foreign => {
            let mut foreign = copy(node, "foreign");
            foreign.uid = PodUid("uid-2".to_owned());
            foreign.attempt += 7;
            foreign.sandbox = SandboxId("foreign".to_owned());
            node.observed.containers.push(foreign);
        }
        _ => unreachable!("`happen` deals with {case:?}"),
    }
}
