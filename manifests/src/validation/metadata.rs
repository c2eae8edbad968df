//! Metadata: names, namespaces, labels, annotations, owners, finalizers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use super::given;
use super::names::{self, Check};
use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;

const MAX_ANNOTATIONS: usize = 256 << 10;

/// Validates metadata of an object with a namespace.
pub(super) fn metadata(meta: &ObjectMeta, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(prefix) = given(meta.generate_name.as_ref())
        && let Err(message) = names::prefix_of(prefix, names::subdomain)
    {
        found.invalid(&path.field("generateName"), &prefix, message);
    }
    let name_path = path.field("name");
    match given(meta.name.as_ref()) {
        None => {
            found.required(&name_path, "a name is required");
            found.fix("set `metadata.name`; `generateName` would make another object at each reading");
        }
        Some(name) => {
            check(name, names::subdomain, &name_path, found);
        }
    }
    if let Some(namespace) = given(meta.namespace.as_ref()) {
        label(namespace, &path.field("namespace"), found);
    }
    labels(meta.labels.as_ref(), &path.field("labels"), found);
    annotations(meta.annotations.as_ref(), &path.field("annotations"), found);
    owners(meta.owner_references.as_deref().unwrap_or_default(), &path.field("ownerReferences"), found);
    finalizers(meta.finalizers.as_deref().unwrap_or_default(), &path.field("finalizers"), found);
}

/// The generation, of kinds for which the API server keeps what is given; a pod's becomes 1.
pub(super) fn generation(meta: &ObjectMeta, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(generation) = meta.generation.filter(|it| *it < 0) {
        found.invalid(&path.field("generation"), &generation, "may not be below zero");
    }
}

/// A text that must pass a check.
pub(super) fn check(text: &str, check: fn(&str) -> Check, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Err(message) = check(text) {
        found.invalid(path, &text, message);
    }
}

/// An RFC 1123 label.
pub(super) fn label(text: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    check(text, names::label, path, found);
}

pub(super) fn labels(labels: Option<&BTreeMap<String, String>>, path: &Path<'_>, found: &mut Findings<'_>) {
    for (key, value) in labels.into_iter().flatten() {
        if let Err(message) = names::qualified(key) {
            found.add_as(path.to_string(), &path.key(key), Reason::FieldValueInvalid, format!("{key:?}: {message}"));
        }
        if let Err(message) = names::label_value(value) {
            found.add_as(path.to_string(), &path.key(key), Reason::FieldValueInvalid, format!("{value:?} {message}"));
        }
    }
}

pub(super) fn annotations(annotations: Option<&BTreeMap<String, String>>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        if let Err(message) = names::qualified(&key.to_lowercase()) {
            found.add_as(path.to_string(), &path.key(key), Reason::FieldValueInvalid, format!("{key:?}: {message}"));
        }
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        found.too_long(path, MAX_ANNOTATIONS);
    }
}

fn owners(owners: &[OwnerReference], path: &Path<'_>, found: &mut Findings<'_>) {
    let mut controller: Option<&OwnerReference> = None;
    for owner in owners {
        // The API server gives these no index.
        let version = owner.api_version.as_str();
        let bare = version.rsplit('/').next().unwrap_or_default();
        if bare.is_empty() || version.matches('/').count() > 1 {
            found.invalid(&path.field("apiVersion"), &version, "is no group/version");
        }
        if owner.kind.is_empty() {
            found.invalid(&path.field("kind"), &owner.kind, "must not be empty");
        }
        if owner.name.is_empty() {
            found.invalid(&path.field("name"), &owner.name, "must not be empty");
        }
        if owner.uid.is_empty() {
            found.invalid(&path.field("uid"), &owner.uid, "must not be empty");
        }
        if matches!(version, "v1" | "/v1") && owner.kind == "Event" {
            found.invalid(path, &owner.kind, "an event may not own anything");
        }
        if owner.controller == Some(true) {
            if let Some(first) = controller {
                let message = format!("both {} and {} are its controller", first.name, owner.name);
                found.add(path, Reason::FieldValueInvalid, message);
            } else {
                controller = Some(owner);
            }
        }
    }
}

fn finalizers(finalizers: &[String], path: &Path<'_>, found: &mut Findings<'_>) {
    for name in finalizers {
        check(name, names::qualified, path, found);
    }
    let has = |wanted: &str| finalizers.iter().any(|name| name == wanted);
    if has("orphan") && has("foregroundDeletion") {
        found.invalid(path, &finalizers, "`orphan` and `foregroundDeletion` exclude each other");
    }
    for (index, name) in finalizers.iter().enumerate() {
        let standard = matches!(name.as_str(), "kubernetes" | "orphan" | "foregroundDeletion");
        if !name.contains('/') && !standard {
            found.invalid(&path.index(index), name, "must be qualified, such as example.com/finalizer");
        }
    }
}

/// A label selector.
pub(super) fn selector(selector: Option<&LabelSelector>, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(selector) = selector else { return };
    labels(selector.match_labels.as_ref(), &path.field("matchLabels"), found);
    let path = path.field("matchExpressions");
    for (index, rule) in selector.match_expressions.iter().flatten().enumerate() {
        let path = path.index(index);
        let values = rule.values.as_deref().unwrap_or_default();
        match rule.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                found.required(&path.field("values"), "must be given when `operator` is In or NotIn");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                found.forbidden(&path.field("values"), "may not be given when `operator` is Exists or DoesNotExist")
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => found.invalid(&path.field("operator"), &other, "is no selector operator"),
        }
        check(&rule.key, names::qualified, &path.field("key"), found);
        for (at, value) in values.iter().enumerate() {
            check(value, names::label_value, &path.field("values").index(at), found);
        }
    }
}
