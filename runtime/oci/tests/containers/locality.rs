//! Processors, memory nodes, scheduling.

use rustix::thread::sched_getaffinity;
use serde_json::json;

use crate::Test;
use crate::world::{World, chain};

pub(crate) const TESTS: &[Test] = &[
    ("a_further_process_runs_on_its_processors_and_its_maker_where_it_was", processors_of_a_further_process),
    ("processors_that_are_not_there_are_an_error_of_the_process", processors_that_are_not_there),
    ("pages_come_from_the_nodes_of_the_policy_in_run_and_exec", pages_come_from_the_nodes_of_the_policy),
    ("a_node_that_is_not_there_is_an_error_that_names_the_policy", a_node_that_is_not_there),
    ("a_flag_about_utilisation_reaches_the_kernel_with_its_fields", a_flag_about_utilisation),
];

fn allowed(text: &str) -> &str {
    text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("field").trim()
}

fn processors_of_a_further_process() {
    let own = sched_getaffinity(None).expect("affinity");
    if own.count() < 2 {
        eprintln!("SKIPPED a test: it needs two processors");
        return;
    }
    let mut processors = (0..1024).filter(|cpu| own.is_set(*cpu));
    let (one, other) = (processors.next().expect("one"), processors.next().expect("another"));
    // It counts for further processes alone: the first one keeps what it was born with.
    let affinity = json!({"initial": one.to_string(), "final": other.to_string()});
    let world = World::shell("cat /proc/self/status; echo up; sleep 100")
        .with(json!({"process": {"execCPUAffinity": affinity}}));
    let live = world.start();
    live.wait_for("up");
    assert_ne!(allowed(&live.output()), other.to_string());
    assert_eq!(allowed(&live.exec("cat /proc/self/status").out), other.to_string());
    assert_eq!(sched_getaffinity(None).expect("affinity"), own);
}

fn processors_that_are_not_there() {
    let world = World::shell("echo up; sleep 100");
    let live = world.start();
    live.wait_for("up");
    for field in ["initial", "final"] {
        let affinity = json!({"execCPUAffinity": {field: "1023"}, "args": ["true"]});
        let words = chain(&live.try_exec(affinity).expect_err("no such processor"));
        assert!(words.contains(&format!("execCPUAffinity.{field}")) && words.contains("Invalid argument"), "{words}");
    }
}

fn pages_come_from_the_nodes_of_the_policy() {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        eprintln!("SKIPPED a test: this kernel knows no memory nodes");
        return;
    }
    for (policy, expected) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}), "bind=static:0"),
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0-0"}), "interleave:0"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
        (json!({"mode": "MPOL_DEFAULT"}), "default"),
    ] {
        let script = "head -n 1 /proc/self/numa_maps | cut -d ' ' -f 2";
        let world = World::shell(&format!("{script}; echo up; sleep 100"));
        let world = world.with(json!({"linux": {"memoryPolicy": policy}}));
        let live = world.start();
        live.wait_for("up");
        let further = live.exec(script);
        assert_eq!((live.output().as_str(), further.out.trim()), (&*format!("{expected}\nup\n"), expected), "{policy}");
    }
}

fn a_node_that_is_not_there() {
    let policy = json!({"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "1023"}}});
    let words = World::shell("true").with(policy).refusal();
    let numa = std::path::Path::new("/proc/self/numa_maps").exists();
    let why = if numa { "Invalid argument" } else { "Function not implemented" };
    assert!(words.contains("MPOL_BIND for nodes 1023") && words.contains(why), "{words}");
}

/// A kernel that is told of fields which it was not given answers EINVAL.
fn a_flag_about_utilisation() {
    let scheduler = json!({"policy": "SCHED_OTHER", "nice": 5, "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]});
    let world = World::shell("true").with(json!({"process": {"scheduler": scheduler}}));
    let (stdio, ..) = world.streams();
    match world.create(&world.typed(), stdio) {
        Ok(created) => drop(created),
        Err(error) => {
            let words = chain(&error);
            assert!(words.contains("setting the scheduler") && words.contains("not supported"), "{words}");
        }
    }
}
