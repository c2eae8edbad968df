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
            found.required(&own.field("name"), "a mount names a volume", "name: data");
        }
        let volume = scope.volumes.get(mount.name.as_str());
        if volume.is_none() {
            no_volume(&mount.name, scope, &own.field("name"), found);
        }
        if mount.mount_path.is_empty() {
            found.required(&own.field("mountPath"), "a mountPath is required", "mountPath: /data");
        }
        if !places.insert(mount.mount_path.as_str()) {
            let fix = "mount it elsewhere, or remove one of the two";
            found.invalid(&own.field("mountPath"), &mount.mount_path, "must be unique", fix);
        }
        if devices.contains_key(mount.name.as_str()) {
            found.invalid(
                &own.field("name"),
                &mount.name,
                "is one of the volumeDevices already",
                "remove one of the two",
            );
        }
        if device_paths.contains(mount.mount_path.as_str()) {
            found.invalid(
                &own.field("mountPath"),
                &mount.mount_path,
                "is the path of one of the volumeDevices already",
                "mount it elsewhere",
            );
        }
        sub_paths(mount, path, &own, found);
        propagation(mount, container, path, &own, found);
        recursive_read_only(mount, path, &own, found);
    }
}

fn no_volume(name: &str, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    if scope.volumes.is_bad(name) && !name.is_empty() {
        let message = format!("{name:?} is no volume of this pod");
        found.add(path, Reason::FieldValueNotFound, message, "mend that volume: it has errors of its own");
    } else {
        let known = scope.volumes.names();
        found.not_found(path, name, "is no volume of this pod", known, "add it to `spec.volumes`");
    }
}

/// The API server reports these without the mount's index.
fn sub_paths(mount: &VolumeMount, list: &Path<'_>, own: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(path) = given(mount.sub_path.as_ref()) {
        volumes::descending_path_as(path, &list.field("subPath").to_string(), &own.field("subPath"), found);
    }
    if let Some(path) = given(mount.sub_path_expr.as_ref()) {
        if given(mount.sub_path.as_ref()).is_some() {
            let message = "subPathExpr and subPath exclude each other";
            found.invalid(&own.field("subPathExpr"), &path, message, "remove one of the two");
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
    choice(Some(mode), &MODES, "remove it for the default, `None`", &real, found);
    let privileged = container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true));
    if mode == "Bidirectional" && !privileged {
        let fix = "use HostToContainer, or `privileged: true`";
        found.forbidden(&real, "only a privileged container may mount Bidirectional", fix);
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
                found.forbidden(&real, "needs `readOnly: true`", "add that to the mount, or use `Disabled`");
            }
            if mount.mount_propagation.as_deref().is_some_and(|mode| mode != "None") {
                found.forbidden(&real, "needs mountPropagation None, or none at all", "remove one of the two");
            }
        }
        other => {
            let modes = ["Disabled", "IfPossible", "Enabled"];
            found.not_supported(&real, other, &modes, "remove it for the default, `Disabled`");
        }
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
            found.required(&own.field("name"), "a device names a volume", "name: disk");
        }
        if names.contains(name) {
            found.invalid(&own.field("name"), &name, "must be unique", "remove one of the two");
        }
        match scope.volumes.get(name) {
            None => no_volume(name, scope, &own.field("name"), found),
            Some(volume) => {
                if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() {
                    let message = "is no persistentVolumeClaim or ephemeral volume";
                    let fix = "list it in `volumeMounts` instead";
                    found.invalid(&own.field("name"), &name, message, fix);
                }
            }
        }
        if place.is_empty() {
            found.required(&own.field("devicePath"), "a devicePath is required", "devicePath: /dev/xvda");
        }
        if places.contains(place) {
            found.invalid(&own.field("devicePath"), &place, "must be unique", "choose another path");
        }
        if place.split('/').any(|part| part == "..") {
            volumes::no_steps_back(place, &own.field("devicePath"), found);
        } else {
            places.insert(place);
        }
        if mounts.contains_key(name) {
            found.invalid(&own.field("name"), &name, "is one of the volumeMounts already", "remove one of the two");
        }
        if mount_paths.contains(place) {
            let message = "is the path of one of the volumeMounts already";
            found.invalid(&own.field("devicePath"), &place, message, "choose another path");
        }
        if !name.is_empty() {
            names.insert(name);
        }
    }
}
