//! How a pod comes up: order, images, configuration, init containers, hooks.

use expect_test::expect;
use portreeve_plan::{Attempted, Blocked, HookState, ImageName, ImageView, WaitKind};
use serde_json::json;

use crate::model::Node;
use crate::pods::{at, level, settings, simple, wanted, with};

fn image(name: &str) -> ImageName {
    ImageName(name.to_owned())
}

fn waits(node: &Node) -> Vec<String> {
    node.plan().waits.iter().map(ToString::to_string).collect()
}

#[test]
fn a_new_pod_is_pulled_mounted_and_started_in_order() {
    let node = Node::new(wanted(json!({
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [
            {"name": "web", "image": "web:1", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}},
            {"name": "log", "image": "log:1"},
        ],
    })));
    expect![[r#"
        Pod default/web:
          pull image log:1 [live]: image log:1 is not on this node
          pull image web:1 [live]: image web:1 is not on this node
          mount volumes tmp [live]: the pod names them
          create sandbox [live]: the pod has no sandbox
          create container web (attempt 0) [live]: container web has not run yet
          start container web [live]: container web has not run yet
          run postStart hook of container web [live]: container web has a postStart hook
          create container log (attempt 0) [live]: container log has not run yet
          start container log [live]: container log has not run yet
    "#]]
    .assert_eq(&node.plan().to_string());
}

#[test]
fn pulls_may_run_at_the_same_time_and_starts_may_not() {
    let spec = json!({"containers": [
        {"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"},
    ]});
    let plan = Node::new(wanted(spec)).plan();
    let sizes: Vec<usize> = plan.batches().map(<[_]>::len).collect();
    assert_eq!(sizes, [2, 1, 1, 1, 1, 1]);
}

#[test]
fn init_containers_run_one_after_the_other_and_then_the_others() {
    let spec = json!({
        "initContainers": [{"name": "one", "image": "i:1"}, {"name": "two", "image": "i:1"}],
        "containers": [{"name": "web", "image": "web:1"}],
    });
    let mut node = Node::new(wanted(spec));
    assert_eq!(
        node.steps(),
        [
            "pull image i:1",
            "create sandbox",
            "create container one (attempt 0)",
            "start container one",
            "pull image web:1"
        ],
        "the image of a later container is pulled while the first one runs"
    );
    node.round(usize::MAX).unwrap();
    assert!(node.steps().is_empty(), "one runs");
    node.exit("one", 0);
    assert_eq!(node.steps(), ["create container two (attempt 0)", "start container two"]);
    node.round(usize::MAX).unwrap();
    node.exit("two", 0);
    assert_eq!(node.steps(), ["create container web (attempt 0)", "start container web"]);
}

fn then(node: &Node) -> Vec<String> {
    node.plan().then.iter().map(ToString::to_string).collect()
}

#[test]
fn what_a_later_plan_starts_is_named_with_what_it_waits_for() {
    let spec = json!({
        "initContainers": [
            {"name": "side", "image": "i:1", "restartPolicy": "Always",
             "startupProbe": {"tcpSocket": {"port": 1}}},
            {"name": "init", "image": "i:1"},
        ],
        "containers": [{"name": "web", "image": "i:1"}, {"name": "log", "image": "i:1"}],
    });
    let mut node = Node::new(wanted(spec.clone()));
    assert_eq!(then(&node), ["then containers init, web, log, when sidecar side has started"]);
    assert!(node.plan().to_string().ends_with("\n  then containers init, web, log, when sidecar side has started\n"));
    node.settle();
    assert!(then(&node).is_empty(), "{:?}", then(&node));
    // Made anew: first the containers stop, then the sidecar, then everything starts as at first.
    node.edit(with(spec, "/initContainers/1/image", json!("i:2")));
    assert_eq!(then(&node), ["then containers side, init, web, log, when what runs has stopped"]);

    let two = json!({
        "initContainers": [{"name": "one", "image": "i:1"}, {"name": "two", "image": "i:1"}],
        "containers": [{"name": "web", "image": "i:1"}],
    });
    let mut node = Node::new(wanted(two));
    assert_eq!(then(&node), ["then containers two, web, when init container one has ended"]);
    node.round(usize::MAX).unwrap();
    node.exit("one", 0);
    assert_eq!(then(&node), ["then container web, when init container two has ended"]);
    node.round(usize::MAX).unwrap();
    node.exit("two", 0);
    assert!(then(&node).is_empty(), "{:?}", then(&node));
}

#[test]
fn a_wait_says_what_it_means() {
    let kinds = |node: &Node| node.plan().waits.iter().map(|wait| wait.kind).collect::<Vec<_>>();
    let mut node = Node::new(wanted(simple()));
    node.observed
        .images
        .insert(image("web:1"), ImageView::Pulling { after: None, progress: "2 of 3 layers".to_owned() });
    assert_eq!(kinds(&node), [WaitKind::Progress]);
    node.observed.images.insert(image("web:1"), ImageView::Invalid { message: "a colon too many".to_owned() });
    assert_eq!(kinds(&node), [WaitKind::Fault]);

    let mut node = Node::new(wanted(simple()));
    node.unknown_images.insert("web:1".to_owned());
    node.settle();
    assert_eq!(kinds(&node), [WaitKind::Fault], "the first failure");
    node.now = node.plan().wake_at.unwrap();
    node.settle();
    assert_eq!(kinds(&node), [WaitKind::BackOff]);

    let spec = with(simple(), "/volumes", json!([{"name": "keys", "secret": {"secretName": "keys"}}]));
    assert_eq!(kinds(&Node::new(wanted(spec))), [WaitKind::Volume]);

    let mut node = Node::new(wanted(simple()));
    let failure = portreeve_plan::Failure {
        at: node.now,
        attempts: 1,
        generation: 1,
        reason: "FailedCreatePodSandBox".to_owned(),
        message: "no".to_owned(),
        not_before: None,
    };
    node.observed.failures.insert(Attempted::Sandbox, failure);
    assert_eq!(kinds(&node), [WaitKind::Retry]);
}

#[test]
fn a_failed_init_container_is_tried_again_after_its_backoff() {
    let spec = json!({
        "initContainers": [{"name": "one", "image": "i:1"}],
        "containers": [{"name": "web", "image": "i:1"}],
    });
    let mut node = Node::new(wanted(spec));
    node.round(usize::MAX).unwrap();
    node.exit("one", 1);
    assert_eq!(node.steps(), ["create container one (attempt 1)", "start container one"]);
    node.round(usize::MAX).unwrap();
    node.exit("one", 1);
    node.round(usize::MAX).unwrap();
    assert!(node.steps().is_empty());
    assert_eq!(node.plan().wake_at, Some(at(10)));
}

#[test]
fn a_sidecar_starts_before_what_follows_it_and_is_started_again() {
    let spec = json!({
        "restartPolicy": "OnFailure",
        "initContainers": [
            {"name": "side", "image": "i:1", "restartPolicy": "Always",
             "startupProbe": {"tcpSocket": {"port": 1}}},
            {"name": "init", "image": "i:1"},
        ],
        "containers": [{"name": "web", "image": "i:1"}],
    });
    let mut node = Node::new(wanted(spec));
    node.round(usize::MAX).unwrap();
    assert!(node.steps().is_empty(), "the startup probe has not passed");
    node.settle();
    node.exit("side", 0);
    assert_eq!(node.steps(), ["create container side (attempt 1)", "start container side"]);
    node.settle();
    node.exit("web", 0);
    let steps = node.steps();
    assert!(steps[0].starts_with("stop container side"), "{steps:?}");
}

#[test]
fn an_image_that_cannot_be_pulled_backs_off_from_10_s_to_5_min() {
    let mut node = Node::new(wanted(simple()));
    node.unknown_images.insert("web:1".to_owned());
    let mut gaps = Vec::new();
    for _ in 0..8 {
        node.settle();
        let wake = node.plan().wake_at.unwrap();
        gaps.push(wake.duration_since(node.now).as_secs());
        node.now = wake;
    }
    assert_eq!(gaps, [10, 20, 40, 80, 160, 300, 300, 300]);
    node.unknown_images.clear();
    node.settle();
    assert_eq!(node.observed.containers.len(), 1);
}

#[test]
fn an_edit_of_the_pod_tries_a_failed_pull_at_once() {
    let mut node = Node::new(wanted(simple()));
    node.unknown_images.insert("web:1".to_owned());
    node.settle();
    assert!(node.steps().is_empty());
    node.edit(with(simple(), "/imagePullSecrets", json!([{"name": "key"}])));
    assert_eq!(node.steps()[0], "pull image web:1");
}

#[test]
fn a_container_whose_image_is_missing_does_not_hold_back_another() {
    let spec = json!({"containers": [
        {"name": "bad", "image": "bad:1"}, {"name": "good", "image": "good:1"},
    ]});
    let mut node = Node::new(wanted(spec));
    node.unknown_images.insert("bad:1".to_owned());
    node.settle();
    let names: Vec<_> = node.observed.containers.iter().map(|view| view.name.clone()).collect();
    assert_eq!(names, ["good"]);
}

#[test]
fn pull_policy_never_does_not_pull_and_says_so() {
    let mut node = Node::new(wanted(with(simple(), "/containers/0/imagePullPolicy", json!("Never"))));
    assert!(node.steps().is_empty());
    assert_eq!(
        waits(&node),
        ["wait container web (ErrImageNeverPull): image web:1 is not on this node and \
          imagePullPolicy is Never; load it"]
    );
    let id = "sha256:1".to_owned();
    let present = ImageView::Present { id, user: None, pulled_at: None, failure: None };
    node.observed.images.insert(image("web:1"), present);
    assert_eq!(node.steps()[0], "create sandbox");
}

#[test]
fn pull_policy_always_asks_the_registry_before_each_creation_and_only_then() {
    let spec = with(simple(), "/containers/0/imagePullPolicy", json!("Always"));
    let mut node = Node::running(spec);
    assert!(node.steps().is_empty());
    node.exit("web", 1);
    assert_eq!(node.steps()[0], "pull image web:1");
    node.settle();
    assert!(node.steps().is_empty());
}

#[test]
fn pull_policy_if_not_present_does_not_pull_what_is_there() {
    let mut node = Node::running(simple());
    node.exit("web", 1);
    assert_eq!(node.steps(), ["create container web (attempt 1)", "start container web"]);
}

#[test]
fn an_image_name_that_does_not_parse_is_not_tried() {
    let mut node = Node::new(wanted(simple()));
    let message = "a colon too many".to_owned();
    node.observed.images.insert(image("web:1"), ImageView::Invalid { message });
    assert!(node.steps().is_empty());
    assert!(node.plan().wake_at.is_none());
    assert_eq!(waits(&node), ["wait container web (InvalidImageName): a colon too many"]);
}

fn refused(pulled_at: Option<jiff::Timestamp>, failure: Option<portreeve_plan::Failure>) -> ImageView {
    ImageView::Refused { message: "it has no signature".to_owned(), pulled_at, failure }
}

#[test]
fn an_image_that_the_trust_policy_refuses_is_asked_for_again_and_then_waited_for() {
    let mut node = Node::new(wanted(simple()));
    node.observed.images.insert(image("web:1"), refused(None, None));
    assert_eq!(
        node.plan().steps[0].to_string(),
        "pull image web:1 [live]: image web:1 is refused by the trust policy as it is here"
    );
    // What its registry says is told with it; a refusal is no trouble that passes, and keeps its name.
    for (attempts, reason, told, wait) in [
        (1, "ErrImagePull", "it has no signature; asking its registry again: it said no", 10),
        (3, "ErrImagePull", "it has no signature; asking its registry again: it said no", 40),
        (2, "SignatureValidationFailed", "it said no", 20),
    ] {
        node.observed.images.insert(image("web:1"), refused(None, Some(node.failure(attempts, reason))));
        let line = format!("wait container web (SignatureValidationFailed): {told}; next try at {}", at(wait));
        assert_eq!(waits(&node), [line]);
        node.observed.images.insert(image("web:1"), ImageView::Failed(node.failure(attempts, reason)));
        let untrusted = reason == "SignatureValidationFailed";
        assert_eq!(waits(&node)[0].contains("(SignatureValidationFailed)"), untrusted);
    }
    // A pull that came through and changed nothing is not made over and over.
    node.observed.images.insert(image("web:1"), refused(Some(node.now), None));
    assert!(node.steps().is_empty());
    assert_eq!(node.plan().wake_at, Some(at(60)));
    node.pass(60);
    assert_eq!(node.steps()[0], "pull image web:1");
}

#[test]
fn an_image_that_is_refused_and_must_not_be_pulled_is_looked_at_again() {
    let mut node = Node::new(wanted(with(simple(), "/containers/0/imagePullPolicy", json!("Never"))));
    node.observed.images.insert(image("web:1"), refused(None, None));
    let why = "it has no signature; imagePullPolicy is Never, so that its registry is not asked for signatures";
    let line = format!("wait container web (SignatureValidationFailed): {why}; next try at {}", at(60));
    assert_eq!(waits(&node), [line]);
    let statuses = node.status().container_statuses.unwrap();
    let waiting = statuses[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("SignatureValidationFailed"));
}

#[test]
fn what_runs_goes_on_under_a_policy_that_refuses_its_image_and_does_not_start_again() {
    let mut node = Node::running(simple());
    let failure = node.failure(1, "SignatureValidationFailed");
    node.observed.images.insert(image("web:1"), refused(None, Some(failure)));
    assert!(node.steps().is_empty(), "{:?}", node.steps());
    node.exit("web", 1);
    node.settle();
    assert!(waits(&node)[0].contains("SignatureValidationFailed"), "{:?}", waits(&node));
    assert_eq!(node.observed.containers.len(), 1);
}

#[test]
fn a_missing_configuration_key_holds_back_its_container_alone_until_it_appears() {
    let spec = json!({"containers": [
        {"name": "web", "image": "web:1", "env": level()}, {"name": "log", "image": "web:1"},
    ]});
    let mut node = Node::new(wanted(spec));
    node.settle();
    let names: Vec<_> = node.observed.containers.iter().map(|view| view.name.clone()).collect();
    assert_eq!(names, ["log"]);
    assert_eq!(waits(&node), ["wait container web (CreateContainerConfigError): configmap \"settings\" not found"]);
    assert!(node.plan().wake_at.is_none(), "only the configuration can change this");
    node.desired.configs = settings("debug", node.now);
    assert_eq!(node.steps(), ["create container web (attempt 0)", "start container web"]);
}

#[test]
fn an_optional_key_may_be_missing() {
    let mut env = level();
    env[0]["valueFrom"]["configMapKeyRef"]["optional"] = json!(true);
    let mut node = Node::new(wanted(with(simple(), "/containers/0/env", env)));
    node.settle();
    assert_eq!(node.observed.containers.len(), 1);
}

#[test]
fn a_volume_of_a_missing_secret_holds_back_the_pod() {
    let spec = json!({
        "volumes": [{"name": "keys", "secret": {"secretName": "keys"}}],
        "containers": [{"name": "web", "image": "web:1"}],
    });
    let mut node = Node::new(wanted(spec));
    node.settle();
    assert!(node.observed.sandboxes.is_empty());
    assert_eq!(waits(&node), ["wait (FailedMount): volume keys: secret \"keys\" not found"]);
}

#[test]
fn an_image_that_runs_as_root_is_refused_where_the_pod_forbids_it() {
    let spec = with(simple(), "/securityContext", json!({"runAsNonRoot": true}));
    let mut node = Node::new(wanted(spec));
    assert_eq!(node.steps(), ["pull image web:1"], "its user must be seen first");
    node.settle();
    assert!(waits(&node)[0].contains("image will run as root"), "{:?}", waits(&node));
    let id = "sha256:1".to_owned();
    let user = Some("1000:1000".to_owned());
    let present = ImageView::Present { id, user, pulled_at: None, failure: None };
    node.observed.images.insert(image("web:1"), present);
    assert_eq!(node.steps()[0], "create sandbox");
}

#[test]
fn a_container_that_was_created_is_started_and_not_created_again() {
    let mut node = Node::new(wanted(simple()));
    node.round(3).unwrap();
    assert_eq!(node.steps(), ["start container web"]);
}

#[test]
fn a_container_that_failed_to_start_is_made_again_after_a_backoff() {
    let mut node = Node::new(wanted(simple()));
    node.round(3).unwrap();
    node.fail(Attempted::Container("web".to_owned()), "RunContainerError");
    node.pass(9);
    assert!(node.steps().iter().all(|step| !step.starts_with("start")), "{:?}", node.steps());
    node.pass(1);
    let steps = node.steps();
    assert!(steps[0].starts_with("remove container web"), "{steps:?}");
    assert_eq!(steps[1..], ["create container web (attempt 1)", "start container web"]);
}

#[test]
fn what_waits_for_two_things_says_when_the_later_one_is_tried() {
    let mut node = Node::new(wanted(simple()));
    node.round(3).unwrap();
    for (pulls, told) in [(1, "RunContainerError"), (2, "ImagePullBackOff")] {
        node.observed.failures.clear();
        node.fail(Attempted::Container("web".to_owned()), "RunContainerError");
        node.observed.images.insert(image("web:1"), ImageView::Failed(node.failure(pulls, "ErrImagePull")));
        let statuses = node.status().container_statuses.unwrap();
        let waiting = statuses[0].state.clone().unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some(told), "{waiting:?}");
    }
}

#[test]
fn a_sandbox_that_cannot_be_made_is_tried_again_after_1_s_doubling() {
    let mut node = Node::new(wanted(simple()));
    node.round(1).unwrap();
    node.fail(Attempted::Sandbox, "FailedCreatePodSandBox");
    assert!(node.steps().is_empty());
    assert_eq!(node.plan().wake_at, Some(at(1)));
    node.pass(1);
    assert_eq!(node.steps()[0], "create sandbox");
    node.fail(Attempted::Sandbox, "FailedCreatePodSandBox");
    assert_eq!(node.plan().wake_at, Some(at(3)));
}

#[test]
fn a_blocked_pod_is_not_started() {
    let mut node = Node::new(wanted(simple()));
    let (reason, message) = ("HostPortConflict".to_owned(), "port 80 is taken".to_owned());
    node.desired.blocked = Some(Blocked { reason, message });
    node.settle();
    assert!(node.observed.sandboxes.is_empty());
    assert_eq!(waits(&node), ["wait (HostPortConflict): port 80 is taken"]);
}

#[test]
fn a_hook_that_an_agent_did_not_finish_runs_again_before_what_follows() {
    let spec = json!({"containers": [
        {"name": "web", "image": "i:1", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}},
        {"name": "log", "image": "i:1"},
    ]});
    let mut node = Node::new(wanted(spec));
    node.round(4).unwrap();
    assert_eq!(node.container("web").post_start, HookState::Pending);
    assert_eq!(
        node.steps(),
        ["run postStart hook of container web", "create container log (attempt 0)", "start container log"]
    );
}

#[test]
fn a_key_of_binary_data_is_missing_in_an_environment_and_no_reason_to_call_it_stale() {
    use portreeve_plan::{Config, Configs};
    let configs = |blob: &[u8]| {
        let text = [("LEVEL".to_owned(), b"info".to_vec())].into();
        let map = Config::new(text).with_binary([("blob".to_owned(), blob.to_vec())].into());
        std::sync::Arc::new(Configs { config_maps: [("settings".to_owned(), map)].into(), ..Configs::default() })
    };
    let from = json!([{"configMapRef": {"name": "settings"}}]);
    let mut desired = wanted(with(simple(), "/containers/0/envFrom", from));
    desired.configs = configs(b"1");
    let mut node = Node::running_pod(desired);
    node.desired.configs = configs(b"2");
    let conditions = node.status().conditions.unwrap();
    assert!(conditions.iter().all(|condition| condition.type_ != portreeve_plan::STALE));
    let key = json!([{"name": "B", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "blob"}}}]);
    let mut desired = wanted(with(simple(), "/containers/0/env", key));
    desired.configs = configs(b"1");
    let node = Node::new(desired);
    let wait = node.plan().waits[0].clone();
    assert_eq!(wait.message, "couldn't find key blob in ConfigMap default/settings");
}

/// Two containers, of which one shows the image `files:1`.
fn shows_files() -> serde_json::Value {
    json!({
        "volumes": [{"name": "files", "image": {"reference": "files:1"}}, {"name": "other", "image": {"reference": "o:1"}}],
        "containers": [
            {"name": "web", "image": "web:1", "volumeMounts": [{"name": "files", "mountPath": "/files"}]},
            {"name": "log", "image": "log:1"},
        ],
    })
}

#[test]
fn the_images_of_volumes_are_pulled_for_the_containers_that_mount_them() {
    let mut node = Node::new(wanted(shows_files()));
    expect![[r#"
        Pod default/web:
          pull image files:1 [live]: image files:1 of volume files is not on this node
          pull image log:1 [live]: image log:1 is not on this node
          pull image web:1 [live]: image web:1 is not on this node
          mount volumes files, other [live]: the pod names them
          create sandbox [live]: the pod has no sandbox
          create container web (attempt 0) [live]: container web has not run yet
          start container web [live]: container web has not run yet
          create container log (attempt 0) [live]: container log has not run yet
          start container log [live]: container log has not run yet
    "#]]
    .assert_eq(&node.plan().to_string());
    // Whoever does not mount what cannot be had starts without it.
    node.unknown_images.insert("files:1".to_owned());
    node.settle();
    let names: Vec<_> = node.observed.containers.iter().map(|view| view.name.clone()).collect();
    assert_eq!(names, ["log"]);
    let statuses = node.status().container_statuses.unwrap();
    let waiting = statuses[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ErrImagePull"));
}

#[test]
fn the_image_of_a_volume_has_its_own_policy() {
    let never = with(shows_files(), "/volumes/0/image/pullPolicy", json!("Never"));
    let mut node = Node::new(wanted(never));
    let line = "wait container web (ErrImageNeverPull): image files:1 of volume files is not on this node and \
                pullPolicy is Never; load it";
    assert_eq!(waits(&node), [line]);
    node.observed.images.insert(image("files:1"), refused(None, None));
    let why = "it has no signature; pullPolicy is Never, so that its registry is not asked for signatures";
    let line = format!("wait container web (SignatureValidationFailed): {why}; next try at {}", at(60));
    assert_eq!(waits(&node), [line]);

    let mut node = Node::running(with(shows_files(), "/volumes/0/image/pullPolicy", json!("Always")));
    assert!(node.steps().is_empty());
    node.exit("log", 1);
    assert_eq!(node.steps()[0], "create container log (attempt 1)");
    node.settle();
    node.exit("web", 1);
    let plan = node.plan();
    let reason = "image files:1 of volume files is asked for again (pullPolicy Always)";
    assert_eq!(
        (plan.steps[0].action.to_string().as_str(), plan.steps[0].reason.as_str()),
        ("pull image files:1", reason)
    );
}

#[test]
fn what_runs_goes_on_until_the_image_that_a_volume_is_to_show_is_here() {
    let mut node = Node::running(shows_files());
    node.unknown_images.insert("files:2".to_owned());
    node.edit(with(shows_files(), "/volumes/0/image/reference", json!("files:2")));
    node.settle();
    assert_eq!(node.observed.containers.iter().filter(|view| crate::model::running(view)).count(), 2);
    node.unknown_images.clear();
    node.pass(600);
    let steps = node.steps();
    assert_eq!(&steps[..2], ["pull image files:2", "stop container log within 30 s"]);
    node.settle();
    assert_eq!(node.observed.containers.iter().filter(|view| crate::model::running(view)).count(), 2);
}
