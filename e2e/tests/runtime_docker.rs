//! `docker run --runtime`: what docker and its containers see is what they see with runc and crun. Where the three differ,
//! `runtime/oci/README.md` says why.

use portreeve_e2e::docker_sees;

#[test]
fn containers_of_docker_are_the_same() {
    let seen = docker_sees("containers_of_docker_are_the_same", |docker, facts| {
        facts.report("run", &docker.report(&[]));
        facts.report("of a user", &docker.report(&["--user", "worker", "--group-add", "4000", "--workdir", "/tmp"]));
        let flags = ["--read-only", "--tmpfs", "/mnt:size=1m,noexec", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN"];
        facts.report("restricted", &docker.report(&flags));
        let flags = ["--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined", "--ipc", "host"];
        facts.report("without a filter", &docker.report(&flags));
        facts.report("privileged", &docker.report(&["--privileged", "--pid", "host"]));
        let folder = docker.enclosure().path("volume");
        std::fs::create_dir_all(&folder).expect("a volume");
        std::fs::write(folder.join("file"), "of the host\n").expect("a file of the volume");
        let volume = format!("{}:/vol:ro", folder.display());
        let operations = ["try", "read /vol/file", "create /vol/x a"];
        let tried = [&["/prober"][..], &operations].concat();
        facts.answer("a volume", &docker.run(&["--volume", &volume], &tried));
        facts.report("on a terminal", &docker.report(&["--tty"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("run: pid"), "1");
    assert_eq!(seen.value("run: seccomp/mode"), "2");
    assert_eq!(seen.value("of a user: ids/uid"), "[1000,1000,1000,1000]");
    assert_eq!(seen.value("restricted: capabilities/effective"), "[\"CAP_NET_ADMIN\"]");
    assert!(seen.value("a volume: output").contains("EROFS"), "{}", seen.value("a volume: output"));
}

#[test]
fn ends_and_refusals_of_docker_are_the_same() {
    let seen = docker_sees("ends_and_refusals_of_docker_are_the_same", |docker, facts| {
        facts.answer("ends by itself", &docker.run(&[], &["/prober", "exit", "7"]));
        facts.answer("a signal", &docker.run(&[], &["sh", "-c", "/prober signal 15; exit $?"]));
        for (name, program) in
            [("no program", "nowhere"), ("no path", "/bin/nowhere"), ("not a program", "/etc/passwd")]
        {
            facts.tell(&format!("{name}: code"), docker.run(&[], &[program]).code);
        }
        facts.answer("too little memory", &docker.run(&["--memory", "16m"], &["/prober", "eat", "64"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("ends by itself: code"), "7");
    assert_eq!(seen.value("a signal: code"), "143");
    assert_eq!(seen.value("no program: code"), "127");
    assert_eq!(seen.value("not a program: code"), "126");
}

#[test]
fn verbs_of_docker_are_the_same() {
    let seen = docker_sees("verbs_of_docker_are_the_same", |docker, facts| {
        let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "30", "--ulimit", "nofile=100:200"];
        docker.start_waiting("one", &limits);
        let report = |flags: &[&str]| docker.call(&[&["exec"], flags, &["one", "/prober", "report"]].concat());
        facts.report("exec", &report(&[]));
        facts.report("exec of a user", &report(&["--user", "worker", "--env", "A=b", "--workdir", "/tmp"]));
        facts.report("exec with privileges", &report(&["--privileged"]));
        facts.report("exec on a terminal", &report(&["--tty"]));
        facts.answer("exec that fails", &docker.call(&["exec", "one", "/prober", "exit", "9"]));
        facts.tell("exec of nothing: code", docker.call(&["exec", "one", "nowhere"]).code);
        let inspected = |what: &str| docker.call(&["inspect", "--format", what, "one"]);
        for verb in ["pause", "unpause"] {
            facts.answer(verb, &docker.call(&[verb, "one"]));
            facts.answer(&format!("state after {verb}"), &inspected("{{.State.Status}}"));
        }
        let update = ["update", "--memory", "48m", "--memory-swap", "96m", "--pids-limit", "20", "one"];
        facts.answer("update", &docker.call(&update));
        facts.report("exec after the update", &report(&[]));
        facts.tell("top", docker.call(&["top", "one", "-o", "args"]).stdout.lines().count());
        facts.answer("a signal of its own", &docker.call(&["kill", "--signal", "USR1", "one"]));
        facts.answer("restart", &docker.call(&["restart", "one"]));
        facts.answer("stop", &docker.call(&["stop", "one"]));
        facts.answer("code of the end", &inspected("{{.State.ExitCode}}"));
        facts.answer("start", &docker.call(&["start", "one"]));
        facts.answer("kill", &docker.call(&["kill", "one"]));
        facts.answer("code of the kill", &inspected("{{.State.ExitCode}} {{.State.OOMKilled}}"));
        facts.answer("removal", &docker.call(&["rm", "--force", "one"]));
    });
    let Some(seen) = seen else { return };
    assert_eq!(seen.value("exec of a user: ids/uid"), "[1000,1000,1000,1000]");
    assert_eq!(seen.value("exec that fails: code"), "9");
    assert_eq!(seen.value("state after pause: output"), "paused");
    assert_eq!(seen.value("code of the end: output"), "5");
    assert_eq!(seen.value("code of the kill: output"), "137 false");
}
