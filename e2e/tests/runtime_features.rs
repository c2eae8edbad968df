//! What `features` tells of itself is JSON of the specification, and true.

use portreeve_e2e::Runtime;
use serde_json::{Value, json};

fn features(runtime: &Runtime) -> Value {
    serde_json::from_str(&runtime.call(&["features"]).ok()).expect("JSON")
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.iter().any(has_null),
        Value::Object(fields) => fields.values().any(has_null),
        _ => false,
    }
}

#[test]
fn features_are_those_of_the_specification() {
    let Some(runtime) = Runtime::for_test("features_are_those_of_the_specification") else { return };
    let features = features(&runtime);
    assert_eq!((&features["ociVersionMin"], &features["ociVersionMax"]), (&json!("1.0.0"), &json!("1.3.0")));
    assert!(!has_null(&features), "{features}");
    let count = |pointer: &str| features.pointer(pointer).and_then(Value::as_array).map(Vec::len);
    for (pointer, expected) in [
        ("/hooks", 6),
        ("/linux/namespaces", 8),
        ("/linux/capabilities", 41),
        ("/linux/seccomp/actions", 9),
        ("/linux/seccomp/operators", 7),
        // Not x32, whose calls fail whatever a profile says of them.
        ("/linux/seccomp/archs", 3),
        ("/linux/seccomp/knownFlags", 4),
        ("/linux/memoryPolicy/modes", 7),
        ("/linux/memoryPolicy/flags", 3),
        ("/potentiallyUnsafeConfigAnnotations", 1),
    ] {
        assert_eq!(count(pointer), Some(expected), "{pointer}");
    }
    for (pointer, expected) in [
        ("cgroup/v1", true),
        ("cgroup/v2", true),
        ("cgroup/rdma", true),
        ("cgroup/systemd", true),
        ("cgroup/systemdUser", false),
        ("apparmor/enabled", true),
        ("selinux/enabled", true),
        ("intelRdt/enabled", true),
        ("mountExtensions/idmap/enabled", true),
        ("netDevices/enabled", true),
        ("seccomp/enabled", true),
    ] {
        assert_eq!(features.pointer(&format!("/linux/{pointer}")), Some(&json!(expected)), "{pointer}");
    }
    assert!(count("/mountOptions").is_some_and(|options| options > 50), "{features}");
    assert!(features["annotations"]["dev.portreeve.version"].is_string());
}
