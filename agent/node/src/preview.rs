//! What would be done: the planner asked about a desired state that is only laid out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use portreeve_engine::image::Credential;
use portreeve_manifests::{Kind, Object, ObjectKey, references};
use portreeve_plan::{Action, DesiredPod, Difference, Intent, ObservedPod, Plan, PodKey, PodUid, differences, plan};

use crate::apply;
use crate::desired::{Ledger, Record, unreadable};
use crate::pulls::credentials;
use crate::report::{
    FieldDifference, ObjectChange, PlanReport, PlanRequest, PlannedStart, PlannedStep, PodChange, PodPlan,
    ProblemReport, SourceReport, SourceState,
};
use crate::supervisor::{self, Applicant, Views, configs, unobserved};
use crate::worker::Shared;

/// The answer to a plan request.
#[derive(Debug, Default)]
pub(crate) struct Preview {
    pub(crate) report: PlanReport,
    /// Images that would be pulled, with the logins that may be tried.
    pub(crate) pulls: BTreeMap<String, Vec<Credential>>,
}

impl Preview {
    fn add(&mut self, desired: &DesiredPod, made: &Plan, change: PodChange, uid: Option<String>) {
        for step in &made.steps {
            if let Action::PullImage { image, .. } = &step.action {
                let (logins, _) = credentials(&desired.pod, &desired.configs);
                self.pulls.entry(image.0.clone()).or_default().extend(logins);
            }
        }
        self.report.pods.push(pod_plan(desired, made, change, uid));
    }

    fn in_order(mut self) -> Self {
        self.report.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        self
    }
}

/// Answers a plan request.
pub(crate) fn preview(
    shared: &Shared,
    ledger: &Ledger,
    views: &Views,
    sources: &[SourceReport],
    request: &PlanRequest,
) -> Preview {
    if request.files.is_empty() && !request.prune {
        let mut next = next(shared, views);
        next.report.problems = errors(sources);
        return next;
    }
    let mut given = apply::parse(&request.files, None);
    apply::refuse_uids(&mut given, ledger);
    let elsewhere = apply::elsewhere(&given, &shared.node);
    // As the merge has it: it says of itself that it belongs elsewhere, as if it were not here.
    given.objects.retain(|object| !elsewhere.contains_key(&object.key()));
    given.problems.extend(elsewhere.values().cloned());
    let now = shared.clock.now();
    let (mut after, mut touched) = overlay(ledger, &given.objects, &given.refused, request.prune, now);
    for key in elsewhere.keys() {
        if after.objects.remove(key).is_some() {
            touched.insert(key.clone());
        }
    }
    let mut preview = Preview::default();
    let report = &mut preview.report;
    report.problems = given.problems;
    let mut changed_configs = BTreeSet::new();
    for key in &touched {
        if key.kind != Kind::Pod {
            changed_configs.insert((key.kind, key.namespace.clone(), key.name.clone()));
            report.objects.push(object_change(key, ledger.objects.get(key), after.objects.get(key)));
        }
    }
    let blocked = blocked(shared, &after);
    for (key, record) in &after.objects {
        let Object::Pod(pod) = &*record.object else {
            continue;
        };
        let uses_changed = references(pod)
            .iter()
            .any(|(kind, name, _)| changed_configs.contains(&(*kind, key.namespace.clone(), name.clone())));
        if !touched.contains(key) && !uses_changed {
            continue;
        }
        let is_new = !ledger.objects.contains_key(key);
        let mut desired = DesiredPod::new(PodUid(record.uid.clone()), Arc::new((**pod).clone()), record.admitted_at);
        desired.generation = record.generation;
        desired.changed_at = record.changed_at;
        desired.restart_requested_at = record.restart_requested_at;
        desired.finished = record.finished.as_ref().map(|finished| (**finished).clone());
        let names: Vec<_> = references(pod).into_iter().map(|(kind, name, _)| (kind, name, None)).collect();
        desired.configs = configs(&after, &key.namespace, &names, uses_changed.then_some(now));
        desired.blocked = blocked.get(&PodKey { namespace: key.namespace.clone(), name: key.name.clone() }).cloned();
        let observed = seen(shared, &desired.uid).unwrap_or_else(|| Arc::new(unobserved(shared, pod)));
        let observed = with_images(shared, &observed, pod);
        let change = if is_new { PodChange::Create } else { PodChange::Update };
        let uid = (!is_new).then(|| record.uid.clone());
        let mut made = plan(&desired, &observed, now);
        // What is live leaves no work behind by which the planner could tell of it: the edit itself does.
        if let Some(Object::Pod(before)) = ledger.objects.get(key).map(|record| &*record.object) {
            let edited = differences(before, pod);
            let untold = |one: &Difference| made.differences.iter().all(|told| told.field != one.field);
            let live: Vec<Difference> = edited.into_iter().filter(untold).collect();
            made.differences.extend(live);
        }
        preview.add(&desired, &made, change, uid);
    }
    for key in touched.iter().filter(|key| key.kind == Kind::Pod && !after.objects.contains_key(*key)) {
        let Some(record) = ledger.objects.get(key) else {
            continue;
        };
        let Object::Pod(pod) = &*record.object else {
            continue;
        };
        let uid = PodUid(record.uid.clone());
        let mut desired = DesiredPod::new(uid, Arc::new((**pod).clone()), record.admitted_at);
        desired.intent = Intent::Remove { since: now, grace: None };
        let observed = seen(shared, &desired.uid).unwrap_or_default();
        let mut made = plan(&desired, &observed, now);
        if let Some(problem) = elsewhere.get(key) {
            for step in &mut made.steps {
                step.reason.clone_from(&problem.message);
            }
        }
        preview.add(&desired, &made, PodChange::Delete, Some(record.uid.clone()));
    }
    preview.in_order()
}

/// What keeps the manifests from being in force.
fn errors(sources: &[SourceReport]) -> Vec<ProblemReport> {
    let unread = sources.iter().filter(|source| source.state == SourceState::Unreadable);
    let unread = unread.map(|source| unreadable(&source.path, source.reason.clone().unwrap_or_default()));
    let of_files = sources.iter().flat_map(|source| &source.files).flat_map(|file| &file.problems);
    unread.chain(of_files.filter(|problem| problem.is_error()).cloned()).collect()
}

/// What the workers would do next.
fn next(shared: &Shared, views: &Views) -> Preview {
    let views = views.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let now = shared.clock.now();
    let mut preview = Preview::default();
    for (uid, desired) in views {
        let observed = seen(shared, &uid).unwrap_or_default();
        let made = plan(&desired, &observed, now);
        if made.is_empty() && made.waits.is_empty() && desired.blocked.is_none() {
            continue;
        }
        let change = match (&desired.intent, observed.sandboxes.is_empty()) {
            (Intent::Remove { .. }, _) => PodChange::Delete,
            (Intent::Run, true) if !made.is_empty() => PodChange::Create,
            (Intent::Run | Intent::Rest { .. }, _) if !made.is_empty() => PodChange::Update,
            (Intent::Run | Intent::Rest { .. }, _) => PodChange::Unchanged,
        };
        preview.add(&desired, &made, change, Some(uid.0));
    }
    preview.in_order()
}

fn seen(shared: &Shared, uid: &PodUid) -> Option<Arc<ObservedPod>> {
    shared.observed.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
}

/// What was observed knows only the images of the pod as it was.
fn with_images(shared: &Shared, observed: &ObservedPod, pod: &k8s_openapi::api::core::v1::Pod) -> ObservedPod {
    let mut observed = observed.clone();
    for (name, view) in unobserved(shared, pod).images {
        observed.images.entry(name).or_insert(view);
    }
    observed
}

/// The ledger with `given` laid over it, and the keys that differ.
fn overlay(
    ledger: &Ledger,
    given: &[Object],
    refused: &[Option<ObjectKey>],
    prune: bool,
    now: Timestamp,
) -> (Ledger, BTreeSet<ObjectKey>) {
    let mut after = ledger.clone();
    let mut touched = BTreeSet::new();
    for object in given {
        let key = object.key();
        let hash = object.content_hash();
        match after.objects.get_mut(&key) {
            Some(record) if record.hash == hash => {}
            Some(record) => {
                record.hash = hash;
                record.generation += 1;
                record.changed_at = now;
                record.finished = None;
                record.object = Arc::new(object.clone());
                touched.insert(key);
            }
            None => {
                touched.insert(key.clone());
                after.objects.insert(
                    key,
                    Record {
                        uid: uuid::Uuid::new_v4().hyphenated().to_string(),
                        file: std::path::PathBuf::new(),
                        line: 0,
                        generation: 1,
                        admitted_at: now,
                        changed_at: now,
                        hash,
                        restart_requested_at: None,
                        finished: None,
                        object: Arc::new(object.clone()),
                    },
                );
            }
        }
    }
    // What cannot be told may be any of the others: nothing is said to be removed then.
    if prune && !refused.contains(&None) {
        let keep: BTreeSet<ObjectKey> =
            given.iter().map(Object::key).chain(refused.iter().flatten().cloned()).collect();
        let gone: Vec<ObjectKey> = after.objects.keys().filter(|key| !keep.contains(*key)).cloned().collect();
        for key in gone {
            after.objects.remove(&key);
            touched.insert(key);
        }
    }
    (after, touched)
}

fn blocked(shared: &Shared, after: &Ledger) -> BTreeMap<PodKey, portreeve_plan::Blocked> {
    let holding = shared.index.uids();
    let owned: Vec<Applicant<'_>> = after
        .pods()
        .map(|(key, record, pod)| {
            let uid = PodUid(record.uid.clone());
            let holds = holding.contains(&uid);
            let key = PodKey { namespace: key.namespace.clone(), name: key.name.clone() };
            (uid, key, &**pod, record.admitted_at, holds)
        })
        .collect();
    supervisor::blocked(&owned)
}

fn object_change(key: &ObjectKey, before: Option<&Record>, after: Option<&Record>) -> ObjectChange {
    let data = |record: Option<&Record>| -> BTreeMap<String, Vec<u8>> {
        match record.map(|record| &*record.object) {
            Some(Object::ConfigMap(map)) => {
                let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
                let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
                text.chain(binary).collect()
            }
            Some(Object::Secret(secret)) => {
                secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
            }
            _ => BTreeMap::new(),
        }
    };
    let (one, two) = (data(before), data(after));
    let keys: BTreeSet<&String> =
        one.keys().chain(two.keys()).filter(|name| one.get(*name) != two.get(*name)).collect();
    ObjectChange {
        kind: key.kind.to_string(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        change: match (before, after) {
            (None, _) => "create",
            (Some(_), None) => "delete",
            (Some(_), Some(_)) => "update",
        }
        .to_owned(),
        keys: keys.into_iter().cloned().collect(),
    }
}

fn pod_plan(desired: &DesiredPod, made: &Plan, change: PodChange, uid: Option<String>) -> PodPlan {
    let key = desired.key();
    let dearest =
        made.differences.iter().map(|difference| &difference.cost).chain(made.cost()).max().map(ToString::to_string);
    let waits: Vec<String> = made.waits.iter().map(ToString::to_string).collect();
    let blocked = desired
        .blocked
        .as_ref()
        .map(|blocked| format!("{}: {}", blocked.reason, blocked.message))
        .or_else(|| (!waits.is_empty()).then(|| waits.join("; ")));
    PodPlan {
        namespace: key.namespace,
        name: key.name,
        uid,
        change,
        cost: dearest,
        differences: made
            .differences
            .iter()
            .map(|difference| FieldDifference {
                field: difference.field.clone(),
                cost: difference.cost.to_string(),
                from: difference.from.clone(),
                to: difference.to.clone(),
            })
            .collect(),
        steps: made
            .steps
            .iter()
            .map(|step| PlannedStep {
                action: step.action.to_string(),
                reason: step.reason.clone(),
                cost: step.cost.to_string(),
                image: match &step.action {
                    Action::PullImage { image, .. } => Some(image.0.clone()),
                    _ => None,
                },
                fetch_bytes: None,
            })
            .collect(),
        then: made
            .then
            .iter()
            .map(|following| PlannedStart { containers: following.containers.clone(), when: following.when.clone() })
            .collect(),
        wake_at: made.wake_at,
        blocked,
    }
}
