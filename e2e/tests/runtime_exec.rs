//! `exec`: a further process in a container, and what it is.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

use portreeve_e2e::{Answer, Bundle, Report, Runtime, cgroup_version, wait_until};
use serde_json::{Value, json};

/// A container that waits, made with `change`.
fn waiting(runtime: &Runtime, change: Value) -> Bundle {
    let bundle = runtime.bundle(&["wait"]).with(change);
    runtime.start_waiting(&bundle);
    bundle
}

/// `exec --process` of this description.
fn process(runtime: &Runtime, bundle: &Bundle, process: &Value) -> Answer {
    let file = bundle.path().join("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    runtime.call(&["exec", "--process", file.to_str().unwrap(), bundle.id()])
}

/// Waits until a container has so many processes.
fn wait_processes(runtime: &Runtime, bundle: &Bundle, count: usize) {
    wait_until(&format!("there are {count} processes"), 20, || {
        let pids = runtime.call(&["ps", "--format", "json", bundle.id()]).ok();
        let pids: Vec<i64> = serde_json::from_str(&pids).unwrap();
        if pids.len() == count { Ok(()) } else { Err(format!("{pids:?}")) }
    });
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_process_is_in_the_containers_namespaces_cgroup_and_root() {
    let test = "a_process_is_in_the_containers_namespaces_cgroup_and_root";
    let Some(runtime) = Runtime::for_test(test) else { return };
    for users in [false, true] {
        let bundle = runtime.bundle_of(&["sh", "-c", "/prober report > /first; exec /prober wait"]);
        let bundle = if users { bundle.with_users(100_000, 65536) } else { bundle };
        runtime.start_waiting(&bundle);
        let first = Report::parse(&std::fs::read_to_string(bundle.root().join("first")).unwrap());
        let second = runtime.exec_report(&bundle, &[]);
        for key in ["namespaces", "cgroup", "mounts", "hostname", "capabilities", "rlimits", "seccomp", "id_maps"] {
            assert_eq!(second[key], first[key], "{key}, own users: {users}");
        }
        assert_eq!(second["cwd"], "/");
        assert_ne!(second["pid"], 1);
        assert_eq!(second.descriptors().into_iter().collect::<Vec<_>>(), [0, 1, 2], "{}", second["fds"]);
        assert_eq!(second["no_new_privileges"], true);
    }
}

#[test]
fn a_process_has_the_containers_environment_and_its_own() {
    let Some(runtime) = Runtime::for_test("a_process_has_the_containers_environment_and_its_own") else { return };
    let bundle = waiting(&runtime, json!({ "process": { "env": ["PATH=/bin", "KEPT=1", "CHANGED=1"] } }));
    let mut command =
        runtime.command(&["exec", "--env", "CHANGED=2", "--env", "ADDED=a=b c", bundle.id(), "/prober", "report"]);
    command.env("SECRET_OF_THE_CALLER", "1");
    let mut seen = Report::parse(&runtime.begin(command).finish().ok())["env"].as_object().unwrap().clone();
    seen.remove("HOME");
    let expected = json!({ "PATH": "/bin", "KEPT": "1", "CHANGED": "2", "ADDED": "a=b c" });
    assert_eq!(Value::Object(seen), expected);
}

#[test]
fn flags_change_the_process() {
    let Some(runtime) = Runtime::for_test("flags_change_the_process") else { return };
    let bundle = waiting(&runtime, json!({ "process": { "noNewPrivileges": false } }));
    let report = runtime.exec_report(&bundle, &["--user", "1000:1001", "--cwd", "/etc", "--no-new-privs"]);
    assert_eq!(report["ids"]["uid"], json!([1000, 1000, 1000, 1000]));
    assert_eq!(report["ids"]["gid"], json!([1001, 1001, 1001, 1001]));
    assert_eq!(report["cwd"], "/etc");
    assert_eq!(report["no_new_privileges"], true);
    assert_eq!(runtime.exec_report(&bundle, &[])["no_new_privileges"], false, "of that process alone");
    let report =
        runtime.exec_report(&bundle, &["-u", "1000", "--additional-gids", "2000", "--additional-gids", "2001"]);
    assert_eq!(report["ids"]["groups"], json!([2000, 2001]));
    assert_eq!(report["ids"]["gid"], json!([0, 0, 0, 0]));
    let report = runtime.exec_report(&bundle, &["--user=7:7", "--cwd=/home"]);
    assert_eq!((&report["ids"]["uid"][0], &report["cwd"]), (&json!(7), &json!("/home")));
}

#[test]
fn cve_2026_30892_a_user_that_is_no_number_is_refused() {
    let Some(runtime) = Runtime::for_test("cve_2026_30892_a_user_that_is_no_number_is_refused") else { return };
    let bundle = waiting(&runtime, json!({ "process": { "user": { "uid": 1000, "gid": 1000 } } }));
    for user in [
        "1x",
        ":5",
        "1:",
        "-1",
        "+1",
        "0x0",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        " 0",
        "0 ",
        "1:-1",
        "1:4294967295",
        "1:2:3",
        "1.5",
    ] {
        let answer = runtime.exec(&bundle, &["--user", user], &["/prober", "report"]);
        assert_ne!(answer.code, 0, "{user:?}: {}", answer.stdout);
        assert_eq!(answer.stdout, "", "{user:?}");
    }
    // Nothing said is the container's user, whatever way nothing is said in.
    let answer = runtime.exec(&bundle, &["--user", ""], &["/prober", "report"]);
    if answer.code == 0 {
        assert_eq!(Report::parse(&answer.stdout)["ids"]["uid"], json!([1000, 1000, 1000, 1000]));
    }
}

#[test]
fn a_capability_is_added_without_being_inheritable() {
    let Some(runtime) = Runtime::for_test("a_capability_is_added_without_being_inheritable") else { return };
    let bundle = waiting(&runtime, json!({}));
    let three = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let four = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"];
    let report = runtime.exec_report(&bundle, &["--cap", "CAP_SYS_CHROOT"]);
    assert_eq!(report.capabilities("effective"), set(&four));
    assert_eq!(report.capabilities("bounding"), set(&four));
    // CVE-2022-29162: what is inheritable would outlive a change of users.
    assert_eq!(report.capabilities("inheritable"), set(&[]));
    let report = runtime.exec_report(&bundle, &["--cap", "CAP_SYS_CHROOT", "--user", "1000:1000"]);
    assert_eq!(report.capabilities("inheritable"), set(&[]));
    assert_eq!(runtime.exec_report(&bundle, &[]).capabilities("effective"), set(&three));
    // A warning or an error, as other runtimes have it, but not silence.
    let answer = runtime.exec(&bundle, &["--cap", "CAP_NONSENSE"], &["/prober", "report"]);
    assert!(answer.stderr.contains("CAP_NONSENSE"), "{answer:?}");
}

#[test]
fn a_description_of_the_process_counts_as_a_whole() {
    let Some(runtime) = Runtime::for_test("a_description_of_the_process_counts_as_a_whole") else { return };
    let bundle = waiting(&runtime, json!({}));
    let given = json!({
        "args": ["/prober", "report", "described"],
        "cwd": "/var",
        "env": ["ONLY=this"],
        "user": { "uid": 1000, "gid": 1001, "additionalGids": [2000], "umask": 63 },
        "capabilities": { "bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"],
                          "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"] },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 50, "hard": 60 }],
        "noNewPrivileges": false,
        "oomScoreAdj": 777,
        "ioPriority": { "class": "IOPRIO_CLASS_IDLE", "priority": 0 },
        "scheduler": { "policy": "SCHED_BATCH", "nice": 3 },
    });
    let report = Report::parse(&process(&runtime, &bundle, &given).ok());
    assert_eq!(report["args"], given["args"]);
    assert_eq!(report["cwd"], "/var");
    assert_eq!(report["env"]["ONLY"], "this");
    assert!(report["env"]["PATH"].is_null());
    assert_eq!(report["ids"]["uid"], json!([1000, 1000, 1000, 1000]));
    assert_eq!(report["ids"]["groups"], json!([2000]));
    assert_eq!(report["umask"], "0077");
    for which in ["bounding", "permitted", "effective", "inheritable", "ambient"] {
        assert_eq!(report.capabilities(which), set(&["CAP_CHOWN"]), "{which}");
    }
    assert_eq!(report["rlimits"]["RLIMIT_NOFILE"], json!([50, 60]));
    assert_eq!(report["no_new_privileges"], false);
    assert_eq!(report["oom_score_adj"], 777);
    assert_eq!(report["ioprio"]["class"], "IOPRIO_CLASS_IDLE");
    assert_eq!((&report["scheduler"]["policy"], &report["scheduler"]["nice"]), (&json!("SCHED_BATCH"), &json!(3)));
    for wrong in [json!({}), json!([]), json!({ "args": [], "cwd": "/" }), json!({ "args": ["x"], "cwd": "relative" })]
    {
        assert_ne!(process(&runtime, &bundle, &wrong).code, 0, "{wrong}");
    }
}

#[test]
fn the_affinity_of_a_process_is_the_one_it_ends_with() {
    let Some(runtime) = Runtime::for_test("the_affinity_of_a_process_is_the_one_it_ends_with") else { return };
    let bundle = waiting(&runtime, json!({}));
    let all = runtime.exec_report(&bundle, &[])["affinity"].clone();
    let given = |affinity: Value| {
        let user = json!({ "uid": 0, "gid": 0 });
        json!({ "args": ["/prober", "report"], "cwd": "/", "user": user, "execCPUAffinity": affinity })
    };
    let seen = |affinity: Value| Report::parse(&process(&runtime, &bundle, &given(affinity)).ok())["affinity"].clone();
    assert_eq!(seen(json!({ "final": "0" })), json!([0]));
    assert_eq!(seen(json!({ "initial": "0", "final": "0-0" })), json!([0]));
    assert_eq!(seen(json!({})), all);
    if all.as_array().is_some_and(|all| all.len() > 1) {
        assert_eq!(seen(json!({ "initial": "0", "final": "1" })), json!([1]));
    }
    for wrong in ["900", "x", "1-0", "0,,1"] {
        assert_ne!(process(&runtime, &bundle, &given(json!({ "final": wrong }))).code, 0, "{wrong}");
    }
    // The container's own configuration counts for those that have no description.
    let bundle = waiting(&runtime, json!({ "process": { "execCPUAffinity": { "final": "0" } } }));
    assert_eq!(runtime.exec_report(&bundle, &[])["affinity"], json!([0]));
}

#[test]
fn an_exec_ends_as_its_program_does() {
    let Some(runtime) = Runtime::for_test("an_exec_ends_as_its_program_does") else { return };
    let bundle = waiting(&runtime, json!({}));
    for code in ["0", "1", "7", "255"] {
        assert_eq!(runtime.exec(&bundle, &[], &["/prober", "exit", code]).code.to_string(), code);
    }
    for signal in [9, 15] {
        assert_eq!(runtime.exec(&bundle, &[], &["/prober", "signal", &signal.to_string()]).code, 128 + signal);
    }
    for (program, words) in [
        ("missing", "not found in $path"),
        ("/missing", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let answer = runtime.exec(&bundle, &[], &[program]);
        assert_ne!(answer.code, 0, "{program}");
        assert!(answer.stderr.to_lowercase().contains(words), "{program}: {}", answer.stderr);
    }
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
}

#[test]
fn a_caller_that_ignores_its_children_learns_their_codes() {
    let Some(runtime) = Runtime::for_test("a_caller_that_ignores_its_children_learns_their_codes") else { return };
    let bundle = |arguments: &[&str], users: bool| match runtime.bundle(arguments) {
        // There is a process between the runtime and the container's first.
        bundle if users => bundle.with_users(100_000, 65536),
        bundle => bundle,
    };
    for users in [false, true] {
        let ended = bundle(&["exit", "7"], users);
        ended.save();
        let path = ended.path().to_str().unwrap();
        let command = runtime.command_after("trap '' CHLD", &["run", "--bundle", path, ended.id()]);
        assert_eq!(runtime.begin(command).finish().code, 7);
        let waiting = bundle(&["wait"], users);
        runtime.start_waiting(&waiting);
        let command = runtime.command_after("trap '' CHLD", &["exec", waiting.id(), "/prober", "exit", "9"]);
        assert_eq!(runtime.begin(command).finish().code, 9);
    }
}

#[test]
fn the_streams_of_an_exec_are_the_callers() {
    let Some(runtime) = Runtime::for_test("the_streams_of_an_exec_are_the_callers") else { return };
    let bundle = waiting(&runtime, json!({}));
    let mut command = runtime.command(&["exec", bundle.id(), "sh", "-c", "cat; echo to the errors >&2"]);
    command.stdin(Stdio::piped());
    let mut call = runtime.begin(command);
    call.stdin().expect("a pipe").write_all(b"typed\n").unwrap();
    let answer = call.finish();
    assert_eq!((answer.code, &*answer.stdout), (0, "typed\n"));
    assert!(answer.stderr.contains("to the errors\n"));
    // One whose output nobody reads ends by the signal for that, which the runtime itself ignores.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = runtime.command(&["exec", bundle.id(), "busybox", "yes"]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::from(writer)).spawn().unwrap();
    assert_eq!(portreeve_e2e::Call::from(child).finish().code, 128 + 13);
}

#[test]
fn a_detached_exec_goes_on_and_says_its_pid() {
    let Some(runtime) = Runtime::for_test("a_detached_exec_goes_on_and_says_its_pid") else { return };
    let bundle = waiting(&runtime, json!({}));
    let file = runtime.world().path("pid");
    let flags = ["--detach", "--pid-file", file.to_str().unwrap()];
    runtime.exec(&bundle, &flags, &["/prober", "wait"]).ok();
    let pid: i64 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let pids: Vec<i64> = serde_json::from_str(&runtime.call(&["ps", "--format", "json", bundle.id()]).ok()).unwrap();
    assert!(pids.contains(&pid), "{pid} is not among {pids:?}");
    assert_eq!(pids.len(), 2);
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
}

#[test]
fn an_exec_hands_signals_on() {
    let Some(runtime) = Runtime::for_test("an_exec_hands_signals_on") else { return };
    let bundle = waiting(&runtime, json!({}));
    let call = runtime.begin(runtime.command(&["exec", bundle.id(), "/prober", "catch", "10", "2"]));
    call.wait_for("ready");
    call.signal(nix::sys::signal::Signal::SIGUSR1);
    call.wait_for("\n10\n");
    call.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(call.finish().code, 0);
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"), "the container's own process is not meant");
}

#[test]
fn a_terminal_of_an_exec_is_its_own() {
    let Some(runtime) = Runtime::for_test("a_terminal_of_an_exec_is_its_own") else { return };
    let bundle = waiting(&runtime, json!({}));
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let size = rustix::termios::Winsize { ws_row: 21, ws_col: 43, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal.master, size).unwrap();
    let call = runtime.begin_on(&terminal.slave, &["exec", "--tty", bundle.id(), "/prober", "report"]);
    drop(terminal.slave);
    let reading = std::thread::spawn(move || {
        let mut said = Vec::new();
        // The end of the terminal is an error of its own.
        let _ = File::from(terminal.master).read_to_end(&mut said);
        said
    });
    let answer = call.finish();
    let said = reading.join().unwrap();
    assert_eq!(answer.code, 0, "{}", String::from_utf8_lossy(&said));
    let report = Report::parse(&String::from_utf8_lossy(&said));
    assert_eq!(report["terminal"], json!({ "controlling": true, "size": [21, 43] }));
    assert_eq!(report["fds"]["0"]["target"], "/dev/pts/0");
    assert_ne!(runtime.exec(&bundle, &["--tty", "--detach"], &["true"]).code, 0, "nobody would hold it");
}

#[test]
fn descriptors_are_handed_to_an_exec_by_their_number() {
    let Some(runtime) = Runtime::for_test("descriptors_are_handed_to_an_exec_by_their_number") else { return };
    let bundle = waiting(&runtime, json!({}));
    let report = |flags: &[&str]| {
        let line = [&["exec"], flags, &[bundle.id(), "/prober", "report"]].concat();
        let command = runtime.command_after("exec 3</etc/hostname 4</etc/passwd 7</etc/group", &line);
        Report::parse(&runtime.begin(command).finish().ok())
    };
    assert_eq!(report(&[]).descriptors().into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    let seen = report(&["--preserve-fds", "1"]);
    assert_eq!(seen.descriptors().into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(seen["fds"]["3"]["target"], "/etc/hostname");
}

#[test]
fn cve_2024_21626_a_directory_outside_cannot_be_reached() {
    let Some(runtime) = Runtime::for_test("cve_2024_21626_a_directory_outside_cannot_be_reached") else { return };
    let bundle = waiting(&runtime, json!({}));
    for number in 3..20 {
        let cwd = format!("/proc/self/fd/{number}");
        let line = ["exec", "--cwd", &cwd, bundle.id(), "cat", "../../../etc/hostname"];
        let command = runtime.command_after("exec 3</ 4</ 5</ 6</ 7</ 8</ 9</", &line);
        let answer = runtime.begin(command).finish();
        assert_ne!(answer.code, 0, "{cwd}: {}", answer.stdout);
        assert_eq!(answer.stdout, "", "{cwd}");
    }
}

#[test]
fn a_paused_container_is_entered_only_when_that_is_asked_for() {
    let Some(runtime) = Runtime::for_test("a_paused_container_is_entered_only_when_that_is_asked_for") else { return };
    let bundle = waiting(&runtime, json!({}));
    runtime.call(&["pause", bundle.id()]).ok();
    let answer = runtime.exec(&bundle, &[], &["/prober", "exit", "0"]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains("paused"), "{}", answer.stderr);
    let flags = ["exec", "--ignore-paused", bundle.id(), "/prober", "exit", "6"];
    let call = runtime.begin(runtime.command(&flags));
    wait_processes(&runtime, &bundle, 2);
    // Its process stands still with the others until they go on.
    runtime.call(&["resume", bundle.id()]).ok();
    let answer = call.finish();
    assert_eq!(answer.code, 6, "{}", answer.stderr);
}

#[test]
fn a_signal_that_comes_before_the_program_waits_for_it() {
    let Some(runtime) = Runtime::for_test("a_signal_that_comes_before_the_program_waits_for_it") else { return };
    let bundle = waiting(&runtime, json!({}));
    runtime.call(&["pause", bundle.id()]).ok();
    let call = runtime.begin(runtime.command(&["exec", "--ignore-paused", bundle.id(), "/prober", "wait"]));
    wait_processes(&runtime, &bundle, 2);
    call.signal(nix::sys::signal::Signal::SIGTERM);
    runtime.call(&["resume", bundle.id()]).ok();
    // The program's end, by the signal or after it; the runtime's own would leave the program behind.
    let code = call.finish().code;
    assert!([0, 128 + 15].contains(&code), "{code}");
    wait_processes(&runtime, &bundle, 1);
}

#[test]
fn a_created_container_can_be_entered() {
    let Some(runtime) = Runtime::for_test("a_created_container_can_be_entered") else { return };
    let bundle = runtime.bundle(&["wait"]);
    runtime.create(&bundle, &[]).ok();
    let report = runtime.exec_report(&bundle, &[]);
    assert_eq!(report["hostname"], "probed");
    assert_eq!(runtime.status(&bundle).as_deref(), Some("created"));
    runtime.call(&["start", bundle.id()]).ok();
}

#[test]
fn a_process_can_be_put_into_a_cgroup_below() {
    let Some(runtime) = Runtime::for_test("a_process_can_be_put_into_a_cgroup_below") else { return };
    let bundle = waiting(&runtime, json!({}));
    let place = runtime.cgroup_file(&bundle, "pids/below", "below");
    // Under the second version only leaves hold processes: the container's own would have to move first.
    if cgroup_version() == 2 {
        let init = runtime.cgroup_file(&bundle, "", "init");
        std::fs::create_dir(&init).unwrap();
        std::fs::write(init.join("cgroup.procs"), runtime.pid(&bundle).to_string()).unwrap();
    }
    std::fs::create_dir(&place).unwrap();
    let selected = if cgroup_version() == 2 { "below" } else { "pids:below" };
    let file = runtime.world().path("pid");
    let flags = ["--detach", "--cgroup", selected, "--pid-file", file.to_str().unwrap()];
    runtime.exec(&bundle, &flags, &["/prober", "wait"]).ok();
    let pid = std::fs::read_to_string(&file).unwrap();
    let inside = std::fs::read_to_string(place.join("cgroup.procs")).unwrap();
    assert_eq!(inside.lines().collect::<Vec<_>>(), [pid]);
    for wrong in ["nowhere", "../..", "pids:/..", "nonsense:below"] {
        let answer = runtime.exec(&bundle, &["--cgroup", wrong], &["/prober", "exit", "0"]);
        assert_ne!(answer.code, 0, "{wrong}");
    }
    runtime.call(&["delete", "--force", bundle.id()]).ok();
}

#[test]
fn many_at_once_all_end() {
    let Some(runtime) = Runtime::for_test("many_at_once_all_end") else { return };
    let bundle = waiting(&runtime, json!({}));
    let calls: Vec<_> = (0..12)
        .map(|code: u32| {
            let line = ["exec", bundle.id(), "/prober", "exit", &code.to_string()].map(str::to_owned);
            let line: Vec<_> = line.iter().map(String::as_str).collect();
            (code, runtime.begin(runtime.command(&line)))
        })
        .collect();
    for (code, call) in calls {
        assert_eq!(call.finish().code.to_string(), code.to_string());
    }
    wait_processes(&runtime, &bundle, 1);
}

#[test]
fn an_exec_whose_caller_dies_leaves_the_container_alone() {
    let Some(runtime) = Runtime::for_test("an_exec_whose_caller_dies_leaves_the_container_alone") else { return };
    let bundle = waiting(&runtime, json!({}));
    let call = runtime.begin(runtime.command(&["exec", bundle.id(), "/prober", "wait"]));
    call.wait_for("ready");
    call.signal(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(call.finish().code, -1);
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
    assert_eq!(runtime.exec(&bundle, &[], &["/prober", "exit", "4"]).code, 4);
}
