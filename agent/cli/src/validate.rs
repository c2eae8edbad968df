//! `portreeve validate`: every problem of every file, and an exit code.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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

/// Prints every problem, also of paths that cannot be read; 1 when one of them is an error, 0 otherwise.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let report = Report::of(args.paths.iter().chain(&args.filename));
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report.json())?)?,
        Output::Text => report.print(&mut out)?,
    }
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What to do about a path that cannot be read.
const UNREAD: &str = "name a file or directory that can be read, or leave it out";

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
    fn of<'p>(paths: impl Iterator<Item = &'p PathBuf>) -> Self {
        let mut report = Self::default();
        for path in paths {
            match manifests::named(path) {
                // As kubectl: who names the wrong directory has not validated anything.
                Ok(files) if files.is_empty() => {
                    let why = format!("there are no manifests in {}", path.display());
                    report.unread(path, why, "name a directory with visible .yaml, .yml or .json files");
                }
                Ok(files) => files.iter().for_each(|file| report.read(file)),
                Err(error) => report.unread(path, format!("{error:#}"), UNREAD),
            }
        }
        report
    }

    fn read(&mut self, file: &manifests::Named) {
        let name = if file.is_stdin() { Path::new("<stdin>") } else { &file.path };
        match file.bytes() {
            Ok(bytes) => self.add(name, &bytes),
            Err(error) => self.unread(name, format!("{error:#}"), UNREAD),
        }
    }

    /// A path of which nothing is known; what others say is told all the same.
    fn unread(&mut self, path: &Path, message: String, fix: &str) {
        self.problems.push(Problem {
            severity: Severity::Error,
            file: path.to_owned(),
            position: Position::default(),
            document: 0,
            object: None,
            field: String::new(),
            reason: Reason::Unreadable,
            message,
            fix: fix.to_owned(),
        });
    }

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
    fn a_path_that_says_nothing_is_an_error_and_hides_no_other() {
        let home = tempfile::tempdir().unwrap();
        let (empty, missing, bad) =
            (home.path().join("empty"), home.path().join("none.yaml"), home.path().join("b.yaml"));
        std::fs::create_dir(&empty).unwrap();
        std::fs::write(empty.join("notes.txt"), "").unwrap();
        std::fs::write(&bad, "apiVersion: v1\nkind: Pot\n").unwrap();
        let address = PathBuf::from("http://127.0.0.1/a.yaml");
        let report = Report::of([&missing, &empty, &address, &bad].into_iter());
        let told: Vec<_> = report.problems.iter().map(|problem| (&problem.file, problem.message.clone())).collect();
        assert!(told[0].0 == &missing && told[0].1.contains("No such file"), "{told:?}");
        assert!(told[1].0 == &empty && told[1].1.contains("no manifests"), "{told:?}");
        assert!(told[2].0 == &address && told[2].1.contains("curl"), "{told:?}");
        assert!(told[3].0 == &bad && told[3].1.contains("unknown kind Pot"), "{told:?}");
        assert_eq!((report.errors(), report.files), (4, 1));
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
