//! An agent that is killed between any two steps leaves nothing that a start does not clean.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::world::{Netns, id, tcp, udp, where_possible, world};
use crate::{Config, Network};

const STATE: &str = "PORTREEVE_TEST_CHURN_STATE";

/// Not a test of its own: what the killed process does.
#[test]
fn churn_until_killed() {
    let Some(state) = std::env::var_os(STATE).map(PathBuf::from) else {
        return;
    };
    let network = Network::open(config(&state)).unwrap();
    let pod = Netns::new();
    let ports = where_possible(&[tcp(8080, 80), udp(8080, 80)]);
    loop {
        network.attach(&id('a'), pod.as_fd(), &ports).unwrap();
        network.detach(&id('a')).unwrap();
    }
}

fn config(state: &std::path::Path) -> Config {
    Config {
        bridge: "prtest0".to_owned(),
        nft_table: "portreeve_test".to_owned(),
        subnet_lock: state.join("subnets.lock"),
        ..Config::new(state.join("state"))
    }
}

#[test]
fn a_kill_at_any_moment_leaks_nothing() {
    world(|world| {
        let state = world.directory.path();
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let rounds = number("PORTREEVE_ROUNDS").unwrap_or(40);
        let nanos = || u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos());
        let mut random = number("PORTREEVE_SEED").unwrap_or_else(nanos);
        // Past the capture of passing tests: a run that went well may be of interest, too.
        writeln!(std::io::stderr(), "PORTREEVE_SEED={random} PORTREEVE_ROUNDS={rounds}: kills of attachments").unwrap();
        let stays = Netns::new();
        let mut at_work = 0;
        for round in 0..rounds {
            let mut child = Command::new("/proc/self/exe")
                .args(["--exact", "tests::killing::churn_until_killed"])
                .env(STATE, state)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::sleep(Duration::from_micros(3_000 + (random >> 33) % 40_000));
            child.kill().unwrap();
            child.wait().unwrap();
            let network = Network::open(config(state)).unwrap();
            at_work += network.attachments().len();
            network.reconcile(&BTreeSet::from([id('s')])).unwrap();
            network.attach(&id('s'), stays.as_fd(), &where_possible(&[tcp(9000, 80)])).unwrap();
            // What the kernel tears down with the killed process's namespace may still be there.
            assert_eq!(network.observe().unwrap(), [], "round {round}");
            assert_eq!(world.links().len(), 2, "round {round}");
            assert_eq!(network.attachments().len(), 1, "round {round}");
            let records = std::fs::read_dir(state.join("state/attachments")).unwrap();
            assert_eq!(records.count(), 1, "round {round}");
        }
        assert!(at_work > 0, "no kill met an attachment: the test proves nothing");
        Network::open(config(state)).unwrap().close_and_remove().unwrap();
        assert_eq!(world.links(), Vec::<String>::new());
    });
}

/// Prints what an attachment costs: `cargo test -p portreeve-network -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn the_cost_of_an_attachment() {
    world(|world| {
        let network = world.open();
        network.ensure().unwrap();
        for (what, ports) in [("no port", &[][..]), ("one port", &[tcp(8080, 80)][..])] {
            let mut up = Vec::new();
            let mut down = Vec::new();
            let cpu = cpu_time();
            for _ in 0..200 {
                let pod = Netns::new();
                let started = std::time::Instant::now();
                network.attach(&id('a'), pod.as_fd(), ports).unwrap();
                up.push(started.elapsed());
                let started = std::time::Instant::now();
                network.detach(&id('a')).unwrap();
                down.push(started.elapsed());
            }
            let cpu = (cpu_time() - cpu) / 200;
            up.sort();
            down.sort();
            eprintln!(
                "{what}: {cpu:?} of CPU per cycle; attach min {:?} median {:?} p99 {:?}, detach min {:?} median {:?} p99 {:?}",
                up[0], up[100], up[198], down[0], down[100], down[198]
            );
        }
        let pods: Vec<Netns> = (0..100).map(|_| Netns::new()).collect();
        for threads in [10, 100] {
            let each = |work: &(dyn Fn(usize) + Sync)| {
                let started = std::time::Instant::now();
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        scope.spawn(move || (thread..100).step_by(threads).for_each(work));
                    }
                });
                started.elapsed()
            };
            let attach = |n: usize| drop(network.attach(&format!("pod-{n}"), pods[n].as_fd(), &[]).unwrap());
            let up = each(&attach);
            let down = each(&|n| network.detach(&format!("pod-{n}")).unwrap());
            eprintln!("100 pods, {threads} threads: attach {up:?}, detach {down:?}");
        }
    });
}

/// CPU time of this process, namespaces' making included.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap())
}
