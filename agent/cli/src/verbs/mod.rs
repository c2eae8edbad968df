//! The verbs that talk to a running agent. Each is a client of its socket like any other: what
//! is shown here, any client can read.
//!
//! Verbs, flags and columns are kubectl's wherever kubectl has one.

mod apply;
mod attach;
mod client;
mod copy;
mod describe;
mod exec;
mod forward;
mod get;
mod image;
mod logs;
pub(crate) mod manifests;
mod operate;
mod output;
mod plan;
mod system;
mod target;
pub(crate) mod terminal;
mod top;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use client::Client;
pub(crate) use logs::duration;

/// How a verb finds its agent.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Connection {
    /// The run directory of the agent to talk to [env: PORTREEVE_RUN] [default: /run/portreeve]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) run: Option<PathBuf>,
    /// The socket of the agent to talk to [env: PORTREEVE_SOCKET]
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "run")]
    pub(crate) socket: Option<PathBuf>,
    /// How long the agent may take to answer, e.g. 5s; 0 means as long as it takes; streams last, once they have begun
    /// [default: 30s; drain, system, image save, load, verify, prune and rm: as long as it takes]
    #[arg(long, value_name = "DURATION", global = true, value_parser = timeout)]
    pub(crate) request_timeout: Option<Duration>,
}

impl Connection {
    /// The socket: a flag beats the environment, the environment beats the default.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket_with(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
    }

    fn socket_with(&self, environment: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
        let in_run = |run: &Path| run.join("portreeve.sock");
        if let Some(socket) = &self.socket {
            return socket.clone();
        }
        if let Some(run) = &self.run {
            return in_run(run);
        }
        environment("PORTREEVE_SOCKET")
            .or_else(|| environment("PORTREEVE_RUN").map(|run| in_run(&run)))
            .unwrap_or_else(|| in_run(Path::new("/run/portreeve")))
    }
}

/// A duration as kubectl reads it here: a number alone is seconds.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).or_else(|_| logs::duration(text))
}

/// A namespace as it was given; an empty one, of a variable that is not set, is the default.
pub(crate) fn namespace(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(if text.is_empty() { "default" } else { text }.to_owned())
}

/// The namespace a verb works in.
#[derive(Debug, Clone, Args)]
pub(crate) struct Namespace {
    /// The namespace
    #[arg(short, long, default_value = "default", value_parser = namespace)]
    namespace: String,
}

/// The verbs that need a running agent.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List objects: pods, containers, images, sources, events, nodes, namespaces, configmaps
    Get(get::GetArgs),
    /// Tell everything about an object, with its events
    Describe(describe::DescribeArgs),
    /// Print the log of a container
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Join the standard streams of a running container
    Attach(attach::AttachArgs),
    /// Copy files to and from a container (which must have tar)
    Cp(copy::CopyArgs),
    /// Make ports of a pod reachable on this machine
    #[command(name = "port-forward")]
    PortForward(forward::ForwardArgs),
    /// Show what pods or the node use
    Top(top::TopArgs),
    /// Restart a pod
    Restart(operate::RestartArgs),
    /// Stop every pod, within its grace period, until the agent is started again
    Drain(operate::DrainArgs),
    /// Print what would change, and what it costs; exit 0 nothing, 2 changes, 1 error
    Plan(plan::PlanArgs),
    /// Write objects into the manifests directory, one file each
    Apply(apply::ApplyArgs),
    /// Remove objects that apply has written
    Delete(apply::DeleteArgs),
    /// Pull, push, save, load, list, inspect, tag, verify, remove and prune images
    Image(image::ImageArgs),
    /// Tell what is on the disk, and remove what nobody needs
    System(system::SystemArgs),
}

/// Runs a verb to its end; the exit code is the verb's own answer.
///
/// # Errors
/// What failed on which object and why, as one chain.
pub(crate) fn run(verb: Verb, connection: &Connection) -> anyhow::Result<ExitCode> {
    let client = Client::new(connection.socket(), connection.request_timeout);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the async runtime")?;
    let result = runtime.block_on(async {
        match verb {
            Verb::Get(args) => get::run(&client, args).await,
            Verb::Describe(args) => describe::run(&client, args).await,
            Verb::Logs(args) => logs::run(&client, args).await,
            Verb::Exec(args) => exec::run(&client, args).await,
            Verb::Attach(args) => attach::run(&client, args).await,
            Verb::Cp(args) => copy::run(&client, args).await,
            Verb::PortForward(args) => forward::run(&client, args).await,
            Verb::Top(args) => top::run(&client, args).await,
            Verb::Restart(args) => operate::restart(&client, args).await,
            Verb::Drain(args) => operate::drain(&client, args).await,
            Verb::Plan(args) => plan::run(&client, args).await,
            Verb::Apply(args) => apply::apply(&client, args).await,
            Verb::Delete(args) => apply::delete(&client, args).await,
            Verb::Image(args) => image::run(&client, args).await,
            Verb::System(args) => system::run(&client, args).await,
        }
    });
    // A thread may still wait for the terminal; the process does not wait for it.
    runtime.shutdown_background();
    result
}

/// A pod's name, given as `web` or as `pod/web`.
fn pod_name(text: &str) -> Result<String, String> {
    let name = match text.split_once('/') {
        Some(("pod" | "pods" | "po", name)) => name,
        Some((kind, _)) => return Err(format!("{kind} is no kind that runs; give a pod, as NAME or pod/NAME")),
        None => text,
    };
    if name.is_empty() { Err("the name is empty".to_owned()) } else { Ok(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_namespace_is_the_default_one() {
        assert_eq!(["", "prod"].map(|text| namespace(text).unwrap()), ["default", "prod"]);
    }

    #[test]
    fn a_request_timeout_is_kubectls() {
        for (text, millis) in [("0", 0), ("5", 5_000), ("5s", 5_000), ("1m30s", 90_000), ("0s", 0)] {
            assert_eq!(timeout(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "-1", "5x", "1.5"] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_flag_beats_the_environment_and_a_socket_beats_a_run_directory() {
        let environment = |name: &str| Some(PathBuf::from(if name == "PORTREEVE_RUN" { "/env" } else { "/env.sock" }));
        let only_run = |name: &str| (name == "PORTREEVE_RUN").then(|| PathBuf::from("/env"));
        let run = Connection { run: Some("/flag".into()), ..Connection::default() };
        let socket = Connection { socket: Some("/flag.sock".into()), ..Connection::default() };
        assert_eq!(run.socket_with(environment), Path::new("/flag/portreeve.sock"));
        assert_eq!(socket.socket_with(environment), Path::new("/flag.sock"));
        assert_eq!(Connection::default().socket_with(environment), Path::new("/env.sock"));
        assert_eq!(Connection::default().socket_with(only_run), Path::new("/env/portreeve.sock"));
        assert_eq!(Connection::default().socket_with(|_| None), Path::new("/run/portreeve/portreeve.sock"));
    }

    #[test]
    fn a_pod_may_be_named_with_its_kind() {
        assert_eq!(pod_name("pod/web").unwrap(), "web");
        assert_eq!(pod_name("web").unwrap(), "web");
        assert!(pod_name("deployment/web").is_err());
        assert!(pod_name("pod/").is_err());
    }
}
