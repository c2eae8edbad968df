//! From an OCI profile to one BPF program.
//!
//! ```text
//!   load architecture
//!   for each architecture: equal? -> load number -> binary search over ranges of numbers with one outcome
//!                                                     |-> return action
//!                                                     +-> conditions: compare arguments, return, else the next
//!   another architecture -> kill the process
//! ```

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use portreeve_sys::seccomp::{Instruction, LOG, SPEC_ALLOW, TSYNC};

use super::syscalls::number;
use super::{Filter, SeccompError, native};

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const GREATER_OR_EQUAL: u16 = 0x35;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
/// Numbers of the x32 interface have this bit.
const X32_BIT: u32 = 0x4000_0000;
/// The kernel takes no longer program (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// What happens to a call: the conditions in order, then the answer without one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    conditional: Vec<(Vec<LinuxSeccompArg>, u32)>,
    otherwise: u32,
}

impl Outcome {
    fn always(action: u32) -> Self {
        Self { conditional: Vec::new(), otherwise: action }
    }
}

pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret(), None, "defaultAction")?;
    let mut program = vec![step(LOAD, OFFSET_ARCHITECTURE)];
    for (audit, column) in architectures(profile)? {
        let section = section(profile, default, column)?;
        // Long jump over the section, for a program of more than 255 steps.
        program.push(branch(EQUAL, audit, 1, 0));
        program.push(step(JUMP, length(&section)?));
        program.extend(section);
    }
    program.push(step(RETURN, KILL_PROCESS));
    if program.len() > MAX_INSTRUCTIONS {
        let reason =
            format!("the program would have {} instructions, the kernel takes {MAX_INSTRUCTIONS}", program.len());
        return Err(SeccompError::new("syscalls", reason));
    }
    Ok(Filter { program, flags: flags(profile)? })
}

fn flags(profile: &LinuxSeccomp) -> Result<u32, SeccompError> {
    // Without a word the speculation mitigation, which makes programs slow, stays off, as in runc.
    let Some(list) = profile.flags() else { return Ok(SPEC_ALLOW) };
    list.iter().try_fold(0, |flags, flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => Ok(flags | LOG),
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Ok(flags | TSYNC),
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Ok(flags | SPEC_ALLOW),
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => Err(SeccompError::new(
            "flags",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for SCMP_ACT_NOTIFY, which this version does not support",
        )),
    })
}

/// The kernel's number of each architecture and its column of the table; the native one is always among them.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<(u32, usize)>, SeccompError> {
    let mut list = vec![column_of(native())?];
    for (index, architecture) in profile.architectures().iter().flatten().enumerate() {
        let runnable = match architecture {
            Arch::ScmpArchNative | Arch::ScmpArchX32 => continue, // x32 is refused within the x86_64 section
            Arch::ScmpArchX86 | Arch::ScmpArchX86_64 => cfg!(target_arch = "x86_64"),
            Arch::ScmpArchAarch64 => cfg!(target_arch = "aarch64"),
            // What this machine cannot run cannot call either.
            _ => false,
        };
        if runnable {
            let entry = column_of(*architecture)
                .map_err(|_| SeccompError::new(format!("architectures[{index}]"), "is unknown"))?;
            if !list.contains(&entry) {
                list.push(entry);
            }
        }
    }
    Ok(list)
}

fn column_of(architecture: Arch) -> Result<(u32, usize), SeccompError> {
    match architecture {
        Arch::ScmpArchX86_64 => Ok((0xc000_003e, 0)),
        Arch::ScmpArchX86 => Ok((0x4000_0003, 1)),
        Arch::ScmpArchAarch64 => Ok((0xc000_00b7, 2)),
        other => Err(SeccompError::new("architectures", format!("{other} is not supported"))),
    }
}

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    default_errno: Option<u32>,
    field: &str,
) -> Result<u32, SeccompError> {
    let low = || {
        let errno = errno.or(default_errno).unwrap_or(1);
        if errno > 0xffff { Err(SeccompError::new(field, format!("errno {errno} is above 65535"))) } else { Ok(errno) }
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => ERRNO | low()?,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | low()?,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(SeccompError::new(field, "SCMP_ACT_NOTIFY is not supported by this version"));
        }
    })
}

/// The program for one architecture, from loading the number on; every path returns.
fn section(profile: &LinuxSeccomp, default: u32, column: usize) -> Result<Vec<Instruction>, SeccompError> {
    let outcomes = outcomes(profile, default, column)?;
    let mut ranges: Vec<(u32, Outcome)> = vec![(0, Outcome::always(default))];
    let mut put = |from: u32, outcome: Outcome| match ranges.last_mut() {
        Some((start, last)) if *start == from => *last = outcome,
        Some((_, last)) if *last == outcome => {}
        _ => ranges.push((from, outcome)),
    };
    for (number, outcome) in &outcomes {
        put(*number, outcome.clone());
        put(number + 1, Outcome::always(default));
    }
    if let Some((highest, _)) = outcomes.last_key_value()
        && default != ALLOW
        && default != 0x7ffc_0000
    {
        put(highest + 1, Outcome::always(ERRNO | ENOSYS));
    }
    if column == 0 {
        put(X32_BIT, Outcome::always(ERRNO | ENOSYS));
    }
    merge(&mut ranges);
    let mut program = vec![step(LOAD, OFFSET_NUMBER)];
    program.extend(search(&ranges)?);
    Ok(program)
}

/// Neighbours with the same outcome become one.
fn merge(ranges: &mut Vec<(u32, Outcome)>) {
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
}

/// Every named call with its outcome; conditions first, and of what has none the first.
fn outcomes(profile: &LinuxSeccomp, default: u32, column: usize) -> Result<BTreeMap<u32, Outcome>, SeccompError> {
    let mut conditional: BTreeMap<u32, Vec<(Vec<LinuxSeccompArg>, u32)>> = BTreeMap::new();
    let mut plain: BTreeMap<u32, u32> = BTreeMap::new();
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("syscalls[{index}]");
        let action = action(rule.action(), rule.errno_ret(), profile.default_errno_ret(), &field)?;
        let arguments = rule.args().as_deref().unwrap_or_default();
        if let Some(bad) = arguments.iter().find(|argument| argument.index() > 5) {
            return Err(SeccompError::new(field, format!("argument {} does not exist, 0 to 5 do", bad.index())));
        }
        for name in rule.names() {
            let Some(number) = number(name, column) else { continue };
            if arguments.is_empty() {
                plain.entry(number).or_insert(action);
                continue;
            }
            let rules = conditional.entry(number).or_default();
            let mut indexes: Vec<usize> = arguments.iter().map(LinuxSeccompArg::index).collect();
            indexes.sort_unstable();
            if indexes.is_sorted_by(|a, b| a < b) {
                rules.push((arguments.to_vec(), action));
            } else {
                // Two conditions on one argument: any of them counts, as runc has it.
                rules.extend(arguments.iter().map(|argument| (vec![*argument], action)));
            }
        }
    }
    let mut outcomes: BTreeMap<u32, Outcome> =
        plain.iter().map(|(number, action)| (*number, Outcome::always(*action))).collect();
    for (number, rules) in conditional {
        outcomes.entry(number).or_insert_with(|| Outcome::always(default)).conditional = rules;
    }
    Ok(outcomes)
}

/// A balanced tree of comparisons; `ranges` are (first number, outcome) in order.
fn search(ranges: &[(u32, Outcome)]) -> Result<Vec<Instruction>, SeccompError> {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    match (low, high) {
        ([], [(_, outcome)]) => leaf(outcome),
        (_, [(pivot, _), ..]) => {
            let (left, right) = (search(low)?, search(high)?);
            let skip = length(&left)?;
            let mut program = match u8::try_from(skip) {
                Ok(skip) => vec![branch(GREATER_OR_EQUAL, *pivot, skip, 0)],
                Err(_) => vec![branch(GREATER_OR_EQUAL, *pivot, 0, 1), step(JUMP, skip)],
            };
            program.extend(left);
            program.extend(right);
            Ok(program)
        }
        (_, []) => Ok(Vec::new()),
    }
}

fn leaf(outcome: &Outcome) -> Result<Vec<Instruction>, SeccompError> {
    let mut program = Vec::new();
    for (arguments, action) in &outcome.conditional {
        let mut rule = Vec::new();
        for argument in arguments {
            rule.extend(condition(argument));
        }
        rule.push(step(RETURN, *action));
        let end = rule.len();
        for (at, instruction) in rule.iter_mut().enumerate() {
            // `FAIL` leads past the rule's return.
            let distance = u8::try_from(end - at - 1).ok().filter(|distance| *distance < FAIL);
            let distance = distance.ok_or_else(|| SeccompError::new("syscalls", "a rule has too many conditions"))?;
            for target in [&mut instruction.jump_true, &mut instruction.jump_false] {
                if *target == FAIL {
                    *target = distance;
                }
            }
        }
        program.extend(rule);
    }
    program.push(step(RETURN, outcome.otherwise));
    Ok(program)
}

/// Stands for "this rule does not match" until the rule's length is known.
const FAIL: u8 = u8::MAX;

/// Steps that fall through when the condition holds and jump to `FAIL` when it does not.
fn condition(argument: &LinuxSeccompArg) -> Vec<Instruction> {
    let offset = OFFSET_ARGUMENTS + 8 * u32::try_from(argument.index()).unwrap_or(0);
    // Both architectures are little-endian: the low half comes first.
    let (load_low, load_high) = (step(LOAD, offset), step(LOAD, offset + 4));
    let (low, high) = halves(argument.value());
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => {
            vec![load_high, branch(EQUAL, high, 0, FAIL), load_low, branch(EQUAL, low, 0, FAIL)]
        }
        LinuxSeccompOperator::ScmpCmpNe => {
            vec![load_high, branch(EQUAL, high, 0, 2), load_low, branch(EQUAL, low, FAIL, 0)]
        }
        LinuxSeccompOperator::ScmpCmpLt => vec![
            load_high,
            branch(GREATER, high, FAIL, 0),
            branch(EQUAL, high, 0, 2),
            load_low,
            branch(GREATER_OR_EQUAL, low, FAIL, 0),
        ],
        LinuxSeccompOperator::ScmpCmpLe => {
            vec![
                load_high,
                branch(GREATER, high, FAIL, 0),
                branch(EQUAL, high, 0, 2),
                load_low,
                branch(GREATER, low, FAIL, 0),
            ]
        }
        LinuxSeccompOperator::ScmpCmpGt => {
            vec![
                load_high,
                branch(GREATER, high, 3, 0),
                branch(EQUAL, high, 0, FAIL),
                load_low,
                branch(GREATER, low, 0, FAIL),
            ]
        }
        LinuxSeccompOperator::ScmpCmpGe => vec![
            load_high,
            branch(GREATER, high, 3, 0),
            branch(EQUAL, high, 0, FAIL),
            load_low,
            branch(GREATER_OR_EQUAL, low, 0, FAIL),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (wanted_low, wanted_high) = halves(argument.value_two().unwrap_or(0));
            vec![
                load_high,
                step(AND, high),
                branch(EQUAL, wanted_high, 0, FAIL),
                load_low,
                step(AND, low),
                branch(EQUAL, wanted_low, 0, FAIL),
            ]
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low and the high half are taken on purpose")]
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

fn step(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

fn branch(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

fn length(program: &[Instruction]) -> Result<u32, SeccompError> {
    u32::try_from(program.len()).map_err(|_| SeccompError::new("syscalls", "the program is too long"))
}

#[cfg(test)]
mod tests;
