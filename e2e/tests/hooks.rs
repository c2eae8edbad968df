//! Hooks and the end of a container: what runs when, told by the programs themselves.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use portreeve_e2e::{Agent, BUSYBOX, World, patience, skipped_without_root, wait_until};
use serde_json::{Value, json};

/// Seconds that a pod gets which is expected not to need them.
const GRACE: u32 = 300;

/// A container that has `out` at `/out`.
fn container(name: &str, script: &str, more: &Value) -> Value {
    let mut container = json!({
        "name": name, "image": BUSYBOX, "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "out", "mountPath": "/out" }],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn pod(name: &str, grace: u32, out: &Path, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": grace,
            "volumes": [{ "name": "out", "hostPath": { "path": out } }],
            "containers": containers,
        },
    })
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The kernel's clock in seconds, the same for every process of the machine.
fn uptime(text: &str) -> f64 {
    text.split_whitespace().next().unwrap_or_default().parse().unwrap_or_else(|_| panic!("no time in {text:?}"))
}

fn now() -> f64 {
    uptime(&std::fs::read_to_string("/proc/uptime").unwrap())
}

fn hook(command: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", command] } })
}

/// A program that does `on_term` and ends when it is told to; it says in `/out/up` that it listens.
fn obedient(name: &str, on_term: &str) -> String {
    format!("trap '{on_term}; exit 0' TERM; echo {name} >>/out/up; while :; do sleep 0.1; done")
}

#[test]
fn hooks_run_before_their_signal_and_a_program_that_ends_ends_its_pod() {
    if skipped_without_root("hooks") {
        return;
    }
    let world = World::new("hooks");
    let out = world.notebook();
    // What an httpGet hook asks for is written down by the server that is asked.
    let served = out.join("cgi-bin");
    std::fs::create_dir(&served).unwrap();
    let script = "#!/bin/sh\necho \"$QUERY_STRING\" >>/out/http\n\
                  if [ \"$QUERY_STRING\" = pre-stop ]; then sleep 1; echo asked >>/out/http; fi\n\
                  printf 'Content-Type: text/plain\\r\\n\\r\\nnoted\\n'\n";
    std::fs::write(served.join("note"), script).unwrap();
    std::fs::set_permissions(served.join("note"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(out.join("index.html"), "up\n").unwrap();

    let agent = Agent::with_busybox(&world);
    let ask = |what: &str| json!({ "httpGet": { "port": 8080, "path": format!("/cgi-bin/note?{what}") } });
    let mut manifest = pod(
        "a",
        GRACE,
        &out,
        &[
            container(
                "exec",
                &obedient("exec", "echo term >>/out/exec"),
                &json!({ "lifecycle": {
                    "postStart": hook("echo post-start >>/out/exec"),
                    "preStop": hook("echo pre-stop >>/out/exec; sleep 1; echo done >>/out/exec"),
                } }),
            ),
            container(
                "http",
                &obedient("http", "echo term >>/out/http"),
                &json!({ "lifecycle": { "postStart": ask("post-start"), "preStop": ask("pre-stop") } }),
            ),
            container(
                "sleep",
                &obedient("sleep", "cat /proc/uptime >>/out/sleep"),
                &json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 2 } } } }),
            ),
            container(
                "plain",
                &obedient("plain", "cat /proc/uptime >>/out/plain; sleep 3; echo saved >>/out/plain"),
                &json!({}),
            ),
            container(
                "other",
                "trap 'echo another >>/out/other; exit 0' USR1; echo other >>/out/up; while :; do sleep 0.1; done",
                &json!({ "lifecycle": { "stopSignal": "SIGUSR1" } }),
            ),
        ],
    );
    manifest["spec"]["os"] = json!({ "name": "linux" });
    // A sidecar is up before the hooks and goes after the containers.
    manifest["spec"]["initContainers"] = json!([container(
        "server",
        "httpd -f -p 8080 -h /out & trap 'kill $!; exit 0' TERM; wait",
        &json!({
            "restartPolicy": "Always",
            "startupProbe": { "httpGet": { "port": 8080, "path": "/" }, "periodSeconds": 1, "failureThreshold": 60 },
        }),
    )]);
    agent.drop_manifest("a.yaml", &manifest.to_string());
    agent.wait_ready("a");
    wait_until("every program listens for its signal", 30, || {
        let up = lines(&out.join("up"));
        if up.len() == 5 { Ok(()) } else { Err(format!("{up:?}")) }
    });
    assert_eq!(lines(&out.join("exec")), ["post-start"]);
    assert_eq!(lines(&out.join("http")), ["post-start"]);

    let removed = now();
    agent.remove_manifest("a.yaml");
    agent.wait_gone("a");
    let gone = now() - removed;
    assert!(gone < f64::from(GRACE) / 2.0, "every program ended when it was told to, and the pod went after {gone} s");
    assert_eq!(lines(&out.join("other")), ["another"], "the signal that the manifest names");
    assert_eq!(lines(&out.join("exec")), ["post-start", "pre-stop", "done", "term"]);
    assert_eq!(lines(&out.join("http")), ["post-start", "pre-stop", "asked", "term"]);
    // One signal for each, however many of its neighbours have ended meanwhile: to many programs a second one means
    // that they are to drop everything.
    let (slept, plain) = (lines(&out.join("sleep")), lines(&out.join("plain")));
    assert_eq!(slept.len(), 1, "the stop signal came more than once: {slept:?}");
    assert_eq!(plain.len(), 2, "the stop signal came more than once: {plain:?}");
    assert_eq!(plain[1], "saved", "SIGTERM left no time to save");
    let (slept, told) = (uptime(&slept[0]) - removed, uptime(&plain[0]) - removed);
    assert!(slept >= 1.98, "SIGTERM came {slept} s after the removal, and the hook sleeps for 2 s");
    assert!(told < slept, "without a hook SIGTERM came after {told} s, with one that sleeps after {slept} s");
}

#[test]
fn a_failing_post_start_ends_its_container_gracefully_and_it_starts_again() {
    if skipped_without_root("hooks") {
        return;
    }
    let world = World::new("poststart");
    let out = world.notebook();
    let agent = Agent::with_busybox(&world);
    let program = "trap 'echo term >>/out/order; exit 7' TERM; echo start >>/out/order; while :; do sleep 0.1; done";
    let fails_once = "until test -s /out/order; do sleep 0.1; done; test -e /out/failed && exit 0; \
                      touch /out/failed; echo no disk today; exit 3";
    let bystander = container("other", &obedient("other", "true"), &json!({}));
    let hooked = container("hooked", program, &json!({ "lifecycle": { "postStart": hook(fails_once) } }));
    agent.drop_manifest("a.yaml", &pod("a", GRACE, &out, &[hooked, bystander]).to_string());
    let ready = agent.wait_ready("a");
    assert_eq!(lines(&out.join("order")), ["start", "term", "start"]);
    let statuses = ready["status"]["containerStatuses"].as_array().unwrap();
    let of = |name: &str| statuses.iter().find(|status| status["name"] == name).unwrap();
    assert_eq!(of("hooked")["restartCount"], 1);
    assert_eq!(of("hooked")["lastState"]["terminated"]["exitCode"], 7, "{ready}");
    assert_eq!(of("other")["restartCount"], 0);
    let events = agent.client(&["get", "events"]).ok();
    let failed = events.lines().find(|line| line.contains("FailedPostStartHook")).unwrap_or_else(|| panic!("{events}"));
    for word in ["Warning", "code 3", "no disk today"] {
        assert!(failed.contains(word), "{word:?} is missing: {failed}");
    }
    agent.remove_manifest("a.yaml");
    agent.wait_gone("a");
}

#[test]
fn pre_stop_and_the_signal_share_one_grace_period() {
    if skipped_without_root("hooks") {
        return;
    }
    let world = World::new("grace");
    let out = world.notebook();
    let agent = Agent::with_busybox(&world);
    // `endless` never gets to its signal by itself; `deaf` lives on after it, and says for how long.
    let endless = container(
        "endless",
        &obedient("endless", "cat /proc/uptime >>/out/endless"),
        &json!({ "lifecycle": { "preStop": hook("exec sleep 36000") } }),
    );
    let deaf = container(
        "deaf",
        "trap 'cat /proc/uptime >>/out/told' TERM; echo deaf >>/out/up; \
         while :; do cat /proc/uptime >/out/.deaf; mv /out/.deaf /out/deaf; sleep 0.1; done",
        &json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } } }),
    );
    // A hook that fails is told of, and its container gets its signal.
    let failing = container(
        "failing",
        &obedient("failing", "cat /proc/uptime >>/out/failing"),
        &json!({ "lifecycle": { "preStop": hook("echo no disk today; exit 4") } }),
    );
    agent.drop_manifest("a.yaml", &pod("a", 5, &out, &[endless, deaf, failing]).to_string());
    agent.wait_ready("a");
    wait_until("all programs are up", 30, || {
        let up = lines(&out.join("up"));
        if up.len() == 3 { Ok(()) } else { Err(format!("{up:?}")) }
    });
    let removed = now();
    agent.remove_manifest("a.yaml");
    agent.wait_gone("a");
    let at = |file: &str| uptime(&lines(&out.join(file)).join(" ")) - removed;
    // A tick of the clock is a hundredth; what a slow machine adds is its own affair.
    let late = patience(2).as_secs_f64();
    let (cut, told, deaf) = (at("endless"), at("told"), at("deaf"));
    assert!((4.98..5.0 + late).contains(&cut), "preStop was cut off after {cut} s of 5");
    assert!((2.98..3.0 + late).contains(&told), "SIGTERM came after {told} s, and preStop takes 3");
    assert!((4.0..5.0 + late).contains(&deaf), "SIGKILL came {deaf} s after the removal, and the grace period is 5");
    assert!(at("failing") < cut, "SIGTERM followed its hook at once");
    let events = agent.client(&["get", "events"]).ok();
    for why in ["within the grace period", "no disk today"] {
        assert!(
            events.lines().any(|line| line.contains("FailedPreStopHook") && line.contains(why)),
            "no event tells of the hook that failed with {why:?}:\n{events}"
        );
    }
}
