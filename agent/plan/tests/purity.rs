//! The planner is pure: its dependencies and its sources say so.

#![allow(clippy::indexing_slicing)] // Positions come from the line itself.

use std::fs;
use std::path::{Path, PathBuf};

/// What a pure crate has no use for, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("SystemTime", "time is an argument"),
    ("Instant", "time is an argument"),
    ("Timestamp::now", "time is an argument"),
    ("Zoned::now", "time is an argument"),
    ("std::fs", "no I/O"),
    ("std::io", "no I/O"),
    ("std::net::Tcp", "no I/O"),
    ("std::process", "no I/O"),
    ("std::env", "no surroundings"),
    ("std::thread", "no threads"),
    ("println!", "no output"),
    ("eprintln!", "no output"),
    ("tokio", "no executor"),
    ("async ", "no executor"),
    (".await", "no executor"),
    ("tracing", "the plan is the record of why"),
    ("rand", "no randomness"),
    ("HashMap", "its order is random"),
    ("HashSet", "its order is random"),
    ("Mutex", "no state"),
    ("Cell", "no state"),
    ("static mut", "no state"),
];

const ALLOWED_DEPENDENCIES: &[&str] = &["portreeve-manifests", "k8s-openapi", "jiff", "serde", "serde_json"];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("the crate has sources") {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Whether `word` stands in `line` as a word of its own.
fn names(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(word).any(|(at, _)| {
        let letter = |c: char| c.is_alphanumeric() || c == '_';
        let before = code[..at].chars().next_back().is_some_and(letter);
        let after = code[at + word.len()..].chars().next().is_some_and(letter);
        !(before || after && word.ends_with(letter))
    })
}

#[test]
fn the_sources_use_no_clock_no_io_no_executor_and_no_randomness() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 10, "the sources were not found: {files:?}");
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source can be read");
        for (number, line) in text.lines().enumerate() {
            for (word, why) in FORBIDDEN.iter().filter(|(word, _)| names(line, word)) {
                found.push(format!("{}:{}: {word}: {why}", file.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_crate_depends_only_on_words_and_time_arithmetic() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let text = fs::read_to_string(manifest).expect("the manifest can be read");
    let section = text.split("\n[dependencies]").nth(1).expect("there are dependencies");
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section.lines().map(|line| line.split(['.', '=', ' ']).next().unwrap_or_default());
    for name in names.filter(|name| !name.is_empty() && !name.starts_with('#')) {
        assert!(ALLOWED_DEPENDENCIES.contains(&name), "{name} is no dependency of a pure crate");
    }
}

#[test]
fn the_guard_sees_what_it_guards_against() {
    assert!(names("let now = Timestamp::now();", "Timestamp::now"));
    assert!(names("use std::fs;", "std::fs"));
    assert!(!names("let operand = 1; // rand", "rand"));
}
