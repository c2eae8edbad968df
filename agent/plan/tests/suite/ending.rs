//! How a pod ends: removed, completed, failed, out of time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use portreeve_plan::{Action, History, Intent, KillCause, ObservedPod, Past, SandboxState, Stopping, Terminal, past};
use serde_json::{Value, json};

use crate::model::{Node, running};
use crate::pods::{at, simple, with};

fn job(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [
        {"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"},
    ]})
}

fn graces(node: &Node) -> Vec<u64> {
    let kills = node.plan().steps.into_iter().filter_map(|step| match step.action {
        Action::KillContainer { grace, .. } => Some(grace.as_secs()),
        _ => None,
    });
    kills.collect()
}

#[test]
fn a_removed_pod_is_stopped_and_then_taken_apart_until_nothing_is_left() {
    let spec = json!({
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [{"name": "web", "image": "web:1"}],
    });
    let mut node = Node::running(spec);
    node.remove();
    assert_eq!(
        node.steps(),
        [
            "stop container web within 30 s",
            "stop sandbox sandbox-0001",
            "unmount volumes tmp",
            "remove container web (web-0002)",
            "remove sandbox sandbox-0001"
        ]
    );
    assert!(!node.plan().removed);
    node.settle();
    assert!(node.plan().removed);
    assert_eq!(node.plan().to_string(), "Pod default/web: nothing is left of it\n");
}

#[test]
fn a_pod_that_never_started_is_removed_at_once() {
    let mut node = Node::new(crate::pods::wanted(simple()));
    node.remove();
    assert!(node.plan().removed);
}

#[test]
fn the_grace_period_counts_from_the_request_and_only_shrinks() {
    let mut node = Node::running(simple());
    node.remove();
    node.pass(20);
    assert_eq!(graces(&node), [10]);
    node.pass(60);
    assert_eq!(graces(&node), [2], "the least there is");
    let grace = Some(Duration::ZERO);
    node.desired.intent = Intent::Remove { since: node.now, grace };
    assert_eq!(graces(&node), [0]);
    let deadline = node.now + jiff::SignedDuration::from_secs(3);
    let cause = KillCause::PodRemoved;
    node.container("web").stopping = Some(Stopping { deadline, pre_stop_ran: true, cause });
    let grace = Some(Duration::from_secs(100));
    node.desired.intent = Intent::Remove { since: node.now, grace };
    assert_eq!(graces(&node), [3], "a stop that has begun does not get more time");
}

#[test]
fn sidecars_stop_after_the_containers_and_in_reverse() {
    let spec = json!({
        "initContainers": [
            {"name": "first", "image": "i:1", "restartPolicy": "Always"},
            {"name": "second", "image": "i:1", "restartPolicy": "Always"},
        ],
        "containers": [{"name": "web", "image": "i:1"}],
    });
    let mut node = Node::running(spec);
    node.remove();
    node.done.clear();
    node.settle();
    let stops: Vec<&str> =
        node.done.iter().filter_map(|step| step.strip_prefix("stop container ")?.split(' ').next()).collect();
    assert_eq!(stops, ["web", "second", "first"]);
}

#[test]
fn a_pod_whose_containers_all_completed_has_succeeded_and_keeps_their_records() {
    let mut node = Node::running(job("OnFailure"));
    node.exit("a", 0);
    node.settle();
    assert!(node.desired.finished.is_none());
    node.exit("b", 0);
    assert_eq!(node.status().phase.as_deref(), Some("Succeeded"));
    assert_eq!(node.steps(), ["record pod as Succeeded", "stop sandbox sandbox-0001"]);
    node.settle();
    assert_eq!(node.observed.containers.len(), 2);
    assert_eq!(node.desired.finished.as_ref().unwrap().terminal, Terminal::Succeeded);
}

#[test]
fn a_pod_that_never_restarts_fails_with_its_container() {
    let mut node = Node::running(job("Never"));
    node.exit("a", 0);
    node.exit("b", 3);
    node.settle();
    assert_eq!(node.status().phase.as_deref(), Some("Failed"));
    assert_eq!(node.desired.finished.as_ref().unwrap().terminal, Terminal::Failed);
}

#[test]
fn a_finished_pod_does_not_run_again_after_a_reboot_and_is_still_told_about() {
    let mut node = Node::running(job("Never"));
    node.exit("a", 0);
    node.exit("b", 0);
    node.settle();
    node.observed = portreeve_plan::ObservedPod::default();
    node.pass(10);
    assert!(node.steps().is_empty());
    let status = node.status();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert_eq!(status.container_statuses.unwrap().len(), 2);
    node.edit(with(job("Always"), "/containers/0/image", json!("i:2")));
    assert!(node.steps().is_empty(), "nor after an edit");
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "init", "image": "i:1"}],
        "containers": [{"name": "web", "image": "i:1"}],
    });
    let mut node = Node::new(crate::pods::wanted(spec));
    node.round(usize::MAX).unwrap();
    node.exit("init", 2);
    node.settle();
    let finished = node.desired.finished.as_ref().unwrap();
    assert_eq!(finished.terminal, Terminal::Failed);
    assert_eq!(finished.message.as_deref(), Some("init container init ended with exit code 2"));
}

#[test]
fn an_init_container_that_an_edit_killed_does_not_end_a_pod_that_never_restarts() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "init", "image": "i:1"}],
        "containers": [{"name": "web", "image": "i:1"}],
    });
    let mut node = Node::new(crate::pods::wanted(spec.clone()));
    node.round(usize::MAX).unwrap();
    assert!(running(node.container("init")));
    node.pass(1);
    node.edit(with(spec, "/hostname", json!("other")));
    // The agent is killed when the container is.
    node.round(1).unwrap();
    assert_eq!(node.done.last().map(String::as_str), Some("stop container init within 30 s"));
    node.settle();
    assert!(node.desired.finished.is_none());
    assert!(running(node.container("web")));
}

#[test]
fn what_an_edit_took_out_of_a_pod_that_has_ended_leaves_no_record() {
    let mut node = Node::running(job("Never"));
    node.exit("a", 0);
    node.edit(with(job("Never"), "/containers", json!([{"name": "a", "image": "i:1"}])));
    // The agent is killed when the other is: the pod has ended before its record is removed.
    node.round(1).unwrap();
    assert_eq!(node.done.last().map(String::as_str), Some("stop container b within 30 s"));
    node.settle();
    assert_eq!(node.desired.finished.as_ref().unwrap().terminal, Terminal::Succeeded);
    let left: Vec<_> = node.observed.containers.iter().map(|view| view.name.as_str()).collect();
    assert_eq!(left, ["a"], "a later container b is another");
}

#[test]
fn a_pod_past_its_deadline_is_killed_and_failed() {
    let mut node = Node::new(crate::pods::wanted(with(simple(), "/activeDeadlineSeconds", json!(60))));
    node.settle();
    assert_eq!(node.plan().wake_at, Some(at(60)));
    node.pass(60);
    let steps = node.steps();
    assert_eq!(steps[..2], ["stop container web within 30 s", "record pod as Failed"]);
    node.settle();
    let finished = node.desired.finished.as_ref().unwrap();
    assert_eq!(finished.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(!running(node.container("web")));
}

#[test]
fn the_end_is_written_down_before_anything_is_taken_away() {
    let mut node = Node::running(job("Never"));
    node.exit("a", 0);
    node.exit("b", 0);
    node.round(1).unwrap();
    assert!(node.desired.finished.is_some());
    assert_eq!(node.sandbox().state, SandboxState::Ready);
}

#[test]
fn a_lost_sandbox_ends_a_pod_that_never_restarts() {
    let mut node = Node::running(job("Never"));
    node.sandbox().state = SandboxState::Lost { reason: "the shim died".to_owned(), at: None };
    node.settle();
    let finished = node.desired.finished.as_ref().unwrap();
    assert_eq!(finished.terminal, Terminal::Failed);
    assert_eq!(node.observed.sandboxes.len(), 1, "no other one was made");
}

#[test]
fn a_finished_pod_is_removed_like_any_other() {
    let mut node = Node::running(job("Never"));
    node.exit("a", 0);
    node.exit("b", 0);
    node.settle();
    node.remove();
    node.settle();
    assert!(node.plan().removed);
}

#[test]
fn a_removal_that_fails_is_tried_again_and_blocks_what_follows() {
    let mut node = Node::running(simple());
    node.remove();
    node.fail(portreeve_plan::Attempted::Removal, "FailedKillPod");
    assert!(node.steps().is_empty());
    assert!(node.plan().wake_at.is_some());
    node.now = node.plan().wake_at.unwrap();
    assert!(!node.steps().is_empty());
}

/// A pod with an init container and the containers `a` and `b`, of which `a` has ended with 0.
fn half_done(policy: &str) -> Node {
    let container = |name: &str| json!({"name": name, "image": "i:1"});
    let mut node = Node::running(json!({
        "restartPolicy": policy,
        "initContainers": [container("init")],
        "containers": [container("a"), container("b")],
    }));
    node.exit("a", 0);
    node.settle();
    node
}

/// Every record goes; what was kept on disk stays.
fn reboot(node: &mut Node) {
    let past = past(&node.desired, &node.observed);
    node.pass(60);
    let images = node.observed.images.clone();
    let history = History { past, ..History::default() };
    node.observed = ObservedPod { images, history, ..ObservedPod::default() };
}

#[test]
fn a_pod_that_never_restarts_has_failed_when_a_reboot_ended_it() {
    let mut node = half_done("Never");
    reboot(&mut node);
    assert_eq!(node.steps(), ["record pod as Failed"]);
    let status = node.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("SandboxLost")));
    assert!(status.message.unwrap().contains("reboot"));
    let ends: Vec<_> = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten().collect();
    let ends: Vec<_> = ends.into_iter().map(|status| status.state.unwrap().terminated.unwrap()).collect();
    let ends: Vec<_> = ends.iter().map(|end| (end.exit_code, end.reason.as_deref().unwrap())).collect();
    assert_eq!(ends, [(0, "Completed"), (0, "Completed"), (137, "ContainerStatusUnknown")]);
    node.settle();
    assert!(node.plan().is_empty());
}

#[test]
fn a_pod_that_had_completed_before_a_reboot_has_succeeded() {
    let mut node = half_done("Never");
    node.exit("b", 0);
    reboot(&mut node);
    assert_eq!(node.steps(), ["record pod as Succeeded"]);
}

#[test]
fn what_had_completed_before_a_reboot_is_not_run_again_with_the_rest() {
    let mut node = half_done("OnFailure");
    reboot(&mut node);
    node.settle();
    let names: Vec<_> = node.observed.containers.iter().map(|view| (view.name.as_str(), view.attempt)).collect();
    assert_eq!(names, [("init", 1), ("b", 1)]);
    node.exit("b", 0);
    node.settle();
    assert_eq!(node.status().phase.as_deref(), Some("Succeeded"));
}

#[test]
fn an_edit_or_a_request_runs_a_pod_again_that_a_reboot_had_ended() {
    let mut edited = half_done("Never");
    let mut asked = edited.clone();
    reboot(&mut edited);
    reboot(&mut asked);
    let mut spec = serde_json::to_value(edited.desired.pod.spec.clone()).unwrap();
    spec["containers"][0]["image"] = json!("i:2");
    edited.edit(spec);
    asked.desired.restart_requested_at = Some(asked.now);
    for mut node in [edited, asked] {
        node.settle();
        assert_eq!(node.observed.containers.len(), 3, "{:#?}", node.done);
    }
}

#[test]
fn a_pod_whose_past_is_unknown_has_ended_until_it_is_asked_for() {
    for (policy, runs) in [("Never", false), ("OnFailure", false), ("Always", true)] {
        let mut node = half_done(policy);
        reboot(&mut node);
        let (generation, restart_requested_at) = (node.desired.generation, node.desired.restart_requested_at);
        let unknown = Past { generation, restart_requested_at, carried: BTreeMap::new() };
        node.observed.history.past = Some(Arc::new(unknown));
        let mut asked = node.clone();
        asked.desired.restart_requested_at = Some(asked.now);
        if !runs {
            assert_eq!(node.steps(), ["record pod as Failed"]);
            assert!(node.status().message.unwrap().contains("cannot be read"));
            assert_eq!(past(&node.desired, &node.observed), node.observed.history.past, "it stays on disk");
        }
        node.settle();
        assert_eq!(!node.observed.containers.is_empty(), runs, "{policy}");
        asked.settle();
        assert_eq!(asked.observed.containers.len(), 3, "{policy}: {:#?}", asked.done);
    }
}

#[test]
fn what_was_never_started_is_no_past() {
    let mut node = Node::new(crate::pods::wanted(json!({
        "restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1"}],
    })));
    node.round(usize::MAX).unwrap();
    node.container("a").state = portreeve_plan::ContainerState::Created;
    assert_eq!(past(&node.desired, &node.observed), None);
    assert_eq!(past(&half_done("Always").desired, &half_done("Always").observed), None);
}

#[test]
fn an_ended_pod_keeps_its_address_in_its_status() {
    let mut node = half_done("Never");
    node.exit("b", 0);
    node.settle();
    node.desired.finished = None;
    node.sandbox().ips.clear();
    let status = node.status();
    assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Succeeded"), Some("10.0.0.2")));
    assert_eq!(status.pod_ips.unwrap().len(), 1);
}

#[test]
fn a_drained_pod_is_stopped_keeps_what_it_came_to_and_goes_on_without_a_back_off() {
    let mut spec = simple();
    spec["volumes"] = json!([{"name": "tmp", "emptyDir": {}}]);
    let mut node = Node::running(spec);
    node.container("web").attempt = 3;
    node.drain();
    assert_eq!(node.steps(), ["stop container web within 30 s"]);
    assert_eq!(node.status().phase.as_deref(), Some("Running"), "it is still being stopped");
    assert!(!node.plan().rests);
    node.round(usize::MAX).unwrap();
    assert_eq!(node.steps(), ["stop sandbox sandbox-0001", "unmount volumes tmp"]);
    node.settle();
    assert!(node.plan().rests && !node.plan().removed);
    let status = node.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Drained")));
    let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "DisruptionTarget");
    assert_eq!(condition.and_then(|condition| condition.reason.as_deref()), Some("TerminationByKubelet"));
    let web = &status.container_statuses.unwrap()[0];
    assert_eq!(web.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 137);
    assert_eq!((web.restart_count, web.ready), (3, false));
    assert_eq!(node.desired.finished, None);

    node.desired.intent = Intent::Run;
    let kinds: Vec<_> = node.steps().into_iter().filter(|step| step.contains("sandbox")).collect();
    assert_eq!(kinds, ["create sandbox", "remove sandbox sandbox-0001"]);
    let plan = node.plan();
    assert!(plan.steps.iter().any(|step| step.reason == "the node was drained"), "{plan}");
    node.settle();
    let status = node.status();
    assert_eq!((status.phase.as_deref(), status.reason), (Some("Running"), None));
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 4);
}

#[test]
fn what_a_drained_pod_becomes_depends_on_its_restart_policy_and_how_it_ended() {
    // Policy, exit code of `a` before the drain, phase while drained, what is recorded.
    let table = [
        ("Always", None, "Failed", None),
        ("OnFailure", None, "Failed", None),
        ("Never", None, "Failed", Some("Drained")),
        ("Never", Some(0), "Failed", Some("Drained")),
    ];
    for (policy, exit, phase, recorded) in table {
        let mut node = Node::running(job(policy));
        if let Some(code) = exit {
            node.exit("a", code);
        }
        node.drain();
        node.settle();
        let status = node.status();
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy}");
        assert_eq!(status.reason.as_deref(), Some("Drained"), "{policy}");
        let finished = node.desired.finished.clone();
        assert_eq!(finished.and_then(|finished| finished.reason).as_deref(), recorded, "{policy}");
        node.desired.intent = Intent::Run;
        node.settle();
        let runs = node.observed.containers.iter().filter(|view| running(view)).count();
        assert_eq!(runs, if recorded.is_some() { 0 } else { 2 }, "{policy}");
    }
}

#[test]
fn a_program_that_heeds_the_drains_signal_has_not_succeeded_by_it() {
    let mut node = Node::running(job("OnFailure"));
    node.drain();
    let stopping = Stopping { deadline: node.now, pre_stop_ran: true, cause: KillCause::NodeDrained };
    for name in ["a", "b"] {
        node.container(name).stopping = Some(stopping.clone());
        node.exit(name, 0);
    }
    node.settle();
    assert_eq!(node.desired.finished, None);
    node.desired.intent = Intent::Run;
    node.settle();
    assert_eq!(node.observed.containers.iter().filter(|view| running(view)).count(), 2);
}

#[test]
fn a_drain_changes_nothing_of_a_pod_that_has_ended_and_starts_none() {
    let mut node = Node::running(job("Never"));
    node.exit("a", 0);
    node.exit("b", 0);
    node.settle();
    let before = node.status();
    assert_eq!(before.phase.as_deref(), Some("Succeeded"));
    node.drain();
    assert!(node.plan().is_empty() && node.plan().rests);
    assert_eq!(node.status(), before);

    let mut node = Node::new(crate::pods::wanted(simple()));
    node.drain();
    assert!(node.plan().is_empty() && node.plan().rests);
    let status = node.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Pending"), Some("Drained")));
    let web = &status.container_statuses.unwrap()[0];
    let waiting = web.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("Drained"), "who looks at the table is told, too");
}
