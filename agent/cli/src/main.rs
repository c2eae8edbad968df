//! `portreeve`: makes a Linux machine run what its manifests say, and keeps it so.
//!
//! One binary with four entries. The hidden `shim` entry, which keeps the containers of one
//! pod, and `runtime`, which runs single containers, are taken before anything else exists: no
//! async runtime, no thread, no logger. `agent` is the daemon. Everything else is a client of the
//! agent's socket, or needs no agent at all.

mod agent;
mod claim;
mod config;
mod demo;
mod doctor;
mod explain;
mod runtime;
mod validate;
mod verbs;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "portreeve",
    version,
    about = "Runs pods on this Linux machine as the Kubernetes manifests in a directory say, and keeps them so"
)]
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
    Doctor(Box<doctor::DoctorArgs>),
    /// Run a web page in a throwaway agent on this machine
    Demo(demo::DemoArgs),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
    /// Run single containers: an OCI runtime with runc's arguments, see `portreeve runtime --help`
    #[command(disable_help_flag = true)]
    Runtime {
        /// What the runtime reads itself
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    #[command(hide = true)]
    DemoPage(demo::page::PageArgs),
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let (program, entry) = (arguments.next().unwrap_or_default(), arguments.next());
    if runtime::is_runtime(&program, entry.as_deref()) {
        runtime::main(std::env::args_os());
    }
    if entry.is_some_and(|entry| entry == "shim") {
        portreeve_engine::shim::main(arguments);
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| from_environment(error, |name| std::env::var(name).ok()).exit());
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
    let variable = std::env::var_os("PORTREEVE_RUN").filter(|value| !value.is_empty()).map(PathBuf::from);
    let run = cli.connection.run.clone().or(variable);
    match cli.command {
        Command::Agent(args) if args.socket.is_some() => {
            let message = "an agent's socket is portreeve.sock in its run directory; set --run instead of --socket";
            Cli::command().error(ErrorKind::ArgumentConflict, message).exit()
        }
        Command::Agent(args) if args.request_timeout.is_some() => {
            let message = "an agent asks nobody: --request-timeout is a flag of the verbs that talk to one";
            Cli::command().error(ErrorKind::ArgumentConflict, message).exit()
        }
        Command::Agent(args) => agent::run(*args, run),
        Command::Client(verb) => verbs::run(verb, &cli.connection),
        Command::Doctor(args) => doctor::run(*args, run),
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
        Command::Runtime { arguments } => runtime::main(std::iter::once("portreeve".into()).chain(arguments)),
        Command::Version => {
            writeln!(io::stdout(), "portreeve {}", env!("CARGO_PKG_VERSION"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Says of a refused value that it is a variable's, when nobody gave the flag that the error names.
fn from_environment(mut error: clap::Error, environment: impl Fn(&str) -> Option<String>) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (Some(flag), Some(value)) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) else {
        return error;
    };
    let cli = Cli::command();
    let named = cli.get_subcommands().flat_map(clap::Command::get_arguments).find_map(|argument| {
        let is_named = flag.split(' ').next()?.strip_prefix("--")? == argument.get_long()?;
        let variable = argument.get_env()?.to_str()?;
        (is_named && environment(variable)? == value).then(|| variable.to_owned())
    });
    if let Some(variable) = named {
        let tip = format!("the value is that of the environment variable {variable}").into();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
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
    use std::collections::{BTreeMap, BTreeSet};

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
    fn a_refused_value_of_the_environment_is_named_with_its_variable() {
        let refused = || Cli::try_parse_from(["portreeve", "agent", "--listen", "bad"]).unwrap_err();
        let told = from_environment(refused(), |name| (name == "PORTREEVE_LISTEN").then(|| "bad".to_owned()));
        assert!(told.to_string().contains("variable PORTREEVE_LISTEN"), "{told}");
        for other in [None, Some("127.0.0.1:0".to_owned())] {
            let told = from_environment(refused(), |_| other.clone()).to_string();
            assert!(
                told.contains("--listen") && told.contains("127.0.0.1:9580") && !told.contains("PORTREEVE"),
                "{told}"
            );
        }
    }

    /// Of a verb, the flags that are in its help: name and variable.
    fn flags(verb: &str) -> BTreeMap<String, Option<String>> {
        let mut cli = Cli::command();
        cli.build();
        let verb = cli.find_subcommand(verb).unwrap();
        let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
        let arguments = verb.get_arguments().filter(|argument| !argument.is_hide_set());
        arguments.filter_map(|one| Some((one.get_long()?.to_owned(), one.get_env().map(text)))).collect()
    }

    /// What the README's table of settings says: each key with its flag.
    fn settings_of_the_readme() -> Vec<(String, String)> {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
        let table = readme.split("| key | flag | default |").nth(1).unwrap().split("\n\n").next().unwrap();
        let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        let pair = |row: &str| {
            let cells: Vec<&str> = row.split(" | ").collect();
            let flags = quoted(cells.get(1)?).into_iter();
            let flags =
                flags.map(|flag| flag.trim_start_matches("--").split(' ').next().unwrap_or_default().to_owned());
            Some(quoted(cells.first()?).into_iter().zip(flags).collect::<Vec<_>>())
        };
        table.lines().filter_map(pair).flatten().collect()
    }

    #[test]
    fn flags_variables_keys_and_the_readmes_table_agree() {
        let table = settings_of_the_readme();
        assert_eq!(table.iter().map(|(key, _)| key.as_str()).collect::<BTreeSet<_>>(), BTreeSet::from(config::KEYS));
        let mut flags = flags("agent");
        let variable = |flag: &str| format!("PORTREEVE_{}", flag.to_uppercase().replace('-', "_"));
        // No setting: it names the file of all of them.
        assert_eq!(flags.remove("config"), Some(Some(variable("config"))));
        for other in ["help", "version"] {
            flags.remove(other);
        }
        // Read by hand, because it belongs to all verbs.
        assert_eq!(flags.insert("run".to_owned(), Some(variable("run"))), Some(None));
        assert_eq!(flags.keys().collect::<BTreeSet<_>>(), table.iter().map(|(_, flag)| flag).collect());
        for (flag, named) in &flags {
            assert_eq!(named.as_deref(), Some(variable(flag).as_str()), "--{flag}");
        }
        for (key, flag) in &table {
            // A key that is a list has the name of many, a flag that of one.
            let words = |text: &str| {
                let words = text.to_lowercase().replace(['-', '.'], "").replace("registries", "registrys");
                words.trim_end_matches('s').to_owned()
            };
            assert_eq!(words(key), words(flag));
        }
    }

    #[test]
    fn the_doctor_has_every_setting_of_an_agent() {
        let mut doctor = flags("doctor");
        for own in ["output", "cri", "kubelet-config", "socket", "request-timeout"] {
            assert!(doctor.remove(own).is_some(), "{own}");
        }
        assert_eq!(doctor, flags("agent"));
    }

    #[test]
    fn an_agent_has_no_flag_of_those_who_ask_one() {
        for flags in [["--socket", "s"], ["--request-timeout", "5s"]] {
            let flag = flags.join("=");
            for arguments in [["portreeve", "agent", &flag], ["portreeve", &flag, "agent"]] {
                let Command::Agent(args) = Cli::try_parse_from(arguments).unwrap().command else { panic!("no agent") };
                assert!(args.socket.is_some() || args.request_timeout.is_some(), "{arguments:?} could not be refused");
            }
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
