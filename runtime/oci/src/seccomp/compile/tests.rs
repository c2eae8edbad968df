//! The programs, run by a small interpreter of the operations that the compiler uses.

use super::super::{default_profile, syscalls::TABLE};
use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn run(program: &[Instruction], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
    let load = |offset: u32| match offset {
        0 => call,
        4 => architecture,
        _ => {
            let value = arguments[((offset - 16) / 8) as usize];
            let (low, high) = halves(value);
            if (offset - 16).is_multiple_of(8) { low } else { high }
        }
    };
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let now = program[at];
        let jump = |condition: bool| usize::from(if condition { now.jump_true } else { now.jump_false });
        at += 1;
        match now.code {
            LOAD => accumulator = load(now.operand),
            AND => accumulator &= now.operand,
            RETURN => return now.operand,
            JUMP => at += now.operand as usize,
            EQUAL => at += jump(accumulator == now.operand),
            GREATER => at += jump(accumulator > now.operand),
            GREATER_OR_EQUAL => at += jump(accumulator >= now.operand),
            code => panic!("operation {code:#x}"),
        }
    }
}

fn compiled(json: &str) -> Vec<Instruction> {
    let profile: LinuxSeccomp = serde_json::from_str(json).expect("profile");
    compile(&profile).expect("compile").program
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
    assert_eq!(run(&program, I386, 3, [0; 6]), KILL_PROCESS);
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
    assert_eq!(run(&program, I386, number("chmod", 1).expect("chmod"), [0; 6]), KILL_PROCESS);
}

#[test]
fn the_default_profile_refuses_what_leads_out_of_a_container() {
    let program = compile(&default_profile(Arch::ScmpArchX86_64, &["CAP_CHOWN"])).expect("compile").program;
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
    assert_eq!(run(&program, I386, number("mount", 1).expect("mount"), [0; 6]), ERRNO | 1);
    assert_eq!(run(&program, I386, number("read", 1).expect("read"), [0; 6]), ALLOW);
}

#[test]
fn a_capability_opens_its_calls() {
    let program =
        compile(&default_profile(Arch::ScmpArchX86_64, &["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"])).expect("compile").program;
    for name in ["mount", "unshare", "setns", "bpf", "chroot", "clone3"] {
        assert_eq!(call(&program, name, [0; 6]), ALLOW, "{name}");
    }
    assert_eq!(call(&program, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(call(&program, "reboot", [0; 6]), ERRNO | 1);
}

#[test]
fn every_call_of_the_table_is_found_by_the_search() {
    let profile = default_profile(Arch::ScmpArchX86_64, &[]);
    let program = compile(&profile).expect("compile").program;
    let allowed = profile.syscalls().iter().flatten().next().expect("first rule").names();
    for (name, ..) in TABLE {
        let Some(number) = number(name, 0) else { continue };
        if allowed.iter().any(|known| known == name) {
            assert_eq!(run(&program, X86_64, number, [0; 6]), ALLOW, "{name}");
        }
    }
}

#[test]
fn notify_is_refused_with_a_word() {
    let profile: LinuxSeccomp = serde_json::from_str(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    )
    .expect("profile");
    let error = compile(&profile).expect_err("refused");
    assert_eq!(error.to_string(), "linux.seccomp.syscalls[0]: SCMP_ACT_NOTIFY is not supported by this version");
}
