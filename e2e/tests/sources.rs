//! The directory of manifests: last good state, conflicts, and what is not a manifest.

use portreeve_e2e::{Agent, BUSYBOX, World, condition, patience, skipped_without_root, wait_until};

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

#[test]
fn a_directory_that_cannot_be_read_stops_nothing() {
    if skipped_without_root("sources") {
        return;
    }
    let world = World::new("unreadable");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &sleeper("a", "1000"));
    agent.wait_ready("a");
    let id = container_id(&agent, "a");
    let manifests = agent.manifests();
    let aside = world.path("aside");
    std::fs::rename(&manifests, &aside).unwrap();
    std::thread::sleep(patience(1));
    assert_eq!(container_id(&agent, "a"), id);
    // Another directory in its place that is empty: as after a failed mount.
    std::fs::create_dir(&manifests).unwrap();
    std::thread::sleep(patience(1));
    assert_eq!(container_id(&agent, "a"), id);
    std::fs::remove_dir(&manifests).unwrap();
    std::fs::rename(&aside, &manifests).unwrap();
    agent.remove_manifest("a.yaml");
    agent.wait_gone("a");
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
