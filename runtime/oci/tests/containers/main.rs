//! Real containers on the running kernel. Needs root and a static busybox; says so and passes when it has neither.
//!
//! Sequential and single-threaded by its own `main`: a container's first process is a clone of this one.
//! `cargo test -p portreeve-oci --test containers -- WORD` runs the tests whose names contain the word.

#![allow(clippy::indexing_slicing)]

mod attacks;
mod basics;
mod deletion;
mod filters;
mod hooks;
mod lifecycle;
mod limits;
mod locality;
mod mapped_layers;
mod mounts;
mod privileges;
mod races;
mod terminals;
mod userns;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

type Test = (&'static str, fn());

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == races::EXCHANGE) {
        races::exchange(arguments);
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == mounts::SHARED_WORLD) {
        return mounts::in_a_shared_world();
    }
    if let (Some(word), Some(path)) = (std::env::args().nth(1), std::env::args().nth(2))
        && word == limits::WITHOUT_PRIVILEGE
    {
        return limits::without_privilege(&path);
    }
    if let [_, word, how, neighbour] = std::env::args().collect::<Vec<_>>().as_slice()
        && word == attacks::MAKER
    {
        return attacks::maker(how, neighbour);
    }
    let filter: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let Some(lack) = world::lack() {
        eprintln!("SKIPPED all container tests: {lack}");
        return;
    }
    let suites = [
        basics::TESTS,
        privileges::TESTS,
        filters::TESTS,
        attacks::TESTS,
        races::TESTS,
        lifecycle::TESTS,
        hooks::TESTS,
        deletion::TESTS,
        limits::TESTS,
        mounts::TESTS,
        locality::TESTS,
        terminals::TESTS,
        userns::TESTS,
    ];
    let tests: Vec<Test> = suites.concat();
    let mut failed = Vec::new();
    let mut run = 0;
    for (name, test) in tests {
        if !filter.is_empty() && !filter.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        run += 1;
        let begin = std::time::Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, begin.elapsed().as_millis());
        if !passed {
            failed.push(name);
        }
    }
    let left = world::leftovers();
    assert!(left.is_empty(), "cgroups are left over: {left:?}");
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("test result: {word}. {} passed; {} failed", run - failed.len(), failed.len());
    assert!(failed.is_empty(), "failed: {failed:?}");
}
