//! Environment variables and where their values come from.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EnvVar, FileKeySelector, ObjectFieldSelector, PodSpec, ResourceFieldSelector, Volume,
};

use super::container;
use super::metadata::{check, label};
use super::{given, names, volumes};
use crate::findings::{Findings, near_or};
use crate::path::Path;
use crate::problem::Reason;
use crate::quantity::Amount;

pub(super) fn env(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let path = path.index(index);
        if variable.name.is_empty() {
            found.required(&path.field("name"), "a variable needs a name", "name: PORT");
        } else {
            check(&variable.name, names::variable, &path.field("name"), found);
        }
        source(variable, &path.field("valueFrom"), found);
    }
}

fn source(variable: &EnvVar, path: &Path<'_>, found: &mut Findings<'_>) {
    const FIELDS: [&str; 9] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let Some(from) = &variable.value_from else {
        return;
    };
    let mut sources = 0;
    if let Some(field) = &from.field_ref {
        sources += 1;
        object_field(field, &FIELDS, &path.field("fieldRef"), found);
    }
    if let Some(field) = &from.resource_field_ref {
        sources += 1;
        resource_field(field, false, &path.field("resourceFieldRef"), found);
    }
    if let Some(key) = &from.config_map_key_ref {
        sources += 1;
        key_of(&key.name, &key.key, &path.field("configMapKeyRef"), found);
    }
    if let Some(key) = &from.secret_key_ref {
        sources += 1;
        key_of(&key.name, &key.key, &path.field("secretKeyRef"), found);
    }
    if let Some(file) = &from.file_key_ref {
        sources += 1;
        file_key(file, &path.field("fileKeyRef"), found);
    }
    if sources == 0 {
        found.add(
            path,
            Reason::FieldValueInvalid,
            "must have one of fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef",
            "add one, or give the text itself as `value`",
        );
    } else if given(variable.value.as_ref()).is_some() {
        let fix = "remove one of the two";
        found.add(path, Reason::FieldValueInvalid, "a variable has either `value` or `valueFrom`", fix);
    } else if sources > 1 {
        let fix = "keep one, and give each other one a variable of its own";
        found.add(path, Reason::FieldValueInvalid, "may not have more than one source", fix);
    }
}

fn key_of(name: &str, key: &str, path: &Path<'_>, found: &mut Findings<'_>) {
    check(name, names::subdomain, &path.field("name"), found);
    if key.is_empty() {
        found.required(&path.field("key"), "a key is required", "key: host");
    } else {
        check(key, names::config_key, &path.field("key"), found);
    }
}

fn file_key(file: &FileKeySelector, path: &Path<'_>, found: &mut Findings<'_>) {
    if file.key.is_empty() {
        found.required(&path.field("key"), "a key is required", "key: PORT");
    } else {
        check(&file.key, names::variable, &path.field("key"), found);
    }
    let volume = path.field("volumeName");
    if file.volume_name.is_empty() {
        found.required(&volume, "a volume is required", "volumeName: settings");
    } else {
        label(&file.volume_name, &volume, found);
    }
    if file.path.is_empty() {
        found.required(&path.field("path"), "a path is required", "path: app.env");
    } else {
        volumes::no_steps_back(&file.path, &path.field("path"), found);
    }
}

/// A variable can be read from a file of an emptyDir volume only.
pub(super) fn file_volumes(spec: &PodSpec, path: &Path<'_>, found: &mut Findings<'_>) {
    let volumes: BTreeMap<&str, &Volume> =
        spec.volumes.iter().flatten().map(|volume| (volume.name.as_str(), volume)).collect();
    container::each(spec, path, |container, path| {
        for (index, variable) in container.env.iter().flatten().enumerate() {
            let Some(file) = variable.value_from.as_ref().and_then(|from| from.file_key_ref.as_ref()) else {
                continue;
            };
            let path = path.field("env");
            let path = path.index(index);
            let path = path.field("valueFrom");
            let path = path.field("fileKeyRef");
            let own = path.field("volumeName");
            match volumes.get(file.volume_name.as_str()) {
                None => {
                    let (name, known) = (file.volume_name.as_str(), volumes.keys().copied());
                    found.not_found(&own, name, "is no volume of this pod", known, "add it to `spec.volumes`");
                }
                Some(volume) if volume.empty_dir.is_none() => {
                    let fix = "make it one: the variables are written by an init container";
                    found.invalid(&own, &file.volume_name, "is no emptyDir volume", fix);
                }
                Some(_) => {}
            }
        }
    });
}

pub(super) fn env_from(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, source) in container.env_from.iter().flatten().enumerate() {
        let own = path.index(index);
        if let Some(prefix) = given(source.prefix.as_ref()) {
            check(prefix, names::variable, &own.field("prefix"), found);
        }
        let mut sources = 0;
        for (field, name) in [
            ("configMapRef", source.config_map_ref.as_ref().map(|it| &it.name)),
            ("secretRef", source.secret_ref.as_ref().map(|it| &it.name)),
        ] {
            let Some(name) = name else { continue };
            sources += 1;
            let path = own.field(field);
            if name.is_empty() {
                found.required(&path.field("name"), "a name is required", "name: settings");
            } else {
                check(name, |text| names::prefix_of(text, names::subdomain), &path.field("name"), found);
            }
        }
        // The API server gives these no index.
        if sources != 1 {
            let (message, fix) = if sources == 0 {
                ("must have one of configMapRef, secretRef", "for example `configMapRef: {name: settings}`")
            } else {
                ("may not have more than one source", "make each an item of its own")
            };
            found.add_as(path.to_string(), &own, Reason::FieldValueInvalid, message, fix);
        }
    }
}

/// A field of the pod, for a variable or a file.
pub(super) fn object_field(field: &ObjectFieldSelector, allowed: &[&str], path: &Path<'_>, found: &mut Findings<'_>) {
    const KNOWN: [&str; 12] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "metadata.labels",
        "metadata.annotations",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.podIP",
    ];
    let name = field.field_path.as_str();
    if name.is_empty() {
        found.required(&path.field("fieldPath"), "a fieldPath is required", "fieldPath: metadata.name");
        return;
    }
    let own = path.field("fieldPath");
    if field.api_version.as_deref() != Some("v1") {
        found.invalid(&own, &name, "can only be read with apiVersion v1", "remove `apiVersion`: v1 is the default");
        return;
    }
    if let Some((base, key)) = subscript(name) {
        match base {
            "metadata.annotations" => {
                check(&key.to_lowercase(), names::qualified, path, found);
            }
            "metadata.labels" => check(key, names::qualified, path, found),
            _ if KNOWN.contains(&base) || base == "spec.host" => {
                found.invalid(&own, &name, "has no keys", "remove the `['...']`");
            }
            _ => found.invalid(
                &own,
                &name,
                "is no field of a pod that can be read here",
                "for example `metadata.labels['app']`",
            ),
        }
        return;
    }
    let known = KNOWN.contains(&name) || matches!(name, "spec.host" | "status.hostIPs" | "status.podIPs");
    if !known {
        let fix = near_or(name, allowed.iter().copied(), || {
            "for example `metadata.name` or `metadata.labels['app']`".to_owned()
        });
        found.invalid(&own, &name, "is no field of a pod that can be read here", fix);
    } else if !allowed.contains(&if name == "spec.host" { "spec.nodeName" } else { name }) {
        // Variables cannot have all labels, and files cannot have what is known only later.
        let otherwise = match name {
            "metadata.labels" | "metadata.annotations" => "name one of them, as in `metadata.labels['app']`",
            "spec.restartPolicy" | "spec.schedulerName" | "status.phase" => "remove it: no pod can read this field",
            _ => "give it to a container by `env` instead",
        };
        found.not_supported(&own, name, allowed, otherwise);
    }
}

/// `metadata.labels['key']`
fn subscript(text: &str) -> Option<(&str, &str)> {
    let (base, rest) = text.split_once("['")?;
    let key = rest.strip_suffix("']")?;
    (!base.is_empty()).then_some((base, key))
}

/// A limit or request of a container, for a variable or a file.
pub(super) fn resource_field(
    field: &ResourceFieldSelector,
    in_volume: bool,
    path: &Path<'_>,
    found: &mut Findings<'_>,
) {
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
    ];
    let name = field.resource.as_str();
    let pages = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if in_volume && given(field.container_name.as_ref()).is_none() {
        found.required(&path.field("containerName"), "a containerName is required", "containerName: web");
    } else if name.is_empty() {
        found.required(&path.field("resource"), "a resource is required", "resource: limits.memory");
    } else if !RESOURCES.contains(&name) && !pages {
        found.not_supported(&path.field("resource"), name, &RESOURCES, "for example `limits.memory`");
    }
    divisor(field, pages, &path.field("divisor"), found);
}

fn divisor(field: &ResourceFieldSelector, pages: bool, path: &Path<'_>, found: &mut Findings<'_>) {
    const BYTES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let text = field.divisor.as_ref().map_or("0", |divisor| divisor.0.as_str());
    if Amount::parse(text).is_ok_and(Amount::is_zero) {
        return;
    }
    let allowed: &[&str] = match field.resource.as_str() {
        "limits.cpu" | "requests.cpu" => &["1m", "1"],
        "limits.memory" | "requests.memory" | "limits.ephemeral-storage" | "requests.ephemeral-storage" => &BYTES,
        _ if pages => &BYTES,
        _ => return,
    };
    if !allowed.contains(&text) {
        let whole = if allowed.len() == BYTES.len() { "bytes" } else { "whole cores" };
        let fix = format!("remove it, and the value is in {whole}");
        found.invalid(path, &text, format!("must be one of {}", allowed.join(", ")), fix);
    }
}
