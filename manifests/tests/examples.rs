//! The examples are user documentation: each is good, without a single warning.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use portreeve_manifests::{Kind, parse_file};

#[test]
fn every_example_parses_without_a_problem() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let parsed = parse_file(&path, &std::fs::read(&path).unwrap());
        let shown: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty() && !parsed.unreadable, "{}", shown.join("\n"));
        assert!(parsed.objects().any(|object| object.kind() == Kind::Pod), "{} has no pod", path.display());
        count += 1;
    }
    assert!(count >= 6, "only {count} examples");
}
