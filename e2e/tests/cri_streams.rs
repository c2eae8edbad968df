//! Streams into containers and pods, at the addresses that a runtime gives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use portreeve_e2e::cri::{code, pod, shell, v1};
use portreeve_e2e::streaming::{Frame, Outcome, Spdy, over_socket, over_spdy, refusal};
use portreeve_e2e::{Agent, BUSYBOX, Cri, World, skipped_without_root, wait_until};
use tonic::Code;

/// A pod whose container runs a line.
fn run(cri: &Cri, world: &World, change: impl FnOnce(&mut v1::ContainerConfig), line: &str) -> (String, String) {
    let config = pod("a", &world.path("cri-logs"));
    let sandbox = cri.run_sandbox(&config).unwrap();
    let mut wanted = shell("main", BUSYBOX, line);
    change(&mut wanted);
    let container = cri.create(&sandbox, wanted, &config).unwrap();
    cri.start(&container).unwrap();
    (sandbox, container)
}

fn exec(container: &str, line: &str) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: container.to_owned(),
        cmd: ["sh", "-c", line].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..v1::ExecRequest::default()
    }
}

fn url(cri: &Cri, request: v1::ExecRequest) -> String {
    cri.runtime(async |mut runtime| runtime.exec(request).await).unwrap().url
}

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

fn outcome(stdout: &str, stderr: &str, code: i32, found: &Outcome) {
    assert_eq!(
        (String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr)),
        (stdout.into(), stderr.into())
    );
    assert_eq!(found.exit_code(), Some(code), "{}", found.status);
}

#[test]
fn a_command_is_run_over_spdy_and_over_a_websocket() {
    if skipped_without_root("cri_streams") {
        return;
    }
    let world = World::new("cri-exec");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let (sandbox, id) = run(&cri, &world, |_| {}, "sleep 1000");
    let both = ["stdout", "stderr"];
    let line = "echo out; echo err >&2; exit 5";
    outcome("out\n", "err\n", 5, &over_spdy(&world, &url(&cri, exec(&id, line)), &both, b"", None));
    outcome("out\n", "err\n", 5, &over_socket(&world, &url(&cri, exec(&id, line)), None, None));
    outcome("", "", 0, &over_spdy(&world, &url(&cri, exec(&id, "true")), &both, b"", None));

    // Large, with the end of the input told, and byte by byte as it went.
    let all = ["stdin", "stdout", "stderr"];
    let cat = |line: &str| v1::ExecRequest { stdin: true, ..exec(&id, line) };
    let much: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
    let echoed = over_spdy(&world, &url(&cri, cat("cat; echo end >&2")), &all, &much, None);
    assert!(echoed.stdout == much && echoed.stderr == b"end\n" && echoed.exit_code() == Some(0));
    let echoed = over_socket(&world, &url(&cri, cat("cat; echo end >&2")), Some(&much), None);
    assert!(echoed.stdout == much && echoed.stderr == b"end\n" && echoed.exit_code() == Some(0));

    // A terminal, with its size.
    let tty = |line: &str| v1::ExecRequest { stdin: true, tty: true, stderr: false, ..exec(&id, line) };
    let line = "i=0; while [ $i -lt 100 ] && [ \"$(busybox stty size 2>/dev/null)\" != '33 132' ]; do i=$((i+1)); sleep 0.05; done; \
                busybox stty size; test -t 0 && echo terminal";
    let size = Some(r#"{"Width":132,"Height":33}"#);
    let found = over_spdy(&world, &url(&cri, tty(line)), &["stdin", "stdout", "resize"], b"", size);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "33 132\r\nterminal\r\n");
    let found = over_socket(&world, &url(&cri, tty(line)), Some(b""), size);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "33 132\r\nterminal\r\n");

    let mut missing = exec(&id, "");
    missing.cmd = vec!["/no/such".to_owned()];
    let found = over_spdy(&world, &url(&cri, missing), &both, b"", None);
    assert_eq!(found.status["status"], "Failure", "{found:?}");
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn an_address_is_good_once_and_only_for_what_was_asked() {
    if skipped_without_root("cri_streams") {
        return;
    }
    let world = World::new("cri-tokens");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let (sandbox, id) = run(&cri, &world, |_| {}, "sleep 1000");
    let address = url(&cri, exec(&id, "true"));
    assert!(address.starts_with("http://127.0.0.1:"), "{address}");
    assert_ne!(address, url(&cri, exec(&id, "true")));
    assert!(refusal(&world, &address.replace("/exec/", "/attach/")).contains(" 404 "));
    assert!(refusal(&world, &address).contains(" 404 "), "whoever guessed at the kind has used it up");
    let address = url(&cri, exec(&id, "true"));
    assert_eq!(over_spdy(&world, &address, &["stdout", "stderr"], b"", None).exit_code(), Some(0));
    assert!(refusal(&world, &address).contains(" 404 "));
    let root = address.split("/exec/").next().unwrap();
    assert!(refusal(&world, &format!("{root}/exec/0123456789abcdef")).contains(" 404 "));

    let refused = |request: v1::ExecRequest| code(cri.runtime(async |mut runtime| runtime.exec(request).await));
    assert_eq!(refused(v1::ExecRequest { tty: true, ..exec(&id, "true") }), Code::InvalidArgument);
    assert_eq!(refused(v1::ExecRequest { stdout: false, stderr: false, ..exec(&id, "true") }), Code::InvalidArgument);
    assert_eq!(refused(v1::ExecRequest { cmd: Vec::new(), ..exec(&id, "true") }), Code::InvalidArgument);
    assert_eq!(refused(exec(&"0".repeat(64), "true")), Code::NotFound);
    cri.stop(&id, 0).unwrap();
    assert_eq!(refused(exec(&id, "true")), Code::FailedPrecondition);
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn a_containers_own_streams_are_attached_to() {
    if skipped_without_root("cri_streams") {
        return;
    }
    let world = World::new("cri-attach");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let line = "read word; echo got $word; read word; echo and $word; exit 3";
    let (sandbox, id) = run(&cri, &world, |wanted| (wanted.stdin, wanted.stdin_once) = (true, true), line);
    let request = v1::AttachRequest {
        container_id: id.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..v1::AttachRequest::default()
    };
    let address = cri.runtime(async |mut runtime| runtime.attach(request.clone()).await).unwrap().url;
    let found = over_spdy(&world, &address, &["stdin", "stdout", "stderr"], b"one\ntwo\n", None);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "got one\nand two\n", "{found:?}");
    assert_eq!(found.status["status"], "Success");
    assert_eq!(cri.wait_exited(&id).exit_code, 3);
    let gone = cri.runtime(async |mut runtime| runtime.attach(request).await);
    assert_eq!(code(gone), Code::FailedPrecondition);
    cri.remove_sandbox(&sandbox).unwrap();
}

#[test]
fn ports_of_a_pod_are_forwarded_a_hundred_at_once() {
    if skipped_without_root("cri_streams") {
        return;
    }
    let world = World::new("cri-forward");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let (sandbox, id) = run(&cri, &world, |_| {}, "httpd -f -p 8080 -h /www");
    wait_until("it listens", 10, || {
        let asked = cri.exec(&id, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"], 5).unwrap();
        if asked.exit_code == 0 { Ok(()) } else { Err(String::from_utf8_lossy(&asked.stderr).into_owned()) }
    });
    for tunnelled in [false, true] {
        // Streams name their ports.
        let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: Vec::new() };
        let address = cri.runtime(async |mut runtime| runtime.port_forward(request).await).unwrap().url;
        let mut spdy = if tunnelled {
            Spdy::tunnel(&world, &address)
        } else {
            Spdy::connect(&world, &address, "portforward.k8s.io")
        };
        forward_a_hundred(&mut spdy);
    }
    cri.stop_sandbox(&sandbox).unwrap();
    let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.clone(), port: vec![8080] };
    let refused = cri.runtime(async |mut runtime| runtime.port_forward(request).await);
    assert_eq!(code(refused), Code::FailedPrecondition);
    cri.remove_sandbox(&sandbox).unwrap();
}

/// A hundred connections at once, one of them to a port where nobody listens.
fn forward_a_hundred(spdy: &mut Spdy) {
    let mut streams = BTreeMap::new();
    for number in 0..100 {
        // Nobody listens at one of them.
        let port = if number == 50 { "8081" } else { "8080" };
        let request = number.to_string();
        let error = spdy.open(&[("streamtype", "error"), ("port", port), ("requestID", &request)]);
        let data = spdy.open(&[("streamtype", "data"), ("port", port), ("requestID", &request)]);
        spdy.send(error, b"", true);
        spdy.send(data, b"GET / HTTP/1.0\r\n\r\n", false);
        streams.insert(data, (number, Vec::new(), false));
        streams.insert(error, (number + 1000, Vec::new(), false));
    }
    let begun = Instant::now();
    while streams.values().any(|(_, _, ended)| !ended) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        match spdy.frame() {
            Some(Frame::Data(id, bytes, last)) => {
                let stream = streams.get_mut(&id).unwrap();
                assert!(!stream.2, "nothing comes after the end");
                stream.1.extend(bytes);
                stream.2 = last;
            }
            other => panic!("{other:?}"),
        }
    }
    for (number, bytes, _) in streams.values() {
        let text = String::from_utf8_lossy(bytes);
        match number {
            50 => assert_eq!(text, ""),
            1050 => assert!(text.contains("8081") && text.contains("refused"), "{text}"),
            1000.. => assert_eq!(text, ""),
            _ => assert!(text.ends_with("a page from busybox\n"), "{number}: {text}"),
        }
    }
}

#[test]
fn a_client_that_leaves_ends_its_command_and_the_agents_end_ends_sessions() {
    if skipped_without_root("cri_streams") {
        return;
    }
    let world = World::new("cri-leave");
    let mut agent = Agent::with_busybox(&world);
    let cri = connect(&agent);
    let (sandbox, id) = run(&cri, &world, |_| {}, "sleep 1000");
    let begin = || {
        let request = exec(&id, "sleep 777");
        let mut spdy = Spdy::connect(&world, &url(&cri, request), "v4.channel.k8s.io");
        for kind in ["error", "stdout", "stderr"] {
            spdy.open(&[("streamtype", kind)]);
        }
        wait_until("the command runs", 10, || sleeps(&cri, &id, 1));
        spdy
    };
    drop(begin());
    wait_until("the command has ended", 20, || sleeps(&cri, &id, 0));
    let mut held = begin();
    agent.terminate();
    let mut status = Vec::new();
    while let Some(frame) = held.frame() {
        if let Frame::Data(1, bytes, _) = frame {
            status = bytes;
        }
    }
    assert!(String::from_utf8_lossy(&status).contains("stopping"), "{}", String::from_utf8_lossy(&status));
    agent.launch();
    let cri = connect(&agent);
    assert_eq!(cri.inside(&id, "echo on"), "on");
    cri.remove_sandbox(&sandbox).unwrap();
}

fn sleeps(cri: &Cri, id: &str, wanted: usize) -> Result<(), String> {
    let found = cri.inside(id, "ps | grep -v grep | grep -v 'sh -c' | grep -c 'sleep 777' || true");
    if found == wanted.to_string() { Ok(()) } else { Err(found) }
}
