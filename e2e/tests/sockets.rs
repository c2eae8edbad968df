//! Who may use the agent's socket, who may run an agent, and what clients of one that hangs are told.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::{Agent, Answer, World, binary, skipped_without_root, wait_until};

/// A group that no account has.
const GROUP: u32 = 54_321;

/// Copies the binary by another process: a child of another test's thread would inherit what is open for writing here,
/// and a file that is open for writing cannot be executed.
fn copy_binary(to: &Path) {
    let copied = Command::new("cp").arg(binary()).arg(to).status().expect("cp of coreutils");
    assert!(copied.success(), "{copied}");
}

/// The verb as `nobody`, who is a member of `groups` alone.
fn as_nobody(world: &World, agent: &Agent<'_>, groups: &str) -> Answer {
    // Where the binary lies need not be open to everybody; the world's directory is.
    std::fs::set_permissions(world.home(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = world.path("portreeve");
    if !program.exists() {
        copy_binary(&program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534"]);
    if groups.is_empty() {
        command.arg("--clear-groups");
    } else {
        command.args(["--groups", groups]);
    }
    command.arg(&program).arg("--run").arg(agent.run_dir()).args(["get", "pods"]).output().unwrap().into()
}

#[test]
fn the_socket_is_roots_and_others_are_told_so() {
    if skipped_without_root("socket") {
        return;
    }
    let world = World::new("socket");
    let agent = Agent::start(&world);
    let socket = agent.run_dir().join("portreeve.sock");
    let metadata = std::fs::metadata(&socket).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o600, 0, 0));
    let refused = as_nobody(&world, &agent, "");
    assert!(refused.code == 1 && refused.stdout.is_empty(), "{refused:?}");
    assert!(refused.stderr.contains("no permission") && refused.stderr.contains("root"), "{}", refused.stderr);
    assert_eq!(agent.client(&["get", "pods"]).code, 0);
}

#[test]
fn a_socket_that_was_opened_to_everybody_still_asks_who_it_is() {
    if skipped_without_root("peer credentials") {
        return;
    }
    let world = World::new("opened");
    let agent = Agent::start(&world);
    std::fs::set_permissions(agent.run_dir(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(agent.run_dir().join("portreeve.sock"), PermissionsExt::from_mode(0o666)).unwrap();
    let refused = as_nobody(&world, &agent, "");
    assert!(refused.code == 1 && refused.stdout.is_empty(), "{refused:?}");
    wait_until("the log says who was turned away", 10, || {
        let log = agent.log();
        if log.contains("turned away") && log.contains("uid=65534") { Ok(()) } else { Err(log) }
    });
    assert_eq!(agent.client(&["get", "pods"]).code, 0);
    assert!(refused.stderr.contains("root"), "who is turned away is not told what to do: {}", refused.stderr);
}

#[test]
fn the_sockets_group_is_let_in_and_nobody_else() {
    if skipped_without_root("socket group") {
        return;
    }
    let world = World::new("group");
    let agent = Agent::start_with(&world, &["--socket-group", &GROUP.to_string()]);
    let metadata = std::fs::metadata(agent.run_dir().join("portreeve.sock")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o660, 0, GROUP));
    let refused = as_nobody(&world, &agent, "");
    assert!(refused.code == 1 && refused.stderr.contains("no permission"), "{refused:?}");
    let member = as_nobody(&world, &agent, &GROUP.to_string());
    assert_eq!(member.code, 0, "a member of the group: {}", member.stderr);
    // A start that is refused because this agent runs changes nothing about who may come in.
    let mut second = world.command(binary());
    second.args(["agent", "--listen", "127.0.0.1:0", "--node-name", "n", "--manifests"]).arg(agent.manifests());
    let second =
        Answer::from(second.arg("--root").arg(agent.root()).arg("--run").arg(agent.run_dir()).output().unwrap());
    assert!(second.code == 1 && second.stderr.contains("another agent uses"), "{second:?}");
    let metadata = std::fs::metadata(agent.run_dir()).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o710, GROUP));
    // What else is in the run directory stays root's.
    for folder in ["sandboxes", "network", "pods"] {
        assert_eq!(std::fs::metadata(agent.run_dir().join(folder)).unwrap().mode() & 0o077, 0, "{folder}");
    }
}

#[test]
fn a_socket_group_that_is_none_is_refused_at_the_start() {
    if skipped_without_root("socket group") {
        return;
    }
    let world = World::new("nogroup");
    let home = world.path("agent");
    let config = world.path("config.yaml");
    // To the kernel the last number means: leave the group as it is.
    for group in ["no-such-group", "4294967295", "4294967296"] {
        std::fs::write(&config, format!("socketGroup: {group}\n")).unwrap();
        for by in [["--socket-group", group], ["--config", config.to_str().unwrap()]] {
            // One that is not refused must not hold up the test.
            let mut command = world.command("timeout");
            command.arg("30").arg(binary()).args(["agent", "--ephemeral", "--listen", "127.0.0.1:0"]).args(by);
            command.arg("--manifests").arg(home.join("manifests"));
            command.arg("--root").arg(home.join("root")).arg("--run").arg(home.join("run"));
            let refused = Answer::from(command.output().unwrap());
            assert!(refused.code == 1 && refused.stderr.contains(group), "{by:?}: {refused:?}");
            assert!(!home.join("run").exists() && !home.join("root").exists(), "{by:?}: something was made");
        }
    }
}

/// A process that is stopped for as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Self {
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn an_agent_that_hangs_is_named_with_its_state_and_keeps_no_client() {
    if skipped_without_root("an agent that hangs") {
        return;
    }
    let world = World::new("hangs");
    let agent = Agent::start(&world);
    let stopped = Stopped::new(agent.pid());
    wait_until("it is stopped", 10, || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        if status.contains("State:\tT") { Ok(()) } else { Err(status) }
    });
    for verb in [&["get", "pods"][..], &["get", "pods", "-w"], &["logs", "a"], &["drain"], &["plan"]] {
        let hung = agent.client(&[&["--request-timeout", "500ms"], verb].concat());
        assert!(hung.code == 1 && hung.stdout.is_empty(), "{verb:?}: {hung:?}");
        let (pid, socket) = (agent.pid(), agent.run_dir().join("portreeve.sock"));
        for part in
            [format!("(pid {pid}, state T (stopped))"), format!("kill -CONT {pid}"), socket.display().to_string()]
        {
            assert!(hung.stderr.contains(&part), "{verb:?}: {}", hung.stderr);
        }
    }
    let mut patient = agent
        .verb(&["--request-timeout", "0", "get", "pods"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(stopped);
    assert!(patient.wait().unwrap().success());
    agent.client(&["get", "pods"]).ok();
}

#[test]
fn an_agent_without_root_says_so_in_one_line() {
    if skipped_without_root("an agent without root") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let program = home.path().join("portreeve");
    copy_binary(&program);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
    command
        .args(["agent", "--listen", "127.0.0.1:0", "--node-name", "node-1", "--manifests"])
        .arg(home.path().join("manifests"));
    command.arg("--root").arg(home.path().join("root")).arg("--run").arg(home.path().join("run"));
    let refused = Answer::from(command.output().unwrap());
    assert_eq!(refused.code, 1, "{refused:?}");
    let about_root: Vec<&str> = refused.stderr.lines().filter(|line| line.starts_with("error: root: ")).collect();
    assert!(
        matches!(about_root[..], [line] if line.contains("65534") && line.contains("as root")),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.lines().all(|line| line.starts_with("error: ")), "{}", refused.stderr);
    assert!(!home.path().join("root").exists() && !home.path().join("run").exists(), "it made something");
}
