//! Which config maps and secrets a pod names.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::object::Kind;

/// The config maps and secrets that a pod names, each with whether it may be missing.
///
/// All are in the pod's own namespace. The same object named as optional in one place and as
/// required in another is there twice. Pull secrets may always be missing.
#[must_use]
pub fn references(pod: &Pod) -> BTreeSet<(Kind, String, bool)> {
    let mut found = BTreeSet::new();
    let Some(spec) = &pod.spec else { return found };
    for secret in spec.image_pull_secrets.iter().flatten() {
        found.insert((Kind::Secret, secret.name.clone(), true));
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        in_container(container, &mut found);
    }
    for volume in spec.volumes.iter().flatten() {
        in_volume(volume, &mut found);
    }
    found.retain(|(_, name, _)| !name.is_empty());
    found
}

fn in_container(container: &Container, found: &mut BTreeSet<(Kind, String, bool)>) {
    for source in container.env_from.iter().flatten() {
        if let Some(map) = &source.config_map_ref {
            found.insert((Kind::ConfigMap, map.name.clone(), map.optional == Some(true)));
        }
        if let Some(secret) = &source.secret_ref {
            found.insert((Kind::Secret, secret.name.clone(), secret.optional == Some(true)));
        }
    }
    for variable in container.env.iter().flatten() {
        let Some(source) = &variable.value_from else { continue };
        if let Some(map) = &source.config_map_key_ref {
            found.insert((Kind::ConfigMap, map.name.clone(), map.optional == Some(true)));
        }
        if let Some(secret) = &source.secret_key_ref {
            found.insert((Kind::Secret, secret.name.clone(), secret.optional == Some(true)));
        }
    }
}

fn in_volume(volume: &Volume, found: &mut BTreeSet<(Kind, String, bool)>) {
    if let Some(map) = &volume.config_map {
        found.insert((Kind::ConfigMap, map.name.clone(), map.optional == Some(true)));
    }
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.clone().unwrap_or_default();
        found.insert((Kind::Secret, name, secret.optional == Some(true)));
    }
    let projected = volume.projected.as_ref().and_then(|it| it.sources.as_ref());
    for source in projected.into_iter().flatten() {
        if let Some(map) = &source.config_map {
            found.insert((Kind::ConfigMap, map.name.clone(), map.optional == Some(true)));
        }
        if let Some(secret) = &source.secret {
            found.insert((Kind::Secret, secret.name.clone(), secret.optional == Some(true)));
        }
    }
}
