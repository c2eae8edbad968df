//! `attach`.

use std::process::ExitCode;

use clap::Args;

use super::client::{Client, with_query};
use super::exec::{Streams, converse, pod_path, wants_terminal};
use super::{Namespace, pod_name};

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The pod
    #[arg(value_parser = pod_name)]
    pod: String,
    #[command(flatten)]
    namespace: Namespace,
    /// The container; needed when the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on; the container must have stdin: true
    #[arg(short = 'i', long)]
    stdin: bool,
    /// On the container's terminal; it must have tty: true
    #[arg(short, long)]
    tty: bool,
}

pub(crate) async fn run(client: &Client, args: AttachArgs) -> anyhow::Result<ExitCode> {
    let streams = Streams { stdin: args.stdin, tty: wants_terminal(args.tty, args.stdin)? };
    let mut query = streams.query();
    if let Some(container) = &args.container {
        query.push(("container", container));
    }
    let path = pod_path(&args.namespace.namespace, &args.pod, "attach");
    let (socket, protocol) = client.open(&with_query(&path, &query)).await?;
    converse(socket, protocol, streams).await?;
    Ok(ExitCode::SUCCESS)
}
