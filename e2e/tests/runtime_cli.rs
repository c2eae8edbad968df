//! The runtime's verbs: their flags, what they refuse, and the states that they lead from and to.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use portreeve_e2e::{Runtime, skipped, wait_until};
use serde_json::{Value, json};

/// What runc's verbs take, by its manual pages.
const VERBS: [(&str, &[&str]); 17] = [
    (
        "checkpoint",
        &[
            "image-path",
            "work-path",
            "parent-path",
            "leave-running",
            "tcp-established",
            "ext-unix-sk",
            "shell-job",
            "lazy-pages",
            "status-fd",
            "page-server",
            "file-locks",
            "pre-dump",
            "manage-cgroups-mode",
            "empty-ns",
            "auto-dedup",
        ],
    ),
    ("create", &["bundle", "console-socket", "pid-file", "no-pivot", "no-new-keyring", "preserve-fds", "pidfd-socket"]),
    ("delete", &["force"]),
    ("events", &["interval", "stats"]),
    (
        "exec",
        &[
            "additional-gids",
            "apparmor",
            "cap",
            "cgroup",
            "console-socket",
            "cwd",
            "detach",
            "env",
            "ignore-paused",
            "no-new-privs",
            "no-subreaper",
            "pid-file",
            "pidfd-socket",
            "preserve-fds",
            "process",
            "process-label",
            "tty",
            "user",
        ],
    ),
    ("features", &[]),
    ("kill", &["all"]),
    ("list", &["format", "quiet"]),
    ("pause", &[]),
    ("ps", &["format"]),
    (
        "restore",
        &[
            "auto-dedup",
            "bundle",
            "console-socket",
            "detach",
            "empty-ns",
            "ext-unix-sk",
            "file-locks",
            "image-path",
            "lazy-pages",
            "lsm-mount-context",
            "lsm-profile",
            "manage-cgroups-mode",
            "no-pivot",
            "no-subreaper",
            "pid-file",
            "shell-job",
            "tcp-established",
            "work-path",
        ],
    ),
    ("resume", &[]),
    (
        "run",
        &[
            "bundle",
            "console-socket",
            "detach",
            "keep",
            "pid-file",
            "no-pivot",
            "no-new-keyring",
            "no-subreaper",
            "preserve-fds",
            "pidfd-socket",
        ],
    ),
    ("spec", &["bundle", "rootless"]),
    ("start", &[]),
    ("state", &[]),
    (
        "update",
        &[
            "blkio-weight",
            "cpu-burst",
            "cpu-idle",
            "cpu-period",
            "cpu-quota",
            "cpu-rt-period",
            "cpu-rt-runtime",
            "cpu-share",
            "cpuset-cpus",
            "cpuset-mems",
            "l3-cache-schema",
            "mem-bw-schema",
            "memory",
            "memory-reservation",
            "memory-swap",
            "pids-limit",
            "resources",
        ],
    ),
];

#[test]
fn version_is_three_lines() {
    let Some(runtime) = Runtime::for_test("version_is_three_lines") else { return };
    // containerd reads them by their number.
    for flag in ["--version", "-v"] {
        let text = runtime.call(&[flag]).ok();
        let lines: Vec<_> = text.lines().collect();
        let [version, commit, spec] = lines[..] else { panic!("{text}") };
        assert!(version.starts_with("portreeve-runtime version "), "{text}");
        assert!(commit.starts_with("commit: "), "{text}");
        assert_eq!(spec, "spec: 1.3.0");
    }
}

#[test]
fn every_verb_explains_itself_and_knows_runcs_flags() {
    let Some(runtime) = Runtime::for_test("every_verb_explains_itself_and_knows_runcs_flags") else { return };
    let overview = runtime.call(&["--help"]).ok();
    for flag in ["--root", "--log", "--log-format", "--systemd-cgroup", "--rootless", "--debug"] {
        assert!(overview.contains(flag), "{flag} is not in {overview}");
    }
    for (verb, flags) in VERBS {
        assert!(overview.contains(verb), "{verb} is not in {overview}");
        let help = runtime.call(&[verb, "--help"]).ok();
        for flag in flags {
            assert!(help.contains(&format!("--{flag}")), "{verb} does not explain --{flag}: {help}");
        }
    }
}

#[test]
fn a_wrong_command_line_is_refused_and_makes_nothing() {
    let Some(runtime) = Runtime::for_test("a_wrong_command_line_is_refused_and_makes_nothing") else { return };
    let bundle = runtime.bundle(&["wait"]);
    let path = bundle.path().to_str().unwrap();
    let lines: &[&[&str]] = &[
        &["crate"],
        &["create"],
        &["create", "--bundle", path],
        &["create", "--bundle", path, "--nonsense", "x"],
        &["create", "--bundle", path, "one", "two"],
        &["create", "--bundle", "/nowhere", "x"],
        &["create", "--bundle", path, "--preserve-fds", "many", "x"],
        &["start"],
        &["state"],
        &["kill"],
        &["kill", "--all=perhaps", "x"],
        &["exec"],
        &["exec", "x"],
        &["list", "--format", "yaml"],
        &["ps", "--format", "yaml", "x"],
    ];
    for line in lines {
        let answer = runtime.call(line);
        assert_ne!(answer.code, 0, "{line:?} says {}", answer.stdout);
        assert!(!answer.stderr.trim().is_empty(), "{line:?} does not say why");
    }
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn a_configuration_that_cannot_be_read_is_refused_at_once() {
    let Some(runtime) = Runtime::for_test("a_configuration_that_cannot_be_read_is_refused_at_once") else { return };
    let bundle = runtime.bundle(&["wait"]);
    bundle.save();
    let file = bundle.path().join("config.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    let other = bundle.path().join("other.json");
    std::fs::write(&other, &whole).unwrap();
    let path = bundle.path().to_str().unwrap();
    let refused = |words: &str| {
        for verb in ["create", "run"] {
            let answer = runtime.call(&[verb, "--bundle", path, "x"]);
            assert_ne!(answer.code, 0, "{verb}: {words}");
            assert!(answer.stderr.contains(words), "{verb}: {words}: {}", answer.stderr);
            assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{verb}: {words}");
        }
        std::fs::remove_file(&file).unwrap();
    };
    // The place of the mistake is told.
    std::fs::write(&file, "{\n \"ociVersion\": ").unwrap();
    refused("line 2");
    std::fs::write(&file, whole.replacen('{', &format!("{{{}", " ".repeat(9 << 20)), 1)).unwrap();
    refused("more than");
    // A file that never ends, and one that nobody writes to.
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    refused("config.json");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
    refused("no regular file");
    std::fs::create_dir(&file).unwrap();
    let answer = runtime.call(&["create", "--bundle", path, "x"]);
    assert!(answer.stderr.contains("no regular file"), "{}", answer.stderr);
}

#[test]
fn engines_find_the_words_that_they_look_for() {
    let Some(runtime) = Runtime::for_test("engines_find_the_words_that_they_look_for") else { return };
    // They take it for one that was removed already.
    for line in [&["state", "nobody"][..], &["delete", "nobody"], &["kill", "nobody"], &["start", "nobody"]] {
        let answer = runtime.call(line);
        assert_eq!(answer.code, 1, "{line:?}");
        assert!(answer.stderr.contains("container does not exist"), "{line:?}: {}", answer.stderr);
        assert_eq!(answer.stdout, "", "{line:?}");
    }
    let bundle = runtime.waiting_in("stopped");
    let answer = runtime.create(&bundle, &[]);
    assert!(answer.stderr.contains("already exists"), "{}", answer.stderr);
    // containerd takes it for a process that has ended by itself.
    let answer = runtime.call(&["kill", bundle.id(), "TERM"]);
    assert!(answer.stderr.contains("container not running"), "{}", answer.stderr);
}

#[test]
fn a_failure_is_one_line_of_the_log() {
    let Some(runtime) = Runtime::for_test("a_failure_is_one_line_of_the_log") else { return };
    // podman reads the whole log as one JSON document, and shows the error only when it is one.
    let hooks = json!({ "poststop": [{ "path": "/bin/false" }] });
    let sets = json!({ "bounding": ["CAP_KILL", "CAP_TIME_TRAVEL"] });
    let change = json!({ "hooks": hooks, "process": { "capabilities": sets } });
    let path = |name: &str| runtime.world().path(name).to_str().unwrap().to_owned();
    let failed = |log: &str, line: &[&str], words: &[&str]| {
        let log = path(log);
        let answer = runtime.call(&[&["--log", &log, "--log-format", "json"], line].concat());
        assert_ne!(answer.code, 0, "{line:?}");
        let text = std::fs::read_to_string(&log).unwrap();
        let only: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line:?}: {error}: {text}"));
        for word in words {
            assert!(only["msg"].as_str().is_some_and(|said| said.contains(word)), "{line:?}: {word}: {only}");
        }
    };
    let bundle = runtime.bundle(&["wait"]).with(change);
    bundle.save();
    let directory = bundle.path().to_str().unwrap();
    let line = ["create", "--bundle", directory, "--pid-file", "/nowhere/pid", bundle.id()];
    // Its last hook, which fails as well, is told of in the same line.
    failed("create", &line, &["/nowhere/pid", "poststop"]);
    assert_eq!(runtime.leftovers(), Vec::<String>::new());

    let bundle = runtime.waiting_in("running");
    let process = json!({ "args": ["missing"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "capabilities": sets });
    std::fs::write(path("process"), process.to_string()).unwrap();
    failed("exec", &["exec", "--process", &path("process"), bundle.id()], &["executable file not found in $PATH"]);
}

#[test]
fn a_state_directory_that_others_may_write_to_is_refused() {
    let Some(runtime) = Runtime::for_test("a_state_directory_that_others_may_write_to_is_refused") else { return };
    let bundle = runtime.waiting_in("created");
    let mode = |mode| std::fs::set_permissions(runtime.root(), PermissionsExt::from_mode(mode)).unwrap();
    for wrong in [0o777, 0o1777, 0o720] {
        mode(wrong);
        for line in [&["state", bundle.id()][..], &["list"], &["delete", "--force", bundle.id()]] {
            let answer = runtime.call(line);
            assert_ne!(answer.code, 0, "{line:?} with mode {wrong:o}: {}", answer.stdout);
            assert!(answer.stderr.contains("others may write to it"), "{line:?}: {}", answer.stderr);
        }
    }
    mode(0o700);
    std::os::unix::fs::chown(runtime.root(), Some(1000), None).unwrap();
    assert_ne!(runtime.call(&["state", bundle.id()]).code, 0, "it is another user's");
    std::os::unix::fs::chown(runtime.root(), Some(0), None).unwrap();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("created"));
}

#[test]
fn a_state_that_cannot_be_read_is_told_and_hides_no_other() {
    let Some(runtime) = Runtime::for_test("a_state_that_cannot_be_read_is_told_and_hides_no_other") else { return };
    let good = runtime.waiting_in("created");
    let broken = runtime.waiting_in("created");
    let file = runtime.root().join(broken.id()).join("state.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    let newer = whole.replace("\"version\":1,", "\"version\":2,");
    assert_ne!(newer, whole);
    for (content, words) in [(newer.as_str(), "version 2"), ("{", "EOF"), ("[]", "invalid length"), ("", "EOF")] {
        std::fs::write(&file, content).unwrap();
        for line in [&["state", broken.id()][..], &["start", broken.id()], &["kill", broken.id(), "KILL"]] {
            let answer = runtime.call(line);
            assert_ne!(answer.code, 0, "{line:?} with {content:?}");
            assert!(answer.stderr.contains(words), "{line:?} with {content:?}: {}", answer.stderr);
        }
        let mut list = runtime.command(&["list", "--format", "json"]);
        list.stdin(std::process::Stdio::null());
        let answer = runtime.begin(list).finish();
        assert!(answer.stderr.contains(broken.id()), "it is told: {}", answer.stderr);
        let rows: Vec<Value> = serde_json::from_str(&answer.ok()).unwrap();
        assert_eq!(rows.iter().map(|row| row["id"].as_str().unwrap()).collect::<Vec<_>>(), [good.id()]);
    }
    std::fs::write(&file, whole).unwrap();
    assert_eq!(runtime.status(&broken).as_deref(), Some("created"));
}

#[test]
fn what_a_cut_creation_leaves_is_listed_as_engines_read_it() {
    let Some(runtime) = Runtime::for_test("what_a_cut_creation_leaves_is_listed_as_engines_read_it") else { return };
    runtime.call(&["list"]).ok();
    std::fs::create_dir(runtime.root().join("cut")).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&runtime.call(&["list", "--format", "json"]).ok()).unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((&row["id"], &row["status"], &row["pid"]), (&json!("cut"), &json!("stopped"), &json!(0)));
    // containerd reads a time, or nothing.
    assert!(row.get("created").is_none(), "{row}");
    runtime.call(&["delete", "cut"]).ok();
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn roots_containers_lie_in_one_place_whatever_the_session_says() {
    let test = "roots_containers_lie_in_one_place_whatever_the_session_says";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if std::env::var_os("PORTREEVE_RUNTIME").is_some() {
        return skipped(test, "another runtime has another place");
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    if !map.split_whitespace().eq(["0", "0", "4294967295"]) {
        return skipped(test, "this machine is a user namespace: its root is told apart by other things");
    }
    // A /run of the world's own.
    runtime.world().sh("mount -t tmpfs none /run");
    for flags in [&[][..], &["--rootless", "true"], &["--rootless=false"]] {
        let mut command = runtime.world().command(runtime.program());
        command.args(flags).args(["list", "--format", "json"]).env("XDG_RUNTIME_DIR", runtime.world().home());
        assert_eq!(runtime.begin(command).finish().ok(), "[]\n", "{flags:?}");
        let mode = runtime.world().sh("stat -c %a /run/portreeve/runtime && rm -r /run/portreeve");
        assert_eq!(mode, "700\n", "{flags:?}");
    }
    runtime.world().sh("umount /run");
    assert!(!runtime.world().path("portreeve").exists());
}

#[test]
fn a_missing_program_is_said_in_the_words_that_engines_know() {
    let Some(runtime) = Runtime::for_test("a_missing_program_is_said_in_the_words_that_engines_know") else { return };
    let cases = [
        ("missing", "not found in $path"),
        ("/missing", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ];
    for (program, words) in cases {
        let bundle = runtime.bundle_of(&[program]);
        for verb in ["create", "run"] {
            let answer = if verb == "create" { runtime.create(&bundle, &[]) } else { runtime.run(&bundle, &[]) };
            assert_ne!(answer.code, 0, "{verb} of {program}");
            assert!(answer.stderr.to_lowercase().contains(words), "{verb} of {program}: {}", answer.stderr);
            assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{verb} of {program}");
        }
    }
}

#[test]
fn the_log_in_json_ends_with_the_error() {
    let Some(runtime) = Runtime::for_test("the_log_in_json_ends_with_the_error") else { return };
    let log = runtime.world().path("log.json");
    std::fs::write(&log, "{\"level\":\"info\",\"msg\":\"was there before\",\"time\":\"\"}\n").unwrap();
    let flags = ["--log", log.to_str().unwrap(), "--log-format", "json", "state", "nobody"];
    let answer = runtime.call(&flags);
    assert_ne!(answer.code, 0);
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line in JSON")).collect();
    assert_eq!(lines.first().unwrap()["msg"], "was there before", "it is appended to");
    let last = lines.last().unwrap();
    assert_eq!(last["level"], "error", "{last}");
    let message = last["msg"].as_str().unwrap();
    assert!(message.contains("does not exist") || message.contains("no such"), "{last}");
    assert!(last["time"].as_str().is_some_and(|time| time.starts_with("20") && time.contains('T')), "{last}");
    // Without a file its lines go to standard error, and nothing else does.
    let answer = runtime.call(&["--log-format", "json", "state", "nobody"]);
    let only: Value = serde_json::from_str(&answer.stderr).unwrap_or_else(|_| panic!("{}", answer.stderr));
    assert_eq!((&only["level"], &only["msg"]), (&json!("error"), &last["msg"]));
    let answer = runtime.call(&["state", "nobody"]);
    assert!(answer.stderr.contains(message) && answer.stderr.lines().count() == 1, "{}", answer.stderr);
}

#[test]
fn kill_takes_signals_by_name_and_number() {
    let Some(runtime) = Runtime::for_test("kill_takes_signals_by_name_and_number") else { return };
    let bundle = runtime.bundle(&["catch", "1", "10", "12", "37", "64"]);
    runtime.start_waiting(&bundle);
    let sent = [("HUP", 1), ("SIGUSR1", 10), ("usr2", 12), ("12", 12), ("SIGRTMIN+3", 37), ("RTMAX", 64), ("64", 64)];
    let mut expected = "\"ready\"\n".to_owned();
    for (name, number) in sent {
        runtime.call(&["kill", bundle.id(), name]).ok();
        expected.push_str(&format!("{number}\n"));
        wait_until(&format!("{name} came as {number}"), 20, || {
            let said = bundle.output();
            if said == expected { Ok(()) } else { Err(said) }
        });
    }
    for wrong in ["NONSENSE", "-1", "65", "1000", "SIGRTMIN+31", "9x"] {
        assert_ne!(runtime.call(&["kill", bundle.id(), wrong]).code, 0, "{wrong}");
    }
    assert_eq!(bundle.output(), expected);
    // SIGTERM is what is sent when nothing is said.
    runtime.call(&["kill", bundle.id()]).ok();
    runtime.wait_status(&bundle, "stopped");
}

#[test]
fn kill_all_reaches_every_process_of_a_shared_pid_namespace() {
    let test = "kill_all_reaches_every_process_of_a_shared_pid_namespace";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle_of(&["sh", "-c", "/prober wait & /prober wait & exec /prober wait"]);
    let bundle = bundle.with_namespace("pid", None);
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    wait_until("three are ready", 20, || {
        let said = bundle.output();
        if said.lines().count() == 3 { Ok(()) } else { Err(said) }
    });
    let pids = runtime.call(&["ps", "--format", "json", bundle.id()]).ok();
    let pids: Vec<i64> = serde_json::from_str(&pids).expect("numbers");
    assert_eq!(pids.len(), 3);
    runtime.call(&["kill", "--all", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
    for pid in pids {
        wait_until("a process of the container is gone", 20, || {
            match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) if !stat.contains(") Z ") => Err(stat),
                _ => Ok(()),
            }
        });
    }
}

#[test]
fn the_end_of_the_first_process_is_the_containers_and_delete_ends_the_others() {
    let test = "the_end_of_the_first_process_is_the_containers_and_delete_ends_the_others";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle_of(&["sh", "-c", "/prober wait & exec /prober wait"]);
    let bundle = bundle.with_namespace("pid", None);
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    wait_until("two are ready", 20, || {
        let said = bundle.output();
        if said.lines().count() == 2 { Ok(()) } else { Err(said) }
    });
    // By another hand: the runtime's own SIGKILL would be for both.
    kill(runtime.pid(&bundle), Signal::SIGKILL).unwrap();
    runtime.wait_status(&bundle, "stopped");
    let cgroup = runtime.cgroup_file(&bundle, "pids/cgroup.procs", "cgroup.procs");
    let left: Vec<i32> = std::fs::read_to_string(&cgroup).unwrap().lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(left.len(), 1, "the other one goes on");
    runtime.call(&["delete", bundle.id()]).ok();
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn a_paused_container_stands_still() {
    let Some(runtime) = Runtime::for_test("a_paused_container_stands_still") else { return };
    let bundle = runtime.bundle(&["catch", "10"]);
    runtime.start_waiting(&bundle);
    runtime.call(&["pause", bundle.id()]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("paused"));
    let frozen = runtime.cgroup_value(&bundle, "freezer/freezer.state", "cgroup.freeze");
    assert!(matches!(&*frozen, "FROZEN" | "1"), "{frozen}");
    runtime.call(&["kill", bundle.id(), "USR1"]).ok();
    // It cannot be seen that something never comes: long enough for a process that runs.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bundle.output(), "\"ready\"\n");
    runtime.call(&["resume", bundle.id()]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
    wait_until("the signal came", 20, || {
        let said = bundle.output();
        if said.contains("10") { Ok(()) } else { Err(said) }
    });
    // A signal that ends it comes to a frozen one, too.
    runtime.call(&["pause", bundle.id()]).ok();
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
    runtime.call(&["delete", bundle.id()]).ok();
}

#[test]
fn list_and_ps_tell_what_there_is() {
    let Some(runtime) = Runtime::for_test("list_and_ps_tell_what_there_is") else { return };
    assert_eq!(runtime.call(&["list", "-q"]).ok(), "");
    let none: Value = serde_json::from_str(&runtime.call(&["list", "--format", "json"]).ok()).unwrap();
    assert!(none.is_null() || none == json!([]), "{none}");
    let (first, second) = (runtime.waiting_in("running"), runtime.waiting_in("created"));
    let quiet = runtime.call(&["list", "--quiet"]).ok();
    assert_eq!(quiet.lines().collect::<BTreeSet<_>>(), BTreeSet::from([first.id(), second.id()]));
    let all: Vec<Value> = serde_json::from_str(&runtime.call(&["list", "-f", "json"]).ok()).unwrap();
    let row = all.iter().find(|row| row["id"] == first.id()).expect("a row");
    assert_eq!(row["status"], "running");
    assert_eq!(row["pid"], runtime.pid(&first).as_raw());
    assert_eq!(row["bundle"], first.path().to_str().unwrap());
    assert_eq!(row["owner"], "root");
    assert!(row["created"].as_str().is_some_and(|time| time.starts_with("20")), "{row}");
    let table = runtime.call(&["list"]).ok();
    let header = table.lines().next().expect("a header");
    for column in ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"] {
        assert!(header.contains(column), "{table}");
    }
    assert_eq!(table.lines().count(), 3, "{table}");

    let pid = runtime.pid(&first);
    let pids: Value = serde_json::from_str(&runtime.call(&["ps", "--format", "json", first.id()]).ok()).unwrap();
    assert_eq!(pids, json!([pid.as_raw()]));
    if !runtime.world().command("ps").arg("-ef").output().is_ok_and(|output| output.status.success()) {
        return skipped("list_and_ps_tell_what_there_is", "this machine's own ps does not work: no table of it");
    }
    let table = runtime.call(&["ps", first.id()]).ok();
    assert!(table.contains("PID") && table.contains(&pid.to_string()) && table.contains("prober"), "{table}");
    let other = runtime.call(&["ps", first.id(), "-o", "pid,comm"]).ok();
    assert_eq!(other.lines().count(), 2, "{other}");
    assert!(other.contains("COMMAND") && !other.contains("CMD"), "{other}");
}

#[test]
fn the_pid_file_names_the_containers_process() {
    let Some(runtime) = Runtime::for_test("the_pid_file_names_the_containers_process") else { return };
    let bundle = runtime.bundle(&["wait"]);
    let file = runtime.world().path("pid");
    runtime.create(&bundle, &["--pid-file", file.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), runtime.pid(&bundle).to_string());
    let detached = runtime.bundle(&["wait"]);
    runtime.run(&detached, &["--detach", "--pid-file", file.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), runtime.pid(&detached).to_string());
    // A place where it cannot be written is an error, and no container stays.
    let failed = runtime.bundle(&["wait"]);
    assert_ne!(runtime.create(&failed, &["--pid-file", "/proc/no/pid"]).code, 0);
    assert_eq!(runtime.status(&failed), None);
}

#[test]
fn run_ends_as_its_program_does_and_leaves_nothing() {
    let Some(runtime) = Runtime::for_test("run_ends_as_its_program_does_and_leaves_nothing") else { return };
    for code in ["0", "1", "7", "255"] {
        let answer = runtime.run(&runtime.bundle(&["exit", code]), &[]);
        assert_eq!(answer.code.to_string(), code, "{}", answer.stderr);
        assert_eq!(runtime.leftovers(), Vec::<String>::new());
    }
    for signal in [9, 15] {
        let bundle = runtime.bundle(&["signal", &signal.to_string()]).with_namespace("pid", None);
        assert_eq!(runtime.run(&bundle, &[]).code, 128 + signal);
        assert_eq!(runtime.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn run_keeps_a_container_when_told_to() {
    let Some(runtime) = Runtime::for_test("run_keeps_a_container_when_told_to") else { return };
    let bundle = runtime.bundle(&["exit", "3"]);
    assert_eq!(runtime.run(&bundle, &["--keep"]).code, 3);
    assert_eq!(runtime.status(&bundle).as_deref(), Some("stopped"));
    runtime.call(&["delete", bundle.id()]).ok();
}

#[test]
fn a_detached_container_outlives_its_runtime() {
    let Some(runtime) = Runtime::for_test("a_detached_container_outlives_its_runtime") else { return };
    let bundle = runtime.bundle(&["wait"]);
    runtime.run(&bundle, &["-d"]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
    runtime.call(&["delete", bundle.id()]).ok();
}

#[test]
fn what_spec_writes_can_be_run() {
    let Some(runtime) = Runtime::for_test("what_spec_writes_can_be_run") else { return };
    for flags in [&[][..], &["--rootless"]] {
        let bundle = runtime.bundle(&["exit", "5"]);
        let path = bundle.path().to_str().unwrap();
        runtime.call(&[&["spec", "--bundle", path], flags].concat()).ok();
        let file = bundle.path().join("config.json");
        let written: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).expect("JSON");
        assert_eq!(written["process"]["args"], json!(["sh"]));
        assert_eq!(written["root"]["path"], "rootfs");
        let kinds: BTreeSet<_> = written["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| &n["type"])
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(kinds.contains("user"), !flags.is_empty(), "{kinds:?}");
        assert_ne!(runtime.call(&["spec", "--bundle", path]).code, 0, "what is there is not overwritten");
        if flags.is_empty() {
            let changed = bundle.with(written).with(json!({
                "process": { "args": ["/prober", "exit", "5"], "terminal": false },
                "linux": { "cgroupsPath": format!("{}/spec", runtime.cgroup()) },
            }));
            assert_eq!(runtime.run(&changed, &[]).code, 5);
        }
    }
}

#[test]
fn the_state_directory_is_the_owners_alone() {
    let Some(runtime) = Runtime::for_test("the_state_directory_is_the_owners_alone") else { return };
    let bundle = runtime.waiting_in("created");
    for path in [runtime.root().to_owned(), runtime.root().join(bundle.id())] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", path.display());
    }
}

#[test]
fn a_changed_bundle_does_not_change_a_container() {
    let Some(runtime) = Runtime::for_test("a_changed_bundle_does_not_change_a_container") else { return };
    let bundle = runtime.waiting_in("running");
    std::fs::write(bundle.path().join("config.json"), "{}").unwrap();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
    let report = runtime.exec_report(&bundle, &[]);
    assert_eq!(report["hostname"], "probed");
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    runtime.call(&["delete", "--force", bundle.id()]).ok();
}

#[test]
fn a_container_without_a_process_can_be_created_but_not_started() {
    let test = "a_container_without_a_process_can_be_created_but_not_started";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle(&["wait"]).with(json!({ "process": null }));
    runtime.create(&bundle, &[]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("created"));
    let answer = runtime.call(&["start", bundle.id()]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains("process"), "{}", answer.stderr);
    runtime.call(&["delete", "--force", bundle.id()]).ok();
}
