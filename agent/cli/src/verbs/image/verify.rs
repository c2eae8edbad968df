//! `image verify` and `system check`.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use http::Method;
use portreeve_api::size::size;
use portreeve_api::v1alpha1::{CheckedPart, PartKind, PartState, Verification};
use serde_json::json;

use super::{Document, IMAGES, Logins};
use crate::verbs::client::{Client, full, with_query};
use crate::verbs::output;

/// Arguments of `image verify` and `system check`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Get again what is damaged, from where its image came; what a container stands on is left as it is
    #[arg(long)]
    repair: bool,
    /// How to print: every part, also those that are whole
    #[arg(short, long, value_enum)]
    output: Option<Document>,
    #[command(flatten)]
    logins: Logins,
}

/// What was found, counted.
#[derive(Default)]
struct Sum {
    parts: u64,
    bytes: u64,
    damaged: u64,
    repaired: u64,
    unrecorded: u64,
}

pub(crate) async fn verify(client: &Client, references: &[String], args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let named: Vec<&str> = references.iter().map(String::as_str).collect();
    let auth = if args.repair { args.logins.body(&named)? } else { Vec::new() };
    let mut query = vec![("repair", if args.repair { "true" } else { "false" })];
    query.extend(named.iter().map(|reference| ("reference", *reference)));
    let path = with_query(&format!("{IMAGES}/verify"), &query);
    let mut lines = client.request_long(Method::POST, &path, "application/json", full(auth)).await?.lines();
    let (mut sum, mut parts) = (Sum::default(), Vec::new());
    loop {
        match lines.next::<Verification>().await? {
            Some(Verification::Checked(part)) => {
                sum.add(&part);
                match args.output {
                    Some(_) => parts.push(part),
                    None => show(&part)?,
                }
            }
            Some(Verification::Done) => break,
            None => bail!("the agent stopped before everything was checked"),
        }
    }
    let mut out = io::stdout().lock();
    match args.output {
        Some(Document::Json) => output::json(&mut out, &json!({ "parts": parts }))?,
        Some(Document::Yaml) => output::yaml(&mut out, &json!({ "parts": parts }))?,
        None => sum.show(&mut out, args.repair)?,
    }
    Ok(if sum.damaged + sum.unrecorded == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Sum {
    fn add(&mut self, part: &CheckedPart) {
        self.parts += 1;
        self.bytes += part.bytes;
        match part.state {
            PartState::Whole => {}
            PartState::Repaired => self.repaired += 1,
            PartState::Damaged => self.damaged += 1,
            PartState::Unrecorded => self.unrecorded += 1,
        }
    }

    fn show(&self, out: &mut impl Write, repair: bool) -> io::Result<()> {
        let Self { parts, bytes, damaged, repaired, unrecorded } = self;
        let state = match (damaged, repaired, unrecorded) {
            (0, 0, 0) => "all whole".to_owned(),
            _ => {
                let counts = [(damaged, "damaged"), (repaired, "repaired"), (unrecorded, "of an older version")];
                let counts = counts.iter().filter(|(count, _)| **count > 0).map(|(n, word)| format!("{n} {word}"));
                counts.collect::<Vec<_>>().join(", ")
            }
        };
        writeln!(out, "{parts} parts checked, {}: {state}", size(*bytes))?;
        if damaged + unrecorded > 0 && !repair {
            writeln!(out, "--repair gets them again from where their images came")?;
        }
        Ok(())
    }
}

fn show(part: &CheckedPart) -> io::Result<()> {
    let state = match part.state {
        PartState::Whole => return Ok(()),
        PartState::Repaired => "was damaged, and is repaired",
        PartState::Damaged => "is damaged",
        PartState::Unrecorded => "was unpacked by an older version, which kept no digests",
    };
    let what = match part.kind {
        PartKind::Blob => "blob",
        PartKind::Layer => "layer",
        PartKind::Top => "directories on top of",
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{what} {} of {} {state}", part.digest, part.images.join(", "))?;
    for problem in &part.problems {
        match problem.path.as_str() {
            "" => writeln!(out, "  {}", problem.problem)?,
            path => writeln!(out, "  {path}: {}", problem.problem)?,
        }
    }
    let more = part.problem_count.saturating_sub(part.problems.len() as u64);
    if more > 0 {
        writeln!(out, "  and {more} more")?;
    }
    if let Some(why) = &part.unrepaired {
        writeln!(out, "  not repaired: {why}")?;
    }
    Ok(())
}
