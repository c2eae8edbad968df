//! `podman --runtime`: what podman does with containers after it has made them ends as it does with crun and runc. Where the
//! three differ, `runtime/oci/README.md` says why.

use portreeve_e2e::{Podman, podman_sees, wait_until};
use serde_json::Value;

#[test]
fn pausing_is_the_same() {
    let seen = podman_sees("pausing_is_the_same", |podman, facts| {
        podman.start_waiting("waits", &[]);
        facts.answer("unpause of a running one", &podman.call(&["unpause", "waits"]));
        facts.answer("pause", &podman.call(&["pause", "waits"]));
        facts.tell("paused", podman.inspect("waits", "{{.State.Status}} {{.State.Paused}}"));
        facts.answer("pause again", &podman.call(&["pause", "waits"]));
        facts.answer("exec", &podman.exec("waits", &[], &["true"]));
        facts.answer("unpause", &podman.call(&["unpause", "waits"]));
        facts.tell("unpaused", podman.inspect("waits", "{{.State.Status}} {{.State.Paused}}"));
        facts.answer("exec after it", &podman.exec("waits", &[], &["true"]));
        facts.answer("pause for removal", &podman.call(&["pause", "waits"]));
        facts.answer("removal of a paused one", &podman.remove("waits"));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("paused"), "paused true");
    assert_eq!(seen.value("unpaused"), "running false");
    assert_eq!(seen.value("removal of a paused one: code"), "0");
}

#[test]
fn programs_beside_the_first_are_the_same() {
    let seen = podman_sees("programs_beside_the_first_are_the_same", |podman, facts| {
        podman.start_waiting("waits", &["--env", "A=container"]);
        facts.report("exec", &podman.exec("waits", &[], &["/prober", "report"]));
        let flags = ["--user", "worker", "--env", "A=exec", "--workdir", "/tmp"];
        facts.report("as a user", &podman.exec("waits", &flags, &["/prober", "report"]));
        facts.report("privileged", &podman.exec("waits", &["--privileged"], &["/prober", "report"]));
        facts.report("on a terminal", &podman.exec("waits", &["--tty"], &["/prober", "report"]));
        facts.answer("code", &podman.exec("waits", &[], &["/prober", "exit", "3"]));
        facts.answer("signal", &podman.exec("waits", &[], &["/prober", "signal", "15"]));
        facts.answer("no such program", &podman.exec("waits", &[], &["nowhere"]));
        facts.answer("not a program", &podman.exec("waits", &[], &["/etc/passwd"]));
        facts.answer("no such directory", &podman.exec("waits", &["--workdir", "/nowhere"], &["true"]));
        facts.answer("no such user", &podman.exec("waits", &["--user", "nobody-here"], &["true"]));
        facts.answer("input", &podman.call_with("a line\n", &["exec", "--interactive", "waits", "cat"]));
        let detached = podman.exec("waits", &["--detach"], &["sh", "-c", "id > /tmp/detached"]);
        facts.tell("detached", detached.code);
        let written = wait_until("the detached program has run", 20, || {
            let answer = podman.exec("waits", &[], &["cat", "/tmp/detached"]);
            if answer.stdout.is_empty() { Err(answer.stderr) } else { Ok(answer) }
        });
        facts.answer("what it wrote", &written);
        facts.answer("removal", &podman.remove("waits"));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("code: code"), "3");
    assert_eq!(seen.value("signal: code"), "143");
    assert_eq!(seen.value("no such program: code"), "127");
    assert_eq!(seen.value("as a user: env/A"), "exec");
    assert_eq!(seen.value("input: output"), "a line");
    assert_eq!(seen.value("on a terminal: terminal/controlling"), "true");
}

#[test]
fn health_checks_are_the_same() {
    let seen = podman_sees("health_checks_are_the_same", |podman, facts| {
        let flags = ["--health-cmd", "cat /tmp/healthy", "--health-interval", "disable", "--health-retries", "1"];
        podman.start_waiting("waits", &flags);
        let status = || podman.inspect("waits", "{{.State.Health.Status}} {{.State.Health.FailingStreak}}");
        facts.tell("at first", status());
        facts.answer("fails", &podman.call(&["healthcheck", "run", "waits"]));
        facts.tell("after failure", status());
        podman.exec("waits", &[], &["touch", "/tmp/healthy"]).ok();
        facts.answer("succeeds", &podman.call(&["healthcheck", "run", "waits"]));
        facts.tell("after success", status());
        facts.answer("removal", &podman.remove("waits"));
        let flags = ["--health-cmd", "exit 3", "--health-interval", "disable", "--health-retries", "1"];
        podman.start_waiting("ill", &[&flags[..], &["--health-on-failure", "kill"]].concat());
        facts.answer("fails for good", &podman.call(&["healthcheck", "run", "ill"]));
        facts.answer("killed for it", &podman.call(&["wait", "ill"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("after failure"), "unhealthy 1");
    assert_eq!(seen.value("after success"), "healthy 0");
    assert_eq!(seen.value("killed for it: output"), "137");
}

#[test]
fn signals_stops_and_restarts_are_the_same() {
    let seen = podman_sees("signals_stops_and_restarts_are_the_same", |podman, facts| {
        podman.start_waiting("waits", &[]);
        facts.answer("a signal", &podman.call(&["kill", "--signal", "USR1", "waits"]));
        podman.wait_said("waits", "user");
        facts.answer("no such signal", &podman.call(&["kill", "--signal", "NOWHERE", "waits"]));
        facts.answer("stop", &podman.call(&["stop", "--time", "20", "waits"]));
        // Podman clears up after an end on its own time.
        let state = |name: &str| {
            wait_until("it has exited", 20, || {
                let template = "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Pid}}";
                let state = podman.inspect(name, template);
                if state.starts_with("exited ") { Ok(state) } else { Err(state) }
            })
        };
        facts.tell("stopped", state("waits"));
        facts.answer("kill of a stopped one", &podman.call(&["kill", "waits"]));
        facts.answer("stop again", &podman.call(&["stop", "waits"]));
        facts.answer("wait", &podman.call(&["wait", "waits"]));
        facts.answer("start again", &podman.call(&["start", "waits"]));
        facts.answer("restart", &podman.call(&["restart", "--time", "20", "waits"]));
        wait_until("it has said it three times", 20, || {
            let logs = podman.call(&["logs", "waits"]);
            let times = logs.stdout.matches("ready").count();
            if times == 3 { Ok(()) } else { Err(logs.stdout) }
        });
        facts.answer("removal of a running one", &podman.call(&["rm", "waits"]));
        facts.answer("forced", &podman.call(&["rm", "--force", "--time", "20", "waits"]));
        podman.start("deaf", &[], &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]);
        podman.wait_said("deaf", "ready");
        facts.answer("stop of a deaf one", &podman.call(&["stop", "--time", "1", "deaf"]));
        facts.tell("killed", state("deaf"));
        podman.create("made", &[], &["true"]);
        facts.answer("init", &podman.call(&["init", "made"]));
        facts.tell("initialized", podman.inspect("made", "{{.State.Status}}"));
        facts.answer("removal before a start", &podman.remove("made"));
        podman.create("made", &[], &["/prober", "exit", "6"]);
        facts.answer("start and attach", &podman.call(&["start", "--attach", "made"]));
        facts.tell("ended", state("made"));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("stopped"), "exited 5 false 0");
    assert_eq!(seen.value("killed"), "exited 137 false 0");
    assert_eq!(seen.value("initialized"), "initialized");
    assert_eq!(seen.value("start and attach: code"), "6");
}

#[test]
fn streams_and_terminals_are_the_same() {
    let seen = podman_sees("streams_and_terminals_are_the_same", |podman, facts| {
        facts.answer("both", &podman.run(&[], &["sh", "-c", "echo out; echo err >&2"]));
        facts.answer("input", &podman.run_with("a line\n", &["--interactive"], &["cat"]));
        facts.report("on a terminal", &podman.report(&["--tty"]));
        facts.answer("text on a terminal", &podman.run(&["--tty"], &["sh", "-c", "test -t 1 && echo yes"]));
        podman.start("reads", &["--interactive"], &["sh", "-c", "read line; echo got $line; exit 4"]);
        facts.answer("attach", &podman.call_with("a line\n", &["attach", "reads"]));
        facts.answer("its code", &podman.call(&["wait", "reads"]));
        facts.answer("logs", &podman.call(&["logs", "reads"]));
        podman.create("starts", &["--interactive"], &["sh", "-c", "read line; echo got $line; exit 4"]);
        facts.answer("start", &podman.call_with("a line\n", &["start", "--attach", "--interactive", "starts"]));
        facts.answer("descriptors", &podman.run(&["--preserve-fds", "0"], &["ls", "/proc/self/fd"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("both: output"), "out");
    assert_eq!(seen.value("input: output"), "a line");
    assert_eq!(seen.value("attach: output"), "got a line");
    assert_eq!(seen.value("start: code"), "4");
    assert_eq!(seen.value("on a terminal: terminal/controlling"), "true");
}

#[test]
fn copies_and_descriptions_are_the_same() {
    let seen = podman_sees("copies_and_descriptions_are_the_same", |podman, facts| {
        podman.start_waiting("waits", &["--memory", "64m", "--tmpfs", "/mnt"]);
        let file = podman.enclosure().path("file");
        std::fs::write(&file, "copied\n").expect("a file to copy");
        let file = file.to_string_lossy();
        facts.answer("copy in", &podman.call(&["cp", &file, "waits:/tmp/file"]));
        facts.answer("copy to a mount", &podman.call(&["cp", &file, "waits:/mnt/file"]));
        facts.answer("what is there", &podman.exec("waits", &[], &["cat", "/tmp/file", "/mnt/file"]));
        facts.answer("copy out", &podman.call(&["cp", "waits:/etc/passwd", "-"]));
        facts.answer("difference", &podman.call(&["diff", "waits"]));
        let top = podman.call(&["top", "waits", "pid", "ppid", "user", "seccomp", "capeff", "args"]).ok();
        let first = top.lines().find(|line| line.starts_with("1 ")).unwrap_or_default();
        facts.tell("top", first.split_whitespace().collect::<Vec<_>>().join(" "));
        let stats =
            podman.call(&["stats", "--no-stream", "--no-reset", "--format", "{{.MemLimit}} {{.Name}}", "waits"]);
        facts.answer("stats", &stats);
        let text = podman.call(&["inspect", "waits"]).ok();
        let all: Value = serde_json::from_str(&text).expect("JSON");
        facts.tell("runtime", all[0]["OCIRuntime"].as_str().unwrap_or_default());
        for field in ["Status", "Running", "Paused", "OOMKilled", "Dead", "ExitCode", "Error", "CgroupPath"] {
            facts.tell(&format!("state {field}"), &all[0]["State"][field]);
        }
        facts.tell("capabilities", &all[0]["EffectiveCaps"]);
        facts.answer("removal", &podman.remove("waits"));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("what is there: output"), "copied\ncopied");
    assert_eq!(seen.value("stats: output"), "67108864 waits");
    assert!(seen.value("top").starts_with("1 0 root filter "), "{}", seen.value("top"));
    assert_eq!(seen.value("state Status"), "\"running\"");
}

#[test]
fn a_pod_is_the_same() {
    let seen = podman_sees("a_pod_is_the_same", |podman, facts| {
        let cgroup = podman.enclosure().cgroup();
        let flags = ["pod", "create", "--name", "pod", "--network", "none", "--share", "pid,ipc,uts,net"];
        facts.tell("pod", podman.call(&[&flags[..], &["--hostname", "pod", "--cgroup-parent", cgroup]].concat()).code);
        let member = |flags: &[&str], program: &[&str]| {
            podman.call(&[&["run", "--pod", "pod"], flags, &[Podman::IMAGE], program].concat())
        };
        member(&["--detach", "--name", "one"], &["sh", "-c", Podman::TRAPS]).ok();
        podman.wait_said("one", "ready");
        // The pod's own process, the first container's, and the shell that looks; one of them may be a clone just then.
        let line = "cat /proc/sys/kernel/hostname; ps -o args > /tmp/all; \
                    /bin/busybox grep -e trap -e catatonit /tmp/all | /bin/busybox sort -u";
        facts.answer("neighbours", &member(&["--rm"], &["sh", "-c", line]));
        facts.answer("pause", &podman.call(&["pod", "pause", "pod"]));
        facts.answer("unpause", &podman.call(&["pod", "unpause", "pod"]));
        facts.answer("stop", &podman.call(&["pod", "stop", "--time", "20", "pod"]));
        facts.tell("stopped", podman.inspect("one", "{{.State.Status}} {{.State.ExitCode}}"));
        facts.tell("removal", podman.call(&["pod", "rm", "--force", "--time", "0", "pod"]).code);
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("pod"), "0");
    let neighbours = seen.value("neighbours: output");
    assert!(neighbours.starts_with("pod\n") && neighbours.contains(Podman::TRAPS), "{neighbours}");
    assert_eq!(seen.value("stopped"), "exited 5");
    assert_eq!(seen.value("removal"), "0");
}
