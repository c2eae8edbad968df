//! `attach`.

use std::process::ExitCode;

use clap::Args;

use super::client::{Client, with_query};
use super::exec::{Streams, converse, wants_terminal};
use super::target::Target;

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    target: Target,
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
    let container = args.target.container(client).await?;
    query.push(("container", &container));
    let (socket, protocol) = client.open(&with_query(&args.target.path("attach"), &query)).await?;
    converse(socket, protocol, streams).await?;
    Ok(ExitCode::SUCCESS)
}
