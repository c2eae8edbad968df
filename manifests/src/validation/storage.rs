//! Mounts and devices of containers.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::container::Scope;
use super::pod::choice;
use super::{given, volumes};
use crate::findings::Findings;
use crate::path::Path;
use crate::problem::Reason;

pub(super) fn mounts(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let devices: BTreeMap<&str, &str> = container
        .volume_devices
        .iter()
        .flatten()
        .map(|device| (device.name.as_str(), device.device_path.as_str()))
        .collect();
    let device_paths: BTreeSet<&str> = devices.values().copied().collect();
    let mut places = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let own = path.index(index);
        if mount.name.is_empty() {
            found.required(&own.field("name"), "a mount names a volume");
        }
        let volume = scope.volumes.get(mount.name.as_str());
        if volume.is_none() && found.has_room() {
            found.not_found(&own.field("name"), &mount.name, "is no volume of this pod");
            let names = scope.volumes.keys().copied();
            if let Some(near) = crate::near::nearest(&mount.name, names) {
                found.fix(format!("did you mean `{near}`?"));
            } else {
                found.fix("add it to `spec.volumes`");
            }
        }
        if mount.mount_path.is_empty() {
            found.required(&own.field("mountPath"), "a mountPath is required");
        }
        if !places.insert(mount.mount_path.as_str()) {
            found.invalid(&own.field("mountPath"), &mount.mount_path, "must be unique");
        }
        if devices.contains_key(mount.name.as_str()) {
            found.invalid(&own.field("name"), &mount.name, "is one of the volumeDevices already");
        }
        if device_paths.contains(mount.mount_path.as_str()) {
            found.invalid(
                &own.field("mountPath"),
                &mount.mount_path,
                "is the path of one of the volumeDevices already",
            );
        }
        sub_paths(mount, path, &own, found);
        propagation(mount, container, path, &own, found);
        recursive_read_only(mount, path, &own, found);
    }
}

/// The API server reports these without the mount's index.
fn sub_paths(mount: &VolumeMount, list: &Path<'_>, own: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(path) = given(mount.sub_path.as_ref()) {
        volumes::descending_path_as(path, &list.field("subPath").to_string(), &own.field("subPath"), found);
    }
    if let Some(path) = given(mount.sub_path_expr.as_ref()) {
        if given(mount.sub_path.as_ref()).is_some() {
            found.invalid(&own.field("subPathExpr"), &path, "subPathExpr and subPath exclude each other");
        }
        volumes::descending_path_as(path, &list.field("subPathExpr").to_string(), &own.field("subPathExpr"), found);
    }
}

fn propagation(mount: &VolumeMount, container: &Container, list: &Path<'_>, own: &Path<'_>, found: &mut Findings<'_>) {
    const MODES: [&str; 3] = ["Bidirectional", "HostToContainer", "None"];
    let Some(mode) = mount.mount_propagation.as_deref() else {
        return;
    };
    let before = found.len();
    let real = own.field("mountPropagation");
    choice(Some(mode), &MODES, &real, found);
    let privileged = container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true));
    if mode == "Bidirectional" && !privileged {
        found.forbidden(&real, "only a privileged container may mount Bidirectional");
    }
    report_without_index(found, before, &list.field("mountPropagation"));
}

fn recursive_read_only(mount: &VolumeMount, list: &Path<'_>, own: &Path<'_>, found: &mut Findings<'_>) {
    let Some(mode) = mount.recursive_read_only.as_deref() else {
        return;
    };
    let before = found.len();
    let real = own.field("recursiveReadOnly");
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if mount.read_only != Some(true) {
                found.forbidden(&real, "needs `readOnly: true`");
            }
            if mount.mount_propagation.as_deref().is_some_and(|mode| mode != "None") {
                found.forbidden(&real, "needs mountPropagation None, or none at all");
            }
        }
        other => found.not_supported(&real, other, &["Disabled", "IfPossible", "Enabled"]),
    }
    report_without_index(found, before, &list.field("recursiveReadOnly"));
}

/// Some of the API server's paths lack the mount's index; the position still has it.
fn report_without_index(found: &mut Findings<'_>, from: usize, path: &Path<'_>) {
    for finding in found.list.iter_mut().skip(from) {
        finding.field = path.to_string();
    }
}

pub(super) fn devices(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let mounts: BTreeMap<&str, &str> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| (mount.name.as_str(), mount.mount_path.as_str()))
        .collect();
    let mount_paths: BTreeSet<&str> = mounts.values().copied().collect();
    let mut names = BTreeSet::new();
    let mut places = BTreeSet::new();
    for (index, device) in container.volume_devices.iter().flatten().enumerate() {
        let own = path.index(index);
        let (name, place) = (device.name.as_str(), device.device_path.as_str());
        if name.is_empty() {
            found.required(&own.field("name"), "a device names a volume");
        }
        if names.contains(name) {
            found.invalid(&own.field("name"), &name, "must be unique");
        }
        match scope.volumes.get(name) {
            None => found.not_found(&own.field("name"), &name, "is no volume of this pod"),
            Some(volume) => {
                if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() {
                    found.invalid(&own.field("name"), &name, "is no persistentVolumeClaim or ephemeral volume");
                }
            }
        }
        if place.is_empty() {
            found.required(&own.field("devicePath"), "a devicePath is required");
        }
        if places.contains(place) {
            found.invalid(&own.field("devicePath"), &place, "must be unique");
        }
        if place.split('/').any(|part| part == "..") {
            found.add(&own.field("devicePath"), Reason::FieldValueInvalid, format!("{place:?} may not contain `..`"));
        } else {
            places.insert(place);
        }
        if mounts.contains_key(name) {
            found.invalid(&own.field("name"), &name, "is one of the volumeMounts already");
        }
        if mount_paths.contains(place) {
            found.invalid(&own.field("devicePath"), &place, "is the path of one of the volumeMounts already");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}
