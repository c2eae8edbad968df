//! Real containers, with busybox as their image. Needs root and /bin/busybox; otherwise it says so and does nothing.
//!
//! Its own `main`: the shim is this very program, and everything happens in network and mount namespaces of its own,
//! entered before there is a second thread. Names on the command line choose tests; `--list` lists them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test program without a harness is a test as a whole"
)]

mod busybox;
mod exec;
mod hostile;
mod life;
#[path = "../../../oci/tests/containers/mapped_layers.rs"]
mod mapped_layers;
mod plugins;
mod recovery;
mod selinux;
mod streams;
mod versions;
mod world;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::{Duration, Instant};

use portreeve_sys::clone::{NEW_MOUNT, NEW_NET};

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// One test may not take longer, unless it was told how many rounds to do.
fn limit() -> Duration {
    Duration::from_secs(if std::env::var_os("PORTREEVE_ROUNDS").is_some() { 600 } else { 60 })
}

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}

const TESTS: &[Test] = tests![
    plugins::a_kubelets_pods_are_in_the_network_of_plugins_and_no_others,
    plugins::a_network_of_plugins_that_cannot_be_is_told_and_leaves_nothing,
    plugins::what_plugins_say_of_their_network_is_known_at_once_and_asked_in_the_background,
    plugins::a_pod_whose_network_was_harmed_without_an_agent_is_told_of,
    life::a_container_runs_logs_and_ends_with_its_code,
    life::containers_of_a_pod_share_network_hostname_and_shm,
    life::a_program_that_is_not_there_is_a_start_error,
    life::a_container_that_ignores_its_signal_is_killed_after_its_grace,
    life::the_stop_signal_of_the_image_is_used,
    life::stop_and_remove_of_the_absent_are_ok,
    life::too_much_memory_is_an_oom_kill,
    life::limits_are_written_and_changed,
    life::a_memory_limit_below_use_is_refused_and_nothing_is_killed,
    life::logs_rotate_and_reopen,
    life::removal_leaves_nothing,
    life::a_pod_that_cannot_be_made_leaves_no_cgroup_of_its_own,
    life::a_pod_with_a_network_has_an_address_and_ports_are_forwarded,
    life::processes_are_shared_when_asked,
    life::a_pod_with_its_own_users_is_root_inside_only,
    life::what_a_pod_with_its_own_users_is_given_has_its_ids,
    life::a_pod_on_the_nodes_network_and_ipc_has_its_hostname_and_queues,
    life::configuration_reaches_the_process,
    exec::a_command_runs_beside_the_first_process,
    exec::output_is_capped_and_a_timeout_kills_the_tree,
    exec::a_terminal_has_a_size_and_echoes,
    exec::a_missing_command_says_so,
    exec::input_reaches_the_command_and_its_end_too,
    exec::a_dropped_session_closes_its_streams_and_leaks_nothing,
    exec::a_command_without_a_terminal_ends_with_whoever_asked_for_it,
    streams::attached_output_and_input,
    streams::stdin_once_ends_the_input_with_its_client,
    streams::a_slow_client_is_detached_and_the_container_goes_on,
    streams::a_container_with_a_terminal,
    recovery::a_killed_shim_leaves_no_orphans,
    recovery::a_lost_sandbox_that_is_stopped_is_stopped,
    recovery::a_new_engine_finds_everything_again,
    recovery::a_pod_whose_link_went_has_its_parameters_on_the_new_one,
    recovery::an_exit_without_an_agent_is_known_later,
    recovery::a_shim_that_is_given_up_writes_nothing_while_its_containers_are_recovered,
    recovery::a_container_that_cannot_be_recovered_is_not_the_end_of_the_others,
    recovery::a_pod_with_many_words_of_ended_containers_is_found_again,
    recovery::an_agent_killed_at_any_moment_leaves_nothing_behind,
    recovery::half_made_and_foreign_things_are_cleaned,
    recovery::a_damaged_record_costs_its_sandbox_alone,
    recovery::a_stopped_shim_is_given_up,
    recovery::newer_state_is_refused_and_left_alone,
    recovery::a_shim_is_small,
    recovery::a_start_that_is_refused_harms_nobody,
    selinux::a_pod_keeps_its_level_and_no_other_pod_has_it,
    selinux::a_volume_has_the_label_of_its_pod_when_that_is_asked_for,
    versions::an_older_shim_and_older_records_are_understood,
    versions::every_newer_record_is_refused_and_nothing_is_touched,
    versions::a_shim_that_speaks_only_a_newer_version_is_refused_and_left_alone,
    hostile::users_that_are_no_users_are_refused,
    hostile::a_log_path_stays_below_its_directory,
    hostile::nobody_else_can_look_into_the_state,
    hostile::what_a_container_writes_to_its_files_is_on_disk,
    hostile::the_program_of_the_shim_cannot_be_written,
    hostile::process_one_of_a_shared_pid_namespace_gives_nothing_away,
];

fn main() {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    match first.as_ref().and_then(|word| word.to_str()) {
        Some("shim") => portreeve_engine::shim::main(args),
        Some("--list") => {
            for (name, _) in TESTS {
                println!("{name}: test");
            }
            return;
        }
        _ => {}
    }
    if portreeve_sys::process::user_id() != 0 || !std::path::Path::new("/bin/busybox").exists() {
        eprintln!("SKIPPED: the engine's kernel tests need root and /bin/busybox");
        return;
    }
    if first.as_ref().and_then(|word| word.to_str()) == Some("victim") {
        let directory = args.next().expect("directory");
        runtime().block_on(recovery::victim(directory.into()));
        return;
    }
    portreeve_sys::namespace::unshare(NEW_NET | NEW_MOUNT).expect("namespaces of the test's own");
    world::private_mounts();

    if first.as_ref().and_then(|word| word.to_str()) == Some("bench") {
        runtime().block_on(world::bench());
        return;
    }
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
            runtime().block_on(async { tokio::time::timeout(limit(), test()).await.expect("in time") });
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

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}
