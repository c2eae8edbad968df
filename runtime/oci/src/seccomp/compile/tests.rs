//! The programs, run by a small interpreter of the operations that the compiler uses.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::profile::argument;
use super::super::{ACTIONS, OPERATORS, call_number, default_profile, syscalls::TABLE};
use super::oracle::{AARCH64, Call, X86, X86_64, decide};
use super::*;

fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    oracle::run(program, &Call { architecture, number, arguments })
}

/// For a machine of x86_64, whatever this one is; as all of these tests that do not say otherwise.
fn compiled(json: &str) -> Vec<Instruction> {
    compiled_for(Arch::ScmpArchX86_64, json)
}

fn compiled_for(native: Arch, json: &str) -> Vec<Instruction> {
    let profile: LinuxSeccomp = serde_json::from_str(json).expect("profile");
    compile(&profile, native).expect("compile").program
}

fn call(program: &[Instruction], name: &str, arguments: [u64; 6]) -> u32 {
    run(program, X86_64, number(name, 0).expect("call"), arguments)
}

#[test]
fn each_operator_compares_all_sixty_four_bits() {
    let big = 0x1_0000_0005_u64;
    let samples = [0, 4, 5, 6, big - 1, big, big + 1, 0x2_0000_0000, u64::MAX];
    type Comparison = fn(u64, u64) -> bool;
    let operators: [(&str, Comparison); 6] = [
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_GE", |a, b| a >= b),
        ("SCMP_CMP_GT", |a, b| a > b),
    ];
    for (operator, expected) in operators {
        for value in [5, big] {
            let program = compiled(&format!(
                r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["kill"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 1, "value": {value}, "op": "{operator}"}}]}}]}}"#
            ));
            for sample in samples {
                let allowed = call(&program, "kill", [9, sample, 0, 0, 0, 0]) == ALLOW;
                assert_eq!(allowed, expected(sample, value), "{sample:#x} {operator} {value:#x}");
            }
        }
    }
}

/// The registers of a program for x86 have 32 bits: whoever forbids -1 writes it with 64.
#[test]
fn arguments_of_x86_are_compared_with_the_lower_half_of_a_value() {
    let minus_one = u64::MAX;
    for (operator, hit, missed) in [
        ("SCMP_CMP_EQ", &[0xffff_ffff_u64][..], &[0, 1, 0xffff_fffe][..]),
        ("SCMP_CMP_NE", &[0, 0xffff_fffe], &[0xffff_ffff]),
        ("SCMP_CMP_GE", &[0xffff_ffff], &[0, 0xffff_fffe]),
        ("SCMP_CMP_LT", &[0, 0xffff_fffe], &[0xffff_ffff]),
    ] {
        let program = compiled(&format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "syscalls": [
            {{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{{"index": 0, "value": {minus_one}, "op": "{operator}"}}]}}]}}"#
        ));
        let kill = number("kill", 1).expect("call");
        for (arguments, expected) in [(hit, ERRNO | 1), (missed, ALLOW)] {
            for argument in arguments {
                let answer = run(&program, X86, kill, [*argument, 0, 0, 0, 0, 0]);
                assert_eq!(answer, expected, "{operator} of {argument:#x}");
            }
        }
    }
}

#[test]
fn conditions_of_one_rule_all_count_and_rules_are_alternatives() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "syscalls": [
        {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 15, "op": "SCMP_CMP_EQ"}]},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": [{"index": 1, "value": 240, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#,
    );
    assert_eq!(call(&program, "kill", [1, 15, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&program, "kill", [2, 15, 0, 0, 0, 0]), ERRNO | 13);
    assert_eq!(call(&program, "kill", [2, 0x1f, 0, 0, 0, 0]), ERRNO | 99);
    assert_eq!(call(&program, "read", [0; 6]), ERRNO | 13);
}

#[test]
fn two_conditions_on_one_argument_are_alternatives() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    for (first, expected) in [(1, ALLOW), (2, ALLOW), (3, ERRNO | 1)] {
        assert_eq!(call(&program, "kill", [first, 0, 0, 0, 0, 0]), expected);
    }
}

#[test]
fn calls_beyond_the_profile_do_not_exist_and_another_architecture_is_killed() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(call(&program, "read", [0; 6]), ALLOW);
    assert_eq!(call(&program, "write", [0; 6]), ERRNO | 1, "known and not allowed");
    assert_eq!(run(&program, X86_64, 450, [0; 6]), ERRNO | ENOSYS, "newer than the profile");
    assert_eq!(run(&program, X86_64, X32_BIT, [0; 6]), ERRNO | ENOSYS, "x32");
    assert_eq!(run(&program, X86, 3, [0; 6]), KILL_PROCESS);
}

#[test]
fn a_profile_that_allows_by_default_denies_what_it_names() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    assert_eq!(call(&program, "chmod", [0; 6]), KILL_PROCESS);
    assert_eq!(call(&program, "read", [0; 6]), ALLOW);
    assert_eq!(run(&program, X86_64, 9999, [0; 6]), ALLOW);
    for x32 in [X32_BIT, X32_BIT | 59, u32::MAX] {
        assert_eq!(run(&program, X86_64, x32, [0; 6]), ERRNO | ENOSYS, "{x32:#x}");
    }
    assert_eq!(run(&program, X86, number("chmod", 1).expect("chmod"), [0; 6]), KILL_PROCESS);
}

#[test]
fn the_default_profile_refuses_what_leads_out_of_a_container() {
    let program = default_program(Arch::ScmpArchX86_64, &["CAP_CHOWN"]);
    let refused = [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "kexec_load",
        "io_uring_setup",
        "userfaultfd",
        "reboot",
        "chroot",
    ];
    for name in refused {
        assert_eq!(call(&program, name, [0; 6]), ERRNO | 1, "{name}");
    }
    for name in ["read", "execve", "openat", "futex", "ptrace", "clone"] {
        assert_eq!(call(&program, name, [0; 6]), ALLOW, "{name}");
    }
    assert_eq!(call(&program, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), ERRNO | 1, "a user namespace");
    assert_eq!(call(&program, "clone3", [0; 6]), ERRNO | ENOSYS);
    assert_eq!(call(&program, "socket", [2, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&program, "socket", [40, 0, 0, 0, 0, 0]), ERRNO | 1);
    assert_eq!(call(&program, "socket", [0x1_0000_0028, 0, 0, 0, 0, 0]), ERRNO | 1, "hidden by the upper half");
    assert_eq!(call(&program, "personality", [8, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&program, "personality", [0x0040_0000, 0, 0, 0, 0, 0]), ERRNO | 1);
    assert_eq!(run(&program, X86, number("mount", 1).expect("mount"), [0; 6]), ERRNO | 1);
    assert_eq!(run(&program, X86, number("read", 1).expect("read"), [0; 6]), ALLOW);
}

/// By the numbers of asm-generic/unistd.h, not by those of our table.
#[test]
fn the_default_profile_of_aarch64_refuses_what_leads_out_of_a_container() {
    let program = default_program(Arch::ScmpArchAarch64, &["CAP_CHOWN"]);
    let answer = |number: u32, first: u64| run(&program, AARCH64, number, [first, 0, 0, 0, 0, 0]);
    for (name, number) in [
        ("chroot", 51),
        ("mount", 40),
        ("unshare", 97),
        ("kexec_load", 104),
        ("reboot", 142),
        ("keyctl", 219),
        ("setns", 268),
        ("bpf", 280),
        ("userfaultfd", 282),
        ("io_uring_setup", 425),
    ] {
        assert_eq!(answer(number, 0), ERRNO | 1, "{name}");
    }
    for (name, number) in
        [("openat", 56), ("read", 63), ("futex", 98), ("ptrace", 117), ("clone", 220), ("execve", 221)]
    {
        assert_eq!(answer(number, 0), ALLOW, "{name}");
    }
    let (personality, socket, clone, clone3) = (92, 198, 220, 435);
    assert_eq!(answer(clone, 0x1000_0000), ERRNO | 1, "a user namespace");
    assert_eq!(answer(clone3, 0), ERRNO | ENOSYS);
    assert_eq!((answer(socket, 2), answer(socket, 40), answer(socket, 0x1_0000_0028)), (ALLOW, ERRNO | 1, ERRNO | 1));
    assert_eq!((answer(personality, 8), answer(personality, 0x0040_0000)), (ALLOW, ERRNO | 1));
    let administrator = default_program(Arch::ScmpArchAarch64, &["CAP_SYS_ADMIN"]);
    for number in [40, 97, 268, 280, clone3] {
        assert_eq!(run(&administrator, AARCH64, number, [0; 6]), ALLOW, "{number}");
    }
}

#[test]
fn a_capability_opens_its_calls() {
    let program = default_program(Arch::ScmpArchX86_64, &["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]);
    for name in ["mount", "unshare", "setns", "bpf", "chroot", "clone3"] {
        assert_eq!(call(&program, name, [0; 6]), ALLOW, "{name}");
    }
    assert_eq!(call(&program, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&program, "reboot", [0; 6]), ERRNO | 1);
}

/// The default profile on a machine of this architecture.
fn default_program(native: Arch, capabilities: &[&str]) -> Vec<Instruction> {
    compile(&default_profile(native, capabilities), native).expect("compile").program
}

#[test]
fn every_call_of_the_table_is_found_by_the_search() {
    for (architecture, kind, native) in MACHINES {
        let profile = default_profile(native, &[]);
        let program = compile(&profile, native).expect("compile").program;
        let allowed = profile.syscalls().iter().flatten().next().expect("first rule").names();
        for (name, ..) in TABLE {
            let Some(number) = call_number(name, kind) else { continue };
            if allowed.iter().any(|known| known == name) {
                assert_eq!(run(&program, architecture, number, [0; 6]), ALLOW, "{name} of {kind}");
            }
        }
    }
}

/// What a call can be of, and the machine on which it is made: the kernel's number and the name of its architecture,
/// and the architecture of the machine.
const MACHINES: [(u32, Arch, Arch); 3] = [
    (X86_64, Arch::ScmpArchX86_64, Arch::ScmpArchX86_64),
    (X86, Arch::ScmpArchX86, Arch::ScmpArchX86_64),
    (AARCH64, Arch::ScmpArchAarch64, Arch::ScmpArchAarch64),
];

#[test]
fn a_machine_of_aarch64_runs_its_own_calls_alone() {
    // Numbers by the kernel's own list, asm-generic/unistd.h: what they are for x86_64 are other calls there.
    let (read, write, openat, mount, kill, clone) = (63, 64, 56, 40, 129, 220);
    for listed in ["", r#""architectures": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],"#] {
        let program = compiled_for(
            Arch::ScmpArchAarch64,
            &format!(
                r#"{{"defaultAction": "SCMP_ACT_ERRNO", {listed} "syscalls": [
                {{"names": ["read", "open", "openat"], "action": "SCMP_ACT_ALLOW"}},
                {{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [
                {{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}}]}},
                {{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
                {{"index": 0, "value": 268435456, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}}]}}]}}"#
            ),
        );
        let answer = |number: u32, first: u64| run(&program, AARCH64, number, [first, 0, 0, 0, 0, 0]);
        assert_eq!([read, openat].map(|number| answer(number, 0)), [ALLOW; 2]);
        assert_eq!([write, mount, 0, 2].map(|number| answer(number, 0)), [ERRNO | 1; 4]);
        assert_eq!((answer(clone, 17), answer(clone, 0x1000_0011)), (ALLOW, ERRNO | 1));
        assert_eq!((answer(kill, 5), answer(kill, 0x1_0000_0005)), (ALLOW, ERRNO | 1), "its arguments have 64 bits");
        // There is no second interface with numbers of its own.
        assert_eq!([clone + 1, X32_BIT, X32_BIT | read].map(|number| answer(number, 0)), [ERRNO | ENOSYS; 3]);
        // 32-bit ARM, whose programs such a machine may run, and what it cannot run.
        for other in [0x4000_0028, X86_64, X86] {
            assert_eq!(run(&program, other, read, [0; 6]), KILL_PROCESS, "{other:#x}");
        }
    }
    // Nor does a machine of x86_64 run those of the other.
    let program = compiled(r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_AARCH64"]}"#);
    assert_eq!(run(&program, AARCH64, read, [0; 6]), KILL_PROCESS);
    assert_eq!(run(&program, X86_64, 0, [0; 6]), ALLOW);
}

#[test]
fn the_x32_interface_is_none_of_aarch64() {
    let program = compiled_for(Arch::ScmpArchAarch64, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
    assert_eq!(run(&program, AARCH64, X32_BIT, [0; 6]), ALLOW, "the kernel answers itself: there is no such call");
}

fn refusal(json: &str) -> String {
    let profile: LinuxSeccomp = serde_json::from_str(json).expect("profile");
    compile(&profile, Arch::ScmpArchX86_64).expect_err("refused").to_string()
}

#[test]
fn every_action_becomes_the_kernels() {
    let actions = [
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("KILL_PROCESS", KILL_PROCESS),
        ("TRAP", 0x0003_0000),
        ("ERRNO", 0x0005_0001),
        ("TRACE", 0x7ff0_0001),
        ("LOG", 0x7ffc_0000),
        ("ALLOW", 0x7fff_0000),
        ("NOTIFY", 0x7fc0_0000),
    ];
    assert_eq!(actions.len(), ACTIONS.len());
    for (name, word) in actions {
        let program = compiled(&format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
            "syscalls": [{{"names": ["chmod"], "action": "SCMP_ACT_{name}"}}]}}"#
        ));
        assert_eq!(call(&program, "chmod", [0; 6]), word, "{name}");
    }
}

#[test]
fn an_errno_goes_with_the_two_actions_that_answer_with_one() {
    let with = |action: &str, errno: u32| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {{"names": ["read"], "action": "SCMP_ACT_LOG"}},
            {{"names": ["chmod"], "action": "SCMP_ACT_{action}", "errnoRet": {errno}}}]}}"#
        )
    };
    assert_eq!(call(&compiled(&with("ERRNO", 38)), "chmod", [0; 6]), ERRNO | 38);
    assert_eq!(call(&compiled(&with("TRACE", 65535)), "chmod", [0; 6]), TRACE | 65535);
    for action in ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "LOG", "ALLOW", "NOTIFY"] {
        assert_eq!(
            refusal(&with(action, 1)),
            format!("linux.seccomp.syscalls[1].errnoRet: SCMP_ACT_{action} answers with no errno: leave the field out")
        );
    }
    assert_eq!(refusal(&with("ERRNO", 4096)), "linux.seccomp.syscalls[1].errnoRet: 4096 is above 4095");
    assert_eq!(refusal(&with("TRACE", 65536)), "linux.seccomp.syscalls[1].errnoRet: 65536 is above 65535");
    assert_eq!(
        refusal(r#"{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}"#),
        "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW answers with no errno: leave the field out"
    );
}

#[test]
fn a_rule_without_an_errno_answers_eperm_whatever_the_default_is() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}"#,
    );
    assert_eq!(call(&program, "chmod", [0; 6]), ERRNO | 1);
    assert_eq!(call(&program, "read", [0; 6]), ERRNO | 13);
}

#[test]
fn a_rule_that_names_nothing_is_refused() {
    for names in ["[]", r#"["read", ""]"#] {
        let profile = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": {names}, "action": "SCMP_ACT_ERRNO"}}]}}"#
        );
        assert_eq!(refusal(&profile), "linux.seccomp.syscalls[0].names: names no call");
    }
}

#[test]
fn an_argument_that_does_not_exist_is_refused() {
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
        "args": [{"index": 5, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
    let expected = "linux.seccomp.syscalls[0].args[1].index: argument 6 does not exist, 0 to 5 do";
    assert_eq!(refusal(profile), expected);
}

#[test]
fn names_that_no_kernel_knows_and_architectures_that_cannot_run_are_ignored() {
    let program = compiled(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_S390X", "SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["s390_runtime_instr", "read"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(call(&program, "read", [0; 6]), ALLOW);
}

#[test]
fn a_tracer_answers_for_calls_beyond_the_profile_too() {
    for (action, errno) in [("TRACE", TRACE | 1), ("LOG", LOGGED), ("ALLOW", ALLOW), ("KILL", ERRNO | ENOSYS)] {
        let program = compiled(&format!(
            r#"{{"defaultAction": "SCMP_ACT_{action}", "syscalls": [{{"names": ["read"], "action": "SCMP_ACT_TRAP"}}]}}"#
        ));
        assert_eq!(run(&program, X86_64, 450, [0; 6]), errno, "{action}");
    }
}

#[test]
fn notifications_need_a_listener_and_leave_the_call_that_hands_it_over_alone() {
    let with = |default: &str, name: &str, path: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_{default}", {path}
            "syscalls": [{{"names": ["read", "{name}"], "action": "SCMP_ACT_NOTIFY"}}]}}"#
        )
    };
    let path = r#""listenerPath": "/run/agent","#;
    assert_eq!(
        refusal(&with("NOTIFY", "chmod", path)),
        "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY would put off the very calls that hand the listener over; \
         name calls instead"
    );
    assert_eq!(
        refusal(&with("ALLOW", "sendmsg", path)),
        "linux.seccomp.syscalls[0].names: SCMP_ACT_NOTIFY cannot be used for sendmsg, which hands the listener over"
    );
    assert_eq!(
        refusal(&with("ALLOW", "chmod", "")),
        "linux.seccomp.listenerPath: is missing, and SCMP_ACT_NOTIFY needs it"
    );
    assert_eq!(
        refusal(r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "for nobody"}"#),
        "linux.seccomp.listenerMetadata: goes to listenerPath, which is missing"
    );
    let profile = serde_json::from_str(&with("ALLOW", "chmod", path)).expect("profile");
    let filter = compile(&profile, Arch::ScmpArchX86_64).expect("compile");
    assert_eq!(filter.listener().expect("listener").path(), std::path::Path::new("/run/agent"));
}

#[test]
fn flags_become_the_kernels() {
    let flags = |listed: &str, action: &str| {
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", {listed} "listenerPath": "/run/agent",
            "syscalls": [{{"names": ["chmod"], "action": "SCMP_ACT_{action}"}}]}}"#
        );
        compile(&serde_json::from_str(&json).expect("profile"), Arch::ScmpArchX86_64).expect("compile").flags
    };
    let all = r#""flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"#;
    assert_eq!(flags("", "ERRNO"), SPEC_ALLOW);
    assert_eq!(flags(r#""flags": [],"#, "ERRNO"), 0);
    assert_eq!(flags(all, "ERRNO"), LOG | TSYNC | SPEC_ALLOW);
    assert_eq!(flags("", "NOTIFY"), SPEC_ALLOW | NEW_LISTENER);
    assert_eq!(flags(all, "NOTIFY"), LOG | TSYNC | TSYNC_ESRCH | SPEC_ALLOW | NEW_LISTENER | WAIT_KILLABLE_RECV);
}

/// Without the bound this would take minutes and gigabytes.
#[test]
fn a_profile_that_multiplies_itself_is_refused_at_once() {
    let argument = LinuxSeccompArg::default();
    let mut rule = LinuxSyscall::default();
    rule.set_names(vec!["read".into(); 100_000]);
    rule.set_args(Some(vec![argument; 20_000]));
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow);
    profile.set_syscalls(Some(vec![rule]));
    let error = compile(&profile, Arch::ScmpArchX86_64).expect_err("refused").to_string();
    assert!(error.contains("more than the 4096 instructions"), "{error}");
}

fn values() -> impl Strategy<Value = u64> {
    const EDGES: [u64; 8] = [0, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, 0x7fff_ffff_ffff_ffff, u64::MAX];
    prop_oneof![select(EDGES.as_slice()), 0..8_u64, any::<u64>()]
}

fn conditions() -> impl Strategy<Value = LinuxSeccompArg> {
    (0..6_usize, values(), option::of(values()), select(OPERATORS.as_slice()))
        .prop_map(|(index, value, two, operator)| argument(index, value, two, operator))
}

/// Names from one neighbourhood of the table, so that rules meet, and one that does not exist.
fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..24_usize).prop_map(|at| TABLE[at].0.to_owned()),
        (0..TABLE.len()).prop_map(|at| TABLE[at].0.to_owned()),
        Just("no_such_call".to_owned())
    ]
}

fn errno_of(action: LinuxSeccompAction, errno: Option<u32>) -> Option<u32> {
    errno.filter(|_| matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace))
}

fn rules() -> impl Strategy<Value = LinuxSyscall> {
    let action = select(ACTIONS.as_slice());
    (vec(names(), 1..5), action, option::of(0..4096_u32), option::of(vec(conditions(), 0..4))).prop_map(
        |(names, action, errno, arguments)| {
            let mut rule = LinuxSyscall::default();
            rule.set_names(
                names.into_iter().map(|name| if name == "sendmsg" { "read".into() } else { name }).collect(),
            );
            rule.set_action(action).set_errno_ret(errno_of(action, errno)).set_args(arguments);
            rule
        },
    )
}

fn profiles() -> impl Strategy<Value = LinuxSeccomp> {
    let defaults =
        ACTIONS.into_iter().filter(|action| *action != LinuxSeccompAction::ScmpActNotify).collect::<Vec<_>>();
    (select(defaults), option::of(0..4096_u32), vec(rules(), 0..12)).prop_map(|(action, errno, rules)| {
        let mut profile = LinuxSeccomp::default();
        profile
            .set_default_action(action)
            .set_default_errno_ret(errno_of(action, errno))
            .set_architectures(Some(MACHINES.map(|(_, kind, _)| kind).to_vec()))
            .set_listener_path(Some("/run/agent".into()))
            .set_syscalls(Some(rules));
        profile
    })
}

proptest! {
    #[test]
    fn a_program_decides_as_its_profile_reads(
        profile in profiles(),
        (architecture, kind, native) in select(MACHINES.as_slice()),
        name in names(),
        other in option::weighted(0.2, any::<u32>()),
        drawn in proptest::array::uniform6(values()),
        // A value of the profile itself, so that conditions are met.
        meet in any::<proptest::sample::Index>(),
    ) {
        let number = |name: &str| call_number(name, kind);
        let mut call =
            Call { architecture, number: other.or(number(&name)).unwrap_or(u32::MAX), arguments: drawn };
        let conditions: Vec<LinuxSeccompArg> =
            profile.syscalls().iter().flatten().flat_map(|rule| rule.args().clone().unwrap_or_default()).collect();
        let program = compile(&profile, native).expect("compile").program;
        prop_assert_eq!(oracle::run(&program, &call), decide(&profile, number, &call));
        let foreign = if native == Arch::ScmpArchAarch64 { X86_64 } else { AARCH64 };
        prop_assert_eq!(oracle::run(&program, &Call { architecture: foreign, ..call }), KILL_PROCESS);
        if !conditions.is_empty() {
            let condition = meet.get(&conditions);
            call.arguments[condition.index()] = condition.value();
            prop_assert_eq!(oracle::run(&program, &call), decide(&profile, number, &call));
        }
    }

    /// Programs of one call with many conditions: the tree's leaves.
    #[test]
    fn the_conditions_of_one_call_decide_in_their_order(
        mut rules in vec(rules(), 1..10),
        (architecture, kind, native) in select(MACHINES.as_slice()),
        drawn in proptest::array::uniform6(0..8_u64),
    ) {
        for rule in &mut rules {
            rule.set_names(vec!["kill".into()]);
        }
        let mut profile = LinuxSeccomp::default();
        profile.set_listener_path(Some("/run/agent".into())).set_syscalls(Some(rules));
        profile.set_architectures(Some(vec![kind]));
        let number = |name: &str| call_number(name, kind);
        let call = Call { architecture, number: number("kill").expect("kill"), arguments: drawn };
        let program = compile(&profile, native).expect("compile").program;
        prop_assert_eq!(oracle::run(&program, &call), decide(&profile, number, &call));
    }
}
