//! Any profile, any call: the program decides as the profile reads.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSyscall,
};
use portreeve_oci::seccomp::{ACTIONS, Filter, OPERATORS, call_number, default_profile};

#[path = "../../src/seccomp/compile/oracle.rs"]
mod oracle;

use oracle::{Call, X86, X86_64, decide, run};

/// Calls to draw from.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let profile = default_profile(Arch::ScmpArchX86_64, &["CAP_SYS_ADMIN"]);
    profile.syscalls().iter().flatten().next().expect("the first rule").names().clone()
});

#[derive(Debug, Arbitrary)]
struct Case {
    default: (u8, Option<u32>),
    rules: Vec<Rule>,
    call: (bool, Number),
    arguments: [u64; 6],
}

#[derive(Debug, Arbitrary)]
struct Rule {
    names: Vec<u16>,
    action: (u8, Option<u32>),
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Arbitrary)]
struct Condition {
    index: u8,
    value: u64,
    second: Option<u64>,
    operator: u8,
}

#[derive(Debug, Arbitrary)]
enum Number {
    Named(u16),
    Any(u32),
}

fn action(drawn: u8) -> LinuxSeccompAction {
    ACTIONS[usize::from(drawn) % ACTIONS.len()]
}

fn condition(drawn: &Condition) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default()
        .index(usize::from(drawn.index % 8))
        .value(drawn.value)
        .op(OPERATORS[usize::from(drawn.operator) % OPERATORS.len()]);
    let builder = if let Some(second) = drawn.second { builder.value_two(second) } else { builder };
    builder.build().expect("every field is there")
}

fuzz_target!(|case: Case| {
    let name = |drawn: u16| NAMES[usize::from(drawn) % NAMES.len()].clone();
    let rule = |drawn: &Rule| {
        let mut rule = LinuxSyscall::default();
        rule.set_names(drawn.names.iter().map(|drawn| name(*drawn)).collect());
        rule.set_action(action(drawn.action.0)).set_errno_ret(drawn.action.1);
        rule.set_args(drawn.conditions.as_ref().map(|list| list.iter().map(condition).collect()));
        rule
    };
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(action(case.default.0))
        .set_default_errno_ret(case.default.1)
        .set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]))
        .set_listener_path(Some("/run/agent".into()))
        .set_syscalls(Some(case.rules.iter().map(rule).collect()));
    let Ok(filter) = Filter::compile(&profile) else { return };
    let (architecture, kind) = if case.call.0 { (X86, Arch::ScmpArchX86) } else { (X86_64, Arch::ScmpArchX86_64) };
    let number = match case.call.1 {
        Number::Named(drawn) => call_number(&name(drawn), kind).unwrap_or(u32::MAX),
        Number::Any(number) => number,
    };
    let call = Call { architecture, number, arguments: case.arguments };
    assert_eq!(run(filter.program(), &call), decide(&profile, |name| call_number(name, kind), &call));
});
