//! Probes of real containers: when they are tried, how their answers are counted, what follows.

use std::path::Path;

use portreeve_e2e::{Agent, BUSYBOX, World, condition, skipped_without_root, wait_until};
use serde_json::{Value, json};

/// A container that has the world's notebook at `/out`.
fn container(name: &str, script: &str, probes: &Value) -> Value {
    let mut container = json!({
        "name": name, "image": BUSYBOX, "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
    });
    for (key, value) in probes.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn drop_pod(agent: &Agent<'_>, out: &Path, containers: &[Value]) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "out", "hostPath": { "path": out } }],
            "containers": containers,
        },
    });
    agent.drop_manifest("p.yaml", &pod.to_string());
}

/// An exec probe that is tried each second and may take its time, with further settings.
fn exec(script: &str, more: &Value) -> Value {
    let mut probe = json!({ "exec": { "command": ["sh", "-c", script] }, "periodSeconds": 1, "timeoutSeconds": 60 });
    for (key, value) in more.as_object().into_iter().flatten() {
        probe[key] = value.clone();
    }
    probe
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn wait_lines(path: &Path, least: usize) {
    wait_until(&format!("{} has {least} lines", path.display()), 60, || {
        let found = lines(path);
        if found.len() >= least { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

fn touch(path: &Path) {
    std::fs::write(path, "").unwrap();
}

fn status(agent: &Agent<'_>, name: &str) -> Value {
    of(&agent.pod("p").expect("the pod is there"), name)
}

fn of(pod: &Value, name: &str) -> Value {
    let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|status| status["name"] == name).unwrap_or_default()
}

fn warnings(agent: &Agent<'_>) -> Vec<String> {
    let events = agent.client(&["get", "events"]).ok();
    events.lines().filter(|line| line.contains("Unhealthy") || line.contains("Killing")).map(str::to_owned).collect()
}

#[test]
fn a_startup_probe_holds_the_others_back_and_restarts_what_never_comes_up() {
    if skipped_without_root("probes") {
        return;
    }
    let world = World::new("startup");
    let out = world.notebook();
    let agent = Agent::with_busybox(&world);
    let slow = container(
        "slow",
        "exec sleep 100000",
        &json!({
            "startupProbe":
                exec("echo startup >>/out/tries; test -e /out/started", &json!({ "failureThreshold": 1000 })),
            // Were they tried before, liveness would end the container.
            "livenessProbe":
                exec("echo liveness >>/out/tries; test -e /out/started", &json!({ "failureThreshold": 1 })),
            "readinessProbe": exec("echo readiness >>/out/tries", &json!({})),
        }),
    );
    // Comes up the second time only.
    let second = container(
        "second",
        "echo run >>/out/runs; exec sleep 100000",
        &json!({ "startupProbe":
            exec("echo try >>/out/second; test $(grep -c run /out/runs) = 2", &json!({ "failureThreshold": 3 })) }),
    );
    drop_pod(&agent, &out, &[slow, second]);
    wait_lines(&out.join("tries"), 3);
    let before = status(&agent, "slow");
    assert_eq!((&before["started"], &before["ready"]), (&json!(false), &json!(false)), "{before}");
    assert!(lines(&out.join("tries")).iter().all(|line| line == "startup"));
    touch(&out.join("started"));
    let ready = agent.wait_ready("p");
    assert_eq!((&of(&ready, "slow")["started"], &of(&ready, "slow")["restartCount"]), (&json!(true), &json!(0)));
    wait_until("the other probes are tried", 30, || {
        let tries = lines(&out.join("tries"));
        let has = |what: &str| tries.iter().any(|line| line == what);
        if has("liveness") && has("readiness") { Ok(()) } else { Err(format!("{tries:?}")) }
    });
    let tries = lines(&out.join("tries"));
    let first_other = tries.iter().position(|line| line != "startup").unwrap();
    assert!(!tries[first_other..].contains(&"startup".to_owned()), "startup is tried after its success: {tries:?}");
    // Three failures of the first run; the second succeeds as soon as it has said that it runs.
    assert_eq!(of(&ready, "second")["restartCount"], 1);
    let tried = lines(&out.join("second")).len();
    assert!((4..=6).contains(&tried), "{tried} tries");
    let warnings = warnings(&agent);
    assert!(warnings.iter().any(|line| line.contains("second failed startup probe")), "{warnings:?}");
}

#[test]
fn delays_thresholds_and_timeouts_are_counted() {
    if skipped_without_root("probes") {
        return;
    }
    let world = World::new("counts");
    let out = world.notebook();
    let agent = Agent::with_busybox(&world);
    let delayed = container(
        "delayed",
        "cat /proc/uptime >/out/began; exec sleep 100000",
        &json!({ "readinessProbe": exec("cat /proc/uptime >>/out/delayed", &json!({ "initialDelaySeconds": 6 })) }),
    );
    // The third try of each sort does not end before the test has looked.
    let counting = "sort=good; test -e /out/bad && sort=bad; echo $sort >>/out/counted; \
                    if [ $(grep -c $sort /out/counted) = 3 ]; then \
                    until test -e /out/go-$sort; do sleep 0.1; done; fi; \
                    test $sort = good";
    let counted = container(
        "counted",
        "exec sleep 100000",
        &json!({ "readinessProbe":
            exec(counting, &json!({ "successThreshold": 3, "failureThreshold": 3, "timeoutSeconds": 3600 })) }),
    );
    let late = container(
        "late",
        "exec sleep 100000",
        &json!({ "readinessProbe":
            exec("test -e /out/quick || exec sleep 54321", &json!({ "timeoutSeconds": 1, "failureThreshold": 1 })) }),
    );
    drop_pod(&agent, &out, &[delayed, counted, late]);
    wait_lines(&out.join("counted"), 3);
    assert_eq!(status(&agent, "counted")["ready"], false, "ready after two successes of three");
    touch(&out.join("go-good"));
    agent.wait_pod("p", "counts the third success", |pod| of(pod, "counted")["ready"] == true);

    let told = wait_until("the timeout is told", 30, || {
        let warnings = warnings(&agent);
        warnings.iter().find(|line| line.contains("within 1 s")).cloned().ok_or_else(|| format!("{warnings:?}"))
    });
    assert!(told.contains("Readiness"), "{told}");
    assert_eq!(status(&agent, "late")["ready"], false);
    touch(&out.join("quick"));
    let ready = agent.wait_ready("p");
    assert_eq!(of(&ready, "late")["restartCount"], 0);
    wait_until("no try that took too long lives on", 30, || {
        let commands = agent.census().contained.into_iter().map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")));
        let left = commands.flatten().filter(|line| line.ends_with(b"54321\0")).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} do")) }
    });

    let uptime = |file: &str| -> f64 { lines(&out.join(file))[0].split(' ').next().unwrap().parse().unwrap() };
    let waited = uptime("delayed") - uptime("began");
    // The program's own start is not counted in, hence less than the delay.
    assert!(waited >= 4.0, "tried after {waited} s, and the delay is 6");

    touch(&out.join("bad"));
    let tries = || lines(&out.join("counted")).iter().filter(|line| *line == "bad").count();
    wait_until("three tries have failed or will", 30, || if tries() >= 3 { Ok(()) } else { Err(tries().to_string()) });
    assert_eq!(status(&agent, "counted")["ready"], true, "unready after two failures of three");
    touch(&out.join("go-bad"));
    agent.wait_pod("p", "counts the third failure", |pod| {
        of(pod, "counted")["ready"] == false && condition(pod, "Ready") == Some("False")
    });
    assert_eq!(status(&agent, "counted")["restartCount"], 0);
}

#[test]
fn tcp_and_http_probes_succeed_and_then_fail() {
    if skipped_without_root("probes") {
        return;
    }
    let world = World::new("ports");
    let out = world.notebook();
    std::fs::write(out.join("page"), "up\n").unwrap();
    let agent = Agent::with_busybox(&world);
    let tcp = |failures: u32| {
        let socket = json!({ "port": 8080 });
        json!({ "tcpSocket": socket, "periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": failures })
    };
    let socket = container(
        "socket",
        "rm -f /out/close; httpd -f -p 8080 -h /www & \
         until test -e /out/close; do sleep 0.1; done; kill $!; exec sleep 100000",
        &json!({ "startupProbe": tcp(60), "livenessProbe": tcp(1) }),
    );
    let page = container(
        "page",
        "exec httpd -f -p 8081 -h /out",
        &json!({
            "ports": [{ "name": "web", "containerPort": 8081 }],
            "readinessProbe":
                { "httpGet": { "port": "web", "path": "/page" }, "periodSeconds": 1, "failureThreshold": 1 },
        }),
    );
    drop_pod(&agent, &out, &[socket, page]);
    let ready = agent.wait_ready("p");
    assert_eq!(of(&ready, "socket")["restartCount"], 0);

    std::fs::remove_file(out.join("page")).unwrap();
    agent.wait_pod("p", "has no page", |pod| of(pod, "page")["ready"] == false);
    touch(&out.join("close"));
    agent.wait_pod("p", "was restarted", |pod| of(pod, "socket")["restartCount"] == 1);
    std::fs::write(out.join("page"), "up again\n").unwrap();
    let again = agent.wait_ready("p");
    assert_eq!(of(&again, "socket")["restartCount"], 1);
    assert_eq!(of(&again, "page")["restartCount"], 0);
    let warnings = warnings(&agent);
    for words in [["Readiness", "404"], ["Liveness", ":8080"], ["Killing", "socket failed liveness probe"]] {
        assert!(
            warnings.iter().any(|line| words.iter().all(|word| line.contains(word))),
            "no event has {words:?}: {warnings:#?}"
        );
    }
}
