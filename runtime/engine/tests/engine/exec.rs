//! Further processes in a running container.

use std::fs;
use std::time::{Duration, Instant};

use portreeve_engine::{EngineError, ExecRequest, TerminalSize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{World, sh, wait_until};

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn shell(script: &str) -> Vec<String> {
    vec!["sh".into(), "-c".into(), script.into()]
}

const LONG: Duration = Duration::from_secs(20);

pub(crate) async fn a_command_runs_beside_the_first_process() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("echo $$ > /tmp/first; sleep 100")).await;
    let output = world
        .engine()
        .exec_sync(&id, shell("cat /tmp/first; echo err >&2; echo $FROM_IMAGE; exit 7"), LONG, 1000)
        .await
        .unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"1\n1\n"[..], &b"err\n"[..]));
    assert_eq!((output.exit_code, output.truncated), (7, false));
    let output = world.engine().exec_sync(&id, shell("kill -9 $$"), LONG, 1000).await.unwrap();
    assert_eq!(output.exit_code, 137);
    world.engine().stop_container(&id, Duration::ZERO).await.unwrap();
    assert!(matches!(world.engine().exec_sync(&id, words("true"), LONG, 1).await, Err(EngineError::WrongState { .. })));
}

pub(crate) async fn output_is_capped_and_a_timeout_kills_the_tree() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let output =
        world.engine().exec_sync(&id, shell("yes | head -c 3000000; echo done >&2"), LONG, 1000).await.unwrap();
    assert_eq!((output.stdout.len(), output.truncated, output.stderr.as_slice()), (1000, true, &b"done\n"[..]));

    let begin = Instant::now();
    // In the last place one whose parent has gone.
    let script = "(sleep 4321 & sleep 4321) & yes > /dev/null & (sleep 4321 &); sleep 4321";
    let answer = world.engine().exec_sync(&id, shell(script), Duration::from_millis(200), 1000).await;
    assert!(matches!(answer, Err(EngineError::ExecTimeout { .. })), "{answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    let sleeping = || world.processes().iter().any(|line| line.contains("sleep 4321") || line.contains("yes"));
    wait_until("the tree is gone", || !sleeping()).await;
    // An endless writer ends with its timeout as well, and costs no memory.
    let answer = world.engine().exec_sync(&id, words("yes"), Duration::from_millis(300), usize::MAX).await;
    assert!(matches!(answer, Err(EngineError::ExecTimeout { .. })));
}

pub(crate) async fn a_terminal_has_a_size_and_echoes() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let request = ExecRequest {
        command: shell("stty size; read line; stty size; echo got $line; echo $TERM; exit 5"),
        tty: true,
        size: Some(TerminalSize { columns: 77, rows: 33 }),
        stdin: true,
        stdout: true,
        ..ExecRequest::default()
    };
    let mut session = world.engine().exec(&id, request).await.unwrap();
    let mut stdout = session.stdout.take().unwrap();
    let mut stdin = session.stdin.take().unwrap();
    assert!(session.stderr.is_none());
    let mut text = String::new();
    let mut chunk = [0; 256];
    while !text.contains("33 77") {
        let count = stdout.read(&mut chunk).await.unwrap();
        assert!(count > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    session.resize(TerminalSize { columns: 100, rows: 40 }).await.unwrap();
    stdin.write_all(b"typed\n").await.unwrap();
    stdout.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("40 100") && text.contains("got typed") && text.contains("xterm"), "{text}");
    assert_eq!(session.wait().await.unwrap(), 5);
}

pub(crate) async fn a_missing_command_says_so() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    for (command, expected) in [("nosuchprogram", 127), ("/bin/notexec", 126)] {
        match world.engine().exec_sync(&id, words(command), LONG, 1000).await {
            Err(EngineError::Exec { message, code }) => {
                assert_eq!(code, expected);
                assert!(message.contains(command), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(world.engine().exec_sync(&id, vec![], LONG, 1000).await.is_err());
}

pub(crate) async fn input_reaches_the_command_and_its_end_too() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let request = ExecRequest { command: words("wc -c"), stdin: true, stdout: true, ..ExecRequest::default() };
    let mut session = world.engine().exec(&id, request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(&vec![b'x'; 300_000]).await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!((text.trim(), session.wait().await.unwrap()), ("300000", 0));
}

pub(crate) async fn a_dropped_session_closes_its_streams_and_leaks_nothing() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let shim = world.engine().sandbox(&pod).unwrap().shim_pid.unwrap();
    let count = |pid: &str| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let open = |tty| ExecRequest {
        command: words("cat"),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
        ..ExecRequest::default()
    };
    let (ours, theirs) = (count("self"), count(&shim.to_string()));
    for number in 0..60 {
        let session = world.engine().exec(&id, open(number % 2 == 0)).await.unwrap();
        drop(session);
    }
    // Their input ended, so they did; nothing of them is held anywhere.
    wait_until("all have ended", || !world.processes().iter().any(|line| line.ends_with("cat "))).await;
    wait_until("descriptors are closed", || count("self") <= ours && count(&shim.to_string()) <= theirs).await;
}

pub(crate) async fn a_command_without_a_terminal_ends_with_whoever_asked_for_it() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 100")).await;
    let running = |name: &str| world.processes().iter().filter(|line| line.contains(name)).count();
    // It reads and writes nothing, so its streams tell it nothing; with it goes what hangs on it.
    let request =
        ExecRequest { command: shell("sleep 4321 & sleep 4321"), stdout: true, stderr: true, ..ExecRequest::default() };
    let session = world.engine().exec(&id, request.clone()).await.unwrap();
    wait_until("it runs", || running("sleep 4321") >= 2).await;
    drop(session);
    wait_until("it is gone", || running("sleep 4321") == 0).await;
    // So it is for whoever only waits, and goes away meanwhile.
    let mut session = world.engine().exec(&id, request).await.unwrap();
    wait_until("it runs", || running("sleep 4321") >= 2).await;
    let waiting = tokio::spawn(async move { session.wait().await });
    waiting.abort();
    wait_until("it is gone", || running("sleep 4321") == 0).await;
    // A terminal hangs up, which can be ignored.
    let request = ExecRequest {
        command: shell("trap '' HUP; sleep 4322; true"),
        tty: true,
        stdin: true,
        stdout: true,
        ..ExecRequest::default()
    };
    let session = world.engine().exec(&id, request.clone()).await.unwrap();
    wait_until("it runs", || running("sleep 4322") >= 2).await;
    let other = ExecRequest { command: shell("sleep 4323; true"), ..request };
    drop(world.engine().exec(&id, other).await.unwrap());
    drop(session);
    wait_until("the other is gone", || running("sleep 4323") == 0).await;
    assert!(running("sleep 4322") >= 1);
    // One that ended by itself leaves nothing to be killed.
    let request = ExecRequest { command: words("true"), stdout: true, ..ExecRequest::default() };
    let mut session = world.engine().exec(&id, request).await.unwrap();
    assert_eq!(session.wait().await.unwrap(), 0);
    drop(session);
    assert_eq!(world.status(&id).state, portreeve_engine::ContainerState::Running);
}
