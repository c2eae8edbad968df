//! `portreeve`: makes a Linux machine run what its manifests say, and keeps it so.
//!
//! One binary with three entries. The hidden `shim` entry, which keeps the containers of one
//! pod, is taken before anything else exists: no async runtime, no thread, no logger. `agent`
//! is the daemon. Everything else is a client of the agent's socket, or needs no agent at all.

mod agent;
mod config;
mod demo;
mod doctor;
mod explain;
mod validate;
mod verbs;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "portreeve", version, about, long_about = None, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    connection: verbs::Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: make this machine run what the manifests say, and keep it so
    Agent(Box<agent::AgentArgs>),
    #[command(flatten)]
    Client(verbs::Verb),
    /// Check manifests: every problem with its place and how to fix it; exit 0 or 1
    Validate(validate::ValidateArgs),
    /// Print what a manifest can say here
    Explain(explain::ExplainArgs),
    /// Print what this machine offers, and what to do about each lack
    Doctor(doctor::DoctorArgs),
    /// Run a web page in a throwaway agent on this machine
    Demo(demo::DemoArgs),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
    #[command(hide = true)]
    DemoPage(demo::page::PageArgs),
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|entry| entry == "shim") {
        portreeve_engine::shim::main(arguments);
    }
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell a standard error that is closed.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // The agent and its clients mean the same directory by the same name.
    let run = cli.connection.run.clone().or_else(|| std::env::var_os("PORTREEVE_RUN").map(PathBuf::from));
    match cli.command {
        Command::Agent(args) => agent::run(*args, run),
        Command::Client(verb) => verbs::run(verb, &cli.connection),
        Command::Doctor(args) => doctor::run(&args, run),
        Command::Validate(args) => validate::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::DemoPage(args) => demo::page::run(&args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "portreeve", &mut script);
            io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            writeln!(io::stdout(), "portreeve {}", env!("CARGO_PKG_VERSION"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Whether the reader of our output went away, as in `portreeve explain --support | head`.
///
/// Only an error without context comes from writing the output: whatever else breaks says what it was about.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let outermost = error.chain().next().and_then(|cause| cause.downcast_ref::<io::Error>());
    outermost.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn only_our_own_output_may_go_away_unheard() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::from(broken())));
        let elsewhere = Err::<(), _>(broken()).context("asking the published port").unwrap_err();
        assert!(!is_broken_pipe(&elsewhere));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
