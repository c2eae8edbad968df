//! The first command of the README.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portreeve_e2e::{Census, World, binary, skipped_without_host_ports, skipped_without_root, wait_until};

/// The demo on a machine where no other program is found.
fn demo(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.command("env");
    command
        .arg("PATH=/nonexistent")
        .arg(binary())
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", world.home())
        .stdin(Stdio::null());
    command
}

/// Starts the demo and reads what it says up to the line with `word`; its standard output is closed then.
fn listened(world: &World, arguments: &[&str], word: &str) -> Child {
    let mut demo = demo(world, arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let heard = lines.map_while(Result::ok).any(|line| line.contains(word));
    assert!(heard, "the demo ended before `{word}`");
    demo
}

fn left(world: &World) -> String {
    let processes = Census::take(world, world.home()).processes;
    let links = world.sh("ip -o link | grep -v ' lo:' || true");
    let tables = world.sh("nft list tables");
    if processes.is_empty() { links + &tables } else { format!("{processes:?}{links}{tables}") }
}

#[test]
fn the_demo_shows_a_page_and_leaves_nothing() {
    if skipped_without_root("demo") {
        return;
    }
    let world = World::new("demo");
    if skipped_without_host_ports(&world, "demo") {
        return;
    }
    let output = demo(&world, &["--once"]).output().expect("the demo runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("Portreeve runs what its manifests say."), "{stdout}");
    assert!(stdout.contains("web") && stdout.contains("1/1") && stdout.contains("neighbour"), "{stdout}");
    assert_eq!(left(&world), "");
    assert_eq!(std::fs::read_dir(world.home()).unwrap().count(), 0, "files are left");
}

#[test]
fn the_demo_stays_up_until_ctrl_c_and_leaves_nothing() {
    if skipped_without_root("demo") {
        return;
    }
    let world = World::new("stays");
    if skipped_without_host_ports(&world, "demo") {
        return;
    }
    let mut demo = demo(&world, &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
    let told: Vec<String> = lines.by_ref().take_while(|line| !line.ends_with(" get events")).collect();
    let said = std::thread::spawn(move || lines.collect::<Vec<_>>());
    // What it tells its user to try works meanwhile.
    let tried = told.iter().find_map(|line| line.split_once("--run ")?.1.strip_suffix(" get pods -o wide"));
    let listed = tried.map(|run| {
        let listing = world.command(binary()).args(["--run", run, "get", "pods", "-o", "json"]).output().unwrap();
        String::from_utf8_lossy(&listing.stdout).into_owned()
    });
    let (went_on, silent) = (demo.try_wait().unwrap().is_none(), !said.is_finished());
    if went_on {
        kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).unwrap();
    }
    let status = demo.wait().unwrap();
    let said = said.join().unwrap();
    assert!(went_on && silent, "it ended by itself: {told:#?}{said:#?}");
    let listed: serde_json::Value = serde_json::from_str(&listed.expect("the verb to try")).unwrap();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(status.code(), Some(0), "{said:#?}");
    assert_eq!(left(&world), "");
    assert_eq!(std::fs::read_dir(world.home()).unwrap().count(), 0, "files are left");
}

#[test]
fn a_demo_whose_reader_goes_away_leaves_nothing() {
    if skipped_without_root("demo") {
        return;
    }
    let world = World::new("unheard");
    // Before the agent is started, and while it is.
    for word in ["Making an image", "Starting an agent"] {
        let status = listened(&world, &["--once"], word).wait().unwrap();
        assert!(status.success(), "{word}: {status}");
        assert_eq!(left(&world), "", "{word}");
        assert_eq!(std::fs::read_dir(world.home()).unwrap().count(), 0, "{word}: files are left");
    }
}

#[test]
fn the_agent_of_a_killed_demo_ends_and_takes_away_what_it_made() {
    if skipped_without_root("demo") {
        return;
    }
    let world = World::new("killed");
    let mut demo = listened(&world, &[], "Dropping a manifest");
    demo.kill().unwrap();
    demo.wait().unwrap();
    let gone = std::panic::catch_unwind(|| {
        wait_until("nothing is left", 30, || match left(&world).as_str() {
            "" => Ok(()),
            left => Err(left.to_owned()),
        });
    });
    if let Err(panic) = gone {
        // An agent that goes on is told so by its own signal.
        for process in Census::take(&world, world.home()).processes.iter().filter(|line| line.contains(" agent ")) {
            let pid = process.split(' ').next().unwrap().parse().unwrap();
            let _ended_meanwhile = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        std::panic::resume_unwind(panic);
    }
    for home in std::fs::read_dir(world.home()).unwrap().flatten() {
        assert!(!home.path().join("run").exists() && !home.path().join("root").exists(), "its state is left");
    }
}
