//! What containers, hooks, full disks and small limits do to who deletes or starts a container: it is always deleted, and
//! what failed is always told.

use std::time::Duration;

use portreeve_e2e::{Answer, Bundle, Runtime, cgroup_version, skipped, wait_until};
use serde_json::json;

/// The cgroups of the container, which it may write to.
fn with_its_cgroups(bundle: Bundle) -> Bundle {
    let mut mounts = bundle.config()["mounts"].clone();
    let list = mounts.as_array_mut().unwrap();
    list.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    list.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] }));
    bundle.with(json!({ "mounts": mounts }))
}

/// A container whose program has done what it wanted when it says so.
fn started(runtime: &Runtime, line: &str) -> Bundle {
    let bundle = with_its_cgroups(runtime.bundle_of(&["sh", "-c", &format!("{line}; echo done; sleep 1000")]));
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    wait_until("the program is done", 20, || {
        let said = bundle.output();
        if said.contains("done") { Ok(()) } else { Err(said) }
    });
    bundle
}

fn deleted(runtime: &Runtime, bundle: &Bundle) {
    let answer = runtime.call(&["delete", "--force", bundle.id()]);
    assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn cgroups_that_a_container_nests_deeper_than_any_path_go_with_it() {
    let test = "cgroups_that_a_container_nests_deeper_than_any_path_go_with_it";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let place = if cgroup_version() == 2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    let line = format!(
        "cd {place}; n=$(printf %0200d 0); i=0; while [ $i -lt 30 ]; do busybox mkdir $n; cd $n; i=$((i+1)); done; \
         sleep 1000 & echo $! > cgroup.procs"
    );
    let bundle = started(&runtime, &line);
    let listed = runtime.call(&["ps", "--format", "json", bundle.id()]).ok();
    assert!(listed.split(',').count() > 1, "those of the lowest, too: {listed}");
    runtime.call(&["kill", "--all", bundle.id(), "CONT"]).ok();
    deleted(&runtime, &bundle);
}

#[test]
fn processes_that_a_container_freezes_itself_are_killed() {
    let test = "processes_that_a_container_freezes_itself_are_killed";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let (place, freeze) = if cgroup_version() == 2 {
        ("/sys/fs/cgroup", "echo 1 > in/cgroup.freeze")
    } else {
        ("/sys/fs/cgroup/freezer", "echo FROZEN > in/freezer.state")
    };
    let line = format!("cd {place}; busybox mkdir in; sleep 1000 & echo $! > in/cgroup.procs; {freeze}");
    for forced in [false, true] {
        let bundle = started(&runtime, &line);
        if !forced {
            runtime.call(&["kill", "--all", bundle.id(), "KILL"]).ok();
            runtime.wait_status(&bundle, "stopped");
        }
        deleted(&runtime, &bundle);
    }
}

#[test]
fn a_last_hook_may_call_the_runtime_for_its_own_container() {
    let test = "a_last_hook_may_call_the_runtime_for_its_own_container";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let runs = |verb: &str, bundle: &Bundle| {
        let call =
            format!("{} --root {} {verb} {}", runtime.program().display(), runtime.root().display(), bundle.id());
        let said = bundle.path().join("said");
        json!({ "poststop": [{
            "path": "/bin/sh",
            "args": ["sh", "-c", format!("cat > /dev/null; {call} > {0} 2>&1; echo $? >> {0}", said.display())],
            "env": ["PATH=/usr/bin:/bin"],
        }] })
    };
    for (verb, code, words) in [
        ("delete --force", "0", "is being deleted by another call"),
        ("delete", "0", "is being deleted by another call"),
        ("start", "1", "it is stopped"),
        ("pause", "1", "it is stopped"),
        ("update --pids-limit 5", "1", "it is stopped"),
        ("state", "0", "\"stopped\""),
    ] {
        let bundle = runtime.bundle_of(&["true"]);
        let bundle = {
            let hooks = runs(verb, &bundle);
            bundle.with(json!({ "hooks": hooks }))
        };
        let answer: Answer = runtime.run(&bundle, &[]);
        assert_eq!((answer.code, answer.stderr.as_str()), (0, ""), "{verb}");
        let said = std::fs::read_to_string(bundle.path().join("said")).unwrap();
        assert!(said.contains(words) && said.lines().last() == Some(code), "{verb}: {said}");
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{verb}");
    }
}

#[test]
fn a_limit_of_few_descriptors_is_the_programs_alone() {
    let Some(runtime) = Runtime::for_test("a_limit_of_few_descriptors_is_the_programs_alone") else { return };
    for limit in 0..6 {
        let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": limit, "hard": limit }]);
        let line = "echo limit:$(( $(ulimit -n) ))";
        // A shell substitutes by a pipe, for which there is no room.
        let words = if limit < 5 { vec!["busybox", "echo", "ran"] } else { vec!["sh", "-c", line] };
        let bundle = runtime.bundle_of(&words).with(json!({ "process": { "rlimits": limits } }));
        runtime.create(&bundle, &[]).ok();
        runtime.call(&["start", bundle.id()]).ok();
        wait_until("it says so", 20, || match bundle.output().trim() {
            "ran" if limit < 5 => Ok(()),
            said if said == format!("limit:{limit}") => Ok(()),
            said => Err(format!("{limit}: {said}")),
        });
        runtime.wait_status(&bundle, "stopped");
        deleted(&runtime, &bundle);
    }
}

#[test]
fn a_process_that_ends_without_a_word_is_not_taken_for_a_program() {
    let test = "a_process_that_ends_without_a_word_is_not_taken_for_a_program";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // Everything is refused, the report of that and exit included.
    let seccomp = json!({ "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ERRNO" } } });
    let words = "ended before it executed its program";
    let bundle = runtime.bundle_of(&["true"]).with(seccomp.clone());
    let answer = runtime.run(&bundle, &[]);
    assert!(answer.code == 255 && answer.stderr.contains(words), "{} {}", answer.code, answer.stderr);
    // Who starts what another one has made sees it as long as nobody has reaped the process.
    let bundle = runtime.bundle_of(&["true"]).with(seccomp);
    runtime.create(&bundle, &[]).ok();
    let answer = runtime.call(&["start", bundle.id()]);
    assert!(answer.code == 0 || answer.stderr.contains(words), "{} {}", answer.code, answer.stderr);
    runtime.wait_status(&bundle, "stopped");
    deleted(&runtime, &bundle);
}

/// A state directory with room for so much, mounted in the runtime's world.
fn small(runtime: &Runtime, options: &str) -> String {
    let place = runtime.world().path("small");
    runtime.world().sh(&format!("mkdir -p {0} && mount -t tmpfs -o mode=700,{options} none {0}", place.display()));
    place.to_str().unwrap().to_owned()
}

#[test]
fn a_creation_that_fails_for_want_of_room_leaves_nothing() {
    let Some(runtime) = Runtime::for_test("a_creation_that_fails_for_want_of_room_leaves_nothing") else { return };
    let bundle = runtime.bundle_of(&["true"]);
    bundle.save();
    let path = bundle.path().to_str().unwrap();
    // One more file, two, three: there is no room for the lock, for the record, ...
    for files in 2..7 {
        let root = small(&runtime, &format!("size=1m,nr_inodes={files}"));
        for _ in 0..2 {
            let mut command = runtime.world().command(runtime.program());
            command.args(["--root", &root, "create", "--bundle", path, bundle.id()]);
            let answer = runtime.begin(command).finish();
            assert!(answer.code != 0 && answer.stderr.contains("No space left"), "{files}: {}", answer.stderr);
            assert_eq!(runtime.world().sh(&format!("ls {root}")), "", "{files}");
        }
        runtime.world().sh(&format!("umount {root}"));
    }
    // An empty directory, as one leaves it that was killed, needs no room to go.
    let root = small(&runtime, "size=1m,nr_inodes=2");
    runtime.world().sh(&format!("mkdir {root}/{}", bundle.id()));
    let mut command = runtime.world().command(runtime.program());
    command.args(["--root", &root, "delete", "--force", bundle.id()]);
    assert_eq!(runtime.begin(command).finish().code, 0);
    assert_eq!(runtime.world().sh(&format!("ls {root} && umount {root}")), "");
}

#[test]
fn an_update_for_which_there_is_no_room_changes_nothing() {
    let Some(runtime) = Runtime::for_test("an_update_for_which_there_is_no_room_changes_nothing") else { return };
    let root = small(&runtime, "size=128k");
    let bundle = runtime.bundle(&["wait"]).with(json!({ "linux": { "resources": { "pids": { "limit": 44 } } } }));
    bundle.save();
    let call = |arguments: &[&str]| {
        let mut command = runtime.world().command(runtime.program());
        command.args(["--root", &root]).args(arguments);
        runtime.begin(command).finish()
    };
    call(&["create", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]).ok();
    runtime.world().sh(&format!("head -c 1000000 /dev/zero > {root}/full 2>/dev/null; true"));
    let answer = call(&["update", "--pids-limit", "55", bundle.id()]);
    assert!(answer.code != 0 && answer.stderr.contains("No space left"), "{}", answer.stderr);
    assert_eq!(runtime.cgroup_value(&bundle, "pids/pids.max", "pids.max"), "44");
    call(&["delete", "--force", bundle.id()]).ok();
    runtime.world().sh(&format!("umount {root}"));
}

#[test]
fn out_of_descriptors_is_said_and_leaves_nothing() {
    let Some(runtime) = Runtime::for_test("out_of_descriptors_is_said_and_leaves_nothing") else { return };
    let bundle = runtime.bundle_of(&["true"]);
    bundle.save();
    let mut refused = 0;
    for limit in 6..60 {
        let arguments = ["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()];
        let answer = runtime.begin(runtime.command_after(&format!("ulimit -Sn {limit}"), &arguments)).finish();
        if answer.code != 0 {
            refused += 1;
            let told = ["Too many open files", "No file descriptors available"];
            assert!(told.iter().any(|words| answer.stderr.contains(words)), "{limit}: {}", answer.stderr);
        }
        if limit < 10 {
            // Too few to remove what was begun: that is for another call.
            runtime.call(&["delete", "--force", bundle.id()]).ok();
        }
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{limit}");
    }
    assert!((5..50).contains(&refused), "{refused} of 54");
}

#[test]
fn a_user_cannot_keep_a_cgroup_from_being_used() {
    let test = "a_user_cannot_keep_a_cgroup_from_being_used";
    let Some(runtime) = Runtime::for_test(test) else { return };
    if cgroup_version() == 1 {
        return skipped(test, "version 1 of the cgroups has no file that its owner alone can open");
    }
    let bundle = runtime.bundle_of(&["true"]);
    let path = runtime.cgroup_file(&bundle, "", "");
    std::fs::create_dir_all(&path).unwrap();
    let mut holder = runtime.world().command("setpriv");
    holder.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c"]);
    holder.arg(format!("exec 9< {} && flock --exclusive 9 && exec sleep 100", path.display()));
    let _holder = runtime.begin(holder);
    std::thread::sleep(Duration::from_millis(300));
    runtime.run(&bundle, &[]).ok();
    std::fs::remove_dir(&path).unwrap();
}

#[test]
fn an_empty_state_directory_is_no_directory() {
    let Some(runtime) = Runtime::for_test("an_empty_state_directory_is_no_directory") else { return };
    let mut command = runtime.world().command(runtime.program());
    command.args(["--root", "", "list"]);
    let answer = runtime.begin(command).finish();
    assert!(answer.code != 0 && answer.stderr.contains("--root takes a path"), "{}", answer.stderr);
}

#[test]
fn a_signal_for_all_processes_of_one_that_has_stopped_is_no_error() {
    let test = "a_signal_for_all_processes_of_one_that_has_stopped_is_no_error";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle_of(&["true"]);
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    runtime.wait_status(&bundle, "stopped");
    for signal in ["KILL", "TERM"] {
        // As containerd's shim asks after each end; without --all it is the wrong state.
        runtime.call(&["kill", "--all", bundle.id(), signal]).ok();
        let refused = runtime.call(&["kill", bundle.id(), signal]);
        assert!(refused.code != 0 && refused.stderr.contains("container not running"), "{}", refused.stderr);
    }
    assert_eq!(runtime.status(&bundle).as_deref(), Some("stopped"));
    deleted(&runtime, &bundle);
}

#[test]
fn refusals_have_the_words_that_engines_look_for() {
    let Some(runtime) = Runtime::for_test("refusals_have_the_words_that_engines_look_for") else { return };
    let bundle = runtime.bundle_of(&["/etc/passive"]);
    bundle.file("etc/passive", "no program");
    let refused = runtime.run(&bundle, &[]);
    assert!(refused.code == 126 && refused.stderr.trim_end().ends_with(": permission denied"), "{}", refused.stderr);
    let source = bundle.folder("source");
    std::fs::write(source.join("file"), "").unwrap();
    let bind = |from: &str, to: &str| {
        let source = source.join(from);
        json!({ "destination": to, "type": "bind", "source": source, "options": ["bind"] })
    };
    for (mount, words) in [
        (bind("file", "/etc"), "mounting on /etc: Not a directory (os error 20)"),
        (bind("file", "/proc/version"), "mounting on /proc/version: it is part of a procfs"),
        (bind("", "/proc"), "mounting on /proc: only a procfs may be mounted there"),
    ] {
        let refused = runtime.run(&runtime.bundle_of(&["true"]).with_mount(mount), &[]);
        assert!(refused.code == 255 && refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
}
