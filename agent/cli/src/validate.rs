//! `portreeve validate`: every problem of every file, and an exit code.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use owo_colors::OwoColorize;
use portreeve_manifests::{ObjectKey, Position, Problem, Reason, Severity, Verdict, parse_file};

use crate::verbs::manifests;

#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// Files, or directories that are read recursively; `-` is standard input
    #[arg(required_unless_present = "filename", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The same as PATH, as apply and delete have it
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// How the problems are printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Prints every problem; 1 when one of them is an error, 0 otherwise.
///
/// # Errors
/// A path that cannot be read.
pub(crate) fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    for path in args.paths.iter().chain(&args.filename) {
        let files = manifests::named(path)?;
        // As kubectl: who names the wrong directory has not validated anything.
        if files.is_empty() {
            bail!("there are no manifests in {}: no visible .yaml, .yml or .json", path.display());
        }
        for file in files {
            let bytes = file.bytes()?;
            report.add(if file.is_stdin() { Path::new("<stdin>") } else { &file.path }, &bytes);
        }
    }
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report.json())?)?,
        Output::Text => report.print(&mut out)?,
    }
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was found in all files together.
#[derive(Debug, Default)]
struct Report {
    files: usize,
    accepted: usize,
    problems: Vec<Problem>,
    owners: BTreeMap<ObjectKey, (PathBuf, Position)>,
    uids: BTreeMap<String, ObjectKey>,
}

impl Report {
    fn add(&mut self, file: &Path, bytes: &[u8]) {
        let mut parsed = parse_file(file, bytes);
        self.files += 1;
        if parsed.documents.is_empty() {
            // An agent that ran objects of this file would take it for a mistake, so it is one here.
            parsed.problems.iter_mut().for_each(|problem| problem.severity = Severity::Error);
        }
        self.problems.extend(parsed.problems);
        for document in parsed.documents {
            let Verdict::Accepted(object) = document.verdict else { continue };
            self.accepted += 1;
            let key = object.key();
            let problem = |field: &str, message, fix: &str| Problem {
                severity: Severity::Error,
                file: file.to_owned(),
                position: document.position,
                document: document.index,
                field: field.to_owned(),
                reason: Reason::FieldValueDuplicate,
                message,
                fix: fix.to_owned(),
                object: Some(key.clone()),
            };
            if let Some((owner, position)) = self.owners.get(&key) {
                let message = format!("{key} is also in {}:{}", owner.display(), position.line);
                let fix = "rename one of the two, or delete it: the first one found keeps running";
                self.problems.push(problem("metadata.name", message, fix));
                continue;
            }
            // One UUID may be spelled with small or with capital letters.
            let uid = object.metadata().uid.as_deref().unwrap_or_default().to_ascii_lowercase();
            if let Some((other, (owner, position))) = self.uids.get(&uid).and_then(|key| self.owners.get_key_value(key))
            {
                let message = format!("{uid:?} is the uid of {other} in {}:{}", owner.display(), position.line);
                self.problems.push(problem(
                    "metadata.uid",
                    message,
                    "remove metadata.uid: the agent gives one and keeps it",
                ));
            } else if !uid.is_empty() {
                self.uids.insert(uid, key.clone());
            }
            self.owners.insert(key, (file.to_owned(), document.position));
        }
    }

    fn errors(&self) -> usize {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).count()
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let colour = std::io::stdout().is_terminal();
        for problem in &self.problems {
            let line = problem.to_string();
            match (colour, problem.severity) {
                (true, Severity::Error) => writeln!(out, "{}", line.red())?,
                (true, Severity::Warning) => writeln!(out, "{}", line.yellow())?,
                (false, _) => writeln!(out, "{line}")?,
            }
        }
        let errors = self.errors();
        writeln!(
            out,
            "{}, {}, {}, {}",
            count(self.files, "file"),
            count(self.accepted, "valid object"),
            count(errors, "error"),
            count(self.problems.len() - errors, "warning"),
        )
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "files": self.files,
            "objects": self.owners.keys().map(ToString::to_string).collect::<Vec<_>>(),
            "errors": self.errors(),
            "problems": self.problems,
        })
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_manifests_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("notes.txt"), "").unwrap();
        let args = ValidateArgs { paths: vec![home.path().to_owned()], filename: Vec::new(), output: Output::Text };
        let error = run(&args).unwrap_err().to_string();
        assert!(error.contains(&home.path().display().to_string()) && error.contains(".yaml"), "{error}");
    }

    #[test]
    fn a_uid_that_two_files_give_is_an_error_of_the_second() {
        let map = |name: &str, uid: &str| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, uid: {uid}}}\n")
        };
        let mut report = Report::default();
        report.add(Path::new("a.yaml"), map("a", "6ba7b810-9dad-41d1-80b4-00c04fd430c8").as_bytes());
        report.add(Path::new("b.yaml"), map("b", "6ba7b811-9dad-41d1-80b4-00c04fd430c8").as_bytes());
        assert_eq!(report.errors(), 0, "{:?}", report.problems);
        report.add(Path::new("c.yaml"), map("c", "6BA7B810-9DAD-41D1-80B4-00C04FD430C8").as_bytes());
        let problems: Vec<_> = report.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            ["c.yaml:1:1: error: metadata.uid: \"6ba7b810-9dad-41d1-80b4-00c04fd430c8\" is the uid of \
              ConfigMap default/a in a.yaml:1 (remove metadata.uid: the agent gives one and keeps it)"]
        );
    }
}
