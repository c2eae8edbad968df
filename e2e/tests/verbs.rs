//! The client verbs against a real agent, as a user runs them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use portreeve_e2e::{Agent, BUSYBOX, Image, World, skipped_without_root, wait_until};

/// A pod of one container, with a line of YAML of its own in the container.
fn pod(name: &str, command: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - name: main\n    image: {BUSYBOX}\n    command: [sh, -c, '{command}']\n    {more}\n"
    )
}

#[test]
fn cp_carries_files_and_directories_both_ways() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("cp");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "sleep 1000", ""));
    agent.wait_ready("a");
    let tree = world.path("tree");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    std::fs::write(tree.join("deep/er/file"), vec![7_u8; 3 << 20]).unwrap();
    std::fs::write(tree.join("tool"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();

    agent.client(&["cp", tree.to_str().unwrap(), "a:/tmp/tree"]).ok();
    let seen = agent.client(&["exec", "a", "--", "stat", "-c", "%a %s", "/tmp/tree/tool", "/tmp/tree/deep/er/file"]);
    assert_eq!(seen.ok(), "755 10\n644 3145728\n");
    let back = world.path("back");
    agent.client(&["cp", "a:/tmp/tree", back.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read(back.join("deep/er/file")).unwrap(), vec![7_u8; 3 << 20]);
    let one = world.path("one");
    agent.client(&["cp", "default/a:/etc/group", one.to_str().unwrap(), "-c", "main"]).ok();
    assert!(std::fs::read_to_string(one).unwrap().starts_with("root:x:0:"));
    let missing = agent.client(&["cp", "a:/none", world.path("none").to_str().unwrap()]);
    assert!(missing.code == 1 && missing.stderr.contains("/none"), "{missing:?}");
}

#[test]
fn attach_reaches_the_process_itself_and_logs_tell_the_same() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("attach");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "while read line; do echo got $line; done", "stdin: true"));
    agent.wait_ready("a");
    let mut attached = agent.verb(&["attach", "-i", "a"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = attached.stdin.take().unwrap();
    let mut output = BufReader::new(attached.stdout.take().unwrap());
    input.write_all(b"one\ntwo\n").unwrap();
    let mut lines = String::new();
    output.read_line(&mut lines).unwrap();
    output.read_line(&mut lines).unwrap();
    assert_eq!(lines, "got one\ngot two\n");
    attached.kill().unwrap();
    attached.wait().unwrap();
    assert_eq!(agent.client(&["logs", "a"]).ok(), "got one\ngot two\n");
    let pod = agent.pod("a").unwrap();
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "leaving an attach ends nothing");
}

#[test]
fn logs_follow_look_back_and_know_the_container_before() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("logs");
    let agent = Agent::with_busybox(&world);
    let script = "echo first; echo second; until [ -e /tmp/go ]; do sleep 0.1; done; echo third; sleep 0.2; exit 0";
    agent.drop_manifest("a.yaml", &pod("a", script, ""));
    agent.wait_ready("a");
    let mut follower = agent.verb(&["logs", "-f", "--tail", "1", "a"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut followed = BufReader::new(follower.stdout.take().unwrap());
    let mut line = String::new();
    followed.read_line(&mut line).unwrap();
    assert_eq!(line, "second\n");
    agent.client(&["exec", "a", "--", "touch", "/tmp/go"]).ok();
    let mut rest = String::new();
    followed.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "third\n", "following ends with the container");
    assert!(follower.wait().unwrap().success());

    agent.wait_pod("a", "was restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1);
    assert_eq!(agent.client(&["logs", "-p", "a"]).ok(), "first\nsecond\nthird\n");
    let stamped = agent.client(&["logs", "-p", "--timestamps", "--tail", "1", "a"]).ok();
    let (stamp, text) = stamped.split_once(' ').unwrap();
    assert!(stamp.starts_with("20") && stamp.contains('T') && text == "third\n", "{stamped}");
    assert_eq!(agent.client(&["logs", "-p", "--since", "1h", "a"]).ok(), "first\nsecond\nthird\n");
    let wrong = agent.client(&["logs", "a", "-c", "nobody"]);
    assert!(wrong.code == 1 && wrong.stderr.contains("nobody"), "{wrong:?}");
}

#[test]
fn a_forwarded_port_speaks_with_the_pod() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("forward");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("web.yaml", &pod("web", "exec httpd -f -p 8080 -h /www", ""));
    agent.wait_ready("web");
    let mut forward = agent.verb(&["port-forward", "pod/web", ":8080"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut output = BufReader::new(forward.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert!(said.starts_with("Forwarding from 127.0.0.1:"), "{said}");
    let port: u16 = said.split([':', ' ']).find_map(|word| word.parse().ok()).unwrap();
    let page = wait_until("the page comes through", 10, || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(|error| error.to_string())?;
        let mut page = String::new();
        stream.read_to_string(&mut page).map_err(|error| error.to_string())?;
        if page.is_empty() { Err("nothing yet".to_owned()) } else { Ok(page) }
    });
    assert!(page.ends_with("a page from busybox\n"), "{page}");
    forward.kill().unwrap();
    forward.wait().unwrap();
    let missing = agent.client(&["port-forward", "none", ":80"]);
    assert!(missing.code == 1 && missing.stderr.contains("none"), "{missing:?}");
}

#[test]
fn top_restart_and_drain_do_what_they_say() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("operate");
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "sleep 1000", ""));
    agent.drop_manifest("b.yaml", &pod("b", "trap \"exit 0\" TERM; sleep 1000 & wait", ""));
    let first = agent.wait_ready("a");
    let other = agent.wait_ready("b");
    let table = agent.client(&["top", "pods"]).ok();
    assert!(table.starts_with("NAME") && table.contains("CPU(cores)") && table.contains("MEMORY(bytes)"), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    let memory: u64 =
        table.lines().nth(1).and_then(|l| l.split_whitespace().last()?.strip_suffix("Mi")?.parse().ok()).unwrap();
    assert!(memory < 64, "{table}");

    agent.client(&["restart", "pod", "a"]).ok();
    let again = agent.wait_pod("a", "runs again", |pod| {
        let before = &first["status"]["containerStatuses"][0]["containerID"];
        let now = &pod["status"]["containerStatuses"][0];
        now["ready"] == true && now["containerID"] != *before
    });
    assert_eq!(again["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(again["status"]["podIP"], first["status"]["podIP"], "the sandbox stays");
    assert_eq!(agent.pod("b").unwrap()["status"], other["status"], "the other pod is left alone");
    let nobody = agent.client(&["restart", "pod", "nobody"]);
    assert!(nobody.code == 1 && nobody.stderr.contains("nobody"), "{nobody:?}");

    let drained = agent.client(&["drain", "--grace-period", "5"]).ok();
    assert!(drained.contains("pod default/a stopped") && drained.contains("pod default/b stopped"), "{drained}");
    assert!(agent.census().contained.is_empty(), "{:?}", agent.census().contained);
    assert!(agent.manifests().join("a.yaml").exists(), "files stay the truth");
    agent.kill();
    agent.launch();
    assert_eq!(agent.wait_ready("a")["metadata"]["uid"], first["metadata"]["uid"]);
}

#[test]
fn images_are_loaded_listed_and_removed_but_not_under_a_container() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("images");
    let agent = Agent::start(&world);
    let image = Image::busybox(world.home(), BUSYBOX);
    let loaded = agent.client(&["image", "load", image.tar.to_str().unwrap()]).ok();
    assert!(loaded.contains(BUSYBOX), "{loaded}");
    let table = agent.client(&["image", "ls"]).ok();
    assert!(table.contains("test.local/busybox") && table.lines().count() == 2, "{table}");
    agent.drop_manifest("a.yaml", &pod("a", "sleep 1000", "imagePullPolicy: Never"));
    agent.wait_ready("a");
    let used = agent.client(&["image", "rm", BUSYBOX]);
    assert!(used.code == 1 && used.stderr.contains("in use"), "{used:?}");
    agent.remove_manifest("a.yaml");
    agent.wait_gone("a");
    agent.client(&["image", "rm", BUSYBOX]).ok();
    assert_eq!(agent.client(&["image", "ls"]).ok().lines().count(), 1);
    let half = world.path("half.tar");
    let whole = std::fs::read(&image.tar).unwrap();
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let broken = agent.client(&["image", "load", half.to_str().unwrap()]);
    assert!(broken.code == 1 && !broken.stderr.is_empty(), "{broken:?}");
    assert_eq!(agent.client(&["image", "ls"]).ok().lines().count(), 1, "half an image is none");
}

#[test]
fn describe_shows_what_is_wrong_and_get_watches() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("describe");
    let agent = Agent::with_busybox(&world);
    let mut watch = agent.verb(&["get", "pods", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut watched = BufReader::new(watch.stdout.take().unwrap());
    agent.drop_manifest("a.yaml", &pod("a", "exit 3", ""));
    agent.wait_pod("a", "has crashed", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let page = agent.client(&["describe", "pod", "a"]).ok();
    for part in ["Name:", "Namespace:", "Exit Code:", "CrashLoopBackOff", "Events:", "BackOff"] {
        assert!(page.contains(part), "{part} is missing:\n{page}");
    }
    let mut header = String::new();
    watched.read_line(&mut header).unwrap();
    assert!(header.starts_with("NAME"), "{header}");
    let mut row = String::new();
    while !row.contains("CrashLoopBackOff") {
        row.clear();
        assert_ne!(watched.read_line(&mut row).unwrap(), 0, "the watch ended");
        assert!(row.starts_with("a "), "{row}");
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}
