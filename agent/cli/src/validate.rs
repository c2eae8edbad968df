//! `portreeve validate`: every problem of every file, and an exit code.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use owo_colors::OwoColorize;
use portreeve_manifests::{ObjectKey, Position, Problem, Reason, Severity, Verdict, parse_file};
use portreeve_node::source::is_manifest_name;

#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// Files, or directories that are read recursively; `-` is standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
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
    for path in &args.paths {
        if path == Path::new("-") {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("reading standard input")?;
            report.add(Path::new("<stdin>"), &bytes);
            continue;
        }
        for file in manifest_files(path)? {
            let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            report.add(&file, &bytes);
        }
    }
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&report.json())?)?,
        Output::Text => report.print(&mut out)?,
    }
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The files below a directory that an agent would run, in the order of their names, or the one
/// file that was named.
fn manifest_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let metadata = std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if path.is_dir() && !hidden {
                folders.push(path);
            } else if is_manifest_name(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What was found in all files together.
#[derive(Debug, Default)]
struct Report {
    files: usize,
    accepted: usize,
    problems: Vec<Problem>,
    owners: BTreeMap<ObjectKey, (PathBuf, Position)>,
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
            match self.owners.get(&key) {
                None => {
                    self.owners.insert(key, (file.to_owned(), document.position));
                }
                Some((owner, position)) => self.problems.push(Problem {
                    severity: Severity::Error,
                    file: file.to_owned(),
                    position: document.position,
                    document: document.index,
                    field: "metadata.name".to_owned(),
                    reason: Reason::FieldValueDuplicate,
                    message: format!("{key} is also in {}:{}", owner.display(), position.line),
                    fix: Some("rename one of the two, or delete it: the first one found keeps running".to_owned()),
                    object: Some(key),
                }),
            }
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
