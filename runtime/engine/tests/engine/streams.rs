//! Attached to a container's own streams.

use std::fs;
use std::time::{Duration, Instant};

use portreeve_engine::{AttachRequest, ContainerConfig, TerminalSize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{World, sh, wait_until};

const ALL: AttachRequest = AttachRequest { stdin: true, stdout: true, stderr: true };

pub(crate) async fn attached_output_and_input() {
    let world = World::new().await;
    let pod = world.pod().await;
    let config = ContainerConfig { stdin: true, ..sh("while read line; do echo got $line; echo err $line >&2; done") };
    let id = world.start(&pod, config).await;
    let mut session = world.engine().attach(&id, ALL).await.unwrap();
    let mut second = world.engine().attach(&id, AttachRequest { stdin: false, ..ALL }).await.unwrap();
    assert!(second.stdin.is_none());
    session.stdin.as_mut().unwrap().write_all(b"one\n").await.unwrap();
    let mut bytes = [0; 8];
    session.stdout.as_mut().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"got one\n");
    second.stdout.as_mut().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"got one\n");
    session.stderr.as_mut().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"err one\n");
    // Without stdin_once the input stays open for the next client.
    drop(session);
    let mut third = world.engine().attach(&id, ALL).await.unwrap();
    third.stdin.as_mut().unwrap().write_all(b"two\n").await.unwrap();
    third.stdout.as_mut().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"got two\n");
    third.stderr.as_mut().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"err two\n");
    // The end of the container is the end of the streams.
    world.engine().stop_container(&id, Duration::ZERO).await.unwrap();
    let mut rest = Vec::new();
    third.stdout.take().unwrap().read_to_end(&mut rest).await.unwrap();
    let log = fs::read_to_string(world.status(&id).log_path.unwrap()).unwrap();
    assert!(log.contains("stdout F got one") && log.contains("stderr F err two"), "{log}");
    assert!(world.engine().attach(&id, ALL).await.is_err());
}

pub(crate) async fn stdin_once_ends_the_input_with_its_client() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, ContainerConfig { stdin: true, stdin_once: true, ..sh("wc -c") }).await;
    let mut session = world.engine().attach(&id, ALL).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"12345").await.unwrap();
    drop(session.stdin.take());
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text.trim(), "5");
    assert_eq!(world.engine().wait_container(&id).await.unwrap().exit.unwrap().code, 0);
}

pub(crate) async fn a_slow_client_is_detached_and_the_container_goes_on() {
    let world = World::new().await;
    let pod = world.pod().await;
    let id = world.start(&pod, sh("sleep 0.3; seq 1 200000; echo finished")).await;
    let mut session = world.engine().attach(&id, ALL_BUT_INPUT).await.unwrap();
    let begin = Instant::now();
    // Nobody reads. The container is held up for a while, then the client is dropped.
    let status = world.engine().wait_container(&id).await.unwrap();
    assert_eq!(status.exit.unwrap().code, 0);
    assert!(begin.elapsed() > Duration::from_secs(3), "{:?}", begin.elapsed());
    let log = status.log_path.unwrap();
    wait_until("all is logged", || fs::read_to_string(&log).is_ok_and(|text| text.contains("finished"))).await;
    let mut rest = Vec::new();
    session.stdout.take().unwrap().read_to_end(&mut rest).await.unwrap();
    assert!(rest.starts_with(b"1\n2\n3\n") && rest.len() < 1_000_000);

    // One that reads gets everything.
    let id = world.start(&pod, sh("sleep 0.3; seq 1 200000")).await;
    let mut session = world.engine().attach(&id, ALL_BUT_INPUT).await.unwrap();
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text.lines().count(), 200_000);
}

const ALL_BUT_INPUT: AttachRequest = AttachRequest { stdin: false, ..ALL };

pub(crate) async fn a_container_with_a_terminal() {
    let world = World::new().await;
    let pod = world.pod().await;
    let config = ContainerConfig { tty: true, stdin: true, ..sh("read line; stty size; echo got $line; exit 4") };
    let id = world.start(&pod, config).await;
    let mut session = world.engine().attach(&id, ALL).await.unwrap();
    assert!(session.stderr.is_none());
    session.resize(TerminalSize { columns: 90, rows: 30 }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"typed\n").await.unwrap();
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.contains("30 90") && text.contains("got typed"), "{text}");
    let status = world.engine().wait_container(&id).await.unwrap();
    assert_eq!(status.exit.unwrap().code, 4);
    assert!(fs::read_to_string(status.log_path.unwrap()).unwrap().contains("stdout F got typed"));
}
