//! The directory of manifests: last good state, conflicts, and what is not a manifest.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use portreeve_e2e::{Agent, BUSYBOX, World, condition, preload_busybox, skipped, skipped_without_root, wait_until};
use serde_json::Value;

fn sleeper(name: &str, argument: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', command: [sleep, '{argument}']}}\n"
    )
}

fn container_id(agent: &Agent<'_>, pod: &str) -> serde_json::Value {
    agent.pod(pod).unwrap_or_default()["status"]["containerStatuses"][0]["containerID"].clone()
}

fn wait_for_source_error(agent: &Agent<'_>, file: &str) -> String {
    wait_until(&format!("an error about {file} is reported"), 20, || {
        let sources = agent.client(&["get", "sources", "-o", "json"]).stdout;
        let table = agent.client(&["get", "sources"]).stdout;
        if sources.contains(file) && sources.contains("error") { Ok(sources) } else { Err(table) }
    })
}

#[test]
fn bad_yaml_over_a_running_pod_changes_nothing_also_across_a_restart() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("lastgood");
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &sleeper("a", "1000"));
    agent.wait_ready("a");
    let id = container_id(&agent, "a");
    agent.drop_manifest("a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a\n");
    wait_for_source_error(&agent, "a.yaml");
    assert_eq!(container_id(&agent, "a"), id);
    agent.kill();
    agent.launch();
    agent.wait_ready("a");
    assert_eq!(container_id(&agent, "a"), id);

    // Emptied is an error as well, not a removal.
    agent.drop_manifest("a.yaml", "# nothing here\n");
    wait_for_source_error(&agent, "a.yaml");
    assert_eq!(container_id(&agent, "a"), id);
    assert_eq!(agent.client(&["validate", &agent.manifests().to_string_lossy()]).code, 1);

    agent.drop_manifest("a.yaml", &sleeper("a", "1000"));
    wait_until("the error is gone", 20, || {
        let text = agent.client(&["get", "sources", "-o", "json"]).stdout;
        if text.contains("error\"") && text.contains("a.yaml:") { Err(text) } else { Ok(()) }
    });
    assert_eq!(container_id(&agent, "a"), id);
}

/// The one source, as `get sources -o json` tells it.
fn source(agent: &Agent<'_>) -> Value {
    let text = agent.client(&["get", "sources", "-o", "json"]).ok();
    let list: Value = serde_json::from_str(&text).expect("JSON");
    list["items"][0].clone()
}

/// Waits until the directory is unreadable, or until it is not, and returns the source.
fn wait_readable(agent: &Agent<'_>, readable: bool) -> Value {
    let what = if readable { "the directory is read again" } else { "the directory is unreadable" };
    wait_until(what, 60, || {
        let source = source(agent);
        if (source["status"]["state"] == "Unreadable") == readable { Err(source.to_string()) } else { Ok(source) }
    })
}

#[test]
fn a_directory_that_cannot_be_read_stops_nothing() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("unreadable");
    let agent = Agent::with_busybox(&world);
    for name in ["a", "b"] {
        agent.drop_manifest(&format!("{name}.yaml"), &sleeper(name, "1000"));
        agent.wait_ready(name);
    }
    let file = world.path("mine.yaml");
    std::fs::write(&file, sleeper("mine", "1000")).unwrap();
    agent.client(&["apply", "-f", &file.to_string_lossy()]).ok();
    agent.wait_ready("mine");
    let before = running(&agent);
    let manifests = agent.manifests();
    let aside = world.path("aside");
    std::fs::rename(&manifests, &aside).unwrap();
    wait_readable(&agent, false);
    assert_eq!(running(&agent), before);
    refuses_to_write(&agent, "mine");
    assert!(!manifests.exists(), "the directory was made");
    // Another directory in its place that is empty: as after a failed mount.
    std::fs::create_dir(&manifests).unwrap();
    wait_until("the reason is that it is another one", 60, || {
        let table = agent.client(&["get", "sources"]).ok() + &source(&agent).to_string();
        if table.contains("another directory") { Ok(()) } else { Err(table) }
    });
    refuses_to_write(&agent, "mine");
    assert!(std::fs::read_dir(&manifests).unwrap().next().is_none(), "something was written");
    assert_eq!(running(&agent), before);
    std::fs::remove_dir(&manifests).unwrap();
    std::fs::rename(&aside, &manifests).unwrap();
    wait_readable(&agent, true);
    assert_eq!(running(&agent), before);
    agent.client(&["delete", "pod", "mine"]).ok();
    agent.wait_gone("mine");
    // The same directory without files has none because somebody removed them.
    for name in ["a", "b"] {
        agent.remove_manifest(&format!("{name}.yaml"));
    }
    for name in ["a", "b"] {
        agent.wait_gone(name);
    }
    assert_eq!(source(&agent)["status"]["state"], "Ready", "an empty directory can be read");
}

/// Neither `apply` nor `delete` may do anything now, or say that it did.
fn refuses_to_write(agent: &Agent<'_>, pod: &str) {
    let file = agent.run_dir().with_extension("given.yaml");
    std::fs::write(&file, sleeper("given", "1000")).unwrap();
    for verb in [&["apply", "-f", &file.to_string_lossy()][..], &["delete", "pod", pod]] {
        let refused = agent.client(verb);
        assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "{}", refused.stderr);
        assert!(refused.stderr.contains("is not the directory that was read"), "{}", refused.stderr);
    }
    std::fs::remove_file(file).unwrap();
}

/// `plan` has nothing to do, and says with its exit code and its words that something is wrong.
fn plan_names(agent: &Agent<'_>, what: &str) {
    let plan = agent.client(&["plan"]);
    assert_eq!((plan.code, plan.stdout.as_str()), (1, "No changes.\n"), "{}", plan.stderr);
    assert!(plan.stderr.contains(what), "{}", plan.stderr);
    let report = agent.client(&["plan", "-o", "json"]);
    assert_eq!(report.code, 1);
    let report: Value = serde_json::from_str(&report.stdout).expect("JSON");
    assert!(report["problems"].to_string().contains(what), "{report}");
}

/// Container ids and restarts of all pods.
fn running(agent: &Agent<'_>) -> Vec<(Value, Value, Value)> {
    let first = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    let pods = agent.pods();
    pods.iter()
        .map(|pod| {
            (pod["metadata"]["name"].clone(), first(pod)["containerID"].clone(), first(pod)["restartCount"].clone())
        })
        .collect()
}

#[test]
fn an_unmounted_directory_stops_nothing_also_across_a_restart() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("unmounted");
    preload_busybox(&world);
    let manifests = world.path("agent/manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let place = manifests.display();
    mount_filled(&world, &manifests, &["a", "b"]);
    let mut agent = Agent::start(&world);
    for name in ["a", "b"] {
        agent.wait_ready(name);
    }
    let before = running(&agent);
    world.sh(&format!("umount '{place}'"));
    wait_readable(&agent, false);
    assert_eq!(running(&agent), before);
    refuses_to_write(&agent, "a");
    assert!(std::fs::read_dir(&manifests).unwrap().next().is_none(), "something was written below the mount");
    agent.kill();
    agent.launch();
    wait_readable(&agent, false);
    for name in ["a", "b"] {
        agent.wait_ready(name);
    }
    assert_eq!(running(&agent), before, "the agent that started without the mount");
    plan_names(&agent, &place.to_string());

    // Mounted again with what it had: as if nothing had been.
    mount_filled(&world, &manifests, &["a", "b"]);
    wait_readable(&agent, true);
    wait_until("nothing is held back or due", 20, || {
        let plan = agent.client(&["plan"]);
        if plan.code == 0 { Ok(()) } else { Err(plan.stdout) }
    });
    assert_eq!(running(&agent), before);
    // What is removed from it now was removed by somebody.
    world.sh(&format!("rm '{place}/a.yaml' '{place}/b.yaml'"));
    agent.wait_gone("a");
    agent.wait_gone("b");
    world.sh(&format!("umount '{place}'"));
}

/// Mounts a directory with a manifest for each of these pods, all at once and in the world alone.
fn mount_filled(world: &World, place: &Path, pods: &[&str]) {
    let aside = world.path("filled");
    std::fs::create_dir_all(&aside).unwrap();
    let (from, to) = (aside.display(), place.display());
    let files = pods.iter().map(|pod| format!("cat > '{from}/{pod}.yaml' <<'EOF'\n{}EOF\n", sleeper(pod, "1000")));
    let files: String = files.collect();
    world.sh(&format!("mount -t tmpfs manifests '{from}'\n{files}mount --move '{from}' '{to}'\n"));
}

#[test]
fn an_unmounted_folder_stops_nothing_also_across_a_restart() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("subfolder");
    preload_busybox(&world);
    let manifests = world.path("agent/manifests");
    let folder = manifests.join("sub");
    std::fs::create_dir_all(&folder).unwrap();
    let place = folder.display().to_string();
    mount_filled(&world, &folder, &["a"]);
    let mut agent = Agent::start(&world);
    agent.drop_manifest("b.yaml", &sleeper("b", "1000"));
    for name in ["a", "b"] {
        agent.wait_ready(name);
    }
    let before = running(&agent);
    world.sh(&format!("umount '{place}'"));
    let missed = |agent: &Agent<'_>| {
        wait_until("the folder is missed", 60, || {
            let told = source(agent).to_string();
            if told.contains("not mounted") && told.contains(&place) { Ok(()) } else { Err(told) }
        });
        assert_eq!(running(agent), before);
        plan_names(agent, &place);
    };
    missed(&agent);
    agent.kill();
    agent.launch();
    for name in ["a", "b"] {
        agent.wait_ready(name);
    }
    missed(&agent);

    // Back with another pod beside the one that it had.
    mount_filled(&world, &folder, &["a", "c"]);
    agent.wait_ready("c");
    agent.remove_manifest("b.yaml");
    agent.wait_gone("b");
    assert_eq!(agent.client(&["plan"]).code, 0);
    assert!(before.contains(&running(&agent)[0]), "the pod of the folder was never anew");
    // What is removed from it now was removed by somebody.
    world.sh(&format!("rm '{place}/a.yaml'"));
    agent.wait_gone("a");
    agent.client(&["drain"]).ok();
    world.sh(&format!("umount '{place}'"));
}

#[test]
fn errors_of_sources_are_events_a_metric_and_in_get_sources() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("told");
    let agent = Agent::with_busybox(&world);
    let description = std::fs::read_to_string(agent.run_dir().join("agent.json")).unwrap();
    let description: Value = serde_json::from_str(&description).unwrap();
    let address = description["listen"].as_str().unwrap().to_owned();
    // Value of the metric of the one source; 0 where it does not show.
    let metric = |name: &str| {
        let text = world.fetch(&format!("http://{address}/metrics")).expect("metrics");
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or_default()
    };
    // Events of that reason, each with its message.
    let events = |reason: &str| {
        let text = agent.client(&["get", "events", "-A", "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&text).unwrap();
        let all = list["items"].as_array().cloned().unwrap_or_default();
        let of = all.into_iter().filter(|event| event["reason"] == reason && event["type"] == "Warning");
        of.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let until = |what: &str, told: &dyn Fn() -> bool| {
        wait_until(what, 60, || if told() { Ok(()) } else { Err(agent.client(&["get", "events", "-A"]).stdout) });
    };
    until("the directory has been read", &|| metric("portreeve_source_ready") > 0.9);
    assert!(metric("portreeve_source_errors") < 0.1);

    agent.drop_manifest("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers: []\n");
    until("an event names file, line and field", &|| {
        events("InvalidManifest")
            .iter()
            .any(|message| message.contains("bad.yaml:") && message.contains("spec.containers"))
    });
    until("the metric counts the error", &|| metric("portreeve_source_errors") > 0.9);
    let table = agent.client(&["get", "sources"]).ok();
    assert!(table.contains("bad.yaml:") && table.contains("spec.containers"), "{table}");
    let told = events("InvalidManifest").len();
    agent.drop_manifest("good.yaml", &sleeper("good", "1000"));
    agent.wait_ready("good");
    assert_eq!(events("InvalidManifest").len(), told, "told once");
    agent.remove_manifest("bad.yaml");
    until("the metric is back", &|| metric("portreeve_source_errors") < 0.1);

    let aside = world.path("aside");
    std::fs::rename(agent.manifests(), &aside).unwrap();
    let place = agent.manifests().display().to_string();
    until("an event says that the directory cannot be read", &|| {
        events("SourceUnreadable").iter().any(|message| message.contains(&place))
    });
    until("the metric says so", &|| metric("portreeve_source_ready") < 0.1);
    assert_eq!(source(&agent)["status"]["state"], "Unreadable");
    let reason = source(&agent)["status"]["reason"].as_str().expect("a reason").to_owned();
    let table = agent.client(&["get", "sources"]).ok();
    assert!(!reason.is_empty() && table.lines().any(|line| line == format!("{place}: {reason}")), "{table}");
    std::fs::rename(&aside, agent.manifests()).unwrap();
    until("the metric is back", &|| metric("portreeve_source_ready") > 0.9);
}

#[test]
fn a_closed_or_renamed_file_counts_at_once_and_an_open_one_waits() {
    if skipped_without_root("sources") {
        return;
    }
    if std::env::var_os("PORTREEVE_GUEST").is_some() {
        skipped("how soon a file counts", "the guest is too slow for a bound below 200 ms to mean something");
        return;
    }
    let world = World::new("soon");
    let agent = Agent::start(&world);
    // A ConfigMap shows as soon as it counts: no container takes time of its own.
    let mut watch = agent.verb(&["get", "configmaps", "-w", "-o", "name"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = BufReader::new(watch.stdout.take().unwrap());
    let text = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: b}}\n");
    let mut wait_for = |name: &str| {
        let mut line = String::new();
        while line.trim() != format!("configmap/{name}") {
            line.clear();
            assert_ne!(seen.read_line(&mut line).unwrap(), 0, "the watch ended before {name} was seen");
        }
    };
    // The watch is there as soon as it shows something.
    agent.drop_manifest("first.yaml", &text("first"));
    wait_for("first");
    let path = |name: &str| agent.manifests().join(format!("{name}.yaml"));
    // Of several tries the soonest: a busy machine can only add.
    let mut soonest = |way: &str, write: &dyn Fn(&str) -> (Instant, Option<File>)| {
        let tries = (0..7).map(|number| {
            let name = format!("{way}-{number}");
            let (begun, open) = write(&name);
            wait_for(&name);
            let took = begun.elapsed();
            drop(open);
            took
        });
        tries.min().expect("there were tries")
    };
    let closed = soonest("closed", &|name| {
        std::fs::write(path(name), text(name)).unwrap();
        (Instant::now(), None)
    });
    let renamed = soonest("renamed", &|name| {
        let beside = world.path(name);
        std::fs::write(&beside, text(name)).unwrap();
        std::fs::rename(beside, path(name)).unwrap();
        (Instant::now(), None)
    });
    let open = soonest("open", &|name| {
        let mut file = File::create(path(name)).unwrap();
        file.write_all(text(name).as_bytes()).unwrap();
        (Instant::now(), Some(file))
    });
    watch.kill().unwrap();
    watch.wait().unwrap();
    eprintln!("closed {closed:?}, renamed {renamed:?}, open {open:?}");
    assert!(closed < Duration::from_millis(100), "a closed file counted after {closed:?} only");
    assert!(renamed < Duration::from_millis(100), "a renamed file counted after {renamed:?} only");
    // A file's times are those of the last clock tick, up to 10 ms ago.
    assert!(open >= Duration::from_millis(185), "a file that was still open counted after {open:?} already");
}

#[test]
fn the_first_owner_of_a_name_keeps_running() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("conflict");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("one.yaml", &sleeper("a", "1000"));
    agent.wait_ready("a");
    let id = container_id(&agent, "a");
    agent.drop_manifest("two.yaml", &sleeper("a", "2000"));
    let report = wait_for_source_error(&agent, "two.yaml");
    assert!(report.contains("one.yaml"), "{report}");
    assert_eq!(container_id(&agent, "a"), id);
    agent.remove_manifest("one.yaml");
    wait_until("the other file took over", 30, || {
        let pod = agent.pod("a").unwrap_or_default();
        if pod["spec"]["containers"][0]["command"][1] == "2000" && condition(&pod, "Ready") == Some("True") {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    });
}

#[test]
fn hidden_files_backups_and_other_names_do_not_run() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("names");
    let agent = Agent::with_busybox(&world);
    for name in [".hidden.yaml", "backup.yaml~", "old.yaml.bak", "#edit.yaml#", "notes.txt", ".a.yaml.swp"] {
        std::fs::write(agent.manifests().join(name), sleeper("wrong", "1")).unwrap();
    }
    std::fs::create_dir(agent.manifests().join("deep")).unwrap();
    std::fs::write(agent.manifests().join("deep/right.yml"), sleeper("right", "1000")).unwrap();
    agent.wait_ready("right");
    assert!(agent.pod("wrong").is_none());
}

#[test]
fn apply_writes_files_and_delete_removes_only_those() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("apply");
    let agent = Agent::with_busybox(&world);
    let file = world.path("mine.yaml");
    std::fs::write(&file, sleeper("mine", "1000")).unwrap();
    agent.client(&["apply", "-f", &file.to_string_lossy()]).ok();
    agent.wait_ready("mine");
    assert!(agent.manifests().join("applied/pod.default.mine.yaml").exists());

    agent.drop_manifest("other.yaml", &sleeper("other", "1000"));
    agent.wait_ready("other");
    let refused = agent.client(&["delete", "pod", "other"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("other.yaml"), "{}", refused.stderr);
    std::fs::write(&file, sleeper("other", "5")).unwrap();
    let refused = agent.client(&["apply", "-f", &file.to_string_lossy()]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("other.yaml:"), "{}", refused.stderr);

    agent.client(&["delete", "pod", "mine"]).ok();
    agent.wait_gone("mine");
    assert!(agent.pod("other").is_some());
}
