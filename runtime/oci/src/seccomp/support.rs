//! What of seccomp this runtime can express, and what of it this kernel carries out: what `features` tells.

use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator};
use portreeve_sys::seccomp::{NEW_LISTENER, action_available, flags_known};

use super::compile::{action_bits, answers, flag_bits};
use super::{Filter, SeccompError};

/// Every action of a profile.
pub const ACTIONS: [LinuxSeccompAction; 9] = [
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActNotify,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActTrap,
];

/// Every operator of a condition.
pub const OPERATORS: [LinuxSeccompOperator; 7] = [
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
    LinuxSeccompOperator::ScmpCmpNe,
];

/// The architectures whose calls a filter can name. A profile may list x32, and others that the machine does not have;
/// the calls of x32 fail whatever it says of them.
pub const ARCHITECTURES: [Arch; 3] = [Arch::ScmpArchAarch64, Arch::ScmpArchX86, Arch::ScmpArchX86_64];

/// Every flag of a profile.
pub const FLAGS: [LinuxSeccompFilterFlag; 4] = [
    LinuxSeccompFilterFlag::SeccompFilterFlagLog,
    LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
    LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
    LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv,
];

/// Those of [`ACTIONS`] that this kernel knows; none where it has no seccomp filters.
#[must_use]
pub fn supported_actions() -> Vec<LinuxSeccompAction> {
    ACTIONS.into_iter().filter(|action| action_available(action_bits(*action))).collect()
}

/// Those of [`FLAGS`] that this kernel knows.
#[must_use]
pub fn supported_flags() -> Vec<LinuxSeccompFilterFlag> {
    FLAGS.into_iter().filter(|flag| flags_known(flag_bits(*flag, true) | NEW_LISTENER)).collect()
}

pub(super) fn check(filter: &Filter) -> Result<(), SeccompError> {
    let unsupported = |what: String| Err(SeccompError::Unsupported { what });
    for answer in answers(&filter.program) {
        if !action_available(answer) {
            let name = ACTIONS.into_iter().find(|action| action_bits(*action) == answer);
            return unsupported(name.map_or_else(|| format!("action {answer:#x}"), |name| name.to_string()));
        }
    }
    if flags_known(filter.flags) {
        return Ok(());
    }
    let notifies = filter.listener.is_some();
    let listening = if notifies { NEW_LISTENER } else { 0 };
    let unknown = FLAGS.into_iter().find(|flag| {
        let bits = flag_bits(*flag, notifies);
        filter.flags & bits == bits && !flags_known(bits | listening)
    });
    unsupported(unknown.map_or_else(|| format!("filter flags {:#x}", filter.flags), |flag| flag.to_string()))
}

#[cfg(test)]
mod tests {
    use portreeve_sys::seccomp::Instruction;

    use super::super::{compile::compile, native};
    use super::*;

    fn filter(json: &str) -> Filter {
        compile(&serde_json::from_str(json).expect("profile"), native()).expect("compile")
    }

    #[test]
    fn this_kernel_supports_what_a_profile_that_compiles_uses() {
        assert_eq!(supported_actions(), ACTIONS);
        assert!(supported_flags().contains(&LinuxSeccompFilterFlag::SeccompFilterFlagLog));
        let all = filter(
            r#"{"defaultAction": "SCMP_ACT_KILL_PROCESS", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], "listenerPath": "/run/agent",
            "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_NOTIFY"}]}"#,
        );
        all.check_kernel().expect("known");
    }

    #[test]
    fn what_the_kernel_does_not_know_is_named() {
        let mut filter = filter(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
        filter.flags |= 1 << 30;
        assert_eq!(
            filter.check_kernel().expect_err("unknown").to_string(),
            "linux.seccomp: this kernel does not have filter flags 0x40000004, which the profile uses"
        );
        filter.program.push(Instruction { code: 6, jump_true: 0, jump_false: 0, operand: 0x1234_0001 });
        assert_eq!(
            filter.check_kernel().expect_err("unknown").to_string(),
            "linux.seccomp: this kernel does not have action 0x12340000, which the profile uses"
        );
    }
}
