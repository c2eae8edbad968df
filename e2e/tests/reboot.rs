//! After the machine was off: processes, mounts, links, rules and the run directory are gone, the
//! root directory is not.

use portreeve_e2e::{Agent, BUSYBOX, World, skipped_without_root, wait_until};

fn pod(name: &str, policy: &str, command: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  terminationGracePeriodSeconds: 0\n  \
         volumes: [{{name: v, emptyDir: {{}}}}]\n  containers:\n  - {{name: main, image: '{BUSYBOX}', command: [sh, -c, '{command}'], \
         volumeMounts: [{{name: v, mountPath: /v}}]}}\n"
    )
}

#[test]
fn pods_come_back_under_their_uids_and_finished_ones_stay_finished() {
    if skipped_without_root("reboot") {
        return;
    }
    let world = World::new("reboot");
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest("server.yaml", &pod("server", "Always", "echo up; sleep 1000"));
    agent.drop_manifest("done.yaml", &pod("done", "Never", "echo result"));
    agent.drop_manifest("failed.yaml", &pod("failed", "Never", "exit 4"));
    let server = agent.wait_ready("server");
    let done = agent.wait_pod("done", "is done", |pod| pod["status"]["phase"] == "Succeeded");
    agent.wait_pod("failed", "has failed", |pod| pod["status"]["phase"] == "Failed");

    agent.lose_power();

    let again = agent.wait_ready("server");
    assert_eq!(again["metadata"]["uid"], server["metadata"]["uid"]);
    assert_eq!(again["metadata"]["creationTimestamp"], server["metadata"]["creationTimestamp"]);
    let container = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_ne!(container(&again), container(&server));
    let kept = agent.pod("done").expect("a finished pod stays");
    assert_eq!(kept["metadata"]["uid"], done["metadata"]["uid"]);
    assert_eq!(kept["status"]["phase"], "Succeeded");
    assert_eq!(kept["status"]["containerStatuses"][0]["state"], done["status"]["containerStatuses"][0]["state"]);
    assert_eq!(agent.pod("failed").unwrap()["status"]["phase"], "Failed");
    // Its container is gone with the run directory, its log is not.
    assert_eq!(agent.client(&["logs", "done"]).ok(), "result\n");
    assert!(agent.client(&["describe", "pod", "failed"]).ok().contains("Exit Code:"));
    for (name, phase) in [("done", "Succeeded"), ("failed", "Failed")] {
        let refused = agent.client(&["exec", name, "--", "true"]);
        let words = format!("cannot exec into a container in a completed pod; current phase is {phase}");
        assert!(refused.code == 1 && refused.stderr.contains(&words), "{refused:?}");
    }
    wait_until("only the server runs", 10, || {
        let census = agent.census();
        let sandboxes = census.files.iter().filter(|path| path.to_string_lossy().contains("sandboxes")).count();
        if sandboxes == 1 { Ok(()) } else { Err(format!("{census:?}")) }
    });
    agent.remove_manifest("done.yaml");
    agent.wait_gone("done");
}
