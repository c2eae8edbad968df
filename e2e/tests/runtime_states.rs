//! The states that a container goes through, what is refused in which, and what is left of one that was not made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use portreeve_e2e::{Bundle, Runtime, skipped, wait_until};
use serde_json::{Value, json};

/// Files below a directory with what is in them; what is no file, by its name alone.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                folders.push(entry.path());
            }
            let content = if kind.is_file() { std::fs::read(entry.path()).expect("a file") } else { Vec::new() };
            found.insert(entry.path(), content);
        }
    }
    found
}

#[test]
fn a_container_goes_through_the_specifications_states() {
    let Some(runtime) = Runtime::for_test("a_container_goes_through_the_specifications_states") else { return };
    let bundle = runtime.bundle(&["wait"]).with(json!({ "annotations": { "org.example.note": "kept" } }));
    runtime.create(&bundle, &[]).ok();
    let created = runtime.state(&bundle);
    assert_eq!(created["status"], "created");
    assert_eq!(created["id"], bundle.id());
    assert_eq!(created["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(created["annotations"]["org.example.note"], "kept");
    assert!(created["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), "{created}");
    assert!(created["created"].as_str().is_some_and(|time| time.starts_with("20")), "{created}");
    assert_eq!(bundle.output(), "", "the program waits for its start");
    runtime.call(&["start", bundle.id()]).ok();
    wait_until("the program says so", 20, || if bundle.output().is_empty() { Err("silence".into()) } else { Ok(()) });
    let running = runtime.state(&bundle);
    assert_eq!(running["status"], "running");
    assert_eq!(running["pid"], created["pid"], "the process that was made is the one that runs");
    runtime.call(&["kill", bundle.id()]).ok();
    runtime.wait_status(&bundle, "stopped");
    let stopped = runtime.state(&bundle);
    assert!(stopped["pid"].is_null() || stopped["pid"] == 0, "{stopped}");
    runtime.call(&["delete", bundle.id()]).ok();
    assert_ne!(runtime.call(&["state", bundle.id()]).code, 0);
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn wrong_state_calls_change_nothing() {
    let Some(runtime) = Runtime::for_test("wrong_state_calls_change_nothing") else { return };
    let table: [(&str, &[&[&str]]); 5] = [
        (
            "absent",
            &[
                &["start", "ID"],
                &["state", "ID"],
                &["kill", "ID", "TERM"],
                &["delete", "ID"],
                &["ps", "ID"],
                &["exec", "ID", "/prober"],
                &["pause", "ID"],
                &["resume", "ID"],
                &["update", "--pids-limit", "9", "ID"],
            ],
        ),
        ("created", &[&["create", "ID"], &["run", "ID"], &["delete", "ID"], &["resume", "ID"]]),
        ("running", &[&["create", "ID"], &["run", "ID"], &["start", "ID"], &["delete", "ID"], &["resume", "ID"]]),
        (
            "paused",
            &[
                &["create", "ID"],
                &["run", "ID"],
                &["start", "ID"],
                &["delete", "ID"],
                &["pause", "ID"],
                &["exec", "ID", "/prober", "exit", "0"],
            ],
        ),
        (
            "stopped",
            &[
                &["create", "ID"],
                &["start", "ID"],
                &["kill", "ID", "TERM"],
                &["exec", "ID", "/prober"],
                &["pause", "ID"],
                &["resume", "ID"],
                &["update", "--pids-limit", "9", "ID"],
                &["events", "--stats", "ID"],
                &["checkpoint", "--image-path", "IMAGES", "ID"],
            ],
        ),
    ];
    for (state, calls) in table {
        let bundle = runtime.waiting_in(state);
        refused_without_a_change(&runtime, &bundle, state, calls);
        runtime.call(&["delete", "--force", bundle.id()]).ok();
    }
}

#[test]
fn calls_for_a_container_that_is_being_made_change_nothing() {
    let test = "calls_for_a_container_that_is_being_made_change_nothing";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if std::env::var_os("PORTREEVE_RUNTIME").is_some() {
        return skipped(test, "other runtimes know nothing of a container before it is made");
    }
    // Where the test fails, the hook ends with the world's directory.
    let (begun, go) = (runtime.world().path("begun"), runtime.world().path("go"));
    let line = format!(
        "cat > /dev/null; : > {0}; while [ -e {0} ] && [ ! -e {1} ]; do sleep 0.05; done",
        begun.display(),
        go.display()
    );
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", line], "env": ["PATH=/usr/bin:/bin"], "timeout": 60 });
    let bundle = runtime.bundle(&["wait"]).with(json!({ "hooks": { "createRuntime": [hook] } }));
    let call = runtime.begin_create(&bundle, &[]);
    wait_until("the hook has begun", 20, || if begun.exists() { Ok(()) } else { Err("it has not".into()) });
    assert_eq!(runtime.status(&bundle).as_deref(), Some("creating"));
    let calls: [&[&str]; 11] = [
        &["create", "ID"],
        &["run", "ID"],
        &["start", "ID"],
        &["kill", "ID", "TERM"],
        &["delete", "ID"],
        &["exec", "ID", "/prober"],
        &["pause", "ID"],
        &["resume", "ID"],
        &["update", "--pids-limit", "9", "ID"],
        &["events", "--stats", "ID"],
        &["checkpoint", "--image-path", "IMAGES", "ID"],
    ];
    refused_without_a_change(&runtime, &bundle, "creating", &calls);
    let listed = runtime.call(&["list", "--format", "json"]).ok();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed[0]["id"], &listed[0]["status"]), (&json!(bundle.id()), &json!("creating")));
    std::fs::write(&go, "").unwrap();
    call.finish().ok();
    runtime.call(&["start", bundle.id()]).ok();
    assert_eq!(runtime.status(&bundle).as_deref(), Some("running"), "and it was made as if nobody had called");
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

/// Makes `calls` for a container in `state`, `ID` in them, and tells how each was refused; nothing of it may change.
fn refused_without_a_change(runtime: &Runtime, bundle: &Bundle, state: &str, calls: &[&[&str]]) {
    let images = runtime.world().path("images");
    let other = std::env::var_os("PORTREEVE_RUNTIME").is_some();
    let before = (snapshot(runtime.root()), runtime.call(&["state", bundle.id()]).stdout);
    for call in calls {
        let word = |word| match word {
            "ID" => bundle.id(),
            "IMAGES" => images.to_str().unwrap(),
            word => word,
        };
        let mut line: Vec<_> = call.iter().copied().map(word).collect();
        let makes = matches!(line[0], "create" | "run");
        if makes {
            line.splice(1..1, ["--bundle", bundle.path().to_str().unwrap()]);
        }
        let answer = runtime.call(&line);
        assert_ne!(answer.code, 0, "{line:?} of a container that is {state}: {}", answer.stdout);
        let said = answer.stderr.trim();
        // Engines look for some of the words of other runtimes; ours name the state.
        let why = if makes { "already exists" } else { state };
        let told = if other || state == "absent" { !said.is_empty() } else { said.contains(why) };
        assert!(told, "{line:?} of a container that is {state} does not say why: {said}");
        assert!(!images.exists(), "{line:?} of a container that is {state} made a directory");
        let after = (snapshot(runtime.root()), runtime.call(&["state", bundle.id()]).stdout);
        assert!(before == after, "{line:?} changed a container that is {state}: {before:?} became {after:?}");
    }
}

#[test]
fn delete_force_of_anything() {
    let Some(runtime) = Runtime::for_test("delete_force_of_anything") else { return };
    for state in ["absent", "created", "running", "paused", "stopped"] {
        let bundle = runtime.waiting_in(state);
        let pid = (!matches!(state, "absent" | "stopped")).then(|| runtime.pid(&bundle));
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "of a container that was {state}");
        // Killed and gone, or waiting for whoever collects its exit code.
        if let Some(stat) = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()) {
            assert!(stat.contains(") Z "), "{state}: {stat}");
        }
    }
    // What a creation that was cut short may leave, and what was never a container.
    for (name, content) in [("empty", None), ("half", Some("{\"id\":")), ("garbage", Some("\0\0\0"))] {
        let directory = runtime.root().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        if let Some(content) = content {
            std::fs::write(directory.join("state.json"), content).unwrap();
        }
        runtime.call(&["list"]).ok();
        runtime.call(&["delete", "--force", name]).ok();
        assert!(!directory.exists(), "{name}");
    }
    std::fs::write(runtime.root().join("a-file"), "not ours").unwrap();
    assert_eq!(runtime.call(&["list", "-q"]).ok(), "");
    std::fs::remove_file(runtime.root().join("a-file")).unwrap();
}

#[test]
fn an_id_that_is_a_path_is_refused() {
    let Some(runtime) = Runtime::for_test("an_id_that_is_a_path_is_refused") else { return };
    let bundle = runtime.bundle(&["exit", "0"]);
    bundle.save();
    // Makes the state directory.
    runtime.call(&["list"]).ok();
    let path = bundle.path().to_str().unwrap();
    let before = snapshot(runtime.world().home()).into_keys().collect::<BTreeSet<_>>();
    for id in ["", ".", "..", "a/b", "../escaped", "/escaped", "a b", "a\nb", &"x".repeat(1025)] {
        for verb in ["create", "run"] {
            let answer = runtime.call(&[verb, "--bundle", path, "--", id]);
            assert_ne!(answer.code, 0, "{verb} {id:?}");
        }
        for line in [&["state", "--", id][..], &["delete", "--", id], &["kill", "--", id, "KILL"]] {
            assert_ne!(runtime.call(line).code, 0, "{line:?}");
        }
    }
    let after = snapshot(runtime.world().home()).into_keys().collect::<BTreeSet<_>>();
    let calls = runtime.world().path("calls");
    let new: Vec<_> = after.difference(&before).filter(|path| !path.starts_with(&calls)).collect();
    assert!(new.is_empty(), "{new:?}");
}

#[test]
fn two_creates_of_one_id_make_one() {
    let Some(runtime) = Runtime::for_test("two_creates_of_one_id_make_one") else { return };
    for _ in 0..5 {
        let bundle = runtime.bundle(&["wait"]);
        bundle.save();
        let line = ["create", "--bundle", bundle.path().to_str().unwrap(), bundle.id()];
        let calls: Vec<_> = (0..4).map(|_| runtime.begin(runtime.command(&line))).collect();
        let answers: Vec<_> = calls.into_iter().map(portreeve_e2e::Call::finish).collect();
        assert_eq!(answers.iter().filter(|answer| answer.code == 0).count(), 1, "{answers:?}");
        runtime.call(&["start", bundle.id()]).ok();
        assert_eq!(runtime.status(&bundle).as_deref(), Some("running"));
        runtime.call(&["delete", "--force", bundle.id()]).ok();
    }
}

#[test]
fn a_create_killed_at_any_moment_leaves_what_delete_clears() {
    let Some(runtime) = Runtime::for_test("a_create_killed_at_any_moment_leaves_what_delete_clears") else { return };
    let bundle = runtime.bundle(&["wait"]);
    let begun = Instant::now();
    runtime.create(&bundle, &[]).ok();
    let whole = begun.elapsed();
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    let rounds = 24;
    for round in 0..rounds {
        // From the first moment to some time after the usual end.
        let moment = whole * (round + 1) * 5 / (rounds * 4);
        let begun = Instant::now();
        let call = runtime.begin_create(&bundle, &[]);
        while begun.elapsed() < moment {
            std::hint::spin_loop();
        }
        let _ = kill(call.pid(), Signal::SIGKILL);
        let created = call.finish().code == 0;
        let answer = runtime.call(&["delete", "--force", bundle.id()]);
        assert_eq!(answer.code, 0, "killed after {moment:?}: {}", answer.stderr);
        // The process that was to become the container ends by itself where nobody knows it.
        wait_until(&format!("nothing is left of a create killed after {moment:?} (done: {created})"), 5, || {
            let left = runtime.leftovers();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
        });
        assert_eq!(runtime.call(&["list", "-q"]).ok(), "");
    }
    runtime.start_waiting(&bundle);
}

#[test]
fn a_failed_create_leaves_nothing() {
    let Some(runtime) = Runtime::for_test("a_failed_create_leaves_nothing") else { return };
    let mount = json!({ "destination": "/mnt", "type": "bind", "source": "/nowhere", "options": ["bind"] });
    let cases = [
        runtime.bundle(&["wait"]).with_mount(mount),
        runtime.bundle(&["wait"]).with(json!({ "root": { "path": "nowhere" } })),
        runtime.bundle(&["wait"]).with(json!({ "ociVersion": "2.0.0" })),
        runtime.bundle(&["wait"]).with(json!({ "process": { "cwd": "/etc/passwd" } })),
        runtime.bundle(&["wait"]).with(json!({ "process": { "cwd": "relative" } })),
        runtime.bundle(&["wait"]).with(json!({ "process": { "args": [] } })),
    ];
    for bundle in cases {
        for verb in ["create", "run"] {
            let answer = if verb == "create" { runtime.create(&bundle, &[]) } else { runtime.run(&bundle, &[]) };
            assert_ne!(answer.code, 0, "{verb} of {}", bundle.config());
            assert!(!answer.stderr.trim().is_empty(), "{verb} of {}", bundle.config());
            assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{verb} of {}", bundle.config());
        }
    }
}
