//! The client verbs against a real agent, as a user runs them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use portreeve_e2e::{Agent, BUSYBOX, Image, World, skipped_without_root, wait_until};
use serde_json::json;

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
    let climbed = agent.client(&["cp", "a:/tmp/../etc/group", "/dev/stdout"]).ok();
    assert!(climbed.starts_with("root:x:0:"), "{climbed}");
    let missing = agent.client(&["cp", "a:/none", world.path("none").to_str().unwrap()]);
    assert!(missing.code == 1 && missing.stderr.contains("/none"), "{missing:?}");
}

#[test]
fn attach_reaches_the_process_itself_and_logs_tell_the_same() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("attach");
    let mut agent = Agent::with_busybox(&world);
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

    let mut session = Watch::begin(&agent, &["exec", "a", "--", "sh", "-c", "echo here; sleep 1000"]);
    session.until(|line| line == "here\n");
    agent.kill();
    let (code, said) = session.end();
    assert!(code == Some(1) && said.starts_with("error: the agent went away"), "{said}");
    agent.launch();
}

#[test]
fn logs_are_five_files_of_ten_mebibytes() {
    if skipped_without_root("verbs") {
        return;
    }
    const FILE: u64 = 10 << 20;
    let world = World::new("rotation");
    let agent = Agent::with_busybox(&world);
    // Without an end of line: written in parts of 16 KiB each, as fast as they are read.
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" },
        "spec": { "restartPolicy": "Never", "containers": [
            { "name": "c", "image": BUSYBOX, "command": ["head", "-c", "68000000", "/dev/zero"] },
        ] },
    });
    agent.drop_manifest("a.yaml", &manifest.to_string());
    agent.wait_pod("a", "Succeeded", |pod| pod["status"]["phase"] == "Succeeded");
    let listed =
        world.sh(&format!("find {} -name '*.log*' -printf '%f %s\\n' | sort", agent.root().join("logs").display()));
    let files: Vec<(&str, u64)> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, size)| (name, size.parse().unwrap()))
        .collect();
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["0.log", "0.log.1", "0.log.2", "0.log.3", "0.log.4"]);
    assert!(files[0].1 < FILE + (64 << 10), "{listed}");
    for (_, size) in &files[1..] {
        assert!((FILE..FILE + (64 << 10)).contains(size), "{listed}");
    }
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
    // Ready says that it runs, not how far it has come.
    wait_until("both lines are there", 20, || {
        let said = agent.client(&["logs", "a"]).stdout;
        if said == "first\nsecond\n" { Ok(()) } else { Err(said) }
    });
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
    for all in ["0s", "0"] {
        assert_eq!(agent.client(&["logs", "-p", "--since", all, "a"]).ok(), "first\nsecond\nthird\n");
    }
    assert_eq!(agent.client(&["logs", "a", "--tail=-5"]).code, 2);
    let when = agent.client(&["logs", "a", "--since-time", "yesterday"]);
    assert!(when.code == 1 && when.stderr.contains("such as 20"), "{when:?}");
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
    let ports = "ports: [{name: http, containerPort: 8080}]";
    agent.drop_manifest("web.yaml", &pod("web", "exec httpd -f -p 8080 -h /www", ports));
    agent.wait_ready("web");
    let mut forward = agent.verb(&["port-forward", "pod/web", ":http"]).stdout(Stdio::piped()).spawn().unwrap();
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
    let unnamed = agent.client(&["port-forward", "web", ":https"]);
    assert!(unnamed.code == 1 && unnamed.stderr.contains("no port named \"https\": http"), "{unnamed:?}");
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
    // The kernel may still be taking the last processes down.
    wait_until("no process of a pod is left", 10, || {
        let left = agent.census().contained;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert!(agent.manifests().join("a.yaml").exists(), "files stay the truth");
    let plan = agent.client(&["plan"]).ok();
    let told = "The node is drained: nothing is started until the agent is started again.\n";
    assert!(plan.ends_with(told), "{plan}");
    let plan: serde_json::Value = serde_json::from_str(&agent.client(&["plan", "-o", "json"]).ok()).unwrap();
    assert_eq!(plan["drained"], true, "{plan}");
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
    assert!(!table.contains("<unknown>"), "an image without a date has the age of its loading: {table}");
    agent.drop_manifest("a.yaml", &pod("a", "sleep 1000", "imagePullPolicy: Never"));
    agent.wait_ready("a");
    let used = agent.client(&["image", "rm", BUSYBOX]);
    assert!(used.code == 1 && used.stderr.contains("in use by container main of pod default/a"), "{used:?}");
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

/// A client that goes on, and its output line by line.
struct Watch {
    process: std::process::Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Watch {
    fn begin(agent: &Agent<'_>, arguments: &[&str]) -> Watch {
        let mut process =
            agent.verb(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the watch starts");
        let output = BufReader::new(process.stdout.take().expect("stdout is a pipe"));
        Watch { process, output }
    }

    /// Reads until a line satisfies.
    fn until(&mut self, satisfied: impl Fn(&str) -> bool) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).expect("a line"), 0, "the watch ended");
            if satisfied(&line) {
                return line;
            }
        }
    }

    /// What it says on standard error at its end.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.process.stderr.take().expect("stderr is a pipe").read_to_string(&mut said).expect("text");
        (self.process.wait().expect("its end").code(), said)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // One that has ended is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn get_watches_containers_images_and_sources_until_the_agent_goes_away() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("watching");
    let mut agent = Agent::start(&world);
    let image = Image::busybox(world.home(), BUSYBOX);
    let mut containers = Watch::begin(&agent, &["get", "containers", "-w", "--no-headers"]);
    let mut images = Watch::begin(&agent, &["get", "images", "-w", "-o", "name"]);
    let mut sources = Watch::begin(&agent, &["get", "sources", "-w", "-o", "json"]);
    sources.until(|line| line.contains("\"state\": \"Ready\""));
    agent.client(&["image", "load", image.tar.to_str().unwrap()]).ok();
    images.until(|line| line == format!("image.portreeve.dev/{BUSYBOX}\n"));
    agent.drop_manifest("a.yaml", &pod("a", "sleep 1000", "imagePullPolicy: Never"));
    let row = containers.until(|line| line.contains("Running"));
    assert!(row.starts_with("main "), "{row}");
    sources.until(|line| line.contains("\"objects\": 1"));

    // What is printed is taken, and so is what kubectl writes.
    for name in [&["containers", "main"][..], &["containers", "a/main"], &["container/a.main"], &["containers/a/main"]]
    {
        let shown = agent.client(&[&["get"], name, &["-o", "name"]].concat()).ok();
        assert_eq!(shown, "container.portreeve.dev/a.main\n", "{name:?}");
    }
    let both = agent.client(&["get", "pods/a", "container.portreeve.dev/a.main", "--no-headers"]).ok();
    let first: Vec<&str> = both.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(first, ["pod/a", "container.portreeve.dev/main"], "{both}");
    let kinds = agent.client(&["get", "pods,images", "-o", "name"]).ok();
    assert_eq!(kinds, format!("pod/a\nimage.portreeve.dev/{BUSYBOX}\n"));
    let absent = agent.client(&["get", "pods/a", "pods/b"]);
    assert!(absent.code == 1 && absent.stdout.contains("a "), "{absent:?}");
    assert_eq!(absent.stderr, "error: pods \"b\" not found\n");

    let mut table = Watch::begin(&agent, &["get", "sources", "-w"]);
    table.until(|line| line.starts_with("NAME"));
    agent.drop_manifest("broken.yaml", "kind: [\n");
    table.until(|line| line.contains("broken.yaml:") && line.contains(": error: "));
    agent.remove_manifest("broken.yaml");
    agent.remove_manifest("a.yaml");
    sources.until(|line| line.contains("\"objects\": 0"));
    agent.wait_gone("a");
    agent.client(&["image", "rm", BUSYBOX]).ok();
    // The last state of what goes is shown as it goes.
    images.until(|line| line == format!("image.portreeve.dev/{BUSYBOX}\n"));
    agent.kill();
    let (code, said) = images.end();
    assert_eq!(code, Some(1));
    assert!(said.starts_with("error: the agent went away"), "{said}");
    agent.launch();
}

#[test]
fn delete_takes_what_is_there_and_tells_what_is_not() {
    if skipped_without_root("verbs") {
        return;
    }
    let world = World::new("delete");
    let agent = Agent::start(&world);
    let map = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
    let (one, both) = (world.path("one.yaml"), world.path("both.yaml"));
    std::fs::write(&one, map("one")).unwrap();
    std::fs::write(&both, map("none") + "---\n" + &map("one")).unwrap();
    let (one, both) = (one.to_str().unwrap(), both.to_str().unwrap());
    agent.client(&["apply", "-f", one]).ok();
    let deleted = agent.client(&["delete", "-f", both]);
    assert_eq!((deleted.code, deleted.stdout.as_str()), (1, "configmap \"one\" deleted\n"));
    assert_eq!(deleted.stderr, "error: ConfigMap default/none not found\n");
    assert!(!agent.manifests().join("applied/configmap.default.one.yaml").exists());
    agent.client(&["delete", "-f", both, "--ignore-not-found"]).ok();

    agent.client(&["apply", "-n", "prod", "-f", one]).ok();
    assert!(agent.manifests().join("applied/configmap.prod.one.yaml").exists());
    let now = agent.client(&["delete", "-n", "prod", "-f", one, "--now"]);
    assert!(now.code == 1 && now.stderr.contains("terminationGracePeriodSeconds"), "{now:?}");
    agent.client(&["delete", "-n", "prod", "-f", one]).ok();
    assert!(!agent.manifests().join("applied/configmap.prod.one.yaml").exists());

    // Standard input is empty here.
    let nothing = agent.client(&["apply", "-f", "-"]);
    assert_eq!(nothing.code, 1);
    assert!(nothing.stderr.ends_with("error: no objects passed to apply\n"), "{nothing:?}");
}
