//! A whole node over the real engine, with busybox as the image. Needs root and /bin/busybox;
//! otherwise it says so and does nothing.
//!
//! Its own `main`: the shim is this very program, and everything happens in network and mount
//! namespaces of its own, entered before there is a second thread.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

#[path = "../../../../runtime/engine/tests/engine/busybox.rs"]
mod busybox;
mod life;
mod world;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

const LIMIT: Duration = Duration::from_secs(60);

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}

const TESTS: &[Test] = tests![
    life::a_dropped_manifest_runs_and_a_removed_one_leaves_nothing,
    life::volumes_and_environment_show_what_the_manifest_says_and_follow_edits,
    life::a_new_agent_finds_the_same_containers_and_ready_does_not_flip,
    life::a_failing_liveness_probe_restarts_the_container,
    life::edits_cost_what_their_class_says,
    life::a_job_runs_once_and_its_log_stays,
    life::a_failed_container_that_left_no_message_says_the_end_of_its_log,
    life::a_drain_stops_everything_and_keeps_what_it_came_to,
    life::qos_levels_have_the_weights_that_their_pods_ask_for,
    life::a_missing_sub_path_can_be_used_by_whoever_may_use_the_volume,
    life::a_firewall_that_drops_forwarded_packets_is_named_in_an_event_of_the_pod,
];

fn main() {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|word| word.to_str()) {
        Some("shim") => portreeve_engine::shim::main(args),
        Some("--list") => {
            for (name, _) in TESTS {
                println!("{name}: test");
            }
            return;
        }
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/bin/busybox").exists() {
        eprintln!("SKIPPED: the node's kernel tests need root and /bin/busybox");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces of the test's own");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("private mounts");

    let chosen: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut failed = Vec::new();
    let mut run = 0;
    for (name, test) in TESTS {
        if !chosen.is_empty() && !chosen.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        run += 1;
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
            runtime.block_on(async { tokio::time::timeout(LIMIT, test()).await.expect("in time") });
        }));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        if outcome.is_err() {
            failed.push(*name);
        }
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. {} passed; {} failed", run - failed.len(), failed.len());
    if !failed.is_empty() {
        println!("failed: {failed:?}");
        std::process::exit(101);
    }
}
