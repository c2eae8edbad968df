//! Metadata: names, namespaces, labels, annotations, owners, finalizers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

use super::given;
use super::names::{self, Check};
use crate::findings::{Findings, near_or};
use crate::path::Path;
use crate::problem::Reason;

const MAX_ANNOTATIONS: usize = 256 << 10;

/// Validates metadata of an object with a namespace.
pub(super) fn metadata(meta: &ObjectMeta, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(prefix) = given(meta.generate_name.as_ref())
        && let Err(message) = names::prefix_of(prefix, names::subdomain)
    {
        let fix = names::mended(prefix, |text| names::prefix_of(text, names::subdomain));
        found.invalid(&path.field("generateName"), &prefix, message, fix);
    }
    let name_path = path.field("name");
    match given(meta.name.as_ref()) {
        None => {
            let fix = "set `metadata.name`; `generateName` would make another object at each reading";
            found.add(&name_path, Reason::FieldValueRequired, "a name is required", fix);
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
        let fix = "remove it: an API server writes this";
        found.invalid(&path.field("generation"), &generation, "may not be below zero", fix);
    }
}

/// A text that must pass a check of names.
pub(super) fn check(text: &str, check: fn(&str) -> Check, path: &Path<'_>, found: &mut Findings<'_>) {
    // Looking for a better text takes longer than the check.
    if let Err(message) = check(text)
        && found.has_room()
    {
        found.invalid(path, &text, message, names::mended(text, check));
    }
}

/// An RFC 1123 label.
pub(super) fn label(text: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    check(text, names::label, path, found);
}

pub(super) fn labels(labels: Option<&BTreeMap<String, String>>, path: &Path<'_>, found: &mut Findings<'_>) {
    for (key, value) in labels.into_iter().flatten() {
        if let Err(message) = names::qualified(key)
            && found.has_room()
        {
            let (message, fix) = (format!("{key:?}: {message}"), names::mended(key, names::qualified));
            found.add_as(path.to_string(), &path.key(key), Reason::FieldValueInvalid, message, fix);
        }
        if let Err(message) = names::label_value(value)
            && found.has_room()
        {
            let (message, fix) = (format!("{value:?} {message}"), names::mended(value, names::label_value));
            found.add_as(path.to_string(), &path.key(key), Reason::FieldValueInvalid, message, fix);
        }
    }
}

pub(super) fn annotations(annotations: Option<&BTreeMap<String, String>>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        if let Err(message) = names::qualified(&key.to_lowercase())
            && found.has_room()
        {
            let (message, fix) = (format!("{key:?}: {message}"), names::mended(key, names::qualified));
            found.add_as(path.to_string(), &path.key(key), Reason::FieldValueInvalid, message, fix);
        }
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        found.too_long(path, size, MAX_ANNOTATIONS, "move large values to a ConfigMap");
    }
}

fn owners(owners: &[OwnerReference], path: &Path<'_>, found: &mut Findings<'_>) {
    let mut controller: Option<&OwnerReference> = None;
    for owner in owners {
        // The API server gives these no index.
        let version = owner.api_version.as_str();
        let bare = version.rsplit('/').next().unwrap_or_default();
        if bare.is_empty() || version.matches('/').count() > 1 {
            found.invalid(
                &path.field("apiVersion"),
                &version,
                "is no group/version",
                "for example `apps/v1`, or remove the owner",
            );
        }
        if owner.kind.is_empty() {
            found.invalid(
                &path.field("kind"),
                &owner.kind,
                "must not be empty",
                "for example `ReplicaSet`, or remove the owner",
            );
        }
        if owner.name.is_empty() {
            found.invalid(&path.field("name"), &owner.name, "must not be empty", "name the owner, or remove it");
        }
        if owner.uid.is_empty() {
            found.invalid(
                &path.field("uid"),
                &owner.uid,
                "must not be empty",
                "give the owner's UUID, or remove the owner",
            );
        }
        if matches!(version, "v1" | "/v1") && owner.kind == "Event" {
            found.invalid(path, &owner.kind, "an event may not own anything", "remove this owner");
        }
        if owner.controller == Some(true) {
            if let Some(first) = controller {
                let message = format!("both {} and {} are its controller", first.name, owner.name);
                found.add(path, Reason::FieldValueInvalid, message, "say `controller: true` for one of them only");
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
        found.invalid(
            path,
            &finalizers,
            "`orphan` and `foregroundDeletion` exclude each other",
            "remove one of the two",
        );
    }
    for (index, name) in finalizers.iter().enumerate() {
        let standard = matches!(name.as_str(), "kubernetes" | "orphan" | "foregroundDeletion");
        if !name.contains('/') && !standard {
            let fix = "put a domain of yours and a `/` before it, or remove it";
            found.invalid(&path.index(index), name, "must be qualified, such as example.com/finalizer", fix);
        }
    }
}

const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

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
                found.required(&path.field("values"), "must be given when `operator` is In or NotIn", "values: [web]");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let message = "may not be given when `operator` is Exists or DoesNotExist";
                found.forbidden(&path.field("values"), message, "remove `values`, or use the operator In or NotIn");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let fix = near_or(other, OPERATORS.into_iter(), || format!("use one of {}", OPERATORS.join(", ")));
                found.invalid(&path.field("operator"), &other, "is no selector operator", fix);
            }
        }
        check(&rule.key, names::qualified, &path.field("key"), found);
        for (at, value) in values.iter().enumerate() {
            check(value, names::label_value, &path.field("values").index(at), found);
        }
    }
}
