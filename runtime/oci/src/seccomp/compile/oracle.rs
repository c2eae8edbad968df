//! What a profile means, worked out twice without the compiler: by reading its rules, and by running a program.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use portreeve_sys::seccomp::Instruction;

/// A call as a filter sees it, `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// `AUDIT_ARCH_*`.
    pub(crate) architecture: u32,
    pub(crate) number: u32,
    pub(crate) arguments: [u64; 6],
}

pub(crate) const X86_64: u32 = 0xc000_003e;
pub(crate) const X86: u32 = 0x4000_0003;
// The fuzz target, which includes this file, asks what one machine does.
#[cfg(test)]
pub(crate) const AARCH64: u32 = 0xc000_00b7;

/// What `profile` answers to `call`, one that is made on an architecture which it covers; `number` knows the names of
/// that architecture.
pub(crate) fn decide(profile: &LinuxSeccomp, number: impl Fn(&str) -> Option<u32>, call: &Call) -> u32 {
    const NO_SUCH_CALL: u32 = 0x0005_0026;
    if call.architecture == X86_64 && call.number >= 1 << 30 {
        return NO_SUCH_CALL;
    }
    let rules = || profile.syscalls().iter().flatten();
    let names = |names: &[String]| names.iter().any(|name| number(name) == Some(call.number));
    let mut about = rules().filter(|rule| names(rule.names())).map(|rule| (rule, rule.args().iter().flatten()));
    let conditional = about.clone().find(|(_, arguments)| arguments.clone().count() > 0 && matches(arguments, call));
    if let Some((rule, _)) = conditional.or_else(|| about.find(|(_, arguments)| arguments.clone().count() == 0)) {
        return word(rule.action(), rule.errno_ret());
    }
    let open = [LinuxSeccompAction::ScmpActAllow, LinuxSeccompAction::ScmpActLog, LinuxSeccompAction::ScmpActTrace];
    let highest = rules().flat_map(|rule| rule.names()).filter_map(|name| number(name)).max();
    if highest.is_some_and(|highest| call.number > highest) && !open.contains(&profile.default_action()) {
        return NO_SUCH_CALL;
    }
    word(profile.default_action(), profile.default_errno_ret())
}

/// All conditions, or any where two are about one argument.
fn matches<'a>(conditions: &(impl Iterator<Item = &'a LinuxSeccompArg> + Clone), call: &Call) -> bool {
    let mut indexes: Vec<usize> = conditions.clone().map(LinuxSeccompArg::index).collect();
    let all = indexes.len();
    indexes.sort_unstable();
    indexes.dedup();
    let narrow = call.architecture == X86;
    let mut each = conditions.clone().map(|condition| holds(condition, call.arguments[condition.index()], narrow));
    if indexes.len() == all { each.all(|holds| holds) } else { each.any(|holds| holds) }
}

/// A `narrow` argument has 32 bits, and so have the values that it is compared with.
fn holds(condition: &LinuxSeccompArg, argument: u64, narrow: bool) -> bool {
    let seen = |value: u64| if narrow { value & 0xffff_ffff } else { value };
    let (argument, value) = (seen(argument), seen(condition.value()));
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpNe => argument != value,
        LinuxSeccompOperator::ScmpCmpLt => argument < value,
        LinuxSeccompOperator::ScmpCmpLe => argument <= value,
        LinuxSeccompOperator::ScmpCmpEq => argument == value,
        LinuxSeccompOperator::ScmpCmpGe => argument >= value,
        LinuxSeccompOperator::ScmpCmpGt => argument > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => argument & value == seen(condition.value_two().unwrap_or(0)),
    }
}

fn word(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    let errno = errno.unwrap_or(1);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 + errno,
        LinuxSeccompAction::ScmpActNotify => 0x7fc0_0000,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 + errno,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
    }
}

/// What `program` answers to `call`. Panics where the kernel would refuse the program.
pub(crate) fn run(program: &[Instruction], call: &Call) -> u32 {
    let load = |offset: u32| match (offset, offset.wrapping_sub(16) / 4) {
        (0, _) => call.number,
        (4, _) => call.architecture,
        (_, half) => {
            let argument = call.arguments[usize::try_from(half / 2).expect("an argument")];
            let bytes = argument.to_le_bytes();
            let (low, high) = bytes.split_at(4);
            u32::from_le_bytes(if half % 2 == 0 { low } else { high }.try_into().expect("four bytes"))
        }
    };
    assert!(!program.is_empty() && program.len() <= 4096, "{} instructions", program.len());
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let now = program[at];
        let jump = |condition: bool| usize::from(if condition { now.jump_true } else { now.jump_false });
        at += 1;
        match now.code {
            0x20 => accumulator = load(now.operand),
            0x54 => accumulator &= now.operand,
            0x06 => return now.operand,
            0x05 => at += usize::try_from(now.operand).expect("a length"),
            0x15 => at += jump(accumulator == now.operand),
            0x25 => at += jump(accumulator > now.operand),
            0x35 => at += jump(accumulator >= now.operand),
            code => panic!("operation {code:#x}"),
        }
    }
}
