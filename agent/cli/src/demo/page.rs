//! What runs inside the demo's containers: a web page of one sentence.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// How long one visitor may hold up the others.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct PageArgs {
    /// The sentence
    #[arg(long)]
    text: String,
    /// Where it is served
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// Serves the page until SIGTERM or SIGINT.
///
/// # Errors
/// When the port is taken.
pub(crate) fn run(args: &PageArgs) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(args))
}

async fn serve(args: &PageArgs) -> anyhow::Result<ExitCode> {
    // As process 1 of its pid namespace a signal without a handler would be ignored.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener =
        TcpListener::bind(("0.0.0.0", args.port)).await.with_context(|| format!("listening on port {}", args.port))?;
    println!("serving on port {}", args.port);
    loop {
        tokio::select! {
            // cancel-safe: both signal streams and accept.
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = listener.accept() => {
                let (stream, peer) = accepted.context("accepting a connection")?;
                println!("a visitor from {peer}");
                match tokio::time::timeout(PATIENCE, answer(stream, &args.text)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => eprintln!("answering {peer}: {error}"),
                    Err(_) => eprintln!("{peer} did not ask for anything"),
                }
            }
        }
    }
    println!("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    // The whole head first: who is answered in the middle of asking may see a reset instead.
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 << 10 {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}
