//! `hooks`: when, where and with what each of the six kinds runs, and what its failure means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use portreeve_e2e::{Answer, Bundle, Runtime, prober, wait_until};
use serde_json::{Value, json};

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook of `kind` that notes what it is given, and ends with `code` if there is one.
///
/// That of the container's own program is inside the container, and so is what it writes.
fn hook(bundle: &Bundle, kind: &str, name: &str, code: Option<&str>) -> Value {
    let (path, file) = if kind == "startContainer" {
        ("/prober".into(), "/notes".into())
    } else {
        (prober().canonicalize().unwrap(), bundle.path().join("notes"))
    };
    let mut arguments = vec!["hook".to_owned(), "hook".into(), file.to_str().unwrap().into(), name.into()];
    arguments.extend(code.map(str::to_owned));
    json!({ "path": path, "args": arguments, "env": [format!("KIND={kind}")] })
}

/// A shell line as a hook of the runtime's side.
fn shell(line: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] })
}

/// What the hooks of both sides have noted, in the order of each file.
fn notes(bundle: &Bundle) -> Vec<Value> {
    let files = [bundle.path().join("notes"), bundle.root().join("notes")];
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap_or_default());
    texts.flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()).collect()
}

fn names(notes: &[Value]) -> Vec<&str> {
    notes.iter().map(|note| note["name"].as_str().unwrap()).collect()
}

/// A waiting container with a hook of every kind, named after it; `failing` ends with 3.
fn with_hooks(runtime: &Runtime, failing: Option<&str>) -> Bundle {
    let bundle = runtime.bundle(&["wait"]);
    let hooks: BTreeMap<_, _> = KINDS
        .iter()
        .map(|kind| {
            let code = (failing == Some(kind)).then_some("3");
            (*kind, json!([hook(&bundle, kind, kind, code), hook(&bundle, kind, &format!("{kind}-2"), None)]))
        })
        .collect();
    bundle.with(json!({ "hooks": hooks, "annotations": { "org.example.note": "kept" } }))
}

#[test]
fn each_hook_runs_at_its_point_in_its_place_with_the_state() {
    let Some(runtime) = Runtime::for_test("each_hook_runs_at_its_point_in_its_place_with_the_state") else { return };
    let bundle = with_hooks(&runtime, None);
    runtime.create(&bundle, &[]).ok();
    let pid = runtime.pid(&bundle);
    let create = ["prestart", "prestart-2", "createRuntime", "createRuntime-2", "createContainer", "createContainer-2"];
    assert_eq!(names(&notes(&bundle)), create);
    runtime.call(&["start", bundle.id()]).ok();
    let start = ["poststart", "poststart-2", "startContainer", "startContainer-2"];
    assert_eq!(names(&notes(&bundle)), [&create[..], &start].concat());
    wait_until("the program runs", 20, || if bundle.output().is_empty() { Err("silence".into()) } else { Ok(()) });
    let container = runtime.exec_report(&bundle, &[]);
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
    assert_eq!(notes(&bundle).len(), 10, "none at the end of the program");
    runtime.call(&["delete", bundle.id()]).ok();
    let notes = notes(&bundle);
    let stop = ["poststart", "poststart-2", "poststop", "poststop-2", "startContainer", "startContainer-2"];
    assert_eq!(names(&notes), [&create[..], &stop].concat());

    let mount_of_the_caller = runtime.world().sh("readlink /proc/self/ns/mnt").trim().to_owned();
    for note in &notes {
        let name = note["name"].as_str().unwrap();
        let kind = name.trim_end_matches("-2");
        let (status, has_pid) = match kind {
            "poststart" => ("running", true),
            "poststop" => ("stopped", false),
            "startContainer" => ("created", true),
            _ => ("creating", true),
        };
        let state = &note["state"];
        assert_eq!(state["status"], status, "{name}: {state}");
        assert_eq!(state["id"], bundle.id(), "{name}");
        assert_eq!(state["bundle"], bundle.path().to_str().unwrap(), "{name}");
        assert_eq!(state["annotations"]["org.example.note"], "kept", "{name}");
        assert!(state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), "{name}: {state}");
        if has_pid && !matches!(kind, "createContainer" | "startContainer") {
            assert_eq!(state["pid"], pid.as_raw(), "{name}");
        }
        let namespaces = &note["namespaces"];
        let inside = matches!(kind, "createContainer" | "startContainer");
        if inside {
            for namespace in ["mnt", "net", "uts", "ipc"] {
                assert_eq!(namespaces[namespace], container["namespaces"][namespace], "{name}: {namespace}");
            }
        } else {
            assert_eq!(namespaces["mnt"], mount_of_the_caller, "{name}");
        }
        let names = note["root"].as_array().unwrap();
        assert_eq!(names.contains(&json!("prober")), kind == "startContainer", "{name}: {names:?}");
        assert_eq!(note["env"], json!({ "KIND": kind }), "{name}");
        assert_eq!(note["args"][0], "hook", "{name}: the arguments are given whole");
        let descriptors: Vec<_> = note["fds"].as_object().unwrap().keys().collect();
        assert_eq!(descriptors, ["0", "1", "2"], "{name}: {}", note["fds"]);
    }
}

#[test]
fn run_runs_all_of_them() {
    let Some(runtime) = Runtime::for_test("run_runs_all_of_them") else { return };
    let bundle = with_hooks(&runtime, None).with(json!({ "process": { "args": ["/prober", "exit", "4"] } }));
    assert_eq!(runtime.run(&bundle, &[]).code, 4);
    assert_eq!(notes(&bundle).len(), 12, "{:?}", names(&notes(&bundle)));
}

#[test]
fn a_hook_without_an_environment_has_none() {
    let Some(runtime) = Runtime::for_test("a_hook_without_an_environment_has_none") else { return };
    let bundle = runtime.bundle(&["exit", "0"]);
    let mut hook = hook(&bundle, "createRuntime", "bare", None);
    hook["env"].take();
    hook.as_object_mut().unwrap().remove("env");
    let bundle = bundle.with(json!({ "hooks": { "createRuntime": [hook] } }));
    bundle.save();
    let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]);
    command.env("SECRET_OF_THE_CALLER", "1");
    runtime.begin(command).finish().ok();
    assert_eq!(notes(&bundle)[0]["env"], json!({}));
}

#[test]
fn a_hook_before_the_pivot_adds_a_mount_to_the_root() {
    let Some(runtime) = Runtime::for_test("a_hook_before_the_pivot_adds_a_mount_to_the_root") else { return };
    let bundle = runtime.bundle(&["try", "read /mnt/file", "read /seen"]);
    let source = bundle.folder("source");
    std::fs::write(source.join("file"), "mounted by a hook").unwrap();
    let root = bundle.root();
    // What is mounted by the configuration is there already, and the root is where the bundle has it.
    let line = format!(
        "set -e; cat > /dev/null; test -e {root}/proc/self/status; test -c {root}/dev/null; echo yes > {root}/seen; \
         mount --bind {source} {root}/mnt",
        root = root.display(),
        source = source.display()
    );
    let attempts = runtime.attempts(&bundle.with(json!({ "hooks": { "createContainer": [shell(&line)] } })));
    assert_eq!(attempts.value("read /mnt/file"), "mounted by a hook");
    assert_eq!(attempts.value("read /seen"), "yes\n");
    assert_eq!(std::fs::read_dir(root.join("mnt")).unwrap().count(), 0, "and nothing outside");
}

#[test]
fn hooks_find_the_root_also_where_it_is_not_pivoted_to() {
    let Some(runtime) = Runtime::for_test("hooks_find_the_root_also_where_it_is_not_pivoted_to") else { return };
    let bundle = runtime.bundle(&["exit", "5"]);
    let line =
        format!("cat > /dev/null; test -e {root}/proc/self/status && : > {root}/seen", root = bundle.root().display());
    let bundle = bundle.with(json!({ "hooks": { "createContainer": [shell(&line)] } }));
    assert_eq!(runtime.run(&bundle, &["--no-pivot"]).code, 5);
    assert!(bundle.root().join("seen").exists());
}

#[test]
fn a_hook_of_the_runtime_finds_the_container_by_its_pid() {
    let Some(runtime) = Runtime::for_test("a_hook_of_the_runtime_finds_the_container_by_its_pid") else { return };
    // As those that lay cables: the namespaces of the process are there.
    let line = "pid=$(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$') && \
                nsenter --target $pid --net ip link add from-a-hook type bridge";
    for kind in ["prestart", "createRuntime"] {
        let hooked = json!({ "hooks": { kind: [shell(line)] } });
        let report = runtime.report(&runtime.bundle(&["report"]).with(hooked));
        assert!(report["links"].as_array().unwrap().contains(&json!("from-a-hook")), "{kind}: {}", report["links"]);
    }
}

#[test]
fn a_failure_before_the_start_undoes_the_creation() {
    let Some(runtime) = Runtime::for_test("a_failure_before_the_start_undoes_the_creation") else { return };
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = with_hooks(&runtime, Some(kind));
        let answer = runtime.create(&bundle, &[]);
        assert_ne!(answer.code, 0, "{kind}");
        assert!(answer.stderr.contains(kind), "which one it was: {}", answer.stderr);
        assert!(answer.stderr.contains("was told to end with 3"), "what it said: {}", answer.stderr);
        assert_eq!(runtime.status(&bundle), None, "{kind}");
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{kind}");
        let notes = notes(&bundle);
        let seen = names(&notes);
        assert!(!seen.contains(&&*format!("{kind}-2")), "those after it do not run: {seen:?}");
        assert!(seen.ends_with(&["poststop", "poststop-2"]), "and the last ones do: {seen:?}");
    }
}

#[test]
fn a_failure_at_the_start_stops_the_container() {
    let Some(runtime) = Runtime::for_test("a_failure_at_the_start_stops_the_container") else { return };
    for kind in ["startContainer", "poststart"] {
        let bundle = with_hooks(&runtime, Some(kind));
        runtime.create(&bundle, &[]).ok();
        let answer = runtime.call(&["start", bundle.id()]);
        assert_ne!(answer.code, 0, "{kind}");
        assert!(answer.stderr.contains(kind), "which one it was: {}", answer.stderr);
        assert!(!names(&notes(&bundle)).contains(&&*format!("{kind}-2")), "{kind}");
        if kind == "startContainer" {
            assert_eq!(bundle.output(), "", "the program did not run");
        }
        wait_until("the container is not running", 20, || match runtime.status(&bundle).as_deref() {
            None | Some("stopped") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        assert!(names(&notes(&bundle)).contains(&"poststop-2"), "{kind}: {:?}", names(&notes(&bundle)));
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn a_failure_after_the_end_is_a_warning() {
    let Some(runtime) = Runtime::for_test("a_failure_after_the_end_is_a_warning") else { return };
    let bundle = with_hooks(&runtime, Some("poststop"));
    runtime.start_waiting(&bundle);
    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
    runtime.wait_status(&bundle, "stopped");
    let answer = runtime.call(&["delete", bundle.id()]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(answer.stderr.contains("poststop"), "{}", answer.stderr);
    assert!(names(&notes(&bundle)).contains(&"poststop-2"), "the others run");
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

/// A waiting container with a hook of `kind` that takes too long and starts another process, and the file to which
/// these two write their pids.
fn with_slow_hook(runtime: &Runtime, kind: &str) -> (Bundle, PathBuf) {
    let bundle = runtime.bundle(&["wait"]);
    let notes = bundle.root().join("pids");
    // That of the container's own program is inside the container.
    let inside = if kind == "startContainer" { Path::new("/pids") } else { &notes };
    let mut slow = shell(&format!("cat > /dev/null; sleep 100 & echo $$ $! > {}; wait", inside.display()));
    slow["timeout"] = json!(1);
    (bundle.with(json!({ "hooks": { kind: [slow] } })), notes)
}

fn says_that_time_ran_out(answer: &Answer, kind: &str) {
    let said = answer.stderr.to_lowercase();
    assert!(said.contains("time") && said.contains("out") || said.contains("deadline"), "{kind}: {said}");
    assert!(answer.stderr.contains(kind), "which one it was: {}", answer.stderr);
}

#[test]
fn a_hook_that_takes_too_long_is_ended_with_all_that_it_started() {
    let test = "a_hook_that_takes_too_long_is_ended_with_all_that_it_started";
    let Some(runtime) = Runtime::for_test(test) else { return };
    for kind in KINDS {
        let inside = matches!(kind, "createContainer" | "startContainer");
        // The end of a pid namespace ends all that is in it: without one it is the runtime who has to.
        for shared in [false, true].into_iter().filter(|shared| inside || !shared) {
            let (mut bundle, notes) = with_slow_hook(&runtime, kind);
            if shared {
                bundle = bundle.with_namespace("pid", None);
            }
            let created = runtime.create(&bundle, &[]);
            let answer = if matches!(kind, "prestart" | "createRuntime" | "createContainer") {
                assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{kind}, before a deletion");
                created
            } else {
                created.ok();
                let started = runtime.call(&["start", bundle.id()]);
                if kind == "poststop" {
                    started.ok();
                    runtime.call(&["kill", bundle.id(), "KILL"]).ok();
                    runtime.wait_status(&bundle, "stopped");
                    runtime.call(&["delete", bundle.id()])
                } else {
                    started
                }
            };
            says_that_time_ran_out(&answer, kind);
            // What fails after the end is a warning.
            assert_eq!(answer.code == 0, kind == "poststop", "{kind}: {answer:?}");
            let pids = std::fs::read_to_string(&notes).expect("the hook had begun");
            assert_eq!(pids.split_whitespace().count(), 2, "{kind}: {pids}");
            if shared || !inside {
                for pid in pids.split_whitespace() {
                    wait_until("what the hook started is gone", 5, || {
                        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                            Ok(stat) if !stat.contains(") Z ") => Err(stat),
                            _ => Ok(()),
                        }
                    });
                }
            }
            runtime.call(&["delete", "--force", bundle.id()]).ok();
            assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{kind}");
        }
    }
}

#[test]
fn a_hook_that_does_not_read_or_never_stops_talking_holds_nobody_up() {
    let test = "a_hook_that_does_not_read_or_never_stops_talking_holds_nobody_up";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let annotations = json!({ "org.example.large": "x".repeat(200_000) });
    for line in ["exec 0<&-; exit 0", "exit 0", "head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2"] {
        let hooks = json!({ "hooks": { "createRuntime": [shell(line)] }, "annotations": annotations });
        assert_eq!(runtime.run(&runtime.bundle(&["exit", "6"]).with(hooks), &[]).code, 6, "{line}");
    }
    // A failure is told by the end of what was said, not by all of it.
    let hooks = json!({ "hooks": { "createRuntime": [shell("head -c 10000000 /dev/zero | tr '\\0' x >&2; exit 1")] } });
    let answer = runtime.run(&runtime.bundle(&["exit", "0"]).with(hooks), &[]);
    assert_ne!(answer.code, 0);
    assert!(!answer.stderr.is_empty());
}

#[test]
fn a_hook_that_is_no_program_is_refused() {
    let Some(runtime) = Runtime::for_test("a_hook_that_is_no_program_is_refused") else { return };
    for path in ["relative/path", "/no/such/hook", "/etc/passwd"] {
        let hooks = json!({ "hooks": { "createRuntime": [{ "path": path }] } });
        let bundle = runtime.bundle(&["exit", "0"]).with(hooks);
        let answer = runtime.create(&bundle, &[]);
        assert_ne!(answer.code, 0, "{path}");
        assert!(answer.stderr.contains(path), "{path}: {}", answer.stderr);
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{path}");
    }
    let hooks = json!({ "hooks": { "createRuntime": [{ "path": "/bin/true", "timeout": 0 }] } });
    let answer = runtime.create(&runtime.bundle(&["exit", "0"]).with(hooks), &[]);
    assert_ne!(answer.code, 0);
    assert!(answer.stderr.contains("timeout"), "it is above zero: {}", answer.stderr);
    assert!(Path::new("/bin/true").exists());
}
