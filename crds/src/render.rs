//! From a workload's content to the objects of a node.

use std::path::Path;

use portreeve_manifests::{ParsedFile, Position, Problem, Reason, Severity, parse_file_in};
use serde_json::{Map, Value, json};

use crate::WORKLOAD_LABEL;
use crate::content::Content;

/// The objects of `content` on one node, judged as the manifests of a directory are; `file` is what problems name.
///
/// Every object is in `namespace`: who may write workloads in one namespace gets no pods into another by it.
#[must_use]
pub fn render(file: &Path, namespace: &str, name: &str, content: &Content) -> ParsedFile {
    let mut foreign = Vec::new();
    let objects: Vec<Value> = match (&content.template, &content.manifests) {
        (Some(_), _) => (0..content.replicas_per_node).map(|number| pod(name, number, content)).collect(),
        (None, manifests) => {
            let said = manifests.iter().flatten().enumerate();
            said.filter(|(index, object)| {
                let foreigner = namespace_of(object).filter(|own| *own != namespace);
                foreign.extend(foreigner.map(|own| elsewhere(file, *index, own, namespace)));
                foreigner.is_none()
            })
            .map(|(_, object)| Value::Object(object.clone()))
            .collect()
        }
    };
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    let mut parsed = parse_file_in(file, list.to_string().as_bytes(), namespace);
    parsed.problems.extend(foreign);
    parsed
}

fn pod(name: &str, number: i32, content: &Content) -> Value {
    let metadata = content.template.as_ref().and_then(|template| template.metadata.clone()).unwrap_or_default();
    let mut labels = metadata.labels;
    labels.insert(WORKLOAD_LABEL.to_owned(), name.to_owned());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": format!("{name}-{number}"), "labels": labels, "annotations": metadata.annotations },
        "spec": content.template.as_ref().map(|template| &template.spec),
    })
}

fn namespace_of(object: &Map<String, Value>) -> Option<&str> {
    object.get("metadata")?.get("namespace")?.as_str().filter(|namespace| !namespace.is_empty())
}

fn elsewhere(file: &Path, index: usize, found: &str, namespace: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        file: file.to_owned(),
        position: Position::default(),
        document: 0,
        object: None,
        field: format!("manifests[{index}].metadata.namespace"),
        reason: Reason::FieldValueForbidden,
        message: format!("{found:?} is another namespace than that of the workload, {namespace:?}"),
        fix: "leave it out, or move the object to a workload of its own namespace".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use portreeve_manifests::Object;

    use super::*;

    fn content(value: Value) -> Content {
        serde_json::from_value(value).expect("a content")
    }

    fn names(parsed: &ParsedFile) -> Vec<String> {
        parsed.objects().map(|object| object.key().to_string()).collect()
    }

    #[test]
    fn a_template_is_as_many_pods_as_are_asked_for() {
        let content = content(json!({ "replicasPerNode": 2, "template": {
            "metadata": { "labels": { "app": "web" }, "annotations": { "note": "n" } },
            "spec": { "containers": [{ "name": "c", "image": "busybox" }] },
        } }));
        let parsed = render(Path::new("nodeworkloads/shop/web"), "shop", "web", &content);
        assert!(parsed.is_good(), "{:?}", parsed.problems);
        assert_eq!(names(&parsed), ["Pod shop/web-0", "Pod shop/web-1"]);
        let Some(Object::Pod(pod)) = parsed.objects().next() else { panic!("a pod") };
        let labels = pod.metadata.labels.as_ref().expect("labels");
        assert_eq!(labels.get("app").map(String::as_str), Some("web"));
        assert_eq!(labels.get(WORKLOAD_LABEL).map(String::as_str), Some("web"));
    }

    #[test]
    fn a_template_that_is_no_pod_is_refused_as_a_manifest_is() {
        let content = content(json!({ "replicasPerNode": 1, "template": { "spec": { "containers": 7 } } }));
        let parsed = render(Path::new("f"), "default", "web", &content);
        assert_eq!(names(&parsed), Vec::<String>::new());
        assert!(
            parsed.problems.iter().any(|problem| problem.field.contains("spec.containers")),
            "{:?}",
            parsed.problems
        );
    }

    #[test]
    fn manifests_are_in_the_workloads_namespace_or_refused() {
        let map = |name: &str, namespace: Option<&str>| {
            let mut map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
            if let Some(namespace) = namespace {
                map["metadata"]["namespace"] = namespace.into();
            }
            map
        };
        let content = content(json!({ "replicasPerNode": 1, "manifests": [
            map("none", None), map("own", Some("shop")), map("other", Some("kube-system")),
        ] }));
        let parsed = render(Path::new("f"), "shop", "web", &content);
        assert_eq!(names(&parsed), ["ConfigMap shop/none", "ConfigMap shop/own"]);
        let [problem] = parsed.problems.as_slice() else { panic!("{:?}", parsed.problems) };
        assert_eq!(problem.field, "manifests[2].metadata.namespace");
        assert!(!parsed.is_good());
    }
}
