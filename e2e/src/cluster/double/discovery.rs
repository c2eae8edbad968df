//! What clients ask first: which groups, versions and resources there are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::kinds::KINDS;

/// Groups and their versions that are not the double's.
pub(in crate::cluster) type Discovered = BTreeMap<String, BTreeSet<String>>;

/// The double's groups but the core, each with its version.
pub(in crate::cluster) fn groups() -> impl Iterator<Item = (&'static str, &'static str)> {
    let groups: BTreeSet<_> = KINDS.iter().map(|kind| (kind.group, kind.version)).collect();
    groups.into_iter().filter(|(group, _)| !group.is_empty())
}

/// The document of `/api`, of `/apis` with these further groups, or of one of the double's groups.
pub(in crate::cluster) fn of_root(path: &str, further: &Discovered) -> Value {
    let path = path.trim_end_matches('/');
    if path == "/api" {
        return json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] });
    }
    let mut all = further.clone();
    for (group, version) in groups() {
        all.entry(group.to_owned()).or_default().insert(version.to_owned());
    }
    let groups: Vec<_> = all.iter().map(|(group, versions)| describe(group, versions)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

fn describe(group: &str, versions: &BTreeSet<String>) -> Value {
    let one = |version: &String| json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    let versions: Vec<_> = versions.iter().map(one).collect();
    json!({ "name": group, "versions": versions, "preferredVersion": versions.last() })
}

/// The document of one of the double's groups or of a version of one; nothing for other paths.
pub(super) fn of_version(path: &str) -> Option<Value> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version) = match parts.as_slice() {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        ["apis", group] => {
            let (_, version) = groups().find(|(name, _)| name == group)?;
            let mut document = describe(group, &BTreeSet::from([version.to_owned()]));
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            return Some(document);
        }
        _ => return None,
    };
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let mut resources = Vec::new();
    for kind in KINDS.iter().filter(|kind| (kind.group, kind.version) == (group, version)) {
        let (kind_name, singular) = (kind.kind, kind.kind.to_lowercase());
        let mut push = |name: &str, verbs: &[&str]| {
            let (namespaced, kind) = (kind.namespaced, kind_name);
            resources.push(json!({ "name": name, "singularName": singular, "namespaced": namespaced, "kind": kind, "verbs": verbs }));
        };
        push(kind.plural, &verbs);
        if kind.has_status {
            push(&format!("{}/status", kind.plural), &["get", "patch", "update"]);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let list =
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources });
    (!resources.is_empty()).then_some(list)
}
