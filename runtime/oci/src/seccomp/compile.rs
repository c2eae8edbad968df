//! From an OCI profile to one BPF program.
//!
//! ```text
//!   load architecture
//!   for each architecture: equal? -> load number -> binary search over ranges of numbers with one outcome
//!                                                     |-> return action
//!                                                     +-> conditions: compare arguments, return, else the next
//!   another architecture -> kill the process
//! ```

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use portreeve_sys::seccomp::{Instruction, LOG, NEW_LISTENER, SPEC_ALLOW, TSYNC, TSYNC_ESRCH, WAIT_KILLABLE_RECV};

use super::notify::Listener;
use super::syscalls::number;
use super::{Filter, SeccompError};

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
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOGGED: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
/// The action in an answer; the rest is what goes with it.
const ACTION: u32 = 0xffff_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel lowers a greater errno to this one (MAX_ERRNO).
const LARGEST_ERRNO: u32 = 4095;
/// Numbers of the x32 interface have this bit.
const X32_BIT: u32 = 0x4000_0000;
/// The kernel takes no longer program (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

const LAST_ARGUMENT: usize = 5;
/// Of the table, for the one architecture here whose arguments have 32 bits.
const X86_COLUMN: usize = 1;
/// The call by which the container's process gives the listener to its maker, under the filter already.
const HANDING_OVER: &str = "sendmsg";

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

/// For a machine whose programs are of the architecture `native`.
pub(super) fn compile(profile: &LinuxSeccomp, native: Arch) -> Result<Filter, SeccompError> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        let reason = "SCMP_ACT_NOTIFY would put off the very calls that hand the listener over; name calls instead";
        return Err(SeccompError::new("defaultAction", reason));
    }
    let default = action(profile.default_action(), profile.default_errno_ret(), || "defaultErrnoRet".into())?;
    let mut program = vec![step(LOAD, OFFSET_ARCHITECTURE)];
    for (audit, column) in architectures(profile, native)? {
        let section = section(profile, default, column)?;
        // Long jump over the section, for a program of more than 255 steps.
        program.push(branch(EQUAL, audit, 1, 0));
        program.push(step(JUMP, length(&section)?));
        program.extend(section);
    }
    program.push(step(RETURN, KILL_PROCESS));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(too_long());
    }
    let notifies = profile.syscalls().iter().flatten().any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    let listener = if notifies { Some(Listener::of(profile)?) } else { None };
    // Source: runtime-spec, config-linux.md, `listenerMetadata`.
    let nowhere = profile.listener_path().as_ref().is_none_or(|path| path.as_os_str().is_empty());
    if nowhere && profile.listener_metadata().as_ref().is_some_and(|text| !text.is_empty()) {
        return Err(SeccompError::new("listenerMetadata", "goes to listenerPath, which is missing"));
    }
    Ok(Filter { program, flags: flags(profile, notifies), listener })
}

fn too_long() -> SeccompError {
    let reason =
        format!("their program would have more than the {MAX_INSTRUCTIONS} instructions that the kernel takes");
    SeccompError::new("syscalls", reason)
}

fn flags(profile: &LinuxSeccomp, notifies: bool) -> u32 {
    let listening = if notifies { NEW_LISTENER } else { 0 };
    // Without a word the speculation mitigation, which makes programs slow, stays off, as in runc.
    let Some(list) = profile.flags() else { return SPEC_ALLOW | listening };
    list.iter().fold(listening, |flags, flag| flags | flag_bits(*flag, notifies))
}

/// The kernel's bits for a flag of a profile that `notifies`, or does not.
pub(super) fn flag_bits(flag: LinuxSeccompFilterFlag, notifies: bool) -> u32 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
        // A filter with a listener says its failures in another way, and the kernel wants that asked for.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync if notifies => TSYNC | TSYNC_ESRCH,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
        // It is about waiting for the listener: where there is none, nothing waits.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => WAIT_KILLABLE_RECV,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    }
}

/// The kernel's number of each architecture and its column of the table; the native one is always among them.
fn architectures(profile: &LinuxSeccomp, native: Arch) -> Result<Vec<(u32, usize)>, SeccompError> {
    let mut list = vec![column_of(native)?];
    for (index, architecture) in profile.architectures().iter().flatten().enumerate() {
        let runnable = match architecture {
            Arch::ScmpArchNative | Arch::ScmpArchX32 => continue, // x32 is refused within the x86_64 section
            Arch::ScmpArchX86 | Arch::ScmpArchX86_64 => native == Arch::ScmpArchX86_64,
            Arch::ScmpArchAarch64 => native == Arch::ScmpArchAarch64,
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
        Arch::ScmpArchX86 => Ok((0x4000_0003, X86_COLUMN)),
        Arch::ScmpArchAarch64 => Ok((0xc000_00b7, 2)),
        other => Err(SeccompError::new("architectures", format!("{other} is not supported"))),
    }
}

/// The kernel's number of an action, without what goes with it.
pub(super) fn action_bits(action: LinuxSeccompAction) -> u32 {
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => TRAP,
        LinuxSeccompAction::ScmpActErrno => ERRNO,
        LinuxSeccompAction::ScmpActNotify => NOTIFY,
        LinuxSeccompAction::ScmpActTrace => TRACE,
        LinuxSeccompAction::ScmpActLog => LOGGED,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
    }
}

/// What the program returns for an action. `field` is that of `errno`, which goes with two of them only: runtime-spec,
/// config-linux.md, `errnoRet`.
fn action(action: LinuxSeccompAction, errno: Option<u32>, field: impl Fn() -> String) -> Result<u32, SeccompError> {
    let largest = match action {
        LinuxSeccompAction::ScmpActErrno => LARGEST_ERRNO,
        LinuxSeccompAction::ScmpActTrace => !ACTION,
        _ if errno.is_some() => {
            return Err(SeccompError::new(field(), format!("{action} answers with no errno: leave the field out")));
        }
        _ => return Ok(action_bits(action)),
    };
    match errno.unwrap_or(EPERM) {
        errno if errno > largest => Err(SeccompError::new(field(), format!("{errno} is above {largest}"))),
        errno => Ok(action_bits(action) | errno),
    }
}

/// Every action that a program can return, without what goes with it.
pub(super) fn answers(program: &[Instruction]) -> BTreeSet<u32> {
    program.iter().filter(|step| step.code == RETURN).map(|step| step.operand & ACTION).collect()
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
        && !lets_through(default)
    {
        put(highest + 1, Outcome::always(ERRNO | ENOSYS));
    }
    if column == 0 {
        put(X32_BIT, Outcome::always(ERRNO | ENOSYS));
    }
    merge(&mut ranges);
    let mut program = vec![step(LOAD, OFFSET_NUMBER)];
    program.extend(search(&ranges, column == X86_COLUMN)?);
    Ok(program)
}

/// Whether a default action is one under which new calls work: a tracer answers for itself, as runc has it.
fn lets_through(default: u32) -> bool {
    matches!(default & ACTION, ALLOW | LOGGED | TRACE)
}

/// Neighbours with the same outcome become one.
fn merge(ranges: &mut Vec<(u32, Outcome)>) {
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
}

/// Every named call with its outcome; conditions first, and of what has none the first.
fn outcomes(profile: &LinuxSeccomp, default: u32, column: usize) -> Result<BTreeMap<u32, Outcome>, SeccompError> {
    let mut conditional: BTreeMap<u32, Vec<(Vec<LinuxSeccompArg>, u32)>> = BTreeMap::new();
    let mut plain: BTreeMap<u32, u32> = BTreeMap::new();
    let mut conditions = 0;
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = check(rule, index)?;
        let arguments = rule.args().as_deref().unwrap_or_default();
        for name in rule.names() {
            let Some(number) = number(name, column) else { continue };
            if arguments.is_empty() {
                plain.entry(number).or_insert(action);
                continue;
            }
            // Each takes several instructions: what is too long in the end is noticed before it is made.
            conditions += arguments.len();
            if conditions > MAX_INSTRUCTIONS {
                return Err(too_long());
            }
            let rules = conditional.entry(number).or_default();
            if one_each(arguments) {
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

/// The action of a rule that makes sense.
fn check(rule: &LinuxSyscall, index: usize) -> Result<u32, SeccompError> {
    let field = |name: &str| format!("syscalls[{index}].{name}");
    if rule.names().is_empty() || rule.names().iter().any(String::is_empty) {
        return Err(SeccompError::new(field("names"), "names no call"));
    }
    let arguments = rule.args().iter().flatten();
    if let Some((at, bad)) = arguments.enumerate().find(|(_, argument)| argument.index() > LAST_ARGUMENT) {
        let reason = format!("argument {} does not exist, 0 to {LAST_ARGUMENT} do", bad.index());
        return Err(SeccompError::new(field(&format!("args[{at}].index")), reason));
    }
    if rule.action() == LinuxSeccompAction::ScmpActNotify && rule.names().iter().any(|name| name == HANDING_OVER) {
        let reason = format!("SCMP_ACT_NOTIFY cannot be used for {HANDING_OVER}, which hands the listener over");
        return Err(SeccompError::new(field("names"), reason));
    }
    action(rule.action(), rule.errno_ret(), || field("errnoRet"))
}

/// Whether each argument has at most one condition.
fn one_each(conditions: &[LinuxSeccompArg]) -> bool {
    let mut seen = [false; LAST_ARGUMENT + 1];
    conditions
        .iter()
        .all(|condition| seen.get_mut(condition.index()).is_some_and(|seen| !std::mem::replace(seen, true)))
}

/// A balanced tree of comparisons; `ranges` are (first number, outcome) in order.
fn search(ranges: &[(u32, Outcome)], narrow: bool) -> Result<Vec<Instruction>, SeccompError> {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    match (low, high) {
        ([], [(_, outcome)]) => leaf(outcome, narrow),
        (_, [(pivot, _), ..]) => {
            let (left, right) = (search(low, narrow)?, search(high, narrow)?);
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

fn leaf(outcome: &Outcome, narrow: bool) -> Result<Vec<Instruction>, SeccompError> {
    let mut program = Vec::new();
    for (arguments, action) in &outcome.conditional {
        let mut rule = Vec::new();
        for argument in arguments {
            rule.extend(condition(argument, narrow));
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

/// Steps that fall through when the condition holds and jump to `FAIL` when it does not; `narrow` is for arguments of 32
/// bits, with which the lower halves of a condition's values are compared, as libseccomp does: -1 is written with 64.
fn condition(argument: &LinuxSeccompArg, narrow: bool) -> Vec<Instruction> {
    use LinuxSeccompOperator as Operator;
    let offset = OFFSET_ARGUMENTS + 8 * u32::try_from(argument.index()).unwrap_or(0);
    // All architectures here are little-endian: the low half comes first.
    let (load_low, load_high) = (step(LOAD, offset), step(LOAD, offset + 4));
    let (low, high) = halves(argument.value());
    let (wanted_low, wanted_high) = halves(argument.value_two().unwrap_or(0));
    let lower = match argument.op() {
        Operator::ScmpCmpEq => vec![load_low, branch(EQUAL, low, 0, FAIL)],
        Operator::ScmpCmpNe => vec![load_low, branch(EQUAL, low, FAIL, 0)],
        Operator::ScmpCmpLt => vec![load_low, branch(GREATER_OR_EQUAL, low, FAIL, 0)],
        Operator::ScmpCmpLe => vec![load_low, branch(GREATER, low, FAIL, 0)],
        Operator::ScmpCmpGt => vec![load_low, branch(GREATER, low, 0, FAIL)],
        Operator::ScmpCmpGe => vec![load_low, branch(GREATER_OR_EQUAL, low, 0, FAIL)],
        Operator::ScmpCmpMaskedEq => vec![load_low, step(AND, low), branch(EQUAL, wanted_low, 0, FAIL)],
    };
    if narrow {
        return lower;
    }
    // Where the upper halves decide, the two steps for the lower ones are left out.
    let mut steps = match argument.op() {
        Operator::ScmpCmpEq => vec![load_high, branch(EQUAL, high, 0, FAIL)],
        Operator::ScmpCmpNe => vec![load_high, branch(EQUAL, high, 0, 2)],
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => {
            vec![load_high, branch(GREATER, high, FAIL, 0), branch(EQUAL, high, 0, 2)]
        }
        Operator::ScmpCmpGt | Operator::ScmpCmpGe => {
            vec![load_high, branch(GREATER, high, 3, 0), branch(EQUAL, high, 0, FAIL)]
        }
        Operator::ScmpCmpMaskedEq => vec![load_high, step(AND, high), branch(EQUAL, wanted_high, 0, FAIL)],
    };
    steps.extend(lower);
    steps
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
pub(super) mod oracle;
#[cfg(test)]
mod tests;
