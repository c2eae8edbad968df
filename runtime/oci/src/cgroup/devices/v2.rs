//! Version 2: one eBPF program per cgroup.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use portreeve_sys::bpf::{self, Instruction};

use super::{ALL, Kind, Rule, What};

/// Name of our programs, by which they are told from those of others (a service manager attaches its own).
const NAME: &str = "portreeve_dev";

const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | (source << 4), offset, immediate }
}

/// The program for `rules`: of each access that is asked for the last rule about it decides, and one that no rule is about
/// is denied. All must be allowed, not necessarily by one rule.
///
/// The kernel gives `struct bpf_cgroup_dev_ctx { access_type, major, minor }` in r1; 1 is allow, 0 deny.
pub(crate) fn compile(rules: &[Rule]) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const AND_IMM: u8 = 0x54;
    const RIGHT_SHIFT_IMM: u8 = 0x74;
    const MOVE_REG: u8 = 0xbc;
    const MOVE_IMM: u8 = 0xb4;
    // Comparisons of 32 bits: those of 64 would extend the sign of a large number.
    const NOT_EQUAL_IMM: u8 = 0x56;
    const EQUAL_IMM: u8 = 0x16;
    const EXIT: u8 = 0x95;
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0), // r2 = type
        instruction(AND_IMM, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0), // r3 = accesses that no rule has decided on yet
        instruction(RIGHT_SHIFT_IMM, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0), // r4 = major
        instruction(LOAD_WORD, 5, 1, 8, 0), // r5 = minor
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        if let What::Some { kind, major, minor, access } = rule.what {
            let kind = if kind == Kind::Block { TYPE_BLOCK } else { TYPE_CHARACTER };
            block.push(instruction(NOT_EQUAL_IMM, 2, 0, 0, kind));
            for (register, number) in [(4, major), (5, minor)] {
                if let Some(number) = number {
                    block.push(instruction(NOT_EQUAL_IMM, register, 0, 0, number.cast_signed()));
                }
            }
            match (rule.allow, access) {
                (_, ALL) => {}
                // What it allows is decided; with anything left the next rule is asked.
                (true, access) => {
                    block.push(instruction(AND_IMM, 3, 0, 0, i32::from(ALL & !access)));
                    block.push(instruction(NOT_EQUAL_IMM, 3, 0, 0, 0));
                }
                (false, access) => {
                    block.push(instruction(MOVE_REG, 1, 3, 0, 0));
                    block.push(instruction(AND_IMM, 1, 0, 0, i32::from(access)));
                    block.push(instruction(EQUAL_IMM, 1, 0, 0, 0));
                }
            }
        }
        let unconditional = block.is_empty();
        block.push(instruction(MOVE_IMM, 0, 0, 0, i32::from(rule.allow)));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (at, step) in block.iter_mut().enumerate() {
            if matches!(step.code, NOT_EQUAL_IMM | EQUAL_IMM) {
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

/// Puts the rules in force on a version 2 cgroup: our former program is exchanged for the new one in one step, programs of
/// others stay.
pub(crate) fn install(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> std::io::Result<()> {
    let program = bpf::load_device_program(NAME, &compile(rules))?;
    let mut former: Vec<OwnedFd> = Vec::new();
    for attached in bpf::device_programs(cgroup)? {
        if bpf::program_name(attached.as_fd())? == NAME {
            former.push(attached);
        }
    }
    let mut former = former.into_iter();
    bpf::attach_device_program(cgroup, program.as_fd(), former.next().as_ref().map(AsFd::as_fd))?;
    former.try_for_each(|other| bpf::detach_device_program(cgroup, other.as_fd()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::rules;
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
                0x56 => jump = registers[to] != immediate,
                0x16 => jump = registers[to] == immediate,
                0x95 => return registers[0] == 1,
                code => panic!("operation {code:#x}"),
            }
            at += 1 + if jump { usize::try_from(step.offset).unwrap() } else { 0 };
        }
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
    fn accesses_that_different_rules_allow_may_be_asked_for_together() {
        let program = compile(&rules(
            r#"[{"allow": true, "type": "c", "major": 10, "access": "rm"}, {"allow": true, "type": "c", "major": 10, "minor": 5, "access": "w"},
                {"allow": false, "type": "c", "major": 10, "access": "m"}]"#,
        ));
        assert!(run(&program, 2, 6, 10, 5), "reading by the first, writing by the second");
        assert!(!run(&program, 2, 6, 10, 6), "nobody may write another one");
        assert!(!run(&program, 2, 3, 10, 5), "making a node was denied last");
        assert!(run(&program, 2, 2, 10, 6));
    }

    #[test]
    fn a_privileged_container_may_use_everything() {
        let program = compile(&rules(r#"[{"allow": true, "access": "rwm"}]"#));
        assert!(run(&program, 1, 7, 8, 0));
    }

    #[test]
    fn a_number_beyond_31_bits_matches_itself_and_nothing_else() {
        let program = compile(&rules(
            r#"[{"allow": true, "type": "c", "major": 4294967295, "minor": 2147483648, "access": "rwm"}]"#,
        ));
        assert!(run(&program, 2, 2, u32::MAX, 1 << 31));
        assert!(!run(&program, 2, 2, u32::MAX, 0));
        // The operation code of a comparison of 32 bits: the kernel would extend the sign for one of 64.
        assert!(program.iter().all(|step| step.code & 7 != 5 || step.code == 0x95), "{program:?}");
    }
}
