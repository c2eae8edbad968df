//! What of the configuration a container's environment uses, and what of it is missing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;

use crate::config::ConfigKind;
use crate::desired::DesiredPod;
use crate::fingerprint::Fingerprint;

/// The keys that one environment uses.
#[derive(Debug, Default)]
pub(crate) struct EnvUse {
    /// Fingerprints by `ConfigMap name/key` or `Secret name/key`.
    pub(crate) prints: BTreeMap<String, Fingerprint>,
    /// A sentence for each thing that is missing and not optional.
    pub(crate) missing: Vec<String>,
}

/// Looks up every key that the environment of `container` names.
pub(crate) fn env_use(desired: &DesiredPod, container: &Container) -> EnvUse {
    let mut found = EnvUse::default();
    for from in container.env_from.iter().flatten() {
        if let Some(source) = &from.config_map_ref {
            let optional = source.optional == Some(true);
            whole(desired, ConfigKind::ConfigMap, &source.name, optional, &mut found);
        }
        if let Some(source) = &from.secret_ref {
            let optional = source.optional == Some(true);
            whole(desired, ConfigKind::Secret, &source.name, optional, &mut found);
        }
    }
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        if let Some(key) = &source.config_map_key_ref {
            let optional = key.optional == Some(true);
            one(desired, ConfigKind::ConfigMap, &key.name, &key.key, optional, &mut found);
        }
        if let Some(key) = &source.secret_key_ref {
            let optional = key.optional == Some(true);
            one(desired, ConfigKind::Secret, &key.name, &key.key, optional, &mut found);
        }
    }
    found
}

fn whole(desired: &DesiredPod, kind: ConfigKind, name: &str, optional: bool, found: &mut EnvUse) {
    match desired.configs.get(kind, name) {
        Some(config) => {
            let used = config.variables().filter_map(|(key, _)| Some((key, config.fingerprints().get(key)?)));
            found.prints.extend(used.map(|(key, print)| (label(kind, name, key), print.clone())));
        }
        None if optional => {}
        None => found.missing.push(absent(kind, name)),
    }
}

fn one(desired: &DesiredPod, kind: ConfigKind, name: &str, key: &str, optional: bool, found: &mut EnvUse) {
    match desired.configs.get(kind, name) {
        None if optional => {}
        None => found.missing.push(absent(kind, name)),
        Some(config) => match config.variable(key).and_then(|_| config.fingerprints().get(key)) {
            Some(print) => {
                found.prints.insert(label(kind, name, key), print.clone());
            }
            None if optional => {}
            None => {
                let namespace = desired.key().namespace;
                found.missing.push(format!("couldn't find key {key} in {kind} {namespace}/{name}"));
            }
        },
    }
}

/// How a missing object is reported, in the kubelet's words.
pub(crate) fn absent(kind: ConfigKind, name: &str) -> String {
    format!("{} \"{name}\" not found", kind.to_string().to_lowercase())
}

fn label(kind: ConfigKind, name: &str, key: &str) -> String {
    format!("{kind} {name}/{key}")
}

/// The keys whose value differs from what a running container was started with.
pub(crate) fn stale_keys(
    applied: &BTreeMap<String, Fingerprint>,
    desired: &BTreeMap<String, Fingerprint>,
) -> Vec<String> {
    let changed = desired.iter().filter(|(key, print)| applied.get(*key) != Some(print));
    let gone = applied.keys().filter(|key| !desired.contains_key(*key));
    let mut keys: Vec<String> = changed.map(|(key, _)| key).chain(gone).cloned().collect();
    keys.sort();
    keys
}
