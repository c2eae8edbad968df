//! `port-forward`: each local connection is a WebSocket of its own to the agent.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use portreeve_api::channel::{CHUNK_BYTES, Frame, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;

use super::client::{Client, gone, with_query};
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
    /// LOCAL:REMOTE, PORT for both, or :REMOTE for any free local port; a remote port may be the name that a container
    /// gives it
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = pair)]
    ports: Vec<Pair>,
    #[command(flatten)]
    namespace: Namespace,
    /// Local addresses to listen on; localhost is 127.0.0.1 and, where it exists, ::1
    #[arg(long, value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
}

/// A local and a remote port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// 0 is any free one, none the same as the remote one.
    local: Option<u16>,
    remote: Remote,
}

/// A port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Remote {
    Number(u16),
    /// As the manifest of a container names it.
    Named(String),
}

fn pair(text: &str) -> Result<Pair, String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
    let (local, remote) = match text.split_once(':') {
        Some(("", remote)) => (Some(0), remote),
        Some((local, remote)) => (Some(number(local)?), remote),
        None => (None, text),
    };
    // A name has a letter: what has none was meant as a number.
    let is_name = remote.bytes().any(|one| one.is_ascii_alphabetic())
        && remote.bytes().all(|one| one.is_ascii_alphanumeric() || one == b'-');
    let remote = if is_name { Remote::Named(remote.to_owned()) } else { Remote::Number(number(remote)?) };
    if remote == Remote::Number(0) { Err("the pod's port cannot be 0".to_owned()) } else { Ok(Pair { local, remote }) }
}

impl Remote {
    /// The number, which the pod knows for a name.
    fn number(&self, pod: &Pod) -> anyhow::Result<u16> {
        let name = match self {
            Remote::Number(number) => return Ok(*number),
            Remote::Named(name) => name,
        };
        let spec = pod.spec.iter();
        let containers = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let ports: Vec<_> = containers.flat_map(|container| container.ports.iter().flatten()).collect();
        let found = ports.iter().find(|port| port.name.as_deref() == Some(name));
        if let Some(port) = found.and_then(|port| u16::try_from(port.container_port).ok()) {
            return Ok(port);
        }
        let names: Vec<&str> = ports.iter().filter_map(|port| port.name.as_deref()).collect();
        let known = if names.is_empty() { "none of its ports has a name".to_owned() } else { names.join(", ") };
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        bail!("pod {pod} has no port named {name:?}: {known}")
    }
}

pub(crate) async fn run(client: &Client, args: ForwardArgs) -> anyhow::Result<ExitCode> {
    let path = pod_path(&args.namespace.namespace, &args.pod, "portforward");
    // Asked once before listening: a pod that is not there is an error now, not at the first connection.
    let pod: Pod = client.get(path.trim_end_matches("/portforward")).await?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    if phase != "Running" {
        bail!("pod {} is not running ({phase}): its ports cannot be forwarded", args.pod);
    }
    let mut listeners = Vec::new();
    for pair in &args.ports {
        let remote = pair.remote.number(&pod)?;
        for listener in listen(&args.address, pair.local.unwrap_or(remote)).await? {
            let local = listener.local_addr()?;
            writeln!(io::stdout(), "Forwarding from {local} -> {remote}")?;
            listeners.push((listener, remote));
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
            let bytes = match message.map_err(|error| gone(&error))? {
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
        let named = || Remote::Named("web-ui".to_owned());
        for (text, local, remote) in [
            ("80", None, Remote::Number(80)),
            ("8080:80", Some(8080), Remote::Number(80)),
            (":80", Some(0), Remote::Number(80)),
            ("8080:web-ui", Some(8080), named()),
            (":web-ui", Some(0), named()),
            ("web-ui", None, named()),
        ] {
            assert_eq!(pair(text), Ok(Pair { local, remote }), "{text}");
        }
        for wrong in ["", "x:80", "80:", "0", "1:0", "70000", "80:web ui", "1:-2"] {
            assert!(pair(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_named_port_is_the_one_that_a_container_has() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "web" },
            "spec": { "containers": [
                { "name": "a", "ports": [{ "containerPort": 9000 }] },
                { "name": "b", "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "admin", "containerPort": 81 }] },
            ] },
        }))
        .unwrap();
        assert_eq!(Remote::Named("http".into()).number(&pod).unwrap(), 8080);
        assert_eq!(Remote::Number(7).number(&pod).unwrap(), 7);
        let error = Remote::Named("https".into()).number(&pod).unwrap_err().to_string();
        assert_eq!(error, "pod web has no port named \"https\": http, admin");
    }
}
