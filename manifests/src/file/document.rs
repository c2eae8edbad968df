//! One document: decoded, defaulted, validated.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodCondition, PodStatus, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use super::wrong::Wrong;
use crate::findings::{Finding, Findings};
use crate::object::{Kind, Object, ObjectKey};
use crate::path::Path;
use crate::problem::{Position, Reason, Severity};
use crate::yaml::{self, Fault, FaultKind, Node, Value};
use crate::{decode, defaults, doubts, kinds, qos, support, validation};

/// What became of a document.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) key: Option<ObjectKey>,
    /// The object, when it has no error.
    pub(super) object: Option<Object>,
    pub(super) findings: Vec<Finding>,
}

pub(super) fn error(
    position: Position,
    field: &str,
    reason: Reason,
    message: String,
    fix: impl Into<String>,
) -> Finding {
    Finding { severity: Severity::Error, position, field: field.to_owned(), reason, message, fix: fix.into() }
}

pub(super) fn fault(fault: &Fault) -> Finding {
    let reason = match fault.kind {
        FaultKind::DuplicateKey => Reason::StrictDuplicateKeyYAML,
        FaultKind::BadKey => Reason::BadRequest,
        FaultKind::NotANumber => Reason::JSONDecode,
    };
    error(fault.position, &fault.field, reason, fault.message.clone(), fault.fix)
}

/// `items[0].spec`, or `spec` outside of a list.
pub(super) fn prefixed(prefix: &str, field: &str) -> String {
    match (prefix, field) {
        ("", field) => field.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, field) => format!("{prefix}.{field}"),
    }
}

pub(super) fn name_position(root: &Node) -> Position {
    Path::ROOT.field("metadata").field("name").position(root)
}

/// Whether the API server ends the reading here, before validation: what was decoded is not what was said.
fn ends_reading(finding: &Finding) -> bool {
    !matches!(finding.reason, Reason::StrictUnknownField | Reason::StrictDuplicateKeyYAML)
}

/// Whether a field is unknown because of characters that only look like spaces.
fn is_misread(finding: &Finding) -> bool {
    finding.reason == Reason::StrictUnknownField && yaml::false_blank(&finding.field).is_some()
}

/// An object as decoded, with access to its metadata.
fn decode_kind(kind: Kind, root: &Node) -> (Object, Vec<Finding>) {
    fn shared<T: DeserializeOwned + Default>(root: &Node, wrap: fn(Arc<T>) -> Object) -> (Object, Vec<Finding>) {
        let (object, findings) = decode::decode::<T>(root);
        (wrap(Arc::new(object)), findings)
    }
    match kind {
        Kind::Pod => shared::<Pod>(root, Object::Pod),
        Kind::ConfigMap => shared::<ConfigMap>(root, Object::ConfigMap),
        Kind::Secret => shared::<Secret>(root, Object::Secret),
    }
}

/// What is left of an object without the values that are no values of their fields.
fn decode_rest(kind: Kind, root: &Node, wrong: &Wrong) -> Object {
    match kind {
        Kind::Pod => Object::Pod(Arc::new(decode::decode_without(root, wrong.fields()))),
        Kind::ConfigMap => Object::ConfigMap(Arc::new(decode::decode_without(root, wrong.fields()))),
        Kind::Secret => Object::Secret(Arc::new(decode::decode_without(root, wrong.fields()))),
    }
}

fn metadata(object: &mut Object) -> &mut ObjectMeta {
    match object {
        Object::Pod(pod) => &mut Arc::make_mut(pod).metadata,
        Object::ConfigMap(map) => &mut Arc::make_mut(map).metadata,
        Object::Secret(secret) => &mut Arc::make_mut(secret).metadata,
    }
}

fn fill(object: &mut Object) {
    defaults::metadata(metadata(object));
    match object {
        Object::Pod(pod) => defaults::pod(Arc::make_mut(pod)),
        Object::ConfigMap(_) => {}
        Object::Secret(secret) => defaults::secret(Arc::make_mut(secret)),
    }
}

fn validate(object: &Object, found: &mut Findings<'_>) {
    match object {
        Object::Pod(pod) => validation::pod(pod, found),
        Object::ConfigMap(map) => validation::config_map(map, found),
        Object::Secret(secret) => validation::secret(secret, found),
    }
}

/// The identity, when the object says one.
fn key_of(object: &Object) -> Option<ObjectKey> {
    let key = object.key();
    (!key.name.is_empty()).then_some(key)
}

/// Reads an object of a file; one without a namespace is in `namespace`.
pub(super) fn in_file(kind: Kind, root: &Node, faults: &[Fault], namespace: &str) -> Answer {
    let mut findings: Vec<Finding> = faults.iter().map(fault).collect();
    let (mut object, decoded) = decode_kind(kind, root);
    findings.extend(decoded);
    let wrong = Wrong::of(findings.iter().filter(|finding| ends_reading(finding)));
    if wrong.is_any() {
        object = decode_rest(kind, root, &wrong);
    }
    let meta = metadata(&mut object);
    if meta.namespace.as_deref().unwrap_or_default().is_empty() {
        meta.namespace = Some(namespace.to_owned());
    }
    let key = key_of(&object);
    // Lines that seem to be indented stand elsewhere: what else is wrong is wrong because of them.
    if let Some(misread) = findings.iter().find(|finding| is_misread(finding)).cloned() {
        return Answer { key, object: None, findings: vec![misread] };
    }
    fill(&mut object);
    let mut found = Findings::new(root);
    // What the server stores is judged; what the file says is kept, so that it is the same when it is written out.
    let mut stored = object.clone();
    if let Object::Pod(pod) = &mut stored {
        defaults::select_by_labels(pod);
    }
    validate(&stored, &mut found);
    support::check(kind, root, &mut found);
    if let Object::Pod(pod) = &object {
        doubts::pod(pod, &mut found);
    }
    // Where a field was misspelt, the same place lacks it: one finding is enough.
    let fresh = found.list.into_iter().filter(|finding| {
        let hidden = finding.reason == Reason::FieldValueRequired
            && findings.iter().any(|known| {
                known.reason == Reason::StrictUnknownField && parent(&known.field) == parent(&finding.field)
            });
        !hidden && !wrong.explains(finding)
    });
    let fresh: Vec<Finding> = fresh.collect();
    findings.extend(fresh);
    let good = findings.iter().all(|finding| finding.severity == Severity::Warning);
    Answer { key, object: good.then_some(object), findings }
}

/// The field that holds this one.
pub(super) fn parent(field: &str) -> &str {
    field.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// Reads the body of a request.
pub(super) fn as_request(kind: Kind, namespace: &str, document: Option<yaml::Document>) -> Answer {
    let document = document.unwrap_or(yaml::Document {
        root: Node { position: Position::default(), value: Value::Null },
        faults: Vec::new(),
    });
    let root = &document.root;
    let refused = |findings: Vec<Finding>| Answer { key: None, object: None, findings };
    let faults: Vec<Finding> = document.faults.iter().map(fault).collect();
    if faults.iter().any(ends_reading) {
        return refused(faults.into_iter().filter(ends_reading).collect());
    }
    if !matches!(root.value, Value::Map(_) | Value::Null) {
        let message = format!("expected an object, found {}", root.type_name());
        return refused(vec![error(root.position, "", Reason::TypeMismatch, message, kinds::BEGINNING)]);
    }
    if let Err(finding) = kinds::must_be(kind, root) {
        return refused(vec![finding]);
    }
    let (mut object, decoded) = decode_kind(kind, root);
    if decoded.iter().any(ends_reading) {
        return refused(decoded.into_iter().filter(ends_reading).collect());
    }
    let strict: Vec<Finding> = faults.into_iter().chain(decoded).collect();
    if !strict.is_empty() {
        return refused(strict);
    }
    let meta = metadata(&mut object);
    let own = meta.namespace.clone().unwrap_or_default();
    if !own.is_empty() && own != namespace {
        let path = Path::ROOT.field("metadata").field("namespace").position(root);
        let message = format!("the namespace {own:?} is not the request's {namespace:?}");
        let fix = format!("remove it, or send the object to the namespace {own:?}");
        return refused(vec![error(path, "", Reason::BadRequest, message, fix)]);
    }
    meta.namespace = Some(namespace.to_owned());
    let unnamed = meta.name.as_deref().unwrap_or_default().is_empty();
    if unnamed && let Some(prefix) = &meta.generate_name {
        // The server adds five random characters; these stand for them.
        let kept: String = prefix.chars().take(58).collect();
        meta.name = Some(format!("{kept}xxxxx"));
    }
    if let Object::Pod(pod) = &mut object {
        defaults::drop_gated(Arc::make_mut(pod));
    }
    fill(&mut object);
    if let Object::Pod(pod) = &mut object {
        defaults::select_by_labels(pod);
    }
    let mut found = Findings::new(root);
    validate(&object, &mut found);
    let key = key_of(&object);
    let good = found.list.is_empty();
    server_side(&mut object, unnamed);
    Answer { key, object: good.then_some(object), findings: found.list }
}

/// What the server alone decides: a generated name, and the status of a new pod.
fn server_side(object: &mut Object, unnamed: bool) {
    let meta = metadata(object);
    if unnamed {
        meta.name = Some("<generated>".to_owned());
    }
    meta.uid = None;
    meta.creation_timestamp = None;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.self_link = None;
    meta.resource_version = None;
    meta.generation = None;
    meta.managed_fields = None;
    if let Object::Pod(pod) = object
        && let Some(spec) = &pod.spec
    {
        let gated = spec.scheduling_gates.as_ref().is_some_and(|it| !it.is_empty());
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "False".to_owned(),
            reason: Some("SchedulingGated".to_owned()),
            message: Some("Scheduling is blocked due to non-empty scheduling gates".to_owned()),
            ..PodCondition::default()
        };
        Arc::make_mut(pod).status = Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos::qos_class(spec).to_string()),
            conditions: gated.then(|| vec![condition]),
            ..PodStatus::default()
        });
    }
}
