//! What the API fills in where an object leaves it out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Kind;

/// Fills in what a kind's objects have by default.
pub(super) fn fill_in(kind: &Kind, object: &mut Value) {
    match kind.kind {
        "Namespace" => {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = object["metadata"]["name"].clone();
            default(&mut object["status"], "phase", json!("Active"));
        }
        "Secret" => {
            // Plain text is for writing only.
            if let Value::Object(plain) = object["stringData"].take() {
                for (key, value) in plain {
                    object["data"][key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
                }
            }
            object.as_object_mut().map(|object| object.remove("stringData"));
            default(object, "type", json!("Opaque"));
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => {
            default(&mut object["spec"], "failurePolicy", json!("Fail"));
            match_everything(&mut object["spec"]["matchConstraints"]);
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding"
            if object["spec"]["matchResources"].is_object() =>
        {
            match_everything(&mut object["spec"]["matchResources"]);
        }
        _ => {}
    }
}

/// What a policy matches by default: all namespaces and objects, and rules of any scope.
fn match_everything(constraints: &mut Value) {
    default(constraints, "matchPolicy", json!("Equivalent"));
    default(constraints, "namespaceSelector", json!({}));
    default(constraints, "objectSelector", json!({}));
    for rule in constraints["resourceRules"].as_array_mut().into_iter().flatten() {
        default(rule, "scope", json!("*"));
    }
}

fn default(object: &mut Value, key: &str, value: Value) {
    if object[key].is_null() {
        object[key] = value;
    }
}
