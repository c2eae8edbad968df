//! What `get` and `describe` read: phase, conditions, container states.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use portreeve_plan::{Blocked, ObservedPod, Verdict, remember};
use serde_json::json;

use crate::model::Node;
use crate::pods::{level, simple, wanted, with};

fn container(status: &PodStatus, at: usize) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[at]
}

fn waiting(status: &ContainerStatus) -> &str {
    let state = status.state.as_ref().unwrap();
    state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()).unwrap_or("(not waiting)")
}

/// `Type=Status` of the kubelet's five, with the reason of those that do not hold.
fn conditions(status: &PodStatus) -> Vec<String> {
    let all = status.conditions.iter().flatten();
    all.map(|c| match &c.reason {
        Some(reason) => format!("{}={} {reason}", c.type_, c.status),
        None => format!("{}={}", c.type_, c.status),
    })
    .collect()
}

#[test]
fn a_new_pod_is_pending_and_its_containers_are_being_created() {
    let node = Node::new(wanted(simple()));
    let status = node.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting(container(&status, 0)), "ContainerCreating");
    assert_eq!(
        conditions(&status),
        [
            "PodReadyToStartContainers=False",
            "Initialized=True",
            "Ready=False ContainersNotReady",
            "ContainersReady=False ContainersNotReady",
            "PodScheduled=True"
        ]
    );
}

#[test]
fn a_running_pod_is_told_completely() {
    let node = Node::running(simple());
    let status = node.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.2"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.start_time.as_ref().map(|time| time.0), Some(node.desired.admitted_at));
    let web = container(&status, 0);
    assert_eq!(web.container_id.as_deref(), Some("portreeve://web-0002"));
    assert_eq!((web.image.as_str(), web.image_id.as_str()), ("web:1", "sha256:web:1"));
    assert!(web.ready && web.started == Some(true) && web.restart_count == 0);
    assert_eq!(
        conditions(&status),
        [
            "PodReadyToStartContainers=True",
            "Initialized=True",
            "Ready=True",
            "ContainersReady=True",
            "PodScheduled=True"
        ]
    );
}

#[test]
fn a_crashing_container_waits_and_shows_how_it_ended() {
    let mut node = Node::running(simple());
    for _ in 0..2 {
        node.container("web").state = portreeve_plan::ContainerState::Running { started_at: node.now };
        node.exit("web", 3);
        node.settle();
    }
    let status = node.status();
    let web = container(&status, 0);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(waiting(web), "CrashLoopBackOff");
    let message = web.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
    assert_eq!(
        message,
        "back-off 10s restarting failed container=web pod=web_default(uid-1), next try at \
         2026-01-01T00:20:10Z"
    );
    let last = web.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    assert_eq!(web.restart_count, 1);
    assert!(!web.ready);
}

#[test]
fn images_and_configuration_that_are_missing_are_waiting_reasons() {
    let mut node = Node::new(wanted(simple()));
    node.unknown_images.insert("web:1".to_owned());
    node.settle();
    assert_eq!(waiting(container(&node.status(), 0)), "ErrImagePull");
    node.now = node.plan().wake_at.unwrap();
    node.settle();
    assert_eq!(waiting(container(&node.status(), 0)), "ImagePullBackOff");
    let node = Node::new(wanted(with(simple(), "/containers/0/env", level())));
    assert_eq!(waiting(container(&node.status(), 0)), "CreateContainerConfigError");
}

#[test]
fn readiness_is_only_told() {
    let probe = json!({"tcpSocket": {"port": 1}});
    let mut node = Node::running(with(simple(), "/containers/0/readinessProbe", probe));
    assert!(!container(&node.status(), 0).ready);
    node.probe("web", |verdicts| verdicts.readiness = Verdict::Success);
    assert!(container(&node.status(), 0).ready);
    node.probe("web", |verdicts| verdicts.readiness = Verdict::Failure { message: String::new() });
    assert!(!container(&node.status(), 0).ready);
    assert!(node.steps().is_empty());
}

#[test]
fn the_startup_probe_gates_started_and_ready() {
    let probe = json!({"tcpSocket": {"port": 1}});
    let mut node = Node::new(wanted(with(simple(), "/containers/0/startupProbe", probe)));
    node.round(usize::MAX).unwrap();
    let web = container(&node.status(), 0).clone();
    assert!(web.started == Some(false) && !web.ready);
    node.probe("web", |verdicts| verdicts.startup = Verdict::Success);
    let web = container(&node.status(), 0).clone();
    assert!(web.started == Some(true) && web.ready);
}

#[test]
fn while_init_containers_run_the_others_are_initializing() {
    let spec = json!({
        "initContainers": [{"name": "one", "image": "i:1"}, {"name": "two", "image": "i:1"}],
        "containers": [{"name": "web", "image": "i:1"}],
    });
    let mut node = Node::new(wanted(spec));
    node.round(usize::MAX).unwrap();
    let status = node.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting(container(&status, 0)), "PodInitializing");
    let condition = status.conditions.as_ref().unwrap()[1].clone();
    assert_eq!(condition.message.as_deref(), Some("containers with incomplete status: [one two]"));
    node.settle();
    let status = node.status();
    let inits = status.init_container_statuses.as_ref().unwrap();
    assert!(inits.iter().all(|init| init.ready));
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn transition_times_stay_until_a_condition_turns() {
    let mut node = Node::running(simple());
    let since = |node: &Node, at: usize| {
        let conditions = node.status().conditions.unwrap();
        conditions[at].last_transition_time.as_ref().unwrap().0
    };
    let scheduled = since(&node, 4);
    node.observed.history = remember(&node.observed, node.status());
    node.pass(100);
    assert_eq!(since(&node, 4), scheduled);
    node.exit("web", 1);
    assert_eq!(since(&node, 2), node.now, "it is not ready any more");
    assert_eq!(since(&node, 4), scheduled);
}

#[test]
fn a_blocked_pod_says_what_blocks_it() {
    let mut node = Node::new(wanted(simple()));
    let (reason, message) = ("HostPortConflict".to_owned(), "port 80 is taken".to_owned());
    node.desired.blocked = Some(Blocked { reason, message });
    let status = node.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(status.reason.as_deref(), Some("HostPortConflict"));
    assert!(conditions(&status).contains(&"PodScheduled=False HostPortConflict".to_owned()));
}

#[test]
fn a_pod_with_the_hosts_network_has_the_hosts_address() {
    let mut node = Node::new(wanted(with(simple(), "/hostNetwork", json!(true))));
    node.settle();
    assert_eq!(node.status().pod_ip.as_deref(), Some("192.0.2.1"));
}

#[test]
fn restart_counts_outlive_a_reboot_through_the_history() {
    let mut node = Node::running(simple());
    node.exit("web", 1);
    node.settle();
    let history = node.observed.history.clone();
    let images = node.observed.images.clone();
    node.observed = ObservedPod { history, images, ..ObservedPod::default() };
    node.settle();
    assert_eq!(container(&node.status(), 0).restart_count, 2);
    assert_eq!(node.status().start_time.unwrap().0, node.desired.admitted_at);
}

#[test]
fn a_container_of_a_pod_that_is_removed_is_told_as_ended() {
    let mut node = Node::running(simple());
    node.remove();
    node.round(1).unwrap();
    let web = container(&node.status(), 0).clone();
    assert_eq!(web.state.unwrap().terminated.unwrap().exit_code, 137);
}

#[test]
fn a_status_without_a_past_is_complete_as_well() {
    let mut node = Node::running(simple());
    node.observed.history = portreeve_plan::History::default();
    let pod = Arc::clone(&node.desired.pod);
    assert_eq!(node.status().container_statuses.unwrap().len(), pod.spec.as_ref().unwrap().containers.len());
}
