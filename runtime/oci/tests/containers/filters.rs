//! Seccomp in the kernel: every action, operator, architecture and flag, the default profile, notifications.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Arch;
use portreeve_oci::seccomp::{ACTIONS, Filter, call_number, default_profile, native};
use portreeve_sys::clone::{Child, Clone3, clone3};
use portreeve_sys::process::{Exit, pidfd_send_signal, set_parent_death_signal, wait};
use portreeve_sys::seccomp::{Answer, answer, receive};
use portreeve_sys::socket;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::Test;
use crate::privileges::status_field;
use crate::world::{DEFAULT_CAPABILITIES, Outcome, World};

pub(crate) const TESTS: &[Test] = &[
    ("the_default_profile_refuses_unshare_in_run_and_exec", the_default_profile_refuses_unshare_in_run_and_exec),
    ("the_default_profile_refuses_the_kernels_cryptography", the_default_profile_refuses_the_kernels_cryptography),
    ("a_filter_loads_without_no_new_privileges_too", a_filter_loads_without_no_new_privileges_too),
    ("a_profile_need_not_allow_what_the_set_up_does", a_profile_need_not_allow_what_the_set_up_does),
    ("every_action_does_what_it_says", every_action_does_what_it_says),
    ("a_killed_thread_leaves_the_process_and_a_killed_process_does_not", a_killed_thread_leaves_the_process),
    ("every_operator_compares_what_the_kernel_sees", every_operator_compares_what_the_kernel_sees),
    ("threads_are_bound_together_only_when_asked_for", threads_are_bound_together_only_when_asked_for),
    ("calls_of_the_other_architecture_are_filtered_by_their_own_numbers", other_architecture),
    ("notified_calls_end_as_the_listener_says", notified_calls_end_as_the_listener_says),
    ("a_listener_may_hear_of_every_call_but_one", a_listener_may_hear_of_every_call_but_one),
    ("a_container_whose_listener_nobody_takes_is_not_made", a_container_whose_listener_nobody_takes_is_not_made),
];

const SIGKILL: i32 = 9;
const SIGSYS: i32 = 31;

fn default_seccomp() -> Value {
    serde_json::to_value(default_profile(native(), &DEFAULT_CAPABILITIES)).expect("profile")
}

fn with_profile(world: World, profile: Value) -> World {
    world.with(json!({"linux": {"seccomp": profile}}))
}

fn the_default_profile_refuses_unshare_in_run_and_exec() {
    // With the capability the kernel would allow it: the refusal is the filter's.
    let mut capabilities = DEFAULT_CAPABILITIES.to_vec();
    capabilities.push("CAP_SYS_ADMIN");
    let change = json!({"process": {"capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}}});
    let script = "unshare -m true && echo allowed; cat /proc/self/status; echo up; sleep 100";
    let open = World::shell(&script.replace("sleep 100", "true")).with(change.clone());
    assert!(open.run().out.starts_with("allowed"), "without a profile it works");
    let world = with_profile(World::shell(script).with(change), default_seccomp());
    let live = world.start();
    live.wait_for("up");
    for text in [live.output(), live.exec("unshare -m true && echo allowed; cat /proc/self/status").out] {
        assert!(!text.starts_with("allowed"), "{text}");
        assert_eq!(status_field(&text, "Seccomp"), "2");
    }
}

fn the_default_profile_refuses_the_kernels_cryptography() {
    const ALG: u16 = 38;
    let family = |raw: u16| rustix::net::AddressFamily::from_raw(raw);
    let stream = rustix::net::SocketType::SEQPACKET;
    let filter = Filter::compile(&serde_json::from_value(default_seccomp()).expect("profile")).expect("compile");
    let exit = in_child(|| {
        filter.load().expect("load");
        let refused = rustix::net::socket(family(ALG), stream, None).expect_err("AF_ALG");
        let allowed = rustix::net::socket(family(1), stream, None);
        i32::from(refused != Errno::PERM) + 2 * i32::from(allowed.is_err())
    });
    assert_eq!(exit, Exit::Code(0));
}

fn a_filter_loads_without_no_new_privileges_too() {
    let world = World::shell("cat /proc/self/status")
        .with(json!({"process": {"noNewPrivileges": false, "user": {"uid": 1000, "gid": 1000}}}));
    let text = with_profile(world, default_seccomp()).run().out;
    assert_eq!((status_field(&text, "Seccomp").as_str(), status_field(&text, "NoNewPrivs").as_str()), ("2", "0"));
}

fn a_profile_need_not_allow_what_the_set_up_does() {
    // And more, which the shell itself calls: prctl, setgid, setuid.
    let names = [
        "accept4",
        "capget",
        "fchdir",
        "getsockopt",
        "openat2",
        "recvmsg",
        "sendmsg",
        "setgroups",
        "setresgid",
        "setresuid",
    ];
    let profile =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": names, "action": "SCMP_ACT_KILL_PROCESS"}]});
    for no_new_privileges in [true, false] {
        let user = json!({"uid": 1000, "gid": 1000, "additionalGids": [7]});
        let set = json!(["CAP_NET_BIND_SERVICE"]);
        let sets = json!({"bounding": set, "effective": set, "permitted": set, "inheritable": set, "ambient": set});
        let process = json!({"noNewPrivileges": no_new_privileges, "user": user, "capabilities": sets});
        let script = "while read line; do echo $line; done < /proc/self/status; echo up; sleep 100";
        let world = with_profile(World::shell(script).with(json!({"process": process})), profile.clone());
        let live = world.start();
        live.wait_for("up");
        let execed = live.exec("while read line; do echo $line; done < /proc/self/status");
        for text in [live.output(), execed.out] {
            // CAP_SYS_ADMIN, with which the filter was loaded, is gone.
            for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status_field(&text, set), "0000000000000400", "{set}");
            }
            assert_eq!(status_field(&text, "Seccomp"), "2");
        }
    }
}

/// A shell that changes its directory by a call of its own, under `rule` for that call.
fn change_directory(rule: Value) -> Outcome {
    let mut rule = rule;
    rule["names"] = json!(["chdir"]);
    let world = World::shell("trap 'echo trapped' 31; cd /tmp; echo in $PWD");
    with_profile(world, json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})).run()
}

fn every_action_does_what_it_says() {
    let killed = (Exit::Signal(SIGSYS), "", "");
    let stayed = |error: &'static str| (Exit::Code(0), "in /\n", error);
    let went = (Exit::Code(0), "in /tmp\n", "");
    let cases = [
        (json!({"action": "SCMP_ACT_KILL"}), killed),
        (json!({"action": "SCMP_ACT_KILL_THREAD"}), killed),
        (json!({"action": "SCMP_ACT_KILL_PROCESS"}), killed),
        (json!({"action": "SCMP_ACT_TRAP"}), (Exit::Code(0), "trapped\nin /\n", "can't cd")),
        (json!({"action": "SCMP_ACT_ERRNO"}), stayed("Operation not permitted")),
        (json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 17}), stayed("File exists")),
        (json!({"action": "SCMP_ACT_TRACE"}), stayed("Function not implemented")),
        (json!({"action": "SCMP_ACT_LOG"}), went),
        (json!({"action": "SCMP_ACT_ALLOW"}), went),
    ];
    for action in ACTIONS.map(|action| json!(action)).iter().filter(|action| **action != "SCMP_ACT_NOTIFY") {
        assert!(cases.iter().any(|(rule, _)| rule["action"] == *action), "{action} is not tried");
    }
    for (rule, (exit, out, error)) in cases {
        let outcome = change_directory(rule.clone());
        assert_eq!((outcome.exit, outcome.out.as_str()), (exit, out), "{rule}: {outcome:?}");
        assert!(outcome.err.contains(error), "{rule}: {outcome:?}");
    }
}

/// Runs `body` in a child of this process, which a filter may bind or kill.
fn in_child(body: impl FnOnce() -> i32) -> Exit {
    let child = clone3(&Clone3::default(), body).expect("clone");
    wait(child.pidfd.as_fd()).expect("wait")
}

fn filter(profile: Value) -> Filter {
    let filter = Filter::compile(&serde_json::from_value(profile).expect("profile")).expect("compile");
    filter.check_kernel().expect("this kernel");
    filter
}

fn a_killed_thread_leaves_the_process() {
    for (action, expected) in [("KILL_THREAD", Exit::Code(7)), ("KILL_PROCESS", Exit::Signal(SIGSYS))] {
        let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["sched_yield"], "action": format!("SCMP_ACT_{action}")}]}));
        let exit = in_child(|| {
            // A thread that the kernel has ended never gave its result, which `join` takes for granted.
            std::panic::set_hook(Box::new(|_| ()));
            filter.load().expect("load");
            let thread = std::thread::spawn(std::thread::yield_now);
            let killed = catch_unwind(AssertUnwindSafe(|| thread.join())).is_err();
            if killed { 7 } else { 0 }
        });
        assert_eq!(exit, expected, "{action}");
    }
}

/// Whether moving to `offset` meets errno 77, the filter's and nobody else's.
fn refused(file: &File, offset: u64) -> bool {
    rustix::fs::seek(file, SeekFrom::Current(offset.cast_signed())) == Err(Errno::BADFD)
}

fn every_operator_compares_what_the_kernel_sees() {
    const BIG: u64 = 0x1_0000_0005;
    type Comparison = fn(u64, u64) -> bool;
    let operators: [(&str, Comparison); 7] = [
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("EQ", |a, b| a == b),
        ("GE", |a, b| a >= b),
        ("GT", |a, b| a > b),
        ("MASKED_EQ", |a, b| a & b == BIG & 0xffff_ffff_0000_0001),
    ];
    let samples = [0, 1, 4, 5, 6, BIG - 1, BIG, BIG + 1, 0x2_0000_0005, 1 << 40, u64::MAX - 1, u64::MAX];
    let file = File::open("/dev/null").expect("null");
    for (name, holds) in operators {
        for value in [5, BIG, 0xffff_ffff_0000_0001] {
            let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": [
                    {"index": 1, "value": value, "valueTwo": BIG & 0xffff_ffff_0000_0001, "op": format!("SCMP_CMP_{name}")}]}]}));
            let exit = in_child(|| {
                filter.load().expect("load");
                let wrong = samples.iter().position(|sample| refused(&file, *sample) != holds(*sample, value));
                wrong.map_or(0, |at| i32::try_from(at).expect("small") + 1)
            });
            assert_eq!(exit, Exit::Code(0), "{name} {value:#x}: the code is the place of the sample, from 1");
        }
    }
}

fn threads_are_bound_together_only_when_asked_for() {
    let file = File::open("/dev/null").expect("null");
    for (flags, expected) in [(json!([]), Exit::Code(0)), (json!(["SECCOMP_FILTER_FLAG_TSYNC"]), Exit::Code(1))] {
        let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
            "syscalls": [{"names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]}));
        let exit = in_child(|| {
            let (go, wait) = mpsc::channel();
            let file = file.try_clone().expect("clone");
            let earlier = std::thread::spawn(move || {
                wait.recv().expect("go");
                refused(&file, 1)
            });
            filter.load().expect("load");
            go.send(()).expect("send");
            i32::from(earlier.join().expect("thread"))
        });
        assert_eq!(exit, expected, "{flags}");
    }
}

/// A program for x86 that makes one call without arguments and exits with its errno: a whole ELF file.
fn call_of_x86(number: u32) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    let mut code = vec![0x31, 0xdb, 0x31, 0xc9, 0x31, 0xd2]; // xor ebx, ecx, edx
    code.push(0xb8); // mov eax, number
    code.extend(number.to_le_bytes());
    code.extend([0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3]); // int 0x80; neg eax; mov ebx, eax
    code.extend([0xb8, 1, 0, 0, 0, 0xcd, 0x80]); // exit
    let length = 84 + u32::try_from(code.len()).expect("short");
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2, 0, 3, 0]); // an executable, for the 386
    for word in [1, BASE + 84, 52, 0, 0] {
        file.extend(u32::to_le_bytes(word));
    }
    for half in [52, 32, 1, 0, 0, 0] {
        file.extend(u16::to_le_bytes(half));
    }
    for word in [1, 0, BASE, BASE, length, length, 5, 0x1000] {
        file.extend(u32::to_le_bytes(word));
    }
    file.extend(code);
    file
}

fn other_architecture() {
    let x86 = |name: &str| call_number(name, Arch::ScmpArchX86).expect("call");
    let errno = |name: &str, errno: i32| json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
    // `umount` has a number on x86 alone; that of `mkdir` on x86 is `sendfile` on x86_64.
    let rules = json!([errno("mkdir", 77), errno("umount", 78), errno("sendfile", 79)]);
    let both = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
    for (architectures, name, expected) in [
        (&both, "mkdir", Exit::Code(77)),
        (&both, "umount", Exit::Code(78)),
        (&both, "rmdir", Exit::Code(Errno::FAULT.raw_os_error())),
        (&json!(["SCMP_ARCH_X86_64"]), "mkdir", Exit::Signal(SIGSYS)),
    ] {
        let world = World::new(&["/call"]);
        let program = world.layer().join("call");
        std::fs::write(&program, call_of_x86(x86(name))).expect("write");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        if in_child(|| std::process::Command::new(&program).status().map_or(1, |_| 0)) != Exit::Code(0) {
            eprintln!("SKIPPED a test: this kernel runs no programs for x86");
            return;
        }
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rules});
        assert_eq!(with_profile(world, profile).run().exit, expected, "{name} with {architectures}");
    }
}

/// A program that takes listeners and answers what they hear, in a process of its own.
struct Agent {
    path: PathBuf,
    heard: PathBuf,
    child: Child,
}

impl Agent {
    /// Takes so many listeners and keeps what comes with them. A call ends as `decide` says by how many the same
    /// listener has heard of before.
    fn start(folder: &Path, listeners: usize, decide: fn(usize) -> Answer) -> Self {
        let (path, heard) = (folder.join("agent"), folder.join("heard"));
        let socket = UnixListener::bind(&path).expect("bind");
        let log = File::create(&heard).expect("heard");
        let child = clone3(&Clone3::default(), || {
            // A test that fails leaves it without anyone who would come.
            set_parent_death_signal(Some(SIGKILL)).expect("tie to the test");
            serve(&socket, log, listeners, decide);
            0
        });
        Self { path, heard, child: child.expect("clone") }
    }

    /// What came with each listener, once no process is left that they could hear.
    fn finish(&self) -> Vec<Value> {
        assert_eq!(wait(self.child.pidfd.as_fd()).expect("wait"), Exit::Code(0));
        let text = std::fs::read_to_string(&self.heard).expect("heard");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(self.child.pidfd.as_fd(), SIGKILL);
        let _ = wait(self.child.pidfd.as_fd());
    }
}

fn serve(socket: &UnixListener, mut log: File, expected: usize, decide: fn(usize) -> Answer) {
    let mut open: Vec<(OwnedFd, usize)> = Vec::new();
    let mut taken = 0;
    while taken < expected || !open.is_empty() {
        let mut set: Vec<PollFd<'_>> = open.iter().map(|(fd, _)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        if taken < expected {
            set.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        poll(&mut set, PollTimeout::NONE).expect("poll");
        let events: Vec<PollFlags> = set.iter().map(|fd| fd.revents().expect("known events")).collect();
        let (events, newcomer) = events.split_at(open.len());
        let mut events = events.iter();
        open.retain_mut(|(listener, heard)| {
            let events = events.next().expect("one for each");
            // Its caller may have been killed meanwhile.
            if events.contains(PollFlags::POLLIN)
                && let Ok(call) = receive(listener.as_fd())
            {
                let _ = answer(listener.as_fd(), call.id, decide(*heard));
                *heard += 1;
            }
            !events.contains(PollFlags::POLLHUP)
        });
        if newcomer.first().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
            let (message, listener) = take(socket);
            log.write_all(&message).and_then(|()| log.write_all(b"\n")).expect("keep");
            open.push((listener, 0));
            taken += 1;
        }
    }
}

fn take(socket: &UnixListener) -> (Vec<u8>, OwnedFd) {
    let (connection, _) = socket.accept().expect("accept");
    let mut buffer = vec![0; 65536];
    let (length, mut fds) = socket::receive(connection.as_fd(), &mut buffer).expect("receive");
    buffer.truncate(length);
    (buffer, fds.pop().expect("a listener"))
}

fn notified_calls_end_as_the_listener_says() {
    for no_new_privileges in [true, false] {
        let script = "cd /tmp; cd /etc; pwd; echo up; sleep 100";
        let world = World::shell(script).with(json!({"process": {"noNewPrivileges": no_new_privileges}}));
        let agent = Agent::start(world.directory.path(), 2, |heard| match heard {
            0 => Answer::Errno(Errno::XDEV.raw_os_error()),
            _ => Answer::Continue,
        });
        let flags = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"];
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "listenerPath": agent.path,
            "listenerMetadata": "for you", "syscalls": [{"names": ["chdir"], "action": "SCMP_ACT_NOTIFY"}]});
        let world = with_profile(world.with(json!({"annotations": {"a": "b"}})), profile);
        let live = world.start();
        live.wait_for("up");
        let execed = live.exec("cd /tmp; cd /etc; pwd");
        assert_eq!((execed.out.as_str(), live.output().as_str()), ("/etc\n", "/etc\nup\n"), "{execed:?}");
        let first = live.pid;
        pidfd_send_signal(live.pidfd.as_fd(), SIGKILL).expect("kill");
        let outcome = live.finish();
        for error in [execed.err, outcome.err] {
            assert!(error.contains("Invalid cross-device link"), "the listener's answer: {error}");
        }
        let mut heard = agent.finish();
        assert!(heard[1]["pid"].as_i64().is_some_and(|pid| pid > 1 && pid != i64::from(first)), "{heard:?}");
        heard[1]["pid"] = json!(0);
        let message = |pid: i32, mut state: Value| {
            state["ociVersion"] = json!("1.2.0");
            state["annotations"] = json!({"a": "b"});
            state["bundle"] = json!("");
            json!({"ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": pid, "metadata": "for you", "state": state})
        };
        let created = message(first, json!({"id": "test", "status": "creating", "pid": first}));
        assert_eq!(heard, [created, message(0, json!({"id": "", "status": "running"}))]);
    }
}

/// Also of all that the set-up of the process does under the filter: none of it may come before the listener is away.
fn a_listener_may_hear_of_every_call_but_one() {
    let every = [&DEFAULT_CAPABILITIES[..], &["CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_TIME"]].concat();
    let profile = default_profile(native(), &every);
    let names: BTreeSet<&String> = profile.syscalls().iter().flatten().flat_map(|rule| rule.names()).collect();
    let names: Vec<&String> = names.into_iter().filter(|name| *name != "sendmsg").collect();
    for no_new_privileges in [true, false] {
        let world = World::shell("echo done").with(json!({"process": {"noNewPrivileges": no_new_privileges}}));
        let agent = Agent::start(world.directory.path(), 1, |_| Answer::Continue);
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": agent.path,
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]});
        let world = with_profile(world, profile);
        let outcome = world.run();
        assert_eq!((outcome.exit, outcome.out.as_str()), (Exit::Code(0), "done\n"), "{outcome:?}");
        assert_eq!(agent.finish().len(), 1);
    }
}

fn a_container_whose_listener_nobody_takes_is_not_made() {
    let world = World::shell("true");
    let path = world.path("nobody");
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
        "syscalls": [{"names": ["chdir"], "action": "SCMP_ACT_NOTIFY"}]});
    let words = with_profile(world, profile).refusal();
    assert!(words.contains(path.to_str().expect("text")) && words.contains("No such file or directory"), "{words}");
}
