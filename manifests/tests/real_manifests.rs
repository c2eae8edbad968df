//! What `validate` says to manifests that others wrote.
//!
//! The manifests are not part of the repository: they are read from `../shared/manifests`
//! beside it, or from the directory that `PORTREEVE_REAL_MANIFESTS` names. The verdicts are in
//! `real_manifests.txt`, which someone has read and agreed with; `UPDATE_EXPECT=1` writes it
//! anew.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use portreeve_manifests::{Verdict, parse_file};

fn directory() -> PathBuf {
    std::env::var_os("PORTREEVE_REAL_MANIFESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/manifests"), PathBuf::from)
}

#[test]
fn real_manifests_get_the_verdicts_that_were_agreed_on() {
    let directory = directory();
    let Ok(entries) = std::fs::read_dir(&directory) else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no manifests in {}; set PORTREEVE_REAL_MANIFESTS to their directory",
            directory.display()
        );
        return;
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml") || name.ends_with(".yml"))
        .collect();
    names.sort();
    let mut out = String::new();
    for name in names {
        let bytes = std::fs::read(directory.join(&name)).unwrap();
        let parsed = parse_file(Path::new("file"), &bytes);
        writeln!(out, "# {name}").unwrap();
        for document in &parsed.documents {
            let verdict = match &document.verdict {
                Verdict::Accepted(object) => format!("accepted {}", object.key()),
                Verdict::Refused { key: Some(key) } => format!("refused {key}"),
                Verdict::Refused { key: None } => "refused".to_owned(),
                Verdict::Ignored => "ignored".to_owned(),
            };
            writeln!(out, "{} {verdict}", document.position).unwrap();
        }
        for problem in &parsed.problems {
            assert!(!problem.fix.is_empty() && !problem.message.contains(&problem.fix), "{name}: {problem}");
            let line = problem.to_string();
            writeln!(out, "  {}", line.strip_prefix("file:").unwrap()).unwrap();
        }
        out.push('\n');
    }
    expect_file!["./real_manifests.txt"].assert_eq(&out);
}
