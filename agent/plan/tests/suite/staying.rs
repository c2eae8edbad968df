//! How a pod keeps running: exits, back-off, probes, requests, losses, strangers.

use std::sync::Arc;
use std::time::Duration;

use portreeve_plan::{
    Action, HookState, KillCause, PodUid, ResourcesView, SandboxState, Step, Stopping, Terminal, Verdict, crash_backoff,
};
use serde_json::json;

use crate::model::{Node, exited, running};
use crate::pods::{at, simple, with};

fn kill(step: &Step) -> (KillCause, u64, bool) {
    match &step.action {
        Action::KillContainer { cause, grace, pre_stop, .. } => (*cause, grace.as_secs(), *pre_stop),
        other => panic!("{other} is no kill"),
    }
}

fn failing() -> Verdict {
    Verdict::Failure { message: "connection refused".to_owned() }
}

#[test]
fn a_crashed_container_restarts_at_once_and_then_waits_10_s_doubling_to_300_s() {
    let mut node = Node::running(simple());
    let mut waits = Vec::new();
    node.container("web").state = portreeve_plan::ContainerState::Running { started_at: node.now };
    for _ in 0..8 {
        node.exit("web", 1);
        waits.push(node.plan().wake_at.map_or(0, |wake| wake.duration_since(node.now).as_secs()));
        node.now = node.plan().wake_at.unwrap_or(node.now);
        node.settle();
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(node.container("web").attempt, 8);
}

#[test]
fn ten_minutes_of_running_reset_the_backoff() {
    let used = Some(Duration::from_secs(160));
    assert_eq!(crash_backoff(used, Duration::from_secs(600)), Duration::from_secs(300));
    assert_eq!(crash_backoff(used, Duration::from_secs(601)), Duration::ZERO);
}

#[test]
fn the_restart_policy_decides_who_restarts() {
    // (policy, exit code, restarts)
    let table = [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ];
    for (policy, code, restarts) in table {
        let spec = json!({"restartPolicy": policy, "containers": [
            {"name": "web", "image": "i:1"}, {"name": "log", "image": "i:1"},
        ]});
        let mut node = Node::running(spec);
        node.exit("web", code);
        assert_eq!(!node.steps().is_empty(), restarts, "{policy} {code}: {:?}", node.steps());
    }
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_killed_with_the_probes_grace() {
    let probe = json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 7});
    let hook = json!({"preStop": {"exec": {"command": ["x"]}}});
    let spec = with(with(simple(), "/containers/0/livenessProbe", probe), "/containers/0/lifecycle", hook);
    let mut node = Node::running(spec);
    node.probe("web", |verdicts| verdicts.liveness = failing());
    let plan = node.plan();
    assert_eq!(plan.steps.len(), 1, "how it ends decides what follows: {plan}");
    assert_eq!(kill(&plan.steps[0]), (KillCause::LivenessFailed, 7, true));
    node.settle();
    assert_eq!(node.container("web").attempt, 1);
}

#[test]
fn a_failed_startup_probe_kills_and_until_it_passed_liveness_does_not_count() {
    let spec = json!({"containers": [{"name": "web", "image": "i:1",
        "startupProbe": {"tcpSocket": {"port": 1}}, "livenessProbe": {"tcpSocket": {"port": 1}}}]});
    let mut node = Node::running(spec);
    node.probe("web", |verdicts| {
        verdicts.startup = Verdict::Unknown;
        verdicts.liveness = failing();
    });
    assert!(node.steps().is_empty());
    node.probe("web", |verdicts| verdicts.startup = failing());
    assert_eq!(kill(&node.plan().steps[0]).0, KillCause::StartupFailed);
}

#[test]
fn a_probe_that_was_edited_away_kills_nobody() {
    let mut node = Node::running(simple());
    node.probe("web", |verdicts| {
        verdicts.liveness = failing();
        verdicts.startup = failing();
        verdicts.readiness = failing();
    });
    assert!(node.steps().is_empty());
}

#[test]
fn a_failed_post_start_hook_kills_its_container() {
    let hook = json!({"postStart": {"exec": {"command": ["x"]}}});
    let mut node = Node::running(with(simple(), "/containers/0/lifecycle", hook));
    node.container("web").post_start = HookState::Failed { message: "exit code 3".to_owned() };
    let plan = node.plan();
    assert_eq!(kill(&plan.steps[0]).0, KillCause::PostStartFailed);
    assert_eq!(plan.steps[0].reason, "postStart hook of container web failed: exit code 3");
}

#[test]
fn a_request_restarts_each_container_once_and_keeps_the_sandbox() {
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "web", "image": "i:1"}, {"name": "log", "image": "i:1"},
    ]});
    let mut node = Node::running(spec);
    let sandbox = node.sandbox().id.clone();
    node.desired.restart_requested_at = Some(node.now);
    let plan = node.plan();
    assert_eq!(kill(&plan.steps[0]), (KillCause::RestartRequested, 30, false));
    node.settle();
    node.pass(1);
    node.settle();
    assert_eq!(node.sandbox().id, sandbox);
    assert_eq!(node.container("web").attempt, 1);
    assert_eq!(node.container("log").attempt, 1);
    assert!(running(node.container("web")) && running(node.container("log")));
}

#[test]
fn a_request_ends_a_backoff() {
    let mut node = Node::running(simple());
    for _ in 0..2 {
        node.container("web").state = portreeve_plan::ContainerState::Running { started_at: node.now };
        node.exit("web", 1);
        node.settle();
    }
    assert!(node.steps().is_empty() && node.plan().wake_at.is_some());
    node.pass(1);
    node.desired.restart_requested_at = Some(node.now);
    assert_eq!(node.steps()[0], "create container web (attempt 2)");
}

#[test]
fn a_lost_sandbox_is_replaced_and_the_restart_counts_stay() {
    let mut node = Node::running(simple());
    node.exit("web", 1);
    node.settle();
    node.pass(1200);
    let now = node.now;
    node.sandbox().state = SandboxState::Lost { reason: "the shim died".to_owned(), at: Some(now) };
    node.exit("web", 137);
    let plan = node.plan();
    assert!(plan.steps[0].action.to_string().starts_with("stop sandbox"), "{plan}");
    assert_eq!(plan.steps[0].reason, "sandbox is lost: the shim died");
    node.settle();
    assert_eq!(node.observed.sandboxes.len(), 1);
    assert_eq!(node.sandbox().attempt, 1);
    assert_eq!(node.container("web").attempt, 2);
}

#[test]
fn what_still_runs_in_a_lost_sandbox_is_killed_without_grace_before_all_else() {
    let mut node = Node::running(simple());
    let at = Some(node.now);
    node.sandbox().state = SandboxState::Lost { reason: "the cgroup is gone".to_owned(), at };
    assert_eq!(kill(&node.plan().steps[0]), (KillCause::SandboxLost, 0, false));
    node.settle();
    assert!(running(node.container("web")));
}

#[test]
fn a_sandbox_that_is_lost_again_and_again_backs_off() {
    let mut node = Node::running(simple());
    let mut waits = Vec::new();
    for _ in 0..4 {
        let at = Some(node.now);
        node.sandbox().state = SandboxState::Lost { reason: "the shim died".to_owned(), at };
        node.settle();
        waits.push(node.plan().wake_at.map_or(0, |wake| wake.duration_since(node.now).as_secs()));
        node.now = node.plan().wake_at.unwrap_or(node.now);
        node.settle();
    }
    assert_eq!(waits, [0, 10, 20, 40], "the first one had lived for 20 minutes");
}

#[test]
fn a_completed_container_does_not_run_again_in_another_sandbox() {
    let spec = json!({"restartPolicy": "OnFailure", "containers": [
        {"name": "job", "image": "i:1"}, {"name": "web", "image": "i:1"},
    ]});
    let mut node = Node::running(spec);
    node.exit("job", 0);
    node.settle();
    node.sandbox().state = SandboxState::Lost { reason: "the shim died".to_owned(), at: None };
    node.settle();
    node.now = node.plan().wake_at.unwrap_or(node.now);
    node.settle();
    assert!(node.observed.containers.iter().all(|view| view.name == "web"));
    assert!(running(node.container("web")));
}

#[test]
fn unknown_containers_are_killed_before_anything_is_started() {
    let mut node = Node::running(simple());
    let mut stranger = node.container("web").clone();
    stranger.id.0 = "stranger-1".to_owned();
    stranger.name = "stranger".to_owned();
    node.observed.containers.push(stranger);
    node.exit("web", 1);
    let steps = node.steps();
    assert_eq!(steps[0], "stop container stranger within 30 s", "{steps:?}");
    assert_eq!(steps[1], "remove container stranger (stranger-1)", "{steps:?}");
    assert_eq!(steps[2..], ["create container web (attempt 1)", "start container web"]);
}

#[test]
fn of_two_containers_of_one_name_the_newer_stays() {
    let mut node = Node::running(simple());
    let mut older = node.container("web").clone();
    older.id.0 = "older".to_owned();
    node.container("web").attempt = 1;
    node.observed.containers.push(older);
    let plan = node.plan();
    assert_eq!(plan.steps.len(), 1, "{plan}");
    assert_eq!(plan.steps[0].reason, "another container web was started after it");
    node.settle();
    assert_eq!(node.observed.containers.len(), 2);
    assert!(running(node.container("web")));
}

#[test]
fn things_of_another_uid_are_left_alone() {
    let mut node = Node::running(simple());
    let mut foreign = node.container("web").clone();
    foreign.uid = PodUid("uid-2".to_owned());
    foreign.id.0 = "foreign".to_owned();
    foreign.sandbox.0 = "foreign-box".to_owned();
    node.observed.containers.push(foreign);
    let mut foreign = node.sandbox().clone();
    foreign.id.0 = "foreign-box".to_owned();
    foreign.uid = PodUid("uid-2".to_owned());
    foreign.attempt = 9;
    node.observed.sandboxes.push(foreign);
    assert!(node.steps().is_empty(), "{:?}", node.steps());
    node.remove();
    node.settle();
    assert!(node.observed.containers.iter().all(|view| view.uid.0 == "uid-2"));
}

#[test]
fn a_container_without_a_readable_record_is_replaced() {
    let mut node = Node::running(simple());
    node.container("web").record = None;
    assert_eq!(kill(&node.plan().steps[0]).0, KillCause::Unwanted);
    node.settle();
    assert!(node.container("web").record.is_some());
}

#[test]
fn a_stop_that_an_agent_did_not_finish_goes_on_with_the_time_that_is_left() {
    let mut node = Node::running(simple());
    let deadline = node.now + jiff::SignedDuration::from_secs(12);
    let cause = KillCause::LivenessFailed;
    node.container("web").stopping = Some(Stopping { deadline, pre_stop_ran: true, cause });
    assert_eq!(kill(&node.plan().steps[0]), (cause, 12, false));
}

#[test]
fn a_cgroup_value_that_somebody_changed_is_set_again() {
    let mut node = Node::running(simple());
    let found = "memory.max is 1".to_owned();
    node.container("web").resources = ResourcesView::Drifted { found };
    assert_eq!(node.steps(), ["set resources of container web to no limits"]);
}

#[test]
fn only_the_last_record_of_a_container_is_kept() {
    let mut node = Node::running(simple());
    for _ in 0..3 {
        node.exit("web", 1);
        node.settle();
        node.pass(1200);
    }
    let attempts: Vec<u32> = node.observed.containers.iter().map(|view| view.attempt).collect();
    assert_eq!(attempts, [2, 3]);
}

#[test]
fn a_container_that_went_away_without_a_trace_counts_as_killed() {
    let mut node = Node::running(simple());
    node.container("web").state = portreeve_plan::ContainerState::Unknown;
    assert_eq!(node.steps(), ["create container web (attempt 1)", "start container web"]);
}

#[test]
fn counts_and_backoff_survive_an_agent_that_forgot_everything_but_the_records() {
    let mut node = Node::running(simple());
    let record = Arc::make_mut(node.container("web").record.as_mut().unwrap());
    record.backoff_seconds = Some(20);
    node.container("web").attempt = 3;
    node.container("web").state = exited(1, Some(at(1190)), at(1200));
    node.observed.history = portreeve_plan::History::default();
    let plan = node.plan();
    assert_eq!(plan.wake_at, Some(at(1240)));
    node.now = at(1240);
    assert_eq!(node.steps()[0], "create container web (attempt 4)");
}

#[test]
fn an_edit_after_the_end_runs_what_is_new_and_nothing_that_had_completed() {
    for policy in ["Never", "OnFailure"] {
        let job = json!({"name": "job", "image": "i:1"});
        let mut node = Node::running(json!({"restartPolicy": policy, "containers": [job]}));
        node.exit("job", 0);
        node.settle();
        assert_eq!(node.desired.finished.as_ref().map(|end| end.terminal), Some(Terminal::Succeeded));
        assert_eq!(node.sandbox().state, SandboxState::Stopped);
        node.pass(5);
        let more = json!({"name": "more", "image": "i:1"});
        node.edit(json!({"restartPolicy": policy, "containers": [job, more]}));
        node.desired.finished = None;
        let plan = node.plan();
        assert_eq!(plan.steps[0].reason, "the sandbox was stopped", "{plan}");
        node.settle();
        assert!(running(node.container("more")), "{policy}");
        assert!(node.observed.containers.iter().all(|view| view.name == "more"), "{policy}");
    }
}

#[test]
fn an_ended_container_runs_again_when_it_is_edited_or_asked_for_and_not_for_less() {
    let job = |image: &str| {
        let job = json!({"name": "job", "image": image});
        json!({"restartPolicy": "Never", "containers": [job, {"name": "other", "image": "i:1"}]})
    };
    let ended = || {
        let mut node = Node::running(job("i:1"));
        node.exit("job", 0);
        node.exit("other", 0);
        node.settle();
        node.pass(5);
        node.desired.finished = None;
        node
    };
    let ran = |node: &mut Node| {
        node.settle();
        let mut names: Vec<_> =
            node.observed.containers.iter().filter(|view| running(view)).map(|view| view.name.clone()).collect();
        names.sort();
        names
    };
    let mut node = ended();
    node.edit(with(job("i:1"), "/terminationGracePeriodSeconds", json!(3)));
    assert_eq!(ran(&mut node), Vec::<String>::new(), "nothing that runs is edited");
    assert_eq!(node.desired.finished.as_ref().map(|end| end.terminal), Some(Terminal::Succeeded));
    let mut node = ended();
    node.edit(job("i:2"));
    assert_eq!(ran(&mut node), ["job"], "one container is another");
    // And later, when it is known only from the sandbox before.
    node.edit(with(job("i:2"), "/containers/1/image", json!("i:2")));
    assert_eq!(ran(&mut node), ["job", "other"]);
    let mut node = ended();
    node.edit(with(job("i:1"), "/hostname", json!("other")));
    assert_eq!(ran(&mut node), ["job", "other"], "the whole pod is another");
    let mut node = ended();
    node.desired.restart_requested_at = Some(node.now);
    assert_eq!(ran(&mut node), ["job", "other"], "asked for");
}

#[test]
fn a_job_that_ends_while_an_edit_is_held_back_is_not_run_again_in_the_old_sandbox() {
    let pod = |image: &str, host: &str| {
        json!({"restartPolicy": "Never", "hostname": host, "containers": [
            {"name": "job", "image": "i:1"}, {"name": "web", "image": image},
        ]})
    };
    let mut node = Node::running(pod("i:1", "one"));
    node.unknown_images.insert("lost:1".to_owned());
    node.edit(pod("lost:1", "two"));
    node.settle();
    node.pass(1);
    node.exit("job", 0);
    let before = node.done.len();
    node.settle();
    assert!(running(node.container("web")));
    assert!(!node.done[before..].iter().any(|step| step.contains("container job")), "{:?}", &node.done[before..]);
}
