//! `exec`, and the session it shares with `attach` and `cp`.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use bytes::Bytes;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use portreeve_api::channel::{ERROR, Frame, Protocol, RESIZE, STDERR, STDIN, STDOUT};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, Socket, gone, with_query};
use super::target::Target;
use super::terminal::{self, Raw};

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    target: Target,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// On a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(client: &Client, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let tty = wants_terminal(args.tty, args.stdin)?;
    let streams = Streams { stdin: args.stdin, tty };
    let mut query = streams.query();
    let container = args.target.container(client).await?;
    query.push(("container", &container));
    query.extend(args.command.iter().map(|word| ("command", word.as_str())));
    let (socket, protocol) = client.open(&with_query(&args.target.path("exec"), &query)).await?;
    match converse(socket, protocol, streams).await? {
        0 => Ok(ExitCode::SUCCESS),
        code => {
            // kubectl's words; the code itself is what a script reads.
            let _closed = writeln!(io::stderr(), "command terminated with exit code {code}");
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
        }
    }
}

/// A terminal is given only where there is one to give.
pub(super) fn wants_terminal(tty: bool, stdin: bool) -> io::Result<bool> {
    if tty && stdin && !io::stdin().is_terminal() {
        writeln!(io::stderr(), "Unable to use a TTY - input is not a terminal or the right kind of file")?;
        return Ok(false);
    }
    Ok(tty)
}

/// Which streams a session has; output it always has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Streams {
    pub(super) stdin: bool,
    pub(super) tty: bool,
}

impl Streams {
    pub(super) fn query(self) -> Vec<(&'static str, &'static str)> {
        let mut query = vec![("stdout", "true")];
        if self.stdin {
            query.push(("stdin", "true"));
        }
        if self.tty {
            query.push(("tty", "true"));
        } else {
            query.push(("stderr", "true"));
        }
        query
    }
}

/// Gives the user's streams to a process until it ends; its exit code.
pub(super) async fn converse(socket: Socket, protocol: Protocol, streams: Streams) -> anyhow::Result<i32> {
    let input = streams.stdin.then(terminal::input);
    let raw = if streams.tty && streams.stdin { Raw::enter()? } else { None };
    let sizes = streams.tty.then(|| signal(SignalKind::window_change())).transpose()?;
    let mut stdout = io::stdout().lock();
    let mut stderr = io::stderr().lock();
    let write = |channel: u8, bytes: &[u8]| -> io::Result<()> {
        let out: &mut dyn Write = if channel == STDERR { &mut stderr } else { &mut stdout };
        out.write_all(bytes)?;
        out.flush()
    };
    let ended = carry(socket, protocol, input, sizes, write).await;
    drop(raw);
    ended
}

/// Carries a session: input and sizes there, output here, until the status comes.
pub(super) async fn carry(
    socket: Socket,
    protocol: Protocol,
    mut input: Option<mpsc::Receiver<Bytes>>,
    mut sizes: Option<tokio::signal::unix::Signal>,
    mut write: impl FnMut(u8, &[u8]) -> io::Result<()>,
) -> anyhow::Result<i32> {
    let (mut sink, mut stream) = socket.split();
    let (queue, mut frames) = mpsc::channel::<Frame>(4);
    // Input has its own way to the agent: waiting for it must not keep output waiting.
    let sender = async {
        while let Some(frame) = frames.recv().await {
            if sink.send(Message::Binary(frame.encode())).await.is_err() {
                break;
            }
        }
        // The agent has left; how shows on the other way.
        std::future::pending::<()>().await;
    };
    let feed = async {
        if sizes.is_some() {
            send_size(&queue).await;
        }
        loop {
            tokio::select! {
                // cancel-safe: nothing is received
                piece = next_piece(&mut input) => match piece {
                    Some(payload) => {
                        if queue.send(Frame::Bytes { channel: STDIN, payload }).await.is_err() {
                            break;
                        }
                    }
                    None => {
                        input = None;
                        if protocol >= Protocol::V5 {
                            let _left = queue.send(Frame::End { channel: STDIN }).await;
                        }
                    }
                },
                // cancel-safe: signals are kept
                () = next_size(&mut sizes) => send_size(&queue).await,
            }
        }
        std::future::pending::<()>().await;
    };
    let receive = async {
        while let Some(message) = stream.next().await {
            let bytes = match message.map_err(|error| gone(&error))? {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            match Frame::decode(protocol, bytes)? {
                Frame::Bytes { channel: channel @ (STDOUT | STDERR), payload } => write(channel, &payload)?,
                Frame::Bytes { channel: ERROR, payload } => return outcome(&payload),
                Frame::Bytes { .. } | Frame::End { .. } => {}
            }
        }
        bail!("the agent ended the session without saying how the command ended")
    };
    tokio::select! {
        // cancel-safe: the session is over
        () = sender => Err(anyhow!("the session ended")),
        // cancel-safe: as above
        () = feed => Err(anyhow!("the session ended")),
        // cancel-safe: as above
        outcome = receive => outcome,
    }
}

async fn next_piece(input: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_size(sizes: &mut Option<tokio::signal::unix::Signal>) {
    match sizes {
        Some(sizes) => {
            sizes.recv().await;
        }
        None => std::future::pending().await,
    }
}

async fn send_size(queue: &mpsc::Sender<Frame>) {
    if let Some(size) = terminal::size()
        && let Ok(payload) = serde_json::to_vec(&size)
    {
        let _left = queue.send(Frame::Bytes { channel: RESIZE, payload: payload.into() }).await;
    }
}

/// The exit code that a status tells of.
fn outcome(status: &[u8]) -> anyhow::Result<i32> {
    let status: Status = serde_json::from_slice(status)?;
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    if status.reason.as_deref() == Some("NonZeroExitCode") {
        let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
        let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
        if let Some(code) = code.and_then(|cause| cause.message.as_deref()).and_then(|code| code.parse().ok()) {
            return Ok(code);
        }
    }
    Err(anyhow!("{}", status.message.unwrap_or_else(|| "the command failed".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_the_exit_code() {
        assert_eq!(outcome(br#"{"status":"Success"}"#).unwrap(), 0);
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(outcome(failed).unwrap(), 7);
        let error = outcome(br#"{"status":"Failure","message":"no such container"}"#).unwrap_err();
        assert_eq!(error.to_string(), "no such container");
    }
}
