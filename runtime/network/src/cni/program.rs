//! Runs plugins: one program, one document in, one document out.
//!
//! Source: CNI specification 1.1 §Section 2.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};

use super::CniError;

/// What a plugin may answer; a result of a thousand addresses is far smaller.
const MAX_ANSWER: usize = 1 << 20;
/// What of its complaints is told.
const MAX_COMPLAINT: usize = 512;

/// What every plugin of a network is told about a pod.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment<'a> {
    pub(super) container: &'a str,
    pub(super) netns: Option<&'a Path>,
    pub(super) interface: &'a str,
    pub(super) arguments: &'a str,
}

/// One call of one plugin.
pub(super) struct Call<'a> {
    pub(super) command: &'static str,
    pub(super) network: &'a str,
    pub(super) plugin: &'a str,
    pub(super) environment: &'a Environment<'a>,
    pub(super) configuration: Map<String, Value>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// Kills who is left of a process group when the call is given up.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody is left: then there is nothing to do.
            let _gone = killpg(group, Signal::SIGKILL);
        }
    }
}

/// The plugin's program.
pub(super) fn find(directories: &[PathBuf], network: &str, plugin: &str) -> Result<PathBuf, CniError> {
    directories.iter().map(|directory| directory.join(plugin)).find(|path| path.is_file()).ok_or_else(|| {
        let searched: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        let searched = if searched.is_empty() { "no directories".to_owned() } else { searched.join(", ") };
        CniError::NoPlugin { network: network.to_owned(), plugin: plugin.to_owned(), searched }
    })
}

/// Runs a plugin; what it answers, `Null` when that is nothing.
///
/// # Cancel safety
/// Dropping it kills the plugin and its children, wherever they were.
pub(super) async fn run(directories: &[PathBuf], limit: Duration, call: Call<'_>) -> Result<Value, CniError> {
    let Call { command, network, plugin, environment, configuration } = call;
    let program = find(directories, network, plugin)?;
    let failed = |operation| {
        let path = program.clone();
        move |source| CniError::Io { operation, path, source }
    };
    let garbled = |problem: String| CniError::Garbled {
        network: network.to_owned(),
        plugin: plugin.to_owned(),
        command,
        problem,
    };
    let path = std::env::join_paths(directories).map_err(|error| garbled(error.to_string()))?;
    let mut process = Command::new(&program);
    process
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", environment.container)
        .env("CNI_IFNAME", environment.interface)
        .env("CNI_NETNS", environment.netns.unwrap_or(Path::new("")))
        .env("CNI_ARGS", environment.arguments)
        .env("CNI_PATH", path)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = process.spawn().map_err(failed("running"))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut group = Group(group);
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let document = Value::Object(configuration).to_string();
    let talking = async {
        let writing = async {
            if let Some(input) = &mut input {
                // Who does not read it all may have good reasons: what it answers counts.
                let _unread = input.write_all(document.as_bytes()).await;
            }
            input = None;
        };
        let (answer, complaint, ()) = tokio::join!(read(output, MAX_ANSWER + 1), read(errors, MAX_COMPLAINT), writing);
        (child.wait().await, answer, complaint)
    };
    let Ok((status, answer, complaint)) = timeout(limit, talking).await else {
        return Err(CniError::TimedOut { network: network.to_owned(), plugin: plugin.to_owned(), command, limit });
    };
    group.0 = None;
    let status = status.map_err(failed("waiting for"))?;
    let said = || match String::from_utf8_lossy(&complaint).trim() {
        "" => String::new(),
        said => format!(": {said:?}"),
    };
    if answer.len() > MAX_ANSWER {
        return Err(garbled(format!("it answers with more than {MAX_ANSWER} bytes")));
    }
    let text = String::from_utf8_lossy(&answer);
    if !status.success() {
        return Err(match serde_json::from_str::<Complaint>(text.trim()) {
            Ok(Complaint { code, msg, details }) if code != 0 || !msg.is_empty() => CniError::Refused {
                network: network.to_owned(),
                plugin: plugin.to_owned(),
                command,
                code,
                message: if details.is_empty() { msg } else { format!("{msg}: {details}") },
            },
            _ => garbled(format!("it failed ({status}) and does not say why{}", said())),
        });
    }
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text.trim()).map_err(|error| garbled(format!("its answer is no JSON ({error}){}", said())))
}

/// What comes until the end, of which so much is kept.
async fn read(from: Option<impl AsyncRead + Unpin>, most: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return kept };
    let mut buffer = [0; 4096];
    // An error is an end: whether what came is enough is seen by who reads it.
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let room = most.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    kept
}
