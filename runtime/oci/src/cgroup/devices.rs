//! Device rules: lines of `devices.allow` and `devices.deny` on version 1, one eBPF program on version 2.

use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use portreeve_sys::bpf::{self, Instruction};

use super::CgroupError;

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    All,
    Character,
    Block,
}

/// One checked rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    pub(crate) kind: Kind,
    /// `None` is any.
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    /// 1 mknod, 2 read, 4 write (BPF_DEVCG_ACC_*).
    pub(crate) access: u8,
}

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;

/// What every container may use: making nodes (not opening them), the default devices, terminals.
pub(crate) const DEFAULT_ALLOWED: [(Kind, Option<u32>, Option<u32>, u8); 11] = [
    (Kind::Character, None, None, MKNOD),
    (Kind::Block, None, None, MKNOD),
    (Kind::Character, Some(1), Some(3), 7), // null
    (Kind::Character, Some(1), Some(5), 7), // zero
    (Kind::Character, Some(1), Some(7), 7), // full
    (Kind::Character, Some(1), Some(8), 7), // random
    (Kind::Character, Some(1), Some(9), 7), // urandom
    (Kind::Character, Some(5), Some(0), 7), // tty
    (Kind::Character, Some(5), Some(1), 7), // console
    (Kind::Character, Some(5), Some(2), 7), // ptmx
    (Kind::Character, Some(136), None, 7),  // pts
];

impl Rule {
    /// Checks one rule of the configuration.
    pub(crate) fn parse(rule: &LinuxDeviceCgroup) -> Result<Self, CgroupError> {
        let wrong = |reason: String| CgroupError::Value { field: "devices".into(), reason };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => Kind::All,
            LinuxDeviceType::C | LinuxDeviceType::U => Kind::Character,
            LinuxDeviceType::B => Kind::Block,
            LinuxDeviceType::P => return Err(wrong("a named pipe is no device of a cgroup rule".into())),
        };
        let number = |value: Option<i64>| match value {
            None | Some(..0) => Ok(None),
            Some(value) => u32::try_from(value).map(Some).map_err(|_| wrong(format!("{value} is no device number"))),
        };
        let text = rule.access().as_deref().unwrap_or("");
        let mut access = 0;
        for letter in text.chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                other => return Err(wrong(format!("{other:?} is no access; r, w and m are"))),
            };
        }
        if access == 0 {
            access = 7;
        }
        Ok(Self { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
    }

    /// The rule as a line of `devices.allow` or `devices.deny`.
    pub(crate) fn v1_line(&self) -> String {
        let kind = match self.kind {
            Kind::All => return "a".to_owned(),
            Kind::Character => 'c',
            Kind::Block => 'b',
        };
        let number = |value: Option<u32>| value.map_or_else(|| "*".to_owned(), |value| value.to_string());
        let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, c)| *c)
            .collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | (source << 4), offset, immediate }
}

/// The program for `rules`: the last rule that matches decides, nothing matching is denied.
///
/// The kernel gives `struct bpf_cgroup_dev_ctx { access_type, major, minor }` in r1; 1 is allow, 0 deny.
pub(crate) fn compile(rules: &[Rule]) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const AND_IMM: u8 = 0x54;
    const RIGHT_SHIFT_IMM: u8 = 0x74;
    const MOVE_REG: u8 = 0xbc;
    const MOVE_IMM: u8 = 0xb4;
    const NOT_EQUAL_IMM: u8 = 0x55;
    const NOT_EQUAL_REG: u8 = 0x5d;
    const EQUAL_IMM: u8 = 0x15;
    const EXIT: u8 = 0x95;
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0), // r2 = type
        instruction(AND_IMM, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0), // r3 = access
        instruction(RIGHT_SHIFT_IMM, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0), // r4 = major
        instruction(LOAD_WORD, 5, 1, 8, 0), // r5 = minor
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        match rule.kind {
            Kind::All => {}
            Kind::Character => block.push(instruction(NOT_EQUAL_IMM, 2, 0, 0, TYPE_CHARACTER)),
            Kind::Block => block.push(instruction(NOT_EQUAL_IMM, 2, 0, 0, TYPE_BLOCK)),
        }
        if rule.access != 7 {
            block.push(instruction(MOVE_REG, 1, 3, 0, 0));
            block.push(instruction(AND_IMM, 1, 0, 0, i32::from(rule.access)));
            // An allow rule must cover all that is asked; a deny rule counts when it touches any of it.
            block.push(if rule.allow {
                instruction(NOT_EQUAL_REG, 1, 3, 0, 0)
            } else {
                instruction(EQUAL_IMM, 1, 0, 0, 0)
            });
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                block.push(instruction(NOT_EQUAL_IMM, register, 0, 0, number.cast_signed()));
            }
        }
        let unconditional = block.is_empty();
        block.push(instruction(MOVE_IMM, 0, 0, 0, i32::from(rule.allow)));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (at, step) in block.iter_mut().enumerate() {
            if matches!(step.code, NOT_EQUAL_IMM | NOT_EQUAL_REG | EQUAL_IMM) {
                step.offset = i16::try_from(length - at - 1).unwrap_or(i16::MAX);
            }
        }
        program.extend(block);
        if unconditional {
            return program; // what follows could never be reached, which the verifier refuses
        }
    }
    program.push(instruction(MOVE_IMM, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Puts the rules in force on a version 2 cgroup, exchanging the program that was there in one step.
pub(crate) fn install(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> std::io::Result<()> {
    let program = bpf::load_device_program(&compile(rules))?;
    let old = bpf::device_programs(cgroup).unwrap_or_default();
    if let [single] = old.as_slice() {
        return bpf::attach_device_program(cgroup, program.as_fd(), Some(single.as_fd()));
    }
    bpf::attach_device_program(cgroup, program.as_fd(), None)?;
    for former in &old {
        bpf::detach_device_program(cgroup, former.as_fd())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the program; only the operations that `compile` uses.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        loop {
            let step = program[at];
            let (to, from) = (usize::from(step.registers & 15), usize::from(step.registers >> 4));
            let immediate = u64::from(step.immediate.cast_unsigned());
            let mut jump = false;
            match step.code {
                0x61 => registers[to] = u64::from(context[usize::try_from(step.offset).unwrap() / 4]),
                0x54 => registers[to] &= immediate,
                0x74 => registers[to] >>= immediate,
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = immediate,
                0x55 => jump = registers[to] != immediate,
                0x5d => jump = registers[to] != registers[from],
                0x15 => jump = registers[to] == immediate,
                0x95 => return registers[0] == 1,
                code => panic!("operation {code:#x}"),
            }
            at += 1 + if jump { usize::try_from(step.offset).unwrap() } else { 0 };
        }
    }

    fn rules(json: &str) -> Vec<Rule> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).expect("rules");
        rules.iter().map(|rule| Rule::parse(rule).expect("rule")).collect()
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let program = compile(&rules(
            r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "access": "r"}, {"allow": false, "type": "c", "major": 10, "minor": 5, "access": "r"}]"#,
        ));
        assert!(run(&program, 2, 2, 1, 3), "null may be read");
        assert!(run(&program, 2, 7, 1, 3), "null may be used in every way");
        assert!(!run(&program, 1, 2, 1, 3), "a block device with the same numbers may not");
        assert!(run(&program, 2, 2, 10, 200), "major 10 may be read");
        assert!(!run(&program, 2, 6, 10, 200), "major 10 may not be written as well");
        assert!(!run(&program, 2, 2, 10, 5), "the later denial wins");
        assert!(!run(&program, 1, 2, 8, 0), "what no rule allows is denied");
    }

    #[test]
    fn a_privileged_container_may_use_everything() {
        let program = compile(&rules(r#"[{"allow": true, "access": "rwm"}]"#));
        assert!(run(&program, 1, 7, 8, 0));
    }

    #[test]
    fn version_one_lines_are_the_kernels() {
        let lines: Vec<String> = rules(
            r#"[{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 136, "access": "rw"},
                {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"}]"#,
        )
        .iter()
        .map(Rule::v1_line)
        .collect();
        assert_eq!(lines, ["a", "c 136:* rw", "b 8:0 r"]);
    }

    #[test]
    fn an_unknown_access_letter_is_refused() {
        let rule: LinuxDeviceCgroup = serde_json::from_str(r#"{"allow": true, "access": "rx"}"#).expect("rule");
        assert!(Rule::parse(&rule).is_err());
    }
}
