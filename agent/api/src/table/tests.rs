use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

/// Prints the cells of an object given as JSON, one line.
fn check<T: Row + serde::de::DeserializeOwned>(object: Value, expect: Expect) {
    let object: T = serde_json::from_value(object).unwrap();
    let cells = object.cells(now());
    assert_eq!(cells.len(), T::COLUMNS.len());
    let line: Vec<String> =
        cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect();
    expect.assert_eq(&line.join(" | "));
}

fn pod(status: Value) -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default", "creationTimestamp": "2026-01-01T00:54:48Z" },
        "spec": {
            "nodeName": "edge",
            "initContainers": [{ "name": "prepare" }, { "name": "proxy", "restartPolicy": "Always" }],
            "containers": [{ "name": "a" }, { "name": "b" }],
        },
        "status": status,
    })
}

#[test]
fn a_pod_that_waits_for_its_init_containers_says_which() {
    check::<Pod>(
        pod(json!({
            "phase": "Pending",
            "initContainerStatuses": [
                { "name": "prepare", "ready": false, "restartCount": 2, "image": "", "imageID": "",
                  "state": { "running": {} },
                  "lastState": { "terminated": { "exitCode": 1, "finishedAt": "2026-01-01T00:59:00Z" } } },
                { "name": "proxy", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                  "state": { "waiting": { "reason": "PodInitializing" } } },
            ],
        })),
        expect!["web | 0/3 | Init:0/2 | 2 (60s ago) | 5m12s | <none> | edge | <none> | <none>"],
    );
}

#[test]
fn a_running_pod_counts_its_sidecars() {
    check::<Pod>(
        pod(json!({
            "phase": "Running",
            "podIP": "10.88.0.7",
            "conditions": [{ "type": "Initialized", "status": "True" }],
            "initContainerStatuses": [
                { "name": "prepare", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                  "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } },
                { "name": "proxy", "ready": true, "started": true, "restartCount": 1, "image": "", "imageID": "",
                  "state": { "running": {} } },
            ],
            "containerStatuses": [
                { "name": "a", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": { "running": {} } },
                { "name": "b", "ready": true, "restartCount": 2, "image": "", "imageID": "", "state": { "running": {} } },
            ],
        })),
        expect!["web | 3/3 | Running | 3 | 5m12s | 10.88.0.7 | edge | <none> | <none>"],
    );
}

#[test]
fn a_crash_loop_shows_its_reason_and_when_it_last_happened() {
    check::<Pod>(
        pod(json!({
            "phase": "Running",
            "conditions": [{ "type": "Initialized", "status": "True" }],
            "containerStatuses": [
                { "name": "a", "ready": false, "restartCount": 5, "image": "", "imageID": "",
                  "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                  "lastState": { "terminated": { "exitCode": 1, "finishedAt": "2026-01-01T00:58:00Z" } } },
                { "name": "b", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": { "running": {} } },
            ],
        })),
        expect!["web | 1/3 | CrashLoopBackOff | 5 (2m ago) | 5m12s | <none> | edge | <none> | <none>"],
    );
}

#[test]
fn a_failed_container_shows_its_exit_code_or_signal() {
    let ended = |ended: Value| {
        pod(json!({
            "phase": "Failed",
            "conditions": [{ "type": "Initialized", "status": "True" }],
            "containerStatuses": [
                { "name": "a", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": { "terminated": ended } },
            ],
        }))
    };
    check::<Pod>(
        ended(json!({ "exitCode": 3 })),
        expect!["web | 0/3 | ExitCode:3 | 0 | 5m12s | <none> | edge | <none> | <none>"],
    );
    check::<Pod>(
        ended(json!({ "exitCode": 137, "signal": 9 })),
        expect!["web | 0/3 | Signal:9 | 0 | 5m12s | <none> | edge | <none> | <none>"],
    );
    check::<Pod>(
        ended(json!({ "exitCode": 137, "reason": "OOMKilled" })),
        expect!["web | 0/3 | OOMKilled | 0 | 5m12s | <none> | edge | <none> | <none>"],
    );
}

#[test]
fn a_pod_that_is_going_says_so() {
    let mut going = pod(json!({ "phase": "Running" }));
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
    check::<Pod>(going, expect!["web | 0/3 | Terminating | 0 | 5m12s | <none> | edge | <none> | <none>"]);
}

#[test]
fn an_event_names_its_object_and_when_it_was_last_seen() {
    check::<Event>(
        json!({
            "metadata": { "name": "web.1" },
            "involvedObject": { "kind": "Pod", "name": "web", "fieldPath": "spec.containers{a}" },
            "type": "Warning", "reason": "BackOff", "message": "Back-off restarting\n", "count": 4,
            "firstTimestamp": "2026-01-01T00:50:00Z", "lastTimestamp": "2026-01-01T00:59:30Z",
            "source": { "component": "portreeve", "host": "edge" },
        }),
        expect![
            "30s | Warning | BackOff | pod/web | spec.containers{a} | portreeve, edge | Back-off restarting | 10m | 4 | web.1"
        ],
    );
}

#[test]
fn an_image_shows_a_short_id_and_a_readable_size() {
    check::<Image>(
        json!({
            "apiVersion": "", "kind": "", "metadata": { "name": "nginx:1.27" },
            "status": { "id": "sha256:0123456789abcdef", "references": [], "repoDigests": [], "sizeBytes": 192_345_678, "pinned": true },
        }),
        expect!["nginx:1.27 | 0123456789ab | 192MB | <unknown> | <none> | true"],
    );
}

#[test]
fn a_client_gets_the_first_form_it_accepts_that_is_known() {
    let form = |accept: &str| {
        let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
        Form::of(&headers, &Params::default()).map_err(|failure| failure.code().as_u16())
    };
    let table = Ok(Form::Table(Include::Metadata));
    assert_eq!(form("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), table);
    assert_eq!(form("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"), Ok(Form::Objects));
    assert_eq!(form("application/vnd.kubernetes.protobuf, application/json"), Ok(Form::Objects));
    assert_eq!(form("application/json;as=Other;v=v1;g=meta.k8s.io,*/*"), Ok(Form::Objects));
    assert_eq!(form("text/html"), Err(406));
}
