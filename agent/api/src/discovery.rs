//! The documents by which a client learns what is here.

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::app::App;
use crate::failure::Failure;

/// The Kubernetes release whose API this is a part of.
const KUBERNETES_MINOR: &str = "37";

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/version", get(async || Json(version())))
        .route("/api", get(async || Json(core_versions())))
        .route("/api/v1", get(async || Json(resource_list("v1", CORE))))
        .route("/apis", get(async || Json(group_list())))
        .route("/apis/{group}", get(one_group))
        .route("/apis/portreeve.dev/v1alpha1", get(async || Json(resource_list("portreeve.dev/v1alpha1", OWN))))
        .route("/apis/metrics.k8s.io/v1beta1", get(async || Json(resource_list("metrics.k8s.io/v1beta1", METRICS))))
}

fn version() -> Value {
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "major": "1",
        "minor": KUBERNETES_MINOR,
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+portreeve-{version}"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other }),
    })
}

fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

const GROUPS: &[(&str, &str)] = &[("portreeve.dev", "v1alpha1"), ("metrics.k8s.io", "v1beta1")];

fn group(name: &str, version: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn group_list() -> Value {
    let groups: Vec<Value> = GROUPS.iter().map(|(name, version)| group(name, version)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

async fn one_group(Path(asked): Path<String>) -> Result<Json<Value>, Failure> {
    let (name, version) = GROUPS.iter().find(|(name, _)| *name == asked).ok_or_else(Failure::no_such_path)?;
    let mut group = group(name, version);
    if let Some(fields) = group.as_object_mut() {
        fields.insert("kind".to_owned(), "APIGroup".into());
        fields.insert("apiVersion".to_owned(), "v1".into());
    }
    Ok(Json(group))
}

struct Listing {
    name: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    short: &'static [&'static str],
    categories: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];

const fn listing(
    name: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    short: &'static [&'static str],
) -> Listing {
    Listing { name, singular, kind, namespaced, verbs, short, categories: &[] }
}

const CORE: &[Listing] = &[
    listing("configmaps", "configmap", "ConfigMap", true, READ, &["cm"]),
    listing("events", "event", "Event", true, READ, &["ev"]),
    listing("namespaces", "namespace", "Namespace", false, READ, &["ns"]),
    listing("nodes", "node", "Node", false, READ, &["no"]),
    Listing {
        categories: &["all"],
        ..listing("pods", "pod", "Pod", true, &["delete", "get", "list", "watch"], &["po"])
    },
    listing("pods/attach", "", "PodAttachOptions", true, &["create", "get"], &[]),
    listing("pods/exec", "", "PodExecOptions", true, &["create", "get"], &[]),
    listing("pods/log", "", "Pod", true, &["get"], &[]),
    listing("pods/portforward", "", "PodPortForwardOptions", true, &["create", "get"], &[]),
];

const OWN: &[Listing] = &[
    listing("containers", "container", "Container", true, READ, &[]),
    listing("images", "image", "Image", false, READ, &[]),
    listing("sources", "source", "Source", false, READ, &[]),
];

const METRICS: &[Listing] = &[
    listing("nodes", "", "NodeMetrics", false, &["get", "list"], &[]),
    listing("pods", "", "PodMetrics", true, &["get", "list"], &[]),
];

fn resource_list(group_version: &str, listings: &[Listing]) -> Value {
    let resources: Vec<Value> = listings
        .iter()
        .map(|listing| {
            let mut resource = json!({
                "name": listing.name,
                "singularName": listing.singular,
                "namespaced": listing.namespaced,
                "kind": listing.kind,
                "verbs": listing.verbs,
            });
            if let Some(fields) = resource.as_object_mut() {
                if !listing.short.is_empty() {
                    fields.insert("shortNames".to_owned(), json!(listing.short));
                }
                if !listing.categories.is_empty() {
                    fields.insert("categories".to_owned(), json!(listing.categories));
                }
            }
            resource
        })
        .collect();
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_in_the_list_has_its_preferred_version() {
        let groups = group_list();
        for group in groups["groups"].as_array().unwrap() {
            assert_eq!(group["preferredVersion"], group["versions"][0]);
        }
    }

    #[test]
    fn kubectl_finds_pods_under_their_short_name() {
        let list = resource_list("v1", CORE);
        let pods = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == "pods").unwrap();
        assert_eq!(pods["shortNames"], json!(["po"]));
        assert_eq!(pods["namespaced"], true);
    }
}
