//! State and shims of other versions: older ones are understood, newer ones are refused and left alone.
//!
//! `fixtures/v1` was kept from a program of version 1: the records of a pod with a published port, of a container that
//! ran and one that had ended, and what the pod's shim said. It is never changed; a version that is no longer written
//! gets a folder of its own beside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portreeve_engine::{
    AttachRequest, ContainerId, ContainerState, Engine, EngineConfig, EngineError, SandboxId, SandboxState, network,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde_json::{Value, json};

use crate::world::{World, chain, sh, wait_until};

const SANDBOX: &str = include_str!("../fixtures/v1/sandbox.json");
const SHIM: &str = include_str!("../fixtures/v1/shim.json");
const RUNNING: &str = include_str!("../fixtures/v1/running.container.json");
const ENDED: &str = include_str!("../fixtures/v1/ended.container.json");
const EXIT: &str = include_str!("../fixtures/v1/ended.exit.json");
const NETWORK: &str = include_str!("../fixtures/v1/network.json");
const ATTACHMENT: &str = include_str!("../fixtures/v1/attachment.json");
const ADDRESSES: &str = include_str!("../fixtures/v1/addresses.json");
const CONVERSATION: &str = include_str!("../fixtures/v1/conversation.txt");

fn id(record: &str) -> String {
    let record: Value = serde_json::from_str(record).unwrap();
    record["id"].as_str().unwrap().to_owned()
}

fn place(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Lays the kept pod below a directory.
fn lay(run: &Path) -> PathBuf {
    let directory = run.join("sandboxes").join(id(SANDBOX));
    place(&directory.join("sandbox.json"), SANDBOX);
    place(&directory.join("shim.json"), SHIM);
    for (record, exit) in [(RUNNING, None), (ENDED, Some(EXIT))] {
        let container = directory.join("containers").join(id(record));
        place(&container.join("container.json"), record);
        if let Some(exit) = exit {
            place(&container.join("exit.json"), exit);
        }
    }
    directory
}

/// A line of the conversation: who, how many descriptors, what.
#[derive(Debug, Clone)]
struct Line {
    agent: bool,
    fds: usize,
    json: String,
}

fn conversation() -> Vec<Line> {
    let line = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let agent = words.next().unwrap() == "agent";
        let fds = words.next().unwrap().parse().unwrap();
        Line { agent, fds, json: words.next().unwrap().to_owned() }
    };
    CONVERSATION.lines().map(line).collect()
}

/// Whether everything that `old` has is in `new`, which may have more.
fn has(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(name, old)| new.get(name).is_some_and(|new| has(new, old)))
        }
        (new, old) => new == old,
    }
}

/// A shim that says what another said before, to whoever asks what was asked then. The ids of its answers are those of
/// the questions; what a question has more than the one that was kept does not count. What was asked is noted.
fn replay(directory: &Path, lines: Vec<Line>, asked: Arc<Mutex<Vec<String>>>) -> std::thread::JoinHandle<()> {
    let opened = fs::File::open(directory).unwrap();
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/shim.sock", opened.as_raw_fd())).unwrap();
    std::thread::spawn(move || {
        loop {
            let (stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            let mut end = false;
            while let Some(json) = next(&stream, &mut bytes) {
                let question: Value = serde_json::from_slice(&json).unwrap();
                asked.lock().unwrap().push(question["call"].to_string());
                end = question["call"] == "shutdown";
                if end {
                    say(&stream, 0, &format!(r#"{{"reply":{{"id":{},"answer":"done"}}}}"#, question["id"]));
                    break;
                }
                let known = lines.iter().position(|line| {
                    let old: Value = serde_json::from_str(&line.json).unwrap();
                    line.agent && has(&question["call"], &old["call"])
                });
                // What is not answered fails the test: the client waits for it.
                let Some(known) = known else { continue };
                for line in lines[known + 1..].iter().take_while(|line| !line.agent) {
                    say(&stream, line.fds, &with_id(&line.json, &question["id"]));
                }
            }
            if end {
                return;
            }
        }
    })
}

/// The line as it is, but for the number of the question.
fn with_id(line: &str, id: &Value) -> String {
    let head = r#"{"reply":{"id":"#;
    match line.strip_prefix(head) {
        Some(rest) => format!("{head}{id}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit())),
        None => line.to_owned(),
    }
}

fn next(stream: &UnixStream, bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(head) = bytes.first_chunk::<4>() {
            let length = u32::from_le_bytes(*head) as usize;
            if bytes.len() >= 8 + length {
                let frame = bytes.drain(..8 + length).skip(8).collect();
                return Some(frame);
            }
        }
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut chunk)], &mut control, flags).ok()?;
        // A command's streams: this one writes a word to its output, and closes them.
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                fs::File::from(fds.next().unwrap()).write_all(b"hi\n").unwrap();
            }
        }
        if got.bytes == 0 {
            return None;
        }
        bytes.extend_from_slice(&chunk[..got.bytes]);
    }
}

fn say(stream: &UnixStream, count: usize, json: &str) {
    let mut frame = u32::try_from(json.len()).unwrap().to_le_bytes().to_vec();
    frame.extend(u32::try_from(count).unwrap().to_le_bytes());
    frame.extend(json.as_bytes());
    // The greeting brings the network namespace, an answer to `attach` pipes that end.
    let fds: Vec<OwnedFd> = match json.contains("\"hello\"") {
        true if count > 0 => vec![netns()],
        _ => (0..count).map(|_| OwnedFd::from(std::io::pipe().unwrap().0)).collect(),
    };
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL);
    // Whoever asked may have gone.
    assert!(sent.is_err() || sent == Ok(frame.len()));
}

/// A network namespace of a pod's own.
fn netns() -> OwnedFd {
    let make = || {
        portreeve_sys::namespace::unshare(portreeve_sys::clone::NEW_NET).unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    };
    std::thread::spawn(make).join().unwrap()
}

fn names_of_the_fixture(world: &World) -> EngineConfig {
    let record: Value = serde_json::from_str(NETWORK).unwrap();
    let mut network = network::Config::new(world.path("run/network"));
    network.bridge = record["bridge"].as_str().unwrap().to_owned();
    network.nft_table = record["nft_table"].as_str().unwrap().to_owned();
    network.subnet_lock = world.path("subnets.lock");
    EngineConfig { network, ..world.config() }
}

pub(crate) async fn an_older_shim_and_older_records_are_understood() {
    let mut world = World::new().await;
    world.close().await;
    let config = names_of_the_fixture(&world);
    let directory = lay(&world.path("run"));
    place(&world.path("run/network/network.json"), NETWORK);
    place(&world.path("run/network/addresses.json"), ADDRESSES);
    place(&world.path(&format!("run/network/attachments/{}.json", id(SANDBOX))), ATTACHMENT);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let shim = replay(&directory, conversation(), Arc::clone(&asked));

    let engine = Engine::open(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let pod: SandboxId = id(SANDBOX).parse().unwrap();
    let (running, ended): (ContainerId, ContainerId) = (id(RUNNING).parse().unwrap(), id(ENDED).parse().unwrap());
    let sandbox = engine.sandbox(&pod).unwrap();
    assert_eq!((sandbox.state, sandbox.metadata.name.as_str()), (SandboxState::Ready, "web"));
    assert_eq!(engine.network().attachments().len(), 1);
    assert_eq!(sandbox.ips, [engine.network().attachments()[0].address]);
    let status = engine.container(&running).unwrap();
    assert_eq!((status.state, status.metadata.name.as_str()), (ContainerState::Running, "main"));
    let status = engine.container(&ended).unwrap();
    assert_eq!((status.state, status.exit.unwrap().code), (ContainerState::Exited, 3));

    let command = ["sh", "-c", "echo hi; exit 7"].map(str::to_owned).to_vec();
    let output = engine.exec_sync(&running, command, Duration::from_secs(10), 100).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.as_slice()), (7, &b"hi\n"[..]));
    let attached = engine.attach(&running, AttachRequest { stdout: true, stderr: true, stdin: false }).await.unwrap();
    assert!(attached.stdout.is_some() && attached.stderr.is_some());
    engine.reopen_log(&running).await.unwrap();
    engine.stop_container(&running, Duration::from_millis(50)).await.unwrap();
    assert_eq!(engine.container(&running).unwrap().exit.unwrap().code, 137);
    engine.remove_container(&running).await.unwrap();
    assert!(engine.container(&running).is_none());
    engine.erase().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(engine.sandboxes().is_empty() && !directory.exists());
    engine.shutdown().await;
    shim.join().unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked.last().map(String::as_str), Some("\"shutdown\""), "{asked:?}");
}

/// What is in every file below these directories.
fn content(directories: &[PathBuf]) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = directories.to_vec();
    while let Some(path) = open.pop() {
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if kind.is_file() {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

pub(crate) async fn every_newer_record_is_refused_and_nothing_is_touched() {
    let mut world = World::new().await;
    let mut config = world.sandbox();
    config.namespaces = portreeve_engine::Namespaces::default();
    let pod = world.run(config).await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let ended = world.start(&pod, sh("exit 3")).await;
    world.engine().wait_container(&ended).await.unwrap();
    // One that would be cleaned up, were there nothing to refuse.
    world.close().await;
    let stray = format!("/{}/besteffort/podgone/left", world.name);
    let stray = portreeve_oci::cgroup::Cgroup::open_or_create(&stray).unwrap();
    let half = world.path("run/sandboxes").join("f".repeat(64));
    fs::create_dir(&half).unwrap();
    let sandbox = world.path("run/sandboxes").join(pod.as_str());
    let network = world.path("root/network");
    place(&network.join("addresses.json"), ADDRESSES);
    let of = |id: &ContainerId, name: &str| sandbox.join("containers").join(id.as_str()).join(name);
    let processes = world.processes();
    let places = [world.path("run"), network.clone()];
    for path in [
        sandbox.join("sandbox.json"),
        sandbox.join("intent.json"),
        sandbox.join("shim.json"),
        of(&id, "container.json"),
        of(&ended, "exit.json"),
        network.join("network.json"),
        network.join("addresses.json"),
        network.join(format!("attachments/{pod}.json")),
        world.path("root/images/index.json"),
    ] {
        let kept = fs::read(&path).unwrap();
        fs::write(&path, json!({"version": 2, "everything": ["is", "different"]}).to_string()).unwrap();
        let before = content(&places);
        let error = Engine::open(world.config()).await.unwrap_err();
        let words = chain(&error);
        assert!(words.contains("newer") || matches!(error, EngineError::NewerState { found: 2, .. }), "{words}");
        let named = path.ends_with("index.json") || words.contains(&path.display().to_string());
        assert!(named && words.contains('2'), "{}: {words}", path.display());
        assert_eq!(content(&places), before, "{}", path.display());
        assert!(stray.exists() && half.exists());
        assert_eq!(world.processes(), processes, "{}", path.display());
        fs::write(&path, kept).unwrap();
    }
    world.open().await;
    assert_eq!(world.status(&id).state, ContainerState::Running);
    assert_eq!(world.status(&ended).exit.unwrap().code, 3);
    assert!(!stray.exists() && !half.exists());
}

pub(crate) async fn a_shim_that_speaks_only_a_newer_version_is_refused_and_left_alone() {
    let mut world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let lost = world.pod().await;
    let shim = world.engine().sandbox(&lost).unwrap().shim_pid.unwrap();
    world.close().await;
    // Another would be given up.
    let pid = rustix::process::Pid::from_raw(i32::try_from(shim).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_until("it is dead", || world.processes().len() == 2).await;
    let processes = world.processes();
    let directory = lay(&world.path("run"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let hello = r#"{"reply":{"id":1,"answer":{"hello":{"version":2,"pid":1,"fate":"unknown"}}}}"#;
    let lines = vec![
        Line { agent: true, fds: 0, json: r#"{"id":1,"call":{"hello":{"version":1}}}"#.to_owned() },
        Line { agent: false, fds: 0, json: hello.to_owned() },
    ];
    let newer = replay(&directory, lines, Arc::clone(&asked));
    let before = content(&[world.path("run")]);
    let error = Engine::open(world.config()).await.unwrap_err();
    assert!(matches!(error, EngineError::NewerShim { found: 2, known: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("version 2") && error.to_string().contains(&directory_name(&directory)));
    assert_eq!(content(&[world.path("run")]), before);
    assert_eq!(world.processes(), processes);
    assert_eq!(asked.lock().unwrap().as_slice(), [r#"{"hello":{"version":1}}"#]);
    // The newer program ends it.
    let opened = fs::File::open(&directory).unwrap();
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/shim.sock", opened.as_raw_fd())).unwrap();
    say(&stream, 0, r#"{"id":1,"call":"shutdown"}"#);
    newer.join().unwrap();
    fs::remove_dir_all(&directory).unwrap();
    world.open().await;
    assert_eq!(world.status(&id).state, ContainerState::Running);
    assert_eq!(world.engine().sandbox(&lost).unwrap().state, SandboxState::NotReady { reason: "shim died".into() });
}

fn directory_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
