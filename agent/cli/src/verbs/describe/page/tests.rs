use expect_test::expect;
use serde_json::json;

use super::*;

#[test]
fn a_page_tells_what_runs_and_what_happened() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "web", "namespace": "default", "uid": "u-1",
            "labels": { "app": "web", "tier": "front" },
        },
        "spec": {
            "nodeName": "edge", "restartPolicy": "Always",
            "containers": [{
                "name": "nginx", "image": "nginx:1.27", "command": ["nginx", "-g", "daemon off;"],
                "ports": [{ "containerPort": 80, "hostPort": 8080, "protocol": "TCP" }],
                "resources": { "limits": { "memory": "64Mi" } },
                "readinessProbe": { "httpGet": { "path": "/", "port": 80 }, "periodSeconds": 5 },
                "env": [
                    { "name": "MODE", "value": "fast" },
                    { "name": "KEY", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "one" } } },
                ],
                "volumeMounts": [{ "name": "site", "mountPath": "/srv", "readOnly": true }],
            }],
            "volumes": [{ "name": "site", "configMap": { "name": "site" } }],
        },
        "status": {
            "phase": "Running", "podIP": "10.88.0.7", "podIPs": [{ "ip": "10.88.0.7" }], "hostIP": "192.0.2.1",
            "qosClass": "Burstable", "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{
                "name": "nginx", "ready": true, "restartCount": 1, "image": "nginx:1.27", "imageID": "sha256:aa",
                "containerID": "portreeve://cc",
                "state": { "running": { "startedAt": "2026-01-01T00:00:10Z" } },
                "lastState": { "terminated": { "exitCode": 137, "reason": "OOMKilled",
                    "startedAt": "2026-01-01T00:00:01Z", "finishedAt": "2026-01-01T00:00:09Z" } },
            }],
        },
    }))
    .unwrap();
    let events: Vec<Event> = serde_json::from_value(json!([{
        "metadata": { "name": "web.1" }, "involvedObject": {},
        "type": "Warning", "reason": "BackOff", "message": "Back-off restarting", "count": 3,
        "firstTimestamp": "2026-01-01T00:00:09Z", "lastTimestamp": "2026-01-01T00:00:30Z",
        "source": { "component": "portreeve" },
    }]))
    .unwrap();
    let now = "2026-01-01T00:01:00Z".parse().unwrap();
    expect![[r#"
        Name:             web
        Namespace:        default
        UID:              u-1
        Node:             edge/192.0.2.1
        Start Time:       Thu, 01 Jan 2026 00:00:00 +0000
        Labels:           app=web
                          tier=front
        Annotations:      <none>
        Status:           Running
        IP:               10.88.0.7
        IPs:
          IP:  10.88.0.7
        Containers:
          nginx:
            Container ID:   portreeve://cc
            Image:          nginx:1.27
            Image ID:       sha256:aa
            Port:           80/TCP
            Host Port:      8080/TCP
            Command:
              nginx
              -g
              daemon off;
            State:          Running
              Started:      Thu, 01 Jan 2026 00:00:10 +0000
            Last State:     Terminated
              Reason:       OOMKilled
              Exit Code:    137
              Started:      Thu, 01 Jan 2026 00:00:01 +0000
              Finished:     Thu, 01 Jan 2026 00:00:09 +0000
            Ready:          True
            Restart Count:  1
            Limits:
              memory:   64Mi
            Readiness:      http-get http://:80/ delay=0s timeout=1s period=5s #success=1 #failure=3
            Environment:
              MODE:  fast
              KEY:  <set to the key 'one' in secret 'keys'>
            Mounts:
              /srv from site (ro)
        Conditions:
          Type   Status  Reason
          Ready  True
        Volumes:
          site:
            Type:    ConfigMap
            Name:    site
        QoS Class:        Burstable
        Restart Policy:   Always
        Events:
          Type     Reason   Age                From       Message
          ----     ------   ----               ----       -------
          Warning  BackOff  30s (x3 over 51s)  portreeve  Back-off restarting
    "#]]
    .assert_eq(&page(&pod, &events, now));
}

#[test]
fn nothing_in_a_page_steers_the_terminal() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "web" },
        "status": { "message": "\u{1b}[2Jgone\nforged: line" },
    }))
    .unwrap();
    let page = page(&pod, &[], Timestamp::UNIX_EPOCH);
    assert!(!page.contains('\u{1b}'));
    assert!(!page.contains("\nforged"));
}
