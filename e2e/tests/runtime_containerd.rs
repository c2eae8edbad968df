//! containerd with our runtime as its `BinaryName`: what `ctr` and the container see is what they are with crun and runc.
//! Where the three differ, `runtime/oci/README.md` says why.

use portreeve_e2e::measure::installed;
use portreeve_e2e::{Containerd, Facts, containerd_sees, has_controller, skipped, wait_until};
use serde_json::Value;

/// Waits for signals as a container's first process, and ends with 5 after SIGTERM.
const TRAPS: &str = "trap 'exit 5' TERM; trap 'echo user > /tmp/said' USR1; while :; do sleep 0.05; done";

/// Starts a container that waits.
fn start(containerd: &Containerd<'_>, name: &str, flags: &[&str]) {
    containerd.run(name, &[&["--detach"], flags].concat(), &["/bin/sh", "-c", TRAPS]).ok();
    containerd.wait_status(name, "RUNNING");
}

/// Ends a container that waits, and removes it.
fn end(containerd: &Containerd<'_>, facts: &mut Facts, name: &str) {
    facts.answer("kill", &containerd.call(&["task", "kill", "--signal", "SIGKILL", name]));
    containerd.wait_status(name, "STOPPED");
    facts.tell("delete", containerd.call(&["task", "delete", name]).code);
    facts.answer("remove", &containerd.call(&["container", "rm", name]));
}

#[test]
fn containers_of_containerd_are_the_same() {
    let seen = containerd_sees("containers_of_containerd_are_the_same", |containerd, facts| {
        facts.report("run", &containerd.run("plain", &["--rm"], &["/prober", "report"]));
        let flags: &[_] = &["--rm", "--memory-limit", "67108864", "--cpu-quota", "50000", "--cpu-period", "100000"];
        let more = ["--read-only", "--env", "A=B", "--cwd", "/tmp", "--user", "1000:1000"];
        // User Mode Linux has no such controller, and one processor.
        let set: &[_] = if has_controller("cpuset") { &["--cpuset-cpus", "0"] } else { &[] };
        facts.report("with flags", &containerd.run("flags", &[flags, set, &more].concat(), &["/prober", "report"]));
        let flags = ["--rm", "--cap-add", "CAP_NET_ADMIN", "--cap-drop", "CAP_CHOWN", "--seccomp"];
        facts.report("with a filter", &containerd.run("filter", &flags, &["/prober", "report"]));
        facts.report("of the host", &containerd.run("host", &["--rm", "--net-host"], &["/prober", "report"]));
        let flags = ["--rm", "--privileged", "--allow-new-privs"];
        facts.report("privileged", &containerd.run("privileged", &flags, &["/prober", "report"]));
        facts.answer("code", &containerd.run("code", &["--rm"], &["/prober", "exit", "7"]));
        facts.answer("no such program", &containerd.run("absent", &["--rm"], &["nowhere"]));
        facts.answer("not a program", &containerd.run("text", &["--rm"], &["/etc/passwd"]));
        facts.report("no such directory", &containerd.run("folder", &["--rm", "--cwd", "/no"], &["/prober", "report"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("run: namespaces/pid"), "own");
    assert_eq!(seen.value("with flags: ids/uid"), "[1000,1000,1000,1000]");
    assert_eq!(seen.value("with flags: affinity"), "[0]");
    assert_eq!(seen.value("with a filter: seccomp/mode"), "2");
    assert_eq!(seen.value("of the host: namespaces/net"), "outside");
    assert_eq!(seen.value("code: code"), "7");
    assert_eq!(seen.value("no such program: code"), "1");
    assert_eq!(seen.value("left behind"), "");
}

#[test]
fn tasks_of_containerd_are_the_same() {
    let seen = containerd_sees("tasks_of_containerd_are_the_same", |containerd, facts| {
        start(containerd, "waits", &["--memory-limit", "67108864"]);
        facts.report("exec", &containerd.call(&["task", "exec", "--exec-id", "e1", "waits", "/prober", "report"]));
        let flags = ["task", "exec", "--exec-id", "e2", "--user", "1000:1000", "--cwd", "/tmp", "waits"];
        facts.report("exec as a user", &containerd.call(&[&flags[..], &["/prober", "report"]].concat()));
        facts.answer("code", &containerd.call(&["task", "exec", "--exec-id", "e3", "waits", "/prober", "exit", "3"]));
        facts.answer("no such program", &containerd.call(&["task", "exec", "--exec-id", "e4", "waits", "nowhere"]));
        facts.tell("processes", containerd.call(&["task", "ps", "waits"]).ok().lines().count() > 1);
        facts.answer("pause", &containerd.call(&["task", "pause", "waits"]));
        facts.tell("paused", containerd.status("waits").unwrap_or_default());
        facts.answer("pause again", &containerd.call(&["task", "pause", "waits"]));
        facts.answer("resume", &containerd.call(&["task", "resume", "waits"]));
        facts.tell("resumed", containerd.status("waits").unwrap_or_default());
        let metrics = containerd.call(&["task", "metrics", "--format", "json", "waits"]).ok();
        let metrics: Value = serde_json::from_str(&metrics).expect("metrics in JSON");
        let used = metrics["memory"]["usage"]["usage"].as_u64().or_else(|| metrics["memory"]["usage"].as_u64());
        facts.tell("memory is used", used.is_some_and(|used| used > 0));
        let limit = &metrics["memory"]["usage"]["limit"];
        facts.tell("memory limit", if limit.is_null() { &metrics["memory"]["usage_limit"] } else { limit });
        facts.answer("signal", &containerd.call(&["task", "kill", "--signal", "SIGUSR1", "waits"]));
        let line = "while [ ! -e /tmp/said ]; do sleep 0.05; done; cat /tmp/said; /bin/busybox rm /tmp/said";
        let exec = ["task", "exec", "--exec-id", "e5", "waits", "/bin/sh", "-c", line];
        facts.answer("what it did", &containerd.call(&exec));
        facts.answer("delete of a running one", &containerd.call(&["task", "delete", "waits"]));
        facts.answer("end", &containerd.call(&["task", "kill", "waits"]));
        containerd.wait_status("waits", "STOPPED");
        let deleted = containerd.call(&["task", "delete", "waits"]);
        facts.tell("code of its end", deleted.stderr.contains("exit code 5"));
        facts.answer("remove", &containerd.call(&["container", "rm", "waits"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("code: code"), "3");
    assert_eq!(seen.value("paused"), "PAUSED");
    assert_eq!(seen.value("resumed"), "RUNNING");
    assert_eq!(seen.value("memory limit"), "67108864");
    assert_eq!(seen.value("what it did: output"), "user");
    assert_eq!(seen.value("code of its end"), "true");
}

#[test]
fn mounts_devices_maps_and_namespaces_of_containerd_are_the_same() {
    let test = "mounts_devices_maps_and_namespaces_of_containerd_are_the_same";
    let seen = containerd_sees(test, |containerd, facts| {
        let enclosure = containerd.enclosure();
        let (folder, node) = (enclosure.path("volume"), enclosure.path("node").to_string_lossy().into_owned());
        std::fs::create_dir_all(&folder).expect("a volume");
        enclosure.call(&["sh", "-c", &format!("[ -e {node} ] || mknod -m 666 {node} c 10 1000")]).ok();
        let bind = format!("type=bind,src={},dst=/vol,options=rbind:ro:rslave", folder.display());
        let flags = ["--rm", "--mount", &bind, "--mount", "type=tmpfs,src=none,dst=/mnt/t,options=size=64k:mode=0700"];
        let more = ["--hostname", "named", "--cpus", "0.5", "--cpu-shares", "300"];
        facts.report("mounts", &containerd.run("mounts", &[&flags[..], &more].concat(), &["/prober", "report"]));
        let operations = ["/prober", "try", &format!("stat {node}"), &format!("open {node} rw"), "open /dev/full rw"];
        facts.answer("device", &containerd.run("device", &["--rm", "--device", &node], &operations));
        let operations = ["/prober", "try", "mknod /tmp/other c 10 1000", "open /tmp/other rw", "unlink /tmp/other"];
        facts.answer("another device", &containerd.run("other", &["--rm"], &operations));
        let maps = ["--rm", "--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
        facts.report("maps", &containerd.run_image("maps", &maps, &["/prober", "report"]));
        start(containerd, "first", &[]);
        let pid = containerd.pid("first");
        let joined = ["pid", "ipc", "network", "uts"].map(|kind| {
            let file = if kind == "network" { "net" } else { kind };
            format!("{kind}:/proc/{pid}/ns/{file}")
        });
        let flags: Vec<_> = joined.iter().flat_map(|one| ["--with-ns", one]).chain(["--rm"]).collect();
        let links = "cd /proc/self/ns && for n in *; do echo $n $(/bin/busybox readlink $n); done";
        let links = ["/bin/sh", "-c", links];
        let of_first = containerd.call(&[&["task", "exec", "--exec-id", "e1", "first"][..], &links].concat()).ok();
        let of_second = containerd.run("second", &flags, &links).ok();
        let same: Vec<_> = of_second.lines().filter(|line| of_first.lines().any(|other| other == *line)).collect();
        let kinds: Vec<_> = same.iter().filter_map(|line| line.split(' ').next()).collect();
        facts.tell("shared", kinds.join(" "));
        end(containerd, facts, "first");
    });
    let Some(seen) = seen else { return };
    assert!(!seen.value("device: output").contains("EPERM"), "{}", seen.value("device: output"));
    assert!(seen.value("another device: output").contains("EPERM"), "{}", seen.value("another device: output"));
    assert_eq!(seen.value("maps: id_maps/uid"), "[[0,100000,65536]]");
    for kind in ["ipc", "net", "pid", "uts"] {
        assert!(seen.value("shared").split(' ').any(|word| word == kind), "{kind}: {}", seen.value("shared"));
    }
}

#[test]
fn ends_of_tasks_of_containerd_are_the_same() {
    let seen = containerd_sees("ends_of_tasks_of_containerd_are_the_same", |containerd, facts| {
        let flags = ["--rm", "--memory-limit", "33554432"];
        facts.answer("too much memory", &containerd.run("eater", &flags, &["/prober", "eat", "256"]));
        start(containerd, "waits", &[]);
        let exec = ["task", "exec", "--detach", "--exec-id", "e1", "waits", "/bin/busybox", "sleep", "1000"];
        facts.answer("exec", &containerd.call(&exec));
        facts.answer("end of it", &containerd.call(&["task", "kill", "--exec-id", "e1", "--signal", "KILL", "waits"]));
        let deleted = wait_until("it has ended", 20, || {
            let deleted = containerd.call(&["task", "delete", "--exec-id", "e1", "waits"]);
            if deleted.stderr.contains("stopped") { Err(deleted.stderr) } else { Ok(deleted) }
        });
        facts.answer("its end", &deleted);
        facts.tell("status", containerd.status("waits").unwrap_or_default());
        facts.answer("no such task", &containerd.call(&["task", "kill", "nowhere"]));
        facts.answer("the same name", &containerd.run("waits", &["--detach"], &["true"]));
        facts.answer("end of all", &containerd.call(&["task", "kill", "--all", "--signal", "KILL", "waits"]));
        containerd.wait_status("waits", "STOPPED");
        facts.answer("kill of a stopped one", &containerd.call(&["task", "kill", "waits"]));
        facts.tell("delete", containerd.call(&["task", "delete", "waits"]).stderr.contains("exit code 137"));
        facts.answer("remove", &containerd.call(&["container", "rm", "waits"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("too much memory: code"), "137");
    assert_eq!(seen.value("status"), "RUNNING");
    assert_eq!(seen.value("delete"), "true");
}

/// What containerd asks a runtime before it makes anything.
#[test]
fn containerd_reads_our_features() {
    let seen = containerd_sees("containerd_reads_our_features", |containerd, facts| {
        let runtime = containerd.program();
        let answer = containerd.call(&["plugins", "inspect-runtime", "--runc-binary", &runtime]).ok();
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
        let features = &answer["Features"];
        facts.tell("oldest", features["ociVersionMin"].as_str().unwrap_or_default());
        for hook in features["hooks"].as_array().into_iter().flatten() {
            facts.tell(&format!("hook {hook}"), "known");
        }
        for part in ["cgroup/v1", "cgroup/v2", "seccomp/enabled", "apparmor/enabled", "mountExtensions/idmap/enabled"] {
            let path = format!("/linux/{part}");
            facts.tell(part, features.pointer(&path).unwrap_or(&Value::Null));
        }
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("mountExtensions/idmap/enabled"), "true");
    assert_eq!(seen.value("hook \"poststop\""), "known");
}

#[test]
fn a_task_made_before_its_start_is_the_same() {
    let seen = containerd_sees("a_task_made_before_its_start_is_the_same", |containerd, facts| {
        let words = containerd.words("container create", "made", &[], &["/prober", "report"]);
        facts.answer("create", &containerd.call(&words.iter().map(String::as_str).collect::<Vec<_>>()));
        facts.report("start", &containerd.start_reporting("made"));
        facts.answer("remove", &containerd.call(&["container", "rm", "made"]));
        start(containerd, "deaf", &[]);
        facts.answer("forced", &containerd.call(&["task", "delete", "--force", "deaf"]));
        facts.answer("remove the other", &containerd.call(&["container", "rm", "deaf"]));
        facts.answer("tasks at the end", &containerd.call(&["task", "ls", "--quiet"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("start: pid"), "1");
    assert_eq!(seen.value("tasks at the end: output"), "");
}

#[test]
fn terminals_of_containerd_are_the_same() {
    let seen = containerd_sees("terminals_of_containerd_are_the_same", |containerd, facts| {
        let words = containerd.words("run", "terminal", &["--rm", "--tty"], &["/prober", "report"]);
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        facts.report("run", &containerd.report_on_terminal(&words));
        start(containerd, "waits", &[]);
        let exec = ["task", "exec", "--tty", "--exec-id", "e1", "waits", "/prober", "report"];
        facts.report("exec", &containerd.report_on_terminal(&exec));
        end(containerd, facts, "waits");
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("run: terminal/controlling"), "true");
    assert_eq!(seen.value("exec: terminal/controlling"), "true");
}

/// ctr has no word for it: the shim's own call is made by hand, with what the shim writes to its standard input.
#[test]
fn limits_changed_as_the_shim_does_are_the_same() {
    let seen = containerd_sees("limits_changed_as_the_shim_does_are_the_same", |containerd, facts| {
        start(containerd, "waits", &["--memory-limit", "67108864"]);
        let resources = r#"{"memory":{"limit":33554432},"cpu":{"shares":512,"quota":50000,"period":100000}}"#;
        facts.answer("update", &containerd.runtime(&["update", "--resources", "-", "waits"], resources));
        let files = [
            "memory/memory.limit_in_bytes",
            "cpu/cpu.shares",
            "cpu/cpu.cfs_quota_us",
            "memory.max",
            "cpu.max",
            "cpu.weight",
        ];
        for file in files {
            let (first, rest) = file.split_once('/').unwrap_or(("", file));
            let path = format!("/sys/fs/cgroup/{first}{}/waits/{rest}", containerd.enclosure().cgroup());
            let text = std::fs::read_to_string(path).unwrap_or_default();
            facts.tell(file, text.trim());
        }
        let metrics = containerd.call(&["task", "metrics", "--format", "json", "waits"]).ok();
        facts.tell("metrics tell the limit", metrics.contains("33554432"));
        end(containerd, facts, "waits");
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("update: code"), "0");
    assert_eq!(seen.value("metrics tell the limit"), "true");
}

#[test]
fn a_checkpoint_for_containerd_is_refused_and_the_container_goes_on() {
    let test = "a_checkpoint_for_containerd_is_refused_and_the_container_goes_on";
    if installed("criu").is_some() {
        return skipped(test, "criu is installed, and this is about machines without it");
    }
    let seen = containerd_sees(test, |containerd, facts| {
        start(containerd, "waits", &[]);
        let images = containerd.enclosure().path("images");
        let images = images.to_string_lossy();
        let answer = containerd.call(&["task", "checkpoint", "--image-path", &images, "waits"]);
        facts.tell("code", answer.code);
        facts.tell("the reason is told", answer.stderr.to_lowercase().contains("criu"));
        facts.tell("after it", containerd.status("waits").unwrap_or_default());
        end(containerd, facts, "waits");
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("code"), "1");
    assert_eq!(seen.value("the reason is told"), "true");
    assert_eq!(seen.value("after it"), "RUNNING");
}
