//! Walking a manifest along a row's path.

use crate::path::Path;
use crate::yaml::{Node, Value};

/// Calls `visit` for every node that a pattern such as `spec.containers[].env[].value` names.
///
/// `[]` stands for every item of a list, `{}` for every key of a map; `spec.containers` means
/// the init containers too.
pub(super) fn each(root: &Node, pattern: &str, visit: &mut dyn FnMut(&Node, &Path<'_>)) {
    step(root, pattern, &Path::ROOT, visit);
    // An init container's restart policy is something else: it makes a sidecar.
    if let Some(rest) = pattern.strip_prefix("spec.containers[]").filter(|rest| *rest != ".restartPolicy")
        && let Some(spec) = root.get("spec")
        && let Some(list) = spec.get("initContainers")
        && let Value::List(items) = &list.value
    {
        let path = Path::ROOT;
        let path = path.field("spec");
        let path = path.field("initContainers");
        for (index, item) in items.iter().enumerate() {
            step(item, rest.trim_start_matches('.'), &path.index(index), visit);
        }
    }
}

fn step(node: &Node, pattern: &str, path: &Path<'_>, visit: &mut dyn FnMut(&Node, &Path<'_>)) {
    if pattern.is_empty() {
        visit(node, path);
        return;
    }
    if let Some(rest) = pattern.strip_prefix("[]") {
        if let Value::List(items) = &node.value {
            for (index, item) in items.iter().enumerate() {
                step(item, rest.trim_start_matches('.'), &path.index(index), visit);
            }
        }
        return;
    }
    if let Some(rest) = pattern.strip_prefix("{}") {
        if let Value::Map(entries) = &node.value {
            for entry in entries {
                step(&entry.node, rest.trim_start_matches('.'), &path.key(&entry.key), visit);
            }
        }
        return;
    }
    let end = pattern.find(['.', '[', '{']).unwrap_or(pattern.len());
    let (field, rest) = pattern.split_at(end);
    if let Some(next) = node.get(field) {
        step(next, rest.trim_start_matches('.'), &path.field(field), visit);
    }
}
