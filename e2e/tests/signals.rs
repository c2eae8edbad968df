//! How an agent ends: by which signal, when, and what it leaves.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::{Agent, BUSYBOX, Census, World, binary, patience, preload_busybox, skipped_without_root};

fn stubborn(name: &str, grace: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: {grace}\n  containers:\n  \
         - {{name: main, image: '{BUSYBOX}', command: [sh, -c, 'trap \"\" TERM; while true; do sleep 1; done']}}\n"
    )
}

#[test]
fn a_hangup_ends_nothing() {
    if skipped_without_root("signals") {
        return;
    }
    let world = World::new("hangup");
    let agent = Agent::with_busybox(&world);
    agent.drop_manifest("a.yaml", &stubborn("a", 0));
    agent.wait_ready("a");
    kill(agent.pid(), Signal::SIGHUP).unwrap();
    portreeve_e2e::wait_until("the signal is in the log", 10, || {
        if agent.log().contains("SIGHUP") { Ok(()) } else { Err(agent.log()) }
    });
    assert_eq!(agent.client(&["get", "pods"]).code, 0);
}

/// An ephemeral agent in `world`; the caller ends it.
fn ephemeral(world: &World) -> std::process::Child {
    let directory = world.path("agent");
    std::fs::create_dir_all(directory.join("manifests")).unwrap();
    let mut command = world.command(binary());
    command.args(["agent", "--ephemeral", "--listen", "127.0.0.1:0", "--manifests"]).arg(directory.join("manifests"));
    command.arg("--root").arg(directory.join("root")).arg("--run").arg(directory.join("run"));
    command.arg("--preload").arg(directory.join("images"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_signal_during_the_start_leaves_nothing() {
    if skipped_without_root("signals") {
        return;
    }
    let world = World::new("early");
    preload_busybox(&world);
    std::fs::create_dir_all(world.path("agent/manifests")).unwrap();
    std::fs::write(world.path("agent/manifests/a.yaml"), stubborn("a", 1)).unwrap();
    // From before anything is made to well after the pod runs.
    for millis in [0, 3, 6, 10, 15, 20, 30, 45, 70, 100, 200] {
        let mut agent = ephemeral(&world);
        std::thread::sleep(patience(1).mul_f64(f64::from(millis) / 1000.0));
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM).unwrap();
        let status = agent.wait().unwrap();
        // Before it listens for signals there is nothing to be tidied, and SIGTERM is the end.
        let early = std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::SIGTERM as i32);
        assert!(early || status.success(), "SIGTERM after {millis} ms: {status}");
        let left = Census::take(&world, &world.path("agent/run"));
        assert!(left.is_empty(), "SIGTERM after {millis} ms left {left:?}");
        if !early {
            assert!(!world.path("agent/run").exists() && !world.path("agent/root").exists());
        }
    }
}

#[test]
fn a_second_signal_does_not_wait_for_stubborn_pods() {
    if skipped_without_root("signals") {
        return;
    }
    let world = World::new("twice");
    preload_busybox(&world);
    std::fs::create_dir_all(world.path("agent/manifests")).unwrap();
    std::fs::write(world.path("agent/manifests/a.yaml"), stubborn("a", 600)).unwrap();
    let mut agent = ephemeral(&world);
    portreeve_e2e::wait_until("the pod runs", 20, || {
        let census = Census::take(&world, &world.path("agent/run"));
        if census.contained.is_empty() { Err(format!("{census:?}")) } else { Ok(()) }
    });
    let pid = Pid::from_raw(agent.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    std::thread::sleep(patience(1));
    assert!(agent.try_wait().unwrap().is_none(), "a pod with time left was not given it");
    kill(pid, Signal::SIGTERM).unwrap();
    let status = portreeve_e2e::wait_until("the agent ends", 20, || agent.try_wait().unwrap().ok_or_else(String::new));
    assert!(status.success(), "{status}");
    let left = Census::take(&world, &world.path("agent/run"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_ephemeral_agent_that_fails_to_start_takes_away_what_it_made() {
    if skipped_without_root("signals") {
        return;
    }
    let world = World::new("failing");
    preload_busybox(&world);
    // A ledger of a newer program is refused after the engine has made its bridge.
    std::fs::create_dir_all(world.path("agent/root")).unwrap();
    std::fs::write(world.path("agent/root/ledger.json"), "{\"version\": 99}").unwrap();
    let status = ephemeral(&world).wait().unwrap();
    assert_eq!(status.code(), Some(1), "{status}");
    let left = Census::take(&world, &world.path("agent/run"));
    assert!(left.is_empty(), "{left:?}");
}
