//! `portreeve explain --support`: what a manifest can say here, printed from the table that enforces it.

use std::io::Write;
use std::process::ExitCode;

use portreeve_manifests::{Support, support_table};

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// Print which kinds and fields run here, which are ignored with a warning, and which are refused
    #[arg(long, required = true)]
    support: bool,
    /// How the table is printed
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Prints the table.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let rows = support_table();
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?,
        Output::Text => {
            let width = rows.iter().map(|row| row.subject.len()).max().unwrap_or(0);
            for row in rows {
                let support = match row.support {
                    Support::Supported => "yes",
                    Support::Warning => "warning",
                    Support::Error => "error",
                };
                writeln!(out, "{}", format!("{:width$}  {support:7}  {}", row.subject, row.note).trim_end())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
