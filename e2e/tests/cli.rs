//! The command line as people and scripts meet it: exit codes, forms of output, terminals.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::{
    Agent, Answer, BUSYBOX, Image, Registry, World, binary, preload_busybox, skipped, skipped_without_host_ports,
    skipped_without_root, wait_until,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn pod(name: &str, command: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', command: [sh, -c, '{command}']}}\n"
    )
}

/// Runs the binary with nothing of the caller's environment that names an agent.
fn portreeve(arguments: &[&str]) -> Answer {
    bare(arguments).output().expect("the binary runs").into()
}

fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    for variable in ["PORTREEVE_RUN", "PORTREEVE_SOCKET", "PORTREEVE_CONFIG"] {
        command.env_remove(variable);
    }
    command
}

/// Runs a command with `input` on its standard input.
fn with_input(mut command: Command, input: impl AsRef<[u8]>) -> Answer {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a verb");
    child.stdin.take().expect("a pipe").write_all(input.as_ref()).expect("writing to a verb");
    child.wait_with_output().expect("a verb").into()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    /// Kept open: its settings outlive the program.
    line: OwnedFd,
    /// The settings, as `stty -g` tells them, that the program found.
    found: String,
    said: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts the program as the foreground of a terminal of 30 lines with 90 columns.
    fn start(program: &Path, arguments: &[&str]) -> Terminal {
        let size = Winsize { ws_row: 30, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).expect("a terminal");
        let stream = || Stdio::from(pair.slave.try_clone().expect("another descriptor"));
        let found = stty(&pair.slave, &["-g"]);
        // Only of a session's own terminal does the kernel tell a change of the size.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(program)
            .args(arguments)
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .spawn()
            .expect("setsid of util-linux");
        let keyboard = File::from(pair.master);
        let said = Arc::new(Mutex::new(String::new()));
        let (mut screen, heard) = (keyboard.try_clone().expect("another descriptor"), Arc::clone(&said));
        // It ends with the terminal, whose last descriptors are this one's and the test's.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                heard.lock().expect("nobody panics with it").push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        Terminal { child, keyboard, line: pair.slave, found, said }
    }

    fn said(&self) -> String {
        self.said.lock().expect("nobody panics with it").clone()
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("typing");
    }

    fn wait_for(&self, text: &str) {
        wait_until(&format!("the terminal shows {text:?}"), 30, || {
            let said = self.said();
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    }

    /// What `stty` answers about this terminal.
    fn stty(&self, arguments: &[&str]) -> String {
        stty(&self.line, arguments)
    }

    fn wait(&mut self) -> i32 {
        wait_until("the program on the terminal ends", 30, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.code().unwrap_or(-1)),
            other => Err(format!("{other:?}, it said {}", self.said())),
        })
    }
}

fn stty(line: &OwnedFd, arguments: &[&str]) -> String {
    let line = Stdio::from(line.try_clone().expect("another descriptor"));
    Answer::from(Command::new("stty").args(arguments).stdin(line).output().expect("stty of coreutils")).ok()
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended is as good; setsid passes nothing on, the loss of the terminal ends the program.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_binary_is_linked_at_a_fixed_address() {
    let mut header = [0; 18];
    File::open(binary()).unwrap().read_exact(&mut header).unwrap();
    assert_eq!(&header[..6], b"\x7fELF\x02\x01", "an ELF file of 64 bits, little-endian");
    assert_eq!(u16::from_le_bytes([header[16], header[17]]), 2, "ET_EXEC, not ET_DYN");
}

#[test]
fn the_binary_needs_no_interpreter_and_no_libraries() {
    // Flags of the environment replace those of the repository, for this program as for the binary.
    if !cfg!(target_feature = "crt-static") {
        portreeve_e2e::skipped("the_binary_needs_no_interpreter_and_no_libraries", "this build is not a static one");
        return;
    }
    let elf = std::fs::read(binary()).unwrap();
    let number = |at: usize, bytes: usize| {
        usize::try_from(elf[at..at + bytes].iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)))
            .unwrap()
    };
    // elf(5): the program headers' place, size and count; of each the type. PT_DYNAMIC is 2, PT_INTERP 3.
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: Vec<_> = (0..count).map(|index| number(table + index * size, 4)).collect();
    assert!(kinds.contains(&1), "something is loaded: {kinds:?}");
    assert!(!kinds.contains(&2) && !kinds.contains(&3), "{kinds:?}");
}

#[test]
fn version_and_completion_need_no_agent() {
    let version = portreeve(&["version"]).ok();
    assert_eq!(version, portreeve(&["--version"]).ok());
    let number = version.strip_prefix("portreeve ").expect("name and number").trim_end();
    assert!(number.split('.').count() == 3 && number.starts_with(|digit: char| digit.is_ascii_digit()), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = portreeve(&["completion", shell]).ok();
        for word in ["port-forward", "validate", "--output", "--watch"] {
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(script.contains(word), "{shell}: {word} is missing");
        }
        let mut parse = Command::new(shell);
        parse.arg("-n").stdout(Stdio::piped());
        match Command::new(shell).arg("--version").output() {
            Ok(_) => {
                let parsed = with_input(parse, &script);
                assert!(parsed.code == 0 && parsed.stderr.is_empty(), "{shell}: {}", parsed.stderr);
            }
            Err(_) => skipped(&format!("the completion of {shell}"), &format!("{shell} is not installed")),
        }
    }
    assert_eq!(portreeve(&["completion", "tcsh"]).code, 2);
}

#[test]
fn help_begins_with_what_it_is_for_and_knows_every_verb() {
    let help = portreeve(&["--help"]).ok();
    assert!(help.starts_with("Runs pods on this Linux machine"), "{help}");
    assert_eq!(portreeve(&["help", "get"]).ok(), portreeve(&["get", "--help"]).ok());
}

#[test]
fn an_agent_takes_no_flags_of_clients() {
    for (flag, value) in [("--socket", "/nowhere"), ("--request-timeout", "5s")] {
        // Where the flag is taken, the file that is not there ends it.
        let refused = portreeve(&["agent", "--config", "/nonexistent", flag, value]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(flag), "{refused:?}");
    }
}

#[test]
fn what_has_no_end_or_no_writer_is_not_waited_for() {
    // One that does wait, or takes all that comes, is ended.
    let bounded = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -v 4000000; exec timeout 20 "$0" "$@""#]).arg(binary()).args(arguments);
        Answer::from(command.stdin(Stdio::null()).output().expect("sh and timeout"))
    };
    let endless = bounded(&["validate", "/dev/zero"]);
    assert!(endless.code == 1 && endless.stdout.contains("is larger than 4194304 bytes"), "{endless:?}");
    let piped = with_input(bare(&["validate", "-"]), vec![b'#'; (4 << 20) + 1]);
    assert!(piped.code == 1 && piped.stdout.contains("is larger than 4194304 bytes"), "{piped:?}");
    let home = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&home.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let folder = home.path().to_str().unwrap();
    for verb in [&["validate", folder][..], &["validate", "-f", folder], &["plan", folder], &["apply", "-f", folder]] {
        let refused = bounded(verb);
        let told = format!("{}{}", refused.stdout, refused.stderr);
        assert!(refused.code == 1 && told.contains("pipe.yaml: it is no regular file"), "{refused:?}");
    }
    let folder = portreeve(&["image", "load", folder]);
    assert!(folder.code == 1 && folder.stderr.contains("is a directory"), "{folder:?}");
}

#[test]
fn validate_answers_by_exit_code_and_in_json() {
    let home = tempfile::tempdir().unwrap();
    let (good, bad) = (home.path().join("good.yaml"), home.path().join("bad.yaml"));
    std::fs::write(&good, pod("good", "true").replace("spec:\n", "spec:\n  schedulerName: other\n")).unwrap();
    std::fs::write(&bad, "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers:\n  - {name: main}\n")
        .unwrap();
    let of = |paths: &[&Path]| {
        let paths = paths.iter().map(|path| path.to_str().unwrap());
        let all: Vec<&str> = ["validate", "-o", "json"].into_iter().chain(paths).collect();
        let told = portreeve(&all);
        (told.code, json(&told.stdout))
    };
    let (code, report) = of(&[&good]);
    assert_eq!((code, &report["files"], &report["errors"]), (0, &1.into(), &0.into()), "{report}");
    assert_eq!(report["objects"], serde_json::json!(["Pod default/good"]));
    let (code, report) = of(&[&good, &bad]);
    assert_eq!((code, &report["files"], &report["errors"]), (1, &2.into(), &1.into()), "{report}");
    let problems = report["problems"].as_array().expect("problems");
    let error = problems.iter().find(|problem| problem["severity"] == "error").expect("an error");
    assert_eq!(error["file"], bad.to_str().unwrap());
    assert_eq!(error["field"], "spec.containers[0].image");
    assert_eq!(error["position"]["line"], 6, "{error}");
    for key in ["reason", "message"] {
        assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "{key} is missing: {error}");
    }
    let text = portreeve(&["validate", bad.to_str().unwrap()]);
    assert!(text.code == 1 && text.stdout.contains("bad.yaml:6:"), "{}", text.stdout);
    // What cannot be opened hides nothing of the others.
    let none = home.path().join("none.yaml");
    let (code, report) = of(&[&none, &bad, home.path(), &good]);
    assert_eq!(code, 1);
    let files =
        |problem: &Value| (problem["severity"] == "error").then(|| problem["file"].as_str().unwrap().to_owned());
    let files: Vec<_> = report["problems"].as_array().unwrap().iter().filter_map(files).collect();
    assert!(files.contains(&none.to_str().unwrap().to_owned()), "{report}");
    assert!(files.contains(&bad.to_str().unwrap().to_owned()), "{report}");
    assert_eq!(report["problems"][0]["reason"], "Unreadable", "{report}");
}

#[test]
fn explain_prints_what_a_manifest_can_say() {
    let text = portreeve(&["explain", "--support"]).ok();
    let row = |subject: &str| {
        let row = text.lines().find(|line| line.split_whitespace().next() == Some(subject));
        row.unwrap_or_else(|| panic!("no row for {subject}: {text}")).split_whitespace().nth(1).unwrap().to_owned()
    };
    for (subject, support) in [
        ("Pod", "yes"),
        ("ConfigMap", "yes"),
        ("Deployment", "error"),
        ("Service", "warning"),
        ("Pod.spec.containers[].image", "yes"),
        ("Pod.spec.containers[].env[].valueFrom.fileKeyRef", "error"),
        ("Pod.spec.affinity", "warning"),
    ] {
        assert_eq!(row(subject), support, "{subject}");
    }
    let rows = json(&portreeve(&["explain", "--support", "-o", "json"]).ok());
    assert_eq!(rows.as_array().unwrap().len(), text.lines().count());
    let refused = portreeve(&["explain"]);
    assert!(refused.code == 2 && refused.stderr.contains("--support"), "{refused:?}");
}

#[test]
fn colour_is_for_terminals_alone() {
    let home = tempfile::tempdir().unwrap();
    let bad = home.path().join("bad.yaml");
    std::fs::write(&bad, "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\n").unwrap();
    for arguments in [vec!["validate", bad.to_str().unwrap()], vec!["doctor"]] {
        let piped = Answer::from(bare(&arguments).output().unwrap());
        assert!(!piped.stdout.contains('\x1b') && !piped.stderr.contains('\x1b'), "{}{}", piped.stdout, piped.stderr);
        let mut terminal = Terminal::start(&binary(), &arguments);
        assert_eq!(terminal.wait(), piped.code);
        terminal.wait_for("\x1b[3");
    }
}

#[test]
fn doctor_tells_each_fact_as_text_and_as_json() {
    if skipped_without_root("doctor") {
        return;
    }
    let world = World::new("doctor");
    let doctor =
        |arguments: &[&str]| Answer::from(world.command(binary()).arg("doctor").args(arguments).output().unwrap());
    let facts = json(&doctor(&["-o", "json"]).ok());
    let facts = facts.as_array().expect("a list");
    let names: BTreeSet<&str> = facts.iter().filter_map(|fact| fact["name"].as_str()).collect();
    for name in [
        "root",
        "kernel",
        "cgroup",
        "controllers",
        "overlay",
        "seccomp",
        "user namespaces",
        "links",
        "nftables",
        "forwarding",
        "image trust",
        "AppArmor",
    ] {
        assert!(names.contains(name), "nothing is said of {name}: {names:?}");
    }
    let asked = doctor(&["--cri", "-o", "json", "--run", world.path("run").to_str().unwrap()]).ok();
    let more: BTreeSet<String> = json(&asked)
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|fact| fact["name"].as_str().map(str::to_owned))
        .collect();
    for name in ["CRI endpoint", "cgroups for kubelets", "swap space", "network of kubelets"] {
        assert!(more.contains(name) && !names.contains(name), "nothing is said of {name}: {more:?}");
    }
    let text = doctor(&[]).ok();
    for fact in facts {
        let (name, verdict) = (fact["name"].as_str().unwrap(), fact["verdict"].as_str().unwrap());
        let line = text.lines().find(|line| line.starts_with(verdict) && line.contains(name));
        assert!(line.is_some(), "{name} is not {verdict} in\n{text}");
        assert!(["ok", "limited"].contains(&verdict), "{fact}: a machine that runs this test lacks nothing");
        match fact["advice"].as_str() {
            Some(advice) => assert!(text.contains(&format!("-> {advice}")), "{advice} is not in\n{text}"),
            None => assert_eq!(verdict, "ok", "a lack without advice: {fact}"),
        }
    }
    if skipped_without_host_ports(&world, "a foreign chain in doctor") {
        return;
    }
    world.sh(
        "nft 'add table inet fire; add chain inet fire walls { type filter hook forward priority 0; policy drop; }'",
    );
    let facts = json(&doctor(&["-o", "json"]).ok());
    let firewall = facts.as_array().unwrap().iter().find(|fact| fact["name"] == "firewall");
    let firewall = firewall.unwrap_or_else(|| panic!("the foreign chain is not named: {facts:#}"));
    assert!(firewall["found"].as_str().unwrap().contains("fire") && firewall["verdict"] == "limited", "{firewall}");
    world.sh("nft delete table inet fire");
}

#[test]
fn plan_says_by_its_exit_code_whether_something_is_due() {
    let nobody = portreeve(&["plan", "--run", "/nonexistent/portreeve"]);
    assert!(nobody.code == 1 && nobody.stderr.contains("/nonexistent/portreeve/portreeve.sock"), "{}", nobody.stderr);
    assert!(nobody.stdout.is_empty(), "{}", nobody.stdout);
    if skipped_without_root("plan") {
        return;
    }
    let world = World::new("plan");
    let agent = Agent::with_busybox(&world);
    // What it ends by is a file, not a signal: until then its removal is due.
    let stubborn = pod("a", "trap \"\" TERM; until [ -e /tmp/go ]; do sleep 0.1; done")
        .replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 30");
    agent.drop_manifest("a.yaml", &stubborn);
    agent.wait_ready("a");
    wait_until("nothing is due", 20, || {
        let quiet = agent.client(&["plan"]);
        if (quiet.code, &*quiet.stdout) == (0, "No changes.\n") { Ok(()) } else { Err(quiet.stdout) }
    });
    let file = world.path("more.yaml");
    let path = file.to_str().unwrap();
    let missing = agent.client(&["plan", path]);
    assert!(missing.code == 1 && missing.stderr.contains("more.yaml"), "{}", missing.stderr);
    std::fs::write(&file, "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: []}\n").unwrap();
    let invalid = agent.client(&["plan", path]);
    assert_eq!(invalid.code, 1, "{}{}", invalid.stdout, invalid.stderr);
    assert!(invalid.stderr.contains("more.yaml:") && invalid.stderr.contains("spec.containers"), "{}", invalid.stderr);
    std::fs::write(&file, pod("b", "sleep 1000")).unwrap();
    let new = agent.client(&["plan", path]);
    assert!(new.code == 2 && new.stdout.contains("+ Pod default/b is new"), "{}{}", new.stdout, new.stderr);
    let report = agent.client(&["plan", "-o", "json", path]);
    assert_eq!(report.code, 2);
    let report = json(&report.stdout);
    let planned = report["pods"].as_array().unwrap().iter().find(|pod| pod["name"] == "b").expect("the new pod");
    let first = &planned["steps"][0];
    assert!(["action", "reason", "cost"].iter().all(|key| first[key].is_string()), "{planned}");
    assert!(agent.pod("b").is_none(), "a plan does nothing");

    agent.remove_manifest("a.yaml");
    let due = wait_until("the removal is due", 20, || {
        let due = agent.client(&["plan"]);
        if due.code == 2 { Ok(due.stdout) } else { Err(due.stdout + &due.stderr) }
    });
    assert!(due.contains("- Pod default/a is removed") && due.contains("[remove]: the pod is removed"), "{due}");
    agent.client(&["exec", "a", "--", "touch", "/tmp/go"]).ok();
    agent.wait_gone("a");
    assert_eq!(agent.client(&["plan"]).code, 0);
}

#[test]
fn get_prints_every_form_and_namespace() {
    if skipped_without_root("get") {
        return;
    }
    let world = World::new("get");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "echo here; sleep 1000"));
    agent.drop_manifest(
        "b.yaml",
        &pod("b", "echo there; sleep 1000").replace("{name: b}", "{name: b, namespace: other}"),
    );
    let first = agent.wait_ready("a");
    wait_until("the other namespace's pod is ready", 60, || {
        let table = agent.client(&["get", "pods", "-n", "other"]).stdout;
        if table.contains("1/1") { Ok(()) } else { Err(table) }
    });
    let get = |arguments: &[&str]| agent.client(&[&["get"], arguments].concat()).ok();
    let plain = get(&["pods"]);
    let header: Vec<&str> = plain.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(plain.lines().count(), 2, "{plain}");
    let wide = get(&["pods", "-o", "wide"]);
    let (ip, node) = (first["status"]["podIP"].as_str().unwrap(), "node-1");
    assert!(wide.contains("IP") && wide.contains("NODE") && wide.contains(ip) && wide.contains(node), "{wide}");
    assert_eq!(get(&["pods", "-o", "name"]), "pod/a\n");
    assert_eq!(get(&["pods", "-A", "-o", "name"]), "pod/a\npod/b\n");
    assert_eq!(get(&["pods", "-n", "other", "-o", "name"]), "pod/b\n");
    let yaml = get(&["pod", "a", "-o", "yaml"]);
    assert!(yaml.starts_with("apiVersion: v1\nkind: Pod\n") && yaml.contains("\nstatus:\n"), "{yaml}");
    assert_eq!(json(&get(&["pods", "-A", "-o", "json"]))["items"].as_array().map(Vec::len), Some(2));

    let containers = get(&["containers"]);
    let header: Vec<&str> = containers.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header[..3], ["NAME", "POD", "READY"], "{containers}");
    assert!(containers.lines().count() == 2 && containers.contains("main   a"), "{containers}");
    let list = json(&get(&["containers", "-o", "json"]));
    let id = first["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    assert_eq!(list["items"][0]["status"]["containerId"], id, "{list}");
    assert!(get(&["containers", "-o", "wide"]).contains(id));
    assert_eq!(get(&["containers", "-A", "-o", "name"]).lines().count(), 2);
    assert_eq!(get(&["containers", "a/main", "--no-headers"]).lines().count(), 1);

    // Other verbs take the namespace as well.
    assert_eq!(agent.client(&["logs", "-n", "other", "b"]).ok(), "there\n");
    assert_eq!(agent.client(&["exec", "-n", "other", "b", "--", "hostname"]).ok(), "b\n");
    assert!(agent.client(&["describe", "pod", "b", "--namespace", "other"]).ok().contains("other"));
    let absent = agent.client(&["get", "pod", "b"]);
    assert!(absent.code == 1 && absent.stderr.contains("\"b\" not found"), "{}", absent.stderr);

    // The agent may be named before and after the verb, by directory or socket, by flag or environment.
    let (run, socket) = (agent.run_dir(), agent.run_dir().join("portreeve.sock"));
    let (run, socket) = (run.to_str().unwrap(), socket.to_str().unwrap());
    for arguments in [
        ["--run", run, "get", "pods"],
        ["get", "pods", "--run", run],
        ["get", "--run", run, "pods"],
        ["--socket", socket, "get", "pods"],
        ["get", "pods", "--socket", socket],
    ] {
        assert!(portreeve(&arguments).ok().contains("1/1"), "{arguments:?}");
    }
    for (variable, value) in [("PORTREEVE_RUN", run), ("PORTREEVE_SOCKET", socket)] {
        let told = Answer::from(bare(&["get", "pods", "-o", "name"]).env(variable, value).output().unwrap());
        assert_eq!(told.ok(), "pod/a\n", "{variable}");
        let beaten =
            Answer::from(bare(&["get", "pods", "--run", "/nonexistent"]).env(variable, value).output().unwrap());
        assert!(beaten.code == 1 && beaten.stderr.contains("/nonexistent"), "{}", beaten.stderr);
    }
}

#[test]
fn apply_reads_standard_input_and_delete_takes_a_file() {
    if skipped_without_root("apply") {
        return;
    }
    let world = World::new("stdin");
    let agent = Agent::with_busybox(&world);
    let text = pod("a", "sleep 1000") + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: v}\n";
    let applied = with_input(agent.verb(&["apply", "-f", "-"]), &text).ok();
    assert_eq!(applied, "pod/a created\nconfigmap/c created\n");
    agent.wait_ready("a");
    let written = |name: &str| agent.manifests().join("applied").join(name).exists();
    assert!(written("pod.default.a.yaml") && written("configmap.default.c.yaml"));
    assert_eq!(with_input(agent.verb(&["apply", "-f", "-"]), &text).ok(), "pod/a unchanged\nconfigmap/c unchanged\n");
    let bad = with_input(agent.verb(&["apply", "-f", "-"]), "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\n");
    assert!(bad.code == 1 && bad.stderr.contains("spec"), "{}{}", bad.stdout, bad.stderr);
    assert!(!written("pod.default.bad.yaml"));
    // As other editors save it.
    let utf16: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(with_input(agent.verb(&["apply", "-f", "-"]), &utf16).ok(), "pod/a unchanged\nconfigmap/c unchanged\n");
    let again = world.path("again.yaml");
    std::fs::write(&again, format!("# Again.\n{}", text.replace("k: v", "k: other"))).unwrap();
    let twice = with_input(agent.verb(&["apply", "-f", "-", "-f", again.to_str().unwrap()]), &text);
    for place in ["again.yaml:2:1: error: ", "is also in -:1 ", "again.yaml:10:1: error: ", "is also in -:9 "] {
        assert!(twice.code == 1 && twice.stderr.contains(place), "{place}: {}", twice.stderr);
    }
    assert_eq!(with_input(agent.verb(&["apply", "-f", "-"]), &text).ok(), "pod/a unchanged\nconfigmap/c unchanged\n");

    let file = world.path("both.yaml");
    std::fs::write(&file, &text).unwrap();
    let deleted = agent.client(&["delete", "-f", file.to_str().unwrap()]).ok();
    assert_eq!(deleted, "pod \"a\" deleted\nconfigmap \"c\" deleted\n");
    assert!(agent.pod("a").is_none(), "delete waits until the pod is gone");
    assert!(!written("pod.default.a.yaml") && !written("configmap.default.c.yaml"));
    let again = agent.client(&["delete", "-f", file.to_str().unwrap()]);
    assert!(again.code == 1 && again.stderr.contains("default/a not found"), "{}", again.stderr);
}

#[test]
fn logs_since_leaves_older_lines_out() {
    if skipped_without_root("logs") {
        return;
    }
    let world = World::new("since");
    let agent = Agent::with_busybox(&world);
    let script = "echo old; until [ -e /tmp/go ]; do sleep 0.1; done; while true; do echo fresh; sleep 0.1; done";
    agent.drop_manifest("a.yaml", &pod("a", script));
    agent.wait_ready("a");
    wait_until("the line is there", 20, || {
        let text = agent.client(&["logs", "a", "--since", "1h"]).stdout;
        if text == "old\n" { Ok(()) } else { Err(text) }
    });
    wait_until("the line is older than a second", 20, || {
        let text = agent.client(&["logs", "a", "--since", "1s"]).ok();
        if text.is_empty() { Ok(()) } else { Err(text) }
    });
    agent.client(&["exec", "a", "--", "touch", "/tmp/go"]).ok();
    let recent = wait_until("newer lines are there", 20, || {
        let text = agent.client(&["logs", "a", "--since", "1s"]).ok();
        if text.contains("fresh") { Ok(text) } else { Err(text) }
    });
    assert!(!recent.contains("old"), "{recent}");
    assert!(agent.client(&["logs", "a", "--since", "1h"]).ok().starts_with("old\nfresh\n"));
}

#[test]
fn exec_gives_a_terminal_that_is_resized_interrupted_and_restored() {
    if skipped_without_root("exec") {
        return;
    }
    let world = World::new("terminal");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &pod("a", "sleep 1000"));
    agent.wait_ready("a");
    let run = agent.run_dir();
    let arguments = ["--run", run.to_str().unwrap(), "exec", "-it", "a", "--", "sh"];
    let mut terminal = Terminal::start(&binary(), &arguments);
    terminal.wait_for("# ");
    assert_ne!(terminal.stty(&["-g"]), terminal.found, "keys go through unchanged");
    terminal.types("busybox stty size\r");
    terminal.wait_for("30 90");
    terminal.stty(&["rows", "41", "columns", "101"]);
    wait_until("the new size has arrived", 20, || {
        terminal.types("busybox stty size\r");
        std::thread::sleep(Duration::from_millis(50));
        let said = terminal.said();
        if said.contains("41 101") { Ok(()) } else { Err(said) }
    });

    // ^C is for the program inside, not for the verb.
    let sleeping = || agent.census().commands().contains_key("sleep 4711");
    terminal.types("sleep 4711\r");
    wait_until("the command runs", 20, || if sleeping() { Ok(()) } else { Err(terminal.said()) });
    terminal.types("\x03");
    wait_until("the command was interrupted", 20, || if sleeping() { Err(terminal.said()) } else { Ok(()) });
    terminal.types("echo alive-$((20 + 3))\r");
    terminal.wait_for("alive-23");
    terminal.types("exit 7\r");
    assert_eq!(terminal.wait(), 7, "{}", terminal.said());
    assert_eq!(terminal.stty(&["-g"]), terminal.found, "the terminal is as it was");

    // Without a terminal of its own a session goes on without one, and says so.
    let piped = agent.client(&["exec", "-it", "a", "--", "sh", "-c", "test -t 0 || echo none"]);
    assert!(piped.code == 0 && piped.stdout == "none\n" && piped.stderr.contains("TTY"), "{piped:?}");
}

/// A layer of one file of noise, which no compression makes smaller.
fn layer(path: &str, bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    noise.truncate(bytes);
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    layer.append_data(&mut header, path, &*noise).unwrap();
    layer.into_inner().unwrap()
}

/// Pushes an image of two layers.
fn push(world: &World, registry: &Registry<'_>, name: &str, bytes: usize) -> String {
    let layers = [layer("one", bytes, 1), layer("two", bytes, 2)];
    registry.push(&Image::archive(world.home(), &format!("test.local/{name}"), &layers), name)
}

#[test]
fn a_pull_names_what_it_pulled_and_says_nothing_else_without_a_terminal() {
    if skipped_without_root("image pull") {
        return;
    }
    let world = World::new("imagepull");
    let registry = Registry::start(&world, 5000);
    let reference = push(&world, &registry, "quiet:1", 1000);
    let agent = Agent::start(&world);
    let pulled = agent.client(&["image", "pull", &reference]);
    assert!(pulled.code == 0 && pulled.stderr.is_empty(), "{pulled:?}");
    assert!(
        pulled.stdout.starts_with(&format!("{reference} ")) && pulled.stdout.contains("sha256:"),
        "{}",
        pulled.stdout
    );
    let images = agent.client(&["get", "images"]).ok();
    assert!(images.contains("127.0.0.1:5000/quiet"), "{images}");
    let missing = agent.client(&["image", "pull", "127.0.0.1:5000/none:1"]);
    assert!(missing.code == 1 && missing.stderr.contains("127.0.0.1:5000/none:1"), "{}", missing.stderr);
}

#[test]
fn a_pull_that_is_asked_for_progress_has_a_line_for_each_layer_however_short_it_was() {
    if skipped_without_root("image pull --progress") {
        return;
    }
    let world = World::new("progress");
    let registry = Registry::start(&world, 5000);
    let reference = push(&world, &registry, "lines:1", 1000);
    let agent = Agent::start(&world);
    let pulled = agent.client(&["image", "pull", "--progress", &reference]);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    let done = |line: &&str| line.contains(": done (") && line.ends_with(" bytes)");
    assert_eq!(pulled.stderr.lines().filter(done).count(), 2, "a line per layer: {}", pulled.stderr);
    let again = agent.client(&["image", "pull", "--progress", &reference]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stderr.lines().all(|line| line.contains(": already here (")), "{}", again.stderr);
}

#[test]
fn a_pull_on_a_terminal_has_a_bar_for_each_layer() {
    if skipped_without_root("bars of a pull") {
        return;
    }
    let world = World::new("bars");
    let registry = Registry::start(&world, 5000);
    // Large enough to be seen on its way.
    let reference = push(&world, &registry, "bars:1", 20 << 20);
    let agent = Agent::start(&world);
    let run = agent.run_dir();
    let mut terminal = Terminal::start(&binary(), &["--run", run.to_str().unwrap(), "image", "pull", &reference]);
    assert_eq!(terminal.wait(), 0, "{}", terminal.said());
    terminal.wait_for(&reference);
    let said = terminal.said();
    // A bar begins with the first twelve digits of its layer's digest.
    let words = said.split(|c: char| !matches!(c, '0'..='9' | 'a'..='f'));
    let bars: BTreeSet<&str> = words.filter(|word| word.len() == 12).collect();
    assert!(said.contains(['█', '░']) && said.contains("/ 20.00 MiB"), "no bars: {said:?}");
    assert_eq!(bars.len(), 2, "not a bar for each layer, {bars:?}: {said:?}");
}

#[test]
fn every_line_of_a_json_log_is_json() {
    if skipped_without_root("log") {
        return;
    }
    let world = World::new("jsonlog");
    preload_busybox(&world);
    let mut agent = Agent::start_with(&world, &["--log-format", "json"]);
    agent.drop_manifest("a.yaml", &pod("a", "sleep 1000"));
    agent.drop_manifest("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\n");
    agent.drop_manifest("crash.yaml", &pod("crash", "exit 3"));
    agent.wait_ready("a");
    wait_until(
        "the error is in the log",
        20,
        || {
            if agent.log().contains("bad.yaml") { Ok(()) } else { Err(agent.log()) }
        },
    );
    agent.terminate();
    let log = agent.log();
    assert!(log.lines().count() > 10, "{log}");
    for line in log.lines() {
        let entry = json(line);
        assert!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
        assert!(entry["fields"]["message"].is_string() && entry["target"].is_string(), "{line}");
    }
    agent.launch();
}

/// An agent that the test started by itself.
struct Beside {
    child: Child,
    run: PathBuf,
}

impl Beside {
    fn client(&self, arguments: &[&str]) -> Answer {
        portreeve(&[&["--run", self.run.to_str().unwrap()], arguments].concat())
    }

    fn end(&mut self) {
        // One that has ended is ended; its process id may be another's by now.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn two_agents_share_a_machine_and_never_meet() {
    if skipped_without_root("side by side") {
        return;
    }
    let world = World::new("beside");
    let agent = Agent::with_busybox(&world);
    let home = world.path("beside");
    std::fs::create_dir_all(home.join("manifests")).unwrap();
    let child = world
        .command(binary())
        .args(["agent", "--ephemeral", "--listen", "127.0.0.1:0", "--node-name", "node-2", "--manifests"])
        .arg(home.join("manifests"))
        .arg("--root")
        .arg(home.join("root"))
        .arg("--run")
        .arg(home.join("run"))
        .arg("--preload")
        .arg(world.path("agent/images"))
        .stdin(Stdio::null())
        .stderr(File::create(home.join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut other = Beside { child, run: home.join("run") };
    wait_until("the other agent answers", 20, || {
        let answer = other.client(&["get", "pods"]);
        if answer.code == 0 { Ok(()) } else { Err(answer.stderr) }
    });
    // The same pod by name in both; each serves its own page.
    let web = |page: &str| pod("web", &format!("echo {page} >/www/index.html; exec httpd -f -p 8080 -h /www"));
    std::fs::write(home.join("manifests/web.yaml"), web("second")).unwrap();
    agent.drop_manifest("web.yaml", &web("first"));
    let first = agent.wait_ready("web");
    let second = wait_until("the other agent's pod is ready", 60, || {
        let answer = other.client(&["get", "pod", "web", "-o", "json"]);
        let pod: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        if portreeve_e2e::condition(&pod, "Ready") == Some("True") {
            Ok(pod)
        } else {
            Err(answer.stdout + &answer.stderr)
        }
    });
    let description = |run: &Path| json(&std::fs::read_to_string(run.join("agent.json")).unwrap());
    for (run, description) in
        [(agent.run_dir(), description(&agent.run_dir())), (other.run.clone(), description(&other.run))]
    {
        let hash = hex::encode(&Sha256::digest(run.to_str().unwrap().as_bytes())[..4]);
        assert_eq!(description["bridge"], format!("prt-{hash}"), "{description}");
        assert_eq!(description["cgroupRoot"], format!("/portreeve-{hash}"), "{description}");
        assert_eq!(description["nftTable"], format!("portreeve_{hash}"), "{description}");
    }
    let address = |pod: &Value| pod["status"]["podIP"].as_str().unwrap().to_owned();
    let subnet = |address: &str| address.rsplit_once('.').unwrap().0.to_owned();
    assert_ne!(subnet(&address(&first)), subnet(&address(&second)));
    for (pod, page) in [(&first, "first\n"), (&second, "second\n")] {
        let url = format!("http://{}:8080/", address(pod));
        assert_eq!(wait_until("the page is there", 10, || world.fetch(&url)), page);
    }
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);

    // One that ends and takes all that is its own away leaves the other alone.
    other.end();
    assert!(!other.run.exists(), "{}", std::fs::read_to_string(home.join("log")).unwrap());
    let after = agent.wait_ready("web");
    assert_eq!(after["status"]["containerStatuses"], first["status"]["containerStatuses"]);
    assert_eq!(world.fetch(&format!("http://{}:8080/", address(&first))).unwrap(), "first\n");
    assert_eq!(agent.client(&["plan"]).code, 0);
}
