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
        ("/potentiallyUnsafeConfigAnnotations", 0),
    ] {
        assert_eq!(count(pointer), Some(expected), "{pointer}");
    }
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    assert!(features["annotations"]["dev.portreeve.version"].is_string());
}

#[test]
fn what_is_not_among_the_features_is_refused_in_plain_words() {
    let Some(runtime) = Runtime::for_test("what_is_not_among_the_features_is_refused_in_plain_words") else { return };
    let features = features(&runtime);
    let refused = |change: Value, word: &str| {
        let answer = runtime.run(&runtime.bundle(&["report"]).with(change), &[]);
        assert_ne!(answer.code, 0, "{word}");
        assert!(answer.stderr.contains(word) && answer.stderr.contains("not supported"), "{}", answer.stderr);
        assert_eq!(runtime.leftovers(), Vec::<String>::new());
    };
    if features["linux"]["intelRdt"]["enabled"] == false {
        refused(json!({ "linux": { "intelRdt": { "closID": "some" } } }), "intelRdt");
    }
    if features["linux"]["cgroup"]["systemd"] == false {
        let bundle = runtime.bundle(&["report"]);
        // Writes its configuration.
        let _ = runtime.create(&bundle, &[]);
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        let path = bundle.path().to_str().unwrap();
        let answer = runtime.call(&["--systemd-cgroup", "create", "--bundle", path, bundle.id()]);
        assert_ne!(answer.code, 0);
        assert!(answer.stderr.contains("--systemd-cgroup is not supported"), "{}", answer.stderr);
    }
    let bundle = runtime.bundle(&["wait"]);
    runtime.start_waiting(&bundle);
    for verb in ["checkpoint", "restore"] {
        let answer = runtime.call(&[verb, "--image-path", "/tmp", bundle.id()]);
        assert_eq!(answer.code, 1, "{verb}");
        assert!(answer.stderr.contains("CRIU") && answer.stderr.contains(verb), "{}", answer.stderr);
        assert_eq!(runtime.status(&bundle).as_deref(), Some("running"), "and nothing has changed");
    }
}
