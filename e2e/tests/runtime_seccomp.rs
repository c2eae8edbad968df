//! `linux.seccomp`: what a filter does to the calls of a container, as these see it.

use std::process::{Child, Command, Stdio};

use portreeve_e2e::{Attempts, Bundle, Report, Runtime, prober, skipped, wait_until};
use serde_json::{Value, json};

/// The number of getpgid(2), which nothing else in the prober calls.
#[cfg(target_arch = "x86_64")]
const GETPGID: i64 = 121;
#[cfg(not(target_arch = "x86_64"))]
const GETPGID: i64 = 155;

/// The architecture of this machine, without which other runtimes do not know the calls that a profile is older than.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURE: &str = "SCMP_ARCH_AARCH64";

/// `getpgid` with this argument, as an operation to try.
fn getpgid(argument: i64) -> String {
    format!("call {GETPGID} {argument}")
}

/// A filter that lets everything pass but what `rules` say.
fn filter(rules: &Value) -> Value {
    json!({ "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules } } })
}

fn rule(action: &str) -> Value {
    json!({ "names": ["getpgid"], "action": action })
}

#[test]
fn each_action_does_what_it_says() {
    let Some(runtime) = Runtime::for_test("each_action_does_what_it_says") else { return };
    let with = |rule: Value| runtime.bundle(&["try", &getpgid(0)]).with(filter(&json!([rule])));
    let mut chosen = rule("SCMP_ACT_ERRNO");
    assert_eq!(runtime.attempts(&with(chosen.clone())).errno(&getpgid(0)), "EPERM");
    chosen["errnoRet"] = json!(5);
    assert_eq!(runtime.attempts(&with(chosen)).errno(&getpgid(0)), "EIO");
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"] {
        assert_eq!(runtime.attempts(&with(rule(action))).errno(&getpgid(0)), "ok", "{action}");
    }
    assert_eq!(runtime.attempts(&with(rule("SCMP_ACT_TRACE"))).errno(&getpgid(0)), "ENOSYS", "nobody traces it");
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let answer = runtime.run(&with(rule(action)), &[]);
        assert_eq!(answer.code, 128 + 31, "{action} ends it by SIGSYS: {}{}", answer.stdout, answer.stderr);
        assert_eq!(answer.stdout, "");
    }
}

/// An operator, the value, the other value, what is hit, what is not.
type Comparison<'c> = (&'c str, i64, i64, &'c [i64], &'c [i64]);

#[test]
fn each_operator_compares_all_64_bits() {
    let Some(runtime) = Runtime::for_test("each_operator_compares_all_64_bits") else { return };
    let high = 1_i64 << 32;
    let cases: [Comparison; 7] = [
        ("SCMP_CMP_EQ", high + 5, 0, &[high + 5], &[5, high, high + 6, 2 * high + 5]),
        ("SCMP_CMP_NE", high + 5, 0, &[5, high, high + 6], &[high + 5]),
        ("SCMP_CMP_LT", high + 5, 0, &[0, 6, high, high + 4], &[high + 5, high + 6, 2 * high]),
        ("SCMP_CMP_LE", high + 5, 0, &[0, 6, high + 5], &[high + 6, 2 * high]),
        ("SCMP_CMP_GE", high + 5, 0, &[high + 5, high + 6, 2 * high, -1], &[0, 6, high + 4]),
        ("SCMP_CMP_GT", high + 5, 0, &[high + 6, 2 * high, -1], &[0, 6, high + 5]),
        ("SCMP_CMP_MASKED_EQ", high + 0xf0, high + 0x10, &[high + 0x1f, high + 0x10], &[0x10, high + 0x20, high]),
    ];
    for (operator, value, other, hit, missed) in cases {
        let mut chosen = rule("SCMP_ACT_ERRNO");
        chosen["errnoRet"] = json!(5);
        chosen["args"] = json!([{ "index": 0, "value": value, "valueTwo": other, "op": operator }]);
        let operations: Vec<_> = hit.iter().chain(missed).map(|argument| getpgid(*argument)).collect();
        let arguments: Vec<_> = std::iter::once("try").chain(operations.iter().map(String::as_str)).collect();
        let attempts = runtime.attempts(&runtime.bundle(&arguments).with(filter(&json!([chosen]))));
        for argument in hit {
            assert_eq!(attempts.errno(&getpgid(*argument)), "EIO", "{operator} {value:#x} of {argument:#x}");
        }
        for argument in missed {
            assert_ne!(attempts.errno(&getpgid(*argument)), "EIO", "{operator} {value:#x} of {argument:#x}");
        }
    }
}

#[test]
fn arguments_of_a_rule_count_together_and_rules_of_a_call_each() {
    let test = "arguments_of_a_rule_count_together_and_rules_of_a_call_each";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let equal = |index: u32, value: u32| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let call = |first: u32, second: u32| format!("call {GETPGID} {first} {second}");
    let with = |rules: Value| {
        let operations = [call(7, 8), call(7, 9), call(9, 8)];
        let bundle = runtime.bundle(&["try", &operations[0], &operations[1], &operations[2]]).with(filter(&rules));
        let attempts = runtime.attempts(&bundle);
        operations.map(|operation| attempts.errno(&operation) == "EIO")
    };
    let chosen = |args: Value| json!({ "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": args });
    assert_eq!(with(json!([chosen(json!([equal(0, 7), equal(1, 8)]))])), [true, false, false]);
    assert_eq!(with(json!([chosen(json!([equal(0, 7)])), chosen(json!([equal(1, 8)]))])), [true, true, true]);
    // Two conditions on one argument can never both hold: other runtimes take each for a rule of its own.
    assert_eq!(with(json!([chosen(json!([equal(0, 7), equal(0, 9)]))])), [true, true, true]);
}

#[test]
fn a_list_of_what_is_allowed_refuses_the_rest() {
    let Some(runtime) = Runtime::for_test("a_list_of_what_is_allowed_refuses_the_rest") else { return };
    // Enough for `exit`, on both sides of the program's own start.
    let names = json!([
        "execve",
        "brk",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "readlinkat",
        "readlink",
        "getrandom",
        "mprotect",
        "poll",
        "ppoll",
        "rt_sigaction",
        "rt_sigprocmask",
        "sigaltstack",
        "mmap",
        "munmap",
        "mremap",
        "exit_group",
        "exit",
        "write",
        "writev",
        "read",
        "close",
        "fstat",
        "newfstatat",
        "fcntl",
        "sched_getaffinity",
        "gettid",
        "futex",
        "prctl",
        "capget",
        "capset",
        "close_range",
        "chdir",
        "setuid",
        "setgid",
        "setgroups",
        "setresuid",
        "setresgid",
        "openat",
        "openat2",
        "open",
        "sendmsg",
        "recvmsg",
        "sendto",
        "recvfrom",
        "accept",
        "accept4",
        "setgroups32",
        "fchdir",
        "getdents64",
        "statx",
        "fstatfs",
        "getpid",
        "kill",
        "tgkill",
        "epoll_create1",
        "epoll_ctl",
        "epoll_pwait",
        "nanosleep",
        "seccomp",
        "getppid",
        "faccessat",
        "faccessat2",
        "access",
        "stat",
        "lstat",
        "lseek",
        "madvise",
        "clock_gettime",
        "eventfd2",
        "sched_yield",
        "getcwd",
        "not_a_call_of_any_kernel",
    ]);
    let given = |default: Value| {
        let mut seccomp =
            json!({ "architectures": [ARCHITECTURE], "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] });
        seccomp.as_object_mut().unwrap().extend(default.as_object().unwrap().clone());
        json!({ "linux": { "seccomp": seccomp } })
    };
    let bundle = || runtime.bundle(&["try", &getpgid(0), "call 999999"]);
    let attempts = runtime.attempts(&bundle().with(given(json!({ "defaultAction": "SCMP_ACT_ERRNO" }))));
    assert_eq!(attempts.errno(&getpgid(0)), "EPERM");
    // A call from after the profile was written is one that the kernel does not have.
    assert_eq!(attempts.errno("call 999999"), "ENOSYS");
    let default = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5 });
    let attempts = runtime.attempts(&bundle().with(given(default)));
    assert_eq!(attempts.errno(&getpgid(0)), "EIO");
    let killed = runtime.run(&bundle().with(given(json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS" }))), &[]);
    assert_eq!(killed.code, 128 + 31);
}

#[test]
fn a_filter_is_loaded_with_and_without_new_privileges_for_any_user() {
    let test = "a_filter_is_loaded_with_and_without_new_privileges_for_any_user";
    let Some(runtime) = Runtime::for_test(test) else { return };
    for nnp in [true, false] {
        for uid in [0, 1000] {
            let change = json!({ "process": { "noNewPrivileges": nnp, "user": { "uid": uid, "gid": uid } } });
            let bundle = runtime.bundle(&["report"]).with(filter(&json!([rule("SCMP_ACT_ERRNO")]))).with(change);
            let report = runtime.report(&bundle);
            assert_eq!(report["seccomp"]["mode"], 2, "no_new_privs {nnp}, user {uid}");
            assert!(matches!(report["seccomp"]["filters"].as_u64(), Some(1) | None), "{}", report["seccomp"]);
            assert_eq!(report["no_new_privileges"], nnp);
        }
    }
    let report = runtime.report(&runtime.bundle(&["report"]));
    assert_eq!(report["seccomp"]["mode"], 0, "none without a word about one");
}

#[test]
fn a_process_that_is_entered_later_is_filtered_too() {
    let Some(runtime) = Runtime::for_test("a_process_that_is_entered_later_is_filtered_too") else { return };
    let bundle = runtime.bundle(&["wait"]).with(filter(&json!([rule("SCMP_ACT_ERRNO")])));
    runtime.start_waiting(&bundle);
    let answer = runtime.exec(&bundle, &[], &["/prober", "try", &getpgid(0)]);
    assert_eq!(Attempts::parse(&answer.ok()).errno(&getpgid(0)), "EPERM");
}

#[test]
fn each_flag_is_taken_and_no_other() {
    let Some(runtime) = Runtime::for_test("each_flag_is_taken_and_no_other") else { return };
    let with = |flags: Value| {
        let mut change = filter(&json!([rule("SCMP_ACT_ERRNO")]));
        change["linux"]["seccomp"]["flags"] = flags;
        runtime.run(&runtime.bundle(&["report"]).with(change), &[])
    };
    for flags in [
        json!([]),
        json!(["SECCOMP_FILTER_FLAG_TSYNC"]),
        json!(["SECCOMP_FILTER_FLAG_LOG"]),
        json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        // It is about waiting for a listener, and there is none.
        json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]),
    ] {
        assert_eq!(Report::parse(&with(flags.clone()).ok())["seccomp"]["mode"], 2, "{flags}");
    }
    assert_ne!(with(json!(["SECCOMP_FILTER_FLAG_NONSENSE"])).code, 0);
}

#[test]
fn a_filter_slows_programs_down_only_when_told_to() {
    let test = "a_filter_slows_programs_down_only_when_told_to";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // Without the flag the kernel may mitigate Speculative Store Bypass in a process that it filters.
    let bypass = |seccomp: Option<Value>| {
        let read = "read /proc/self/status";
        let mut bundle = runtime.bundle(&["try", read]);
        if let Some(flags) = seccomp {
            let mut change = filter(&json!([rule("SCMP_ACT_ERRNO")]));
            change["linux"]["seccomp"]["flags"] = flags;
            bundle = bundle.with(change);
        }
        let attempts = runtime.attempts(&bundle);
        let status = attempts.value(read).as_str().unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Speculation_Store_Bypass:"));
        line.map(|line| line.trim().to_owned())
    };
    let free = bypass(None);
    // Without a word about flags there is none either, as in runc.
    for flags in [json!(null), json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"])] {
        assert_eq!(bypass(Some(flags.clone())), free, "{flags}");
    }
    for flags in [json!([]), json!(["SECCOMP_FILTER_FLAG_LOG"])] {
        if bypass(Some(flags.clone())) == free {
            let line = free.as_deref().unwrap_or("not told");
            skipped(test, &format!("this kernel mitigates nothing for a filter with flags {flags}: it is {line}"));
        }
    }
}

#[test]
fn a_filter_that_makes_no_sense_is_refused() {
    let Some(runtime) = Runtime::for_test("a_filter_that_makes_no_sense_is_refused") else { return };
    let mut kill_with_errno = rule("SCMP_ACT_KILL");
    kill_with_errno["errnoRet"] = json!(5);
    let mut bad_operator = rule("SCMP_ACT_ERRNO");
    bad_operator["args"] = json!([{ "index": 0, "value": 1, "op": "SCMP_CMP_NEARLY" }]);
    let mut bad_index = rule("SCMP_ACT_ERRNO");
    bad_index["args"] = json!([{ "index": 6, "value": 1, "op": "SCMP_CMP_EQ" }]);
    let mut bad_errno = rule("SCMP_ACT_ERRNO");
    bad_errno["errnoRet"] = json!(5000);
    for rule in [
        rule("SCMP_ACT_NONSENSE"),
        json!({ "names": [], "action": "SCMP_ACT_ERRNO" }),
        kill_with_errno,
        bad_operator,
        bad_index,
        bad_errno,
    ] {
        let answer = runtime.run(&runtime.bundle(&["report"]).with(filter(&json!([rule]))), &[]);
        assert_ne!(answer.code, 0, "{rule}");
        assert_eq!(answer.stdout, "", "{rule}");
    }
    let unknown =
        json!({ "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"] } } });
    assert_ne!(runtime.run(&runtime.bundle(&["report"]).with(unknown), &[]).code, 0);
}

/// The other end of a filter's notifications: answers every call with `errno`.
struct Agent {
    child: Child,
    said: std::path::PathBuf,
    socket: String,
}

impl Agent {
    fn start(runtime: &Runtime, errno: i32) -> Self {
        let socket = runtime.world().path("agent.sock").display().to_string();
        let said = runtime.world().path("agent.said");
        let out = std::fs::File::create(&said).unwrap();
        let child = Command::new(prober())
            .args(["agent", &socket, &errno.to_string()])
            .stdout(Stdio::from(out))
            .spawn()
            .expect("the prober");
        let agent = Self { child, said, socket };
        wait_until("the agent listens", 20, || {
            if agent.said().starts_with("\"ready\"\n") { Ok(()) } else { Err(agent.said()) }
        });
        agent
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    fn filter(&self) -> Value {
        let mut change = filter(&json!([rule("SCMP_ACT_NOTIFY")]));
        change["linux"]["seccomp"]["listenerPath"] = json!(self.socket);
        change["linux"]["seccomp"]["listenerMetadata"] = json!("some metadata");
        change
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that has ended with its container is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_agent_is_told_of_calls_and_answers_them() {
    let Some(runtime) = Runtime::for_test("an_agent_is_told_of_calls_and_answers_them") else { return };
    for nnp in [true, false] {
        for (errno, expected) in [(5, "EIO"), (0, "ok")] {
            let agent = Agent::start(&runtime, errno);
            let bundle = runtime.bundle(&["try", &getpgid(0)]).with(agent.filter());
            let bundle = bundle.with(json!({ "process": { "noNewPrivileges": nnp } }));
            let attempts = runtime.attempts(&bundle);
            assert_eq!(attempts.errno(&getpgid(0)), expected, "no_new_privs {nnp}");
            let said = agent.said();
            let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let state = &lines[1];
            assert_eq!(state["fds"], json!(["seccompFd"]), "{state}");
            assert_eq!(state["metadata"], "some metadata");
            assert!(state["ociVersion"].is_string(), "{state}");
            assert_eq!(state["state"]["id"], bundle.id());
            assert_eq!(state["state"]["bundle"], bundle.path().to_str().unwrap());
            assert_eq!(state["state"]["status"], "creating");
            assert!(state["pid"].as_i64().is_some_and(|pid| pid > 1), "{state}");
            assert_eq!(lines[2..], [json!(GETPGID)], "{said}");
            drop(agent);
            std::fs::remove_file(runtime.world().path("agent.sock")).unwrap();
        }
    }
}

#[test]
fn each_flag_goes_with_notifications() {
    let Some(runtime) = Runtime::for_test("each_flag_goes_with_notifications") else { return };
    let features: Value = serde_json::from_str(&runtime.call(&["features"]).ok()).unwrap();
    let supported = &features["linux"]["seccomp"]["supportedFlags"];
    for flag in ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"].map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}")) {
        let agent = Agent::start(&runtime, 5);
        let mut change = agent.filter();
        change["linux"]["seccomp"]["flags"] = json!([flag]);
        let answer = runtime.run(&runtime.bundle(&["try", &getpgid(0)]).with(change), &[]);
        if supported.as_array().unwrap().contains(&json!(flag)) {
            assert_eq!(Attempts::parse(&answer.ok()).errno(&getpgid(0)), "EIO", "{flag}");
        } else {
            assert_ne!(answer.code, 0, "{flag}: {}", answer.stdout);
            assert!(answer.stderr.contains(&flag), "{flag}: {}", answer.stderr);
        }
        drop(agent);
        std::fs::remove_file(runtime.world().path("agent.sock")).unwrap();
    }
}

#[test]
fn an_agent_is_told_of_entered_processes_too() {
    let Some(runtime) = Runtime::for_test("an_agent_is_told_of_entered_processes_too") else { return };
    let first = Agent::start(&runtime, 0);
    let bundle: Bundle = runtime.bundle(&["wait"]).with(first.filter());
    runtime.start_waiting(&bundle);
    std::fs::remove_file(runtime.world().path("agent.sock")).unwrap();
    let second = Agent::start(&runtime, 5);
    let answer = runtime.exec(&bundle, &[], &["/prober", "try", &getpgid(0)]);
    assert_eq!(Attempts::parse(&answer.ok()).errno(&getpgid(0)), "EIO");
    let state: Value = serde_json::from_str(second.said().lines().nth(1).unwrap()).unwrap();
    assert_eq!(state["state"]["status"], "running");
    assert_ne!(state["pid"], state["state"]["pid"], "the process that was entered, of the container's");
}

#[test]
fn notifications_without_somebody_to_hear_them_are_refused() {
    let Some(runtime) = Runtime::for_test("notifications_without_somebody_to_hear_them_are_refused") else { return };
    let notify = filter(&json!([rule("SCMP_ACT_NOTIFY")]));
    let mut nobody = notify.clone();
    nobody["linux"]["seccomp"]["listenerPath"] = json!("/no/such/socket");
    let mut metadata = filter(&json!([rule("SCMP_ACT_ERRNO")]));
    metadata["linux"]["seccomp"]["listenerMetadata"] = json!("for nobody");
    let mut of_everything = notify.clone();
    of_everything["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_NOTIFY");
    let mut write = notify.clone();
    write["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["write"]);
    for change in [notify, nobody, metadata, of_everything, write] {
        let answer = runtime.run(&runtime.bundle(&["report"]).with(change.clone()), &[]);
        assert_ne!(answer.code, 0, "{change}");
        assert!(!answer.stderr.trim().is_empty(), "{change}");
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "{change}");
    }
}
