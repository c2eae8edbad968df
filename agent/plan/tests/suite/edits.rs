//! What an edit costs: a row per field.

use portreeve_plan::{Attempted, Config, Configs, Cost, RESTART_ON_CHANGE, ResourcesView, SandboxState, differences};
use serde_json::{Value, json};

use crate::model::{Node, running};
use crate::pods::{level, pod, settings, simple, with};

/// A pod that has something to edit everywhere.
fn rich() -> Value {
    json!({
        "terminationGracePeriodSeconds": 5,
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "initContainers": [{"name": "init", "image": "init:1"}],
        "containers": [
            {
                "name": "web", "image": "web:1", "env": [{"name": "A", "value": "1"}],
                "ports": [{"containerPort": 80}],
                "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}},
            },
            {"name": "log", "image": "log:1"},
        ],
    })
}

/// What an edit did to the sandbox and the containers: `=` kept, `+` new.
fn effect(edited: Value) -> (String, String, String) {
    let mut node = Node::running(rich());
    let before = (node.sandbox().id.clone(), node.container("web").id.clone());
    let log = node.container("log").id.clone();
    node.edit(edited);
    node.settle();
    let word = |same: bool| if same { "=" } else { "+" }.to_owned();
    let sandbox = word(node.sandbox().id == before.0);
    let web = word(node.container("web").id == before.1);
    let live = node.observed.containers.iter().find(|view| view.name == "log" && running(view));
    (sandbox, web, live.map_or_else(|| "-".to_owned(), |view| word(view.id == log)))
}

fn web() -> Cost {
    Cost::Restart { container: "web".to_owned() }
}

/// Checks the class of one edit, its name, and that what follows costs no more.
fn check(edited: Value, field: &str, cost: Cost) {
    let found = differences(&pod(rich()), &pod(edited.clone()));
    let row = found.iter().find(|difference| difference.field == field);
    let row = row.unwrap_or_else(|| panic!("{field} is not among {found:#?}"));
    assert_eq!(row.cost, cost, "{row}");
    let highest = found.iter().map(|difference| &difference.cost).max().unwrap();
    assert_eq!(*highest, cost, "{field}: {found:#?}");
    let (sandbox, web, log) = effect(edited);
    let expected = match &cost {
        Cost::Live | Cost::InPlace => ("=", "=", "="),
        Cost::Restart { container } if container == "web" => ("=", "+", "="),
        Cost::Restart { .. } => ("=", "=", log.as_str()),
        Cost::Recreate | Cost::Remove => ("+", "+", "+"),
    };
    assert_eq!((sandbox.as_str(), web.as_str(), log.as_str()), expected, "{field}");
}

#[test]
fn live_edits_touch_no_container() {
    let probe = json!({"tcpSocket": {"port": 80}});
    let rows = [
        ("/terminationGracePeriodSeconds", json!(9), "spec.terminationGracePeriodSeconds"),
        ("/restartPolicy", json!("OnFailure"), "spec.restartPolicy"),
        ("/activeDeadlineSeconds", json!(99999), "spec.activeDeadlineSeconds"),
        ("/imagePullSecrets", json!([{"name": "key"}]), "spec.imagePullSecrets[key]"),
        ("/nodeSelector", json!({"disk": "ssd"}), "spec.nodeSelector.disk"),
        ("/containers/0/livenessProbe", probe.clone(), "spec.containers[web].livenessProbe.tcpSocket.port"),
        ("/containers/0/readinessProbe", probe, "spec.containers[web].readinessProbe.tcpSocket.port"),
        ("/containers/0/imagePullPolicy", json!("Never"), "spec.containers[web].imagePullPolicy"),
        (
            "/containers/0/lifecycle",
            json!({"preStop": {"sleep": {"seconds": 1}}}),
            "spec.containers[web].lifecycle.preStop.sleep.seconds",
        ),
    ];
    for (pointer, value, field) in rows {
        check(with(rich(), pointer, value), field, Cost::Live);
    }
}

#[test]
fn labels_and_annotations_are_live() {
    let (old, mut new) = (pod(rich()), pod(rich()));
    new.metadata.labels.get_or_insert_default().insert("a".to_owned(), "b".to_owned());
    new.metadata.annotations.get_or_insert_default().insert("c".to_owned(), "d".to_owned());
    let found: Vec<String> = differences(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["metadata.labels.a [live]: (none) -> \"b\"", "metadata.annotations.c [live]: (none) -> \"d\""]);
}

#[test]
fn limits_change_in_place_while_the_qos_class_stays() {
    let limits = "/containers/0/resources/limits";
    let rows = [
        ("/containers/0/resources/requests/cpu", json!("200m"), "resources.requests.cpu"),
        ("/containers/0/resources/limits/memory", json!("128Mi"), "resources.limits.memory"),
        (limits, json!({"memory": "64Mi", "cpu": "1"}), "resources.limits.cpu"),
        (limits, json!({"memory": "64Mi", "portreeve.dev/pids": "50"}), "resources.limits.portreeve.dev/pids"),
    ];
    for (pointer, value, field) in rows {
        let field = format!("spec.containers[web].{field}");
        check(with(rich(), pointer, value), &field, Cost::InPlace);
    }
    let first = with(rich(), "/containers/1/resources", json!({"requests": {"cpu": "1"}}));
    check(first, "spec.containers[log].resources.requests.cpu", Cost::InPlace);
    let mut node = Node::running(rich());
    node.edit(with(rich(), "/containers/0/resources/limits/memory", json!("128Mi")));
    let plan = node.plan();
    assert_eq!(
        plan.steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["set resources of container web to cpu request 100m, memory limit 128Mi [in-place]: \
          spec.containers[web].resources.limits.memory [in-place]: \"64Mi\" -> \"128Mi\""]
    );
}

#[test]
fn a_refused_limit_is_tried_again_later_and_said_in_the_status() {
    let mut node = Node::running(rich());
    node.edit(with(rich(), "/containers/0/resources/limits/memory", json!("1Mi")));
    node.fail(Attempted::Resources("web".to_owned()), "ResizeRefused");
    assert!(node.steps().is_empty());
    assert!(node.plan().wake_at.is_some());
    let conditions = node.status().conditions.unwrap();
    let resize = conditions.iter().find(|c| c.type_ == "PodResizeInProgress").unwrap();
    assert_eq!(resize.message.as_deref(), Some("container web: it said no"));
    let statuses = node.status().container_statuses.unwrap();
    let limits = statuses[0].resources.clone().unwrap().limits.unwrap();
    assert_eq!(limits["memory"].0, "67108864", "what is in effect, not what is wanted");
}

#[test]
fn what_a_container_is_made_of_restarts_this_container() {
    let rows = [
        ("/containers/0/image", json!("web:2"), "image"),
        ("/containers/0/command", json!(["run"]), "command"),
        ("/containers/0/args", json!(["-v"]), "args"),
        ("/containers/0/env/0/value", json!("2"), "env[A].value"),
        ("/containers/0/workingDir", json!("/tmp"), "workingDir"),
        ("/containers/0/volumeMounts", json!([{"name": "tmp", "mountPath": "/t"}]), "volumeMounts[/t]"),
        ("/containers/0/securityContext", json!({"runAsUser": 1}), "securityContext.runAsUser"),
        ("/containers/0/tty", json!(true), "tty"),
    ];
    for (pointer, value, field) in rows {
        let found = differences(&pod(rich()), &pod(with(rich(), pointer, value.clone())));
        let prefix = format!("spec.containers[web].{field}");
        let row = found.iter().find(|row| row.field.starts_with(&prefix));
        let field = row.unwrap_or_else(|| panic!("{prefix} is not among {found:#?}")).field.clone();
        check(with(rich(), pointer, value), &field, web());
    }
}

#[test]
fn a_container_more_or_less_leaves_the_others_running() {
    let log = || Cost::Restart { container: "log".to_owned() };
    let mut without = rich();
    without["containers"].as_array_mut().unwrap().pop();
    check(without, "spec.containers[log]", log());
    let with_third = with(rich(), "/containers/-", json!({"name": "third", "image": "t:1"}));
    let third = Cost::Restart { container: "third".to_owned() };
    check(with_third, "spec.containers[third]", third);
}

#[test]
fn what_the_sandbox_is_made_of_recreates_the_pod_under_its_uid() {
    let rows = [
        ("/securityContext", json!({"fsGroup": 1}), "spec.securityContext.fsGroup"),
        ("/hostNetwork", json!(true), "spec.hostNetwork"),
        ("/hostPID", json!(true), "spec.hostPID"),
        ("/shareProcessNamespace", json!(true), "spec.shareProcessNamespace"),
        ("/volumes/0/emptyDir", json!({"medium": "Memory"}), "spec.volumes[tmp].emptyDir.medium"),
        ("/hostname", json!("other"), "spec.hostname"),
        ("/dnsPolicy", json!("None"), "spec.dnsPolicy"),
        ("/initContainers/0/image", json!("init:2"), "spec.initContainers[init].image"),
        ("/containers/0/ports/0/hostPort", json!(8080), "spec.containers[web].ports"),
        // The only one of the pod's containers that asks for anything.
        ("/containers/0/resources", json!({}), "status.qosClass"),
    ];
    for (pointer, value, field) in rows {
        check(with(rich(), pointer, value), field, Cost::Recreate);
    }
}

#[test]
fn a_change_of_the_qos_class_recreates_the_pod() {
    let mut spec = rich();
    let guaranteed = json!({"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "1", "memory": "64Mi"}});
    for pointer in ["/containers/0/resources", "/containers/1/resources", "/initContainers/0/resources"] {
        spec = with(spec, pointer, guaranteed.clone());
    }
    let found = differences(&pod(rich()), &pod(spec));
    let row = found.iter().find(|row| row.field == "status.qosClass").unwrap();
    assert_eq!(row.to_string(), "status.qosClass [recreate]: Burstable -> Guaranteed");
}

#[test]
fn the_order_of_containers_is_named_and_live_and_the_order_of_env_costs_a_restart() {
    let mut swapped = rich();
    swapped["containers"].as_array_mut().unwrap().swap(0, 1);
    let found = differences(&pod(rich()), &pod(swapped));
    let rows: Vec<_> = found.iter().map(ToString::to_string).collect();
    let names: Vec<_> = pod(rich()).spec.unwrap().containers.into_iter().map(|container| container.name).collect();
    let expected = format!("spec.containers (order) [live]: {0}, {1} -> {1}, {0}", names[0], names[1]);
    assert_eq!(rows, [expected]);
    let two = |a: &str, b: &str| {
        let env = json!([{"name": a, "value": "1"}, {"name": b, "value": "1"}]);
        pod(with(simple(), "/containers/0/env", env))
    };
    let found = differences(&two("A", "B"), &two("B", "A"));
    assert_eq!(found[0].cost, web());
}

#[test]
fn changed_content_of_a_mounted_configuration_is_refreshed_live() {
    let spec = json!({
        "volumes": [{"name": "conf", "configMap": {"name": "settings"}}],
        "containers": [{"name": "web", "image": "web:1"}],
    });
    let mut desired = crate::pods::wanted(spec);
    desired.configs = settings("info", desired.admitted_at);
    let mut node = Node::running_pod(desired);
    node.desired.configs = settings("debug", node.now);
    assert_eq!(node.steps(), ["refresh volumes conf"]);
    node.settle();
    assert!(node.steps().is_empty());
    node.desired.configs = std::sync::Arc::new(Configs::default());
    assert!(node.steps().is_empty(), "what is mounted stays when its source goes");
}

#[test]
fn keys_that_no_item_names_do_not_refresh_a_volume() {
    let items = json!([{"key": "LEVEL", "path": "level"}]);
    let spec = json!({
        "volumes": [{"name": "conf", "configMap": {"name": "settings", "items": items}}],
        "containers": [{"name": "web", "image": "web:1"}],
    });
    let mut desired = crate::pods::wanted(spec);
    desired.configs = settings("info", desired.admitted_at);
    let mut node = Node::running_pod(desired);
    let mut configs = (*node.desired.configs).clone();
    let mut data = configs.config_maps["settings"].data().clone();
    data.insert("OTHER".to_owned(), b"x".to_vec());
    configs.config_maps.insert("settings".to_owned(), Config::new(data));
    node.desired.configs = std::sync::Arc::new(configs);
    assert!(node.steps().is_empty());
}

fn with_level() -> Node {
    let mut desired = crate::pods::wanted(with(simple(), "/containers/0/env", level()));
    desired.configs = settings("info", desired.admitted_at);
    Node::running_pod(desired)
}

#[test]
fn a_changed_value_of_the_environment_restarts_nothing_and_is_said() {
    let mut node = with_level();
    node.desired.configs = settings("debug", node.now);
    assert!(node.steps().is_empty());
    let conditions = node.status().conditions.unwrap();
    let stale = conditions.iter().find(|c| c.type_ == portreeve_plan::STALE).unwrap();
    assert_eq!(
        stale.message.as_deref(),
        Some("container web uses older ConfigMap settings/LEVEL; restart the pod to take it")
    );
}

#[test]
fn a_changed_value_of_the_environment_restarts_a_pod_that_asks_for_it() {
    let mut node = with_level();
    node.annotate(RESTART_ON_CHANGE, "true");
    assert!(node.steps().is_empty());
    node.desired.configs = settings("debug", node.now);
    assert_eq!(
        node.steps(),
        ["stop container web within 30 s", "create container web (attempt 1)", "start container web"]
    );
    node.settle();
    assert!(node.steps().is_empty());
    node.desired.configs = std::sync::Arc::new(Configs::default());
    assert!(node.steps().is_empty(), "it runs on while its configuration is missing");
}

#[test]
fn an_edit_pulls_before_it_stops_and_a_failed_pull_stops_nothing() {
    let mut node = Node::running(simple());
    node.unknown_images.insert("web:2".to_owned());
    node.edit(with(simple(), "/containers/0/image", json!("web:2")));
    assert_eq!(
        node.steps(),
        [
            "pull image web:2",
            "stop container web within 30 s",
            "create container web (attempt 1)",
            "start container web"
        ]
    );
    node.settle();
    assert!(running(node.container("web")));
    assert_eq!(node.container("web").attempt, 0);
    let conditions = node.status().conditions.unwrap();
    let held = conditions.iter().find(|c| c.type_ == portreeve_plan::PENDING_CHANGE).unwrap();
    assert_eq!(held.reason.as_deref(), Some("ErrImagePull"));
    node.unknown_images.clear();
    node.now = node.plan().wake_at.unwrap();
    node.settle();
    assert_eq!(node.container("web").attempt, 1);
}

#[test]
fn a_recreate_that_could_not_start_leaves_the_pod_as_it_is() {
    let mut node = Node::running(simple());
    let volumes = json!([{"name": "keys", "secret": {"secretName": "keys"}}]);
    node.edit(with(simple(), "/volumes", volumes));
    assert!(node.steps().is_empty(), "{:?}", node.steps());
    assert_eq!(node.sandbox().state, SandboxState::Ready);
    assert!(node.plan().waits[0].message.contains("secret \"keys\" not found"));
}

#[test]
fn an_edit_starts_a_crashing_container_at_once() {
    let mut node = Node::running(simple());
    for _ in 0..3 {
        node.now = node.plan().wake_at.unwrap_or(node.now);
        node.settle();
        if running(node.container("web")) {
            node.exit("web", 1);
        }
    }
    node.settle();
    assert!(node.plan().wake_at.is_some());
    node.edit(with(simple(), "/containers/0/command", json!(["run"])));
    assert!(node.steps().iter().any(|step| step.starts_with("start container web")));
}

#[test]
fn an_edit_of_a_pod_that_never_restarts_is_carried_out_even_after_a_crash_in_between() {
    let spec = with(simple(), "/restartPolicy", json!("Never"));
    let mut node = Node::running(spec.clone());
    node.edit(with(spec, "/containers/0/command", json!(["run"])));
    node.round(1).unwrap();
    assert!(!running(node.container("web")));
    assert_eq!(node.steps(), ["create container web (attempt 1)", "start container web"]);
}

#[test]
fn limits_that_were_set_once_are_not_set_again() {
    let mut node = Node::running(rich());
    node.edit(with(rich(), "/containers/0/resources/limits/memory", json!("128Mi")));
    node.settle();
    assert!(node.steps().is_empty());
    assert!(node.plan().differences.is_empty());
    node.edit(with(rich(), "/containers/0/resources/limits/memory", json!("256Mi")));
    assert_eq!(
        node.plan().steps[0].reason,
        "cpu request 100m, memory limit 128Mi is in effect, cpu request 100m, memory limit 256Mi \
         is wanted"
    );
    node.settle();
    assert!(matches!(node.container("web").resources, ResourcesView::InEffect(_)));
}

#[test]
fn a_lower_memory_limit_says_on_what_it_depends() {
    let spec = |memory: &str| {
        with(simple(), "/containers/0/resources", json!({"limits": {"memory": memory}, "requests": {"memory": "1Mi"}}))
    };
    let mut node = Node::running(spec("64Mi"));
    node.edit(spec("32Mi"));
    let step = node.plan().steps[0].clone();
    assert!(step.reason.ends_with("; refused if more memory than that is in use"), "{step}");
    node.edit(spec("128Mi"));
    let step = node.plan().steps[0].clone();
    assert!(!step.reason.contains("refused"), "{step}");
}
