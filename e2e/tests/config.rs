//! How an agent is set up: what it may share with another, what it refuses, and in which words.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::{
    Agent, Answer, BUSYBOX, Census, World, binary, skipped_without_host_ports, skipped_without_root, wait_until,
};
use serde_json::Value;

fn sleeper(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', command: [sleep, '100000']}}\n"
    )
}

fn answer(mut command: Command) -> Answer {
    command.stdin(Stdio::null()).output().expect("the command runs").into()
}

/// An ephemeral agent in `world` with a state of its own below `other`, not yet started.
fn bare(world: &World, arguments: &[&str]) -> Command {
    // One that is not refused must not hold up the test.
    let mut command = world.command("timeout");
    command.arg("30").arg(binary()).args(["agent", "--ephemeral", "--listen", "127.0.0.1:0", "--node-name", "other"]);
    command.arg("--root").arg(world.path("other/root")).arg("--run").arg(world.path("other/run"));
    command.args(arguments).env_remove("PORTREEVE_MANIFESTS");
    command
}

/// As [`bare`], with an empty directory of manifests.
fn other(world: &World, arguments: &[&str]) -> Command {
    let manifests = world.path("other/manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let mut command = bare(world, arguments);
    command.arg("--manifests").arg(manifests);
    command
}

/// Starts an agent, waits until it is ready, asks `during`, and ends it.
fn lives(mut command: Command, run: &Path, during: impl FnOnce()) {
    let mut agent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ready = wait_until("the agent is ready or has ended", 20, || {
        let ended = agent.try_wait().unwrap().is_some();
        if ended || run.join("agent.json").exists() { Ok(!ended) } else { Err(String::new()) }
    });
    // It is ended whatever is found.
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        if ready {
            during()
        }
    }));
    if ready {
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM).unwrap();
    }
    let output = agent.wait_with_output().unwrap();
    found.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert!(ready && output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
fn no_agent_takes_the_names_of_another_whether_it_runs_or_not() {
    if skipped_without_root("config") {
        return;
    }
    let world = World::new("names");
    let mut agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &sleeper("a"));
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    let before = id(&agent.wait_ready("a"));
    let about: Value = serde_json::from_slice(&std::fs::read(agent.run_dir().join("agent.json")).unwrap()).unwrap();
    let name = |key: &str| about[key].as_str().unwrap().to_owned();
    let (cgroup, bridge, table) = (name("cgroupRoot"), name("bridge"), name("nftTable"));
    let within = format!("{cgroup}/burstable");
    let taken =
        [("--cgroup-root", &cgroup), ("--cgroup-root", &within), ("--bridge", &bridge), ("--nft-table", &table)];
    for running in [true, false] {
        if !running {
            agent.terminate();
        }
        let there = agent.census();
        for (flag, name) in taken {
            let refused = answer(other(&world, &[flag, name]));
            assert_eq!(refused.code, 1, "{flag} {name}: {}", refused.stderr);
            let run = agent.run_dir().display().to_string();
            assert!(refused.stderr.contains(name) && refused.stderr.contains(&run), "{}", refused.stderr);
            assert!(refused.stderr.contains(flag), "{}", refused.stderr);
            assert_eq!(refused.stderr.contains("stopped"), !running, "{}", refused.stderr);
            let made = ["other/run", "other/root"].map(|name| world.path(name).exists());
            assert_eq!(made, [false, false], "{flag}: what was made for an agent that is refused is left");
        }
        assert_eq!(agent.census(), there, "a refused agent touched what is another's");
    }
    agent.launch();
    let after = agent.wait_ready("a");
    assert_eq!(id(&after), before);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);

    // Names of links and tables are a network namespace's own.
    let elsewhere = World::new("elsewhere");
    lives(other(&elsewhere, &["--bridge", &bridge, "--nft-table", &table]), &elsewhere.path("other/run"), || {
        let links = elsewhere.sh("ip -o link");
        assert!(links.contains(&bridge) || !links.contains("prt-"), "{links}");
    });
    assert_eq!(id(&agent.wait_ready("a")), before);

    // They are free again when the agent has gone with all that it made.
    let left = agent.erase();
    assert!(left.is_empty(), "{left:?}");
    let all = ["--cgroup-root", &cgroup, "--bridge", &bridge, "--nft-table", &table];
    lives(other(&world, &all), &world.path("other/run"), || {});
    let home = world.home().display().to_string();
    for claim in std::fs::read_dir("/run/portreeve-claims").unwrap().flatten() {
        // Other tests' agents come and go meanwhile.
        let text = std::fs::read_to_string(claim.path()).unwrap_or_default();
        assert!(!text.contains(&home), "a claim is left: {text}");
    }
}

#[test]
fn the_doctor_tells_who_turned_forwarding_on() {
    if skipped_without_root("config") {
        return;
    }
    let world = World::new("forward");
    world.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let agent = Agent::with_busybox(&world);
    let forwarding = || {
        let text = world.sh(&format!("{} --run {} doctor -o json", binary().display(), agent.run_dir().display()));
        let facts: Vec<Value> = serde_json::from_str(&text).unwrap();
        facts.iter().find(|fact| fact["name"] == "forwarding").unwrap()["found"].as_str().unwrap().to_owned()
    };
    agent.drop_manifest("a.yaml", &sleeper("a"));
    agent.wait_ready("a");
    assert!(forwarding().contains("an agent of ours turned it on"), "{}", forwarding());
}

/// What `<run>/agent.json` says.
fn description(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("agent.json")).unwrap()).unwrap()
}

#[test]
fn an_agent_starts_with_a_file_of_settings_alone_and_a_flag_beats_the_environment_beats_the_file() {
    if skipped_without_root("config") {
        return;
    }
    let world = World::new("layers");
    let at = |name: &str| world.path(name).display().to_string();
    std::fs::create_dir(at("m")).unwrap();
    let tag = &world.home().display().to_string();
    let tag = &tag[tag.len() - 6..];
    let file = format!(
        "root: {}\nrun: {}\nmanifests: {}\nnodeName: from-file\nnodeLabels: {{a: file}}\nlisten: 127.0.0.1:0\n\
         cgroupRoot: /prt-f-{tag}\nbridge: prtf-{tag}\nnftTable: prt_f_{tag}\npodCIDR: 10.77.7.0/24\n",
        at("root"),
        at("run"),
        at("m")
    );
    std::fs::write(at("c.yaml"), file).unwrap();
    let agent = || {
        let mut command = world.command("timeout");
        command.arg("30").arg(binary()).args(["agent", "--ephemeral", "--config", &at("c.yaml")]);
        command
    };
    let node = |run: &Path| {
        let mut command = Command::new(binary());
        command.arg("--run").arg(run).args(["get", "nodes", "-o", "json"]);
        let nodes: Value = serde_json::from_str(&answer(command).ok()).unwrap();
        nodes["items"][0]["metadata"].clone()
    };

    let run = world.path("run");
    lives(agent(), &run, || {
        let about = description(&run);
        for (key, value) in [
            ("root", at("root")),
            ("manifests", at("m")),
            ("cgroupRoot", format!("/prt-f-{tag}")),
            ("bridge", format!("prtf-{tag}")),
            ("nftTable", format!("prt_f_{tag}")),
        ] {
            assert_eq!(about[key], value.as_str(), "{about}");
        }
        assert_ne!(about["listen"], "127.0.0.1:9580");
        let node = node(&run);
        assert_eq!((&node["name"], &node["labels"]["a"]), (&"from-file".into(), &"file".into()), "{node}");
    });

    let by_environment = [
        ("PORTREEVE_RUN", at("run-e")),
        ("PORTREEVE_NODE_NAME", "from-environment".to_owned()),
        ("PORTREEVE_NODE_LABEL", "a=environment,b=too".to_owned()),
        ("PORTREEVE_BRIDGE", format!("prte-{tag}")),
        ("PORTREEVE_NFT_TABLE", format!("prt_e_{tag}")),
    ];
    let run = world.path("run-e");
    let mut command = agent();
    command.envs(by_environment.clone()).args(["--bridge", &format!("prtg-{tag}"), "--node-name", "from-flag"]);
    lives(command, &run, || {
        let about = description(&run);
        for (key, value) in [
            ("root", at("root")),
            ("cgroupRoot", format!("/prt-f-{tag}")),
            ("bridge", format!("prtg-{tag}")),
            ("nftTable", format!("prt_e_{tag}")),
        ] {
            assert_eq!(about[key], value.as_str(), "{about}");
        }
        let node = node(&run);
        assert_eq!(node["name"], "from-flag", "{node}");
        let labels = &node["labels"];
        assert_eq!((&labels["a"], &labels["b"]), (&"environment".into(), &"too".into()), "{node}");
    });

    // The doctor looks at what the agent would have.
    let facts = |variables: &[(&str, String)], flags: &[&str]| {
        let mut command = world.command(binary());
        command.args(["doctor", "-o", "json", "--config", &at("c.yaml")]).args(flags);
        let said = answer({
            command.envs(variables.iter().cloned());
            command
        });
        serde_json::from_str::<Vec<Value>>(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"))
    };
    let found = |facts: &[Value], name: &str| {
        let fact = facts.iter().find(|fact| fact["name"] == name).unwrap_or_else(|| panic!("{name}: {facts:?}"));
        fact["found"].as_str().unwrap().to_owned()
    };
    assert_eq!(found(&facts(&[], &[]), "node name"), "from-file");
    let mut by_environment = by_environment.to_vec();
    by_environment.push(("PORTREEVE_ROOT", at("root-e")));
    let told = facts(&by_environment, &[]);
    assert_eq!(found(&told, "node name"), "from-environment");
    assert!(found(&told, "state").starts_with(&at("root-e")), "{told:?}");
    assert_eq!(found(&facts(&by_environment, &["--node-name", "from-flag"]), "node name"), "from-flag");
    // A firewall that lets nothing through but one bridge is in the way of every other.
    if skipped_without_host_ports(&world, "the bridge that the doctor looks at") {
        return;
    }
    world.sh(&format!(
        "nft 'add table ip fw; add chain ip fw f {{ type filter hook forward priority 0; policy drop; }}; \
         add rule ip fw f iifname \"prte-{tag}\" accept'"
    ));
    let blocks = |facts: &[Value]| facts.iter().any(|fact| fact["name"] == "firewall");
    assert!(blocks(&facts(&[], &[])) && !blocks(&facts(&by_environment, &[])));
}

/// Lays an overlay of `directory` over itself, in the world alone.
fn cover(world: &World, directory: &Path) {
    let [upper, work] = ["upper", "work"].map(|name| world.path(name).display().to_string());
    let target = directory.display();
    let options = format!("lowerdir={target},upperdir={upper},workdir={work}");
    world.sh(&format!("mkdir {upper} {work} && mount -t overlay -o {options} overlay {target}"));
}

#[test]
fn the_default_directory_of_manifests_is_made_and_one_that_was_named_is_not() {
    if skipped_without_root("config") {
        return;
    }
    let world = World::new("default");
    cover(&world, Path::new("/etc"));
    world.sh("rm -rf /etc/portreeve");
    let run = world.path("other/run");
    let sources = || {
        let mut command = Command::new(binary());
        command.arg("--run").arg(&run).args(["get", "sources", "-o", "json"]);
        answer(command).ok()
    };
    lives(bare(&world, &[]), &run, || {
        world.sh("test -d /etc/portreeve/manifests");
        assert!(!sources().contains("Unreadable"), "{}", sources());
    });
    // What was named and is not there may be mounted later.
    let absent = world.path("absent");
    let name = absent.to_str().unwrap();
    lives(bare(&world, &["--manifests", name, "--preload", name]), &run, || {
        assert!(sources().contains("Unreadable"), "{}", sources());
    });
    assert!(!absent.exists());
}

#[test]
fn a_setting_that_cannot_be_is_named_with_its_place_and_nothing_is_made() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let agent = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.arg("30").arg(binary()).arg("agent").args(arguments).args(["--run", &at("run"), "--root", &at("root")]);
        command.args(["--ephemeral", "--manifests", &at("m"), "--config", &at("c.yaml")]);
        command
    };
    for (text, place) in [
        ("root: /r\nlisten: 5\n", "c.yaml:2:9: listen: "),
        ("bridges: x\n", "c.yaml:1:1: `bridges` is no key"),
        ("nodeLabels: {'a b': c}\n", "c.yaml:1:14: nodeLabels: `a b`"),
        ("insecureRegistries:\n- http://x/\n", "c.yaml:2:3: insecureRegistries[0]: "),
    ] {
        std::fs::write(at("c.yaml"), text).unwrap();
        let refused = answer(agent(&[]));
        assert!(refused.code == 1 && refused.stderr.contains(place), "{text}{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    std::fs::write(at("c.yaml"), "").unwrap();
    let mut by_environment = agent(&[]);
    by_environment.env("PORTREEVE_LISTEN", "bad");
    let refused = answer(by_environment);
    assert!(refused.code == 2 && refused.stderr.contains("variable PORTREEVE_LISTEN"), "{refused:?}");
    for arguments in [["--node-label", "a b=c"], ["--insecure-registry", "http://x"]] {
        let refused = answer(agent(&arguments));
        assert!(refused.code == 2 && refused.stderr.contains(arguments[0]), "{refused:?}");
    }
    let mut socket = Command::new("timeout");
    socket.arg("30").arg(binary()).args(["agent", "--ephemeral", "--socket", &at("s"), "--listen", "127.0.0.1:0"]);
    socket.args(["--root", &at("root"), "--manifests", &at("m")]).env("PORTREEVE_RUN", at("run"));
    let refused = answer(socket);
    assert!(refused.code == 2 && refused.stderr.contains("--run"), "{refused:?}");
    assert!(!home.path().join("run").exists() && !home.path().join("root").exists());
}

#[test]
fn what_a_machine_lacks_is_said_at_the_start_in_one_line_each() {
    if skipped_without_root("config") {
        return;
    }
    let world = World::new("lacks");
    let lacks = |command: Command| {
        let refused = answer(command);
        assert_eq!(refused.code, 1, "{refused:?}");
        let mut lines: Vec<String> = refused.stderr.lines().map(str::to_owned).collect();
        assert!(lines.pop().is_some_and(|last| last.contains("portreeve doctor")), "{refused:?}");
        assert!(!world.path("other/run").exists(), "something was made");
        lines
    };
    let is_said = |lines: &[String], what: &str| lines.iter().filter(|line| line.starts_with(what)).count() == 1;

    // Anybody can reach and run the copy.
    let open = tempfile::Builder::new().prefix("prt-e2e-open-").tempdir().unwrap();
    let program = open.path().join("portreeve");
    // By another process: a file that this one has open for writing cannot be executed by its other threads.
    world.sh(&format!("cp {} {}", binary().display(), program.display()));
    let mode = |bits| std::os::unix::fs::PermissionsExt::from_mode(bits);
    std::fs::set_permissions(open.path(), mode(0o755)).unwrap();
    std::fs::set_permissions(&program, mode(0o755)).unwrap();
    let mut nobody = Command::new("timeout");
    nobody.arg("30").arg(&program).args([
        "agent",
        "--listen",
        "127.0.0.1:0",
        "--run",
        "/nonexistent/run",
        "--root",
        "/nonexistent/root",
    ]);
    nobody.args(["--manifests", "/nonexistent/manifests"]).uid(65534).gid(65534).current_dir("/");
    let lines = lacks(nobody);
    assert!(is_said(&lines, "error: root: running as user 65534. run portreeve as root"), "{lines:?}");

    std::fs::create_dir(world.path("plain")).unwrap();
    cover(&world, &world.path("plain"));
    let upon_overlay = world.path("plain/root");
    let upon_overlay = upon_overlay.to_str().unwrap();
    let arguments = ["agent", "--ephemeral", "--listen", "127.0.0.1:0", "--node-name", "n", "--root", upon_overlay];
    let mut command = world.command("timeout");
    command.arg("30").arg(binary()).args(arguments).arg("--run").arg(world.path("other/run"));
    command.arg("--manifests").arg(world.path("other/manifests"));
    let lines = lacks(command);
    assert!(is_said(&lines, &format!("error: state: {upon_overlay}: no overlay can be put")), "{lines:?}");
    assert_eq!(lines.len(), 1, "{lines:?}");

    // The doctor says the same, and more; of a host name that no node can have too.
    let config = world.path("c.yaml");
    std::fs::write(&config, format!("root: {upon_overlay}\n")).unwrap();
    let line = format!(
        "unshare --uts sh -c 'echo \"(none)\" > /proc/sys/kernel/hostname; {} doctor -o json --config {} || test $? = 1'",
        binary().display(),
        config.display()
    );
    let facts: Vec<Value> = serde_json::from_str(&world.sh(&line)).unwrap();
    let fact = |name: &str| facts.iter().find(|fact| fact["name"] == name).unwrap_or(&Value::Null);
    for name in ["root", "cgroup", "controllers", "overlay", "user namespaces", "nftables", "forwarding"] {
        assert!(fact(name)["found"].is_string(), "{name} is not told: {facts:?}");
    }
    assert_eq!(fact("state")["verdict"], "missing");
    assert_eq!(fact("node name")["verdict"], "limited");
    assert!(fact("node name")["advice"].as_str().unwrap().contains("--node-name"));

    // A root directory below which no cgroup is mounted.
    let (jail, open) = (world.path("jail"), open.path().display());
    let jail = jail.display();
    world.sh(&format!("mkdir {jail} && mount --bind / {jail} && mount --bind {open} {jail}/mnt"));
    world.sh(&format!("mount -t proc proc {jail}/proc"));
    let mut command = world.command("chroot");
    command.arg(world.path("jail")).args(["timeout", "30", "/mnt/portreeve", "agent", "--ephemeral"]);
    command.args(["--listen", "127.0.0.1:0", "--node-name", "n"]);
    command.args(["--run", "/mnt/run", "--root", "/mnt/root", "--manifests", "/mnt/manifests"]);
    let lines = lacks(command);
    assert!(is_said(&lines, "error: cgroup: not mounted"), "{lines:?}");
    assert!(is_said(&lines, "error: controllers: "), "{lines:?}");
    let left = Census::take(&world, &world.path("other/run"));
    assert!(left.processes.is_empty() && left.links.is_empty() && left.tables.is_empty(), "{left:?}");
}
