//! What is judged and decided in each case that an operator may meet.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portreeve_crds::{
    AgentView, Content, Decision, Held, Judgement, MAX_LISTED_NODES, NodeWorkload, NodeWorkloadStatus, Phase,
    WorkloadReport, decide, judge, settled,
};
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn spec(image: &str, rollout: &Value) -> Value {
    json!({ "template": { "spec": { "containers": [{ "name": "c", "image": image }] } }, "rollout": rollout })
}

fn workload(spec: Value) -> NodeWorkload {
    let mut workload = NodeWorkload::new("web", serde_json::from_value(spec).unwrap());
    workload.metadata.uid = Some("u".to_owned());
    workload.metadata.generation = Some(1);
    workload
}

fn revision(image: &str) -> String {
    Content::of(&workload(spec(image, &json!({}))).spec).revision().0
}

/// A fleet that a test moves by hand.
struct Fleet {
    workload: NodeWorkload,
    labels: BTreeMap<String, BTreeMap<String, String>>,
    reports: BTreeMap<String, WorkloadReport>,
    silent: Vec<&'static str>,
}

impl Fleet {
    fn new(nodes: &[&str], rollout: &Value) -> Self {
        let labels = nodes.iter().map(|name| ((*name).to_owned(), BTreeMap::new())).collect();
        let workload = workload(spec("web:1", rollout));
        Self { workload, labels, reports: BTreeMap::new(), silent: Vec::new() }
    }

    /// All run `image` and are ready.
    fn settled(nodes: &[&str], image: &str, rollout: &Value) -> Self {
        let mut fleet = Self::new(nodes, rollout);
        fleet.edit(image, rollout);
        for node in nodes {
            fleet.reports(node, image, true, 0);
        }
        fleet.judge(0);
        fleet
    }

    fn edit(&mut self, image: &str, rollout: &Value) {
        self.workload.spec = serde_json::from_value(spec(image, rollout)).unwrap();
        self.workload.metadata.generation = self.workload.metadata.generation.map(|number| number + 1);
    }

    fn reports(&mut self, node: &str, image: &str, available: bool, grant: i64) {
        let report = WorkloadReport {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
            revision: (!image.is_empty()).then(|| revision(image)),
            available,
            phase: if available { Phase::Available } else { Phase::Failed },
            message: if available { String::new() } else { "it fails".to_owned() },
            grant,
        };
        self.reports.insert(node.to_owned(), report);
    }

    fn look(&self, second: i64) -> Judgement {
        let agents: Vec<AgentView<'_>> = self
            .labels
            .iter()
            .map(|(name, labels)| AgentView {
                name,
                labels,
                alive: !self.silent.contains(&name.as_str()),
                report: self.reports.get(name),
            })
            .collect();
        judge(&self.workload, &agents, at(second))
    }

    fn judge(&mut self, second: i64) -> Judgement {
        let judgement = self.look(second);
        self.workload.status = Some(judgement.status.clone());
        judgement
    }

    fn status(&self) -> &NodeWorkloadStatus {
        self.workload.status.as_ref().unwrap()
    }

    fn holders(&self) -> Vec<&str> {
        self.status().grants.iter().map(|grant| grant.node.as_str()).collect()
    }

    fn progress(&self) -> &str {
        let progressing = self.status().conditions.iter().find(|condition| condition.type_ == "Progressing");
        &progressing.unwrap().reason
    }
}

#[test]
fn a_new_workload_needs_no_grants() {
    let mut fleet = Fleet::new(&["a", "b"], &json!({}));
    fleet.judge(0);
    assert_eq!(fleet.holders(), Vec::<&str>::new());
    assert_eq!(fleet.progress(), "RollingOut");
    let decision = decide(&fleet.workload, "a", &BTreeMap::new(), None);
    assert_eq!(decision, Decision::Adopt(Content::of(&fleet.workload.spec)));
    fleet.reports("a", "web:1", true, 0);
    fleet.reports("b", "web:1", true, 0);
    fleet.judge(1);
    assert_eq!(fleet.progress(), "RolloutComplete");
    assert_eq!((fleet.status().desired_nodes, fleet.status().ready_nodes), (2, 2));
    assert_eq!(fleet.status().stable.as_ref().unwrap().revision, revision("web:1"));
    assert_eq!(fleet.look(2).status, *fleet.status(), "nothing is written where nothing changed");
}

#[test]
fn an_edit_goes_from_node_to_node() {
    let mut fleet = Fleet::settled(&["a", "b", "c"], "web:1", &json!({}));
    fleet.edit("web:2", &json!({}));
    let held =
        Held { uid: "u".to_owned(), content: Some(Content::of(&workload(spec("web:1", &json!({}))).spec)), grant: 0 };
    assert_eq!(
        decide(&fleet.workload, "a", &BTreeMap::new(), Some(&held)),
        Decision::Keep,
        "nobody judged the edit yet"
    );
    fleet.judge(1);
    assert_eq!(fleet.holders(), ["a"]);
    let next = Content::of(&fleet.workload.spec);
    assert_eq!(decide(&fleet.workload, "a", &BTreeMap::new(), Some(&held)), Decision::Adopt(next.clone()));
    assert_eq!(decide(&fleet.workload, "b", &BTreeMap::new(), Some(&held)), Decision::Keep);

    let adopted = Held { content: Some(next), ..held };
    assert_eq!(settled(&fleet.workload, "a", &adopted, false), 0, "it is not up yet");
    assert_eq!(settled(&fleet.workload, "a", &adopted, true), 1);
    fleet.reports("a", "web:2", false, 0);
    fleet.judge(2);
    assert_eq!(fleet.holders(), ["a"]);
    fleet.reports("a", "web:2", true, 1);
    fleet.judge(3);
    assert_eq!(fleet.holders(), ["b"]);
    // A node that gave its grant back takes nothing down by an old state of the workload.
    let mut old = fleet.workload.clone();
    old.status.as_mut().unwrap().grants[0].node = "a".to_owned();
    old.status.as_mut().unwrap().grants[0].number = 1;
    let back =
        Held { uid: "u".to_owned(), content: Some(Content::of(&workload(spec("web:1", &json!({}))).spec)), grant: 1 };
    assert_eq!(decide(&old, "a", &BTreeMap::new(), Some(&back)), Decision::Keep);
}

#[test]
fn nodes_that_are_down_anyway_come_first_and_count() {
    let mut fleet = Fleet::settled(&["a", "b", "c", "d"], "web:1", &json!({ "maxUnavailable": 2 }));
    fleet.reports("c", "web:1", false, 0);
    fleet.edit("web:2", &json!({ "maxUnavailable": 2 }));
    fleet.judge(1);
    assert_eq!(fleet.holders(), ["c", "a"]);
    // One that is updated and fails later takes a place, too.
    fleet.reports("c", "web:2", true, 1);
    fleet.reports("a", "web:2", true, 2);
    fleet.reports("a", "web:2", false, 2);
    fleet.judge(2);
    assert_eq!(fleet.holders(), ["b"]);
}

#[test]
fn a_share_of_the_nodes_may_be_down() {
    let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fleet = Fleet::settled(&names, "web:1", &json!({ "maxUnavailable": "25%" }));
    fleet.edit("web:2", &json!({ "maxUnavailable": "25%" }));
    fleet.judge(1);
    assert_eq!(fleet.holders().len(), 3);
}

#[test]
fn a_pause_begins_nothing_and_costs_no_time() {
    let paused = json!({ "paused": true, "progressDeadlineSeconds": 60 });
    let mut fleet = Fleet::settled(&["a", "b"], "web:1", &paused);
    fleet.edit("web:2", &paused);
    let judgement = fleet.judge(1);
    assert_eq!((fleet.holders(), judgement.again_at), (vec![], None));
    fleet.judge(1000);
    assert_eq!(fleet.progress(), "Paused");
    fleet.edit("web:2", &json!({ "progressDeadlineSeconds": 60 }));
    let judgement = fleet.judge(1001);
    assert_eq!((fleet.holders(), fleet.progress()), (vec!["a"], "RollingOut"));
    assert_eq!(judgement.again_at, Some(at(1061)));
}

#[test]
fn a_silent_holder_keeps_its_slot_until_an_operator_calls_it_abandoned() {
    let rollout = json!({ "progressDeadlineSeconds": 60 });
    let mut fleet = Fleet::settled(&["a", "b"], "web:1", &rollout);
    fleet.edit("web:2", &rollout);
    fleet.judge(1);
    fleet.silent.push("a");
    fleet.judge(30);
    assert_eq!((fleet.holders(), fleet.progress()), (vec!["a"], "RollingOut"));
    fleet.judge(61);
    assert_eq!((fleet.holders(), fleet.progress()), (vec!["a"], "ProgressDeadlineExceeded"));
    let message = &fleet.status().conditions.iter().find(|it| it.type_ == "Progressing").unwrap().message;
    assert!(message.contains("waiting for a") && message.contains("abandonedNodes"), "{message}");
    fleet.workload.spec.abandoned_nodes.push("a".to_owned());
    fleet.judge(62);
    assert_eq!((fleet.holders(), fleet.status().desired_nodes), (vec!["b"], 1));
}

#[test]
fn a_silent_node_without_a_slot_holds_up_nobody_and_catches_up() {
    let mut fleet = Fleet::settled(&["a", "b"], "web:1", &json!({}));
    fleet.silent.push("a");
    fleet.edit("web:2", &json!({}));
    fleet.judge(1);
    assert_eq!(fleet.holders(), ["b"]);
    fleet.reports("b", "web:2", true, 1);
    fleet.judge(2);
    assert_eq!((fleet.holders(), fleet.progress()), (vec![], "RolloutComplete"));
    assert_eq!(fleet.status().nodes[0].phase, "Silent");
    fleet.silent.clear();
    // Days later.
    fleet.judge(300_000);
    assert_eq!((fleet.holders(), fleet.progress()), (vec!["a"], "RolloutComplete"));
}

#[test]
fn a_rollout_that_fails_goes_back_when_asked_to() {
    let rollout = json!({ "progressDeadlineSeconds": 60, "onFailure": "Revert" });
    let mut fleet = Fleet::settled(&["a", "b", "c"], "web:1", &rollout);
    fleet.edit("web:bad", &rollout);
    fleet.judge(1);
    fleet.reports("a", "web:bad", false, 0);
    // It comes and goes: that is no progress.
    fleet.judge(40);
    let judgement = fleet.judge(61);
    assert_eq!((fleet.holders(), fleet.progress()), (vec!["a"], "Reverted"));
    assert_eq!(judgement.again_at, Some(at(61)));
    let bad = Held { uid: "u".to_owned(), content: Some(Content::of(&fleet.workload.spec)), grant: 0 };
    let good = Content::of(&workload(spec("web:1", &rollout)).spec);
    assert_eq!(decide(&fleet.workload, "a", &BTreeMap::new(), Some(&bad)), Decision::Adopt(good.clone()));
    assert_eq!(decide(&fleet.workload, "new", &BTreeMap::new(), None), Decision::Adopt(good.clone()));
    assert_eq!(settled(&fleet.workload, "a", &Held { content: Some(good), ..bad }, true), 1);
    fleet.reports("a", "web:1", true, 1);
    fleet.judge(62);
    assert_eq!((fleet.holders(), fleet.progress(), fleet.status().ready_nodes), (vec![], "Reverted", 3));
    // Another edit is another attempt.
    fleet.edit("web:3", &rollout);
    fleet.judge(70);
    assert_eq!((fleet.holders(), fleet.progress()), (vec!["a"], "RollingOut"));
}

#[test]
fn a_rollout_that_fails_stops_when_nothing_else_was_asked_for() {
    let rollout = json!({ "progressDeadlineSeconds": 60, "maxUnavailable": 1 });
    let mut fleet = Fleet::settled(&["a", "b", "c"], "web:1", &rollout);
    fleet.edit("web:bad", &rollout);
    fleet.judge(1);
    fleet.reports("a", "web:bad", false, 0);
    fleet.judge(500);
    assert_eq!((fleet.holders(), fleet.progress()), (vec!["a"], "ProgressDeadlineExceeded"));
    let first = &fleet.status().nodes[0];
    assert_eq!((first.name.as_str(), first.phase.as_str(), first.message.as_str()), ("a", "Failed", "it fails"));
}

#[test]
fn a_node_that_fails_after_the_rollout_is_no_failed_rollout() {
    let rollout = json!({ "progressDeadlineSeconds": 60, "onFailure": "Revert" });
    let mut fleet = Fleet::settled(&["a", "b"], "web:1", &rollout);
    fleet.edit("web:2", &rollout);
    fleet.judge(1);
    for (node, grant) in [("a", 1), ("b", 2)] {
        fleet.reports(node, "web:2", true, grant);
        fleet.judge(2);
    }
    fleet.reports("a", "web:2", false, 1);
    fleet.judge(9000);
    assert_eq!((fleet.progress(), fleet.status().unavailable_nodes), ("RolloutComplete", 1));
}

#[test]
fn a_status_has_an_end() {
    let names: Vec<String> = (0..200).map(|number| format!("n{number:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fleet = Fleet::new(&names, &json!({}));
    for name in &names {
        fleet.reports(name, "web:1", *name != "n150", 0);
    }
    fleet.reports.get_mut("n150").unwrap().message = "x".repeat(10_000);
    for name in &names[..100] {
        fleet.reports(name, "", false, 0);
    }
    fleet.judge(1);
    assert_eq!(fleet.status().nodes.len(), MAX_LISTED_NODES);
    assert_eq!(fleet.status().nodes_not_listed, 101 - i32::try_from(MAX_LISTED_NODES).unwrap());
    assert!(serde_json::to_string(fleet.status()).unwrap().len() < 8 << 10);
}

#[test]
fn a_deletion_waits_for_nodes_and_for_silent_ones_not_for_ever() {
    let mut fleet = Fleet::settled(&["a", "b", "c"], "web:1", &json!({}));
    fleet.workload.spec.deletion_timeout_seconds = 100;
    fleet.workload.metadata.deletion_timestamp = Some(Time(at(1000)));
    fleet.silent.push("b");
    let held = Held { uid: "u".to_owned(), content: Some(Content::of(&fleet.workload.spec)), grant: 0 };
    assert_eq!(decide(&fleet.workload, "a", &BTreeMap::new(), Some(&held)), Decision::Drop);
    assert_eq!(decide(&fleet.workload, "a", &BTreeMap::new(), None), Decision::Ignore);
    let judgement = fleet.judge(1000);
    assert_eq!((judgement.released, judgement.again_at), (false, Some(at(1100))));
    fleet.reports("a", "", false, 0);
    assert!(!fleet.judge(1099).released);
    fleet.reports("c", "", false, 0);
    assert!(!fleet.judge(1099).released, "b may still come back");
    assert!(fleet.judge(1100).released);
    fleet.workload.spec.abandoned_nodes.push("b".to_owned());
    assert!(fleet.judge(1001).released);
}

#[test]
fn a_node_lets_go_of_what_is_not_for_it_any_more() {
    let mut fleet = Fleet::settled(&["a"], "web:1", &json!({}));
    let held = Held { uid: "u".to_owned(), content: Some(Content::of(&fleet.workload.spec)), grant: 0 };
    fleet.workload.spec.node_selector.insert("disk".to_owned(), "fast".to_owned());
    assert_eq!(decide(&fleet.workload, "a", &BTreeMap::new(), Some(&held)), Decision::Drop);
    let labels = BTreeMap::from([("disk".to_owned(), "fast".to_owned())]);
    assert_eq!(decide(&fleet.workload, "a", &labels, Some(&held)), Decision::Keep);
    fleet.workload.spec.node_names.push("b".to_owned());
    assert_eq!(decide(&fleet.workload, "a", &labels, Some(&held)), Decision::Drop);
    // Another workload of the same name.
    fleet.workload.spec.node_names.clear();
    fleet.workload.metadata.uid = Some("v".to_owned());
    assert_eq!(decide(&fleet.workload, "a", &labels, Some(&held)), Decision::Drop);
    let empty = Held { content: None, ..held };
    assert!(matches!(decide(&fleet.workload, "a", &labels, Some(&empty)), Decision::Adopt(_)));
}
