//! Standard streams, terminals, descriptors that are handed on, and signals to a foreground runtime.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::mpsc;

use nix::pty::openpty;
use nix::sys::signal::Signal;
use portreeve_e2e::{Bundle, Report, Runtime, patience, wait_until};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcgetwinsize, tcsetwinsize};
use serde_json::json;

/// A socket at which one descriptor is waited for.
struct Receiver {
    path: std::path::PathBuf,
    answer: mpsc::Receiver<OwnedFd>,
}

impl Receiver {
    fn new(runtime: &Runtime, name: &str) -> Self {
        let path = runtime.world().path(name);
        let listener = UnixListener::bind(&path).expect("a socket");
        let (sender, answer) = mpsc::channel();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            let mut data = [0; 4096];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut data = [std::io::IoSliceMut::new(&mut data)];
            recvmsg(&stream, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("a message");
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    // Nobody waits any more where the test has failed.
                    descriptors.for_each(|descriptor| drop(sender.send(descriptor)));
                }
            }
        });
        Self { path, answer }
    }

    fn flag(&self) -> &str {
        self.path.to_str().expect("a path in UTF-8")
    }

    fn receive(&self) -> OwnedFd {
        self.answer.recv_timeout(patience(20)).expect("a descriptor over the socket")
    }
}

/// Reads from a terminal's other side until a line holds `text`; the end of the terminal is the end.
fn read_until(master: &OwnedFd, text: &str) -> String {
    let mut file = File::from(master.try_clone().expect("another descriptor"));
    let (sender, receiver) = mpsc::channel();
    let wanted = text.to_owned();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = file.read(&mut buffer) {
            said.extend_from_slice(&buffer[..length]);
            let seen = String::from_utf8_lossy(&said);
            if seen.lines().any(|line| line.contains(&wanted)) && seen.ends_with('\n') {
                break;
            }
        }
        drop(sender.send(String::from_utf8_lossy(&said).into_owned()));
    });
    receiver.recv_timeout(patience(20)).unwrap_or_else(|_| panic!("no {text:?} in time"))
}

fn with_terminal(bundle: Bundle) -> Bundle {
    bundle.with(json!({ "process": { "terminal": true, "consoleSize": { "height": 33, "width": 77 } } }))
}

#[test]
fn the_standard_streams_are_the_callers() {
    let Some(runtime) = Runtime::for_test("the_standard_streams_are_the_callers") else { return };
    let bundle = runtime.bundle_of(&["sh", "-c", "cat; echo to the errors >&2; exit 9"]);
    bundle.save();
    let mut command = runtime.command(&["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]);
    command.stdin(Stdio::piped());
    let mut call = runtime.begin(command);
    call.stdin().expect("a pipe").write_all(b"from the caller\n").unwrap();
    let answer = call.finish();
    assert_eq!(answer.code, 9);
    assert_eq!(answer.stdout, "from the caller\n");
    assert!(answer.stderr.contains("to the errors\n"), "{}", answer.stderr);
}

#[test]
fn all_of_a_large_output_arrives() {
    let Some(runtime) = Runtime::for_test("all_of_a_large_output_arrives") else { return };
    let bundle = runtime.bundle_of(&["busybox", "dd", "if=/dev/zero", "bs=1048576", "count=8"]);
    assert_eq!(runtime.run(&bundle, &[]).ok().len(), 8 << 20);
}

#[test]
fn a_terminal_is_sent_over_the_console_socket() {
    let Some(runtime) = Runtime::for_test("a_terminal_is_sent_over_the_console_socket") else { return };
    let user = json!({ "process": { "user": { "uid": 1000, "gid": 1000 } } });
    let bundle = with_terminal(runtime.bundle(&["report"])).with(user);
    let receiver = Receiver::new(&runtime, "console");
    runtime.create(&bundle, &["--console-socket", receiver.flag()]).ok();
    let master = receiver.receive();
    assert!(rustix::termios::isatty(&master));
    runtime.call(&["start", bundle.id()]).ok();
    let report = Report::parse(&read_until(&master, "\"args\""));
    assert_eq!(report["terminal"], json!({ "controlling": true, "size": [33, 77] }));
    for number in ["0", "1", "2"] {
        assert_eq!(report["fds"][number]["target"], "/dev/pts/0", "{number}");
    }
    assert_eq!(report["devices"]["console"]["major"], 136);
    assert_eq!(report["devices"]["pts/0"]["uid"], 1000, "it belongs to the user");
    assert_eq!(report["session"], 1);
    assert_eq!(bundle.output(), "", "and the caller's streams see nothing");
}

#[test]
fn a_terminal_carries_what_is_typed_and_how_large_it_is() {
    let Some(runtime) = Runtime::for_test("a_terminal_carries_what_is_typed_and_how_large_it_is") else { return };
    let script = "echo started; read line; echo got $line; stty size; echo ended";
    let bundle = with_terminal(runtime.bundle_of(&["sh", "-c", script]));
    let receiver = Receiver::new(&runtime, "console");
    runtime.run(&bundle, &["--detach", "--console-socket", receiver.flag()]).ok();
    let master = receiver.receive();
    read_until(&master, "started");
    tcsetwinsize(&master, Winsize { ws_row: 11, ws_col: 22, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    File::from(master.try_clone().unwrap()).write_all(b"typed\n").unwrap();
    let said = read_until(&master, "ended");
    assert!(said.contains("got typed") && said.contains("11 22"), "{said}");
}

#[test]
fn a_terminal_without_its_socket_and_a_socket_without_its_terminal_are_refused() {
    let test = "a_terminal_without_its_socket_and_a_socket_without_its_terminal_are_refused";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let socket = runtime.world().path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap();
    let plain = || runtime.bundle(&["wait"]);
    let refused = [
        runtime.create(&with_terminal(plain()), &[]),
        runtime.run(&with_terminal(plain()), &["--detach"]),
        runtime.create(&plain(), &["--console-socket", socket]),
        runtime.run(&plain(), &["--detach", "--console-socket", socket]),
        runtime.create(&with_terminal(plain()), &["--console-socket", "/no/such/socket"]),
    ];
    for (number, answer) in refused.iter().enumerate() {
        assert_ne!(answer.code, 0, "case {number}");
        assert!(!answer.stderr.trim().is_empty(), "case {number}");
    }
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn run_relays_the_callers_terminal_and_gives_it_back_as_it_was() {
    let test = "run_relays_the_callers_terminal_and_gives_it_back_as_it_was";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let script = "stty size; echo started; read line; echo got $line; stty size; echo ended; exit 5";
    let bundle = runtime.bundle_of(&["sh", "-c", script]).with(json!({ "process": { "terminal": true } }));
    let terminal = openpty(None, None).expect("a terminal");
    tcsetwinsize(&terminal.master, Winsize { ws_row: 44, ws_col: 55, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let before = tcgetattr(&terminal.slave).unwrap();
    bundle.save();
    let call = runtime.begin_on(&terminal.slave, &["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]);
    let said = read_until(&terminal.master, "started");
    assert!(said.contains("44 55"), "the container's is as large: {said}");
    wait_until("keys go on one by one", 20, || {
        let modes = tcgetattr(&terminal.slave).unwrap().local_modes;
        if modes.contains(LocalModes::ICANON) { Err(format!("{modes:?}")) } else { Ok(()) }
    });
    // The kernel tells the runtime of a new size by a signal to the terminal's foreground.
    tcsetwinsize(&terminal.master, Winsize { ws_row: 12, ws_col: 34, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let inner = wait_until("the container's terminal is as large", 20, || {
        let size = runtime.exec(&bundle, &[], &["sh", "-c", "stty size < /dev/pts/0"]).stdout;
        if size.trim() == "12 34" { Ok(size) } else { Err(size) }
    });
    assert_eq!(inner.trim(), "12 34");
    File::from(terminal.master.try_clone().unwrap()).write_all(b"typed\r").unwrap();
    let said = read_until(&terminal.master, "ended");
    assert!(said.contains("got typed"), "{said}");
    assert_eq!(call.finish().code, 5);
    let after = tcgetattr(&terminal.slave).unwrap();
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!(after.input_modes, before.input_modes);
    assert_eq!(after.output_modes, before.output_modes);
    assert_eq!(tcgetwinsize(&terminal.slave).unwrap().ws_row, 12);
}

#[test]
fn descriptors_are_handed_on_by_their_number_and_no_others() {
    let Some(runtime) = Runtime::for_test("descriptors_are_handed_on_by_their_number_and_no_others") else { return };
    let bundle = runtime.bundle(&["report"]);
    bundle.save();
    let path = bundle.path().to_str().unwrap();
    let open = "exec 3</etc/hostname 4</etc/passwd 5</etc/group 6</etc/hosts 9</etc/fstab";
    let report = |line: &str, flags: &[&str]| {
        let line = runtime.command_after(line, &[&["run", "--bundle", path], flags, &[bundle.id()]].concat());
        Report::parse(&runtime.begin(line).finish().ok())
    };
    let seen = report(open, &[]);
    assert_eq!(seen.descriptors().into_iter().collect::<Vec<_>>(), [0, 1, 2], "{}", seen["fds"]);
    let seen = report(open, &["--preserve-fds", "2"]);
    assert_eq!(seen.descriptors().into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4], "{}", seen["fds"]);
    assert_eq!(seen["fds"]["3"]["target"], "/etc/hostname");
    assert_eq!(seen["fds"]["4"]["target"], "/etc/passwd");
    assert!(seen["env"]["LISTEN_FDS"].is_null());
    // Sockets of systemd come first.
    let line = format!("{open}; export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=a:b");
    let seen = report(&line, &["--preserve-fds", "1"]);
    assert_eq!(seen.descriptors().into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5], "{}", seen["fds"]);
    assert_eq!(seen["env"]["LISTEN_FDS"], "2");
    assert_eq!(seen["env"]["LISTEN_PID"], "1");
    let line = format!("{open}; export LISTEN_FDS=2 LISTEN_PID=1");
    assert!(report(&line, &[])["env"]["LISTEN_FDS"].is_null(), "they were meant for another process");
    // A number that nothing is open at.
    let line = runtime
        .command_after("exec 3</etc/hostname 4<&-", &["run", "--bundle", path, "--preserve-fds", "2", bundle.id()]);
    let answer = runtime.begin(line).finish();
    assert_ne!(answer.code, 0, "{}", answer.stdout);
}

#[test]
fn descriptors_are_handed_on_from_create_to_the_start() {
    let Some(runtime) = Runtime::for_test("descriptors_are_handed_on_from_create_to_the_start") else { return };
    let bundle = runtime.bundle_of(&["sh", "-c", "cat <&3"]);
    std::fs::write(bundle.path().join("input"), "kept open").unwrap();
    bundle.save();
    let path = bundle.path().to_str().unwrap();
    let line = format!("exec 3<{path}/input >{path}/stdout");
    let command = runtime.command_after(&line, &["create", "--bundle", path, "--preserve-fds", "1", bundle.id()]);
    assert_eq!(runtime.begin(command).finish().code, 0);
    runtime.call(&["start", bundle.id()]).ok();
    wait_until("the program has read it", 20, || {
        let said = bundle.output();
        if said == "kept open" { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_foreground_runtime_hands_signals_on() {
    let Some(runtime) = Runtime::for_test("a_foreground_runtime_hands_signals_on") else { return };
    let bundle = runtime.bundle(&["catch", "1", "2", "3", "10", "12"]);
    let call = runtime.begin_run(&bundle, &[]);
    call.wait_for("ready");
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        call.signal(signal);
        call.wait_for(&format!("\n{}\n", signal as i32));
    }
    call.signal(Signal::SIGTERM);
    let answer = call.finish();
    assert_eq!(answer.code, 0, "its own end: {}", answer.stderr);
    assert_eq!(runtime.leftovers(), Vec::<String>::new());
}

#[test]
fn a_container_is_given_a_closed_stream_as_an_empty_one() {
    let Some(runtime) = Runtime::for_test("a_container_is_given_a_closed_stream_as_an_empty_one") else { return };
    let bundle = runtime.bundle_of(&["sh", "-c", "cat; echo done"]);
    bundle.save();
    let line = ["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()];
    let answer = runtime.begin(runtime.command_after("exec 0<&-", &line)).finish();
    assert!(answer.stdout.contains("done"), "{}", answer.stderr);
}

#[test]
fn the_containers_process_is_sent_as_a_descriptor() {
    let Some(runtime) = Runtime::for_test("the_containers_process_is_sent_as_a_descriptor") else { return };
    let of = |descriptor: &OwnedFd| {
        let number = std::os::fd::AsRawFd::as_raw_fd(descriptor);
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap_or_else(|| panic!("{text}"));
        line.trim().parse::<i32>().unwrap()
    };
    let bundle = runtime.bundle(&["wait"]);
    let receiver = Receiver::new(&runtime, "pidfd");
    runtime.create(&bundle, &["--pidfd-socket", receiver.flag()]).ok();
    assert_eq!(of(&receiver.receive()), runtime.pid(&bundle).as_raw());
    runtime.call(&["start", bundle.id()]).ok();
    let receiver = Receiver::new(&runtime, "pidfd-of-exec");
    let file = runtime.world().path("pid");
    let flags = ["--detach", "--pidfd-socket", receiver.flag(), "--pid-file", file.to_str().unwrap()];
    runtime.exec(&bundle, &flags, &["/prober", "wait"]).ok();
    assert_eq!(of(&receiver.receive()).to_string(), std::fs::read_to_string(&file).unwrap());
}
