//! `port-forward`: each local connection is a WebSocket of its own to the agent.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use portreeve_api::channel::{CHUNK_BYTES, Frame, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, with_query};
use super::target::pod_path;
use super::{Namespace, pod_name};

/// Connections that are forwarded at a time; further ones wait.
const MAX_CONNECTIONS: usize = 256;

/// Arguments of `port-forward`.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The pod
    #[arg(value_parser = pod_name)]
    pod: String,
    /// LOCAL:REMOTE, PORT for both, or :REMOTE for any free local port
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = pair)]
    ports: Vec<Pair>,
    #[command(flatten)]
    namespace: Namespace,
    /// Local addresses to listen on; localhost is 127.0.0.1 and, where it exists, ::1
    #[arg(long, value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
}

/// A local and a remote port; local 0 is any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    local: u16,
    remote: u16,
}

fn pair(text: &str) -> Result<Pair, String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
    let (local, remote) = match text.split_once(':') {
        Some(("", remote)) => (0, number(remote)?),
        Some((local, remote)) => (number(local)?, number(remote)?),
        None => (number(text)?, number(text)?),
    };
    if remote == 0 { Err("the pod's port cannot be 0".to_owned()) } else { Ok(Pair { local, remote }) }
}

pub(crate) async fn run(client: &Client, args: ForwardArgs) -> anyhow::Result<ExitCode> {
    let path = pod_path(&args.namespace.namespace, &args.pod, "portforward");
    // Asked once before listening: a pod that is not there is an error now, not at the first connection.
    let pod: serde_json::Value = client.get(path.trim_end_matches("/portforward")).await?;
    let phase = pod.pointer("/status/phase").and_then(serde_json::Value::as_str).unwrap_or("Unknown");
    if phase != "Running" {
        bail!("pod {} is not running ({phase}): its ports cannot be forwarded", args.pod);
    }
    let mut listeners = Vec::new();
    for pair in &args.ports {
        for listener in listen(&args.address, pair.local).await? {
            let local = listener.local_addr()?;
            writeln!(io::stdout(), "Forwarding from {local} -> {}", pair.remote)?;
            listeners.push((listener, pair.remote));
        }
    }
    io::stdout().flush()?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let loops = listeners.into_iter().map(|(listener, remote)| accept(client, &path, listener, remote, &places));
    futures_util::future::join_all(loops).await;
    Ok(ExitCode::SUCCESS)
}

async fn listen(addresses: &[String], port: u16) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        if address != "localhost" {
            let address: IpAddr = address.parse().with_context(|| format!("--address {address:?}"))?;
            listeners.push(bind(SocketAddr::new(address, port)).await?);
            continue;
        }
        let first = bind((Ipv4Addr::LOCALHOST, port).into()).await?;
        let port = first.local_addr()?.port();
        listeners.push(first);
        // A machine without IPv6 has no ::1; that is no fault.
        listeners.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await);
    }
    Ok(listeners)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}

async fn accept(client: &Client, path: &str, listener: TcpListener, remote: u16, places: &Semaphore) {
    let mut connections = futures_util::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            // cancel-safe: accept is, and so is waiting for a place
            accepted = async { (places.acquire().await, listener.accept().await) } => {
                let (place, Ok((stream, _))) = accepted else { continue };
                let local = listener.local_addr().map_or(0, |address| address.port());
                report(&format!("Handling connection for {local}"));
                connections.push(async move {
                    let _place = place;
                    if let Err(error) = carry(client, path, stream, remote).await {
                        report(&format!("error: forwarding port {remote}: {error:#}"));
                    }
                });
            }
            // cancel-safe: the others stay in the set
            Some(()) = connections.next(), if !connections.is_empty() => {}
        }
    }
}

fn report(line: &str) {
    // A closed standard error is no reason to end connections.
    let _closed = writeln!(io::stderr(), "{line}");
}

async fn carry(client: &Client, path: &str, stream: TcpStream, remote: u16) -> anyhow::Result<()> {
    let (socket, protocol) = client.open(&with_query(path, &[("ports", &remote.to_string())])).await?;
    let (mut sink, mut frames) = socket.split();
    let (mut from_local, mut to_local) = stream.into_split();
    let upload = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = from_local.read(&mut buffer).await {
            let payload = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
            if sink.send(Message::Binary(Frame::Bytes { channel: 0, payload }.encode())).await.is_err() {
                return;
            }
        }
        if protocol >= Protocol::V5 && sink.send(Message::Binary(Frame::End { channel: 0 }.encode())).await.is_err() {
            return;
        }
        // The other way ends the connection.
        std::future::pending::<()>().await;
    };
    let download = async {
        // Each channel opens with its port.
        let mut opened = [false, false];
        while let Some(message) = frames.next().await {
            let bytes = match message? {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            match Frame::decode(protocol, bytes)? {
                Frame::Bytes { channel: channel @ (0 | 1), payload } => {
                    let Some(opened) = opened.get_mut(usize::from(channel)) else { continue };
                    if !std::mem::replace(opened, true) {
                        continue;
                    }
                    if channel == 1 {
                        bail!("{}", String::from_utf8_lossy(&payload));
                    }
                    to_local.write_all(&payload).await?;
                }
                Frame::End { channel: 0 } => {
                    to_local.shutdown().await?;
                }
                Frame::Bytes { .. } | Frame::End { .. } => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        // cancel-safe: the connection ends with either
        () = upload => Ok(()),
        // cancel-safe: as above
        ended = download => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_for_kubectl() {
        assert_eq!(pair("80").unwrap(), Pair { local: 80, remote: 80 });
        assert_eq!(pair("8080:80").unwrap(), Pair { local: 8080, remote: 80 });
        assert_eq!(pair(":80").unwrap(), Pair { local: 0, remote: 80 });
        for wrong in ["", "x", "80:", "0", "1:0", "70000"] {
            assert!(pair(wrong).is_err(), "{wrong}");
        }
    }
}
