//! The real kubectl through a proxy, where it is installed.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::client::House;

/// Carries TCP to the socket, as socat would.
async fn proxy(house: &House) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = house.socket.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut unix = UnixStream::connect(socket).await?;
                tokio::io::copy_bidirectional(&mut stream, &mut unix).await
            });
        }
    });
    format!("http://{address}")
}

async fn kubectl(server: &str, home: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("kubectl");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    command.args(["-s", server]).args(arguments).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// Of `1.32+` the 32.
fn minor(version: &[u8]) -> u32 {
    let version: serde_json::Value = serde_json::from_slice(version).unwrap();
    let minor = version["clientVersion"]["minor"].as_str().unwrap();
    minor.trim_end_matches('+').parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_lists_describes_reads_logs_and_runs_commands() {
    let Ok(version) = Command::new("kubectl").args(["version", "--client", "-o", "json"]).output() else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no kubectl on this machine");
        return;
    };
    let minor = minor(&version.stdout);
    let house = House::open().await;
    house.fake.put("default", "web", &[("app", "web")], true);
    house.fake.put("default", "job", &[], false);
    std::fs::write(house.directory.path().join("0.log"), "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
    let server = proxy(&house).await;
    let home = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| {
        let output = kubectl(&server, home.path(), arguments).await;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), out, err)
    };

    // What has no ephemeral containers says so, and crashes nobody.
    let (code, _, err) = run(&["debug", "web", "--image=busybox"]).await;
    assert!(code == Some(1) && !err.contains("panic"), "{code:?}: {err}");

    let (code, out, err) = run(&["get", "po"]).await;
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(lines[2][..4], ["web", "1/1", "Running", "0"]);

    let (_, out, err) = run(&["get", "pods", "-l", "app=web", "-o", "name"]).await;
    assert_eq!(out, "pod/web\n", "{err}");
    let (_, out, err) = run(&["get", "images.portreeve.dev"]).await;
    assert!(out.contains("busybox:latest"), "{out}{err}");
    let (_, out, err) = run(&["describe", "pod", "web"]).await;
    assert!(out.contains("Name:") && out.contains("busybox"), "{out}{err}");
    let (_, out, err) = run(&["logs", "web"]).await;
    assert_eq!(out, "hello\n", "{err}");
    let (code, _, err) = run(&["exec", "web", "--", "fail", "7"]).await;
    assert_eq!(code, Some(7), "{err}");
    assert!(err.contains("it failed"), "{err}");
    let is_old = minor < 31;
    let (code, _, err) = run(&["get", "pod", "none"]).await;
    assert_eq!((code, err.trim()), (Some(1), "Error from server (NotFound): pods \"none\" not found"));
    let (_, out, err) = run(&["top", "pods"]).await;
    assert!(out.contains("web") && out.contains("3Mi"), "{out}{err}");
    let (_, out, err) = run(&["api-resources"]).await;
    assert!(out.contains("containers") && out.contains("portreeve.dev/v1alpha1"), "{out}{err}");
    let (_, out, err) = run(&["get", "containers,sources,namespaces", "-A"]).await;
    assert!(out.contains("main") && out.contains("source.portreeve.dev/") && out.contains("Active"), "{out}{err}");
    let (_, out, err) = run(&["wait", "--for=condition=Ready", "pod/web", "--timeout=5s"]).await;
    assert_eq!(out, "pod/web condition met\n", "{err}");
    let (code, _, err) = run(&["delete", "pod", "web", "--dry-run=server"]).await;
    assert!(code == Some(1) && err.contains(if is_old { "openapi" } else { "dryRun" }), "{err}");
    let (_, out, err) = run(&["delete", "pod", "web", "--timeout=5s"]).await;
    assert_eq!(out, "pod \"web\" deleted\n", "{err}");
    let (_, out, err) = run(&["get", "pods", "-o", "name"]).await;
    assert_eq!(out, "pod/job\n", "what was tried stays, what was deleted is gone: {err}");
}

/// What kubectl does with `input` over SPDY.
async fn over_spdy(server: &str, home: &std::path::Path, arguments: &[&str], input: Vec<u8>) -> Output {
    let mut child = tokio::process::Command::new("kubectl")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
        .args(["-s", server])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    feed.abort();
    output.expect("kubectl ends").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_streams_over_spdy() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no kubectl on this machine");
        return;
    }
    let house = House::open().await;
    house.fake.put("default", "web", &[("app", "web")], true);
    let server = proxy(&house).await;
    let home = tempfile::tempdir().unwrap();
    let failed = over_spdy(&server, home.path(), &["exec", "web", "--", "fail", "7"], Vec::new()).await;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(7), "{said}");
    assert!(said.contains("it failed"), "{said}");
    let missing = over_spdy(&server, home.path(), &["exec", "web", "--", "missing"], Vec::new()).await;
    assert!(String::from_utf8_lossy(&missing.stderr).contains("exec: not found"), "{missing:?}");
    let much: Vec<u8> = (0..5_000_000u32).map(|number| number.to_le_bytes()[0]).collect();
    let echoed = over_spdy(&server, home.path(), &["exec", "-i", "web", "--", "cat"], much.clone()).await;
    assert_eq!(echoed.status.code(), Some(0), "{}", String::from_utf8_lossy(&echoed.stderr));
    assert!(echoed.stdout == much, "{} bytes of {}", echoed.stdout.len(), much.len());
    let attached = over_spdy(&server, home.path(), &["attach", "web"], Vec::new()).await;
    assert!(String::from_utf8_lossy(&attached.stdout).contains("attached"), "{attached:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no kubectl on this machine");
        return;
    }
    let house = House::open().await;
    house.fake.put("default", "web", &[("app", "web")], true);
    let server = proxy(&house).await;
    let home = tempfile::tempdir().unwrap();
    let mut child = tokio::process::Command::new("kubectl")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .args(["-s", &server, "port-forward", "pod/web", ":7", ":8"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ports = std::collections::BTreeMap::new();
    while ports.len() < 2 {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.expect("a line in time");
        let line = line.unwrap().expect("kubectl goes on");
        if let Some((near, far)) =
            line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split_once(" -> "))
        {
            ports.insert(far.parse::<u16>().unwrap(), near.parse::<u16>().unwrap());
        }
    }
    let talk = async |port: u16, words: Vec<u8>| {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut answer = Vec::new();
        let send = async {
            write.write_all(&words).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let both = async { tokio::join!(send, read.read_to_end(&mut answer)) };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("an answer in time").1.unwrap();
        answer
    };
    // Several at once, one of them large.
    let large = vec![b'x'; 300_000];
    let (one, two) = tokio::join!(talk(ports[&7], b"hello".to_vec()), talk(ports[&7], large.clone()));
    assert_eq!(one, b"hello and that was all");
    assert_eq!(two, [large.as_slice(), b" and that was all"].concat());
    let mut refused = tokio::net::TcpStream::connect(("127.0.0.1", ports[&8])).await.unwrap();
    let mut nothing = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), refused.read_to_end(&mut nothing)).await;
    assert!(ended.is_ok() && nothing.is_empty());
    let mut errors = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let error = tokio::time::timeout(Duration::from_secs(20), errors.next_line()).await.unwrap().unwrap().unwrap();
    assert!(error.contains("connection refused"), "{error}");
}
